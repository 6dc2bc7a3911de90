"""Rows that a model cannot score: which ones are at fault, and what is said of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pyarrow as pa

from data_pipelines.raw_columns import ColumnError
from scoring.checks import ScoringError

ERROR_COLUMN = "error"
_ADVICE = f"correct it, leave it out, or score with bad_rows='mark' to have the reason in the column '{ERROR_COLUMN}'"

BadRows = Literal["fail", "mark"]
"""What becomes of a row that cannot be scored: the job fails and names it, or it is marked with the reason."""


class BadRowError(ColumnError):
    """A row that the model cannot score; the message has its keys, or its place where there are none."""


def faulty_rows(
    batch: pa.RecordBatch, check: Callable[[pa.RecordBatch], object], *, first: bool = False
) -> dict[int, str]:
    """Return the numbers of the rows that ``check`` refuses, rising, and what it says of each.

    Args:
        batch: The rows.
        check: Raises ``ColumnError`` for rows of which one is at fault. It is asked of halves, of halves of those, and
            so on: of n rows with one at fault, some 2 log2 n times.
        first: Look for the first one alone.
    """
    found: dict[int, str] = {}
    waiting = [(0, batch.num_rows)]
    while waiting:
        start, stop = waiting.pop()
        try:
            check(batch.slice(start, stop - start))
        except ColumnError as error:
            if stop - start == 1:
                found[start] = str(error)
                if first:
                    break
            elif stop - start:
                middle = (start + stop) // 2
                waiting += [(middle, stop), (start, middle)]  # the first half comes off first
    return found


def described(batch: pa.RecordBatch, keys: Sequence[str], faults: Mapping[int, str], *, advice: str = _ADVICE) -> str:
    """Return what is said when a job fails for a row: its keys, what is wrong with it, and what to do.

    Without keys it is named by its place in ``batch``. What is wrong tells the column, and what of its value is at
    fault.
    """
    row, message = next(iter(faults.items()))
    name = ", ".join(f"{key}={batch.column(key)[row].as_py()!r}" for key in keys)
    place = f"number {row} of {batch.num_rows} scored together (the first is 0)"
    return f"the row {name or place} cannot be scored: {message}; {advice}"


def sound_rows(rows: int, faults: Mapping[int, str]) -> np.ndarray:
    """Return the numbers of the other rows, int64, rising."""
    return np.delete(np.arange(rows), list(faults))


def check_bad_rows(bad_rows: str) -> None:
    """Refuse a word that names no way to treat bad rows."""
    if bad_rows not in get_args(BadRows):
        raise ScoringError(f"bad_rows '{bad_rows}' is unknown; use one of {list(get_args(BadRows))}")
