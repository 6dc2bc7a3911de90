"""The decision after an attempt: finish, restart, raise or stop. A pure function of the attempts so far."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from mirrorspark.training.protocol import Budgets, Elastic
from mirrorspark.training.protocol.outcomes import Attempt, Cause, RankError

# Causes that a single bad machine can produce, for example one that the training has just grown onto.
_ENDS_OF_A_WORKER: frozenset[Cause] = frozenset({"machine", "preempted", "hung", "lost", "start", "spark", "peer"})

# Types of failures with an external reason, even when they repeat at the same step.
_EXTERNAL_TYPES = frozenset({"killed", "RingError", "RingConnectError", "Aborted"})

# The budget of each cause. User faults and cancelled jobs have none, since they are never retried. A driver that was
# out of reach has none either, since its restarts are unlimited: a laptop may sleep every night.
_BUDGETS: dict[Cause, str] = {
    "lost": "max_restarts",
    "machine": "max_restarts",
    "hung": "max_restarts",
    "spark": "max_restarts",
    "peer": "max_restarts",
    "preempted": "max_preemptions",
    "start": "max_start_failures",
    "store": "max_store_faults",
}

# Time between two looks for more workers, and the pause after a growth in vain, which doubles each further time.
_GROWTH_SECONDS = 30.0
_GROWTH_PAUSE_SECONDS = 300.0
_LONGEST_GROWTH_PAUSE_SECONDS = 3600.0

Kind = Literal["finish", "restart", "raise", "stopped"]


@dataclass(frozen=True)
class Decision:
    """The supervisor's next action.

    Attributes:
        kind: ``finish``, ``restart``, ``raise`` or ``stopped`` (on request).
        reason: One line for people.
        delay_seconds: Wait before the restart.
        workers: Number of workers after a restart, by the slots known now; 0 for no restart.
    """

    kind: Kind
    reason: str
    delay_seconds: float = 0.0
    workers: int = 0


def decide(attempts: Sequence[Attempt], budgets: Budgets, slots: int, elastic: Elastic) -> Decision:
    """Return the action after ``attempts``, the last of which has just ended.

    The rules are those of the restart policy in docs/architecture.md, in the order of its table. A budget counts the
    failures of its causes since the last epoch was committed.

    Args:
        attempts: All attempts of the run, oldest first.
        budgets: The run's budgets.
        slots: Slots that the cluster has for this run now.
        elastic: The allowed numbers of workers.
    """
    last = attempts[-1]
    workers = elastic.next_workers(usable_slots(attempts, slots, elastic)) or elastic.workers.fewest
    if last.finished:
        return Decision("finish", f"finished after {_epochs(last)}")
    if last.errors and last.first_error.cause == "user":
        return Decision("raise", "an error of the model, the data or the configuration would come again")
    if last.stop == "requested":
        return Decision("stopped", f"stopped at step {last.committed:,}")
    # The ranks have left a checkpoint and stopped, because there are slots for more workers. If one has failed on the
    # way, its failure decides.
    if last.stop == "grow" and not last.errors:
        return Decision("restart", f"{workers} workers go on instead of {last.workers}", 0.0, workers)
    error = last.first_error
    if error.cause == "cancelled":
        return Decision("raise", "somebody cancelled the job")
    if (earlier := _earlier_twin(error, attempts)) is not None:
        return Decision("raise", f"the same error came at step {error.step:,} in attempt {earlier} already")
    if _is_killed_for_memory(error) and not last.made_progress:
        return Decision("raise", "the same workers on the same machine would run out of memory again")
    delay = budgets.delay_seconds(_failures_in_a_row(attempts))
    how = f"{f' in {delay:g} s' if delay else ''} from step {last.committed:,} with {workers} workers"
    if error.cause == "driver":
        return Decision("restart", f"the driver was out of reach; restart{how}", delay, workers)
    if error.cause == "unknown":
        if len(_failed_by(("unknown",), attempts)) > 1:
            return Decision("raise", "an error of unknown cause came again after a restart")
        return Decision("restart", f"an error of unknown cause is retried once{how}", delay, workers)
    name = _BUDGETS[error.cause]
    limit = getattr(budgets, name)
    used = len(_failed_by([cause for cause, budget in _BUDGETS.items() if budget == name], attempts))
    if used > limit:
        return Decision("raise", f"{name} is {limit} and used up; the same command {_what_it_does(attempts)}")
    return Decision("restart", f"restart {used} of {limit} ({name}){how}", delay, workers)


def _is_killed_for_memory(error: RankError) -> bool:
    """Return True if the kernel killed a worker, or C++ aborted it, because memory had run out."""
    return error.cause == "machine" and error.type == "killed"


def usable_slots(attempts: Sequence[Attempt], slots: int, elastic: Elastic) -> int:
    """Return the number of ``slots`` that are probably free; at least enough for the fewest workers, if they exist.

    Spark also counts slots that another job occupies. After an attempt in which no rank sent an event, fewer workers
    are tried, until a larger training runs or the pause before growth is over (`growth_pause_seconds`).
    """
    limit = slots
    for attempt in attempts:
        if attempt.sent_no_event:
            limit = attempt.workers - 1
        elif attempt.stop == "grow" or attempt.workers > limit:
            limit = slots
    return min(slots, max(limit, elastic.workers.fewest))


def growth_pause_seconds(attempts: Sequence[Attempt]) -> float:
    """Return the seconds that a training runs, after ``attempts``, before it looks for more workers.

    The pause keeps an unreliable machine from stopping the training repeatedly. It doubles with each consecutive growth
    in vain: a worker was lost within the same epoch, or the new workers never started.
    """
    failures = 0
    launched = [attempt for attempt in attempts if attempt.workers]
    for before, attempt in zip((None, *launched), launched, strict=False):
        if attempt.sent_no_event:
            failures += 1
        elif before is not None and before.stop == "grow":
            failures = failures + 1 if _was_in_vain(attempt, before) else 0
    if failures == 0:
        return _GROWTH_SECONDS
    return min(_LONGEST_GROWTH_PAUSE_SECONDS, _GROWTH_PAUSE_SECONDS * 2.0 ** (failures - 1))


def _was_in_vain(attempt: Attempt, before: Attempt) -> bool:
    """Return True if a training that had grown failed before the end of an epoch."""
    is_lost = bool(attempt.errors) and attempt.first_error.cause in _ENDS_OF_A_WORKER
    return is_lost and attempt.committed_epochs <= before.committed_epochs


def _failed_by(causes: Collection[str], attempts: Sequence[Attempt]) -> list[Attempt]:
    """Return the ``attempts`` that failed by one of ``causes`` since the last epoch was committed."""
    now = attempts[-1].committed_epochs
    recent = [attempt for attempt in attempts if attempt.errors and attempt.committed_epochs >= now]
    return [attempt for attempt in recent if attempt.first_error.cause in causes]


def _what_it_does(attempts: Sequence[Attempt]) -> str:
    last = attempts[-1]
    if last.committed:
        return f"goes on from step {last.committed:,}"
    # A store that could never be read may or may not hold a checkpoint.
    return "starts anew" if any(attempt.workers for attempt in attempts) else "tries again"


def _failures_in_a_row(attempts: Sequence[Attempt]) -> int:
    """Return the number of failed attempts since the last one that left a newer checkpoint, including that one."""
    count = 0
    for attempt in reversed(attempts):
        count += 1
        if attempt.made_progress:
            break
    return count


def _earlier_twin(error: RankError, attempts: Sequence[Attempt]) -> int | None:
    """Return the number of an earlier attempt that failed with the same error at the same step.

    A full disk, a machine without memory and a preempted one do not come from anybody's code. A killed process reports
    no step.
    """
    if error.step is None or error.cause in ("store", "machine", "preempted", "hung") or error.type in _EXTERNAL_TYPES:
        return None
    for attempt in attempts[:-1]:
        if attempt.errors and _signature(attempt.first_error) == _signature(error):
            return attempt.number
    return None


def _signature(error: RankError) -> tuple[str, str, int | None]:
    """Return the parts of an error that are the same when it recurs, without addresses, ports and process ids."""
    message = re.sub(r"0x[0-9a-fA-F]+|\d+", "#", error.message)
    return error.type, " ".join(message.split()), error.step


def _epochs(attempt: Attempt) -> str:
    return f"{attempt.epochs} epoch" + ("" if attempt.epochs == 1 else "s")
