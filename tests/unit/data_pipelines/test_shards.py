"""One Spark task makes shards of a staged file, or refuses it, without Spark (T1)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.dataset.block_format import decode_block
from mirrorspark.data_pipelines.dataset.shards import EncodeTask, ShardResult
from mirrorspark.data_pipelines.dataset.staging import StagedFile
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.tfrecord.records import read_record_at
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import SaveMode, WriteJob

Tables = Callable[[int, int], pa.Table]


def staged(path: Path, table: pa.Table, split: str, rows_per_batch: int = 3) -> StagedFile:
    order = pa.array(range(table.num_rows), pa.int64())
    ordered = table.append_column("row order", order).append_column("row hash", order)
    with pa.ipc.new_file(str(path), ordered.schema) as writer:
        writer.write_table(ordered, max_chunksize=rows_per_batch)
    return StagedFile(split, 3, str(path), table.num_rows)


def outcomes(folder: Path, fitted: FittedFeatures, files: list[StagedFile], rows_per_block: int = 4) -> list[Any]:
    fitted.save(folder / "features")
    job = WriteJob.begin(StoragePath.of(folder / "dataset"), SaveMode.ERROR)
    task = EncodeTask(job, str(folder / "features"), files, rows_per_block)
    numbers = [pa.RecordBatch.from_pydict({"id": [number]}) for number in range(len(files))]
    return [json.loads(line) for answer in task(numbers) for line in answer.column("outcome").to_pylist()]


def test_a_staged_file_becomes_a_shard_of_blocks(
    tmp_path: Path, flight_features: FittedFeatures, flight_table: Tables
) -> None:
    file = staged(tmp_path / "raw", flight_table(0, 7), "train")
    (outcome,) = outcomes(tmp_path, flight_features, [file])
    result = ShardResult.from_dict(outcome)
    assert (result.split, result.partition, result.shard.path) == ("train", 3, "train/part-00003.tfrecord")
    assert (result.shard.rows, result.shard.block_rows) == (7, (4, 3))
    (path,) = tmp_path.rglob("part-00003.tfrecord")
    assert path.parts[-3] == result.attempt
    assert path.stat().st_size == result.shard.bytes
    records = [read_record_at(memoryview(path.read_bytes()), offset) for offset in result.shard.block_offsets]
    stored = [decode_block(record, flight_features.spec).features["row"].tolist() for record in records]
    assert stored == [[0, 1, 2, 3], [4, 5, 6]]
    # Row 3 has no distance; row 4 has an unknown carrier, rows 5 and 6 have none; the odd ones are late.
    counts = result.counts
    assert (counts["distance/missing"], counts["carrier/missing"], counts["carrier/out_of_vocabulary"]) == (1, 2, 1)
    assert (counts["carrier/tokens"], counts["label/positive"]) == (5, 3)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("late", 2, "label 'late' has the value 2; a binary label is 0 or 1: filter such rows out of the table"),
        ("late", None, "label 'late' has the value None; a binary label is 0 or 1: filter such rows out of the table"),
        (
            "flight_id",
            None,
            "key column 'flight_id' has a null; a key identifies its row: fill it or choose another key",
        ),
        ("importance", -1.0, "weight column 'importance' has the value -1.0; a weight is a finite number from 0 on"),
    ],
)
def test_a_value_that_cannot_be_is_told_instead_of_raised(
    tmp_path: Path, flight_features: FittedFeatures, flight_table: Tables, column: str, value: Any, message: str
) -> None:
    table = flight_table(0, 5)
    values = table.column(column).to_pylist()
    values[3] = value
    place = table.schema.get_field_index(column)
    table = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    assert outcomes(tmp_path, flight_features, [staged(tmp_path / "raw", table, "train")]) == [{"refused": message}]


def with_keys(table: pa.Table, ids: list[str], days: list[int]) -> pa.Table:
    for name, values in (("flight_id", pa.array(ids)), ("day", pa.array(days))):
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


@pytest.mark.parametrize("rows_per_block", [1, 2, 3, 1024])
@pytest.mark.parametrize("rows_per_batch", [1, 2, 5])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_key_of_two_evaluated_rows_is_refused_wherever_batches_and_blocks_end(
    tmp_path: Path,
    flight_features: FittedFeatures,
    flight_table: Tables,
    split: str,
    rows_per_batch: int,
    rows_per_block: int,
) -> None:
    table = with_keys(flight_table(0, 5), ["a", "a", "b", "b", "c"], [1, 2, 2, 2, 2])
    file = staged(tmp_path / "raw", table, split, rows_per_batch)
    assert outcomes(tmp_path, flight_features, [file], rows_per_block) == [
        {
            "refused": f"the key flight_id = 'b', day = 2 occurs in more than one row of split '{split}'; a key "
            "identifies one row: filter repeated rows out of the table, or add a column to keys"
        }
    ]


def test_keys_that_differ_in_one_column_or_stand_in_training_rows_are_fine(
    tmp_path: Path, flight_features: FittedFeatures, flight_table: Tables
) -> None:
    table = with_keys(flight_table(0, 4), ["a", "a", "b", "b"], [1, 2, 2, 3])
    repeated = with_keys(flight_table(0, 4), ["a", "a", "a", "a"], [1, 1, 1, 1])
    files = [staged(tmp_path / "1", table, "test"), staged(tmp_path / "2", repeated, "train")]
    assert [one["shard"]["rows"] for one in outcomes(tmp_path, flight_features, files, 2)] == [4, 4]
