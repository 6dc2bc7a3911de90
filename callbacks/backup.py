"""Resuming a training from a committed checkpoint: exact weights, optimizer, callbacks and position."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.checkpoints import (
    checkpoint_store,
    commit,
    fetch,
    fetch_latest,
    metric_states,
    training_state,
)
from mirrorspark.callbacks.collectives import current_role, sum_over_ranks
from mirrorspark.models import keras3
from mirrorspark.storage import StoragePath

logger = logging.getLogger(__name__)


class ResumePoint(NamedTuple):
    """The position from which a training resumes.

    Attributes:
        epoch: Completed epochs: the ``initial_epoch`` of ``fit``.
        step: Optimizer updates done.
        step_in_epoch: Batches of the next epoch that were already used and have to be skipped.
        path: The checkpoint's folder, None for a training that starts afresh.
    """

    epoch: int
    step: int
    step_in_epoch: int
    path: Path | StoragePath | None


def resume_point(directory: checkpoint_store.Location) -> ResumePoint:
    """Return the position from which a training resumes; zeros and None if ``directory`` has no checkpoint."""
    checkpoint = commit.latest_committed(directory)
    if checkpoint is None:
        return ResumePoint(0, 0, 0, None)
    return ResumePoint(checkpoint.epoch, checkpoint.step, checkpoint.step_in_epoch, checkpoint.path)


_UNREADABLE = (tf.errors.NotFoundError, tf.errors.DataLossError)


def restore(
    model: tf_keras.Model,
    optimizer: Any,
    checkpoint: commit.CommittedCheckpoint,
    stateful: Mapping[str, training_state.Stateful] | None = None,
) -> None:
    """Restore model, optimizer and callbacks from ``checkpoint``; every variable on both sides has to match.

    Args:
        model: A built model (its variables exist) of the saved architecture.
        optimizer: The model's optimizer; missing slot variables are created.
        checkpoint: The checkpoint; the caller verifies its checksums.
        stateful: Callbacks by the names under which `ChiefCheckpoint` saved them.

    Raises:
        ValueError: Model, optimizer or callbacks do not match the checkpoint.
        CheckpointDamagedError: Its files are missing or unreadable.
    """
    states = checkpoint.states()
    if missing := sorted(set(stateful or {}) - set(states)):
        raise ValueError(f"checkpoint {checkpoint.path} has no state for {missing}; it has {sorted(states)}")
    try:
        # read, not restore: restore also expects the counter of Checkpoint.save, which a plain write does not store.
        status = training_state.tensors(model, optimizer).read(checkpoint.prefix)
        status.assert_existing_objects_matched()
        status.assert_consumed()
    except tf.errors.OpError as error:
        # The checkpoint reader raises plain OpError for a missing file. Other classes may be due to a lost peer.
        if type(error) is not tf.errors.OpError and not isinstance(error, _UNREADABLE):
            raise
        raise commit.CheckpointDamagedError(checkpoint.path, f"TensorFlow cannot read it ({error.message})") from error
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"checkpoint {checkpoint.path} does not fit this model and optimizer: {error}. Build the model before "
            "(call it on one batch) and use the same architecture and optimizer, or start in an empty directory"
        ) from error
    for name, callback in (stateful or {}).items():
        callback.set_state(states[name])


def restore_weights(model: tf_keras.Model, checkpoint: commit.CommittedCheckpoint) -> None:
    """Restore only the model from ``checkpoint``, to predict with it.

    If its optimizer keeps moving averages of the weights (``use_ema``), they become the weights, as at the end of
    ``fit`` of Keras.

    Args:
        model: A built model of the saved architecture; it need not be compiled.
        checkpoint: The checkpoint; the caller verifies its checksums.

    Raises:
        ValueError: The model does not match the checkpoint.
    """
    averages = _averages(model)
    parts = {"averages": averages} if averages else {}
    try:
        status = tf.train.Checkpoint(model=training_state.of_model(model), **parts).read(checkpoint.prefix)
        status.assert_existing_objects_matched()
        status.expect_partial()
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"checkpoint {checkpoint.path} does not fit this model: {error}; use the architecture and settings it was "
            "trained with"
        ) from error
    for weight, average in zip(keras3.tf_variables(model.trainable_variables), averages, strict=bool(averages)):
        weight.assign(average)


def _averages(model: Any) -> list[Any]:
    """Return the moving averages of the weights in the model's optimizer, in the order of the weights."""
    optimizer: Any = getattr(model, "optimizer", None)
    inner: Any = getattr(optimizer, "inner_optimizer", optimizer)
    if not getattr(inner, "use_ema", False):
        return []
    if not getattr(inner, "built", False):
        inner.build(model.trainable_variables)
    return training_state.averages(inner)


class BackupAndRestore(tf_keras.callbacks.Callback):
    """Resumes a training from its newest committed checkpoint when ``fit`` begins; does nothing if there is none.

    ``fit`` then continues at the right epoch and step; ``initial_epoch`` need not be given. After a checkpoint within
    an epoch, the dataset's first epoch has to start at batch ``step_in_epoch``: call `resume_point` before building the
    dataset. The training metrics of such an epoch cover the whole epoch. All ranks restore the step that the chief
    chooses. List this callback first.

    Args:
        directory: Folder of this training's checkpoints, a path or a URI, readable by every rank.
        resume_from: Folder of the checkpoint to use instead of the newest; the same on all ranks.
        stateful: Callbacks to restore, by the names given to `ChiefCheckpoint`.
        local_cache: Local folder for copies of checkpoints on another store; by default this user's own in the system's
            folder for temporary files. A download within ``fit`` counts as its time: for large checkpoints call
            `callbacks.checkpoints.fetch` before the ranks connect, and pass the result's path as ``resume_from``.
        verify: Compare the checksums of ``resume_from``; False if that has just been done. Downloads are always
            compared.
        initial_step_in_epoch: Step of the epoch at which to continue if it differs from the checkpoint's: with another
            batch size the same place in the data is another step.
    """

    def __init__(
        self,
        directory: checkpoint_store.Location,
        *,
        resume_from: checkpoint_store.Location | None = None,
        stateful: Mapping[str, training_state.Stateful] | None = None,
        local_cache: str | Path | None = None,
        verify: bool = True,
        initial_step_in_epoch: int | None = None,
    ) -> None:
        """Keep the arguments; nothing is read yet."""
        super().__init__()
        # Batch logs are unused; without this flag Keras would copy them to the host after every step.
        self._supports_tf_logs = True
        self._directory = checkpoint_store.native(directory)
        self._resume_from = None if resume_from is None else checkpoint_store.native(resume_from)
        self._stateful = dict(stateful or {})
        self._local_cache = local_cache
        self._verify = verify
        self._given_step = initial_step_in_epoch
        self._metrics: metric_states.ResumedMetrics | None = None
        self.resumed_from: commit.CommittedCheckpoint | None = None

    @property
    def initial_epoch(self) -> int:
        """Epochs completed before this ``fit``; known once it has begun."""
        return 0 if self.resumed_from is None else self.resumed_from.epoch

    @property
    def initial_step_in_epoch(self) -> int:
        """Step at which this ``fit`` continues its first epoch; known once ``fit`` has begun."""
        if self.resumed_from is None:
            return 0
        return self.resumed_from.step_in_epoch if self._given_step is None else self._given_step

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Restore the checkpoint, and set Keras to the position where training continues.

        Raises:
            FileNotFoundError: This rank does not see the checkpoint.
            CheckpointDamagedError: The requested checkpoint is damaged.
            ValueError: The checkpoint does not fit the model.
        """
        self._metrics = None
        self.resumed_from = self._choose()
        if self.resumed_from is None:
            return
        restore(self.model, self.model.optimizer, self.resumed_from, self._stateful)
        logger.info("Resumed from %s", self.resumed_from.path)
        initial_epoch, initial_step = self.initial_epoch, self.initial_step_in_epoch
        if any(getattr(callback, "stopped", False) for callback in self._stateful.values()):
            # The previous attempt decided to stop and was lost after its last checkpoint: nothing is left to train.
            initial_epoch, initial_step = self.params["epochs"], 0
        elif initial_step and (content := self.resumed_from.content(metric_states.METRICS)) is not None:
            self._metrics = metric_states.ResumedMetrics(metric_states.MetricState.from_bytes(content))
        if keras3.is_keras3(self.model):
            keras3.continue_at(self.model, initial_epoch, initial_step)
            return
        # Keras' own BackupAndRestore uses this hook to set the position.
        self.model._training_state = _Position(self.model, initial_epoch, initial_step)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Restore the metrics of a resumed epoch, which Keras has just reset."""
        if self._metrics is not None:
            self._metrics.epoch_begins(self.model)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Let another ``fit`` of a Keras 3 model begin at its own epoch."""
        if keras3.is_keras3(self.model):
            keras3.continue_at(self.model, 0, 0)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Restore metrics that Keras built in this step."""
        if self._metrics is not None:
            self._metrics.step_done(self.model)
            self._metrics = None

    def _choose(self) -> commit.CommittedCheckpoint | None:
        """Return the checkpoint to restore, on the local disk."""
        if self._resume_from is not None:
            checkpoint = commit.read_committed(self._resume_from)
            is_remote = not isinstance(checkpoint.path, Path)
            if self._verify and not is_remote and (damage := checkpoint.damage()) is not None:
                raise commit.CheckpointDamagedError(checkpoint.path, damage)
            return fetch(checkpoint, self._local_cache)
        strategy = self.model.distribute_strategy
        role = current_role(strategy)
        newest = fetch_latest(self._directory, self._local_cache) if role.is_chief else None
        # Ranks may see different states of a shared store, so the chief's view decides. 0 means "none".
        step = int(sum_over_ranks(strategy, 0 if newest is None else newest.step + 1)) - 1
        if step < 0 or role.is_chief:
            return newest
        try:
            return fetch(commit.checkpoint_of_step(self._directory, step), self._local_cache)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"rank {role.rank} does not see the checkpoint of step {step} in {self._directory} that the chief "
                "resumes from; put checkpoints on storage that every worker reads"
            ) from error


class _Position:
    """Gives Keras the initial counters at the start of ``fit``, then removes itself from the model."""

    def __init__(self, model: tf_keras.Model, epoch: int, step: int) -> None:
        self._model = model
        self._counters = epoch, step

    def maybe_load_initial_counters_from_ckpt(
        self, steps_per_epoch: int | None, initial_epoch: int, mode: Any
    ) -> tuple[int, int]:
        self._model._training_state = None
        return self._counters
