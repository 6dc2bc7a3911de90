"""Training with parameter servers, for embedding tables that are too large for every worker to hold.

The variables lie on the servers, large ones cut by their rows over all of them. Each worker fetches what its batch
needs, computes gradients and applies them there, without waiting for the others (TensorFlow's
``ParameterServerStrategy``). The coordinator schedules the steps behind ``model.fit``, so that callbacks, checkpoints
and early stopping are those of every other training. What differs:

- updates are asynchronous, so two runs are never equal bit by bit, and there is no exact position in the data: see
  `training.parameter_servers.worker_input.reading` for where a resumed training goes on;
- a worker may be lost: what it was doing is done again by another one. Without a server, the coordinator or any worker
  the attempt ends, and the next one goes on from the checkpoint;
- a checkpoint has the same names and shapes as that of a training without servers, and either resumes the other.
"""

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

from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
from mirrorspark.callbacks.stop_request import TrainingStopped
from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan
from mirrorspark.training.executor.worker_control import Finish, WorkerControl
from mirrorspark.training.fault_injection.injected import InjectedFaults
from mirrorspark.training.fault_injection.parameter_servers import faults_of
from mirrorspark.training.fitting import fit
from mirrorspark.training.fitting.fit_callbacks import fit_callbacks, with_local_checkpoint
from mirrorspark.training.fitting.start import start_of
from mirrorspark.training.parameter_servers.data import BatchSupply, RemoteBatches
from mirrorspark.training.parameter_servers.members import Dismissal, Introduction, Members, Membership, workers_readers
from mirrorspark.training.parameter_servers.worker_input import reading
from mirrorspark.training.protocol.activity import Activity
from mirrorspark.training.protocol.plan import TrainingPlan
from mirrorspark.training.protocol.roles import COORDINATOR, Role, Roles, shards

# Executions that are on their way for each worker: one runs, one waits, so that no worker is idle.
_EXECUTIONS_PER_WORKER = 2
_CHECK_SECONDS = 1.0


def train(plan: TrainingPlan, control: WorkerControl, finish: Finish) -> None:
    """Do this rank's part, then call ``finish`` with the number of completed epochs.

    Args:
        plan: What to do; of the ranks that ``TF_CONFIG`` names, ``plan.workers`` are workers and the rest, apart from
            the coordinator, parameter servers.
        control: Ties this rank to its driver.
        finish: It may end the process.

    Raises:
        ValueError: A fault is to be injected that can never strike; see `training.fault_injection.parameter_servers`.
        RingError: The training cannot go on without a rank that is gone.
        TrainingStopped: A rank was asked to stop; the checkpoint is there.
    """
    addresses = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"]
    roles = Roles.among(len(addresses), plan.workers)
    faults = faults_of(os.environ, control.rank, plan.attempt, roles, control.activity)
    # With fewer threads the servers' operations wait for each other for ever: TensorFlow holds one per open request.
    tf.config.threading.set_inter_op_parallelism_threads(_threads(roles))
    if control.rank == COORDINATOR:
        coordinate(plan, control, finish, roles, addresses[COORDINATOR], faults)
    else:
        serve(plan, control, finish, roles, addresses, faults)


def serve(
    plan: TrainingPlan,
    control: WorkerControl,
    finish: Finish,
    roles: Roles,
    addresses: Sequence[str],
    faults: InjectedFaults,
) -> None:
    """Be a worker or a parameter server until the coordinator says that it is over; see :func:`train`."""
    activity, role = control.activity, roles.of(control.rank)
    activity.enter("connecting")
    server, address = _start_server(role, _host(addresses[control.rank]), _threads(roles))
    supply = _supply(plan, control, roles, role, faults) if role.job == "worker" else None
    introduction = Introduction(control.rank, address, supply.name if supply else "")
    line = Membership.join(addresses[COORDINATOR], introduction, plan.token, plan.config.start_limit_seconds)
    activity.enter("training")
    # Whoever looks for the reason of a standstill is to look there.
    with activity.waiting_for(f"rank {COORDINATOR}"):
        dismissal = line.wait(lambda: control.stop_request.reason)
    activity.enter("ending")
    if dismissal.step is not None:
        raise TrainingStopped(dismissal.step, dismissal.path)
    finish(dismissal.epochs or 0)
    del server  # it has to outlive everything before


def coordinate(
    plan: TrainingPlan, control: WorkerControl, finish: Finish, roles: Roles, address: str, faults: InjectedFaults
) -> None:
    """Run ``model.fit`` over the other ranks; see :func:`train`."""
    activity = control.activity
    activity.enter("connecting")
    members = Members.gather(address, roles, plan.token, plan.config.start_limit_seconds)
    try:
        strategy = open_strategy(members, roles, _host(address))
        _fit(plan, control, finish, roles, members, strategy, faults)
    except TrainingStopped as stopped:
        activity.enter("ending")
        members.dismiss(Dismissal(step=stopped.step, path=stopped.path))
        raise
    except Exception:
        # TensorFlow has many words, and classes, for a server that is gone.
        members.explain()
        raise


def open_strategy(members: Members, roles: Roles, host: str) -> tf.distribute.ParameterServerStrategy:
    """Return the strategy, connected to workers and servers; large variables are cut over all servers.

    Args:
        members: Who has called.
        roles: Of all ranks.
        host: Where the coordinator can be reached.
    """
    # Not the coordinator's own port, on which the members have called: they may still have a connection to it.
    cluster = {"chief": [f"{host}:{_free_port(host)}"], **members.cluster}
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
    members: Members,
    strategy: tf.distribute.ParameterServerStrategy,
    faults: InjectedFaults,
) -> None:
    config, activity = plan.config, control.activity
    plan = with_local_checkpoint(plan, activity)
    activity.enter("building")
    dataset = Dataset.open(plan.dataset)
    start = start_of(plan, dataset)
    tf_keras.utils.set_random_seed(config.seed)
    tf_keras.mixed_precision.set_global_policy(config.precision)
    model = fit.build_model(plan, dataset, strategy, start)
    training, validation = _read_plans(plan, roles, Role("worker", 0), dataset)
    name = workers_readers(members.introductions.values())
    batches = RemoteBatches(name, dataset, training, validation)
    pace = Pace(_EXECUTIONS_PER_WORKER * roles.workers, members.check)
    pace.pace_training(model)
    validation_steps = dataset.steps("validation", plan.global_batch_size)
    evaluate_by_workers(model, batches, validation_steps, config.steps_per_execution, members, pace)

    def end(epochs: int) -> None:
        members.dismiss(Dismissal(epochs=epochs))
        finish(epochs)

    def is_asked_to_stop() -> bool:
        is_asked = control.stop_request.is_set() or members.is_stop_asked()
        if is_asked:
            pace.drain()  # the step that is reported is the one that is saved
        return is_asked

    source = tf_keras.utils.experimental.DatasetCreator(batches.training)
    activity.enter("restoring")
    model.fit(
        source,
        # It only has to be there: evaluate_by_workers knows better.
        validation_data=source,
        epochs=config.epochs,
        steps_per_epoch=dataset.steps("train", plan.global_batch_size),
        validation_steps=validation_steps,
        callbacks=fit_callbacks(
            plan,
            control,
            start=start,
            end=end,
            locate=lambda epoch, step: _what_is_known(plan, activity, epoch, step),
            is_asked_to_stop=is_asked_to_stop,
            checkpoint_class=functools.partial(_SettledCheckpoint, pace=pace),
            before_checkpoint=[_Settle(pace)],
            behind_checkpoint=faults.callbacks(),
        ),
        verbose=0,
    )


class Pace:
    """Keeps what is scheduled close to what is done.

    Left alone, ``model.fit`` schedules an epoch in one go and calls back for all of its steps before the first one has
    run. With a limit to what is on its way, callbacks speak of now, and a stop or a checkpoint within an epoch is one.
    """

    def __init__(self, limit: int, check: Callable[[], None]) -> None:
        """Let ``limit`` executions be on their way; ``check`` raises when they can never come to their end."""
        self._limit = limit
        self._check = check
        self._places = threading.Semaphore(limit)
        self._results: SimpleQueue[Any] = SimpleQueue()
        self._latest: dict[str, Any] = {}
        threading.Thread(target=self._collect, name="results", daemon=True).start()

    def pace_training(self, model: tf_keras.Model) -> None:
        """Let ``fit`` of ``model`` schedule at this pace, and show callbacks the logs of the latest result."""
        make = model.make_train_function
        paced: list[Any] = []

        def make_paced(force: bool = False) -> Callable[[Any], dict[str, Any]]:
            schedule = make(force)
            if schedule in paced:
                return model.train_function

            def execute(iterator: Any) -> dict[str, Any]:
                self.run(lambda: schedule(iterator))
                if not self._latest:  # the first one: what it tells of, such as an error of the model, is told at once
                    self.drain()
                return self._latest

            # As Keras' own does: callbacks call this and leave what it returns.
            paced[:] = [execute]
            model.train_function = execute
            return execute

        model.make_train_function = make_paced

    def run(self, schedule: Callable[[], Any]) -> None:
        """Schedule when there is room.

        Args:
            schedule: Returns the remote value of the execution.
        """
        self._take_place()
        self._results.put(schedule())

    def drain(self) -> None:
        """Wait until everything that was scheduled is done."""
        for _ in range(self._limit):
            self._take_place()
        self._places.release(self._limit)

    def _take_place(self) -> None:
        while not self._places.acquire(timeout=_CHECK_SECONDS):
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
            self._places.release()


class _SettledCheckpoint(ChiefCheckpoint):
    """Saves a moment in which nothing is on its way: the values fit each other, and the count of the steps."""

    def __init__(self, *arguments: Any, pace: Pace, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pace = pace

    def _save(self, **options: Any) -> None:
        self._pace.drain()
        super()._save(**options)


class _Settle(tf_keras.callbacks.Callback):
    """Waits at the end of an epoch, as Keras is about to do, but not for workers that are gone."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._supports_tf_logs = True
        self._pace = pace

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if batch + 1 == self.params["steps"]:
            self._pace.drain()


def evaluate_by_workers(
    model: tf_keras.Model, batches: RemoteBatches, steps: int, steps_per_execution: int, members: Members, pace: Pace
) -> None:
    """Let the validations of ``fit`` be run by the workers, each batch once.

    Keras' own would let every worker go through its stream at its own pace, and so count some rows twice and others
    not at all.
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
            lost_before = members.lost
            model.reset_metrics()
            for first in range(0, steps, steps_per_execution):
                end = min(first + steps_per_execution, steps)
                arguments = tf.constant(first, tf.int64), tf.constant(end, tf.int64)
                callbacks.on_test_batch_begin(first)
                pace.run(functools.partial(coordinator.schedule, evaluate_some, args=arguments))
                callbacks.on_test_batch_end(end - 1)
            pace.drain()
            coordinator.join()
            # What a lost worker had counted already was counted again by another one.
            is_whole = members.lost == lost_before
        logs = {name: value.numpy() for name, value in model.get_metrics_result().items()}
        callbacks.on_test_end(logs)
        return logs

    model.evaluate = evaluate


def _what_is_known(plan: TrainingPlan, activity: Activity, epoch: int, step: int) -> str:
    """Say of a step what the coordinator can: it hands out steps, and whoever is free reads a batch for one."""
    last = fit.last_good(plan, activity, epoch, step)
    return f"the workers' updates overlap, so which records it read is not known; {last}"


def _supply(
    plan: TrainingPlan, control: WorkerControl, roles: Roles, role: Role, faults: InjectedFaults
) -> BatchSupply:
    dataset = Dataset.open(plan.dataset)
    return BatchSupply(dataset, *_read_plans(plan, roles, role, dataset), control.activity, faults.input)


def _read_plans(plan: TrainingPlan, roles: Roles, role: Role, dataset: Dataset) -> tuple[ReadPlan, ReadPlan]:
    """Return what a worker reads of the training and of the validation split."""
    rows = sum(shard.rows for shard in dataset.manifest.splits["train"])
    start = start_of(plan, dataset)
    training = reading(rows, plan.global_batch_size, role, roles, plan.config.seed, start.epoch, start.step_in_epoch)
    return training, ReadPlan("validation", plan.global_batch_size)


def _start_server(role: Role, host: str, threads: int) -> tuple[Any, str]:
    """Start this rank's TensorFlow server on a free port, and return it with its address."""
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
