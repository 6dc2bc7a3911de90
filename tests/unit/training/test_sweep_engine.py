"""Ties of a sweep to a training: folder, tags, stops and attempts. The training itself is made up."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlflow
import pytest

from mirrorspark.callbacks.mlflow.tracking_store import ActiveRun
from mirrorspark.scoring.model.stored.pinned import PinnedModel
from mirrorspark.training import pipeline
from mirrorspark.training.configuration.config import ConfigError, RunConfig
from mirrorspark.training.driver.errors import TrainingStoppedError
from mirrorspark.training.job.prepared_run import PreparedRun
from mirrorspark.training.job.warm_start import WarmStart
from mirrorspark.training.protocol.outcomes.cause import Attempt, RankError
from mirrorspark.training.results.report.summary import Summary
from mirrorspark.training.run_records import tracking
from mirrorspark.training.run_records.live.view import LiveView
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.tracked_run import OuterRun, TrackingError
from mirrorspark.training.run_records.tracking import Tracking
from mirrorspark.training.sweep import engine as sweep_engine
from mirrorspark.training.sweep.engine import SparkEngine, read_attempts, save_attempts
from mirrorspark.training.sweep.trials import PRUNED, TrialControl, TrialPlan

ATTEMPTS = (
    Attempt(1, None, (RankError("lost", 1, "killed", "killed by signal SIGKILL", 5.0),), 0, 100, 2),
    Attempt(2, 4, (), 100, 400, 2),
)


class FakeJob:
    """A training job that is over at once, or stops as it is asked to."""

    def __init__(self, opened: dict[str, Any]) -> None:
        self.opened = opened
        self.folder = opened["folder"]
        self.tracked = SimpleNamespace(run_id="child-1", log_tags=self._log_tags)
        self.run = SimpleNamespace(replay="mirrorspark runs replay metrics.jsonl")
        self.tags: dict[str, str] = {}
        self.reason: str | None = None
        self.epochs: dict[int, Any] = {}

    def _log_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def request_stop(self, reason: str) -> None:
        self.reason = reason

    stop_now = request_stop

    def train(self) -> tuple[Attempt, ...]:
        self.opened["listener"]({"event": "epoch_end", "rank": 0, "epoch": 1})
        self.opened["view"].on_event({"event": "stopping", "reason": "a test"})
        if self.reason is not None:
            raise TrainingStoppedError((), 10, self.reason)
        return ATTEMPTS


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[FakeJob]:
    """Let the engine open jobs that are made up; return them."""
    made: list[FakeJob] = []

    @contextlib.contextmanager
    def open_job(prepared: PreparedRun, view: LiveView, **how: Any) -> Iterator[FakeJob]:
        made.append(FakeJob({"config": prepared.config, "warm_start": prepared.warm_start, "view": view, **how}))
        yield made[-1]

    dataset = SimpleNamespace(manifest=SimpleNamespace(content_hash="d1", rows=lambda split: 100))

    def prepare(config: RunConfig, tracking: Tracking, view: LiveView, slots: int) -> PreparedRun:
        return PreparedRun(config, cast(Any, dataset), cast(Any, "the session"), tracking)

    monkeypatch.setattr(sweep_engine, "open_job", open_job)
    monkeypatch.setattr(sweep_engine, "prepare", prepare)
    return made


class Heard:
    """Records a trial's reports to the sweep."""

    def __init__(self, slots: int = 2) -> None:
        self.slots = slots
        self.events: list[Any] = []
        self.lines: list[str] = []
        self.notes: dict[str, str] = {}

    def control(self) -> TrialControl:
        return TrialControl(self.events.append, lambda: self.slots, self.lines.append, self.notes.__setitem__)


@pytest.fixture
def plan(new_config: Callable[..., RunConfig]) -> TrialPlan:
    return TrialPlan(7, new_config(epochs=3))


def engine_of(plan: TrialPlan, sweep: Path, parent: str | None = None) -> SparkEngine:
    """Return the engine of a sweep in the folder ``sweep``, whose MLflow run is ``parent``."""
    engine = SparkEngine(plan.config, LiveView(epochs=3, is_interactive=False, write=lambda line: None))
    assert engine.prepare(4) == "d1"
    engine._sweep, engine._label = RunFolder(sweep, "of searches", None), "rides-1"
    engine._parent = cast(Any, SimpleNamespace(run_id=parent))
    return engine


def test_a_trial_is_a_child_of_the_sweeps_run_in_a_folder_of_its_own(
    jobs: list[FakeJob], plan: TrialPlan, tmp_path: Path
) -> None:
    heard = Heard()
    engine_of(plan, tmp_path, "parent-1").train(plan, heard.control())
    (job,) = jobs
    assert job.opened["folder"] == RunFolder(
        tmp_path / "runs" / "rides-1-0007", f"{plan.config.fitted_to(100).identity}-d1", None
    )
    assert job.opened["slots"]() == 2
    assert job.tags == {
        "mlflow.parentRunId": "parent-1",
        "sweep": tmp_path.name,
        "trial": "7",
        "trial_state": "complete",
    }
    assert heard.notes == {"run_id": "child-1", "run_folder": str(tmp_path / "runs" / "rides-1-0007")}
    assert heard.events == [{"event": "epoch_end", "rank": 0, "epoch": 1}]
    assert "stopping: a test" in heard.lines[0]
    assert read_attempts(tmp_path / "runs" / "rides-1-0007") == ATTEMPTS


def test_a_sweep_within_an_active_run_logs_to_it_and_its_trials_stay_beside_it(
    jobs: list[FakeJob], plan: TrialPlan, tmp_path: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5: as a training does; the experiment is that of the active run."""
    mlflow.set_tracking_uri(mlflow_store)
    engine = engine_of(TrialPlan(7, replace(plan.config, output=str(tmp_path), tracking_uri=mlflow_store)), tmp_path)
    with mlflow.start_run(experiment_id=mlflow.create_experiment("the user's sweep")) as active:
        prepared = replace(engine._prepared, tracking=Tracking.find(engine._config))
        monkeypatch.setattr(engine, "_prepared", prepared)
        sweep = RunFolder(tmp_path, "of searches", None)
        parent = engine.open_parent(sweep, "rides-1")
        engine.train(plan, Heard().control())
        further = engine.open_parent(sweep, "rides-2")
        for tracked in (parent, further):
            tracked.finish("FINISHED")
        assert mlflow.get_run(active.info.run_id).info.status == "RUNNING"
    assert parent.run_id == active.info.run_id
    assert mlflow.get_run(further.run_id).data.tags["mlflow.parentRunId"] == active.info.run_id
    trial = jobs[0].opened["config"]
    assert (trial.experiment, trial.mlflow_run) == ("the user's sweep", "new")
    assert trial.identity == plan.config.fitted_to(100).identity
    assert jobs[0].tags["mlflow.parentRunId"] == active.info.run_id


def test_a_sweep_whose_active_run_cannot_be_looked_up_says_so_unless_an_earlier_command_knew_its_experiment(
    jobs: list[FakeJob], plan: TrialPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5, T7: its trials would land in another experiment."""

    def away(store: str) -> Any:
        raise ConnectionError(f"no way to {store}")

    def opened(store: str, experiment: str, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(experiment=experiment, run_id=None)

    monkeypatch.setattr(sweep_engine.tracking_store, "store_client", lambda store: SimpleNamespace(get_run=away))
    monkeypatch.setattr(tracking, "TrackedRun", opened)
    engine, sweep = engine_of(plan, tmp_path), RunFolder(tmp_path, "of searches", None)
    outer = OuterRun(ActiveRun("job-1", None), is_parent_only=False)
    monkeypatch.setattr(engine, "_prepared", replace(engine._prepared, tracking=Tracking("the store", "rides", outer)))
    with pytest.raises(TrackingError, match="does not say which experiment the active run job-1 is in"):
        engine.open_parent(sweep, "rides-1")
    assert engine.open_parent(sweep, "rides-1", "the user's sweep").experiment == "the user's sweep"
    engine.train(plan, Heard().control())
    assert jobs[0].opened["config"].experiment == "the user's sweep"


def test_the_study_hears_of_epochs_that_an_earlier_driver_may_not_have_kept(
    jobs: list[FakeJob], plan: TrialPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L9: the driver was killed between its event file and the study; the checkpoint means that it is not repeated."""
    known = {"event": "epoch_end", "rank": 0, "epoch": 1}
    later = {"event": "epoch_end", "rank": 0, "epoch": 2}

    def train(job: FakeJob) -> tuple[Attempt, ...]:
        job.epochs[2] = later  # whose receiver stumbled
        return ATTEMPTS

    monkeypatch.setattr(FakeJob, "train", train)
    monkeypatch.setattr(sweep_engine, "save_attempts", lambda path, attempts: None)
    make = FakeJob.__init__

    def made(job: FakeJob, opened: dict[str, Any]) -> None:
        make(job, opened)
        job.epochs[1] = known

    monkeypatch.setattr(FakeJob, "__init__", made)
    heard = Heard()
    engine_of(plan, tmp_path).train(plan, heard.control())
    assert heard.events == [known, known, later]


def test_parameter_servers_leave_fewer_slots_for_workers(
    jobs: list[FakeJob], new_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    plan = TrialPlan(7, new_config(strategy="parameter_server", parameter_servers=1))
    engine_of(plan, tmp_path).train(plan, Heard(slots=3).control())
    assert jobs[0].opened["slots"]() == 1


@pytest.mark.parametrize(("reason", "state"), [(PRUNED, "pruned"), ("SIGINT", "stopped")])
def test_a_stop_reaches_the_training_and_its_mlflow_run_says_which(
    jobs: list[FakeJob], plan: TrialPlan, tmp_path: Path, reason: str, state: str
) -> None:
    control = Heard().control()
    control.stop(reason)
    with pytest.raises(TrainingStoppedError):
        engine_of(plan, tmp_path).train(plan, control)
    assert jobs[0].tags == {"sweep": tmp_path.name, "trial": "7", "trial_state": state}


def test_a_trial_that_goes_on_keeps_its_mlflow_run(jobs: list[FakeJob], plan: TrialPlan, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "rides-1-0007"
    path.mkdir(parents=True)
    RunFolder(path, "abc", None).save_state("failed", "child-0")
    engine_of(plan, tmp_path).train(plan, Heard().control())
    assert jobs[0].opened["folder"].continues == "child-0"


def test_the_best_trial_is_delivered_from_its_own_folder_with_its_attempts(
    jobs: list[FakeJob], plan: TrialPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered: list[tuple[Any, ...]] = []

    def deliver(job: Any, attempts: Any, prepared: Any) -> Summary:
        delivered.append((job, attempts, prepared.config.identity))
        return Summary(status="finished", model_version="3")

    monkeypatch.setattr(pipeline, "deliver_and_score", deliver, raising=False)
    engine = engine_of(plan, tmp_path)
    engine.train(plan, Heard().control())
    summary = engine.deliver(plan)
    assert (summary.model_version, summary.replay) == (
        "3",
        "mirrorspark runs replay metrics.jsonl",
    )
    assert delivered == [(jobs[1], ATTEMPTS, plan.config.fitted_to(100).identity)]
    assert jobs[1].opened["folder"].path == tmp_path / "runs" / "rides-1-0007"


def exported(folder: Path, version: str) -> PinnedModel:
    """Return a model of which nothing is there but what a training begins from."""
    for part in ("saved_model/variables", "features"):
        (folder / part).mkdir(parents=True)
        (folder / part / "file").write_text(version)
    return PinnedModel(f"models:/flights/{version}", "flights", version, f"d{version}", folder)


def test_all_trials_begin_from_one_model_whatever_its_alias_means_to_a_later_command(
    jobs: list[FakeJob], new_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T12: and whether it is there at all by then."""
    plan = TrialPlan(7, new_config(warm_start="models:/flights@champion"))
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    monkeypatch.setattr(pipeline, "deliver_and_score", lambda *_: Summary(status="finished"))
    for meant in (exported(tmp_path / "3", "3"), exported(tmp_path / "4", "4"), None):
        engine = engine_of(plan, sweep)
        engine._prepared = replace(engine._prepared, warm_start=meant)
        engine.prepare_warm_start()
        engine.train(plan, Heard().control())
        engine.deliver(plan)
    kept = WarmStart("models:/flights/3", "d3", sweep / "warm_start")
    assert [job.opened["warm_start"] for job in jobs] == [kept] * 6
    assert (kept.folder / "features" / "file").read_text() == "3"


def test_a_sweep_whose_model_is_gone_trains_no_further_trials_from_another(
    jobs: list[FakeJob], new_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    plan = TrialPlan(7, new_config(warm_start="models:/flights@champion"))
    (tmp_path / "sweep" / "runs" / "rides-1-0007").mkdir(parents=True)
    engine = engine_of(plan, tmp_path / "sweep")
    with pytest.raises(ConfigError, match=r"sweep/warm_start, from which the run began, is missing; put it back"):
        engine.prepare_warm_start()


def test_attempts_survive_the_command(tmp_path: Path) -> None:
    save_attempts(tmp_path, ATTEMPTS)
    assert read_attempts(tmp_path) == ATTEMPTS
