"""Arrays in temporary files, memory-mapped, so that a table need not fit in memory."""

from __future__ import annotations

import math
import os
import tempfile
from typing import IO, Any

import numpy as np

from msae.data.tables import BLOCK


def mapped(file: IO[bytes], shared: bool) -> np.ndarray:
    """The bytes of a file, memory-mapped; unlike numpy's, the array holds no descriptor, so there may be many.

    Args:
        file: that is open, and may be closed afterwards.
        shared: whether what is written to the array is written to the file.
    """
    import torch

    size = os.fstat(file.fileno()).st_size
    found: np.ndarray = torch.from_file(f"/dev/fd/{file.fileno()}", shared, size, dtype=torch.uint8).numpy()
    return found


class Spool:
    """An array that grows in an unnamed temporary file, and is then memory-mapped."""

    def __init__(self, dtype: Any, width: int = 1) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  (closed on leaving the `with`)
        self.dtype = np.dtype(dtype)
        self.width = width
        self.rows = 0

    def append(self, rows: np.ndarray) -> None:
        """Add rows, `(n, width)` or `(n,)`."""
        self.file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        self.rows += len(rows)

    def array(self) -> np.ndarray:
        """All rows, `(rows, width)`; the file is deleted together with the array."""
        self.file.flush()
        if not self.rows:
            return np.empty((0, self.width), self.dtype)
        rows: np.ndarray = mapped(self.file, True).view(self.dtype).reshape(self.rows, self.width)
        return rows

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def reordered(array: np.ndarray, order: np.ndarray, dtype: Any = None) -> np.ndarray:
    """The rows of an array in another order, and of another type if one is given."""
    if not len(array):
        return array
    with Spool(array.dtype if dtype is None else dtype, math.prod(array.shape[1:])) as new:
        for start in range(0, len(array), step := max(1, BLOCK // new.width)):
            new.append(array[order[start : start + step]])
        return new.array().reshape(array.shape)
