"""The model that a training begins from: found before anything starts, and copied into the run's folder.

The workers need it again whenever an attempt begins at the first step. By then an alias may mean another version, a
folder may be gone and a registry away, so a run resolves its model once, when it is opened first. A sweep resolves it
once for all its trials.
"""

import contextlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from mirrorspark.callbacks.mlflow import metric_requests, tracking_store
from mirrorspark.data_pipelines.features import FeatureMismatchError
from mirrorspark.models import catalog, classical
from mirrorspark.scoring.model import Catalogue
from mirrorspark.scoring.model.folder import (
    DESCRIPTION_FILE,
    FEATURES_FOLDER,
    SAVED_MODEL_FOLDER,
    ModelDescription,
    ModelDirectory,
    ModelDirectoryError,
    exported_with,
)
from mirrorspark.scoring.model.loading import warn_of_encoder_versions
from mirrorspark.scoring.model.stored import ModelNotFoundError, PinnedModel, resolve
from mirrorspark.storage import StoragePath, atomic_file, without_credentials
from mirrorspark.training.configuration import LINEAR_BASELINES, ConfigError, TrainingConfig
from mirrorspark.training.protocol import RUNS_FOLDER, WARM_START_FOLDER
from mirrorspark.training.run_records import RunFolder, TrackingError, run_state

_LOGGER = logging.getLogger(__name__)

_VARIABLES = f"{SAVED_MODEL_FOLDER}/variables"  # the graph and its files are not needed
_SOURCE_FILE = "source.json"
_IDENTITY = "identity"  # Of the configuration, whose alias may mean another version by now.

_PUT_IT_BACK = "put it back, or begin anew with --no-resume"


@dataclass(frozen=True)
class WarmStart:
    """The model that a run begins from.

    Attributes:
        uri: The exact version, independent of later changes of an alias.
        digest: SHA-256 over the files of the exported model.
        folder: Its weights and fitted features, where every worker can read them.
    """

    uri: str
    digest: str
    folder: Path


def find_model(config: TrainingConfig, store: str) -> PinnedModel | None:
    """Return the model that ``config`` begins from; None if there is none, or only an earlier command's copy is left.

    Args:
        config: The run.
        store: MLflow store.

    Raises:
        ConfigError: There is no such model.
        TrackingError: The store cannot be read.
    """
    if config.warm_start is None:
        return None
    try:
        return _find(config.warm_start, store)
    except (ConfigError, TrackingError):
        # The dataset decides later if this command continues the run that has the copy.
        if config.resume and _is_kept(config):
            return None
        raise


def resolve_warm_start(
    config: TrainingConfig,
    store: str,
    target: Path,
    model: PinnedModel | WarmStart | None = None,
    *,
    has_begun: bool = False,
) -> WarmStart | None:
    """Return the model that a run, or all trials of a sweep, begin from; the first driver copies it to ``target``.

    Args:
        config: The run.
        store: MLflow store.
        target: Place of the copy, in a folder that this driver has locked.
        model: The result of :func:`find_model`, so that the model is fetched once; or a sweep's model for its trials.
        has_begun: Weights may have been trained from the copy, so no other model can replace it.

    Raises:
        ConfigError: There is no such model, or the copy is missing or damaged.
        TrackingError: The store cannot be read.
        OSError: The model cannot be copied.
    """
    if isinstance(model, WarmStart):
        return model
    if config.warm_start is None:
        return None
    if not target.is_dir():
        if has_begun:
            raise ConfigError(f"{target}, from which the run began, is missing; {_PUT_IT_BACK}")
        _copy(model or _find(config.warm_start, store), target, config.identity)
    file = target / _SOURCE_FILE
    try:
        source = json.loads(file.read_text(encoding="utf-8"))
        return WarmStart(source["uri"], source["digest"], target)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{file}, the record of the run's initial model, cannot be read ({error}); {_PUT_IT_BACK}"
        ) from error


def _find(name: str, store: str) -> PinnedModel:
    if name.startswith(("models:", "runs:")):
        file = tracking_store.sqlite_file(store)
        if file is not None and not file.exists():
            # MLflow would make one.
            raise ConfigError(
                f"warm_start {name}: there is no MLflow store {without_credentials(store)}; give the one of the model"
            )
        tracking_store.limit_requests()
    try:
        pinned = resolve(_uri(name), store)
        directory = ModelDirectory.open(pinned.path)
    except (ModelNotFoundError, ModelDirectoryError, FeatureMismatchError) as error:
        raise ConfigError(f"warm_start {name}: {error}") from error
    except OSError as error:
        raise TrackingError(
            f"warm_start {name} cannot be looked up in {without_credentials(store)}: "
            f"{metric_requests.first_line(error)}"
        ) from error
    if not isinstance(directory.description, ModelDescription):
        raise ConfigError(
            f"warm_start {name}: {pinned.label} is a model of another library; give one that was trained here"
        )
    catalogue = Catalogue.of_description(directory.description.catalogue)
    if catalogue is not None and catalogue.refreshed_from:
        # A refreshed model has the weights that its signatures need, and other ids than its tables.
        _LOGGER.info("warm_start %s has a later catalogue; its weights are those of %s", name, catalogue.trained_model)
        return _find(catalogue.trained_model, store)
    architecture = directory.description.architecture
    # Their names may have settings behind them.
    others = (catalog.BOOSTED_TREES, catalog.BLEND, *LINEAR_BASELINES.values(), *classical.RECOMMENDERS)
    if kind := next((other for other in others if architecture == other or architecture.startswith(f"{other}_")), None):
        kind = {catalog.BOOSTED_TREES: "gradient boosting", catalog.BLEND: "a blend"}.get(kind, kind)
        raise ConfigError(
            f"warm_start {name}: {pinned.label} is {kind}, which has no weights to begin from; give a version that is "
            f"a network, or leave warm_start out"
        )
    warn_of_encoder_versions(exported_with(pinned.path))
    return pinned


def _uri(name: str) -> str:
    """Return the folder of a run's model if ``name`` is the run's folder; otherwise ``name``."""
    exported = RunFolder(Path(name), "", None).model
    return str(exported) if (exported / DESCRIPTION_FILE).is_file() else name


def _copy(model: PinnedModel, target: Path, identity: str) -> None:
    """Copy weights and features to ``target`` atomically: it is whole or absent, even after a crash."""
    for remains in target.parent.glob(f".{target.name}.*"):  # Left by a driver that was killed.
        shutil.rmtree(remains, ignore_errors=True)
    partial = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        shutil.copytree(model.path / _VARIABLES, partial / _VARIABLES)
        shutil.copytree(model.path / FEATURES_FOLDER, partial / FEATURES_FOLDER)
        source = {"uri": model.uri, "digest": model.digest, _IDENTITY: identity}
        atomic_file.write_atomically(partial / _SOURCE_FILE, json.dumps(source))
        # Without the flush, a power loss may leave the new name with empty files.
        for path in (partial, *partial.rglob("*")):
            StoragePath.of(path).flush_to_disk()
        atomic_file.move(partial, target)
        StoragePath.of(target.parent).flush_to_disk()
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_kept(config: TrainingConfig) -> bool:
    """Return True if a resumable run of this configuration, on any data, or a sweep has a copy."""
    for file in Path(config.output).absolute().glob(f"*/*/{WARM_START_FOLDER}/{_SOURCE_FILE}"):
        folder = file.parent.parent
        state = run_state.read_state(folder)
        # A finished sweep can go on with more trials.
        if state is None or (state.status == "finished" and folder.parent.name == RUNS_FOLDER):
            continue
        # The run that goes on with an unreadable copy reports it.
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if json.loads(file.read_text(encoding="utf-8"))[_IDENTITY] == config.identity:
                return True
    return False
