"""DataFrames become TFRecord files and come back; a failed write leaves nothing, whatever failed (T1, S17)."""

import datetime
import decimal
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

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

from mirrorspark.data_pipelines.reading.parquet_rows import ParquetError
from mirrorspark.data_pipelines.spark.tfrecord_options import OptionError
from mirrorspark.data_pipelines.tfrecord.arrow_schema import SchemaError, ValueNotStorableError
from mirrorspark.data_pipelines.tfrecords import (
    WriteResult,
    read_tfrecords,
    write_tfrecords,
    write_tfrecords_from_parquet,
)
from mirrorspark.storage.publish import TargetExistsError

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

# Both layouts share most of what reads and writes them: the other one is tried where there is time.
MOST_IN_BLOCKS = (pytest.param("row", marks=pytest.mark.full), "block")
MOST_IN_ROWS = ("row", pytest.param("block", marks=pytest.mark.full))

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


@pytest.mark.parametrize(
    ("codec", "layout"),
    [
        ("none", "row"),
        ("gzip", "block"),
        *(pytest.param(*case, marks=pytest.mark.full) for case in (("none", "block"), ("gzip", "row"))),
        *(pytest.param("zlib", layout, marks=pytest.mark.full) for layout in ("row", "block")),
    ],
)
def test_every_type_comes_back(
    spark: "SparkSession", every_type: "DataFrame", tmp_path: Path, layout: str, codec: str
) -> None:
    """(T1, S17) DataFrame -> files -> DataFrame, nulls and empty lists included."""
    target = tmp_path / "every type ü"

    result = write_tfrecords(every_type, target, layout=layout, codec=codec)

    assert result.rows == 3
    assert all(name.endswith({"none": ".tfrecord", "gzip": ".gz", "zlib": ".deflate"}[codec]) for name in result.files)
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


@pytest.mark.parametrize("layout", MOST_IN_BLOCKS)
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


@pytest.mark.parametrize("layout", MOST_IN_BLOCKS)
def test_columns_that_are_not_asked_for_are_not_decoded(spark: "SparkSession", tmp_path: Path, layout: str) -> None:
    write_tfrecords(spark.range(3).selectExpr("id", "id as a", "'x' as b"), tmp_path / "t", layout=layout)

    # Were ``b`` decoded, it would be no number.
    back = read_tfrecords(spark, tmp_path / "t", schema="id long, b long", columns=["id"])

    assert rows_of(back, "id") == [(0,), (1,), (2,)]
    with pytest.raises(SchemaError, match=r"no column \['c'\]; choose from"):
        read_tfrecords(spark, tmp_path / "t", columns=["id", "c"])


@pytest.mark.parametrize("layout", MOST_IN_ROWS)
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


def test_timestamps_that_name_folders_are_in_utc_whatever_the_sessions_zone(
    spark: "SparkSession", tmp_path: Path
) -> None:
    """An hour that summer time has twice is told apart."""
    moments = [1_729_990_800, 1_729_990_800 - 3600]
    df = spark.createDataFrame([(number, moment) for number, moment in enumerate(moments)], "id long, seconds long")
    df = df.selectExpr("id", "timestamp_seconds(seconds) as at").coalesce(1)
    zone = spark.conf.get("spark.sql.session.timeZone")
    assert zone is not None
    spark.conf.set("spark.sql.session.timeZone", "Europe/Berlin")
    try:
        result = write_tfrecords(df, tmp_path / "t", partition_by=["at"])
        back = read_tfrecords(spark, tmp_path / "t").selectExpr("id", "unix_seconds(at)")
        given = read_tfrecords(spark, tmp_path / "t", schema="id long, at timestamp").selectExpr(
            "id", "unix_seconds(at)"
        )
        assert rows_of(back, "id") == rows_of(given, "id") == list(enumerate(moments))
    finally:
        spark.conf.set("spark.sql.session.timeZone", zone)
    assert sorted(name.partition("/")[0] for name in result.files) == [
        "at=2024-10-27 00%3A00%3A00.000000Z",
        "at=2024-10-27 01%3A00%3A00.000000Z",
    ]


@pytest.mark.parametrize("layout", MOST_IN_BLOCKS)
def test_columns_may_have_any_name(spark: "SparkSession", tmp_path: Path, layout: str) -> None:
    """A dot, a space and a slash, a quote, and two names that differ in case only."""
    names = ["user.id", "a b/c", "a", "A", "q`q", "day.of"]
    df = spark.createDataFrame([(1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11, 12)], [*map(str, range(6))]).toDF(*names)

    write_tfrecords(df, tmp_path / "t", layout=layout, partition_by=["day.of"])

    back = read_tfrecords(spark, tmp_path / "t", columns=names)
    assert back.columns == names
    assert as_set(back) == {"(1, 2, 3, 4, 5, 6)", "(7, 8, 9, 10, 11, 12)"}


@pytest.mark.parametrize("layout", MOST_IN_BLOCKS)
def test_no_number_and_infinity_come_back(spark: "SparkSession", tmp_path: Path, layout: str) -> None:
    numbers = [float("nan"), float("inf"), -float("inf"), -0.0, 1.5]
    df = spark.createDataFrame(
        [(n, number, [number]) for n, number in enumerate(numbers)], "id int, x double, l array<float>"
    )

    write_tfrecords(df, tmp_path / "t", layout=layout)

    back = read_tfrecords(spark, tmp_path / "t", schema=df.schema)
    assert [repr(row) for row in rows_of(back, "id")] == [repr(row) for row in rows_of(df, "id")]


@pytest.mark.parametrize(
    ("layout", "columns", "message"),
    [
        ("row", ["id as `block/rows`"], "column 'block/rows' has a name that is reserved for blocks of rows"),
        ("block", ["id as `block/rows`"], "column 'block/rows' has a name that is reserved for the rows of a block"),
        ("block", ["id", "id as `id/is_null`"], "reserved for the features of column 'id'; rename one"),
        (
            "block",
            ["array(id) as l", "id as `l/row_lengths`"],
            "reserved for the features of column 'l'; rename one",
        ),
    ],
)
def test_reserved_names_are_refused(
    spark: "SparkSession", tmp_path: Path, layout: str, columns: list[str], message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        write_tfrecords(spark.range(3).selectExpr(*columns), tmp_path / "t", layout=layout)


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


def test_hidden_and_empty_files_are_passed_over(spark: "SparkSession", tmp_path: Path) -> None:
    write_tfrecords(spark.range(3), tmp_path / "t")
    for name in ("empty.tfrecord", "_log", ".part.crc"):
        (tmp_path / "t" / name).write_bytes(b"" if name == "empty.tfrecord" else b"not a record")

    assert read_tfrecords(spark, [tmp_path / "t", f"{tmp_path}/t/*.tfrecord"]).count() == 3


# --- Parquet, past the JVM --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", MOST_IN_ROWS)
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


def test_an_object_store_is_written_and_read(spark: "SparkSession") -> None:
    """(T1) Against a server that speaks the S3 protocol."""
    from moto.server import ThreadedMotoServer
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
