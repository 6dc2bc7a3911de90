"""The main job, stage by stage: preflight, convert, train, export, score, parity."""

from collections.abc import Callable
from dataclasses import replace

from mirrorspark.data_pipelines.quality.page import PAGE_FILE
from mirrorspark.training.config import RunConfig
from mirrorspark.training.driver.errors import TrainingFailedError, TrainingStoppedError
from mirrorspark.training.live.view import LiveView
from mirrorspark.training.prepared_run import PreparedRun, dry_run, prepare
from mirrorspark.training.protocol.cause import Attempt
from mirrorspark.training.protocol.names import SUMMARY_FILE
from mirrorspark.training.records.find_run import RunFinishedError, require_unfinished
from mirrorspark.training.records.tracking import store_of
from mirrorspark.training.results import delivery
from mirrorspark.training.results.delivery import ExportAhead, recall_summary
from mirrorspark.training.results.export import ExportProcess
from mirrorspark.training.results.report import run_summary
from mirrorspark.training.results.report.summary import Summary
from mirrorspark.training.results.scored import score_and_compare
from mirrorspark.training.sources import Sources, recipe_table
from mirrorspark.training.training_job import TrainingJob, open_job

__all__ = ["deliver", "dry_run", "prepare", "recipe_table", "run"]


def run(
    config: RunConfig, tell: Callable[[Summary], None] = lambda summary: None, *, began: float | None = None
) -> Summary:
    """Do the main job and return its summary, or the summary of the run that has finished the same run date.

    Args:
        config: The run.
        tell: Gets the summary so far whenever it has grown, and a last time before an error is raised, so that it names
            the run that failed. It is called once for a run that had finished before.
        began: When the command began, in monotonic seconds; by default now.

    Raises:
        Exception: The first error of the stage that failed. The MLflow run is then marked as failed, and the same
            command goes on from the last committed checkpoint.
    """
    view = LiveView(epochs=config.epochs, began=began)
    sources, store = Sources.find(config), store_of(config)
    try:
        # With converted data, a finished run of that date is found without Spark.
        if config.only_once:
            require_unfinished(config, sources.converted())
        return _train_and_score(prepare(config, store, view, sources=sources), config, view, tell)
    except RunFinishedError as finished:
        view.say(finished.in_words(config.run_date))
        summary = recall_summary(finished.folder, config, store)
        tell(summary)
        return summary


def _train_and_score(
    prepared: PreparedRun, config: RunConfig, view: LiveView, tell: Callable[[Summary], None]
) -> Summary:
    with ExportAhead(config) as ahead, open_job(prepared, view, listener=ahead.on_event) as job:
        known = run_summary.begun(job, is_reused=prepared.is_reused)
        tell(known)
        attempts: tuple[Attempt, ...] = ()
        try:
            job.tracked.log_text((prepared.dataset.path / PAGE_FILE).read_text(encoding="utf-8"), PAGE_FILE)
            attempts = job.train()
            summary = deliver(job, attempts, prepared, config, ahead.process)
            if config.run_date is not None:
                # Written before the run counts as finished: the next command for its date reads it.
                summary.save(job.folder.path / SUMMARY_FILE)
        except BaseException as error:
            if isinstance(error, TrainingFailedError | TrainingStoppedError):
                attempts = error.attempts
            tell(run_summary.with_attempts(run_summary.begun(job, is_reused=prepared.is_reused), attempts, job))
            raise
    # The records that MLflow missed are known only when the run has ended.
    return replace(summary, replay=job.run.replay)


def deliver(
    job: TrainingJob,
    attempts: tuple[Attempt, ...],
    prepared: PreparedRun,
    config: RunConfig,
    process: ExportProcess | None = None,
) -> Summary:
    """Export, register and evaluate the trained model, score the test split with it and compare the scores."""
    trained = delivery.deliver(job, attempts, process)
    assert prepared.table is not None  # noqa: S101 - a recipe has one
    report = score_and_compare(job, trained, prepared.table, config)
    trained = delivery.keep_report(job, trained, parity=f"max {report.max:.1e} over {report.rows:,} rows")
    begun = run_summary.begun(job, is_reused=prepared.is_reused)
    done = run_summary.finished(run_summary.with_attempts(begun, trained.attempts, job), trained, report)
    return replace(done, compare_page=job.tracked.share_comparison(config.monitor))
