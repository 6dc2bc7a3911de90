"""The columns that scored rows can have after their scores, in this order.

A new column is one more entry of ``ADDED_COLUMNS`` and a row in ``docs/scoring.md``. A fact that it needs and
:class:`Entries` lacks comes from ``task/scorer.py``, ``task/group_task.py`` and ``predictor.py``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

VERSION_COLUMN = "model_version"
ERROR_COLUMN = "error"


@dataclass(frozen=True)
class Entries:
    """Facts about scored rows, from which the values of the added columns are made.

    Attributes:
        count: Number of entries, which may differ from the number of scored rows.
        rows: int64 ``[count]``: number of the scored row of each entry; None if there is one entry per row.
        model: The model's version, such as ``flights/3``; None for rows without a model.
        errors: Reason of each row that could not be scored, by number.
    """

    count: int
    rows: np.ndarray | None
    model: str | None
    errors: Mapping[int, str]


@dataclass(frozen=True)
class AddedColumn:
    """A column after the scores.

    Attributes:
        meaning: The column's value, as in the table of ``docs/scoring.md``.
        values: Returns its values, ``[entries.count]``.
        with_bad_rows: Treatment of bad rows with which the column is there; None if callers ask for it by its name.
        by_default: Whether it is there if callers ask for no other columns.
        repeats: Whether most values of a file are equal, so that a dictionary makes it smaller.
    """

    name: str
    type: pa.DataType
    meaning: str
    values: Callable[[Entries], pa.Array]
    with_bad_rows: str | None = None
    by_default: bool = False
    repeats: bool = False


def _errors(entries: Entries) -> pa.Array:
    if not entries.errors:
        return pa.nulls(entries.count, pa.string())
    rows = range(entries.count) if entries.rows is None else entries.rows.tolist()
    return pa.array([entries.errors.get(row) for row in rows], pa.string())


def _versions(entries: Entries) -> pa.Array:
    return pa.repeat(pa.scalar(entries.model, pa.string()), entries.count)


ADDED_COLUMNS = (
    AddedColumn(
        ERROR_COLUMN,
        pa.string(),
        "why the row could not be scored; null for other rows",
        _errors,
        with_bad_rows="mark",
    ),
    AddedColumn(
        VERSION_COLUMN,
        pa.string(),
        "the version of the model, such as `flights/3`",
        _versions,
        by_default=True,
        repeats=True,
    ),
)

DEFAULT_COLUMNS = tuple(column.name for column in ADDED_COLUMNS if column.by_default)
