"""MLflow logging of a ``fit`` by the chief: metrics of each epoch, and optionally of sampled steps and system usage."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tf_keras

from mirrorspark.callbacks.collectives import at_exit, current_role, scalar_metrics
from mirrorspark.callbacks.mlflow import STEP_PREFIX, MetricBuffer, SystemSampler, metric_requests, tracking_store
from mirrorspark.callbacks.progress import of_all_replicas, optimizer_step


class MLflowLogger(tf_keras.callbacks.Callback):
    """Logs each epoch's metrics, floats and tensors, with the number of completed epochs as the step.

    Only the chief logs. Requests are sent in the background: a slow or unreachable server neither stops nor slows the
    training, and metrics that cannot be sent by the end are kept in a file (see `callbacks.mlflow.metric_buffer`).

    Keras does not notify callbacks when a training fails. A run started here is then marked ``FAILED`` when the process
    ends, and a later training with the same callback continues it.

    Defaults come from MLflow's functions and environment variables. Its active run and experiment belong to its current
    store, and are ignored for any other ``tracking_uri``.

    Args:
        run_id: The run to continue; by default the active run, else that of ``MLFLOW_RUN_ID``, both of which are left
            open; else a run is started, and ended with the training.
        tracking_uri: Server or store; MLflow's current one by default.
        experiment: Experiment of a run that is started here; by default MLflow's current one (``set_experiment``,
            ``MLFLOW_EXPERIMENT_ID``, ``MLFLOW_EXPERIMENT_NAME``), else ``Default``.
        log_path: File to which every metric is written before it is sent, so that no metric is lost with the process.
            It is removed once MLflow has all of it. By default only metrics that cannot be sent by the end are written.
        close_timeout_seconds: Longest wait for the server when training ends.
        step_seconds: Also log the batch's metrics and ``steps_per_second``, under names that begin with
            ``system/step_`` and over the optimizer's steps, at most one point in this many seconds. Off by default.
        system_seconds: Log CPU and memory of this process at this interval, under the names of MLflow's system
            metrics (``system/worker_0_...``). Off by default.
        buffer: A buffer to log through instead, which is flushed but not closed; excludes the arguments above that say
            where to log.
        clock: Returns seconds; monotonic.
    """

    def __init__(
        self,
        run_id: str | None = None,
        tracking_uri: str | None = None,
        *,
        experiment: str | None = None,
        log_path: str | Path | None = None,
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
        self._log_path = log_path
        self._close_timeout_seconds = close_timeout_seconds
        self._given_buffer = buffer
        self._buffer: MetricBuffer | None = None
        self._is_own_run = False

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None before training and on ranks other than the chief."""
        return self._run_id if self._buffer is None else self._buffer.run_id

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Open the buffer, on the chief."""
        self._end("FAILED", self._close_timeout_seconds)  # the end of an earlier training that failed
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
        settings = _settings() if tracking_store.is_same_store(store, current) else _Settings()
        run_id = self._run_id or settings.run_id
        self._is_own_run = self._is_own_run or run_id is None
        experiment_id = None if self._experiment else settings.experiment_id
        experiment = self._experiment or settings.experiment
        target = metric_requests.Target(run_id, store, experiment, experiment_id=experiment_id)
        self._buffer = MetricBuffer(target, log=self._log_path)
        if self._is_own_run:
            # The run is visible from the beginning on; a continued run no longer counts as ended.
            self._buffer.call(metric_requests.SetStatus("RUNNING"))

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Pass the batch's metrics to the buffer when they are due."""
        if self._buffer is None or self._step_seconds is None:
            return
        now = self._clock()
        if self._sampled is not None and now < self._sampled[0] + self._step_seconds:
            return
        step = optimizer_step(self.model)
        if step is None:
            return
        metrics = {
            f"{STEP_PREFIX}{name}": of_all_replicas(self.model, name, value)
            for name, value in scalar_metrics(logs).items()
        }
        if self._sampled is not None:
            seconds, steps = now - self._sampled[0], step - self._sampled[1]
            metrics[f"{STEP_PREFIX}steps_per_second"] = steps / seconds
        self._sampled = (now, step)
        self._buffer.log(metrics, step)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Pass the epoch's metrics to the buffer."""
        if self._buffer is not None:
            self._buffer.log(logs or {}, step=epoch + 1)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Send the remaining metrics."""
        self._end("FINISHED", self._close_timeout_seconds)

    def _end(self, status: str, timeout_seconds: float) -> None:
        """Send the remaining metrics of the current training, if any, and set the status of a run started here."""
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
                buffer.call(metric_requests.SetStatus(status))
            buffer.close(timeout_seconds)
        # Another fit with the same callback continues the same run.
        self._run_id = buffer.run_id


@dataclass(frozen=True)
class _Settings:
    """MLflow's current run and experiment, within its current store."""

    run_id: str | None = None
    experiment_id: str | None = None
    experiment: str = "Default"


def _settings() -> _Settings:
    import mlflow

    active = mlflow.active_run()
    return _Settings(
        # mlflow.start_run removes the variable from the environment: while it is set, that run has not been started.
        run_id=active.info.run_id if active is not None else os.environ.get("MLFLOW_RUN_ID") or None,
        # mlflow.set_experiment sets this variable, so it takes precedence over the name, which may be the job's.
        experiment_id=os.environ.get("MLFLOW_EXPERIMENT_ID") or None,
        experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME") or _Settings.experiment,
    )
