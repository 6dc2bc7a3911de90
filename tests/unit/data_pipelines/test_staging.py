"""What one Spark task stages and refuses, and what is drawn from staged files, without Spark (T1, F1)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_pipelines import staging
from data_pipelines.fitted import FittedFeatures
from data_pipelines.staging import Staged, StagedFile, StageTask

Tables = Callable[[int, int], pa.Table]


def with_splits(table: pa.Table, *names: str | None, first_order: int = 0) -> pa.Table:
    orders = pa.array(range(first_order, first_order + table.num_rows), pa.int64())
    return table.append_column("split", pa.array(names, pa.string())).append_column("row order", orders)


def outcomes(folder: Path, fitted: FittedFeatures, tables: list[pa.Table]) -> tuple[list[Any], pa.Table]:
    """Return what a task tells, and what it measured."""
    batches = [batch for table in tables for batch in table.to_batches()]
    answer = pa.Table.from_batches(StageTask(str(folder), fitted.spec, "split")(batches), staging._OUTCOME_SCHEMA)
    told = [json.loads(line) for line in answer.column("outcome").to_pylist() if line]
    return told, answer


def test_a_task_writes_the_rows_of_each_split_in_their_order_and_measures_the_training_rows(
    tmp_path: Path, flight_features: FittedFeatures, flight_table: Tables
) -> None:
    first = with_splits(flight_table(0, 4), *["train"] * 4)
    second = with_splits(flight_table(4, 3), "train", "test", "train", first_order=4)
    told, answer = outcomes(tmp_path, flight_features, [first, second])
    files = [StagedFile(**outcome) for outcome in told]
    assert [(file.split, file.partition, file.rows) for file in files] == [("train", 0, 6), ("test", 0, 1)]
    assert pa.Table.from_batches(files[0].batches())["row"].to_pylist() == [0, 1, 2, 3, 4, 6]
    assert pa.Table.from_batches(files[1].batches()).column_names == list(flight_table(0, 1).column_names)
    (row,) = [part for part in answer.to_pylist() if part["name"] == "row"]
    # 0, 1, 2, 3, 4 and 6: the row of the test split is not measured.
    assert (row["count"], row["mean"], row["maximum"]) == (6, pytest.approx(16 / 6), 6.0)


def test_a_task_without_rows_writes_nothing(tmp_path: Path, flight_features: FittedFeatures) -> None:
    told, _ = outcomes(tmp_path, flight_features, [])
    assert told == []
    assert not list(tmp_path.rglob("*.arrow"))


@pytest.mark.parametrize("split", ["tset", None])
def test_an_unknown_split_is_told_instead_of_raised(
    tmp_path: Path, flight_features: FittedFeatures, flight_table: Tables, split: str | None
) -> None:
    table = with_splits(flight_table(0, 3), "train", split, "train")
    message = f"column 'split' has the value {split!r}; use one of ['train', 'validation', 'test']"
    assert outcomes(tmp_path, flight_features, [table])[0] == [{"refused": message}]


def test_two_attempts_of_a_task_do_not_meet(
    tmp_path: Path, flight_features: FittedFeatures, flight_table: Tables
) -> None:
    table = with_splits(flight_table(0, 2), "train", "train")
    paths = {outcomes(tmp_path, flight_features, [table])[0][0]["path"] for _ in range(2)}
    assert len(paths) == 2
    assert {str(path) for path in tmp_path.rglob("*.arrow")} == paths


def test_a_sample_has_the_rows_of_the_smallest_hashes_however_they_were_dealt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "SAMPLE_ROWS", 30)
    generator = np.random.default_rng(4)
    orders = generator.permutation(200)
    files = []
    for number, part in enumerate(np.array_split(orders, [50, 120])):
        table = pa.table({"row order": np.sort(part), "id": np.sort(part) * 10})
        path = tmp_path / f"{number}.arrow"
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
        files.append(StagedFile("train", number, str(path), len(part)))
    staged = Staged(tuple(files), None, None)  # type: ignore[arg-type]
    sample = staged.sample("train")
    assert sample.column_names == ["id"]
    assert sample["id"].to_pylist() == [10 * number for number in range(30)]
    assert staged.rows("train") == 200
    assert staged.sample("test").num_rows == 0
