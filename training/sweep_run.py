"""A sweep from its dataset to its best model: trials, then the table, the figures, and the best one's export."""

import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from matplotlib.figure import Figure

from callbacks.credentials import without_credentials
from plots.sweep import importance_bars, optimisation_history, parallel_coordinates
from training.config import ConfigError, RunConfig
from training.elastic import parse_workers
from training.run_folder import STATE_FILE, RunFolder, RunState, RunUnderWayError, driver_of
from training.signals import on_stop_signals
from training.summary import Summary
from training.sweep_report import SweepSummary, as_yaml, command, recipe_patch
from training.sweep_schedule import SweepLimits
from training.sweep_space import Range, SearchSpace
from training.sweep_study import Pruner, Sampler, StudySettings, SweepStudy, TrialRecord, open_study
from training.sweep_trials import TrialControl, TrialOrder, Trials

SWEEPS_FOLDER = "sweeps"
STUDY_FILE = "study.db"
SUMMARY_FILE = "sweep.json"
TABLE_FILE = "trials.txt"
BEST_FILE = "best.yaml"

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class SweepStoppedError(RuntimeError):
    """Somebody asked the sweep to stop; the same command goes on."""


class SweepUnderWayError(RuntimeError):
    """Another command is at work on the same sweep."""


@dataclass(frozen=True)
class SweepOptions:
    """What a sweep does.

    Attributes:
        config: What all trials share, and where they run.
        space: What is searched.
        arguments: The flags that ``config`` was made of, for the command that trains the best again.
        limits: How far it goes.
        sampler: How values are chosen.
        pruner: Which trials end early.
        study: Name of the sweep; by default the newest one that searches the same, or a new name.
    """

    config: RunConfig
    space: SearchSpace
    arguments: tuple[str, ...] = ()
    limits: SweepLimits = field(default_factory=SweepLimits)
    sampler: Sampler = "tpe"
    pruner: Pruner = "median"
    study: str | None = None

    def __post_init__(self) -> None:
        if self.study is not None and _NAME.fullmatch(self.study) is None:
            raise ConfigError(f"study '{self.study}' must be letters, digits, '.', '_' or '-': it names a folder")
        if self.sampler == "grid":
            self.space.grid()  # raises

    @property
    def slots_per_trial(self) -> int:
        """The most slots that a trial may take: its workers, and what ranks it has besides."""
        searched = self.space.domains.get("workers")
        if searched is None:
            return self.config.slots
        return max(parse_workers(workers).most for workers in searched.ends) + self.config.ranks_beside_workers

    @property
    def epochs(self) -> int:
        """The most epochs that a trial may have."""
        searched = self.space.domains.get("epochs")
        return max(int(epochs) for epochs in (searched.ends if searched else (self.config.epochs,)))

    def identity(self, dataset_hash: str) -> str:
        """Return what two sweeps share when one may go on with the other's trials."""
        document = json.dumps([self.config.identity, self.space.to_dict(), dataset_hash])
        return hashlib.sha256(document.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class SweepPlace:
    """Where a sweep and its trials are kept.

    Attributes:
        folder: The sweep's own.
        label: Unique among all runs of the experiment; names the MLflow runs.
        parent_run_id: The sweep's MLflow run; None as long as the server has not been there.
    """

    folder: Path
    label: str
    parent_run_id: Callable[[], str | None]

    def run_name(self, number: int) -> str:
        """Return the name of a trial's run."""
        return f"{self.label}-{number:04}"

    def run_folder(self, number: int) -> Path:
        """Return a trial's run folder; ``python -m training.runs --output FOLDER`` lists them."""
        return self.folder / "runs" / self.run_name(number)


class Tracked(Protocol):
    """What a sweep needs of :class:`training.tracking.TrackedRun`."""

    @property
    def run_id(self) -> str | None:
        """The run, once it is known."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""

    def log_text(self, text: str, name: str) -> None:
        """Keep a text."""

    def log_document(self, document: Any, name: str) -> None:
        """Keep a JSON document."""

    def log_figure(self, figure: Figure, name: str) -> None:
        """Keep a figure."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics."""

    def finish(self, status: str) -> str | None:
        """End the run."""


class Engine(Protocol):
    """What a sweep needs of Spark and of the training; :class:`training.sweep_engine.SparkEngine` is the real one."""

    def prepare(self, slots: int) -> str:
        """Open a session with that many slots, convert or find the dataset, and return its content hash."""

    def slots(self) -> int:
        """Return how many barrier tasks can run side by side now."""

    def open_parent(self, label: str, run_id: str | None) -> Tracked:
        """Open the sweep's own MLflow run, the one with that id if it has one."""

    def train(self, order: TrialOrder, control: TrialControl, place: SweepPlace) -> None:
        """Train a trial, from its checkpoint if it has one."""

    def deliver(self, order: TrialOrder, place: SweepPlace) -> Summary:
        """Export, register and judge a trained trial, as a run does."""


def run(options: SweepOptions, engine: Engine, *, write: Callable[[str], None] | None = None) -> SweepSummary:
    """Run the trials that are left, then export the best one.

    Args:
        options: What to do.
        engine: Trains.
        write: Shows a line; by default on standard error.

    Raises:
        SweepStoppedError: Somebody asked for it.
        SweepFailedError: No trial came to its end, or too many failed one after the other.
        Exception: What kept every trial from training.
    """
    write = write or _to_stderr
    # Only a local session can be made to measure; a cluster has the slots it has.
    identity = options.identity(engine.prepare(options.slots_per_trial * (options.limits.parallel or 1)))
    folder = open_sweep_folder(options, identity)
    name = folder.path.name
    settings = StudySettings(
        name=name,
        identity=identity,
        space=options.space,
        mode=options.config.mode,
        sampler=options.sampler,
        pruner=options.pruner,
        epochs=options.epochs,
        trials=options.limits.trials,
        seed=options.config.seed,
    )
    with open_study(folder.path / STUDY_FILE, settings) as study:
        if study.kept("label") is None:
            # Somebody else may call a sweep of this experiment the same.
            study.keep("label", f"{name}-{uuid4().hex[:4]}")
        label = str(study.kept("label"))
        with _held(folder), _tracked(engine, folder, label) as tracked:
            place = SweepPlace(folder.path, label, lambda: tracked.run_id)
            return _Sweep(options, engine, study, tracked, place, write).run()


@dataclass(frozen=True)
class _Sweep:
    """One sweep between its beginning and its end."""

    options: SweepOptions
    engine: Engine
    study: SweepStudy
    tracked: Tracked
    place: SweepPlace
    write: Callable[[str], None]

    def run(self) -> SweepSummary:
        config, study = self.options.config, self.study
        self._log_start()
        known = study.records()
        if known:
            over = sum(1 for record in known if record.state != "running")
            self.write(f"going on with sweep {self.place.folder.name}: {over} of {study.wanted} trials are over")
        trials = Trials(
            study=study,
            space=self.options.space,
            # The summary is the sweep's.
            base=replace(config, summary=None),
            train=lambda order, control: self.engine.train(order, control, self.place),
            slots=self.engine.slots,
            limits=replace(self.options.limits, trials=study.wanted),
            say=lambda number, text: self.write(f"trial {number}: {text}"),
            on_end=self._on_end,
        )
        try:
            with on_stop_signals(trials.request_stop, trials.stop_now):
                trials.run()
        except Exception as error:
            self._report("failed", {}, without_credentials(str(error)))
            raise
        if trials.stop_reason is not None:
            where = self._where_it_stopped(trials.stop_reason)
            self._report("stopped", {}, where)
            raise SweepStoppedError(where)
        return self._report("finished", self._deliver(), None)

    def _log_start(self) -> None:
        config = self.options.config
        public = config.public() | {"model": {"name": config.model["name"], **config.model_settings}}
        for name in ("sql", "tables", "features"):  # documents, which the trials' runs have
            public.pop(name, None)
        searched = {f"search.{knob}": str(domain) for knob, domain in self.options.space.domains.items()}
        # What is searched has no one value; what else is alike in all trials.
        fixed = {name: value for name, value in public.items() if name not in self.options.space.domains}
        fixed["model"] = {k: v for k, v in public["model"].items() if f"model.{k}" not in self.options.space.domains}
        how = {"sampler": self.options.sampler, "pruner": self.options.pruner}
        self.tracked.log_params(fixed | searched | how)
        self.tracked.log_tags({"sweep": self.place.folder.name, "recipe": config.name})

    def _on_end(self, record: TrialRecord) -> None:
        """Show in the sweep's own run how it gets on: a point per trial, and the best so far."""
        best = self.study.best()
        points = {"trial": record.best, "best": best.best if best else None}
        monitor = self.options.config.monitor
        found = {f"{name}_{monitor}": value for name, value in points.items() if value is not None}
        if found:
            self.tracked.log_metrics(found, record.number)

    def _where_it_stopped(self, reason: str) -> str:
        records = self.study.records()
        left = sum(1 for record in records if record.state == "running")
        goes_on = f", and {left} go on from their last checkpoint" if left else ""
        over = f"{len(records) - left} of {self.study.wanted} trials are over"
        return f"stopped ({reason}): {over}; the same command goes on{goes_on}"

    def _deliver(self) -> Mapping[str, Any]:
        """Export, register and judge the best trial, unless an earlier command has done so."""
        best = self.study.best()
        assert best is not None  # noqa: S101 - or the trials would have raised
        kept: Mapping[str, Any] = self.study.kept("delivered") or {}
        if kept.get("trial") == best.number:
            return kept
        self.write(f"the best is trial {best.number}: it is exported, registered and judged")
        summary = self.engine.deliver(self._order(best), self.place)
        told = ("run_id", "model_uri", "registered_model", "model_version", "metrics", "run_folder", "scored_table")
        delivered = {"trial": best.number, **{name: getattr(summary, name) for name in told}}
        # By way of JSON: that is what the study keeps, and what the next command finds.
        self.study.keep("delivered", json.loads(json.dumps(delivered)))
        return delivered

    def _order(self, record: TrialRecord) -> TrialOrder:
        return TrialOrder(record.number, self.options.space.configure(self.options.config, record.values))

    def _report(self, status: str, delivered: Mapping[str, Any], error: str | None) -> SweepSummary:
        """Write the sweep's documents into its folder, and log them and the figures to its MLflow run."""
        config, best = self.options.config, self.study.best()
        patch = recipe_patch(self._order(best).config, best.values) if best else {}
        summary = SweepSummary(
            status=status,
            study=self.place.folder.name,
            folder=str(self.place.folder),
            monitor=config.monitor,
            mode=config.mode,
            wanted=self.study.wanted,
            run_id=self.tracked.run_id,
            trials=self.study.records(),
            best=best,
            importances=self.study.importances(),
            recipe=patch,
            command=command(self.options.arguments, best.values) if best else "",
            delivered=delivered,
            error=error,
        )
        texts = {TABLE_FILE: summary.as_text() + "\n"} | ({BEST_FILE: as_yaml(patch)} if best else {})
        for name, text in texts.items():
            (self.place.folder / name).write_text(text, encoding="utf-8")
            self.tracked.log_text(text, name)
        summary.save(self.place.folder / SUMMARY_FILE)
        self.tracked.log_document(summary.to_dict(), SUMMARY_FILE)
        for name, figure in figures(summary, self.options.space).items():
            self.tracked.log_figure(figure, name)
        return summary


def figures(summary: SweepSummary, space: SearchSpace) -> dict[str, Figure]:
    """Return the figures that a sweep's trials are enough for."""
    told = [trial for trial in summary.trials if trial.best is not None and trial.values]
    complete = [trial for trial in told if trial.state == "complete"]
    found: dict[str, Figure] = {}
    if complete:
        found["optimisation_history"] = optimisation_history(
            {trial.number: trial.best or 0.0 for trial in complete},
            {trial.number: trial.best or 0.0 for trial in told if trial.state == "pruned"},
            metric=summary.monitor,
            mode=summary.mode,
        )
    if len(complete) > 1:
        found["parallel_coordinates"] = parallel_coordinates(
            [trial.values for trial in complete],
            [trial.best or 0.0 for trial in complete],
            metric=summary.monitor,
            mode=summary.mode,
            log=[knob for knob, domain in space.domains.items() if isinstance(domain, Range) and domain.is_log],
        )
    if summary.importances:
        found["importances"] = importance_bars(summary.importances, metric=summary.monitor)
    return found


def open_sweep_folder(options: SweepOptions, identity: str) -> RunFolder:
    """Return the folder of the sweep that goes on, or of a new one.

    Without a name it is the newest one that searches the same in the same configuration and dataset; ``--no-resume``
    begins another.

    Raises:
        SweepUnderWayError: Another command is at work on it.
        ConfigError: A new one was asked for under a name that is taken.
    """
    sweeps = Path(options.config.output).absolute() / SWEEPS_FOLDER
    if options.study is not None:
        path = sweeps / options.study
        state = _state(path)
        if state is not None and not options.config.resume:
            raise ConfigError(f"study '{options.study}' is in {path} already; give another --study, or go on with it")
        path.mkdir(parents=True, exist_ok=True)
        return _claimed(path, identity, state)
    if options.config.resume:
        for file in sorted(sweeps.glob(f"*/{STATE_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True):
            state = _state(file.parent)
            if state is not None and state.identity == identity:
                return _claimed(file.parent, identity, state)
    path = sweeps / f"{options.config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:4]}"
    path.mkdir(parents=True)
    return RunFolder(path, identity, None)


def _claimed(path: Path, identity: str, state: RunState | None) -> RunFolder:
    if state is not None and driver_of(path, state) in ("alive", "unknown"):
        raise SweepUnderWayError(
            f"sweep {path.name} is under way (process {state.process} on {state.host}); wait for it, or stop it. If "
            f"that process is gone, remove {path / STATE_FILE}"
        )
    return RunFolder(path, identity, state.mlflow_run_id if state else None)


def _state(path: Path) -> RunState | None:
    """Return the state of a sweep; None where there is none, or none that can be read."""
    try:
        return RunState(**json.loads((path / STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def _held(folder: RunFolder) -> Iterator[None]:
    """Be the sweep's only command while the block runs."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(folder.hold())
        except RunUnderWayError as error:
            raise SweepUnderWayError(str(error).replace("run ", "sweep ", 1)) from error
        yield


@contextlib.contextmanager
def _tracked(engine: Engine, folder: RunFolder, label: str) -> Iterator[Tracked]:
    """Open the sweep's MLflow run, and leave run and folder as the sweep ends."""
    tracked = engine.open_parent(label, folder.continues)
    folder.save_state("running", tracked.run_id)
    try:
        yield tracked
    except BaseException as error:
        folder.save_state("failed", tracked.run_id)
        is_stop = isinstance(error, SweepStoppedError | KeyboardInterrupt)
        tracked.finish("KILLED" if is_stop else "FAILED")
        raise
    tracked.finish("FINISHED")
    folder.save_state("finished", tracked.run_id)


def _to_stderr(line: str) -> None:
    print(without_credentials(line), file=sys.stderr, flush=True)
