"""A task knows which part of a job is its own: by the numbers that it is handed, or by its partition."""

from collections.abc import Iterator
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pyspark import TaskContext

from data_pipelines.task_numbers import numbers_of, partition_id


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
