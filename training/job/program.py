"""A program of ranks, its cluster and its supervisor. Models and users' functions are trained by them alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyspark.sql import SparkSession

from mirrorspark.spark_session import local_slots, open_session, session_of
from mirrorspark.training.driver import Launcher, OpenServer, SparkLauncher, Supervisor
from mirrorspark.training.protocol import AttemptPlan, Budgets, Elastic, PhaseLimits
from mirrorspark.training.protocol.messages import Event, EventServer, FolderEventServer, StopSignal
from mirrorspark.training.protocol.outcomes import Attempt
from mirrorspark.training.run_records import OpenRun

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Program:
    """The plan of the ranks, and the rules by which they are supervised.

    Attributes:
        plan: The ranks' orders; the supervisor fills in the fields that differ between attempts.
        elastic: The allowed numbers of workers, with their batch and learning rate.
        budgets: Numbers of restarts, and the delays before them.
        limits: Time limits by which a rank or a store counts as hung.
        payload: Bytes for the plan's entry, sent with every attempt.
        gpus_per_worker: GPUs of a worker.
        gpu_resource_name: Spark's name of the GPUs.
        local_mode: The one rank runs on the driver's machine, without a Spark job.
        may_grow: Ranks that are asked to stop leave a checkpoint, from which more workers can resume.
    """

    plan: AttemptPlan
    elastic: Elastic
    budgets: Budgets
    limits: PhaseLimits
    payload: bytes | None = field(default=None, repr=False)
    gpus_per_worker: int = 0
    gpu_resource_name: str = "gpu"
    local_mode: bool = False
    may_grow: Callable[[], bool] = lambda: True


def epochs_in_words(attempts: Sequence[Attempt], best: str = "") -> str:
    """Return the note of a finished training: its epochs, the best one in words, and its attempts if it had several."""
    tries = f", {len(attempts)} attempts" if len(attempts) > 1 else ""
    epochs = attempts[-1].epochs
    return f"{epochs} epoch{'s' * (epochs != 1)}{best}{tries}"


@dataclass(frozen=True)
class Cluster:
    """The session that a program runs on.

    Attributes:
        spark: The session; None where the one rank runs on the driver's machine, and none has been started.
        slots: Returns the number of workers that fit there now.
        events_by_files: The workers cannot reach this process over TCP, so their events go by files in the run's
            folder.
    """

    spark: SparkSession | None
    slots: Callable[[], int]
    events_by_files: bool = False

    def session(self) -> SparkSession:
        """Return the session, which is started now if there is none."""
        return self.spark or open_session(None, local_slots())

    def launcher(self, program: Program) -> Launcher:
        """Return the launcher of a program's attempts."""
        return SparkLauncher(
            self.spark,
            program.gpus_per_worker,
            program.payload,
            gpu_resource_name=program.gpu_resource_name,
            local_mode=program.local_mode,
        )


def supervisor_of(
    program: Program,
    cluster: Cluster,
    run: OpenRun,
    *,
    launch: Launcher | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: StopSignal | None = None,
) -> Supervisor:
    """Return the supervisor of a program on a cluster, by which :meth:`OpenRun.run_to_end` runs it.

    Args:
        program: The program.
        cluster: The session that it runs on.
        run: The records of the run.
        launch: Runs one attempt; by default the cluster's launcher does.
        on_event: Gets every event of the ranks and of the supervisor; by default the records do.
        stop: Request that the run stop.
    """
    session = None if cluster.spark is None else session_of(cluster.spark)
    channel = run.folder.channel if cluster.events_by_files else None
    if channel is not None:
        run.view.log(f"the workers' events reach this program by files in {channel}, about a second late")
    return Supervisor(
        launch=launch or cluster.launcher(program),
        host=_LOOPBACK if session is None else session.bind_address() if channel is None else "",
        advertised=_LOOPBACK if session is None else session.driver_address if channel is None else "",
        open_server=EventServer if channel is None else _server_by_files(channel),
        elastic=program.elastic,
        slots=cluster.slots,
        on_event=on_event or run.on_event,
        budgets=program.budgets,
        limits=program.limits,
        has_begun=run.folder.has_begun,
        may_grow=program.may_grow,
        stop=stop or StopSignal(),
    )


def _server_by_files(channel: Path) -> OpenServer:
    def open_server(host: str, on_event: Callable[[Event], None], advertised: str) -> FolderEventServer:
        return FolderEventServer(channel, on_event)

    return open_server
