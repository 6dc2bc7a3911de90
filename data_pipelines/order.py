"""Which example stands where in which batch of an epoch: arithmetic on row counts, without reading anything.

An epoch is one long sequence: the blocks in an order drawn from (seed, epoch), the rows of each block in an order
drawn from (seed, epoch, block). The sequence is cut into *lanes* of equal length that are read side by side, and each
global batch takes the same number of rows from every lane. So

* a batch mixes rows of as many blocks as there are lanes, without a shuffle buffer;
* the sequence of global batches depends on the seed, the epoch and the global batch size alone. A worker takes its
  slice of every batch, whatever the number of workers, and opens only the lanes that its slice touches;
* any (epoch, step) can be computed directly: resuming reads nothing twice;
* every worker has the same number of steps. Rows that are missing in the last batch are padding of weight 0, spread
  over all workers.
"""

from dataclasses import dataclass

import numpy as np

MAX_LANES = 64


@dataclass(frozen=True)
class RowRange:
    """Consecutive rows of one block, in the block's order of the epoch."""

    block: int
    start: int
    stop: int


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch.

    Attributes:
        block_rows: int64 ``[blocks]``, rows of each block as stored.
        global_batch_size: Rows of one batch over all workers.
        seed: Fixes the order together with ``epoch``; None keeps blocks and rows as they are stored.
        epoch: Counts from 0.
    """

    block_rows: np.ndarray
    global_batch_size: int
    seed: int | None
    epoch: int

    def __post_init__(self) -> None:
        if self.global_batch_size < 1:
            raise ValueError(f"global_batch_size {self.global_batch_size} is below 1")
        blocks = np.arange(len(self.block_rows))
        order = blocks if self.seed is None else _generator(self.seed, self.epoch).permutation(blocks)
        object.__setattr__(self, "_blocks", order)
        object.__setattr__(self, "_ends", np.cumsum(self.block_rows[order]))

    @property
    def rows(self) -> int:
        """Examples in the epoch."""
        return int(self.block_rows.sum())

    @property
    def steps(self) -> int:
        """Batches in the epoch, the padded last one included."""
        return -(-self.rows // self.global_batch_size)

    @property
    def lanes(self) -> int:
        """Number of lanes: the largest divisor of the batch size that is no more than ``MAX_LANES``."""
        return next(n for n in range(min(MAX_LANES, self.global_batch_size), 0, -1) if not self.global_batch_size % n)

    @property
    def rows_per_lane_and_step(self) -> int:
        """Rows that every lane gives to a batch."""
        return self.global_batch_size // self.lanes

    def lane_rows(self, lane: int, first_step: int, last_step: int) -> list[RowRange]:
        """Return what ``lane`` reads for the steps from ``first_step`` up to, not including, ``last_step``.

        Short by the padding when the range includes a padded last step.
        """
        start = self._lane_start(lane) + first_step * self.rows_per_lane_and_step
        stop = self._lane_start(lane) + last_step * self.rows_per_lane_and_step
        return self._ranges(start, min(stop, self._lane_start(lane + 1)))

    def row_permutation(self, block: int) -> np.ndarray | None:
        """Return the order of the rows inside ``block``, or None where they stay as stored."""
        if self.seed is None:
            return None
        return _generator(self.seed, self.epoch, block + 1).permutation(int(self.block_rows[block]))

    def _lane_start(self, lane: int) -> int:
        full_steps, rest = divmod(self.rows, self.global_batch_size)
        # The rest is dealt out evenly, so that all padding stands in the last step and on all workers alike.
        return lane * full_steps * self.rows_per_lane_and_step + lane * rest // self.lanes

    def _ranges(self, start: int, stop: int) -> list[RowRange]:
        ends: np.ndarray = self._ends  # type: ignore[attr-defined]
        ranges = []
        position = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            block = int(self._blocks[position])  # type: ignore[attr-defined]
            begin = int(ends[position] - self.block_rows[block])
            end = min(stop, int(ends[position]))
            if end > start:
                ranges.append(RowRange(block, start - begin, end - begin))
            start, position = end, position + 1
        return ranges


def _generator(seed: int, *stream: int) -> np.random.Generator:
    # Philox keeps its stream the same on every platform and over NumPy versions.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))
