"""Fleets in MLflow's model registry: all versions of a fleet share the files of their models in one MLflow run.

::

    fleet/models-<digest>.arrow     up to 1,024 models, as in the folder of a fleet, never changed
    fleet/<digest>/fleet.arrow      a version: its models in their order, with the digest of each

A new version therefore uploads the models that the former one lacks, and its list.
"""

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.folder import LIST_FILE, files_of
from mirrorspark.scoring import open_store
from mirrorspark.storage import without_credentials
from mirrorspark.training.configuration import check_registry_name

if TYPE_CHECKING:
    from mirrorspark.fleet.fleet import Fleet

_FOLDER = "fleet"
_URI = re.compile(r"models:/+([^/]+?)(?:/(\d+)|@([^/@]+))/?")


def is_registered(location: str | os.PathLike[str]) -> bool:
    """Return whether a location of a fleet is one in the registry, not a folder."""
    return str(location).startswith("models:")


def register_fleet(fleet: "Fleet", name: str, *, tracking_uri: str | None = None) -> str:
    """Register a fleet as the next version of a model in MLflow, and return its URI, ``models:/<name>/<version>``.

    Only models that the former versions lack are uploaded. The MLflow run of the first version has the files of all, so
    versions are lost if it is deleted. ``Fleet.load``, ``score_fleet`` and ``run_fleet`` take the URI, also with an
    alias: ``models:/<name>@<alias>``.

    Args:
        fleet: The fleet.
        name: Name of the registered model, and of the experiment of its run.
        tracking_uri: MLflow tracking server or store; by default that of the last training, or the one that MLflow is
            set to.

    Raises:
        ConfigError: MLflow will not take the name.
        FleetError: The registered model is not a fleet, or a file of the former version is damaged.
        ModelStoreError: The store cannot be used.
    """
    check_registry_name(name)
    with open_store(tracking_uri, may_be_new=True) as client:
        version = _registered(client, fleet, name)
    return f"models:/{name}/{version}"


def _registered(client: Any, fleet: "Fleet", name: str) -> str:
    """Upload the files that a fleet's version needs, and return the number of the version."""
    from mlflow.exceptions import MlflowException

    from mirrorspark.callbacks.mlflow import metric_requests, tracking_store

    try:
        client.create_registered_model(name)
        versions = []
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        versions = tracking_store.versions_of(client, name)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if versions:
            _download(client, versions[-1], folder)
            run = versions[-1].run_id
        else:
            run = client.create_run(metric_requests.experiment_of(client, name), run_name=name).info.run_id
        fleet.save(folder)
        # An upload that was cut off may have left a part of a file.
        known = {Path(file.path).name: file.file_size for file in client.list_artifacts(run, _FOLDER)}
        for file in sorted(files_of(folder)):
            if known.get(file) != (folder / file).stat().st_size:
                client.log_artifact(run, str(folder / file), _FOLDER)
        # The list comes last: a version whose upload was cut off is never registered.
        place = f"{_FOLDER}/{fleet.digest}"
        client.log_artifact(run, str(folder / LIST_FILE), place)
        if not versions:
            client.set_terminated(run)
        tags = {"mirrorspark.fleet": fleet.digest, "mirrorspark.fleet.models": str(len(fleet))}
        return str(client.create_model_version(name, f"runs:/{run}/{place}", run, tags=tags).version)


def fetch_fleet(uri: str, folder: Path, tracking_uri: str | None = None) -> None:
    """Download the files of a registered fleet into a folder, as ``Fleet.save`` writes them.

    Raises:
        FleetError: The URI has no version and no alias, there is no such version, or it is not a fleet.
        ModelStoreError: The store cannot be used.
    """
    from mlflow.exceptions import MlflowException

    parts = _URI.fullmatch(uri)
    if parts is None:
        raise FleetError(f"{uri} names no version of a fleet; use models:/<name>/<version> or models:/<name>@<alias>")
    name, version, alias = parts.groups()
    with open_store(tracking_uri) as client:
        try:
            found = (
                client.get_model_version(name, version) if version else client.get_model_version_by_alias(name, alias)
            )
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            store = without_credentials(client.tracking_uri)
            raise FleetError(f"there is no {uri} in the MLflow store {store}; register it there") from error
        _download(client, found, folder)


def _download(client: Any, version: Any, folder: Path) -> None:
    named = f"models:/{version.name}/{version.version}"
    if "mirrorspark.fleet" not in version.tags:
        raise FleetError(f"{named} is not a fleet, but a model of another kind; use another name for the fleet")
    source = f"{_FOLDER}/{version.tags['mirrorspark.fleet']}"
    with TemporaryDirectory(dir=folder) as scratch:
        listed = Path(client.download_artifacts(version.run_id, f"{source}/{LIST_FILE}", scratch))
        listed.rename(folder / LIST_FILE)
        for file in files_of(folder):
            Path(client.download_artifacts(version.run_id, f"{_FOLDER}/{file}", scratch)).rename(folder / file)
