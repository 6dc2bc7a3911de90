"""Decisions by cost: the rule that is fitted on the validation rows and becomes a part of the exported model."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.models import decisions
from mirrorspark.scoring.embedding import graph_encoders
from mirrorspark.scoring.model.folder import SAVED_MODEL_FOLDER, ModelDescription
from mirrorspark.training.results.evaluation import evaluate_run


def add_decisions(
    costs: decisions.Costs, dataset: Dataset, validation: pa.Table, architecture: Any, model: Any, folder: Path
) -> None:
    """Fit the rule, and write the exported model in ``folder`` anew, with the rule in its graph.

    Args:
        costs: Cost of each decision.
        dataset: The dataset of the training.
        validation: The model's predictions of the validation rows.
        architecture: The module or object whose ``predict`` is the model's.
        model: The model that is registered.
        folder: Its folder.
    """
    from mirrorspark.models.serving import export as serving

    label, scores, weight = _columns(validation, dataset)
    names = dataset.features.class_names if scores.ndim > 1 else ()
    rule = decisions.fit_decisions(costs, label, scores, weight, names)
    shutil.rmtree(folder / SAVED_MODEL_FOLDER)
    deciding: Any = decisions.DecidingArchitecture(architecture, rule)
    encoders = graph_encoders(folder, dataset.spec.query_features)
    serving.save(serving.ScoringModule(deciding, model, dataset.features, encoders), folder / SAVED_MODEL_FOLDER)
    description = ModelDescription.load(folder)
    outputs = {**description.outputs, decisions.DECISION: rule.output_type}
    dataclasses.replace(description, outputs=outputs).save(folder)
    rule.save(folder)


def with_costs(
    metrics: Mapping[str, Mapping[str, float]], predictions: Mapping[str, pa.Table], dataset: Dataset, folder: Path
) -> Mapping[str, Mapping[str, float]]:
    """Return the metrics by split with the mean costs of the model in ``folder``, if it decides."""
    rule = decisions.Decisions.load(folder)
    if rule is None:
        return metrics
    return {split: {**of, **rule.mean_costs(*_columns(predictions[split], dataset))} for split, of in metrics.items()}


def _columns(table: pa.Table, dataset: Dataset) -> tuple[Any, Any, Any]:
    if dataset.spec.label.kind == "binary":
        return evaluate_run.weighed_columns(table)
    return evaluate_run.classed_columns(table, dataset.features.classes)
