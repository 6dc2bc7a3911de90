"""One exact version of a model: its identity, and the version in a local folder."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlparse

from mirrorspark.clear_error import ClearError
from mirrorspark.scoring.model import stored  # by its door, as its look-up and its consent import this module
from mirrorspark.scoring.model.catalogue import log_ages
from mirrorspark.scoring.model.folder import (
    DESCRIPTION_FILE,
    MLFLOW_FILE,
    ModelDescription,
    ModelDirectory,
    ModelDirectoryError,
)
from mirrorspark.scoring.model.stored.digest import cached_digest

FORMS = "models:/<name>/<version>, models:/<name>@<alias>, models:/m-<id>, runs:/<run id>[/<path>] or a local folder"

_DIGEST_DIGITS = 12


class ModelNotFoundError(ClearError, ValueError):
    """Raised when a URI does not lead to a model; the message names the missing and the existing parts."""


@dataclass(frozen=True)
class PinnedModel:
    """One exact version of a model; it does not change when an alias moves.

    Attributes:
        uri: The URI of exactly this version.
        name: Registered name; for unregistered models the last part of the path.
        version: Registered version; for unregistered models the id of the run or logged model, or the start of the
            digest.
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
        """Value of the column ``model_version``, such as ``flights/3``."""
        return f"{self.name}/{self.version}"


def opened_model(
    model: str | Path | PinnedModel, tracking_uri: str | None = None, *, trust: bool = False
) -> tuple[PinnedModel, ModelDirectory]:
    """Pin the model, open its folder, and ask for consent to its code.

    Args:
        model: Its URI, or the result of :func:`scoring.model.stored.resolve`.
        tracking_uri: Address of the MLflow store; by default the one that MLflow is configured with.
        trust: Whether Python code that the model brings may run.

    Raises:
        ModelNotFoundError: The URI does not lead to a model.
        UntrustedModelError: The model brings code that may not run.
    """
    pinned = model if isinstance(model, PinnedModel) else pinned_folder(model) or stored.resolve(model, tracking_uri)
    directory = ModelDirectory.open(pinned.path)
    # Most models were trained here: they bring no code and have no catalogue, and scoring them enters no module to find
    # that out.
    description = directory.description
    if not trust and not isinstance(description, ModelDescription):
        stored.check_consent(directory, pinned.label)
    if not isinstance(description, ModelDescription) or description.catalogue:
        log_ages(directory, pinned.label, datetime.now(UTC))
    return pinned, directory


def is_in_store(location: str | Path) -> bool:
    """Return whether a model's location is a URI that leads to an MLflow store."""
    return str(location).startswith(("models:", "runs:"))


def pinned_folder(location: str | Path) -> PinnedModel | None:
    """Return the model in a local folder; None for a URI that leads to a store.

    Raises:
        ModelNotFoundError: There is no such folder.
        ModelDirectoryError: It holds no model, or more than one.
    """
    uri = str(location)
    if is_in_store(uri):
        return None
    folder = Path(unquote(urlparse(uri).path) if uri.startswith("file:") else uri)
    if not folder.is_dir():
        raise ModelNotFoundError(f"model '{uri}' does not exist: there is no such folder; use {FORMS}")
    folder = folder.resolve()
    path = find_model_directory(folder)
    digest = cached_digest(path)
    return PinnedModel(uri=str(folder), name=path.name, version=digest[:_DIGEST_DIGITS], digest=digest, path=path)


def find_model_directory(folder: Path) -> Path:
    """Return the model folder: ``folder`` itself, or the one below ``data/`` of an MLflow model.

    An MLflow model that contains no exported model is itself the model.

    Raises:
        ModelDirectoryError: There is no model, or more than one.
    """
    places = [folder, folder / "data", *sorted((folder / "data").glob("*/"))]
    found = [place for place in places if (place / DESCRIPTION_FILE).is_file()]
    if len(found) == 1:
        return found[0]
    if not found and (folder / MLFLOW_FILE).is_file():
        return folder
    holds = f"holds {len(found)} exported models" if found else f"holds no exported model ({DESCRIPTION_FILE})"
    raise ModelDirectoryError(
        f"{folder} {holds}, neither itself nor below data/; give a model that mirrorspark.training.run exported, that "
        f"mirrorspark.scoring.package wrote, or that MLflow logged"
        if not found
        else f"{folder} {holds}: {[str(place) for place in found]}; give one of them"
    )
