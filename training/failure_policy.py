"""Finish, restart, raise or stop, decided from the attempts so far. Pure: values in, value out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from training.elastic import Elastic

Cause = Literal["cancelled", "user", "store", "preempted", "hung", "lost", "start", "spark", "peer"]

# Which failure of an attempt explains the others: the first cause that any of them has.
_EXPLAINING_FIRST: tuple[Cause, ...] = get_args(Cause)

# A rank is gone, or is known to have failed first: whatever TensorFlow says of it elsewhere is a consequence.
_ENDS_OF_A_RANK: frozenset[Cause] = frozenset({"store", "preempted", "hung", "lost", "start", "spark"})

# Types of failures that come from outside, however often and wherever they come.
_NEVER_THE_USERS = frozenset({"killed", "RingError", "RingConnectError", "Aborted"})


@dataclass(frozen=True)
class RankError:
    """One failure of an attempt.

    Attributes:
        cause: ``cancelled`` (somebody ended the job), ``user`` (model, data or configuration: it would come again),
            ``store`` (checkpoints can be neither written nor read), ``preempted`` (its machine is taken away),
            ``hung`` (the watchdog saw it stand still), ``lost`` (the process was killed), ``start`` (it never came to
            train: port, connection, import), ``spark`` (the job failed without a word from a rank: an executor is gone)
            or ``peer`` (another rank's end, seen from here).
        rank: Who said so; None when Spark or the driver did.
        type: Class of the exception, or ``killed``.
        message: What it says.
        time: Seconds since the epoch, on the rank's clock.
        traceback: Where it was raised, as text.
        is_from_tensorflow: Whether TensorFlow's runtime raised it, and not Python code.
        step: Optimizer steps done by then; None where nobody knows.
    """

    cause: Cause
    rank: int | None
    type: str
    message: str
    time: float
    traceback: str = ""
    is_from_tensorflow: bool = False
    step: int | None = None

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
            case "aborted":
                # Told to end because of another rank, or out of the driver's reach: in either case not the reason.
                return cls("peer", rank, "Aborted", outcome.get("reason") or "aborted", time)
            case "stopped" if outcome.get("reason") == "preempted":
                message = f"its machine is taken away; it stopped after saving step {outcome.get('step')}"
                return cls("preempted", rank, "Preempted", message, time, step=outcome.get("step"))
        return None


def known_errors(
    heard: Sequence[RankError], outcomes: Sequence[Mapping[str, Any]], time: float
) -> tuple[RankError, ...]:
    """Return all failures of an attempt: what ranks said of themselves, and what only their outcomes tell.

    An event may be lost with its connection; an outcome never is, but it has no traceback.

    Args:
        heard: From ``error`` events, in the order of arrival.
        outcomes: Of all ranks, in rank order.
        time: When the outcomes came.
    """
    said = {(error.rank, error.cause, error.type) for error in heard}
    told = [RankError.from_outcome(outcome, rank, time) for rank, outcome in enumerate(outcomes)]
    return (*heard, *(e for e in told if e is not None and (e.rank, e.cause, e.type) not in said))


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
    """

    number: int
    epochs: int | None
    errors: tuple[RankError, ...]
    resumed_from: int
    committed: int = 0
    workers: int = 1
    stop: Stop | None = None

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return self.epochs is not None

    @property
    def made_progress(self) -> bool:
        """Whether it left a newer checkpoint than it began with."""
        return self.committed > self.resumed_from

    @property
    def first_error(self) -> RankError:
        """The failure to show: the earliest that no other rank's end explains.

        Ranks whose peer is gone fail as well, and their words may arrive first. Clocks of different machines differ, so
        the cause counts before the time.

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
        return min(self.errors, key=order)


@dataclass(frozen=True)
class Budgets:
    """How much bad luck a run takes before it gives up; each kind has its own budget, over the whole run.

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


# Which budget a cause draws on. User faults and cancelled jobs have none: they are never tried again.
_BUDGETS: dict[Cause, str] = {
    "lost": "max_restarts",
    "hung": "max_restarts",
    "spark": "max_restarts",
    "peer": "max_restarts",
    "preempted": "max_preemptions",
    "start": "max_start_failures",
    "store": "max_store_faults",
}

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
    the budget of its kind is spent.

    Args:
        attempts: All of the run, oldest first.
        budgets: What it may spend.
        slots: Slots that the cluster has for this run now.
        elastic: How many workers may use them.
    """
    last = attempts[-1]
    workers = elastic.next_workers(slots) or elastic.workers.fewest
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
    name = _BUDGETS[error.cause]
    limit = getattr(budgets, name)
    used = sum(1 for attempt in attempts if attempt.errors and _BUDGETS.get(attempt.first_error.cause) == name)
    if used > limit:
        then = f"goes on from step {last.committed:,}" if last.committed else "starts anew"
        return Decision("raise", f"{name} {limit} is spent, the same command {then}")
    delay = budgets.delay_seconds(_failures_in_a_row(attempts))
    when = f" in {delay:g} s" if delay else ""
    reason = f"restart {used} of {limit} ({name}){when} from step {last.committed:,} with {workers} workers"
    return Decision("restart", reason, delay, workers)


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
