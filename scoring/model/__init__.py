"""Models for scoring: the hooks of users, catalogues of items, and MLflow's form of a model.

Folders of models are in ``folder``, their look-up and download in ``stored``, and loading in ``loading``.
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
