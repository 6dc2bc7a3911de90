"""The call that validates a candidate: it measures, decides, and returns the evidence for a promotion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.lifecycle.gate.facts import Facts
from mirrorspark.lifecycle.gate.measure import MeasurementSpec, measure
from mirrorspark.lifecycle.gate.serving import model_bytes, schema_changes, score_single_rows
from mirrorspark.lifecycle.gate.slices import Slicing, slicings_of
from mirrorspark.lifecycle.gate.task_metrics import metrics_of_task
from mirrorspark.lifecycle.gate.thresholds import Gates, Threshold
from mirrorspark.lifecycle.gate.validation import JSON_FILE, ModelReference, Validation
from mirrorspark.models.index import CANDIDATES, SCORES
from mirrorspark.pages import drawn
from mirrorspark.scoring import check_keys
from mirrorspark.scoring.input import NullRule
from mirrorspark.scoring.model.folder import ModelDescription, ModelDirectory, Task
from mirrorspark.scoring.model.stored import PinnedModel, pinned_model
from mirrorspark.scoring.parity import THRESHOLD, ParityReport
from mirrorspark.scoring.task import OtherVersions
from mirrorspark.spark_session import on_running_session

SINGLE_ROWS = 200
PARITY_OF_ROWS = "single rows and table"
PARITY_GIVEN = "parity"


@on_running_session
def validate(
    candidate: str | Path | PinnedModel,
    champion: str | Path | PinnedModel | None,
    table: DataFrame,
    slices: Sequence[str | Slicing] = (),
    gates: Gates | Sequence[Threshold] = (),
    *,
    label: str,
    keys: str | Sequence[str],
    task: Task | None = None,
    output: str | None = None,
    weight: str | None = None,
    threshold: float = THRESHOLD,
    parity: ParityReport | None = None,
    single_rows: int = SINGLE_ROWS,
    tracking_uri: str | None = None,
    nulls: Mapping[str, NullRule] | None = None,
    other_versions: OtherVersions = "refuse",
    trust: bool = False,
    seed: int = 1,
) -> Validation:
    """Measure a candidate and the champion on labelled rows, and judge the candidate by gates.

    One pass of Spark scores the table with both models and measures all slices. Metrics equal those of scikit-learn;
    for a slice with more than 8,192 distinct scores, ``auc`` and ``pr_auc`` come from a histogram, and ``error`` of a
    :class:`lifecycle.gate.facts.MetricEstimate` bounds their distance to the exact value. Intervals are of 95%, by a
    Poisson bootstrap of the keys.

    Args:
        candidate: URI of the model, or the result of :func:`scoring.model.stored.resolve`.
        champion: The model in production; None where there is none yet.
        table: Rows that neither model has trained on, with the raw columns of both, keys and label.
        slices: SQL expressions; every value of one is a slice. A :class:`Slicing` has a name and chosen values.
        gates: Gates that the candidate must pass; thresholds alone stand for ``Gates(thresholds)``.
        label: SQL expression of the label: 0 or 1 (binary), a number (regression), the name of a class, a list of names
            or of a 0 or 1 for each of them (multi-label), or the held-back item or list of them (retrieval).
        keys: Columns whose values are drawn for the intervals: the key of a row, or a user with several rows.
        task: The models' task; by default that of a candidate that was trained here.
        output: The models' column of scores, if they have several and the task leaves it open.
        weight: SQL expression of non-negative row weights.
        threshold: Score from which a row counts as positive in ``accuracy``, ``precision`` and ``recall``.
        parity: Report of :func:`scoring.parity.parity_check` of the candidate, for example between the training
            framework and the scorer.
        single_rows: Number of rows that are also scored one by one, in a process of their own: their times are the
            latency, and their scores must be those of the table. 0 leaves both out.
        tracking_uri: Address of the MLflow store; by default the one that MLflow is configured with.
        nulls: As in :func:`scoring.score`.
        other_versions: As in :func:`scoring.score`.
        trust: As in :func:`scoring.score`.
        seed: Fixes the intervals.

    Raises:
        ModelNotFoundError: A URI does not lead to a model.
        ScoringError: The table lacks a key, or does not fit the models.
        ValueError: A slicing or gate makes no sense, or the task is not known.
        PySparkException: A job failed; the message names the reason, such as a label that is null.
        SingleRowsError: Single rows cannot be scored.
    """
    slicings = slicings_of(slices)
    gates = gates if isinstance(gates, Gates) else Gates(tuple(gates))
    gates.check_slicings(tuple(one.name for one in slicings))
    if gates.latency_p99_ms is not None and single_rows < 1:
        raise ValueError("a latency is asked for, and single_rows is 0; give the number of rows to measure")
    keys = (keys,) if isinstance(keys, str) else tuple(keys)
    check_keys(table.columns, keys)
    models = [pinned_model(one, tracking_uri) for one in (candidate, champion) if one is not None]
    folders = [ModelDirectory.open(model.path) for model in models]
    task = task or _task(folders[0], models[0])
    output = output or _output(folders[0], task)
    scoring: dict[str, Any] = {"nulls": nulls, "other_versions": other_versions, "trust": trust}
    classes = folders[0].labels.get(output, ())
    is_ordinal = task == "multi_class" and _is_ordinal(folders[0])
    metrics = metrics_of_task(task, threshold, classes, is_ordinal=is_ordinal)
    spec = MeasurementSpec(label, keys, output, slicings, weight, seed, scoring)
    measured = measure(table, models, metrics, spec)
    reports = {} if parity is None else {PARITY_GIVEN: parity}
    latency = None
    if single_rows > 0:
        rows = score_single_rows(table, models[0], _compared(output), single_rows, scoring)
        latency, reports[PARITY_OF_ROWS] = rows.p99_ms, rows.parity
    changes = schema_changes(folders[0], folders[1]) if len(folders) > 1 else None
    return Validation(
        candidate=ModelReference.of(models[0]),
        champion=ModelReference.of(models[1]) if len(models) > 1 else None,
        task=task,
        label=label,
        keys=keys,
        facts=Facts(measured, reports, changes, latency, model_bytes(models[0])),
        gates=gates,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
    )


def log_validation(validation: Validation, run_id: str, *, tracking_uri: str | None = None) -> None:
    """Log a validation to an MLflow run: page and JSON as artifacts, the verdict as tag ``validation``.

    Args:
        validation: The validation.
        run_id: The run, for example that of the candidate's training; it may have ended.
        tracking_uri: Address of the MLflow store; by default the one that MLflow is configured with.

    Raises:
        MlflowException: There is no such run, or the store cannot be used.
    """
    import mlflow  # takes seconds

    from mirrorspark.lifecycle.gate.page import PAGE_FILE, validation_page

    client = tracking_store.store_client(tracking_uri or mlflow.get_tracking_uri())
    for name, page in drawn({PAGE_FILE: lambda: validation_page(validation)}).items():
        client.log_text(run_id, page, name)
    client.log_text(run_id, validation.to_json(), JSON_FILE)
    client.set_tag(run_id, "validation", validation.verdict)


def _task(folder: ModelDirectory, model: PinnedModel) -> Task:
    if isinstance(folder.description, ModelDescription):
        return folder.description.task
    raise ValueError(f"{model.label} was not trained here, so its task is unknown; pass task, for example 'binary'")


def _is_ordinal(folder: ModelDirectory) -> bool:
    """Return whether the classes of a model that was trained here have an order."""
    return isinstance(folder.description, ModelDescription) and folder.features.spec.label.order is not None


def _output(folder: ModelDirectory, task: Task) -> str:
    outputs = list(folder.description.outputs)
    if task == "retrieval" and CANDIDATES in outputs:
        return CANDIDATES
    if len(outputs) == 1 or isinstance(folder.description, ModelDescription):
        return outputs[0]
    raise ValueError(f"the model has the outputs {outputs}; name the column of its scores as output")


def _compared(output: str) -> str:
    """Return the output whose numbers are compared in parity."""
    return SCORES if output == CANDIDATES else output
