"""MLflow stores in SQLite whose tables exist: making them takes MLflow seconds, so a process makes them once."""

import functools
import shutil
import tempfile
from pathlib import Path


def new_store(folder: Path) -> str:
    """Return the URI of a new store, ``mlflow.db`` in ``folder``."""
    return f"sqlite:///{shutil.copy(Path(_template().name) / 'mlflow.db', folder / 'mlflow.db')}"


@functools.cache
def _template() -> "tempfile.TemporaryDirectory[str]":
    """Return a folder with a store that nothing is written to; it is removed when the process ends."""
    from mlflow import MlflowClient

    folder = tempfile.TemporaryDirectory(prefix="mlflow-tables-")
    MlflowClient(f"sqlite:///{folder.name}/mlflow.db").search_experiments()
    return folder
