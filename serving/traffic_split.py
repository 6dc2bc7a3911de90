"""The interface of a traffic split: the requests for one name, divided between models.

Experiments implement it (:mod:`lifecycle.experiments.live.traffic`); the server knows only this.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mirrorspark.serving.servable import Outputs, Servable
from mirrorspark.serving.sources import Source


@dataclass(frozen=True, eq=False)
class Variant:
    """One of the models that the requests for a name are divided between.

    Attributes:
        name: Its name in the experiment, or the shadow's.
        source: Its model.
    """

    name: str
    source: Source


class TrafficSplit(Protocol):
    """The variants and shadows of a name. Used only in the event loop."""

    @property
    def name(self) -> str:
        """Public model name."""

    @property
    def path(self) -> Path:
        """File with the settings."""

    @property
    def unit_header(self) -> str:
        """Header of a request with the unit."""

    @property
    def trusts_callers(self) -> bool:
        """True if only trusted callers can choose a unit."""

    @property
    def control(self) -> Variant:
        """The variant that answers whenever no other one may."""

    @property
    def variants(self) -> Mapping[str, Variant]:
        """The variants by name."""

    @property
    def shadows(self) -> Mapping[str, Variant]:
        """Models that compute every request, too, and answer nobody."""

    @property
    def shares(self) -> Mapping[str, float]:
        """Share of the units by variant."""

    @property
    def sources(self) -> Iterator[Source]:
        """The models of all variants, the control's first."""

    def is_stopped(self, variant: Variant) -> bool:
        """Return whether the variant's current version must not answer; the control always may."""

    def unit_of(self, text: str) -> str:
        """Return the unit that a header has.

        Raises:
            RequestError: Units are signed, and this one is not.
        """

    def variant_of(self, unit: str | None) -> Variant | None:
        """Return the variant of a unit; None means that the control answers and that nothing is logged.

        Raises:
            RequestError: The unit is a text that UTF-8 cannot hold.
        """

    def add(
        self,
        variant: Variant,
        model: Servable,
        seconds: float,
        outputs: Outputs | None,
        *,
        is_trusted: bool = True,
    ) -> None:
        """Take a request that a variant, or a shadow, answered with ``model``; without outputs it has failed."""

    def log_exposure(self, unit: str, variant: Variant, model: Servable) -> bool:
        """Write down that a unit got an answer as a member of a variant, and return whether that was possible."""

    async def watch(self) -> None:
        """Follow the settings and judge the variants, until cancelled."""


@dataclass(frozen=True)
class DeclaredSplit:
    """A traffic split as its file declares it, before any model is loaded.

    Attributes:
        name: Public model name.
        models: URI of the model by variant.
        shadows: URI of the model by shadow.
        begin: Returns the split, from the model of each variant and shadow by name.
    """

    name: str
    models: Mapping[str, str]
    shadows: Mapping[str, str]
    begin: Callable[[Mapping[str, Source]], TrafficSplit]


def scores_of(outputs: Outputs) -> list[float]:
    """Return the score of each row: the first output of numbers, the mean of a list; empty if there is none."""
    for values in outputs.values():
        if all(isinstance(one, float) for one in values):
            return list(values)
        if all(isinstance(one, list) and one and isinstance(one[0], float) for one in values):
            return [sum(one) / len(one) for one in values]
    return []


def differences(outputs: Outputs, others: Outputs) -> Iterable[float]:
    """Yield for each row how far the scores of two models are apart."""
    for one, other in zip(scores_of(outputs), scores_of(others), strict=False):
        yield abs(one - other)
