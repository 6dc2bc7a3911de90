"""The role of this process in a distributed training: chief, worker, evaluator, or single process."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Cluster = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Role:
    """One process's role in the cluster.

    Attributes:
        task_type: ``chief``, ``worker``, ``ps``, ``evaluator``, or None for a training of one process.
        task_id: Index within the task type, or None for a training of one process.
        workers: Number of processes that train together, including the chief, at least 1.
        rank: Index among those processes; the chief is 0.
        is_chief: Whether this process publishes files and metrics.
    """

    task_type: str | None
    task_id: int | None
    workers: int
    rank: int
    is_chief: bool


def is_chief(task_type: str | None, task_id: int | None, cluster: Cluster | None = None) -> bool:
    """Return whether the task with this type and id is the chief.

    The chief is the task of type ``chief``, or worker 0 in a cluster that has no such task. A process without a
    cluster is its own chief; an evaluator or a parameter server never is.

    Args:
        task_type: The task's type, None without a cluster.
        task_id: The task's index within its type, None without a cluster.
        cluster: Addresses by task type; by default the cluster in ``TF_CONFIG``, if any.
    """
    if task_type is None:
        return True
    if task_type != "worker":
        return task_type == "chief"
    if cluster is None:
        cluster = _tf_config().get("cluster", {})
    return not cluster.get("chief") and task_id == 0


def current_role(strategy: Any = None) -> Role:
    """Return this process's role, from the strategy's cluster resolver, its replicas, or else from ``TF_CONFIG``.

    Args:
        strategy: A ``tf.distribute.Strategy``; for None, or one without a cluster, ``TF_CONFIG`` decides.
    """
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is not None and (cluster := resolver.cluster_spec().as_dict()):
        return _role(resolver.task_type, resolver.task_id, cluster)
    if resolver is None and strategy is not None and strategy.extended._in_multi_worker_mode():
        return _role_of_replicas(strategy)
    tf_config = _tf_config()
    task = tf_config.get("task", {})
    return _role(task.get("type"), task.get("index"), tf_config.get("cluster", {}))


def _role(task_type: str | None, task_id: int | None, cluster: Cluster) -> Role:
    chiefs = len(cluster.get("chief", ()))
    rank = chiefs + int(task_id or 0) if task_type == "worker" else 0
    return Role(
        task_type=task_type or None,
        task_id=None if task_id is None else int(task_id),
        workers=max(1, chiefs + len(cluster.get("worker", ()))),
        rank=rank,
        is_chief=is_chief(task_type or None, None if task_id is None else int(task_id), cluster),
    )


def _role_of_replicas(strategy: Any) -> Role:
    """Return the role in a multi-process strategy without a cluster resolver, from the numbers of its replicas."""
    local = len(strategy.extended.worker_devices)
    numbers: list[int] = []

    def note_number(context: Any) -> float:
        numbers.append(int(context.replica_id_in_sync_group))
        return 0.0

    strategy.experimental_distribute_values_from_function(note_number)
    rank = numbers[0] // local
    return Role("worker", rank, workers=strategy.num_replicas_in_sync // local, rank=rank, is_chief=rank == 0)


def _tf_config() -> dict[str, Any]:
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        return {}
    try:
        tf_config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"TF_CONFIG is not JSON ({error}); unset it or give it a cluster and a task") from error
    if not isinstance(tf_config, dict):
        raise ValueError(f"TF_CONFIG is a JSON {type(tf_config).__name__}; give it an object with cluster and task")  # noqa: TRY004
    return tf_config
