"""A weighted mean of the predictions of several models, exported and scored as one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from mirrorspark.models import wrapped_architecture


@dataclass(frozen=True)
class Part:
    """A model of a blend.

    Attributes:
        architecture: The module or object whose ``predict`` is the model's.
        model: The model.
        weight: Its share of the mean.
    """

    architecture: Any
    model: Any
    weight: float


@dataclass(frozen=True)
class Blend:
    """Models of the same features and label, a network and gradient boosting for example; their weights sum to 1."""

    parts: tuple[Part, ...]


def saved_parts(model: Blend) -> list[Any]:
    """Return the objects whose variables, tables and files the predictions of all parts read."""
    return [one for part in model.parts for one in wrapped_architecture.saved_parts(part.architecture, part.model)]


def predict(model: Blend, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Return ``score``, float32 ``[batch]``; of several classes ``scores``, ``[batch, classes]``."""
    found = [(part.weight, part.architecture.predict(part.model, inputs)) for part in model.parts]
    # A network may have outputs that the others lack, such as those of quantiles.
    names = set.intersection(*(set(outputs) for _, outputs in found))
    return {name: tf.add_n([weight * outputs[name] for weight, outputs in found]) for name in sorted(names)}
