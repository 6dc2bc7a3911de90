"""The plan of an export, made from its job, and its result."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mirrorspark.models import own_model
from mirrorspark.storage import clean

if TYPE_CHECKING:  # Spark and MLflow, which the process of the export does without
    from mirrorspark.training.configuration import TrainingConfig
    from mirrorspark.training.job import LearntModel, TrainingJob


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


def plan_export(job: "TrainingJob", best: "LearntModel") -> ExportPlan:
    """Return the plan of the export of a job's best epoch."""
    config = job.config
    return ExportPlan(
        dataset=str(job.dataset.path),
        checkpoint=str(best.path),
        model=config.model["name"],
        model_options=config.model_options,
        seed=config.seed,
        top_k=config.top_k,
        folder=str(job.folder.model),
        predictions=str(job.folder.predictions),
        tracking_uri=job.tracked.uri,
        registry_uri=job.tracked.registry_uri,
        mlflow_run_id=job.tracked.require_run_id(),
        # MLflow allows no dots in it.
        model_name=job.folder.path.name.replace(".", "_"),
        registered_model=config.registry_name,
        model_tags=_model_tags(job),
        threads=export_threads(config),
        monitor=config.monitor,
        register=config.register,
        candidates=[{"name": asked.name, **asked.options} for asked in config.registrable],
        calibration=config.calibration,
        explain=config.explain,
        class_weights=list(job.class_factors),
        costs=list(map(list, job.costs)),
        monotone=config.monotone,
    )


def _model_tags(job: "TrainingJob") -> dict[str, str]:
    spec = job.dataset.spec
    return {
        "run": job.folder.path.name,
        "recipe": job.config.name,
        "dataset": job.dataset.path.name,
        "label": spec.label.name,
        "architecture": str(job.config.model["name"]),
    }


def export_threads(config: "TrainingConfig") -> int:
    """Return the number of TensorFlow threads of an export, which runs on the driver's machine."""
    return config.threads_per_worker or os.cpu_count() or 1
