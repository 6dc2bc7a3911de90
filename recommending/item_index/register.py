"""The registration of a refreshed model as a new version in MLflow."""

from pathlib import Path
from typing import Any

from mirrorspark.callbacks.mlflow import metric_requests
from mirrorspark.scoring import log_version, open_store
from mirrorspark.scoring.model.folder import ModelDescription, ModelDirectory
from mirrorspark.scoring.model.stored import PinnedModel


def register(folder: Path, source: PinnedModel, name: str, alias: str | None, tracking_uri: str | None) -> str:
    """Register the model in ``folder`` and move ``alias`` to it last; return the URI of the version.

    Its run is in the experiment of the version that it was refreshed from; where it has none, in one that has the name
    of the model.

    Args:
        folder: The refreshed model.
        source: The model that it was refreshed from.
        name: Name in the registry.
        alias: Alias of the new version.
        tracking_uri: Address of the MLflow store.

    Raises:
        ModelStoreError: The store cannot be used.
    """
    catalogue = ModelDirectory.open(folder).description
    assert isinstance(catalogue, ModelDescription)  # noqa: S101 - a refresh has written it
    tags = {f"catalogue.{field}": str(value) for field, value in catalogue.catalogue.items()}
    with open_store(tracking_uri, may_be_new=True) as client:
        return log_version(client, folder, name, alias, tags, _experiment(client, source, name))


def _experiment(client: Any, source: PinnedModel, name: str) -> str:
    from mlflow.exceptions import MlflowException

    if source.uri == f"models:/{source.name}/{source.version}":
        try:
            run_id = client.get_model_version(source.name, source.version).run_id
            return str(client.get_run(run_id).info.experiment_id)
        except MlflowException:
            # The source may be in another store than the new version, or its run deleted.
            pass
    return metric_requests.experiment_of(client, name)
