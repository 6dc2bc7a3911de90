"""Faults, by the functions and by the data source: damaged files are named, failed writes leave nothing (T1)."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.spark.tasks import WriteError
from mirrorspark.data_pipelines.spark.tfrecord_source import TFRecordSource
from mirrorspark.data_pipelines.tfrecord.arrow_schema import SchemaError
from mirrorspark.data_pipelines.tfrecord.codecs import CodecError
from mirrorspark.data_pipelines.tfrecord.records import DamagedRecordError
from mirrorspark.data_pipelines.tfrecords import check_tfrecords, read_tfrecords, write_tfrecords
from tests.cluster.conftest import wait_until
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.timeout(600)

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = REPOSITORY / "tests" / "cluster" / "programs"
WAYS = ("functions", "source")
# Both ways share what reads and writes: the second one is tried where there is time.
ONE_WAY = ("functions", pytest.param("source", marks=pytest.mark.full))


@pytest.fixture(scope="module", autouse=True)
def registered(spark: "SparkSession") -> None:
    """Make the format known whichever folder the tests are started in; an installed one Spark finds by itself."""
    spark.dataSource.register(TFRecordSource)


def read(spark: "SparkSession", way: str, path: Path, **options: str) -> "DataFrame":
    """Return the DataFrame of ids below ``path``, by the functions or by the data source."""
    if way == "functions":
        given: dict[str, Any] = {"on_damage": options.get("onDamage", "fail"), "codec": options.get("codec")}
        return read_tfrecords(spark, path, schema="id long", **given)
    return spark.read.format("tfrecord").schema("id long").options(**options).load(str(path))


def write(df: "DataFrame", way: str, path: Path, mode: str) -> None:
    if way == "functions":
        write_tfrecords(df, path, mode=mode)
    else:
        df.write.format("tfrecord").mode(mode).save(str(path))


def ids_in(df: "DataFrame") -> list[int]:
    return sorted(row.id for row in df.collect())


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ten(spark: "SparkSession", tmp_path: Path) -> Path:
    """Return a file of ten records of the same size."""
    result = write_tfrecords(spark.range(0, 10, 1, 1).selectExpr("id", "'text' as t"), tmp_path / "t")
    return tmp_path / "t" / result.files[0]


def record_bytes(file: Path) -> int:
    return file.stat().st_size // 10


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("way", ONE_WAY)
@pytest.mark.parametrize(
    ("at", "problem"),
    [
        (0, "length checksum mismatch"),
        pytest.param(8, "length checksum mismatch", marks=pytest.mark.full),
        (20, "payload checksum mismatch"),
    ],
)
def test_a_flipped_byte_is_told_with_file_record_and_offset_or_skipped(
    spark: "SparkSession", ten: Path, way: str, at: int, problem: str
) -> None:
    offset = 3 * record_bytes(ten)
    flip(ten, offset + at)

    with pytest.raises(
        Exception, match=rf"{ten.name}: {problem} in record 3 at byte {offset} \(.*; .*write the file again"
    ):
        read(spark, way, ten.parent).collect()

    assert ids_in(read(spark, way, ten.parent, onDamage="skip")) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("way", ONE_WAY)
def test_a_truncated_file_is_told_with_file_record_and_offset_or_skipped(
    spark: "SparkSession", ten: Path, way: str
) -> None:
    offset = 9 * record_bytes(ten)
    ten.write_bytes(ten.read_bytes()[:-1])

    with pytest.raises(Exception, match=rf"{ten.name}: truncated payload in record 9 at byte {offset} \(.*; "):
        read(spark, way, ten.parent).collect()

    assert ids_in(read(spark, way, ten.parent, onDamage="skip")) == list(range(9))


@pytest.mark.parametrize("way", ONE_WAY)
@pytest.mark.parametrize("on_damage", ["fail", "skip"])
def test_text_is_told_not_to_be_records(spark: "SparkSession", tmp_path: Path, way: str, on_damage: str) -> None:
    (tmp_path / "table.csv").write_text("id,name\n" + "1,anything\n" * 50, encoding="utf-8")

    with pytest.raises(Exception, match=r"table\.csv: .*(not|check that it is) a TFRecord file") as told:
        read(spark, way, tmp_path, onDamage=on_damage).collect()
    assert "byte" in str(told.value)


@pytest.mark.parametrize("way", ONE_WAY)
def test_a_wrong_codec_is_told(spark: "SparkSession", ten: Path, way: str) -> None:
    with pytest.raises(Exception, match=f"{ten.name}: expected codec gzip, but its content is of codec none; leave"):
        read(spark, way, ten.parent, codec="gzip").collect()


@pytest.mark.parametrize("on_damage", ["fail", "skip"])
def test_a_file_that_cannot_be_read_is_named(spark: "SparkSession", ten: Path, on_damage: str) -> None:
    """It vanishes after it was listed; a read that skips damaged records does not skip what it could not look at."""
    df = read(spark, "functions", ten.parent, onDamage=on_damage)
    ten.unlink()

    with pytest.raises(Exception, match=ten.name):
        df.collect()


def test_inference_tells_damage_as_its_own_error(spark: "SparkSession", ten: Path) -> None:
    flip(ten, 3 * record_bytes(ten) + 20)
    with pytest.raises(DamagedRecordError, match=f"{ten.name}: .* in record 3 at byte {3 * record_bytes(ten)}"):
        read_tfrecords(spark, ten.parent)
    with pytest.raises(CodecError, match=f"{ten.name}: expected codec zlib"):
        read_tfrecords(spark, ten.parent, codec="zlib")


@pytest.mark.full
def test_files_of_other_schemas_are_named(spark: "SparkSession", tmp_path: Path) -> None:
    write_tfrecords(spark.range(3), tmp_path / "t")
    result = write_tfrecords(spark.range(0, 3, 1, 1).selectExpr("string(id) as id"), tmp_path / "t", mode="append")

    with pytest.raises(SchemaError, match=r"feature 'id' is of kind .*\.tfrecord.* and of kind .*\.tfrecord"):
        read_tfrecords(spark, tmp_path / "t")
    with pytest.raises(Exception, match="feature 'id' is of kind"):
        spark.read.format("tfrecord").load(str(tmp_path / "t"))
    for way in WAYS:
        with pytest.raises(Exception, match=r"feature 'id' of record 0.*") as told:
            read(spark, way, tmp_path / "t").collect()
        assert result.files[0] in str(told.value)


def test_skipped_records_are_counted_where_they_are_read(spark: "SparkSession", ten: Path) -> None:
    """No second read: the count is there with the rows."""
    flip(ten, 3 * record_bytes(ten) + 20)
    result = write_tfrecords(spark.range(10, 20, 1, 1).selectExpr("id", "'text' as t"), ten.parent, mode="append")
    flip(ten.parent / result.files[0], 20)
    damaged = spark.sparkContext.accumulator(0)

    df = read_tfrecords(spark, ten.parent, schema="id long", on_damage="skip", damaged=damaged)

    assert damaged.value == 0
    assert len(ids_in(df)) == 18
    assert damaged.value == 2


def test_every_file_is_checked_and_its_problem_told(spark: "SparkSession", ten: Path) -> None:
    flip(ten, 3 * record_bytes(ten) + 20)
    (ten.parent / "a.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    (ten.parent / "b.csv").write_text("1,anything\n" * 50, encoding="utf-8")

    archive, table, records = check_tfrecords(spark, ten.parent)

    assert archive.problem is not None
    assert "the content is zip" in archive.problem
    assert table.problem is not None
    assert "not a TFRecord" in table.problem
    assert (records.records, records.damaged) == (9, 1)
    assert records.problem is not None
    assert f"{ten.name}: payload checksum mismatch in record 3" in records.problem


# --- writing ----------------------------------------------------------------------------------------------------------


def blocked_until(flag: Path) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return a function for ``mapInArrow`` that waits for ``flag`` after most rows, more than a buffer holds."""

    def give(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in batches:
            rows += batch.num_rows
            deadline = time.monotonic() + 240
            while rows > 80_000 and not flag.exists() and time.monotonic() < deadline:
                threading.Event().wait(0.01)
            yield batch

    return give


@pytest.mark.parametrize("way", ONE_WAY)
def test_a_killed_task_leaves_nothing_visible(spark: "SparkSession", tmp_path: Path, way: str) -> None:
    """(T1) The worker that writes is killed in the middle of its file."""
    flag = tmp_path / "flag"
    killed: list[int] = []

    def is_killed() -> bool:
        staged = {str(path) for path in tmp_path.glob(".tfrecord-write-*/**/part-*")}
        for process in psutil.Process().children(recursive=True) if staged else []:
            with contextlib.suppress(psutil.Error):
                if staged & {file.path for file in process.open_files()}:
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
        return bool(killed)

    def kill() -> None:
        with contextlib.suppress(TimeoutError):  # the test then finds that nothing was killed
            wait_until(is_killed, 50, "the writing of a file")
        flag.touch()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        df = spark.range(0, 100_000, 1, 1).mapInArrow(blocked_until(flag), "id long")
        with pytest.raises(WriteError if way == "functions" else Exception) as failed:
            write(df, way, tmp_path / "t", "append")
    finally:
        killer.join()

    assert killed
    assert way == "source" or len(str(failed.value).splitlines()) == 1
    assert names_in(tmp_path) == ["flag"]


@pytest.mark.parametrize("way", ONE_WAY)
@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_failed_task_leaves_the_old_data(spark: "SparkSession", tmp_path: Path, way: str, mode: str) -> None:
    write_tfrecords(spark.range(3), tmp_path / "t")
    df = spark.range(0, 100_000, 1, 2).selectExpr("if(id = 99999, raise_error('no such row'), id) as id")

    with pytest.raises(Exception, match="no such row"):
        write(df, way, tmp_path / "t", mode)

    assert ids_in(read_tfrecords(spark, tmp_path / "t")) == [0, 1, 2]
    assert not [name for name in [*names_in(tmp_path), *names_in(tmp_path / "t")] if name.startswith(".")]


@pytest.mark.full
@pytest.mark.parametrize("way", ONE_WAY)
def test_a_killed_driver_leaves_hidden_files_that_the_next_write_removes(
    spark: "SparkSession", tmp_path: Path, way: str
) -> None:
    """(T1) Before the commit nothing is visible, and afterwards nothing stays."""
    target = tmp_path / "t"
    write_tfrecords(spark.range(3), target)
    driver = subprocess.Popen(
        [sys.executable, str(PROGRAMS / "write_and_wait.py"), str(target), str(tmp_path / "never"), way],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def is_written() -> bool:
        return any(tmp_path.rglob("attempts/*/part-*"))

    try:
        wait_until(lambda: is_written() or driver.poll() is not None, 90, "the writing of a file")
        assert is_written(), "the program ended before it wrote"
    finally:
        # The data source's staging folder is the JVM's.
        family = psutil.Process(driver.pid).children(recursive=True)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        psutil.wait_procs(family, timeout=PATIENCE * 60)

    assert is_written()
    assert ids_in(read_tfrecords(spark, target)) == [0, 1, 2]
    write(spark.range(1), way, target, "append")
    assert read_tfrecords(spark, target).count() == 4
    assert names_in(tmp_path) == ["t"]
    assert not [name for name in names_in(target) if name.startswith(".")]


@pytest.mark.full
@pytest.mark.parametrize("way", ONE_WAY)
@pytest.mark.parametrize("below", ["", "t"])
def test_a_full_disk_fails_and_leaves_the_old_data(
    spark: "SparkSession", tiny_disk: Path, below: str, way: str
) -> None:
    target = tiny_disk / below
    write_tfrecords(spark.range(3), target, mode="append")

    with pytest.raises(Exception, match="No space left on device"):
        write(spark.range(0, 200_000, 1, 2), way, target, "overwrite")

    assert ids_in(read_tfrecords(spark, target)) == [0, 1, 2]
    write(spark.range(4), way, target, "overwrite")
    assert read_tfrecords(spark, target).count() == 4
