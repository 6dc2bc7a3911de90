"""What one Spark task of a conversion writes and refuses, and what it publishes, without Spark (T1)."""

import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from data_pipelines import convert as conversion
from data_pipelines.blocks import decode_block
from data_pipelines.convert import ConversionOptions, DatasetExistsError, ShardResult, WriteTask, convert
from data_pipelines.dataset import Dataset
from data_pipelines.fitted import FittedFeatures
from data_pipelines.manifest import FEATURES_FOLDER, DatasetError, Manifest
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
    keys = with_keys(flight_table(0, 5), ["a", "a", "b", "b", "c"], [1, 2, 2, 2, 2])
    # A training row of the same key may stand between the two.
    table = pa.concat_tables([with_splits(keys, *[split] * 5).slice(0, 3), with_splits(keys, *["train"] * 5).slice(2)])
    table = pa.concat_tables([table, with_splits(keys, *[split] * 5).slice(3)])
    batches = [table.slice(start, rows_per_batch) for start in range(0, table.num_rows, rows_per_batch)]
    assert outcomes(tmp_path, flight_features, batches, rows_per_block) == [
        {
            "refused": f"the key flight_id = 'b', day = 2 stands on more than one row of split '{split}'; a key names "
            "one row: filter repeated rows out of the table, or add a column to keys"
        }
    ]


def test_keys_that_differ_in_one_column_or_stand_in_several_splits_or_in_training_rows_are_fine(
    tmp_path: Path, flight_features: FittedFeatures, flight_table: Tables
) -> None:
    splits = ["train", "train", "validation", "test", "test", "test"]
    table = with_keys(flight_table(0, 6), ["a", "a", "a", "a", "a", "b"], [1, 1, 1, 1, 2, 2])
    results = outcomes(tmp_path, flight_features, [with_splits(table, *splits)], rows_per_block=2)
    assert {one["split"]: one["shard"]["rows"] for one in results} == {"train": 2, "validation": 1, "test": 3}


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Manifest]], None]:
    """Return a function that says what a conversion does in place of its Spark job."""

    def prepare(write: Callable[[], Manifest]) -> None:
        monkeypatch.setattr(conversion, "_check_columns", lambda *_: None)
        monkeypatch.setattr(conversion, "_write", lambda *_: write())

    return prepare


def test_a_dataset_that_another_conversion_publishes_meanwhile_has_an_error_of_its_own(
    tmp_path: Path,
    prepared: Callable[[Callable[[], Manifest]], None],
    write_dataset: Callable[..., Dataset],
    flight_features: FittedFeatures,
) -> None:
    path = tmp_path / "dataset"
    prepared(lambda: write_dataset(path, [[3]]).manifest)
    with pytest.raises(DatasetExistsError, match=f"another conversion has made {path} meanwhile; open it") as raised:
        convert(None, flight_features.spec, path)  # type: ignore[arg-type]
    assert isinstance(pickle.loads(pickle.dumps(raised.value)), DatasetError)  # noqa: S301 - our own bytes
    assert Dataset.open(path, checksums=True).manifest.rows("train") == 3
    assert [folder.name for folder in tmp_path.iterdir()] == ["dataset"]


def test_only_what_a_process_of_this_host_left_is_removed(
    tmp_path: Path,
    prepared: Callable[[Callable[[], Manifest]], None],
    flight_features: FittedFeatures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait(30)
    monkeypatch.setattr(socket, "gethostname", lambda: "node-7")
    started = round(psutil.Process().create_time())
    mine = {"a conversion of this process": f"node-7-{os.getpid()}-{started}-0a1b2c3d"}
    others = {
        "a host whose name begins like ours": f"node-7-b-{finished.pid}-{started}-0a1b2c3d",
        "a host whose name ends like ours": f"x-node-7-{finished.pid}-{started}-0a1b2c3d",
        "a name that is no conversion's": "node-7-notes-of-mine",
        "a name of too few parts": "node-7",
    }
    gone = {
        "a process that has ended": f"node-7-{finished.pid}-{started}-0a1b2c3d",
        "our process id, of one that started earlier": f"node-7-{os.getpid()}-{started - 60}-0a1b2c3d",
    }
    for name in (mine | others | gone).values():
        (tmp_path / f".dataset.staging-{name}" / "features").mkdir(parents=True)

    def fail() -> Manifest:
        raise DatasetError("enough seen")

    prepared(fail)
    with pytest.raises(DatasetError, match="enough seen"):
        convert(None, flight_features.spec, tmp_path / "dataset")  # type: ignore[arg-type]
    kept = {folder.name.removeprefix(".dataset.staging-") for folder in tmp_path.iterdir()}
    assert kept == {*mine.values(), *others.values()}
