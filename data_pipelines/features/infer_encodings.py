"""Choice of the columns by whose values the label's mean is a feature, on a sample of a table.

Columns with many values overfit where a model learns a weight for each; the mean of the label over the rows of a value
is one number. Columns together may predict more than each alone, such as month and day of a delay.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql.types import IntegralType, StructType

from mirrorspark.data_pipelines.features import labels
from mirrorspark.data_pipelines.features.kinds import Categorical, Feature, Label, Numeric, TargetEncoding, TokenNumber
from mirrorspark.data_pipelines.features.raw_columns import numeric_values, plain_column
from mirrorspark.data_pipelines.features.target_encoding import FOLDS

_LOGGER = logging.getLogger(__name__)

SAMPLED_ROWS = 50_000
"""Rows of the sample."""

# A value with fewer rows has no embedding of its own next to the label's mean: networks learn them by heart.
_LEAST_ROWS_OF_AN_EMBEDDING = 10
# Of these, at least this number are expected among the training rows, which are fewer than those of the table.
_SURE_ROWS_OF_AN_EMBEDDING = 20
LEAST_VALUES = 50
"""Values from which a column has means of the label of its own: fewer hardly overfit."""

# Fewer rows say little about such groups.
_LEAST_ROWS = 2_000
# The mean of a row's group is that of other rows, so there must be some.
_LEAST_ROWS_OF_A_GROUP = 2.0
_MOST_GROUPS = 1 << 18
_MOST_COLUMNS = 10
_MOST_ALONE = 20
_MOST_KNOWN = 60
# Columns that group rows together, where there are few columns and where there are many.
_MOST_TOGETHER, _FEW_COLUMNS, _MOST_TOGETHER_OF_MANY = 4, 6, 3
_MOST_GROUPINGS = 8
# Equal shares of the rows, by a number, whose means show if its order matters.
_SHARES = 48
# Squared t-statistic from which a grouping adds to those before it: there are hundreds to choose from.
_LEAST_GAIN = 16.0
_LEAST_GAIN_OF_ORDER = 9.0
# Held-out means of a column of noise fall where the label rises, up to some 30.
_LEAST_GAIN_OF_A_FALL = 100.0

Codes = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Rows of a table, drawn at random.

    Attributes:
        rows: Their columns.
        rate: Rows of the table for each of them.
    """

    rows: pa.Table
    rate: float = 1.0


@dataclass(frozen=True)
class _Grouping:
    """Columns whose values group rows.

    Attributes:
        columns: Their places among the candidates.
        codes: Number of each row's group, from 0.
    """

    columns: tuple[int, ...]
    codes: Codes


def candidates(features: Sequence[Feature], schema: StructType) -> list[Feature]:
    """Return the features whose columns may group rows: tokens and whole numbers."""
    return [
        feature
        for feature in features
        if (isinstance(feature, Categorical) and feature.hash_buckets is None)
        or (type(feature) is Numeric and isinstance(schema[feature.name].dataType, IntegralType))
    ]


def with_encodings(
    sample: Sample, columns: Sequence[Feature], features: Sequence[Feature], label: Label
) -> tuple[list[Feature], dict[str, str]]:
    """Return the features of a table's columns with the encodings that help to predict the label, and their reasons.

    Encodings are the label's mean by the values of columns, and the numbers of tokens whose order matters. The means by
    one column are those of many values. Of columns together, one after the other is added that explains most of what
    is left, by linear regression.

    A categorical feature of many values that has such a mean keeps those of ten rows or more, and is left out if there
    are none.

    Args:
        sample: Rows with the columns, and a label that is neither null nor NaN.
        columns: The features whose columns may group rows (:func:`candidates`).
        features: All features that are proposed for the columns themselves.
        label: The label, of kind ``binary`` or ``numeric``.
    """
    encodings = _encodings(sample, columns, label, {feature.name for feature in features})
    alone = {each.of[0] for each in encodings if isinstance(each, TargetEncoding) and len(each.of) == 1}
    kept = [_of_frequent_values(sample, each) if each.name in alone else each for each in features]
    reasons = {encoding.name: _reason(encoding) for encoding in encodings}
    for name, reason in reasons.items():
        _LOGGER.info("feature %s: %s", name, reason)
    return [*(feature for feature in kept if feature is not None), *encodings], reasons


def _of_frequent_values(sample: Sample, feature: Feature) -> Feature | None:
    """Return a feature whose rare values share one embedding; None if all its values are rare."""
    if not isinstance(feature, Categorical):
        return feature
    counts = pc.value_counts(plain_column(sample.rows, feature.name).drop_null()).field("counts").to_numpy()
    if np.count_nonzero(counts * sample.rate >= _SURE_ROWS_OF_AN_EMBEDDING) > 1:
        _LOGGER.info(
            "column %s: its values of fewer than %d rows share an embedding", feature.name, _LEAST_ROWS_OF_AN_EMBEDDING
        )
        return replace(feature, min_count=_LEAST_ROWS_OF_AN_EMBEDDING)
    _LOGGER.info("column %s: the label's mean stands for it, as all its values are rare", feature.name)
    return None


def _encodings(
    sample: Sample, columns: Sequence[Feature], label: Label, taken: set[str]
) -> list[TargetEncoding | TokenNumber]:
    rows = sample.rows
    if rows.num_rows < _LEAST_ROWS:
        return []
    target, found = target_of(rows, label), [(each, _codes(rows, each)) for each in columns]
    singles = [
        _Grouping((place,), codes)
        for place, (_, codes) in enumerate(found)
        if codes.max() > 0 and _rows_of_a_group(codes, sample.rate) >= _LEAST_ROWS_OF_A_GROUP
    ]
    if not np.ptp(target) or not any(map(_has_many, singles)):
        return []
    means = _held_out_means(target, is_binary=label.form == "binary")
    # A column of noise has held-out means that fall where the label rises.
    known = [(means(single.codes), single) for single in singles]
    known = sorted(known, key=lambda of: -_correlation(of[0], target))
    numbers = [_filled(rows, feature) for feature, _ in found if isinstance(feature, Numeric)]
    left = _Left(target, [*(values for values, _ in known), *numbers][:_MOST_KNOWN])
    ordered = [
        each
        for each, _ in found
        if (shares := _shares(rows, each)) is not None and left.gains([means(shares)])[0] >= _LEAST_GAIN_OF_ORDER
    ]
    strongest = [single for _, single in known]
    alone = [single for single in strongest if _has_many(single)][:_MOST_ALONE]
    together = _chosen(list(_together(strongest[:_MOST_COLUMNS])), means, left)
    return [
        *(TokenNumber(free_name(f"{each.name} as a number", taken), of=each.name) for each in ordered),
        # In the order of the table, so that another sample hardly changes the model's inputs.
        *(
            _encoding(label, [columns[place] for place in grouping.columns], taken)
            for of in (alone, together)
            for grouping in sorted(of, key=lambda grouping: grouping.columns)
        ),
    ]


def target_of(rows: pa.Table, label: Label) -> Values:
    """Return the label with a mean of 0 and a deviation of 1, or as it is if it is binary or has one value."""
    if label.form == "binary":
        return labels.binary_label(rows, label.name, label.positive).astype(np.float64)
    values = labels.number_label(rows, label.name).astype(np.float64)
    return (values - values.mean()) / values.std() if np.ptp(values) else values


def _encoding(label: Label, columns: Sequence[Feature], taken: set[str]) -> TargetEncoding:
    names = tuple(feature.name for feature in columns)
    numbers = tuple(feature.name for feature in columns if isinstance(feature, Numeric))
    name = free_name(f"{label.name} by {' and '.join(names)}", taken)
    return TargetEncoding(name, of=names, numbers=numbers, max_size=_MOST_GROUPS)


def free_name(name: str, taken: set[str]) -> str:
    """Return a name that no other feature has, and take it."""
    free = next(
        one for number in itertools.count(1) if (one := name if number == 1 else f"{name} {number}") not in taken
    )
    taken.add(free)
    return free


def _reason(feature: TargetEncoding | TokenNumber) -> str:
    if isinstance(feature, TokenNumber):
        return f"the label depends on the order of {feature.of}"
    if len(feature.of) == 1:
        return f"the label's mean by {feature.of[0]}, whose values repeat"
    return f"the label's mean by {', '.join(feature.of)}, which together predict more than each alone"


def _codes(rows: pa.Table, feature: Feature) -> Codes:
    """Return the number of each row's value, from 0; a missing value is one, too."""
    encoded = pc.dictionary_encode(plain_column(rows, feature.name), null_encoding="encode")
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64)


def _shares(rows: pa.Table, feature: Feature) -> Codes | None:
    """Return the share of the rows that each row is in, by the number that its token is; None for other columns."""
    column = plain_column(rows, feature.name)
    if not isinstance(feature, Categorical) or not pa.types.is_integer(column.type) or column.null_count:
        return None
    values = column.to_numpy()
    bounds = np.unique(np.quantile(values, np.arange(1, _SHARES) / _SHARES))
    return np.searchsorted(bounds, values, side="right") if len(np.unique(values)) >= LEAST_VALUES else None


def _has_many(grouping: _Grouping) -> bool:
    return int(grouping.codes.max()) + 1 >= LEAST_VALUES


def _rows_of_a_group(codes: Codes, rate: float = 1.0) -> float:
    """Return the mean number of rows in a row's group, in a table with ``rate`` rows for each of these."""
    sizes = np.bincount(codes).astype(np.float64)
    return float(((sizes - 1) * rate + 1) @ sizes) / len(codes)


def _correlation(values: Values, target: Values) -> float:
    return float(np.corrcoef(values, target)[0, 1]) if np.ptp(values) else 0.0


def _together(singles: Sequence[_Grouping]) -> Iterator[_Grouping]:
    """Yield the groupings by several columns, smaller ones first, without those whose groups are single rows."""
    most = _MOST_TOGETHER if len(singles) <= _FEW_COLUMNS else _MOST_TOGETHER_OF_MANY
    for size in range(2, most + 1):
        for parts in itertools.combinations(singles, size):
            codes = parts[0].codes
            for part in parts[1:]:
                codes = np.unique(codes * (part.codes.max() + 1) + part.codes, return_inverse=True)[1]
            if _rows_of_a_group(codes) >= _LEAST_ROWS_OF_A_GROUP:
                # Columns in the order of the table.
                yield _Grouping(tuple(sorted(place for part in parts for place in part.columns)), codes)


def _held_out_means(target: Values, *, is_binary: bool) -> Callable[[Codes], Values]:
    """Return a function from groups to the mean of the label over a row's group, without the fold of the row."""
    fold, prior, smoothing = np.arange(len(target)) % FOLDS, float(target.mean()), TargetEncoding.smoothing

    def means(codes: Codes) -> Values:
        groups, places = int(codes.max()) + 1, codes * FOLDS + fold
        rows_left, label_left = (
            np.bincount(codes, weights, groups)[codes] - np.bincount(places, weights, groups * FOLDS)[places]
            for weights in (None, target)
        )
        found = (label_left + smoothing * prior) / (rows_left + smoothing)
        return np.log(found / (1 - found)) if is_binary else found

    return means


class _Left:
    """The rest of a label that linear regression on some columns leaves."""

    def __init__(self, target: Values, known: Sequence[Values]) -> None:
        self._basis, _ = np.linalg.qr(np.column_stack([np.ones(len(target)), *known]))
        self._left = self.without_known(target)

    def without_known(self, columns: Values) -> Values:
        """Return columns, ``[rows, ...]``, without what the known ones explain of them."""
        return np.asarray(columns - self._basis @ (self._basis.T @ columns))

    def gains(self, columns: Sequence[Values]) -> Values:
        """Return the squared t-statistic of each further column alone; 0 for a fall that noise may have, too."""
        return self._gains(self.without_known(np.column_stack(columns)))

    def _gains(self, columns: Values) -> Values:
        sizes, products = np.einsum("ij,ij->j", columns, columns), columns.T @ self._left
        gains = products**2 / np.maximum(sizes, 1e-6) * len(self._left) / float(self._left @ self._left)
        return np.where((products > 0) | (gains >= _LEAST_GAIN_OF_A_FALL), gains, 0.0)

    def strongest_first(self, columns: Sequence[Values], most: int, least_gain: float) -> list[int]:
        """Return the places of columns that one after the other explain most of what is left then."""
        others = self.without_known(np.column_stack(columns))
        chosen: list[int] = []
        while len(chosen) < most:
            gains = self._gains(others)
            best = int(gains.argmax())
            if gains[best] < least_gain:
                break
            chosen.append(best)
            direction = others[:, best] / np.linalg.norm(others[:, best])
            self._left = self._left - direction * (direction @ self._left)
            others -= np.outer(direction, direction @ others)
            others[:, best] = 0.0
        return chosen


def _chosen(groupings: Sequence[_Grouping], means: Callable[[Codes], Values], left: _Left) -> list[_Grouping]:
    """Return the groupings that explain most of what is left of the label, the strongest first."""
    if not groupings:
        return []
    columns = [means(grouping.codes) for grouping in groupings]
    return [groupings[place] for place in left.strongest_first(columns, _MOST_GROUPINGS, _LEAST_GAIN)]


def _filled(rows: pa.Table, feature: Feature) -> Values:
    values = numeric_values(plain_column(rows, feature.name))
    return np.where(np.isnan(values), np.nanmean(values) if np.isfinite(values).any() else 0.0, values)
