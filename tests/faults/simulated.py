"""Simulated processes: threads that take turns, a clock that jumps, and a network; a seed decides everything.

The code under test is real. Its modules get stand-ins for ``threading``, ``socket``, ``time`` and ``secrets``, and run
in the threads of a :class:`Room`, one at a time, until they have to wait. If all of them wait, the clock jumps.
"""

import functools
import heapq
import math
import random
import threading as real_threading
from collections.abc import Callable, Sequence
from typing import Any

# A room whose clock gets here has a thread that goes on for ever.
_LONGEST_SECONDS = 100_000.0

_here = real_threading.local()


class KilledError(BaseException):
    """Ends the threads of a process that was killed."""


class StandstillError(AssertionError):
    """Some threads wait for ever."""


def this_room() -> "Room":
    """Return the room of the calling thread."""
    return this_process().room


def this_process() -> "Process":
    """Return the process of the calling thread."""
    process: Process = _here.thread.process
    return process


class Room:
    """All that a seed decides: the threads' turns, the clock, the network."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.threads: list[Thread] = []
        self.listeners: dict[int, Any] = {}
        self.latency = self.chance.choice([0.001, 0.05, 2.0])
        self.capacity = self.chance.choice([4_000, 64_000])
        self.is_stopped = False
        self.error: BaseException | None = None
        self._switching = self.chance.choice([0.0, 0.05, 0.3])
        self._moments: list[float] = []
        self._is_empty = real_threading.Semaphore(0)

    def run(self, work: Callable[[], None], process: "Process") -> None:
        """Do ``work`` in a process; return when all threads have ended.

        Raises:
            StandstillError: They do not end.
            BaseException: The first error that ended a thread.
        """
        process.start(work, "main")
        following = self._following()
        assert following is not None
        following.turn.release()
        assert self._is_empty.acquire(timeout=100), "the simulation itself stands still"
        if self.error is not None:
            raise self.error

    def wait(self, is_ready: Callable[[], bool], seconds: float | None = None) -> bool:
        """Give way until it ``is_ready``, at most for some seconds; return whether it is."""
        me = _here.thread
        me.is_ready, me.deadline = is_ready, math.inf if seconds is None else self.now + seconds
        following = self._following()
        if following is not me:
            following.turn.release()
            me.turn.acquire()
        self.check()
        return is_ready()

    def point(self) -> None:
        """Let others go on, sometimes."""
        self.check()
        if self._switching and self.chance.random() < self._switching:
            self.wait(lambda: True)

    def check(self) -> None:
        """End this thread if its process was killed."""
        if self.is_stopped or this_process().is_killed:
            raise KilledError

    def sleep(self, seconds: float) -> None:
        self.wait(lambda: False, seconds)

    def delay(self) -> float:
        """Return the seconds that something is on its way."""
        return self.chance.uniform(0, self.latency)

    def some(self, most: int) -> int:
        """Return a number from 1 to ``most``, and often that."""
        return most if most <= 1 or self.chance.random() < 0.7 else self.chance.randint(1, most)

    def notice(self, moment: float) -> None:
        """Let the clock stop at a moment, since something may be ready then."""
        heapq.heappush(self._moments, moment)

    def stop(self, error: BaseException) -> None:
        """End all threads because of an error."""
        self.error = self.error or error
        self.is_stopped = True

    def leave(self, thread: "Thread") -> None:
        """Remove a thread that has ended, and let the next one go on."""
        self.threads.remove(thread)
        following = self._following()
        (self._is_empty if following is None else following.turn).release()

    def _following(self) -> "Thread | None":
        while self.threads:
            if self.is_stopped:
                return self.threads[0]
            now = self.now
            ready = [thread for thread in self.threads if thread.can_go_on(now)]
            if ready:
                return ready[0] if len(ready) == 1 else self.chance.choice(ready)
            while self._moments and self._moments[0] <= now:
                heapq.heappop(self._moments)
            moments = [max(thread.deadline, thread.process.paused_until) for thread in self.threads]
            moments += [thread.process.paused_until for thread in self.threads if thread.process.paused_until > now]
            self.now = min(moments + self._moments[:1])
            if self.now > _LONGEST_SECONDS:
                waiting = ", ".join(f"{thread.name} of {thread.process.name}" for thread in self.threads)
                self.stop(StandstillError(f"at {now:g} s these wait for ever: {waiting}"))
        return None


class Process:
    """A process on a machine of its own: its threads are paused and killed together."""

    def __init__(self, room: Room, name: str, skew_seconds: float = 0.0) -> None:
        self.room, self.name, self.skew_seconds = room, name, skew_seconds
        self.paused_until = self.cut_off_until = 0.0
        self.paused_seconds = 0.0
        self.is_killed = False
        self.refuses_threads = False
        self.sockets: list[Any] = []

    def start(self, work: Callable[[], None], name: str) -> "Thread":
        thread = Thread(target=work, name=name)
        thread.begin(self)
        return thread

    def pause(self, seconds: float) -> None:
        """Let none of its threads go on; it does not notice."""
        until = max(self.paused_until, self.room.now + seconds)
        self.paused_seconds += until - max(self.paused_until, self.room.now)
        self.paused_until = until

    def cut_off(self, seconds: float) -> None:
        """Let nothing arrive for some seconds; the system breaks connections that are silent for too long."""
        self.cut_off_until = max(self.cut_off_until, self.room.now + seconds)
        self.room.notice(self.cut_off_until)
        for mine in self.sockets:
            mine.hold(self.cut_off_until)

    def cut(self) -> None:
        """Break all of its connections."""
        for mine in self.sockets:
            mine.reset()
            mine.peer.reset()

    def kill(self) -> None:
        """End it; the system closes its connections."""
        self.is_killed = True
        for mine in self.sockets[:]:
            mine.end()


class Thread:
    """Simulated ``threading.Thread``."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., Any] = lambda: None,
        name: str = "a thread",
        args: Sequence[Any] = (),
        *,
        daemon: bool = True,
    ) -> None:
        self.name = name
        self.turn = real_threading.Semaphore(0)
        self.process: Process
        self.is_ready: Callable[[], bool] = lambda: True
        self.deadline = math.inf
        self._work = functools.partial(target, *args)
        self._has_begun = self._is_over = False

    def start(self) -> None:
        process = this_process()
        if process.refuses_threads:
            raise RuntimeError("can't start new thread")
        self.begin(process)
        process.room.point()

    def begin(self, process: Process) -> None:
        """Start in a process, from anywhere."""
        self.process = process
        self._has_begun = True
        process.room.threads.append(self)
        real_threading.Thread(target=self._run, daemon=True).start()

    def is_alive(self) -> bool:
        return self._has_begun and not self._is_over

    def join(self, timeout: float | None = None) -> None:
        if not self._has_begun:
            raise RuntimeError("cannot join thread before it is started")
        this_room().point()
        if not self._is_over:
            this_room().wait(lambda: self._is_over, timeout)

    def can_go_on(self, now: float) -> bool:
        process = self.process
        if process.is_killed:
            return True
        return now >= process.paused_until and (now >= self.deadline or self.is_ready())

    def _run(self) -> None:
        _here.thread = self
        self.turn.acquire()
        room = self.process.room
        try:
            room.check()
            self._work()
        except KilledError:
            pass
        except BaseException as error:
            room.stop(error)
        self._is_over = True
        room.leave(self)


class Lock:
    """Simulated ``threading.Lock``."""

    def __init__(self) -> None:
        self._is_held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        room = this_room()
        room.point()
        if self._is_held and not room.wait(lambda: not self._is_held, None if timeout < 0 else timeout):
            return False
        self._is_held = True
        return True

    def release(self) -> None:
        self._is_held = False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Condition(Lock):
    """Simulated ``threading.Condition``; a thread that takes its lock twice blocks for ever."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[list[bool]] = []

    def wait(self, timeout: float | None = None) -> bool:
        notified = [False]
        self._waiting.append(notified)
        self.release()
        is_notified = this_room().wait(lambda: notified[0], timeout)
        self.acquire()
        return is_notified

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        deadline = math.inf if timeout is None else this_room().now + timeout
        while not (result := predicate()) and this_room().now < deadline:
            self.wait(None if timeout is None else deadline - this_room().now)
        return result

    def notify_all(self) -> None:
        for notified in self._waiting:
            notified[0] = True
        self._waiting.clear()


class Event:
    """Simulated ``threading.Event``."""

    def __init__(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        this_room().point()

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        this_room().point()
        return self._is_set or this_room().wait(self.is_set, timeout)
