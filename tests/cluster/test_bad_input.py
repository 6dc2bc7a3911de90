"""Input of a recipe: bad input is one clear line, exit status 1 or 2, and no half-written files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.training.configuration import RunConfig
from mirrorspark.training.configuration.recipe import RECIPE_FILE, SQL_FILE
from mirrorspark.training.job import SourceTables
from mirrorspark.training.run import main
from tests.cluster.conftest import read_events

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

RECIPE = {
    "tables": {"people": "id int, age double, city string, bought int, part string"},
    "label": "bought",
    "keys": "id",
    "features": {"age": {"kind": "numeric"}, "city": {"kind": "categorical"}},
    "epochs": 1,
    "global_batch_size": 8,
    "model": {"name": "multi_field", "embedding_dim": 2, "hidden_units": [2]},
}
SQL = "SELECT id, age, city, bought, part AS split FROM people"
HEADER = "id,age,city,bought,part"

Say = Callable[..., tuple[int, str]]


def rows(bought: Callable[[int], int] = lambda number: number % 2, part: str | None = None) -> list[str]:
    parts = ("train", "train", "validation", "test")
    return [f"{n},{20 + n},{'Oslo' if n % 3 else 'Rome'},{bought(n // 4)},{part or parts[n % 4]}" for n in range(64)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe and its data, both good."""
    return write_job(tmp_path)


def write_job(folder: Path, **knobs: Any) -> Path:
    """Write a recipe that sets ``knobs``, too, and its data, and return their folder."""
    for part in ("recipe", "data"):
        (folder / part).mkdir(parents=True)
    write_recipe(folder, RECIPE | knobs)
    write_data(folder, rows())
    return folder


def write_recipe(folder: Path, knobs: dict, sql: str = SQL) -> None:
    (folder / "recipe" / RECIPE_FILE).write_text(yaml.safe_dump(knobs), encoding="utf-8")
    (folder / "recipe" / SQL_FILE).write_text(sql, encoding="utf-8")


def write_data(folder: Path, lines: list[str], header: str = HEADER) -> None:
    (folder / "data" / "people.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


@pytest.fixture
def say(spark: "SparkSession", folder: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run the main job on the folder and return its status and its last line."""

    def run(*flags: str) -> tuple[int, str]:
        defaults = [f"--recipe={folder / 'recipe'}", f"--data={folder / 'data'}", f"--output={folder / 'output'}"]
        status = main([*defaults, *flags])
        return status, capsys.readouterr().err.splitlines()[-1]

    return run


def nothing_is_left(folder: Path) -> bool:
    """Return true if there is neither a dataset, nor its staging folder, nor a run."""
    return (
        not list((folder / "output").glob("datasets/*"))
        and not list((folder / "output").glob("datasets/.*"))
        and (not list((folder / "output").glob("runs/*")))
    )


def test_data_folder_that_does_not_exist(say: Say, folder: Path) -> None:
    shutil.rmtree(folder / "data")
    status, line = say()
    assert (status, "does not exist" in line, str(folder / "data") in line) == (2, True, True)
    assert nothing_is_left(folder)


def test_missing_table_file(say: Say, folder: Path) -> None:
    (folder / "data" / "people.csv").unlink()
    status, line = say()
    assert status == 2
    assert "table 'people' has no file" in line
    assert nothing_is_left(folder)


def test_missing_column_in_the_file(say: Say, folder: Path) -> None:
    write_data(folder, rows(), header="id,age,town,bought,part")
    status, line = say()
    assert status == 2
    assert "lacks the columns ['city']" in line
    assert nothing_is_left(folder)


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("change", "sql", "text"),
    [
        ({}, SQL.replace("city, ", ""), "lacks the columns ['city']; it has ['id', 'age', 'bought', 'split']"),
        ({"label": "bougt"}, SQL, "lacks the columns ['bougt']; it has ['id', 'age', 'city', 'bought', 'split'] (did"),
        ({"label": "bougt", "null_labels": "drop"}, SQL, "lacks the columns ['bougt']"),
        ({"keys": "no"}, SQL, "lacks the columns ['no']"),
        ({}, SQL.replace("city", "town"), "town"),
        ({"features": {"city": {"kind": "numeric"}}}, SQL, "column 'city' has type string, which a numeric feature"),
        ({"features": {"age": {"kind": "categorical"}}}, SQL, "column 'age' has type double, which a categorical"),
        ({"label": "city"}, SQL, "label 'city'"),
    ],
)
def test_missing_column_or_wrong_type_in_the_table(
    say: Say, folder: Path, change: dict[str, Any], sql: str, text: str, flags: tuple[str, ...]
) -> None:
    write_recipe(folder, RECIPE | change, sql)
    status, line = say(*flags)
    assert (status, text in line) == (2, True), line
    assert nothing_is_left(folder)


def test_cell_of_another_type_than_its_column(say: Say, folder: Path) -> None:
    write_data(folder, [*rows(), "64,abc,Oslo,1,train"])
    status, line = say()
    told = "people.csv: column 'age' is double, but has the cell 'abc'; correct the cell, empty it, or give the column"
    assert (status, told in line, "SQLSTATE" in line or "[" in line) == (1, True, False), line
    assert nothing_is_left(folder)


def test_json_objects_without_names_and_values(say: Say, folder: Path) -> None:
    """#52: such a file has rows."""
    (folder / "data" / "people.csv").unlink()
    (folder / "data" / "people.jsonl").write_text("{}\n{}\n", encoding="utf-8")
    status, line = say()
    assert (status, "people.jsonl has rows without columns: its objects are empty" in line) == (2, True), line
    assert nothing_is_left(folder)


def test_query_that_spark_cannot_run(say: Say, folder: Path) -> None:
    write_recipe(folder, RECIPE, "SELECT nonsense FROM people")
    status, line = say()
    assert status == 2
    assert "nonsense" in line
    assert nothing_is_left(folder)


@pytest.mark.full
def test_label_with_one_class_only(say: Say, folder: Path) -> None:
    write_data(folder, rows(bought=lambda number: 1))
    status, line = say()
    assert status == 1
    assert "one class only (1)" in line
    assert nothing_is_left(folder)


@pytest.mark.full
def test_label_that_is_neither_zero_nor_one(say: Say, folder: Path) -> None:
    write_data(folder, rows(bought=lambda number: number % 3))
    status, line = say()
    assert status == 1
    assert "label 'bought' has the value 2" in line
    assert nothing_is_left(folder)


def test_empty_split(say: Say, folder: Path) -> None:
    write_data(folder, [line.replace("validation", "train") for line in rows()])
    status, line = say()
    assert status == 1
    assert "split 'validation' has no rows" in line
    assert nothing_is_left(folder)


def test_more_workers_than_slots(say: Say, folder: Path) -> None:
    status, line = say("--workers=4")
    assert status == 1
    assert "2 task slots for 4 workers" in line
    assert "--workers 2" in line
    assert nothing_is_left(folder)


def test_tracking_server_that_is_nowhere(say: Say, folder: Path) -> None:
    status, line = say("--tracking-uri=http://user:secret@no-such-host.invalid:5000")
    assert status == 1
    assert "cannot be reached" in line
    assert "secret" not in line
    assert nothing_is_left(folder)


def test_output_that_cannot_be_written(say: Say, folder: Path) -> None:
    (folder / "output").write_text("a file is in the way", encoding="utf-8")
    status, line = say()
    assert status == 1
    assert "cannot be written" in line


@pytest.mark.full
@pytest.mark.timeout(300)
def test_good_input_is_good_until_its_dataset_is_damaged(say: Say, folder: Path) -> None:
    """T6: the others fail for the one thing that they change; and damage that shows only to the ranks is nobody's luck.

    What is cut off is seen before anything starts, a flipped bit by the rank that reads it, which would again.
    """
    status, line = say()
    assert status == 0, line
    (shard,) = sorted((folder / "output").glob("datasets/*/train/part-00000.tfrecord"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3])
    runs = len(list((folder / "output").glob("runs/*")))
    status, line = say()
    assert status == 1
    assert str(shard) in line
    assert "delete" in line
    assert len(list((folder / "output").glob("runs/*"))) == runs

    middle = len(whole) // 2
    shard.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    status, line = say()
    assert status == 1
    assert "training failed: rank 0: " in line
    assert f"{shard}: payload checksum mismatch" in line, line
    events = read_events(folder / "output")
    assert [event["attempt"] for event in events if event["event"] == "attempt"] == [1]
    assert {event["cause"] for event in events if event["event"] == "error"} == {"user"}


def test_unknown_recipe_and_unknown_field(say: Say, folder: Path) -> None:
    status, line = say("--recipe=nowhere")
    assert (status, "recipe 'nowhere' is unknown" in line) == (2, True)
    write_recipe(folder, RECIPE | {"epoch": 3})
    status, line = say()
    assert (status, "epoch" in line) == (2, True)
    assert nothing_is_left(folder)


def test_a_recipe_of_the_catalog_is_converted_again_when_its_rows_change(spark: "SparkSession", folder: Path) -> None:
    """(H1) Only Spark sees such a table, so the rows name the dataset."""
    spark.read.csv(str(folder / "data"), header=True, inferSchema=True).createOrReplaceTempView("all_people")
    write_recipe(folder, RECIPE | {"tables": {"people": "all_people"}})

    def converted() -> tuple[Dataset, bool]:
        config = RunConfig.from_recipe(str(folder / "recipe"), output=str(folder / "output"))
        sources = SourceTables.find(config)
        assert sources.converted() is None
        return sources.dataset(sources.table(spark, config), config)

    dataset, is_reused = converted()
    again, is_reused_again = converted()
    assert (again.path, is_reused, is_reused_again) == (dataset.path, False, True)
    spark.table("all_people").where("id < 40").createOrReplaceTempView("fewer_people")
    spark.table("fewer_people").createOrReplaceTempView("all_people")
    fewer, _ = converted()
    assert fewer.path != dataset.path
    assert fewer.manifest.rows("train") == 20
