"""The errors that end a supervised training."""

import signal

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import without_credentials
from mirrorspark.training.protocol.outcomes import Attempt


class TrainingFailedError(ClearError, RuntimeError):
    """Training gave up; ``attempts`` has all attempts and errors, and the message quotes the last one's first error."""

    def __init__(self, attempts: tuple[Attempt, ...], reason: str = "") -> None:
        """Build the error from the attempts and the reason why there is no further one."""
        self.attempts = attempts
        self.reason = reason
        first = attempts[-1].first_error
        tries = f" after {len(attempts)} attempts" if len(attempts) > 1 else ""
        # It is obvious why a user's own error or a cancelled job is not retried.
        why = f"; {reason}" if reason and first.cause not in ("user", "cancelled") else ""
        super().__init__(f"training failed{tries}: {first.in_words}{why}")
        if first.is_in_code and first.traceback:
            # The error was raised in another process: without its traceback, users could not locate it in their code.
            where = "the driver" if first.rank is None else f"rank {first.rank}"
            self.add_note(without_credentials(f"in {where}:\n{first.traceback}"))

    def __reduce__(self) -> tuple[type, tuple[tuple[Attempt, ...], str]]:
        """Pickle by the attempts, not by the message."""
        return type(self), (self.attempts, self.reason)


class TrainingStoppedError(ClearError, RuntimeError):
    """Training was stopped on request; ``step`` is that of the checkpoint it can resume from, 0 if there is none."""

    def __init__(self, attempts: tuple[Attempt, ...], step: int, reason: str) -> None:
        """Build the error from the attempts, the step and the reason."""
        self.attempts = attempts
        self.step = step
        self.reason = reason
        if step:
            where, goes_on = f"at step {step:,}", "goes on"
        elif any(attempt.workers for attempt in attempts):
            where, goes_on = "before the first checkpoint", "starts anew"
        else:  # The store may never have been read.
            where, goes_on = "before the first launch", "tries again"
        super().__init__(f"stopped {where} ({reason}); the same command {goes_on}")

    @property
    def is_interrupted(self) -> bool:
        """True if Ctrl-C has asked for it."""
        return self.reason == signal.SIGINT.name

    def __reduce__(self) -> tuple[type, tuple[tuple[Attempt, ...], int, str]]:
        """Pickle by the constructor's own arguments."""
        return type(self), (self.attempts, self.step, self.reason)


class NotEnoughSlotsError(ClearError, RuntimeError):
    """The cluster has had too few slots for the fewest workers for too long."""
