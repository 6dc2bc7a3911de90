"""The interface of served objects: a version of a model, or a store of rows."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from mirrorspark.scoring.model import Catalogue
from mirrorspark.serving.fields import Field
from mirrorspark.serving.rows import Rows

Outputs: TypeAlias = Mapping[str, list[Any]]
"""The value of each row by output."""


class Servable(Protocol):
    """A version of a model, or a store of rows. Thread-safe.

    Attributes:
        name: Name in requests.
        inputs: The columns that it reads.
        outputs: The columns that it returns.
        columns: Names of ``inputs``.
        labels: Names of the elements by output that is a list of scores.
        task: The task of a model that was trained here, or None.
        catalogues: The catalogues of a retrieval model with items, or of those of a router, by name.
    """

    name: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    columns: tuple[str, ...]
    labels: Mapping[str, Sequence[str]]
    task: str | None
    catalogues: Mapping[str, Catalogue]

    @property
    def version(self) -> str:
        """Its version, as answers have it."""
        ...

    @property
    def digest(self) -> str:
        """Mark of its content among all versions."""
        ...

    @property
    def example(self) -> Mapping[str, Sequence[Any]] | None:
        """A made-up row that it computes, by column; None if there is none."""
        ...

    def compute(self, requests: Sequence[Rows]) -> list[Outputs | Exception]:
        """Return the outputs of each request, or why a request has none."""
        ...

    def warm_up(self, rows: Mapping[str, Sequence[Any]] | None = None) -> bool:
        """Compute a row, and return whether there is one that can be computed."""
        ...


def label_of(servable: Servable) -> str:
    """Return name and version in one text, such as ``flights/3``."""
    return f"{servable.name}/{servable.version}"


def has_numbers_only(servable: Servable) -> bool:
    """Return whether there is a single output, one number for each row."""
    return len(servable.outputs) == 1 and servable.outputs[0].type in ("float", "double")
