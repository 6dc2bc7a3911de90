"""Class weights: factors of the training rows' weights by the class of the label."""

import logging
import math
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mirrorspark.training.configuration.classes import Classes, by_class_text
from mirrorspark.training.configuration.fields import ConfigError

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.reading import Dataset

_LOGGER = logging.getLogger(__name__)

BALANCED = "balanced"


def with_class_texts(given: Any) -> Any:
    """Return ``balanced`` or None as they are, and weights by the classes as text.

    Raises:
        ConfigError: It is none of these, or a weight is not a finite number from 0 on.
    """
    if given is None or given == BALANCED:
        return given
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(
            f"class_weights is {given!r}; use '{BALANCED}', or the weights by class, such as {{'no': 1, 'yes': 5}}"
        )
    found = by_class_text("class_weights", given)
    for name, weight in found.items():
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= float(weight) < math.inf:
            raise ConfigError(f"class_weights has {weight!r} for class '{name}'; a weight is a finite number from 0 on")
    return {name: float(weight) for name, weight in found.items()}


def check_class_weights(given: Any, classes: Classes) -> None:
    """Check class weights against the classes of a label, as far as they are known.

    Raises:
        ConfigError: The label does not have a class that is named, or no row would count.
    """
    if isinstance(given, Mapping):
        classes.numbers("class_weights", list(given))
        if len(given) == len(classes.names) and not any(given.values()):
            raise ConfigError(_NOTHING_COUNTS)


def class_factors(given: Any, dataset: "Dataset") -> tuple[float, ...]:
    """Return the factor of each class in the order of their numbers; empty without class weights.

    ``balanced`` is the rows divided by the classes that have some and by the rows of the class, all by weight. A class
    that is not named has the factor 1.

    Raises:
        ConfigError: The label does not have a class that is named, or no training row would count.
    """
    if given is None:
        return ()
    factors = _balanced(dataset) if given == BALANCED else _named(given, dataset)
    # Only zeros can leave nothing, and counting may read every row.
    if not factors.all() and not factors @ dataset.class_counts("train") > 0:
        raise ConfigError(_NOTHING_COUNTS)
    return tuple(factors.tolist())


def _balanced(dataset: "Dataset") -> NDArray[np.float64]:
    counts = dataset.class_counts("train")
    has_rows = counts > 0
    if not has_rows.any():
        raise ConfigError(_NOTHING_COUNTS)
    factors = np.ones(len(counts))
    factors[has_rows] = counts.sum() / (has_rows.sum() * counts[has_rows])
    return factors


def _named(given: Mapping[str, float], dataset: "Dataset") -> NDArray[np.float64]:
    label, classes = dataset.spec.label, Classes.of_dataset(dataset)
    factors = np.ones(2 if label.form == "binary" else dataset.features.classes)
    for name, number in classes.numbers("class_weights", list(given)).items():
        factors[number] = given[name]
    for name in classes.guesses(list(given)):
        _LOGGER.warning(
            "class_weights: class '%s' of label '%s' is taken as not '%s'; if that is meant, write '%s'",
            *(name, label.name, label.positive, label.positive),
        )
    return factors


_NOTHING_COUNTS = "class_weights leave no training row any weight, so nothing would be learnt; raise one of them"
