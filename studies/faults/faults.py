"""What survives a kill, SIGTERM, a full disk and a damaged file: `python studies/faults/faults.py`.

Each command is run once without a fault, which tells how long it takes and what it writes. Then it is disturbed many
times, at random moments that a seed chooses, and started again as its user would: by the same command and, where that
names a command that resumes, by this one. It survived if the end is the same as without the fault: the same metrics of
every run, or the same table, with no temporary file left behind. A bit of a checkpoint is survived if the error calls
the file damaged. The numbers are written to `faults.json` beside this script.

The full disk is a small tmpfs, which only root can mount; without root that column stays empty.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FAST = ("data=digits", "trainer=cpu", "model=ae", "trainer.max_epochs={epochs}")
RANGES = ("model.lr=tag(log,interval(1e-4,1e-2))", "n_trials=4")
USE = ("ckpt={trained}", "data.path={series}", "overwrite=true")
COMMANDS = {
    "run": ("train", *FAST, "out={out}/run"),
    "seeds": ("train", *FAST, "seed=[0,1]", "out={out}/run"),
    "sweep": ("train", "-m", *FAST, "seed=0,1,2", "out={out}/run"),
    "search": ("search", *FAST[:3], "trainer.max_epochs=5", *RANGES, "out={out}/run"),
    "detect": ("detect", *USE, "out={out}/scores.csv"),
    "reconstruct": ("reconstruct", *USE, "out={out}/x_hat.csv"),
}
READING = {"detect", "reconstruct"}
"""Those that need a trained run."""
MINUTES = 10
"""After which a command counts as hanging."""


@dataclass(frozen=True)
class End:
    """How a process ended: its exit status, its output, and the seconds from the signal, if it came, to its end."""

    code: int
    text: str
    seconds: float | None = None

    @property
    def plain(self) -> bool:
        """Whether no traceback was shown."""
        return "Traceback" not in self.text

    @property
    def last(self) -> str:
        """The last line of the output."""
        return (self.text.strip().splitlines() or [""])[-1]


def run(args: tuple[str, ...], after: float | None = None, number: signal.Signals = signal.SIGKILL) -> End:
    """Run `python -m msae.COMMAND ...`; after some seconds kill its process group, or send the command a signal."""
    line = [sys.executable, "-m", f"msae.{args[0]}", *args[1:]]
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(line, stdout=file, stderr=file, start_new_session=True)
        seconds = None
        try:
            process.wait(MINUTES * 60 if after is None else after)
        except subprocess.TimeoutExpired:
            begin = time.monotonic()
            (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            seconds = time.monotonic() - begin
        left = alive(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        file.seek(0)
        text = file.read().decode(errors="replace")
    return End(code, text + "\nTraceback: a worker is left behind" * left, seconds)


def alive(group: int) -> bool:
    """Whether a process of the group still runs some seconds after the command ended."""
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True


def root(*line: str | Path) -> None:
    """A command that only root may run."""
    subprocess.run(line, check=True)


def again(args: tuple[str, ...]) -> End:
    """The same command once more; where it names a command that resumes, that one."""
    end = run(args)
    found = re.search(r"python -m msae\.(\w+) (resume=[^;\n]*)", end.text)
    if end.code and found:
        return run((found[1], *shlex.split(found[2])))
    return end


def written(out: Path) -> dict[str, Any]:
    """What a command has left in its folder: metrics of runs, tables, and the names of temporary files."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name == "metrics.json":
            content = json.loads(path.read_text())
            found[name] = [content[key] for key in ("metrics", "val_loss", "history")]
        elif path.suffix == ".csv" and path.is_file():
            found[name] = path.read_bytes()
        elif "tmp" in path.name or (path.name.startswith(".") and path.name != ".hydra"):
            found[name] = "temporary"
    return found


@dataclass
class Trial:
    """A command that is disturbed.

    Attributes:
        name: of the command.
        places: what stands for `{trained}`, `{series}` and `{epochs}`.
        folder: in which the tries are made.
        seconds: that the command takes without a fault.
        size: of the files that it writes then, in bytes.
        right: what it writes then.
    """

    name: str
    places: dict[str, str]
    folder: Path
    seconds: float = 0.0
    size: int = 0
    right: dict[str, Any] = field(default_factory=dict)

    def args(self, out: Path) -> tuple[str, ...]:
        """The command line that writes into a folder."""
        return tuple(arg.format(out=out, **self.places) for arg in COMMANDS[self.name])

    def measure(self) -> None:
        """Run the command without a fault."""
        begin = time.monotonic()
        with self.out() as out:
            end = run(self.args(out))
            assert end.code == 0, end.text
            self.seconds, self.right = time.monotonic() - begin, written(out)
            self.size = sum(path.stat().st_size for path in out.rglob("*"))

    @contextlib.contextmanager
    def out(self) -> Iterator[Path]:
        """An empty folder for one try."""
        out = Path(tempfile.mkdtemp(dir=self.folder))
        yield out
        shutil.rmtree(out)

    def disturbed(self, out: Path, moment: float, number: signal.Signals) -> End:
        """Send the command a signal; one that ends before it is timed anew and run again."""
        begin = time.monotonic()
        end = run(self.args(out), moment * self.seconds, number)
        if end.code or end.seconds is not None:
            return end
        self.seconds = time.monotonic() - begin
        shutil.rmtree(out)
        out.mkdir()
        return self.disturbed(out, moment, number)

    def lost(self, out: Path) -> str:
        """What is wrong after the fault and, once the command was started again, at its end; nothing if it survived."""
        tables = {name: content for name, content in written(out).items() if isinstance(content, bytes)}
        if any(self.right[name] != content for name, content in tables.items()):
            return "a table is not whole"
        end, found = again(self.args(out)), written(out)
        if end.code or not end.plain:
            return f"started again, it ends with {end.code}: {end.last}"
        # a trial of a search that is lost leaves its number free
        same = len(found) == len(self.right) if self.name == "search" else found == self.right
        return "" if same else f"other files: {sorted(set(found) ^ set(self.right)) or 'of other content'}"

    def killed(self, moment: float) -> tuple[str, float]:
        """SIGKILL to all its processes."""
        with self.out() as out:
            self.disturbed(out, moment, signal.SIGKILL)
            return self.lost(out), 0.0

    def terminated(self, moment: float) -> tuple[str, float]:
        """SIGTERM to the command: it ends its workers, with status 143 and without a traceback."""
        with self.out() as out:
            end = self.disturbed(out, moment, signal.SIGTERM)
            stopped = end.plain and end.code in (0, 143, -signal.SIGTERM)
            return self.lost(out) if stopped else f"it ends with {end.code}: {end.last}", end.seconds or 0.0

    def full(self, moment: float) -> tuple[str, float]:
        """A disk too small, which later has room: one line says so, and the command goes on."""
        with self.out() as out:
            size = int(self.size * (0.1 + 0.9 * moment))
            root("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", out)
            try:
                end = run(self.args(out))
                root("mount", "-o", "remount,size=500m", out)
                told = end.code and end.plain and "space" in end.text.lower()
                return self.lost(out) if told else f"on a full disk it ends with {end.code}: {end.last}", 0.0
            finally:
                root("umount", out)

    def flipped(self, moment: float) -> tuple[str, float]:
        """One bit of the checkpoint that the command reads, other than without the fault."""
        with self.out() as out:
            copy = Path(shutil.copytree(self.places["trained"], out / "run"))
            path = copy / ("last.ckpt" if self.name == "run" else "best.ckpt")
            content = bytearray(path.read_bytes())
            bit = int(moment * 8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
            if self.name == "run":
                end = run(("train", f"resume={copy}", f"trainer.max_epochs={int(self.places['epochs']) + 1}"))
            else:
                end = run((*(arg for arg in self.args(out) if not arg.startswith("ckpt=")), f"ckpt={copy}"))
            told = end.code and end.plain and "damaged" in end.text
            return "" if told else f"it ends with {end.code}: {end.last}", 0.0


FAULTS: dict[str, tuple[Callable[[Trial, float], tuple[str, float]], tuple[str, ...]]] = {
    "kill": (Trial.killed, tuple(COMMANDS)),
    "SIGTERM": (Trial.terminated, tuple(COMMANDS)),
    "full disk": (Trial.full, tuple(COMMANDS)),
    "flipped bit": (Trial.flipped, ("run", "detect", "reconstruct")),
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="kills of each command")
    parser.add_argument("--tries", type=int, default=10, help="tries of each other fault")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="which of them")
    parser.add_argument("--faults", default=",".join(FAULTS), help="which of them")
    parser.add_argument("--epochs", type=int, default=40, help="of a run")
    parser.add_argument("--jobs", type=int, default=1, help="tries side by side")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--add", action="store_true", help="to the tries in the file")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    lost_any = False
    rows: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        places = {"trained": f"{folder}/trained", "series": f"{folder}/series.npy", "epochs": str(args.epochs)}
        if READING & {*args.commands.split(",")} or "flipped bit" in args.faults:
            prepare(places)
        for name in args.commands.split(","):
            trial = Trial(name, places, Path(folder))
            trial.measure()
            row = rows.setdefault(name, {}) | {"seconds": round(trial.seconds, 2)}
            for fault in args.faults.split(","):
                disturb, commands = FAULTS[fault]
                if name not in commands or (fault == "full disk" and os.geteuid()):
                    continue
                draw = random.Random(f"{args.seed} {name} {fault}")  # noqa: S311
                moments = [draw.random() for _ in range(args.kills if fault == "kill" else args.tries)]
                ends = list(pool.map(lambda moment, do=disturb, of=trial: do(of, moment), moments))
                lost = {round(moment, 4): why for moment, (why, _) in zip(moments, ends, strict=True) if why}
                before = row.get(fault, {}) if args.add else {}
                counts = {"survived": len(ends) - len(lost), "tried": len(ends)}
                row[fault] = {key: count + before.get(key, 0) for key, count in counts.items()}
                if fault == "SIGTERM":
                    row[fault] |= {"seconds": round(statistics.median(seconds for _, seconds in ends), 2)}
                lost_any |= bool(lost)
                print(
                    f"{name}, {fault}: {row[fault]}",
                    *(f"lost at {at}: {why}" for at, why in lost.items()),
                    sep="\n  ",
                    flush=True,
                )
            rows[name] = row
            args.out.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(lost_any)


def prepare(places: dict[str, str]) -> None:
    """A trained run on windows of 64 steps, and a series that it scores."""
    import numpy as np

    end = run(("train", *(text.format(**places) for text in FAST), f"out={places['trained']}"))
    assert end.code == 0, end.text
    noise = np.random.default_rng(0).normal(0, 1, 20_000)
    np.save(places["series"], 8 + 4 * np.sin(np.arange(20_000) / 9) + noise)


if __name__ == "__main__":
    main()
