"""The roles of ranks in a training with parameter servers: rank 0 coordinates, then come the workers, then the servers.

Pure and without TensorFlow, since the driver counts slots with it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Job = Literal["chief", "worker", "ps"]

COORDINATOR = 0

# Smaller variables stay whole: each part costs a message per step, and splitting a bias gains nothing.
SHARD_BYTES = 1 << 18


@dataclass(frozen=True)
class RankRole:
    """The role of a rank, in TensorFlow's words: ``chief`` is the coordinator, ``ps`` a parameter server."""

    job: Job
    index: int

    def __str__(self) -> str:
        """Return the role in words."""
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
        """Return the roles of ``ranks`` ranks, of which ``workers`` are workers and one coordinates."""
        return cls(workers, ranks - workers - 1)

    @property
    def ranks(self) -> int:
        """Number of all ranks, and so of the slots that are needed."""
        return 1 + self.workers + self.servers

    def of(self, rank: int) -> RankRole:
        """Return the role of ``rank``."""
        if not 0 <= rank < self.ranks:
            raise ValueError(f"rank {rank} is not one of {self.ranks}")
        if rank == COORDINATOR:
            return RankRole("chief", 0)
        is_worker = rank <= self.workers
        return RankRole("worker", rank - 1) if is_worker else RankRole("ps", rank - 1 - self.workers)

    def is_dispensable(self, rank: int) -> bool:
        """Return True if a training can lose ``rank``, as one worker is left."""
        return self.of(rank).job == "worker"

    def missed(self, lost: Mapping[int, str]) -> int | None:
        """Return the lost rank without which the training cannot go on; None while it can.

        Args:
            lost: The lost ranks, in the order of their loss.
        """
        firm = next((rank for rank in lost if not self.is_dispensable(rank)), None)
        if firm is not None:
            return firm
        return list(lost)[-1] if len(lost) == self.workers else None

    def cluster(self, addresses: Sequence[str]) -> dict[str, list[str]]:
        """Return the cluster in the form of ``TF_CONFIG``, from the addresses in the order of the ranks."""
        if len(addresses) != self.ranks:
            raise ValueError(f"{len(addresses)} addresses for {self.ranks} ranks")
        jobs: dict[str, list[str]] = {"chief": [], "worker": [], "ps": []}
        for rank, address in enumerate(addresses):
            jobs[self.of(rank).job].append(address)
        return jobs


def shards(shape: Sequence[int], bytes_per_element: int, servers: int) -> list[int]:
    """Return the number of parts of a variable along each axis: tables are split by rows, one part per server.

    Args:
        shape: Shape of the variable.
        bytes_per_element: Size of its type.
        servers: Number of servers; a part is never smaller than ``SHARD_BYTES``.
    """
    parts = min(servers, shape[0], math.prod(shape) * bytes_per_element // SHARD_BYTES)
    return [max(1, parts), *([1] * (len(shape) - 1))]
