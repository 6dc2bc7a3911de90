"""The view of a task: its partition, its cores, its peers in a barrier job, and the files that it was sent."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyspark import BarrierTaskContext, BarrierTaskInfo, TaskContext


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


def barrier_task(gpu_resource_name: str = "gpu") -> BarrierTask | None:
    """Return the view of a barrier task; None elsewhere."""
    context = TaskContext.get()
    if not isinstance(context, BarrierTaskContext):
        return None
    rank, gpus = context.partitionId(), context.resources().get(gpu_resource_name)
    # As in MirroredStrategyRunner: training uses these addresses.
    host = context.getTaskInfos()[rank].address.rpartition(":")[0]
    return BarrierTask(rank, host, context.allGather, tuple(gpus.addresses) if gpus else ())


class _RankContext(BarrierTaskContext):
    """The context of a barrier task in another process. Spark's own would mix its exchanges with the task's."""

    _peers: Sequence[str]
    _gather: Callable[[str], list[str]]

    def allGather(self, message: str = "") -> list[str]:  # noqa: N802 - PySpark's name
        if not isinstance(message, str):
            raise TypeError("Argument `message` must be of type `str`")
        return self._gather(message)

    def barrier(self) -> None:
        self._gather("")

    def getTaskInfos(self) -> list[BarrierTaskInfo]:  # noqa: N802 - likewise
        return [BarrierTaskInfo(peer) for peer in self._peers]


@contextlib.contextmanager
def as_barrier_task(rank: int, peers: Sequence[str], gather: Callable[[str], list[str]]) -> Iterator[None]:
    """Give this process the context of a barrier task while the block runs: ``BarrierTaskContext.get()``.

    Args:
        rank: The task's number.
        peers: Addresses of all tasks.
        gather: All-gather of a text among them.
    """
    context = object.__new__(_RankContext)  # not Spark's one object for the process
    context._partitionId, context._attemptNumber = rank, 0
    context._resources, context._localProperties = {}, {}
    context._peers, context._gather = peers, gather
    before = TaskContext.get()
    TaskContext._setTaskContext(context)
    try:
        yield
    finally:
        TaskContext._setTaskContext(before)


def archive_folder(name: str) -> Path:
    """Return the folder of an archive that the driver has sent (:meth:`spark_session.session.Session.send_archive`)."""
    from pyspark import SparkFiles  # which tasks have, and a client of Spark Connect lacks

    folder = Path(SparkFiles.get(name))
    if not folder.exists():
        # Spark plans a stream of Spark Connect outside its session, so the task's root is that of all sessions.
        folder = next(folder.parent.glob(f"*/{name}"), folder)
    return folder


def files_folder() -> Path:
    """Return the folder of the application's files on this executor."""
    from pyspark import SparkFiles

    return Path(SparkFiles.getRootDirectory()).absolute()
