"""One TensorFlow rank of ``train_models``: trains the same models with the product or with plain Keras.

Arguments: the side and the token of the ring; ``TF_CONFIG`` names the ranks. It takes requests on its standard input,
one JSON object per line, and answers each with one line of JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import tensorflow as tf
import tf_keras

from benchmarks.peer_process import RESULT_PREFIX
from benchmarks.train_models_data import Case
from benchmarks.train_steps_rank import keras_optimizer
from mirrorspark.data_pipelines.dataset.block_format import LABEL_PREFIX
from mirrorspark.data_pipelines.dataset.manifest import TRAIN_SPLIT
from mirrorspark.data_pipelines.features.kinds import ListFeature
from mirrorspark.data_pipelines.reading.block_reader import parse_block, shuffle_rows
from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, load_batches
from mirrorspark.models import catalog
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings
from mirrorspark.training.configuration.config import TrainingConfig
from mirrorspark.training.programs.keras_fit.fit import build_model
from mirrorspark.training.programs.keras_fit.start import Start
from mirrorspark.training.protocol.plan import TrainingPlan
from mirrorspark.training.protocol.ring.strategy import RingStrategy

# ``ring``: the product's strategy, reader and loop. ``mirrored``: Keras' ``fit`` under TensorFlow's strategy of several
# workers. ``alone``: Keras' ``fit`` without a strategy, in one process for the rows of all workers.
Side = Literal["ring", "mirrored", "alone"]
_SHUFFLED_BLOCKS, _SHUFFLED_ROWS = 256, 65_536

# Trains for a number of executions, and returns the seconds of a step.
Train = Callable[[int], float]


def serve(side: Side, token: str) -> None:
    """Answer requests until the input ends."""
    workers = len(json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"])
    strategy = _strategy(side, token)
    train: Train | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["work"] == "begin":
            train = None  # the model before, and its rows
            train = trainer(side, Case(**request["case"]), Dataset.open(request["dataset"]), strategy, workers)
        assert train is not None, "a model begins before it trains"
        print(RESULT_PREFIX + json.dumps({"seconds": train(request["executions"])}), flush=True)


def _strategy(side: Side, token: str) -> tf.distribute.Strategy:
    if side == "ring":
        return RingStrategy.from_tf_config(token)
    return tf.distribute.MultiWorkerMirroredStrategy() if side == "mirrored" else tf.distribute.get_strategy()


def trainer(side: Side, case: Case, dataset: Dataset, strategy: tf.distribute.Strategy, workers: int) -> Train:
    """Return a function that trains a new model of ``case``, compiled, on its rows."""
    rows = case.batch * workers
    at_once = min(case.steps_per_execution, dataset.steps(TRAIN_SPLIT, rows))
    plan = TrainingPlan(
        config=TrainingConfig(
            name="benchmark",
            workers=workers,
            model={"name": case.model, **case.options},
            optimizer=case.optimizer,
            global_batch_size=rows,
            steps_per_execution=at_once,
        ),
        dataset=str(dataset.path),
        workers=workers,
        checkpoints="",
        global_batch_size=rows,
    )
    tf_keras.utils.set_random_seed(plan.config.seed)
    if side == "ring":
        model = build_model(plan, dataset, strategy, Start())
        batches = distributed_batches(strategy, dataset, plan, TRAIN_SPLIT)
    else:
        model = plain_model(plan.config, dataset, strategy)
        own = case.batch if side == "mirrored" else rows
        batches = strategy.distribute_datasets_from_function(lambda context: plain_batches(dataset, own, context))

    def train(executions: int) -> float:
        pace = _Pace()
        # The first one waits until the input has begun.
        model.fit(batches, steps_per_epoch=(executions + 1) * at_once, callbacks=[pace], verbose=0)
        return (pace.ends[-1] - pace.ends[0]) / (executions * at_once)

    return train


def distributed_batches(strategy: tf.distribute.Strategy, dataset: Dataset, plan: TrainingPlan, split: str) -> Any:
    """Return this rank's share of every global batch, as :mod:`training.programs.keras_fit.fit` reads it."""

    def mine(context: tf.distribute.InputContext) -> tf.data.Dataset:
        read = ReadPlan(
            split,
            plan.global_batch_size,
            rank=context.input_pipeline_id,
            workers=context.num_input_pipelines,
            seed=plan.config.seed if split == "train" else None,
            epochs=None,
        )
        return load_batches(dataset, read)

    return strategy.distribute_datasets_from_function(mine)


class _Pace(tf_keras.callbacks.Callback):
    """Notes when each execution has ended."""

    def __init__(self) -> None:
        super().__init__()
        self._supports_tf_logs = True
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.ends.append(time.perf_counter())


def plain_model(config: TrainingConfig, dataset: Dataset, strategy: tf.distribute.Strategy) -> tf_keras.Model:
    """Return the same model, compiled with Keras' own optimizer, and left to Keras' loop."""
    architecture = catalog.architecture(config.model["name"])
    settings = catalog.settings(config.model["name"], config.model_options)
    with strategy.scope():
        model = architecture.build(settings, dataset.features, config.seed)
        optimizer = keras_optimizer(OptimizerSettings(config.optimizer, config.learning_rate))
        compile_model(model, architecture.TASK, optimizer, config.steps_per_execution)
    return model


def plain_batches(dataset: Dataset, rows: int, context: tf.distribute.InputContext) -> tf.data.Dataset:
    """Return this worker's batches from its share of the same files, read by TensorFlow alone."""
    spec, name = dataset.spec, LABEL_PREFIX + dataset.spec.label.name
    values = {one.name: tf.float32 if one.form == "value" else tf.int64 for one in spec if one.form != "ids"}
    lists = {one.name: one.max_length for one in spec if isinstance(one, ListFeature)}
    ragged = dict.fromkeys(lists, tf.int64)
    if spec.label.kind == "binary":
        values[name] = tf.float32
    elif spec.label.kind == "multi_label":
        ragged[name] = tf.int64

    def example(columns: dict[str, Any]) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        weight = tf.ones(rows)
        label = columns.get(name, tf.zeros(rows))
        if isinstance(label, tf.RaggedTensor):
            places = tf.stack([label.value_rowids(), label.values], axis=1)
            label = tf.scatter_nd(places, tf.ones_like(label.values, tf.float32), [rows, dataset.features.classes])
        features = {
            one.name: columns[one.name].to_tensor(shape=[rows, lists[one.name]])
            if one.name in lists
            else columns[one.name]
            for one in spec
        }
        return features, label, weight

    files = sorted(str(path) for path in (dataset.path / TRAIN_SPLIT).glob("*.tfrecord"))
    mine = files[context.input_pipeline_id :: context.num_input_pipelines]
    return (
        tf.data.TFRecordDataset(mine)
        .shuffle(_SHUFFLED_BLOCKS)
        .map(lambda record: parse_block(record, values=values, lists=ragged))
        .rebatch(_SHUFFLED_ROWS)
        .map(shuffle_rows)
        .rebatch(rows, drop_remainder=True)
        .map(example)
        .repeat()
        .prefetch(2)
    )


if __name__ == "__main__":
    serve(cast(Side, sys.argv[1]), sys.argv[2])
    # Not a plain return: TensorFlow's servers abort the process where one rank ends before the other.
    os._exit(0)
