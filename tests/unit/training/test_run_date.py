"""T12: the same command for a day that is done trains nothing, and reports the results again."""

import contextlib
import dataclasses
import datetime
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.data_pipelines.features.kinds import Categorical, Label
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.storage import terminal_text
from mirrorspark.training import commands, pipeline
from mirrorspark.training import run as command
from mirrorspark.training.configuration.command_line import parse
from mirrorspark.training.configuration.config import ConfigError, RunConfig
from mirrorspark.training.configuration.recipe import RECIPE_FILE
from mirrorspark.training.driver.errors import TrainingStoppedError
from mirrorspark.training.entry_points import runs as runs_command
from mirrorspark.training.entry_points import train_dataset as train_module
from mirrorspark.training.entry_points.train_dataset import train
from mirrorspark.training.job import source_tables
from mirrorspark.training.job.readiness import preflight
from mirrorspark.training.protocol.names import STATE_FILE, SUMMARY_FILE
from mirrorspark.training.protocol.outcomes.cause import Attempt, RankError
from mirrorspark.training.results import kept_result
from mirrorspark.training.results.evaluation.evaluate_run import BaselineComparison
from mirrorspark.training.results.kept_result import ResultLostError
from mirrorspark.training.results.predictions import EVALUATED_SPLITS
from mirrorspark.training.results.report.summary import Summary
from mirrorspark.training.results.trained import Trained
from mirrorspark.training.run_records.find_run import find_finished, hold_run_folder
from mirrorspark.training.run_records.opened_run import open_run
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.run_state import RunUnderWayError, Status
from mirrorspark.training.run_records.tracking import Tracking

NewConfig = Callable[..., RunConfig]

DAY = "2026-01-31"
SPEC = FeatureSpec((Categorical("town"),), Label("late"), ("ride_id",))
DATASET = Dataset(
    Path("da7a"),
    cast(Any, SimpleNamespace(content_hash="da7a", rows=lambda split: 100)),
    cast(Any, SimpleNamespace(spec=SPEC)),
)


@pytest.fixture
def new_config(new_config: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """Return the function of that name with the batch of a run whose rows are known."""
    return partial(new_config, global_batch_size=64)


class StartedError(Exception):
    """Something began that should not have, or should have."""


@pytest.fixture
def config(new_config: NewConfig, tmp_path: Path) -> RunConfig:
    return new_config(output=str(tmp_path / "output"), run_date=DAY)


def left(config: RunConfig, status: Status, dataset: str = "da7a", *, touched: int | None = None) -> RunFolder:
    """Leave a run of ``config`` behind, touched last at that second."""
    with hold_run_folder(dataclasses.replace(config, resume=False), dataset) as folder:
        folder.save_state(status, "mlflow-run-1")
    if touched is not None:
        os.utime(folder.path / STATE_FILE, (touched, touched))
    return folder


def change_state(folder: RunFolder, **changes: object) -> None:
    path = folder.path / STATE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_day_is_part_of_what_a_run_is(new_config: NewConfig) -> None:
    days = (None, DAY, "2026-02-28")
    assert len({new_config(run_date=day).identity for day in days}) == 3
    assert new_config(run_date=datetime.date(2026, 1, 31)) == new_config(run_date=DAY)


@pytest.mark.parametrize("text", ["", "today", "20260131", "2026-1-31", "2026-02-30", "2026-01-31T00:00", "2026-W05-6"])
def test_an_invalid_run_date_is_refused(new_config: NewConfig, text: str) -> None:
    with pytest.raises(ConfigError, match=f"run_date '{text}' is not a date; use the form 2026-01-31"):
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
    left(config, "failed", touched=200)
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
        left(config, "finished", touched=200)
        with pytest.raises(RunUnderWayError, match=f"{folder.path.name} is under way in another driver"):
            find_finished(config, "da7a")


def test_no_run_is_opened_beside_one_of_the_same_day(config: RunConfig) -> None:
    said: list[str] = []
    view: Any = SimpleNamespace(log=said.append)
    with (
        hold_run_folder(config, "da7a") as folder,
        pytest.raises(RunUnderWayError, match=f"{folder.path.name} is under way in another driver"),
        open_run(config, "da7a", Tracking("no store", "rides"), view, only_once=config.only_once),
    ):
        pass
    assert said == []
    assert [path.name for path in folder.path.parent.glob("rides-*")] == [folder.path.name]


@pytest.fixture(autouse=True)
def no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs here have no source tables, for which the command looks first."""
    monkeypatch.setattr(commands, "require_data", lambda config: None)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Return the lines that people read, where the data has been converted and nothing can be begun."""
    lines: list[str] = []
    view = SimpleNamespace(log=lines.append)

    def begin(*_: Any, **__: Any) -> None:
        raise StartedError

    found = source_tables.SourceTables({}, {}, None, tmp_path / "dataset")
    for module in (pipeline, train_module):
        monkeypatch.setattr(module, "LiveView", lambda **_: view)
    monkeypatch.setattr(pipeline, "prepare", begin)
    monkeypatch.setattr(source_tables.SourceTables, "find", lambda config: found)
    monkeypatch.setattr(source_tables, "is_published", lambda path: True)
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


@pytest.mark.parametrize(
    "text", [None, "{", '{"status": "finished", "colour": "red"}', "[]", '{"status": "stopped", "error": "SIGTERM"}']
)
def test_a_lost_summary_is_reported_with_the_remedy(config: RunConfig, said: list[str], text: str | None) -> None:
    folder = left(config, "finished")
    if text is not None:
        (folder.path / SUMMARY_FILE).write_text(text)
    with pytest.raises(ResultLostError, match=r"summary.json cannot be read .*; --no-resume trains anew") as raised:
        pipeline.run(config)
    assert ("(it describes a run that stopped)" in str(raised.value)) == ("stopped" in str(text))


def executed(config: RunConfig) -> int:
    with warnings.catch_warnings():  # which the command silences for the rest of its process
        return command.execute(config)


def test_a_day_that_is_done_keeps_its_summary_as_it_was_written(config: RunConfig, said: list[str]) -> None:
    """Though this very process has done it, and the store is given otherwise now."""
    folder = left(config, "finished")
    file = folder.path / SUMMARY_FILE
    Summary("finished", run_id="run-1", tracking_uri="http://mlflow").save(file)
    before = file.read_bytes(), file.stat().st_ino
    asked = dataclasses.replace(config, tracking_uri="http://other", summary=str(folder.path.parent / "asked.json"))
    assert executed(asked) == command.EXIT_FINISHED
    assert (file.read_bytes(), file.stat().st_ino) == before
    assert Summary.load(Path(str(asked.summary))).tracking_uri == "http://other"


@pytest.mark.parametrize(
    "successor", [{"process": 1, "status": "finished"}, {"host": "node-7"}, {"status": "finished"}]
)
@pytest.mark.parametrize("error", [TrainingStoppedError((), 1234, "taken over"), KeyboardInterrupt(), ValueError("no")])
def test_a_driver_whose_run_is_not_its_own_any_more_leaves_the_summary_that_is_there(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, successor: dict[str, Any], error: BaseException
) -> None:
    folder = left(config, "running")
    file = folder.path / SUMMARY_FILE

    def run(config: RunConfig, tell: Callable[[Summary], None], *, began: float) -> Summary:
        tell(Summary("running", run_id="run-1", run_folder=str(folder.path)))
        Summary("finished", run_id="run-1").save(file)
        change_state(folder, **successor)
        raise error

    monkeypatch.setattr(pipeline, "run", run)
    asked = dataclasses.replace(config, summary=str(folder.path.parent / "asked.json"))
    expected = terminal_text.EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else command.EXIT_FAILED
    assert executed(asked) == expected
    assert Summary.load(file).status == "finished"
    assert Summary.load(Path(str(asked.summary))).status in ("stopped", "failed")


def test_a_run_that_was_stopped_says_so_in_its_folder(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = left(config, "stopped")

    def run(config: RunConfig, tell: Callable[[Summary], None], *, began: float) -> Summary:
        tell(Summary("running", run_folder=str(folder.path)))
        raise TrainingStoppedError((), 1234, "SIGTERM")

    monkeypatch.setattr(pipeline, "run", run)
    assert executed(config) == command.EXIT_FAILED
    assert Summary.load(folder.path / SUMMARY_FILE).status == "stopped"


def test_a_redo_that_was_broken_off_is_begun_again(config: RunConfig, said: list[str]) -> None:
    Summary("finished").save(left(config, "finished", touched=200).path / SUMMARY_FILE)
    left(config, "stopped", touched=300)
    with pytest.raises(StartedError):
        pipeline.run(config)
    with pytest.raises(StartedError):
        train(DATASET, config)
    assert said == []


def test_a_run_that_cannot_be_resumed_for_another_one_under_way_is_not_told_of_other_data(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = left(config, "stopped")
    config.save(folder.config)
    change_state(folder, process=1)

    def run(config: RunConfig, tell: Callable[[Summary], None], *, began: float) -> Summary:
        raise RunUnderWayError("another one is under way")

    monkeypatch.setattr(pipeline, "run", run)
    with warnings.catch_warnings():
        status = runs_command.main(["resume", folder.path.name, f"--output={config.output}"])
    assert (status, capsys.readouterr().err) == (1, "mirrorspark: another one is under way\n")


def delivered(folder: RunFolder) -> Trained:
    folder.predictions.mkdir()
    predictions = {split: pa.table({"score": [0.1, 0.9]}) for split in EVALUATED_SPLITS}
    for split, table in predictions.items():
        pq.write_table(table, folder.predictions / f"{split}.parquet")
    lost = RankError("lost", 1, "killed", "signal 9", 12.5)
    attempts = (Attempt(1, None, (lost,), 0, 10, workers=2), Attempt(2, 5, (), 10, 50, workers=2))
    verdict = BaselineComparison({"test": {"auc": 0.7}}, {"name": "popularity", "metrics": {"auc": 0.5}}, {})
    return Trained("run-1", "models:/m-1", "rides", "3", attempts, 9.0, verdict, predictions, folder.path, "the store")


def test_a_notebook_gets_again_what_it_got(config: RunConfig, said: list[str]) -> None:
    folder = left(config, "finished")
    trained = delivered(folder)
    kept_result.keep_delivery(trained, folder)
    again = train(DATASET, dataclasses.replace(config, tracking_uri="the store"))
    assert again == trained
    assert again.version_uri == "models:/rides/3"
    assert said == [f"run {folder.path.name} of {DAY} has finished: nothing to do (--no-resume trains anew)"]


def test_a_day_that_was_done_while_this_command_got_ready_is_not_done_twice(
    config: RunConfig, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def open_job(*_: Any, **__: Any) -> Iterator[None]:
        with hold_run_folder(config, "da7a", only_once=config.only_once):
            raise StartedError
        yield

    folders: list[RunFolder] = []

    def ready(*_: Any, **__: Any) -> Any:
        folder = left(config, "finished")
        folders.append(folder)
        Summary("finished", run_id="run-1").save(folder.path / SUMMARY_FILE)
        kept_result.keep_delivery(delivered(folder), folder)
        return SimpleNamespace(dataset=DATASET)

    for module in (pipeline, train_module):
        monkeypatch.setattr(module, "open_job", open_job)
    monkeypatch.setattr(train_module, "prepare_training", ready)
    monkeypatch.setattr(pipeline, "prepare", ready)
    trained = train(DATASET, config, cast(Any, "a session"))
    assert trained.run_folder == folders[0].path
    (folders[0].path / STATE_FILE).unlink()
    assert pipeline.run(config).run_folder == str(folders[1].path)
    assert [line.split()[1] for line in said] == [folder.path.name for folder in folders]


@pytest.mark.parametrize("lost", ["trained.json", "predictions/test.parquet"])
def test_a_lost_delivery_is_reported_with_the_remedy(config: RunConfig, said: list[str], lost: str) -> None:
    folder = left(config, "finished")
    kept_result.keep_delivery(delivered(folder), folder)
    (folder.path / lost).unlink()
    with pytest.raises(ResultLostError, match=r"its results cannot be read .*; resume=False trains anew"):
        train(DATASET, config)
