"""The plan of an export, and its result."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mirrorspark.models import own_model
from mirrorspark.storage import clean


@dataclass(frozen=True)
class ExportPlan:
    """The plan of an export.

    Attributes:
        dataset: Dataset directory.
        checkpoint: Committed checkpoint of the best epoch, or the file of a model that was fitted.
        model: Name of the architecture.
        model_options: The architecture's settings.
        top_k: Candidates per row of a retrieval model.
        folder: Folder for the exported model.
        predictions: Folder for the reference predictions, one Parquet file per evaluated split.
        tracking_uri: MLflow store.
        registry_uri: MLflow's registry of models.
        mlflow_run_id: Run that the model belongs to.
        model_name: Name of the logged model.
        registered_model: Name in the model registry.
        model_tags: Tags of the registered version and of the logged model.
        threads: TensorFlow threads.
        monitor: Metric that chooses between the model, baselines and their blend.
        register: ``model``, or ``better`` to register the best of them.
        candidates: Name and settings of each baseline to choose from.
        calibration: Kind of the calibration of the predictions.
        explain: Explain the registered one's predictions of the test rows that the dataset has kept.
        class_weights: Factors of rows' weights by class, for the fit of gradient boosting.
        costs: Cost of each decision, by the actual class and the one decided for; empty for a model without decisions.
        monotone: Directions of features that the registered one must hold.
    """

    dataset: str
    checkpoint: str
    model: str
    model_options: dict[str, Any]
    seed: int
    top_k: int
    folder: str
    predictions: str
    tracking_uri: str
    registry_uri: str
    mlflow_run_id: str
    model_name: str
    registered_model: str
    model_tags: dict[str, str]
    threads: int
    monitor: str = ""
    register: str = "model"
    candidates: list[dict[str, Any]] = field(default_factory=list)
    calibration: str = "none"
    explain: bool = False
    class_weights: Sequence[float] = ()
    costs: Sequence[Sequence[float]] = ()
    monotone: Mapping[str, str] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """The part of the plan that two exports with the same result share."""
        # It is written to a file, which must have neither a server's password nor the values of a notebook's function.
        options = own_model.without_code({"name": self.model, **self.model_options})
        document = clean(dataclasses.asdict(self) | {"model_options": options})
        return {name: value for name, value in document.items() if name != "threads"}


@dataclass(frozen=True)
class ExportResult:
    """The model in MLflow: its URI and its version in the registry."""

    model_uri: str
    model_version: str
