"""Checkpoints under any strategy: every rank takes part in the save, only the chief's copy is published."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from callbacks import commit
from callbacks.agreement import sum_over_ranks
from callbacks.metric_values import scalar_metrics
from callbacks.roles import current_role
from callbacks.training_state import Stateful, tensors


class ChiefCheckpoint(tf_keras.callbacks.Callback):
    """Commits a checkpoint after each epoch, and every ``every_steps`` steps when asked.

    List it after the callbacks in ``stateful`` (their state has to include the epoch being saved) and after a guard
    against NaN loss. See `callbacks.commit` for what lies in ``directory`` and `callbacks.backup` for the way back.

    Args:
        directory: Where the checkpoints of this training live; created by the chief. Other ranks never touch it here.
        keep_last: Newest checkpoints to keep.
        keep_best: Best checkpoints by ``monitor`` to keep besides.
        monitor: Metric that tells the best; None keeps the newest only. Looked at when an epoch ends.
        mode: ``max`` when a larger ``monitor`` is better, ``min`` when a smaller one is.
        every_steps: Optimizer steps between checkpoints within an epoch; None for epoch ends only.
        scratch_dir: Local folder for the copies of ranks that are not the chief; the system's by default.
        stateful: Other callbacks by name, whose state is saved along.

    Raises:
        ValueError: An argument is out of range; ``directory`` holds checkpoints of a training further along than the
            one that starts; ``monitor`` is not among the logs.
        OSError: The store is full or not writable; the message names it.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        monitor: str | None = "val_auc",
        mode: commit.Mode = "max",
        every_steps: int | None = None,
        scratch_dir: str | Path | None = None,
        stateful: Mapping[str, Stateful] | None = None,
    ) -> None:
        """Check and keep the arguments; nothing is written yet."""
        super().__init__()
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}; keep at least 1 checkpoint")
        if mode not in ("min", "max"):
            raise ValueError(f"mode is {mode!r}; use 'min' or 'max'")
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"every_steps is {every_steps}; use None or a positive number")
        # Batch logs are not looked at: without this Keras would bring them to the host after every step.
        self._supports_tf_logs = True
        self._directory = Path(directory)
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._monitor = monitor
        self._mode: commit.Mode = mode
        self._every_steps = every_steps
        self._scratch_dir = Path(scratch_dir or tempfile.gettempdir())
        self._stateful = dict(stateful or {})
        self._last_step = 0
        self._epoch = 0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Find this process's role and remove what an earlier, killed attempt left."""
        if self._every_steps is not None and self.params.get("steps") is None:
            raise ValueError(
                "every_steps needs to know how many steps an epoch has, and the dataset does not tell; "
                "pass steps_per_epoch to fit or every_steps=None"
            )
        self._role = current_role(self.model.distribute_strategy)
        self._checked = False
        if self._role.is_chief:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise commit.store_error(self._directory, error) from error
            commit.clean_staging(self._directory)
        else:
            self._scratch_dir.mkdir(parents=True, exist_ok=True)
            for left_over in self._scratch_dir.glob(f"{self._scratch_prefix()}*"):
                shutil.rmtree(left_over, ignore_errors=True)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Remember where the epoch starts."""
        self._epoch = epoch
        self._last_step = self._step()
        # Not in on_train_begin: a callback that restores may be listed after this one.
        if self._role.is_chief and not self._checked:
            self._refuse_foreign_checkpoints()
        self._checked = True

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Save within the epoch when ``every_steps`` says so."""
        if self._every_steps is None:
            return
        # The epoch's last step is left to on_epoch_end, whose checkpoint of the same step has validation metrics.
        step_in_epoch = batch + 1
        if step_in_epoch >= self.params["steps"]:
            return
        step = self._step()
        is_due = step // self._every_steps > self._last_step // self._every_steps
        self._last_step = step
        if is_due:
            self._save(step=step, epoch=self._epoch, step_in_epoch=step_in_epoch, metrics={})

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Save with the epoch's metrics."""
        metrics = scalar_metrics(logs)
        if self._monitor is not None and self._monitor not in metrics:
            raise ValueError(
                f"monitor {self._monitor!r} is not among the logs {sorted(metrics)}; "
                "name one of them, or pass monitor=None to keep the newest checkpoints only"
            )
        self._save(step=self._step(), epoch=epoch + 1, step_in_epoch=0, metrics=metrics)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Wait for each other: a rank that leaves while the chief still writes would fail the chief."""
        # tensorflow#58434
        sum_over_ranks(self.model.distribute_strategy, 0.0)

    def _save(self, *, step: int, epoch: int, step_in_epoch: int, metrics: Mapping[str, float]) -> None:
        states = {name: callback.get_state() for name, callback in self._stateful.items()}
        for name, state in states.items():
            if step_in_epoch == 0 and state.get("epoch", epoch) != epoch:
                raise ValueError(
                    f"the state of {name!r} covers {state['epoch']} epochs, the checkpoint {epoch}; "
                    f"list {name!r} before ChiefCheckpoint in the callbacks"
                )
        # Every rank saves: values aggregated at save time need them all. Only the chief's copy stays.
        if self._role.is_chief:
            folder = commit.new_staging(self._directory)
        else:
            folder = Path(tempfile.mkdtemp(prefix=self._scratch_prefix(), dir=self._scratch_dir))
        try:
            self._write_tensors(folder)
            if self._role.is_chief:
                self._publish(folder, states, step=step, epoch=epoch, step_in_epoch=step_in_epoch, metrics=metrics)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write_tensors(self, folder: Path) -> None:
        store = self._directory if self._role.is_chief else self._scratch_dir
        try:
            tensors(self.model, self.model.optimizer).write(str(folder / commit.TENSORS))
        except tf.errors.OpError as error:
            # An error that names our folder is the store's; any other (a lost peer) keeps its own class and message.
            if str(folder) not in str(error):
                raise
            raise commit.store_error(store, OSError(str(error.message))) from error

    def _publish(self, staging: Path, states: Mapping[str, Any], **position: Any) -> None:
        try:
            (staging / commit.STATE).write_text(json.dumps(states), "utf-8")
        except OSError as error:
            raise commit.store_error(self._directory, error) from error
        published = commit.publish(staging, self._directory, **position)
        commit.prune(
            self._directory,
            keep_last=self._keep_last,
            keep_best=self._keep_best,
            monitor=self._monitor,
            mode=self._mode,
            known_good=published,
        )

    def _refuse_foreign_checkpoints(self) -> None:
        """Stop before a training from an earlier step mixes its checkpoints with those of later steps."""
        ahead = [c for c in commit.committed(self._directory) if c.step > self._last_step]
        for checkpoint in ahead:
            if checkpoint.damage() is None:
                raise ValueError(
                    f"{self._directory} holds the checkpoint of step {checkpoint.step} and this training starts at "
                    f"step {self._last_step}; resume with BackupAndRestore, or use an empty directory"
                )
        for checkpoint in ahead:
            commit.discard(checkpoint.path)

    def _scratch_prefix(self) -> str:
        # The same for each attempt of this rank, so that the next one finds what a killed one left.
        training = hashlib.sha256(str(self._directory.absolute()).encode()).hexdigest()[:12]
        return f"checkpoint-scratch-{training}-rank{self._role.rank}-"

    def _step(self) -> int:
        return int(self.model.optimizer.iterations.numpy())
