"""The study of a sweep: what Optuna chooses to try next, kept in an SQLite file with which a killed sweep goes on."""

import contextlib
import math
import random
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from callbacks.commit import Mode
from training.config import ConfigError
from training.sweeping.space import Choice, Domain, SearchSpace, label_of

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "hyperband", "none"]
State = Literal["complete", "pruned", "failed", "running"]

# Of fewer finished trials an importance would be noise.
FEWEST_FOR_IMPORTANCE = 8

_LOCK_SECONDS = 60
_STATES: Mapping[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


class AnotherSweepError(ConfigError):
    """A study of this name belongs to a sweep with another search space, configuration or dataset."""


@dataclass(frozen=True)
class TrialRecord:
    """What is known of a trial.

    Attributes:
        number: Counts from 0, as Optuna does.
        state: How it ended, or that it has not.
        values: Per searched knob its value.
        history: Epoch, counted from 1 -> the monitored metric.
        best: The best of them; None before the first epoch.
        seconds: Time in training, of all commands together.
        error: Why it failed.
        run_id: Its MLflow run.
        run_folder: Its run folder.
    """

    number: int
    state: State
    values: Mapping[str, Any]
    history: Mapping[int, float] = field(default_factory=dict)
    best: float | None = None
    seconds: float = 0.0
    error: str | None = None
    run_id: str | None = None
    run_folder: str | None = None

    @property
    def epochs(self) -> int:
        """Epochs that it has told of."""
        return max(self.history, default=0)


@dataclass(frozen=True)
class StudySettings:
    """What a study is about.

    Attributes:
        name: Its name in the storage.
        identity: What two sweeps share when one may go on with the other's trials.
        space: What is searched.
        mode: Whether a larger or a smaller value is better.
        sampler: How the next values are chosen.
        pruner: Which trials end before their last epoch.
        epochs: The most epochs of a trial.
        trials: How many trials are wanted; a grid gives no more than it has points.
        seed: Fixes the choices.
    """

    name: str
    identity: str
    space: SearchSpace
    mode: Mode
    sampler: Sampler = "tpe"
    pruner: Pruner = "median"
    epochs: int = 1
    trials: int = 1
    seed: int = 0


class SweepStudy:
    """Trials, past and present. Threads may share it."""

    def __init__(self, study: optuna.Study, storage: optuna.storages.BaseStorage, settings: StudySettings) -> None:
        """Take what :func:`open_study` made."""
        self._study = study
        self._storage = storage
        self._settings = settings
        self._id = storage.get_study_id_from_name(settings.name)
        # Events of several trials come from several threads, and what a pruner sees must be one moment's.
        self._lock = threading.RLock()
        self._trials: dict[int, Trial] = {}

    def begin(self) -> TrialRecord:
        """Return a trial to run: one that a killed or interrupted command left, or a new one."""
        with self._lock:
            left = [
                record for record in self.records() if record.state == "running" and record.number not in self._trials
            ]
            if left:
                number = left[0].number
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
                self._trials[number] = Trial(self._study, trial_id)
                return left[0]
            trial = self._study.ask(_distributions(self._settings.space))
            self._trials[trial.number] = trial
            return self.record(trial.number)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Keep the value of an epoch and return whether the trial should end; a value told before is skipped."""
        with self._lock:
            trial = self._trials[number]
            # Attempts repeat epochs; and of a value that is no number a pruner cannot say anything.
            if epoch in self.record(number).history or not math.isfinite(value):
                return False
            trial.report(value, epoch)
            return bool(trial.should_prune())

    def end(self, number: int, state: State, *, seconds: float, error: str | None = None) -> TrialRecord:
        """Keep how a trial ended; one that is still ``running`` is kept for the next command."""
        with self._lock:
            trial = self._trials.pop(number)
            trial.set_user_attr("seconds", self.record(number).seconds + seconds)
            if error is not None:
                trial.set_user_attr("error", error)
            best = self.record(number).best
            if state == "complete" and best is None:
                trial.set_user_attr("error", "it ended without a value of the monitored metric")
                state = "failed"
            if state != "running":
                told = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[state]
                self._study.tell(number, best if state == "complete" else None, told)
            return self.record(number)

    def note(self, number: int, *, run_id: str | None, run_folder: str) -> None:
        """Keep where a trial is."""
        with self._lock:
            trial = self._trials[number]
            trial.set_user_attr("run_folder", run_folder)
            if run_id is not None:
                trial.set_user_attr("run_id", run_id)

    def keep(self, name: str, value: Any) -> None:
        """Keep a value of the whole sweep for the next command."""
        with self._lock:
            self._study.set_user_attr(name, value)

    def kept(self, name: str) -> Any:
        """Return what was kept under this name; None when nothing was."""
        with self._lock:
            return self._study.user_attrs.get(name)

    def records(self) -> list[TrialRecord]:
        """Return all trials that have begun, in order."""
        with self._lock:
            trials = self._study.get_trials(deepcopy=False)
            return [self._read(trial) for trial in trials if trial.state in _STATES]

    def record(self, number: int) -> TrialRecord:
        """Return one trial."""
        with self._lock:
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
            return self._read(self._storage.get_trial(trial_id))

    def best(self) -> TrialRecord | None:
        """Return the best of the trials that were trained to their end."""
        pick = max if self._settings.mode == "max" else min
        complete = [record for record in self.records() if record.state == "complete" and record.best is not None]
        return pick(complete, key=lambda record: record.best or 0.0, default=None)

    @property
    def over(self) -> int:
        """How many trials have ended, one way or the other."""
        return sum(1 for record in self.records() if record.state != "running")

    @property
    def wanted(self) -> int:
        """How many trials there are to be: a grid may have fewer points than were asked for."""
        if self._settings.sampler != "grid":
            return self._settings.trials
        with self._lock:
            return min(self._settings.trials, len(self._study.get_trials(deepcopy=False)))

    def importances(self) -> dict[str, float]:
        """Return how much each knob mattered, shares of 1, largest first; empty when too few trials can tell."""
        complete = [record for record in self.records() if record.state == "complete"]
        if len(complete) < FEWEST_FOR_IMPORTANCE or len({record.best for record in complete}) < 2:
            return {}
        with self._lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(self._study)
        return {knob: float(share) for knob, share in found.items()}

    def _read(self, trial: FrozenTrial) -> TrialRecord:
        history = dict(sorted(trial.intermediate_values.items()))
        pick = max if self._settings.mode == "max" else min
        # Optuna keeps every parameter at the trial's beginning; a command killed within that moment leaves a part.
        is_whole = set(trial.params) >= set(self._settings.space.domains)
        return TrialRecord(
            trial.number,
            _STATES[trial.state],
            self._settings.space.values(trial.params) if is_whole else {},
            history,
            pick(history.values(), default=None),
            trial.user_attrs.get("seconds", 0.0),
            trial.user_attrs.get("error"),
            trial.user_attrs.get("run_id"),
            trial.user_attrs.get("run_folder"),
        )


def require_same_sweep(file: Path, settings: StudySettings) -> None:
    """Check that ``file`` can be gone on with; nothing is written.

    Raises:
        AnotherSweepError: It holds another sweep.
    """
    if not file.exists():
        return
    with _storage(file) as storage:
        for study in storage.get_all_studies():
            if study.study_name == settings.name:
                _require_identity(study.user_attrs, settings, file)


@contextlib.contextmanager
def open_study(file: Path | None, settings: StudySettings) -> Iterator[SweepStudy]:
    """Open the study in ``file``, which is made where there is none; None keeps it in memory.

    The caller is its only user: trials without all their values are taken for those of a command that is gone.

    Raises:
        AnotherSweepError: The file holds another sweep.
        ConfigError: The sampler cannot do with this search space.
    """
    grid = settings.space.grid() if settings.sampler == "grid" else []
    with _storage(file) as storage:
        study = optuna.create_study(
            storage=storage,
            study_name=settings.name,
            direction="maximize" if settings.mode == "max" else "minimize",
            pruner=_pruner(settings),
            load_if_exists=True,
        )
        _require_identity(study.user_attrs, settings, file)
        study.set_user_attr("identity", settings.identity)
        study.sampler = _sampler(settings, len(study.get_trials(deepcopy=False)))
        _abandon_torn(study, settings.space)
        _enqueue(study, grid, settings)
        yield SweepStudy(study, storage, settings)


@contextlib.contextmanager
def _storage(file: Path | None) -> Iterator[optuna.storages.BaseStorage]:
    # It would repeat every trial on the terminal.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        # Of what Optuna calls experimental nothing is kept but the file.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if file is None:
            yield optuna.storages.InMemoryStorage()
            return
        connect = {"connect_args": {"timeout": _LOCK_SECONDS}}
        storage = optuna.storages.RDBStorage(f"sqlite:///{file.absolute()}", engine_kwargs=connect)
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _require_identity(attributes: Mapping[str, Any], settings: StudySettings, file: Path | None) -> None:
    if attributes.get("identity") not in (None, settings.identity):
        raise AnotherSweepError(
            f"study '{settings.name}' in {file} searches other values, or trains another configuration or dataset; "
            f"give this sweep another --study, or the flags of that one to go on with it"
        )


def _abandon_torn(study: optuna.Study, space: SearchSpace) -> None:
    """Fail the trials that a command left before it had chosen all of their values."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not set(trial.params) >= set(space.domains):
            study.tell(trial.number, state=TrialState.FAIL)


def _enqueue(study: optuna.Study, grid: Sequence[Mapping[str, Any]], settings: StudySettings) -> None:
    """Line up the points of a grid that no trial has had, in an order of the seed; no more than are wanted.

    Optuna's own grid sampler ends the study by itself, which one that is asked and told must not do.
    """
    points = [{knob: label_of(value) for knob, value in point.items()} for point in grid]
    random.Random(settings.seed).shuffle(points)  # noqa: S311 - no secret
    trials = study.get_trials(deepcopy=False)
    known = [trial.params or trial.system_attrs.get("fixed_params") for trial in trials]
    for point in points:
        if len(known) >= settings.trials:
            return
        if point not in known:
            study.enqueue_trial(point)
            known.append(point)


def _sampler(settings: StudySettings, trials: int) -> optuna.samplers.BaseSampler:
    # A command that goes on must not draw again what the one before drew first.
    seed = settings.seed + trials
    if settings.sampler == "tpe":
        # Trials side by side do not know of each other's values: the constant liar keeps them apart.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(settings: StudySettings) -> optuna.pruners.BasePruner:
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner()
    if settings.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=settings.epochs)
    return optuna.pruners.NopPruner()


def _distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    return {knob: _distribution(domain) for knob, domain in space.domains.items()}


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution(list(domain.labels))
    if domain.is_whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.is_log, step=int(domain.step or 1))
    return FloatDistribution(domain.low, domain.high, log=domain.is_log, step=domain.step)
