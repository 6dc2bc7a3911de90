"""Metrics of a ``fit`` in one MLflow run, logged by the chief: each epoch's, and on request sampled steps and usage."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tf_keras

from callbacks import at_exit
from callbacks.metric_buffer import MetricBuffer
from callbacks.metric_values import scalar_metrics
from callbacks.mlflow_store import is_same_store
from callbacks.progress import optimizer_step, replicas_in_batch_logs
from callbacks.roles import current_role
from callbacks.run_calls import SetStatus
from callbacks.usage_metrics import STEP_PREFIX, SystemSampler


class MLflowLogger(tf_keras.callbacks.Callback):
    """Logs each epoch's metrics, floats and tensors, with the number of completed epochs as the step.

    Only the chief logs. The network's work is done in the background: a server that is slow or away neither stops nor
    slows the training, and what cannot be sent by the end lies in a file (see `callbacks.metric_buffer`).

    Keras does not tell callbacks of a training that fails. Its run, where it was started here, is ``FAILED`` when the
    process ends; a later training with the same callback goes on in it.

    What is not given is what MLflow is set to, by its functions or its environment variables. Its run and its
    experiment are those of its current store, and count for no other ``tracking_uri``.

    Args:
        run_id: The run to go on with; by default the active run, else that of ``MLFLOW_RUN_ID``, both of which are left
            open; else one is started, and ended with the training.
        tracking_uri: Server or store; MLflow's current one by default.
        experiment: Experiment of a run that is started here; by default MLflow's current one (``set_experiment``,
            ``MLFLOW_EXPERIMENT_ID``, ``MLFLOW_EXPERIMENT_NAME``), else ``Default``.
        spill_path: File for metrics that could not be sent; see `MetricBuffer`.
        close_timeout_seconds: Longest wait for the server when training ends.
        step_seconds: Log the batch's metrics and ``steps_per_second``, too, under names that begin with ``step/`` and
            over the optimizer's steps; at most one point in this many seconds. Not at all by default.
        system_seconds: Log CPU and memory of this process every so many seconds, under the names that MLflow's system
            metrics have (``system/worker_0/...``). Not at all by default.
        buffer: A buffer to log through instead; it is flushed and not closed. Not together with what says where to log.
        clock: Returns seconds; monotonic.
    """

    def __init__(
        self,
        run_id: str | None = None,
        tracking_uri: str | None = None,
        *,
        experiment: str | None = None,
        spill_path: str | Path | None = None,
        close_timeout_seconds: float = 30.0,
        step_seconds: float | None = None,
        system_seconds: float | None = None,
        buffer: MetricBuffer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check and keep the arguments."""
        for name, seconds in (("step_seconds", step_seconds), ("system_seconds", system_seconds)):
            if seconds is not None and seconds <= 0:
                raise ValueError(f"{name} is {seconds}; use seconds above 0, or None to log none")
        super().__init__()
        # Batch logs stay on the device until a point is due.
        self._supports_tf_logs = True
        self._step_seconds = step_seconds
        self._system_seconds = system_seconds
        self._clock = clock
        self._sampler: SystemSampler | None = None
        self._sampled: tuple[float, int] | None = None
        self._run_id = run_id
        self._tracking_uri = tracking_uri
        self._experiment = experiment
        self._spill_path = spill_path
        self._close_timeout_seconds = close_timeout_seconds
        self._given_buffer = buffer
        self._buffer: MetricBuffer | None = None
        self._is_own_run = False

    @property
    def run_id(self) -> str | None:
        """The run that is logged to; None before training and on ranks that are not the chief."""
        return self._run_id if self._buffer is None else self._buffer.run_id

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Open the buffer, on the chief."""
        self._end("FAILED", self._close_timeout_seconds)  # what a training that failed has left
        if not current_role(self.model.distribute_strategy).is_chief:
            return
        self._open_buffer()
        at_exit.register(self._end, "FAILED", at_exit.SERVER_SECONDS)
        self._sampled = None
        if self._system_seconds is not None and self._buffer is not None:
            self._sampler = SystemSampler(0, self._buffer.log, self._system_seconds)

    def _open_buffer(self) -> None:
        if self._given_buffer is not None:
            self._buffer = self._given_buffer
            return
        import mlflow

        current = mlflow.get_tracking_uri()
        store = self._tracking_uri or current
        settings = _settings() if is_same_store(store, current) else _Settings()
        run_id = self._run_id or settings.run_id
        self._is_own_run = self._is_own_run or run_id is None
        self._buffer = MetricBuffer(
            store,
            run_id,
            experiment=self._experiment or settings.experiment,
            experiment_id=None if self._experiment else settings.experiment_id,
            spill_path=self._spill_path,
        )

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Hand the batch's metrics over when they are due."""
        if self._buffer is None or self._step_seconds is None:
            return
        now = self._clock()
        if self._sampled is not None and now < self._sampled[0] + self._step_seconds:
            return
        step = optimizer_step(self.model)
        if step is None:
            return
        replicas = replicas_in_batch_logs(self.model)
        metrics = {f"{STEP_PREFIX}{name}": value / replicas for name, value in scalar_metrics(logs).items()}
        if self._sampled is not None:
            seconds, steps = now - self._sampled[0], step - self._sampled[1]
            metrics[f"{STEP_PREFIX}steps_per_second"] = steps / seconds
        self._sampled = (now, step)
        self._buffer.log(metrics, step)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Hand the epoch's metrics over."""
        if self._buffer is not None:
            self._buffer.log(logs or {}, step=epoch + 1)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Send what is left."""
        self._end("FINISHED", self._close_timeout_seconds)

    def _end(self, status: str, timeout_seconds: float) -> None:
        """Send what is left of the training that is under way, if one is, and give a run of ours its status."""
        at_exit.unregister(self._end)
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
        buffer, self._buffer = self._buffer, None
        if buffer is None:
            return
        if self._given_buffer is not None:
            buffer.flush(timeout_seconds)
        else:
            if self._is_own_run:
                buffer.call(SetStatus(status))
            buffer.close(timeout_seconds)
        # Another fit of the same callback goes on with the same run.
        self._run_id = buffer.run_id


@dataclass(frozen=True)
class _Settings:
    """What MLflow is set to log to, within its current store."""

    run_id: str | None = None
    experiment_id: str | None = None
    experiment: str = "Default"


def _settings() -> _Settings:
    import mlflow

    active = mlflow.active_run()
    return _Settings(
        # mlflow.start_run takes the variable out of the environment: as long as it is there, nobody has begun.
        run_id=active.info.run_id if active is not None else os.environ.get("MLFLOW_RUN_ID") or None,
        # mlflow.set_experiment sets this one, so it goes before the name, which may be the job's.
        experiment_id=os.environ.get("MLFLOW_EXPERIMENT_ID") or None,
        experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME") or _Settings.experiment,
    )
