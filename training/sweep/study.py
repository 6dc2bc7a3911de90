"""The Optuna study of a sweep, in a file of its folder, and the records of its trials."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.samplers import GridSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mirrorspark.storage import lock_state
from mirrorspark.training.run_records import run_state
from mirrorspark.training.sweep.options import SweepOptions
from mirrorspark.training.sweep.space import decode_values

State = Literal["complete", "pruned", "failed", "running"]

STUDY_FILE = "study.db"
JOURNAL_FILE = "study.log"

# With fewer complete trials an importance would be noise.
FEWEST_FOR_IMPORTANCE = 8

_STUDY = "sweep"
_LOCK_SECONDS = 60
_STATES: Mapping[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",  # In the next command.
}


@dataclass(frozen=True)
class TrialRecord:
    """A trial of the study.

    Attributes:
        number: Optuna's number; for a resumed trial, the first one.
        values: The value of each searched field.
        history: The monitored metric by epoch, counted from 1.
        best: The best of these; None before the first epoch.
        seconds: Training time over all commands.
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
        """Completed epochs."""
        return max(self.history, default=0)


def record_of(study: optuna.Study, trial: FrozenTrial) -> TrialRecord:
    """Return the record of a trial."""
    history = dict(sorted(trial.intermediate_values.items()))
    pick = max if study.direction == StudyDirection.MAXIMIZE else min
    return TrialRecord(
        number=next(iter(RetryHeartbeatStaleTrialCallback.retry_history(trial)), trial.number),
        state=_STATES[trial.state],
        values=decode_values(trial.params),
        history=history,
        best=pick(history.values(), default=None),
        **trial.user_attrs,
    )


def records(study: optuna.Study) -> list[TrialRecord]:
    """Return the records of all trials; a resumed one counts once."""
    trials = study.get_trials(deepcopy=False)
    retried = _retried(trials)
    found = (record_of(study, trial) for trial in trials if trial.number not in retried)
    return sorted(found, key=lambda record: record.number)


def best_record(study: optuna.Study) -> TrialRecord | None:
    """Return the record of the best complete trial."""
    with contextlib.suppress(ValueError):  # There is none.
        return record_of(study, study.best_trial)
    return None


def count_ended(study: optuna.Study) -> int:
    """Return the number of trials that have ended."""
    return sum(1 for record in records(study) if record.state != "running")


def importances(study: optuna.Study) -> dict[str, float]:
    """Return each field's importance as a share of 1, largest first; empty with too few complete trials."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < FEWEST_FOR_IMPORTANCE or len({trial.value for trial in complete}) < 2:
        return {}
    return dict(optuna.importance.get_param_importances(study))


def requeue_interrupted(study: optuna.Study) -> None:
    """Queue trials again that were running as their command ended, with the epochs that they have reported.

    The caller holds the sweep's folder, so none of them runs. Optuna's heartbeat would notice them after its grace
    period, and only within ``Study.optimize``.
    """
    trials = study.get_trials()
    retried = _retried(trials)
    for left in (trial for trial in trials if trial.state == TrialState.RUNNING):
        # In this order no kill loses a trial, and a trial that was queued before a kill is not queued twice.
        if left.number not in retried:
            RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(study, left)
        study.tell(left.number, state=TrialState.FAIL)


def _retried(trials: Sequence[FrozenTrial]) -> set[int]:
    """Return the numbers of interrupted trials that another one continues."""
    return {number for trial in trials for number in RetryHeartbeatStaleTrialCallback.retry_history(trial)}


@contextlib.contextmanager
def open_study(folder: Path | None, options: SweepOptions) -> Iterator[optuna.Study]:
    """Open the study in the sweep's ``folder``, which is created if missing; None for a study in memory."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # Otherwise it prints every trial.
    config = options.config
    with warnings.catch_warnings(), contextlib.ExitStack() as closing:
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # retry, constant liar, figures
        study = optuna.create_study(
            storage=None if folder is None else _open_storage(folder, closing),
            study_name=_STUDY,
            direction="maximize" if config.mode == "max" else "minimize",
            pruner=_pruner(options),
            load_if_exists=True,
        )
        # A resumed sweep must not sample the first values again.
        study.sampler = _sampler(options, config.seed + len(study.get_trials(deepcopy=False)))
        yield study


def _open_storage(folder: Path, closing: contextlib.ExitStack) -> BaseStorage:
    """Return the storage of a sweep's study: SQLite, or Optuna's journal on a file system without locks.

    SQLite may damage its file there if a driver that was taken for dead still writes. The journal has its own lock, but
    every command reads all of it, so SQLite is the first choice.
    """
    database, journal = folder / STUDY_FILE, folder / JOURNAL_FILE
    # The machine of a later command may see other locks, but a study keeps its storage.
    if journal.exists() or (lock_state(folder / run_state.LOCK_FILE) == "unknown" and not database.exists()):
        return JournalStorage(_Journal(str(journal)))
    storage = RDBStorage(f"sqlite:///{database.absolute()}", engine_kwargs={"connect_args": {"timeout": _LOCK_SECONDS}})
    closing.callback(storage.engine.dispose)
    closing.callback(storage.remove_session)
    return storage


class _Journal(JournalFileBackend):
    """Optuna's journal, but the next entry replaces a line that a full disk or a crash has cut off.

    Appended to such a line, it would make the journal unreadable.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries."""
        with Path(self._file_path).open("r+b") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        super().append_logs(logs)


class _Grid(GridSampler):
    """A grid for ``Study.ask``: Optuna's stops ``Study.optimize`` after its last point, and fails outside of it."""

    def after_trial(self, *_: Any) -> None:
        """Do nothing: a sweep has no more trials than its grid has points."""


def _sampler(options: SweepOptions, seed: int) -> optuna.samplers.BaseSampler:
    if options.sampler == "grid":
        return _Grid(options.space.grid(), seed=options.config.seed)
    if options.sampler == "tpe":
        # The constant liar keeps parallel trials from sampling similar values.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(options: SweepOptions) -> optuna.pruners.BasePruner:
    if options.pruner == "median":
        return optuna.pruners.MedianPruner()
    if options.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=options.epochs)
    return optuna.pruners.NopPruner()
