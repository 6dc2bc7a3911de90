"""Costs of decisions: of both mistakes of a binary label, or by the actual class and the one decided for."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from mirrorspark.training.configuration.classes import Classes, by_class_text
from mirrorspark.training.configuration.fields import ConfigError

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.reading import Dataset

# The costs of a binary label, each with the actual class and the one decided for.
_MISTAKES = {"false_positive": (0, 1), "false_negative": (1, 0)}
_OF_BINARY = "{'false_positive': 1, 'false_negative': 10}"
_OF_CLASSES = "{'actual': {'decided': 10}}, by the names of classes"
# The costs of all pairs of classes are a part of the model, of the report's metrics and of decision.json.
_MOST_CLASSES = 1_000


def with_class_texts(given: Any) -> Any:
    """Return costs as plain numbers with the classes as text; None as it is.

    Raises:
        ConfigError: They are not a mapping, a class is in it twice, or a cost is not a finite number from 0 on.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(
            f"costs is {given!r}; use {_OF_BINARY} for a binary label, and {_OF_CLASSES}, for one of several"
        )
    costs = by_class_text("costs", given)
    for name, of in costs.items():
        if not isinstance(of, Mapping):
            costs[name] = _cost(name, of)
            continue
        by_decision = by_class_text("costs", of)
        costs[name] = {decided: _cost(f"{name}', decided '{decided}", cost) for decided, cost in by_decision.items()}
    return costs


def check_form(given: Mapping[str, Any], task: str, *, with_class_weights: bool) -> None:
    """Check costs against the task of a model.

    Raises:
        ConfigError: They have another form, or go with class weights where only one of the two can.
    """
    if task == "binary":
        if unknown := [name for name, of in given.items() if name not in _MISTAKES or isinstance(of, Mapping)]:
            raise ConfigError(f"costs of a binary label name '{unknown[0]}'; use {_OF_BINARY}")
        if all(given.get(name, 1) == 0 for name in _MISTAKES):
            raise ConfigError("costs are all 0, so any decision would do; raise one of them")
        return
    for actual, of in given.items():
        if not isinstance(of, Mapping):
            raise ConfigError(f"costs of several classes have {of:g} for class '{actual}'; use {_OF_CLASSES}")
    # The threshold of a binary model is fitted by the costs of validation rows, whatever its scores are.
    if with_class_weights:
        raise ConfigError(
            "class_weights and costs of several classes would count twice: decisions need probabilities that are "
            "rates, and class weights change them; leave class_weights out"
        )


def check_costs(given: Any, classes: Classes) -> None:
    """Check costs against the classes of a label, as far as they are known.

    Raises:
        ConfigError: The label does not have a class that is named, or has too many.
    """
    if given is not None and classes.label.kind != "binary":
        _require_few(len(classes.names), classes.label.name)
        _numbers(given, classes)


def cost_matrix(given: Any, dataset: "Dataset") -> tuple[tuple[float, ...], ...]:
    """Return the cost of each decision, of each actual class those of the classes decided for; empty without costs.

    A cost that is left out is 1 of a mistake, and 0 of a right decision.

    Raises:
        ConfigError: The label does not have a class that is named, or has too many; or nothing costs anything.
    """
    if given is None:
        return ()
    is_binary = dataset.spec.label.kind == "binary"
    count = 2 if is_binary else dataset.features.classes
    _require_few(count, dataset.spec.label.name)
    costs = 1.0 - np.eye(count)
    if is_binary:
        for name, cost in given.items():
            costs[_MISTAKES[name]] = cost
    else:
        numbers = _numbers(given, Classes.of_dataset(dataset))
        for actual, of in given.items():
            for decided, cost in of.items():
                costs[numbers[actual], numbers[decided]] = cost
    if not costs.any():
        raise ConfigError("costs are all 0, so any decision would do; raise one of them")
    return tuple(map(tuple, costs.tolist()))


def _numbers(given: Mapping[str, Mapping[str, float]], classes: Classes) -> dict[str, int]:
    return classes.numbers("costs", list(dict.fromkeys([*given, *(name for of in given.values() for name in of)])))


def _require_few(count: int, label: str) -> None:
    if count > _MOST_CLASSES:
        raise ConfigError(
            f"costs are for {_MOST_CLASSES:,} classes at most, and label '{label}' has {count:,}; join rare classes, "
            f"or leave costs out"
        )


def _cost(name: str, cost: Any) -> float:
    if isinstance(cost, bool) or not isinstance(cost, Real) or not 0 <= float(cost) < math.inf:
        raise ConfigError(f"costs have {cost!r} for '{name}'; a cost is a finite number from 0 on")
    return float(cost)
