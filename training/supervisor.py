"""Owns the attempts of a run: launches, watches the ranks' events, restarts from the last commit, or gives up."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from callbacks import commit
from training.events import Event, EventAddress, EventServer
from training.failure_policy import Attempt, Decision, RankError, decide
from training.launcher import BarrierJobError
from training.plan import TrainingPlan

# What ranks say of a failure may still be on its way when Spark reports it.
_LATE_EVENTS_SECONDS = 5.0


class Launcher(Protocol):
    """Runs one attempt and returns the number of completed epochs."""

    def __call__(self, plan: TrainingPlan) -> int:
        """Raise ``BarrierJobError`` when a rank fails or is lost."""


class TrainingFailedError(RuntimeError):
    """Training gave up; ``attempts`` holds every attempt with its errors, the message the last one's first error."""

    def __init__(self, attempts: tuple[Attempt, ...]) -> None:
        self.attempts = attempts
        first = attempts[-1].first_error
        where = "Spark" if first.rank is None else f"rank {first.rank}"
        tries = f" after {len(attempts)} attempts" if len(attempts) > 1 else ""
        super().__init__(f"training failed{tries}: {where}: {first.type}: {first.message}")

    def __reduce__(self) -> tuple[type, tuple[tuple[Attempt, ...]]]:
        """Pickle by the attempts, not by the message."""
        return type(self), (self.attempts,)


@dataclasses.dataclass(frozen=True)
class Supervisor:
    """Everything that supervision needs.

    Attributes:
        launch: Runs one attempt.
        host: Interface of this machine to listen on.
        advertised: Address under which the ranks reach it.
        max_restarts: How often a lost worker may restart the training.
        on_event: Gets every event of the attempt's ranks, and the supervisor's own (``attempt``, ``restart``).
    """

    launch: Launcher
    host: str
    advertised: str
    max_restarts: int
    on_event: Callable[[Event], None]

    def supervise(self, plan: TrainingPlan) -> tuple[Attempt, ...]:
        """Return the attempts of a finished training.

        Args:
            plan: The plan of the first attempt; number, checkpoint and address are filled in here.

        Raises:
            TrainingFailedError: A fault of the user's code, or one lost worker too many.
        """
        attempts: tuple[Attempt, ...] = ()
        while True:
            attempts = (*attempts, self._attempt(plan, len(attempts) + 1))
            decision = decide(attempts, self.max_restarts)
            if decision is Decision.FINISH:
                return attempts
            if decision is Decision.RAISE:
                raise TrainingFailedError(attempts)
            self.on_event({"event": "restart", "attempt": len(attempts), "error": vars(attempts[-1].first_error)})

    def _attempt(self, plan: TrainingPlan, number: int) -> Attempt:
        checkpoint = commit.latest_committed(Path(plan.checkpoints))
        resumed_from = checkpoint.step if checkpoint else 0
        errors: list[RankError] = []

        def collect(event: Event) -> None:
            # A rank of an earlier attempt that dies late must not count against this one.
            if event.get("attempt") != number:
                return
            if event["event"] == "error":
                errors.append(RankError.from_event(event))
            self.on_event(event)

        self.on_event({"event": "attempt", "attempt": number, "workers": plan.workers, "resumed_from": resumed_from})
        with EventServer(self.host, collect, self.advertised) as server:
            mine = dataclasses.replace(
                plan,
                attempt=number,
                resume_from=str(checkpoint.path) if checkpoint else None,
                events=server.address,
            )
            try:
                epochs = self.launch(mine)
                failure = None
            except BarrierJobError as error:
                failure = error.error
                if failure.cause not in ("cancelled", "user"):
                    _wait_for_errors(errors)
        # Only now, with the server closed, has every rank been heard to its end.
        if failure is None:
            return Attempt(number, epochs, (), resumed_from)
        return Attempt(number, None, (*errors, failure), resumed_from)


def _wait_for_errors(errors: list[RankError]) -> None:
    """Give the rank that failed first a bounded time to be heard."""
    deadline = time.monotonic() + _LATE_EVENTS_SECONDS
    while time.monotonic() < deadline and not any(error.cause in ("user", "lost") for error in errors):
        time.sleep(0.05)


def no_address() -> EventAddress:
    """Return the placeholder that stands in a plan until an attempt listens."""
    return EventAddress("", 0, "")


def summary_of(attempts: tuple[Attempt, ...]) -> list[Mapping[str, object]]:
    """Return what MLflow and the event file keep of the attempts."""
    return [
        {
            "attempt": attempt.number,
            "resumed_from_step": attempt.resumed_from,
            "error": None if attempt.finished else vars(attempt.first_error) | {"traceback": ""},
        }
        for attempt in attempts
    ]
