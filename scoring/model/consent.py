"""Consent of the caller to Python code that a model brings, which would run here and on the executors."""

from pathlib import Path

from mirrorspark.scoring.backends.catalog import runs_code
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.digest import cached_digest
from mirrorspark.scoring.model.directory import ModelDescription, ModelDirectory
from mirrorspark.scoring.model.hooks import HOOKS_FILE
from mirrorspark.scoring.model.packaged import PackagedDescription
from mirrorspark.scoring.routing.folder import read_router

# By digest, the models whose code this process has been given by its user, who packaged them.
_PACKAGED_HERE: set[str] = set()


class UntrustedModelError(ScoringError):
    """Raised for a model that brings Python code, if the caller has not said that it may run."""


def remember_consent(folder: Path, description: PackagedDescription) -> None:
    """Take the packaging of a model in this process as consent to the code that was put into it."""
    if _code(description):
        _PACKAGED_HERE.add(cached_digest(folder))


def check_consent(directory: ModelDirectory, label: str) -> None:
    """Make sure that a model brings no code, or only code that this process has packaged.

    The folder's own description cannot consent to anything: whoever made the folder wrote it.

    Raises:
        UntrustedModelError: It brings other code; the message says which.
    """
    description = directory.description
    # It was trained here, and such a model brings no code.
    if isinstance(description, ModelDescription):
        return
    if description.inputs is None:
        _, folders = read_router(directory.path / description.file)
        for name, folder in folders.items():
            check_consent(ModelDirectory.open(folder), f"'{name}' in {label}")
    code = _code(description)
    if code and cached_digest(directory.path) not in _PACKAGED_HERE:
        raise UntrustedModelError(
            f"model {label} brings Python code, which would run here and on the executors with your rights: "
            f"{' and '.join(code)}; if you trust who made it, give trust=True (on the command line --trust)"
        )


def _code(description: PackagedDescription) -> list[str]:
    """Return what of a model is Python code."""
    code = [f"{', '.join(description.hooks)} of its {HOOKS_FILE}"] if description.hooks else []
    if description.trusted:
        code.append(f"what its {description.file} holds, such as Lambda layers")
    if runs_code(description.backend):
        code.append("the modules and pickled objects of its MLflow model")
    return code
