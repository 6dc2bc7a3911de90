"""The end of an attempt: the failures of its ranks, and the one that explains the others. Pure values."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Cause = Literal[
    "cancelled", "driver", "hung", "lost", "machine", "peer", "preempted", "spark", "start", "store", "unknown", "user"
]

CAUSES_BY_PRECEDENCE: tuple[Cause, ...] = (
    "cancelled",
    "user",
    "store",
    "machine",
    "preempted",
    "hung",
    "lost",
    "start",
    "spark",
    "driver",
    "unknown",
    "peer",
)
"""All causes. Of an attempt's failures, the one whose cause is first here explains the others."""

# Error type of a session whose JVM no longer answers.
SESSION_LOST = "SessionLost"

# Causes for which a rank has ended, or is known to have failed first: TensorFlow's errors elsewhere are consequences.
_ENDS_OF_A_RANK: frozenset[Cause] = frozenset(
    {"store", "machine", "preempted", "hung", "lost", "start", "spark", "driver"}
)


@dataclass(frozen=True)
class RankError:
    """One failure of an attempt.

    Attributes:
        cause: ``cancelled`` (the job was cancelled), ``user`` (model, data or configuration: it would recur),
            ``store`` (checkpoints can be neither written nor read), ``machine`` (it ran out of memory, threads, file
            descriptors or network), ``preempted`` (its machine is taken away),
            ``hung`` (the watchdog saw it stand still), ``lost`` (the process was killed), ``start`` (it never began to
            train: port, connection, import), ``spark`` (the job failed without an event of a rank: an executor is
            gone), ``driver`` (it received nothing from the driver for too long: that slept, or the network was down),
            ``unknown`` (a library raised it, and it may or may not recur) or ``peer`` (another rank's end, seen from
            here).
        rank: The rank that reported it; None for a report by Spark or the driver.
        type: Class of the exception, or ``killed``.
        time: Seconds since the epoch, on the rank's clock.
        is_from_tensorflow: TensorFlow's runtime raised it, not Python code.
        step: Optimizer steps done by then; None if unknown.
        epoch: Epoch in which the failure began, from 1, if known: for a loss that is not a number.
        step_in_epoch: Step of that epoch, likewise.
    """

    cause: Cause
    rank: int | None
    type: str
    message: str
    time: float
    traceback: str = field(default="", repr=False)  # Pages of text, also from a training that goes on.
    is_from_tensorflow: bool = False
    step: int | None = None
    epoch: int | None = None
    step_in_epoch: int | None = None

    @property
    def is_in_code(self) -> bool:
        """True if the traceback locates the failure: the user's code raised it, or a library on its behalf."""
        return self.cause in ("user", "unknown")

    @property
    def in_words(self) -> str:
        """The failure in words, with the rank or component that failed."""
        if self.cause == "hung":  # The watchdog's message names the rank, or several.
            return self.message
        component = "Spark" if self.cause in ("spark", "cancelled") or self.type == "BarrierJobError" else "driver"
        who = component if self.rank is None else f"rank {self.rank}"
        return f"{who}: {self.message}" if self.type == "killed" else f"{who}: {self.type}: {self.message}"

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> "RankError":
        """Read the ``error`` event of a rank or of its task; an unknown cause counts as the user's."""
        return cls(
            cause=event["cause"] if event["cause"] in CAUSES_BY_PRECEDENCE else "user",
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
        """Return the failure in a rank's outcome; None for a rank that finished, or stopped as it was asked to.

        Args:
            outcome: The launcher's result for this rank.
            rank: Number of the rank.
            time: Time of arrival at the driver, since an outcome has no time of its own.
        """
        match outcome["outcome"]:
            case "failed":
                return cls.from_event({**outcome, "rank": rank, "time": time})
            case "aborted" if outcome.get("cause") == "driver":
                return cls("driver", rank, "OutOfReach", outcome["reason"], time)
            case "aborted":
                # The rank was aborted because of another one, which is the reason.
                return cls("peer", rank, "Aborted", outcome.get("reason") or "aborted", time)
            case "stopped" if outcome.get("reason") == "preempted":
                message = f"its machine is taken away; it stopped after saving step {outcome.get('step')}"
                return cls("preempted", rank, "Preempted", message, time, step=outcome.get("step"))
        return None

    @classmethod
    def preempted(cls, rank: int, time: float) -> "RankError":
        """Return the failure of a rank that announced its preemption but not its end."""
        message = "its machine is taken away, and its executor exited before it could report its checkpoint"
        return cls("preempted", rank, "Preempted", message, time)


def known_errors(
    heard: Sequence[RankError],
    outcomes: Sequence[Mapping[str, Any]],
    time: float,
    connected: Collection[int] | None = None,
) -> tuple[RankError, ...]:
    """Return all failures of an attempt: those in the ranks' events, and those only in their outcomes.

    An event may be lost with its connection; an outcome is never lost, but has no traceback.

    Args:
        heard: Errors from ``error`` events, in the order of arrival.
        outcomes: Outcomes of all ranks, in rank order.
        time: Arrival of the outcomes.
        connected: Ranks whose task has sent an event, if known. Any other rank has never reached the driver, and would
            not reach it the next time either.
    """
    said = {(error.rank, error.cause, error.type) for error in heard}
    reported = [RankError.from_outcome(outcome, rank, time) for rank, outcome in enumerate(outcomes)]
    if connected is not None:
        reported = [_never_connected(e) if e is not None and e.rank not in connected else e for e in reported]
    return (*heard, *(e for e in reported if e is not None and (e.rank, e.cause, e.type) not in said))


def _never_connected(error: RankError) -> RankError:
    if error.cause != "driver":
        return error
    return replace(error, cause="start", message=f"{error.message}, and has never reached it; is its port open?")


Stop = Literal["requested", "grow"]


@dataclass(frozen=True)
class Attempt:
    """One launch and its end.

    Attributes:
        number: Counts from 1.
        epochs: Epochs completed when it finished; None if it did not finish.
        errors: Failures in the order of arrival.
        resumed_from: Step of the checkpoint it began with; 0 for a fresh start.
        committed: Step of the newest checkpoint when it ended; 0 if there was none.
        workers: Number of its workers; 0 if it could not be launched.
        stop: Reason for which the driver asked it to stop: a stop was ``requested``, or more workers can go on
            (``grow``); None if it was not asked.
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
        """Return the attempt from the result of ``dataclasses.asdict``, which may have been stored as JSON."""
        return cls(**{**document, "errors": tuple(RankError(**error) for error in document["errors"])})

    @property
    def finished(self) -> bool:
        """True if the training came to its end."""
        return self.epochs is not None

    @property
    def made_progress(self) -> bool:
        """True if it left a newer checkpoint than it began with."""
        return self.committed > self.resumed_from

    @property
    def sent_no_event(self) -> bool:
        """True if none of its ranks sent an event: Spark had no slots for them after all."""
        return any(error.cause == "start" and error.rank is None for error in self.errors)

    @property
    def first_error(self) -> RankError:
        """The failure to show: the earliest that is not a consequence of another rank's end.

        Ranks whose peer has ended fail as well, and their events may arrive first. Clocks of different machines differ,
        so the cause counts before the time. The step counts before the time, too, where errors of a kind report the
        step in which they began: a loss that is not a number spreads to all ranks a step later, and all notice it
        together.

        Raises:
            ValueError: There is no failure.
        """
        has_lost_a_rank = any(error.cause in _ENDS_OF_A_RANK for error in self.errors)

        def order(error: RankError) -> tuple[int, float]:
            # TensorFlow has many messages for a lost peer; if a rank is known to be lost, they need no classification.
            is_consequence = (
                has_lost_a_rank and error.is_from_tensorflow and (error.is_in_code or error.cause == "peer")
            )
            return CAUSES_BY_PRECEDENCE.index("peer" if is_consequence else error.cause), error.time

        if not self.errors:
            raise ValueError(f"attempt {self.number} ended without an error; ask for its errors first")
        first = min(self.errors, key=order)
        alike = [error for error in self.errors if (error.cause, error.type) == (first.cause, first.type)]
        if any(error.epoch is None or error.step_in_epoch is None for error in alike):
            return first
        return min(alike, key=lambda error: (error.epoch, error.step_in_epoch, error.time))
