"""Detection of features from the future: a feature must be known before its row's label window begins."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import ArrayType, DataType, DateType, NumericType, TimestampNTZType, TimestampType

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.spark_session import on_running_session

_SHOWN_ROWS = 3


class LeakageError(ClearError, ValueError):
    """A feature that is not older than its row's label; the message names it, the number of rows and the remedy."""


@dataclass(frozen=True)
class Leak:
    """A time column whose features are known too late.

    Attributes:
        column: The feature's time column.
        rows: The number of rows where it is not before the label's time.
        checked: The number of rows with both times.
        examples: Some of the rows as text: keys, feature time, label time.
    """

    column: str
    rows: int
    checked: int
    examples: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """A sentence that describes the leak."""
        return (
            f"'{self.column}' is not before the label's window in {self.rows:,} of {self.checked:,} rows "
            f"(for example {'; '.join(self.examples)})"
        )


@on_running_session
def check_leakage(
    df: DataFrame, *, feature_time: str | Sequence[str], label_time: str, keys: str | Sequence[str] = ()
) -> None:
    """Raise if any feature is not strictly older than the beginning of its row's label window.

    Args:
        df: The table, with the times still in it.
        feature_time: Columns with the time when a feature was known: times, or for a sequence lists of times, which
            must all be older. A null or an empty list means no feature.
        label_time: Column with the beginning of the label's window.
        keys: Columns that identify rows in the message.

    Raises:
        LeakageError: A feature is not older, or a row with features has no label time.
        ValueError: A column is absent or does not hold times, or not of the same kind as the label's.
    """
    leaks = find_leaks(df, feature_time=feature_time, label_time=label_time, keys=keys)
    if leaks:
        raise LeakageError(
            f"features from the future: {'; '.join(leak.sentence for leak in leaks)}; join each feature as of its "
            f"row's '{label_time}' (take only what is older), or take it out of the spec"
        )


def find_leaks(
    df: DataFrame, *, feature_time: str | Sequence[str], label_time: str, keys: str | Sequence[str] = ()
) -> tuple[Leak, ...]:
    """Return the leaks for which :func:`check_leakage` raises, in one pass over the table.

    Raises:
        ValueError: A column is absent or does not hold times, or not of the same kind as the label's.
    """
    columns = [feature_time] if isinstance(feature_time, str) else list(feature_time)
    named = [keys] if isinstance(keys, str) else list(keys)
    _check_columns(df, columns, named, label_time)
    label = quoted(label_time)
    measures: list[Column] = []
    for number, column in enumerate(columns):
        newest = _newest(df.schema[column].dataType, column)
        # Without a label time, nothing proves that the feature is older.
        is_late = newest.isNotNull() & F.coalesce(newest >= label, F.lit(True))
        example = F.when(is_late, _as_example(named, column, newest, label_time, label))
        measures += [
            F.count_if(is_late).alias(f"late_{number}"),
            F.count(newest).alias(f"checked_{number}"),
            # The extremes in text order: the same rows each time, without a list of all of them.
            F.min(example).alias(f"first_{number}"),
            F.max(example).alias(f"last_{number}"),
            F.max_by(example, F.when(is_late, F.struct(newest, example))).alias(f"newest_{number}"),
        ]
    counted = df.agg(*measures).first()
    assert counted is not None  # noqa: S101 - an aggregate without groups has one row
    leaks = []
    for number, column in enumerate(columns):
        if counted[f"late_{number}"]:
            shown = dict.fromkeys(counted[f"{which}_{number}"] for which in ("first", "newest", "last"))
            examples = tuple(text for text in shown if text is not None)[:_SHOWN_ROWS]
            leaks.append(Leak(column, counted[f"late_{number}"], counted[f"checked_{number}"], examples))
    return tuple(leaks)


def _check_columns(df: DataFrame, columns: Sequence[str], keys: Sequence[str], label_time: str) -> None:
    missing = [name for name in (*columns, *keys, label_time) if name not in df.columns]
    if missing or not columns:
        raise ValueError(f"columns {missing or columns} cannot be checked; choose from the table's {df.columns}")
    wanted = _time_family(df.schema[label_time].dataType)
    if wanted is None or isinstance(df.schema[label_time].dataType, ArrayType):
        raise ValueError(
            f"label_time '{label_time}' is {df.schema[label_time].dataType.simpleString()}; cast it to timestamp"
        )
    for column in columns:
        kind = df.schema[column].dataType
        if _time_family(kind) != wanted:
            raise ValueError(
                f"feature_time '{column}' is {kind.simpleString()} and label_time '{label_time}' is "
                f"{df.schema[label_time].dataType.simpleString()}; cast both to timestamp"
            )


def _time_family(kind: DataType) -> str | None:
    """Return the family of comparable types: times or numbers; None for text, whose order means nothing."""
    if isinstance(kind, ArrayType):
        return _time_family(kind.elementType)
    if isinstance(kind, TimestampType | TimestampNTZType | DateType):
        return "time"
    return "number" if isinstance(kind, NumericType) else None


def _newest(kind: DataType, column: str) -> Column:
    time = quoted(column)
    return F.array_max(time) if isinstance(kind, ArrayType) else time


def _as_example(keys: Sequence[str], column: str, newest: Column, label_time: str, label: Column) -> Column:
    shown = [(key, quoted(key)) for key in keys] + [(column, newest), (label_time, label)]
    parts = [F.concat(F.lit(f"{name} = "), F.coalesce(value.cast("string"), F.lit("null"))) for name, value in shown]
    return F.concat_ws(", ", *parts)
