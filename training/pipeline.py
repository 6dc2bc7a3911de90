"""The main job, stage by stage: preflight, convert, train, export, evaluate, score, parity."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mirrorspark.data_pipelines.quality import PAGE_FILE
from mirrorspark.training.configuration import RunConfig
from mirrorspark.training.driver import TrainingFailedError, TrainingStoppedError
from mirrorspark.training.job import PreparedRun, SourceTables, TrainingJob, open_job, prepare
from mirrorspark.training.protocol import SUMMARY_FILE
from mirrorspark.training.protocol.outcomes import Attempt
from mirrorspark.training.results import ExportAhead, ExportProcess, delivery, recall_summary, score_and_compare
from mirrorspark.training.results.report import Summary, run_summary
from mirrorspark.training.run_records import RunFinishedError, Tracking, require_unfinished
from mirrorspark.training.run_records.live import LiveView


def run(
    config: RunConfig, on_summary: Callable[[Summary], None] = lambda summary: None, *, began: float | None = None
) -> Summary:
    """Do the main job and return its summary, or that of an earlier run that has finished the same run date.

    Args:
        config: The run.
        on_summary: Gets the summary so far whenever it has grown, and a last time before an error is raised, so that it
            names the run that failed. It is called once for a run that had finished before.
        began: When the command began, in monotonic seconds; by default now.

    Raises:
        Exception: The first error of the stage that failed. The MLflow run is then marked as failed, and the same
            command goes on from the last committed checkpoint.
    """
    view = LiveView(epochs=config.epochs, began=began)
    sources, tracking = SourceTables.find(config), Tracking.find(config)
    try:
        # With converted data, a finished run of that date is found without Spark.
        if config.only_once and (dataset := sources.converted()) is not None:
            require_unfinished(config.fitted_to(dataset.manifest.rows("train")), dataset)
        prepared = prepare(config, tracking, view, sources=sources)  # preflight, convert
        with (
            ExportAhead(config, prepared.dataset.manifest.rows("train")) as ahead,
            open_job(prepared, view, listener=ahead.on_event) as job,
            _reporting(on_summary, job, prepared) as progress,
        ):
            job.tracked.log_file(prepared.dataset.path / PAGE_FILE)
            progress.attempts = job.train()  # train
            summary = deliver_and_score(job, progress.attempts, prepared, ahead.process)
            if config.run_date is not None:
                # Written before the run counts as finished: the next command for its date reads it.
                summary.save(job.folder.path / SUMMARY_FILE)
    except RunFinishedError as finished:
        view.log(finished.in_words(config.run_date))
        summary = recall_summary(finished.folder, config, tracking.store)
        on_summary(summary)
        return summary
    # The records that MLflow missed are known only when the run has ended.
    return replace(summary, replay=job.run.replay)


@dataclass
class _Progress:
    """The attempts of a run so far."""

    attempts: tuple[Attempt, ...] = ()


@contextlib.contextmanager
def _reporting(on_summary: Callable[[Summary], None], job: TrainingJob, prepared: PreparedRun) -> Iterator[_Progress]:
    """Report the summary of the run that begins, and again, with its attempts, before an error leaves the block."""
    on_summary(run_summary.begun(job, is_reused=prepared.is_reused))
    progress = _Progress()
    try:
        yield progress
    except BaseException as error:
        if isinstance(error, TrainingFailedError | TrainingStoppedError):
            progress.attempts = error.attempts
        begun = run_summary.begun(job, is_reused=prepared.is_reused)
        on_summary(run_summary.with_attempts(begun, progress.attempts, job))
        raise


def deliver_and_score(
    job: TrainingJob,
    attempts: tuple[Attempt, ...],
    prepared: PreparedRun,
    process: ExportProcess | None = None,
) -> Summary:
    """Export, register and evaluate the trained model, score the test split with it and compare the scores."""
    config = prepared.config
    assert isinstance(config, RunConfig)  # noqa: S101 - a recipe's run has one
    trained = delivery.deliver(job, attempts, process)  # export, evaluate
    assert prepared.table is not None  # noqa: S101 - a recipe has one
    report = score_and_compare(job, trained, prepared.table, config)  # score, parity
    trained = delivery.keep_report(job, trained, parity=f"max {report.max:.1e} over {report.rows:,} rows")
    begun = run_summary.begun(job, is_reused=prepared.is_reused)
    done = run_summary.finished(run_summary.with_attempts(begun, trained.attempts, job), trained, report)
    return replace(done, compare_page=job.tracked.share_comparison(config.monitor))
