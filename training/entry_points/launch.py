"""Runs a training function written for ``MirroredStrategyRunner``, unchanged, under our supervision."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Ge, Gt
from mlflow.exceptions import MlflowException
from pyspark.sql import SparkSession

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.models import code_digest, keras3
from mirrorspark.scoring import new_version
from mirrorspark.scoring.input import Column
from mirrorspark.spark_session import session_of
from mirrorspark.storage import atomic_file, clean, without_credentials
from mirrorspark.training.configuration import (
    ConfigError,
    EventWay,
    MLflowRun,
    check_experiment,
    check_name,
    check_output,
    check_registry_name,
    check_values,
)
from mirrorspark.training.driver import Launcher
from mirrorspark.training.job import Cluster, Program, epochs_in_words, open_checked_session, supervisor_of
from mirrorspark.training.job.readiness import preflight
from mirrorspark.training.programs.user_functions import FunctionPlan, FunctionStrategy, TrainFn
from mirrorspark.training.programs.user_functions import plan as function_plan
from mirrorspark.training.protocol import AttemptPlan, Budgets, Elastic, PhaseLimits, WorkerRange, parse_workers
from mirrorspark.training.protocol.outcomes import Attempt
from mirrorspark.training.results.report import launched_html
from mirrorspark.training.run_records import RunFolder, TrackedRun, Tracking, environment, open_run
from mirrorspark.training.run_records.live import LiveView

# The length of a step in other people's code is unknown, so these limits are generous: a training that makes no
# progress for longer surely hangs. _START_SECONDS is the time until the function is called.
_START_SECONDS = 300.0
_FIRST_STEP_SECONDS = 1800.0
_STEP_SECONDS = 600.0
_CHECKPOINT_SECONDS = 1800.0

# A model that the function returns: its folder in that of the run, and among the artifacts.
_MODEL_FOLDER, _MODEL_ARTIFACTS = "returned_model", "model"


@dataclass(frozen=True)
class Launched:
    """The results of a finished training function.

    Attributes:
        result: Return value of the function on rank 0; None for a model.
        attempts: Every launch; the last one finished.
        run_id: MLflow run; None if the tracking server was never reached.
        run_folder: Configuration, events and, by default, checkpoints.
        replay: Command that sends MLflow the records it missed; None if it has them all.
        model: URI of the registered version of the model that the function returned; None for any other value.
    """

    result: Any
    attempts: tuple[Attempt, ...]
    run_id: str | None
    run_folder: Path
    tracking_uri: str = field(repr=False)  # it may hold a password
    replay: str | None = None
    model: str | None = None

    def _repr_html_(self) -> str:
        return launched_html(self)


@dataclass(frozen=True)
class LaunchConfig:
    """The checked settings of :func:`run_train_fn`.

    Attributes:
        function: Name of the function, for messages.
        arguments: Digest of the function's arguments.
        code: Digest of the function's code; a run may go on with another one.
        model_columns: The columns that a returned model reads; None for those that it names.
    """

    name: str
    function: str
    arguments: str
    code: str = ""
    workers: int | str = "2"
    output: str = tracking_store.DEFAULT_OUTPUT
    checkpoints: str | None = None
    tracking_uri: str | None = field(default=None, repr=False)
    experiment: str | None = None
    mlflow_run: MLflowRun = "active"
    registered_model: str | None = None
    resume: bool = True
    max_restarts: Annotated[int, Ge(0)] = Budgets.max_restarts
    start_limit_seconds: Annotated[float | None, Gt(0)] = None
    step_limit_seconds: Annotated[float | None, Gt(0)] = None
    strategy: FunctionStrategy = "multi_worker_mirrored"
    threads_per_worker: Annotated[int | None, Ge(1)] = None
    gpus_per_worker: Annotated[int, Ge(0)] = 0
    gpu_resource_name: str = "gpu"
    local_mode: bool = False
    model_columns: tuple[str | Column, ...] | None = None
    allow_open_servers: bool = False
    events: EventWay = "auto"
    verbose: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        check_output(self.output)
        check_values(self)
        check_registry_name(self.registered_model)
        check_experiment(self.experiment)
        if self.strategy == "ring" and self.gpus_per_worker > 1:
            raise ValueError(
                f"gpus_per_worker is {self.gpus_per_worker}, and the strategy ring uses one GPU per worker; set it to "
                f"1 and use more workers, or use multi_worker_mirrored with a model of tf-keras"
            )
        if self.worker_range.most > 1 and self.local_mode:
            raise ValueError(
                f"local_mode is one process on the driver's machine, and workers is {self.workers}; set workers to 1, "
                f"and gpus_per_worker to use several GPUs"
            )

    @property
    def worker_range(self) -> WorkerRange:
        """The fewest and the most workers."""
        return parse_workers(self.workers)

    @property
    def elastic(self) -> Elastic:
        """The allowed numbers of workers. The function sets its own batch, so every number in the range is allowed."""
        sizes = self.worker_range
        return Elastic(sizes, global_batch_size=math.lcm(*range(sizes.fewest, sizes.most + 1)))

    @property
    def slots(self) -> int:
        """The number of slots that the most workers take."""
        return self.worker_range.most

    @property
    def fewest_ranks(self) -> int:
        """The number of ranks of the fewest workers."""
        return self.worker_range.fewest

    @property
    def open_servers(self) -> FunctionStrategy | None:
        """The strategy, if it starts TensorFlow's unauthenticated servers."""
        return self.strategy if self.strategy == "multi_worker_mirrored" else None

    @property
    def limits(self) -> PhaseLimits:
        """The time limits by which a rank counts as hung. Outside ``fit`` there is none unless one is given."""
        return PhaseLimits(
            start_seconds=max(_START_SECONDS, self.start_limit_seconds or 0.0),
            build_seconds=self.start_limit_seconds or math.inf,
            first_step_seconds=max(_FIRST_STEP_SECONDS, self.step_limit_seconds or 0.0),
            step_seconds=self.step_limit_seconds or _STEP_SECONDS,
            checkpoint_seconds=_CHECKPOINT_SECONDS,
        )

    @property
    def registry_name(self) -> str:
        """The name of the registered model, if the function returns a model."""
        return self.registered_model or self.name

    @property
    def decisive(self) -> dict[str, Any]:
        """The settings that have to be equal for a run to be continued."""
        return {"name": self.name, "arguments": self.arguments}

    @property
    def identity(self) -> str:
        """Twelve hex digits that two runs share when one may continue the other: a hash of name and arguments."""
        text = f"{self.name} {self.arguments}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def public(self) -> dict[str, Any]:
        """Return every setting without the secrets in it, such as passwords in addresses and options of stores."""
        return {name: clean(value, names=False) for name, value in dataclasses.asdict(self).items()}

    def save(self, path: Path) -> None:
        """Write the settings as YAML."""
        atomic_file.write_when_changed(path, yaml.safe_dump(self.public(), sort_keys=False, width=120))

    def change_since(self, folder: RunFolder) -> str | None:
        """Return a message if the code of the function in the unfinished run of ``folder`` was another; else None."""
        try:
            before = yaml.safe_load(folder.config.read_text(encoding="utf-8")).get("code")
        except (OSError, ValueError, AttributeError, yaml.YAMLError):  # A new run, or an interrupted start.
            return None
        if before in (None, self.code):
            return None
        return (
            f"{self.function} has changed since run {folder.path.name} began, which goes on from its checkpoints; "
            f"resume=False begins anew"
        )


def run_train_fn(
    train_fn: TrainFn,
    workers: int | str = "2",
    *,
    name: str,
    kwargs: Mapping[str, Any] | None = None,
    output: str | Path = tracking_store.DEFAULT_OUTPUT,
    checkpoints: str | None = None,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    mlflow_run: MLflowRun = "active",
    registered_model: str | None = None,
    resume: bool = True,
    max_restarts: int = Budgets.max_restarts,
    start_limit_seconds: float | None = None,
    step_limit_seconds: float | None = None,
    use_custom_strategy: bool = False,
    strategy: FunctionStrategy | None = None,
    threads_per_worker: int | None = None,
    gpus_per_worker: int = 0,
    gpu_resource_name: str = "gpu",
    local_mode: bool = False,
    model_columns: Sequence[str | Column] | None = None,
    allow_open_servers: bool = False,
    events: EventWay = "auto",
    spark: SparkSession | None = None,
    verbose: bool = False,
) -> Launched:
    """Run ``train_fn`` as ``MirroredStrategyRunner(num_slots=workers).run(train_fn, **kwargs)`` does, supervised.

    When a worker is lost or hangs, it starts again, from the checkpoints that it keeps in ``MIRRORSPARK_CHECKPOINTS``.
    A model of tf-keras that it returns, on every rank, becomes a version of ``registered_model``.

    Args:
        train_fn: The function. It is pickled by value, as Spark's own functions are.
        workers: Number of workers; ``2:4`` goes on with as few as 2 when slots are lost, and grows back to 4.
        name: Names the run. An unfinished one of the same name and arguments goes on, also with a changed function.
        kwargs: The function's arguments.
        output: Folder for the run, and for the MLflow store by default; driver and workers share it.
        checkpoints: Value of ``MIRRORSPARK_CHECKPOINTS``; by default a folder of the run.
        tracking_uri: MLflow tracking server or store.
        experiment: MLflow experiment; by default ``name``.
        mlflow_run: The run to log to within ``mlflow.start_run()``: the ``active`` one, a ``child`` or a ``new`` one.
        registered_model: Name of a returned model in the registry, in Unity Catalog ``catalog.schema.model``; by
            default ``name``.
        resume: Continue an unfinished run of the same name and arguments.
        max_restarts: Number of times that a lost or hung worker may restart it.
        start_limit_seconds: Longest time outside ``fit``; None for any. Starting may always take five minutes.
        step_limit_seconds: Longest time of a step within ``fit``; None for ten minutes.
        use_custom_strategy: The function builds its own strategy, as with the plain runner's option of that name.
        strategy: The scope otherwise: ``multi_worker_mirrored``, or ``ring``, which is faster on CPUs, and the default
            of a function whose own code uses Keras 3 and no tf-keras.
        threads_per_worker: TensorFlow threads of a worker; None for its Spark task's CPUs.
        gpus_per_worker: GPUs of a worker.
        gpu_resource_name: Spark's name of the GPUs, as in ``spark.task.resource.gpu.amount``.
        local_mode: Run it on the driver's machine, with the driver's GPUs and without a Spark job; needs ``workers=1``.
        model_columns: Columns of a returned model that takes one array, or that are decoded, such as images: the
            ``columns`` of :func:`scoring.package_model`.
        allow_open_servers: Allow ``multi_worker_mirrored`` outside one machine, with servers that any caller may use.
        events: Workers reach this program ``direct`` or by files in the ``folder`` of the output; ``auto``: as the
            preflight finds.
        spark: The session; by default the active one, or a local one with a slot per worker.
        verbose: Show the logs of Spark and TensorFlow.

    Raises:
        ValueError: An option has an invalid value, or (a TrainFnError) the function cannot be pickled.
        PreflightError, DriverAddressError, TrackingError: The cluster, the driver's address or a store cannot be used.
        NotEnoughSlotsError: The cluster has had too few slots for the fewest workers for too long.
        TrainingFailedError: An error of the function, or one lost worker too many; ``attempts[-1].first_error`` has it.
        TrainingStoppedError: The run was asked to stop.
        ReturnValueError: The training is finished, but its value cannot be sent, or its model not saved or registered.
    """
    needs_ring = strategy is None and not use_custom_strategy and keras3.is_code_of_keras3(train_fn)
    if use_custom_strategy and strategy not in (None, "own"):
        raise ValueError(f"strategy is '{strategy}', and use_custom_strategy says that the function brings its own")
    config = LaunchConfig(
        name=name,
        function=function_plan.function_name(train_fn),
        arguments=function_plan.digest_arguments(kwargs or {}),
        code=code_digest(train_fn),
        workers=workers,
        output=str(output),
        checkpoints=checkpoints,
        tracking_uri=tracking_uri,
        experiment=experiment,
        mlflow_run=mlflow_run,
        registered_model=registered_model,
        resume=resume,
        max_restarts=max_restarts,
        start_limit_seconds=start_limit_seconds,
        step_limit_seconds=step_limit_seconds,
        strategy=strategy or ("own" if use_custom_strategy else "ring" if needs_ring else "multi_worker_mirrored"),
        threads_per_worker=threads_per_worker,
        gpus_per_worker=gpus_per_worker,
        gpu_resource_name=gpu_resource_name,
        local_mode=local_mode,
        model_columns=None if model_columns is None else tuple(model_columns),
        allow_open_servers=allow_open_servers,
        events=events,
        verbose=verbose,
    )
    note = f"{config.function} uses Keras 3, so its strategy is ring" if needs_ring else None
    return _launch(config, function_plan.pack_function(train_fn, kwargs or {}), spark, note)


def _launch(config: LaunchConfig, payload: bytes, spark: SparkSession | None, note: str | None) -> Launched:
    """Check everything, run the function under supervision, and return its results."""
    tracking = Tracking.find(config)
    tracking.require_experiment()
    misnamed = tracking.misnamed_model(config.registry_name)
    if misnamed is not None and config.registered_model is not None:
        raise ConfigError(misnamed)
    preflight.require(preflight.check_driver(Path(config.output), tracking.store))
    spark, checks = open_checked_session(config, spark, gpu_resource_name=config.gpu_resource_name)
    view = LiveView(epochs=0)
    if note is not None:
        view.log(note)
    if misnamed is not None:  # A function that returns no model needs no name for one.
        view.log(f"a model that {config.function} returns could not be registered: {misnamed}")

    def log_change(folder: RunFolder) -> None:
        if (change := config.change_since(folder)) is not None:
            view.log(change)

    # Only the function knows the data.
    with open_run(config, "function", tracking, view, on_folder=log_change) as run:
        run.tracked.log_params(config.public())
        run.tracked.log_document(environment(), "environment.json")
        program = program_of(config, payload, run.folder)
        slots = (lambda: 1) if config.local_mode else (lambda: session_of(spark).task_slots())
        cluster = Cluster(spark, slots, preflight.events_by_files(config.events, checks))
        launcher = FunctionLauncher(cluster.launcher(program))
        with view.stage(config.name) as stage:
            attempts = run.run_to_end(supervisor_of(program, cluster, run, launch=launcher), program.plan)
            stage.note = epochs_in_words(attempts)
    return Launched(
        result=launcher.returned(config.function),
        attempts=attempts,
        run_id=run.tracked.run_id,
        run_folder=run.folder.path,
        tracking_uri=run.tracked.uri,
        replay=run.replay,
        model=None if launcher.model is None else _registered(launcher.model, config, run.tracked),
    )


def _registered(folder: Path, config: LaunchConfig, tracked: TrackedRun) -> str:
    """Register the packaged model in ``folder`` as the run's, and return the URI of its version.

    Raises:
        ReturnValueError: The store does not take it.
    """
    begin = f"{config.function} is finished, but its model, which is in {folder}, cannot be registered"
    if (run_id := tracked.run_id) is None:
        raise function_plan.ReturnValueError(f"{begin}: the MLflow server has never been reached")
    try:
        tracked.client.log_artifacts(run_id, str(folder), _MODEL_ARTIFACTS)
        source = f"{tracked.client.get_run(run_id).info.artifact_uri}/{_MODEL_ARTIFACTS}"
        version = new_version(tracked.client, config.registry_name, source, run_id, {"run": folder.parents[2].name})
    except (MlflowException, OSError) as error:
        raise function_plan.ReturnValueError(f"{begin}: {without_credentials(str(error))}") from None
    return f"models:/{config.registry_name}/{version}"


class FunctionLauncher:
    """A launcher of attempts whose workers run a function; it keeps the function's return value."""

    def __init__(self, launcher: Launcher) -> None:
        """Wrap ``launcher``, whose payload is the function."""
        self._launcher = launcher
        self._answer: dict[str, Any] = {}

    def __call__(self, plan: AttemptPlan) -> tuple[dict[str, Any], ...]:
        """Return the outcome of every rank; see :class:`training.driver.SparkLauncher`."""
        outcomes = self._launcher(plan)
        self._answer = next((outcome for outcome in outcomes if outcome["outcome"] == "finished"), {})
        return outcomes

    def cancel(self) -> None:
        """End the running attempt, from another thread."""
        self._launcher.cancel()

    @property
    def model(self) -> Path | None:
        """The folder of the packaged model that the function returned; None for any other value."""
        return Path(self._answer["model"]) if "model" in self._answer else None

    def returned(self, called: str) -> Any:
        """Return the return value on rank 0 of the function that messages name ``called``.

        Raises:
            ReturnValueError: The value cannot be sent back.
        """
        if "refused" in self._answer:
            raise function_plan.ReturnValueError(f"{called} is finished, but {self._answer['refused']}")
        return function_plan.unpack_value(self._answer["value"])


def program_of(config: LaunchConfig, payload: bytes, folder: RunFolder) -> Program:
    """Return the program that calls the function in ``payload``, for the most workers; its run has ``folder``."""
    checkpoints = config.checkpoints or str(folder.checkpoints)
    plan = FunctionPlan(
        workers=config.worker_range.most,
        checkpoints=checkpoints,
        strategy=config.strategy,
        start_limit_seconds=config.limits.start_seconds,
        model=str(folder.path / _MODEL_FOLDER),
        model_columns=None if config.model_columns is None else list(config.model_columns),
        threads=config.threads_per_worker or (os.cpu_count() if config.local_mode else None),
        verbose=config.verbose,
    )
    return Program(
        plan,
        config.elastic,
        Budgets(max_restarts=config.max_restarts),
        config.limits,
        payload,
        config.gpus_per_worker,
        config.gpu_resource_name,
        config.local_mode,
        # A function without our checkpoints saves nothing when it is asked to stop, so growing would lose its work.
        may_grow=lambda: bool(commit.committed(checkpoints)),
    )
