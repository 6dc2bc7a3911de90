"""The way back from a committed checkpoint into a training: exact weights, optimizer, callbacks and position."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tf_keras

from callbacks import commit
from callbacks.agreement import sum_over_ranks
from callbacks.roles import current_role
from callbacks.training_state import Stateful, tensors

logger = logging.getLogger(__name__)


class ResumePoint(NamedTuple):
    """Where a training goes on.

    Attributes:
        epoch: Epochs completed: the ``initial_epoch`` of ``fit``.
        step: Optimizer updates done.
        step_in_epoch: Batches of the next epoch that were used already and have to be skipped.
        path: The checkpoint's folder, None for a training that starts afresh.
    """

    epoch: int
    step: int
    step_in_epoch: int
    path: Path | None


def resume_point(directory: str | Path) -> ResumePoint:
    """Return where a training with checkpoints in ``directory`` goes on; zeros and None when it has none."""
    checkpoint = commit.latest_committed(Path(directory))
    if checkpoint is None:
        return ResumePoint(0, 0, 0, None)
    return ResumePoint(checkpoint.epoch, checkpoint.step, checkpoint.step_in_epoch, checkpoint.path)


def restore(
    model: tf_keras.Model,
    optimizer: Any,
    checkpoint: commit.CommittedCheckpoint,
    stateful: Mapping[str, Stateful] | None = None,
) -> None:
    """Bring model, optimizer and callbacks to the state of ``checkpoint``; every variable on both sides has to match.

    Args:
        model: A built model (its variables exist) of the architecture that was saved.
        optimizer: The optimizer that trains it; its slot variables are created when missing.
        checkpoint: What to restore; its checksums are the caller's to verify.
        stateful: Callbacks by the names under which `ChiefCheckpoint` saved them.

    Raises:
        ValueError: Model, optimizer or callbacks differ from what was saved.
    """
    states = checkpoint.states()
    if missing := sorted(set(stateful or {}) - set(states)):
        raise ValueError(f"checkpoint {checkpoint.path} has no state for {missing}; it has {sorted(states)}")
    try:
        # read, not restore: restore would also look for Checkpoint.save's counter, which a plain write has not.
        status = tensors(model, optimizer).read(checkpoint.prefix)
        status.assert_existing_objects_matched()
        status.assert_consumed()
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"checkpoint {checkpoint.path} does not fit this model and optimizer: {error}. Build the model before "
            "(call it on one batch) and use the same architecture and optimizer, or start in an empty directory"
        ) from error
    for name, callback in (stateful or {}).items():
        callback.set_state(states[name])


class BackupAndRestore(tf_keras.callbacks.Callback):
    """Resumes a training from its newest committed checkpoint when ``fit`` begins; does nothing when there is none.

    ``fit`` then goes on at the right epoch and step by itself; ``initial_epoch`` need not be given. After a checkpoint
    within an epoch the dataset's first epoch has to start at batch ``step_in_epoch``: ask `resume_point` for it
    before the dataset is built. All ranks restore the step that the chief chose.

    Args:
        directory: Where the checkpoints of this training live, readable by every rank.
        resume_from: Folder of the checkpoint to take instead of the newest; the same on all ranks.
        stateful: Callbacks to restore, by the names given to `ChiefCheckpoint`.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        resume_from: str | Path | None = None,
        stateful: Mapping[str, Stateful] | None = None,
    ) -> None:
        """Keep the arguments; nothing is read yet."""
        super().__init__()
        self._directory = Path(directory)
        self._resume_from = None if resume_from is None else Path(resume_from)
        self._stateful = dict(stateful or {})
        self.resumed_from: commit.CommittedCheckpoint | None = None

    @property
    def initial_epoch(self) -> int:
        """Epochs that were completed before this ``fit``; known once it began."""
        return 0 if self.resumed_from is None else self.resumed_from.epoch

    @property
    def initial_step_in_epoch(self) -> int:
        """Steps of the first epoch that were done before this ``fit``; known once it began."""
        return 0 if self.resumed_from is None else self.resumed_from.step_in_epoch

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Restore, and tell Keras where to go on.

        Raises:
            FileNotFoundError: This rank does not see the checkpoint.
            CheckpointDamagedError: The checkpoint asked for is damaged.
            ValueError: The checkpoint does not fit the model.
        """
        self.resumed_from = self._choose()
        if self.resumed_from is None:
            return
        restore(self.model, self.model.optimizer, self.resumed_from, self._stateful)
        logger.info("Resumed from %s", self.resumed_from.path)
        initial_epoch, initial_step = self.initial_epoch, self.initial_step_in_epoch
        if any(getattr(callback, "stopped", False) for callback in self._stateful.values()):
            # The attempt before had decided to stop and was lost after its last checkpoint: nothing is left to train.
            initial_epoch, initial_step = self.params["epochs"], 0
        # The hook by which Keras' own BackupAndRestore sets the position.
        self.model._training_state = _Position(self.model, initial_epoch, initial_step)

    def _choose(self) -> commit.CommittedCheckpoint | None:
        if self._resume_from is not None:
            checkpoint = commit.read_committed(self._resume_from)
            if (damage := checkpoint.damage()) is not None:
                raise commit.CheckpointDamagedError(checkpoint.path, damage)
            return checkpoint
        strategy = self.model.distribute_strategy
        role = current_role(strategy)
        newest = commit.latest_committed(self._directory) if role.is_chief else None
        # Ranks may see a shared store at different moments: what the chief sees counts. 0 says "none".
        step = int(sum_over_ranks(strategy, 0 if newest is None else newest.step + 1)) - 1
        if step < 0 or role.is_chief:
            return newest
        try:
            return commit.read_committed(commit.folder(self._directory, step))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"rank {role.rank} does not see the checkpoint of step {step} in {self._directory} that the chief "
                "resumes from; put checkpoints on storage that every worker reads"
            ) from error


class _Position:
    """Answers Keras' one question at the start of ``fit``, then takes itself off the model."""

    def __init__(self, model: tf_keras.Model, epoch: int, step: int) -> None:
        self._model = model
        self._counters = epoch, step

    def maybe_load_initial_counters_from_ckpt(
        self, steps_per_epoch: int | None, initial_epoch: int, mode: Any
    ) -> tuple[int, int]:
        self._model._training_state = None
        return self._counters
