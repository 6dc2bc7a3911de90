"""Choice between a category, a number and both for columns of few whole numbers, on a sample of a table.

Ratings, months and numbers of rooms have an order that a category does not keep; codes have none. The evidence is the
column's name, the gaps between its values, the rows of each, and two tests. The test of order finds out if the label
differs less between neighbours than between any two values; the test of single values, if it depends on more than a
smooth curve over their ranks.
"""

import itertools
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql.types import IntegralType, StructType

from mirrorspark.data_pipelines.features.infer_encodings import LEAST_VALUES, Sample, Values, free_name, target_of
from mirrorspark.data_pipelines.features.kinds import RANGE, Categorical, Feature, Label, Numeric, Ordinal, TokenNumber
from mirrorspark.data_pipelines.features.names import IDENTIFIER_NAME
from mirrorspark.data_pipelines.features.raw_columns import numeric_values, plain_column, raw_column

_LOGGER = logging.getLogger(__name__)

# Words of names: the last one of a code's, and those of an amount or a rank.
_CODES = frozenset({"category", "cluster", "code", "codes", "kind", "postcode", "type", "zip", "zipcode"})
_RANKS = frozenset(
    {
        *("age", "amount", "count", "day", "grade", "hour", "level", "month", "quality", "quantity", "rank", "rating"),
        *("rooms", "score", "size", "stars", "week", "weekday", "year"),
    }
)
# Of two values, an order says no more than their names.
_FEWEST_VALUES = 3
# An order of fewer values may be chance.
_FEWEST_VALUES_OF_AN_ORDER = 6
# With fewer rows for each value there is nothing to learn about single ones.
_LEAST_ROWS_OF_A_VALUE = 5.0
# Standard deviations of chance from which a difference counts.
_LEAST_SIGMAS = 4.0
_LEAST_SIGMAS_OF_ORDER = 2.0
# Of several classes, the most frequent ones are tested.
_MOST_CLASSES = 8
# A label that the values decide has no noise.
_LEAST_NOISE = 1e-9


class Form(Enum):
    """The features of a column of few whole numbers."""

    CATEGORY = "categorical"
    NUMBER = "numeric"
    BOTH = "categorical and a number"


@dataclass(frozen=True)
class Evidence:
    """Measurements of a column of few whole numbers in a sample.

    Attributes:
        values: The number of different values.
        rows: Mean number of the table's rows per value.
        is_even: The values are at least half of the multiples of a step between the lowest and the highest one.
        spread: Differences of the label between the values; 1 for those of chance.
        bends: The same for what a smooth curve over the ranks of the values leaves of them.
        neighbours: Differences of the label between neighbours, as a share of those between any two values.
    """

    values: int
    rows: float
    is_even: bool
    spread: float
    bends: float
    neighbours: float

    @property
    def depends(self) -> bool:
        """True if the label differs between the values beyond chance."""
        return self.spread > _beyond_chance(self.values - 1)

    @property
    def depends_on_single_values(self) -> bool:
        """True if the label depends on more than a smooth curve over the ranks."""
        return self.depends and self.bends > _beyond_chance(self.values - 1 - _degree(self.values))

    @property
    def depends_on_order(self) -> bool:
        """True if neighbours are more alike than values in a random order would be.

        Source: von Neumann 1941, "Distribution of the Ratio of the Mean Square Successive Difference to the Variance".
        """
        deviation = math.sqrt((self.values - 2) / (self.values**2 - 1))
        is_long = self.values >= _FEWEST_VALUES_OF_AN_ORDER
        return self.depends and is_long and self.neighbours < 1 - _LEAST_SIGMAS_OF_ORDER * deviation


def _beyond_chance(freedom: int) -> float:
    """Return the mean square of differences, in units of the noise, that chance hardly exceeds."""
    return 1 + _LEAST_SIGMAS * math.sqrt(2 / freedom)


def _degree(values: int) -> int:
    """Return the degree of the smooth curve over the ranks: a line for three and four values, else a parabola."""
    return min(2, (values - 1) // 2)


def decided(name: str, found: Evidence) -> tuple[Form, str]:
    """Return the features of a column of few whole numbers, and the reason."""
    numbers = f"its {found.values} different whole numbers"
    if _is_named_code(name):
        if found.depends_on_order:
            return Form.BOTH, f"its name is that of a code, but the label depends on the order of {numbers}"
        return Form.CATEGORY, "its name is that of a code"
    if found.rows < _LEAST_ROWS_OF_A_VALUE:
        return Form.NUMBER, f"{numbers} hardly repeat"
    if not found.depends:
        if found.is_even:
            return Form.NUMBER, f"{numbers} follow each other, and the label hardly differs between them"
        return Form.BOTH, f"{numbers} have gaps, and the label hardly differs between them"
    if not found.depends_on_single_values:
        return Form.NUMBER, f"the label depends on {numbers} by their order alone"
    if found.depends_on_order:
        return Form.BOTH, f"the label depends on the order of {numbers}, and on single ones"
    if found.values >= _FEWEST_VALUES_OF_AN_ORDER and found.neighbours >= 1 and _RANKS.isdisjoint(_words(name)):
        return Form.CATEGORY, f"the label depends on {numbers}, but not on their order"
    return Form.BOTH, f"the label depends on {numbers}, perhaps by their order"


def _is_named_code(name: str) -> bool:
    return bool(IDENTIFIER_NAME.search(name)) or not _CODES.isdisjoint(_words(name)[-1:])


def _words(name: str) -> list[str]:
    """Return the words of a column's name: ``starRating`` and ``STAR_RATING`` have two."""
    return re.findall(r"[a-z]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower())


def codes(features: Sequence[Feature], schema: StructType) -> list[Feature]:
    """Return the features that take a column of few whole numbers as categories."""
    return [each for each in features if _is_code(each) and isinstance(schema[each.name].dataType, IntegralType)]


def _is_code(feature: Feature) -> bool:
    return isinstance(feature, Categorical) and feature.hash_buckets is None


def with_ordinals(
    sample: Sample, columns: Sequence[Feature], features: Sequence[Feature], label: Label
) -> tuple[list[Feature], dict[str, str]]:
    """Return the features with a number in place of a category, or behind it, where an order shows; and the reasons.

    Args:
        sample: Rows with the columns, and a label that is neither null nor NaN.
        columns: The features that may be numbers (:func:`codes`).
        features: All features that are proposed for the columns themselves.
        label: The label, of form ``binary``, ``numeric`` or ``multi_class``.
    """
    found: list[Feature] = []
    reasons: dict[str, str] = {}
    asked, taken = {each.name for each in columns}, {each.name for each in features}
    target = _targets(sample.rows, label) if asked and sample.rows.num_rows else None
    for feature in features:
        evidence = None if target is None or feature.name not in asked else measured(sample, feature.name, target)
        if evidence is None:
            found.append(feature)
            continue
        form, reason = decided(feature.name, evidence)
        reasons[feature.name] = reason
        _LOGGER.info("column %s: %s: %s", feature.name, form.value, reason)
        if form is Form.NUMBER:
            found.append(Numeric(feature.name, clip=RANGE))
            continue
        found.append(feature)
        if form is Form.BOTH:
            number = TokenNumber(free_name(f"{feature.name} as a number", taken), clip=RANGE, of=feature.name)
            reasons[number.name] = reason
            found.append(number)
    return found, reasons


def _targets(rows: pa.Table, label: Label) -> Values:
    """Return the label as numbers ``[rows, targets]``: of several classes the frequent ones, each as zeros and ones."""
    if label.form != "multi_class":
        return target_of(rows, label)[:, None]
    if label.order is not None:
        ranks = raw_column(rows, Ordinal(label.name, order=label.order))
        return np.nan_to_num(numeric_values(ranks))[:, None]
    encoded = pc.dictionary_encode(plain_column(rows, label.name))
    classes = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64)
    # Equally many rows: the class that comes first in the sample, which is in the order of hashes.
    frequent = np.argsort(-np.bincount(classes), kind="stable")[:_MOST_CLASSES]
    return (classes[:, None] == frequent).astype(np.float64)


def measured(sample: Sample, name: str, target: Values) -> Evidence | None:
    """Return the evidence of a sample about a column; None if it has two values, or too many to be few.

    Args:
        sample: The rows.
        name: The column, of whole numbers.
        target: The label, ``[rows, targets]``.
    """
    column = plain_column(sample.rows, name)
    is_there = column.is_valid().to_numpy(zero_copy_only=False)
    values, places = np.unique(column.drop_null().to_numpy(zero_copy_only=False), return_inverse=True)
    if not _FEWEST_VALUES <= len(values) < LEAST_VALUES:
        return None
    counts = np.bincount(places).astype(np.float64)
    target = target[is_there]
    means, noise = _means_by_value(target, places, counts)
    spread = _weighed_square(means, counts)
    between = spread.sum(0) / (len(values) - 1) / noise
    bends = _weighed_square(_without_curve(means, counts), counts).sum(0) / (len(values) - 1 - _degree(len(values)))
    return Evidence(
        values=len(values),
        rows=float(counts.mean() * sample.rate),
        is_even=_are_even(values),
        spread=float(between.mean()),
        bends=float((bends / noise).mean()),
        neighbours=_neighbours(means / np.sqrt(noise), counts),
    )


def _means_by_value(target: Values, places: npt.NDArray[np.int64], counts: Values) -> tuple[Values, Values]:
    """Return the label's mean of each value without that of all rows, ``[values, targets]``, and its noise."""
    target = target - target.mean(0)
    means = np.column_stack([np.bincount(places, one, len(counts)) for one in target.T]) / counts[:, None]
    total = np.einsum("rt,rt->t", target, target)
    within = total - _weighed_square(means, counts).sum(0)
    freedom = max(len(target) - len(counts), 1)
    return means, np.maximum(within, _LEAST_NOISE * np.maximum(total, _LEAST_NOISE)) / freedom


def _weighed_square(means: Values, counts: Values) -> Values:
    return np.asarray(counts[:, None] * means**2)


def _without_curve(means: Values, counts: Values) -> Values:
    """Return the rest of the means that a smooth curve over the ranks leaves."""
    root = np.sqrt(counts)[:, None]
    powers = np.vander(np.linspace(-1, 1, len(counts)), _degree(len(counts)) + 1)
    basis, _ = np.linalg.qr(powers * root)
    return np.asarray((means * root - basis @ (basis.T @ (means * root))) / root)


def _neighbours(means: Values, counts: Values) -> float:
    """Return the mean square difference of neighbours, as a share of that of any two values."""
    first, second = np.triu_indices(len(counts), 1)
    weight = counts[first] * counts[second] / (counts[first] + counts[second])
    squares = weight * ((means[first] - means[second]) ** 2).sum(1)
    return float(squares[second == first + 1].mean() / max(float(squares.mean()), _LEAST_NOISE))


def _are_even(values: npt.NDArray[np.int64]) -> bool:
    steps = [high - low for low, high in itertools.pairwise(values.tolist())]
    return 2 * len(steps) * math.gcd(*steps) >= sum(steps)
