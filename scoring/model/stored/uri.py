"""Model URIs and their look-up in an MLflow store, which ends at one pinned version and digest."""

import logging
import re
import socket
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote, urlparse, urlsplit

from mirrorspark.callbacks.mlflow import metric_requests, tracking_store
from mirrorspark.clear_error import ClearError
from mirrorspark.extras import needed
from mirrorspark.scoring.model.stored.digest import cached_digest
from mirrorspark.scoring.model.stored.fetched import (
    DISK_ERRORS,
    FOLDER_VARIABLE,
    OFFLINE_VARIABLE,
    FetchedModels,
    FetchedVersion,
    ReadOnlyModelsError,
    StoredVersion,
    is_offline_by_environment,
    models_to_fetch_into,
)
from mirrorspark.scoring.model.stored.pinned import (
    FORMS,
    ModelNotFoundError,
    PinnedModel,
    find_model_directory,
    pinned_folder,
)
from mirrorspark.storage import meant, without_credentials

if TYPE_CHECKING:  # importing MLflow takes seconds, and a local folder does not need it
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.exceptions import MlflowException

_NAMES_IN_MESSAGE = 5
_PORTS = {"http": 80, "https": 443}
_TRY_SECONDS, _PAUSE_SECONDS = 5.0, 2.0
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_ELSEWHERE = (
    f"if it is in another store, name that one as tracking_uri (--tracking-uri) or in MLFLOW_TRACKING_URI, for example "
    f"sqlite:///{tracking_store.DEFAULT_OUTPUT}/mlflow.db"
)
_LOGGER = logging.getLogger(__name__)


class ModelStoreError(ClearError, OSError):
    """Raised when an MLflow store cannot be used; the message names the store and the reason."""


def resolve(uri: str | Path, tracking_uri: str | None = None, *, offline: bool = False) -> PinnedModel:
    """Return the model that ``uri`` leads to now, and fetch its files unless this host has them.

    Args:
        uri: ``models:/<name>/<version>``, ``models:/<name>@<alias>``, ``models:/m-<id>``, ``runs:/<run id>`` (its
            last model), ``runs:/<run id>/<path>``, or a local folder: an exported or packaged model, an MLflow model
            that holds one, or any MLflow model.
        tracking_uri: Address of the MLflow store; by default the one that MLflow is set to, else that of this process's
            last training, else ``mirrorspark-output/mlflow.db`` or MLflow's default store in the working directory.
        offline: Use no store except files on this host, and fetch nothing. The model is the copy of the version that
            ``uri`` led to at the last look-up. ``MIRRORSPARK_OFFLINE=1`` turns this on for every call.

    Raises:
        ModelNotFoundError: The model, its version, alias, run or files do not exist.
        ModelDirectoryError: The files at the URI are not a model.
        ModelStoreError: There is no store; it does not answer, is not one, or needs a driver that is not installed;
            offline: there is no valid copy. A server that does not listen is detected within 12 s; otherwise
            the timeout and the retries of MLflow's settings apply.
        FetchedModelsError: The environment names a folder for copies that cannot be written. Offline the folder may be
            read-only.
        ValueError: The model is in a store, and ``MIRRORSPARK_OFFLINE`` is neither true nor false.
    """
    if found := pinned_folder(uri):
        return found
    text = str(uri)
    needed("mlflow", f"the model {text}")
    try:
        tracking_uri = tracking_uri or tracking_store.default_store()
    except tracking_store.NoStoreError as error:
        raise ModelStoreError(f"model '{text}' cannot be looked up: {error}; {_ELSEWHERE}") from None
    find = _find_models_uri if text.startswith("models:") else _find_runs_uri
    return _from_store(find, text, tracking_uri, offline or is_offline_by_environment())


def pinned_model(model: str | Path | PinnedModel, tracking_uri: str | None) -> PinnedModel:
    """Return ``model`` if it is pinned already, else the model that its URI leads to now."""
    return model if isinstance(model, PinnedModel) else resolve(model, tracking_uri)


@dataclass(frozen=True)
class _Place:
    """The place of a model's files according to a store.

    Attributes:
        uri: The URI of exactly this version.
        absence: Error message if the files do not exist.
        is_final: Whether the files no longer change. A run that goes on may still upload them, or log them again.
    """

    uri: str
    name: str
    version: str
    location: str
    absence: str
    is_final: bool = True


def _from_store(
    find: Callable[[str, "MlflowClient"], _Place], uri: str, tracking_uri: str | None, is_offline: bool
) -> PinnedModel:
    """Look up a model in its store with `find`, and fetch it.

    Raises:
        ModelStoreError: The store cannot be used.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # raised by a store that is a database

    addresses = _addresses(tracking_uri)
    store = " ".join(without_credentials(tracking_store.absolute_store(address)).rstrip("/") for address in addresses)
    if is_offline and not all(_is_local_file(address) for address in addresses):
        return _last_known(uri, store)
    first_address = addresses[0] if _is_tracked(uri) else addresses[-1]
    try:
        check_listening(first_address)
    except OSError as error:
        raise _store_error(uri, first_address, store, error) from error
    try:
        place = find(uri, _client(tracking_uri))
        if urlparse(place.location).scheme in ("", "file"):
            return _in_place(place, tracking_uri)
        return _copied(uri, place, store, tracking_uri, is_offline)
    except (MlflowException, SQLAlchemyError, ModuleNotFoundError) as error:
        raise _store_error(uri, addresses[0], store, error) from error


def _store_error(uri: str, address: str, store: str, error: Exception) -> ModelStoreError:
    return ModelStoreError(
        f"model '{uri}' cannot be looked up in the MLflow store {without_credentials(address)}: "
        f"{metric_requests.first_line(error).strip()}{_offline_advice(uri, store)}"
    )


def _addresses(tracking_uri: str | None) -> list[str]:
    """Return the address of the tracking store and, if it differs, of the model registry."""
    import mlflow

    tracking = tracking_uri or mlflow.get_tracking_uri()
    return list(dict.fromkeys([tracking, tracking_store.registry_of(tracking)]))


def _is_tracked(uri: str) -> bool:
    """Return whether a URI belongs to the tracking store, not to the registry."""
    return re.fullmatch(r"runs:.*|models:/+m-[0-9a-f]+/?", uri, re.DOTALL) is not None


def _is_local_file(address: str) -> bool:
    """Return whether a store is an existing file or folder on this host. MLflow would create a missing one."""
    file, parts = tracking_store.sqlite_file(address), urlparse(address)
    if file is None and parts.scheme in ("", "file"):
        file = Path(unquote(parts.path))
    return file is not None and file.exists()


def _client(tracking_uri: str | None) -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient() if tracking_uri is None else tracking_store.store_client(tracking_uri)


def _in_place(place: _Place, tracking_uri: str | None) -> PinnedModel:
    path = find_model_directory(_downloaded(place, tracking_uri, None))
    return PinnedModel(uri=place.uri, name=place.name, version=place.version, digest=cached_digest(path), path=path)


def _copied(uri: str, place: _Place, store: str, tracking_uri: str | None, is_offline: bool) -> PinnedModel:
    """Return the copy of a version with remote files, fetched if there is none yet.

    Raises:
        ModelStoreError: Offline there is no copy.
        FetchedModelsError: The copy cannot be stored.
    """
    wanted = StoredVersion(store, place.uri, place.name, place.version, without_credentials(place.location))
    if is_offline:
        return _copied_before(uri, wanted)
    models = models_to_fetch_into()
    version = models.fetch(
        wanted,
        lambda folder: find_model_directory(_downloaded(place, tracking_uri, folder)),
        again=not place.is_final,
    )
    if uri != place.uri:
        models.remember(uri, version)
    return _pinned(version, models)


def _copied_before(uri: str, wanted: StoredVersion) -> PinnedModel:
    """Return the existing copy of the version that `uri` leads to now, according to a store on this host.

    Raises:
        ModelStoreError: There is no copy.
    """
    models = FetchedModels()
    version = _recalled(wanted.uri, wanted.store, models, wanted.location)
    if uri != version.uri:
        with suppress(ReadOnlyModelsError):
            models.remember(uri, version)
    return _pinned(version, models)


def _last_known(uri: str, store: str) -> PinnedModel:
    """Return the copy of the version that `uri` led to at the last look-up in its store.

    Raises:
        ModelStoreError: There is no copy.
    """
    models = FetchedModels()
    version = _recalled(uri, store, models)
    if uri != version.uri:
        _LOGGER.warning("offline: model '%s' is %s, as the MLflow store last said at %s", uri, version, version.asked)
    return _pinned(version, models)


def _pinned(version: FetchedVersion, models: FetchedModels) -> PinnedModel:
    path = models.path(version)
    return PinnedModel(version.uri, version.name, version.version, digest=version.digest, path=path)


def _recalled(uri: str, store: str, models: FetchedModels, location: str | None = None) -> FetchedVersion:
    """Return the copy of `uri` in `models`, from `location` if that is given.

    Raises:
        ModelStoreError: There is no valid copy.
    """
    version = models.recall(store, uri, location)
    if version is not None:
        return version
    raise ModelStoreError(
        f"offline there is no model '{uri}': {models.folder} has no whole copy of it from the MLflow store {store}; "
        f"resolve it once where the store answers, without offline and {OFFLINE_VARIABLE}, or have {FOLDER_VARIABLE} "
        f"name the folder that has it"
    )


def _offline_advice(uri: str, store: str) -> str:
    """Return advice for using a copy of `uri`, or "" if there is no copy."""
    try:
        models = FetchedModels()
    except OSError:
        # The working directory was removed, so a relative folder name fails. The store's own error must not be hidden.
        return ""
    version = models.find(store, uri)
    if version is None:
        return ""
    since = f", where it led {version.asked}," if uri != version.uri else ""
    ways = f"offline=True, --offline or {OFFLINE_VARIABLE}=1"
    return f"; a copy of {version}{since} is in {models.folder}: {ways} uses it"


def _find_models_uri(uri: str, client: "MlflowClient") -> _Place:
    target = re.fullmatch(r"models:/+(.+?)/?", uri)
    if target is None:
        raise ModelNotFoundError(f"model '{uri}' names no model; use {FORMS}")
    name, separator, selector = _split(target[1])
    if not separator:
        if _is_tracked(uri):
            return _logged_place(uri, name, client)
        raise ModelNotFoundError(f"model '{uri}' names no version; {_existing(client, name)}")
    version = _registered_version(uri, name, separator, selector, client)
    source = client.get_model_version_download_uri(name, version)
    # MLflow 3 registers a logged model, whose files are at the location of its experiment.
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
            # A store that does not answer is not queried for alternatives: each request would take as long again.
            raise
        raise ModelNotFoundError(f"model '{uri}' does not exist; {_existing(client, name)}") from error
    raise ModelNotFoundError(f"model '{uri}': '{selector}' is not a version number; {_existing(client, name)}")


def _existing(client: "MlflowClient", name: str) -> str:
    """Return a sentence with the versions and aliases of a registered model, or with the registered models."""
    from mlflow.exceptions import MlflowException

    try:
        registered = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            raise
        models = sorted(model.name for model in client.search_registered_models(max_results=100))
        shown, more = models[:_NAMES_IN_MESSAGE], len(models) - _NAMES_IN_MESSAGE
        others = f" or {more} more" if more > 0 else ""
        known = f"use one of {shown}{others}" if models else f"no model is registered there; {_ELSEWHERE}"
        registry = without_credentials(client.tracking_uri)
        return f"the registry at {registry} has no model '{name}'{meant(name, models)}: {known}"
    versions = [int(version.version) for version in tracking_store.versions_of(client, name)]
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

    target = re.fullmatch(r"runs:/+([^/]+)(?:/(.+?))?/?", uri)
    if target is None:
        raise ModelNotFoundError(f"model '{uri}' does not name a run; use {FORMS}")
    run_id, path = target.groups()
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        _raise_if_absent(error, f"model '{uri}' does not exist: there is no run '{run_id}'; use {FORMS}")
    locations = _logged_models(run, client)
    path = path or next(iter(locations), None)
    if path is None:
        raise ModelNotFoundError(f"model '{uri}' does not exist: the run has no model; use {FORMS}")
    # A model logged by MLflow 3 is not an artifact of its run, in spite of its URI.
    location = locations.get(path) or f"{run.info.artifact_uri}/{path}"
    absence = f"model '{uri}' does not exist: the run has the models {sorted(locations)}, and nothing at '{path}'"
    name, has_ended = path.rpartition("/")[2], run.info.end_time is not None
    return _Place(uri, name, run_id, location, absence, is_final=has_ended)


def _logged_models(run: "Run", client: "MlflowClient") -> dict[str, str]:
    """Return the locations of a run's logged models by name, the latest first; of equal names the latest, as MLflow."""
    found: dict[str, str] = {}
    page: str | None = None
    while True:
        models = client.search_logged_models(
            experiment_ids=[run.info.experiment_id],
            filter_string=f"source_run_id = '{run.info.run_id}'",
            order_by=[{"field_name": "creation_timestamp", "ascending": False}],
            page_token=page,
        )
        for model in models:
            found.setdefault(model.name, model.artifact_location)
        page = models.token
        if not page:
            return found


def _downloaded(place: _Place, tracking_uri: str | None, destination: Path | None) -> Path:
    """Return a local folder with the files of a place, below `destination`; None for it leaves local files in place."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    target = None if destination is None else str(destination)
    try:
        folder = Path(download_artifacts(artifact_uri=place.location, dst_path=target, tracking_uri=tracking_uri))
    except OSError as error:
        if destination is not None and error.errno in DISK_ERRORS:
            raise
        raise ModelNotFoundError(f"{place.absence}: {error}") from error
    except MlflowException as error:
        # MLflow fetches several files at once, and reports write errors only as text.
        failed = re.search(r"^##### File .* #####\n\[Errno (\d+)\] (.*)", str(error), re.MULTILINE)
        if failed and int(failed[1]) in DISK_ERRORS:
            raise OSError(int(failed[1]), failed[2]) from error
        _raise_if_absent(error, place.absence)
    if not folder.is_dir():
        raise ModelNotFoundError(place.absence)
    return folder


def _raise_if_absent(error: "MlflowException", message: str) -> NoReturn:
    """Raise ``ModelNotFoundError`` if MLflow reports that something does not exist, else MLflow's error."""
    if error.error_code in _ABSENT:
        raise ModelNotFoundError(message) from error
    raise error


def check_listening(address: str) -> None:
    """Check that a server listens at the address of a store.

    Addresses that MLflow does not reach by HTTP (a file, a database, ``databricks``) and servers behind a proxy are not
    checked. The timeout for an answer is left to MLflow's settings.

    Raises:
        OSError: Nothing listens. This takes up to 12 s, and 10 s more for each further address of the host name that
            does not answer.
    """
    found = _direct_address(address)
    if found is None:
        return
    try:
        _connect(*found)
    except OSError:
        time.sleep(_PAUSE_SECONDS)
        _connect(*found)


def _direct_address(address: str) -> tuple[str, int] | None:
    """Return the host and port that MLflow would connect to directly, or None."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:  # not a valid address: MLflow reports it
        return None
    if parts.scheme not in _PORTS or not host:
        return None
    if {parts.scheme, "all"} & urllib.request.getproxies().keys() and not urllib.request.proxy_bypass(host):
        return None
    return host, _PORTS[parts.scheme] if port is None else port


def _connect(host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=_TRY_SECONDS).close()
    except UnicodeError:  # not a valid host name: MLflow reports it
        return
