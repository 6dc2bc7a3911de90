"""The registration of an exported model: one version for the same weights, however often an export is repeated."""

import hashlib
import json
from pathlib import Path
from typing import Any

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.data_pipelines import EXAMPLE_FILE
from mirrorspark.data_pipelines.dataset import FEATURES_FOLDER
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.scoring.model import input_example, mlflow_flavour
from mirrorspark.scoring.model.folder import ModelDirectory
from mirrorspark.training.results.evaluation import CHOICE_FILE
from mirrorspark.training.results.export_plan import ExportPlan, ExportResult

# Tags of a registered version: the checkpoint of the run's best epoch, and the parts that were registered after it.
CHECKPOINT_TAG = "checkpoint"
ARCHITECTURE_TAG = "architecture"
CHOICE_TAG = "choice"

# Begins the source of a version that is a logged model.
_LOGGED = "models:/m-"


def register(plan: ExportPlan, dataset: Dataset, architecture: str) -> ExportResult:
    """Register the model in the plan's folder, unless an earlier export has registered it.

    Args:
        plan: The plan of the export.
        dataset: The dataset of the training.
        architecture: Name of the model that the folder has.
    """
    import mlflow

    mlflow.set_tracking_uri(plan.tracking_uri)  # For this process alone, like the registry.
    mlflow.set_registry_uri(plan.registry_uri)
    client = tracking_store.store_client(plan.tracking_uri, plan.registry_uri)
    known = registered_before(client, plan, architecture)
    if known is not None:
        return known
    delete_unregistered(client, plan)
    folder = Path(plan.folder)
    example = input_example(dataset.path / FEATURES_FOLDER / EXAMPLE_FILE, folder)
    # System metrics are off in any environment, since they would be those of the export.
    mlflow.start_run(run_id=plan.mlflow_run_id, log_system_metrics=False)
    try:
        flavour = mlflow_flavour(ModelDirectory.open(folder))
        flavour["metadata"] |= {"dataset": Path(plan.dataset).name}
        info = mlflow.pyfunc.log_model(
            name=plan.model_name,
            data_path=plan.folder,
            **flavour,
            input_example=example,
            registered_model_name=plan.registered_model,
            # The registered version gets these tags, too, in the request that creates it.
            tags=plan.model_tags
            | {CHECKPOINT_TAG: Path(plan.checkpoint).name, ARCHITECTURE_TAG: architecture}
            | {CHOICE_TAG: choice_digest(plan)},
        )
    finally:
        # The driver ends the run, after scoring and parity.
        mlflow.end_run(status="RUNNING")
    version = str(info.registered_model_version)
    return ExportResult(model_uri=info.model_uri, model_version=version)


def choice_digest(plan: ExportPlan) -> str:
    """Return a digest of the models that one was chosen from and of their shares in a blend; empty without a choice.

    A repeated export may have been given other models, or less time for their fits.
    """
    if plan.register != "better":
        return ""
    choice = json.loads((Path(plan.predictions) / CHOICE_FILE).read_text(encoding="utf-8"))
    decided = [choice["registered"], sorted(choice["values"]), sorted(choice["weights"].items())]
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:12]


def registered_before(client: Any, plan: ExportPlan, architecture: str) -> ExportResult | None:
    """Return the version of ``architecture`` that an earlier export of this run's checkpoint has registered, or None.

    A repeated delivery must not register a second version of the same weights.
    """
    found = client.search_model_versions(f"run_id = '{plan.mlflow_run_id}'")
    for known in sorted(found, key=lambda known: int(known.version), reverse=True):
        if known.name != plan.registered_model:
            continue
        # Model versions that are older than the setting register lack the second tag.
        wanted = (Path(plan.checkpoint).name, architecture, choice_digest(plan))
        tags = (
            known.tags.get(CHECKPOINT_TAG),
            known.tags.get(ARCHITECTURE_TAG, plan.model),
            known.tags.get(CHOICE_TAG, ""),
        )
        if known.status == "READY" and tags == wanted:
            return ExportResult(known.source, str(known.version))
    return None


def delete_unregistered(client: Any, plan: ExportPlan) -> None:
    """Delete the run's logged models of this name without a version: an earlier export was killed at its registration.

    ``mlflow gc`` removes their files.
    """
    from mlflow.entities import LoggedModelStatus

    run = client.get_run(plan.mlflow_run_id).info
    sources = {known.source for known in client.search_model_versions(f"run_id = '{run.run_id}'")}
    of_run = f"source_run_id = '{run.run_id}'"
    for model in client.search_logged_models([run.experiment_id], filter_string=of_run):
        # A registry that copies models does not show which of them became a version.
        is_left = model.model_uri not in sources and all(source.startswith(_LOGGED) for source in sources)
        if model.name == plan.model_name and (is_left or model.status != LoggedModelStatus.READY):
            client.delete_logged_model(model.model_id)
