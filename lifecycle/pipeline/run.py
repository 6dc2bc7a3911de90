"""A pipeline for one date: run, gone on with after a failure, or found finished; and its sandbox."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.lifecycle.pipeline.alerts import Alert, report
from mirrorspark.lifecycle.pipeline.history import write_history
from mirrorspark.lifecycle.pipeline.page import PAGE_FILE, pipeline_page
from mirrorspark.lifecycle.pipeline.record import PipelineRecord, folder_of, former_record, open_record
from mirrorspark.lifecycle.pipeline.settings import PipelineSettings
from mirrorspark.lifecycle.pipeline.stages import FIRST_STAGE, Records, Stage, StageFailedError, advice, run_stages
from mirrorspark.lifecycle.pipeline.weekly import WeeklyPipeline
from mirrorspark.pages import beside_the_result
from mirrorspark.storage import atomic_file
from mirrorspark.training.configuration import ConfigError, RunConfig
from mirrorspark.training.run_records import store_of

# Settings that another command for the same date may change.
_FREE_TO_CHANGE = ("alerts", "cache_table", "smoke_rows")
_SANDBOX_EPOCHS = 2
_PARTS = 1_000_000


def run_pipeline(
    config: RunConfig,
    settings: PipelineSettings | None = None,
    *,
    again_from: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> PipelineRecord:
    """Run a recipe's pipeline for ``config.run_date``, or its remaining stages, and return its record.

    A date that is finished is not run again. A date that has failed goes on with the stage that failed. While it runs,
    and afterwards, ``pipeline.html`` in the date's folder shows its stages, and ``index.html`` next to it all dates.

    Args:
        config: The run, with its date.
        settings: Gates, slices and limits; by default those of the recipe's ``pipeline.yaml``.
        again_from: Name of the stage from which a date is run again although stages have passed. From the first one,
            it may have other settings. A training that has finished is not repeated unless ``config.resume`` is off.
        say: Gets a line whenever a stage begins or ends.

    Raises:
        ConfigError: There is no date, or no such stage.
        PipelineError: Another command runs this date, or it was begun with other settings (``ChangedSettingsError``).
        StageFailedError: A stage has failed. The alerts have been sent.
    """
    settings = settings or PipelineSettings.of_recipe(config.recipe)
    folder, run_date = folder_of_date(config), str(config.run_date)
    former = former_record(Path(config.output).absolute(), config.name, run_date)
    pipeline = WeeklyPipeline(config, settings, folder, store_of(config), former)
    stages = pipeline.stages()
    _check_stage(stages, again_from)
    asked = {name: value for name, value in asdict(settings).items() if name not in _FREE_TO_CHANGE}
    new = PipelineRecord(config.name, run_date, {**config.decisive, "pipeline": asked})
    with open_record(folder, new, anew=again_from == FIRST_STAGE) as opened:

        def write_page() -> None:
            with beside_the_result(f"the page {folder / PAGE_FILE}"):
                atomic_file.write_atomically(folder / PAGE_FILE, pipeline_page(opened.record, stages, former, folder))

        if opened.record.is_finished and again_from is None:
            say(f"{config.name} of {run_date} has finished before")
            # The command that has finished it may have been killed before its pages said so.
            write_page()
            write_history(folder.parent)
            return opened.record
        known = _before(stages, opened.record.stages, again_from)

        def save(records: Records, *, is_finished: bool = False) -> None:
            opened.save(records, is_finished=is_finished)
            write_page()

        has_begun = False

        def keep(records: Records) -> None:
            nonlocal has_begun
            save(records)
            say(_in_words(stages, records))
            if not has_begun:
                # Its pictures take a second: it is written at the start and at the end, not with every stage.
                write_history(folder.parent)
                has_begun = True

        try:
            save(run_stages(stages, known, keep), is_finished=True)
        except StageFailedError as error:
            _report_failure(error, opened.record, settings, folder, again_from)
            raise
        finally:
            pipeline.release()
            write_history(folder.parent)
        return opened.record


def folder_of_date(config: RunConfig) -> Path:
    """Return the folder of a run's date.

    Raises:
        ConfigError: The run has no date.
    """
    if config.run_date is None:
        raise ConfigError("a pipeline runs for a date; give run_date, 2026-01-31 say")
    return folder_of(Path(config.output).absolute(), config.name, config.run_date)


def planned(config: RunConfig, settings: PipelineSettings, again_from: str | None = None) -> list[str]:
    """Return a line for each stage of a date: its name, its work, and its state.

    Raises:
        ConfigError: There is no date, or no such stage.
        PipelineError: The record of the date is damaged.
    """
    folder = folder_of_date(config)
    stages = WeeklyPipeline(config, settings, folder, store_of(config)).stages()
    _check_stage(stages, again_from)
    known = PipelineRecord.load(folder)
    kept = {} if known is None else _before(stages, known.stages, again_from)
    states = {name: record.state for name, record in kept.items()}
    return [f"{stage.name:<9} {states.get(stage.name, 'to do'):<7} {stage.promise}" for stage in stages]


def sandbox(config: RunConfig, settings: PipelineSettings, share: float) -> tuple[RunConfig, PipelineSettings]:
    """Return configuration and settings that try a pipeline with a share of the rows, in one process and a minute.

    Everything goes to the folder ``sandbox`` in the output folder, with an MLflow store of its own. Two epochs on a few
    rows learn little, so bounds of metrics do not count; missing scores, parity, schema and smoke test do. Nobody gets
    an alert. To try the same date again, run it from its first stage.

    Raises:
        ConfigError: The share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"sample is {share:g}; give the share of the rows, above 0 and at most 1")
    output = Path(config.output).absolute() / "sandbox"
    keys = ", ".join(f"`{key}`" for key in config.spec.keys)
    # Salted: splits are often made by a hash of the keys, too.
    chosen = f"pmod(xxhash64('sandbox', {keys}), {_PARTS}) < {round(share * _PARTS)}"
    small = replace(
        config,
        sql=f"SELECT * FROM (\n{config.sql.rstrip().rstrip(';')}\n) WHERE {chosen}",  # noqa: S608 - the recipe's own
        master=None,
        workers=1,
        epochs=min(config.epochs, _SANDBOX_EPOCHS),
        output=str(output),
        tracking_uri=tracking_store.own_store(output),
        registered_model=None,
        checkpoints=None,
        baseline="none",
        register="model",
    )
    gates = replace(settings.gates, thresholds=(), gaps=(), min_examples=1, latency_p99_ms=None)
    free: dict[str, Any] = {"min_rows": 1, "row_change_at_most": None, "drift_at_most": None, "alerts": ()}
    return small, replace(settings, gates=gates, cache_table=True, **free)


def _check_stage(stages: Sequence[Stage], name: str | None) -> None:
    if name is not None and name not in (names := [stage.name for stage in stages]):
        raise ConfigError(f"there is no stage '{name}'; use one of {names}")


def _before(stages: Sequence[Stage], records: Records, again_from: str | None) -> Records:
    """Return the records of the stages before one."""
    names = [stage.name for stage in stages]
    kept = names if again_from is None else names[: names.index(again_from)]
    return {name: record for name, record in records.items() if name in kept}


def _in_words(stages: Sequence[Stage], records: Records) -> str:
    """Return a line on the stage that has just begun or ended."""
    promises = {stage.name: stage.promise for stage in stages}
    name, record = list(records.items())[-1]
    if record.state == "running":
        return f"{name:<9} {promises[name]} …"
    return f"{name:<9} {record.state} after {record.seconds:.1f} s"


def _report_failure(
    error: StageFailedError, record: PipelineRecord, settings: PipelineSettings, folder: Path, given: str | None
) -> None:
    title = f"{record.name} of {record.run_date}: stage '{error.stage}' has failed"
    # A stage that has failed may have done its work.
    before = error.stage not in ("promote", "notify")
    champion = "The champion is unchanged. " if before else ""
    text = f"{error.problem}\n{champion}{advice(error.again_from, given)} {folder / PAGE_FILE}"
    facts: dict[str, Any] = {"name": record.name, "run_date": record.run_date, "stage": error.stage}
    report(Alert(title, text, facts), settings.alerts)
