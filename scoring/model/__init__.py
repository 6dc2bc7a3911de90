"""Models for scoring: look-up of URIs, download, cache and loading.

A call pins its URI to one version and digest. A model with Python code is loaded only with the caller's consent.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.scoring.model.catalogue import (
        SAMPLE_FILE,
        TOWERS_FOLDER,
        Catalogue,
        catalogues_of,
        log_ages,
        utc_text,
        warn_if_stale,
    )
    from mirrorspark.scoring.model.hooks import HOOKS_FILE, POSTPROCESS, PREPROCESS, HookError, Hooks, with_hooks
    from mirrorspark.scoring.model.mlflow_model import input_example, mlflow_flavour
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "HOOKS_FILE",
    "POSTPROCESS",
    "PREPROCESS",
    "SAMPLE_FILE",
    "TOWERS_FOLDER",
    "Catalogue",
    "HookError",
    "Hooks",
    "catalogues_of",
    "input_example",
    "log_ages",
    "mlflow_flavour",
    "utc_text",
    "warn_if_stale",
    "with_hooks",
]
