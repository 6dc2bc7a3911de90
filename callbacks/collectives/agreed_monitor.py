"""A monitored value that is the same on every rank, and the test for its improvement."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import tf_keras

from mirrorspark.callbacks.collectives.agreement import mean_over_ranks
from mirrorspark.callbacks.collectives.metric_values import scalar_metrics


class AgreedMonitor:
    """A value of an epoch's logs, averaged over all ranks so that they base decisions on the same number."""

    def __init__(self, monitor: str, mode: Literal["min", "max"], min_delta: float, complaint: str) -> None:
        """Check and keep the arguments.

        Args:
            monitor: Name of the value in the epoch's logs.
            mode: ``max`` when larger is better, ``min`` when smaller is.
            min_delta: Smallest change that counts as an improvement, at least 0.
            complaint: Start of the error message if the logs lack the value.

        Raises:
            ValueError: ``mode`` or ``min_delta`` is out of range.
        """
        if mode not in ("min", "max"):
            raise ValueError(f"mode is {mode!r}; use 'min' or 'max'")
        if not min_delta >= 0:
            raise ValueError(f"min_delta is {min_delta}; use 0 or more")
        self._monitor = monitor
        self._sign = 1.0 if mode == "max" else -1.0
        self._min_delta = min_delta
        self._complaint = complaint

    def value(self, model: tf_keras.Model, logs: Mapping[str, Any] | None) -> float:
        """Return the value from a collective, which every rank has to call.

        Raises:
            ValueError: The value is not among the logs.
        """
        metrics = scalar_metrics(logs)
        if self._monitor not in metrics:
            raise ValueError(
                f"{self._complaint} {self._monitor!r}, which is not among the logs {sorted(metrics)}; "
                "name one of them, and pass validation data for those that start with val_"
            )
        return mean_over_ranks(model.distribute_strategy, metrics[self._monitor])

    def improves(self, value: float, reference: float | None) -> bool:
        """Return whether ``value`` is better than ``reference``; any number beats None, and NaN never improves."""
        if math.isnan(value):
            return False
        return reference is None or self._sign * (value - reference) > self._min_delta
