"""Tables in ORC files: columns that differ, and times without a zone by the rule of each file's writer."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.orc
import pytest

from mirrorspark.data_pipelines import TableError, read_table

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NEW_YORK, BERLIN = "America/New_York", "Europe/Berlin"


@contextmanager
def clocks_in(spark: "SparkSession", zone: str) -> Iterator[None]:
    """Let Spark's JVM be in a time zone."""
    zones = spark.sparkContext._jvm.java.util.TimeZone
    own = zones.getDefault()
    zones.setDefault(zones.getTimeZone(zone))
    try:
        yield
    finally:
        zones.setDefault(own)


def write_by_spark(spark: "SparkSession", path: Path, zone: str, *moments: datetime) -> None:
    with clocks_in(spark, zone):
        rows = pa.table({"t": pa.array(moments), "many": [[moment] for moment in moments]})
        spark.createDataFrame(rows).coalesce(1).write.orc(str(path), compression="lz4")


def write_by_arrow(path: Path, *times: datetime) -> None:
    table = pa.table({"t": pa.array(times, pa.timestamp("us")), "many": [[time] for time in times]})
    pyarrow.orc.write_table(table, path, compression="uncompressed")


def test_orc_files_that_differ_are_one_table(spark: "SparkSession", tmp_path: Path) -> None:
    """Also without suffixes, as Hive writes them."""
    for number, columns in enumerate(({"z": [1]}, {"z": [2.5], "more": ["x"]}, {"z": [3]})):
        pyarrow.orc.write_table(pa.table({"id": [number], **columns}), tmp_path / f"00000{number}_0")
    found = read_table(spark, tmp_path).orderBy("id").select("z", "more").collect()
    assert [tuple(row) for row in found] == [(1.0, None), (2.5, "x"), (3.0, None)]


def test_times_without_a_zone_are_wall_clocks_in_every_zone(spark: "SparkSession", tmp_path: Path) -> None:
    """#52: to Spark they are times of its JVM's zone. Its own files have moments in them."""
    noon = datetime(2024, 1, 15, 12, 0, 0, 123456)
    naive = pa.array([noon, datetime(2024, 11, 3, 1, 30), None], pa.timestamp("us"))
    columns = {"naive": naive, "moment": naive.cast(pa.timestamp("us", "UTC")), "many": [[noon], [], None]}
    pyarrow.orc.write_table(pa.table(columns), tmp_path / "t.orc")
    with clocks_in(spark, NEW_YORK):
        read_table(spark, tmp_path / "t.orc").select("naive", "moment").write.orc(str(tmp_path / "spark"))
        found = read_table(spark, tmp_path / "t.orc")
        assert found.toArrow().to_pydict() == pa.table(columns).to_pydict()
        assert dict(found.dtypes) == {"naive": "timestamp_ntz", "moment": "timestamp", "many": "array<timestamp_ntz>"}
        again = read_table(spark, tmp_path / "spark").toArrow().to_pydict()
        assert again == {name: pa.array(columns[name]).to_pylist() for name in ("naive", "moment")}


def test_a_time_that_clocks_of_the_jvm_leave_out_is_refused_and_its_neighbours_are_read(
    spark: "SparkSession", tmp_path: Path
) -> None:
    """#52: Spark takes 2:30 of that night for 1:30."""
    before, skipped = datetime(2024, 3, 10, 1, 30), datetime(2024, 3, 10, 2, 30)
    for name, times in (("before", [before]), ("a [%20]; skipped", [before, skipped])):
        write_by_arrow(tmp_path / f"{name}.orc", *times)
    message = (
        r"column 't' of .*skipped\.orc has 2024-03-10 02:30:00, a time that clocks leave out in America/New_York, the "
        r"zone of Spark's JVM, .* -Duser\.timezone=UTC, or write Parquet"
    )
    with clocks_in(spark, NEW_YORK):
        assert read_table(spark, tmp_path / "before.orc").toArrow()["t"].to_pylist() == [before]
        with pytest.raises(TableError, match=message):
            read_table(spark, tmp_path)
    for zone in ("UTC", BERLIN):
        with clocks_in(spark, zone):
            assert read_table(spark, tmp_path / "a [%20]; skipped.orc").toArrow()["t"].to_pylist() == [before, skipped]


def test_moments_of_spark_are_the_same_in_every_zone_or_refused(spark: "SparkSession", tmp_path: Path) -> None:
    """#52: Spark alone shifts the moments of a file by the difference of its JVM's zone and that of the writer's."""
    winter, summer = datetime(2024, 1, 15, 12, tzinfo=UTC), datetime(2024, 7, 1, 5, 30, 0, 7, tzinfo=UTC)
    write_by_spark(spark, tmp_path / "days", NEW_YORK, winter, summer)
    # Clocks in New York show half past one at both.
    twice = datetime(2024, 11, 3, 5, 30, tzinfo=UTC), datetime(2024, 11, 3, 6, 30, tzinfo=UTC)
    write_by_spark(spark, tmp_path / "night", NEW_YORK, *twice)
    with clocks_in(spark, NEW_YORK):
        assert read_table(spark, tmp_path / "night").toArrow()["t"].to_pylist() == [*twice]
    with clocks_in(spark, BERLIN):
        found = read_table(spark, tmp_path / "days").toArrow().to_pydict()
        assert found == {"t": [winter, summer], "many": [[winter], [summer]]}
        with pytest.raises(TableError, match=r"show twice in America/New_York, the zone of its writer; .*=America/New"):
            read_table(spark, tmp_path / "night")


def test_files_of_spark_and_of_others_are_one_table_of_moments(spark: "SparkSession", tmp_path: Path) -> None:
    """#52: each by the zone of its writer, which is UTC for pyarrow's."""
    moment = datetime(2024, 1, 15, 12, tzinfo=UTC)
    write_by_spark(spark, tmp_path / "spark", NEW_YORK, moment)
    write_by_arrow(tmp_path / "arrow.orc", datetime(2024, 7, 1, 1, 30))
    with clocks_in(spark, BERLIN):
        found = read_table(spark, [tmp_path / "spark", tmp_path / "arrow.orc"]).toArrow().to_pydict()
    summer = datetime(2024, 7, 1, 1, 30, tzinfo=UTC)
    assert found == {"t": [moment, summer], "many": [[moment], [summer]]}


def test_a_file_whose_writer_has_an_unknown_zone_is_not_read_with_moments_of_spark(
    spark: "SparkSession", tmp_path: Path
) -> None:
    write_by_spark(spark, tmp_path / "spark", NEW_YORK, datetime(2024, 1, 15, 12, tzinfo=UTC))
    write_by_arrow(tmp_path / "other.orc", datetime(2024, 7, 1, 1, 30))
    written = (tmp_path / "other.orc").read_bytes()
    (tmp_path / "other.orc").write_bytes(written.replace(b"GMT", b"X/Y"))
    with pytest.raises(TableError, match=r"column 't' has types that are not read as one .*timestamp_ntz in .*other"):
        read_table(spark, [tmp_path / "spark", tmp_path / "other.orc"])
