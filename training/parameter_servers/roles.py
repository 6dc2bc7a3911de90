"""Who does what in a training with parameter servers: rank 0 coordinates, then come the workers, then the servers.

Pure, and without TensorFlow: the driver counts slots with it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from data_pipelines.dataset import ReadPlan

Job = Literal["chief", "worker", "ps"]

COORDINATOR = 0

# Smaller variables stay whole: each part costs a message per step, and a bias has nothing to gain.
SHARD_BYTES = 1 << 18


@dataclass(frozen=True)
class Role:
    """What a rank is, in TensorFlow's words: ``chief`` is the coordinator, ``ps`` a parameter server."""

    job: Job
    index: int

    def __str__(self) -> str:
        """Write it for people."""
        names: Mapping[Job, str] = {"chief": "the coordinator", "worker": "worker", "ps": "parameter server"}
        return names[self.job] if self.job == "chief" else f"{names[self.job]} {self.index}"


@dataclass(frozen=True)
class Roles:
    """The roles of all ranks.

    Attributes:
        workers: Ranks that compute gradients.
        servers: Ranks that hold the variables.
    """

    workers: int
    servers: int

    def __post_init__(self) -> None:
        if self.workers < 1 or self.servers < 1:
            raise ValueError(
                f"{self.workers} workers and {self.servers} parameter servers cannot train; use at least 1 of each"
            )

    @classmethod
    def among(cls, ranks: int, workers: int) -> "Roles":
        """Return the roles of that many ranks, of which ``workers`` are workers and one coordinates."""
        return cls(workers, ranks - workers - 1)

    @property
    def ranks(self) -> int:
        """How many ranks there are, and so how many slots are needed."""
        return 1 + self.workers + self.servers

    def of(self, rank: int) -> Role:
        """Return what ``rank`` does."""
        if not 0 <= rank < self.ranks:
            raise ValueError(f"rank {rank} is not one of {self.ranks}")
        if rank == COORDINATOR:
            return Role("chief", 0)
        is_worker = rank <= self.workers
        return Role("worker", rank - 1) if is_worker else Role("ps", rank - 1 - self.workers)

    def is_dispensable(self, rank: int) -> bool:
        """Whether a training goes on when ``rank`` is gone, as long as one worker is left."""
        return self.of(rank).job == "worker"

    def missed(self, lost: Mapping[int, str]) -> int | None:
        """Return the rank without which the training cannot go on; None while it can.

        Args:
            lost: The ranks that are gone, in the order in which they went.
        """
        firm = next((rank for rank in lost if not self.is_dispensable(rank)), None)
        if firm is not None:
            return firm
        return list(lost)[-1] if len(lost) == self.workers else None

    def cluster(self, addresses: Sequence[str]) -> dict[str, list[str]]:
        """Return the cluster as ``TF_CONFIG`` has it, from the addresses in the order of the ranks."""
        if len(addresses) != self.ranks:
            raise ValueError(f"{len(addresses)} addresses for {self.ranks} ranks")
        jobs: dict[str, list[str]] = {"chief": [], "worker": [], "ps": []}
        for rank, address in enumerate(addresses):
            jobs[self.of(rank).job].append(address)
        return jobs


def shards(shape: Sequence[int], bytes_per_element: int, servers: int) -> list[int]:
    """Return into how many parts a variable is cut along each axis: tables by their rows, one part per server.

    Args:
        shape: Of the variable.
        bytes_per_element: Size of its type.
        servers: How many there are; a part is never smaller than ``SHARD_BYTES``.
    """
    parts = min(servers, shape[0], math.prod(shape) * bytes_per_element // SHARD_BYTES)
    return [max(1, parts), *([1] * (len(shape) - 1))]


def reading(
    rows: int, batch_size: int, role: Role, roles: Roles, seed: int, epoch: int = 0, step_in_epoch: int = 0
) -> ReadPlan:
    """Return what a worker reads: batches of its own share of every epoch, for ever.

    An update is one worker's batch, so that an epoch has as many updates as in synchronous training, whoever makes
    them. Together the workers read each row of an epoch once, apart from those that fill no batch: others in each
    epoch. They do not wait for each other, so the epochs of their streams drift apart.

    Args:
        rows: Of the training split.
        batch_size: Rows of one update.
        role: Which worker.
        roles: Of all ranks.
        seed: Fixes the order.
        epoch: Epochs that were completed when the training was saved.
        step_in_epoch: Updates of the next one that were. Which worker made them is not known: each stream goes on from
            their mean.
    """
    together = batch_size * roles.workers
    return ReadPlan(
        "train",
        together,
        rank=role.index,
        workers=roles.workers,
        seed=seed,
        epoch=epoch,
        # The last updates of an epoch may be more than a stream has steps: then the next epoch is near enough.
        step=min(step_in_epoch // roles.workers, max(0, rows // together - 1)),
        epochs=None,
        # A batch of nothing but padding would still move the weights by the optimizer's momentum.
        remainder="drop" if rows >= together else "pad",
    )
