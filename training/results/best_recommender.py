"""The recommender that an export writes: the trained one, or a better one that is fitted for the comparison."""

from pathlib import Path
from typing import Any

from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.models import classical
from mirrorspark.training.executor import OnProgress
from mirrorspark.training.results.evaluation import NETWORK
from mirrorspark.training.results.export_plan import ExportPlan
from mirrorspark.training.results.predictions import traced


def best_recommender(
    plan: ExportPlan, dataset: Dataset, architecture: Any, model: Any, on_progress: OnProgress
) -> tuple[str, str, Any, Any]:
    """Return the best of a retrieval model, the recommenders that are fitted here, and a blend.

    Returns:
        Its name with its settings, and without, its architecture, and the model.
    """
    # Its imports are those of the recommenders, Numba and Spark ML.
    from mirrorspark.training.results.evaluation import recommender_choice

    asked = [classical.Recommender.parse(given) for given in plan.candidates]
    found = recommender_choice.choose_recommender(
        *(dataset, architecture, model, traced(architecture, model), asked),
        monitor=plan.monitor,
        k=plan.top_k,
        seed=plan.seed,
        folder=Path(plan.predictions),
        on_progress=on_progress,
    )
    registered = found.choice.registered
    if registered == NETWORK:
        return plan.model, plan.model, architecture, model
    return registered, getattr(found.architecture, "name", registered), found.architecture, found.model
