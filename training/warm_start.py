"""The model that a training begins from: found before anything starts, and kept in the run's folder for its ranks.

The ranks need it again whenever an attempt begins at the first step. By then an alias may mean another version, a
folder may be gone and a registry away, so what a run begins from is settled once, when it is opened first. A sweep
settles it once for all its trials.
"""

import contextlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from callbacks.credentials import without_credentials
from callbacks.metric_requests import first_line
from callbacks.mlflow_store import limit_requests, sqlite_file
from data_pipelines.fitted import FeatureMismatchError
from data_pipelines.storage import StoragePath
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
from training.records.run_folder import RUNS_FOLDER, WARM_START_FOLDER, RunFolder, read_state
from training.records.tracking import TrackingError

# Under this name an export logs its model in the MLflow run.
_LOGGED_AS = "model"
_VARIABLES = f"{SAVED_MODEL_FOLDER}/variables"  # the graph and its files are not needed
_SOURCE_FILE = "source.json"
_IDENTITY = "identity"  # of the configuration; its alias may mean another version by now

_PUT_IT_BACK = "put it back, or begin anew with --no-resume"


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
    """Return the model that ``config`` begins from; None for none, and where only an earlier command's copy is left.

    Args:
        config: The run.
        store: MLflow store.

    Raises:
        ConfigError: There is no such model.
        TrackingError: The store cannot be asked.
    """
    if config.warm_start is None:
        return None
    try:
        return _find(config.warm_start, store)
    except (ConfigError, TrackingError):
        # Whether this command goes on with the run that keeps it shows when the dataset is known.
        if config.resume and _is_kept(config):
            return None
        raise


def settle_warm_start(
    config: TrainingConfig, store: str, target: Path, model: PinnedModel | None = None, *, has_begun: bool = False
) -> WarmStart | None:
    """Return what a run, or all trials of a sweep, begin from; the first driver copies it to ``target``.

    Args:
        config: The run.
        store: MLflow store.
        target: In a folder that this driver holds.
        model: What :func:`find_model` found, so that it is fetched once.
        has_begun: Whether weights may have been trained from what was copied: then no other model can take its place.

    Raises:
        ConfigError: There is no such model, or the copy is gone or damaged.
        TrackingError: The store cannot be asked.
        OSError: It cannot be copied.
    """
    if config.warm_start is None:
        return None
    if not target.is_dir():
        if has_begun:
            raise ConfigError(f"{target}, from which the run began, is gone; {_PUT_IT_BACK}")
        _copy(model or _find(config.warm_start, store), target, config.identity)
    file = target / _SOURCE_FILE
    try:
        source = json.loads(file.read_text(encoding="utf-8"))
        return WarmStart(source["uri"], source["digest"], target)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{file}, which says what the run began from, cannot be read ({error}); {_PUT_IT_BACK}"
        ) from error


def _find(name: str, store: str) -> PinnedModel:
    if name.startswith(("models:", "runs:")):
        file = sqlite_file(store)
        if file is not None and not file.exists():
            # MLflow would make one.
            raise ConfigError(
                f"warm_start {name}: there is no MLflow store {without_credentials(store)}; give the one of the model"
            )
        limit_requests()
    try:
        pinned = resolve(_uri(name), store)
        directory = ModelDirectory.open(pinned.path)
    except (ModelNotFoundError, ModelDirectoryError, FeatureMismatchError) as error:
        raise ConfigError(f"warm_start {name}: {error}") from error
    except OSError as error:
        raise TrackingError(
            f"warm_start {name} cannot be looked up in {without_credentials(store)}: {first_line(error)}"
        ) from error
    if directory.fitted is None:
        raise ConfigError(
            f"warm_start {name}: {pinned.label} is a model of another library; give one that was trained here"
        )
    return pinned


def _uri(name: str) -> str:
    """Return what leads to the model of a run, where ``name`` names the run: its id, or its folder."""
    if re.fullmatch(r"runs:/+[^/]+/?", name):
        return f"{name.rstrip('/')}/{_LOGGED_AS}"
    exported = RunFolder(Path(name), "", None).model
    return str(exported) if (exported / DESCRIPTION_FILE).is_file() else name


def _copy(model: PinnedModel, target: Path, identity: str) -> None:
    """Copy weights and features to ``target``, which is there whole or not at all, whatever dies meanwhile."""
    for remains in target.parent.glob(f".{target.name}.*"):  # of a driver that was killed
        shutil.rmtree(remains, ignore_errors=True)
    partial = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        shutil.copytree(model.path / _VARIABLES, partial / _VARIABLES)
        shutil.copytree(model.path / FEATURES_FOLDER, partial / FEATURES_FOLDER)
        source = {"uri": model.uri, "digest": model.digest, _IDENTITY: identity}
        write_atomically(partial / _SOURCE_FILE, json.dumps(source))
        # Without it, a machine that loses its power may keep the new name of empty files.
        for path in (partial, *partial.rglob("*")):
            StoragePath.of(path).flush_to_disk()
        partial.rename(target)
        StoragePath.of(target.parent).flush_to_disk()
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_kept(config: TrainingConfig) -> bool:
    """Whether a run of this configuration that can go on, or a sweep, keeps a copy; on which data is not known yet."""
    for file in Path(config.output).absolute().glob(f"*/*/{WARM_START_FOLDER}/{_SOURCE_FILE}"):
        folder = file.parent.parent
        state = read_state(folder)
        # A sweep that has finished goes on where more trials are asked for.
        if state is None or (state.status == "finished" and folder.parent.name == RUNS_FOLDER):
            continue
        # What cannot be read is told of by the run that goes on with it.
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if json.loads(file.read_text(encoding="utf-8"))[_IDENTITY] == config.identity:
                return True
    return False
