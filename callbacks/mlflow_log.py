"""Epoch metrics of a ``fit`` in one MLflow run, logged by the chief."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tf_keras

from callbacks.metric_buffer import MetricBuffer
from callbacks.roles import current_role


class MLflowLogger(tf_keras.callbacks.Callback):
    """Logs each epoch's metrics, floats and tensors, with the number of completed epochs as the step.

    Only the chief logs. The network's work is done in the background: a server that is slow or away neither stops nor
    slows the training, and what cannot be sent by the end lies in a file (see `callbacks.metric_buffer`).

    Args:
        run_id: The run to go on with; by default the active run, else one is started, and ended with the training.
        tracking_uri: Server or store; MLflow's current one by default.
        experiment: Experiment of a run that is started here.
        spill_path: File for metrics that could not be sent; see `MetricBuffer`.
        close_timeout_seconds: Longest wait for the server when training ends.
        buffer: A buffer to log through instead; it is flushed and not closed. Not together with the others.
    """

    def __init__(
        self,
        run_id: str | None = None,
        tracking_uri: str | None = None,
        *,
        experiment: str = "Default",
        spill_path: str | Path | None = None,
        close_timeout_seconds: float = 30.0,
        buffer: MetricBuffer | None = None,
    ) -> None:
        """Keep the arguments."""
        super().__init__()
        self._run_id = run_id
        self._tracking_uri = tracking_uri
        self._experiment = experiment
        self._spill_path = spill_path
        self._close_timeout_seconds = close_timeout_seconds
        self._given_buffer = buffer
        self._buffer: MetricBuffer | None = None

    @property
    def run_id(self) -> str | None:
        """The run that is logged to; None before training and on ranks that are not the chief."""
        return self._run_id if self._buffer is None else self._buffer.run_id

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Open the buffer, on the chief."""
        if not current_role(self.model.distribute_strategy).is_chief:
            return
        if self._given_buffer is not None:
            self._buffer = self._given_buffer
            return
        import mlflow

        active = mlflow.active_run()
        self._buffer = MetricBuffer(
            self._tracking_uri or mlflow.get_tracking_uri(),
            self._run_id or (active.info.run_id if active is not None else None),
            experiment=self._experiment,
            spill_path=self._spill_path,
        )

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Hand the epoch's metrics over."""
        if self._buffer is not None:
            self._buffer.log(logs or {}, step=epoch + 1)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Send what is left."""
        if self._buffer is None:
            return
        if self._given_buffer is not None:
            self._buffer.flush(self._close_timeout_seconds)
            return
        self._buffer.close(self._close_timeout_seconds, status="FINISHED")
        # Another fit of the same callback goes on with the same run.
        self._run_id = self._buffer.run_id
