"""The progress of Spark's jobs, by the tasks of their active stages, and of other work that can be counted."""

from collections.abc import Callable
from dataclasses import dataclass

from pyspark.sql import SparkSession

from mirrorspark.spark_session import session_of


@dataclass(frozen=True)
class Tasks:
    """The tasks of Spark's active stages, or other units of work of a known number.

    Attributes:
        seconds_left: Until these are done, at their mean speed so far; None while none is done.
    """

    done: int
    total: int
    seconds_left: float | None = None
    unit: str = "Spark tasks"

    @property
    def share(self) -> float:
        """Share of the tasks that are done, from 0 to 1."""
        return self.done / self.total


class CountedWork:
    """Work that reports how much of it is done.

    Attributes:
        doing: The work in words; empty before the first report.
        tasks: The done part of the work, if it can be counted.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with nothing; ``clock`` returns monotonic seconds."""
        self.doing = ""
        self.tasks: Tasks | None = None
        self._clock = clock
        self._first = (clock(), 0)

    def report(self, doing: str, done: int = 0, total: int = 0) -> None:
        """Set the work of this moment.

        Args:
            doing: In words; with a total, the unit of the work: ``rows predicted``.
            done: The part of the work that is done.
            total: All of it; 0 if it cannot be counted.
        """
        now = self._clock()
        if doing != self.doing:
            self._first = (now, done)
        self.doing = doing
        self.tasks = Tasks(done, total, seconds_left(self._first, (now, done), total), doing) if total else None


class SparkTasks:
    """Counts the tasks of a session's active stages."""

    def __init__(self, spark: SparkSession) -> None:
        """Ask Spark for nothing yet."""
        self._spark: SparkSession | None = spark
        self._stages: frozenset[int] = frozenset()
        self._first: tuple[float, int] = (0.0, 0)

    def at(self, now: float) -> Tasks | None:
        """Return the tasks of the stages that are active ``now``, in monotonic seconds.

        Returns:
            None where no stage is active, and once Spark is lost.
        """
        if self._spark is None:
            return None
        try:
            active = session_of(self._spark).active_stages()
        except Exception:
            # The JVM is lost. Py4J logs that on every call, and the run's own call raises it.
            self._spark = None
            return None
        stages = frozenset(active)
        done, total = (sum(getattr(stage, name) for stage in active.values()) for name in ("done", "total"))
        if stages != self._stages:
            self._stages, self._first = stages, (now, done)
        if not total:
            return None
        return Tasks(done, total, seconds_left(self._first, (now, done), total))


def seconds_left(first: tuple[float, int], last: tuple[float, int], total: int) -> float | None:
    """Return the seconds until all is done, at the mean speed between two times with the amounts done by then."""
    (begin, before), (now, done) = first, last
    return (total - done) * (now - begin) / (done - before) if done > before and now > begin else None
