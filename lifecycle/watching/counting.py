"""Counting of rows into the bins of a snapshot, by windows of time, on Spark tables and streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features import kinds, quoted
from mirrorspark.data_pipelines.quality import profiling, raw_value_columns
from mirrorspark.data_pipelines.spark import map_batches
from mirrorspark.lifecycle.watching.drift import ColumnCounts
from mirrorspark.lifecycle.watching.snapshot import Snapshot, WatchedColumn

# Bins of a column are 0, 1 …; these count the tokens that the model does not know, and the rows.
_UNKNOWN, _ROWS = -1, -2
_START, _TIME = "__mirrorspark_start", "__mirrorspark_time"
_COUNTS = pa.schema(
    [("time", pa.timestamp("us", "UTC")), ("place", pa.int32()), ("bin", pa.int32()), ("rows", pa.int64())]
)
_COUNTS_DDL = "time timestamp, place int, bin int, rows bigint"


class NothingToWatchError(ClearError, ValueError):
    """A table has none of the columns of a snapshot, or no column of times."""


def window_counts(
    table: DataFrame, snapshot: Snapshot, *, time: str | None, window: str, late: str | None = None
) -> DataFrame:
    """Return the numbers of each column's values in each bin, by window.

    Args:
        table: Rows, or a stream of rows; columns that the snapshot lacks are ignored.
        snapshot: The snapshot that they are compared with.
        time: SQL expression of a row's time; None for one window.
        window: Length of a window, for example ``7 days``.
        late: How late rows of a stream may be.

    Returns:
        Columns ``start`` (timestamp; null for one window), ``place`` (of the column in the snapshot), ``bin`` and
        ``rows``.

    Raises:
        NothingToWatchError: No column is there.
    """
    places = [place for place, column in enumerate(snapshot.columns) if column.name in table.columns]
    if not places:
        names = [column.name for column in snapshot.columns]
        raise NothingToWatchError(f"the table has none of the columns {names}, only {table.columns}")
    columns = [quoted(snapshot.columns[place].name) for place in places]
    when = F.lit(None).cast("timestamp") if time is None else F.expr(time).cast("timestamp")
    start = when if time is None else F.window(when, window).start
    rows = table.select(*columns, start.alias(_START), when.alias(_TIME))
    if time is not None:
        rows = rows.where(F.col(_TIME).isNotNull())
    # The first feature of a column is its own; means of the label, which share columns, follow.
    features = {name: feature for feature in reversed(snapshot.spec.features) for name in feature.columns}
    watched = tuple((place, snapshot.columns[place]) for place in places)
    parts = map_batches(rows, CountTask(watched, features), _COUNTS_DDL)
    if late is not None:
        parts = parts.withWatermark("time", late)
    if time is None:
        return (
            parts.groupBy("place", "bin")
            .agg(F.sum("rows").alias("rows"))
            .withColumn("start", F.lit(None).cast("timestamp"))
        )
    # The time of a part is the latest of its rows, so a stream closes a window when rows behind it have come.
    whole = parts.groupBy(F.window("time", window).alias("window"), "place", "bin").agg(F.sum("rows").alias("rows"))
    return whole.select(F.col("window.start").alias("start"), "place", "bin", "rows")


@dataclass(frozen=True)
class CountTask:
    """Body of a task: rows in, their counts by window out.

    Attributes:
        columns: The columns that are watched, each behind its place in the snapshot.
        features: The feature that reads a column.
    """

    columns: tuple[tuple[int, WatchedColumn], ...]
    features: Mapping[str, kinds.Feature]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield a row for each window, column and bin that has values."""
        counts: Counter[tuple[datetime | None, int, int]] = Counter()
        latest: dict[datetime | None, datetime | None] = {}
        known_tokens = {place: pa.array(column.vocabulary, pa.string()) for place, column in self.columns}
        for batch in batches:
            for start, rows in _by_start(pa.Table.from_batches([batch])):
                found = pc.max(rows[_TIME]).as_py()
                known = latest.get(start)
                latest[start] = found if known is None or found is None else max(known, found)
                for place, column in self.columns:
                    for number, count in self._counted(column, rows[column.name].combine_chunks(), known_tokens[place]):
                        counts[start, place, number] += count
        if counts:
            keys = list(counts)
            arrays = [[latest[start] for start, *_ in keys], [key[1] for key in keys], [key[2] for key in keys]]
            columns = [
                pa.array(of, one.type) for of, one in zip([*arrays, list(counts.values())], _COUNTS, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=_COUNTS)

    def _counted(self, column: WatchedColumn, values: pa.Array, tokens: pa.Array) -> Iterator[tuple[int, int]]:
        found = raw_value_columns.raw_values(values, column.kind, self.features.get(column.name))
        yield _ROWS, found.rows
        for number, count in enumerate(profiling.bin_counts(found, column.bins)):
            if count:
                yield number, count
        if len(tokens) and found.tokens is not None:
            known = pc.sum(pc.is_in(found.tokens, tokens)).as_py() or 0
            if known < len(found.tokens):
                yield _UNKNOWN, len(found.tokens) - known


def _by_start(table: pa.Table) -> Iterator[tuple[datetime | None, pa.Table]]:
    starts = table[_START].combine_chunks().dictionary_encode(null_encoding="encode")
    numbers = starts.indices.to_numpy(zero_copy_only=False)
    for number, start in enumerate(starts.dictionary.to_pylist()):
        yield start, table if len(starts.dictionary) == 1 else table.filter(pa.array(numbers == number))


def counts_by_window(rows: Sequence[Any], snapshot: Snapshot) -> dict[datetime | None, dict[str, ColumnCounts]]:
    """Return the collected rows of :func:`window_counts` by window and column, the earliest window first."""
    bins: dict[datetime | None, dict[int, np.ndarray]] = {}
    others: Counter[tuple[datetime | None, int, int]] = Counter()
    for row in rows:
        of_window = bins.setdefault(row["start"], {})
        if row["place"] not in of_window:
            of_window[row["place"]] = np.zeros(len(snapshot.columns[row["place"]].counts), np.int64)
        if row["bin"] < 0:
            others[row["start"], row["place"], row["bin"]] += row["rows"]
        else:
            of_window[row["place"]][row["bin"]] += row["rows"]
    return {
        start: {
            snapshot.columns[place].name: ColumnCounts(
                tuple(counts.tolist()), others[start, place, _ROWS], others[start, place, _UNKNOWN]
            )
            for place, counts in sorted(bins[start].items())
        }
        for start in sorted(bins, key=lambda start: (start is not None, start))
    }
