"""Models for scoring: look-up of URIs, download, cache and loading.

A call pins its URI to one version and digest. A model with Python code is loaded only with the caller's consent.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.scoring.model.cache import (
        PROCESS_CACHE,
        ModelCache,
        ModelChangedError,
        freeze_gc,
        limit_numeric_libraries,
        load_once,
    )
    from mirrorspark.scoring.model.catalogue import (
        SAMPLE_FILE,
        TOWERS_FOLDER,
        Catalogue,
        catalogues_of,
        log_ages,
        utc_text,
        warn_if_stale,
    )
    from mirrorspark.scoring.model.consent import UntrustedModelError, check_consent, check_described, remember_consent
    from mirrorspark.scoring.model.digest import (
        archive_digest,
        cached_digest,
        folder_digest,
        is_outside_digest,
        model_files,
    )
    from mirrorspark.scoring.model.directory import (
        DESCRIPTION_FILE,
        FEATURES_FOLDER,
        OUTPUTS,
        QUANTILES,
        SAVED_MODEL_FOLDER,
        ModelDescription,
        ModelDirectory,
        Task,
        exported_with,
    )
    from mirrorspark.scoring.model.errors import ModelDirectoryError
    from mirrorspark.scoring.model.hooks import HOOKS_FILE, POSTPROCESS, PREPROCESS, HookError, Hooks, with_hooks
    from mirrorspark.scoring.model.loaded import DEFAULT_BATCH_SIZE, CandidateVectors, LoadedModel, Search
    from mirrorspark.scoring.model.mlflow_model import input_example, mlflow_flavour
    from mirrorspark.scoring.model.new_folder import check_new, copied_hooks, new_model_folder
    from mirrorspark.scoring.model.packaged import PackagedDescription
    from mirrorspark.scoring.model.pinned import ModelNotFoundError, PinnedModel, find_model_directory, pinned_folder
    from mirrorspark.scoring.model.uri import ModelStoreError, pinned_model, resolve
    from mirrorspark.scoring.model.versions import (
        ModelVersionsError,
        check_versions,
        versions_here,
        warn_of_encoder_versions,
    )
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "DESCRIPTION_FILE",
    "FEATURES_FOLDER",
    "HOOKS_FILE",
    "OUTPUTS",
    "POSTPROCESS",
    "PREPROCESS",
    "PROCESS_CACHE",
    "QUANTILES",
    "SAMPLE_FILE",
    "SAVED_MODEL_FOLDER",
    "TOWERS_FOLDER",
    "CandidateVectors",
    "Catalogue",
    "HookError",
    "Hooks",
    "LoadedModel",
    "ModelCache",
    "ModelChangedError",
    "ModelDescription",
    "ModelDirectory",
    "ModelDirectoryError",
    "ModelNotFoundError",
    "ModelStoreError",
    "ModelVersionsError",
    "PackagedDescription",
    "PinnedModel",
    "Search",
    "Task",
    "UntrustedModelError",
    "archive_digest",
    "cached_digest",
    "catalogues_of",
    "check_consent",
    "check_described",
    "check_new",
    "check_versions",
    "copied_hooks",
    "exported_with",
    "find_model_directory",
    "folder_digest",
    "freeze_gc",
    "input_example",
    "is_outside_digest",
    "limit_numeric_libraries",
    "load_once",
    "log_ages",
    "mlflow_flavour",
    "model_files",
    "new_model_folder",
    "pinned_folder",
    "pinned_model",
    "remember_consent",
    "resolve",
    "utc_text",
    "versions_here",
    "warn_if_stale",
    "warn_of_encoder_versions",
    "with_hooks",
]
