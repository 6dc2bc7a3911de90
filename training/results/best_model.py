"""The best of a network, its baselines and their blend in the place of the network: the exported model of a table."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.training.configuration import RowBaseline
from mirrorspark.training.executor import OnProgress
from mirrorspark.training.results.evaluation.model_choice import scores_of
from mirrorspark.training.results.export_plan import ExportPlan
from mirrorspark.training.results.predictions import traced


def best_model(
    plan: ExportPlan,
    dataset: Dataset,
    scorer: tuple[Any, Any],
    tables: Mapping[str, pa.Table],
    predict: Callable[[Any], Any],
    on_progress: OnProgress,
) -> tuple[str, Mapping[str, pa.Table], tuple[Any, Any], Callable[[Any], Any]]:
    """Return the best of the network, the baselines and their blend.

    Returns:
        Its name, its predictions, its architecture with the model, and how it predicts.
    """
    from mirrorspark.models import blend
    from mirrorspark.training.results.evaluation import model_choice

    (architecture, model), task = scorer, scorer[0].TASK
    asked = [RowBaseline.parse(given) for given in plan.candidates]
    found = model_choice.choose_model(
        *(dataset, task, plan.monitor, plan.seed, asked, tables, Path(plan.predictions), on_progress),
        *(plan.class_weights, plan.monotone),
    )
    registered, weights = found.choice.registered, found.choice.weights
    if registered == model_choice.NETWORK:
        return plan.model, found.tables, scorer, predict

    def graph(name: str) -> tuple[Any, Any]:
        if name == model_choice.NETWORK:
            return architecture, model
        return model_choice.graph_of(found.fitted[name], task, model_choice.classes_of(dataset, task))

    if registered == model_choice.BLEND:
        parts = tuple(blend.Part(*graph(name), weight) for name, weight in weights.items())
        best: tuple[Any, Any] = blend, blend.Blend(parts)
    else:
        best = graph(registered)
    best_predict = traced(*best)
    _check(best_predict, dataset, found.tables["validation"])
    return registered, found.tables, best, best_predict


def _check(predict: Callable[[Any], Any], dataset: Dataset, expected: pa.Table) -> None:
    """Compare the scores of the graph for some validation rows with those that the model was chosen by.

    Raises:
        ValueError: They differ: this version of scikit-learn stores what it learnt in another form.
    """
    from mirrorspark.models.serving import input_tensors

    block = next(iter(dataset.blocks("validation")), None)
    if block is None:
        return
    found = predict(input_tensors(dataset.spec.query_features, block.features))
    of_graph = np.asarray(found["scores" if "scores" in found else "score"])
    wanted = scores_of(expected.slice(0, block.rows))
    if not np.allclose(of_graph, wanted, rtol=1e-3, atol=1e-4):
        raise ValueError(
            f"the exported model's scores differ from those of the model that was chosen, by up to "
            f"{np.abs(of_graph - wanted).max():.3g}; register model (--register model)"
        )
