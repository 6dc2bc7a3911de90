"""Checks of labels, scores and weights before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class BinaryInputs:
    """Checked columns of one binary task, each of shape ``[rows]``."""

    label: NDArray[np.bool_]
    score: NDArray[np.float64]
    weight: NDArray[np.float64]

    @property
    def base_rate(self) -> float:
        """Weighted share of positives."""
        return float(self.weight[self.label].sum() / self.weight.sum())


def checked_scores(name: str, score: ArrayLike, rows: int) -> NDArray[np.float64]:
    """Return ``score`` as float64 ``[rows]``.

    Raises:
        ValueError: another shape, or a value that is NaN or infinite.
    """
    values = np.asarray(score, dtype=np.float64)
    if values.shape != (rows,):
        raise ValueError(f"{name} has shape {values.shape} but label has {rows} rows; pass one {name} per row")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"{name} is {values[bad[0]]} in row {bad[0]} ({bad.size} such rows); pass finite numbers")
    return values


def binary_inputs(label: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> BinaryInputs:
    """Check the columns of a binary task, and drop rows of weight zero.

    Args:
        label: 0 or 1, ``[rows]``.
        score: finite numbers, higher means more likely positive, ``[rows]``.
        weight: non-negative, ``[rows]``; ones by default.

    Raises:
        ValueError: no rows, unequal lengths, a label other than 0 and 1, one class only, a bad score or weight.
    """
    labels = np.asarray(label)
    if labels.ndim != 1:
        raise ValueError(f"label has shape {labels.shape}; pass one label per row")
    if not labels.size:
        raise ValueError("label has no rows, so there is nothing to plot; pass a split that is not empty")
    other = np.flatnonzero((labels != 0) & (labels != 1))
    if other.size:
        raise ValueError(f"label is {labels[other[0]]} in row {other[0]}; pass only 0 and 1")
    scores = checked_scores("score", score, labels.size)
    weights = np.ones(labels.size) if weight is None else checked_scores("weight", weight, labels.size)
    if (weights < 0).any():
        row = int(np.flatnonzero(weights < 0)[0])
        raise ValueError(f"weight is {weights[row]} in row {row}; pass numbers of zero or more")
    used = weights > 0
    positive = labels[used].astype(bool)
    if not positive.size:
        raise ValueError("weight is zero in every row, so there is nothing to plot")
    if positive.all() or not positive.any():
        raise ValueError(
            f"label has one class only ({int(positive[0])}) in {positive.size} rows; pass rows that hold both classes"
        )
    return BinaryInputs(positive, scores[used], weights[used])


def model_and_baselines(
    label: ArrayLike, score: ArrayLike, weight: ArrayLike | None, baseline: Mapping[str, ArrayLike] | None
) -> list[tuple[str, BinaryInputs]]:
    """Check the model's scores, and each baseline's against the same labels and weights; the model comes first."""
    checked = [("model", binary_inputs(label, score, weight))]
    for name, others in (baseline or {}).items():
        try:
            checked.append((name, binary_inputs(label, others, weight)))
        except ValueError as error:
            raise ValueError(f"baseline {name!r}: {error}") from error
    return checked
