"""Detection and description of rows that a model cannot score."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.scoring.output.added_columns import ERROR_COLUMN

_ADVICE = f"correct it, leave it out, or score with bad_rows='mark' to have the reason in the column '{ERROR_COLUMN}'"

BadRows = Literal["fail", "mark"]
"""Treatment of a row that cannot be scored: the job fails and names it, or it is marked with the reason."""


class BadRowError(raw_columns.ColumnError):
    """Raised for a row that the model cannot score; the message has its keys, or its number if there are no keys."""


def bad_row_errors(
    batch: pa.RecordBatch, check: Callable[[pa.RecordBatch], object], *, first: bool = False
) -> dict[int, str]:
    """Return the error message by number of each row that ``check`` rejects, in ascending order.

    Args:
        batch: The rows.
        check: Raises ``ColumnError`` for rows with a bad one among them. It is called by bisection, about 2 log2 n
            times for one bad row among n.
        first: Stop at the first bad row.
    """
    found: dict[int, str] = {}
    waiting = [(0, batch.num_rows)]
    while waiting:
        start, stop = waiting.pop()
        try:
            check(batch.slice(start, stop - start))
        except raw_columns.ColumnError as error:
            if stop - start == 1:
                found[start] = str(error)
                if first:
                    break
            elif stop - start:
                middle = (start + stop) // 2
                waiting += [(middle, stop), (start, middle)]  # the first half is popped first
    return found


def failure_message(
    batch: pa.RecordBatch, keys: Sequence[str], row_errors: Mapping[int, str], *, advice: str = _ADVICE
) -> str:
    """Return the message of a job that fails for the first bad row: its keys, the error and the remedy.

    Without keys the row is named by its number in ``batch``.
    """
    row, message = next(iter(row_errors.items()))
    name = ", ".join(f"{key}={batch.column(key)[row].as_py()!r}" for key in keys)
    place = f"number {row} of {batch.num_rows} scored together (the first is 0)"
    return f"the row {name or place} cannot be scored: {message}; {advice}"


def good_rows(rows: int, row_errors: Mapping[int, str]) -> np.ndarray:
    """Return the numbers of all other rows, int64, ascending."""
    return np.delete(np.arange(rows), list(row_errors))
