"""What one Spark task of a conversion writes and refuses, without Spark (T1)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_pipelines.blocks import decode_block
from data_pipelines.convert import ConversionOptions, ShardResult, WriteTask
from data_pipelines.fitted import FittedFeatures
from data_pipelines.manifest import FEATURES_FOLDER
from data_pipelines.records import read_records

Tables = Callable[[int, int], pa.Table]


def with_splits(table: pa.Table, *names: str | None) -> pa.Table:
    return table.append_column("split", pa.array(names, pa.string()))


def outcomes(staging: Path, fitted: FittedFeatures, tables: list[pa.Table], rows_per_block: int = 4) -> list[Any]:
    fitted.save(staging / FEATURES_FOLDER)
    batches = [batch for table in tables for batch in table.to_batches()]
    (answer,) = WriteTask(str(staging), ConversionOptions(rows_per_block=rows_per_block))(batches)
    return [json.loads(line) for line in answer.column("result").to_pylist()]


def test_a_task_cuts_the_rows_of_each_split_into_blocks(
    tmp_path: Path, flight_features: FittedFeatures, flight_table: Tables
) -> None:
    # Six rows to learn from, in batches of four and three, and one to test.
    first = with_splits(flight_table(0, 4), *["train"] * 4)
    second = with_splits(flight_table(4, 3), "train", "test", "train")
    results = [ShardResult.from_dict(one) for one in outcomes(tmp_path, flight_features, [first, second])]
    assert [(one.split, one.shard.rows, one.shard.block_rows) for one in results] == [
        ("train", 6, (4, 2)),
        ("test", 1, (1,)),
    ]
    assert results[0].shard.path == "train/part-00000.tfrecord"
    records = list(read_records(results[0].attempt_path))
    stored = [decode_block(record, flight_features.spec).features["row"].tolist() for record in records]
    assert stored == [[0, 1, 2, 3], [4, 6]]
    # Row 3 has no distance; rows 4 and 6 have a carrier that is unknown and none; the odd ones are late.
    counts = results[0].counts
    assert (counts["distance/missing"], counts["carrier/missing"], counts["carrier/out_of_vocabulary"]) == (1, 1, 1)
    assert counts["label/positive"] == 2


def test_a_task_without_rows_writes_nothing(tmp_path: Path, flight_features: FittedFeatures) -> None:
    assert outcomes(tmp_path, flight_features, []) == []
    assert not list(tmp_path.rglob("*.tfrecord"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("split", "tset", "column 'split' has the value 'tset'; use one of ['train', 'validation', 'test']"),
        ("split", None, "column 'split' has the value None; use one of ['train', 'validation', 'test']"),
        ("late", 2, "label 'late' has the value 2; a binary label is 0 or 1: filter such rows out of the table"),
        ("late", None, "label 'late' has the value None; a binary label is 0 or 1: filter such rows out of the table"),
        ("flight_id", None, "key column 'flight_id' has a null; a key names its row: fill it or choose another key"),
        ("importance", -1.0, "weight column 'importance' has the value -1.0; a weight is a finite number from 0 on"),
    ],
)
def test_a_value_that_cannot_be_is_told_instead_of_raised(
    tmp_path: Path, flight_features: FittedFeatures, flight_table: Tables, column: str, value: Any, message: str
) -> None:
    table = with_splits(flight_table(0, 5), *["train"] * 5)
    values = table.column(column).to_pylist()
    values[3] = value
    place = table.schema.get_field_index(column)
    table = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    assert outcomes(tmp_path, flight_features, [table]) == [{"refused": message}]


@pytest.mark.parametrize("option", ["shards", "rows_per_block"])
def test_options_that_write_nothing_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} 0 is below 1"):
        ConversionOptions(**{option: 0})
