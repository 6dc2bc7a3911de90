"""Loaded models: loading, the cache of a process, and the versions of libraries that a model needs.

A model with Python code is loaded only with consent.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.scoring.model.loading.cache import (
        PROCESS_CACHE,
        ModelCache,
        ModelChangedError,
        freeze_gc,
        limit_numeric_libraries,
        load_once,
    )
    from mirrorspark.scoring.model.loading.composites import composite_of
    from mirrorspark.scoring.model.loading.loaded import DEFAULT_BATCH_SIZE, CandidateVectors, LoadedModel, Search
    from mirrorspark.scoring.model.loading.versions import (
        PYTHON,
        ModelVersionsError,
        Versions,
        check_versions,
        pinned_versions,
        versions_here,
        warn_of_encoder_versions,
    )
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "PROCESS_CACHE",
    "PYTHON",
    "CandidateVectors",
    "LoadedModel",
    "ModelCache",
    "ModelChangedError",
    "ModelVersionsError",
    "Search",
    "Versions",
    "check_versions",
    "composite_of",
    "freeze_gc",
    "limit_numeric_libraries",
    "load_once",
    "pinned_versions",
    "versions_here",
    "warn_of_encoder_versions",
]
