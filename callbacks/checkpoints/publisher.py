"""Publication of checkpoints in the background, with retries while the store is unavailable."""

import logging
import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints.checkpoint_store import STORE_ERRORS, Location, store_error
from mirrorspark.callbacks.checkpoints.checksums import FileChecksums
from mirrorspark.callbacks.checkpoints.fencing import Permit
from mirrorspark.callbacks.checkpoints.retention import prune
from mirrorspark.callbacks.collectives import at_exit
from mirrorspark.storage import host_cache

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 15.0
# Time to finish a pending checkpoint when the interpreter ends, for example after an exception.
_EXIT_SECONDS = 30.0

logger = logging.getLogger(__name__)


class Tensors(Protocol):
    """The values of a training at one step: `callbacks.checkpoints.Snapshot`."""

    def write(self, folder: Path) -> None:
        """Write the values into ``folder``; OSError if that fails."""

    def release(self) -> None:
        """Free the memory."""


@dataclass(frozen=True)
class Pending:
    """A checkpoint to be published; see `callbacks.checkpoints.commit.publish` for its position and metrics.

    Attributes:
        tensors: The values.
        files: Content of further files by name.
        is_optional: Whether it may be dropped for a later one, as those taken within an epoch may.
    """

    tensors: Tensors
    files: Mapping[str, bytes]
    step: int
    epoch: int
    step_in_epoch: int
    metrics: Mapping[str, float]
    is_optional: bool


@dataclass(frozen=True)
class RetentionPolicy:
    """The checkpoints to keep; see `callbacks.checkpoints.retention.prune`."""

    keep_last: int
    keep_best: int
    monitor: str | None
    mode: commit.Mode


def still_waiting(waiting: Sequence[Pending], new: Pending, retention: RetentionPolicy) -> list[Pending]:
    """Return the one or two checkpoints that keep waiting after ``new`` was submitted.

    The newest stays, except that a checkpoint with an epoch's metrics is not dropped for one within an epoch, nor the
    best by ``monitor`` for a later one.
    """
    firm = [pending for pending in (*waiting, new) if not pending.is_optional]
    if not firm:
        return [new]
    best = _best(firm, retention)
    return [firm[-1]] if best is None or best is firm[-1] else [best, firm[-1]]


def _best(pendings: Sequence[Pending], retention: RetentionPolicy) -> Pending | None:
    """Return the best, the earliest of equals as in `commit.best_committed`; None if the policy keeps no best."""
    if retention.monitor is None or not retention.keep_best:
        return None
    name, sign = retention.monitor, 1.0 if retention.mode == "max" else -1.0
    comparable = [pending for pending in pendings if math.isfinite(pending.metrics.get(name, math.nan))]
    return max(comparable, key=lambda pending: sign * pending.metrics[name], default=None)


class CheckpointPublisher:
    """Writes, verifies, copies, commits and prunes checkpoints, in one thread that runs while any are pending.

    Args:
        directory: The store.
        scratch: Prefix, as a path, of the local folders in which files are prepared.
        retention: The checkpoints to keep.
        known_good: Newest checkpoint in the store.
        permit: The right to publish, or None to publish without a fence.
        retry_seconds: How long a store may fail, or not answer, before training is ended. A longer local write is not
            counted against the store as its files grow.
        beat: Called, from any thread, whenever some bytes have moved.
        clock: Returns seconds; monotonic.

    Attributes:
        last_committed: The newest checkpoint that is known to be in the store.
    """

    def __init__(
        self,
        directory: Location,
        scratch: Path,
        retention: RetentionPolicy,
        *,
        known_good: commit.CommittedCheckpoint | None = None,
        permit: Permit | None = None,
        retry_seconds: float = 300.0,
        beat: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the arguments; the thread starts with the first checkpoint."""
        self._directory = directory
        self._scratch = scratch
        self._retention = retention
        self._permit = permit
        self._retry_seconds = retry_seconds
        self._report_beat = beat
        self._clock = clock
        self.last_committed = known_good
        # Guards the attributes below, and is notified of every change.
        self._changed = threading.Condition()
        self._waiting: list[Pending] = []
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._is_ending = False
        self._failing_since: float | None = None
        self._moved = clock()
        # The folder being written, and the size of its files at the last check.
        self._writing: Path | None = None
        self._written_bytes = 0

    def submit(self, pending: Pending) -> None:
        """Accept a checkpoint, which may replace one that still waits.

        Raises:
            CheckpointStoreError: The store has failed for ``retry_seconds``.
            StaleAttemptError: A later attempt has taken over.
        """
        self.raise_failure()
        with self._changed:
            self._waiting = still_waiting(self._waiting, pending, self._retention)
            if self._thread is None:
                self._moved = self._clock()
                self._thread = threading.Thread(target=self._run, name="checkpoint-publisher", daemon=True)
                at_exit.register(self._finish_at_exit)
                self._thread.start()
            self._changed.notify_all()

    def raise_failure(self) -> None:
        """Raise the error that ended publishing, if there is one."""
        with self._changed:
            failure = self._failure
            silent = self._clock() - self._moved if self._thread is not None else 0.0
        if failure is not None:
            raise failure
        # A call that hangs in the store cannot be interrupted, but the training can be ended.
        if silent > self._retry_seconds and not self._look_at_growth():
            place = self._directory if self._writing is None else self._scratch.parent
            raise store_error(place, TimeoutError(f"no answer for {silent:.0f} s"), self._last_good())

    def wait(self, seconds: float) -> bool:
        """Wait for at most ``seconds``, and return whether everything is published.

        Raises:
            CheckpointStoreError: The store has failed for ``retry_seconds``.
            StaleAttemptError: A later attempt has taken over.
        """
        with self._changed:
            is_idle = self._changed.wait_for(lambda: self._thread is None, seconds)
        if not is_idle:
            self._look_at_growth()
        self.raise_failure()
        return is_idle

    def _run(self) -> None:
        try:
            while (pending := self._next()) is not None:
                self._publish(pending)
        except Exception as error:
            # Any error is passed to the training thread, which asks after every step.
            with self._changed:
                self._failure = error
                self._waiting.clear()
                self._end()

    def _next(self) -> Pending | None:
        with self._changed:
            if self._waiting:
                return self._waiting.pop(0)
            # Ended under the same lock, so that a later submit starts a new thread.
            self._end()
            return None

    def _end(self) -> None:
        self._thread = None
        at_exit.unregister(self._finish_at_exit)
        self._changed.notify_all()

    def _publish(self, pending: Pending) -> None:
        staging: Path | None = None
        checksums: FileChecksums | None = None
        pause = _FIRST_PAUSE_SECONDS
        try:
            while True:
                try:
                    staging = staging or self._stage(pending)
                    checksums = checksums or FileChecksums(staging, self._beat)
                    self._commit(staging, checksums, pending)
                except STORE_ERRORS as error:
                    if not self._is_worth_another_try(pause):
                        raise store_error(self._directory, error, self._last_good()) from error
                    waits_for = store_error(self._directory, error)  # the error may name this machine's full disk
                    logger.warning(
                        "The checkpoint of step %d waits: %s does not accept it (%s). Publishing is retried "
                        "automatically; make the store reachable, or free space there",
                        pending.step,
                        waits_for.store,
                        waits_for.reason,
                    )
                else:
                    if self._failing_since is not None:
                        logger.warning(
                            "%s accepts checkpoints again: that of step %d is published", self._directory, pending.step
                        )
                    self._failing_since = None
                    return
                if self._gives_way(pending, pause):
                    return
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        finally:
            pending.tensors.release()
            if checksums is not None:
                checksums.close()
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)

    def _is_worth_another_try(self, pause: float) -> bool:
        now = self._clock()
        self._failing_since = now if self._failing_since is None else self._failing_since
        return not self._is_ending and now + pause - self._failing_since <= self._retry_seconds

    def _gives_way(self, pending: Pending, pause: float) -> bool:
        """Wait before the next try; return whether a later checkpoint has made this one unnecessary."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_ending or (pending.is_optional and self._waiting), pause)
            self._moved = self._clock()
            return pending.is_optional and bool(self._waiting)

    def _stage(self, pending: Pending) -> Path:
        """Write the files to the local disk, and free the memory of the tensors."""
        self._scratch.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=self._scratch.name, dir=self._scratch.parent))
        self._written_bytes = 0
        self._writing = staging
        try:
            pending.tensors.write(staging)
            for name, content in pending.files.items():
                (staging / name).write_bytes(content)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise store_error(self._scratch.parent, error) from error
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        finally:
            # The time limit of the store starts here.
            self._beat()
            self._writing = None
        pending.tensors.release()
        return staging

    def _look_at_growth(self) -> bool:
        """Return whether the local files being written have grown since the last check; growth counts as a beat.

        TensorFlow writes them in one call, so this is the only way to distinguish a slow disk from one that hangs.
        """
        writing = self._writing
        if writing is None or (size := host_cache.bytes_in(writing)) == self._written_bytes:
            return False
        self._written_bytes = size
        self._beat()
        return True

    def _commit(self, staging: Path, checksums: FileChecksums, pending: Pending) -> None:
        published = commit.publish(
            staging,
            self._directory,
            step=pending.step,
            epoch=pending.epoch,
            step_in_epoch=pending.step_in_epoch,
            metrics=pending.metrics,
            permit=self._permit,
            checksums=checksums,
            beat=self._beat,
        )
        if self.last_committed is None or self.last_committed.step <= published.step:
            self.last_committed = published
        retention = self._retention
        try:
            prune(
                self._directory,
                keep_last=retention.keep_last,
                keep_best=retention.keep_best,
                monitor=retention.monitor,
                mode=retention.mode,
                known_good=published,
                beat=self._beat,
            )
        except STORE_ERRORS as error:
            # The checkpoint is published; the next one prunes again.
            logger.warning("Older checkpoints in %s were not all removed: %s", self._directory, error)

    def _beat(self) -> None:
        self._moved = self._clock()
        self._report_beat()

    def _last_good(self) -> str | None:
        return None if self.last_committed is None else str(self.last_committed.path)

    def _finish_at_exit(self) -> None:
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_EXIT_SECONDS)
