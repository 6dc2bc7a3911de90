"""T12: the next day's model begins from the one before, on data with other tokens; and a day is done once."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest

from mirrorspark.training.results.report.summary import Summary
from mirrorspark.training.run import main
from tests.cluster.conftest import read_events
from tests.cluster.test_bad_input import write_data, write_job

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(300)

KNOBS = {"epochs": 4, "global_batch_size": 64, "learning_rate": 0.05, "baseline": "none", "shards": 2, "patience": 0}


def days_rows(*cities: str) -> list[str]:
    """Return rows of which the city determines nearly everything; a city that is named twice has twice the rows."""
    parts = ("train", "train", "validation", "test")
    found = []
    for number in range(900):
        turn, city = number // len(cities), cities[number % len(cities)]
        buys = (city in ("Rome", "Bern")) != (turn % 7 == 6)
        found.append(f"{number},{20 + turn % 9},{city},{int(buys)},{parts[turn % 4]}")
    return found


def told(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "output") if event["event"] == "warm_start"]


def first_epoch(folder: Path) -> float:
    """Return the validation loss behind the first epoch of the newest run."""
    ends = [event for event in read_events(folder / "output") if event["event"] == "epoch_end"]
    return float(ends[0]["logs"]["val_loss"])


@pytest.mark.full
def test_a_day_begins_from_the_model_of_the_day_before_and_is_done_once(
    spark: "SparkSession", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_job(tmp_path, **KNOBS)
    store = f"sqlite:///{folder / 'output' / 'mlflow.db'}"
    paths = [f"--{name}={folder / name}" for name in ("recipe", "data", "output")]
    summary = folder / "summary.json"

    def run(*flags: str, status: int = 0) -> dict[str, Any]:
        found = main([*paths, f"--summary={summary}", "--workers=2", *flags])
        document: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
        assert found == status, document["error"]
        return document

    early = run("--warm-start=models:/recipe@challenger", status=2)
    assert early["error"].startswith("warm_start models:/recipe@challenger: there is no MLflow store")

    write_data(folder, days_rows("Oslo", "Oslo", "Rome", "Bonn", "Bern", "Wien"))
    first = run("--run-date=2026-01-30")
    cold = first_epoch(folder)
    assert (first["model_version"], first["warm_start"], told(folder)) == ("1", {}, [])

    # Wien is missing, Linz is new, and Bern is the most frequent now: the others get other ids.
    write_data(folder, days_rows("Bern", "Bern", "Rome", "Oslo", "Linz", "Bonn"))
    flags = ("--warm-start=models:/recipe@challenger", "--run-date=2026-01-31")
    second = run(*flags)
    taken = {"weights": 5, "of_weights": 5, "tokens": 4, "of_tokens": 5}
    assert second["warm_start"] == {"model": "models:/recipe/1"} | taken
    assert second["model_version"] == "2"
    (event,) = told(folder)
    assert {name: event[name] for name in taken} == taken
    said = capsys.readouterr().err
    assert said.count("warm start from models:/recipe/1: 5 of 5 weights, 4 of 5 tokens") == 1
    # An epoch of training is ahead of one from random weights.
    assert first_epoch(folder) < cold - 0.05
    tags = mlflow.MlflowClient(store).get_run(second["run_id"]).data.tags
    assert (tags["warm_start"], tags["run_date"]) == ("models:/recipe/1", "2026-01-31")

    # By now the alias means version 2. The command asks for the day that is done.
    again = run(*flags)
    assert Summary(**again) == Summary(**second)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        f"run {Path(second['run_folder']).name} of 2026-01-31 has finished: nothing to do (--no-resume trains anew)"
    ]
    assert "models:/recipe/2 (alias challenger)" in captured.out
    assert len(list((folder / "output" / "runs").glob("*/run.json"))) == 2
    client = mlflow.MlflowClient(store)
    assert {version.version for version in client.search_model_versions("name = 'recipe'")} in ({"1", "2"}, {1, 2})
