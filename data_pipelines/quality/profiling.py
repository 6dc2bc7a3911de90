"""Profiling: counts and measures of the raw columns of a dataset, in a row sample of each split.

The cost does not grow with the table. Counts of all rows from the conversion, if given, replace those of the sample.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.dataset import TRAIN_SPLIT
from mirrorspark.data_pipelines.features import FeatureSpec, kinds, labels
from mirrorspark.data_pipelines.quality.label_relation import label_relation
from mirrorspark.data_pipelines.quality.profile import (
    QUANTILES,
    Bins,
    ColumnProfile,
    DatasetProfile,
    ProfileError,
    SplitColumn,
    SplitSize,
    Spread,
    ValueCount,
)
from mirrorspark.data_pipelines.quality.raw_value_columns import (
    ColumnKind,
    RawValues,
    Role,
    class_codes,
    column_kind,
    raw_values,
)
from mirrorspark.data_pipelines.quality.redundancy import redundant_columns

HISTOGRAM_BINS = 30
TOP_VALUES = 10
UNSEEN_VALUES = 5

# The usual limits of the stability index (0.1 and 0.25) assume ten bins of equal mass.
DRIFT_QUANTILES = tuple(step / 10 for step in range(1, 10))
DRIFT_TOKENS = 20

# A histogram ends at these quantiles: a single extreme value must not squeeze all others into one bar.
_HISTOGRAM_RANGE = (0.005, 0.995)
_LONGEST_TOKEN = 80
# Above this, doubles cannot hold the halves between whole numbers.
_WHOLE_NUMBERS = 2.0**51


@dataclass(frozen=True)
class SplitCounts:
    """The conversion's counts of all rows of a split.

    Attributes:
        missing: Per column, the rows without a value.
        tokens: Per column, the tokens that were looked up.
        out_of_vocabulary: Per column, the tokens that the vocabulary lacks.
    """

    rows: int
    bytes: int = 0
    shards: int = 0
    missing: Mapping[str, int] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    out_of_vocabulary: Mapping[str, int] = field(default_factory=dict)


def profile_columns(
    samples: Mapping[str, pa.Table],
    spec: FeatureSpec,
    *,
    counts: Mapping[str, SplitCounts] | None = None,
    reference: DatasetProfile | None = None,
) -> DatasetProfile:
    """Measure the spec's columns in a sample of raw rows of each split.

    Args:
        samples: Per split, a random sample of its raw rows; columns outside the spec are ignored. Bins and ranges come
            from the training rows.
        spec: The feature specification.
        counts: Per split, the counts of all rows; without them the sample counts as all rows.
        reference: Profile of a former dataset, in whose bins each column is counted too.

    Raises:
        ProfileError: There is no sample of the training rows.
    """
    if TRAIN_SPLIT not in samples or not samples[TRAIN_SPLIT].num_rows:
        raise ProfileError(
            f"there is no sample of split '{TRAIN_SPLIT}', which others are compared with; pass its rows"
        )
    counts = counts or {split: SplitCounts(sample.num_rows) for split, sample in samples.items()}
    label = samples[TRAIN_SPLIT].schema.get_field_index(spec.label.name)
    # Each value of a label of numbers would be a class.
    has_classes = label >= 0 and spec.label.kind != "numeric"
    classes = class_codes(samples[TRAIN_SPLIT].column(label).combine_chunks()) if has_classes else None
    numbers = _label_numbers(samples[TRAIN_SPLIT], spec) if label >= 0 else None
    columns: list[ColumnProfile] = []
    values: dict[str, RawValues] = {}
    for name in spec.columns:
        arrays = {split: _column_of(sample, name) for split, sample in samples.items()}
        present = {split: array for split, array in arrays.items() if array is not None}
        if TRAIN_SPLIT in present:
            former = reference.column(name) if reference else None
            column, values[name] = _profile_column(name, present, spec, counts, classes, numbers, former)
            columns.append(column)
    roles = {column.name: column.role for column in columns}
    return DatasetProfile(
        splits={
            split: SplitSize(counts[split].rows, sample.num_rows, counts[split].bytes, counts[split].shards)
            for split, sample in samples.items()
        },
        columns=tuple(columns),
        redundant=redundant_columns({name: of for name, of in values.items() if roles[name] is Role.FEATURE}),
    )


def _label_numbers(train: pa.Table, spec: FeatureSpec) -> np.ndarray | None:
    """Return the label of each training row as a number; None for labels of several classes, and bad ones."""
    try:
        if spec.label.kind == "binary":
            return labels.binary_label(train, spec.label.name, spec.label.positive)
        return labels.number_label(train, spec.label.name) if spec.label.kind == "numeric" else None
    except labels.LabelError:  # Conversion or a finding says so.
        return None


def _profile_column(
    name: str,
    arrays: Mapping[str, pa.Array],
    spec: FeatureSpec,
    counts: Mapping[str, SplitCounts],
    classes: np.ndarray | None,
    numbers: np.ndarray | None,
    former: ColumnProfile | None,
) -> tuple[ColumnProfile, RawValues]:
    """Return the profile of a column, and its values in the training rows."""
    role = _role(name, spec)
    feature = next((feature for feature in spec.features if name in feature.columns), None)
    is_amount = name == spec.label.number
    kind = ColumnKind.NUMBER if is_amount else column_kind(name, arrays[TRAIN_SPLIT].type, role, feature)
    values = {split: raw_values(array, kind, feature) for split, array in arrays.items()}
    train = values[TRAIN_SPLIT]
    known = pc.unique(train.tokens) if train.tokens is not None else None
    edges = _histogram_edges(train.numbers) if train.numbers is not None else ()
    bins = _bins(train, kind)
    # In bins of another kind of value, everything would count as missing.
    former_bins = former.bins if former is not None and former.kind == kind else Bins()
    profile = ColumnProfile(
        name=name,
        type=str(arrays[TRAIN_SPLIT].type),
        role=role,
        feature_kind="numeric" if is_amount else _feature_kind(role, feature, spec),
        kind=kind,
        edges=edges,
        bins=bins,
        splits={
            split: _measured(name, kind, part, train, known, edges, bins, former_bins, counts[split])
            for split, part in values.items()
        },
        label=None if classes is None or role is not Role.FEATURE else label_relation(train, classes, kind),
        label_rates=() if numbers is None or role is not Role.FEATURE else _label_rates(train, numbers, bins),
    )
    return profile, train


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
        bins=bin_counts(part, bins),
        reference_bins=bin_counts(part, former_bins),
    )


def _role(name: str, spec: FeatureSpec) -> Role:
    # A label of kind candidate is a feature too, but counts as the label here.
    if name in (spec.label.name, spec.label.rating):
        return Role.LABEL
    if name in spec.keys:
        return Role.KEY
    if name == spec.weight:
        return Role.WEIGHT
    return Role.EXCLUDE if name == spec.exclude else Role.FEATURE


def _feature_kind(role: Role, feature: kinds.Feature | None, spec: FeatureSpec) -> str:
    if role is Role.LABEL:
        return spec.label.kind
    return feature.kind if feature is not None and role is Role.FEATURE else ""


def _bins(train: RawValues, kind: ColumnKind) -> Bins:
    if train.numbers is not None and len(train.numbers):
        return Bins(edges=tuple(np.unique(_quantiles(train.numbers, DRIFT_QUANTILES)).tolist()))
    if train.tokens is not None and kind is not ColumnKind.KEY:
        return Bins(tokens=tuple(entry.value for entry in _counted_tokens(train.tokens, DRIFT_TOKENS, None)))
    return Bins()


def bin_counts(part: RawValues, bins: Bins) -> tuple[int, ...]:
    """Return the number of values in each bin, that of missing ones last; nothing without bins."""
    if bins.is_empty:
        return ()
    return (*np.bincount(_places(part, bins), minlength=bins.count).tolist(), part.missing)


def _places(part: RawValues, bins: Bins) -> np.ndarray:
    """Return the bin of each value that is present."""
    if part.tokens is None:
        numbers = np.zeros(0) if part.numbers is None else part.numbers
        return np.searchsorted(np.array(bins.edges), numbers, side="left")
    places = pc.index_in(part.tokens, pa.array(bins.tokens, pa.string())).fill_null(len(bins.tokens))
    return np.asarray(places.to_numpy())


def _label_rates(train: RawValues, label: np.ndarray, bins: Bins) -> tuple[float | None, ...]:
    """Return the mean label by bin, with missing values as the last one; nothing for several values per row."""
    if bins.is_empty or train.codes is None:
        return ()
    is_present = train.codes >= 0
    places = np.full(train.rows, bins.count)
    places[is_present] = _places(train, bins)
    rows = np.bincount(places, minlength=bins.count + 1)
    sums = np.bincount(places, weights=label, minlength=bins.count + 1)
    return tuple(float(total / count) if count else None for total, count in zip(sums, rows, strict=True))


def _histogram_edges(numbers: np.ndarray) -> tuple[float, ...]:
    """Return the ends of the bars, two or more; none if there are no numbers."""
    if not len(numbers):
        return ()
    distinct = np.unique(numbers)
    low, high = _quantiles(numbers, _HISTOGRAM_RANGE)
    # The span of the largest numbers may be infinite, which is fine here.
    with np.errstate(over="ignore"):
        span = distinct[-1] - distinct[0]
        if span < HISTOGRAM_BINS and (distinct == np.round(distinct)).all() and abs(distinct[0]) < _WHOLE_NUMBERS:
            # Whole numbers get a bar each: bars of any other width would hold one or two of them in turn.
            return tuple((np.arange(span + 2) + distinct[0] - 0.5).tolist())
        # The bars reach the extremes if these are close.
        slack = 0.1 * (high - low)
        low = float(distinct[0]) if low - distinct[0] <= slack else low
        high = float(distinct[-1]) if distinct[-1] - high <= slack else high
    if low == high:
        # One value nearly everywhere: the distance of the few others is what matters.
        low, high = float(distinct[0]), float(distinct[-1])
    if low == high:
        with np.errstate(over="ignore"):  # there is no number behind the largest one
            half = max(0.5, float(np.spacing(abs(low))))
        return (max(low - half, -sys.float_info.max), min(low + half, sys.float_info.max))
    place = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    # Adjacent numbers leave no room for edges between them.
    return tuple(np.unique(low * (1 - place) + high * place).tolist())


def _quantiles(numbers: np.ndarray, places: tuple[float, ...]) -> tuple[float, ...]:
    # Only existing numbers: means of neighbours might not be whole numbers in a column of whole numbers.
    return tuple(np.quantile(numbers, places, method="inverted_cdf").tolist())


def _histogram(numbers: np.ndarray, edges: tuple[float, ...]) -> tuple[int, ...]:
    if not edges:
        return ()
    counts, _ = np.histogram(np.clip(numbers, edges[0], edges[-1]), np.array(edges))
    return tuple(counts.tolist())


def _spread(numbers: np.ndarray | None) -> Spread | None:
    if numbers is None or not len(numbers):
        return None
    # In units of the largest number, because sums of very large numbers overflow.
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
    """Return the number of distinct values, the number of values that occur once, and the most frequent values."""
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
