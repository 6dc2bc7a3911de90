"""The model that a training begins from: found before anything starts, and kept in the run's folder for its ranks.

The ranks need it again whenever an attempt begins at the first step. By then an alias may mean another version, a
folder may be gone and a registry away, so what a run begins from is settled once, when it is opened first.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from mlflow.exceptions import MlflowException

from callbacks.credentials import without_credentials
from callbacks.metric_requests import first_line
from data_pipelines.fitted import FeatureMismatchError
from scoring.model_directory import (
    DESCRIPTION_FILE,
    FEATURES_FOLDER,
    SAVED_MODEL_FOLDER,
    ModelDirectory,
    ModelDirectoryError,
)
from scoring.model_uri import ModelNotFoundError, PinnedModel, resolve
from training.config import ConfigError, TrainingConfig
from training.records.atomic_file import write_atomically
from training.records.run_folder import WARM_START_FOLDER, RunFolder, read_state
from training.records.tracking import TrackingError

# Under this name an export logs its model in the MLflow run.
_LOGGED_AS = "model"
_VARIABLES = f"{SAVED_MODEL_FOLDER}/variables"  # the graph and its files are not needed
_SOURCE_FILE = "source.json"
_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class WarmStart:
    """What a run begins from.

    Attributes:
        uri: The exact version: what an alias means later does not change it.
        digest: SHA-256 over the files of the exported model.
        folder: Its weights and fitted features, where every rank reads them.
    """

    uri: str
    digest: str
    folder: Path


def find_model(config: TrainingConfig, store: str) -> PinnedModel | None:
    """Return the model that ``config`` begins from; None for none, and where an unfinished run keeps its own.

    Args:
        config: The run.
        store: MLflow store.

    Raises:
        ConfigError: There is no such model.
        TrackingError: The store cannot be asked.
    """
    if config.warm_start is None or (config.resume and _is_kept(config)):
        return None
    return _find(config.warm_start, store)


def keep(config: TrainingConfig, store: str, folder: RunFolder, model: PinnedModel | None = None) -> WarmStart | None:
    """Return what the run in ``folder`` begins from; its first driver copies it there.

    Args:
        config: The run.
        store: MLflow store.
        folder: Held by this driver.
        model: What :func:`find_model` found, so that it is fetched once.

    Raises:
        ConfigError: There is no such model.
        TrackingError: The store cannot be asked.
        OSError: It cannot be copied.
    """
    if config.warm_start is None:
        return None
    target = folder.warm_start
    if not target.is_dir():
        _copy(model or _find(config.warm_start, store), target)
    source = json.loads((target / _SOURCE_FILE).read_text(encoding="utf-8"))
    return WarmStart(source["uri"], source["digest"], target)


def _find(name: str, store: str) -> PinnedModel:
    is_in_store = name.startswith(("models:", "runs:"))
    if is_in_store and store.startswith(_SQLITE) and not Path(store.removeprefix(_SQLITE)).exists():
        # MLflow would make one.
        raise ConfigError(f"warm_start {name}: there is no MLflow store {store}; give the one of the model")
    try:
        pinned = resolve(_uri(name), store)
        ModelDirectory.open(pinned.path)
    except (ModelNotFoundError, ModelDirectoryError, FeatureMismatchError) as error:
        raise ConfigError(f"warm_start {name}: {error}") from error
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"warm_start {name} cannot be looked up in {without_credentials(store)}: {first_line(error)}"
        ) from error
    return pinned


def _uri(name: str) -> str:
    """Return what leads to the model of a run, where ``name`` names the run: its id, or its folder."""
    if re.fullmatch(r"runs:/+[^/]+/?", name):
        return f"{name.rstrip('/')}/{_LOGGED_AS}"
    exported = RunFolder(Path(name), "", None).model
    return str(exported) if (exported / DESCRIPTION_FILE).is_file() else name


def _copy(model: PinnedModel, target: Path) -> None:
    """Copy weights and features to ``target``, which is there whole or not at all."""
    partial = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        shutil.copytree(model.path / _VARIABLES, partial / _VARIABLES)
        shutil.copytree(model.path / FEATURES_FOLDER, partial / FEATURES_FOLDER)
        write_atomically(partial / _SOURCE_FILE, json.dumps({"uri": model.uri, "digest": model.digest}))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_kept(config: TrainingConfig) -> bool:
    """Whether an unfinished run of this configuration has what it begins from; on which data is not known yet."""
    for kept in (Path(config.output).absolute() / "runs").glob(f"*/{WARM_START_FOLDER}"):
        state = read_state(kept.parent)
        if state is not None and state.status != "finished" and state.identity.startswith(f"{config.identity}-"):
            return True
    return False
