"""Model URIs: what names a model becomes one version and one digest, pinned for all that follows."""

import atexit
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote, urlparse

from callbacks.credentials import without_credentials
from callbacks.metric_requests import first_line
from callbacks.mlflow_store import store_client
from callbacks.request_limits import brief_requests
from scoring.kept_digests import kept_digest
from scoring.model_directory import find_model_directory

if TYPE_CHECKING:  # importing MLflow takes seconds, and a local folder does not need it
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

FORMS = "models:/<name>/<version>, models:/<name>@<alias>, models:/m-<id>, runs:/<run id>/<path> or a local folder"

_NAMES_IN_MESSAGE = 5
_DIGEST_DIGITS = 12
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class ModelNotFoundError(ValueError):
    """A model URI that leads to no model; the message says which part does not exist, and what does."""


class ModelStoreError(OSError):
    """An MLflow store that cannot be asked for a model; the message says which, and what keeps it from it."""


@dataclass(frozen=True)
class PinnedModel:
    """One exact model: what an alias points to later does not change it.

    Attributes:
        uri: The URI that leads to this very version.
        name: Registered name; the last part of the path where the model is not registered.
        version: Registered version; the id of the run or logged model, or the start of the digest, where it is not.
        digest: SHA-256 over the files of the model.
        path: Local folder of the model.
    """

    uri: str
    name: str
    version: str
    digest: str
    path: Path

    @property
    def label(self) -> str:
        """What stands on every scored row, such as ``flights/3``."""
        return f"{self.name}/{self.version}"


def resolve(uri: str | Path, tracking_uri: str | None = None) -> PinnedModel:
    """Find the model that ``uri`` names now, and fetch it unless its files are local already.

    Args:
        uri: ``models:/<name>/<version>``, ``models:/<name>@<alias>``, ``models:/m-<id>``, ``runs:/<run id>/<path>``,
            or a local folder: an exported or packaged model, an MLflow model that holds one, or any MLflow model.
        tracking_uri: MLflow store; by default the one that MLflow is set to.

    Raises:
        ModelNotFoundError: The model, its version, alias, run or files do not exist.
        ModelDirectoryError: What the URI leads to is no model.
        ModelStoreError: The store cannot be asked: nobody answers there, it is no store, or its driver is missing here.
            That a server does not answer is known within 20 s, unless ``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` or
            ``MLFLOW_HTTP_REQUEST_TIMEOUT`` says otherwise.
    """
    text = str(uri)
    if text.startswith("models:"):
        return _asked(_find_models_uri, text, tracking_uri)
    if text.startswith("runs:"):
        return _asked(_find_runs_uri, text, tracking_uri)
    return _resolve_folder(text)


def pinned_model(model: str | Path | PinnedModel, tracking_uri: str | None) -> PinnedModel:
    """Return ``model`` where it is pinned already, else what its URI leads to now."""
    return model if isinstance(model, PinnedModel) else resolve(model, tracking_uri)


@dataclass(frozen=True)
class _Place:
    """Where a store says that the files of a model are.

    Attributes:
        uri: The URI that leads to this very version.
        name: That of the pinned model.
        version: As there.
        location: URI of the files.
        absence: What to say where they are not.
    """

    uri: str
    name: str
    version: str
    location: str
    absence: str


def _asked(find: Callable[[str, "MlflowClient"], _Place], uri: str, tracking_uri: str | None) -> PinnedModel:
    """Return the model that is where `find` finds it in the store.

    Raises:
        ModelStoreError: The store cannot be asked.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # of a store that is a database

    try:
        with brief_requests():
            place = find(uri, _client(tracking_uri))
        # Without that limit: a server may take long before it sends a large file.
        path = find_model_directory(_fetched(place, tracking_uri))
    except (MlflowException, SQLAlchemyError, ModuleNotFoundError) as error:
        store = without_credentials(tracking_uri or mlflow.get_tracking_uri())
        raise ModelStoreError(
            f"model '{uri}' cannot be looked up in the MLflow store {store}: {first_line(error).strip()}"
        ) from error
    return PinnedModel(uri=place.uri, name=place.name, version=place.version, digest=kept_digest(path), path=path)


def _client(tracking_uri: str | None) -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient() if tracking_uri is None else store_client(tracking_uri)


def _resolve_folder(uri: str) -> PinnedModel:
    folder = Path(unquote(urlparse(uri).path) if uri.startswith("file:") else uri)
    if not folder.is_dir():
        raise ModelNotFoundError(f"model '{uri}' does not exist: there is no such folder; use {FORMS}")
    folder = folder.resolve()
    path = find_model_directory(folder)
    digest = kept_digest(path)
    return PinnedModel(uri=str(folder), name=path.name, version=digest[:_DIGEST_DIGITS], digest=digest, path=path)


def _find_models_uri(uri: str, client: "MlflowClient") -> _Place:
    target = re.fullmatch(r"models:/+(.+?)/?", uri)
    if target is None:
        raise ModelNotFoundError(f"model '{uri}' names no model; use {FORMS}")
    name, separator, selector = _split(target[1])
    if not separator:
        if re.fullmatch(r"m-[0-9a-f]+", name):
            return _logged_place(uri, name, client)
        raise ModelNotFoundError(f"model '{uri}' names no version; {_existing(client, name)}")
    version = _registered_version(uri, name, separator, selector, client)
    source = client.get_model_version_download_uri(name, version)
    # MLflow 3 registers a logged model, whose files are wherever its experiment puts them.
    logged = re.fullmatch(r"models:/+(m-[0-9a-f]+)", source)
    location = _artifact_location(uri, logged[1], client) if logged else source
    return _place_of_version(f"models:/{name}/{version}", name, version, location)


def _place_of_version(uri: str, name: str, version: str, location: str) -> _Place:
    return _Place(uri, name, version, location, absence=f"the files of model '{uri}' are not at {location}")


def _split(target: str) -> tuple[str, str, str]:
    """Split ``name@alias`` or ``name/version`` into name, separator and the rest; a bare name has no separator."""
    if "/" in target:
        return target.partition("/")
    name, separator, alias = target.rpartition("@")
    return (name, separator, alias) if separator else (target, "", "")


def _registered_version(uri: str, name: str, separator: str, selector: str, client: "MlflowClient") -> str:
    from mlflow.exceptions import MlflowException

    try:
        if separator == "@":
            return str(client.get_model_version_by_alias(name, selector).version)
        if selector.isdigit():
            return str(client.get_model_version(name, selector).version)
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            # Who does not answer is not asked what else there is: every question would take as long again.
            raise
        raise ModelNotFoundError(f"model '{uri}' does not exist; {_existing(client, name)}") from error
    raise ModelNotFoundError(f"model '{uri}': '{selector}' is no version number; {_existing(client, name)}")


def _existing(client: "MlflowClient", name: str) -> str:
    """Say which versions and aliases a registered model has, or which models are registered."""
    from mlflow.exceptions import MlflowException

    try:
        registered = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            raise
        models = sorted(model.name for model in client.search_registered_models(max_results=100))
        known = f"use one of {models[:_NAMES_IN_MESSAGE]}" if models else "no model is registered there"
        return f"the registry at {without_credentials(client.tracking_uri)} has no model '{name}': {known}"
    versions = sorted(int(version.version) for version in client.search_model_versions(f"name = '{name}'"))
    aliases = sorted(registered.aliases)
    return f"'{name}' has the versions {versions[-_NAMES_IN_MESSAGE:]} and the aliases {aliases}: use one of them"


def _logged_place(uri: str, model_id: str, client: "MlflowClient") -> _Place:
    location = _artifact_location(uri, model_id, client)
    return _place_of_version(f"models:/{model_id}", client.get_logged_model(model_id).name, model_id, location)


def _artifact_location(uri: str, model_id: str, client: "MlflowClient") -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_logged_model(model_id).artifact_location)
    except MlflowException as error:
        _raise_if_absent(error, f"model '{uri}' does not exist: there is no logged model '{model_id}'; use {FORMS}")


def _find_runs_uri(uri: str, client: "MlflowClient") -> _Place:
    from mlflow.exceptions import MlflowException

    target = re.fullmatch(r"runs:/+([^/]+)/(.+?)/?", uri)
    if target is None:
        raise ModelNotFoundError(f"model '{uri}' does not name a run and a path in it; use {FORMS}")
    run_id, path = target.groups()
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        _raise_if_absent(error, f"model '{uri}' does not exist: there is no run '{run_id}'; use {FORMS}")
    logged = client.search_logged_models(
        experiment_ids=[run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'"
    )
    locations = {model.name: model.artifact_location for model in logged}
    # A model logged by MLflow 3 is no artifact of its run, though the URI reads as if it were.
    location = locations.get(path) or f"{run.info.artifact_uri}/{path}"
    absence = f"model '{uri}' does not exist: the run has the models {sorted(locations)}, and nothing at '{path}'"
    return _Place(uri, path.rpartition("/")[2], run_id, location, absence)


def _fetched(place: _Place, tracking_uri: str | None) -> Path:
    """Return a local folder with the files at a place; what has to be downloaded is gone when Python exits."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    destination = None
    if urlparse(place.location).scheme not in ("", "file"):
        destination = tempfile.mkdtemp(prefix="mirrorspark-model-")
        atexit.register(shutil.rmtree, destination, ignore_errors=True)
    try:
        folder = Path(download_artifacts(artifact_uri=place.location, dst_path=destination, tracking_uri=tracking_uri))
    except OSError as error:
        raise ModelNotFoundError(f"{place.absence}: {error}") from error
    except MlflowException as error:
        _raise_if_absent(error, place.absence)
    if not folder.is_dir():
        raise ModelNotFoundError(place.absence)
    return folder


def _raise_if_absent(error: "MlflowException", message: str) -> NoReturn:
    """Raise ``ModelNotFoundError`` where MLflow says that something does not exist, else what MLflow raised."""
    if error.error_code in _ABSENT:
        raise ModelNotFoundError(message) from error
    raise error
