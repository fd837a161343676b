"""Are several seeds faster as one run than side by side? Whole commands, timed alternately.

    python studies/speed/stack_speed.py [--rounds 3] [--seeds 1 5 20] [--threads 1 2] [KEY=VALUE ...]

`as one` is seed=[0,...]; `launcher` is a sweep over the same seeds, with as many runs at a time as there are cores;
`in turn` is the same with one run at a time. The ratios divide the wall time of `as one`, and its time on all cores
together, by those of the other.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from statistics import median

from msae.runs.comparison import table

WAYS = ("as one", "launcher", "in turn")


def timed(way: str, seeds: int, threads: int, overrides: list[str]) -> tuple[float, float]:
    """Seconds of a whole command: on the wall, and of all cores."""
    numbers = ",".join(map(str, range(seeds)))
    folder = tempfile.mkdtemp()
    command = [sys.executable, "-m", "msae.train", "data=digits", "trainer=cpu", f"threads={threads}", *overrides]
    if way == "as one":
        command += [f"seed=[{numbers}]", f"hydra.run.dir={folder}/runs"]
    else:
        command += ["-m", f"seed={numbers}", f"hydra.sweep.dir={folder}/runs"]
        command += ["hydra.launcher.n_jobs=1"] * (way == "in turn")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(folder)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    overrides = [text for text in sys.argv[1:] if "=" in text and not text.startswith("-")]
    given = parser.parse_args([text for text in sys.argv[1:] if text not in overrides])
    lines = []
    for seeds in given.seeds:
        for threads in given.threads:
            found = [[timed(way, seeds, threads, overrides) for way in WAYS] for _ in range(given.rounds)]
            ratios = [
                [one[0][kind] / one[other][kind] for one in found] for other, kind in ((1, 0), (2, 0), (1, 1), (2, 1))
            ]
            seconds = f"{median(one[0][0] for one in found):.0f} s"
            spread = [f"{median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in ratios]
            lines.append([f"{seeds}", f"{threads}", seconds, *spread])
            print(f"seeds {seeds}, threads {threads}: {', '.join(spread)}", flush=True)
    header = ["seeds", "threads a run", "as one", "wall, to launcher", "wall, to in turn"]
    header += ["all cores, to launcher", "all cores, to in turn"]
    print(f"\n{table(header, lines)}")


if __name__ == "__main__":
    main()
