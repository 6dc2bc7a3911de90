"""ORC files: each is read by the rule of its writer, and times without a zone as wall clocks, as in Parquet files.

Spark takes the times of a file for those of its JVM's zone, whatever the session's zone and the file's are.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from operator import or_
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.orc
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import ArrayType, DataType, TimestampType

from mirrorspark.data_pipelines.features import quoted
from mirrorspark.data_pipelines.json_tables import Load
from mirrorspark.data_pipelines.orc_footers import UTC, OrcError, OrcFooter, known_zone, read_footer
from mirrorspark.spark_session import task_zone, versions
from mirrorspark.storage import StoragePath

_FILES_AT_A_TIME = 16
_EPOCH = "1970-01-01"


@dataclass(frozen=True)
class _Clock:
    """The way in which the times without a zone of some files are read.

    Attributes:
        columns: Those columns, with their types.
        moments: Those of them that are moments; the others are wall clocks.
        zone: The zone of the clock that the files show; None for that of Spark's JVM.
    """

    columns: tuple[tuple[str, pa.DataType], ...]
    moments: frozenset[str]
    zone: str | None


def read_footers(paths: Sequence[StoragePath]) -> dict[StoragePath, OrcFooter]:
    """Return the footers of the files of a table.

    Raises:
        OrcError: A file is not an ORC file.
    """
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        return dict(zip(paths, pool.map(read_footer, paths), strict=True))


def orc_frames(
    spark: SparkSession, paths: Sequence[StoragePath], load: Load, footers: Mapping[StoragePath, OrcFooter]
) -> dict[StoragePath, DataFrame]:
    """Return the rows of the files of each schema, by the first of them: Spark takes one file's columns for all.

    Args:
        spark: The session.
        paths: The files.
        load: Reads some of them.
        footers: The footers of all files of the table.

    Raises:
        OrcError: A file has times that Spark cannot read in the zone of its JVM.
    """
    moments = _moments(list(footers.values()))
    alike: dict[tuple[str, _Clock], list[StoragePath]] = defaultdict(list)
    for path in paths:
        footer = footers[path]
        alike[str(footer.columns), _clock(footer, moments)].append(path)
    zone = task_zone(spark) if any(clock.columns for _, clock in alike) else UTC
    zone = known_zone(zone) or zone
    found = {}
    for (_, clock), own in alike.items():
        frame = load("orc", own)
        _require_clear_times(frame, own, clock, zone)
        found[own[0]] = _with_times(frame, clock, zone)
    return found


def _moments(footers: Sequence[OrcFooter]) -> frozenset[str]:
    """Return the columns that are moments in the table: those of Spark's files, if all other files have a zone.

    In the other files their moments are those at which the clock of the writer showed the times.
    """
    of_spark = {name for footer in footers if footer.is_of_spark for name in footer.times}
    unknown = {name for footer in footers if not footer.is_of_spark and footer.zone is None for name in footer.times}
    return frozenset(of_spark - unknown)


def _clock(footer: OrcFooter, moments: frozenset[str]) -> _Clock:
    columns = footer.times
    own = frozenset(columns) if footer.is_of_spark else moments & set(columns)
    return _Clock(tuple(columns.items()), own, footer.zone if own else None)


def _with_times(frame: DataFrame, clock: _Clock, zone: str) -> DataFrame:
    """Return the rows with moments and wall clocks in the place of the times that Spark reads in ``zone``."""
    of_writer = clock.zone or zone

    def as_wall_clock(moment: Column) -> Column:
        return _wall_clock(moment, zone)

    def as_moment(moment: Column) -> Column:
        return _moment(_wall_clock(moment, zone), of_writer)

    read: dict[str, Column] = {}
    for name, kind in _times(frame, clock).items():
        if name not in clock.moments:
            read[name] = _each(quoted(name), kind, as_wall_clock)
        elif of_writer != zone:
            read[name] = _each(quoted(name), kind, as_moment)
    return frame.select(*[read.get(name, quoted(name)).alias(name) for name in frame.columns]) if read else frame


def _times(frame: DataFrame, clock: _Clock) -> dict[str, pa.DataType]:
    """Return the columns of ``frame`` that are times without a zone: a folder's value may have the name of one."""
    moments = {field.name for field in frame.schema if _is_moment(field.dataType)}
    return {name: kind for name, kind in clock.columns if name in moments}


def _is_moment(kind: DataType) -> bool:
    return _is_moment(kind.elementType) if isinstance(kind, ArrayType) else isinstance(kind, TimestampType)


def _each(times: Column, kind: pa.DataType, change: Callable[[Column], Column]) -> Column:
    """Return times, or lists of them, with each one changed."""
    if pa.types.is_list(kind):
        return F.transform(times, lambda element: _each(element, kind.value_type, change))
    return change(times)


def _any(times: Column, kind: pa.DataType, holds: Callable[[Column], Column]) -> Column:
    """Return whether a condition holds for a time, or for one in a list of them."""
    if pa.types.is_list(kind):
        found = F.exists(times, lambda element: _any(element, kind.value_type, holds))
    else:
        found = holds(times)
    return F.coalesce(found, F.lit(False))


def _wall_clock(moment: Column, zone: str) -> Column:
    """Return the time that clocks in ``zone`` show."""
    # By way of UTC and not of the session's zone, where an hour may be twice.
    in_utc = versions.timestamp_add("MICROSECOND", F.unix_micros(moment), F.lit(_EPOCH).cast("timestamp_ntz"))
    return F.convert_timezone(F.lit(UTC), F.lit(zone), in_utc)


def _moment(wall_clock: Column, zone: str) -> Column:
    """Return the moment at which clocks in ``zone`` show a time."""
    in_utc = F.convert_timezone(F.lit(zone), F.lit(UTC), wall_clock)
    return F.timestamp_micros(versions.microseconds_between(F.lit(_EPOCH).cast("timestamp_ntz"), in_utc))


def _is_near_change(wall_clock: Column, zone: str) -> Column:
    """Return whether clocks in ``zone`` change within a day of a time."""
    before, after = (
        F.convert_timezone(F.lit(zone), F.lit(UTC), versions.timestamp_add("DAY", F.lit(days), wall_clock))
        for days in (-1, 1)
    )
    return after != versions.timestamp_add("DAY", F.lit(2), before)


def _require_clear_times(frame: DataFrame, files: Sequence[StoragePath], clock: _Clock, zone: str) -> None:
    """Refuse files with times that become others in the zone of Spark's JVM.

    Clocks there leave out an hour in spring, and Spark takes a time in it for another. Spark looks for times near a
    change of the clocks, and pyarrow, which reads times as they are, looks at the files that have some.
    """
    times = _times(frame, clock)
    moments = {name: kind for name, kind in times.items() if name in clock.moments}
    if clock.zone in (None, zone):  # Spark reads its moments as they are.
        times, moments = {name: kind for name, kind in times.items() if name not in moments}, {}
    near = [*_near_changes(times, zone, zone), *_near_changes(moments, zone, clock.zone or UTC)]
    if not near:
        return
    rows = frame.where(reduce(or_, near)).select(F.col("_metadata.file_name")).distinct().collect()
    # Spark quotes some characters of a name.
    names = {name for row in rows for name in (row.file_name, unquote(row.file_name))}
    suspects = [path for path in files if path.name in names] or (files if names else [])
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        for refusal in pool.map(lambda path: _refusal(path, times, moments, zone, clock.zone), suspects):
            if refusal is not None:
                raise OrcError(refusal)


def _near_changes(columns: Mapping[str, pa.DataType], zone: str, changing: str) -> list[Column]:
    """Return for each column, read in ``zone``, whether it has a time within a day of a change of clocks in another."""

    def is_near(moment: Column) -> Column:
        return _is_near_change(_wall_clock(moment, zone), changing)

    return [_any(quoted(name), kind, is_near) for name, kind in columns.items()] if changing != UTC else []


def _refusal(
    path: StoragePath, times: Collection[str], moments: Collection[str], zone: str, zone_of_writer: str | None
) -> str | None:
    """Return the reason why a file cannot be read, as the first time that Spark would change shows it, or None."""
    advice = "before Spark starts, set spark.driver.extraJavaOptions and spark.executor.extraJavaOptions to"
    with path.open_read() as source:
        file = pyarrow.orc.ORCFile(source)
        for stripe in range(file.nstripes):
            rows = file.read_stripe(stripe, columns=list(times))
            for name in times:
                shown = _flat(rows.column(name))
                skipped = _first_unlike(shown, zone, nonexistent=("earliest", "latest"))
                if skipped is not None:
                    return (
                        f"column '{name}' of {path} has {skipped}, a time that clocks leave out in {zone}, the zone of "
                        f"Spark's JVM, and Spark takes for another; {advice} -Duser.timezone=UTC, or write Parquet"
                    )
                if name not in moments or zone_of_writer is None:
                    continue
                twice = _first_unlike(shown, zone_of_writer, ambiguous=("earliest", "latest"))
                if twice is not None:
                    return (
                        f"column '{name}' of {path} has {twice}, a time that clocks show twice in {zone_of_writer}, "
                        f"the zone of its writer; {advice} -Duser.timezone={zone_of_writer}, or write Parquet"
                    )
    return None


def _flat(column: pa.Array) -> pa.TimestampArray:
    while pa.types.is_list(column.type):
        column = column.flatten()
    return column


def _first_unlike(times: pa.TimestampArray, zone: str, **choices: tuple[str, str]) -> str | None:
    """Return the first of the times that two ways to read it in ``zone`` take for different moments."""
    ((option, ways),) = choices.items()
    try:
        moments = [
            pc.assume_timezone(times, zone, **{"ambiguous": "earliest", "nonexistent": "earliest", option: way})
            for way in ways
        ]
    except pa.ArrowInvalid:  # a zone without changes, such as GMT+01:00
        return None
    unlike = times.filter(pc.not_equal(*moments))
    return str(unlike[0]) if len(unlike) else None
