"""Tasks read what tasks wrote, in any number of batches, blocks and files; failed tasks leave no files."""

import datetime
import errno
import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.spark.tfrecord_options import Layout, OnDamage, ReadOptions, WriteOptions
from mirrorspark.data_pipelines.spark.tfrecord_tasks import (
    ReadTask,
    WriteTask,
    check_files,
    infer_files,
    merged_schema,
    sampled,
)
from mirrorspark.data_pipelines.tfrecord.arrow_schema import FeatureTypeError, SchemaError, ValueNotStorableError
from mirrorspark.data_pipelines.tfrecord.codecs import CodecError
from mirrorspark.data_pipelines.tfrecord.records import DamagedRecordError
from mirrorspark.storage.listing import DataFile, list_files, partition_schema
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import SaveMode, WriteJob

SCHEMA = pa.schema([("id", pa.int64()), ("names", pa.list_(pa.string())), ("share", pa.float32())])
ROWS = WriteOptions()
STRICT = ReadOptions()
SKIP = ReadOptions(on_damage=OnDamage.SKIP)


def table(rows: int, start: int = 0) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [
            {"id": n, "names": None if n % 5 == 4 else [f"n{i}" for i in range(n % 3)], "share": n / 4}
            for n in range(start, start + rows)
        ],
        SCHEMA,
    )


def written(
    folder: Path,
    batches: Sequence[pa.RecordBatch],
    options: WriteOptions = ROWS,
    partition_by: tuple[str, ...] = (),
) -> list[DataFile]:
    job = WriteJob.begin(StoragePath.of(folder), SaveMode.APPEND)
    job.publish(WriteTask(job, options, partition_by)(7, batches))
    return list_files(folder)


def read(files: Sequence[DataFile], schema: pa.Schema = SCHEMA, options: ReadOptions = STRICT) -> pa.Table:
    return pa.Table.from_batches(ReadTask(schema, options)(files), schema)


@given(
    sizes=st.lists(st.integers(0, 40), max_size=6),
    rows_per_block=st.integers(1, 50),
    max_rows_per_file=st.integers(0, 60),
    layout=st.sampled_from(["row", "block"]),
    codec=st.sampled_from(["none", "gzip", "zlib"]),
)
def test_rows_come_back_in_their_order_however_they_are_cut(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    rows_per_block: int,
    max_rows_per_file: int,
    layout: str,
    codec: str,
) -> None:
    options = WriteOptions(
        layout=layout,  # type: ignore[arg-type]
        codec=codec,
        rows_per_block=rows_per_block,
        max_rows_per_file=max_rows_per_file,
    )
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    batches = [table(size, start) for size, start in zip(sizes, starts, strict=True)]
    folder = tmp_path_factory.mktemp("t") / "t"

    files = written(folder, batches, options)

    expected = pa.Table.from_batches(batches, SCHEMA)
    assert sorted(row["id"] for row in read(files).to_pylist()) == expected.column("id").to_pylist()
    if max_rows_per_file == 0:
        assert read(files).equals(expected)
    else:
        assert len(files) == -(-sum(sizes) // max_rows_per_file)


@pytest.mark.parametrize("layout", ["row", "block"])
def test_sizes_rows_and_records_are_reported(tmp_path: Path, layout: str) -> None:
    job = WriteJob.begin(StoragePath.of(tmp_path / "t"), SaveMode.APPEND)
    options = WriteOptions(layout=layout, rows_per_block=4)  # type: ignore[arg-type]

    (file,) = WriteTask(job, options)(7, [table(10)])

    assert file.path.startswith("part-00007-")
    assert (file.rows, file.records) == (10, 10 if layout == "row" else 3)
    assert file.bytes == job.attempt_file(file.attempt, file.path).size()


def test_partition_columns_name_folders_and_are_not_in_the_records(tmp_path: Path) -> None:
    rows = table(4).append_column("day", pa.array(["1", "1", None, "2"]))

    files = written(tmp_path / "t", [rows], partition_by=("day",))

    assert [file.partition for file in files] == [(("day", "1"),), (("day", "2"),), (("day", None),)]
    assert infer_files(files, options=ReadOptions()).schema.names == ["id", "names", "share"]
    schema = pa.schema([("day", pa.int32()), ("id", pa.int64())])
    assert read(files, schema).to_pylist() == [
        {"day": 1, "id": 0},
        {"day": 1, "id": 1},
        {"day": 2, "id": 3},
        {"day": None, "id": 2},
    ]


@pytest.mark.parametrize("layout", ["row", "block"])
def test_folders_values_alone_have_the_rows_of_the_files(tmp_path: Path, layout: str) -> None:
    rows = table(4).append_column("day", pa.array(["1", "1", "2", "2"]))
    files = written(tmp_path / "t", [rows], WriteOptions(layout=layout), ("day",))  # type: ignore[arg-type]

    assert read(files, pa.schema([("day", pa.int64())])).column("day").to_pylist() == [1, 1, 2, 2]


def failing(error: Exception) -> Iterator[pa.RecordBatch]:
    yield table(3)
    raise error


def test_a_failed_task_removes_what_it_wrote(tmp_path: Path) -> None:
    job = WriteJob.begin(StoragePath.of(tmp_path / "t"), SaveMode.APPEND)

    with pytest.raises(OSError, match="missing"):
        WriteTask(job, WriteOptions())(0, failing(OSError("the shuffle files are missing")))

    assert not (job.staging / "attempts").files()


def test_a_file_that_fails_to_end_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[IO[bytes]] = []

    class FullDisk(io.BytesIO):
        def write(self, content: Any, /) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    open_any = StoragePath.open_write

    def open_write(path: StoragePath) -> IO[bytes]:
        if not path.name.startswith("part-"):
            return open_any(path)  # the lease of a job, which a thread renews
        opened.append(FullDisk())
        return opened[-1]

    job = WriteJob.begin(StoragePath.of(tmp_path / "t"), SaveMode.APPEND)
    monkeypatch.setattr(StoragePath, "open_write", open_write)

    # Ten rows of the block layout wait until the file ends.
    with pytest.raises(OSError, match="No space left"):
        WriteTask(job, WriteOptions(layout=Layout.BLOCK))(0, [table(10)])

    assert [file.closed for file in opened] == [True]


@pytest.mark.parametrize("layout", ["row", "block"])
def test_two_attempts_of_a_task_are_published_once(tmp_path: Path, layout: str) -> None:
    """(T1) A speculative task and its twin both end; Spark reports one of them to the driver."""
    job = WriteJob.begin(StoragePath.of(tmp_path / "t"), SaveMode.ERROR)
    task = WriteTask(job, WriteOptions(layout=layout))  # type: ignore[arg-type]

    twin = task(7, [table(10)])
    files = task(7, [table(10)])
    job.publish(files)

    assert twin[0].path != files[0].path
    assert [file.path.name for file in list_files(tmp_path / "t")] == [files[0].path]
    assert read(list_files(tmp_path / "t")).num_rows == 10
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_timestamps_name_folders_in_utc_and_come_back(tmp_path: Path, zone: str) -> None:
    moments = [datetime.datetime(2024, 1, 2, 3, 4, 5, 678901, datetime.UTC), None]
    column = pa.array(moments, pa.timestamp("us", zone))
    rows = table(2).append_column("at", column)

    files = written(tmp_path / "t", [rows], partition_by=("at",))

    assert [file.partition for file in files] == [(("at", "2024-01-02 03:04:05.678901Z"),), (("at", None),)]
    assert partition_schema(files) == pa.schema([("at", pa.timestamp("us", "UTC"))])
    assert read(files, partition_schema(files)).column("at").to_pylist() == moments


def test_a_value_that_no_record_holds_is_told(tmp_path: Path) -> None:
    job = WriteJob.begin(StoragePath.of(tmp_path / "t"), SaveMode.APPEND)
    rows = pa.RecordBatch.from_pylist([{"a": [1, None]}], pa.schema([("a", pa.list_(pa.int64()))]))

    with pytest.raises(ValueNotStorableError, match="column 'a'"):
        WriteTask(job, WriteOptions())(0, [rows])


@pytest.mark.parametrize("layout", ["row", "block"])
def test_a_null_in_a_column_that_takes_none_is_an_error(tmp_path: Path, layout: str) -> None:
    files = written(tmp_path / "t", [table(10)], WriteOptions(layout=layout))  # type: ignore[arg-type]

    with pytest.raises(FeatureTypeError, match="'names'"):
        read(files, pa.schema([pa.field("names", pa.list_(pa.string()), nullable=False)]))


def test_a_schema_is_inferred_from_all_files_or_a_sample(tmp_path: Path) -> None:
    written(tmp_path / "t", [pa.RecordBatch.from_pydict({"a": [1]})])
    files = written(tmp_path / "t", [pa.RecordBatch.from_pydict({"a": [[1, 2]], "b": ["x"]})])

    inferred = [infer_files([file], options=ReadOptions()) for file in files]

    assert merged_schema(inferred, ReadOptions()) == pa.schema([("a", pa.list_(pa.int64())), ("b", pa.string())])
    assert sampled(files * 5, 2) == [files[0], files[1]]
    with pytest.raises(SchemaError, match="no records to infer a schema from"):
        merged_schema([], ReadOptions())


def test_kinds_that_disagree_are_named_with_both_files(tmp_path: Path) -> None:
    (numbers,) = written(tmp_path / "numbers", [pa.RecordBatch.from_pydict({"a": [1]})])
    (texts,) = written(tmp_path / "texts", [pa.RecordBatch.from_pydict({"a": ["x"]})])

    with pytest.raises(SchemaError, match=f"feature 'a' is of kind int64_list in .*{numbers.path.name}.* and of kind "):
        merged_schema([infer_files([file], options=ReadOptions()) for file in (numbers, texts)], ReadOptions())


def test_damage_fails_or_is_skipped_and_counted(tmp_path: Path) -> None:
    (file,) = written(tmp_path / "t", [table(10)])
    content = bytearray(file.path.read_bytes())
    content[-1] ^= 1
    file.path.write_bytes(bytes(content))

    with pytest.raises(DamagedRecordError, match="record 9"):
        read([file])
    assert read([file], options=ReadOptions(on_damage="skip")).num_rows == 9  # type: ignore[arg-type]
    assert read([file], options=ReadOptions(verify_checksums=False)).num_rows == 10
    (report,) = check_files([file], options=ReadOptions(on_damage="skip"))  # type: ignore[arg-type]
    assert (report.records, report.damaged, report.bytes) == (9, 1, len(content))


def test_skipped_records_are_counted_by_who_asks(tmp_path: Path) -> None:
    class Total:
        def __init__(self) -> None:
            self.terms: list[int] = []

        def add(self, count: int) -> None:
            self.terms.append(count)

    files = written(tmp_path / "t", [table(15)], WriteOptions(max_rows_per_file=5))
    for file in files[1:]:
        content = bytearray(file.path.read_bytes())
        content[-1] ^= 1
        file.path.write_bytes(bytes(content))
    total = Total()

    rows = list(ReadTask(SCHEMA, SKIP, total)(files))  # type: ignore[arg-type]

    assert sum(batch.num_rows for batch in rows) == 13
    assert total.terms == [1, 1]  # a whole file adds nothing


def test_each_files_problem_is_reported(tmp_path: Path) -> None:
    """One bad file does not hide the others: text, a cut-off gzip stream, and a file that was removed meanwhile."""
    files = written(tmp_path / "t", [table(3)])
    (packed,) = written(tmp_path / "packed", [table(1000)], WriteOptions(codec="gzip"))
    packed.path.write_bytes(packed.path.read_bytes()[:-100])
    (tmp_path / "text").write_text("id,name\n" * 20, encoding="utf-8")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04" + bytes(100))
    bad = [packed, *list_files([tmp_path / "text", tmp_path / "zip"]), DataFile(StoragePath.of(tmp_path / "gone"), 9)]

    good, cut, text, archive, gone = check_files([*files, *bad], options=SKIP)

    assert (good.records, good.damaged, good.problem) == (3, 0, None)
    assert cut.damaged == 1
    for report, problem in (
        (cut, "damaged compressed stream in record"),
        (text, "it is not a TFRecord file"),
        (archive, "the content is zip, which is not read here"),
        (gone, "cannot be read: "),
    ):
        assert report.problem is not None
        assert problem in report.problem
        assert report.path in report.problem


def test_compression_is_found_by_content_and_a_wrong_codec_is_told(tmp_path: Path) -> None:
    (file,) = written(tmp_path / "t", [table(3)])
    packed = tmp_path / "no suffix"
    packed.write_bytes(gzip.compress(file.path.read_bytes()))

    assert read(list_files(packed)).num_rows == 3
    with pytest.raises(CodecError, match="no suffix"):
        read(list_files(packed), options=ReadOptions(codec="none"))
