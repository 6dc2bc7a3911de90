"""The base of architectures that change the outputs of another, and the parts of a model that an export keeps."""

from dataclasses import dataclass
from typing import Any


def saved_parts(architecture: Any, model: Any) -> list[Any]:
    """Return the objects whose variables, tables and files the architecture's predictions read.

    That is the model itself, unless the architecture has a method ``saved_parts``.
    """
    own = getattr(architecture, "saved_parts", None)
    return [model] if own is None else list(own(model))


@dataclass(frozen=True)
class WrappedArchitecture:
    """An architecture with the task and the parts of another; a subclass has a ``predict`` of its own."""

    architecture: Any

    @property
    def TASK(self) -> str:  # noqa: N802 - the name in every architecture
        """The architecture's task."""
        return str(self.architecture.TASK)

    def saved_parts(self, model: Any) -> list[Any]:
        """Return the result of :func:`saved_parts` for the model."""
        return saved_parts(self.architecture, model)
