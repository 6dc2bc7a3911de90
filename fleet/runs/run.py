"""Runs of fleets: begin one, or resume it. Published microbatches stay, and only the rest is scored."""

import logging
import os
import socket
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from uuid import uuid4

from pyspark.sql import SparkSession

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.data_pipelines.spark import progress_bar
from mirrorspark.fleet.columns import some
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.packages import check_trust
from mirrorspark.fleet.runs import tables
from mirrorspark.fleet.runs.claims import DEFAULT_TIMES, Claims
from mirrorspark.fleet.runs.decisions import budget_reached, hopeless, microbatches_left
from mirrorspark.fleet.runs.failures import CheckedFleet, ModelFailure
from mirrorspark.fleet.runs.kept import (
    check_no_run,
    keep_run,
    kept_fleet,
    opened_ledger,
    resolved_output,
)
from mirrorspark.fleet.runs.ledger import Change, Ledger, Rows
from mirrorspark.fleet.runs.microbatch import Manifest, Scoring, error_rows, published_manifests
from mirrorspark.fleet.runs.plan import (
    DEFAULT_AT_ONCE,
    DEFAULT_MODELS,
    RUN_FOLDER,
    RunPlan,
    folder_columns,
    input_files,
    plan_shares,
    plan_steps,
)
from mirrorspark.fleet.runs.plan_rows import microbatch_rows, model_rows, run_row
from mirrorspark.fleet.runs.planning import problems_of
from mirrorspark.fleet.score import check_result
from mirrorspark.scoring import ScoringError, file_job
from mirrorspark.scoring.input import SparkSource
from mirrorspark.spark_session import on_running_session, session_of
from mirrorspark.storage import Location, StoragePath, lakes
from mirrorspark.storage.publish import STAGING_PREFIX

_LOGGER = logging.getLogger(__name__)

DEFAULT_BUDGET = 0.1
DEFAULT_LEASE_SECONDS = 300.0


class FleetRunError(ClearError, RuntimeError):
    """Raised for a run that has ended before all of its microbatches were published; it can be resumed."""


@dataclass(frozen=True)
class FleetRun:
    """A finished run of a fleet.

    Attributes:
        run: Its id, under which the ledger has it.
        output: Folder of the outputs.
        ledger: Address of the ledger, without credentials.
        microbatches: Microbatches of the run.
        scored: Microbatches that this call has scored.
        failed_models: Models whose outputs are null in some microbatch, or in all.
    """

    run: str
    output: str
    ledger: str
    models: int
    failed_models: tuple[str, ...]
    rows: int
    microbatches: int
    scored: int
    seconds: float


@on_running_session
def run_fleet(
    spark: SparkSession,
    fleet: Fleet | str | Path | Mapping[str, Fleet | str | Path],
    paths: Location | Sequence[Location],
    output: Location,
    *,
    keys: str | Sequence[str],
    ledger: str | Path | None = None,
    layout: str = "wide",
    outputs: str | Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    models_per_microbatch: int = DEFAULT_MODELS,
    rows_per_microbatch: int | None = None,
    prefixes: int = 1,
    failure_budget: float = DEFAULT_BUDGET,
    fail_fast: bool = False,
    model_seconds: float | None = None,
    model_bytes: int | None = None,
    at_once: int = DEFAULT_AT_ONCE,
    lease_seconds: float = DEFAULT_LEASE_SECONDS,
    begin_only: bool = False,
    trust: bool = False,
) -> FleetRun:
    """Score Parquet files with a fleet in microbatches, each of which is published, recorded and repeated on its own.

    A model that fails has null outputs and a row in the ledger's table of errors; the others are scored. Microbatches
    that fail for another reason are left to :func:`resume_fleet`. Drivers that begin or resume the same run share its
    microbatches.

    Args:
        spark: The session.
        fleet: The fleet, a folder of :meth:`Fleet.save`, ``models:/<name>/<version>`` of ``register_fleet``, a file of
            coefficients as in ``fleet_from_coefficients``, or, by the name of the model, the file of each.
        paths: Files, folders or globs of Parquet files of one schema, which executors can read.
        output: Folder of the outputs; new or empty.
        keys: Columns that identify a row; they pass through unchanged.
        ledger: File of SQLite, or address of a PostgreSQL database; by default a file in the output folder.
        layout: See ``score_fleet``, also for the next one.
        outputs: The outputs.
        groups: The groups of models to score; all by default.
        models_per_microbatch: The most models of a microbatch.
        rows_per_microbatch: About this number, in whole row groups; by default what all slots score in two minutes.
        prefixes: Folders with hashed names that the microbatches are dealt to, for stores that limit the requests per
            prefix; 1 for none. Each microbatch writes to one, so ``at_once`` should be no smaller.
        failure_budget: Largest share of models that may fail.
        fail_fast: End at the first model or microbatch that fails.
        model_seconds: The most seconds of a task that one model may take; a slower model has failed.
        model_bytes: The most memory that one model may take, by its weights and the widths of its layers; a larger
            model has failed.
        at_once: Microbatches that are scored at a time.
        lease_seconds: Time without a sign of life from a driver after which another one takes over its microbatches.
        begin_only: Score nothing; the microbatches are left to drivers that resume the run.
        trust: See ``score_fleet``.

    Raises:
        UntrustedModelError: A model brings Python code, and ``trust`` is False.
        FleetError: Two models have one name, there is none, or there is no such group.
        LedgerError: The ledger cannot be used.
        ScoringError: The output has data or a run, a key is missing, the input is not plain Parquet of one schema, or
            for a reason of ``score_fleet``.
        FileNotFoundError: There are no Parquet files.
        LakeTableError: ``output`` is, or lies in, a table that would not have the outputs.
        ParquetError: A file is not Parquet.
        FleetRunError: Microbatches failed, or too many models in all drivers together. The message counts them, and
            says where the list is.
    """
    settings = _CallSettings(failure_budget, fail_fast, at_once, lease_seconds)
    _check_limits(model_seconds, model_bytes, prefixes)
    target = resolved_output(output)
    _check_new(target)
    checked = CheckedFleet.of(fleet)
    # This comes first, because reading the columns of a packaged model unpacks it.
    check_trust(checked.fleet, trust=trust)
    locations = _locations(paths)
    files = _files(locations, target)
    checked = checked.against(files.schema).within(model_bytes)
    keys = (keys,) if isinstance(keys, str) else tuple(keys)
    table = Layout.of(checked.fleet, layout, (outputs,) if isinstance(outputs, str) else outputs)
    check_result(table, files.schema, keys)
    _check_keys(keys, folder_columns(prefixes))
    steps = plan_steps(checked, groups, models_per_microbatch)
    table.check_outputs({name for step in steps for name, digest in step.digests.items() if digest})
    rows = files.rows(list(dict.fromkeys([*keys, *checked.fleet.columns])))
    most = max(len(step.digests) for step in steps)
    shares = plan_shares(rows, session_of(spark).default_parallelism, most, rows_per_microbatch)
    described = input_files(files)
    plan = RunPlan.of(
        target, checked, locations, keys, table, failure_budget, steps, shares, described, prefixes, model_seconds
    )
    with opened_ledger(ledger, target) as book:
        plan = replace(plan, ledger="" if ledger is None else book.name)
        _enter_new(plan, target, book, settings)
        keep_run(plan, checked.fleet, target)
        numbers = () if begin_only else range(len(plan.microbatches))
        return _drive(spark, plan, target, book, files, checked.fleet, settings, numbers)


@on_running_session
def resume_fleet(
    spark: SparkSession,
    output: Location,
    *,
    ledger: str | Path | None = None,
    fleet: Fleet | str | Path | Mapping[str, Fleet | str | Path] | None = None,
    failure_budget: float | None = None,
    fail_fast: bool = False,
    at_once: int = DEFAULT_AT_ONCE,
    lease_seconds: float = DEFAULT_LEASE_SECONDS,
    microbatches: Sequence[int] | None = None,
    trust: bool = False,
) -> FleetRun:
    """Score the microbatches that a run of :func:`run_fleet` lacks; the result has the bytes of an undisturbed run.

    The run goes on with its own copy of the fleet. A driver that still works on it shares the rest, if it has the same
    ledger. A ledger other than the run's first one is used, since that may be lost, with a warning.

    Args:
        spark: The session.
        output: Folder of the run.
        ledger: The ledger of the run, unless that is the file in its folder.
        fleet: The fleet, to be compared with that of the run.
        failure_budget: Another share of models that may fail than the run's.
        fail_fast: See :func:`run_fleet`, also for the next two.
        at_once: Microbatches that are scored at a time.
        lease_seconds: Time without a sign of life after which a driver counts as lost.
        microbatches: Numbers of those to score; the others are left to other drivers. By default all that are missing.
        trust: See ``score_fleet``.

    Raises:
        UntrustedModelError: A model brings Python code, and ``trust`` is False.
        FileNotFoundError: ``output`` has no run, or files of the input are missing.
        LedgerError: The ledger cannot be used, or is not named.
        ScoringError: Models of ``fleet`` or files of the input have changed since the run began, or there is no such
            microbatch.
        FleetError: The run's copy of the fleet is damaged.
        FleetRunError: See :func:`run_fleet`.
    """
    target = resolved_output(output)
    plan = RunPlan.load(target)
    budget = plan.failure_budget if failure_budget is None else failure_budget
    settings = _CallSettings(budget, fail_fast, at_once, lease_seconds)
    if unknown := [number for number in microbatches or () if not 0 <= number < len(plan.microbatches)]:
        raise ScoringError(
            f"{plan.run} has no microbatch {unknown[0]}; its numbers are 0 to {len(plan.microbatches) - 1}"
        )
    if fleet is not None:
        plan.check_fleet(CheckedFleet.of(fleet))
    files = plan.input_of(_files(plan.locations, target))
    own = kept_fleet(plan, target)
    check_trust(own, trust=trust)
    with opened_ledger(ledger, target, plan) as book:
        numbers = range(len(plan.microbatches)) if microbatches is None else microbatches
        return _drive(spark, plan, target, book, files, own, settings, numbers)


@dataclass(frozen=True)
class _CallSettings:
    """Settings that may differ between the calls of a run."""

    failure_budget: float
    fail_fast: bool
    at_once: int
    lease_seconds: float

    def __post_init__(self) -> None:
        if not 0 <= self.failure_budget <= 1:
            raise ScoringError(f"failure_budget {self.failure_budget} is not a share of the models; use 0 to 1")
        if self.at_once < 1:
            raise ScoringError(f"at_once {self.at_once} is not above 0; use 1 to score one microbatch after the other")
        if not self.lease_seconds >= 1:
            raise ScoringError(f"lease_seconds {self.lease_seconds} is below 1; use some minutes")

    def budget_reached(self, plan: RunPlan, failed: int) -> str | None:
        return budget_reached(failed, len(plan.models), self.failure_budget, fail_fast=self.fail_fast)

    def why_stop(self, plan: RunPlan, failed: int, outcomes: Sequence[str]) -> str | None:
        return self.budget_reached(plan, failed) or hopeless(outcomes, fail_fast=self.fail_fast)


def _enter_new(plan: RunPlan, target: StoragePath, book: Ledger, settings: _CallSettings) -> None:
    """Enter a new run into the ledger, as refused if too many of its models have failed already.

    Raises:
        FleetRunError: Too many models have failed.
    """
    names = [one.model for one in plan.failures]
    why = settings.budget_reached(plan, len(names))
    errors = error_rows(plan.run, plan.failures)
    book.begin(run_row(plan, target, "refused" if why else "running"), model_rows(plan), (), (), [errors])
    if why:
        raise FleetRunError(_too_many(why, plan, names, book))


def _drive(
    spark: SparkSession,
    plan: RunPlan,
    target: StoragePath,
    book: Ledger,
    files: parquet_rows.ParquetFiles,
    fleet: Fleet,
    settings: _CallSettings,
    numbers: Sequence[int],
) -> FleetRun:
    """Score those of the microbatches ``numbers`` that are missing, and return the run when these are published."""
    begin, count = time.monotonic(), len(plan.microbatches)
    for problem in problems_of(spark, settings.at_once):
        _LOGGER.warning("%s; mirrorspark fleet plan prints the settings", problem)
    failed = _enter_resumed(plan, target, book, settings)
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:6]}"
    scoring = Scoring(spark, plan, target, files, fleet, owner, failed, partial(settings.why_stop, plan))
    limits = replace(DEFAULT_TIMES, lease_seconds=settings.lease_seconds)
    others = {*range(count)} - {*numbers}
    with Claims(book, plan.run, owner, settings.at_once, limits, others) as claims:
        claims.note(_failures(plan, failed))
        state = "failed"
        try:
            if numbers:  # else a bar would say that something is scored
                with progress_bar(spark, "score"):
                    _score_all(scoring, claims, settings.at_once)
            end = _End.of(plan, target, scoring, settings, others)
            claims.note(_failures(plan, end.failed - scoring.failed))
            state = end.state
        finally:
            ended = None if state == "running" else time.time()
            claims.note([Change(tables.RUNS, {"run_id": plan.run}, {"state": state, "ended": ended})])
    _check_end(end, plan, book, scoring)
    scored, seconds = scoring.outcomes.count("done"), time.monotonic() - begin
    names = tuple(sorted(end.failed))
    return FleetRun(plan.run, str(target), book.name, len(plan.models), names, plan.rows, count, scored, seconds)


def _enter_resumed(plan: RunPlan, target: StoragePath, book: Ledger, settings: _CallSettings) -> set[str]:
    """Enter into the ledger what the folder of the run has, and return the models that have failed so far.

    Raises:
        FleetRunError: Too many models have failed.
    """
    # In this order, microbatches that another driver publishes meanwhile are not taken for lost.
    were_done = {row["number"] for row in book.rows(tables.MICROBATCHES, plan.run) if row["state"] == "done"}
    manifests = published_manifests(plan, target)
    failed = {one.model for one in plan.failures} | _failed_in(manifests)
    if why := settings.budget_reached(plan, len(failed)):
        raise FleetRunError(_too_many(why, plan, sorted(failed), book))
    errors = [error_rows(plan.run, plan.failures), *_unrecorded(plan, manifests, book)]
    rows = run_row(plan, target, "running"), model_rows(plan), microbatch_rows(plan)
    book.begin(*rows, manifests, errors, were_done)
    return failed


@dataclass(frozen=True)
class _End:
    """A run after the work of a call.

    Attributes:
        failed: Models that have failed, in all drivers.
        left: Microbatches of this call that are not published.
        is_complete: All microbatches of the run are published.
        why_too_many: The reason why too many models have failed; None if they are not.
    """

    failed: set[str]
    left: list[int]
    is_complete: bool
    why_too_many: str | None

    @classmethod
    def of(
        cls, plan: RunPlan, target: StoragePath, scoring: Scoring, settings: _CallSettings, others: Collection[int]
    ) -> "_End":
        """Return the end of a call that has left the microbatches ``others`` to other drivers."""
        manifests = published_manifests(plan, target)
        # Other drivers have had failures of their own.
        failed = scoring.failed | _failed_in(manifests)
        left = microbatches_left(len(plan.microbatches), manifests)
        why = settings.budget_reached(plan, len(failed))
        return cls(failed, [number for number in left if number not in others], not left, why)

    @property
    def state(self) -> str:
        """The state in the ledger."""
        if self.left or self.why_too_many:
            return "failed"
        return "finished" if self.is_complete else "running"


def _check_end(end: _End, plan: RunPlan, book: Ledger, scoring: Scoring) -> None:
    """Warn of models that have failed.

    Raises:
        FleetRunError: Too many have, or microbatches of the call are not published.
    """
    names = sorted(end.failed)
    if end.why_too_many:
        raise FleetRunError(_too_many(end.why_too_many, plan, names, book))
    if end.left:
        raise FleetRunError(
            f"{len(end.left):,} of the {len(plan.microbatches):,} microbatches of {plan.run} are not published "
            f"({scoring.why_stopped or 'all have been tried'}), one because {scoring.problem or 'it was stopped'}; the "
            f"table {tables.ERRORS.name} of {book.name} has all reasons: remove them, and resume the run"
        )
    if names:
        _LOGGER.warning(
            "%d of %d models of %s have failed (%s), and have null outputs; the table %s of %s says why",
            len(names),
            len(plan.models),
            plan.run,
            some(names),
            tables.ERRORS.name,
            book.name,
        )


def _failed_in(manifests: Mapping[int, Manifest]) -> set[str]:
    return {one["model"] for manifest in manifests.values() for one in manifest["failed"]}


def _failures(plan: RunPlan, names: Iterable[str]) -> list[Change]:
    return [Change(tables.MODELS, {"run_id": plan.run, "model": one}, {"state": "failed"}) for one in names]


def _unrecorded(plan: RunPlan, manifests: Mapping[int, Manifest], book: Ledger) -> list[Rows]:
    """Return the errors of published microbatches whose driver did not get to enter them."""
    known = {row["number"]: row for row in book.rows(tables.MICROBATCHES, plan.run)}
    return [
        error_rows(
            plan.run,
            [ModelFailure(**one) for one in manifest["failed"] if one["stage"] == "score"],
            plan.microbatches[number],
            known[number]["fence"] if number in known else 1,
        )
        for number, manifest in manifests.items()
        if number not in known or known[number]["state"] != "done"
    ]


def _score_all(scoring: Scoring, claims: Claims, at_once: int) -> None:
    with ThreadPoolExecutor(at_once, "mirrorspark-fleet") as pool:
        try:
            for done in as_completed([pool.submit(scoring.work, claims) for _ in range(at_once)]):
                done.result()
        except BaseException:
            # Ctrl-C, too: the other threads wait for Spark.
            scoring.stop(claims)
            raise


def _too_many(why: str, plan: RunPlan, names: Sequence[str], book: Ledger) -> str:
    return (
        f"{len(names):,} of the {len(plan.models):,} models of {plan.run} have failed ({some(names)}), and {why}; the "
        f"table {tables.ERRORS.name} of {book.name} has each of them: correct them, leave them out, or allow more with "
        f"failure_budget"
    )


def _check_limits(model_seconds: float | None, model_bytes: int | None, prefixes: int) -> None:
    if model_seconds is not None and not model_seconds > 0:
        raise ScoringError(f"model_seconds {model_seconds} is not above 0; leave it out for no limit")
    if model_bytes is not None and not model_bytes > 0:
        raise ScoringError(f"model_bytes {model_bytes} is not above 0; leave it out for no limit")
    if prefixes < 1:
        raise ScoringError(f"prefixes {prefixes} is not above 0; use 1 for an output without such folders")


def _check_keys(keys: Sequence[str], folders: Collection[str]) -> None:
    if taken := [key for key in keys if key.lower() in folders]:
        raise ScoringError(f"the keys {taken} have names of the output's folders, {folders}; rename them")


def _check_new(target: StoragePath) -> None:
    lakes.refuse_lake_write(target)
    check_no_run(target)
    if target.is_file():
        raise ScoringError(f"the output {target} is a file; name a folder")
    folders = [one for one in target.folders() if one.name != RUN_FOLDER and not one.name.startswith(STAGING_PREFIX)]
    if others := [*target.files(recursive=False), *folders]:
        raise ScoringError(f"the output {target} has {len(others):,} other files or folders; name a new folder")


def _locations(paths: Location | Sequence[Location]) -> list[str]:
    if hasattr(paths, "sparkSession"):
        raise ScoringError(
            "the rows of a DataFrame may change between attempts; write it as Parquet, and give its path"
        )
    return [str(StoragePath.of(one)) for one in ([paths] if isinstance(paths, Location) else paths)]


def _files(locations: Sequence[str], target: StoragePath) -> parquet_rows.ParquetFiles:
    source = file_job.find_source(list(locations), None)
    if isinstance(source, SparkSource):
        raise ScoringError(
            f"{locations[0]} has the format '{source.format}', and a run takes plain Parquet files that do not change; "
            f"write its rows as Parquet first"
        )
    file_job.refuse_own_input([file.path for file in source], list(locations), target)
    return parquet_rows.ParquetFiles.of(source)
