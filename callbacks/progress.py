"""Progress of a training as events: dictionaries of JSON values, passed to the caller's function."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import tf_keras

from mirrorspark.callbacks.collectives import as_float, scalar_metrics
from mirrorspark.callbacks.throughput import RateMeter
from mirrorspark.models import keras3


def optimizer_step(model: tf_keras.Model) -> int | None:
    """Return the exact number of optimizer steps done, or None for a model compiled without an optimizer."""
    iterations = getattr(getattr(model, "optimizer", None), "iterations", None)
    value = None if iterations is None else as_float(iterations)
    return None if value is None else int(value)


def replicas_in_batch_logs(model: tf_keras.Model) -> int:
    """Return the number of replicas over which a batch's logs are summed.

    Keras sums them over the replicas (reduce_per_replica), although each is already a mean; only at an epoch's end are
    logs read from the metrics again. Under a strategy with ``sums_batch_logs = False`` they are the means of the rank's
    own replica.
    """
    strategy = model.distribute_strategy
    return int(strategy.num_replicas_in_sync) if getattr(strategy, "sums_batch_logs", True) else 1


def of_all_replicas(model: tf_keras.Model, name: str, value: float) -> float:
    """Return a value of a batch's logs for the whole batch: a metric's is a mean, any other one is a sum.

    Where logs are those of the rank's own replica, its share of a sum stands for the others', without a collective.
    Those of Keras 3 are the means of the rank's own rows.
    """
    if keras3.is_keras3(model):
        return value
    summed = replicas_in_batch_logs(model)
    if any(metric.name == name for metric in model.metrics):
        return value / summed
    return value * int(model.distribute_strategy.num_replicas_in_sync) / summed


class EventCallback(tf_keras.callbacks.Callback):
    """Sends events while ``fit`` runs. The key ``event`` is an event's kind; counts of epochs and steps are 1-based.

    - ``train_begin``: ``epochs``, ``steps`` (per epoch; None when not known yet), ``global_batch_size``,
      ``parameter_bytes`` (of the trainable weights; None for a model that is not built yet)
    - ``progress``: ``step`` (of the optimizer, exact), ``epoch`` (current), ``step_in_epoch``, ``steps``,
      ``examples_per_second`` (all replicas together), ``loss`` (the epoch's mean so far, or None)
    - ``validation``: ``epoch`` (current), ``step``; once with step 0 when a validation begins, then like progress
    - ``epoch_end``: ``step`` (of the optimizer), ``epoch`` (completed), ``logs`` (floats), ``seconds`` (with
      validation), ``examples_per_second``
    - ``train_end``: ``epochs`` (completed)

    ``progress`` and ``validation`` are sent at most once per ``every_seconds``, because reading the loss waits for the
    device. All others are always sent. An exception from ``send`` ends the training.

    Args:
        send: Called with each event.
        global_batch_size: Examples that one step uses over all replicas.
        every_seconds: Shortest time between two progress events.
        clock: Returns seconds; monotonic.
    """

    def __init__(
        self,
        send: Callable[[dict[str, Any]], None],
        *,
        global_batch_size: int,
        every_seconds: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the arguments."""
        super().__init__()
        # Logs stay on the device until an event is due.
        self._supports_tf_logs = True
        self._send = send
        self._global_batch_size = global_batch_size
        self._every_seconds = every_seconds
        self._clock = clock
        self._completed = 0
        self._epoch_ends: list[dict[str, Any]] = []
        self._restored = False

    def get_state(self) -> dict[str, Any]:
        """Return every ``epoch_end`` so far, with its Unix ``time`` in seconds.

        From a checkpoint they complete the curve after a listener was killed, and the time keeps its points in order.
        """
        return {"epoch": self._completed, "told": list(self._epoch_ends)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state; the next ``on_train_begin`` keeps it, later ones start afresh."""
        self._completed = int(state["epoch"])
        self._epoch_ends = list(state["told"])
        self._restored = True

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Send ``train_begin``."""
        if not self._restored:
            self._completed, self._epoch_ends = 0, []
        self._restored = False
        self._meter = RateMeter(self._global_batch_size)
        self._due = self._clock()
        self._epoch: int | None = None
        self._send(
            {
                "event": "train_begin",
                "epochs": self.params["epochs"],
                "steps": self.params.get("steps"),
                "global_batch_size": self._global_batch_size,
                "parameter_bytes": _parameter_bytes(self.model),
            }
        )

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the time."""
        self._epoch = epoch
        self._begin = self._clock()
        self._meter.begin_epoch(self._begin)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Take the starting step of a resumed epoch from its first batch."""
        self._meter.before_step(batch)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Send ``progress`` when it is due."""
        now = self._clock()
        self._meter.step_done(now, batch + 1)
        if now < self._due:
            return
        self._due = now + self._every_seconds
        self._send(
            {
                "event": "progress",
                "step": optimizer_step(self.model),
                "epoch": self._under_way(),
                "step_in_epoch": batch + 1,
                "steps": self.params.get("steps"),
                "examples_per_second": self._meter.examples_per_second(),
                "loss": self._loss(logs),
            }
        )

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Send the first ``validation`` of an epoch."""
        self._send_validation(0)

    def on_test_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Send ``validation`` when it is due."""
        now = self._clock()
        if now >= self._due:
            self._due = now + self._every_seconds
            self._send_validation(batch + 1)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Send ``epoch_end``."""
        self._completed = epoch + 1
        event = {
            "event": "epoch_end",
            "step": optimizer_step(self.model),
            "epoch": epoch + 1,
            "logs": scalar_metrics(logs),
            "seconds": self._clock() - self._begin,
            "examples_per_second": self._meter.examples_per_second(),
        }
        self._epoch_ends.append(event | {"time": time.time()})
        self._send(event)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Send ``train_end``."""
        self._send({"event": "train_end", "epochs": self._completed})

    def _send_validation(self, step: int) -> None:
        self._send({"event": "validation", "epoch": self._under_way(), "step": step})

    def _loss(self, logs: Mapping[str, Any] | None) -> float | None:
        if not logs or "loss" not in logs:
            return None
        loss = as_float(logs["loss"])
        return None if loss is None else of_all_replicas(self.model, "loss", loss)

    def _under_way(self) -> int:
        return 0 if self._epoch is None else self._epoch + 1


def _parameter_bytes(model: tf_keras.Model) -> int | None:
    if not model.built:
        return None
    weights = keras3.tf_variables(model.trainable_weights)
    return sum(int(weight.shape.num_elements()) * weight.dtype.size for weight in weights)
