"""Checkpoints under any strategy: every rank takes part, the chief publishes, and training hardly waits."""

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

from callbacks import commit
from callbacks.agreement import AgreedInterval, sum_over_ranks
from callbacks.checkpoint_store import STORE_ERRORS, Location, native, open_store, store_error
from callbacks.fence import Fence, Permit, fence_from_environment, read_fence
from callbacks.metric_state import METRICS, metric_state
from callbacks.metric_values import scalar_metrics
from callbacks.publisher import CheckpointPublisher, Keeping, Pending
from callbacks.roles import current_role
from callbacks.snapshot import Snapshot
from callbacks.training_state import Stateful, settle
from data_pipelines.storage import StoragePath

# How long the ranks wait for the chief between two collectives when training ends: none of them looks dead meanwhile.
_ROUND_SECONDS = 1.0


class ChiefCheckpoint(tf_keras.callbacks.Callback):
    """Commits a checkpoint after each epoch, and within epochs when asked, while training goes on.

    Training waits for a snapshot of the values (`callbacks.snapshot`: milliseconds). The chief's thread in the
    background writes it to the local disk, copies it to the store, commits and prunes. At most one is on its way and
    one waits; a newer one takes the place of one that waits, unless that has an epoch's metrics. A store that is gone
    or full is tried again for ``retry_seconds``; until then training goes on, and nothing good is removed. When
    training ends, everything is waited for.

    List it after the callbacks in ``stateful`` (their state has to include the epoch being saved) and after a guard
    against NaN loss; `callbacks.stop_request.StopOnRequest` comes after it. See `callbacks.commit` for what lies in
    ``directory`` and `callbacks.backup` for the way back.

    Args:
        directory: Where the checkpoints of this training live, a path or a URI (``s3://…``); made by the chief. Other
            ranks never touch it here.
        keep_last: Newest checkpoints to keep.
        keep_best: Best checkpoints by ``monitor`` to keep besides.
        monitor: Metric that tells the best; None keeps the newest only. Looked at when an epoch ends.
        mode: ``max`` when a larger ``monitor`` is better, ``min`` when a smaller one is.
        every_steps: Optimizer steps between checkpoints within an epoch; None for epoch ends only.
        every_seconds: Seconds between checkpoints, by the chief's clock; None for epoch ends and ``every_steps`` only.
        scratch_dir: Local folder in which the chief prepares files; the system's for temporary files by default.
        stateful: Other callbacks by name, whose state is saved along.
        attempt: Number of this attempt where a driver fences off earlier ones (`callbacks.fence`).
        fence: The ``id`` of the fence that the driver put up for this attempt. Without it the one that stands when
            training begins is taken for it, though it may be a later attempt's.
        retry_seconds: How long the store may fail before training ends with its error.
        before_save: Called on all ranks right before each checkpoint is taken; what it raises keeps it from being:
            `StopOnNaN.check`.
        on_wait: Returns a context for the time in which training does nothing but wait for what is on its way.
        beat: Called from any thread, on the chief, whenever some bytes of a checkpoint have moved.

    Attributes:
        stalled_seconds: How long training has waited for checkpoints so far, without the wait at its end.

    Raises:
        ValueError: An argument is out of range; ``directory`` holds checkpoints of a training further along than the
            one that starts; ``monitor`` is not among the logs.
        CheckpointStoreError: The store cannot be written when training begins, or for ``retry_seconds`` later on.
        StaleAttemptError: A later attempt has taken over.
    """

    def __init__(
        self,
        directory: Location,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        monitor: str | None = "val_auc",
        mode: commit.Mode = "max",
        every_steps: int | None = None,
        every_seconds: float | None = None,
        scratch_dir: str | Path | None = None,
        stateful: Mapping[str, Stateful] | None = None,
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
        # Batch logs are not looked at: without this Keras would bring them to the host after every step.
        self._supports_tf_logs = True
        self._directory = native(directory)
        self._keeping = Keeping(keep_last, keep_best, monitor, mode)
        self._every_steps = every_steps
        self._interval = None if every_seconds is None else AgreedInterval(every_seconds)
        self._scratch_dir = Path(scratch_dir or tempfile.gettempdir())
        self._stateful = dict(stateful or {})
        held = fence_from_environment(self._directory) if attempt is None else None
        self._attempt = held.attempt if held else attempt
        self._fence = held.id if held else fence
        self._retry_seconds = retry_seconds
        self._before_save = before_save
        self._on_wait = on_wait
        self._beat = beat
        self._permit: Permit | None = None
        self._publisher: CheckpointPublisher | None = None
        self._last_step = 0
        self._epoch = 0
        self.stalled_seconds = 0.0

    @property
    def last_committed(self) -> commit.CommittedCheckpoint | None:
        """The newest checkpoint in the store; None on ranks that are not the chief, and before the first."""
        return None if self._publisher is None else self._publisher.last_committed

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Find this process's role and remove what an earlier, killed attempt left.

        Raises:
            CheckpointStoreError: The store cannot be written.
            StaleAttemptError: A later attempt has taken over.
        """
        if (self._every_steps or self._interval) and self.params.get("steps") is None:
            raise ValueError(
                "every_steps and every_seconds need to know how many steps an epoch has, and the dataset does not "
                "tell; pass steps_per_epoch to fit, or None for both"
            )
        self._role = current_role(self.model.distribute_strategy)
        self._publisher = None
        self._checked = False
        self.stalled_seconds = 0.0
        if not self._role.is_chief:
            return
        try:
            # First of all: one that was given up must not clean away what the attempt after it is about to publish.
            self._permit = self._ask_for_permit()
            open_store(self._directory).make()
            commit.clean_staging(self._directory)
        except STORE_ERRORS as error:
            raise store_error(self._directory, error) from error
        for left_over in self._scratch_dir.glob(f"{self._scratch_prefix()}*"):
            shutil.rmtree(left_over, ignore_errors=True)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Remember where the epoch starts."""
        self._epoch = epoch
        self._step_in_epoch: int | None = None
        self._last_step = self._step()
        # Not in on_train_begin: a callback that restores may be listed after this one.
        if not self._checked:
            if self._role.is_chief:
                self._publisher = self._open_publisher()
            self._restart_interval(self._last_step)
        self._checked = True

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Learn from the first batch where the epoch starts: a resumed one does not start with its first."""
        if self._step_in_epoch is None:
            self._step_in_epoch = batch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Save within the epoch when ``every_steps`` or ``every_seconds`` says so.

        Raises:
            CheckpointStoreError: The store has failed for ``retry_seconds``.
        """
        if self._publisher is not None:
            self._publisher.raise_failure()
        # Counted here: to read the optimizer's count would wait for the device in every step.
        step = self._last_step + batch + 1 - (self._step_in_epoch or 0)
        self._step_in_epoch = batch + 1
        # The epoch's last step is left to on_epoch_end, whose checkpoint of the same step has validation metrics.
        is_last = self._step_in_epoch == self.params.get("steps")
        if (self._every_steps or self._interval) and not is_last and self._is_due(step):
            self._save_within_epoch(is_optional=True)
        self._last_step = step

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Save with the epoch's metrics."""
        metrics = scalar_metrics(logs)
        monitor = self._keeping.monitor
        if monitor is not None and monitor not in metrics:
            raise ValueError(
                f"monitor {monitor!r} is not among the logs {sorted(metrics)}; "
                "name one of them, or pass monitor=None to keep the newest checkpoints only"
            )
        self._step_in_epoch = None
        self._save(epoch=epoch + 1, step_in_epoch=0, metrics=metrics, is_optional=False)
        self._restart_interval(self._last_step)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Wait until everything is published, on all ranks: one that leaves before the chief would fail the chief."""
        # tensorflow#58434
        self.wait_until_published()

    def save_now(self) -> Path | StoragePath:
        """Save at this very step, wait until it is published, and return the checkpoint's folder.

        Every rank has to call it, in a callback listed after this one, at a step's end or an epoch's.
        """
        with self._on_wait():
            if self._step_in_epoch is not None:
                self._save_within_epoch(is_optional=False)
            self._wait_in_rounds()
        return commit.folder(self._directory, self._step())

    def wait_until_published(self) -> None:
        """Wait on all ranks until the chief has published everything.

        A store that fails or says nothing for ``retry_seconds`` ends the wait.

        Raises:
            CheckpointStoreError: It did.
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
        # Both are asked: the ranks have to take part in the interval's collective at the same steps.
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
        # Every rank takes part: what is reduced when it is read needs them all. Only the chief keeps the result.
        settle(self.model)
        self._before_save()
        snapshot = Snapshot(self.model, self.model.optimizer)
        of_epoch = metric_state(self.model) if step_in_epoch else None
        if self._publisher is not None:
            files = {commit.STATE: json.dumps(states).encode()}
            if of_epoch is not None:
                files[METRICS] = of_epoch.to_bytes()
            self._publisher.submit(
                Pending(snapshot, files, self._step(), epoch, step_in_epoch, dict(metrics), is_optional)
            )
        self.stalled_seconds += time.perf_counter() - began

    def _open_publisher(self) -> CheckpointPublisher:
        try:
            newest = self._refuse_foreign_checkpoints()
        except STORE_ERRORS as error:
            raise store_error(self._directory, error) from error
        return CheckpointPublisher(
            self._directory,
            self._scratch_dir / self._scratch_prefix(),
            self._keeping,
            known_good=newest,
            permit=self._permit,
            retry_seconds=self._retry_seconds,
            beat=self._beat,
        )

    def _ask_for_permit(self) -> Permit | None:
        if self._attempt is None:
            return None
        held = read_fence(self._directory) if self._fence is None else Fence(self._attempt, self._fence)
        permit = Permit(self._directory, self._attempt, held)
        permit.check()
        return permit

    def _refuse_foreign_checkpoints(self) -> commit.CommittedCheckpoint | None:
        """Stop before a training from an earlier step mixes its checkpoints with those of later steps.

        Returns the newest that stays. Only what is known to be damaged goes: a store that does not answer raises.
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
            commit.discard(checkpoint.path)
        return next((c for c in found if c.step <= self._last_step), None)

    def _restart_interval(self, step: int) -> None:
        if self._interval is not None:
            self._interval.restart(step)

    def _scratch_prefix(self) -> str:
        # The same for each attempt of this training, so that the next one finds what a killed one left.
        training = hashlib.sha256(str(self._directory).encode()).hexdigest()[:12]
        return f"checkpoint-scratch-{training}-"

    def _step(self) -> int:
        return int(self.model.optimizer.iterations.numpy())
