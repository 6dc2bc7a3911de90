"""Adaptive batching: requests that wait are computed together, in one thread, as it is free."""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mirrorspark.serving.errors import RequestError
from mirrorspark.serving.rows import Rows
from mirrorspark.serving.servable import Outputs, Servable


@dataclass(frozen=True)
class BatchLimits:
    """Limits on requests that are computed together, and on waiting ones.

    Attributes:
        most_rows: Rows of a batch; a request with more is a batch of its own.
        wait_seconds: How long a request waits for others where the thread is free; with 0 only those are joined that
            have come while the thread computed.
        most_waiting_rows: Rows that may wait; further requests are refused.
    """

    most_rows: int = 256
    wait_seconds: float = 0.0
    most_waiting_rows: int = 2048

    def __post_init__(self) -> None:
        if self.most_rows < 1 or self.most_waiting_rows < 1:
            raise ValueError(
                f"most_rows {self.most_rows} and most_waiting_rows {self.most_waiting_rows} must be 1 or more"
            )
        if not 0 <= self.wait_seconds < math.inf:
            raise ValueError(f"wait_seconds {self.wait_seconds} is not a time; give 0 or more")


@dataclass(frozen=True)
class ComputedBatch:
    """Size and times of a batch, for the metrics."""

    model: Servable
    requests: int
    rows: int
    seconds: float


@dataclass(eq=False)
class QueuedRequest:
    """A request that waits for its answer.

    Attributes:
        since: When it came, in the seconds of ``time.monotonic``.
        is_waiting: Whether it is in the queue.
    """

    model: Servable
    rows: Rows
    answer: "asyncio.Future[Outputs]"
    since: float = field(default_factory=time.monotonic)
    is_waiting: bool = True

    @property
    def size(self) -> int:
        """Number of its rows."""
        return self.rows.count


def take(waiting: "deque[QueuedRequest]", most_rows: int) -> list[QueuedRequest]:
    """Take the next batch out of ``waiting``: the oldest request, and those after it of the same model that fit.

    Requests of another model, or of another version, keep their places.
    """
    taken: list[QueuedRequest] = []
    left: list[QueuedRequest] = []
    rows, is_full = 0, False
    while waiting:
        request = waiting.popleft()
        if request.answer.done():  # its time is over
            request.is_waiting = False
            continue
        if taken and (is_full or request.model is not taken[0].model or rows + request.size > most_rows):
            is_full = is_full or request.model is taken[0].model
            left.append(request)
            continue
        taken.append(request)
        request.is_waiting = False
        rows += request.size
    waiting.extend(left)
    return taken


class Batcher:
    """Computes requests in batches. All but the model's own work happens in the event loop."""

    def __init__(self, limits: BatchLimits, on_batch: Callable[[ComputedBatch], None]) -> None:
        """Create the queue and the thread of :meth:`run`.

        Args:
            limits: The limits.
            on_batch: Called in the event loop after each batch.
        """
        self._limits, self._on_batch = limits, on_batch
        self._waiting: deque[QueuedRequest] = deque()
        self._waiting_rows = 0
        self._has_come = asyncio.Event()
        self._seconds_per_row = 0.0

    @property
    def waiting_rows(self) -> int:
        """Rows that wait to be computed."""
        return self._waiting_rows

    def check_room(self, rows: int = 1) -> None:
        """Check that ``rows`` more may wait.

        Raises:
            RequestError: They may not; the status is 429.
        """
        if self._waiting_rows and self._waiting_rows + rows > self._limits.most_waiting_rows:
            after = max(1, math.ceil(self._seconds_per_row * self._waiting_rows))
            raise RequestError(429, f"{self._waiting_rows} rows wait already; ask again in {after} s", after)

    async def compute(self, model: Servable, rows: Rows) -> Outputs:
        """Return the outputs for ``rows``. Cancelling the call frees its place in the queue.

        Raises:
            RequestError: The queue is full, or the model does not accept a row.
            Exception: The model's error.
        """
        self.check_room(rows.count)
        request = QueuedRequest(model, rows, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._waiting_rows += request.size
        self._has_come.set()
        try:
            return await request.answer
        finally:
            if request.is_waiting:
                self._waiting.remove(request)
                self._waiting_rows -= request.size

    async def run(self) -> None:
        """Compute batches until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="model") as thread:
            while True:
                await self._more()
                requests = take(self._waiting, self._limits.most_rows)
                self._waiting_rows = sum(request.size for request in self._waiting)
                if not requests:
                    continue
                rows = sum(request.size for request in requests)
                model, begin = requests[0].model, time.perf_counter()
                answers = await loop.run_in_executor(thread, _computed, model, requests)
                seconds = time.perf_counter() - begin
                self._seconds_per_row = seconds / rows
                for request, answer in zip(requests, answers, strict=True):
                    _finish(request, answer)
                self._on_batch(ComputedBatch(model, len(requests), rows, seconds))

    async def _more(self) -> None:
        """Return when a batch can begin."""
        while not self._waiting:
            self._has_come.clear()
            await self._has_come.wait()
        until = self._waiting[0].since + self._limits.wait_seconds
        while self._waiting and self._waiting_rows < self._limits.most_rows and (left := until - time.monotonic()) > 0:
            self._has_come.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._has_come.wait(), left)


def _computed(model: Servable, requests: Sequence[QueuedRequest]) -> Sequence[Outputs | Exception]:
    """Return the outputs of each request, or its error: an exception here would end all batches."""
    try:
        answers = model.compute([request.rows for request in requests])
    except Exception as error:
        answers = [error] * len(requests)
    # A future does not take this exception, which generators end with.
    return [
        RuntimeError("the model raised StopIteration") if isinstance(one, StopIteration) else one for one in answers
    ]


def _finish(request: QueuedRequest, answer: Outputs | Exception) -> None:
    if request.answer.done():
        return
    if isinstance(answer, Exception):
        request.answer.set_exception(answer)
    else:
        request.answer.set_result(answer)
