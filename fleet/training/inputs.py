"""The inputs of stacked models: standardised numbers, then an input for each category."""

from collections.abc import Iterator
from dataclasses import dataclass

from mirrorspark.data_pipelines.features import FittedFeatures, imputed_value


@dataclass(frozen=True)
class Input:
    """One input: ``(value - offset) / divisor``, where ``value`` is that of the term of a fleet with the other fields.

    Attributes:
        clip_low: Lowest number; None for no bound, as in ``clip_high``.
        log: True for the logarithm of the clipped number, as :class:`data_pipelines.features.kinds.Numeric` takes it.
        category: The value is 1 for this category, else 0; None for a number.
        missing: The value where the column's is missing.
    """

    column: str
    offset: float = 0.0
    divisor: float = 1.0
    clip_low: float | None = None
    clip_high: float | None = None
    log: bool | None = None
    category: str | None = None
    missing: float = 0.0


def inputs_of(fitted: FittedFeatures) -> tuple[Input, ...]:
    """Return the inputs in the order of :func:`fleet.training.worker.assembled`."""
    return (*_numbers(fitted), *_categories(fitted))


def _numbers(fitted: FittedFeatures) -> Iterator[Input]:
    for feature in fitted.spec.numeric:
        offset, divisor = fitted.scaling(feature)
        low, high = feature.clip or (None, None)
        missing = imputed_value(fitted, feature)
        yield Input(feature.name, offset, divisor, low, high, feature.log or None, missing=missing)


def _categories(fitted: FittedFeatures) -> Iterator[Input]:
    for feature in fitted.spec.categorical:
        for token in fitted.vocabulary(feature).tokens.to_pylist():
            yield Input(feature.name, category=token)
