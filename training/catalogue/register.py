"""The registration of a refreshed model as a new version in MLflow."""

import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mirrorspark.callbacks.mlflow.store import NoStoreError, lookup_address, store_client
from mirrorspark.scoring.model.directory import ModelDescription, ModelDirectory, PinnedModel
from mirrorspark.training.results.mlflow_model import mlflow_requirements, mlflow_signature

_ARTIFACTS = "model"


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
    """
    client = store_client(_store_address(tracking_uri))
    catalogue = ModelDirectory.open(folder).description
    assert isinstance(catalogue, ModelDescription)  # noqa: S101 - a refresh has written it
    tags = {f"catalogue.{field}": str(value) for field, value in catalogue.catalogue.items()}
    run = client.create_run(_experiment(client, source, name), run_name=folder.name, tags=tags)
    try:
        with tempfile.TemporaryDirectory(prefix="mirrorspark-refreshed-") as scratch:
            logged = Path(scratch) / _ARTIFACTS
            _write_mlflow_model(folder, logged)
            client.log_artifacts(run.info.run_id, str(logged), _ARTIFACTS)
        version = new_version(client, name, f"{run.info.artifact_uri}/{_ARTIFACTS}", run.info.run_id, tags)
    except BaseException:
        client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id)
    if alias is not None:
        client.set_registered_model_alias(name, alias, version)
    return f"models:/{name}/{version}"


def _store_address(tracking_uri: str | None) -> str:
    import mlflow

    try:
        return lookup_address(tracking_uri)
    except NoStoreError:  # The version is the first one in MLflow's default store.
        return str(mlflow.get_tracking_uri())


def _experiment(client: Any, source: PinnedModel, name: str) -> str:
    from mlflow.exceptions import MlflowException

    if source.uri == f"models:/{source.name}/{source.version}":
        try:
            run_id = client.get_model_version(source.name, source.version).run_id
            return str(client.get_run(run_id).info.experiment_id)
        except MlflowException:
            # The source may be in another store than the new version, or its run deleted.
            pass
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _write_mlflow_model(folder: Path, target: Path) -> None:
    import mlflow.pyfunc

    # Found without an import, which would load TensorFlow in this process.
    loader = find_spec("mirrorspark.scoring.model.mirrorspark_pyfunc")
    assert loader is not None  # noqa: S101 - it is a module of ours
    directory = ModelDirectory.open(folder)
    with warnings.catch_warnings():
        # With an example of its input MLflow would load the model, and TensorFlow with it, in this process.
        warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
        mlflow.pyfunc.save_model(
            str(target),
            loader_module=loader.name.rpartition(".")[2],
            data_path=str(folder),
            code_paths=[str(loader.origin)],
            signature=mlflow_signature(folder, directory.features.spec, directory.description.outputs),
            pip_requirements=mlflow_requirements(),
            metadata={"features_hash": directory.features.hash},
        )


def new_version(client: Any, name: str, source: str, run_id: str, tags: dict[str, str]) -> str:
    """Register the model at ``source`` as a new version of ``name``; return its number."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return str(client.create_model_version(name, source, run_id, tags=tags).version)
