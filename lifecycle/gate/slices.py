"""Slices of a table: one for each value of an SQL expression, and all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OVERALL = "overall"
"""Name of the slicing whose only slice has all rows."""


@dataclass(frozen=True)
class Slicing:
    """A division of the rows by the values of an SQL expression; null is a value, too.

    Attributes:
        expression: Any SQL expression over the columns of the table: ``carrier``, ``distance > 1000``,
            ``concat(origin, '-', dest)``.
        name: Name in findings and thresholds; by default the expression.
        values: The values, as text, that are slices; by default all.
    """

    expression: str
    name: str = ""
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.expression.strip():
            raise ValueError("a slicing has an empty expression; give a column or another SQL expression")
        object.__setattr__(self, "name", self.name or self.expression)
        object.__setattr__(self, "values", tuple(map(str, self.values)))
        if self.name == OVERALL:
            raise ValueError(f"a slicing has the name {OVERALL!r}, which is that of all rows; choose another one")


def slicings_of(slices: Sequence[str | Slicing]) -> tuple[Slicing, ...]:
    """Return slicings, of which a text is the expression.

    Raises:
        ValueError: Two have one name, or an expression is empty.
    """
    found = tuple(one if isinstance(one, Slicing) else Slicing(one) for one in slices)
    names = [one.name for one in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the slicings {repeated} are given twice; give each a name of its own")
    return found


def slice_name(slicing: str, value: str | None) -> str:
    """Return the name of a slice in messages."""
    if slicing == OVERALL:
        return OVERALL
    return f"{slicing} is null" if value is None else f"{slicing} = {value}"
