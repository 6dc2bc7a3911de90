"""Notices a training that stands still, says which rank is the reason, and ends the attempt with all stacks shown.

:class:`Watch` is fed with the ranks' events and judges, :class:`Watchdog` says what to do about it. Neither knows a
clock or sends anything: :mod:`training.supervision.running_attempt` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from training.channel.events import Event
from training.fitting.activity import Phase
from training.supervision.timing import SILENT_SECONDS, STALL_SECONDS

# How long the tasks may take to collect their ranks' stacks.
_STACKS_SECONDS = 5.0

# The phases of a rank in order, and the limit of each. A rank that has not been heard yet is in the first.
_START: Phase = "starting"
_CHECKPOINT: Phase = "checkpoint"
_ENDING: Phase = "ending"
_LIMITS: Mapping[str, str] = {
    _START: "start_seconds",
    "connecting": "start_seconds",
    "building": "build_seconds",
    "restoring": "start_seconds",
    "first_step": "first_step_seconds",
    "training": "step_seconds",
    "validation": "step_seconds",
    _CHECKPOINT: "checkpoint_seconds",
    _ENDING: "end_seconds",
}

# Phases in which ranks wait for one another. Under TensorFlow's own collectives none of them knows for whom.
_IN_STEP: frozenset[Phase] = frozenset({"first_step", "training", "validation"})

# What a rank says when it gets on with its work. That it is alive does not count: a thread of its own says so.
_PROGRESS = frozenset({"progress", "validation", "train_begin", "epoch_end", "train_end"})

# Counters in an `alive` event that move when the rank's own work does, that on a checkpoint included.
_COUNTERS = ("step", "epoch", "collectives", "beats")


@dataclass(frozen=True)
class Limits:
    """How long a rank may stand still before it counts as hung.

    Attributes:
        start_seconds: Until it is heard for the first time, and in each of: connecting, restoring.
        build_seconds: While the user's code builds; None for as long as ``start_seconds``.
        first_step_seconds: For the first step, in which graphs are compiled and data is read for the first time.
        step_seconds: Between two steps, in training and in validation.
        checkpoint_seconds: For a checkpoint, and to stop after being asked to.
        end_seconds: To leave, from when the last rank has come to the end.
    """

    start_seconds: float = 300.0
    build_seconds: float | None = None
    first_step_seconds: float = 600.0
    step_seconds: float = 120.0
    checkpoint_seconds: float = 600.0
    end_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; use a number of seconds above 0")

    def of(self, phase: str) -> float:
        """Return the limit of ``phase``; one that is not known has the limit of a step."""
        seconds: float | None = getattr(self, _LIMITS.get(phase, "step_seconds"))
        return self.start_seconds if seconds is None else seconds


@dataclass(frozen=True)
class Hang:
    """A training that stands still.

    Attributes:
        ranks: Who is the reason.
        why: One line for people.
        step: Steps that the slowest of them has done; None when it has not come to train.
        is_unheard: Whether neither a rank nor a task has ever been heard: nothing has been started.
    """

    ranks: tuple[int, ...]
    why: str
    step: int | None
    is_unheard: bool = False


@dataclass(frozen=True)
class _Rank:
    """What is known of one rank; times are the driver's, in seconds.

    Attributes:
        rank: Which one.
        phase: What it is doing.
        moved: When it last got on with its work.
        heard: When its process was last heard, None before the first time.
        task_heard: When its task was last heard, None before the first time.
        counters: Of its work, from its last ``alive``.
        waiting_for: Null, ``input`` or another rank.
        waiting_since: Since when it waits for that.
        state: Of the process, as its task sees it.
    """

    rank: int
    phase: str
    moved: float
    heard: float | None = None
    task_heard: float | None = None
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
        """Whether it may stand in a collective that does not tell for whom it waits."""
        return self.phase in _IN_STEP and self.waiting_for is None and not self.counters.get("collectives")

    def is_silent(self, now: float) -> bool:
        # The last rank to leave may have hung up already; only its task could tell.
        return self.heard is not None and self.phase != _ENDING and now - self.heard > SILENT_SECONDS

    def peer(self, now: float) -> int | None:
        """Return the rank it waits for; the word of a process that is stopped or silent no longer holds."""
        if self.is_stopped or self.is_silent(now) or self.waiting_for is None:
            return None
        kind, _, number = self.waiting_for.partition(" ")
        return int(number) if kind == "rank" and number.isdecimal() else None


class Watch:
    """What the driver knows of the ranks of one attempt, and what it makes of that."""

    def __init__(self, workers: int, limits: Limits, now: float) -> None:
        """Begin to watch ``workers`` ranks; nobody has been heard yet."""
        self._limits = limits
        self._ranks = {rank: _Rank(rank, _START, now) for rank in range(workers)}

    def feed(self, event: Event, now: float) -> None:
        """Take in an event that arrived at ``now``."""
        rank = self._ranks.get(event.get("rank", -1))
        if rank is None:
            return
        if event.get("from") == "task":
            self._ranks[rank.rank] = replace(rank, task_heard=now, state=event.get("state") or rank.state)
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
        self._ranks[rank.rank] = replace(rank, phase=phase, heard=now, moved=now if has_moved else rank.moved)

    def _let_go_on(self, now: float) -> None:
        """Let who may have waited for a checkpoint begin its step now that there is one."""
        self._ranks = {
            number: replace(rank, moved=now) if rank.may_wait_unawares else rank for number, rank in self._ranks.items()
        }

    def forgive(self, seconds: float) -> None:
        """Leave out ``seconds`` in which the driver could not listen."""

        def later(time: float | None) -> float | None:
            return None if time is None else time + seconds

        self._ranks = {
            number: replace(
                rank,
                moved=rank.moved + seconds,
                waiting_since=rank.waiting_since + seconds,
                heard=later(rank.heard),
                task_heard=later(rank.task_heard),
            )
            for number, rank in self._ranks.items()
        }

    def forget(self, rank: int) -> None:
        """Do not wait for ``rank`` any more: the training goes on without it."""
        self._ranks = {number: of for number, of in self._ranks.items() if number != rank}

    def is_training(self) -> bool:
        """Whether every rank is past its first step, and none about to leave."""
        return all(rank.phase in ("training", "validation") for rank in self._ranks.values())

    def verdict(self, now: float) -> Hang | None:
        """Return who is the reason that the training stands still, or None as long as no limit is passed.

        A rank that waits for another one is never the reason while that one has time left; nor is a rank that has come
        to the end before the others.
        """
        overdue = {rank.rank for rank in self._ranks.values() if self._is_overdue(rank, now)}
        blamed = {self._blame(rank, now) for rank in overdue}
        if (suspects := [self._ranks[rank] for rank in sorted(blamed & overdue)]) == []:
            return None
        culprits = self._most_telling(suspects, now)
        has_trained = any(rank.phase not in (_START, "connecting", "building", "restoring") for rank in culprits)
        step = min(rank.step for rank in culprits) if has_trained else None
        return Hang(tuple(rank.rank for rank in culprits), self._why(culprits, now), step, self._is_unheard())

    def _is_unheard(self) -> bool:
        return all(rank.heard is None and rank.task_heard is None for rank in self._ranks.values())

    def _is_overdue(self, rank: _Rank, now: float) -> bool:
        if self._stood(rank, now) <= self._limits.of(rank.phase):
            return False
        if not rank.may_wait_unawares or rank.is_stopped or rank.is_silent(now):
            return True
        saving = [other for other in self._ranks.values() if other.phase == _CHECKPOINT]
        return all(self._stood(other, now) > self._limits.of(_CHECKPOINT) for other in saving)

    def _stood(self, rank: _Rank, now: float) -> float:
        """Return for how many seconds ``rank`` has stood still; at the end, since the last one has come there."""
        if rank.phase != _ENDING:
            return now - rank.moved
        if any(other.phase != _ENDING for other in self._ranks.values()):
            return 0.0
        return now - max(other.moved for other in self._ranks.values())

    def _blame(self, rank: int, now: float) -> int:
        """Return who ``rank`` waits for in the end; where the ranks wait in a circle, the one that is furthest behind.

        Each rank knows its neighbour only, so the blame goes from hand to hand.
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
        """Return the suspects with the strongest evidence against them; the others wait for those, perhaps unawares."""
        for has_evidence in (
            lambda rank: rank.is_stopped,
            lambda rank: rank.is_silent(now),
            lambda rank: rank.heard is None,
            lambda rank: rank.step < self._furthest(),
            lambda rank: rank.waiting_for == "input",
        ):
            if found := [rank for rank in suspects if has_evidence(rank)]:
                return found
        return suspects

    def _furthest(self) -> int:
        return max(rank.step for rank in self._ranks.values())

    def _why(self, culprits: list[_Rank], now: float) -> str:
        if self._is_unheard():
            seconds = now - culprits[0].moved
            slots = "is a slot" if len(culprits) == 1 else f"are {len(culprits)} slots"
            return f"no rank has been heard for {seconds:.0f} s since the start; {slots} free?"
        return "; ".join(self._describe(rank, now) for rank in culprits)

    def _describe(self, rank: _Rank, now: float) -> str:
        """Return what is wrong with a rank, in words."""
        who, stood = f"rank {rank.rank}", f"{self._stood(rank, now):.0f} s"
        if rank.state == "stopped":
            return f"{who} is stopped (SIGSTOP)"
        if rank.state == "zombie":
            return f"{who} has ended, and nobody has noticed"
        if rank.is_silent(now):
            is_cut_off = rank.task_heard is not None and now - rank.task_heard > SILENT_SECONDS
            what = "nor does its task: its machine is out of reach" if is_cut_off else "its process is stuck"
            return f"{who} says nothing for {now - (rank.heard or now):.0f} s{', ' if is_cut_off else ': '}{what}"
        if rank.heard is None:
            return f"{who} has not been heard for {stood} since the start"
        behind = self._furthest() - rank.step
        steps = f"is {behind:,} step{'' if behind == 1 else 's'} behind, " if behind else ""
        if rank.waiting_for == "input":
            return f"{who} {steps or 'is '}waiting for input for {now - rank.waiting_since:.0f} s"
        limit = f"(limit {self._limits.of(rank.phase):g} s)"
        at = f"at step {rank.step:,}" if rank.phase in ("training", "validation") else f"in its phase {rank.phase}"
        waiting = f", waiting for {rank.waiting_for}" if rank.waiting_for else ""
        return f"{who} {steps}{'has stood' if not steps else 'standing'} {at} for {stood} {limit}{waiting}"


Move = Literal["ask_for_stacks", "report"]


class Watchdog:
    """Turns a verdict into what is to be done about it: ask for the stacks of all ranks, then tell and end the attempt.

    Nothing in here waits or sends: :meth:`tick` is to be called every second, and says what to do.

    Attributes:
        hang: What it has found, once it has.
    """

    def __init__(self, watch: Watch, now: float) -> None:
        self._watch = watch
        self._last_tick = now
        self._tasks: set[int] = set()
        self._stacks: dict[int, str] = {}
        self._deadline = 0.0
        self._has_reported = False
        self._handling_since: float | None = None
        self.hang: Hang | None = None

    def hear(self, event: Event, now: float) -> None:
        """Take in an event of a rank or of a task."""
        self._watch.feed(event, now)
        if event.get("from") == "task":
            self._tasks.add(event["rank"])
            if event["event"] == "stacks" and self.hang is not None:
                self._stacks[event["rank"]] = event["text"]

    def handling_since(self, since: float | None) -> None:
        """Take note that the driver handles an event, and hears no other one meanwhile; None when that is over."""
        self._handling_since = since

    def tick(self, now: float) -> Move | None:
        """Look after the ranks, and say what is to be done; ``report`` comes once."""
        gap, self._last_tick = now - self._last_tick, now
        if self._has_reported:
            return None
        if self.hang is not None:
            self._has_reported = now >= self._deadline or self._stacks.keys() >= self._tasks
            return "report" if self._has_reported else None
        is_blocked = self._handling_since is not None and now - self._handling_since > STALL_SECONDS
        if gap > STALL_SECONDS or is_blocked:
            # The ranks' words wait in the sockets; what they say comes before any verdict.
            self._watch.forgive(gap)
            return None
        self.hang = self._watch.verdict(now)
        if self.hang is None:
            return None
        self._deadline = now + _STACKS_SECONDS
        return "ask_for_stacks"

    def report(self, hang: Hang) -> Event:
        """Return the event ``hung``: who, why, and the stacks of the ranks whose tasks have answered."""
        stacks = {str(rank): text for rank, text in sorted(self._stacks.items())}
        return {"event": "hung", "ranks": list(hang.ranks), "why": hang.why, "stacks": stacks}
