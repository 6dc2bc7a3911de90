"""Finish, restart, raise or stop, decided from the attempts so far. Pure: values in, value out."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from training.supervision.elastic import Elastic

Cause = Literal["cancelled", "user", "store", "preempted", "hung", "lost", "start", "spark", "driver", "peer"]

# The type of the error of a session whose JVM does not answer any more.
SESSION_LOST = "SessionLost"

# Which failure of an attempt explains the others: the first cause that any of them has.
_EXPLAINING_FIRST: tuple[Cause, ...] = get_args(Cause)

# A rank is gone, or is known to have failed first: whatever TensorFlow says of it elsewhere is a consequence.
_ENDS_OF_A_RANK: frozenset[Cause] = frozenset({"store", "preempted", "hung", "lost", "start", "spark", "driver"})

# Failures that a machine which comes and goes may have.
_ENDS_OF_A_WORKER: frozenset[Cause] = frozenset({"preempted", "hung", "lost", "start", "spark", "peer"})

# Types of failures that come from outside, however often and wherever they come.
_NEVER_THE_USERS = frozenset({"killed", "RingError", "RingConnectError", "Aborted"})


@dataclass(frozen=True)
class RankError:
    """One failure of an attempt.

    Attributes:
        cause: ``cancelled`` (somebody ended the job), ``user`` (model, data or configuration: it would come again),
            ``store`` (checkpoints can be neither written nor read), ``preempted`` (its machine is taken away),
            ``hung`` (the watchdog saw it stand still), ``lost`` (the process was killed), ``start`` (it never came to
            train: port, connection, import), ``spark`` (the job failed without a word from a rank: an executor is
            gone), ``driver`` (it heard nothing of the driver for too long: that slept, or the network was down) or
            ``peer`` (another rank's end, seen from here).
        rank: Who said so; None when Spark or the driver did.
        type: Class of the exception, or ``killed``.
        message: What it says.
        time: Seconds since the epoch, on the rank's clock.
        traceback: Where it was raised, as text.
        is_from_tensorflow: Whether TensorFlow's runtime raised it, and not Python code.
        step: Optimizer steps done by then; None where nobody knows.
        epoch: Epoch in which it began, where it says so: a loss that is no number. From 1.
        step_in_epoch: Step of that epoch, likewise.
    """

    cause: Cause
    rank: int | None
    type: str
    message: str
    time: float
    traceback: str = field(default="", repr=False)  # pages of a training that goes on all the same
    is_from_tensorflow: bool = False
    step: int | None = None
    epoch: int | None = None
    step_in_epoch: int | None = None

    @property
    def in_words(self) -> str:
        """Who failed, and how."""
        if self.cause == "hung":  # what the watchdog found names the ranks itself, and may name several
            return self.message
        nobody = "Spark" if self.cause in ("spark", "cancelled") or self.type == "BarrierJobError" else "driver"
        who = nobody if self.rank is None else f"rank {self.rank}"
        return f"{who}: {self.message}" if self.type == "killed" else f"{who}: {self.type}: {self.message}"

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> "RankError":
        """Read the ``error`` event of a rank or of its task; a cause that is not known counts as the user's."""
        return cls(
            cause=event["cause"] if event["cause"] in _EXPLAINING_FIRST else "user",
            rank=event["rank"],
            type=event["type"],
            message=event["message"],
            time=event["time"],
            traceback=event.get("traceback", ""),
            is_from_tensorflow=event.get("is_from_tensorflow", False),
            step=event.get("step"),
            epoch=event.get("epoch"),
            step_in_epoch=event.get("step_in_epoch"),
        )

    @classmethod
    def from_outcome(cls, outcome: Mapping[str, Any], rank: int, time: float) -> "RankError | None":
        """Return the failure that a rank's outcome tells of; None for one that finished or stopped as it was told.

        Args:
            outcome: What the launcher returned for this rank.
            rank: Whose outcome it is.
            time: When the driver heard of it: an outcome holds no time.
        """
        match outcome["outcome"]:
            case "failed":
                return cls.from_event({**outcome, "rank": rank, "time": time})
            case "aborted" if outcome.get("cause") == "driver":
                return cls("driver", rank, "OutOfReach", outcome["reason"], time)
            case "aborted":
                # Told to end because of another rank, which is the reason.
                return cls("peer", rank, "Aborted", outcome.get("reason") or "aborted", time)
            case "stopped" if outcome.get("reason") == "preempted":
                message = f"its machine is taken away; it stopped after saving step {outcome.get('step')}"
                return cls("preempted", rank, "Preempted", message, time, step=outcome.get("step"))
        return None

    @classmethod
    def preempted(cls, rank: int, time: float) -> "RankError":
        """Return the failure of a rank that was told so and could not say how it ended."""
        message = "its machine is taken away, and its executor was gone before it could say what it saved"
        return cls("preempted", rank, "Preempted", message, time)


def known_errors(
    heard: Sequence[RankError],
    outcomes: Sequence[Mapping[str, Any]],
    time: float,
    connected: Collection[int] | None = None,
) -> tuple[RankError, ...]:
    """Return all failures of an attempt: what ranks said of themselves, and what only their outcomes tell.

    An event may be lost with its connection; an outcome never is, but it has no traceback.

    Args:
        heard: From ``error`` events, in the order of arrival.
        outcomes: Of all ranks, in rank order.
        time: When the outcomes came.
        connected: Ranks whose task has been heard, where that is known: any other one has not lost the driver, it has
            never had it, and would not the next time.
    """
    said = {(error.rank, error.cause, error.type) for error in heard}
    told = [RankError.from_outcome(outcome, rank, time) for rank, outcome in enumerate(outcomes)]
    if connected is not None:
        told = [_never_connected(e) if e is not None and e.rank not in connected else e for e in told]
    return (*heard, *(e for e in told if e is not None and (e.rank, e.cause, e.type) not in said))


def _never_connected(error: RankError) -> RankError:
    if error.cause != "driver":
        return error
    return replace(error, cause="start", message=f"{error.message}, and has never reached it; is its port open?")


Stop = Literal["requested", "grow"]


@dataclass(frozen=True)
class Attempt:
    """One launch and how it ended.

    Attributes:
        number: Counts from 1.
        epochs: Epochs completed when it finished; None when it did not.
        errors: Failures in the order of arrival.
        resumed_from: Step of the checkpoint it began with; 0 for a fresh start.
        committed: Step of the newest checkpoint when it ended; 0 when there was none.
        workers: Ranks it ran with; 0 when it could not be launched.
        stop: Why the driver asked it to stop before its end: somebody ``requested`` it, or more workers can go on
            (``grow``); None when it did not ask.
        committed_epochs: Epochs completed in that checkpoint.
    """

    number: int
    epochs: int | None
    errors: tuple[RankError, ...]
    resumed_from: int
    committed: int = 0
    workers: int = 1
    stop: Stop | None = None
    committed_epochs: int = 0

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Attempt":
        """Return the attempt of which ``dataclasses.asdict`` made ``document``, which may have been JSON since."""
        return cls(**{**document, "errors": tuple(RankError(**error) for error in document["errors"])})

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return self.epochs is not None

    @property
    def made_progress(self) -> bool:
        """Whether it left a newer checkpoint than it began with."""
        return self.committed > self.resumed_from

    @property
    def was_unheard(self) -> bool:
        """Whether none of its ranks was heard: Spark had no room for them after all."""
        return any(error.cause == "start" and error.rank is None for error in self.errors)

    @property
    def first_error(self) -> RankError:
        """The failure to show: the earliest that no other rank's end explains.

        Ranks whose peer is gone fail as well, and their words may arrive first. Clocks of different machines differ, so
        the cause counts before the time; and so does the step, where errors of a kind tell in which they began: a loss
        that is no number spoils those of all ranks a step later, and all notice together.

        Raises:
            ValueError: There is none.
        """
        has_lost_a_rank = any(error.cause in _ENDS_OF_A_RANK for error in self.errors)

        def order(error: RankError) -> tuple[int, float]:
            # TensorFlow has many words for a peer that is gone; when one is known to be, it needs none of ours.
            is_consequence = has_lost_a_rank and error.is_from_tensorflow and error.cause in ("user", "peer")
            return _EXPLAINING_FIRST.index("peer" if is_consequence else error.cause), error.time

        if not self.errors:
            raise ValueError(f"attempt {self.number} ended without an error; ask for its errors first")
        first = min(self.errors, key=order)
        alike = [error for error in self.errors if (error.cause, error.type) == (first.cause, first.type)]
        if any(error.epoch is None or error.step_in_epoch is None for error in alike):
            return first
        return min(alike, key=lambda error: (error.epoch, error.step_in_epoch, error.time))


@dataclass(frozen=True)
class Budgets:
    """How much bad luck a run takes before it gives up; each kind has its own budget.

    A budget is for an epoch: as soon as a checkpoint of a further one is committed, it is whole again. So a long
    training survives as many losses as it needs to, and one that gets nowhere ends. A driver that was out of reach
    costs nothing.

    Attributes:
        max_restarts: How often lost and hung workers may restart the training.
        max_preemptions: How often workers whose machine is taken away may.
        max_start_failures: How often workers that do not come to train may.
        max_store_faults: How often checkpoints that can be neither written nor read may.
        first_delay_seconds: Wait before the second restart in a row without a newer checkpoint; the first one waits for
            nothing, each further one twice as long.
        longest_delay_seconds: Limit of that.
        slots_wait_seconds: How long the run waits for the slots of its fewest workers.
    """

    max_restarts: int = 3
    max_preemptions: int = 100
    max_start_failures: int = 3
    max_store_faults: int = 10
    first_delay_seconds: float = 1.0
    longest_delay_seconds: float = 60.0
    slots_wait_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:  # NaN neither
                raise ValueError(f"{name} is {value}; use 0 or more")

    def delay_seconds(self, failures: int) -> float:
        """Return the wait after so many failures in a row without progress, at least 1."""
        if failures <= 1:
            return 0.0
        # Doubling more often would only build a large integer: no first delay is that short.
        return min(self.longest_delay_seconds, self.first_delay_seconds * 2.0 ** min(failures - 2, 1000))


# Which budget a cause draws on. User faults and cancelled jobs have none: they are never tried again. Nor has a driver
# that was out of reach: a laptop may sleep every night.
_BUDGETS: dict[Cause, str] = {
    "lost": "max_restarts",
    "hung": "max_restarts",
    "spark": "max_restarts",
    "peer": "max_restarts",
    "preempted": "max_preemptions",
    "start": "max_start_failures",
    "store": "max_store_faults",
}

# How often a training looks for more workers; and the pause once growing was in vain, twice as long each further time.
_GROWTH_SECONDS = 30.0
_GROWTH_PAUSE_SECONDS = 300.0
_LONGEST_GROWTH_PAUSE_SECONDS = 3600.0

Kind = Literal["finish", "restart", "raise", "stopped"]


@dataclass(frozen=True)
class Decision:
    """What the supervisor does next.

    Attributes:
        kind: ``finish``, ``restart``, ``raise`` or ``stopped`` (as somebody asked).
        reason: One line for people.
        delay_seconds: Wait before the restart.
        workers: How many go on, as far as slots are known now; 0 when none do.
    """

    kind: Kind
    reason: str
    delay_seconds: float = 0.0
    workers: int = 0


def decide(attempts: Sequence[Attempt], budgets: Budgets, slots: int, elastic: Elastic) -> Decision:
    """Return what to do after ``attempts``, of which the last has just ended.

    A fault of the user's code ends the run at once: it would come again. So does a job that somebody cancelled, and an
    error that came at the same step before, whatever its cause looked like. Everything else restarts the training until
    the budget of its kind is spent, but for a driver that was out of reach, which restarts it always.

    Args:
        attempts: All of the run, oldest first.
        budgets: What it may spend.
        slots: Slots that the cluster has for this run now.
        elastic: How many workers may use them.
    """
    last = attempts[-1]
    workers = elastic.next_workers(usable_slots(attempts, slots, elastic)) or elastic.workers.fewest
    if last.finished:
        return Decision("finish", f"finished after {_epochs(last)}")
    error = last.first_error if last.errors else None
    if error is not None and error.cause == "user":
        return Decision("raise", "an error of the model, the data or the configuration would come again")
    if last.stop == "requested":
        return Decision("stopped", f"stopped at step {last.committed:,}")
    if error is None:
        return Decision("restart", f"{workers} workers go on instead of {last.workers}", 0.0, workers)
    if error.cause == "cancelled":
        return Decision("raise", "somebody cancelled the job")
    if (earlier := _earlier_twin(error, attempts)) is not None:
        return Decision("raise", f"the same error came at step {error.step:,} in attempt {earlier} already")
    delay = budgets.delay_seconds(_failures_in_a_row(attempts))
    how = f"{f' in {delay:g} s' if delay else ''} from step {last.committed:,} with {workers} workers"
    if error.cause == "driver":
        return Decision("restart", f"the driver was out of reach; restart{how}", delay, workers)
    name = _BUDGETS[error.cause]
    limit = getattr(budgets, name)
    used = _used(name, attempts)
    if used > limit:
        return Decision("raise", f"{name} {limit} is spent, the same command {_what_it_does(attempts)}")
    return Decision("restart", f"restart {used} of {limit} ({name}){how}", delay, workers)


def usable_slots(attempts: Sequence[Attempt], slots: int, elastic: Elastic) -> int:
    """Return how many of ``slots`` there is reason to hope for; not below those of the fewest workers, if they exist.

    Spark counts slots that somebody else's job takes up as well. Where nobody was heard, fewer workers are tried, until
    a larger training runs or the pause before it may grow is over (`growth_pause_seconds`).
    """
    limit = slots
    for attempt in attempts:
        if attempt.was_unheard:
            limit = attempt.workers - 1
        elif attempt.stop == "grow" or attempt.workers > limit:
            limit = slots
    return min(slots, max(limit, elastic.workers.fewest))


def growth_pause_seconds(attempts: Sequence[Attempt]) -> float:
    """Return how long a training goes on before more workers are looked for, after ``attempts``.

    A machine that comes and goes would otherwise stop it again and again: the pause is longer after each growth in a
    row that was followed by a loss within the same epoch, or for which nobody came.
    """
    failures = 0
    launched = [attempt for attempt in attempts if attempt.workers]
    for before, attempt in zip((None, *launched), launched, strict=False):
        if attempt.was_unheard:
            failures += 1
        elif before is not None and before.stop == "grow":
            failures = failures + 1 if _was_in_vain(attempt, before) else 0
    if failures == 0:
        return _GROWTH_SECONDS
    return min(_LONGEST_GROWTH_PAUSE_SECONDS, _GROWTH_PAUSE_SECONDS * 2.0 ** (failures - 1))


def _was_in_vain(attempt: Attempt, before: Attempt) -> bool:
    """Return whether a training that had grown was broken off before an epoch was over."""
    is_lost = bool(attempt.errors) and attempt.first_error.cause in _ENDS_OF_A_WORKER
    return is_lost and attempt.committed_epochs <= before.committed_epochs


def _used(name: str, attempts: Sequence[Attempt]) -> int:
    """Return how many of ``attempts`` drew on a budget since the last epoch was committed."""
    now = attempts[-1].committed_epochs
    recent = [attempt for attempt in attempts if attempt.errors and attempt.committed_epochs >= now]
    return sum(1 for attempt in recent if _BUDGETS.get(attempt.first_error.cause) == name)


def _what_it_does(attempts: Sequence[Attempt]) -> str:
    last = attempts[-1]
    if last.committed:
        return f"goes on from step {last.committed:,}"
    # Where the store could never be read, nobody knows what it holds.
    return "starts anew" if any(attempt.workers for attempt in attempts) else "tries again"


def _failures_in_a_row(attempts: Sequence[Attempt]) -> int:
    """Return how many attempts failed since the last one that left a newer checkpoint, that one included."""
    count = 0
    for attempt in reversed(attempts):
        count += 1
        if attempt.made_progress:
            break
    return count


def _earlier_twin(error: RankError, attempts: Sequence[Attempt]) -> int | None:
    """Return the number of an earlier attempt that failed with the same error at the same step.

    A full disk and a machine that is taken away are nobody's code. A process that is killed has no step of its own.
    """
    if error.step is None or error.cause in ("store", "preempted", "hung") or error.type in _NEVER_THE_USERS:
        return None
    for attempt in attempts[:-1]:
        if attempt.errors and _signature(attempt.first_error) == _signature(error):
            return attempt.number
    return None


def _signature(error: RankError) -> tuple[str, str, int | None]:
    """Return what stays the same when an error comes again: addresses, ports and process ids do not."""
    message = re.sub(r"0x[0-9a-fA-F]+|\d+", "#", error.message)
    return error.type, " ".join(message.split()), error.step


def _epochs(attempt: Attempt) -> str:
    return f"{attempt.epochs} epoch" + ("" if attempt.epochs == 1 else "s")
