"""The declaration of a router: which model, blend or cascade of models answers for which rows."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mirrorspark.recommending.reranking import Rules
from mirrorspark.recommending.routing.blend import Fusion, VectorFusion
from mirrorspark.scoring import ScoringError
from mirrorspark.storage import load_yaml, read_text

Nulls = Literal["skip", "match", "fail"]
"""A row with a null in a route's column: the next route decides, this one takes it, or the row cannot be scored."""

Boundary = Literal["exclusive", "inclusive"]
"""Whether a row of exactly the given age still belongs to ``younger_than_days``."""


@dataclass(frozen=True)
class Route:
    """A rule that sends rows to a model.

    Attributes:
        model: Name of a model, a blend or a cascade.
        column: Column that decides; None, in the last route, is for all rows that are left.
        younger_than_days: Largest age in days, from the column's date or moment to the one of ``Router.as_of``. A date
            in the future is young, too.
        boundary: ``exclusive``: a row of exactly that age is not younger. ``inclusive``: it is.
        values: The route takes rows with one of these values: texts, integers or booleans.
        at_least: The route takes rows whose number is not below this one.
        below: The route takes rows whose number is below this one. NaN counts as null.
        nulls: Treatment of rows whose column is null.
    """

    model: str
    column: str | None = None
    younger_than_days: int | None = None
    boundary: Boundary = "exclusive"
    values: tuple[str | int | bool, ...] = ()
    at_least: float | None = None
    below: float | None = None
    nulls: Nulls = "skip"

    def __post_init__(self) -> None:
        rules = (self.younger_than_days is not None) + bool(self.values) + self.has_range
        if rules != (self.column is not None):
            raise ScoringError(
                f"the route to '{self.model}' has the column {self.column!r} and {rules} rules for it; give a column "
                f"with younger_than_days, values, or at_least and below, or none of these"
            )
        for name in ("at_least", "below"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
            if value is not None and not is_number:
                raise ScoringError(f"{name} {value!r} of the route to '{self.model}' is not a number; give one")
        if self.at_least is not None and self.below is not None and not self.at_least < self.below:
            raise ScoringError(
                f"the route to '{self.model}' takes no number: at_least {self.at_least:g}, below {self.below:g}"
            )
        for name, value, known in (("boundary", self.boundary, Boundary), ("nulls", self.nulls, Nulls)):
            if value not in get_args(known):
                raise ScoringError(f"{name} '{value}' of the route to '{self.model}' is none of {get_args(known)}")
        if len({type(value) for value in self.values}) > 1:
            raise ScoringError(f"the values {list(self.values)} have several types; give those of the column")

    @property
    def has_range(self) -> bool:
        """True if the route takes rows by a range of numbers."""
        return self.at_least is not None or self.below is not None

    @property
    def reason(self) -> str:
        """Reason for which the route takes a row."""
        if self.has_range:
            least = [] if self.at_least is None else [f"{self.column} >= {self.at_least:g}"]
            most = [] if self.below is None else [f"{self.column} < {self.below:g}"]
            return " and ".join(least + most)
        if self.younger_than_days is not None:
            sign = "<" if self.boundary == "exclusive" else "<="
            return f"{self.column}: age {sign} {self.younger_than_days} days"
        return f"{self.column}: one of its values" if self.column is not None else "no other rule applies"


@dataclass(frozen=True)
class Cascade:
    """Stages of one answer: a model finds candidates, another one ranks them, and rules re-rank its list.

    Attributes:
        retrieve: Name of the retrieval model, or of the blend of such models, that finds the candidates.
        key: Column of the candidate's token: in the rows that ``rank`` reads, and in the table of items.
        rank: Name of the model that ranks the candidates; None keeps the order in which they were found.
        rerank: Rules of the re-ranking, by the names of the parameters of :func:`recommending.reranking.rerank`:
            ``{"category": "genre", "at_most": 4}``. Without any the ranked list is only cut.
        depth: Candidates to find, at least as are listed.
        k: Length of the list; :func:`recommending.recommend` has a ``k`` of its own.
        output: Output of ``rank`` to rank by, one number for each row.
    """

    retrieve: str
    key: str
    rank: str | None = None
    rerank: Mapping[str, Any] = field(default_factory=dict)
    depth: int = 500
    k: int = 20
    output: str = "score"

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.depth:
            raise ScoringError(
                f"the cascade from '{self.retrieve}' lists k {self.k} of depth {self.depth} candidates; use a k from 1 "
                f"to the depth"
            )
        if self.rank is None and not self.rerank:
            raise ScoringError(
                f"the cascade from '{self.retrieve}' has neither rank nor rerank; give one, or route to the model alone"
            )
        _ = self.rules(self.k)  # Checks them.

    def rules(self, k: int) -> Rules | None:
        """Return the rules for lists of ``k`` candidates; None without any.

        Raises:
            ScoringError: There is no such rule, or they contradict one another.
        """
        if not self.rerank:
            return None
        try:
            return Rules(k=k, **self.rerank)
        except TypeError as error:
            raise ScoringError(
                f"rerank {dict(self.rerank)} of the cascade from '{self.retrieve}' has other names or types than the "
                f"rules of rerank ({error})"
            ) from error

    @property
    def reason(self) -> str:
        """Description of the stages, for the reasons of rows."""
        ranked = f", ranked by {self.rank}" if self.rank is not None else ""
        return f"candidates of {self.retrieve}{ranked}{', re-ranked' if self.rerank else ''}"


@dataclass(frozen=True)
class Router:
    """Rules that choose the model of each row; the first route that takes a row counts.

    Attributes:
        routes: The last one has no column, so that every row has a model.
        blends: Weights by model, by name of the blend: its numbers are the weighted sums of the models' numbers, and
            its ranked lists are fused (:mod:`recommending.routing.blend`).
        fallback: Models that answer, the first that can, for rows that the chosen model cannot score.
        as_of: Column with the date or moment at which ages count; None is the time of the call.
        time_zone: Zone whose calendar days count for ages, and in which moments without a zone are given.
        blend_depth: Candidates that :func:`recommending.recommend` takes from each model for a blend, at least.
        fusion: Basis of a blend of retrieval models: ``places`` of the candidates in their lists, or ``scores``,
            scaled within each list; or one search among all candidates by the weighted sum of ``cosine`` or ``dot``
            products of the models' vectors.
        cascades: Cascades by name.
    """

    routes: tuple[Route, ...]
    blends: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    fallback: tuple[str, ...] = ()
    as_of: str | None = None
    time_zone: str = "UTC"
    blend_depth: int = 200
    fusion: Fusion = "places"
    cascades: Mapping[str, Cascade] = field(default_factory=dict)

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
        if self.fusion not in get_args(Fusion):
            raise ScoringError(f"fusion '{self.fusion}' is none of {get_args(Fusion)}")
        if both := sorted({*self.blends} & {*self.cascades}):
            raise ScoringError(f"{both} are blends and cascades; give each a name of its own")
        of_cascades = [stage for one in self.cascades.values() for stage in (one.retrieve, one.rank)]
        if nested := [name for name in of_cascades if name in self.cascades]:
            raise ScoringError(f"the cascades {nested} are stages of others; name models, or a blend to retrieve by")
        if both := sorted({*self.answering} & {*self.ranking}):
            raise ScoringError(f"{both} rank the candidates of a cascade, and cannot find or list any; name others")

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models, each once: those that answer, then those that rank."""
        return (*self.answering, *self.ranking)

    @property
    def answering(self) -> tuple[str, ...]:
        """The names of the models that answer for rows or find candidates, each once."""
        return tuple(dict.fromkeys(part for name in self._answers for part in self.weights(name)))

    @property
    def listing(self) -> tuple[str, ...]:
        """The names of the models whose own lists are asked for, each once; others only give their vectors."""
        names = [name for name in self._answers if not self.is_vector_blend(name)]
        return tuple(dict.fromkeys(part for name in names for part in self.weights(name)))

    @property
    def _answers(self) -> list[str]:
        return [route.model for route in self.routes] + [*self.fallback, *self.blends, *self.cascades]

    @property
    def ranking(self) -> tuple[str, ...]:
        """The names of the models that rank the candidates of cascades, each once."""
        return tuple(dict.fromkeys(one.rank for one in self.cascades.values() if one.rank is not None))

    def found_by(self, name: str) -> str:
        """Return the model or blend that finds the candidates of a cascade; others answer by themselves."""
        return self.cascades[name].retrieve if name in self.cascades else name

    def weights(self, name: str) -> Mapping[str, float]:
        """Return the weights of the models that answer, or find a cascade's candidates, by that name."""
        first = self.found_by(name)
        return self.blends.get(first, {first: 1.0})

    def is_vector_blend(self, name: str) -> bool:
        """Return whether one search with the vectors of several models answers by that name, or finds for it."""
        return self.fusion in get_args(VectorFusion) and self.found_by(name) in self.blends

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
        return cls.of(load_yaml(read_text(Path(path))), path)

    @classmethod
    def of(cls, document: Any, origin: str | Path) -> "Router":
        """Return the router that a document describes; messages name ``origin``."""
        try:
            routes = tuple(Route(**route | {"values": tuple(route.get("values", ()))}) for route in document["routes"])
            cascades = {name: Cascade(**stages) for name, stages in document.get("cascades", {}).items()}
            fallback = tuple(document.get("fallback", ()))
            return cls(**document | {"routes": routes, "fallback": fallback, "cascades": cascades})
        except (TypeError, KeyError, AttributeError) as error:
            raise ScoringError(
                f"{origin} describes no router ({error}); give the fields of Router and Route"
            ) from error

    def save(self, path: Path) -> None:
        """Write the router as JSON, which :meth:`from_yaml` reads as well."""
        path.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")
