"""The rules of a re-ranking, checked before any list is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mirrorspark.scoring import ScoringError


@dataclass(frozen=True)
class Rules:
    """Rules of a re-ranked list; the meaning of each is in :func:`recommending.reranking.rerank`."""

    k: int
    category: str | None = None
    at_most: int | Mapping[str, int] | None = None
    at_least: Mapping[str, int] = field(default_factory=dict)
    diversity: float = 0.0
    vector: str | None = None
    calibration: float = 0.0
    history: str | None = None
    boost: str | None = None
    available: str | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ScoringError(f"k {self.k} leaves no candidate; use 1 or more")
        self._check_weights()
        if (self.at_most is not None or self.at_least or self.calibration) and self.category is None:
            raise ScoringError("at_most, at_least and calibration count categories; name their column: category=...")
        self._check_limits()

    def _check_weights(self) -> None:
        for name, weight, needed in (
            ("diversity", self.diversity, {"vector": self.vector}),
            ("calibration", self.calibration, {"history": self.history}),
        ):
            ((column, given),) = needed.items()
            if not 0 <= weight <= 1:
                raise ScoringError(f"{name} {weight} is not a share; use 0 (none) to 1 (it alone decides)")
            if bool(weight) != (given is not None):
                raise ScoringError(f"{name} {weight} and {column} {given!r} belong together; give both or neither")
        if self.diversity + self.calibration > 1:
            raise ScoringError(
                f"diversity {self.diversity} and calibration {self.calibration} are more than 1 together, so that a "
                f"high score would count against a candidate; lower one"
            )

    def _check_limits(self) -> None:
        most = self.at_most if isinstance(self.at_most, Mapping) else {}
        limits = {**most, **self.at_least} if not isinstance(self.at_most, int) else {"any": self.at_most}
        negative = {name: count for name, count in {**limits, **self.at_least}.items() if count < 0}
        if negative:
            raise ScoringError(f"the numbers of candidates {negative} are below 0; use 0 or more")
        if sum(self.at_least.values()) > self.k:
            raise ScoringError(f"at_least asks for {sum(self.at_least.values())} candidates of k {self.k}; raise k")
        crossed = [name for name, count in self.at_least.items() if count > self.most(name)]
        if crossed:
            raise ScoringError(f"at_least is above at_most for the categories {crossed}; change one of the two")

    def most(self, category: str) -> int:
        """Return the largest number of candidates of a category in a list."""
        if isinstance(self.at_most, Mapping):
            return self.at_most.get(category, self.k)
        return self.k if self.at_most is None else self.at_most

    def item_columns(self, key: str) -> Sequence[str]:
        """Return the columns of the items that the rules read."""
        wanted = (key, self.category, self.vector, self.boost, self.available)
        return [name for name in dict.fromkeys(wanted) if name is not None]
