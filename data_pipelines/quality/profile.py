"""What a dataset's raw columns look like, split by split: plain numbers that validation judges and a page draws.

A profile is taken of a row sample per split, so its cost does not grow with the table; counts that conversion makes of
every row take the place of the sample's where they are given. It is kept beside the manifest, and a later dataset is
counted in the bins of this one: that is what drift is measured in.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.feature_kinds import Feature
from data_pipelines.features import FeatureSpec
from data_pipelines.manifest import TRAIN_SPLIT
from data_pipelines.quality.raw_values import ColumnKind, RawValues, Role, class_codes, column_kind, raw_values

PROFILE_VERSION = 1
PROFILE_FILE = "profile.json"

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
HISTOGRAM_BINS = 30
TOP_VALUES = 10
UNSEEN_VALUES = 5

# Ten bins of equal mass are what the usual limits of the stability index (0.1 and 0.25) were made for.
DRIFT_QUANTILES = tuple(step / 10 for step in range(1, 10))
DRIFT_TOKENS = 20

# A histogram ends at these quantiles: one wild value must not squeeze all others into one bar.
_HISTOGRAM_RANGE = (0.005, 0.995)
_LONGEST_TOKEN = 80
# Above, doubles have no room for the halves between them.
_WHOLE_NUMBERS = 2.0**51
# Fewer training rows than this, of a class or in all, cannot show that a column gives the label away.
_ENOUGH_ROWS = 50
_ENOUGH_ROWS_OF_A_CLASS = 5


class ProfileError(ValueError):
    """A profile that cannot be taken or read; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class SplitCounts:
    """What conversion counted in all rows of a split.

    Attributes:
        rows: Rows of the split.
        bytes: Size of its shards.
        shards: Number of its shards.
        missing: Per column the rows without a value.
        tokens: Per column the tokens that were looked up.
        out_of_vocabulary: Per column those of them that the vocabulary lacks.
    """

    rows: int
    bytes: int = 0
    shards: int = 0
    missing: Mapping[str, int] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    out_of_vocabulary: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitSize:
    """Size of a split: all rows, those that were sampled, and what its shards take."""

    rows: int
    sampled: int
    bytes: int
    shards: int


@dataclass(frozen=True)
class Spread:
    """Where finite numbers lie.

    Attributes:
        minimum: Smallest.
        maximum: Largest.
        mean: Mean.
        standard_deviation: Of these numbers, not of what they were drawn from.
        quantiles: At ``QUANTILES``.
    """

    minimum: float
    maximum: float
    mean: float
    standard_deviation: float
    quantiles: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return self.quantiles[QUANTILES.index(0.5)]


@dataclass(frozen=True)
class ValueCount:
    """A value as text, and how many of the sampled values are it."""

    value: str
    count: int


@dataclass(frozen=True)
class Bins:
    """What values are counted in: numbers between edges, or tokens by name.

    Numbers: bin ``i`` holds what is above ``edges[i - 1]`` and up to ``edges[i]``; one more bin lies beyond the last
    edge. Tokens: one bin each, then one for all others. Both end with a bin for missing values.
    """

    edges: tuple[float, ...] = ()
    tokens: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to count in."""
        return not self.edges and not self.tokens


@dataclass(frozen=True)
class SplitColumn:
    """One column in one split. Counts are of the sample, shares of all rows where conversion counted them.

    Attributes:
        values: Sampled values: rows, or tokens where a row holds several.
        missing_share: Share of rows that are null, NaN, an empty string or an empty list.
        nan: Rows that are NaN.
        infinite: Rows that are infinite.
        distinct: Distinct values in the sample.
        distinct_estimate: Distinct values in all rows, estimated.
        commonest_share: Share of the most frequent value among the values that are there.
        once_share: Share of values that occur once.
        spread: Of the numbers that are finite.
        lengths: Of the lists: tokens per row.
        histogram: Per bar of the column's ``edges``; values beyond either end are in the bar at that end.
        commonest: The most frequent values.
        unseen: The most frequent of those that the sample of the training rows lacks.
        unseen_share: Share of such values.
        out_of_vocabulary_share: Share of tokens that the fitted vocabulary lacks.
        outside_share: Share of numbers outside the range of the training rows.
        bins: Counts in the column's ``bins``.
        reference_bins: Counts in the bins of the reference's column of this name.
    """

    values: int
    missing_share: float
    nan: int = 0
    infinite: int = 0
    distinct: int = 0
    distinct_estimate: int = 0
    commonest_share: float = 0.0
    once_share: float = 0.0
    spread: Spread | None = None
    lengths: Spread | None = None
    histogram: tuple[int, ...] = ()
    commonest: tuple[ValueCount, ...] = ()
    unseen: tuple[ValueCount, ...] = ()
    unseen_share: float = 0.0
    out_of_vocabulary_share: float | None = None
    outside_share: float = 0.0
    bins: tuple[int, ...] = ()
    reference_bins: tuple[int, ...] = ()


@dataclass(frozen=True)
class LabelRelation:
    """How far a column alone tells the label of a training row.

    Attributes:
        agreement: Guess, for each value that occurs more than once, the class most frequent with it: the share of
            rows of a class that this gets right, averaged over the classes.
        coverage: Share of rows whose value occurs more than once.
        area: Area under the ROC curve with the column as the score, for numbers and two classes.
    """

    agreement: float
    coverage: float
    area: float | None


@dataclass(frozen=True)
class ColumnProfile:
    """One raw column.

    Attributes:
        name: Its name.
        type: Its Arrow type, as text.
        role: What it is to the spec.
        feature_kind: Kind of the feature that is read from it, or of the label.
        kind: How its values are counted.
        edges: Ends of the histogram's bars, one more than there are bars.
        bins: What drift is measured in; from the training rows.
        splits: Per split what was counted.
        label: What it tells of the label.
    """

    name: str
    type: str
    role: Role
    feature_kind: str
    kind: ColumnKind
    edges: tuple[float, ...]
    bins: Bins
    splits: Mapping[str, SplitColumn]
    label: LabelRelation | None = None


@dataclass(frozen=True)
class DatasetProfile:
    """Every raw column of a dataset, split by split.

    Attributes:
        splits: Size of each split.
        columns: In the order of the spec: keys, features, label, weight, exclude.
        version: Of this form.
    """

    splits: Mapping[str, SplitSize]
    columns: tuple[ColumnProfile, ...]
    version: int = PROFILE_VERSION

    def column(self, name: str) -> ColumnProfile | None:
        """Return the column of that name, or none."""
        return next((column for column in self.columns if column.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON holds it; :meth:`from_dict` is the way back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "DatasetProfile":
        """Read what :meth:`to_dict` returned.

        Raises:
            ProfileError: The document is damaged, or another version wrote it.
        """
        try:
            if document["version"] != PROFILE_VERSION:
                raise ProfileError(
                    f"the profile has version {document['version']}, known is {PROFILE_VERSION}; convert again, or "
                    f"validate without this reference"
                )
            return cls(
                splits={name: SplitSize(**size) for name, size in document["splits"].items()},
                columns=tuple(_column_from_dict(column) for column in document["columns"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ProfileError(
                f"the profile is damaged ({error}); convert again, or validate without this reference"
            ) from error


def profile_columns(
    samples: Mapping[str, pa.Table],
    spec: FeatureSpec,
    *,
    counts: Mapping[str, SplitCounts] | None = None,
    reference: DatasetProfile | None = None,
) -> DatasetProfile:
    """Measure the spec's columns in a sample of raw rows of each split.

    Args:
        samples: Per split a random sample of its raw rows; columns that the spec does not name are passed over. The
            bins and ranges are those of the training rows.
        spec: What the columns mean.
        counts: Per split what was counted in all rows; without it the sample counts as all rows.
        reference: Profile of a former dataset: each column is counted in that one's bins too.

    Raises:
        ProfileError: There is no sample of the training rows.
    """
    if TRAIN_SPLIT not in samples or not samples[TRAIN_SPLIT].num_rows:
        raise ProfileError(
            f"there is no sample of split '{TRAIN_SPLIT}', which others are compared with; pass its rows"
        )
    counts = counts or {split: SplitCounts(sample.num_rows) for split, sample in samples.items()}
    label = samples[TRAIN_SPLIT].schema.get_field_index(spec.label.name)
    classes = class_codes(samples[TRAIN_SPLIT].column(label).combine_chunks()) if label >= 0 else None
    columns = []
    for name in spec.columns:
        arrays = {split: _column_of(sample, name) for split, sample in samples.items()}
        present = {split: array for split, array in arrays.items() if array is not None}
        if TRAIN_SPLIT in present:
            former = reference.column(name) if reference else None
            columns.append(_profile_column(name, present, spec, counts, classes, former))
    return DatasetProfile(
        splits={
            split: SplitSize(counts[split].rows, sample.num_rows, counts[split].bytes, counts[split].shards)
            for split, sample in samples.items()
        },
        columns=tuple(columns),
    )


def _profile_column(
    name: str,
    arrays: Mapping[str, pa.Array],
    spec: FeatureSpec,
    counts: Mapping[str, SplitCounts],
    classes: np.ndarray | None,
    former: ColumnProfile | None,
) -> ColumnProfile:
    role = _role(name, spec)
    feature = next((feature for feature in spec.features if name in feature.columns), None)
    kind = column_kind(name, arrays[TRAIN_SPLIT].type, role, feature)
    values = {split: raw_values(array, kind, feature) for split, array in arrays.items()}
    train = values[TRAIN_SPLIT]
    known = pc.unique(train.tokens) if train.tokens is not None else None
    edges = _histogram_edges(train.numbers) if train.numbers is not None else ()
    bins = _bins(train, kind)
    # Counted in bins of another kind of value, everything would be missing.
    former_bins = former.bins if former is not None and former.kind == kind else Bins()
    return ColumnProfile(
        name=name,
        type=str(arrays[TRAIN_SPLIT].type),
        role=role,
        feature_kind=_feature_kind(role, feature, spec),
        kind=kind,
        edges=edges,
        bins=bins,
        splits={
            split: _measured(name, kind, part, train, known, edges, bins, former_bins, counts[split])
            for split, part in values.items()
        },
        label=None if classes is None or role is not Role.FEATURE else _label_relation(train, classes, kind),
    )


def _measured(
    name: str,
    kind: ColumnKind,
    part: RawValues,
    train: RawValues,
    known: pa.Array | None,
    edges: tuple[float, ...],
    bins: Bins,
    former_bins: Bins,
    counts: SplitCounts,
) -> SplitColumn:
    distinct, once, commonest = _value_counts(part)
    present = len(part.numbers) if part.numbers is not None else len(part.tokens) if part.tokens is not None else 0
    unseen, unseen_share = _unseen(part, known)
    if kind is ColumnKind.KEY:
        commonest, unseen = (), ()
    tokens = counts.tokens.get(name, 0)
    outside = 0.0
    if part.numbers is not None and train.numbers is not None and present and len(train.numbers):
        outside = float(np.mean((part.numbers < train.numbers.min()) | (part.numbers > train.numbers.max())))
    return SplitColumn(
        values=present,
        missing_share=_share(counts.missing[name], counts.rows)
        if name in counts.missing
        else _share(part.missing, part.rows),
        nan=part.nan,
        infinite=part.infinite,
        distinct=distinct,
        distinct_estimate=_distinct_in_all(distinct, once, present, counts.rows, part.rows),
        commonest_share=_share(commonest[0].count, present) if commonest else 0.0,
        once_share=_share(once, present),
        spread=_spread(part.numbers),
        lengths=_spread(part.lengths),
        histogram=_histogram(part.numbers, edges) if part.numbers is not None else (),
        commonest=commonest,
        unseen=unseen,
        unseen_share=unseen_share,
        out_of_vocabulary_share=_share(counts.out_of_vocabulary[name], tokens)
        if tokens and name in counts.out_of_vocabulary
        else None,
        outside_share=outside,
        bins=_binned(part, bins),
        reference_bins=_binned(part, former_bins),
    )


def _role(name: str, spec: FeatureSpec) -> Role:
    # A label of kind candidate is a feature too: it is what the model learns that counts here.
    if name == spec.label.name:
        return Role.LABEL
    if name in spec.keys:
        return Role.KEY
    if name == spec.weight:
        return Role.WEIGHT
    return Role.EXCLUDE if name == spec.exclude else Role.FEATURE


def _feature_kind(role: Role, feature: Feature | None, spec: FeatureSpec) -> str:
    if role is Role.LABEL:
        return spec.label.kind
    return feature.kind if feature is not None and role is Role.FEATURE else ""


def _label_relation(train: RawValues, classes: np.ndarray, kind: ColumnKind) -> LabelRelation | None:
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
        # The pair that comes last of a value, ordered by count, is its most frequent class.
        order = np.lexsort((counts, values))
        is_guess = np.zeros(len(pairs), bool)
        is_guess[order[np.append(values[order][1:] != values[order][:-1], True)]] = True
        rows = np.bincount(classes_of_pairs[repeated], weights=counts[repeated], minlength=width)
        right = np.bincount(classes_of_pairs[repeated & is_guess], weights=counts[repeated & is_guess], minlength=width)
        judged = rows >= _ENOUGH_ROWS_OF_A_CLASS
        # One class alone is guessed by anything.
        agreement = float(np.mean(right[judged] / rows[judged])) if judged.sum() > 1 else 0.0
        coverage = float(counts[repeated].sum() / len(classes))
    area = None
    if kind is ColumnKind.NUMBER and len(np.unique(labels)) == 2:
        area = _area_under_curve(codes, labels == labels.max())
    return LabelRelation(agreement, coverage, area)


def _area_under_curve(codes: np.ndarray, is_positive: np.ndarray) -> float | None:
    """Return how often a positive ranks above a negative (Mann and Whitney 1947); codes stand in rising order."""
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    if min(positives, negatives) < _ENOUGH_ROWS_OF_A_CLASS:
        return None
    of_value = np.bincount(codes)
    middle_ranks = np.cumsum(of_value) - (of_value - 1) / 2
    wins = float(middle_ranks[codes[is_positive]].sum()) - positives * (positives + 1) / 2
    return wins / (positives * negatives)


def _bins(train: RawValues, kind: ColumnKind) -> Bins:
    if train.numbers is not None and len(train.numbers):
        return Bins(edges=tuple(np.unique(_quantiles(train.numbers, DRIFT_QUANTILES)).tolist()))
    if train.tokens is not None and kind is not ColumnKind.KEY:
        return Bins(tokens=tuple(entry.value for entry in _counted_tokens(train.tokens, DRIFT_TOKENS, None)))
    return Bins()


def _binned(part: RawValues, bins: Bins) -> tuple[int, ...]:
    if bins.is_empty:
        return ()
    if part.tokens is None:
        numbers = np.zeros(0) if part.numbers is None else part.numbers
        places = np.searchsorted(np.array(bins.edges), numbers, side="left")
        return (*np.bincount(places, minlength=len(bins.edges) + 1).tolist(), part.missing)
    places = pc.index_in(part.tokens, pa.array(bins.tokens, pa.string())).fill_null(len(bins.tokens))
    return (*np.bincount(places.to_numpy(), minlength=len(bins.tokens) + 1).tolist(), part.missing)


def _histogram_edges(numbers: np.ndarray) -> tuple[float, ...]:
    """Return the ends of the bars, two or more; none where there are no numbers."""
    if not len(numbers):
        return ()
    distinct = np.unique(numbers)
    low, high = _quantiles(numbers, _HISTOGRAM_RANGE)
    # The span of the largest numbers is infinite, which all of this gets on with.
    with np.errstate(over="ignore"):
        span = distinct[-1] - distinct[0]
        if span < HISTOGRAM_BINS and (distinct == np.round(distinct)).all() and abs(distinct[0]) < _WHOLE_NUMBERS:
            # Whole numbers get a bar each: bars of any other width would hold now one of them, now two.
            return tuple((np.arange(span + 2) + distinct[0] - 0.5).tolist())
        # Up to the very end where that costs little.
        slack = 0.1 * (high - low)
        low = float(distinct[0]) if low - distinct[0] <= slack else low
        high = float(distinct[-1]) if distinct[-1] - high <= slack else high
    if low == high:
        # One value nearly everywhere: what matters is how far the few others lie from it.
        low, high = float(distinct[0]), float(distinct[-1])
    if low == high:
        with np.errstate(over="ignore"):  # there is no number behind the largest one
            half = max(0.5, float(np.spacing(abs(low))))
        return (max(low - half, -sys.float_info.max), min(low + half, sys.float_info.max))
    place = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    # Numbers next to each other have no room for edges between them.
    return tuple(np.unique(low * (1 - place) + high * place).tolist())


def _quantiles(numbers: np.ndarray, places: tuple[float, ...]) -> tuple[float, ...]:
    # Numbers that are there: means of neighbours are no whole numbers where the column has only those.
    return tuple(np.quantile(numbers, places, method="inverted_cdf").tolist())


def _histogram(numbers: np.ndarray, edges: tuple[float, ...]) -> tuple[int, ...]:
    if not edges:
        return ()
    counts, _ = np.histogram(np.clip(numbers, edges[0], edges[-1]), np.array(edges))
    return tuple(counts.tolist())


def _spread(numbers: np.ndarray | None) -> Spread | None:
    if numbers is None or not len(numbers):
        return None
    # In units of the largest one, for sums of very large numbers overflow.
    unit = float(np.abs(numbers).max()) or 1.0
    scaled = numbers / unit
    return Spread(
        minimum=float(numbers.min()),
        maximum=float(numbers.max()),
        mean=float(scaled.mean()) * unit,
        standard_deviation=float(scaled.std()) * unit,
        quantiles=_quantiles(numbers, QUANTILES),
    )


def _value_counts(part: RawValues) -> tuple[int, int, tuple[ValueCount, ...]]:
    """Return the number of distinct values, of those that occur once, and the most frequent ones."""
    if part.numbers is not None:
        values, counts = np.unique(part.numbers, return_counts=True)
        order = np.lexsort((values, -counts))[:TOP_VALUES]
        top = tuple(ValueCount(f"{values[i]:.10g}", int(counts[i])) for i in order)
        return len(values), int((counts == 1).sum()), top
    if part.tokens is None:
        return 0, 0, ()
    counted = part.tokens.value_counts()
    occurrences = counted.field("counts").to_numpy()
    top = _counted_tokens(part.tokens, TOP_VALUES, _LONGEST_TOKEN, counted)
    return len(counted), int((occurrences == 1).sum()), top


def _counted_tokens(
    tokens: pa.StringArray, limit: int, longest: int | None, counted: pa.StructArray | None = None
) -> tuple[ValueCount, ...]:
    """Return the most frequent tokens, ties by their bytes."""
    if not len(tokens):
        return ()
    counted = tokens.value_counts() if counted is None else counted
    table = pa.table({"value": counted.field("values"), "count": counted.field("counts")})
    top = pc.select_k_unstable(
        table, k=min(limit, len(table)), sort_keys=[("count", "descending"), ("value", "ascending")]
    )
    return tuple(
        ValueCount(_shortened(entry["value"], longest), entry["count"]) for entry in table.take(top).to_pylist()
    )


def _unseen(part: RawValues, known: pa.Array | None) -> tuple[tuple[ValueCount, ...], float]:
    if known is None or part.tokens is None or not len(part.tokens):
        return (), 0.0
    new = part.tokens.filter(pc.invert(pc.is_in(part.tokens, known)))
    return _counted_tokens(new, UNSEEN_VALUES, _LONGEST_TOKEN), len(new) / len(part.tokens)


def _distinct_in_all(distinct: int, once: int, values: int, rows: int, sampled: int) -> int:
    """Estimate the distinct values of all rows from a sample (Haas and Stokes 1998, "Duj1"; as PostgreSQL does)."""
    if not values or rows <= sampled:
        return distinct
    everywhere = values * rows / sampled
    return round(distinct / (1 - (1 - values / everywhere) * once / values))


def _column_of(sample: pa.Table, name: str) -> pa.Array | None:
    index = sample.schema.get_field_index(name)
    return None if index < 0 else sample.column(index).combine_chunks()


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _shortened(text: str, longest: int | None) -> str:
    return text if longest is None or len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _column_from_dict(document: Mapping[str, Any]) -> ColumnProfile:
    return ColumnProfile(
        **{
            **document,
            "role": Role(document["role"]),
            "kind": ColumnKind(document["kind"]),
            "edges": tuple(document["edges"]),
            "bins": Bins(tuple(document["bins"]["edges"]), tuple(document["bins"]["tokens"])),
            "splits": {split: _split_from_dict(part) for split, part in document["splits"].items()},
            "label": LabelRelation(**document["label"]) if document["label"] else None,
        }
    )


def _split_from_dict(document: Mapping[str, Any]) -> SplitColumn:
    lists: dict[str, Any] = {name: tuple(document[name]) for name in ("histogram", "bins", "reference_bins")}
    values = {name: tuple(ValueCount(**entry) for entry in document[name]) for name in ("commonest", "unseen")}
    spreads = {name: _spread_from_dict(document[name]) for name in ("spread", "lengths")}
    return SplitColumn(**{**document, **lists, **values, **spreads})


def _spread_from_dict(document: Mapping[str, Any] | None) -> Spread | None:
    return None if document is None else Spread(**{**document, "quantiles": tuple(document["quantiles"])})
