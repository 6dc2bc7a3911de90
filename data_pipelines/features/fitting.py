"""Fitting of a feature spec to the training rows: token counts and moments, measured in parts and joined."""

import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features.embedded_columns import unembedded_type
from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.item_rows import with_items
from mirrorspark.data_pipelines.features.kinds import UNBOUNDED, Bucketed, MeasuredFeature, TargetEncoding
from mirrorspark.data_pipelines.features.names import file_name
from mirrorspark.data_pipelines.features.raw_columns import ColumnError, ColumnPlans, column_plans
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import counted_tokens, measured_values
from mirrorspark.data_pipelines.features.vocabulary import VOCABULARY_SCHEMA, Vocabulary
from mirrorspark.data_pipelines.sources import TOKEN_COUNTS_SCHEMA, Source
from mirrorspark.storage import StoragePath

# Sums arrive in the order in which tasks end; ten digits do not depend on the order, so hashes do not either.
_SIGNIFICANT_DIGITS = 10

# Equal shares of the rows whose boundaries are kept for a numeric feature, to embed it piecewise.
NUMERIC_SHARES = 48

# A task sums its counts when there are this many rows; if that leaves this many distinct tokens, they go on to Spark's
# aggregation.
_WAITING_COUNTS = 1 << 20
_DISTINCT_TOKENS = 1 << 18

_TOKENS_PER_PIECE = 1 << 20


class EmptySplitError(ClearError, ValueError):
    """A split without rows to learn from."""


@dataclass(frozen=True)
class Moments:
    """Running count, mean and sum of squared deviations, which merge exactly (Chan, Golub, LeVeque 1979)."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> "Moments":
        """Measure float64 ``values`` without NaN."""
        if not len(values):
            return cls()
        # Infinite values give NaN here, and the driver reports them.
        with np.errstate(invalid="ignore"):
            mean = float(values.mean())
            return cls(len(values), mean, float(((values - mean) ** 2).sum()), float(values.min()), float(values.max()))

    def merged(self, other: "Moments") -> "Moments":
        """Return the moments of both samples together."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * other.count / count,
            self.m2 + other.m2 + delta**2 * self.count * other.count / count,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )

    def statistics(self) -> NumericStatistics:
        """Return the statistics for the transform; a column without any value counts as constant zero."""
        if not self.count:
            return NumericStatistics(0.0, 0.0, 0.0, 0.0, 0)
        return NumericStatistics(
            mean=rounded(self.mean),
            standard_deviation=rounded(math.sqrt(self.m2 / self.count)),
            minimum=self.minimum,
            maximum=self.maximum,
            count=self.count,
        )


class Measurement:
    """Counts and moments of the training rows in one task, in bounded memory whatever their number.

    Attributes:
        moments: The moments of the rows so far, per numeric or bucketed feature.
    """

    def __init__(self, spec: FeatureSpec, plans: ColumnPlans) -> None:
        self._plans = plans
        self._measured: tuple[MeasuredFeature, ...] = spec.measured
        self._tokens = {owner.name: _TokenCounts() for owner in spec.vocabulary_owners}
        # A vocabulary's tokens are counted in its owner's column, that of candidates in others, too.
        self._counted = {owner: (owner, *spec.counted_with(owner)) for owner in spec.vocabulary_owners}
        self.moments = {feature.name: Moments() for feature in self._measured}

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Add the rows of ``batch``; yield counts, in ``TOKEN_COUNTS_SCHEMA``, that exceed the bound."""
        for feature in self._measured:
            values = measured_values(feature, self._plans[feature].read(batch))
            self.moments[feature.name] = self.moments[feature.name].merged(Moments.of(values[~np.isnan(values)]))
        for owner, counted in self._counted.items():
            for one in counted:
                yield from self._tokens[owner.name].add(owner.name, counted_tokens(one, self._plans[one].read(batch)))

    def finish(self) -> Iterator[pa.RecordBatch]:
        """Yield the remaining counts."""
        for name, tokens in self._tokens.items():
            yield from tokens.take(name)


@dataclass
class _TokenCounts:
    """Counts of one vocabulary's tokens: a list of small tables, which are summed when it grows."""

    _waiting: list[pa.Table] = field(default_factory=list)
    _waiting_rows: int = 0

    def add(self, name: str, tokens: pa.StringArray) -> Iterator[pa.RecordBatch]:
        counts = pc.value_counts(tokens)
        self._keep(pa.table({"token": counts.field("values"), "count": counts.field("counts")}))
        if self._waiting_rows > _WAITING_COUNTS:
            self._keep(self._summed())
            if self._waiting_rows > _DISTINCT_TOKENS:
                yield from self.take(name)

    def take(self, name: str) -> Iterator[pa.RecordBatch]:
        if not self._waiting:
            return
        counted = self._summed()
        columns = [pa.array([name] * len(counted), pa.string()), counted["token"], counted["count"]]
        yield from pa.table(columns, schema=TOKEN_COUNTS_SCHEMA).to_batches(65_536)

    def _keep(self, counts: pa.Table) -> None:
        self._waiting.append(counts)
        self._waiting_rows += len(counts)

    def _summed(self) -> pa.Table:
        """Return the waiting counts summed per token; null and "" are missing, not tokens."""
        waiting = pa.concat_tables(self._waiting)
        self._waiting, self._waiting_rows = [], 0
        present = waiting.filter(pc.fill_null(pc.not_equal(waiting["token"], ""), fill_value=False))
        return present.group_by("token").aggregate([("count", "sum")]).rename_columns(["token", "count"])


@dataclass(frozen=True)
class FeatureMeasurements:
    """The measurements of all tasks.

    Attributes:
        moments: The moments of all rows, per numeric or bucketed feature.
        token_files: URIs of Arrow files with token counts, in ``TOKEN_COUNTS_SCHEMA``; a token may be in several.
    """

    moments: Mapping[str, Moments]
    token_files: tuple[str, ...]


def fit_features(
    source: Source,
    measured: FeatureMeasurements,
    spec: FeatureSpec,
    plans: ColumnPlans,
    sample: pa.Table,
    scratch: StoragePath,
    target: StoragePath,
    items: pa.Table | None = None,
    categories: Iterable[str] = (),
) -> FittedFeatures:
    """Join the parts of a measurement into fitted features, and save them.

    Tokens are ordered by falling count, ties by their UTF-8 bytes, so the same rows always give the same ids. Of a
    table in Spark its tasks write them; this process copies file to file, so a vocabulary may exceed its memory.

    Args:
        source: Sums and sorts the counts of tokens.
        measured: The parts.
        spec: The features.
        plans: The ways in which they are read.
        sample: Rows of the training split for the quantiles: with 20,000 of them, a boundary's rank is off by more than
            0.4 % of the rows in one case of three.
        scratch: A folder that the executors reach; the caller removes its files.
        target: Folder to save to.
        items: The table of :attr:`FeatureSpec.items`, if the spec has them. Its features are fitted to all its rows,
            and its keys without a training row follow the other candidates in the vocabulary, in their order as text.
        categories: The columns that are categoricals in the table.

    Raises:
        EmptySplitError: A vocabulary stays empty.
        ColumnError: A numeric column holds an infinite value, or a column of the items is invalid.
    """
    with tempfile.TemporaryDirectory(prefix="mirrorspark-vocabularies-") as folder:
        fitted = _joined(source, measured, spec, plans, sample, scratch, Path(folder))
        fitted = replace(fitted, categories=tuple(name for name in categories if name in fitted.column_types))
        if spec.items is not None and items is not None:
            own = Path(folder) / "items"
            own.mkdir()
            its_plans = column_plans(items.schema, spec.items.read_features)
            counted = _measured_items(spec.items, its_plans, items, scratch)
            of_items = _joined(source, counted, spec.items, its_plans, items, scratch / "of_items", own)
            fitted = with_items(fitted, of_items, items)
        fitted.save(target)
    return FittedFeatures.load(target)


def _joined(
    source: Source,
    measured: FeatureMeasurements,
    spec: FeatureSpec,
    plans: ColumnPlans,
    sample: pa.Table,
    scratch: StoragePath,
    folder: Path,
) -> FittedFeatures:
    """Return the fitted features, with vocabularies that are mapped from the local ``folder``."""
    for name, part in measured.moments.items():
        if part.count and math.isinf(max(-part.minimum, part.maximum)):
            raise ColumnError(f"column '{name}' holds an infinite number; replace it by null or a finite one")
    return FittedFeatures(
        spec=spec,
        vocabularies=_vocabularies(source, measured.token_files, spec, scratch, folder)
        if spec.vocabulary_owners
        else {},
        statistics={name: part.statistics() for name, part in measured.moments.items()},
        quantiles=_quantiles(spec, plans, sample),
        column_types=_column_types(spec, sample.schema),
    )


def _measured_items(
    spec: FeatureSpec, plans: ColumnPlans, items: pa.Table, scratch: StoragePath
) -> FeatureMeasurements:
    """Measure the table of items in this process; its token counts go to a file for the executors."""
    measurement = Measurement(spec, plans)
    counted = [part for batch in items.to_batches() for part in measurement.add(batch)]
    path = scratch / "items-counts.arrow"
    with path.open_write() as file, pa.ipc.new_file(file, TOKEN_COUNTS_SCHEMA) as writer:
        for part in (*counted, *measurement.finish()):
            writer.write_batch(part)
    return FeatureMeasurements(measurement.moments, (str(path),))


def _vocabularies(
    source: Source, token_files: tuple[str, ...], spec: FeatureSpec, scratch: StoragePath, folder: Path
) -> dict[str, Vocabulary]:
    """Return the vocabulary of every owner, written to files in the local ``folder`` and mapped from there."""
    owners = spec.vocabulary_owners
    ranked = source.ranked_tokens(token_files, {owner.name: owner.min_count for owner in owners}, scratch / "ranked")
    limits = {owner.name: owner.max_size or UNBOUNDED for owner in owners}
    _write_vocabularies(ranked, limits, folder)
    for owner in owners:
        if _vocabulary_file(folder, owner.name).exists():
            continue
        if not isinstance(owner, TargetEncoding):
            raise EmptySplitError(
                f"feature '{owner.name}' has no token that occurs {owner.min_count} times or more in the training "
                f"rows; lower its min_count or take it out of the spec"
            )
        with _VocabularyFile(_vocabulary_file(folder, owner.name), 0):  # No group has enough rows.
            pass
    return {owner.name: Vocabulary.load(_vocabulary_file(folder, owner.name)) for owner in owners}


def _write_vocabularies(ranked: list[StoragePath], limits: Mapping[str, int], folder: Path) -> None:
    """Copy the ranked tokens, sorted by name, to one file per name, up to its limit."""
    for name, pieces in itertools.groupby(_runs_of_one_name(ranked), key=lambda run: run[0]):
        with _VocabularyFile(_vocabulary_file(folder, name), limits[name]) as file:
            for _, piece in pieces:
                file.add(piece)


def _runs_of_one_name(ranked: list[StoragePath]) -> Iterator[tuple[str, pa.RecordBatch]]:
    for path in ranked:
        with path.open_read() as file, pa.ipc.open_file(file) as reader:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                names = batch.column("name")
                start = 0
                for run in pc.run_end_encode(names).values.to_pylist():
                    stop = start + pc.sum(pc.equal(names, run)).as_py()
                    yield run, batch.slice(start, stop - start)
                    start = stop


class _VocabularyFile:
    """Writer of tokens and counts in pieces of a million: few pieces, to find a token by its position quickly."""

    def __init__(self, path: Path, limit: int) -> None:
        self._writer = pa.ipc.new_file(str(path), VOCABULARY_SCHEMA)
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._room = limit

    def __enter__(self) -> "_VocabularyFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, batch: pa.RecordBatch) -> None:
        kept = batch.slice(0, self._room)
        self._room -= len(kept)
        self._waiting.append(kept)
        self._waiting_rows += len(kept)
        if self._waiting_rows >= _TOKENS_PER_PIECE:
            self._flush()

    def _flush(self) -> None:
        if self._waiting_rows:
            table = pa.Table.from_batches(self._waiting).combine_chunks()
            self._writer.write_table(pa.table([table["token"], table["count"]], schema=VOCABULARY_SCHEMA))
        self._waiting, self._waiting_rows = [], 0


def _vocabulary_file(folder: Path, name: str) -> Path:
    return folder / f"{file_name(name)}.arrow"


def _column_types(spec: FeatureSpec, schema: pa.Schema) -> dict[str, str]:
    """Return the Arrow type of every raw column: a token of a type other than in training would be another token."""
    features = (*spec.features, *([spec.excluded] if spec.excluded else []))
    names = dict.fromkeys(column for feature in features for column in feature.columns)
    types = {name: schema.field(name).type for name in names}
    return {name: str(unembedded_type(type_)) for name, type_ in types.items()}


def _quantiles(spec: FeatureSpec, plans: ColumnPlans, sample: pa.Table) -> dict[str, tuple[float, ...]]:
    """Return the boundaries for every feature that is a number: between buckets, or between bins of an embedding."""
    found = {feature.name: _boundaries(feature, plans[feature].read(sample)) for feature in spec.bucketed}
    numbers = {feature.name: measured_values(feature, plans[feature].read(sample)) for feature in spec.numeric}
    return found | {name: bin_boundaries(values) for name, values in numbers.items()}


def bin_boundaries(values: npt.NDArray[Any]) -> tuple[float, ...]:
    """Return rising boundaries between the bins of a number, all above its lowest value.

    A value with more than a share of the rows, such as 0 of an amount that most rows lack, has a bin of its own, from
    it to the next value; the other rows are divided into ``NUMERIC_SHARES`` equal shares. Quantiles of all rows would
    have a single bin for all the others.
    """
    present = np.asarray(values[~np.isnan(values)], np.float64)
    distinct, counts = np.unique(present, return_counts=True)
    is_frequent = counts * NUMERIC_SHARES > len(present)
    others = np.repeat(distinct[~is_frequent], counts[~is_frequent])
    places = np.arange(NUMERIC_SHARES) * len(others) // NUMERIC_SHARES
    chosen = np.isin(distinct, others[places]) if len(others) else np.zeros(len(distinct), bool)
    follows = np.concatenate([[False], is_frequent])[: len(distinct)]
    # The lowest value is not a boundary: nothing lies below it.
    return tuple(map(float, distinct[1:][(chosen | is_frequent | follows)[1:]]))


def _boundaries(feature: Bucketed, column: pa.Array) -> tuple[float, ...]:
    """Return the distinct quantiles of the sample: only values that occur, so that equal rows share a bucket."""
    values = measured_values(feature, column)
    rising = np.sort(values[~np.isnan(values)])
    # The lowest value of each share but the first: a value on a boundary belongs to the upper bucket.
    places = np.arange(1, feature.buckets) * len(rising) // feature.buckets
    distinct = np.unique(rising[places]) if len(rising) else rising
    return tuple(float(boundary) for boundary in distinct if boundary > rising[0])


def rounded(value: float) -> float:
    """Return a statistic without its last digits, which depend on the order in which tasks end."""
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
