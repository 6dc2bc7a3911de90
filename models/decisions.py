"""Decisions by the cost of mistakes: a threshold of a binary model, or the class of least expected cost.

They are an output of the exported model, and a file in its folder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mirrorspark.models.wrapped_architecture import WrappedArchitecture

if TYPE_CHECKING:  # the driver reads decisions without loading TensorFlow
    import tensorflow as tf

DECISION = "decision"
"""Name of the output: 0 or 1, or the name of the class."""

_FILE = "decision.json"
# No probability reaches it.
_NEVER = 2.0

Costs = Sequence[Sequence[float]]
"""Cost of each decision: of each actual class, that of each class decided for, ``[classes, classes]``."""


@dataclass(frozen=True)
class Decisions:
    """A rule that makes decisions of a classifier's probabilities.

    Attributes:
        costs: Cost of each decision.
        threshold: Score of a binary model from which the decision is 1; None for several classes.
        names: Names of several classes.
    """

    costs: tuple[tuple[float, ...], ...]
    threshold: float | None = None
    names: tuple[str, ...] = ()

    def applied(self, scores: NDArray[Any]) -> NDArray[np.int64]:
        """Return the class that is decided for, ``[rows]``, by scores ``[rows]`` or ``[rows, classes]``."""
        if self.threshold is not None:
            return (scores >= np.float32(self.threshold)).astype(np.int64)
        return np.asarray((scores.astype(np.float64) @ np.array(self.costs)).argmin(axis=1))

    def in_graph(self, outputs: "Mapping[str, tf.Tensor]") -> "tf.Tensor":
        """Return the output by operations of TensorFlow: int32 of a binary model, else the name of the class."""
        import tensorflow as tf

        if self.threshold is not None:
            return tf.cast(outputs["score"] >= tf.constant(self.threshold, outputs["score"].dtype), tf.int32)
        expected = tf.linalg.matmul(tf.cast(outputs["scores"], tf.float64), tf.constant(self.costs, tf.float64))
        return tf.gather(tf.constant(self.names), tf.argmin(expected, axis=1))

    @property
    def output_type(self) -> str:
        """Spark type of the output."""
        return "string" if self.threshold is None else "int"

    def mean_costs(self, label: NDArray[Any], scores: NDArray[Any], weight: NDArray[np.float64]) -> dict[str, float]:
        """Return the mean cost of the decisions for some rows, and of simpler ones: metrics by name.

        Those are, of a binary model, decisions at 0.5, always 1 and never 1; of several classes, for the likeliest one,
        and for the one that is cheapest for all rows alike.
        """
        costs, actual = np.array(self.costs), label.astype(np.int64)

        def mean(decided: Any) -> float:
            return float(np.average(costs[actual, decided], weights=weight))

        alike = [mean(number) for number in range(len(costs))]
        found = {"cost": mean(self.applied(scores))}
        if self.threshold is None:
            return found | {"cost_likeliest": mean(scores.argmax(axis=1)), "cost_alike": min(alike)}
        return found | {
            "cost_at_half": mean((scores >= 0.5).astype(np.int64)),
            "cost_always": alike[1],
            "cost_never": alike[0],
        }

    def in_words(self, metrics: Mapping[str, float]) -> str:
        """Return the rule and its cost, of the metrics on the test rows, as a line of the report."""
        costs = {name: f"{metrics[name]:.4g}" for name in metrics if name.startswith("cost")}
        if self.threshold is None:
            return (
                f"the class of least expected cost; mean cost of the test rows {costs['cost']} (the likeliest class "
                f"{costs['cost_likeliest']}, the cheapest class for all {costs['cost_alike']})"
            )
        rule = {0.0: "always 1", _NEVER: "never 1"}.get(self.threshold, f"1 from a score of {self.threshold:.4g} on")
        return (
            f"{rule}, of least mean cost on the validation rows; mean cost of the test rows {costs['cost']} "
            f"(threshold 0.5: {costs['cost_at_half']}; every row 1: {costs['cost_always']}; every row 0: "
            f"{costs['cost_never']})"
        )

    def save(self, folder: Path) -> None:
        """Write the rule into the folder of its model."""
        (folder / _FILE).write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Decisions | None":
        """Return the rule of the model in ``folder``; None for a model without one."""
        try:
            document = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        costs = tuple(map(tuple, document["costs"]))
        return cls(costs, document["threshold"], tuple(document["names"]))


@dataclass(frozen=True)
class DecidingArchitecture(WrappedArchitecture):
    """An architecture whose outputs have decisions, too."""

    decisions: Decisions

    def predict(self, model: Any, inputs: "Mapping[str, tf.Tensor]") -> "dict[str, tf.Tensor]":
        """Return the architecture's outputs and the decisions."""
        outputs = self.architecture.predict(model, inputs)
        return {**outputs, DECISION: self.decisions.in_graph(outputs)}


def fit_decisions(
    costs: Costs, label: NDArray[Any], scores: NDArray[Any], weight: NDArray[Any], names: Sequence[str] = ()
) -> Decisions:
    """Return the rule for the model of some validation rows.

    Args:
        costs: Cost of each decision.
        label: 0 or 1, or the number of the class, ``[rows]``.
        scores: Probabilities, ``[rows]`` of a binary model or ``[rows, classes]``.
        weight: Weights of the rows.
        names: Names of several classes.
    """
    rule = tuple(tuple(map(float, of)) for of in costs)
    if scores.ndim > 1:
        return Decisions(rule, names=tuple(names))
    return Decisions(rule, _threshold(rule[0][1], rule[1][0], label, scores.astype(np.float32), weight))


def _threshold(
    false_positive: float, false_negative: float, label: NDArray[Any], scores: NDArray[np.float32], weight: NDArray[Any]
) -> float:
    """Return the threshold of least mean cost; of equal ones the nearest to that of probabilities that are rates."""
    of_rates = false_positive / (false_positive + false_negative)
    points, at = np.unique(scores, return_inverse=True)
    of_points = [np.bincount(at, weight * (label == kind), len(points)) for kind in (0, 1)]
    # The cost of the thresholds before each point, and after the last one.
    wrong_yes = np.append(np.cumsum(of_points[0][::-1])[::-1], 0.0)
    wrong_no = np.append(0.0, np.cumsum(of_points[1]))
    costs = false_positive * wrong_yes + false_negative * wrong_no
    middles = ((points[:-1].astype(np.float64) + points[1:]) / 2).astype(np.float32)
    # Between two neighbours among float32 numbers there is none: the higher one is the threshold.
    middles = np.where(middles <= points[:-1], points[1:], middles)
    thresholds = np.concatenate([[0.0], middles, [_NEVER]])
    least = np.flatnonzero(costs <= costs.min() * (1 + 1e-12))
    return float(thresholds[least[np.abs(thresholds[least] - of_rates).argmin()]])
