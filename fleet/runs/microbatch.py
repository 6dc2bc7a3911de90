"""The scoring of microbatches: each is one Spark job, published with its manifest or not at all."""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from pyspark.sql import SparkSession

from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.data_pipelines.spark import Shares
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.runs import tables
from mirrorspark.fleet.runs.claims import Claims
from mirrorspark.fleet.runs.counts import COUNTS_FILE, counts_file
from mirrorspark.fleet.runs.failures import ModelFailure
from mirrorspark.fleet.runs.ledger import Change, Claim, Entry, Rows
from mirrorspark.fleet.runs.plan import MANIFEST_FILE, Microbatch, RunPlan
from mirrorspark.fleet.runs.task import FailedModelsError, MicrobatchWriter, Selection, brief
from mirrorspark.fleet.score import FleetCounters, ship_fleet
from mirrorspark.scoring import file_job
from mirrorspark.spark_session import SESSION_ERRORS, session_of
from mirrorspark.storage import LeaseLostError, StoragePath, one_line
from mirrorspark.storage.publish import SaveMode, TargetExistsError, WriteJob, WrittenFile, holds_data

_LOGGER = logging.getLogger(__name__)

Manifest = Mapping[str, Any]

_MANIFEST_FORMAT = 1
_MANIFESTS_AT_A_TIME = 16


def read_manifest(folder: StoragePath) -> Manifest | None:
    """Return the manifest of a published microbatch; None if it or one of its files is missing or damaged."""
    try:
        content = (folder / MANIFEST_FILE).read_bytes()
    except FileNotFoundError:
        return None
    try:
        found: Manifest = json.loads(content)
    except ValueError:  # neither JSON nor even text
        return None
    sizes = {file.path.name: file.bytes for file in folder.files(recursive=False)}
    # A version before there were counts has left none.
    files = [*found["files"], *found.get("counts", [])]
    return found if all(sizes.get(file["path"]) == file["bytes"] for file in files) else None


def published_manifests(plan: RunPlan, output: StoragePath) -> dict[int, Manifest]:
    """Return the manifests of the microbatches that are published, by number."""
    folders = [output / one.folder for one in plan.microbatches]
    with ThreadPoolExecutor(_MANIFESTS_AT_A_TIME) as pool:
        return {number: found for number, found in enumerate(pool.map(read_manifest, folders)) if found is not None}


def error_rows(
    run: str, failures: Iterable[ModelFailure], microbatch: Microbatch | None = None, attempt: int = 0
) -> Rows:
    """Return failures as entries of the ledger."""
    of_run = {"run_id": run, "microbatch": -1 if microbatch is None else microbatch.number, "attempt": attempt}
    place = {"model_group": "", "step": -1}
    if microbatch is not None:
        place = {"model_group": microbatch.step.group, "step": microbatch.step.number}
    return Rows(tables.ERRORS, [of_run | place | asdict(one) | {"at": time.time()} for one in failures])


@dataclass(frozen=True)
class _Done:
    """A microbatch that is published.

    Attributes:
        counters: Counters of its tasks; None if another attempt has done it.
        model_seconds: Seconds of each model in all tasks.
    """

    manifest: Manifest
    counters: FleetCounters | None = None
    model_seconds: Sequence[float] = ()


class Scoring:
    """The scoring of a run's microbatches in this driver, by some threads.

    Attributes:
        failed: Names of the models that have failed.
        outcomes: Outcomes of the attempts so far.
        why_stopped: Why it ended before the last microbatch.
        problem: Message of the last microbatch that failed.
    """

    def __init__(
        self,
        spark: SparkSession,
        plan: RunPlan,
        output: StoragePath,
        files: parquet_rows.ParquetFiles,
        fleet: Fleet,
        owner: str,
        failed: Iterable[str],
        why_stop: Callable[[int, Sequence[str]], str | None],
    ) -> None:
        self.failed, self.outcomes = set(failed), list[str]()
        self.why_stopped: str | None = None
        self.problem = ""
        self._spark, self._plan, self._output, self._files, self._fleet = spark, plan, output, files, fleet
        self._owner, self._why_stop = owner, why_stop
        self._shipped = ship_fleet(spark, fleet)
        self._lock, self._is_over = threading.Lock(), threading.Event()
        self._rows_of = lru_cache(maxsize=4)(self._rows_of_step)

    def work(self, claims: Claims) -> None:
        """Score one microbatch after the other until there is none left, or the run is to stop.

        Raises:
            LedgerError: The ledger stays away.
        """
        # Of this thread alone: another driver of this session has its own.
        with session_of(self._spark).job_group(
            self._owner, f"run {self._plan.run}", pool=threading.current_thread().name
        ):
            while not self._is_over.is_set() and (claim := claims.next()) is not None:
                self._attempt(claim, claims)
                self._stop_if_decided(claims)

    def stop(self, claims: Claims) -> None:
        """End the jobs of all threads, and begin no more."""
        self._is_over.set()
        claims.stop()
        session_of(self._spark).cancel_jobs(self._owner)

    def _stop_if_decided(self, claims: Claims) -> None:
        with self._lock:
            why = self._why_stop(len(self.failed), self.outcomes)
            if why is None or self._is_over.is_set():
                return
            self.why_stopped = why
            self._is_over.set()
        self.stop(claims)

    def _attempt(self, claim: Claim, claims: Claims) -> None:
        """Score a microbatch, and record the outcome in the ledger."""
        microbatch = self._plan.microbatches[claim.number]
        began, begin = time.time(), time.monotonic()
        done: _Done | None = None
        entries, outcome = list[Entry](), "stopped"
        try:
            done = self._scored(microbatch, claim, claims)
            outcome = "done" if done.counters is not None else "superseded"
        except (LeaseLostError, TargetExistsError) as error:
            outcome = "superseded"
            _LOGGER.warning("%s", one_line(error))
        except (OSError, ValueError, FailedModelsError, *SESSION_ERRORS) as error:
            if not self._is_over.is_set():
                outcome, self.problem = "failed", one_line(error)
                _LOGGER.warning("microbatch %d of %s has failed: %s", claim.number, self._plan.run, self.problem)
                failure = ModelFailure.of("", "write", error)
                entries.append(error_rows(self._plan.run, [failure], microbatch, claim.fence))
        finally:
            seconds = time.monotonic() - begin
            entries.append(self._attempt_row(claim, outcome, began, seconds, done))
            is_published = outcome == "superseded" and read_manifest(self._output / microbatch.folder) is not None
            state = outcome if outcome in ("done", "failed") else "done" if is_published else "waiting"
            claims.end(claim, state, entries, seconds)
            with self._lock:
                self.outcomes.append(outcome)

    def _scored(self, microbatch: Microbatch, claim: Claim, claims: Claims) -> _Done:
        """Score and publish a microbatch, again without the models that fail in it.

        Raises:
            FailedModelsError: The number of failed models ends the run.
        """
        folder = self._output / microbatch.folder
        failures: dict[str, ModelFailure] = {}
        while True:
            if (found := read_manifest(folder)) is not None:
                return _Done(found)
            try:
                return self._published(microbatch, folder, failures, lambda: claims.confirm(claim))
            except FailedModelsError as error:
                new = {one.model: one for one in error.failures if one.model not in failures}
                if not new:
                    raise
                failures |= new
                where = {"run_id": self._plan.run}
                failed = [Change(tables.MODELS, where | {"model": name}, {"state": "failed"}) for name in new]
                claims.note([error_rows(self._plan.run, new.values(), microbatch, claim.fence), *failed])
                with self._lock:
                    self.failed |= set(new)
                self._stop_if_decided(claims)
                if self._is_over.is_set():
                    raise

    def _published(
        self,
        microbatch: Microbatch,
        folder: StoragePath,
        failures: Mapping[str, ModelFailure],
        confirm: Callable[[], None],
    ) -> _Done:
        """Run the Spark job of a microbatch, and publish its files with their manifest."""
        rows = self._rows_of(microbatch.models)
        selection = Selection(microbatch.models, tuple(sorted(failures)))
        share = microbatch.share
        part = rows.part(share.first, sum(share.groups_per_task))
        # Without a whole manifest, the files have been damaged since they were published.
        mode = SaveMode.OVERWRITE if holds_data(folder) and read_manifest(folder) is None else SaveMode.ERROR
        with file_job.begun_write(folder, mode) as job:
            writer = MicrobatchWriter(
                job,
                file_job.schema_of(rows, self._plan.keys),
                self._shipped,
                self._plan.layout,
                self._plan.outputs,
                selection,
                self._plan.model_seconds,
            )
            tasks = file_job.FileTasks.of_shares(self._spark, Shares.of(part, share.groups_per_task), writer)
        manifest: dict[str, Any] = {}

        def seal(files: Sequence[WrittenFile], reports: Sequence[Mapping[str, Any]]) -> list[WrittenFile]:
            found = [ModelFailure(**one) for report in reports for one in report["failures"]]
            if found:
                first = {one.model: one for one in sorted(found, key=lambda one: -(one.partition or 0))}
                raise FailedModelsError(list(first.values()))
            layout = Layout.of(selection(self._fleet), self._plan.layout, self._plan.outputs, is_part=True)
            counts = counts_file(layout, reports)
            manifest.update(self._manifest(microbatch, failures, files, reports))
            manifest["counts"] = [
                {"path": COUNTS_FILE, "bytes": len(counts), "sha256": hashlib.sha256(counts).hexdigest()}
            ]
            contents = {COUNTS_FILE: counts, MANIFEST_FILE: json.dumps(manifest, indent=1).encode()}
            written = self._write_beside(job, len(share.groups_per_task), contents)
            confirm()
            return written

        result = tasks.run(job, seal)
        by_model = zip(*(report["model_seconds"] for report in result.reports), strict=True)
        return _Done(manifest, FleetCounters.of(result.reports), brief(map(sum, by_model)))

    def _rows_of_step(self, models: tuple[str, ...]) -> parquet_rows.ParquetRows:
        """Return the input with the columns that some models read."""
        columns = self._fleet.select(models).columns
        return self._files.rows(list(dict.fromkeys([*self._plan.keys, *columns])))

    def _manifest(
        self,
        microbatch: Microbatch,
        failures: Mapping[str, ModelFailure],
        files: Sequence[WrittenFile],
        reports: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Return the manifest, in which nothing depends on the time, the attempt or the machine."""
        known = {one.model: one for one in self._plan.failures} | dict(failures)
        digests = {path: digest for report in reports for path, digest in report["digests"].items()}
        named = ("model", "stage", "error", "message", "partition")
        return {
            "format": _MANIFEST_FORMAT,
            "fleet": self._plan.fleet,
            "group": microbatch.step.group,
            "step": microbatch.step.number,
            "part": microbatch.part,
            "models": len(microbatch.models),
            "failed": [
                {name: getattr(known[model], name) for name in named} for model in microbatch.models if model in known
            ],
            "files": [
                {"path": one.path, "rows": one.rows, "bytes": one.bytes, "sha256": digests[one.path]} for one in files
            ],
        }

    def _write_beside(self, job: WriteJob, number: int, contents: Mapping[str, bytes]) -> list[WrittenFile]:
        """Write the files that describe a microbatch, the manifest last."""
        with job.attempt(number) as attempt:
            written = []
            for name, content in contents.items():
                job.attempt_file(attempt, name).write_bytes(content)
                written.append(WrittenFile(attempt, name, 0, 0, len(content)))
            return written

    def _attempt_row(self, claim: Claim, outcome: str, began: float, seconds: float, done: _Done | None) -> Rows:
        row = {"run_id": self._plan.run, "microbatch": claim.number, "attempt": claim.fence, "owner": self._owner}
        row |= {"outcome": outcome, "began": began, "seconds": seconds}
        counters = done.counters if done is not None else None
        names = "rows nulls read_seconds score_seconds write_seconds tasks task_seconds slowest_seconds median_seconds"
        row |= {name: getattr(counters, name) if counters else 0 for name in names.split()}
        row["model_seconds"] = json.dumps(done.model_seconds) if done is not None and counters else ""
        files = done.manifest["files"] if done is not None and counters else []
        return Rows(tables.ATTEMPTS, [row | {"bytes": sum(file["bytes"] for file in files)}])
