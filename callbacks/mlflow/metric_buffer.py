"""A buffer for MLflow, emptied by a background thread that survives an outage of the server.

This module does not import TensorFlow, because the driver uses it too.
"""

import logging
import math
import re
import shlex
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mirrorspark.callbacks.collectives import at_exit, scalar_metrics
from mirrorspark.callbacks.mlflow.metric_replay import (
    LogSender,
    call_digest,
    entry_event,
    metrics_event,
    read_log,
    run_event,
)
from mirrorspark.callbacks.mlflow.metric_requests import RunCall, Target, first_line, start_run
from mirrorspark.callbacks.mlflow.tracking_store import absolute_store, store_client
from mirrorspark.storage import EventFile, event_file, without_credentials

_LONGEST_RETRY_SECONDS = 60.0

_RUN_ID = re.compile(r"[A-Za-z0-9_\-]{1,64}")

logger = logging.getLogger(__name__)


def retry_delay(failures: int, first_seconds: float) -> float:
    """Return the seconds to wait after that many failures in a row, doubled each time up to a minute."""
    return min(_LONGEST_RETRY_SECONDS, first_seconds * 2.0 ** min(failures - 1, 30))


class MetricBuffer:
    """Accepts metrics and calls at any rate, sends them from a background thread, and never raises into the training.

    Metrics, parameters, tags and artifacts (`callbacks.mlflow.metric_requests`) are first written to a log, and sent
    from there. The thread reads the log one request at a time, so an outage of any length costs no memory. It notes in
    the log what MLflow has acknowledged, and the next process goes on there, even if this one is killed. For each
    metric, steps only move forward: a step at or below one that the run already has is skipped. A call that the server
    refuses is dropped with a warning.

    Args:
        target: The run to log to, and its store; a run without an id is started when the server answers.
        client: An ``MlflowClient`` of the store; by default one is opened in the background.
        log: The log. An ``EventFile`` belongs to the caller, and its other events are sent too. A file given by path
            is removed once MLflow has all of it. By default the log is in memory, and what cannot be sent by the end
            is written to ``mlflow-metrics-<run id>.jsonl`` in the working directory.
        replay_command: The command that sends the rest of the log later; by default the one for the file.
        first_retry_seconds: Wait after a first failure, doubled with each further one.
        linger_seconds: Wait after a request, to collect more for the next one: fewer requests, later points.

    Raises:
        ValueError: The run id is malformed, or the file belongs to another run.
    """

    def __init__(
        self,
        target: Target,
        *,
        client: Any = None,
        log: EventFile | str | Path | None = None,
        replay_command: str | None = None,
        first_retry_seconds: float = 1.0,
        linger_seconds: float = 0.0,
    ) -> None:
        """Check the arguments and start the sending thread; the server is not asked yet."""
        # The id becomes part of a file name.
        if target.run_id is not None and not _RUN_ID.fullmatch(target.run_id):
            raise ValueError(f"run_id {target.run_id!r} is not an MLflow run id")
        self._client = client
        self._tracking_uri = target.tracking_uri
        # Absolute, because the file may be replayed from another working directory.
        self._target = replace(target, tracking_uri=without_credentials(absolute_store(target.tracking_uri)))
        self._is_own_log = not isinstance(log, EventFile)
        self._log = log if isinstance(log, EventFile) else self._own_log(log)
        self._replay_command = replay_command
        self._sender = LogSender(self._log)
        earlier = self._sender.earlier
        has_run = (
            earlier.target is not None
            and earlier.target.is_same_run(self._target)
            and earlier.target.tracking_uri == self._target.tracking_uri
        )
        self._last_calls = earlier.last_calls if has_run else {}
        self._first_retry_seconds = first_retry_seconds
        self._linger_seconds = linger_seconds

        # Guards everything below; waited on by flush (all sent?) and by the thread (something to send?).
        self._changed = threading.Condition()
        # Counts of appended entries and of those known to be sent. Starts at 1: a log may have entries from the start.
        self._received, self._done = 1, 0
        self._failures = 0
        self._last_error = ""
        self._retry_at = -math.inf
        self._is_hurried = False
        self._closed = False
        self._is_left = False
        self._log.when_appended = self._wake
        if self._log.path is not None:
            self._log.append(run_event(self._target), as_is=True)
        # Daemon: a server that hangs must not keep the process alive. `at_exit` then saves the rest.
        self._thread = threading.Thread(target=self._work, name="metric-buffer", daemon=True)
        self._thread.start()
        at_exit.register(self.close, at_exit.SERVER_SECONDS)

    @property
    def run_id(self) -> str | None:
        """Id of the run; None until a run that has to be started here is."""
        return self._target.run_id

    @property
    def events(self) -> EventFile:
        """The log; events that others append to it are sent too."""
        return self._log

    @property
    def is_failing(self) -> bool:
        """True if the last attempt to send failed."""
        return self._failures > 0

    def log(self, metrics: Mapping[str, Any], step: int, timestamp_ms: int | None = None) -> None:
        """Append metrics to the log; returns at once.

        Args:
            metrics: Floats, NumPy scalars or tensors by name; values other than single numbers are left out.
            step: Step of the metrics; see the class for steps that were logged before.
            timestamp_ms: Milliseconds since the epoch; now by default.
        """
        if self._closed:
            logger.warning("Metrics of step %d came after close() and are dropped", step)
            return
        if timestamp_ms is None:
            timestamp_ms = time.time_ns() // 1_000_000
        if found := scalar_metrics(metrics):
            self._log.append(metrics_event(found, step, timestamp_ms))

    def call(self, call: RunCall) -> None:
        """Queue parameters, tags, an artifact or the status, unless the log has it already; returns at once."""
        if self._closed:
            logger.warning("%s came after close() and is dropped", call)
            return
        label, digest = str(call), call_digest(call)
        if call.is_lasting and self._last_calls.get(label) == digest:
            return
        self._last_calls[label] = digest
        self._log.append(entry_event(call), as_is=True)

    def flush(self, timeout_seconds: float = 10.0) -> bool:
        """Send now, regardless of the back-off, and return whether everything was sent within the time."""
        with self._changed:
            self._retry_at = -math.inf
            self._failures = min(self._failures, 1)
            self._is_hurried = True
            self._changed.notify_all()
            is_sent = self._changed.wait_for(self._is_all_sent, timeout_seconds)
            self._is_hurried = False
            return is_sent

    def close(self, timeout_seconds: float = 30.0) -> bool:
        """Send the rest, or leave it in the log with one warning; a second call does nothing.

        Args:
            timeout_seconds: Longest wait for the server.

        Returns:
            Whether everything was sent.
        """
        if self._closed:
            return not self._is_left
        is_sent = self.flush(timeout_seconds)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        # A request may still be in progress. Its content is also left, because a replay skips values that arrived.
        self._is_left = not is_sent and self._leave_unsent()
        self._sender.close()
        if self._is_own_log:
            self._log.close()
            if self._log.path is not None and self._log.path.exists() and not self._is_left:
                event_file.remove(self._log.path)
        at_exit.unregister(self.close)
        if self.left_behind is not None:
            logger.warning(
                "MLflow could not be reached (%s); the unsent data is kept in %s. Send it later with: %s",
                self._last_error or f"no answer within {timeout_seconds:g} s",
                self._log.path,
                self.left_behind,
            )
        return not self._is_left

    def abandon(self) -> None:
        """End without writing or sending anything more: the run and its log are now another process's."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._sender.close()
        if self._is_own_log:
            self._log.close()
        at_exit.unregister(self.close)

    @property
    def left_behind(self) -> str | None:
        """The command that sends the rest after ``close``; None if nothing is left, or the log could not be written."""
        path = self._log.path
        if not self._is_left or path is None or not path.exists():
            return None
        return self._replay_command or _replay_command(path)

    def _own_log(self, path: str | Path | None) -> EventFile:
        if path is None:
            return EventFile(None)
        path = Path(path).absolute()
        found = read_log(path).target if path.exists() else None
        if found is not None and not found.is_same_run(self._target):
            run = f"run {found.run_id}" if found.run_id else "a run not started yet"
            raise ValueError(
                f"{path} holds metrics of {run}; send them first ({_replay_command(path)}) or name another file"
            )
        return EventFile(path, locks=True)

    def _leave_unsent(self) -> bool:
        """Write the part of the log that is in memory alone, and return whether there is anything to send later."""
        # The status of a run that was never started is not worth keeping.
        if not self._sender.has_any(beside_status=self.run_id is None):
            return False
        if self._log.path is None:
            self._log.path = Path(f"mlflow-metrics-{self.run_id or uuid.uuid4().hex}.jsonl").absolute()
            self._log.append(run_event(self._target), as_is=True)
        elif not self._log.has_failed:
            return True
        for entry in self._sender.waiting():
            self._log.append(entry_event(entry), as_is=True)
        return True

    def _wake(self) -> None:
        with self._changed:
            self._received += 1
            self._changed.notify_all()

    def _is_all_sent(self) -> bool:
        return self._done == self._received

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (self._is_all_sent() or time.monotonic() < self._retry_at):
                    wait = None if self._is_all_sent() else max(0.0, self._retry_at - time.monotonic())
                    self._changed.wait(wait)
                if self._closed:
                    break
                received = self._received
            try:
                has_more = self._send_some()
            except Exception as error:  # Whatever a client raises must neither end this thread nor the training.
                self._note_failure(error)
            else:
                self._note_success(received, has_more=has_more)
        # The last request may have opened it again.
        if self._is_own_log:
            self._log.close()

    def _send_some(self) -> bool:
        """Send one request, and return whether there was something to send."""
        if not self._sender.read() or self._closed:
            return False
        if self._client is None:
            self._client = store_client(self._tracking_uri)  # takes seconds, but in this thread nothing waits for it
        if self._target.run_id is None:
            self._target = replace(self._target, run_id=start_run(self._client, self._target))
            if self._log.path is not None:
                self._log.append(run_event(self._target), as_is=True)
        assert self._target.run_id is not None  # noqa: S101 - start_run has seen to it
        if not self._closed:
            self._sender.leaves_status = self._target.run_id == self._target.parent_id
            self._sender.send(self._client, self._target.run_id)
        return True

    def _note_failure(self, error: Exception) -> None:
        with self._changed:
            self._failures += 1
            self._last_error = f"{type(error).__name__}: {first_line(error)}"
            delay = retry_delay(self._failures, self._first_retry_seconds)
            self._retry_at = time.monotonic() + delay
            is_first = self._failures == 1
            self._changed.notify_all()
        if is_first:
            logger.warning("MLflow does not accept metrics (%s); they are kept and sent later", self._last_error)

    def _note_success(self, received: int, *, has_more: bool) -> None:
        with self._changed:
            if not has_more:
                self._done = received
            elif self._failures:
                logger.info("MLflow accepts metrics again")
                self._failures = 0
            is_patient = has_more and self._linger_seconds and not self._is_hurried and not self._sender.has_backlog()
            self._retry_at = time.monotonic() + self._linger_seconds if is_patient else -math.inf
            self._changed.notify_all()


def _replay_command(path: Path) -> str:
    return f"mirrorspark runs replay {shlex.quote(str(path))}"
