"""T7: the forms of secrets are nowhere in the files and output of a run's parts, whatever they are given."""

import logging
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from mirrorspark.callbacks.mlflow.metric_requests import first_line
from mirrorspark.scoring.input.decoding import Decoder
from mirrorspark.scoring.input.inputs import Column
from mirrorspark.scoring.run import main as score
from mirrorspark.spark_session.errors import task_message
from mirrorspark.storage.credentials import HIDDEN
from mirrorspark.storage.event_file import EventFile
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.driver.errors import TrainingFailedError
from mirrorspark.training.entry_points.launch import LaunchConfig
from mirrorspark.training.executor.worker_failure import describe
from mirrorspark.training.executor.worker_log import CleanText, LogToDriver
from mirrorspark.training.job.readiness.checks import PreflightError, failure, require
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.protocol.outcomes.cause import Attempt, RankError
from mirrorspark.training.results.export_plan import ExportPlan
from mirrorspark.training.results.report.summary import Summary
from mirrorspark.training.run_records.tracked_run import TrackedRun, TrackingError
from mirrorspark.training.sweep.report import SweepSummary, command
from tests.unit.storage.secret_forms import FORMS, VARIABLES, Form, in_one_line

PLANTED = [*FORMS, *(Form(name, value, (value,)) for name, value in VARIABLES.items())]
TEXT = "\n".join(form.text for form in PLANTED)
LINE = in_one_line()
SERVER = f"http://ann:{VARIABLES['HF_TOKEN']}@127.0.0.1:9"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def leaks(*texts: str) -> list[str]:
    """Return the forms whose secrets are in one of the texts; each text must show that something was hidden."""
    assert [text for text in texts if HIDDEN not in text] == []
    return [form.name for form in PLANTED if any(form.found_in(text) for text in texts)]


def test_settings(tmp_path: Path) -> None:
    given = {"tracking_uri": SERVER, "csv_null": TEXT, "description": TEXT, "checkpoints": f"gs://b?key={LINE}"}
    RunConfig.from_recipe("flights", **given, sql=f"-- {LINE}\nSELECT 1").save(tmp_path / "config.yaml")
    launch = LaunchConfig("rides", "train", "0", tracking_uri=SERVER, checkpoints=f"gs://b?key={LINE}")
    launch.save(tmp_path / "launch.yaml")
    assert leaks(*(path.read_text() for path in tmp_path.iterdir())) == []


def test_summaries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Summary("failed", error=LINE, tracking_uri=SERVER, dataset={"source": {"password": "two words"}}).save(
        tmp_path / "summary.json"
    )
    again = command(["--tracking-uri", SERVER, f"--description={TEXT}"], {})
    SweepSummary("failed", error=LINE, command=again, recipe={"description": TEXT}).save(tmp_path / "sweep.json")
    assert leaks(again, *(path.read_text() for path in tmp_path.iterdir())) == []


def test_events(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "events.jsonl")
    events.append({"event": "log", "message": TEXT, "details": {"of": [LINE], "password": "two words"}})
    events.append({"event": "error", **describe(ValueError(TEXT))})
    events.close()
    assert leaks(*(tmp_path / "events.jsonl").read_text().splitlines()) == []


def test_errors_of_workers_and_tasks() -> None:
    told = describe(ValueError(TEXT))
    first = RankError("user", 1, told["type"], told["message"], 0.0, traceback=told["traceback"])
    error = TrainingFailedError((Attempt(1, None, (first,), 0),))
    assert leaks(str(error), *error.__notes__) == []
    assert leaks(task_message(RuntimeError(f"job aborted\nValueError: {LINE}\n")), first_line(OSError(LINE))) == []
    with pytest.raises(PreflightError) as raised:
        require([failure("tracking", LINE)])
    assert leaks(str(raised.value)) == []


def test_output_and_log_of_workers(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("wb") as file, CleanText(file.fileno()) as stream:
        print(TEXT, file=stream)
    line = HeardEvents()
    LogToDriver(line).handle(  # type: ignore[arg-type] # all it needs
        logging.LogRecord("rides", logging.WARNING, "file.py", 1, "no answer: %s", (LINE,), None)
    )
    assert leaks((tmp_path / "stderr").read_text(), *(event["message"] for event in line.events)) == []


@dataclass
class HeardEvents:
    events: list[Event] = field(default_factory=list)

    def send(self, event: Event) -> None:
        self.events.append(event)


def test_the_store_of_runs(tmp_path: Path, mlflow_store: str) -> None:
    log = EventFile(tmp_path / "events.jsonl")
    tracked = TrackedRun(mlflow_store, "planted", tmp_path, None, "planted-1", log)
    tracked.log_params({"note": TEXT, "store": {"uri": SERVER, "password": "two words"}})
    tracked.log_tags({"note": LINE})
    tracked.log_document({"errors": [TEXT]}, "errors.json")
    tracked.describe_model("rides", "3", "models:/m-1", TEXT)
    tracked.finish("FINISHED")
    with sqlite3.connect(mlflow_store.removeprefix("sqlite:///")) as database:
        kept = "\n".join(database.iterdump())
    (document,) = (tmp_path / "mlartifacts").rglob("errors.json")
    assert leaks(kept, document.read_text(), (tmp_path / "events.jsonl").read_text()) == []
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError) as raised:
        TrackedRun(f"sqlite:///{tmp_path}/file/{VARIABLES['HF_TOKEN']}", "planted", tmp_path, None, "planted-2")
    assert leaks(str(raised.value)) == []


def test_the_record_of_an_export_has_neither_passwords_nor_the_code_of_a_notebook() -> None:
    plan = ExportPlan(
        **dict.fromkeys(("dataset", "checkpoint", "folder", "predictions", "mlflow_run_id", "registered_model"), LINE),
        model_name=LINE,
        model_tags={"dataset": LINE},
        model="own_binary",
        model_options={"function": "build", "digest": "0", "code": "pickled"},
        seed=1,
        top_k=20,
        tracking_uri=SERVER,
        registry_uri=SERVER,
        threads=2,
    )
    assert "pickled" not in str(plan.identity)
    assert leaks(str(plan.identity)) == []


def test_scores_and_the_command_that_makes_them(capsys: pytest.CaptureFixture[str]) -> None:
    def decode(value: bytes) -> np.ndarray:
        raise ValueError(f"cannot decode: {value.decode()}")

    values = np.array([form.text.encode() for form in FORMS], dtype=object)
    _, errors = Decoder("decode", decode, (1,), np.dtype(np.float32)).arrays(Column("picture", "binary"), values)
    assert len(errors) == len(FORMS)
    assert leaks(" ".join(errors.values())) == []
    arguments = ["--model=m", "--input=i", "--output=o", "--keys=k", f"--outputs={LINE}"]
    assert score(arguments) == 2
    assert leaks(capsys.readouterr().err) == []
