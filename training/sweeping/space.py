"""The search space of a sweep: the values of each knob, and the configurations that they make. Pure."""

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from models import catalog
from models.settings import ModelSettingsError
from training.config import ConfigError, RunConfig

# Knobs that begin so are settings of the model; the last one says which model it is.
MODEL = "model."
ARCHITECTURE = "model.name"
_MOST_GRID_POINTS = 100_000


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Attributes:
        low: The smallest.
        high: The largest.
        is_log: Whether small and large orders of magnitude are equally likely.
        is_whole: Whether only whole numbers are meant.
        step: Distance of the numbers from each other, from ``low`` on; None for any.
    """

    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False
    step: float | None = None

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to check: what lies between works if these do."""
        return self.low, self.high

    @property
    def grid(self) -> tuple[Any, ...] | None:
        """Every value; None when there are too many to try them all."""
        step = self.step or (1 if self.is_whole else None)
        if step is None or self.is_log:
            return None
        return tuple(_point(self.low, step, position) for position in range(_points(self.low, self.high, step)))

    def __str__(self) -> str:
        """Write it as the command line does."""
        parts = ["log" if self.is_log else "uniform", self.low, self.high, *([self.step] if self.step else [])]
        return ":".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)


@dataclass(frozen=True)
class Choice:
    """One of several values; lists are among them."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to check."""
        return self.values

    @property
    def grid(self) -> tuple[Any, ...]:
        """Every value."""
        return self.values

    @property
    def labels(self) -> dict[Any, Any]:
        """Plain value that a study keeps -> value it stands for; a list is kept as JSON text."""
        return {label_of(value): value for value in self.values}

    def __str__(self) -> str:
        """Write it as the command line does."""
        return "choice:" + ",".join(json.dumps(value) for value in self.values)


Domain = Range | Choice


def last_point(low: float, high: float, step: float) -> float:
    """Return the largest number up to ``high`` that is whole steps away from ``low``."""
    return _point(low, step, _points(low, high, step) - 1)


def _points(low: float, high: float, step: float) -> int:
    return math.floor((high - low) / step + 1e-9) + 1


def _point(low: float, step: float, position: int) -> float:
    # 0.1 + 0.2 would be another number than 0.3.
    return round(low + position * step, 12)


def label_of(value: Any) -> Any:
    """Return what a study keeps of a value."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


@dataclass(frozen=True)
class SearchSpace:
    """Which knobs are searched, and among what: dotted name of the knob -> its domain."""

    domains: Mapping[str, Domain]

    def to_dict(self) -> dict[str, str]:
        """Return the space as the command line writes it."""
        return {knob: str(domain) for knob, domain in self.domains.items()}

    def values(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the knobs, from what a study keeps of them."""
        found = {}
        for knob, domain in self.domains.items():
            found[knob] = domain.labels[kept[knob]] if isinstance(domain, Choice) else kept[knob]
        return found

    def configure(self, base: RunConfig, values: Mapping[str, Any]) -> RunConfig:
        """Return the configuration with the knobs set so.

        A setting that is searched for the sake of another architecture is left out of a model that does not have it.

        Raises:
            ValueError: The configuration refuses.
        """
        knobs = {knob: value for knob, value in values.items() if not knob.startswith(MODEL)}
        options = {knob.removeprefix(MODEL): value for knob, value in values.items() if knob.startswith(MODEL)}
        if not options:
            return replace(base, **knobs)
        model = {**base.model, **options}
        if ARCHITECTURE in values:
            known = settings_of(model["name"])
            model = {name: value for name, value in model.items() if name in known or name not in options}
            model = {"name": values[ARCHITECTURE], **model}
        return replace(base, **knobs, model=model)

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination of values.

        Raises:
            ConfigError: A range has no end of values, or there are too many combinations.
        """
        endless = [knob for knob, domain in self.domains.items() if domain.grid is None]
        if endless:
            raise ConfigError(
                f"sampler grid cannot try every value of {endless}; give a step, as in uniform:0:0.5:0.1, or a choice"
            )
        axes = [domain.grid or () for domain in self.domains.values()]
        count = math.prod(map(len, axes))
        if count > _MOST_GRID_POINTS:
            raise ConfigError(
                f"the grid has {count:,} points; use fewer values (at most {_MOST_GRID_POINTS:,}) or another sampler"
            )
        return [dict(zip(self.domains, point, strict=True)) for point in itertools.product(*axes)]


def settings_of(architecture: str) -> dict[str, Any]:
    """Return the settings of an architecture with their types.

    Raises:
        ConfigError: There is no such architecture.
    """
    try:
        return get_type_hints(catalog.architecture(architecture).Settings)
    except ModelSettingsError as error:
        raise ConfigError(f"search {ARCHITECTURE}: {error}") from error


def in_words(values: Mapping[str, Any]) -> str:
    """Return searched values as text: ``learning_rate=0.0031, model.hidden_units=[64]``."""
    return ", ".join(f"{knob}={value_in_words(value)}" for knob, value in values.items())


def value_in_words(value: Any) -> str:
    """Return the value of a knob as text, short."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
