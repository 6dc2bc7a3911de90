"""T4: a snapshot is written later as it was read, with every kind of variable that a training may have."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints.snapshot import Snapshot
from mirrorspark.callbacks.checkpoints.training_state import tensors
from mirrorspark.training.protocol.ring.ring import Ring
from mirrorspark.training.protocol.ring.strategy import RingStrategy

REDUCED = ("SUM", "MEAN", "ONLY_FIRST_REPLICA")
# Of one that is read without being reduced there is no one value to save.
KINDS = [*(("AUTO", aggregation) for aggregation in ("NONE", *REDUCED)), *(("ON_READ", one) for one in REDUCED)]


class AllKinds(tf_keras.layers.Layer):
    """Has a variable of every kind, and a table of each."""

    def build(self, input_shape: Any) -> None:
        for synchronization, aggregation in KINDS:
            for shape in ((), (1000, 4)):
                self.add_weight(
                    name=f"{synchronization}_{aggregation}_{len(shape)}".lower(),
                    shape=shape,
                    initializer="ones",
                    trainable=False,
                    synchronization=tf.VariableSynchronization[synchronization],
                    aggregation=tf.VariableAggregation[aggregation],
                )
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        return inputs


@pytest.mark.parametrize(
    "strategy",
    [tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["/cpu:0"]), RingStrategy(Ring(0, 1))],
    ids=["plain", "mirrored", "ring"],
)
def test_a_snapshot_keeps_the_values_of_its_step(strategy: Any, tmp_path: Path) -> None:
    with strategy.scope():
        model = tf_keras.Sequential([tf_keras.Input((3,)), AllKinds(), tf_keras.layers.Dense(2)])
        model.compile(tf_keras.optimizers.Adam(0.1), "mse")
    snapshot = Snapshot(model, model.optimizer)
    before = [np.array(variable.numpy()) for variable in model.variables]
    strategy.run(lambda: [variable.assign_add(tf.ones_like(variable)) for variable in model.variables] and None)
    snapshot.write(tmp_path)
    assert all((now.numpy() != then).all() for now, then in zip(model.variables, before, strict=True))
    tensors(model, model.optimizer).read(str(tmp_path / commit.TENSORS)).assert_existing_objects_matched()
    for variable, then in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), then, err_msg=variable.name)
