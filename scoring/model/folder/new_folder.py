"""A folder of a model that appears when it is whole, or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.model.hooks import HOOKS_FILE, Hooks
from mirrorspark.storage import atomic_file, lakes


def check_new(target: Path) -> None:
    """Check that ``target`` is missing or an empty folder, in which a folder may be written.

    Raises:
        LakeTableError: It is, or lies in, a table that keeps a log.
        ModelDirectoryError: It is not.
    """
    lakes.refuse_lake_write(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelDirectoryError(f"{target} exists already; give a new folder")


def copied_hooks(source: str | Path, folder: Path) -> Hooks:
    """Copy a file of hooks into the folder of a model, and load the copy.

    Raises:
        ModelDirectoryError: There is no such file.
        HookError: It cannot be run.
    """
    if not Path(source).is_file():
        raise ModelDirectoryError(f"there is no file of hooks at {source}; give a Python file")
    return Hooks.load(Path(shutil.copyfile(source, folder / HOOKS_FILE)))


@contextmanager
def new_model_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write, which becomes ``target`` unless the block fails.

    Raises:
        LakeTableError: ``target`` is, or lies in, a table that keeps a log.
        ModelDirectoryError: ``target`` is not empty.
    """
    check_new(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file.new_folder(target) as whole:
        yield whole
