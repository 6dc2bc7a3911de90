"""The view of a task: its partition, its cores, its peers in a barrier job, and the files that it was sent."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyspark import BarrierTaskContext, SparkFiles, TaskContext


@dataclass(frozen=True)
class BarrierTask:
    """A task's view of its barrier job.

    Attributes:
        rank: The task's number.
        host: Its executor's address as Spark has it, an IPv6 address in brackets.
        gather: All-gather of a text: returns all tasks' texts in the order of the ranks. It takes a second.
        gpus: Addresses of its GPUs.
    """

    rank: int
    host: str
    gather: Callable[[str], list[str]]
    gpus: tuple[str, ...] = ()


def is_in_task() -> bool:
    """Return True in a Spark task."""
    return TaskContext.get() is not None


def partition_id() -> int:
    """Return the number of the task's partition; 0 outside Spark."""
    context = TaskContext.get()
    return context.partitionId() if context else 0


def task_cores() -> int | None:
    """Return the number of the task's cores (``spark.task.cpus``); None outside Spark."""
    context = TaskContext.get()
    return context.cpus() if context else None


def task_property(name: str) -> str | None:
    """Return a local property of the thread that submitted the task's job; None outside Spark, or if it has none."""
    context = TaskContext.get()
    return context.getLocalProperty(name) if context else None


def barrier_task() -> BarrierTask | None:
    """Return the view of a barrier task; None elsewhere."""
    context = TaskContext.get()
    if not isinstance(context, BarrierTaskContext):
        return None
    rank, gpus = context.partitionId(), context.resources().get("gpu")
    # As in MirroredStrategyRunner: training uses these addresses.
    host = context.getTaskInfos()[rank].address.rpartition(":")[0]
    return BarrierTask(rank, host, context.allGather, tuple(gpus.addresses) if gpus else ())


def archive_folder(name: str) -> Path:
    """Return the folder of an archive that the driver has sent (:meth:`spark_session.session.Session.send_archive`)."""
    return Path(SparkFiles.get(name))


def files_folder() -> Path:
    """Return the folder of the application's files on this executor."""
    return Path(SparkFiles.getRootDirectory()).absolute()
