"""ORC files: those of one schema are read together, and times without a zone as wall clocks, as in Parquet files."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.orc
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import ArrayType, DataType, TimestampType

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.data_pipelines.json_tables import Load
from mirrorspark.spark_session import task_zone
from mirrorspark.storage import StoragePath

_FOOTERS_AT_A_TIME = 16
_SPARK_VERSION = b"org.apache.spark.version"
_EPOCH = "1970-01-01"


class OrcError(ClearError, ValueError):
    """A file that is not ORC; the message names it."""


@dataclass(frozen=True)
class _Footer:
    """The columns of a file, and whether Spark has written it.

    Spark stores moments as ORC's ``timestamp``, which has no zone, and reads them as moments.
    """

    columns: pa.Schema
    is_of_spark: bool


def orc_frames(spark: SparkSession, paths: Sequence[StoragePath], load: Load) -> dict[StoragePath, DataFrame]:
    """Return the rows of the files of each schema, by the first of them: Spark takes one file's columns for all.

    Args:
        spark: The session.
        paths: The files.
        load: Reads some of them.

    Raises:
        OrcError: A file is not an ORC file.
    """
    by_footer: dict[tuple[str, bool], list[StoragePath]] = defaultdict(list)
    wall_clocks: dict[tuple[str, bool], dict[str, pa.DataType]] = {}
    with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as pool:
        for path, footer in zip(paths, pool.map(_footer, paths), strict=True):
            key = str(footer.columns), footer.is_of_spark
            by_footer[key].append(path)
            wall_clocks[key] = {} if footer.is_of_spark else _without_zone(footer.columns)
    # Spark takes such a time for one of the zone of its JVM, whatever the session's is.
    zone = task_zone(spark) if any(wall_clocks.values()) else "UTC"
    return {own[0]: _with_wall_clocks(load("orc", own), wall_clocks[key], zone) for key, own in by_footer.items()}


def _footer(path: StoragePath) -> _Footer:
    try:
        with path.open_read() as source:
            file = pyarrow.orc.ORCFile(source)
            return _Footer(file.schema.remove_metadata(), _SPARK_VERSION in (file.metadata or {}))
    except (pa.ArrowException, OSError) as error:
        raise OrcError(f"{path} is not an ORC file: {error}; leave it out") from error


def _without_zone(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Return the columns of times without a zone, and of lists of them, with their types."""
    return {field.name: field.type for field in schema if _has_no_zone(field.type)}


def _has_no_zone(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _has_no_zone(kind.value_type)
    return pa.types.is_timestamp(kind) and kind.tz is None


def _with_wall_clocks(frame: DataFrame, columns: dict[str, pa.DataType], zone: str) -> DataFrame:
    # A folder's value may have the name of a column of the file.
    moments = {field.name for field in frame.schema if field.name in columns and _is_moment(field.dataType)}
    if not moments:
        return frame
    return frame.select(
        *[
            (_wall_clock(quoted(name), columns[name], zone) if name in moments else quoted(name)).alias(name)
            for name in frame.columns
        ]
    )


def _is_moment(kind: DataType) -> bool:
    return _is_moment(kind.elementType) if isinstance(kind, ArrayType) else isinstance(kind, TimestampType)


def _wall_clock(moment: Column, kind: pa.DataType, zone: str) -> Column:
    """Return the times that clocks in ``zone`` show."""
    if pa.types.is_list(kind):
        return F.transform(moment, lambda element: _wall_clock(element, kind.value_type, zone))
    # By way of UTC and not of the session's zone, where an hour may be twice.
    in_utc = F.timestamp_add("MICROSECOND", F.unix_micros(moment), F.lit(_EPOCH).cast("timestamp_ntz"))
    return F.convert_timezone(F.lit("UTC"), F.lit(zone), in_utc)
