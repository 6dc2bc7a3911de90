"""A sweep from its dataset to its best model: trials, then the table, the figures, and the best one's export."""

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol
from uuid import uuid4

from matplotlib.figure import Figure

from callbacks.credentials import one_line, without_credentials
from training.records.open_run import leave
from training.records.run_folder import RunFolder
from training.results.summary import Summary
from training.supervision.signals import on_stop_signals
from training.sweeping.figures import figures
from training.sweeping.folder import STUDY_FILE, SweepPlace, find_folder, held
from training.sweeping.options import SweepOptions
from training.sweeping.report import SUMMARY_FILE, SweepSummary, command, recipe_patch
from training.sweeping.space import MODEL
from training.sweeping.study import StudySettings, SweepStudy, TrialRecord, open_study, require_same_sweep
from training.sweeping.trial import TrialControl, TrialOrder
from training.sweeping.trials import Trials

# What the summary of a run tells of the best trial's export.
_DELIVERED = (
    *("run_id", "model_uri", "registered_model", "model_version"),
    *("metrics", "baseline", "run_folder", "scored_table", "replay"),
)

logger = logging.getLogger(__name__)


class SweepStoppedError(RuntimeError):
    """Somebody asked the sweep to stop; the same command goes on."""


class Tracked(Protocol):
    """What a sweep needs of :class:`training.records.tracking.TrackedRun`."""

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
        """Log metrics; a step at or below one that was logged before is skipped."""

    def finish(self, status: str) -> str | None:
        """End the run, and return the command that sends MLflow what it could not be told."""


class Engine(Protocol):
    """What a sweep needs of Spark and of the training; :class:`training.sweeping.engine.SparkEngine` is one."""

    def prepare(self, slots: int) -> str:
        """Open a session with that many slots, convert or find the dataset, and return its content hash."""

    def slots(self) -> int:
        """Return how many barrier tasks can run side by side now."""

    def open_parent(self, label: str, run_id: str | None) -> Tracked:
        """Open the sweep's own MLflow run, the one with that id if it has one."""

    def settle(self, place: SweepPlace) -> None:
        """Settle what all trials begin from; what an earlier command of the sweep has settled stays."""

    def train(self, order: TrialOrder, control: TrialControl, place: SweepPlace) -> None:
        """Train a trial, from its checkpoint if it has one."""

    def deliver(self, order: TrialOrder, place: SweepPlace) -> Summary:
        """Export, register and judge a trained trial, as a run does."""


def run(
    options: SweepOptions,
    engine: Engine,
    *,
    tell: Callable[[SweepSummary], None] = lambda summary: None,
    write: Callable[[str], None] | None = None,
) -> SweepSummary:
    """Run the trials that are left, then export the best one.

    Args:
        options: What to do.
        engine: Trains.
        tell: Gets the summary of a sweep that has ended, however that was, before an error comes out of here.
        write: Shows a line; by default on standard error.

    Raises:
        ConfigError: The sweep cannot go on as it is configured, or what its trials begin from is gone.
        SweepStoppedError: Somebody asked for it.
        SweepFailedError: No trial came to its end, or too many failed one after the other.
        SweepUnderWayError: Another command is at work on it.
        Exception: What kept every trial from training, or the best one from its export.
    """
    # Only a local session can be made to measure; a cluster has the slots it has.
    identity = options.identity(engine.prepare(options.slots_per_trial * (options.limits.parallel or 1)))
    folder = find_folder(options, identity)
    settings = _settings(options, folder)
    # Before the folder is held: that alone would make it a sweep of this identity.
    require_same_sweep(folder.path / STUDY_FILE, settings)
    with held(folder), open_study(folder.path / STUDY_FILE, settings) as study:
        label = _label(study, folder)
        with _parent_run(engine, folder, label) as tracked:
            place = SweepPlace(folder.path, label, lambda: tracked.run_id)
            # Before the first trial: what is wrong with it is wrong with all of them.
            engine.settle(place)
            summary = _Sweep(options, engine, study, folder, tracked, place, tell, write or _to_stderr).run()
        replay = tracked.finish("FINISHED")
        folder.save_state("finished", tracked.run_id)
    if replay is not None:
        summary = replace(summary, replay=replay)
        summary.write(folder.path)
    return summary


def _settings(options: SweepOptions, folder: RunFolder) -> StudySettings:
    return StudySettings(
        name=folder.path.name,
        identity=folder.identity,
        space=options.space,
        mode=options.config.mode,
        sampler=options.sampler,
        pruner=options.pruner,
        epochs=options.epochs,
        trials=options.limits.trials,
        seed=options.config.seed,
    )


def _label(study: SweepStudy, folder: RunFolder) -> str:
    """Return what the sweep is called in MLflow, where somebody else's sweep may have the same name."""
    if study.kept("label") is None:
        study.keep("label", f"{folder.path.name}-{uuid4().hex[:4]}")
    return str(study.kept("label"))


@contextlib.contextmanager
def _parent_run(engine: Engine, folder: RunFolder, label: str) -> Iterator[Tracked]:
    """Open the sweep's MLflow run; should the block raise, leave run and folder stopped or failed."""
    tracked: Tracked | None = None
    try:
        tracked = engine.open_parent(label, folder.continues)
        folder.save_state("running", tracked.run_id)
        yield tracked
    except BaseException as error:
        is_stopped = isinstance(error, SweepStoppedError | KeyboardInterrupt)
        leave(folder, tracked, "stopped" if is_stopped else "failed", "sweep")
        raise


@dataclass(frozen=True)
class _Sweep:
    """One sweep between its beginning and its end."""

    options: SweepOptions
    engine: Engine
    study: SweepStudy
    folder: RunFolder
    tracked: Tracked
    place: SweepPlace
    tell: Callable[[SweepSummary], None]
    write: Callable[[str], None]

    def run(self) -> SweepSummary:
        try:
            self._log_start()
            self._train()
            delivered = self._deliver()
        except Exception as error:
            try:
                self._report("stopped" if isinstance(error, SweepStoppedError) else "failed", {}, one_line(error))
            except Exception as another:
                logger.warning("the report of sweep %s could not be written: %s", self.folder.path.name, another)
            raise
        return self._report("finished", delivered, None)

    def _log_start(self) -> None:
        config = self.options.config
        public = config.public() | {"model": {"name": config.model["name"], **config.model_settings}}
        for name in ("sql", "tables", "features"):  # documents, which the trials' runs have
            public.pop(name, None)
        specs = self.options.space.to_dict()
        # What is searched has no one value; what else is alike in all trials.
        fixed = {name: value for name, value in public.items() if name not in specs}
        fixed["model"] = {name: value for name, value in public["model"].items() if MODEL + name not in specs}
        searched = {f"search.{knob}": spec for knob, spec in specs.items()}
        how = {"sampler": self.options.sampler, "pruner": self.options.pruner}
        self.tracked.log_params(fixed | searched | how)
        self.tracked.log_tags({"sweep": self.folder.path.name, "recipe": config.name})

    def _train(self) -> None:
        """Run the trials that are left.

        Raises:
            SweepStoppedError: Somebody asked for it, or another driver has the sweep now.
            Exception: See :meth:`Trials.run`.
        """
        study = self.study
        if study.records():
            self.write(f"going on with sweep {self.folder.path.name}: {study.over} of {study.wanted} trials are over")
        trials = Trials(
            study=study,
            space=self.options.space,
            # The summary is the sweep's.
            base=replace(self.options.config, summary=None),
            train=lambda order, control: self.engine.train(order, control, self.place),
            slots=self.engine.slots,
            limits=replace(self.options.limits, trials=study.wanted),
            say=lambda number, text: self.write(f"trial {number}: {text}"),
            on_end=self._on_end,
        )
        self.folder.when_lost(lambda: trials.stop_now("another driver has taken over this sweep"))
        with on_stop_signals(trials.request_stop, trials.stop_now):
            trials.run()
        if trials.stop_reason is not None:
            raise SweepStoppedError(self._where_it_stopped(trials.stop_reason))

    def _on_end(self, record: TrialRecord) -> None:
        """Show in the sweep's own run how it gets on: a point per trial, and the best so far."""
        best = self.study.best()
        points = {"trial": record.best, "best": best.best if best else None}
        monitor = self.options.config.monitor
        found = {f"{name}_{monitor}": value for name, value in points.items() if value is not None}
        if found:
            # Not over the trials' numbers: they end in another order, and MLflow's curves only move forward.
            self.tracked.log_metrics(found, self.study.over)

    def _where_it_stopped(self, reason: str) -> str:
        over = self.study.over
        left = len(self.study.records()) - over
        goes_on = f", and {left} go on from their last checkpoint" if left else ""
        return f"stopped ({reason}): {over} of {self.study.wanted} trials are over; the same command goes on{goes_on}"

    def _deliver(self) -> Mapping[str, Any]:
        """Export, register and judge the best trial, unless an earlier command has done so."""
        best = self.study.best()
        assert best is not None  # noqa: S101 - or the trials would have raised
        kept: Mapping[str, Any] = self.study.kept("delivered") or {}
        if kept.get("trial") == best.number:
            return kept
        self.write(f"the best is trial {best.number}: it is exported, registered and judged")
        summary = self.engine.deliver(self._order(best), self.place)
        delivered = {"trial": best.number, **{name: getattr(summary, name) for name in _DELIVERED}}
        # By way of JSON: that is what the study keeps, and what the next command finds.
        self.study.keep("delivered", json.loads(json.dumps(delivered)))
        return delivered

    def _order(self, record: TrialRecord) -> TrialOrder:
        return TrialOrder(record.number, self.options.space.configure(self.options.config, record.values))

    def _report(
        self, status: Literal["finished", "stopped", "failed"], delivered: Mapping[str, Any], error: str | None
    ) -> SweepSummary:
        """Write the sweep's documents into its folder, and log them and the figures to its MLflow run."""
        summary = self._summary(status, delivered, error)
        self.tell(summary)
        summary.write(self.folder.path)
        for name, text in summary.texts().items():
            self.tracked.log_text(text, name)
        self.tracked.log_document(summary.to_dict(), SUMMARY_FILE)
        for name, figure in figures(summary, self.options.space).items():
            self.tracked.log_figure(figure, name)
        return summary

    def _summary(self, status: str, delivered: Mapping[str, Any], error: str | None) -> SweepSummary:
        config, best = self.options.config, self.study.best()
        return SweepSummary(
            status=status,
            study=self.folder.path.name,
            folder=str(self.folder.path),
            monitor=config.monitor,
            mode=config.mode,
            wanted=self.study.wanted,
            run_id=self.tracked.run_id,
            trials=self.study.records(),
            best=best,
            importances=self.study.importances(),
            recipe=recipe_patch(self._order(best).config, best.values) if best else {},
            command=command(self.options.arguments, best.values) if best else "",
            delivered=delivered,
            error=error,
        )


def _to_stderr(line: str) -> None:
    print(without_credentials(line), file=sys.stderr, flush=True)
