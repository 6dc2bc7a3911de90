"""How many workers go on with the slots there are, and what that means for batch and learning rate. Pure."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from data_pipelines.lanes import MAX_LANES

BatchRule = Literal["keep_global_batch", "keep_batch_per_worker"]


@dataclass(frozen=True)
class WorkerRange:
    """How many workers a run may have: at least ``fewest``, at best ``most``."""

    fewest: int
    most: int

    def __post_init__(self) -> None:
        if self.fewest < 1:
            raise ValueError(f"workers {self} begins below 1; use 1 or more")
        if self.most < self.fewest:
            raise ValueError(f"workers {self} ends before it begins; use {self.most}:{self.fewest}")

    def __str__(self) -> str:
        """Write it as the command line does."""
        return str(self.most) if self.fewest == self.most else f"{self.fewest}:{self.most}"

    @property
    def is_elastic(self) -> bool:
        """Whether there is a choice."""
        return self.fewest < self.most


def parse_workers(text: str | int) -> WorkerRange:
    """Return the range that ``"4"`` or ``"2:4"`` means.

    Raises:
        ValueError: It is neither.
    """
    found = re.fullmatch(r"(\d+)(?::(\d+))?", str(text).strip(), re.ASCII)
    if found is None:
        raise ValueError(f"workers '{text}' is no number of workers; use a number like 4, or fewest:most like 2:4")
    fewest, most = found.groups()
    return WorkerRange(int(fewest), int(most or fewest))


@dataclass(frozen=True)
class BatchSize:
    """What one number of workers trains with.

    Attributes:
        global_batch_size: Rows of one update over all workers.
        learning_rate_scale: What the configured learning rate is multiplied with.
    """

    global_batch_size: int
    learning_rate_scale: float


@dataclass(frozen=True)
class Elastic:
    """The sizes a run may have. Batch size and learning rate are configured for the most workers.

    Attributes:
        workers: From the fewest to the most.
        global_batch_size: Rows of one update over all workers, with the most workers.
        rule: What fewer workers change. ``keep_global_batch``: nothing; the sequence of global batches and the learning
            rate stay the same, each worker takes a larger share, and only sizes among which the batch divides are used.
            ``keep_batch_per_worker``: the global batch shrinks with the workers, and the learning rate with it.
    """

    workers: WorkerRange
    global_batch_size: int
    rule: BatchRule = "keep_global_batch"

    def __post_init__(self) -> None:
        if self.rule not in get_args(BatchRule):
            raise ValueError(f"batch rule '{self.rule}' is unknown; use one of {list(get_args(BatchRule))}")
        if self.global_batch_size < 1:
            raise ValueError(f"global_batch_size is {self.global_batch_size}; use 1 or more")
        ends = {self.workers.most, self.workers.fewest} if self.rule == "keep_global_batch" else {self.workers.most}
        for size in sorted(ends, reverse=True):
            if self.global_batch_size % size:
                raise ValueError(
                    f"global_batch_size {self.global_batch_size} does not divide among {size} workers; "
                    f"use a multiple of {size}"
                )
        share = self.global_batch_size // self.workers.most
        if self.rule == "keep_batch_per_worker" and self.workers.is_elastic and share % MAX_LANES:
            # The data order cuts an epoch into lanes; only such batches cut it at the same rows, whatever their size,
            # so that a place in one order is a place in another.
            raise ValueError(
                f"batch of {share} rows per worker is no multiple of {MAX_LANES}, so the place in an epoch cannot be "
                f"kept when the number of workers changes; use a global_batch_size that is a multiple of "
                f"{MAX_LANES * self.workers.most}, or the rule keep_global_batch"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of workers that may train, fewest first."""
        among = range(self.workers.fewest, self.workers.most + 1)
        if self.rule == "keep_batch_per_worker":
            return tuple(among)
        return tuple(size for size in among if self.global_batch_size % size == 0)

    def next_workers(self, slots: int) -> int | None:
        """Return how many workers go on with ``slots`` slots; None when those are too few."""
        return max((size for size in self.sizes if size <= slots), default=None)

    def larger(self, workers: int, slots: int) -> int | None:
        """Return to how many workers a training of ``workers`` could grow; None when it could not."""
        size = self.next_workers(slots)
        return size if size is not None and size > workers else None

    def batch(self, workers: int) -> BatchSize:
        """Return what ``workers`` workers train with."""
        if self.rule == "keep_global_batch":
            return BatchSize(self.global_batch_size, 1.0)
        return BatchSize(self.global_batch_size // self.workers.most * workers, workers / self.workers.most)


def resume_step(step_in_epoch: int, global_batch_size: int, new_global_batch_size: int) -> int:
    """Return the step of the epoch where a training with another batch size goes on.

    No example is skipped; when the rows seen so far are no whole number of new batches, up to a batch of them is seen
    twice in that epoch. With the same batch size nothing is.

    Args:
        step_in_epoch: Steps done of the epoch.
        global_batch_size: Rows of each of them.
        new_global_batch_size: Rows of each step to come.
    """
    return step_in_epoch * global_batch_size // new_global_batch_size
