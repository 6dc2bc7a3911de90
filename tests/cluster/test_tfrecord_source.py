"""The data source ``tfrecord``: code for the JVM connectors works; a failed write leaves nothing (T1)."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pyspark.sql.types import FloatType, IntegerType, LongType, StringType, StructField, StructType

from mirrorspark.data_pipelines.tfrecords import read_tfrecords, write_tfrecords
from mirrorspark.spark_session import versions

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not versions.HAS_PYTHON_SOURCES, reason="PySpark 3.5 has no data sources in Python"),
]

SCHEMA = StructType(
    [
        StructField("id", IntegerType()),
        StructField("number", LongType()),
        StructField("share", FloatType()),
        StructField("name", StringType()),
    ]
)
ROWS = [(11, 23, 10.0, "r1"), (21, None, 12.5, "ü")]


@pytest.fixture
def table(spark: "SparkSession") -> "DataFrame":
    return spark.createDataFrame(ROWS, SCHEMA)


def names_in(folder: Path | str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def as_set(df: "DataFrame") -> set[tuple[Any, ...]]:
    return {tuple(row) for row in df.collect()}


@pytest.mark.full
def test_the_connectors_example_works(spark: "SparkSession", table: "DataFrame", tmp_path: Path) -> None:
    """(T1, S17) The usage example of the JVM connector's README, with a path that is not plain."""
    path = str(tmp_path / "test output ü.tfrecord")

    table.write.mode("overwrite").format("tfrecord").option("recordType", "Example").save(path)

    inferred = spark.read.format("tfrecord").option("recordType", "Example").load(path)
    assert {field.name: field.dataType.simpleString() for field in inferred.schema.fields} == {
        "id": "bigint",
        "name": "string",
        "number": "bigint",
        "share": "float",
    }
    assert as_set(inferred.select("id", "number", "share", "name")) == set(ROWS)
    assert as_set(spark.read.format("tfrecord").schema(SCHEMA).load(path)) == set(ROWS)


@pytest.mark.full
def test_layout_codec_and_hadoops_class_names(spark: "SparkSession", table: "DataFrame", tmp_path: Path) -> None:
    path = str(tmp_path / "t")
    writer = table.write.format("tfrecord").option("codec", "org.apache.hadoop.io.compress.GzipCodec")

    writer.option("layout", "block").mode("append").save(path)

    assert all(file.suffix == ".gz" for file in (tmp_path / "t").glob("part-*"))
    assert as_set(spark.read.format("tfrecord").schema(SCHEMA).load(path)) == set(ROWS)


def test_append_and_overwrite_under_the_names_of_both_connectors(
    spark: "SparkSession", table: "DataFrame", tmp_path: Path
) -> None:
    path = str(tmp_path / "t")
    for mode, rows, name in (("append", 2, "tfrecord"), ("append", 4, "tfrecords"), ("overwrite", 2, "tfrecords")):
        table.write.format(name).option("writeLocality", "distributed").mode(mode).save(path)

        assert spark.read.format("tfrecord").load(path).count() == rows
    spark.sql(f"CREATE OR REPLACE TEMPORARY VIEW clicks USING tfrecords OPTIONS (path '{path}', recordType 'Example')")
    assert spark.table("clicks").count() == 2
    assert names_in(tmp_path) == ["t"]


def test_several_paths_and_globs(spark: "SparkSession", tmp_path: Path) -> None:
    for day in range(3):
        write_tfrecords(spark.range(day, day + 1), tmp_path / f"day={day}")

    source = spark.read.format("tfrecord").schema("id long")

    assert as_set(source.load([f"{tmp_path}/day=0", f"{tmp_path}/day=[12]"])) == {(0,), (1,), (2,)}
    assert as_set(source.load(f"{tmp_path}/day={{0,2}}/*.tfrecord")) == {(0,), (2,)}
    # Below one folder, the folders' values are a column.
    assert as_set(spark.read.format("tfrecord").load(str(tmp_path))) == {(0, 0), (1, 1), (2, 2)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "snappy"}, "codec 'snappy' is not a codec of TFRecord readers"),
        ({"layuot": "row"}, "unknown option layuot"),
    ],
)
def test_wrong_options_are_refused(
    table: "DataFrame", tmp_path: Path, options: Mapping[str, str], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        table.write.format("tfrecord").mode("append").options(**options).save(str(tmp_path / "t"))

    assert names_in(tmp_path) == []


def test_nothing_at_the_path_says_so(spark: "SparkSession", tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"nothing is at .*missing; check the path"):
        spark.read.format("tfrecord").load(str(tmp_path / "missing"))


def stream(spark: "SparkSession", folder: Path, *, limit: int = 99, name: str = "") -> None:
    """Run a query over the JSON files of ``folder``, one file per batch, until all are read or it fails.

    With a name, its checkpoint is where the session's configuration says.
    """
    writer = (
        spark.readStream.schema("id long")
        .option("maxFilesPerTrigger", 1)
        .json(str(folder / "in"))
        .selectExpr(f"if(id >= {limit}, raise_error('stop here'), id) as id")
        .writeStream.format("tfrecord")
        .trigger(availableNow=True)
    )
    writer = writer.queryName(name) if name else writer.option("checkpointLocation", str(folder / "checkpoint"))
    writer.start(str(folder / "out")).awaitTermination()


def give_stream(folder: Path, *numbers: int) -> None:
    (folder / "in").mkdir(exist_ok=True)
    for number in numbers:
        file = folder / "in" / f"{number}.json"
        file.write_text(json.dumps({"id": number}), encoding="utf-8")
        # Spark reads the oldest first.
        os.utime(file, (1_700_000_000 + number, 1_700_000_000 + number))


def forget_commit(checkpoint: Path, batch: int) -> None:
    """Do what a crash right after the publish does: Spark commits the batch again."""
    (checkpoint / "commits" / str(batch)).unlink()
    (checkpoint / "commits" / f".{batch}.crc").unlink(missing_ok=True)


def ids_in(spark: "SparkSession", folder: Path) -> list[int]:
    return sorted(row.id for row in read_tfrecords(spark, folder).collect())


@pytest.mark.full
def test_a_stream_writes_each_batch_once_also_when_it_is_started_again(spark: "SparkSession", tmp_path: Path) -> None:
    """(T1) Exactly once, through a failure and a lost commit log."""
    give_stream(tmp_path, 0, 1, 2)

    with pytest.raises(Exception, match="stop here"):
        stream(spark, tmp_path, limit=2)
    assert ids_in(spark, tmp_path / "out") == [0, 1]
    stream(spark, tmp_path)
    forget_commit(tmp_path / "checkpoint", 2)
    stream(spark, tmp_path)

    assert ids_in(spark, tmp_path / "out") == [0, 1, 2]
    assert not [name for name in [*names_in(tmp_path), *names_in(tmp_path / "out")] if name.startswith(".")]


@pytest.mark.full
def test_a_new_stream_at_the_place_of_an_old_checkpoint_loses_nothing(spark: "SparkSession", tmp_path: Path) -> None:
    """Its batches count from 0 again; the notes of the old query are not its own."""
    give_stream(tmp_path, 0, 1)
    stream(spark, tmp_path)
    shutil.rmtree(tmp_path / "checkpoint")

    stream(spark, tmp_path)

    assert ids_in(spark, tmp_path / "out") == [0, 0, 1, 1]


def test_a_checkpoint_that_the_session_sets_counts_like_any_other(spark: "SparkSession", tmp_path: Path) -> None:
    give_stream(tmp_path, 0, 1)
    spark.conf.set("spark.sql.streaming.checkpointLocation", str(tmp_path / "checkpoints"))
    try:
        stream(spark, tmp_path, name="clicks")
        forget_commit(tmp_path / "checkpoints" / "clicks", 1)
        stream(spark, tmp_path, name="clicks")
    finally:
        spark.conf.unset("spark.sql.streaming.checkpointLocation")

    assert ids_in(spark, tmp_path / "out") == [0, 1]


# --- files that other projects wrote ----------------------------------------------------------------------------------

# Records by file, as they were counted when the files were collected.
COUNTS = {
    "deepctr_criteo_sample.te.tfrecords": 40,
    "deepctr_criteo_sample.tr.tfrecords": 160,
    "fuxictr_tiny_test.tfrecord": 100,
    "fuxictr_tiny_train.tfrecord": 100,
    "fuxictr_tiny_valid.tfrecord": 100,
    "tfrecorder_images_validation.tfrecord.gz": 2,
    "tfx_external_sequence.tfrecord.gz": 15_000,
    "tfx_penguin_eval.tfrecord.gz": 100,
    "tfx_penguin_train.tfrecord.gz": 234,
    "tfx_sequence_eval.tfrecord.gz": 4_500,
    "tfx_sequence_train.tfrecord.gz": 10_500,
    "tfx_taxi-00000-of-00002.tfrecord.gz": 9_988,
    "tfx_taxi-00001-of-00002.tfrecord.gz": 5_012,
    "ydf_sentences.tfe-tfrecord": 2,
    "ydf_toy.nocompress-tfe-tfrecord-00000-of-00002": 3,
    "ydf_toy.nocompress-tfe-tfrecord-00001-of-00002": 1,
    "ydf_toy.tfe-tfrecord-00000-of-00002": 3,
    "ydf_toy.tfe-tfrecord-00001-of-00002": 1,
}
# Of each project and kind of message, one file is read in every run of the tests.
FIRST = (
    *("deepctr_criteo_sample.te", "fuxictr_tiny_test", "tfrecorder_images", "tfx_penguin_eval", "tfx_sequence_eval"),
    *("ydf_sentences", "ydf_toy.tfe-tfrecord-00000"),
)
ELWC = (
    "eval",
    "test_numerical",
    *(pytest.param(name, marks=pytest.mark.full) for name in ("train", "train_numerical")),
)
ELWC += (pytest.param("vali_numerical", marks=pytest.mark.full),)


def parsed_by_tensorflow(file: Path, record_type: str, columns: list[tuple[str, int]]) -> Counter[str]:
    """Return the rows of ``file``: per column the values, or None, as TensorFlow's own protocol buffers have them."""
    import tensorflow as tf

    codec = "GZIP" if file.read_bytes()[:2] == b"\x1f\x8b" else ""
    message = tf.train.Example if record_type == "Example" else tf.train.SequenceExample
    rows: Counter[str] = Counter()
    for record in tf.data.TFRecordDataset(str(file), compression_type=codec).as_numpy_iterator():
        parsed = message.FromString(record)
        context = parsed.features.feature if record_type == "Example" else parsed.context.feature
        lists = {} if record_type == "Example" else parsed.feature_lists.feature_list
        row = []
        for name, depth in columns:
            if depth == 2:
                row.append([_values(inner) for inner in lists[name].feature] if name in lists else None)
            elif name not in context:
                row.append(None)
            else:
                values = _values(context[name])
                # Of no values, a scalar has none; a feature without a kind is as if it were not there.
                row.append(values if depth else values[0] if values else None)
        rows[repr(row)] += 1
    return rows


def _values(feature: Any) -> list[Any] | None:
    kind = feature.WhichOneof("kind")
    return list(getattr(feature, kind).value) if kind else None


def as_tensorflow_has_it(value: Any) -> Any:
    """Return a value of a row with text as bytes and floats as float32, which is what records hold."""
    if isinstance(value, list):
        return [as_tensorflow_has_it(item) for item in value]
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytearray):
        return bytes(value)
    return float(np.float32(value)) if isinstance(value, float) else value


def depth_of(type_: str) -> int:
    return type_.count("array<")


@pytest.mark.parametrize(
    "name",
    [name if name.startswith(FIRST) else pytest.param(name, marks=pytest.mark.full) for name in COUNTS],
)
def test_files_of_others_are_read_as_tensorflow_reads_them_and_written_back(
    spark: "SparkSession", shared_data: Path, tmp_path: Path, name: str
) -> None:
    file = shared_data / "tfrecords" / name
    record_type = "SequenceExample" if "sequence" in name else "Example"

    df = read_tfrecords(spark, file, record_type=record_type)

    columns = [(field.name, depth_of(field.dataType.simpleString())) for field in df.schema.fields]
    expected = parsed_by_tensorflow(file, record_type, columns)
    assert sum(expected.values()) == COUNTS[name]
    assert Counter(repr([as_tensorflow_has_it(v) for v in row]) for row in df.collect()) == expected

    result = write_tfrecords(df.coalesce(1), tmp_path / "back", record_type=record_type)
    assert len(result.files) == 1
    assert parsed_by_tensorflow(tmp_path / "back" / result.files[0], record_type, columns) == expected


@pytest.mark.parametrize("name", ELWC)
def test_messages_that_are_no_examples_are_refused_by_name_and_read_as_bytes(
    spark: "SparkSession", shared_data: Path, name: str
) -> None:
    import tensorflow as tf

    file = shared_data / "tfrecords" / f"tfranking_{name}_elwc.tfrecord"

    with pytest.raises(ValueError, match=f"{file.name}: record 0 at byte 0 is not a tf.train.Example"):
        read_tfrecords(spark, file)
    payloads = [bytes(row.byteArray) for row in read_tfrecords(spark, file, record_type="ByteArray").collect()]
    assert payloads == list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
