"""The exposure log of experiments, and the actions that units took after their first exposure, as Spark DataFrames."""

from __future__ import annotations

import datetime
import hashlib
from functools import reduce
from typing import TYPE_CHECKING

from mirrorspark.lifecycle.experiments.columns import check_columns, column_of, require_column
from mirrorspark.lifecycle.experiments.definition import HOLDOUT, Experiment, ExperimentError
from mirrorspark.lifecycle.experiments.units.assignment import assign_units
from mirrorspark.spark_session import on_running_session

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

EXPOSURE_COLUMNS = {
    "event_id": "string",
    "unit": "string",
    "experiment": "string",
    "variant": "string",
    "weight": "double",
    "model_version": "string",
    "time": "timestamp",
}
"""Columns of the exposure log and their types; ``weight`` is the variant's share at that time."""

ACTION_COLUMNS = {"event_id": "string", "unit": "string", "value": "double", "time": "timestamp"}
"""Columns of actions and their types; ``value`` is an amount, or 1 for something that only counts."""

_NEEDED = ("event_id", "unit", "experiment", "variant", "time")


def exposure(
    unit: str, experiment: Experiment, variant: str, model_version: str | None, time: datetime.datetime
) -> dict[str, object]:
    """Return one event of the exposure log (``EXPOSURE_COLUMNS``), with the time as text in ISO 8601.

    Its ``event_id`` is the one that :func:`log_exposures` gives to the same unit and time.

    Args:
        unit: The unit's text.
        experiment: The experiment that chose the variant.
        variant: The unit's variant.
        model_version: The version that answered.
        time: When, with a time zone.
    """
    micros = int(time.timestamp()) * 1_000_000 + time.microsecond
    return {
        "event_id": hashlib.sha256(f"{experiment.name}:{unit}:{micros}".encode()).hexdigest(),
        "unit": unit,
        "experiment": experiment.name,
        "variant": variant,
        "weight": experiment.shares.get(variant),
        "model_version": model_version,
        "time": time.isoformat(timespec="microseconds"),
    }


@on_running_session
def log_exposures(
    frame: DataFrame, experiment: Experiment, *, unit: str, time: str, model_version: str | None = None
) -> DataFrame:
    """Return the exposure log (``EXPOSURE_COLUMNS``) of rows that were shown to units.

    Rows whose unit is null, or in another part of the layer, were not exposed and are left out. Held-out units are in
    the log, so that their actions can be counted; no analysis compares them.
    A row's ``event_id`` is a hash of experiment, unit and time: a job that is repeated writes the same events.

    Args:
        frame: Rows that were shown.
        experiment: The experiment that chose the variants.
        unit: Column of texts or integers.
        time: Column of timestamps: when the row was shown.
        model_version: Column of the version that scored the row; by default it is null.

    Raises:
        ExperimentError: A column is missing, or has another type.
    """
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    check_columns(frame, {time: "timestamp"} | ({model_version: "string"} if model_version else {}), "table")
    column = "variant"
    while column in frame.columns:
        column += "_"
    chosen = assign_units(frame, experiment, unit=unit, column=column).where(F.col(column).isNotNull())
    shares = F.create_map(*(F.lit(of) for pair in experiment.shares.items() for of in pair))
    text, at = column_of(unit).cast("string"), column_of(time)
    moment = F.unix_micros(at).cast("string")
    return chosen.select(
        F.sha2(F.concat_ws(":", F.lit(experiment.name), text, moment), 256).alias("event_id"),
        text.alias("unit"),
        F.lit(experiment.name).alias("experiment"),
        column_of(column).alias("variant"),
        F.try_element_at(shares, column_of(column)).alias("weight"),
        (column_of(model_version) if model_version else F.lit(None).cast("string")).alias("model_version"),
        at.alias("time"),
    )


@on_running_session
def first_exposures(log: DataFrame) -> DataFrame:
    """Return the first exposure of each unit in each experiment, without units that saw several variants.

    An event that is in the log twice, by its ``event_id``, counts once. Of exposures at one time, the one with the
    lowest ``event_id`` is the first. Events without an id, a unit, an experiment, a variant or a time are left out, and
    held-out units. :func:`exposure_faults` counts all that is left out.

    Args:
        log: Exposure log (``EXPOSURE_COLUMNS``), in any order.

    Returns:
        ``experiment``, ``unit``, ``variant``, ``weight``, ``model_version``, ``time``, and ``exposures``, the number of
        the unit's events.

    Raises:
        ExperimentError: A column is missing, or has another type.
    """
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    by_unit = _by_unit(log).where((F.col("variants") == 1) & (F.col("first.variant") != HOLDOUT))
    fields = [F.col(f"first.{name}").alias(name) for name in ("variant", "weight", "model_version", "time")]
    return by_unit.select("experiment", "unit", *fields, "exposures")


@on_running_session
def switched_units(log: DataFrame) -> DataFrame:
    """Return the units that saw several variants of an experiment, with the variants in the order of their names.

    They happen where weights have changed (:meth:`Experiment.reweighted`), or where something other than the assignment
    chooses variants: then the experiment is broken. The analysis leaves them out.

    Args:
        log: Exposure log (``EXPOSURE_COLUMNS``).

    Returns:
        ``experiment``, ``unit``, ``variants`` (list of names) and ``exposures``.
    """
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    found = _by_unit(log).where(F.col("variants") > 1)
    return found.select("experiment", "unit", F.col("names").alias("variants"), "exposures")


@on_running_session
def exposure_faults(log: DataFrame) -> DataFrame:
    """Return by experiment the numbers that :func:`first_exposures` counts and leaves out.

    Args:
        log: Exposure log (``EXPOSURE_COLUMNS``).

    Returns:
        A row per experiment, also for a null one: ``events``; ``incomplete`` ones, without id, unit, experiment,
        variant or time; ``doubled`` ones, by their ``event_id``; ``units`` of complete events, of which ``switched``
        saw several variants and ``held_out`` are held out.
    """
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    check_columns(log, EXPOSURE_COLUMNS, "exposure log")
    complete = _is_complete()
    events = log.groupBy("experiment").agg(
        F.count(F.lit(1)).alias("events"),
        F.count(F.when(~complete, 1)).alias("incomplete"),
        (F.count(F.when(complete, F.col("event_id"))) - F.count_distinct(F.when(complete, F.col("event_id")))).alias(
            "doubled"
        ),
    )
    is_switched = F.col("variants") > 1
    units = _by_unit(log).groupBy("experiment")
    counted = units.agg(
        F.count(F.lit(1)).alias("units"),
        F.count(F.when(is_switched, 1)).alias("switched"),
        F.count(F.when(~is_switched & (F.col("first.variant") == HOLDOUT), 1)).alias("held_out"),
    )
    return events.join(counted, "experiment", "left").fillna(0, ["units", "switched", "held_out"])


@on_running_session
def attribute_actions(
    exposures: DataFrame,
    actions: DataFrame,
    *,
    window: datetime.timedelta,
    before: datetime.timedelta | None = None,
    until: datetime.datetime | None = None,
) -> DataFrame:
    """Return the actions of each exposed unit within a time after its first exposure.

    An action counts from the moment of the exposure on, up to but not including the end of the window. Earlier and
    later ones do not count; when an action arrived in the table does not matter. An action that is there twice, by its
    ``event_id``, counts once; one without an id, a unit or a time does not count. One without a value has the value 0.

    Args:
        exposures: First exposures, of :func:`first_exposures`.
        actions: Actions (``ACTION_COLUMNS``) of these and other units.
        window: Length of the time after the exposure.
        before: Length of a time before the exposure, whose sum of values becomes ``value_before``: a covariate for
            CUPED. The exposure itself does not belong to it.
        until: When the actions end. Units whose window ends later are left out, so that all have had the same time.

    Returns:
        A row per unit and experiment: the columns of ``exposures``, ``actions`` (their number), ``converted`` (0 or 1),
        ``value`` (their sum) and, with ``before``, ``value_before``.

    Raises:
        ExperimentError: A column is missing or has another type, or a length of time is not positive.
    """
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    for name, length in (("window", window), ("before", before)):
        if length is not None and length <= datetime.timedelta(0):
            raise ExperimentError(f"{name} is {length}; use a time above 0")
    check_columns(
        exposures,
        {name: EXPOSURE_COLUMNS[name] for name in ("experiment", "unit", "variant", "time")},
        "table of exposures",
    )
    check_columns(actions, ACTION_COLUMNS, "table of actions")
    start = F.col("time")
    end = start + F.lit(window)
    chosen = exposures if until is None else exposures.where(end <= F.lit(until))
    # Of a doubled action the earliest counts; equal event ids are one action whatever their order in the table.
    once = (
        actions.where(F.col("event_id").isNotNull() & F.col("unit").isNotNull() & F.col("time").isNotNull())
        .groupBy(F.col("unit").alias("_unit"), "event_id")
        .agg(F.min(F.struct("time", "value")).alias("_first"))
        .select("_unit", F.col("_first.time").alias("_time"), F.coalesce("_first.value", F.lit(0.0)).alias("_value"))
    )
    is_after = (F.col("_time") >= start) & (F.col("_time") < end)
    earliest = start if before is None else start - F.lit(before)
    is_before = (F.col("_time") >= earliest) & (F.col("_time") < start)
    joined = chosen.join(
        once, (F.col("unit") == F.col("_unit")) & (F.col("_time") >= earliest) & (F.col("_time") < end), "left"
    )
    sums = [
        F.count(F.when(is_after, 1)).alias("actions"),
        F.max(F.when(is_after, 1).otherwise(0)).alias("converted"),
        F.sum(F.when(is_after, F.col("_value")).otherwise(0.0)).alias("value"),
    ]
    if before is not None:
        sums.append(F.sum(F.when(is_before, F.col("_value")).otherwise(0.0)).alias("value_before"))
    return joined.groupBy(*(column_of(name) for name in exposures.columns)).agg(*sums)


@on_running_session
def variant_results(units: DataFrame, *, metric: str = "value") -> DataFrame:
    """Return the results of each variant of each experiment: all that an analysis needs of any number of units.

    Args:
        units: Rows of :func:`attribute_actions`, or a table with ``experiment``, ``variant``, a metric and, for CUPED,
            ``value_before``.
        metric: Column of the metric: ``value``, ``converted``, ``actions`` or one of your own.

    Returns:
        ``experiment``, ``variant``, ``units``, ``conversions`` (units whose metric is not 0), ``total``, ``mean`` and
        ``variance`` of the metric (of a sample: divided by the units less one); and of ``value_before``, where there is
        one, ``before_mean``, ``before_variance`` and ``covariance`` with the metric. In the order of the names.

    Raises:
        ExperimentError: A column is missing.
    """
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    check_columns(units, {"experiment": "string", "variant": "string"}, "table of units")
    require_column(units, metric, "of the metric")
    value = column_of(metric).cast("double")
    sums = [
        F.count(F.lit(1)).alias("units"),
        F.count(F.when(value != 0, 1)).alias("conversions"),
        F.sum(value).alias("total"),
        F.avg(value).alias("mean"),
        F.var_samp(value).alias("variance"),
    ]
    if "value_before" in units.columns:
        covariate = F.col("value_before").cast("double")
        sums += [
            F.avg(covariate).alias("before_mean"),
            F.var_samp(covariate).alias("before_variance"),
            F.covar_samp(value, covariate).alias("covariance"),
        ]
    return units.groupBy("experiment", "variant").agg(*sums).orderBy("experiment", "variant")


def _by_unit(log: DataFrame) -> DataFrame:
    """Return a row per unit and experiment: its ``first`` event, its events and its variants, doubled events once."""
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    check_columns(log, EXPOSURE_COLUMNS, "exposure log")
    # The struct is ordered by time, then by event id.
    event = F.struct("time", "event_id", "variant", "weight", "model_version")
    return (
        log.where(_is_complete())
        .groupBy("experiment", "unit")
        .agg(
            F.min(event).alias("first"),
            F.count_distinct("event_id").alias("exposures"),
            F.array_sort(F.collect_set("variant")).alias("names"),
        )
        .withColumn("variants", F.size("names"))
    )


def _is_complete() -> Column:
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    return reduce(lambda both, name: both & F.col(name).isNotNull(), _NEEDED, F.lit(True))
