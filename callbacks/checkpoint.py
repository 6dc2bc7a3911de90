"""The checkpoint callback: under any strategy all ranks take part, the chief publishes, and training hardly waits."""

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import tf_keras

from mirrorspark.callbacks.checkpoints import (
    CheckpointPublisher,
    Pending,
    RetentionPolicy,
    Snapshot,
    checkpoint_store,
    commit,
    fencing,
    metric_states,
    retention,
    training_state,
)
from mirrorspark.callbacks.collectives import (
    AgreedInterval,
    check_equal_weights,
    current_role,
    scalar_metrics,
    sum_over_ranks,
)
from mirrorspark.storage import StoragePath

# Interval of the collectives with which the ranks wait for the chief at the end, so that none of them looks dead.
_ROUND_SECONDS = 1.0


class ChiefCheckpoint(tf_keras.callbacks.Callback):
    """Commits a checkpoint after each epoch, and optionally within epochs, in the background of the training.

    Training waits only for a snapshot of the values (`callbacks.checkpoints.snapshot`: milliseconds). A background
    thread of the chief writes it to the local disk, copies it to the store, commits and prunes. At most one checkpoint
    is being published and one waits. A newer one replaces the waiting one, unless that has an epoch's metrics. If the
    store is away or full, publishing is retried for ``retry_seconds``; meanwhile training continues, and no good
    checkpoint is removed. The end of training waits until everything is published.

    List it after the callbacks in ``stateful`` (their state has to include the epoch being saved) and after a guard
    against NaN loss, and before `callbacks.StopOnRequest`. `callbacks.checkpoints.commit` describes the
    content of ``directory``, `callbacks.backup` the way back.

    Args:
        directory: Folder of this training's checkpoints, a path or a URI (``s3://…``); created by the chief. Other
            ranks never access it here.
        keep_last: Number of newest checkpoints to keep.
        keep_best: Number of best checkpoints by ``monitor`` to keep in addition.
        monitor: Metric that decides which checkpoint is best, read when an epoch ends; None keeps only the newest.
        mode: ``max`` when a larger ``monitor`` is better, ``min`` when a smaller one is.
        every_steps: Optimizer steps between checkpoints within an epoch; None for epoch ends only.
        every_seconds: Seconds between checkpoints, by the chief's clock; None for epoch ends and ``every_steps`` only.
        scratch_dir: Local folder in which the chief prepares files; by default the system's for temporary files.
        stateful: Other callbacks, by name, whose state is saved too.
        attempt: Number of this attempt if a driver fences off earlier ones (`callbacks.checkpoints.fencing`).
        fence: The ``id`` of the fence that the driver set for this attempt. Without it, the fence found when training
            begins is used, which may belong to a later attempt.
        retry_seconds: How long the store may fail before training ends with its error.
        before_save: Called on all ranks before each checkpoint, and before their weights are compared; an exception
            prevents the checkpoint (`StopOnNaN.check`).
        on_wait: Returns a context for the time in which training only waits for checkpoints to be published.
        beat: Called from any thread, on the chief, whenever some bytes of a checkpoint have moved.

    Attributes:
        stalled_seconds: Time that training has waited for checkpoints so far, without the wait at its end.

    Raises:
        ValueError: An argument is out of range; ``directory`` holds checkpoints of a training further along than this
            one; ``monitor`` is not among the logs.
        CheckpointStoreError: The store cannot be written when training begins, or for ``retry_seconds`` later on.
        StaleAttemptError: A later attempt has taken over.
        WeightsDifferError: The ranks' weights differ, so that there is nothing to save.
    """

    def __init__(
        self,
        directory: checkpoint_store.Location,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        monitor: str | None = "val_auc",
        mode: commit.Mode = "max",
        every_steps: int | None = None,
        every_seconds: float | None = None,
        scratch_dir: str | Path | None = None,
        stateful: Mapping[str, training_state.Stateful] | None = None,
        attempt: int | None = None,
        fence: str | None = None,
        retry_seconds: float = 300.0,
        before_save: Callable[[], None] = lambda: None,
        on_wait: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Check and keep the arguments; nothing is written yet."""
        super().__init__()
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}; keep at least 1 checkpoint")
        if mode not in ("min", "max"):
            raise ValueError(f"mode is {mode!r}; use 'min' or 'max'")
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"every_steps is {every_steps}; use None or a positive number")
        if not retry_seconds >= 0:
            raise ValueError(f"retry_seconds is {retry_seconds}; use 0 or more")
        if fence is not None and attempt is None:
            raise ValueError(f"fence is {fence!r} without an attempt; give the number it was put up for")
        # Batch logs are unused; without this flag Keras would copy them to the host after every step.
        self._supports_tf_logs = True
        self._directory = checkpoint_store.native(directory)
        self._retention = RetentionPolicy(keep_last, keep_best, monitor, mode)
        self._every_steps = every_steps
        self._interval = None if every_seconds is None else AgreedInterval(every_seconds)
        self._scratch_dir = Path(scratch_dir or tempfile.gettempdir())
        self._stateful = dict(stateful or {})
        held = fencing.fence_from_environment(self._directory) if attempt is None else None
        self._attempt = held.attempt if held else attempt
        self._fence = held.id if held else fence
        self._retry_seconds = retry_seconds
        self._before_save = before_save
        self._on_wait = on_wait
        self._beat = beat
        self._permit: fencing.Permit | None = None
        self._publisher: CheckpointPublisher | None = None
        self._last_step = 0
        self._epoch = 0
        self.stalled_seconds = 0.0

    @property
    def last_committed(self) -> commit.CommittedCheckpoint | None:
        """The newest checkpoint in the store; None on ranks that are not the chief, and before the first."""
        return None if self._publisher is None else self._publisher.last_committed

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Determine this process's role, and remove leftovers of an earlier, killed attempt.

        Raises:
            CheckpointStoreError: The store cannot be written.
            StaleAttemptError: A later attempt has taken over.
        """
        if (self._every_steps or self._interval) and self.params.get("steps") is None:
            raise ValueError(
                "every_steps and every_seconds need the number of steps per epoch, which this dataset does not "
                "have; pass steps_per_epoch to fit, or None for both"
            )
        self._role = current_role(self.model.distribute_strategy)
        self._publisher = None
        self._is_open = False
        self.stalled_seconds = 0.0
        if not self._role.is_chief:
            return
        try:
            # Checked first, to end an abandoned attempt early. It may still be paused after the check; the files
            # that it removes then are not a later attempt's.
            self._permit = self._ask_for_permit()
            checkpoint_store.open_store(self._directory).make()
            retention.clean_staging(self._directory, self._fence)
            former = retention.former_marks(self._directory, self._fence)
        except checkpoint_store.STORE_ERRORS as error:
            raise checkpoint_store.store_error(self._directory, error) from error
        for mark in former:
            for left_over in self._scratch_dir.glob(f"{self._scratch_prefix(mark)}*"):
                shutil.rmtree(left_over, ignore_errors=True)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Store the position at which the epoch starts."""
        self._epoch = epoch
        self._step_in_epoch: int | None = None
        self._last_step = self._step()
        # Not in on_train_begin: a callback that restores may be listed after this one.
        if not self._is_open:
            if self._role.is_chief:
                self._publisher = self._open_publisher()
            self._restart_interval(self._last_step)
            self._is_open = True

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Take the starting step of the epoch from its first batch: a resumed epoch does not start at step 0."""
        if self._step_in_epoch is None:
            self._step_in_epoch = batch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Save within the epoch when ``every_steps`` or ``every_seconds`` is reached.

        Raises:
            CheckpointStoreError: The store has failed for ``retry_seconds``.
        """
        if self._publisher is not None:
            self._publisher.raise_failure()
        # Counted here, because reading the optimizer's count would wait for the device in every step.
        step = self._last_step + batch + 1 - (self._step_in_epoch or 0)
        self._step_in_epoch = batch + 1
        # on_epoch_end saves the epoch's last step, with validation metrics.
        is_last = self._step_in_epoch == self.params.get("steps")
        if (self._every_steps or self._interval) and not is_last and self._is_due(step):
            self._save_within_epoch(is_optional=True)
        self._last_step = step

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Save with the epoch's metrics."""
        metrics = scalar_metrics(logs)
        monitor = self._retention.monitor
        if monitor is not None and monitor not in metrics:
            raise ValueError(
                f"monitor {monitor!r} is not among the logs {sorted(metrics)}; "
                "name one of them, or pass monitor=None to keep the newest checkpoints only"
            )
        self._step_in_epoch = None
        self._save(epoch=epoch + 1, step_in_epoch=0, metrics=metrics, is_optional=False)
        self._restart_interval(self._last_step)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Wait on all ranks until everything is published."""
        # A rank that leaves before the chief would make the chief fail (tensorflow#58434).
        self.wait_until_published()

    def save_now(self) -> Path | StoragePath:
        """Save at the current step, wait until it is published, and return the checkpoint's folder.

        Every rank has to call this, in a callback listed after this one, at the end of a step or an epoch.
        """
        with self._on_wait():
            # None at the end of an epoch, whose checkpoint has been submitted already.
            if self._step_in_epoch is not None:
                self._save_within_epoch(is_optional=False)
            self._wait_in_rounds()
        return commit.folder(self._directory, self._step(), self._fence)

    def wait_until_published(self) -> None:
        """Wait on all ranks until the chief has published everything.

        Raises:
            CheckpointStoreError: The store has failed or not answered for ``retry_seconds``.
        """
        with self._on_wait():
            self._wait_in_rounds()

    def _wait_in_rounds(self) -> None:
        is_busy = True
        while is_busy:
            is_mine_busy = self._publisher is not None and not self._publisher.wait(_ROUND_SECONDS)
            is_busy = sum_over_ranks(self.model.distribute_strategy, float(is_mine_busy)) > 0

    def _is_due(self, step: int) -> bool:
        every = self._every_steps
        is_due = every is not None and step // every > self._last_step // every
        # Evaluated even if is_due: all ranks have to take part in the interval's collective at the same steps.
        is_over = self._interval is not None and self._interval.is_over(
            self.model.distribute_strategy, step, is_chief=self._role.is_chief
        )
        return is_due or is_over

    def _save_within_epoch(self, *, is_optional: bool) -> None:
        assert self._step_in_epoch is not None  # noqa: S101 - only after a step
        self._save(epoch=self._epoch, step_in_epoch=self._step_in_epoch, metrics={}, is_optional=is_optional)

    def _save(self, *, epoch: int, step_in_epoch: int, metrics: Mapping[str, float], is_optional: bool) -> None:
        began = time.perf_counter()
        states = {name: callback.get_state() for name, callback in self._stateful.items()}
        for name, state in states.items():
            if step_in_epoch == 0 and state.get("epoch", epoch) != epoch:
                raise ValueError(
                    f"the state of {name!r} covers {state['epoch']} epochs, the checkpoint {epoch}; "
                    f"list {name!r} before ChiefCheckpoint in the callbacks"
                )
        # Every rank takes part, because some values are reduced over all ranks when read. Only the chief keeps them.
        training_state.settle(self.model)
        # Before the comparison: NaN may have different bits on two machines, which does not make them faulty.
        self._before_save()
        check_equal_weights(self.model)
        snapshot = Snapshot(self.model, self.model.optimizer)
        of_epoch = metric_states.metric_state(self.model) if step_in_epoch else None
        if self._publisher is not None:
            files = {commit.STATE: json.dumps(states).encode()}
            if of_epoch is not None:
                files[metric_states.METRICS] = of_epoch.to_bytes()
            self._publisher.submit(
                Pending(snapshot, files, self._step(), epoch, step_in_epoch, dict(metrics), is_optional)
            )
        self.stalled_seconds += time.perf_counter() - began

    def _open_publisher(self) -> CheckpointPublisher:
        try:
            newest = self._newest_after_removing_damaged()
        except checkpoint_store.STORE_ERRORS as error:
            raise checkpoint_store.store_error(self._directory, error) from error
        return CheckpointPublisher(
            self._directory,
            self._scratch_dir / self._scratch_prefix(commit.mark_of(self._fence)),
            self._retention,
            known_good=newest,
            permit=self._permit,
            retry_seconds=self._retry_seconds,
            beat=self._beat,
        )

    def _ask_for_permit(self) -> fencing.Permit | None:
        if self._attempt is None:
            return None
        held = fencing.read_fence(self._directory) if self._fence is None else fencing.Fence(self._attempt, self._fence)
        permit = fencing.Permit(self._directory, self._attempt, held, self._fence)
        permit.check()
        return permit

    def _newest_after_removing_damaged(self) -> commit.CommittedCheckpoint | None:
        """Remove damaged checkpoints of later steps than this training's start, and return the newest that is left.

        A store that does not answer raises, so nothing is removed on suspicion.

        Raises:
            ValueError: A checkpoint of a later step is intact.
        """
        found = commit.committed(self._directory)
        ahead = [c for c in found if c.step > self._last_step]
        for checkpoint in ahead:
            if checkpoint.damage(beat=self._beat) is None:
                raise ValueError(
                    f"{self._directory} holds the checkpoint of step {checkpoint.step} and this training starts at "
                    f"step {self._last_step}; resume with BackupAndRestore, or use an empty directory"
                )
        for checkpoint in ahead:
            retention.discard(checkpoint.path)
        return next((c for c in found if c.step <= self._last_step), None)

    def _restart_interval(self, step: int) -> None:
        if self._interval is not None:
            self._interval.restart(step)

    def _scratch_prefix(self, mark: str) -> str:
        # Names the training and the attempt's fence: the next attempt finds the leftovers of a killed one, and one that
        # was only paused does not remove what the next one on this machine is about to publish.
        training = hashlib.sha256(str(self._directory).encode()).hexdigest()[:12]
        return f"checkpoint-scratch-{training}-{mark or 'unfenced'}-"

    def _step(self) -> int:
        return int(self.model.optimizer.iterations.numpy())
