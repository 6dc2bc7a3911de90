"""Splits: the ``split`` column with which conversion divides rows into training, validation and test."""

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, TypeVar

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import (
    BooleanType,
    DataType,
    DateType,
    FractionalType,
    NumericType,
    StringType,
    TimestampNTZType,
    TimestampType,
)

from mirrorspark.data_pipelines.dataset import SPLITS
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.data_pipelines.quality import memory_splits
from mirrorspark.data_pipelines.quality.split_rules import (
    BOUNDS,
    HASH_BITS,
    MOST_RARE_VALUES,
    RARE_ROWS,
    SHARES,
    SPLIT_COLUMN,
    TEST,
    TRAIN,
    VALIDATION,
    SplitError,
    bounds_of_rare_value,
    require_apart,
    require_column,
    require_label,
)
from mirrorspark.data_pipelines.sources import MemorySource
from mirrorspark.spark_session import on_running_session, versions
from mirrorspark.storage import meant

Moment = date | datetime | str | int | float
Table = TypeVar("Table", DataFrame, MemorySource, DataFrame | MemorySource)

# Percentiles of times are exact up to half as many rows.
_ACCURACY = 250_000


@on_running_session
def time_split(
    df: DataFrame,
    column: str,
    *,
    validation: Moment,
    test: Moment,
    gap: timedelta | float | None = None,
    split_column: str = SPLIT_COLUMN,
) -> DataFrame:
    """Add a split by time: a model learns from the past and is judged on later rows.

    Rows before ``validation`` are training rows, later rows before ``test`` are validation rows, the rest are test
    rows. A row without a time fails the job that reads it. Text is read here once, to check its order.

    Args:
        df: The table.
        column: The time of a row: timestamp, date, number, or text that sorts by time (ISO 8601).
        validation: First moment of the validation rows, in the column's type or as text that casts to it.
        test: First moment of the test rows.
        gap: Leave out rows up to this long before either moment. Use the length of the label's window, so that no
            training label depends on the time of the validation rows. The unit is days for a date, and the column's own
            unit for a number.
        split_column: Name of the column to add.

    Raises:
        SplitError: The column is absent or has no order in time, ``test`` is not after ``validation``, the gap does not
            fit the column, or its text does not sort by time.
    """
    _check_new_column(df, split_column)
    require_column(df.columns, column)
    kind = df.schema[column].dataType
    if not isinstance(kind, TimestampType | TimestampNTZType | DateType | NumericType | StringType):
        raise SplitError(f"column '{column}' of type {kind.simpleString()} has no order in time; cast it to timestamp")
    moments = df.sparkSession.range(1).select(
        *(
            versions.try_cast(F.lit(moment), kind).alias(name)
            for name, moment in ((VALIDATION, validation), (TEST, test))
        )
    )
    first = moments.first()
    assert first is not None  # noqa: S101 - range(1) has a row
    for name, moment in ((VALIDATION, validation), (TEST, test)):
        if first[name] is None:
            raise SplitError(
                f"{name} {moment!r} is not a {kind.simpleString()}, the type of column '{column}'; write it as one"
            )
    if not first[VALIDATION] < first[TEST]:
        raise SplitError(f"test {test!r} is not after validation {validation!r}; the test rows are the newest")
    time = quoted(column)
    starts = {name: F.lit(moment).cast(kind) for name, moment in ((VALIDATION, validation), (TEST, test))}
    if isinstance(kind, StringType):
        around = _text_around(df, column, [F.try_to_timestamp(start) for start in starts.values()])
        _check_text_order(column, around, list(first))
    split = (
        F.when(
            time.isNull(), F.raise_error(F.lit(f"column '{column}' is null; a split by time needs every row's time"))
        )
        .when(time < starts[VALIDATION], TRAIN)
        .when(time < starts[TEST], VALIDATION)
        .otherwise(TEST)
    )
    result = df.withColumn(split_column, split)
    if gap is None:
        return result
    for start in starts.values():
        # A row without a time stays, so that the split above fails instead of losing it here.
        result = result.where(time.isNull() | (time < _earlier(start, gap, kind, column)) | (time >= start))
    return result


@on_running_session
def default_split(
    df: Table,
    keys: str | Sequence[str],
    *,
    time: str | None = None,
    label: str | None = None,
    seed: int = 0,
    split_column: str = SPLIT_COLUMN,
) -> Table:
    """Return the table with a split of 80% training, 10% validation and 10% test rows.

    A table that has the column already keeps it. Otherwise the newest rows by ``time`` are for test and the next
    newest for validation; without ``time``, a hash of the keys decides (:func:`random_split`), with every rare value of
    ``label`` in its share of each split.

    Args:
        df: The table.
        keys: Columns that identify a row.
        time: The time of a row, as :func:`time_split` takes it.
        label: Column whose rare values are to be in all splits; a value is rare up to 1,000 rows.
        seed: Another seed makes another random split.
        split_column: Name of the column.

    Raises:
        SplitError: See :func:`time_split` and :func:`random_split`; or the times are too few to divide.
    """
    if split_column in df.columns:
        return df
    if isinstance(df, MemorySource):
        keys = [keys] if isinstance(keys, str) else keys
        return memory_splits.with_split(df, keys, time=time, label=label, seed=seed, split_column=split_column)
    if time is None:
        return random_split(df, keys, stratify=label, seed=seed, split_column=split_column)
    validation, test = _newest(df, time)
    return time_split(df, time, validation=validation, test=test, split_column=split_column)


@on_running_session
def random_split(
    df: DataFrame,
    keys: str | Sequence[str],
    *,
    shares: Mapping[str, float] | None = None,
    stratify: str | None = None,
    seed: int = 0,
    split_column: str = SPLIT_COLUMN,
) -> DataFrame:
    """Add a random split by a hash of ``keys``.

    Rows with equal keys share a split, whatever their order, partition and number: with the customer as the key, no
    customer is both learnt from and judged on. A growing table keeps the splits of its earlier rows.

    Args:
        df: The table.
        keys: Columns to hash, as text; a null counts as a value.
        shares: Share of each split; by default 80% training, 10% validation, 10% test rows.
        stratify: Column whose rare values, of up to 1,000 rows each, are divided exactly by the shares. Their rows
            may change their split when the table grows. A column with more than 100 rare values is not stratified.
        seed: Another seed makes another split.
        split_column: Name of the column to add.

    Raises:
        SplitError: A key column is absent, or the shares are invalid.
    """
    _check_new_column(df, split_column)
    keys = [keys] if isinstance(keys, str) else list(keys)
    missing = [key for key in keys if key not in df.columns]
    if missing or not keys:
        hint = meant(missing[0], df.columns) if missing else ""
        raise SplitError(f"key columns {missing or keys} cannot be used; choose from the table's {df.columns}{hint}")
    shares = dict(shares or SHARES)
    unknown = sorted(set(shares) - set(SPLITS))
    if unknown:
        raise SplitError(f"split {unknown} is unknown{meant(unknown[0], SPLITS)}; use {list(SPLITS)}")
    if not all(0 <= share <= 1 for share in shares.values()) or not math.isclose(sum(shares.values()), 1):
        raise SplitError(f"shares {shares} are not from 0 to 1 with a sum of 1; change them so that they are")
    fraction = key_fraction(keys, seed)
    train = shares.get(TRAIN, 0.0)
    held_back = train + shares.get(VALIDATION, 0.0)
    last = TEST if shares.get(TEST) else VALIDATION if shares.get(VALIDATION) else TRAIN
    bounds = F.lit(train), F.lit(held_back)
    if stratify is not None:
        bounds = _bounds_by_value(df, stratify, fraction, train, held_back)
    split = F.when(fraction < bounds[0], TRAIN).when(fraction < bounds[1], VALIDATION).otherwise(last)
    return df.withColumn(split_column, split)


def _bounds_by_value(
    df: DataFrame, column: str, fraction: Column, train: float, held_back: float
) -> tuple[Column, Column]:
    """Return the fractions below which a row is for training, and for training or validation, by rare value."""
    value = quoted(column)
    bounds = F.lit(train), F.lit(held_back)
    rare = _rare_values(df, column)
    if not rare:
        return bounds
    rows = (
        df.where(value.isin(rare)).groupBy(value.alias("value")).agg(F.sort_array(F.collect_list(fraction)).alias("at"))
    )
    for row in rows.collect():
        at = bounds_of_rare_value(row["at"], train, held_back)
        is_value = value == F.lit(row["value"])
        bounds = F.when(is_value, at[0]).otherwise(bounds[0]), F.when(is_value, at[1]).otherwise(bounds[1])
    return bounds


def _rare_values(df: DataFrame, column: str) -> list[Any]:
    """Return the values of a column that few rows have; none if they are many, or no plain values."""
    require_label(df.columns, column)
    kind = df.schema[column].dataType
    # pandas has 0.0 and 1.0 where a column of whole numbers once had a gap.
    if not isinstance(kind, StringType | NumericType | BooleanType):
        return []
    value = quoted(column)
    is_value = value.isNotNull() & ~F.isnan(value) if isinstance(kind, FractionalType) else value.isNotNull()
    counted = df.where(is_value).groupBy(value.alias("value")).agg(F.count(F.lit(1)).alias("rows"))
    rare = counted.where(F.col("rows") <= RARE_ROWS).limit(MOST_RARE_VALUES + 1).collect()
    return [row["value"] for row in rare] if len(rare) <= MOST_RARE_VALUES else []


def _newest(df: DataFrame, column: str) -> tuple[Any, Any]:
    """Return the first moments of the validation and of the test rows, by which the shares are nearly met."""
    require_column(df.columns, column)
    time = quoted(column)
    at = list(BOUNDS)
    if isinstance(df.schema[column].dataType, StringType):  # Only as moments do they have percentiles.
        moment = F.try_to_timestamp(time)
        bounds: Any = df.agg(
            F.percentile_approx(moment, at, _ACCURACY).alias("at"), F.min(moment).alias("oldest"), *_no_moments(time)
        ).first()
        _refuse_no_moments(column, bounds)
        found: tuple[Any, ...] = ()
        if bounds["at"]:
            around = _text_around(df, column, [F.lit(bound) for bound in bounds["at"]])
            found = tuple(around["first"])
            _check_text_order(column, around, found)
    else:
        bounds = df.agg(F.percentile_approx(time, at, _ACCURACY).alias("at"), F.min(time).alias("oldest")).first()
        found = tuple(bounds["at"] or ())
    require_apart(column, bounds["oldest"], bounds["at"] or ())
    return found[0], found[1]


def _text_around(df: DataFrame, column: str, bounds: Sequence[Column]) -> Any:
    """Return the ``last`` text of the moments before each bound, and the ``first`` of the others; ``bounds`` as given.

    They are the last and first as text, which rows are compared as.
    """
    time = quoted(column)
    is_before = [F.try_to_timestamp(time) < bound for bound in bounds]
    last = [F.max(F.when(before, time)) for before in is_before]
    first = [F.min(F.when(~before, time)) for before in is_before]
    measures = {"bounds": F.array(*bounds), "last": F.array(*last), "first": F.array(*first)}
    return df.agg(*(measure.alias(name) for name, measure in measures.items()), *_no_moments(time)).first()


def _check_text_order(column: str, around: Any, bounds: Sequence[str]) -> None:
    """Check that a column's texts compare with each bound as their moments do.

    Raises:
        SplitError: It is not, or some text is not a moment.
    """
    if None in around["bounds"]:  # Bounds that are not moments, such as `week-07`, can be compared as text only.
        return
    _refuse_no_moments(column, around)
    for bound, last, first in zip(bounds, around["last"], around["first"], strict=True):
        is_early, is_late = last is not None and last >= bound, first is not None and first < bound
        if is_early or is_late:
            text, place = (last, "before") if is_early else (first, "not before")
            raise SplitError(
                f"time column '{column}' is text that does not sort by time: '{text}' is {place} '{bound}' in time, "
                f"but not as text; cast the column to timestamp"
            )


def _no_moments(time: Column) -> list[Column]:
    """Return the number of texts that are not moments, and one of them."""
    is_none = time.isNotNull() & F.try_to_timestamp(time).isNull()
    return [F.count_if(is_none).alias("no_moments"), F.min(F.when(is_none, time)).alias("such_as")]


def _refuse_no_moments(column: str, found: Any) -> None:
    if found["no_moments"]:
        raise SplitError(
            f"time column '{column}' has text that is not a timestamp in {found['no_moments']:,} rows, such as "
            f"'{found['such_as']}'; cast the column to timestamp by its format, or filter such rows out"
        )


def key_fraction(keys: Sequence[str], seed: int = 0) -> Column:
    """Return a number in [0, 1) for each row, evenly distributed, that depends only on its keys and the seed."""
    # As text, so that an id hashes alike as int or bigint; a null must not be lost among other keys.
    parts = [F.coalesce(F.concat(F.lit("="), quoted(key).cast("string")), F.lit("")) for key in keys]
    hashed = F.xxhash64(F.lit(seed), *parts)
    return F.shiftrightunsigned(hashed, 64 - HASH_BITS).cast("double") / F.lit(2.0**HASH_BITS)


def _check_new_column(df: DataFrame, split_column: str) -> None:
    if split_column in df.columns:
        raise SplitError(f"the table has a column '{split_column}' already; drop it, or give another split_column")


def _earlier(start: Column, gap: timedelta | float, kind: DataType, column: str) -> Column:
    if isinstance(kind, NumericType):
        if isinstance(gap, timedelta):
            raise SplitError(f"gap {gap} is a time, but column '{column}' holds numbers; give it in their unit")
        return start - F.lit(gap)
    if not isinstance(gap, timedelta) or isinstance(kind, StringType):
        raise SplitError(
            f"gap {gap!r} does not fit column '{column}' of type {kind.simpleString()}; use a timedelta with a date "
            f"or timestamp, or a number with a number"
        )
    if isinstance(kind, DateType):
        return F.date_sub(start, math.ceil(gap / timedelta(days=1)))
    return start - F.lit(gap)
