"""One pass of Spark over a table: both models score it, and every slice of it is measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.features import quoted
from mirrorspark.data_pipelines.spark import map_batches
from mirrorspark.lifecycle.gate.facts import SliceFacts, slice_facts
from mirrorspark.lifecycle.gate.metric_sums import BUCKETS, MetricSums, sums_of_slices
from mirrorspark.lifecycle.gate.slices import OVERALL, Slicing
from mirrorspark.lifecycle.gate.task_metrics import TaskMetrics
from mirrorspark.scoring import score
from mirrorspark.scoring.model.folder import ModelDirectory
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.spark_session import versions

MOST_SLICES = 1000
"""The most slices of one slicing. Each takes up to half a megabyte in every task."""

# Rows that are measured at once: sorting is cheap compared with scoring, and merging is rare.
_CHUNK_ROWS = 1 << 18
_PREFIX = "__mirrorspark_gate_"
_LABEL, _WEIGHT, _BUCKET = (_PREFIX + name for name in ("label", "weight", "bucket"))
_PARTS = "slicing int, value string, model int, sums binary"


@dataclass(frozen=True)
class MeasurementSpec:
    """Columns, slices and seed of a measurement.

    Attributes:
        label: SQL expression of the label.
        keys: Columns by which rows are drawn for intervals: all rows of a key, a user say, are drawn together.
        output: The models' column of scores.
        slicings: Divisions of the rows.
        weight: SQL expression of non-negative weights; by default 1.
        seed: Fixes the buckets of the keys, and the draws.
        scoring: More arguments of :func:`scoring.score`.
    """

    label: str
    keys: tuple[str, ...]
    output: str
    slicings: tuple[Slicing, ...]
    weight: str | None
    seed: int
    scoring: Mapping[str, Any] = field(default_factory=dict)


def measure(
    table: DataFrame, models: Sequence[PinnedModel], metrics: TaskMetrics, spec: MeasurementSpec
) -> tuple[SliceFacts, ...]:
    """Return the metrics of each slice: all rows first, then slicings in their order, values by number of examples.

    Args:
        table: Rows with the models' raw columns, keys and label.
        models: The candidate and, if there is one, the champion.
        metrics: The metrics of the task.
        spec: Label, slices and settings.

    Raises:
        PySparkException: An expression cannot be evaluated; a task failed, for example by a label of another kind.
    """
    return _of_slices(_scored(table, models, spec), len(models), metrics, spec)


def measure_scores(table: DataFrame, metrics: TaskMetrics, spec: MeasurementSpec) -> tuple[SliceFacts, ...]:
    """Return the metrics of each slice as :func:`measure` does, of rows that have their scores already.

    Args:
        table: Rows with scores, keys and label.
        metrics: The metrics of the task.
        spec: Label, slices and settings; ``output`` is the column of the scores.

    Raises:
        PySparkException: As in :func:`measure`.
    """
    columns = [column.alias(name) for name, column in _own(spec).items()]
    scored = table.select(*columns, quoted(spec.output).alias(f"{_PREFIX}scores_0"))
    return _of_slices(scored, 1, metrics, spec)


def _of_slices(scored: DataFrame, models: int, metrics: TaskMetrics, spec: MeasurementSpec) -> tuple[SliceFacts, ...]:
    task = MeasureTask(metrics, models, len(spec.slicings), tuple(one.values for one in spec.slicings))
    parts = map_batches(scored, task, _PARTS)
    # Tasks merge the parts of a slice, so that the driver's input does not grow with the table.
    whole = versions.arrow_table(versions.merged_groups(parts, ["slicing", "value"], _merge))
    by_slice: dict[tuple[int, str | None], dict[int, MetricSums]] = {}
    for row in whole.to_pylist():
        by_slice.setdefault((row["slicing"], row["value"]), {})[row["model"]] = MetricSums.from_bytes(row["sums"])
    names = [OVERALL, *(one.name for one in spec.slicings)]
    found = [
        (place, slice_facts(names[place], value, [of[model] for model in sorted(of)], metrics, seed=spec.seed))
        for (place, value), of in by_slice.items()
    ]
    return tuple(facts for _, facts in sorted(found, key=lambda one: (one[0], -one[1].examples, one[1].value or "")))


def _own(spec: MeasurementSpec) -> dict[str, Column]:
    """Return label, weight, bucket and the values of the slicings."""
    own: dict[str, Column] = {
        _LABEL: F.expr(spec.label),
        _WEIGHT: F.expr(spec.weight).cast("double") if spec.weight else F.lit(1.0),
        _BUCKET: F.pmod(F.xxhash64(F.lit(spec.seed), *map(quoted, spec.keys)), F.lit(BUCKETS)).cast("int"),
    }
    slices = {f"{_PREFIX}slice_{place}": F.expr(one.expression) for place, one in enumerate(spec.slicings)}
    return own | {name: column.cast("string") for name, column in slices.items()}


def _scored(table: DataFrame, models: Sequence[PinnedModel], spec: MeasurementSpec) -> DataFrame:
    """Return label, weight, bucket, the values of the slicings, and each model's scores."""
    own = _own(spec)
    inputs = [ModelDirectory.open(model.path).inputs.columns for model in models]
    needed = [name for name in dict.fromkeys(name for names in inputs for name in names) if name in table.columns]
    rows = table.select(*(quoted(name) for name in needed), *(column.alias(name) for name, column in own.items()))
    kept = list(own)
    for place, model in enumerate(models):
        later = [name for names in inputs[place + 1 :] for name in names if name in table.columns]
        keys = list(dict.fromkeys([*kept, *later]))
        found = score(rows, model, keys=keys, with_columns=(), **{"outputs": "columns"} | dict(spec.scoring))
        name = f"{_PREFIX}scores_{place}"
        rows = found.select(*(quoted(one) for one in keys), quoted(spec.output).alias(name))
        kept.append(name)
    return rows


def _merge(parts: pa.Table) -> pa.Table:
    """Return the whole sums of each model of a slice."""
    found = []
    for model in sorted(set(parts["model"].to_pylist())):
        contents = parts.filter(pc.equal(parts["model"], model))["sums"].to_pylist()
        # A few at a time, since compressed sums are small and open ones are not.
        whole = MetricSums.from_bytes(contents[0])
        for first in range(1, len(contents), 8):
            whole = MetricSums.merged([whole, *map(MetricSums.from_bytes, contents[first : first + 8])])
        found.append((parts["slicing"][0].as_py(), parts["value"][0].as_py(), model, whole.to_bytes()))
    return _parts_table(found)


def _parts_table(found: Sequence[tuple[int, str | None, int, bytes]]) -> pa.Table:
    schema = pa.schema([("slicing", pa.int32()), ("value", pa.string()), ("model", pa.int32()), ("sums", pa.binary())])
    columns = zip(*found, strict=True) if found else ([], [], [], [])
    return pa.table([pa.array(list(of), one.type) for of, one in zip(columns, schema, strict=True)], schema=schema)


@dataclass(frozen=True)
class MeasureTask:
    """Body of a task: scored rows in, the sums of each of their slices and models out.

    Attributes:
        metrics: The metrics of the task.
        models: Number of models.
        slicings: Number of slicings.
        values: For each slicing the values that are slices; none for all.
    """

    metrics: TaskMetrics
    models: int
    slicings: int
    values: tuple[tuple[str, ...], ...]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield a row for each slice and model that has rows.

        Raises:
            ValueError: A label is null or not one of the task, a weight is negative, or a slicing has too many values.
        """
        found: dict[tuple[int, str | None, int], MetricSums] = {}
        for chunk in _chunks(batches):
            for name, metric_sums in self._measured(chunk):
                found[name] = MetricSums.merged([found[name], metric_sums]) if name in found else metric_sums
            for place in range(1, self.slicings + 1):
                if sum(key[0] == place for key in found) > MOST_SLICES * self.models:
                    raise ValueError(
                        f"slicing number {place} has more than {MOST_SLICES} values; name those that count "
                        f"(Slicing(..., values=...)), or group them in its expression"
                    )
        for (place, value, model), metric_sums in found.items():
            yield from _parts_table([(place, value, model, metric_sums.to_bytes())]).to_batches()

    def _measured(self, chunk: pa.Table) -> Iterator[tuple[tuple[int, str | None, int], MetricSums]]:
        columns = [column.combine_chunks() for column in chunk.columns]
        label, weights, bucket = columns[:3]
        if label.null_count:
            raise ValueError(f"{label.null_count} of {len(label)} rows have no label; leave them out of the table")
        weight = pc.fill_null(weights, np.nan).to_numpy(zero_copy_only=False)
        if (bad := np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))).size:
            raise ValueError(f"a weight is {weight[bad[0]]}; use zero or more")
        slicings: list[tuple[NDArray[np.int64], list[str | None]]] = [(np.zeros(len(label), np.int64), [None])]
        for values, wanted in zip(columns[3 : 3 + self.slicings], self.values, strict=True):
            slicings.append(_numbered(values, wanted))
        for model, output in enumerate(columns[3 + self.slicings :]):
            rows = self.metrics.rows(label, output, weight)
            numbered = [(number, len(values)) for number, values in slicings]
            of_all = sums_of_slices(rows, numbered, bucket.to_numpy(zero_copy_only=False).astype(np.int64))
            for place, ((_, values), of_slices) in enumerate(zip(slicings, of_all, strict=True)):
                for value, metric_sums in zip(values, of_slices, strict=True):
                    yield (place, value, model), metric_sums


def _numbered(values: pa.Array, wanted: Sequence[str]) -> tuple[NDArray[np.int64], list[str | None]]:
    """Return the slice of each row, -1 for none, and the values of the slices."""
    encoded = values.dictionary_encode(null_encoding="encode")
    number = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    names = encoded.dictionary.to_pylist()
    if not wanted:
        return number, names
    kept = [name for name in names if name in wanted]
    place = {name: at for at, name in enumerate(kept)}
    return np.array([place.get(name, -1) for name in names], np.int64)[number], kept


def _chunks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the rows in tables of some 262,144."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(one.num_rows for one in waiting) >= _CHUNK_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting and any(batch.num_rows for batch in waiting):
        yield pa.Table.from_batches(waiting)
