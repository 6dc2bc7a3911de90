"""The declaration of a router: which model, or blend of models, answers for which rows."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mirrorspark.scoring.errors import ScoringError

Nulls = Literal["skip", "match", "fail"]
"""A row with a null in a route's column: the next route decides, this one takes it, or the row cannot be scored."""

Boundary = Literal["exclusive", "inclusive"]
"""Whether a row of exactly the given age still belongs to ``younger_than_days``."""


@dataclass(frozen=True)
class Route:
    """A rule that sends rows to a model.

    Attributes:
        model: Name of a model or of a blend.
        column: Column that decides; None, in the last route, is for all rows that are left.
        younger_than_days: Largest age in days, from the column's date or moment to the one of ``Router.as_of``. A date
            in the future is young, too.
        boundary: ``exclusive``: a row of exactly that age is not younger. ``inclusive``: it is.
        values: The route takes rows with one of these values: texts, integers or booleans.
        nulls: What happens to rows whose column is null.
    """

    model: str
    column: str | None = None
    younger_than_days: int | None = None
    boundary: Boundary = "exclusive"
    values: tuple[str | int | bool, ...] = ()
    nulls: Nulls = "skip"

    def __post_init__(self) -> None:
        rules = (self.younger_than_days is not None) + bool(self.values)
        if rules != (self.column is not None):
            raise ScoringError(
                f"the route to '{self.model}' has the column {self.column!r} and {rules} rules for it; give a column "
                f"with younger_than_days or values, or none of these"
            )
        for name, value, known in (("boundary", self.boundary, Boundary), ("nulls", self.nulls, Nulls)):
            if value not in get_args(known):
                raise ScoringError(f"{name} '{value}' of the route to '{self.model}' is none of {get_args(known)}")
        if len({type(value) for value in self.values}) > 1:
            raise ScoringError(f"the values {list(self.values)} have several types; give those of the column")

    @property
    def reason(self) -> str:
        """Why the route takes a row."""
        if self.younger_than_days is not None:
            sign = "<" if self.boundary == "exclusive" else "<="
            return f"{self.column}: age {sign} {self.younger_than_days} days"
        return f"{self.column}: one of its values" if self.column is not None else "no other rule applies"


@dataclass(frozen=True)
class Router:
    """Rules that choose the model of each row; the first route that takes a row counts.

    Attributes:
        routes: The last one has no column, so that every row has a model.
        blends: Weights by model, by name of the blend: its numbers are the weighted sums of the models' numbers, and
            its ranked lists are fused by the places of the candidates (:mod:`scoring.routing.blend`).
        fallback: Models that answer, the first that can, for rows that the chosen model cannot score.
        as_of: Column with the date or moment at which ages count; None is the time of the call.
        time_zone: Zone whose calendar days count for ages, and in which moments without a zone are given.
        blend_depth: Candidates that :func:`scoring.recommend.recommend` takes from each model for a blend, at least.
    """

    routes: tuple[Route, ...]
    blends: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    fallback: tuple[str, ...] = ()
    as_of: str | None = None
    time_zone: str = "UTC"
    blend_depth: int = 200

    def __post_init__(self) -> None:
        columns = [route.column for route in self.routes]
        if not columns or columns[-1] is not None or None in columns[:-1]:
            raise ScoringError(
                f"the routes decide by the columns {columns}; the last one, and no other, has to have none, so that "
                f"every row has a model"
            )
        try:
            ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ScoringError(f"time_zone '{self.time_zone}' is unknown; use a name such as Europe/Berlin") from error
        empty = [name for name, weights in self.blends.items() if not weights]
        if empty:
            raise ScoringError(f"the blends {empty} have no models; give a weight for each")

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models, each once."""
        named = [route.model for route in self.routes] + list(self.fallback)
        parts = [part for name in named for part in self.weights(name)]
        return tuple(dict.fromkeys([*parts, *(part for blend in self.blends.values() for part in blend)]))

    def weights(self, name: str) -> Mapping[str, float]:
        """Return the weights of the models that answer by that name."""
        return self.blends.get(name, {name: 1.0})

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that decide, each once."""
        named = [route.column for route in self.routes] + [self.as_of]
        return tuple(dict.fromkeys(column for column in named if column is not None))

    @classmethod
    def from_yaml(cls, path: str | Path) -> "Router":
        """Read a router from a YAML file with its fields.

        Raises:
            ScoringError: The file has other fields, or rules that contradict one another.
        """
        import yaml

        return cls.of(yaml.safe_load(Path(path).read_text(encoding="utf-8")), path)

    @classmethod
    def of(cls, document: Any, origin: str | Path) -> "Router":
        """Return the router that a document describes; messages name ``origin``."""
        try:
            routes = tuple(Route(**route | {"values": tuple(route.get("values", ()))}) for route in document["routes"])
            return cls(**document | {"routes": routes, "fallback": tuple(document.get("fallback", ()))})
        except (TypeError, KeyError, AttributeError) as error:
            raise ScoringError(
                f"{origin} describes no router ({error}); give the fields of Router and Route"
            ) from error

    def save(self, path: Path) -> None:
        """Write the router as JSON, which :meth:`from_yaml` reads as well."""
        path.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")
