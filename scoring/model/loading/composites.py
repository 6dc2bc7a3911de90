"""Kinds of models that are made of other models, each with a folder of its own.

A new kind is one line in the table here. Its code lives in the part of the product that makes such models, and is
imported when the first of them is opened.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from mirrorspark.scoring.input import Inputs
from mirrorspark.scoring.model.hooks import Hooks

if TYPE_CHECKING:
    from mirrorspark.scoring.model.folder import PackagedDescription
    from mirrorspark.scoring.model.loading.loaded import CompositeModel, LoadedModel


class Composite(Protocol):
    """A kind of composite; ``folder`` is always that of its rules, inside the folder of the model."""

    def members(self, folder: Path) -> dict[str, Path]:
        """Return the folders of its models by name."""

    def inputs(self, folder: Path) -> Inputs:
        """Return the columns that it and its models read."""

    def load(
        self,
        folder: Path,
        description: "PackagedDescription",
        load_member: Callable[[Path], "LoadedModel"],
        hooks: Hooks | None,
        threads: int | None,
    ) -> "CompositeModel":
        """Load it; ``load_member`` loads each of its models."""


_COMPOSITES: Mapping[str, str] = {"router": "mirrorspark.recommending.routing.folder:COMPOSITE"}
"""Module and name of each kind, by the backend in the description of its models."""


def composite_of(description: object) -> Composite | None:
    """Return the kind of a model that is made of others, by its description; None for a model by itself."""
    place = _COMPOSITES.get(getattr(description, "backend", ""))
    if place is None:
        return None
    module, _, name = place.partition(":")
    return cast(Composite, getattr(import_module(module), name))
