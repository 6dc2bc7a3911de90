"""A folder of a model that appears when it is whole, or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirrorspark.scoring.model.directory import ModelDirectoryError


def check_new(target: Path) -> None:
    """Raise ``ModelDirectoryError`` unless ``target`` is missing or an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelDirectoryError(f"{target} exists already; give a new folder")


@contextmanager
def new_model_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write, which becomes ``target`` unless the block fails.

    Raises:
        ModelDirectoryError: ``target`` is not empty.
    """
    check_new(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        whole = Path(scratch) / target.name
        whole.mkdir()
        yield whole
        whole.rename(target)
