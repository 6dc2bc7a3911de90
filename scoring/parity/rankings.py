"""Comparison of ranked lists: ids with their scores, best first."""

from __future__ import annotations

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
    plain_value,
    report_of,
    worst_row,
)
from mirrorspark.scoring.parity.report import TOLERANCE, WORST_ROWS, ParityReport


def ranking_parity(
    reference_ids: ArrayLike,
    candidate_ids: ArrayLike,
    reference_scores: ArrayLike,
    candidate_scores: ArrayLike,
    *,
    keys: Keys | None = None,
    tolerance: float = TOLERANCE,
    worst: int = WORST_ROWS,
) -> ParityReport:
    """Compare two sets of ranked lists, rank by rank.

    Scores are compared at equal ranks. Items whose reference scores are within the tolerance may swap places or, at the
    end of a list, replace each other without a change of order, because only rounding decides between them.

    Args:
        reference_ids: recommended ids, best first, ``[rows, k]``.
        candidate_ids: the candidate's ids, ``[rows, k]``.
        reference_scores: scores of ``reference_ids``, ``[rows, k]``.
        candidate_scores: the candidate's scores, ``[rows, k]``.
        keys: key columns, ``[rows]`` each, that identify the worst rows.
        tolerance: the largest absolute difference of scores that passes.
        worst: number of worst rows in the report: changed orders first, then by difference.

    Raises:
        ValueError: there are no rows, or shapes differ.
    """
    expected = np.asarray(reference_scores, dtype=np.float64)
    actual = np.asarray(candidate_scores, dtype=np.float64)
    expected_ids, actual_ids = np.asarray(reference_ids), np.asarray(candidate_ids)
    for name, value in (("reference_scores", expected), ("reference_ids", expected_ids)):
        if value.ndim != 2 or not value.size:
            raise ValueError(f"{name} has shape {value.shape}; pass [rows, k] with at least one row and one rank")
    check_shapes(expected, actual)
    check_shapes(expected_ids, actual_ids)
    check_shapes(expected, expected_ids)
    columns = key_columns(keys, len(expected))
    difference = absolute_difference(expected, actual)
    moved = expected_ids != actual_ids
    changed = np.zeros(expected_ids.shape, dtype=bool)
    for row in np.flatnonzero(moved.any(axis=1)):
        changed[row] = moved[row] & ~_tied(expected_ids[row], actual_ids[row], expected[row], tolerance)

    # A changed order is worse than any difference of scores.
    severity = np.where(changed, np.inf, difference)
    worst_rank = severity.argmax(axis=1)
    order = largest_first(severity.max(axis=1), worst)
    cells = [(int(row), int(worst_rank[row])) for row in order]

    def where(row: int, rank: int) -> dict[str, Any]:
        ids = {"reference_id": plain_value(expected_ids[row, rank]), "candidate_id": plain_value(actual_ids[row, rank])}
        return {**key_values(columns, row), "rank": rank + 1, **ids}

    return report_of(
        expected,
        actual,
        difference,
        tolerance,
        threshold=None,
        threshold_flips=0,
        worst=tuple(worst_row(where(*cell), expected, actual, difference, cell) for cell in cells),
        order_changes=int(changed.any(axis=1).sum()),
        identical_order_share=float((~moved.any(axis=1)).mean()),
    )


def _tied(
    expected_ids: NDArray[Any], actual_ids: NDArray[Any], scores: NDArray[np.float64], tolerance: float
) -> NDArray[np.bool_]:
    """Return at which ranks the candidate's item ties with the reference's, by the reference's scores ``[k]``."""
    same = actual_ids[:, None] == expected_ids[None, :]
    # An item that is not in the reference's list has at most the score of its last item.
    own = np.where(same.any(axis=1), scores[same.argmax(axis=1)], scores[-1])
    return np.asarray(absolute_difference(own, scores) <= tolerance)
