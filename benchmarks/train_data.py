"""What the sides of ``train_steps`` are given: how much work, and rows drawn from a seed.

The process of PyTorch, whose environment has NumPy but neither TensorFlow nor our packages, imports this, too.
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

# Rows that a worker holds, and goes through again and again: 16 MiB of them for the feed-forward net.
ROWS_IN_MEMORY = 1 << 16

FEATURES = 64
HIDDEN_UNITS = (256, 128)
LEARNING_RATE = 0.001

USERS, ITEMS = 50_000, 20_000
EMBEDDING_DIM = 32
EMBEDDING_LEARNING_RATE = 0.05

ModelName = Literal["mlp", "two_tower"]


@dataclass(frozen=True)
class Work:
    """What every side trains.

    Attributes:
        model: ``mlp``, a feed-forward net 64-256-128-1; or ``two_tower``, a table of users and one of items.
        batch: Rows of a step on one worker.
        steps: Steps that are timed, in one epoch: what an epoch's end takes is not what a step takes.
    """

    model: ModelName
    batch: int
    steps: int

    @classmethod
    def of_rows(cls, model: ModelName, batch: int, rows: int) -> "Work":
        """Return the work of about so many timed rows per worker."""
        return cls(model, batch, max(1, rows // batch))

    @property
    def warm_up_steps(self) -> int:
        """Steps before, which trace, compile, and go through all rows once: then they are cut and lie in memory."""
        return max(ROWS_IN_MEMORY // self.batch + 1, self.steps // 10)

    @property
    def rows(self) -> int:
        """Rows of the timed steps on one worker."""
        return self.batch * self.steps

    def to_json(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Work":
        """Read what :meth:`to_json` wrote."""
        return cls(**json.loads(text))


def rows_of(work: Work, rank: int) -> tuple[tuple[npt.NDArray[np.generic], ...], npt.NDArray[np.generic]]:
    """Return a worker's inputs and labels, whole batches of them.

    Returns:
        Of ``mlp``: features, float32 ``[rows, 64]``, and labels, float32 ``[rows, 1]``. Of ``two_tower``: users and
        items, int64 ``[rows]``, small ids more often, as tokens ordered by frequency are; and as label of a row the
        place of its item in the batch.
    """
    generator = np.random.default_rng(rank)
    rows = ROWS_IN_MEMORY // work.batch * work.batch
    if work.model == "mlp":
        features = generator.standard_normal((rows, FEATURES), np.float32)
        return (features,), (features[:, :4].sum(axis=1, keepdims=True) > 0).astype(np.float32)
    users, items = ((size * generator.random(rows) ** 2).astype(np.int64) for size in (USERS, ITEMS))
    return (users, items), np.arange(rows, dtype=np.int64) % work.batch
