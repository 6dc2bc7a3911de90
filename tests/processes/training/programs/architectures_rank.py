"""A rank of two that go on with the trainings of one: each architecture from its checkpoint, by half of each batch.

Arguments: the rank, the addresses of both, a folder with a checkpoint for each case, and the cases. Each writes the
checkpoints that follow into ``two-RANK`` below the folder, and its variables into ``RANK.npz``.
"""

import os
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from mirrorspark.callbacks.checkpoints.training_state import tensors
from mirrorspark.training.protocol.ring.ring import Ring
from mirrorspark.training.protocol.ring.strategy import RingStrategy
from tests.unit.models import test_every_architecture as contract

ROWS = (0, 1, 2, 1)


def main(rank: int, addresses: list[str], folder: Path, cases: list[str]) -> None:
    """Train, and write what became of it."""
    strategy = RingStrategy(Ring.connect(rank, addresses, "secret"))
    comment = contract.comment_of(folder / f"encoder-{rank}")
    half = len(ROWS) // 2
    results = {}
    for case in cases:
        task = contract.catalog.architecture(contract.name_of(case)).TASK
        fitted = contract.features(task, comment, items=contract.WITH_ITEMS in case)
        with strategy.scope():
            model = contract.compiled(case, fitted, seed=99)
        status = tensors(model, model.optimizer).read(str(folder / case))
        status.assert_existing_objects_matched()
        status.assert_consumed()
        batch = contract.batch_of(fitted, task, ROWS[rank * half : (rank + 1) * half])
        step = tf.function(lambda model=model, batch=batch: strategy.run(model.train_step, args=(batch,)))
        for _ in range(contract.STEPS):
            step()
        # Both write: values that each keeps for itself are saved as their mean.
        tensors(model, model.optimizer).write(str(folder / f"two-{rank}" / case))
        state = [*model.trainable_variables, *model.optimizer.variables]
        results |= {f"{case}/{place}": variable.numpy() for place, variable in enumerate(state)}
    np.savez(folder / f"{rank}.npz", **results)
    sys.stdout.flush()
    os._exit(0)  # TensorFlow's threads take their time


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3]), sys.argv[4:])
