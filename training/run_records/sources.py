"""Software behind a run: the installed packages, the commit of the user's code, and our version."""

import contextlib
import subprocess
from importlib.metadata import distributions, version
from pathlib import Path

from mirrorspark.training.configuration import recipe_names

COMMIT_TAG, VERSION_TAG = "mlflow.source.git.commit", "mirrorspark.version"


def environment() -> dict[str, str]:
    """Return every installed package with its version."""
    found = {}
    for entry in distributions():
        with contextlib.suppress(FileNotFoundError):  # Left by an interrupted installation.
            if entry.metadata["Name"]:
                found[entry.metadata["Name"]] = entry.version
    return dict(sorted(found.items(), key=lambda entry: entry[0].lower()))


def source_tags(recipe: str | None) -> dict[str, str]:
    """Return the tags that name the user's code and ours: a commit, unless it is in no clone, and a version.

    Args:
        recipe: The folder with the user's code, or the name of one of our recipes; None or such a name means the
            working directory.
    """
    is_ours = recipe is None or recipe in recipe_names()
    commit = git_commit(Path.cwd() if is_ours else Path(str(recipe)))
    return {VERSION_TAG: version("mirrorspark")} | ({COMMIT_TAG: commit} if commit else {})


def git_commit(folder: Path) -> str | None:
    """Return the commit checked out in ``folder``, or None outside a clone."""
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
