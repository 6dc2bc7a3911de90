"""Quality of a model in production: its scores joined with outcomes, week by week, against its validation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.features import quoted
from mirrorspark.lifecycle.gate import (
    MOST_SLICES,
    OVERALL,
    MeasurementSpec,
    MetricEstimate,
    SliceFacts,
    Slicing,
    direction_of,
    measure_scores,
    metrics_of_task,
)
from mirrorspark.lifecycle.watching.watcher import WEEK
from mirrorspark.pages import in_digits
from mirrorspark.scoring.model.folder import Task
from mirrorspark.scoring.parity import THRESHOLD
from mirrorspark.spark_session import on_running_session
from mirrorspark.storage import lacking

_START, _LABEL = "__mirrorspark_start", "__mirrorspark_label"
_EPOCH = datetime.fromtimestamp(0, UTC)
_DEFAULT_TOLERANCE = 0.02
# They describe the rows.
_NOT_COMPARED = ("base_rate",)
# Metrics that are worse the farther they are from a value, on either side of it.
_BEST = {"calibration": 1.0, "bias": 0.0}


@dataclass(frozen=True)
class ExpectedMetrics:
    """Metrics of a validation before the model went into production.

    Attributes:
        metrics: Metric by name, of all rows.
        model: Name and version.
    """

    metrics: Mapping[str, float]
    model: str

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Read the ``validation.json`` of a promotion.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is not a validation.
        """
        try:
            document = json.loads(Path(file).read_text(encoding="utf-8"))
            candidate = document["candidate"]
            (overall,) = (one for one in document["slices"] if one["slicing"] == OVERALL)
            metrics = {name: float(one["value"]) for name, one in overall["candidate"].items()}
            return cls(metrics, f"{candidate['name']}/{candidate['version']}")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{file} is not a validation ({error}); give the promotion's validation.json") from error


@dataclass(frozen=True)
class LiveWindow:
    """The quality of a model in a window.

    Attributes:
        start: When it starts, in UTC.
        scored: Rows that were scored.
        examples: Examples whose outcome is known.
        metrics: Metrics of these, with 95% intervals.
        alarms: Metrics that are worse than expected, in words.
    """

    start: datetime
    scored: int
    examples: int
    metrics: Mapping[str, MetricEstimate]
    alarms: tuple[str, ...] = ()


@on_running_session
def live_metrics(
    scores: DataFrame,
    outcomes: DataFrame,
    *,
    keys: str | Sequence[str],
    label: str,
    time: str,
    window: str = WEEK,
    task: Task = "binary",
    output: str = "score",
    labels: Sequence[str] = (),
    expected: ExpectedMetrics | None = None,
    tolerance: float = _DEFAULT_TOLERANCE,
    min_examples: int = 100,
    threshold: float = THRESHOLD,
    seed: int = 1,
) -> tuple[LiveWindow, ...]:
    """Join scores with outcomes and measure them by window, on Spark.

    A metric is an alarm if its whole 95% interval is worse than expected, by more than the tolerance. Rows
    whose outcome is not known yet are counted and not measured.

    Args:
        scores: Answers: keys, time and scores.
        outcomes: Outcomes: keys and label. Of several outcomes of a key, one has to be chosen before.
        keys: Columns that both have.
        label: SQL expression of the label, over the columns of ``outcomes``.
        time: SQL expression of the time of a score, over the columns of ``scores``.
        window: Length of a window.
        task: Task of the model.
        output: Column of the scores.
        labels: Classes or labels of the model, of a multi-class or multi-label model.
        expected: Values that the metrics are compared with.
        tolerance: Difference to the expected value without an alarm, in units of the metric.
        min_examples: Windows with fewer outcomes are not judged.
        threshold: As in :func:`lifecycle.gate.validate`.
        seed: Fixes the intervals.

    Returns:
        The windows that have outcomes, the earliest first.

    Raises:
        ValueError: A column is missing, or there are more than 1,000 windows.
        PySparkException: A job failed; the message names the reason.
    """
    keys = (keys,) if isinstance(keys, str) else tuple(keys)
    for name, table in {"scores": scores, "outcomes": outcomes}.items():
        if lost := [key for key in keys if key not in table.columns]:
            raise ValueError(lacking(name, lost, table.columns))
    if output not in scores.columns:
        raise ValueError(lacking("scores", [output], scores.columns))
    when = F.unix_micros(F.window(F.expr(time).cast("timestamp"), window).start).cast("string")
    answered = scores.select(*map(quoted, keys), quoted(output), when.alias(_START))
    known = outcomes.select(*map(quoted, keys), F.expr(label).alias(_LABEL))
    scored = {row[_START]: int(row["count"]) for row in answered.groupBy(_START).count().collect()}
    if len(scored) > MOST_SLICES:
        raise ValueError(
            f"the scores are in {len(scored):,} windows of {window}, and {MOST_SLICES:,} are measured at once; choose "
            "a longer window, or scores of a shorter time"
        )
    joined = answered.join(known.where(F.col(_LABEL).isNotNull()), on=list(keys))
    spec = MeasurementSpec(_LABEL, keys, output, (Slicing(f"`{_START}`", "window"),), None, seed)
    found = measure_scores(joined, metrics_of_task(task, threshold, labels), spec)
    windows = [_window(one, scored, expected, tolerance, min_examples) for one in found if not one.is_overall]
    return tuple(sorted(windows, key=lambda one: one.start))


def _window(
    one: SliceFacts, scored: Mapping[str, int], expected: ExpectedMetrics | None, tolerance: float, min_examples: int
) -> LiveWindow:
    assert one.value is not None  # noqa: S101 - Spark leaves rows without a time out of all windows
    alarms: tuple[str, ...] = ()
    if expected is not None and one.examples >= min_examples:
        alarms = tuple(_worse(one.candidate, expected, tolerance))
    start = _EPOCH + timedelta(microseconds=int(one.value))
    return LiveWindow(start, scored[one.value], one.examples, one.candidate, alarms)


def _worse(metrics: Mapping[str, MetricEstimate], expected: ExpectedMetrics, tolerance: float) -> Iterator[str]:
    for name, value in expected.metrics.items():
        estimate = metrics.get(name)
        if (
            estimate is None
            or name in _NOT_COMPARED
            or not all(map(math.isfinite, (value, estimate.low, estimate.high)))
        ):
            continue
        if _is_worse(name, estimate, value, tolerance):
            measured, low, high = (in_digits(number) for number in (estimate.value, estimate.low, estimate.high))
            yield f"{name} is {measured} ({low} to {high}), expected was {in_digits(value)}"


def _is_worse(name: str, estimate: MetricEstimate, expected: float, tolerance: float) -> bool:
    low, high = estimate.low, estimate.high
    if name in _BEST:
        distance = max(low - _BEST[name], _BEST[name] - high)
        return distance > abs(expected - _BEST[name]) + tolerance
    direction = direction_of(name)
    return (high < expected - tolerance and direction != -1) or (low > expected + tolerance and direction != 1)
