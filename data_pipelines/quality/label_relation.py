"""Measurement of how well a single column predicts the label."""

import numpy as np

from mirrorspark.data_pipelines.quality.profile import LabelRelation
from mirrorspark.data_pipelines.quality.raw_value_columns import ColumnKind, RawValues

# With fewer training rows, in total or of a class, nothing shows that a column gives the label away.
_ENOUGH_ROWS = 50
_ENOUGH_ROWS_OF_A_CLASS = 5


def label_relation(train: RawValues, classes: np.ndarray, kind: ColumnKind) -> LabelRelation | None:
    """Return the relation of a column to the classes of the training rows, or None if it cannot be judged."""
    if train.codes is None:
        return None
    usable = (train.codes >= 0) & (classes >= 0)
    codes, labels = train.codes[usable], classes[usable]
    if len(codes) < _ENOUGH_ROWS or len(np.unique(labels)) < 2:
        return None
    width = int(labels.max()) + 1
    pairs, counts = np.unique(codes * width + labels, return_counts=True)
    values, classes_of_pairs = np.divmod(pairs, width)
    rows_of_value = np.bincount(values, weights=counts)
    repeated = rows_of_value[values] > 1
    if not repeated.any():
        agreement, coverage = 0.0, 0.0
    else:
        # A value's last pair in the order of counts is its most frequent class.
        order = np.lexsort((counts, values))
        is_guess = np.zeros(len(pairs), bool)
        is_guess[order[np.append(values[order][1:] != values[order][:-1], True)]] = True
        rows = np.bincount(classes_of_pairs[repeated], weights=counts[repeated], minlength=width)
        right = np.bincount(classes_of_pairs[repeated & is_guess], weights=counts[repeated & is_guess], minlength=width)
        judged = rows >= _ENOUGH_ROWS_OF_A_CLASS
        # A single class is always guessed right.
        agreement = float(np.mean(right[judged] / rows[judged])) if judged.sum() > 1 else 0.0
        coverage = float(counts[repeated].sum() / len(classes))
    area = None
    if kind is ColumnKind.NUMBER and len(np.unique(labels)) == 2:
        area = _area_under_curve(codes, labels == labels.max())
    return LabelRelation(agreement, coverage, area)


def _area_under_curve(codes: np.ndarray, is_positive: np.ndarray) -> float | None:
    """Return the share of pairs with the positive ranked higher (Mann and Whitney 1947); higher codes rank higher."""
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    if min(positives, negatives) < _ENOUGH_ROWS_OF_A_CLASS:
        return None
    of_value = np.bincount(codes)
    middle_ranks = np.cumsum(of_value) - (of_value - 1) / 2
    wins = float(middle_ranks[codes[is_positive]].sum()) - positives * (positives + 1) / 2
    return wins / (positives * negatives)
