"""The supervision of a worker by its task: obeys the driver, reports on the process, and returns its outcome."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from queue import Empty, SimpleQueue
from typing import Any, Literal

import psutil

from mirrorspark.storage import out_of_memory, without_credentials
from mirrorspark.training.executor.child_process import Tail
from mirrorspark.training.executor.worker_control import Outcome
from mirrorspark.training.executor.worker_failure import MESSAGE_LENGTH, MORE_MEMORY
from mirrorspark.training.executor.worker_process import WorkerProcess
from mirrorspark.training.protocol.messages import EventClient
from mirrorspark.training.protocol.outcomes import Cause, timing

_TICK_SECONDS = 0.5
# A worker answers before its process ends, so the answer is in the pipe by then.
_LAST_WORDS_SECONDS = 1.0

State = Literal["running", "sleeping", "stopped", "zombie"]

_STATES: dict[str, State] = {
    psutil.STATUS_RUNNING: "running",
    psutil.STATUS_STOPPED: "stopped",
    psutil.STATUS_TRACING_STOP: "stopped",
    psutil.STATUS_ZOMBIE: "zombie",
    psutil.STATUS_DEAD: "zombie",
}

# A command of the driver, {"answer": ...} with a line of the worker, or {"answer": None} at its end.
Message = dict[str, Any]


class RankMonitor:
    """A task's supervision of its worker."""

    def __init__(
        self,
        process: WorkerProcess,
        events: EventClient,
        messages: "SimpleQueue[Message]",
        tail: Tail,
        lease_seconds: float,
    ) -> None:
        self._process = process
        self._events = events
        self._messages = messages
        self._tail = tail
        self._lease_seconds = lease_seconds
        self._has_taken_over = False
        self._has_closed_answers = False
        self._kernel_kills = out_of_memory.kernel_kills()
        self._last_bytes: int | None = None
        self._observed: psutil.Process | None = None
        with contextlib.suppress(psutil.NoSuchProcess):  # A process that has ended already has its exit status.
            self._observed = psutil.Process(process.pid)
        self._host = socket.gethostname()
        threading.Thread(target=self._read, name="answers", daemon=True).start()

    def wait(self) -> Outcome:
        """Wait for the worker's end, or end it, and return the outcome."""
        next_system = time.monotonic()
        while True:
            self._last_bytes = self._resident_bytes()
            if time.monotonic() >= next_system:
                next_system += timing.SYSTEM_SECONDS
                self._report_system()
            if self._events.silent_seconds > self._lease_seconds:
                return _aborted(f"no word from the driver for {self._lease_seconds:g} s") | {"cause": "driver"}
            if (outcome := self._handle_next(_TICK_SECONDS)) is not None:
                return outcome
            # The end of the answers' pipe proves nothing: a process that the training has started may hold it open.
            status = self._process.wait(_TICK_SECONDS if self._has_closed_answers else 0)
            if status is not None:
                return self._last_words() or self._end_without_a_word(status)

    def _handle_next(self, timeout_seconds: float) -> Outcome | None:
        try:
            return self._handle(self._messages.get(timeout=timeout_seconds))
        except Empty:
            return None

    def _last_words(self) -> Outcome | None:
        """Return the outcome that an ended worker has left in its pipe, or None."""
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        while not self._has_closed_answers and (seconds := deadline - time.monotonic()) > 0:
            if (outcome := self._handle_next(seconds)) is not None:
                return outcome
        return None

    def _handle(self, message: Message) -> Outcome | None:
        match message:
            case {"answer": None}:
                self._has_closed_answers = True
            case {"answer": {"outcome": _} as outcome}:
                return dict(outcome)
            case {"answer": {"ready": _}}:
                self._has_taken_over = True
            case {"command": "abort"}:
                return _aborted(str(message.get("reason") or "the driver said so"))
            case {"command": "stop"}:
                if message.get("signal") == signal.SIGTERM:
                    # Reported at once: if the executor's JVM dies as well, no outcome arrives. SIGHUP also comes when
                    # the JVM has crashed.
                    self._events.send({"event": "preemption"})
                self._process.send(json.dumps({"stop": message.get("reason") or "driver"}).encode() + b"\n")
            case {"command": "stacks"}:
                # The signal would end a worker that has not installed its handler yet.
                text = self._process.stacks() if self._has_taken_over else ""
                self._events.send({"event": "stacks", "text": text, "state": self._state()})
        return None

    def _end_without_a_word(self, status: int) -> Outcome:
        if status < 0:
            words = out_of_memory.killed_by(status)
            if (why := self._lack_of_memory(-status)) is not None:
                return report_failure(self._events, "machine", "killed", f"{words} {why}; {MORE_MEMORY}")
            # TensorFlow's coordination service, used only in trainings on GPUs, aborts workers whose peer has ended.
            has_gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "") not in ("", "-1")
            is_consequence = -status == signal.SIGABRT and has_gpus
            return report_failure(self._events, "peer" if is_consequence else "lost", "killed", words)
        cause: Cause = "lost" if self._has_taken_over else "start"
        message = f"left with status {status} without a report\n{self._tail.text()}"
        return report_failure(self._events, cause, "exited", message)

    def _lack_of_memory(self, number: int) -> str | None:
        """Return the evidence that a worker which a signal has ended had no memory left; None without any."""
        if number == signal.SIGKILL and out_of_memory.kernel_kills() > self._kernel_kills:
            size = "" if self._last_bytes is None else f"; it last had {self._last_bytes / 2**30:.1f} GiB"
            return f"when the kernel of {self._host} ended a process because memory had run out{size}"
        # C++ aborts a process that gets none.
        if number == signal.SIGABRT and out_of_memory.is_reported_in(self._tail.text()):
            return "when it got no more memory"
        return None

    def _resident_bytes(self) -> int | None:
        """Return the worker's memory now; of one that has ended, the last that was seen."""
        with contextlib.suppress(psutil.Error):
            # A zombie has none.
            return (self._observed and self._observed.memory_info().rss) or self._last_bytes
        return self._last_bytes

    def _report_system(self) -> None:
        if self._observed is None:
            return
        with contextlib.suppress(psutil.Error), self._observed.oneshot():
            self._events.send(
                {
                    "event": "system",
                    "cpu_percent": self._observed.cpu_percent(),
                    "memory_bytes": self._observed.memory_info().rss,
                    "threads": self._observed.num_threads(),
                    "state": self._state(),
                    "host": self._host,
                    "process": self._process.pid,
                }
            )

    def _state(self) -> State:
        if self._observed is None:
            return "zombie"
        try:
            return _STATES.get(self._observed.status(), "sleeping")
        except psutil.NoSuchProcess:
            return "zombie"

    def _read(self) -> None:
        with contextlib.suppress(ValueError):  # The task's end has closed the stream.
            for line in self._process.answers:
                self._messages.put({"answer": json.loads(line)})
        self._messages.put({"answer": None})


def report_failure(events: EventClient, cause: Cause, type_: str, message: str) -> Outcome:
    """Return the outcome of a worker that could not report it itself, and send it to the driver at once."""
    # Secrets are removed before the text is cut, since half a secret would not be found.
    failure = {"cause": cause, "type": type_, "message": without_credentials(message)[-MESSAGE_LENGTH:], "step": None}
    events.send({"event": "error"} | failure)
    return {"outcome": "failed"} | failure


def _aborted(reason: str) -> Outcome:
    return {"outcome": "aborted", "reason": reason}
