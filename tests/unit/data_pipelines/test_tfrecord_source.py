"""The data source ``tfrecord`` is found by Spark itself, and its parts travel to other processes (T1)."""

import io
import pickle
import sys
from pathlib import Path

import pytest
from pyspark.serializers import read_int
from pyspark.sql.types import LongType, StructField, StructType
from pyspark.sql.worker import lookup_data_sources

from mirrorspark.data_pipelines.spark.tfrecord_options import OptionError
from mirrorspark.data_pipelines.spark.tfrecord_source import TFRecordSource
from mirrorspark.data_pipelines.tfrecord.arrow_schema import SchemaError

REPOSITORY = Path(__file__).resolve().parents[3]
SCHEMA = StructType([StructField("id", LongType())])


def test_spark_finds_the_source_where_the_package_is_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), *sys.path])
    found = io.BytesIO()

    lookup_data_sources._main(io.BytesIO(), found)

    found.seek(0)
    names = []
    for _ in range(read_int(found)):
        names.append(found.read(read_int(found)).decode())
        found.read(read_int(found))
    assert "tfrecord" in names


def test_a_reader_says_which_task_reads_which_files(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"part-{number}.tfrecord").write_bytes(b"x")

    reader = TFRecordSource({"path": str(tmp_path)}).reader(SCHEMA)

    shares = pickle.loads(pickle.dumps(reader)).partitions()  # noqa: S301
    assert sorted(file.path.name for share in shares for file in share.files) == [
        "part-0.tfrecord",
        "part-1.tfrecord",
        "part-2.tfrecord",
    ]


def test_several_paths_arrive_as_a_json_list(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"a,{number}").write_bytes(b"x")

    source = TFRecordSource({"paths": f'["{tmp_path}/a,0", "{tmp_path}/a,1"]'})

    assert sum(len(share.files) for share in source.reader(SCHEMA).partitions()) == 2  # type: ignore[attr-defined]


def test_a_file_that_vanished_is_named_by_the_task_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "part-0.tfrecord").write_bytes(b"x")
    reader = TFRecordSource({"path": str(tmp_path), "onDamage": "skip"}).reader(SCHEMA)
    (share,) = reader.partitions()
    (tmp_path / "part-0.tfrecord").unlink()

    with pytest.raises(FileNotFoundError, match=r"part-0\.tfrecord"):
        list(reader.read(share))


def test_a_folder_without_files_is_read_as_no_rows(tmp_path: Path) -> None:
    reader = TFRecordSource({"path": str(tmp_path)}).reader(SCHEMA)

    (nothing,) = reader.partitions()

    assert list(reader.read(nothing)) == []
    with pytest.raises(SchemaError, match="no records to infer a schema from"):
        TFRecordSource({"path": str(tmp_path)}).schema()


def test_no_path_is_refused() -> None:
    with pytest.raises(OptionError, match="no path is given"):
        TFRecordSource({}).reader(SCHEMA)
    with pytest.raises(OptionError, match="no path is given"):
        TFRecordSource({}).writer(SCHEMA, overwrite=False)


def test_a_writer_travels_to_tasks_and_to_the_commit(tmp_path: Path) -> None:
    import pyarrow as pa

    def elsewhere(writer: object) -> object:
        return pickle.loads(pickle.dumps(writer))  # noqa: S301

    writer = TFRecordSource({"path": str(tmp_path / "t"), "codec": "gzip"}).writer(SCHEMA, overwrite=False)
    batch = pa.RecordBatch.from_pydict({"id": pa.array([1, 2], pa.int64())})

    message = elsewhere(writer).write(iter([batch]))  # type: ignore[attr-defined]
    assert not (tmp_path / "t").exists()
    elsewhere(writer).commit([elsewhere(message), None])  # type: ignore[attr-defined]

    assert [path.suffix for path in (tmp_path / "t").glob("part-*")] == [".gz"]
