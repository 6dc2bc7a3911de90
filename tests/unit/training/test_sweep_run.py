"""A sweep as a whole, with trainings that are made up: folder, MLflow run, resume, stop, and the best one's export."""

import contextlib
import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from matplotlib.figure import Figure

from mirrorspark.storage import Timing
from mirrorspark.training.configuration.config import ConfigError, RunConfig
from mirrorspark.training.driver.errors import TrainingStoppedError
from mirrorspark.training.protocol.names import STATE_FILE
from mirrorspark.training.results.report.summary import Summary
from mirrorspark.training.run_records import run_folder, run_state
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.run_state import RunUnderWayError, hold_lock
from mirrorspark.training.sweep import run as sweep_run
from mirrorspark.training.sweep.options import SweepOptions
from mirrorspark.training.sweep.report import BEST_FILE, SUMMARY_FILE, TABLE_FILE
from mirrorspark.training.sweep.run import SWEEPS_FOLDER, SweepStoppedError, run
from mirrorspark.training.sweep.space import read_space
from mirrorspark.training.sweep.study import STUDY_FILE
from mirrorspark.training.sweep.trials import SweepFailedError, TrialControl, TrialPlan


class FakeTracked:
    """Records the calls of MLflow by a sweep."""

    experiment = "nights"

    def __init__(self, run_id: str) -> None:
        self.run_id: str | None = run_id
        self.params: dict[str, Any] = {}
        self.tags: dict[str, str] = {}
        self.artifacts: dict[str, Any] = {}
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.status: str | None = None
        self.replay: str | None = None

    def log_params(self, params: Mapping[str, Any]) -> None:
        self.params |= params

    def log_tags(self, tags: Mapping[str, str]) -> None:
        self.tags |= tags

    def log_file(self, file: Path) -> None:
        self.artifacts[file.name] = file.read_text()

    def log_figure(self, figure: Figure, file: Path) -> None:
        self.artifacts[file.stem] = figure

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append((step, dict(metrics)))

    def finish(self, status: str) -> str | None:
        self.status = status
        return self.replay

    def abandon(self) -> None:
        self.status = "another's"


class FakeEngine:
    """Trains by a formula: the closer the learning rate comes to 0.01, the better."""

    def __init__(self, *, dataset: str = "d1", stop_in: int | None = None, error: Exception | None = None) -> None:
        self.dataset = dataset
        self.stop_in = stop_in
        self.error = error
        self.unsettled: Exception | None = None
        self.trained: list[int] = []
        self.delivered: list[int] = []
        self.parents: list[tuple[str, str | None]] = []
        self.experiments: list[str | None] = []
        self.tracked = FakeTracked("none")
        self.asked_slots = 0

    def prepare(self, slots: int) -> str:
        self.asked_slots = slots
        return self.dataset

    def slots(self) -> int:
        return 1

    def open_parent(self, sweep: RunFolder, label: str, experiment: str | None) -> FakeTracked:
        self.parents.append((label, sweep.continues))
        self.experiments.append(experiment)
        self.tracked = FakeTracked(sweep.continues or "parent-1")
        return self.tracked

    def prepare_warm_start(self) -> None:
        if self.unsettled is not None:
            raise self.unsettled

    def train(self, order: TrialPlan, control: TrialControl) -> None:
        self.trained.append(order.number)
        if self.error is not None:
            raise self.error
        control.set_attribute("run_id", f"run-{order.number}")
        value = 1 - abs(order.config.learning_rate - 0.01)
        control.on_event({"event": "epoch_end", "rank": 0, "epoch": 1, "logs": {"val_auc": value}})
        if order.number == self.stop_in:
            asked: list[str] = []
            control.connect(asked.append, asked.append)
            os.kill(os.getpid(), signal.SIGINT)
            with contextlib.suppress(TimeoutError):
                _until(lambda: bool(asked))
            raise TrainingStoppedError((), 10, asked[0])

    def deliver(self, order: TrialPlan) -> Summary:
        self.delivered.append(order.number)
        return Summary(status="finished", registered_model=order.config.name, model_version="7")


def _until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    import time

    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)


NewOptions = Callable[..., SweepOptions]


@pytest.fixture(autouse=True)
def _begin_with_tables(monkeypatch: pytest.MonkeyPatch, optuna_tables: Path) -> None:
    """Let a new study begin with the tables of an empty one: Optuna takes a second to make them."""
    open_study = sweep_run.open_study

    def open_copy(folder: Path, options: SweepOptions) -> Any:
        if not (folder / STUDY_FILE).exists():
            shutil.copy(optuna_tables, folder / STUDY_FILE)
        return open_study(folder, options)

    monkeypatch.setattr(sweep_run, "open_study", open_copy)


@pytest.fixture
def new_options(new_config: Callable[..., RunConfig], tmp_path: Path) -> NewOptions:
    def build(
        *, trials: int = 4, study: str | None = None, search: str = "log:1e-4:1e-1", **knobs: Any
    ) -> SweepOptions:
        config = new_config(output=str(tmp_path), **knobs)
        space = read_space([f"learning_rate={search}"], None, config)
        return SweepOptions(config, space, ("--recipe", "rides"), trials, study=study)

    return build


def quiet(line: str) -> None:
    pass


def test_a_sweep_trains_its_trials_and_exports_the_best(new_options: NewOptions, tmp_path: Path) -> None:
    engine = FakeEngine()
    summary = run(new_options(), engine, write=quiet)
    assert engine.trained == [0, 1, 2, 3]
    assert summary.best is not None
    closest = min(summary.trials, key=lambda trial: abs(trial.values["learning_rate"] - 0.01))
    assert summary.best.number == closest.number
    assert engine.delivered == [closest.number]
    assert summary.delivered["model_version"] == "7"

    folder = Path(summary.folder)
    assert folder.parent == tmp_path / SWEEPS_FOLDER
    assert {path.name for path in folder.iterdir()} >= {STUDY_FILE, SUMMARY_FILE, TABLE_FILE, BEST_FILE, STATE_FILE}
    assert yaml.safe_load((folder / BEST_FILE).read_text()) == {"learning_rate": closest.values["learning_rate"]}
    assert json.loads((folder / SUMMARY_FILE).read_text())["status"] == "finished"
    assert json.loads((folder / STATE_FILE).read_text())["status"] == "finished"


def test_the_sweeps_own_mlflow_run_has_space_points_tables_and_figures(new_options: NewOptions) -> None:
    engine = FakeEngine()
    summary = run(new_options(), engine, write=quiet)
    tracked = engine.tracked
    assert tracked.params["search.learning_rate"] == "log:1e-4:1e-1"
    assert "learning_rate" not in tracked.params
    assert tracked.params["sampler"] == "tpe"
    assert tracked.tags == {"sweep": summary.study, "recipe": "rides"}
    assert [step for step, _ in tracked.metrics] == [1, 2, 3, 4]
    best = [metrics["best_val_auc"] for _, metrics in tracked.metrics]
    assert best == sorted(best)
    assert {"optimization_history", "parallel_coordinate", SUMMARY_FILE, TABLE_FILE} <= set(tracked.artifacts)
    assert tracked.status == "FINISHED"


def test_the_same_command_again_has_nothing_left_to_do(new_options: NewOptions) -> None:
    first = run(new_options(), FakeEngine(), write=quiet)
    engine = FakeEngine()
    again = run(new_options(), engine, write=quiet)
    assert (engine.trained, engine.delivered) == ([], [])
    assert (again.study, again.best) == (first.study, first.best)
    assert again.delivered["model_version"] == "7"
    assert engine.parents == [(engine.parents[0][0], "parent-1")]


def test_more_trials_go_on_with_the_sweep(new_options: NewOptions) -> None:
    first = run(new_options(), FakeEngine(), write=quiet)
    engine = FakeEngine()
    lines: list[str] = []
    more = run(new_options(trials=6), engine, write=lines.append)
    assert engine.trained == [4, 5]
    assert more.study == first.study
    assert lines[0] == f"resuming sweep {first.study}: 4 of 6 trials have ended"


@pytest.mark.parametrize(
    ("engine", "changes"),
    [
        (FakeEngine(dataset="d2"), {}),
        (FakeEngine(), {"search": "log:1e-5:1e-1"}),
        (FakeEngine(), {"epochs": 7}),
        (FakeEngine(), {"resume": False}),
    ],
    ids=["other data", "other space", "other configuration", "no resume"],
)
def test_another_sweep_is_a_new_one(new_options: NewOptions, engine: FakeEngine, changes: dict[str, Any]) -> None:
    first = run(new_options(), FakeEngine(), write=quiet)
    engine.trained.clear()
    assert run(new_options(**changes), engine, write=quiet).study != first.study
    assert engine.trained == [0, 1, 2, 3]


def test_a_signal_stops_the_sweep_and_the_same_command_goes_on(new_options: NewOptions, tmp_path: Path) -> None:
    engine = FakeEngine(stop_in=1)
    with pytest.raises(SweepStoppedError) as caught:
        run(new_options(study="night"), engine, write=quiet)
    assert str(caught.value) == (
        "stopped (SIGINT): 1 of 4 trials have ended; the same command goes on, with 1 from their last checkpoint"
    )
    assert engine.tracked.status == "KILLED"
    assert engine.delivered == []
    for name in (STATE_FILE, SUMMARY_FILE):
        assert json.loads((tmp_path / SWEEPS_FOLDER / "night" / name).read_text())["status"] == "stopped"
    again = FakeEngine()
    summary = run(new_options(study="night"), again, write=quiet)
    assert again.trained == [1, 3, 4]  # Optuna counts the second try of a trial, too
    assert again.parents[0] == (engine.parents[0][0], "parent-1")
    assert (engine.experiments[0], again.experiments[0]) == (None, "nights")
    assert summary.study == "night"
    assert [trial.state for trial in summary.trials] == ["complete"] * 4


def test_a_sweep_without_a_trained_trial_fails_and_still_tells(new_options: NewOptions, tmp_path: Path) -> None:
    engine = FakeEngine(error=RuntimeError("no such layer"))
    with pytest.raises(SweepFailedError, match="no such layer"):
        run(new_options(study="night"), engine, write=quiet)
    assert engine.tracked.status == "FAILED"
    document = json.loads((tmp_path / SWEEPS_FOLDER / "night" / SUMMARY_FILE).read_text())
    assert document["status"] == "failed"
    assert "no such layer" in document["error"]
    assert "no such layer" in engine.tracked.artifacts[TABLE_FILE]


def test_an_unusable_warm_start_is_reported_before_the_first_trial(new_options: NewOptions, tmp_path: Path) -> None:
    """T12: the sweep, not its trials, has failed."""
    engine = FakeEngine()
    engine.unsettled = ConfigError("warm_start is missing")
    with pytest.raises(ConfigError, match="warm_start is missing"):
        run(new_options(study="night"), engine, write=quiet)
    assert (engine.trained, engine.tracked.status) == ([], "FAILED")
    assert json.loads((tmp_path / SWEEPS_FOLDER / "night" / STATE_FILE).read_text())["status"] == "failed"
    again = FakeEngine()
    run(new_options(study="night"), again, write=quiet)
    assert again.trained == [0, 1, 2, 3]


REPLAY = "mirrorspark runs replay metrics.jsonl"


def test_the_summary_holds_the_command_that_sends_what_mlflow_did_not_get(
    new_options: NewOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T7: the server was away to the end."""
    engine = FakeEngine()
    monkeypatch.setattr(FakeTracked, "finish", lambda self, status: REPLAY)
    summary = run(new_options(trials=1), engine, write=quiet)
    assert summary.replay == REPLAY
    folder = Path(summary.folder)
    assert json.loads((folder / SUMMARY_FILE).read_text())["replay"] == REPLAY
    assert f"send metrics: {REPLAY}" in (folder / TABLE_FILE).read_text()


def test_a_full_disk_at_the_end_hides_neither_the_error_nor_the_end(
    new_options: NewOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """T7: even if nothing can be written, MLflow gets the end, and people the error."""
    save = RunFolder.save_state

    def full(self: RunFolder, status: Any, run_id: str | None) -> None:
        if status != "running":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, status, run_id)

    monkeypatch.setattr(RunFolder, "save_state", full)
    engine = FakeEngine(error=RuntimeError("no such layer"))
    with pytest.raises(SweepFailedError, match="no such layer"):
        run(new_options(), engine, write=quiet)
    assert engine.tracked.status == "FAILED"
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize(
    ("engine", "error"),
    [
        (FakeEngine(error=RuntimeError("no such layer")), SweepFailedError),
        (FakeEngine(stop_in=1), SweepStoppedError),
    ],
    ids=["failed", "stopped"],
)
def test_a_report_that_cannot_be_written_does_not_hide_how_the_sweep_ended(
    new_options: NewOptions,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    engine: FakeEngine,
    error: type[Exception],
) -> None:
    (tmp_path / SWEEPS_FOLDER / "night" / TABLE_FILE).mkdir(parents=True)
    with pytest.raises(error):
        run(new_options(study="night"), engine, write=quiet)
    assert "the report of sweep night" in caplog.text
    assert engine.tracked.status == ("FAILED" if error is SweepFailedError else "KILLED")


def test_an_export_that_fails_is_reported(
    new_options: NewOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deliver(self: FakeEngine, order: TrialPlan) -> Summary:
        raise RuntimeError("the registry says no")

    monkeypatch.setattr(FakeEngine, "deliver", deliver)
    with pytest.raises(RuntimeError, match="the registry says no"):
        run(new_options(study="night"), FakeEngine(), write=quiet)
    document = json.loads((tmp_path / SWEEPS_FOLDER / "night" / SUMMARY_FILE).read_text())
    assert (document["status"], document["error"]) == ("failed", "the registry says no")
    assert [trial["state"] for trial in document["trials"]] == ["complete"] * 4


def test_points_of_trials_that_end_out_of_order_have_rising_steps(
    new_options: NewOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T7: MLflow's buffer skips a step at or below one that was logged."""
    second_is_over = threading.Event()
    train = FakeEngine.train

    def in_turn(self: FakeEngine, order: TrialPlan, control: TrialControl) -> None:
        if order.number == 0:
            assert second_is_over.wait(60.0)
        train(self, order, control)
        if order.number == 2:  # its slots were those of trial 1, which is over and kept
            second_is_over.set()

    monkeypatch.setattr(FakeEngine, "train", in_turn)
    monkeypatch.setattr(FakeEngine, "slots", lambda self: 2)
    engine = FakeEngine()
    run(new_options(trials=3), engine, write=quiet)
    assert [step for step, _ in engine.tracked.metrics] == [1, 2, 3]


def test_another_commands_sweep_is_not_touched(new_options: NewOptions, tmp_path: Path) -> None:
    """T2: a trial that has no values yet is another command's, which is about to choose them."""
    run(new_options(trials=1, study="night"), FakeEngine(), write=quiet)
    path = tmp_path / SWEEPS_FOLDER / "night"
    (path / STATE_FILE).unlink()  # as it is seen before the other command has written it
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{path / STUDY_FILE}")
    study.ask()
    with hold_lock(path), pytest.raises(RunUnderWayError, match="sweep night is under way in another driver"):
        run(new_options(study="night"), FakeEngine(), write=quiet)
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "RUNNING"]


def test_a_sweep_that_another_driver_takes_over_stops(
    new_options: NewOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T2: this driver slept, and was taken for dead."""
    monkeypatch.setattr(run_folder, "TIMING", Timing(heartbeat_seconds=0.01))
    path = tmp_path / SWEEPS_FOLDER / "night" / STATE_FILE

    def train(self: FakeEngine, order: TrialPlan, control: TrialControl) -> None:
        stopped, reasons = threading.Event(), []

        def stop_now(reason: str) -> None:
            reasons.append(reason)
            stopped.set()

        control.connect(lambda reason: None, stop_now)
        while not stopped.wait(0.02):  # a sign of life may be on its way
            path.write_text(json.dumps(json.loads(path.read_text()) | {"holder": "another"}))
        raise TrainingStoppedError((), 10, reasons[0])

    monkeypatch.setattr(FakeEngine, "train", train)
    engine = FakeEngine()
    with pytest.raises(SweepStoppedError, match=r"stopped \(another driver has taken over this sweep\)"):
        run(new_options(study="night"), engine, write=quiet)
    assert json.loads(path.read_text())["holder"] == "another"
    assert engine.tracked.status == "another's"
    assert not (path.parent / TABLE_FILE).exists()
    assert not engine.tracked.artifacts


def test_a_sweep_taken_over_at_its_end_is_not_finished_by_its_former_driver(
    new_options: NewOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T2."""
    path = tmp_path / SWEEPS_FOLDER / "night" / STATE_FILE

    def deliver(self: FakeEngine, order: TrialPlan) -> Summary:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"holder": "another"}))
        return Summary(status="finished")

    monkeypatch.setattr(FakeEngine, "deliver", deliver)
    engine = FakeEngine()
    with pytest.raises(RunUnderWayError, match="sweep night is under way in another driver"):
        run(new_options(study="night"), engine, write=quiet)
    assert engine.tracked.status == "another's"


def test_a_sweep_goes_on_after_its_machine_was_started_anew(
    new_options: NewOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T2: its driver was on a machine that is no longer seen, and is only known by its silence."""
    run(new_options(trials=1, study="night"), FakeEngine(), write=quiet)
    path = tmp_path / SWEEPS_FOLDER / "night" / STATE_FILE
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"status": "running", "boot": "the boot before"}))
    monkeypatch.setattr(run_state, "TIMING", Timing(heartbeat_seconds=0.05, stale_seconds=0.2, look_seconds=0.01))
    engine = FakeEngine()
    run(new_options(trials=2, study="night"), engine, write=quiet)
    assert engine.trained == [1]


def test_a_named_study_of_another_search_is_refused(new_options: NewOptions) -> None:
    first = run(new_options(study="night", trials=1), FakeEngine(), write=quiet)
    before = (Path(first.folder) / STATE_FILE).read_text()
    with pytest.raises(ConfigError, match=r"study 'night' in .* searches other values"):
        run(new_options(study="night", search="log:1e-5:1e-1"), FakeEngine(), write=quiet)
    with pytest.raises(ConfigError, match=r"study 'night' is in .* already; give another --study"):
        run(new_options(study="night", resume=False), FakeEngine(), write=quiet)
    assert (Path(first.folder) / STATE_FILE).read_text() == before


def test_a_local_session_has_room_for_the_trials_side_by_side(
    new_options: NewOptions, new_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    engine = FakeEngine()
    config = new_config(output=str(tmp_path))
    space = read_space(["workers=choice:1,2"], None, config)
    run(SweepOptions(config, space, trials=1, parallel=3), engine, write=quiet)
    assert engine.asked_slots == 6
