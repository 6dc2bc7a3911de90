"""Consent of the caller to Python code that a model brings, which would run here and on the executors."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mirrorspark.scoring.backends import runs_code
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.folder import ModelDescription, ModelDirectory, PackagedDescription
from mirrorspark.scoring.model.hooks import HOOKS_FILE
from mirrorspark.scoring.model.loading import composite_of
from mirrorspark.scoring.model.stored.digest import cached_digest

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
    composite = composite_of(description)
    if composite is not None:
        for name, folder in composite.members(directory.path / description.file).items():
            check_consent(ModelDirectory.open(folder), f"'{name}' in {label}")
    _check(_code(description), lambda: cached_digest(directory.path), label)


def check_described(document: Mapping[str, Any], digest: Callable[[], str], label: str) -> None:
    """Check consent like :func:`check_consent`, by the document of a description alone: the files are still packed.

    Args:
        document: The content of ``mirrorspark.json``.
        digest: Returns the digest of the model's files.
        label: The model, in words.

    Raises:
        UntrustedModelError: It says that it brings code.
    """
    hooks = document.get("hooks")
    code = _code_of(
        tuple(map(str, hooks)) if isinstance(hooks, list) else (),
        str(document.get("backend", "")),
        str(document.get("file", "")),
        is_trusted=bool(document.get("trusted")),
    )
    _check(code, digest, label)


def _check(code: Sequence[str], digest: Callable[[], str], label: str) -> None:
    if code and digest() not in _PACKAGED_HERE:
        raise UntrustedModelError(
            f"model {label} brings Python code, which would run here and on the executors with your rights: "
            f"{' and '.join(code)}; if you trust who made it, give trust=True (on the command line --trust)"
        )


def _code(description: PackagedDescription) -> list[str]:
    """Return descriptions of the model's parts that are Python code."""
    return _code_of(description.hooks, description.backend, description.file, is_trusted=description.trusted)


def _code_of(hooks: Sequence[str], backend: str, file: str, *, is_trusted: bool) -> list[str]:
    code = [f"{', '.join(hooks)} of its {HOOKS_FILE}"] if hooks else []
    if is_trusted:
        held = "operations that read or write files" if backend == "saved_model" else "Lambda layers"
        code.append(f"parts of its {file}, such as {held}")
    if runs_code(backend):
        code.append("the modules and pickled objects of its MLflow model")
    return code
