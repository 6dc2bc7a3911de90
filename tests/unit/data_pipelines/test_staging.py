"""One Spark task stages rows or refuses them, and samples are drawn from staged files, without Spark (T1, F1)."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.dataset import staging
from mirrorspark.data_pipelines.dataset.staging import Staged, StagedFile, StageTask, _StagedPart
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.fitting import FeatureMeasurements
from mirrorspark.data_pipelines.features.raw_columns import column_plans
from mirrorspark.storage.paths import StoragePath

Tables = Callable[[int, int], pa.Table]


def with_splits(table: pa.Table, *names: str | None, first_order: int = 0) -> pa.Table:
    orders = pa.array(range(first_order, first_order + table.num_rows), pa.int64())
    added = table.append_column("split", pa.array(names, pa.string())).append_column("row order", orders)
    return added.append_column("row hash", orders)


def staged_part(folder: Path, fitted: FittedFeatures, tables: list[pa.Table]) -> _StagedPart:
    """Return a task's report."""
    batches = [batch for table in tables for batch in table.to_batches()]
    plans = column_plans(tables[0].schema, fitted.spec.read_features) if tables else {}
    (answer,) = StageTask(StoragePath.of(folder), fitted.spec, plans, "split")(batches)
    (line,) = answer.column("outcome").to_pylist()
    return _StagedPart.from_dict(json.loads(line))


def test_a_task_writes_the_rows_of_each_split_in_their_order_and_measures_the_training_rows(
    tmp_path: Path, flight_features: FittedFeatures, flight_table: Tables
) -> None:
    first = with_splits(flight_table(0, 4), *["train"] * 4)
    second = with_splits(flight_table(4, 3), "train", "test", "train", first_order=4)
    part = staged_part(tmp_path, flight_features, [first, second])
    files = part.files
    assert [(file.split, file.partition, file.rows) for file in files] == [("train", 0, 6), ("test", 0, 1)]
    assert pa.Table.from_batches(files[0].batches())["row"].to_pylist() == [0, 1, 2, 3, 4, 6]
    assert pa.Table.from_batches(files[1].batches()).column_names == list(flight_table(0, 1).column_names)
    # 0, 1, 2, 3, 4 and 6: the row of the test split is not measured.
    row = part.moments["row"]
    assert (row.count, row.mean, row.maximum) == (6, pytest.approx(16 / 6), 6.0)
    with pa.ipc.open_file(part.tokens) as reader:
        counts = {(one["name"], one["token"]): one["count"] for one in reader.read_all().to_pylist()}
    assert counts == {
        ("carrier", "UA"): 1,
        ("carrier", "AA"): 1,
        ("carrier", "DL"): 1,
        ("carrier", "ü"): 1,
        ("carrier", "??"): 1,
    }


def test_a_task_without_rows_writes_nothing(tmp_path: Path, flight_features: FittedFeatures) -> None:
    part = staged_part(tmp_path, flight_features, [])
    assert (part.files, part.tokens, part.repeated_rows) == ((), "", 0)
    assert not list(tmp_path.rglob("*.arrow"))


@pytest.mark.parametrize("split", ["tset", None])
def test_an_unknown_split_is_told_instead_of_raised(
    tmp_path: Path, flight_features: FittedFeatures, flight_table: Tables, split: str | None
) -> None:
    table = with_splits(flight_table(0, 3), "train", split, "train")
    message = f"column 'split' has the value {split!r}; use one of ['train', 'validation', 'test']"
    assert staged_part(tmp_path, flight_features, [table]).refused == message


def test_two_attempts_of_a_task_do_not_meet(
    tmp_path: Path, flight_features: FittedFeatures, flight_table: Tables
) -> None:
    table = with_splits(flight_table(0, 2), "train", "train")
    parts = [staged_part(tmp_path, flight_features, [table]) for _ in range(2)]
    paths = {path for part in parts for path in (part.files[0].path, part.tokens)}
    assert len(paths) == 4
    assert {str(path) for path in tmp_path.rglob("*.arrow")} == paths


def test_a_sample_has_the_rows_of_the_smallest_hashes_however_they_were_dealt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "SAMPLE_ROWS", 30)
    generator = np.random.default_rng(4)
    orders = generator.permutation(200)
    files = []
    for number, part in enumerate(np.array_split(orders, [50, 120])):
        table = pa.table({"row order": np.sort(part), "row hash": np.sort(part), "id": np.sort(part) * 10})
        path = tmp_path / f"{number}.arrow"
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
        files.append(StagedFile("train", number, str(path), len(part)))
    staged = Staged(tuple(files), FeatureMeasurements({}, ()))
    sample = staged.sample("train")
    assert sample.column_names == ["id"]
    assert sample["id"].to_pylist() == [10 * number for number in range(30)]
    assert staged.rows("train") == 200
    assert staged.sample("test").num_rows == 0


@pytest.mark.parametrize("rows_per_batch", [1, 2, 9])
def test_rows_that_are_equal_to_one_of_another_split_are_counted(
    tmp_path: Path, flight_features: FittedFeatures, flight_table: Tables, rows_per_batch: int
) -> None:
    """F10: rows that a model learns from and is judged on."""
    splits = ("train", "test", "train", "train", "test", "validation", "train", "test", "test")
    # Rows 0 and 1 are equal, and so are 4 and 5; 2 and 3 are too, in one split.
    hashes = pa.array([7, 7, 8, 8, 9, 9, 10, 11, 12], pa.int64())
    table = with_splits(flight_table(0, 9), *splits)
    table = table.set_column(table.column_names.index("row hash"), "row hash", hashes)
    batches = [table.slice(start, rows_per_batch) for start in range(0, 9, rows_per_batch)]
    assert staged_part(tmp_path, flight_features, batches).repeated_rows == 2
