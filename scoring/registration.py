"""Registration of a model's folder in MLflow, as a model that MLflow loads, too."""

import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mirrorspark.callbacks.mlflow import metric_requests, tracking_store
from mirrorspark.extras import needed
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model import mlflow_flavour
from mirrorspark.scoring.model.folder import ModelDirectory
from mirrorspark.scoring.model.stored import ModelStoreError, find_model_directory
from mirrorspark.storage import one_line, without_credentials

_ARTIFACTS = "model"


@contextmanager
def open_store(tracking_uri: str | None, *, may_be_new: bool = False) -> Iterator[Any]:
    """Yield a client of an MLflow store.

    Args:
        tracking_uri: Its address; by default the store of the last training, or the one that MLflow is set to.
        may_be_new: Whether MLflow's own default store is created where there is none.

    Raises:
        ModelStoreError: The store cannot be used, by the client either, or there is none.
    """
    needed("mlflow", "an MLflow store")
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # raised by a store that is a database

    try:
        address = tracking_store.lookup_address(tracking_uri)
    except tracking_store.NoStoreError as error:
        if not may_be_new:
            raise ModelStoreError(f"{error}; name the store in MLFLOW_TRACKING_URI") from None
        address = mlflow.get_tracking_uri()
    try:
        yield tracking_store.store_client(address)
    except (MlflowException, SQLAlchemyError) as error:
        store = without_credentials(address)
        raise ModelStoreError(
            f"the MLflow store {store} cannot be used: {one_line(error)}; start its server, or name another store"
        ) from error


def register_model(folder: str | Path, name: str, *, alias: str | None = None, tracking_uri: str | None = None) -> str:
    """Register the model in ``folder`` as a new version of ``name``, and return its URI: ``models:/<name>/<version>``.

    The folder may be one of :func:`scoring.package_model`, ``package_router`` or ``rating_model``, or an
    exported model. All entry points take the URI, also with an alias, and ``mlflow.pyfunc.load_model`` loads it,
    where Mirrorspark and the libraries of the model are installed.

    Args:
        folder: The folder of the model.
        name: Name in the registry, and of the experiment of the version's run.
        alias: Alias that moves to the new version last.
        tracking_uri: Address of the MLflow store; by default that of the last training, or the one that MLflow is set
            to.

    Raises:
        ModelDirectoryError: ``folder`` has no model.
        ModelStoreError: The store cannot be used.
        ScoringError: MLflow takes no such name or alias.
    """
    if not name.strip() or set(name) & set("/:"):
        raise ScoringError(f"name '{name}' must be a name without '/' and ':'")
    if alias is not None and (not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE)):
        raise ScoringError(
            f"alias '{alias}' is not one that MLflow takes; use letters, digits, '_' and '-', and neither latest nor v1"
        )
    path = find_model_directory(Path(folder))
    with open_store(tracking_uri, may_be_new=True) as client:
        return log_version(client, path, name, alias, {}, metric_requests.experiment_of(client, name))


def log_version(
    client: Any, folder: Path, name: str, alias: str | None, tags: Mapping[str, str], experiment_id: str
) -> str:
    """Log the model in ``folder`` in a run of its own, register it, and return the URI of the version.

    Args:
        client: Client of the MLflow store.
        folder: The folder of the model.
        name: Name in the registry.
        alias: Alias of the new version, which moves to it last.
        tags: Tags of the run and of the version.
        experiment_id: Experiment of the run.
    """
    run = client.create_run(experiment_id, run_name=folder.name, tags=dict(tags))
    try:
        with tempfile.TemporaryDirectory(prefix="mirrorspark-version-") as scratch:
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


def new_version(client: Any, name: str, source: str, run_id: str, tags: Mapping[str, str]) -> str:
    """Register the model at ``source`` as a new version of ``name``; return its number."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return str(client.create_model_version(name, source, run_id, tags=dict(tags)).version)


def _write_mlflow_model(folder: Path, target: Path) -> None:
    import mlflow.pyfunc

    directory = ModelDirectory.open(folder)
    with warnings.catch_warnings():
        # With an example of its input MLflow would load the model, and its library with it, in this process.
        warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
        mlflow.pyfunc.save_model(str(target), data_path=str(folder), **mlflow_flavour(directory))
