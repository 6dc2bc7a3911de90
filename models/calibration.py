"""Calibration of a classifier: a map of its log-odds, fitted on rows that its weights were not fitted to.

Both kinds of a :class:`Calibration` are strictly increasing, so rows keep their order; of several classes the likeliest
stays the same. The third kind, of :mod:`models.centroids`, reads more of a row than its log-odds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mirrorspark.clear_error import ClearError
from mirrorspark.models.wrapped_architecture import WrappedArchitecture, saved_parts

if TYPE_CHECKING:  # the driver reads a calibration without loading TensorFlow
    import tensorflow as tf

CalibrationKind = Literal["none", "temperature", "isotonic", "centroids"]

# A calibration's file in the folder of its model.
CALIBRATION_FILE = "calibration.json"

# The steepest and the flattest that a map may be, 10 and 1 / 10. Rounding changes a logit by some 1e-7 from batch to
# batch; a map multiplies that, and parity allows the probabilities to differ by 1e-5.
_STEEPEST = 10.0
# Below it a float32 probability may be 0, and at the other end it is 1.
_LEAST_PROBABILITY = 1e-7

Floats = NDArray[np.float64]


class CalibrationError(ClearError, ValueError):
    """The rows do not say how to calibrate a model."""


@dataclass(frozen=True)
class Calibration:
    """A map of log-odds, or of the logits of several classes.

    Attributes:
        kind: ``temperature`` or ``isotonic``.
        temperature: The divisor of the logits.
        knots: Log-odds of the model, ascending, and their new values: linear in between, and shifted like the nearest
            knot outside.
    """

    kind: str
    temperature: float = 1.0
    knots: tuple[tuple[float, float], ...] = ()

    def applied(self, logits: Floats) -> Floats:
        """Return the calibrated logits, of any shape."""
        if self.kind == "temperature":
            return logits / self.temperature
        known, slopes, offsets = self._lines
        line = np.searchsorted(known, logits, side="right")
        return slopes[line] * logits + offsets[line]

    def in_graph(self, logits: "tf.Tensor") -> "tf.Tensor":
        """Return the result of :meth:`applied`, float64, by operations of TensorFlow."""
        import tensorflow as tf

        logits = tf.cast(logits, tf.float64)
        if self.kind == "temperature":
            return logits / self.temperature
        known, slopes, offsets = map(tf.constant, self._lines)
        line = tf.reshape(tf.searchsorted(known, tf.reshape(logits, [-1]), side="right"), tf.shape(logits))
        return tf.gather(slopes, line) * logits + tf.gather(offsets, line)

    @property
    def _lines(self) -> tuple[Floats, Floats, Floats]:
        """The knots' log-odds, and slope and offset of the line before the first one, and after each."""
        known, wanted = np.array(self.knots).T
        slopes = np.concatenate([[1.0], np.diff(wanted) / np.diff(known), [1.0]])
        begins = np.maximum(np.arange(len(slopes)) - 1, 0)
        return known, slopes, wanted[begins] - slopes * known[begins]

    def save(self, folder: Path, measured: Mapping[str, Any]) -> None:
        """Write the calibration and its metrics ``measured`` into the folder of its model."""
        document = {"kind": self.kind, "temperature": self.temperature, "knots": self.knots, "measured": measured}
        save_calibration(folder, document)


@dataclass(frozen=True)
class CalibratedArchitecture(WrappedArchitecture):
    """An architecture whose predictions are calibrated; it has ``logits`` and ``probabilities``."""

    calibration: Calibration

    def predict(self, model: Any, inputs: "Mapping[str, tf.Tensor]") -> "dict[str, tf.Tensor]":
        """Return the calibrated probabilities in the architecture's outputs, float32."""
        import tensorflow as tf

        calibrated = self.calibration.in_graph(self.architecture.logits(model, inputs))
        return {
            name: tf.cast(values, tf.float32) for name, values in self.architecture.probabilities(calibrated).items()
        }


@dataclass(frozen=True)
class ProbabilisticArchitecture(WrappedArchitecture):
    """An architecture that gives probabilities alone, with their logits: a blend, gradient boosting, a linear model.

    Attributes:
        architecture: A network's with the same outputs, ``logits`` and ``probabilities``.
        registered: Its ``predict`` returns the probabilities.
    """

    registered: Any

    def saved_parts(self, model: Any) -> list[Any]:
        """Return those of the registered architecture."""
        return saved_parts(self.registered, model)

    def predict(self, model: Any, inputs: "Mapping[str, tf.Tensor]") -> "dict[str, tf.Tensor]":
        """Return the outputs of the registered architecture."""
        found: dict[str, tf.Tensor] = self.registered.predict(model, inputs)
        return found

    def logits(self, model: Any, inputs: "Mapping[str, tf.Tensor]") -> "tf.Tensor":
        """Return log-odds ``[batch, 1]`` or ``[batch, labels]``, or logits ``[batch, classes]``, float64."""
        import tensorflow as tf

        found = self.registered.predict(model, inputs)
        scores = tf.cast(found["scores"] if "scores" in found else found["score"][:, tf.newaxis], tf.float64)
        kept = tf.clip_by_value(scores, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        return tf.math.log(kept) - (0.0 if self.TASK == "multi_class" else tf.math.log1p(-kept))

    def probabilities(self, logits: "tf.Tensor") -> "dict[str, tf.Tensor]":
        """Return the network's outputs for logits of that shape."""
        found: dict[str, tf.Tensor] = self.architecture.probabilities(logits)
        return found


def fit(kind: str, logits: Floats, labels: NDArray[Any], weights: Floats) -> Calibration:
    """Return the calibration that fits the rows best.

    Args:
        kind: ``temperature`` or ``isotonic``.
        logits: Log-odds ``[rows]``, or logits ``[rows, classes]``.
        labels: 0 or 1, or the number of the class, ``[rows]``.
        weights: ``[rows]``, from 0.

    Raises:
        CalibrationError: The rows that count have one class only, or there is none.
    """
    counted = counted_rows(labels, weights)
    logits, labels, weights = logits[counted], labels[counted], weights[counted]
    if kind == "temperature":
        return Calibration(kind, temperature=_temperature(logits, labels, weights))
    return Calibration(kind, knots=_knots(logits, labels, weights))


def counted_rows(labels: NDArray[Any], weights: Floats) -> NDArray[np.bool_]:
    """Return a mask of the rows with a weight above 0, bool ``[rows]``.

    Raises:
        CalibrationError: They have one class only, or there is none.
    """
    counted: NDArray[np.bool_] = weights > 0
    if len(np.unique(labels[counted])) < 2:
        raise CalibrationError(
            f"the {counted.sum()} validation rows with a weight above 0 have fewer than two classes, so nothing can be "
            f"calibrated by them; give the validation split rows of all classes, or leave calibration out"
        )
    return counted


def save_calibration(folder: Path, document: Mapping[str, Any]) -> None:
    """Write the calibration's file into the model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CALIBRATION_FILE).write_text(json.dumps(document, indent=2), encoding="utf-8")


def log_loss(logits: Floats, labels: NDArray[Any], weights: Floats) -> float:
    """Return the mean log loss in nats of log-odds ``[rows]`` or logits ``[rows, classes]``."""
    if logits.ndim == 1:
        of_rows = np.logaddexp(0.0, logits) - labels * logits
    else:
        from scipy.special import logsumexp  # type: ignore[import-untyped]

        of_rows = logsumexp(logits, axis=1) - logits[np.arange(len(logits)), labels.astype(np.int64)]
    return float(np.average(of_rows, weights=weights))


def _temperature(logits: Floats, labels: NDArray[Any], weights: Floats) -> float:
    """Return the divisor of least log loss (Guo et al., 2017, "On Calibration of Modern Neural Networks")."""
    # It takes a third of a second, and every worker imports the names above.
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

    # Of rows that are all predicted rightly it would be 0.
    bounds = (-np.log(_STEEPEST), np.log(_STEEPEST))
    found = minimize_scalar(
        lambda power: log_loss(logits / np.exp(power), labels, weights),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def _knots(log_odds: Floats, labels: NDArray[Any], weights: Floats) -> tuple[tuple[float, float], ...]:
    """Return a knot in the middle of each block of rows that isotonic regression pools.

    Steps between the blocks would make ties of all rows of a block, and break a model's parity at their edges. Lines
    between their middles do neither (Oron and Flournoy, 2017, "Centered isotonic regression"). Blocks whose line would
    be too steep are pooled, too.
    """
    from scipy.optimize import isotonic_regression

    points, at = np.unique(log_odds, return_inverse=True)
    weight = np.bincount(at, weights)
    positive = np.bincount(at, weights * labels)
    # Two rows more, a positive at the lowest point and a negative at the highest, keep all rates off 0 and 1.
    row = weights.mean()
    positive[0] += row
    weight[[0, -1]] += row if len(points) > 1 else 2 * row
    found = isotonic_regression(positive / weight, weights=weight)
    starts = found.blocks[:-1]
    centres = np.add.reduceat(points * weight, starts) / found.weights
    return _without_steep_lines(centres, found.x[starts], found.weights)


def _without_steep_lines(centres: Floats, rates: Floats, weights: Floats) -> tuple[tuple[float, float], ...]:
    """Return the knots of the blocks, those pooled whose line would rise more than ``_STEEPEST`` times as fast."""
    pooled: list[Floats] = []
    for block in np.stack([centres * weights, rates * weights, weights], axis=1):
        pooled.append(block)
        while len(pooled) > 1 and _is_steep(_knot(pooled[-2]), _knot(pooled[-1])):
            last = pooled.pop()
            pooled[-1] = pooled[-1] + last
    return tuple(map(_knot, pooled))


def _knot(block: Floats) -> tuple[float, float]:
    point, rate = block[:2] / block[2]
    return float(point), float(np.log(rate / (1 - rate)))


def _is_steep(left: tuple[float, float], right: tuple[float, float]) -> bool:
    return right[1] - left[1] >= _STEEPEST * (right[0] - left[0])
