"""The stages of a recipe's pipeline: from its source tables to a champion whose answers have been tried."""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines import read_profile, tables
from mirrorspark.data_pipelines.dataset import TRAIN_SPLIT, is_published
from mirrorspark.data_pipelines.quality import PAGE_FILE as DATASET_PAGE
from mirrorspark.data_pipelines.quality import Bins, Limits, measure_drift, stability_index
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.lifecycle.gate import PAGE_FILE as VALIDATION_PAGE
from mirrorspark.lifecycle.gate import SINGLE_ROWS, MetricEstimate, log_validation, score_single_rows, validate
from mirrorspark.lifecycle.pipeline.alerts import Alert, check_targets, report
from mirrorspark.lifecycle.pipeline.record import PipelineRecord
from mirrorspark.lifecycle.pipeline.settings import PipelineSettings
from mirrorspark.lifecycle.pipeline.stages import FIRST_STAGE, Facts, OutdatedError, Stage
from mirrorspark.lifecycle.promotion import (
    CHAMPION,
    Evidence,
    MLflowRegistry,
    PromotionConflictError,
    RegistryError,
    promote,
)
from mirrorspark.lifecycle.watching import SNAPSHOT_FILE, Snapshot, score_column
from mirrorspark.models.index import CANDIDATES, SCORES
from mirrorspark.scoring import score
from mirrorspark.scoring.model.folder import ModelDirectory
from mirrorspark.scoring.model.stored import resolve
from mirrorspark.serving.precomputed import PrecomputedScores, precompute
from mirrorspark.spark_session import open_session
from mirrorspark.storage import atomic_file
from mirrorspark.training import pipeline as main_job
from mirrorspark.training.configuration import RunConfig
from mirrorspark.training.job import SourceTables, prepare, recipe_table
from mirrorspark.training.results.report import REPORT_FILE
from mirrorspark.training.run_records import Tracking
from mirrorspark.training.run_records.live import LiveView

VALIDATION_FOLDER = "validation"
STORE_FILE = "scores.db"
# Warnings of a stage that has passed: texts.
WARNINGS = "warnings"

# Most columns with drift that a message names.
_SHOWN_COLUMNS = 5

Found = Mapping[str, Facts]


@dataclass(frozen=True)
class WeeklyPipeline:
    """The stages of a recipe's pipeline for one date.

    Attributes:
        config: The run, with its date.
        settings: The pipeline's own settings.
        folder: Where this date's evidence is kept.
        store: MLflow store.
        former: The latest earlier date that has finished.
        cached: The tables that Spark keeps for later stages.
    """

    config: RunConfig
    settings: PipelineSettings
    folder: Path
    store: str
    former: PipelineRecord | None = None
    cached: list[DataFrame] = field(default_factory=list, init=False)

    @cached_property
    def registry(self) -> MLflowRegistry:
        """Registry of the models."""
        return MLflowRegistry(self.store)

    @cached_property
    def sources(self) -> SourceTables:
        """The source tables as this command has found them; their files are read for it."""
        return SourceTables.find(self.config)

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages in their order."""
        return (
            Stage(FIRST_STAGE, "find the source tables, last week's data and the champion", self._ingest),
            Stage("data", "count the rows of the recipe's table", self._data, self._data_problems, FIRST_STAGE),
            Stage(
                "convert",
                "convert the table, compare its columns with last week's",
                self._convert,
                self._drift,
                FIRST_STAGE,
            ),
            Stage("train", "train, export, register, and score the test rows", self._train, _train_problems),
            Stage("evaluate", "measure candidate and champion in all slices", self._evaluate),
            Stage(
                "parity",
                "compare training framework, batch scorer and single rows",
                self._parity,
                _parity_problems,
                "evaluate",
            ),
            Stage("gate", "judge the measurements", self._gate, lambda facts: facts["failed"], FIRST_STAGE),
            Stage(
                "deploy",
                "fetch the registered version, score rows ahead of time",
                self._deploy,
                _other_files,
                "evaluate",
            ),
            Stage("smoke", "ask the deployed version row by row", self._smoke, _smoke_problems),
            Stage("promote", "make the candidate the champion", self._promote),
            Stage("notify", "send the result to the alert channels", self._notify),
        )

    def release(self) -> None:
        """Let Spark forget the tables that it has kept."""
        while self.cached:
            self.cached.pop().unpersist()

    def _ingest(self, found: Found) -> Facts:
        check_targets(self.settings.alerts)
        champion = self._champion()
        former = _of(self.former, "convert", "dataset")
        reference = self.config.reference_dataset or (former if former and is_published(former) else None)
        warm_start = self.config.warm_start
        if warm_start is None and champion is not None and self.settings.warm_start and not self.config.is_fitted:
            warm_start = self._uri(champion)
        return {
            "files": {table: str(path) for table, path in self.sources.files.items()},
            "source": _digest(self.sources),
            "champion": champion,
            # The inputs of the training are resolved once: the champion may change before the same command goes on.
            "warm_start": warm_start,
            "reference_dataset": reference,
        }

    def _data(self, found: Found) -> Facts:
        config = self._resolved(found)
        return {"rows": recipe_table(self._spark(), config).count()}

    def _data_problems(self, facts: Facts) -> Sequence[str]:
        rows, least = facts["rows"], self.settings.min_rows
        if rows < least:
            return [f"the recipe's table has {rows:,} rows, and min_rows is {least:,}"]
        former, most = _of(self.former, "data", "rows"), self.settings.row_change_at_most
        if former and most is not None and abs(rows - former) > most * former:
            assert self.former is not None  # noqa: S101 - it has rows
            return [
                f"the recipe's table has {rows:,} rows, {rows / former - 1:+.0%} against the {former:,} of "
                f"{self.former.run_date}; row_change_at_most is {most:g}"
            ]
        return []

    def _convert(self, found: Found) -> Facts:
        config = self._resolved(found)
        prepared = prepare(config, Tracking.find(config), LiveView(epochs=config.epochs))
        manifest, path = prepared.dataset.manifest, prepared.dataset.path
        drift: dict[str, float] = {}
        if config.reference_dataset:
            profile = read_profile(path)
            moved = measure_drift(profile, read_profile(config.reference_dataset))
            drift = {one.column: one.excess for one in moved if one.split == TRAIN_SPLIT}
        strong = {name: excess for name, excess in drift.items() if excess > Limits().strong_drift}
        return {
            "dataset": str(path),
            "page": str(path / DATASET_PAGE),
            "rows": {split: manifest.rows(split) for split in manifest.splits},
            "bytes": manifest.bytes,
            "drift": drift,
            WARNINGS: [
                *([f"columns have drifted since the former date: {_largest(strong)}"] if strong else []),
                *(one["sentence"] for one in manifest.findings if one["severity"] == "error"),
            ],
        }

    def _drift(self, facts: Facts) -> Sequence[str]:
        most = self.settings.drift_at_most
        far = {name: excess for name, excess in facts["drift"].items() if most is not None and excess > most}
        return [f"columns have drifted further than {most:g} since the former date: {_largest(far)}"] if far else []

    def _train(self, found: Found) -> Facts:
        summary = main_job.run(self._resolved(found))
        return {
            "status": summary.status,
            "model": summary.registered_model,
            "version": summary.model_version,
            "run_id": summary.run_id,
            "run_page": summary.run_page,
            "parity": dict(summary.parity),
            "scored_table": summary.scored_table,
            "report": str(Path(summary.run_folder or "") / REPORT_FILE),
            "warm_start": dict(summary.warm_start),
        }

    def _evaluate(self, found: Found) -> Facts:
        trained, config = found["train"], self._resolved(found)
        champion = self._champion()
        validation = validate(
            self._uri(trained["version"]),
            None if champion is None else self._uri(champion),
            self._test_rows(config),
            self.settings.slices,
            self.settings.gates,
            label=f"`{config.spec.label.name}`",
            keys=list(config.spec.keys),
            weight=None if config.spec.weight is None else f"`{config.spec.weight}`",
            single_rows=SINGLE_ROWS,
            tracking_uri=self.store,
        )
        evidence = validation.save(self.folder / VALIDATION_FOLDER)
        log_validation(validation, trained["run_id"], tracking_uri=self.store)
        overall = validation.facts.slices[0]
        values = _scores(Path(trained["scored_table"]))
        snapshot = Snapshot.of_dataset(Dataset.open(found["convert"]["dataset"])).with_scores(values)
        snapshot.save(self.folder / SNAPSHOT_FILE)
        scores = _score_counts(values, _of(self.former, "evaluate", "scores"))
        return {
            "champion": champion,
            "evidence": str(evidence),
            "page": str(evidence.with_name(VALIDATION_PAGE)),
            "metrics": _defined(overall.candidate),
            "change": _defined(overall.change),
            "slices": len(validation.facts.slices),
            "snapshot": str(self.folder / SNAPSHOT_FILE),
            "latency_p99_ms": validation.facts.latency_p99_ms,
            **scores,
        }

    def _gate(self, found: Found) -> Facts:
        evidence = Evidence.load(found["evaluate"]["evidence"])
        return {"failed": list(evidence.failed)}

    def _parity(self, found: Found) -> Facts:
        document = json.loads(Path(found["evaluate"]["evidence"]).read_text(encoding="utf-8"))
        reports = {name: _numbers(report) for name, report in document["parity"].items()}
        return {"reports": {"training framework and batch scorer": found["train"]["parity"], **reports}}

    def _deploy(self, found: Found) -> Facts:
        version = found["train"]["version"]
        evidence = Evidence.load(found["evaluate"]["evidence"])
        model = resolve(self._uri(version), self.store)
        facts = {"model": model.uri, "digest": model.digest, "validated_digest": evidence.digest}
        if (wanted := self.settings.precompute) is None or model.digest != evidence.digest:
            return facts
        config, spark = self._resolved(found), self._spark()
        recipe_table(spark, config)  # registers the source tables
        rows = tables.query(spark, wanted.sql, "the sql of precompute")
        scored = score(rows, model, keys=[wanted.key], outputs="columns", batch_size=config.scoring_batch_size)
        made = precompute(scored, self.folder / STORE_FILE, key=wanted.key, mode="overwrite")
        return facts | {"store": str(self.folder / STORE_FILE), "rows": made.rows}

    def _smoke(self, found: Found) -> Facts:
        model = resolve(found["deploy"]["model"], self.store)
        outputs = ModelDirectory.open(model.path).description.outputs
        output = SCORES if CANDIDATES in outputs else next(iter(outputs))
        rows = score_single_rows(self._test_rows(self._resolved(found)), model, output, self.settings.smoke_rows, {})
        facts = {"rows": rows.parity.rows, "max": rows.parity.max, "passed": rows.parity.passed, "p99_ms": rows.p99_ms}
        if (file := found["deploy"].get("store")) is not None:
            with PrecomputedScores.open(file) as store:
                store.check()
        return facts

    def _promote(self, found: Found) -> Facts:
        evidence = Evidence.load(found["evaluate"]["evidence"])
        try:
            done = promote(evidence, self.registry, why=f"pipeline of {self.config.run_date}")
        except PromotionConflictError as error:
            raise OutdatedError(str(error), "evaluate") from error
        facts: dict[str, Any] = {"version": done.version, "previous": done.previous, "is_new": done.is_new}
        if (file := found["deploy"].get("store")) is not None:
            current = self.folder.parent / STORE_FILE
            with Path(file).open("rb") as scores, atomic_file.replaced(current) as target:
                shutil.copyfileobj(scores, target)
            facts["store"] = str(current)
        return facts

    def _notify(self, found: Found) -> Facts:
        warnings = warnings_of(found)
        label = f"{self.config.registry_name}/{found['promote']['version']}"
        title = f"{label} is the champion of {self.config.run_date}" + (", with warnings" if warnings else "")
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in found["evaluate"]["metrics"].items())
        lines = [f"before: {found['promote']['previous'] or 'none'}", metrics, *warnings, found["evaluate"]["page"]]
        alert = Alert(title, "\n".join(lines), {"warnings": warnings, **found["promote"]})
        # The champion has changed: a date whose alert is lost is finished, with a warning.
        unsent = report(alert, self.settings.alerts)
        facts: dict[str, Any] = {"title": title, "targets": len(self.settings.alerts)}
        return facts if unsent is None else {**facts, WARNINGS: [unsent]}

    def _resolved(self, found: Found) -> RunConfig:
        """Return the configuration that this date started with. Caches the recipe's table if the settings ask for it.

        Raises:
            OutdatedError: The source files have changed.
        """
        known = found["ingest"]
        if _digest(self.sources) != known["source"]:
            raise OutdatedError(
                f"the source files of {self.config.run_date} are not those with which it was begun", FIRST_STAGE
            )
        if self.settings.cache_table and not self.cached:
            # The same query finds it in this and all later stages, whichever of them the command begins with.
            self.cached.append(recipe_table(self._spark(), self.config).cache())
        return replace(self.config, warm_start=known["warm_start"], reference_dataset=known["reference_dataset"])

    def _champion(self) -> str | None:
        try:
            return self.registry.alias(self.config.registry_name, CHAMPION)
        except RegistryError:  # the first week
            return None

    def _uri(self, version: str) -> str:
        return f"models:/{self.config.registry_name}/{version}"

    def _spark(self) -> SparkSession:
        return open_session(self.config.master, self.config.slots, verbose=self.config.verbose)

    def _test_rows(self, config: RunConfig) -> DataFrame:
        return recipe_table(self._spark(), config).where(F.col(config.conversion.split_column) == "test")


def warnings_of(found: Found) -> list[str]:
    """Return the warnings of stages, from their facts."""
    return [warning for facts in found.values() for warning in facts.get(WARNINGS, ())]


def _of(record: PipelineRecord | None, stage: str, name: str) -> Any:
    """Return a fact of another date; None if it has none."""
    return None if record is None else record.fact(stage, name)


def _digest(sources: SourceTables) -> str:
    """Return a digest of the source files, the query and the encoders."""
    identity = {name: part for name, part in sources.identity.items() if name != "reference"}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _defined(metrics: Mapping[str, MetricEstimate]) -> dict[str, float]:
    """Return the values of metrics that have one."""
    return {name: one.value for name, one in metrics.items() if math.isfinite(one.value)}


def _largest(of_columns: Mapping[str, float]) -> str:
    ordered = sorted(of_columns.items(), key=lambda one: -one[1])
    more = len(ordered) - _SHOWN_COLUMNS
    shown = ", ".join(f"{name} (index {index:.2f})" for name, index in ordered[:_SHOWN_COLUMNS])
    return shown + (f", and {more} more" if more > 0 else "")


def _train_problems(facts: Facts) -> Sequence[str]:
    if facts["status"] != "finished":
        return [f"the training is {facts['status']}"]
    return [] if facts["version"] else ["the training has registered no version"]


def _parity_problems(facts: Facts) -> Sequence[str]:
    failed = {name: float(report["max"]) for name, report in facts["reports"].items() if not report["passed"]}
    return [f"{name}: scores differ by up to {most:.1e}" for name, most in failed.items()]


def _numbers(report: Mapping[str, Any]) -> Facts:
    """Return the part of a report of parity that a record keeps."""
    return {name: report[name] for name in ("rows", "max", "mean", "p99")} | {"passed": report["passed"]}


def _other_files(facts: Facts) -> Sequence[str]:
    if facts["digest"] == facts["validated_digest"]:
        return []
    return [f"the files of {facts['model']} are not those that were validated"]


def _smoke_problems(facts: Facts) -> Sequence[str]:
    if not facts["rows"]:
        return ["there was no row to ask for"]
    return [] if facts["passed"] else [f"single rows differ from the table by up to {facts['max']:.1e}"]


def _scores(table: Path) -> NDArray[np.float64]:
    """Return the scores of a scored table; those of lists one behind the other."""
    name = "score" if "score" in pq.ParquetDataset(table).schema.names else SCORES
    column = pq.read_table(table, columns=[name])[name].combine_chunks()
    return np.asarray(column.flatten() if name == SCORES else column, np.float64)


def _score_counts(values: NDArray[np.float64], former: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the counts of the scores in ten bins, and a warning if their distribution has changed.

    The bins are deciles of the earliest date, so that all dates are comparable.
    """
    column = score_column(values, bins=Bins(edges=tuple(former["edges"])) if former else None)
    scores = {"edges": list(column.bins.edges), "counts": list(column.counts), "mean": float(values.mean())}
    found: dict[str, Any] = {"scores": scores}
    if former:
        index, noise = stability_index(column.counts, tuple(former["counts"]))
        found["score_drift"] = max(0.0, index - noise)
        if found["score_drift"] > Limits().strong_drift:
            found[WARNINGS] = [f"the distribution of the scores has changed: index {found['score_drift']:.2f}"]
    return found
