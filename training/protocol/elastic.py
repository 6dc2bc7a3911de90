"""The number of workers for the available slots, with its batch and learning rate. Pure functions."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from mirrorspark.data_pipelines.reading import MAX_LANES

BatchRule = Literal["keep_global_batch", "keep_batch_per_worker"]


@dataclass(frozen=True)
class WorkerRange:
    """The allowed numbers of workers of a run: at least ``fewest``, preferably ``most``."""

    fewest: int
    most: int

    def __post_init__(self) -> None:
        if self.fewest < 1:
            raise ValueError(f"workers {self} begins below 1; use 1 or more")
        if self.most < self.fewest:
            raise ValueError(f"workers {self} ends before it begins; use {self.most}:{self.fewest}")

    def __str__(self) -> str:
        """Return the form of the command line."""
        return str(self.most) if self.fewest == self.most else f"{self.fewest}:{self.most}"

    @property
    def is_elastic(self) -> bool:
        """True if more than one number is allowed."""
        return self.fewest < self.most


def parse_workers(text: str | int) -> WorkerRange:
    """Return the range of a text such as ``"4"`` or ``"2:4"``.

    Raises:
        ValueError: The text has neither form.
    """
    found = re.fullmatch(r"(\d+)(?::(\d+))?", str(text).strip(), re.ASCII)
    if found is None:
        raise ValueError(f"workers '{text}' is not a number of workers; use a number like 4, or fewest:most like 2:4")
    fewest, most = found.groups()
    return WorkerRange(int(fewest), int(most or fewest))


@dataclass(frozen=True)
class BatchSize:
    """The batch size and learning rate for one number of workers.

    Attributes:
        global_batch_size: Rows of one update over all workers.
        learning_rate_scale: Factor of the configured learning rate.
    """

    global_batch_size: int
    learning_rate_scale: float


@dataclass(frozen=True)
class Elastic:
    """The allowed sizes of a run. Batch size and learning rate are configured for the most workers.

    Attributes:
        workers: Numbers of workers, from the fewest to the most.
        global_batch_size: Rows of one update over all workers, with the most workers.
        rule: Effect of fewer workers. With ``keep_global_batch``, the sequence of global batches and the learning rate
            stay the same, each worker takes a larger share, and only sizes that divide the batch are used. With
            ``keep_batch_per_worker``, the global batch and the learning rate shrink with the workers.
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
            # The data order cuts an epoch into lanes; only such batches cut it at the same rows for every size, so that
            # a position in one order is a position in another.
            raise ValueError(
                f"batch of {share} rows per worker is not a multiple of {MAX_LANES}, so the place in an epoch cannot "
                f"be kept when the number of workers changes; use a global_batch_size that is a multiple of "
                f"{MAX_LANES * self.workers.most}, or the rule keep_global_batch"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The allowed numbers of workers, fewest first."""
        among = range(self.workers.fewest, self.workers.most + 1)
        if self.rule == "keep_batch_per_worker":
            return tuple(among)
        return tuple(size for size in among if self.global_batch_size % size == 0)

    def next_workers(self, slots: int) -> int | None:
        """Return the number of workers for ``slots`` slots; None if those are too few."""
        return max((size for size in self.sizes if size <= slots), default=None)

    def larger(self, workers: int, slots: int) -> int | None:
        """Return the number of workers to which a training of ``workers`` could grow; None if it cannot grow."""
        size = self.next_workers(slots)
        return size if size is not None and size > workers else None

    def batch(self, workers: int) -> BatchSize:
        """Return the batch size and learning rate of ``workers`` workers."""
        if self.rule == "keep_global_batch":
            return BatchSize(self.global_batch_size, 1.0)
        return BatchSize(self.global_batch_size // self.workers.most * workers, workers / self.workers.most)


def resume_step(step_in_epoch: int, global_batch_size: int, new_global_batch_size: int) -> int:
    """Return the step of the epoch at which a training resumes with another batch size.

    No example is skipped. If the rows seen so far are not a whole number of new batches, up to one batch of them is
    repeated in that epoch; with the same batch size none is.

    Args:
        step_in_epoch: Steps done of the epoch.
        global_batch_size: Rows of each of these steps.
        new_global_batch_size: Rows of each later step.
    """
    return step_in_epoch * global_batch_size // new_global_batch_size
