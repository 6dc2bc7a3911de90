"""Progress of a fleet's run, by the rows of its ledger."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from mirrorspark.data_pipelines.spark import task_bar
from mirrorspark.fleet.runs import tables
from mirrorspark.fleet.runs.decisions import microbatches_left
from mirrorspark.fleet.runs.kept import ledger_of_run, resolved_output
from mirrorspark.fleet.runs.ledger import Ledger, LedgerError, reason
from mirrorspark.fleet.runs.microbatch import published_manifests
from mirrorspark.fleet.runs.plan import RunPlan
from mirrorspark.pages import short_number
from mirrorspark.scoring import ScoringError
from mirrorspark.storage import Location

DEFAULT_WATCH_SECONDS = 2.0

# A run of which no driver holds a microbatch has ended, unless it has just begun.
_IDLE_SECONDS = 30.0


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        done: Microbatches that are published.
        running: Microbatches that a driver holds.
        failed: Microbatches whose last attempt has failed.
        waiting: All other microbatches.
        inferences: Rows times models of those that are done.
        inferences_per_second: In the time in which attempts ran that have published; None if there are none.
        seconds_left: At that rate.
    """

    done: int
    running: int
    failed: int
    waiting: int
    inferences: int
    inferences_per_second: float | None
    seconds_left: float | None

    @classmethod
    def of(
        cls, microbatches: Sequence[Mapping[str, Any]], attempts: Iterable[Mapping[str, Any]], now: float
    ) -> "Progress":
        """Return the progress.

        Args:
            microbatches: Rows of the ledger's table, as are ``attempts``.
            attempts: Attempts of the same run.
            now: By the clock of the ledger; a lease that has run out by then holds nothing.
        """
        sizes = {row["number"]: row["rows"] * row["models"] for row in microbatches}
        is_held = {row["number"] for row in microbatches if row["state"] == "running" and row["lease_until"] > now}
        done = [row["number"] for row in microbatches if row["state"] == "done"]
        failed = sum(row["state"] == "failed" for row in microbatches)
        published = [one for one in attempts if one["outcome"] == "done"]
        busy = covered_seconds((one["began"], one["began"] + one["seconds"]) for one in published)
        scored = sum(sizes[number] for number in {one["microbatch"] for one in published})
        rate = scored / busy if busy and scored else None
        inferences = sum(sizes[number] for number in done)
        left = sum(sizes.values()) - inferences
        return cls(
            done=len(done),
            running=len(is_held),
            failed=failed,
            waiting=len(sizes) - len(done) - len(is_held) - failed,
            inferences=inferences,
            inferences_per_second=rate,
            seconds_left=None if rate is None else left / rate,
        )

    @property
    def microbatches(self) -> int:
        """All of them."""
        return self.done + self.running + self.failed + self.waiting

    def __str__(self) -> str:
        """Return the progress in a line."""
        counts = f"{self.done:,} of {self.microbatches:,} microbatches done, {self.running:,} running"
        counts += f", {self.failed:,} failed"
        if self.inferences_per_second is None or self.seconds_left is None:
            return counts
        rate, left = short_number(self.inferences_per_second), task_bar.clock_time(self.seconds_left)
        return f"{counts}; {rate} inferences/s, {left} left"


def follow(book: Ledger, run: str, every_seconds: float) -> Iterator[Progress]:
    """Yield the progress of a run, again and again, while a driver works on it.

    Args:
        book: The ledger.
        run: Id of the run.
        every_seconds: Time between two looks.

    Raises:
        ScoringError: ``every_seconds`` is not above 0.
        LedgerError: The ledger does not answer.
    """
    if not every_seconds > 0:
        raise ScoringError(f"every_seconds {every_seconds} is not above 0; give a second or more")
    pause, idle_looks = threading.Event(), 0
    while True:
        try:
            now = book.now()
            states = [row["state"] for row in book.rows(tables.RUNS, run)]
            microbatches = book.rows(tables.MICROBATCHES, run)
            attempts = book.rows(tables.ATTEMPTS, run, ("microbatch", "outcome", "began", "seconds"))
        except SQLAlchemyError as error:
            raise LedgerError(f"the ledger {book.name} does not answer ({reason(error)}); look again later") from error
        found = Progress.of(microbatches, attempts, now)
        yield found
        idle_looks = 0 if found.running else idle_looks + 1
        # A driver that ends sets the state while others may go on, and one that was killed leaves it.
        if not found.running and (states != ["running"] or (idle_looks - 1) * every_seconds > _IDLE_SECONDS):
            return
        pause.wait(every_seconds)


def covered_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of some spans: overlapping time counts once, and pauses not at all."""
    total, reached = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, reached))
        reached = max(reached, last)
    return total


def fleet_status(output: Location, ledger: str | Path | None = None) -> dict[str, Any]:
    """Return the progress of a run: its id, the number of its microbatches and those left, its models and failed ones.

    Args:
        output: Folder of the run.
        ledger: See :func:`fleet.runs.run.resume_fleet`; ``states`` has the microbatches by their state there.

    Raises:
        FileNotFoundError: ``output`` has no run.
        LedgerError: The ledger cannot be used, is not named, or does not have the run.
    """
    target = resolved_output(output)
    plan = RunPlan.load(target)
    with ledger_of_run(ledger, target, plan) as book:
        states = Counter(row["state"] for row in book.rows(tables.MICROBATCHES, plan.run))
        failed = sum(row["state"] == "failed" for row in book.rows(tables.MODELS, plan.run))
        found = {"run": plan.run, "output": str(target), "ledger": book.name, "microbatches": len(plan.microbatches)}
        left = microbatches_left(len(plan.microbatches), published_manifests(plan, target))
        found |= {"published": len(plan.microbatches) - len(left), "left": left, "states": dict(states)}
        return found | {"models": len(plan.models), "failed_models": failed}


def watch_fleet(
    output: Location, ledger: str | Path | None = None, every_seconds: float = DEFAULT_WATCH_SECONDS
) -> Iterator[Progress]:
    """Yield the progress of a run by its ledger, again and again, while a driver works on it.

    Args:
        output: Folder of the run.
        ledger: See :func:`fleet.runs.run.resume_fleet`.
        every_seconds: Time between two looks.

    Raises:
        FileNotFoundError: ``output`` has no run.
        LedgerError: The ledger cannot be used, is not named, does not have the run, or has gone away.
    """
    target = resolved_output(output)
    plan = RunPlan.load(target)
    with ledger_of_run(ledger, target, plan) as book:
        yield from follow(book, plan.run, every_seconds)
