"""The inputs of stacked models: standardised numbers, then an input for each category."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mirrorspark.data_pipelines.features import FittedFeatures, imputed_value, kinds

# Its exponential is a finite float64.
_LARGEST_LOG = 709.0


@dataclass(frozen=True)
class StackInput:
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


def inputs_of(fitted: FittedFeatures) -> tuple[StackInput, ...]:
    """Return the inputs in the order of :func:`fleet.training.worker.assembled`."""
    return (*_numbers(fitted), *_categories(fitted))


def _numbers(fitted: FittedFeatures) -> Iterator[StackInput]:
    for feature in fitted.spec.numeric:
        offset, divisor = fitted.scaling(feature)
        low, high = _bounds(fitted, feature)
        missing = imputed_value(fitted, feature)
        yield StackInput(feature.name, offset, divisor, low, high, feature.log or None, missing=missing)


def _bounds(fitted: FittedFeatures, feature: kinds.Numeric) -> tuple[float | None, float | None]:
    """Return the lowest and the highest number, before the logarithm."""
    learnt = fitted.bounds(feature)
    if learnt is None:
        return feature.clip if isinstance(feature.clip, tuple) else (None, None)
    low, high = (math.copysign(math.expm1(min(abs(end), _LARGEST_LOG)), end) if feature.log else end for end in learnt)
    return low, high


def _categories(fitted: FittedFeatures) -> Iterator[StackInput]:
    for feature in fitted.spec.categorical:
        for token in fitted.vocabulary(feature).tokens.to_pylist():
            yield StackInput(feature.name, category=token)
