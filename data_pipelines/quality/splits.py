"""Splits: the ``split`` column with which conversion divides rows into training, validation and test."""

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import DataType, DateType, NumericType, StringType, TimestampNTZType, TimestampType

from mirrorspark.data_pipelines.dataset.manifest import SPLITS

SPLIT_COLUMN = "split"

Moment = date | datetime | str | int | float

_TRAIN, _VALIDATION, _TEST = SPLITS
# Doubles hold whole numbers up to 2^53, so a hash of 53 bits becomes a number in [0, 1) without rounding.
_HASH_BITS = 53


class SplitError(ValueError):
    """A split that cannot be made; the message gives the wrong value and the remedy."""


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
    rows. A row without a time fails the job that reads it.

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
        SplitError: The column is absent or has no order in time, ``test`` is not after ``validation``, or the gap
            does not fit the column.
    """
    _check_new_column(df, split_column)
    if column not in df.columns:
        raise SplitError(f"time column '{column}' is missing; the table has {df.columns}: choose one of them")
    kind = df.schema[column].dataType
    if not isinstance(kind, TimestampType | TimestampNTZType | DateType | NumericType | StringType):
        raise SplitError(f"column '{column}' of type {kind.simpleString()} has no order in time; cast it to timestamp")
    moments = df.sparkSession.range(1).select(
        *(F.lit(moment).try_cast(kind).alias(name) for name, moment in ((_VALIDATION, validation), (_TEST, test)))
    )
    first = moments.first()
    assert first is not None  # noqa: S101 - range(1) has a row
    for name, moment in ((_VALIDATION, validation), (_TEST, test)):
        if first[name] is None:
            raise SplitError(f"{name} {moment!r} is no {kind.simpleString()}, which column '{column}' is; write it so")
    if not first[_VALIDATION] < first[_TEST]:
        raise SplitError(f"test {test!r} is not after validation {validation!r}; the test rows are the newest")
    time = F.col(f"`{column}`")
    starts = {name: F.lit(moment).cast(kind) for name, moment in ((_VALIDATION, validation), (_TEST, test))}
    split = (
        F.when(
            time.isNull(), F.raise_error(F.lit(f"column '{column}' is null; a split by time needs every row's time"))
        )
        .when(time < starts[_VALIDATION], _TRAIN)
        .when(time < starts[_TEST], _VALIDATION)
        .otherwise(_TEST)
    )
    result = df.withColumn(split_column, split)
    if gap is None:
        return result
    for start in starts.values():
        # A row without a time stays, so that the split above fails instead of losing it here.
        result = result.where(time.isNull() | (time < _earlier(start, gap, kind, column)) | (time >= start))
    return result


def random_split(
    df: DataFrame,
    keys: str | Sequence[str],
    *,
    shares: Mapping[str, float] | None = None,
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
        seed: Another seed makes another split.
        split_column: Name of the column to add.

    Raises:
        SplitError: A key column is absent, or the shares are invalid.
    """
    _check_new_column(df, split_column)
    keys = [keys] if isinstance(keys, str) else list(keys)
    missing = [key for key in keys if key not in df.columns]
    if missing or not keys:
        raise SplitError(f"key columns {missing or keys} cannot be used; choose from the table's {df.columns}")
    shares = dict(shares or {_TRAIN: 0.8, _VALIDATION: 0.1, _TEST: 0.1})
    unknown = sorted(set(shares) - set(SPLITS))
    if unknown:
        raise SplitError(f"split {unknown} is unknown; use {list(SPLITS)}")
    if not all(0 <= share <= 1 for share in shares.values()) or not math.isclose(sum(shares.values()), 1):
        raise SplitError(f"shares {shares} are not from 0 to 1 with a sum of 1; change them so that they are")
    fraction = key_fraction(keys, seed)
    train = shares.get(_TRAIN, 0.0)
    held_back = train + shares.get(_VALIDATION, 0.0)
    last = _TEST if shares.get(_TEST) else _VALIDATION if shares.get(_VALIDATION) else _TRAIN
    split = F.when(fraction < train, _TRAIN).when(fraction < held_back, _VALIDATION).otherwise(last)
    return df.withColumn(split_column, split)


def key_fraction(keys: Sequence[str], seed: int = 0) -> Column:
    """Return a number in [0, 1) for each row, evenly distributed, that depends only on its keys and the seed."""
    # As text, so that an id hashes alike as int or bigint; a null must not be lost among other keys.
    parts = [F.coalesce(F.concat(F.lit("="), F.col(f"`{key}`").cast("string")), F.lit("")) for key in keys]
    hashed = F.xxhash64(F.lit(seed), *parts)
    return F.shiftrightunsigned(hashed, 64 - _HASH_BITS).cast("double") / F.lit(2.0**_HASH_BITS)


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
