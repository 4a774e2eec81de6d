"""Tables of numbers in .csv and .npy files."""

from __future__ import annotations

import numpy as np

from genjax import buckets
from genjax.data.base import DataError


def read_table(path: str | None) -> tuple[np.ndarray, list[str]]:
    """Reads a table from a .npy file [N, D], or from a .csv file with or without a line of names.

    Returns:
      Values float32 [N, D] and the names of the columns.

    Raises:
      DataError: there is no such file, a value is not a finite number, or rows or names differ in length.
    """
    if not path:
        raise DataError("--data.name=table needs the file of the table: --data.dir=FILE.csv or FILE.npy")
    file = buckets.folder(path)
    if not file.is_file():
        raise DataError(f"--data.dir={path} is not a file")
    names: list[str] = []
    if file.suffix == ".npy":
        try:
            values = np.load(file, allow_pickle=False)
            values = values.astype(np.float32)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{file} is not a readable array of numbers ({error})") from None
        if values.ndim != 2:
            raise DataError(f"{file} has the shape {values.shape}; a table has two axes, rows and columns")
    else:
        rows: list[list[float]] = []
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
            if not line.strip():
                continue
            cells = [c.strip() for c in line.split(",")]
            try:
                rows.append([float(c) for c in cells])
            except ValueError:
                if rows or names or any(map(_is_number, cells)):
                    raise DataError(f"line {number} of {file} has a cell that is not a number: {line[:60]!r}") from None
                names = cells
                continue
            if len(rows[-1]) != len(rows[0]):
                raise DataError(f"line {number} of {file} has {len(rows[-1])} cells, the first row has {len(rows[0])}")
        if not rows:
            raise DataError(f"{file} has no rows")
        if names and len(names) != len(rows[0]):
            raise DataError(f"{file} names {len(names)} columns, and its rows have {len(rows[0])} cells")
        values = np.array(rows, np.float32)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise DataError(f"row {bad[0][0] + 1}, column {bad[0][1] + 1} of {file} is not a finite number")
    return values, names or [f"column_{i}" for i in range(values.shape[1])]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
