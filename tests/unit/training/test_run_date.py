"""T12: the same command for a day that is done trains nothing, and tells again what came of it."""

import dataclasses
import datetime
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.dataset import Dataset
from training import pipeline
from training import train as train_module
from training.command_line import parse
from training.config import RECIPE_FILE, ConfigError, RunConfig
from training.readiness import preflight
from training.records.run_folder import RunFolder, RunUnderWayError, Status, find_finished, hold_run_folder
from training.records.run_history import SUMMARY_FILE
from training.results import delivery
from training.results.delivery import DeliveryLostError, Trained
from training.results.evaluate_run import Verdict
from training.results.export import EVALUATED_SPLITS
from training.results.summary import Summary
from training.supervision.failure_policy import Attempt, RankError
from training.train import train

NewConfig = Callable[..., RunConfig]

DAY = "2026-01-31"
DATASET: Any = SimpleNamespace(manifest=SimpleNamespace(content_hash="da7a"))


class StartedError(Exception):
    """Something began that should not have, or should have."""


@pytest.fixture
def config(new_config: NewConfig, tmp_path: Path) -> RunConfig:
    return new_config(output=str(tmp_path / "output"), run_date=DAY)


def left(config: RunConfig, status: Status, dataset: str = "da7a") -> RunFolder:
    """Leave a run of ``config`` behind."""
    with hold_run_folder(dataclasses.replace(config, resume=False), dataset) as folder:
        folder.save_state(status, "mlflow-run-1")
    return folder


def test_a_day_is_part_of_what_a_run_is(new_config: NewConfig) -> None:
    days = (None, DAY, "2026-02-28")
    assert len({new_config(run_date=day).identity for day in days}) == 3
    assert new_config(run_date=datetime.date(2026, 1, 31)) == new_config(run_date=DAY)


@pytest.mark.parametrize("text", ["", "today", "20260131", "2026-1-31", "2026-02-30", "2026-01-31T00:00", "2026-W05-6"])
def test_what_is_no_day_is_refused(new_config: NewConfig, text: str) -> None:
    with pytest.raises(ConfigError, match=f"run_date '{text}' is no day; give one as 2026-01-31"):
        new_config(run_date=text)


def test_a_day_is_text_on_the_command_line_in_a_recipe_and_in_what_is_saved(recipe: Path, tmp_path: Path) -> None:
    assert parse([f"--recipe={recipe}", f"--run-date={DAY}", "--warm-start=models:/rides@champion"]).run_date == DAY
    with (recipe / RECIPE_FILE).open("a") as file:
        file.write(f"run_date: {DAY}\n")
    config = parse([f"--recipe={recipe}"])
    assert config.run_date == DAY
    assert f"run_date: '{DAY}'" in config.as_yaml()


def test_the_newest_finished_run_of_the_same_configuration_day_and_data_is_found(config: RunConfig) -> None:
    assert find_finished(config, "da7a") is None
    left(config, "failed")
    left(config, "finished", "other data")
    left(dataclasses.replace(config, run_date="2026-02-28"), "finished")
    left(dataclasses.replace(config, seed=2), "finished")
    assert find_finished(config, "da7a") is None
    done = left(config, "finished")
    found = find_finished(dataclasses.replace(config, workers=2), "da7a")
    assert found is not None
    assert (found.path, found.continues) == (done.path, "mlflow-run-1")


def test_a_day_that_another_driver_is_at_work_on_is_not_done_twice(config: RunConfig) -> None:
    with hold_run_folder(config, "da7a") as folder:
        with pytest.raises(RunUnderWayError, match=f"{folder.path.name} is under way in another driver"):
            find_finished(config, "da7a")
        done = left(config, "finished")
        found = find_finished(config, "da7a")
    assert found is not None
    assert found.path == done.path


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Return what is said to people, where the data has been converted and nothing can be begun."""
    lines: list[str] = []
    view = SimpleNamespace(say=lines.append)

    def begin(*_: Any, **__: Any) -> None:
        raise StartedError

    place = pipeline._Inputs(tmp_path / "dataset", {}, None)
    for module in (pipeline, train_module):
        monkeypatch.setattr(module, "LiveView", lambda **_: view)
    monkeypatch.setattr(pipeline, "prepare", begin)
    monkeypatch.setattr(pipeline, "_source_files", lambda config: {})
    monkeypatch.setattr(pipeline, "_inputs", lambda config, files: place)
    monkeypatch.setattr(pipeline, "is_published", lambda path: True)
    monkeypatch.setattr(Dataset, "open", lambda path: DATASET)
    monkeypatch.setattr(preflight, "check_driver", begin)
    return lines


def test_a_day_that_is_done_gives_its_summary_and_starts_no_spark(config: RunConfig, said: list[str]) -> None:
    folder = left(config, "finished")
    metrics = {"test": {"auc": 0.7, "log_loss": math.inf}}
    summary = Summary("finished", run_id="run-1", metrics=metrics, model_version="3", registered_model="rides")
    summary.save(folder.path / SUMMARY_FILE)
    again = pipeline.run(dataclasses.replace(config, tracking_uri="http://ann:s3cret@mlflow"))
    assert again == dataclasses.replace(summary, run_folder=str(folder.path), tracking_uri="http://ann:s3cret@mlflow")
    assert "0.7000" in again.as_text()
    assert said == [f"run {folder.path.name} of {DAY} has finished: nothing to do (--no-resume trains anew)"]


@pytest.mark.parametrize("change", [{"run_date": None}, {"resume": False}, {"run_date": "2026-02-28"}, {"seed": 2}])
def test_every_other_run_begins(config: RunConfig, said: list[str], change: dict[str, Any]) -> None:
    left(config, "finished")
    left(dataclasses.replace(config, run_date=None), "finished")
    left(dataclasses.replace(config, run_date="2026-02-28"), "stopped")
    with pytest.raises(StartedError):
        pipeline.run(dataclasses.replace(config, **change))
    with pytest.raises(StartedError):
        train(DATASET, dataclasses.replace(config, **change))
    assert said == []


@pytest.mark.parametrize("text", [None, "{", '{"status": "finished", "colour": "red"}', "[]"])
def test_a_summary_that_is_lost_is_told_with_the_mend(config: RunConfig, said: list[str], text: str | None) -> None:
    folder = left(config, "finished")
    if text is not None:
        (folder.path / SUMMARY_FILE).write_text(text)
    with pytest.raises(pipeline.SummaryLostError, match=r"summary.json cannot be read .*; --no-resume trains anew"):
        pipeline.run(config)


def delivered(folder: RunFolder) -> Trained:
    folder.predictions.mkdir()
    predictions = {split: pa.table({"score": [0.1, 0.9]}) for split in EVALUATED_SPLITS}
    for split, table in predictions.items():
        pq.write_table(table, folder.predictions / f"{split}.parquet")
    lost = RankError("lost", 1, "killed", "signal 9", 12.5)
    attempts = (Attempt(1, None, (lost,), 0, 10, workers=2), Attempt(2, 5, (), 10, 50, workers=2))
    verdict = Verdict({"test": {"auc": 0.7}}, {"name": "popularity", "metrics": {"auc": 0.5}}, {})
    return Trained("run-1", "models:/m-1", "rides", "3", attempts, 9.0, verdict, predictions, folder.path, "the store")


def test_a_notebook_gets_again_what_it_got(config: RunConfig, said: list[str]) -> None:
    folder = left(config, "finished")
    trained = delivered(folder)
    delivery.keep(trained, folder)
    again = train(DATASET, dataclasses.replace(config, tracking_uri="the store"))
    assert again == trained
    assert again.version_uri == "models:/rides/3"
    assert said == [f"run {folder.path.name} of {DAY} has finished: nothing to do"]


@pytest.mark.parametrize("lost", ["trained.json", "predictions/test.parquet"])
def test_a_delivery_that_is_lost_is_told_with_the_mend(config: RunConfig, said: list[str], lost: str) -> None:
    folder = left(config, "finished")
    delivery.keep(delivered(folder), folder)
    (folder.path / lost).unlink()
    with pytest.raises(DeliveryLostError, match=r"what it delivered cannot be read .*; resume=False trains anew"):
        train(DATASET, config)
