"""Training with parameter servers, for embedding tables that are too large for every worker to hold.

The variables are on the servers, large ones partitioned by rows over all servers. Each worker fetches the rows of its
batch, computes gradients and applies them there, without waiting for the others (TensorFlow's
``ParameterServerStrategy``). The coordinator schedules the steps behind ``model.fit``, so that callbacks, checkpoints
and early stopping are those of every other training. The differences:

- updates are asynchronous, so two runs are never equal bit by bit, and there is no exact position in the data:
  `training.programs.parameter_servers.worker_input.worker_read_plan` says where a resumed training continues;
- a worker may be lost: another worker repeats its step. The loss of a server, of the coordinator or of the last worker
  ends the attempt, and the next attempt resumes from the checkpoint;
- a checkpoint has the same names and shapes as that of a training without servers, and either resumes the other.
"""

import dataclasses
import functools
import json
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.callbacks import ChiefCheckpoint, TrainingStopped
from mirrorspark.data_pipelines.reading import Dataset, ReadPlan
from mirrorspark.training.executor import Finish, WorkerControl
from mirrorspark.training.programs.keras_fit import (
    describe_last_checkpoint,
    fit,
    fit_callbacks,
    read_start,
    with_local_checkpoint,
)
from mirrorspark.training.programs.parameter_servers.connections import (
    ClusterConnections,
    CoordinatorConnection,
    Registration,
    Shutdown,
    reader_of_all_workers,
)
from mirrorspark.training.programs.parameter_servers.data import BatchSupply, RemoteBatches
from mirrorspark.training.programs.parameter_servers.worker_input import worker_read_plan
from mirrorspark.training.protocol import COORDINATOR, RankRole, Roles, TrainingPlan, shards
from mirrorspark.training.protocol.outcomes import Activity

# Scheduled executions per worker: one runs, one is queued, so that no worker is idle.
_EXECUTIONS_PER_WORKER = 2
_CHECK_SECONDS = 1.0


def train(plan: TrainingPlan, control: WorkerControl, finish: Finish) -> None:
    """Train as coordinator, worker or parameter server; then call ``finish`` with the number of completed epochs.

    Args:
        plan: The attempt. Rank 0 is the coordinator, the next ``plan.workers`` ranks are workers, and the rest are
            parameter servers.
        control: Connects this rank to its driver.
        finish: In a worker it does not return.

    Raises:
        RingError: The training cannot go on without a lost rank.
        TrainingStopped: A rank was asked to stop; the checkpoint is committed.
    """
    addresses = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"]
    roles = Roles.among(len(addresses), plan.workers)
    # TensorFlow blocks one thread per open request: with fewer threads the servers' operations deadlock.
    tf.config.threading.set_inter_op_parallelism_threads(_threads(roles))
    if control.rank == COORDINATOR:
        coordinate(plan, control, finish, roles, addresses[COORDINATOR])
    else:
        serve(plan, control, finish, roles, addresses)


def serve(
    plan: TrainingPlan,
    control: WorkerControl,
    finish: Finish,
    roles: Roles,
    addresses: Sequence[str],
) -> None:
    """Be a worker or a parameter server until the coordinator sends the shutdown; see :func:`train`."""
    activity, role = control.activity, roles.of(control.rank)
    activity.enter("connecting")
    server, address = _start_server(role, _host(addresses[control.rank]), _threads(roles))
    supply = _supply(plan, control, roles, role) if role.job == "worker" else None
    registration = Registration(control.rank, address, supply.name if supply else "")
    connection = CoordinatorConnection.register(
        addresses[COORDINATOR], registration, plan.token, plan.config.start_limit_seconds
    )
    activity.enter("training")
    # The watchdog looks for the cause of a hang at the coordinator.
    with activity.waiting_for(f"rank {COORDINATOR}"):
        shutdown = connection.wait_for_shutdown(lambda: control.stop_request.reason)
    activity.enter("ending")
    if shutdown.step is not None:
        raise TrainingStopped(shutdown.step, shutdown.path)
    finish(shutdown.epochs or 0)
    del server  # It must outlive everything above.


def coordinate(plan: TrainingPlan, control: WorkerControl, finish: Finish, roles: Roles, address: str) -> None:
    """Run ``model.fit`` over the other ranks; see :func:`train`."""
    activity = control.activity
    activity.enter("connecting")
    connections = ClusterConnections.accept_all(address, roles, plan.token, plan.config.start_limit_seconds)
    try:
        strategy = open_strategy(connections, roles, _host(address))
        _fit(plan, control, finish, roles, connections, strategy)
    except TrainingStopped as stopped:
        activity.enter("ending")
        connections.shut_down(Shutdown(step=stopped.step, path=stopped.path))
        raise
    except Exception:
        # TensorFlow raises many classes of errors for a lost server; the broken connection names the rank.
        connections.wait_for_loss()
        raise


def open_strategy(connections: ClusterConnections, roles: Roles, host: str) -> tf.distribute.ParameterServerStrategy:
    """Return the strategy, connected to workers and servers; large variables are partitioned over all servers.

    Args:
        connections: To all workers and servers.
        roles: Roles of all ranks.
        host: Address of the coordinator.
    """
    # Not the port of the registrations, whose connections may still be open.
    cluster = {"chief": [f"{host}:{_free_port(host)}"], **connections.cluster}
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster), task_type="chief", task_id=0, rpc_layer="grpc"
    )
    return tf.distribute.ParameterServerStrategy(
        resolver, variable_partitioner=functools.partial(_partitions, servers=roles.servers)
    )


def _fit(
    plan: TrainingPlan,
    control: WorkerControl,
    finish: Finish,
    roles: Roles,
    connections: ClusterConnections,
    strategy: tf.distribute.ParameterServerStrategy,
) -> None:
    config, activity = plan.config, control.activity
    plan = with_local_checkpoint(plan, activity)
    activity.enter("building")
    dataset = Dataset.open(plan.dataset)
    start = read_start(plan, dataset)
    tf_keras.utils.set_random_seed(config.seed)
    tf_keras.mixed_precision.set_global_policy(config.precision)
    model = fit.build_model(plan, dataset, strategy, start)
    training, validation = _read_plans(plan, roles, RankRole("worker", 0), dataset)
    name = reader_of_all_workers(connections.registrations.values())
    batches = RemoteBatches(name, dataset, training, validation)
    schedule_limit = ScheduleLimit(_EXECUTIONS_PER_WORKER * roles.workers, connections.raise_if_lost)
    schedule_limit.apply_to_fit(model)
    validation_steps = dataset.steps("validation", plan.global_batch_size)
    distribute_evaluation(model, batches, validation_steps, config.steps_per_execution, connections, schedule_limit)

    def shut_down_and_finish(epochs: int) -> None:
        connections.shut_down(Shutdown(epochs=epochs))
        finish(epochs)

    def is_stop_requested() -> bool:
        is_requested = control.stop_request.is_set() or connections.is_stop_requested()
        if is_requested:
            schedule_limit.drain()  # The step that is reported is then the one that is saved.
        return is_requested

    source = tf_keras.utils.experimental.DatasetCreator(batches.training)
    activity.enter("restoring")
    model.fit(
        source,
        # Keras requires it; distribute_evaluation replaces it.
        validation_data=source,
        epochs=config.epochs,
        steps_per_epoch=dataset.steps("train", plan.global_batch_size),
        validation_steps=validation_steps,
        callbacks=fit_callbacks(
            plan,
            control,
            start=start,
            finish=shut_down_and_finish,
            locate=lambda epoch, step: _describe_step(plan, activity, epoch, step),
            is_stop_requested=is_stop_requested,
            # The coordinator ranks alone, with the rows of its queries and the candidates' vectors from the servers.
            after_restore=fit.ranking_callbacks(plan, model, dataset, control, ranks=1),
            checkpoint_class=functools.partial(_DrainingCheckpoint, schedule_limit=schedule_limit),
            before_checkpoint=[_DrainAtEpochEnd(schedule_limit)],
        ),
        verbose=0,
    )


class ScheduleLimit:
    """Limits how many executions are scheduled and not yet done.

    By default ``model.fit`` schedules a whole epoch at once, and calls the callbacks for all of its steps before the
    first one has run. With the limit callbacks see current values, and a run can stop or be saved within an epoch.
    """

    def __init__(self, limit: int, check: Callable[[], None]) -> None:
        """Allow ``limit`` open executions; ``check`` raises if they can never complete."""
        self._limit = limit
        self._check = check
        self._slots = threading.Semaphore(limit)
        self._results: SimpleQueue[Any] = SimpleQueue()
        self._latest: dict[str, Any] = {}
        threading.Thread(target=self._collect, name="results", daemon=True).start()

    def apply_to_fit(self, model: tf_keras.Model) -> None:
        """Apply the limit to ``fit`` of ``model``, and give callbacks the logs of the latest result."""
        make = model.make_train_function
        limited: list[Any] = []

        def make_limited(force: bool = False) -> Callable[[Any], dict[str, Any]]:
            schedule = make(force)
            if schedule in limited:
                return model.train_function

            def execute(iterator: Any) -> dict[str, Any]:
                self.run(lambda: schedule(iterator))
                if not self._latest:  # An error of the model is raised by the first execution.
                    self.drain()
                return self._latest

            # As in Keras: callers set `train_function` by this call and ignore its value.
            limited[:] = [execute]
            model.train_function = execute
            return execute

        model.make_train_function = make_limited

    def run(self, schedule: Callable[[], Any]) -> None:
        """Call ``schedule``, which returns the execution's remote value, once the limit allows it."""
        self._take_slot()
        self._results.put(schedule())

    def drain(self) -> None:
        """Wait until every scheduled execution is done."""
        for _ in range(self._limit):
            self._take_slot()
        self._slots.release(self._limit)

    def _take_slot(self) -> None:
        while not self._slots.acquire(timeout=_CHECK_SECONDS):
            self._check()

    def _collect(self) -> None:
        while True:
            value = self._results.get()
            try:
                result = value.fetch()
            except Exception:  # noqa: S110 - the next call of schedule or join raises it
                pass
            else:
                self._latest = result if isinstance(result, dict) else self._latest
            self._slots.release()


class _DrainingCheckpoint(ChiefCheckpoint):
    """Saves while no execution is open, so that all values belong to the same step."""

    def __init__(self, *arguments: Any, schedule_limit: ScheduleLimit, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pace = schedule_limit

    def _save(self, **options: Any) -> None:
        self._pace.drain()
        super()._save(**options)


class _DrainAtEpochEnd(tf_keras.callbacks.Callback):
    """Waits for an epoch's executions before Keras does, whose wait would never notice lost workers."""

    def __init__(self, schedule_limit: ScheduleLimit) -> None:
        super().__init__()
        self._supports_tf_logs = True
        self._pace = schedule_limit

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if batch + 1 == self.params["steps"]:
            self._pace.drain()


def distribute_evaluation(
    model: tf_keras.Model,
    batches: RemoteBatches,
    steps: int,
    steps_per_execution: int,
    connections: ClusterConnections,
    schedule_limit: ScheduleLimit,
) -> None:
    """Make ``fit`` of ``model`` run its validations on the workers, each batch once.

    In Keras' own every worker reads its stream at its own pace, so that some rows count twice and others not at all.
    """
    strategy = model.distribute_strategy
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)

    @tf.function
    def evaluate_some(first: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
        for step in tf.range(first, end):
            strategy.run(model.test_step, args=(batches.validation(step),))
        return end

    def evaluate(callbacks: Any, **_: Any) -> dict[str, Any]:
        callbacks.on_test_begin()
        is_whole = False
        while not is_whole:
            lost_before = connections.lost
            model.reset_metrics()
            for first in range(0, steps, steps_per_execution):
                end = min(first + steps_per_execution, steps)
                arguments = tf.constant(first, tf.int64), tf.constant(end, tf.int64)
                callbacks.on_test_batch_begin(first)
                schedule_limit.run(functools.partial(coordinator.schedule, evaluate_some, args=arguments))
                callbacks.on_test_batch_end(end - 1)
            schedule_limit.drain()
            coordinator.join()
            # Another worker has repeated the counts of a lost worker.
            is_whole = connections.lost == lost_before
        logs = {name: value.numpy() for name, value in model.get_metrics_result().items()}
        callbacks.on_test_end(logs)
        return logs

    model.evaluate = evaluate


def _describe_step(plan: TrainingPlan, activity: Activity, epoch: int, step: int) -> str:
    """Describe a step as the coordinator can: it schedules steps, and any free worker reads the batch."""
    last = describe_last_checkpoint(plan, activity, epoch, step)
    return f"the workers' updates overlap, so which records it read is not known; {last}"


def _supply(plan: TrainingPlan, control: WorkerControl, roles: Roles, role: RankRole) -> BatchSupply:
    dataset = Dataset.open(plan.dataset)
    return BatchSupply(dataset, *_read_plans(plan, roles, role, dataset), control.activity, control.hook.input)


def _read_plans(plan: TrainingPlan, roles: Roles, role: RankRole, dataset: Dataset) -> tuple[ReadPlan, ReadPlan]:
    """Return a worker's parts of the training and of the validation split."""
    rows = sum(shard.rows for shard in dataset.manifest.splits["train"])
    start = read_start(plan, dataset)
    training = worker_read_plan(
        rows, plan.global_batch_size, role, roles, plan.config.seed, start.epoch, start.step_in_epoch
    )
    weighed = dataclasses.replace(training, class_weights=plan.class_weights)
    return weighed, ReadPlan("validation", plan.global_batch_size)


def _start_server(role: RankRole, host: str, threads: int) -> tuple[Any, str]:
    """Start this rank's TensorFlow server on a free port; return it and its address."""
    cluster = tf.train.ClusterSpec({role.job: {role.index: f"{host}:0"}})
    config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=threads)
    server = tf.distribute.Server(cluster, role.job, role.index, protocol="grpc", config=config)
    return server, f"{host}:{server.target.rpartition(':')[2]}"


def _partitions(shape: tf.TensorShape, dtype: tf.DType, servers: int) -> list[int]:
    return shards(shape.as_list(), dtype.size, servers)


def _threads(roles: Roles) -> int:
    return roles.ranks + 2


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _free_port(host: str) -> int:
    with socket.create_server((host.strip("[]"), 0)) as listener:
        return int(listener.getsockname()[1])
