"""Runs a training function that was written for ``MirroredStrategyRunner``, unchanged, under our supervision."""

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pyspark.sql import SparkSession

from callbacks import commit
from callbacks.credentials import without_credentials
from training.foreign import function_plan
from training.foreign.function_plan import FunctionPlan, FunctionStrategy, TrainFn
from training.live.view import LiveView
from training.ranks.launcher import SparkLauncher
from training.ranks.worker import RankTask
from training.readiness import preflight
from training.records import tracking
from training.records.atomic_file import write_when_changed
from training.records.open_run import OpenRun, open_run
from training.records.run_history import DEFAULT_OUTPUT
from training.spark_session import bind_address, driver_address, open_session, task_slots
from training.supervision.elastic import Elastic, WorkerRange, parse_workers
from training.supervision.failure_policy import Attempt, Budgets
from training.supervision.supervisor import Supervisor
from training.supervision.watchdog import Limits

ENTRY = "training.foreign.function_rank:train"

# Of other people's code nobody knows how long its steps are: what stands still for longer than these surely hangs.
# Before it is called, none of it runs yet.
_START_SECONDS = 300.0
_FIRST_STEP_SECONDS = 1800.0
_STEP_SECONDS = 600.0
_CHECKPOINT_SECONDS = 1800.0

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Launched:
    """What a finished training function left.

    Attributes:
        result: What it returned on rank 0.
        attempts: Every launch; the last one finished.
        run_id: MLflow run; None where the tracking server stayed away.
        run_folder: Configuration, events and, by default, checkpoints.
        tracking_uri: MLflow store.
        replay: Command that sends MLflow what it could not be told; None when it knows all.
    """

    result: Any
    attempts: tuple[Attempt, ...]
    run_id: str | None
    run_folder: Path
    tracking_uri: str = field(repr=False)  # it may hold a password
    replay: str | None = None


@dataclass(frozen=True)
class LaunchConfig:
    """How a training function is run.

    Attributes:
        name: Names the run folders and, by default, the experiment.
        function: What people call the function.
        fingerprint: Of its code and its arguments.
        workers: Workers that train side by side; ``2:4`` goes on with as few as 2 when slots are lost.
        output: Folder for run folders and the default MLflow store.
        checkpoints: Where the function's checkpoints go, a folder or the URI of a store; by default the run's folder.
        tracking_uri: MLflow tracking server or store; by default an SQLite file under ``output``.
        experiment: MLflow experiment; by default ``name``.
        resume: Continue an unfinished run of the same function with the same arguments.
        max_restarts: How often a lost or hung worker may restart the function.
        start_limit_seconds: Longest time that the function may take outside of ``fit``, for its data say; None for any.
            Before it is called, the workers have five minutes to start and to meet, or as long as this where that is
            more.
        step_limit_seconds: Longest time of a step within ``fit``; None for ten minutes.
        strategy: The scope it runs in: TensorFlow's ``multi_worker_mirrored``, as the plain runner's, our ``ring``, or
            its ``own``.
        threads_per_worker: TensorFlow threads of a worker; None for what the Spark task has (``spark.task.cpus``).
        gpus_per_worker: GPUs of a worker, scheduled by Spark; 0 trains on the CPU.
        verbose: Show what Spark and TensorFlow log.
    """

    name: str
    function: str
    fingerprint: str
    workers: int | str = "2"
    output: str = DEFAULT_OUTPUT
    checkpoints: str | None = None
    tracking_uri: str | None = dataclasses.field(default=None, repr=False)
    experiment: str | None = None
    resume: bool = True
    max_restarts: int = 3
    start_limit_seconds: float | None = None
    step_limit_seconds: float | None = None
    strategy: FunctionStrategy = "multi_worker_mirrored"
    threads_per_worker: int | None = None
    gpus_per_worker: int = 0
    verbose: bool = False

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise ValueError(f"name '{self.name}' must be letters, digits, '.', '_' or '-': it names folders")
        if "://" in self.output:
            raise ValueError(f"output '{self.output}' is on another store; give a folder that driver and workers share")
        for name in ("max_restarts", "gpus_per_worker"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; use 0 or more")
        if self.threads_per_worker is not None and self.threads_per_worker < 1:
            raise ValueError(f"threads_per_worker is {self.threads_per_worker}; use 1 or more, or None")
        for name in ("start_limit_seconds", "step_limit_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; use a number of seconds above 0, or None")
        if self.strategy not in get_args(FunctionStrategy):
            raise ValueError(f"strategy '{self.strategy}' is unknown; use one of {list(get_args(FunctionStrategy))}")
        if self.strategy == "ring" and self.gpus_per_worker:
            raise ValueError("the strategy ring trains on CPUs; use multi_worker_mirrored with gpus_per_worker")
        _ = self.worker_range

    @property
    def worker_range(self) -> WorkerRange:
        """From the fewest workers to the most."""
        return parse_workers(self.workers)

    @property
    def elastic(self) -> Elastic:
        """The numbers of workers that may train. The function knows its own batch, so every number will do."""
        sizes = self.worker_range
        return Elastic(sizes, global_batch_size=math.lcm(*range(sizes.fewest, sizes.most + 1)))

    @property
    def limits(self) -> Limits:
        """When a rank counts as hung. Outside of ``fit`` nobody can tell, unless the limit is given."""
        return Limits(
            start_seconds=max(_START_SECONDS, self.start_limit_seconds or 0.0),
            build_seconds=self.start_limit_seconds or math.inf,
            first_step_seconds=max(_FIRST_STEP_SECONDS, self.step_limit_seconds or 0.0),
            step_seconds=self.step_limit_seconds or _STEP_SECONDS,
            checkpoint_seconds=_CHECKPOINT_SECONDS,
        )

    @property
    def identity(self) -> str:
        """Twelve hex digits that two runs share when one may continue the other."""
        text = f"{self.name} {self.function} {self.fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def store(self) -> str:
        """The MLflow store."""
        return self.tracking_uri or tracking.default_uri(Path(self.output))

    def public(self) -> dict[str, Any]:
        """Return every knob as anybody may see it: without the password of the tracking server."""
        return dataclasses.asdict(self) | {"tracking_uri": without_credentials(self.tracking_uri or "") or None}

    def save(self, path: Path) -> None:
        """Write the knobs as YAML."""
        write_when_changed(path, yaml.safe_dump(self.public(), sort_keys=False, width=120))


def run_train_fn(
    train_fn: TrainFn,
    workers: int | str = "2",
    *,
    kwargs: Mapping[str, Any] | None = None,
    name: str | None = None,
    output: str | Path = DEFAULT_OUTPUT,
    checkpoints: str | None = None,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    resume: bool = True,
    max_restarts: int = 3,
    start_limit_seconds: float | None = None,
    step_limit_seconds: float | None = None,
    use_custom_strategy: bool = False,
    strategy: FunctionStrategy | None = None,
    threads_per_worker: int | None = None,
    gpus_per_worker: int = 0,
    spark: SparkSession | None = None,
    verbose: bool = False,
) -> Launched:
    """Do what ``MirroredStrategyRunner(num_slots=workers).run(train_fn, **kwargs)`` does, and look after it.

    The function runs unchanged, in a process of its own on every worker. Each ``fit`` that it calls shows its progress
    and logs its epochs' metrics to one MLflow run; a worker that is lost or hangs starts it again. It then goes on from
    its own checkpoints: those that it keeps in the folder that the environment variable ``MIRRORSPARK_CHECKPOINTS``
    names, for example with `callbacks.backup.BackupAndRestore` and `callbacks.checkpoint.ChiefCheckpoint`.

    Args:
        train_fn: The function. It travels by value, as Spark's own functions do.
        workers: How many; ``2:4`` goes on with as few as 2 when slots are lost, and grows back to 4.
        kwargs: Its arguments.
        name: Names the run; by default as the function is called.
        output: Folder for the run, and for the MLflow store by default; driver and workers share it.
        checkpoints: What ``MIRRORSPARK_CHECKPOINTS`` is set to; by default a folder of the run's.
        tracking_uri: MLflow tracking server or store.
        experiment: MLflow experiment; by default ``name``.
        resume: Continue an unfinished run of the same function with the same arguments.
        max_restarts: How often a lost or hung worker may restart it.
        start_limit_seconds: Longest time that it may take outside of ``fit``; None for any. Before it is called, the
            workers have at least five minutes to start and to meet.
        step_limit_seconds: Longest time of a step within ``fit``; None for ten minutes.
        use_custom_strategy: The function builds its own strategy, as the plain runner's option of that name says.
        strategy: The scope it is given otherwise: ``multi_worker_mirrored``, or ``ring``, which is faster on CPUs.
        threads_per_worker: TensorFlow threads of a worker; None for what its Spark task has.
        gpus_per_worker: GPUs of a worker.
        spark: The session; by default the active one, or a local one with a slot per worker.
        verbose: Show what Spark and TensorFlow log.

    Raises:
        ValueError: An option has a value that it cannot have.
        TrainFnError: The function cannot travel.
        PreflightError: The session cannot run a barrier job of that many workers, or a store cannot be reached.
        DriverAddressError: There is no single address at which the workers could reach this machine.
        TrackingError: The MLflow store cannot be opened.
        NotEnoughSlotsError: The cluster has had too few slots for the fewest workers for too long.
        TrainingFailedError: An error of the function, or one lost worker too many; the message names the first error,
            ``attempts[-1].first_error`` has its traceback.
        TrainingStoppedError: Somebody asked for a stop.
        ReturnValueError: The training is finished, but what the function returned cannot come back.
    """
    if use_custom_strategy and strategy not in (None, "own"):
        raise ValueError(f"strategy is '{strategy}', and use_custom_strategy says that the function brings its own")
    payload = function_plan.pack_function(train_fn, kwargs or {})
    called = function_plan.name_of(train_fn)
    config = LaunchConfig(
        name=name or (called if _NAME.fullmatch(called) else "train_fn"),
        function=called,
        fingerprint=function_plan.fingerprint(train_fn, kwargs or {}),
        workers=workers,
        output=str(output),
        checkpoints=checkpoints,
        tracking_uri=tracking_uri,
        experiment=experiment,
        resume=resume,
        max_restarts=max_restarts,
        start_limit_seconds=start_limit_seconds,
        step_limit_seconds=step_limit_seconds,
        strategy=strategy or ("own" if use_custom_strategy else "multi_worker_mirrored"),
        threads_per_worker=threads_per_worker,
        gpus_per_worker=gpus_per_worker,
        verbose=verbose,
    )
    preflight.require(preflight.check_driver(Path(config.output), config.store))
    spark = spark or open_session(None, config.worker_range.most, verbose=verbose)
    preflight.require(
        preflight.check_cluster(
            spark,
            config.worker_range.fewest,
            Path(config.output),
            checkpoints=checkpoints,
            gpus_per_worker=gpus_per_worker,
        )
    )
    launcher = FunctionLauncher(SparkLauncher(spark, gpus_per_worker), payload)
    # Of the data nobody knows but the function.
    with open_run(config, "function", config.store, LiveView(epochs=0)) as run:
        attempts = _supervise(run, config, spark, launcher)
    return Launched(
        result=launcher.returned(called),
        attempts=attempts,
        run_id=run.tracked.run_id,
        run_folder=run.folder.path,
        tracking_uri=run.tracked.uri,
        replay=run.replay,
    )


class FunctionLauncher:
    """Launches attempts whose ranks run a function, and keeps what it returned."""

    def __init__(self, launcher: SparkLauncher, payload: bytes) -> None:
        """Keep the function as bytes: it travels with each attempt's tasks, in memory."""
        self._launcher = launcher
        self._payload = payload
        self._answer: dict[str, Any] = {}

    def __call__(self, plan: FunctionPlan) -> tuple[dict[str, Any], ...]:
        """Return how every rank ended; see :class:`training.ranks.launcher.SparkLauncher`."""
        outcomes = self._launcher.launch(RankTask(plan, entry=ENTRY, payload=self._payload), plan.workers)
        self._answer = next((outcome for outcome in outcomes if outcome["outcome"] == "finished"), {})
        return outcomes

    def cancel(self) -> None:
        """End the attempt that runs, from another thread."""
        self._launcher.cancel()

    def returned(self, called: str) -> Any:
        """Return what the function, ``called`` so, returned on rank 0.

        Raises:
            ReturnValueError: It cannot come back.
        """
        if "refused" in self._answer:
            raise function_plan.ReturnValueError(f"{called} is finished, but {self._answer['refused']}")
        return function_plan.unpack_value(self._answer["value"])


def plan_of(config: LaunchConfig, checkpoints: str) -> FunctionPlan:
    """Return what the ranks are told of ``config``, for the most workers."""
    return FunctionPlan(
        workers=config.worker_range.most,
        checkpoints=checkpoints,
        strategy=config.strategy,
        start_limit_seconds=config.limits.start_seconds,
        threads=config.threads_per_worker,
        verbose=config.verbose,
    )


def _supervise(
    run: OpenRun, config: LaunchConfig, spark: SparkSession, launcher: FunctionLauncher
) -> tuple[Attempt, ...]:
    """Run the function to its end."""
    run.tracked.log_params(config.public())
    run.tracked.log_document(tracking.environment(), "environment.json")
    run.recall()
    checkpoints = config.checkpoints or str(run.folder.checkpoints)
    supervisor = Supervisor(
        launch=launcher,  # type: ignore[arg-type] # of another plan
        host=bind_address(spark),
        advertised=driver_address(spark),
        elastic=config.elastic,
        slots=lambda: task_slots(spark),
        on_event=run.on_event,
        has_checkpoints=run.folder.was_fenced,
        # A function that keeps none of ours saves nothing when it is asked to stop: it would lose what it has done.
        may_grow=lambda: bool(commit.committed(checkpoints)),
        budgets=Budgets(max_restarts=config.max_restarts),
        limits=config.limits,
    )
    plan = plan_of(config, checkpoints)
    with run.view.stage(config.name) as stage:
        attempts = run.supervise(supervisor, plan)  # type: ignore[arg-type] # of the same fields as far as it looks
        tries = f", {len(attempts)} attempts" if len(attempts) > 1 else ""
        stage.note = f"{attempts[-1].epochs} epochs{tries}"
    return attempts
