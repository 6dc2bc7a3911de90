"""T7, L17: reading of runs' folders: whole, cut off, damaged and foreign ones."""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mirrorspark.callbacks.mlflow.tracking_store import DEFAULT_OUTPUT
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.run_history import (
    UNSET,
    Launch,
    RunNotFoundError,
    RunRecord,
    UnreadableRun,
    differences,
    find,
    history,
    read_curves,
)

CONFIG = {"name": "rides", "recipe": "rides", "workers": 2, "epochs": 3, "monitor": "val_auc", "mode": "max"}
STATE = {
    "identity": "0123456789ab-fedcba9876543210",
    "status": "finished",
    "mlflow_run_id": "m1",
    "host": socket.gethostname(),
    "process": 1,
    "process_started": 0.0,
}

NewRun = Callable[..., Path]


def epoch_end(epoch: int, time: float, *, rank: int = 0, **logs: float) -> dict[str, Any]:
    return {
        "event": "epoch_end",
        "epoch": epoch,
        "logs": logs,
        "examples_per_second": 100.0,
        "rank": rank,
        "attempt": 1,
        "time": time,
    }


@pytest.fixture
def new_run(tmp_path: Path) -> NewRun:
    """Return a function that makes the folder of a run under ``tmp_path``."""

    def make(
        name: str = "rides-20261120-120000-aaaa",
        *,
        state: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        events: Sequence[Mapping[str, Any]] = (),
        summary: Mapping[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(STATE | dict(state or {})))
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | dict(config or {})))
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        if summary is not None:
            (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return make


def only(output: Path) -> RunRecord:
    (run,) = history(output)
    assert isinstance(run, RunRecord)
    return run


def test_the_default_output_is_that_of_a_run() -> None:
    assert RunConfig.output == DEFAULT_OUTPUT


def test_runs_are_listed_newest_first_by_the_start_in_their_names(new_run: NewRun, tmp_path: Path) -> None:
    names = [f"{recipe}-20261120-{time}-aaaa" for recipe, time in (("b", "090000"), ("a", "110000"), ("c", "100000"))]
    for name in names:
        new_run(name)
    assert [run.name[0] for run in history(tmp_path)] == ["a", "c", "b"]
    assert history(tmp_path / "nowhere") == []


def test_a_training_from_python_tells_what_it_delivered(new_run: NewRun, tmp_path: Path) -> None:
    folder = new_run(events=[epoch_end(1, 1.0, val_auc=0.6)])
    delivered = {"metrics": {"test": {"auc": 0.7}}, "examples_per_second": 5.0, "attempts": []}
    (folder / "trained.json").write_text(json.dumps(delivered))
    run = only(tmp_path)
    assert run.test_metric == ("auc", 0.7)
    assert run.summary["examples_per_second"] == 5.0


def test_best_epoch_and_test_metric_are_those_of_the_monitor(new_run: NewRun, tmp_path: Path) -> None:
    events = [epoch_end(epoch, epoch, val_auc=value) for epoch, value in ((1, 0.6), (2, 0.8), (3, 0.8))]
    new_run(events=events, summary={"metrics": {"test": {"log_loss": 0.3, "auc": 0.75}}})
    run = only(tmp_path)
    assert (run.best_epoch, run.best) == (2, 0.8)
    assert run.test_metric == ("auc", 0.75)


def test_a_smaller_loss_is_better_and_nan_is_never_best(new_run: NewRun, tmp_path: Path) -> None:
    events = [epoch_end(epoch, epoch, val_loss=value) for epoch, value in ((1, float("nan")), (2, 0.5), (3, 0.4))]
    summary = {"metrics": {"test": {"recall_at_5": 0.1, "recall_at_20": 0.3, "odd": "nan"}}}
    new_run(config={"monitor": "val_loss", "mode": "min"}, events=events, summary=summary)
    run = only(tmp_path)
    assert (run.best_epoch, run.best) == (3, 0.4)
    # A retrieval model has no loss on the test split; its longest list is the most informative.
    assert run.test_metric == ("recall_at_20", 0.3)
    assert "odd" not in run.metrics("test")


def test_a_run_without_epochs_has_no_best(new_run: NewRun, tmp_path: Path) -> None:
    new_run(state={"status": "failed"})
    run = only(tmp_path)
    assert (run.best_epoch, run.best, run.test_metric, run.curves.seconds) == (None, None, None, None)
    assert run.curves.columns() == {}


def test_the_drivers_life_shows_in_the_status(new_run: NewRun, tmp_path: Path) -> None:
    me = psutil.Process()
    alive = {"status": "running", "process": me.pid, "process_started": me.create_time()}
    new_run("a-20261120-120000-aaaa", state=alive)
    new_run("b-20261120-120000-aaaa", state=alive | {"process_started": 0.0})
    new_run("c-20261120-120000-aaaa", state=alive | {"host": "node-7"})
    new_run("d-20261120-120000-aaaa", state={"status": "failed"})
    elsewhere = {"status": "running", "host": "node-7", "holder": "h"}
    new_run("e-20261120-120000-aaaa", state=elsewhere | {"heartbeat": time.time()})
    found = {run.name[0]: (run.status, run.driver) for run in history(tmp_path) if isinstance(run, RunRecord)}
    assert found == {
        "a": ("running", "alive"),
        "b": ("driver gone", "gone"),
        "c": ("running on node-7?", "unknown"),
        "d": ("failed", None),
        "e": ("running on node-7?", "unknown"),  # clocks of two machines are not compared
    }


def test_a_driver_that_holds_its_run_is_alive_whatever_the_clock_says(new_run: NewRun, tmp_path: Path) -> None:
    path = new_run()
    with RunFolder(path, "0123456789ab-fedcba9876543210", None).hold():
        state = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps(state | {"process_started": 0.0, "heartbeat": 0.0}))
        assert (only(tmp_path).driver, only(tmp_path).status) == ("alive", "running")
        (path / "run.json").write_text(json.dumps(state))
    assert (only(tmp_path).driver, only(tmp_path).status) == ("gone", "driver gone")


def test_time_in_training_is_that_of_all_attempts_without_the_breaks(new_run: NewRun, tmp_path: Path) -> None:
    """T7: a driver that was killed and started again an hour later has not trained for that hour."""
    events = [
        {"event": "attempt", "attempt": 1, "workers": 2, "resumed_from": 0},
        {"event": "phase", "rank": 0, "time": 100.0},
        epoch_end(1, 110.0, val_auc=0.5),
        {"event": "attempt", "attempt": 1, "workers": 2, "resumed_from": 35, "time": 4000.0},
        {"event": "phase", "rank": 0, "time": 4001.0},
        epoch_end(1, 4002.0, val_auc=0.9),
        epoch_end(2, 4005.0, val_auc=0.6),
        {"event": "progress", "rank": 1, "time": 4007.0},
    ]
    new_run(events=events)
    curves = only(tmp_path).curves
    assert curves.attempts == 2
    assert curves.seconds == pytest.approx(10 + 7)
    assert {epoch: logs["val_auc"] for epoch, logs in curves.epochs.items()} == {1: 0.5, 2: 0.6}


def test_only_the_chief_speaks_for_an_epoch_and_a_missing_one_is_a_gap(new_run: NewRun, tmp_path: Path) -> None:
    events = [epoch_end(1, 1, loss=0.5), epoch_end(1, 1, rank=1, loss=0.7), epoch_end(3, 3, loss=0.3)]
    new_run(events=events)
    columns = only(tmp_path).curves.columns()
    assert columns["loss"][0] == 0.5
    assert columns["loss"][1] != columns["loss"][1]
    assert columns["loss"][2] == 0.3


def test_lines_that_a_crash_cut_off_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    whole = json.dumps(epoch_end(1, 5.0, loss=0.5))
    attempt = json.dumps({"event": "attempt", "attempt": 1, "time": 1.0})
    odd = json.dumps({"event": "epoch_end", "rank": 0, "epoch": "2", "logs": [], "time": 10**400})
    begin = json.dumps({"event": "attempt", "time": "now"})
    file.write_text(f'{begin}\n{attempt}\n{whole}\n{odd}\n[1, 2]\n{{"event": "epoch_end", "epo')
    curves = read_curves(file)
    assert list(curves.epochs) == [1]
    assert curves.seconds is not None
    assert read_curves(tmp_path / "nowhere").epochs == {}


def test_lines_for_mlflow_alone_count_for_no_duration(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    attempt = {"event": "attempt", "attempt": 1, "time": 1.0}
    for_mlflow = {"event": "mlflow_metrics", "metrics": {"loss": 1.0}, "step": 1, "timestamp_ms": 9}
    lines = [for_mlflow, attempt, epoch_end(1, 5.0, loss=0.5), *([for_mlflow] * 3)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    without = read_curves(file)
    assert (list(without.epochs), without.seconds) == ([1], 4.0)


def test_an_attempt_ends_with_its_last_event_and_a_wait_for_slots_belongs_to_none(tmp_path: Path) -> None:
    """F7: a run's cost is that of the resources that each attempt held."""
    file = tmp_path / "events.jsonl"
    lines: list[dict[str, Any]] = [
        {"event": "waiting", "time": 0.0},
        {"event": "attempt", "attempt": 1, "workers": 4, "time": 10.0},
        epoch_end(1, 30.0, loss=0.5),
        {"event": "restart", "time": 31.0},
        {"event": "attempt", "attempt": 2, "workers": 2, "time": 40.0},
        {"event": "alive", "time": 45.0},
        # Another driver goes on an hour later.
        {"event": "waiting", "time": 3600.0},
        {"event": "attempt", "attempt": 1, "time": 3700.0},
        {"event": "attempt", "attempt": 2, "workers": 3, "time": 3800.0},
        epoch_end(2, 3807.0, loss=0.4),
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_curves(file).launches == (Launch(4, 20.0), Launch(2, 5.0), Launch(None, 0.0), Launch(3, 7.0))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"run.json": '{"identity": "'}, "run.json is damaged (Unterminated string"),
        ({"run.json": "[]"}, "run.json is damaged (it holds a list, not fields with values)"),
        ({"run.json": '{"unknown": 1}'}, "run.json is damaged ("),
        ({"run.json": "\x00"}, "run.json is damaged ("),
        ({"config.yaml": "a: [b"}, "config.yaml is damaged (while parsing"),
        ({"config.yaml": "- a"}, "config.yaml is damaged (it holds a list"),
        ({"config.yaml": None}, "it has no config.yaml"),
        ({"run.json": None}, "it has no run.json: its start is under way, or was cut off"),
        ({"run.json": None, "config.yaml": None}, "it has no run.json: no run"),
    ],
)
def test_a_damaged_or_foreign_folder_is_told_as_such(
    new_run: NewRun, tmp_path: Path, damage: dict[str, str | None], reason: str
) -> None:
    folder = new_run()
    for name, text in damage.items():
        (folder / name).unlink()
        if text is not None:
            (folder / name).write_text(text)
    (run,) = history(tmp_path)
    assert isinstance(run, UnreadableRun)
    assert run.reason.startswith(reason)
    with pytest.raises(RunNotFoundError, match="cannot be read"):
        find(tmp_path, run.name)


def test_a_damaged_summary_leaves_a_run(new_run: NewRun, tmp_path: Path) -> None:
    (new_run(summary={}) / "summary.json").write_text("{")
    assert only(tmp_path).summary == {}


@pytest.mark.parametrize("metrics", [None, [], {"test": None}, {"test": {"auc": None}}])
def test_a_foreign_summary_gives_no_metrics(new_run: NewRun, tmp_path: Path, metrics: Any) -> None:
    new_run(summary={"metrics": metrics})
    assert only(tmp_path).test_metric is None


def test_files_and_hidden_folders_among_the_runs_are_left_alone(new_run: NewRun, tmp_path: Path) -> None:
    new_run()
    (tmp_path / "runs" / "notes.txt").write_text("")
    (tmp_path / "runs" / ".hidden").mkdir()
    only(tmp_path)


def test_a_run_is_found_by_name_unique_prefix_or_latest(new_run: NewRun, tmp_path: Path) -> None:
    new_run("rides-20261120-120000-aaaa")
    new_run("rides-20261120-120000-aaab")
    new_run("flights-20261119-120000-cccc")
    (tmp_path / "runs" / "foreign").mkdir()
    assert find(tmp_path, "flights").name == "flights-20261119-120000-cccc"
    assert find(tmp_path, "rides-20261120-120000-aaaa").name == "rides-20261120-120000-aaaa"
    assert find(tmp_path, "latest").name == "rides-20261120-120000-aaab"
    with pytest.raises(RunNotFoundError, match=r"'rides' begins several runs: .*aaab, .*aaaa; give more of it"):
        find(tmp_path, "rides")
    with pytest.raises(RunNotFoundError, match=r"is called 'nope'; there are rides-.* \(another --output\?\)"):
        find(tmp_path, "nope")
    with pytest.raises(RunNotFoundError, match="is called ''"):
        find(tmp_path, "")
    with pytest.raises(RunNotFoundError, match="there is none"):
        find(tmp_path / "empty", "latest")


def test_differences_name_nested_settings_and_leave_out_how_the_command_was_given() -> None:
    before = {"seed": 1, "model": {"name": "a", "units": [8]}, "summary": "x.json", "label": "late", "empty": {}}
    after = {
        "seed": 1,
        "model": {"name": "a", "units": [8, 4]},
        "summary": None,
        "label": {"name": "late"},
        "empty": {},
    }
    assert differences([before, after]) == {
        "model.units": ([8], [8, 4]),
        "label": ("late", UNSET),
        "label.name": (UNSET, "late"),
    }
    assert differences([before, before, before]) == {}


def test_a_folder_that_vanishes_is_no_traceback(new_run: NewRun, tmp_path: Path) -> None:
    folder = new_run("oddly-named")
    os.unlink(folder / "events.jsonl")  # noqa: PTH108
    assert only(tmp_path).curves.epochs == {}
