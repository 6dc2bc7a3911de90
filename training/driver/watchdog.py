"""Detection of a training that stands still: finds the rank that is the reason, and collects all stacks.

:class:`Watch` takes the ranks' events and judges, :class:`Watchdog` decides the response. Neither has a clock or sends
anything: :mod:`training.driver.running_attempt` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mirrorspark.training.protocol import PhaseLimits
from mirrorspark.training.protocol.messages import Event
from mirrorspark.training.protocol.outcomes import Phase, timing

# Time for the tasks to collect their ranks' stacks.
_STACKS_SECONDS = 5.0

# A verdict has to hold this long. A rank that has waited for another one beyond its own limit is excused until that one
# goes on; its own progress is reported with its next heartbeat only, and looks like a standstill until then.
_CONFIRMATION_SECONDS = 2 * timing.ALIVE_SECONDS

# A rank that has sent no event yet is in the first of these phases.
_START: Phase = "starting"
_CHECKPOINT: Phase = "checkpoint"
_ENDING: Phase = "ending"

# Phases in which ranks wait for one another. With TensorFlow's own collectives, a rank cannot report for which.
_IN_STEP: frozenset[Phase] = frozenset({"first_step", "training", "validation"})

# Events that show progress of a rank's work. `alive` does not count: it comes from a separate thread.
_PROGRESS = frozenset({"progress", "validation", "train_begin", "epoch_end", "train_end"})

# Counters in an `alive` event that grow with the rank's own work, including work on a checkpoint.
_COUNTERS = ("step", "epoch", "collectives", "beats")


@dataclass(frozen=True)
class Hang:
    """A training that stands still.

    Attributes:
        ranks: The ranks that are the reason.
        why: One line for people.
        step: Steps that the slowest of them has done; None if it has not begun to train.
        has_no_event: No rank or task has ever sent an event: nothing has been started.
    """

    ranks: tuple[int, ...]
    why: str
    step: int | None
    has_no_event: bool = False


@dataclass(frozen=True)
class _Rank:
    """The state of one rank; times are the driver's, in seconds.

    Attributes:
        moved: Time of the last progress of its work.
        last_event: Time of the last event of its process, None before the first.
        last_task_event: Time of the last event of its task, None before the first.
        counters: Counters of its work, from its last ``alive``.
        waiting_for: None, ``input`` or another rank.
        waiting_since: Start of that wait.
        state: State of the process, reported by its task.
    """

    rank: int
    phase: str
    moved: float
    last_event: float | None = None
    last_task_event: float | None = None
    counters: Mapping[str, Any] = field(default_factory=dict)
    waiting_for: str | None = None
    waiting_since: float = 0.0
    state: str = "running"

    @property
    def step(self) -> int:
        return int(self.counters.get("step") or 0)

    @property
    def is_stopped(self) -> bool:
        return self.state in ("stopped", "zombie")

    @property
    def may_wait_unawares(self) -> bool:
        """True if it may be in a collective that does not report for which rank it waits."""
        return self.phase in _IN_STEP and self.waiting_for is None and not self.counters.get("collectives")

    def is_silent(self, now: float) -> bool:
        # The last rank to leave may have disconnected already; only its task would know.
        return self.last_event is not None and self.phase != _ENDING and now - self.last_event > timing.SILENT_SECONDS

    def peer(self, now: float) -> int | None:
        """Return the rank that it waits for; the last report of a stopped or silent process is ignored."""
        if self.is_stopped or self.is_silent(now) or self.waiting_for is None:
            return None
        kind, _, number = self.waiting_for.partition(" ")
        return int(number) if kind == "rank" and number.isdecimal() else None


class Watch:
    """The driver's view of the ranks of one attempt, and its verdict."""

    def __init__(self, workers: int, limits: PhaseLimits, now: float) -> None:
        """Begin to watch ``workers`` ranks, none of which has sent an event yet."""
        self._limits = limits
        self._ranks = {rank: _Rank(rank, _START, now) for rank in range(workers)}

    def feed(self, event: Event, now: float) -> None:
        """Process an event that arrived at ``now``."""
        rank = self._ranks.get(event.get("rank", -1))
        if rank is None:
            return
        if event.get("from") == "task":
            self._ranks[rank.rank] = replace(rank, last_task_event=now, state=event.get("state") or rank.state)
            return
        kind, phase = event["event"], event.get("phase") or rank.phase
        has_moved = kind in _PROGRESS or phase != rank.phase
        if rank.phase == _CHECKPOINT != phase:
            self._let_go_on(now)
        if kind == "alive":
            counters = {name: event[name] for name in _COUNTERS if name in event}
            has_moved = has_moved or counters != rank.counters
            waiting_for = event.get("waiting_for")
            rank = replace(
                rank,
                counters=counters,
                waiting_for=waiting_for,
                waiting_since=now - float(event.get("waiting_seconds") or 0.0),
            )
        self._ranks[rank.rank] = replace(rank, phase=phase, last_event=now, moved=now if has_moved else rank.moved)

    def _let_go_on(self, now: float) -> None:
        """Restart the time limit of ranks that may have waited for a checkpoint, now that it is written."""
        self._ranks = {
            number: replace(rank, moved=now) if rank.may_wait_unawares else rank for number, rank in self._ranks.items()
        }

    def forgive(self, seconds: float) -> None:
        """Subtract ``seconds`` in which the driver could not listen from all waits."""

        def later(time: float | None) -> float | None:
            return None if time is None else time + seconds

        self._ranks = {
            number: replace(
                rank,
                moved=rank.moved + seconds,
                waiting_since=rank.waiting_since + seconds,
                last_event=later(rank.last_event),
                last_task_event=later(rank.last_task_event),
            )
            for number, rank in self._ranks.items()
        }

    def forget(self, rank: int) -> None:
        """Stop watching ``rank``: the training goes on without it."""
        self._ranks = {number: of for number, of in self._ranks.items() if number != rank}

    def is_training(self) -> bool:
        """True if every rank is past its first step, and none is about to leave."""
        return all(rank.phase in ("training", "validation") for rank in self._ranks.values())

    def verdict(self, now: float) -> Hang | None:
        """Return the hang and its reason, or None as no limit is passed.

        A rank that waits for another one is never the reason while that one has time left; nor is a rank that has
        reached the end before the others.
        """
        overdue = {rank.rank for rank in self._ranks.values() if self._is_overdue(rank, now)}
        blamed = {self._blame(rank, now) for rank in overdue}
        if (suspects := [self._ranks[rank] for rank in sorted(blamed & overdue)]) == []:
            return None
        culprits = self._most_telling(suspects, now)
        has_trained = any(rank.phase not in (_START, "connecting", "building", "restoring") for rank in culprits)
        step = min(rank.step for rank in culprits) if has_trained else None
        return Hang(tuple(rank.rank for rank in culprits), self._why(culprits, now), step, self._has_no_event())

    def _has_no_event(self) -> bool:
        return all(rank.last_event is None and rank.last_task_event is None for rank in self._ranks.values())

    def _is_overdue(self, rank: _Rank, now: float) -> bool:
        if self._stood(rank, now) <= self._limits.of(rank.phase):
            return False
        if not rank.may_wait_unawares or rank.is_stopped or rank.is_silent(now):
            return True
        saving = [other for other in self._ranks.values() if other.phase == _CHECKPOINT]
        return all(self._stood(other, now) > self._limits.of(_CHECKPOINT) for other in saving)

    def _stood(self, rank: _Rank, now: float) -> float:
        """Return the seconds for which ``rank`` has stood still; at the end, since the last rank arrived there."""
        if rank.phase != _ENDING:
            return now - rank.moved
        if any(other.phase != _ENDING for other in self._ranks.values()):
            return 0.0
        return now - max(other.moved for other in self._ranks.values())

    def _blame(self, rank: int, now: float) -> int:
        """Return the rank that ``rank`` ultimately waits for; in a cycle of waits, the rank that is furthest behind.

        Each rank knows only its neighbour, so the chain is followed rank by rank.
        """
        seen: list[int] = []
        at = rank
        while at not in seen:
            seen.append(at)
            peer = self._ranks[at].peer(now)
            if peer is None or peer not in self._ranks:
                return at
            at = peer
        circle = [self._ranks[number] for number in seen[seen.index(at) :]]
        return min(circle, key=lambda r: (r.step, int(r.counters.get("collectives") or 0), r.rank)).rank

    def _most_telling(self, suspects: list[_Rank], now: float) -> list[_Rank]:
        """Return the suspects with the strongest evidence; the others may wait for them without reporting it."""
        for has_evidence in (
            lambda rank: rank.is_stopped,
            lambda rank: rank.is_silent(now),
            lambda rank: rank.last_event is None,
            lambda rank: rank.step < self._furthest(),
            lambda rank: rank.waiting_for == "input",
        ):
            if found := [rank for rank in suspects if has_evidence(rank)]:
                return found
        return suspects

    def _furthest(self) -> int:
        return max(rank.step for rank in self._ranks.values())

    def _why(self, culprits: list[_Rank], now: float) -> str:
        if self._has_no_event():
            seconds = now - culprits[0].moved
            slots = "is a slot" if len(culprits) == 1 else f"are {len(culprits)} slots"
            return f"no rank has reported for {seconds:.0f} s since the start; {slots} free?"
        return "; ".join(self._describe(rank, now) for rank in culprits)

    def _describe(self, rank: _Rank, now: float) -> str:
        """Return the problem of a rank in words."""
        who, stood = f"rank {rank.rank}", f"{self._stood(rank, now):.0f} s"
        if rank.state == "stopped":
            return f"{who} is stopped (SIGSTOP)"
        if rank.state == "zombie":
            return f"{who} has exited, but its task has not noticed"
        if rank.is_silent(now):
            is_cut_off = rank.last_task_event is not None and now - rank.last_task_event > timing.SILENT_SECONDS
            what = "nor has its task: its machine is out of reach" if is_cut_off else "its process is stuck"
            return (
                f"{who} has sent nothing for {now - (rank.last_event or now):.0f} s{', ' if is_cut_off else ': '}{what}"
            )
        if rank.last_event is None:
            return f"{who} has not reported for {stood} since the start"
        behind = self._furthest() - rank.step
        steps = f"is {behind:,} step{'' if behind == 1 else 's'} behind, " if behind else ""
        if rank.waiting_for == "input":
            return f"{who} {steps or 'is '}waiting for input for {now - rank.waiting_since:.0f} s"
        limit = f"(limit {self._limits.of(rank.phase):g} s)"
        at = f"at step {rank.step:,}" if rank.phase in ("training", "validation") else f"in its phase {rank.phase}"
        waiting = f", waiting for {rank.waiting_for}" if rank.waiting_for else ""
        return f"{who} {steps}{'' if steps else 'has been '}{at} for {stood} {limit}{waiting}"


Move = Literal["ask_for_stacks", "report"]


class Watchdog:
    """The response to a verdict: ask for the stacks of all ranks, then report the hang and end the attempt.

    It never waits or sends: :meth:`tick` is called every second and returns the next move.

    Attributes:
        hang: The hang, while there is one.
    """

    def __init__(self, watch: Watch, now: float) -> None:
        self._watch = watch
        self._last_tick = now
        self._tasks: set[int] = set()
        self._stacks: dict[int, str] = {}
        self._hung_since = 0.0
        self._has_reported = False
        self._handling_since: float | None = None
        self.hang: Hang | None = None

    def on_event(self, event: Event, now: float) -> None:
        """Process an event of a rank or of a task."""
        self._watch.feed(event, now)
        if event.get("from") == "task":
            self._tasks.add(event["rank"])
            if event["event"] == "stacks" and self.hang is not None:
                self._stacks[event["rank"]] = event["text"]

    def handling_since(self, since: float | None) -> None:
        """Note since when the driver has been handling an event and so reads no other; None when it is done."""
        self._handling_since = since

    def tick(self, now: float) -> Move | None:
        """Check the ranks and return the next move; ``report`` is returned once."""
        gap, self._last_tick = now - self._last_tick, now
        if self._has_reported:
            return None
        is_blocked = self._handling_since is not None and now - self._handling_since > timing.STALL_SECONDS
        if gap > timing.STALL_SECONDS or is_blocked:
            # Unread events wait in the sockets; they are processed before any verdict.
            self._watch.forgive(gap)
            return None
        is_new, self.hang = self.hang is None, self._watch.verdict(now)
        if self.hang is None:
            self._stacks.clear()
            return None
        if is_new:
            self._hung_since = now
            return "ask_for_stacks"
        has_stacks = self._stacks.keys() >= self._tasks
        self._has_reported = now - self._hung_since >= (_CONFIRMATION_SECONDS if has_stacks else _STACKS_SECONDS)
        return "report" if self._has_reported else None

    def report(self, hang: Hang) -> Event:
        """Return the event ``hung``: the ranks, the reason, and the stacks that tasks have sent."""
        stacks = {str(rank): text for rank, text in sorted(self._stacks.items())}
        return {"event": "hung", "ranks": list(hang.ranks), "why": hang.why, "stacks": stacks}
