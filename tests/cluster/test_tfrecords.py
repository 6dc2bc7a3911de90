"""DataFrames become TFRecord files and come back; a failed write leaves nothing, whatever failed (T1, S17)."""

import contextlib
import datetime
import decimal
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    ByteType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from data_pipelines.parquet_rows import ParquetError
from data_pipelines.publish import TargetExistsError
from data_pipelines.tfrecord.arrow_schema import SchemaError, ValueNotStorableError
from data_pipelines.tfrecord.records import DamagedRecordError
from data_pipelines.tfrecord_options import OptionError
from data_pipelines.tfrecords import (
    WriteError,
    WriteResult,
    check_tfrecords,
    read_tfrecords,
    write_tfrecords,
    write_tfrecords_from_parquet,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# Before Spark starts: its workers inherit them, and tests of this module talk to a server on this machine only.
os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")

pytestmark = pytest.mark.timeout(600)

PROGRAMS = Path(__file__).parent / "programs"
UTC = datetime.UTC

# Per column its type, and three values that files hold exactly: floats that float32 holds.
COLUMNS: dict[str, tuple[Any, list[Any]]] = {
    "bool": (BooleanType(), [True, False, None]),
    "byte": (ByteType(), [-128, 127, None]),
    "short": (ShortType(), [-32768, 32767, None]),
    "int": (IntegerType(), [-(2**31), 2**31 - 1, None]),
    "long": (LongType(), [-(2**63), 2**63 - 1, None]),
    "float": (FloatType(), [1.5, float("inf"), None]),
    "double": (DoubleType(), [-0.25, 0.0, None]),
    "decimal": (DecimalType(8, 2), [decimal.Decimal("1234.25"), decimal.Decimal("-0.50"), None]),
    "text": (StringType(), ["grüße 漢字", "", None]),
    "bytes": (BinaryType(), [b"\x00\xff", b"", None]),
    "date": (DateType(), [datetime.date(1969, 12, 31), datetime.date(2024, 2, 29), None]),
    "moment": (
        TimestampType(),
        # As a session in UTC shows it.
        [datetime.datetime(2024, 1, 2, 3, 4, 5, 678901), datetime.datetime(1969, 12, 31, 23, 59, 59), None],
    ),
    "clock": (TimestampNTZType(), [datetime.datetime(2024, 1, 2, 3, 4, 5), datetime.datetime(1960, 1, 1), None]),
    "longs": (ArrayType(LongType()), [[1, -2, 3], [], None]),
    "floats": (ArrayType(FloatType()), [[0.5], [], None]),
    "texts": (ArrayType(StringType()), [["a", "", "ü"], [], None]),
    "all_bytes": (ArrayType(BinaryType()), [[b"\x00", b""], [], None]),
    "dates": (ArrayType(DateType()), [[datetime.date(2024, 1, 1)], [], None]),
}
ROW_SCHEMA = StructType([StructField(name, type_) for name, (type_, _) in COLUMNS.items()])
ROWS = [tuple(values[number] for _, values in COLUMNS.values()) for number in range(3)]


@pytest.fixture(scope="module")
def every_type(spark: "SparkSession") -> "DataFrame":
    return spark.createDataFrame(ROWS, ROW_SCHEMA)


def rows_of(df: "DataFrame", *order: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in (df.orderBy(*order) if order else df).collect()]


def names_in(folder: Path | str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def as_set(df: "DataFrame") -> set[str]:
    return {repr(tuple(row)) for row in df.collect()}


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("layout", ["row", "block"])
@pytest.mark.parametrize("codec", ["none", "gzip", "zlib"])
def test_every_type_comes_back(
    spark: "SparkSession", every_type: "DataFrame", tmp_path: Path, layout: str, codec: str
) -> None:
    """(T1, S17) DataFrame -> files -> DataFrame, nulls and empty lists included."""
    target = tmp_path / "every type ü"

    result = write_tfrecords(every_type, target, layout=layout, codec=codec)

    assert result.rows == 3
    assert all(name.endswith({"none": ".tfrecord", "gzip": ".gz", "zlib": ".zlib"}[codec]) for name in result.files)
    back = read_tfrecords(spark, target, schema=ROW_SCHEMA)
    assert back.schema == ROW_SCHEMA
    assert as_set(back) == {repr(row) for row in ROWS}


@pytest.mark.parametrize("layout", ["row", "block"])
def test_an_inferred_schema_reads_what_records_hold(
    spark: "SparkSession", every_type: "DataFrame", tmp_path: Path, layout: str
) -> None:
    write_tfrecords(every_type, tmp_path / "t", layout=layout)

    back = read_tfrecords(spark, tmp_path / "t")

    types = {field.name: field.dataType.simpleString() for field in back.schema.fields}
    assert types["long"] == types["date"] == "bigint"
    assert types["double"] == "float"
    assert types["text"] == "string"
    assert types["bytes"] == "binary"
    assert types["longs"] == "array<bigint>"
    assert types["texts"] == "array<string>"
    assert {row.long for row in back.collect()} == {-(2**63), 2**63 - 1, None}


@pytest.mark.parametrize("layout", ["row", "block"])
def test_ml_vectors_come_back(spark: "SparkSession", tmp_path: Path, layout: str) -> None:
    schema = StructType([StructField("id", LongType()), StructField("v", VectorUDT())])
    rows = [
        (0, Vectors.dense([0.5, -1.0])),
        (1, Vectors.sparse(300_000, [3, 299_999], [1.5, 2.5])),
        (2, None),
    ]
    write_tfrecords(spark.createDataFrame(rows, schema), tmp_path / "t", layout=layout)

    assert rows_of(read_tfrecords(spark, tmp_path / "t", schema=schema), "id") == rows


def test_lists_of_lists_are_sequence_examples(spark: "SparkSession", tmp_path: Path) -> None:
    schema = "id long, tokens array<array<string>>, scores array<array<float>>"
    rows = [(0, [["a", "b"], []], [[0.5]]), (1, [], None)]
    df = spark.createDataFrame(rows, schema)

    with pytest.raises(SchemaError, match="SequenceExample"):
        write_tfrecords(df, tmp_path / "t")
    write_tfrecords(df, tmp_path / "t", record_type="SequenceExample")

    back = read_tfrecords(spark, tmp_path / "t", record_type="SequenceExample", schema=schema)
    assert rows_of(back, "id") == rows


def test_byte_arrays_are_payloads_as_they_are(spark: "SparkSession", tmp_path: Path) -> None:
    df = spark.createDataFrame([(b"one",), (b"",)], "anything binary")
    write_tfrecords(df, tmp_path / "t", record_type="ByteArray")

    back = read_tfrecords(spark, tmp_path / "t", record_type="ByteArray")

    assert back.columns == ["byteArray"]
    assert sorted(bytes(row.byteArray) for row in back.collect()) == [b"", b"one"]


@pytest.mark.parametrize("layout", ["row", "block"])
def test_tensorflow_reads_what_was_written(spark: "SparkSession", tmp_path: Path, layout: str) -> None:
    """(T1) A block's features are arrays; ``tf.io.parse_example`` reads them like any other."""
    import tensorflow as tf

    spark.range(5).selectExpr("id", "cast(id as float) / 4 as quarter").coalesce(1).write.parquet(str(tmp_path / "in"))
    result = write_tfrecords(spark.read.parquet(str(tmp_path / "in")), tmp_path / "t", layout=layout, rows_per_block=3)

    records = tf.data.TFRecordDataset([str(tmp_path / "t" / name) for name in result.files])
    features = {"id": tf.io.RaggedFeature(tf.int64), "quarter": tf.io.RaggedFeature(tf.float32)}
    parsed = [tf.io.parse_single_example(record, features) for record in records]
    assert [len(example["id"]) for example in parsed] == ([1] * 5 if layout == "row" else [3, 2])
    assert [value for example in parsed for value in example["quarter"].numpy()] == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("layout", ["row", "block"])
def test_columns_that_are_not_asked_for_are_not_decoded(spark: "SparkSession", tmp_path: Path, layout: str) -> None:
    write_tfrecords(spark.range(3).selectExpr("id", "id as a", "'x' as b"), tmp_path / "t", layout=layout)

    # Were ``b`` decoded, it would be no number.
    back = read_tfrecords(spark, tmp_path / "t", schema="id long, b long", columns=["id"])

    assert rows_of(back, "id") == [(0,), (1,), (2,)]
    with pytest.raises(SchemaError, match=r"no column \['c'\]; choose of"):
        read_tfrecords(spark, tmp_path / "t", columns=["id", "c"])


@pytest.mark.parametrize("layout", ["row", "block"])
def test_partition_columns_are_folders_and_come_back(spark: "SparkSession", tmp_path: Path, layout: str) -> None:
    df = spark.range(40).selectExpr("id", "id % 3 as day", "if(id % 2 = 0, 'a/b', null) as place").repartition(2)

    result = write_tfrecords(df, tmp_path / "t", partition_by=("day", "place"), layout=layout)

    folders = {name.rpartition("/")[0] for name in result.files}
    assert len(folders) == 6
    assert "day=0/place=a%2Fb" in folders
    assert "day=2/place=__HIVE_DEFAULT_PARTITION__" in folders
    back = read_tfrecords(spark, tmp_path / "t").select("id", "day", "place")
    assert back.schema["day"].dataType == IntegerType()
    assert rows_of(back, "id") == rows_of(df, "id")
    assert read_tfrecords(spark, tmp_path / "t", columns=["day"]).count() == 40


def test_save_modes(spark: "SparkSession", tmp_path: Path) -> None:
    target = tmp_path / "t"
    write_tfrecords(spark.range(3), target)

    with pytest.raises(TargetExistsError, match="exists already"):
        write_tfrecords(spark.range(3), target)
    assert write_tfrecords(spark.range(9), target, mode="ignore") == WriteResult()
    write_tfrecords(spark.range(2), target, mode="append")
    assert read_tfrecords(spark, target).count() == 5
    write_tfrecords(spark.range(1), target, mode="overwrite")
    assert rows_of(read_tfrecords(spark, target)) == [(0,)]
    assert [name for name in names_in(tmp_path) if name != "t"] == []


def test_a_table_may_be_overwritten_by_what_was_read_from_it(spark: "SparkSession", tmp_path: Path) -> None:
    """The old files stay until the new ones are whole."""
    write_tfrecords(spark.range(10), tmp_path / "t")

    write_tfrecords(read_tfrecords(spark, tmp_path / "t").where("id < 4"), tmp_path / "t", mode="overwrite")

    assert read_tfrecords(spark, tmp_path / "t").count() == 4


def test_an_empty_table_makes_a_folder_without_files(spark: "SparkSession", tmp_path: Path) -> None:
    assert write_tfrecords(spark.range(0), tmp_path / "t") == WriteResult()

    assert files_in(tmp_path / "t") == ["_SUCCESS"]
    assert read_tfrecords(spark, tmp_path / "t", schema="id long").collect() == []
    with pytest.raises(SchemaError, match="no records to infer a schema from"):
        read_tfrecords(spark, tmp_path / "t")


def test_files_are_split_where_they_get_too_many_rows(spark: "SparkSession", tmp_path: Path) -> None:
    result = write_tfrecords(spark.range(0, 25, 1, 1), tmp_path / "t", max_rows_per_file=10)

    assert len(result.files) == 3
    assert rows_of(read_tfrecords(spark, tmp_path / "t"), "id") == [(number,) for number in range(25)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["id", "map(id, id) as m"], "column 'm' has type map<bigint,bigint>, which a TFRecord file cannot hold"),
        (["id", "id as id"], "would both be stored as feature 'id'"),
    ],
)
def test_columns_that_records_cannot_hold_are_refused_before_a_task_starts(
    spark: "SparkSession", tmp_path: Path, columns: list[str], message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        write_tfrecords(spark.range(3).selectExpr(*columns), tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_wrong_options_are_refused(spark: "SparkSession", tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="layout 'columns' is none of row, block"):
        write_tfrecords(spark.range(3), tmp_path / "t", layout="columns")
    with pytest.raises(SchemaError, match=r"no column \['day'\] to partition by"):
        write_tfrecords(spark.range(3), tmp_path / "t", partition_by=["day"])


def test_a_value_that_no_record_holds_is_refused_in_one_line(spark: "SparkSession", tmp_path: Path) -> None:
    df = spark.createDataFrame([([1, None],)], "a array<long>")

    with pytest.raises(ValueNotStorableError, match=r"cannot be written: .*'a'") as refused:
        write_tfrecords(df, tmp_path / "t")

    assert len(str(refused.value).splitlines()) == 1
    assert names_in(tmp_path) == []


# --- reading what is damaged or foreign -------------------------------------------------------------------------------


def damaged(spark: "SparkSession", folder: Path) -> Path:
    """Write ten records of which the fourth has a flipped byte."""
    result = write_tfrecords(spark.range(0, 10, 1, 1).selectExpr("id", "'text' as t"), folder)
    file = folder / result.files[0]
    content = bytearray(file.read_bytes())
    record = len(content) // 10
    content[3 * record + 20] ^= 1
    file.write_bytes(content)
    return file


def test_a_damaged_record_fails_with_file_record_and_offset(spark: "SparkSession", tmp_path: Path) -> None:
    file = damaged(spark, tmp_path / "t")
    offset = file.stat().st_size // 10 * 3

    with pytest.raises(DamagedRecordError, match=f"{file.name}: .* in record 3 at byte {offset}"):
        read_tfrecords(spark, tmp_path / "t")
    with pytest.raises(Exception, match=f"{file.name}: .* in record 3 at byte {offset}"):
        read_tfrecords(spark, tmp_path / "t", schema="id long").collect()


def test_damaged_records_are_skipped_and_counted(spark: "SparkSession", tmp_path: Path) -> None:
    file = damaged(spark, tmp_path / "t")

    back = read_tfrecords(spark, tmp_path / "t", on_damage="skip")

    assert rows_of(back, "id") == [(number, "text") for number in range(10) if number != 3]
    (report,) = check_tfrecords(spark, tmp_path / "t")
    assert (Path(report.path).name, report.records, report.damaged) == (file.name, 9, 1)


def test_a_feature_of_another_type_is_named_with_its_record(spark: "SparkSession", tmp_path: Path) -> None:
    write_tfrecords(spark.range(0, 3, 1, 1), tmp_path / "t")

    with pytest.raises(Exception, match="feature 'id' of record 0"):
        read_tfrecords(spark, tmp_path / "t", schema="id string").collect()


def test_hidden_and_empty_files_are_passed_over(spark: "SparkSession", tmp_path: Path) -> None:
    write_tfrecords(spark.range(3), tmp_path / "t")
    for name in ("empty.tfrecord", "_log", ".part.crc"):
        (tmp_path / "t" / name).write_bytes(b"" if name == "empty.tfrecord" else b"not a record")

    assert read_tfrecords(spark, [tmp_path / "t", f"{tmp_path}/t/*.tfrecord"]).count() == 3


# --- Parquet, past the JVM --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["row", "block"])
def test_parquet_files_become_tfrecords_inside_the_tasks(spark: "SparkSession", tmp_path: Path, layout: str) -> None:
    df = spark.range(0, 5000, 1, 3).selectExpr(
        "id", "id / 8 as eighth", "array(id, id) as pair", "timestamp_micros(id) as moment", "id % 2 as day"
    )
    df.write.partitionBy("day").parquet(str(tmp_path / "in"))

    result = write_tfrecords_from_parquet(spark, tmp_path / "in", tmp_path / "t", layout=layout)

    assert result.rows == 5000
    schema = "id long, eighth double, pair array<long>, moment timestamp, day long"
    assert as_set(read_tfrecords(spark, tmp_path / "t", schema=schema)) == as_set(df)


def test_parquet_columns_are_chosen(spark: "SparkSession", tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), tmp_path / "in.parquet")

    write_tfrecords_from_parquet(spark, tmp_path / "in.parquet", tmp_path / "t", columns=["b"])

    assert rows_of(read_tfrecords(spark, tmp_path / "t"), "b") == [("x",), ("y",)]
    with pytest.raises(ParquetError, match=r"has no column \['c'\]"):
        write_tfrecords_from_parquet(spark, tmp_path / "in.parquet", tmp_path / "u", columns=["c"])


# --- faults -----------------------------------------------------------------------------------------------------------


def blocked_until(flag: Path) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return a function for ``mapInArrow`` that waits for ``flag`` when most rows, more than are buffered, are gone."""

    def give(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in batches:
            rows += batch.num_rows
            deadline = time.monotonic() + 60
            while rows > 80_000 and not flag.exists() and time.monotonic() < deadline:
                threading.Event().wait(0.01)
            yield batch

    return give


def test_a_killed_task_leaves_nothing_visible(spark: "SparkSession", tmp_path: Path) -> None:
    """(T1) The worker that writes is killed in the middle of its file."""
    flag = tmp_path / "flag"
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            staged = {str(path) for path in tmp_path.glob(".tfrecord-write-*/**/part-*")}
            for process in psutil.Process().children(recursive=True) if staged else []:
                with contextlib.suppress(psutil.Error):
                    if staged & {file.path for file in process.open_files()}:
                        process.send_signal(signal.SIGKILL)
                        killed.append(process.pid)
        flag.touch()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        df = spark.range(0, 100_000, 1, 1).mapInArrow(blocked_until(flag), "id long")
        with pytest.raises(WriteError, match="cannot be written") as failed:
            write_tfrecords(df, tmp_path / "t")
    finally:
        killer.join()

    assert killed
    assert len(str(failed.value).splitlines()) == 1
    assert names_in(tmp_path) == ["flag"]


def test_a_failed_task_leaves_the_old_data(spark: "SparkSession", tmp_path: Path) -> None:
    write_tfrecords(spark.range(3), tmp_path / "t")
    df = spark.range(0, 100_000, 1, 2).selectExpr("if(id = 99999, raise_error('no such row'), id) as id")

    with pytest.raises(WriteError, match=r"cannot be written: .*no such row"):
        write_tfrecords(df, tmp_path / "t", mode="overwrite")

    assert rows_of(read_tfrecords(spark, tmp_path / "t"), "id") == [(0,), (1,), (2,)]
    assert names_in(tmp_path) == ["t"]


def test_a_killed_driver_leaves_hidden_files_that_the_next_write_removes(spark: "SparkSession", tmp_path: Path) -> None:
    """(T1) Before the commit nothing is visible, and afterwards nothing stays."""
    target = tmp_path / "t"
    write_tfrecords(spark.range(3), target)
    driver = subprocess.Popen(
        [sys.executable, str(PROGRAMS / "write_and_wait.py"), str(target), str(tmp_path / "never")],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 90
        while not (left := list(tmp_path.rglob("attempts/*/part-*"))):
            assert driver.poll() is None, "the program ended before it wrote"
            assert time.monotonic() < deadline
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()

    assert left
    assert rows_of(read_tfrecords(spark, target), "id") == [(0,), (1,), (2,)]
    write_tfrecords(spark.range(1), target, mode="append")
    assert read_tfrecords(spark, target).count() == 4
    assert names_in(tmp_path) == ["t"]
    assert not [name for name in names_in(target) if name.startswith(".")]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a disk of one megabyte; skip where none may be mounted."""
    folder = tmp_path / "tiny disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"no disk may be mounted here: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
@pytest.mark.parametrize("below", ["", "t"])
def test_a_full_disk_fails_and_leaves_the_old_data(spark: "SparkSession", tiny_disk: Path, below: str) -> None:
    target = tiny_disk / below
    write_tfrecords(spark.range(3), target, mode="append")

    with pytest.raises(WriteError, match="No space left on device"):
        write_tfrecords(spark.range(0, 200_000, 1, 2), target, mode="overwrite")

    assert rows_of(read_tfrecords(spark, target), "id") == [(0,), (1,), (2,)]
    write_tfrecords(spark.range(4), target, mode="overwrite")
    assert read_tfrecords(spark, target).count() == 4


def test_an_object_store_is_written_and_read(spark: "SparkSession") -> None:
    """(T1) Against a server that speaks the S3 protocol."""
    from moto.server import ThreadedMotoServer  # type: ignore[import-untyped]
    from pyarrow import fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        bucket = f"lake-{uuid4().hex}"
        options = f"endpoint_override={host}:{port}&scheme=http"
        fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True).create_dir(
            bucket
        )
        target = f"s3a://{bucket}/a table ü?{options}"
        df = spark.range(0, 1000, 1, 2).selectExpr("id", "id % 2 as day")

        write_tfrecords(df, target, partition_by=["day"], layout="block", codec="gzip")
        with pytest.raises(TargetExistsError):
            write_tfrecords(df, target)
        write_tfrecords(df, target, mode="append", partition_by=["day"])
        assert read_tfrecords(spark, target).count() == 2000
        write_tfrecords(df.where("id < 10"), target, mode="overwrite", partition_by=["day"])

        back = read_tfrecords(spark, target).select("id", "day")
        assert rows_of(back, "id") == [(number, number % 2) for number in range(10)]
    finally:
        server.stop()
