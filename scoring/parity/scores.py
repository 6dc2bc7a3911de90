"""Comparison of scores: one or several numbers per row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mirrorspark.scoring.parity.differences import (
    Keys,
    absolute_difference,
    check_shapes,
    key_columns,
    key_values,
    largest_first,
    report_of,
    worst_row,
)
from mirrorspark.scoring.parity.report import THRESHOLD, TOLERANCE, WORST_ROWS, ParityReport


def parity(
    reference: ArrayLike | Mapping[str, ArrayLike],
    candidate: ArrayLike | Mapping[str, ArrayLike],
    *,
    keys: Keys | None = None,
    tolerance: float = TOLERANCE,
    threshold: float | None = THRESHOLD,
    worst: int = WORST_ROWS,
) -> ParityReport:
    """Compare two scorings of the same rows in the same order (see ``join_on_keys``).

    Args:
        reference: scores ``[rows]``, or output name -> scores ``[rows]``.
        candidate: scores of the same shape and names.
        keys: key columns, ``[rows]`` each, that identify the worst rows; by default the row number.
        tolerance: the largest absolute difference that passes.
        threshold: score from which a row counts as positive; None if no decision uses a threshold.
        worst: number of rows with the largest differences in the report.

    Returns:
        The report; its statistics cover every score of every output.

    Raises:
        ValueError: there are no rows, or shapes or outputs differ.
    """
    names, expected = _score_matrix("reference", reference)
    other_names, actual = _score_matrix("candidate", candidate)
    if names != other_names:
        raise ValueError(f"reference has outputs {list(names)} but candidate has {list(other_names)}; compare the same")
    check_shapes(expected, actual)
    difference = absolute_difference(expected, actual)
    columns = key_columns(keys, len(expected))
    flips = 0 if threshold is None else int(((expected >= threshold) != (actual >= threshold)).sum())

    def where(row: int, column: int) -> dict[str, Any]:
        output = {"output": names[column]} if isinstance(reference, Mapping) else {}
        return {**key_values(columns, row), **output}

    order = largest_first(difference.ravel(), worst)
    cells = [divmod(int(cell), difference.shape[1]) for cell in order]
    return report_of(
        expected,
        actual,
        difference,
        tolerance,
        threshold=threshold,
        threshold_flips=flips,
        worst=tuple(worst_row(where(*cell), expected, actual, difference, cell) for cell in cells),
    )


def _score_matrix(
    side: str, scores: ArrayLike | Mapping[str, ArrayLike]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return sorted output names, and scores as ``[rows, outputs]`` in this order."""
    columns = scores if isinstance(scores, Mapping) else {"score": scores}
    names = tuple(sorted(columns))
    arrays = [np.asarray(columns[name], dtype=np.float64) for name in names]
    for name, array in zip(names, arrays, strict=True):
        if array.ndim != 1 or not array.size:
            raise ValueError(f"{side} {name!r} has shape {array.shape}; pass one score per row, at least one row")
        if array.size != arrays[0].size:
            raise ValueError(f"{side} {name!r} has {array.size} rows but {names[0]!r} has {arrays[0].size}")
    if not arrays:
        raise ValueError(f"{side} has no outputs; pass at least one")
    return names, np.stack(arrays, axis=1)
