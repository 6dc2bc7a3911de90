"""Decisions by cost: the rule that is fitted on the validation rows and becomes a part of the exported model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.models import decisions
from mirrorspark.training.results.evaluation import evaluate_run


def fitted_decisions(costs: decisions.Costs, dataset: Dataset, validation: pa.Table) -> decisions.Decisions:
    """Fit the rule on a model's predictions of the validation rows."""
    label, scores, weight = _columns(validation, dataset)
    names = dataset.features.class_names if scores.ndim > 1 else ()
    return decisions.fit_decisions(costs, label, scores, weight, names)


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
