"""The course of a sweep: trials, the export of the best one, then the report and the figures."""

import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import optuna

from mirrorspark.clear_error import ClearError
from mirrorspark.pages import beside_the_result
from mirrorspark.storage import one_line, terminal_text, without_credentials
from mirrorspark.training.configuration import ConfigError
from mirrorspark.training.driver import on_stop_signals
from mirrorspark.training.run_records import RunFolder, leave, run_state, runs_of_identity
from mirrorspark.training.sweep.figures import figures
from mirrorspark.training.sweep.options import SweepOptions
from mirrorspark.training.sweep.report import SUMMARY_FILE, SweepSummary, command, recipe_patch
from mirrorspark.training.sweep.space import MODEL
from mirrorspark.training.sweep.study import TrialRecord, best_record, count_ended, importances, open_study, records
from mirrorspark.training.sweep.trials import TrialPlan, Trials

if TYPE_CHECKING:  # Seconds of imports, which --help does not need.
    from mirrorspark.training.run_records import TrackedRun
    from mirrorspark.training.sweep.engine import SparkEngine

# Fields of the best trial's summary in the sweep's.
_DELIVERED = (
    *("run_id", "model_uri", "registered_model", "model_version"),
    *("metrics", "baseline", "run_folder", "scored_table", "replay"),
)

SWEEPS_FOLDER = "sweeps"
# In messages.
_KIND = "sweep"

logger = logging.getLogger(__name__)


class SweepStoppedError(ClearError, RuntimeError):
    """The sweep was asked to stop; the same command resumes it."""

    is_interrupted = False
    """True if Ctrl-C has asked for it."""


def run(
    options: SweepOptions,
    engine: "SparkEngine",
    *,
    on_summary: Callable[[SweepSummary], None] = lambda summary: None,
    write: Callable[[str], None] = lambda line: print(without_credentials(line), file=sys.stderr, flush=True),
) -> SweepSummary:
    """Run the remaining trials, then export the best one.

    Args:
        options: The sweep.
        engine: Trains the trials.
        on_summary: Gets the summary of an ended sweep, before any error is raised.
        write: Shows a line.

    Raises:
        ConfigError: The sweep cannot be resumed in this configuration, or its warm-start model is lost.
        SweepStoppedError: The sweep was asked to stop.
        SweepFailedError: No trial is complete, or too many failed consecutively.
        RunUnderWayError: Another command is running it, or has taken it over.
        Exception: The error of every trial, or of the best one's export.
    """
    # A local session gets this many slots; a cluster's number is fixed.
    identity = options.identity(engine.prepare(options.slots_per_trial * (options.parallel or 1)))
    folder = find_folder(options, identity)
    with folder.hold(), open_study(folder.path, options) as study:
        with _parent_run(engine, folder, study) as tracked:
            # Before the first trial, since an error here concerns all trials.
            engine.prepare_warm_start()
            summary = _Sweep(options, engine, study, folder, tracked, on_summary, write).run()
            folder.require_own()
        replay = tracked.finish("FINISHED")
        folder.save_state("finished", tracked.run_id)
    if replay is not None:
        summary = replace(summary, replay=replay)
        summary.write(folder.path)
    return summary


def find_folder(options: SweepOptions, identity: str) -> RunFolder:
    """Return the folder of the sweep to resume, or of a new one.

    Without a name it is the newest sweep of the same search space, configuration and dataset; ``--no-resume`` begins a
    new one.

    Raises:
        ConfigError: The sweep of that name differs, or exists despite ``--no-resume``.
    """
    sweeps = Path(options.config.output).absolute() / SWEEPS_FOLDER
    if options.study is not None:
        path = sweeps / options.study
        path.mkdir(parents=True, exist_ok=True)
        state = run_state.read_state(path)
        if state is not None and not options.config.resume:
            raise ConfigError(f"study '{options.study}' is in {path} already; give another --study, or resume it")
        if state is not None and state.identity != identity:
            raise ConfigError(
                f"study '{options.study}' in {path} searches other values, or trains another configuration or dataset; "
                f"give this sweep another --study, or the flags of that one to resume it"
            )
        return RunFolder(path, identity, state.mlflow_run_id if state else None, _KIND)
    if options.config.resume:
        for path, state in runs_of_identity(sweeps, identity):
            return RunFolder(path, identity, state.mlflow_run_id, _KIND)
    path = sweeps / f"{options.config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:4]}"
    path.mkdir(parents=True)
    return RunFolder(path, identity, None, _KIND)


@contextlib.contextmanager
def _parent_run(engine: "SparkEngine", folder: RunFolder, study: optuna.Study) -> "Iterator[TrackedRun]":
    """Open the sweep's MLflow run; mark run and folder as stopped or failed if the block raises."""
    tracked: TrackedRun | None = None
    try:
        if "label" not in study.user_attrs:  # Unique in MLflow, where another sweep may have the same folder name.
            study.set_user_attr("label", f"{folder.path.name}-{uuid4().hex[:4]}")
        # Later commands find the experiment there, also while MLflow is away.
        tracked = engine.open_parent(folder, study.user_attrs["label"], study.user_attrs.get("experiment"))
        study.set_user_attr("experiment", tracked.experiment)
        folder.save_state("running", tracked.run_id)
        yield tracked
    except BaseException as error:
        is_stopped = isinstance(error, SweepStoppedError) or terminal_text.is_interrupt(error)
        leave(folder, tracked, "stopped" if is_stopped else "failed")
        raise


@dataclass(frozen=True)
class _Sweep:
    """A running sweep."""

    options: SweepOptions
    engine: "SparkEngine"
    study: optuna.Study
    folder: RunFolder
    tracked: "TrackedRun"
    on_summary: Callable[[SweepSummary], None]
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
        """Log the search space, and the values that all trials share."""
        config, specs = self.options.config, self.options.space.specs
        documents = ("sql", "tables", "features")  # The trials' runs log them.
        fixed = {name: value for name, value in config.public().items() if name not in (*specs, *documents)}
        fixed["model"] = {name: value for name, value in config.model_settings.items() if MODEL + name not in specs}
        searched = {f"search.{name}": spec for name, spec in specs.items()}
        self.tracked.log_params(fixed | searched | {"sampler": self.options.sampler, "pruner": self.options.pruner})
        self.tracked.log_tags({"sweep": self.folder.path.name, "recipe": config.name})

    def _train(self) -> None:
        """Run the remaining trials.

        Raises:
            SweepStoppedError: The sweep was asked to stop, or another driver has taken it over.
            Exception: See :meth:`Trials.run`.
        """
        study, wanted = self.study, self.options.trials
        if records(study):
            self.write(f"resuming sweep {self.folder.path.name}: {count_ended(study)} of {wanted} trials have ended")
        trials = Trials(
            study=study,
            options=self.options,
            train=self.engine.train,
            slots=self.engine.slots,
            say=lambda number, text: self.write(f"trial {number}: {text}"),
            on_end=self._on_end,
        )
        self.folder.when_lost(lambda: trials.stop_now("another driver has taken over this sweep"))
        with on_stop_signals(trials.request_stop, trials.stop_now):
            trials.run()
        if trials.stop_reason is not None:
            left = len(records(study)) - count_ended(study)
            resumed = f", with {left} from their last checkpoint" if left else ""
            stopped = SweepStoppedError(
                f"stopped ({trials.stop_reason}): {count_ended(study)} of {wanted} trials have ended; the same command "
                f"goes on{resumed}"
            )
            stopped.is_interrupted = trials.stop_reason == signal.SIGINT.name
            raise stopped

    def _on_end(self, record: TrialRecord, ended: int) -> None:
        """Log the trial's best value and the best so far to the sweep's MLflow run."""
        best = best_record(self.study)
        points = {"trial": record.best, "best": best.best if best else None}
        monitor = self.options.config.monitor
        if found := {f"{name}_{monitor}": value for name, value in points.items() if value is not None}:
            # Not by the trials' numbers: they end in another order, and steps of MLflow's curves only increase.
            self.tracked.log_metrics(found, ended)

    def _deliver(self) -> Mapping[str, Any]:
        """Export, register and evaluate the best trial, unless an earlier command has done so."""
        best = best_record(self.study)
        assert best is not None  # noqa: S101 - otherwise the trials have raised
        stored: Mapping[str, Any] = self.study.user_attrs.get("delivered", {})
        if stored.get("trial") == best.number:
            return stored
        self.write(f"exporting, registering and evaluating the best trial, {best.number}")
        summary = self.engine.deliver(self._trial_plan(best))
        delivered = {"trial": best.number, **{name: getattr(summary, name) for name in _DELIVERED}}
        self.study.set_user_attr("delivered", delivered)
        return delivered

    def _trial_plan(self, record: TrialRecord) -> TrialPlan:
        return TrialPlan(record.number, self.options.space.configure(self.options.config, record.values), record.values)

    def _report(self, status: str, delivered: Mapping[str, Any], error: str | None) -> SweepSummary:
        """Write the sweep's documents into its folder, and log them and the figures to its MLflow run."""
        config, best = self.options.config, best_record(self.study)
        summary = SweepSummary(
            status=status,
            study=self.folder.path.name,
            folder=str(self.folder.path),
            monitor=config.monitor,
            mode=config.mode,
            wanted=self.options.trials,
            run_id=self.tracked.run_id,
            trials=records(self.study),
            best=best,
            importances=importances(self.study),
            recipe=recipe_patch(self._trial_plan(best).config, best.values) if best else {},
            command=command(self.options.arguments, best.values) if best else "",
            delivered=delivered,
            error=error,
        )
        self.on_summary(summary)
        self.folder.require_own()
        summary.write(self.folder.path)
        for name in (*summary.texts(), SUMMARY_FILE):
            self.tracked.log_file(self.folder.path / name)
        with beside_the_result("a picture of the sweep"):
            for name, figure in figures(self.study, config.monitor).items():
                self.tracked.log_figure(figure, self.folder.plots / f"{name}.png")
        return summary
