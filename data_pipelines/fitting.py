"""Fit a feature spec on Spark: one pass over the training rows counts tokens and measures numbers."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, Row, Window
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from data_pipelines.features import FeatureSpec, Numeric
from data_pipelines.fitted import FittedFeatures, NumericStatistics, Vocabulary
from data_pipelines.transform import ColumnError, numeric_values, raw_column

# Sums arrive in whatever order the tasks end; ten digits are the same whatever the order, so hashes are too.
SIGNIFICANT_DIGITS = 10

# Stands where a feature's name does in the partial result that counts a task's rows; no column can have this name.
_ROWS = ""

_PARTIAL_SCHEMA = "name string, token string, count long, mean double, m2 double, minimum double, maximum double"


class EmptySplitError(ValueError):
    """There are no rows to learn from."""


@dataclass(frozen=True)
class Moments:
    """Running count, mean and sum of squared deviations, which merge exactly (Chan, Golub, LeVeque 1979)."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """Measure float64 ``values``, which hold no NaN."""
        if not len(values):
            return cls()
        # Infinite values make a NaN here and a proper message on the driver.
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
        """Return what the transform needs; a column without any value counts as constant zero."""
        if not self.count:
            return NumericStatistics(0.0, 0.0, 0.0, 0.0, 0)
        return NumericStatistics(
            mean=_rounded(self.mean),
            standard_deviation=_rounded(math.sqrt(self.m2 / self.count)),
            minimum=self.minimum,
            maximum=self.maximum,
            count=self.count,
        )


@dataclass(frozen=True)
class FitTask:
    """The body of one Spark task: partial counts and moments of its rows."""

    spec: FeatureSpec

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one batch of partial results for all rows of the partition."""
        partial = _Partial()
        for batch in batches:
            partial.rows += batch.num_rows
            for feature in self.spec:
                column = raw_column(batch, feature)
                if isinstance(feature, Numeric):
                    values = numeric_values(column)
                    partial.measure(feature.name, values[~np.isnan(values)])
                elif self.spec.vocabulary_name(feature) == feature.name:
                    partial.count(feature.name, column.flatten() if pa.types.is_list(column.type) else column)
        yield from partial.as_batches()


@dataclass
class _Partial:
    rows: int = 0
    tokens: dict[str, dict[str, int]] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)

    def measure(self, name: str, values: np.ndarray) -> None:
        self.moments[name] = self.moments.get(name, Moments()).merged(Moments.of(values))

    def count(self, name: str, tokens: pa.Array) -> None:
        counts = self.tokens.setdefault(name, {})
        for entry in pc.value_counts(tokens).to_pylist():
            if entry["values"]:  # neither null nor ""
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]

    def as_batches(self) -> Iterator[pa.RecordBatch]:
        rows: list[dict[str, Any]] = [
            {"name": name, "token": token, "count": count}
            for name, counts in self.tokens.items()
            for token, count in counts.items()
        ]
        rows += [{"name": name} | vars(moments) for name, moments in self.moments.items()]
        rows.append({"name": _ROWS, "count": self.rows})
        schema = pa.schema(
            [("name", pa.string()), ("token", pa.string()), ("count", pa.int64())]
            + [(name, pa.float64()) for name in ("mean", "m2", "minimum", "maximum")]
        )
        yield pa.RecordBatch.from_pylist(rows, schema=schema)


def fit_features(df: DataFrame, spec: FeatureSpec) -> FittedFeatures:
    """Learn the vocabularies and statistics of ``spec`` from the training rows ``df``.

    Tokens are ordered by falling count, ties by their UTF-8 bytes, so the same rows always give the same ids.

    Raises:
        EmptySplitError: ``df`` has no rows, or a vocabulary stays empty.
        ColumnError: A numeric column holds an infinite value.
    """
    partial = df.select(*dict.fromkeys(feature.name for feature in spec)).mapInArrow(FitTask(spec), _PARTIAL_SCHEMA)
    # Both queries below read these few rows; without the cache the source would be read twice.
    partial.persist()
    try:
        measured = partial.where("token IS NULL").collect()
        if not sum(row["count"] for row in measured if row["name"] == _ROWS):
            raise EmptySplitError("there are no training rows; check the table or the rule that makes its split column")
        moments = _moments(row for row in measured if row["name"] != _ROWS)
        vocabularies = _vocabularies(partial, spec)
    finally:
        partial.unpersist()
    return FittedFeatures(
        spec=spec,
        vocabularies=vocabularies,
        statistics={feature.name: moments.get(feature.name, Moments()).statistics() for feature in spec.numeric},
    )


def _vocabularies(partial: DataFrame, spec: FeatureSpec) -> dict[str, Vocabulary]:
    owners = [feature for feature in spec.token_features if spec.vocabulary_name(feature) == feature.name]
    if not owners:
        return {}
    limits = F.create_map(*(F.lit(part) for owner in owners for part in (owner.name, owner.min_count)))
    sizes = F.create_map(*(F.lit(part) for owner in owners for part in (owner.name, owner.max_size or 2**31 - 1)))
    by_frequency = Window.partitionBy("name").orderBy(F.desc("count"), F.asc("token"))
    kept = (
        partial.where("token IS NOT NULL")
        .groupBy("name", "token")
        .agg(F.sum("count").alias("count"))
        .where(F.col("count") >= limits[F.col("name")])
        .withColumn("rank", F.row_number().over(by_frequency))
        .where(F.col("rank") <= sizes[F.col("name")])
        .toArrow()
        .sort_by([("name", "ascending"), ("rank", "ascending")])
    )
    vocabularies = {owner.name: _vocabulary(kept.filter(pc.equal(kept["name"], owner.name))) for owner in owners}
    for owner in owners:
        if not len(vocabularies[owner.name]):
            raise EmptySplitError(
                f"feature '{owner.name}' has no token that occurs {owner.min_count} times or more in the training "
                f"rows; lower its min_count or take it out of the spec"
            )
    return vocabularies


def _vocabulary(kept: pa.Table) -> Vocabulary:
    columns = kept.combine_chunks()
    return Vocabulary(
        tokens=pa.array(columns["token"].to_pylist(), pa.string()),
        counts=pa.array(columns["count"].to_pylist(), pa.int64()),
    )


def _moments(rows: Iterable[Row]) -> dict[str, Moments]:
    merged: dict[str, Moments] = {}
    for row in rows:
        part = Moments(row["count"], row["mean"], row["m2"], row["minimum"], row["maximum"])
        if part.count and math.isinf(max(-part.minimum, part.maximum)):
            raise ColumnError(f"column '{row['name']}' holds an infinite number; replace it by null or a finite one")
        merged[row["name"]] = merged.get(row["name"], Moments()).merged(part)
    return merged


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
