"""One rank of a small training under `RingStrategy`; its results are in a file: weights, logs and messages.

Arguments: rank, the ranks' addresses separated by commas, file, names of the cases.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}

import numpy as np
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.collectives.equal_weights import WeightsDifferError, check_equal_weights
from mirrorspark.models.fitting.optimizers import OptimizerSettings, accumulate_gradients, build_optimizer, gathering
from mirrorspark.models.fitting.step_loop import use_step_loop
from mirrorspark.models.fitting.xla import compile_with_xla
from mirrorspark.training.programs.keras_fit.local_updates import SettleLocalUpdates, local_updates
from mirrorspark.training.protocol.ring.losses import mean_losses
from mirrorspark.training.protocol.ring.ring import Ring
from mirrorspark.training.protocol.ring.strategy import RingStrategy, local_variable

GLOBAL_BATCH_SIZE = 48
STEPS = 100
TOKENS = 1000

Rows = dict[str, np.ndarray]


def rows() -> Rows:
    """Return the rows of 100 global batches, the same on every rank."""
    rng = np.random.default_rng(5)
    count = GLOBAL_BATCH_SIZE * STEPS
    numbers = rng.normal(size=(count, 8)).astype(np.float32)
    tokens = rng.zipf(1.3, size=count).clip(max=TOKENS - 1).astype(np.int64)
    label = (numbers[:, :2].sum(1) + (tokens % 3 - 1) > 0).astype(np.float32)
    return {"numbers": numbers, "tokens": tokens, "label": label}


def batches(ring: Ring) -> Callable[[tf.distribute.InputContext], tf.data.Dataset]:
    """Return a function that gives a rank its share of every global batch."""

    def mine(context: tf.distribute.InputContext) -> tf.data.Dataset:
        assert (context.input_pipeline_id, context.num_input_pipelines) == (ring.rank, ring.workers)
        share = GLOBAL_BATCH_SIZE // ring.workers
        part = slice(ring.rank * share, (ring.rank + 1) * share)
        of = {name: column.reshape(STEPS, GLOBAL_BATCH_SIZE, *column.shape[1:]) for name, column in rows().items()}
        features = {name: of[name][:, part] for name in ("numbers", "tokens")}
        return tf.data.Dataset.from_tensor_slices((features, of["label"][:, part])).repeat()

    return mine


class OwnSteps(tf_keras.Model):
    """A model with steps of its own, which call a loss of the default reduction, as TFRS's tasks do."""

    def train_step(self, inputs: Any) -> dict[str, tf.Tensor]:
        """Make one update."""
        with tf.GradientTape() as tape:
            value = self._loss_of(inputs, training=True)
        gradients = tape.gradient(value, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, inputs: Any) -> dict[str, tf.Tensor]:
        """Return the metrics so far."""
        self._loss_of(inputs, training=False)
        return {metric.name: metric.result() for metric in self.metrics}

    def _loss_of(self, inputs: Any, training: bool) -> tf.Tensor:
        features, label = inputs
        logits = self(features, training=training)
        value = self.own_loss(label[:, tf.newaxis], logits)
        self.mean_loss.update_state(value * tf.distribute.get_strategy().num_replicas_in_sync)
        self.compiled_metrics.update_state(label[:, tf.newaxis], logits)
        return value


def build(seed: int, kind: type[tf_keras.Model] = tf_keras.Model) -> tf_keras.Model:
    """Return a model with dense gradients and, from its table of tokens, sparse ones."""
    tf_keras.utils.set_random_seed(seed)
    numbers = tf_keras.Input((8,), name="numbers")
    tokens = tf_keras.Input((), dtype=tf.int64, name="tokens")
    table = tf_keras.layers.Embedding(TOKENS, 4)
    hidden = tf_keras.layers.Concatenate()([numbers, table(tokens)])
    hidden = tf_keras.layers.Dense(16, activation="relu")(hidden)
    model = kind([numbers, tokens], tf_keras.layers.Dense(1, dtype="float32")(hidden))
    if kind is OwnSteps:
        model.own_loss, model.mean_loss = loss(), tf_keras.metrics.Mean("loss")
    return model


def trained(
    ring: Ring,
    settings: OptimizerSettings,
    *,
    accumulate: int = 1,
    local_steps: int = 1,
    outer_momentum: float = 0.0,
    xla: bool = False,
    precision: str = "float32",
    is_scaled: bool = False,
    in_our_loop: bool = False,
    steps: int = STEPS,
    kind: type[tf_keras.Model] = tf_keras.Model,
) -> dict[str, Any]:
    """Train and return the weights, and the logs of the two epochs."""
    tf_keras.mixed_precision.set_global_policy(precision)
    strategy = RingStrategy(ring)
    rules = ([local_updates(ring, local_steps, outer_momentum)] if local_steps > 1 else []) + (
        [gathering] if accumulate > 1 else []
    )
    with strategy.scope():
        # Ranks draw other initial weights, as those of careless users do: the chief's count.
        model = build(seed=1 + ring.rank, kind=kind)
        optimizer = build_optimizer(settings, *rules)
        model.compile(
            loss_scaled(optimizer, growth_steps=4) if is_scaled else optimizer,
            loss=None if kind is OwnSteps else loss(),
            metrics=[tf_keras.metrics.AUC(name="auc", from_logits=True)],
            steps_per_execution=10,
        )
        if xla:
            compile_with_xla(model)
        if accumulate > 1:
            accumulate_gradients(model, accumulate)
    if in_our_loop:
        use_step_loop(model)
    operations = ring.operations
    data = strategy.distribute_datasets_from_function(batches(ring))
    validation = strategy.distribute_datasets_from_function(batches(ring))
    with mean_losses(strategy):
        history = model.fit(
            data,
            epochs=2,
            steps_per_epoch=steps // 2,
            validation_data=validation,
            validation_steps=10,
            callbacks=[SettleLocalUpdates()],
            verbose=0,
        ).history
    tf_keras.mixed_precision.set_global_policy("float32")
    weights = np.concatenate([weight.numpy().ravel() for weight in model.trainable_variables])
    return {
        "weights": weights,
        "operations": ring.operations - operations,
        **{name: np.array(values) for name, values in history.items()},
    }


def mean_of_local_steps(ring: Ring, accumulate: int = 1) -> dict[str, Any]:
    """Return the weights after two local steps and their mean, and the mean of what each rank comes to alone."""
    strategy = RingStrategy(ring)
    with strategy.scope():
        together = build(seed=1)
        rules = [local_updates(ring, 2), *([gathering] if accumulate > 1 else [])]
        together.compile(build_optimizer(OptimizerSettings("sgd", 0.5), *rules), loss=loss())
        if accumulate > 1:
            accumulate_gradients(together, accumulate)
    alone = build(seed=1)
    alone.compile(build_optimizer(OptimizerSettings("sgd", 0.5)), loss=loss())
    together.fit(strategy.distribute_datasets_from_function(batches(ring)), steps_per_epoch=2, verbose=0)
    share = batches(ring)(tf.distribute.InputContext(ring.workers, ring.rank, ring.workers))
    alone.fit(share, steps_per_epoch=2, verbose=0)
    mean = [ring.all_reduce(weight.ravel()) / ring.workers for weight in alone.get_weights()]
    return {
        "found": np.concatenate([weight.ravel() for weight in together.get_weights()]),
        "expected": np.concatenate(mean),
    }


def loss_scaled(optimizer: tf_keras.optimizers.Optimizer, growth_steps: int) -> Any:
    """Return ``optimizer`` with loss scaling: 64 at first, doubled after ``growth_steps``, halved after a skip."""
    return tf_keras.mixed_precision.LossScaleOptimizer(optimizer, initial_scale=64, dynamic_growth_steps=growth_steps)


def skipped_steps(ring: Ring) -> dict[str, Any]:
    """Return the results of four steps; in the second and the last one, the last rank has an infinite gradient."""
    strategy = RingStrategy(ring)
    with strategy.scope():
        dense, table = tf.Variable(tf.zeros([2])), tf.Variable(tf.zeros([4, 2]))
        optimizer = loss_scaled(build_optimizer(OptimizerSettings("sgd", 0.5)), growth_steps=100)
    own = np.tile(np.float32(1 + ring.rank), [4, 2])
    of_dense, of_table = own.copy(), own.copy()
    if ring.rank == ring.workers - 1:
        of_dense[1, 0] = of_table[3, 1] = np.inf

    @tf.function
    def step(number: tf.Tensor) -> None:
        def of_replica() -> None:
            row = tf.IndexedSlices(tf.constant(of_table)[number : number + 1], [number], [4, 2])
            optimizer.apply_gradients([(tf.constant(of_dense)[number], dense), (row, table)])

        strategy.run(of_replica)

    dense_after = []
    for number in range(4):
        step(tf.constant(number))
        dense_after.append(dense.numpy())
    return {
        "dense": np.array(dense_after),
        "table": table.numpy(),
        "loss_scale": optimizer.loss_scale.numpy(),
        "steps": optimizer.iterations.numpy(),
    }


def outer_steps(ring: Ring, *, is_minimized: bool = False) -> dict[str, Any]:
    """Return the weights after each of four local steps, each rank towards a place of its own, two to an outer one.

    The optimizer is given the gradients, or the loss itself.
    """
    strategy = RingStrategy(ring)
    rule = local_updates(ring, 2, outer_momentum=0.9, outer_learning_rate=0.7)
    with strategy.scope():
        weight = tf.Variable([4.0, -2.0, 0.5])
        optimizer = build_optimizer(OptimizerSettings("sgd", 0.25), rule)

    def distance() -> tf.Tensor:
        return weight - [1.0, 2.0, 4.0 * ring.rank]

    # As Keras does, whose mean of a batch is that of all ranks.
    def minimize() -> None:
        optimizer.minimize(lambda: tf.nn.l2_loss(distance()) / ring.workers, [weight])

    def apply() -> None:
        optimizer.apply_gradients([(distance() / ring.workers, weight)])

    @tf.function
    def step() -> None:
        strategy.run(minimize if is_minimized else apply)

    found = []
    for _ in range(4):
        step()
        found.append(weight.numpy())
    return {"own": np.array(found[::2]), "met": np.array(found[1::2])}


def loss() -> tf_keras.losses.Loss:
    return tf_keras.losses.BinaryCrossentropy(from_logits=True)


def custom_loop(ring: Ring) -> dict[str, Any]:
    """Return the results of `tf.distribute`'s own functions, in a loop written for any strategy."""
    strategy = RingStrategy(ring)
    with strategy.scope():
        total = tf.Variable(
            0.0,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )

    @tf.function
    def step() -> tf.Tensor:
        def of_replica() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            replica = tf.cast(context.replica_id_in_sync_group, tf.float32)
            total.assign_add(replica + 1.0)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, replica + 1.0)

        return strategy.run(of_replica)

    summed = step()
    values = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(float(context.replica_id_in_sync_group), tf.float64)
    )
    return {
        "all_reduce": summed.numpy(),
        "on_read": total.numpy(),
        "reduce": strategy.reduce(tf.distribute.ReduceOp.MEAN, values, axis=None).numpy(),
        "gather": strategy.gather(tf.reshape(tf.constant([ring.rank]), [1]), axis=0).numpy(),
        "replicas": strategy.num_replicas_in_sync,
    }


def finite_dataset(ring: Ring) -> dict[str, Any]:
    """Return the steps of an epoch over a plain dataset, which the strategy has to shard itself."""
    strategy = RingStrategy(ring)
    with strategy.scope():
        model = tf_keras.Sequential([tf_keras.Input((1,)), tf_keras.layers.Dense(1)])
        model.compile("sgd", loss="mse")
    values = np.arange(40, dtype=np.float32).reshape(-1, 1) / 40
    dataset = tf.data.Dataset.from_tensor_slices((values, values)).batch(12)
    model.fit(dataset, epochs=1, verbose=0)
    found = {"steps": model.optimizer.iterations.numpy()}
    with tempfile.TemporaryDirectory() as folder:
        with tf.io.TFRecordWriter(file := f"{folder}/rows.tfrecord") as writer:
            for value in values:
                writer.write(value.tobytes())
        records = tf.data.TFRecordDataset(file).map(lambda record: tf.io.decode_raw(record, tf.float32))
        done: list[int] = []
        count = tf_keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: done.append(step))
        model.fit(records.map(lambda value: (value, value)).batch(12), epochs=1, callbacks=[count], verbose=0)
    return found | {"steps_of_a_file": len(done)}


def variables_in_a_function(ring: Ring) -> dict[str, Any]:
    """Return variables that a ``tf.function`` creates, each rank from numbers of its own, and what is refused."""
    strategy = RingStrategy(ring)
    drawn = tf.random.Generator.from_seed(1 + ring.rank)
    made: dict[str, tf.Variable] = {}

    @tf.function
    def create() -> None:
        if not made:
            made["drawn"] = tf.Variable(lambda: drawn.normal([3]))
            made["constant"] = tf.Variable(tf.constant(float(7 + ring.rank)))
            made["number"] = tf.Variable(7.0 + ring.rank)

    @tf.function
    def create_from_the_graph() -> None:
        if "computed" not in made:
            made["computed"] = tf.Variable(tf.random.normal([3]))

    with strategy.scope():
        create()
        refused = ""
        try:
            create_from_the_graph()
        except ValueError as error:
            refused = str(error)
    return {"refused": refused} | {name: variable.numpy() for name, variable in made.items()}


def diverged(ring: Ring) -> dict[str, Any]:
    """Return the messages of the comparison of weights before one value of the last rank changes, and after."""
    strategy = RingStrategy(ring)
    with strategy.scope():
        model = build(seed=1)
    check_equal_weights(model)
    if ring.rank == ring.workers - 1:
        weight = local_variable(model.trainable_variables[1])
        weight.assign(np.nextafter(weight.numpy(), np.float32(np.inf)))
    try:
        check_equal_weights(model)
    except WeightsDifferError as error:
        return {"message": str(error)}
    return {"message": ""}


CASES: dict[str, Callable[[Ring], dict[str, Any]]] = {
    "adam": lambda ring: trained(ring, OptimizerSettings("adam", 0.01)),
    "sgd_clipped": lambda ring: trained(ring, OptimizerSettings("sgd", 0.5, clip_norm=0.05)),
    "adagrad_cosine": lambda ring: trained(
        ring, OptimizerSettings("adagrad", 0.1, schedule="cosine", warmup_steps=10, total_steps=STEPS)
    ),
    "own_steps": lambda ring: trained(ring, OptimizerSettings("sgd", 0.5), steps=20, kind=OwnSteps),
    "accumulated": lambda ring: trained(ring, OptimizerSettings("sgd", 0.5), accumulate=2),
    "xla": lambda ring: trained(ring, OptimizerSettings("adam", 0.01), xla=True),
    "float16": lambda ring: trained(ring, OptimizerSettings("adam", 0.01), precision="mixed_float16"),
    "local": lambda ring: trained(ring, OptimizerSettings("adam", 0.01), local_steps=4),
    "local_in_rounds": lambda ring: trained(ring, OptimizerSettings("adam", 0.01), local_steps=4, in_our_loop=True),
    "accumulated_local": lambda ring: trained(ring, OptimizerSettings("sgd", 0.5), accumulate=2, local_steps=4),
    "accumulated_local_in_rounds": lambda ring: trained(
        ring, OptimizerSettings("sgd", 0.5), accumulate=2, local_steps=4, in_our_loop=True
    ),
    "scaled": lambda ring: trained(ring, OptimizerSettings("adam", 0.01), is_scaled=True, steps=20),
    "skipped_steps": skipped_steps,
    "mean_of_local_steps": mean_of_local_steps,
    "mean_of_accumulated_local_steps": lambda ring: mean_of_local_steps(ring, accumulate=2),
    "outer_steps": outer_steps,
    "outer_steps_of_losses": lambda ring: outer_steps(ring, is_minimized=True),
    "diloco": lambda ring: trained(ring, OptimizerSettings("adam", 0.01), local_steps=4, outer_momentum=0.5),
    "diloco_in_rounds": lambda ring: trained(
        ring, OptimizerSettings("adam", 0.01), local_steps=4, outer_momentum=0.5, in_our_loop=True
    ),
    "custom_loop": custom_loop,
    "finite_dataset": finite_dataset,
    "variables": variables_in_a_function,
    "diverged": diverged,
}


def save(ring: Ring, file: Path, names: Iterable[str]) -> None:
    """Run the cases one after the other, all over one ring."""
    np.savez(file, **{f"{name}/{key}": value for name in names for key, value in CASES[name](ring).items()})


def main() -> None:
    """Run the cases of the arguments."""
    rank, addresses, file, names = sys.argv[1:]
    save(Ring.connect(int(rank), addresses.split(","), "secret"), Path(file), names.split(","))
    sys.stdout.flush()
    os._exit(0)  # TensorFlow's threads take their time


if __name__ == "__main__":
    main()
