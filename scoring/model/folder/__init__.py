"""A model's folder on disk: its description, its files' names, packages in other formats.

A folder is complete when its description is there, which is written last.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.scoring.model.folder.directory import (
        DESCRIPTION_FILE,
        FEATURES_FOLDER,
        MLFLOW_FILE,
        OUTPUTS,
        QUANTILES,
        SAVED_MODEL_FOLDER,
        ModelDescription,
        ModelDirectory,
        Task,
        exported_with,
    )
    from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
    from mirrorspark.scoring.model.folder.new_folder import check_new, copied_hooks, new_model_folder
    from mirrorspark.scoring.model.folder.packaged import PackagedDescription
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "DESCRIPTION_FILE",
    "FEATURES_FOLDER",
    "MLFLOW_FILE",
    "OUTPUTS",
    "QUANTILES",
    "SAVED_MODEL_FOLDER",
    "ModelDescription",
    "ModelDirectory",
    "ModelDirectoryError",
    "PackagedDescription",
    "Task",
    "check_new",
    "copied_hooks",
    "exported_with",
    "new_model_folder",
]
