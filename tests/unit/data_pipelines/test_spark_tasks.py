"""A task knows which part of a job is its own: by the numbers that it is handed, or by its partition (S9, S11)."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark import TaskContext

from mirrorspark.data_pipelines.reading.parquet_rows import ParquetRows
from mirrorspark.data_pipelines.spark.tasks import Shares, numbers_of
from mirrorspark.spark_session.task import partition_id


def test_numbers_come_from_any_batches_each_taken_when_it_is_wanted() -> None:
    taken: list[list[int]] = []

    def batches(*parts: list[int]) -> Iterator[pa.RecordBatch]:
        for part in parts:
            taken.append(part)
            yield pa.record_batch({"id": pa.array(part, pa.int64())})

    numbers = numbers_of(batches([3, 1], [], [2]))
    assert next(numbers) == 3
    assert taken == [[3, 1]]
    assert list(numbers) == [1, 2]


def test_the_partition_is_what_spark_tells_and_0_outside_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskContext, "_taskContext", None)
    assert partition_id() == 0
    monkeypatch.setattr(TaskContext, "_taskContext", SimpleNamespace(partitionId=lambda: 7))
    assert partition_id() == 7


def read(shares: Shares, *numbers: int) -> dict[int, list[int]]:
    """Return the rows of the shares of these numbers, as a task reads them that is handed each in a batch."""
    batches = [pa.record_batch({"id": pa.array([number], pa.int64())}) for number in numbers]
    return {
        number: [row for batch in rows for row in batch.column("id").to_pylist()]
        for number, rows in shares.read(batches)
    }


def test_a_task_reads_the_rows_of_the_numbers_that_it_is_handed(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(35)}), tmp_path / "rows.parquet", row_group_size=10)
    shares = Shares.of(ParquetRows.of(tmp_path / "rows.parquet", None), [1, 2, 1])
    assert len(shares.groups) == 3
    assert read(shares, 1) == {1: list(range(10, 30))}
    assert read(shares, 2, 0) == {2: list(range(30, 35)), 0: list(range(10))}


def test_files_without_a_row_are_one_share_without_rows(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "rows.parquet", pa.schema([("id", pa.int64())])):
        pass  # a file without a row group
    source = ParquetRows.of(tmp_path / "rows.parquet", None)
    shares = Shares.of(source, source.groups_per_task(2))
    assert shares.groups == ((),)
    assert read(shares, 0) == {0: []}
