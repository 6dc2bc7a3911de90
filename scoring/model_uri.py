"""Model URIs: what names a model becomes one version and one digest, pinned for all that follows."""

import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote, urlparse

from callbacks.credentials import without_credentials
from callbacks.metric_requests import first_line
from callbacks.mlflow_store import absolute_store, registry_of, sqlite_file, store_client
from scoring.fetched_models import (
    DISK_ERRORS,
    FOLDER_VARIABLE,
    OFFLINE_VARIABLE,
    FetchedModels,
    FetchedVersion,
    ReadOnlyModelsError,
    StoredVersion,
    asks_to_be_offline,
    models_to_fetch_into,
)
from scoring.kept_digests import kept_digest
from scoring.model_directory import find_model_directory
from scoring.store_reachability import check_somebody_listens

if TYPE_CHECKING:  # importing MLflow takes seconds, and a local folder does not need it
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.exceptions import MlflowException

FORMS = "models:/<name>/<version>, models:/<name>@<alias>, models:/m-<id>, runs:/<run id>/<path> or a local folder"

_NAMES_IN_MESSAGE = 5
_DIGEST_DIGITS = 12
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_LOGGER = logging.getLogger(__name__)


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


def resolve(uri: str | Path, tracking_uri: str | None = None, *, offline: bool = False) -> PinnedModel:
    """Find the model that ``uri`` names now, and fetch it unless its files are on this machine already.

    Args:
        uri: ``models:/<name>/<version>``, ``models:/<name>@<alias>``, ``models:/m-<id>``, ``runs:/<run id>/<path>``,
            or a local folder: an exported or packaged model, an MLflow model that holds one, or any MLflow model.
        tracking_uri: MLflow store; by default the one that MLflow is set to.
        offline: Ask nobody but a store that is a file on this machine, and fetch nothing: the model is the copy of what
            ``uri`` led to when the store was asked last. ``MIRRORSPARK_OFFLINE=1`` means that for every call.

    Raises:
        ModelNotFoundError: The model, its version, alias, run or files do not exist.
        ModelDirectoryError: What the URI leads to is no model.
        ModelStoreError: The store cannot be asked: nobody answers there, it is no store, or its driver is missing here.
            That nobody listens at a server's address is known within 12 s; who listens gets the time and the retries
            that MLflow is set to. Offline: there is no whole copy.
        FetchedModelsError: The folder for copies cannot be written, and the environment names it. Offline one that is
            only read-only will do.
        ValueError: ``MIRRORSPARK_OFFLINE`` says neither yes nor no.
    """
    text, is_offline = str(uri), offline or asks_to_be_offline()
    if text.startswith("models:"):
        return _asked(_find_models_uri, text, tracking_uri, is_offline)
    if text.startswith("runs:"):
        return _asked(_find_runs_uri, text, tracking_uri, is_offline)
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
        is_final: Whether the files stay as they are: those of a run that goes on may be on their way, or logged again.
    """

    uri: str
    name: str
    version: str
    location: str
    absence: str
    is_final: bool = True


def _asked(
    find: Callable[[str, "MlflowClient"], _Place], uri: str, tracking_uri: str | None, is_offline: bool
) -> PinnedModel:
    """Return the model that is where `find` finds it in the store.

    Raises:
        ModelStoreError: The store cannot be asked.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # of a store that is a database

    addresses = _addresses(tracking_uri)
    store = " ".join(without_credentials(absolute_store(address)).rstrip("/") for address in addresses)
    if is_offline and not all(_is_file_here(address) for address in addresses):
        return _remembered(uri, store)
    asked_first = addresses[0] if _is_tracked(uri) else addresses[-1]
    try:
        check_somebody_listens(asked_first)
    except OSError as error:
        raise _unasked(uri, asked_first, store, error) from error
    try:
        place = find(uri, _client(tracking_uri))
        if urlparse(place.location).scheme in ("", "file"):
            return _in_place(place, tracking_uri)
        return _copied(uri, place, store, tracking_uri, is_offline)
    except (MlflowException, SQLAlchemyError, ModuleNotFoundError) as error:
        raise _unasked(uri, addresses[0], store, error) from error


def _unasked(uri: str, address: str, store: str, error: Exception) -> ModelStoreError:
    return ModelStoreError(
        f"model '{uri}' cannot be looked up in the MLflow store {without_credentials(address)}: "
        f"{first_line(error).strip()}{_way_out(uri, store)}"
    )


def _addresses(tracking_uri: str | None) -> list[str]:
    """Return where models are logged and, where that is another store, where they are registered."""
    import mlflow

    tracking = tracking_uri or mlflow.get_tracking_uri()
    return list(dict.fromkeys([tracking, registry_of(tracking)]))


def _is_tracked(uri: str) -> bool:
    """Whether a model is where models are logged, not where they are registered."""
    return re.fullmatch(r"runs:.*|models:/+m-[0-9a-f]+/?", uri, re.DOTALL) is not None


def _is_file_here(address: str) -> bool:
    """Whether a store is a file or folder on this machine; it is not where that is gone, and MLflow would make one."""
    file, parts = sqlite_file(address), urlparse(address)
    if file is None and parts.scheme in ("", "file"):
        file = Path(unquote(parts.path))
    return file is not None and file.exists()


def _client(tracking_uri: str | None) -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient() if tracking_uri is None else store_client(tracking_uri)


def _in_place(place: _Place, tracking_uri: str | None) -> PinnedModel:
    path = find_model_directory(_downloaded(place, tracking_uri, None))
    return PinnedModel(uri=place.uri, name=place.name, version=place.version, digest=kept_digest(path), path=path)


def _copied(uri: str, place: _Place, store: str, tracking_uri: str | None, is_offline: bool) -> PinnedModel:
    """Return the copy of a version whose files are elsewhere; it is made where there is none yet.

    Raises:
        ModelStoreError: There is none, and offline none can be made.
        FetchedModelsError: It cannot be kept.
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
    """Return the copy of what `uri` leads to now, as a store on this machine says.

    Raises:
        ModelStoreError: There is none.
    """
    models = FetchedModels()
    version = _recalled(wanted.uri, wanted.store, models, wanted.location)
    if uri != version.uri:
        with suppress(ReadOnlyModelsError):
            models.remember(uri, version)
    return _pinned(version, models)


def _remembered(uri: str, store: str) -> PinnedModel:
    """Return the copy of what `uri` led to when its store was asked last.

    Raises:
        ModelStoreError: There is none.
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
    """Return what `models` have of `uri`, from `location` if that is given.

    Raises:
        ModelStoreError: Nothing, or nothing whole.
    """
    version = models.recall(store, uri, location)
    if version is not None:
        return version
    raise ModelStoreError(
        f"offline there is no model '{uri}': {models.folder} has no whole copy of it from the MLflow store {store}; "
        f"resolve it once where the store answers, without offline and {OFFLINE_VARIABLE}, or have {FOLDER_VARIABLE} "
        f"name the folder that has it"
    )


def _way_out(uri: str, store: str) -> str:
    """Say how to use the copy of what `uri` led to, where there is one; nothing where there is none."""
    try:
        models = FetchedModels()
    except OSError:
        # Nothing here may hide what the store said: this folder's name is relative, and to nothing.
        return ""
    version = models.find(store, uri)
    if version is None:
        return ""
    since = f", where it led {version.asked}," if uri != version.uri else ""
    ways = f"offline=True, --offline or {OFFLINE_VARIABLE}=1"
    return f"; a copy of {version}{since} is in {models.folder}: {ways} uses it"


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
        if _is_tracked(uri):
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


# Who has not said which store it is asks the one that MLflow makes in the current folder.
_ELSEWHERE = (
    "if it is in another store, name that one as tracking_uri (--tracking-uri) or in MLFLOW_TRACKING_URI, for example "
    "sqlite:///mirrorspark-output/mlflow.db"
)


def _existing(client: "MlflowClient", name: str) -> str:
    """Say which versions and aliases a registered model has, or which models are registered."""
    from mlflow.exceptions import MlflowException

    try:
        registered = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            raise
        models = sorted(model.name for model in client.search_registered_models(max_results=100))
        known = f"use one of {models[:_NAMES_IN_MESSAGE]}" if models else f"no model is registered there; {_ELSEWHERE}"
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
    locations = _logged_models(run, client)
    # A model logged by MLflow 3 is no artifact of its run, though the URI reads as if it were.
    location = locations.get(path) or f"{run.info.artifact_uri}/{path}"
    absence = f"model '{uri}' does not exist: the run has the models {sorted(locations)}, and nothing at '{path}'"
    name, has_ended = path.rpartition("/")[2], run.info.end_time is not None
    return _Place(uri, name, run_id, location, absence, is_final=has_ended)


def _logged_models(run: "Run", client: "MlflowClient") -> dict[str, str]:
    """Return where the models are that a run has logged, by name: of those of one name the last, as MLflow does."""
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
    """Return a local folder with the files at a place: `destination` or one in it, or None for where they are."""
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
        # MLflow fetches several files at once, and makes text of what failed while they were written.
        failed = re.search(r"^##### File .* #####\n\[Errno (\d+)\] (.*)", str(error), re.MULTILINE)
        if failed and int(failed[1]) in DISK_ERRORS:
            raise OSError(int(failed[1]), failed[2]) from error
        _raise_if_absent(error, place.absence)
    if not folder.is_dir():
        raise ModelNotFoundError(place.absence)
    return folder


def _raise_if_absent(error: "MlflowException", message: str) -> NoReturn:
    """Raise ``ModelNotFoundError`` where MLflow says that something does not exist, else what MLflow raised."""
    if error.error_code in _ABSENT:
        raise ModelNotFoundError(message) from error
    raise error
