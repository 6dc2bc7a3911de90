"""The current activity of a rank: the training sets it at almost no cost, and another thread reads it."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

Phase = Literal[
    "starting", "connecting", "building", "restoring", "first_step", "training", "validation", "checkpoint", "ending"
]


# A read of a few batches takes milliseconds; a read that takes longer than this counts as a wait for input.
_LONG_READ_SECONDS = 2.0


class Activity:
    """The phase, step and waits of one rank.

    ``step``, ``epoch``, ``collectives`` and ``beats`` are plain attributes: the training sets them, which costs
    nothing. Waits and input take a lock for less than a microsecond.

    Attributes:
        step: Optimizer steps done.
        epoch: Epoch that is under way, from 1.
        collectives: Collective operations done.
        beats: Counts progress of a checkpoint or the model to begin from, to or from the store, while all else waits.
    """

    def __init__(
        self, on_phase: Callable[[Phase], None] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin in the phase ``starting``; ``on_phase`` is called with every later one."""
        self.phase: Phase = "starting"
        self.step = 0
        self.epoch = 0
        self.collectives = 0
        self.beats = 0
        self._on_phase = on_phase
        self._clock = clock
        self._lock = threading.Lock()
        # The waits of all threads: a collective may run in a thread of TensorFlow while another one waits for input.
        self._waits: dict[object, tuple[str, float]] = {}
        self._readers = 0
        self._reading_since = 0.0
        self._busy_since = 0.0
        self._busy_seconds = 0.0
        self._window_began = clock()

    def enter(self, phase: Phase) -> None:
        """Note that ``phase`` begins; a repetition is ignored."""
        if phase == self.phase:
            return
        self.phase = phase
        if self._on_phase is not None:
            self._on_phase(phase)

    def beat(self) -> None:
        """Count progress of a checkpoint; from any thread, since a lost count does not matter."""
        self.beats += 1

    @contextlib.contextmanager
    def within(self, phase: Phase) -> Iterator[None]:
        """Set ``phase`` for the block, and restore the previous phase afterwards."""
        before = self.phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Note that this thread waits for ``what`` (``input``, ``rank 1``) while the block runs."""
        wait = object()
        with self._lock:
            self._waits[wait] = (what, self._clock())
        try:
            yield
        finally:
            with self._lock:
                del self._waits[wait]

    @contextlib.contextmanager
    def input_busy(self) -> Iterator[None]:
        """Note that the input pipeline works while the block runs; several threads at once count as one."""
        with self._lock:
            if self._readers == 0:
                self._busy_since = self._reading_since = self._clock()
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if self._readers == 0:
                    self._busy_seconds += self._clock() - self._busy_since

    def snapshot(self) -> dict[str, object]:
        """Return the fields of an ``alive`` event; ``input_share`` is the share of time since the last snapshot."""
        with self._lock:
            now = self._clock()
            if self._readers:
                self._busy_seconds += now - self._busy_since
                self._busy_since = now
            window = now - self._window_began
            share = min(1.0, self._busy_seconds / window) if window > 0 else 0.0
            self._busy_seconds, self._window_began = 0.0, now
            # The longest wait explains the others.
            waiting_for, since = min(self._waits.values(), key=lambda wait: wait[1], default=(None, now))
            if waiting_for is None and self._readers and now - self._reading_since >= _LONG_READ_SECONDS:
                # Prefetched data does not last that long, so the training has begun to wait for its input.
                waiting_for, since = "input", self._reading_since
        return {
            "phase": self.phase,
            "step": self.step,
            "epoch": self.epoch,
            "collectives": self.collectives,
            "beats": self.beats,
            "waiting_for": waiting_for,
            "waiting_seconds": round(now - since, 3),
            "input_share": round(share, 4),
        }
