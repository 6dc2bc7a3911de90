"""The inputs of stacked models: numbers, standardised, then the categories of tokens, one each."""

from collections.abc import Iterator
from dataclasses import dataclass

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.transform import imputed_value


@dataclass(frozen=True)
class Input:
    """One input, and how the term of a fleet makes the same of the column's value.

    Attributes:
        offset: Subtracted from the term's value.
        divisor: The rest is divided by it.
        clip: Bounds of the value; None for none.
        log: Whether the clipped value's logarithm is taken.
        category: The category for which the value is 1, and 0 for all others; None for a number.
        missing: The term's value where the column's is missing.
    """

    column: str
    offset: float = 0.0
    divisor: float = 1.0
    clip: tuple[float | None, float | None] = (None, None)
    log: bool = False
    category: str | None = None
    missing: float = 0.0


def inputs_of(fitted: FittedFeatures) -> tuple[Input, ...]:
    """Return the inputs in the order in which a rank puts them side by side."""
    return (*_numbers(fitted), *_categories(fitted))


def _numbers(fitted: FittedFeatures) -> Iterator[Input]:
    for feature in fitted.spec.numeric:
        offset, divisor = fitted.scaling(feature)
        missing = imputed_value(fitted, feature)
        yield Input(feature.name, offset, divisor, feature.clip or (None, None), feature.log, missing=missing)


def _categories(fitted: FittedFeatures) -> Iterator[Input]:
    for feature in fitted.spec.categorical:
        for token in fitted.vocabulary(feature).tokens.to_pylist():
            yield Input(feature.name, category=token)
