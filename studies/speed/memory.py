"""Memory that training on a long series takes: `python studies/speed/memory.py`.

Writes a series of random values to a file, trains on it for 300 steps in a separate process, and prints the peak
memory of that process. With `--cap` the process runs in a memory cgroup of that many GiB, file cache included (Linux,
as root). `--imports` prints what imports alone take (Linux).
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

PIECE = 1 << 22
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


def write(path: Path, values: int) -> None:
    """A noisy sine, in pieces."""
    rng = np.random.default_rng(0)
    pieces = [(first, min(PIECE, values - first)) for first in range(0, values, PIECE)]
    data = ((np.sin(np.arange(a, a + n) / 50) + rng.normal(size=n)).astype(np.float32) for a, n in pieces)
    if path.suffix == ".npy":
        array = np.lib.format.open_memmap(path, "w+", np.float32, (values,))
        for (first, n), piece in zip(pieces, data, strict=True):
            array[first : first + n] = piece
    else:
        opened = parquet.ParquetWriter if path.suffix == ".parquet" else csv.CSVWriter
        with opened(path, pa.schema([("value", pa.float32())])) as file:
            for piece in data:
                file.write_table(pa.table({"value": piece}))


def capped(gib: float) -> tuple[Path, Callable[[], None]]:
    """A new memory cgroup, and a function that moves the calling process into it."""
    v1 = V1.is_dir()
    group = (V1 if v1 else V2) / f"msae-{os.getpid()}"
    group.mkdir()
    (group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(int(gib * 2**30)))
    return group, lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None


def imports() -> None:
    """Print the peak memory of processes that import something and end, and what of it no file backs, in MiB."""
    for line in ("import msae", "import torch", "import lightning", "from msae import load"):
        code = f"{line}\nprint(*(row for row in open('/proc/self/status') if row.startswith(('VmHWM', 'RssAnon'))))"
        printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        peak, own = (int(word) / 1024 for word in printed.split() if word.isdigit())
        print(f"{line}: {peak:.0f} MiB, {own:.0f} of its own")


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=50_000_000, help="values of the series (default 50 million)")
    parser.add_argument(
        "--suffix", choices=(".npy", ".parquet", ".csv"), default=".npy", help="of the file (default .npy)"
    )
    parser.add_argument("--window", type=int, default=256, help="time steps of a window (default 256)")
    parser.add_argument("--stride", type=int, default=1, help="time steps between windows (default 1)")
    parser.add_argument("--cap", type=float, help="GiB that the process may take")
    parser.add_argument("--imports", action="store_true", help="measure imports alone")
    options = parser.parse_args()
    if options.imports:
        imports()
        return
    group, enter = capped(options.cap) if options.cap else (None, None)
    with TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / f"series{options.suffix}"
        write(path, options.values)
        arguments = [
            "data=series", f"data.path={path}", f"data.window={options.window}", f"data.stride={options.stride}",
            "trainer=cpu", "trainer.max_steps=300", "trainer.max_epochs=-1", f"hydra.run.dir={folder}/run",
            "trainer.limit_val_batches=20", "trainer.limit_test_batches=20", "trainer.enable_progress_bar=false",
        ]  # fmt: skip
        with path.open("rb") as file:  # out of the page cache, which would count as this process's
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "msae.train", *arguments], check=True, preexec_fn=enter)
        seconds = time.perf_counter() - start
        size = path.stat().st_size / 2**30
    if group is not None:
        group.rmdir()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    values = options.values * 4 / 2**30
    cap = f", cap {options.cap:g} GiB" if options.cap else ""
    print(
        f"{options.values:,} values, {values:.2f} GiB ({size:.2f} on disk){cap}: peak {peak:.2f} GiB, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
