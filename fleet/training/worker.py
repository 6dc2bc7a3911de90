"""The training of a stack in one rank: batches, `fit`, and the file of weights."""

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow as tf

from mirrorspark.callbacks import BackupAndRestore, ChiefCheckpoint, ShortExecutions, resume_point
from mirrorspark.callbacks.checkpoints import fencing
from mirrorspark.callbacks.collectives import current_role, sum_over_ranks
from mirrorspark.data_pipelines.dataset import SPLITS
from mirrorspark.data_pipelines.features import FittedFeatures, kinds
from mirrorspark.data_pipelines.reading import Dataset, PaddedBatch, ReadPlan, load_batches
from mirrorspark.fleet.training.inputs import inputs_of
from mirrorspark.fleet.training.plan import TARGETS, WEIGHTS_FILE, StackPlan
from mirrorspark.fleet.training.stack import StackedModels
from mirrorspark.fleet.training.stopping import ModelStopping
from mirrorspark.models.fitting import OptimizerSettings, build_optimizer, use_step_loop
from mirrorspark.storage import atomic_file

_TRAIN, _VALIDATION, _TEST = SPLITS
_MOST_STEPS_PER_EXECUTION = 50
NUMBERS = "fleet_numbers"
"""The numeric features of a batch, float32 ``[batch, features]``."""


def train(plan: StackPlan) -> str:
    """Train the models in the scope of the strategy, from the newest checkpoint on; return the file of weights.

    The chief writes it next to the folder of checkpoints: the best weights of
    :class:`fleet.training.stack.StackedModels` (``kernel_0``, ``bias_0``, …), the attributes of
    :class:`fleet.training.stopping.ModelStopping`, and ``test_loss`` and ``test_area`` with the best weights.
    """
    strategy = tf.distribute.get_strategy()
    folder, is_chief = os.environ[fencing.CHECKPOINTS_VARIABLE], current_role(strategy).is_chief
    dataset, settings = Dataset.open(plan.dataset), plan.settings
    steps = {split: dataset.steps(split, plan.global_batch_size) for split in SPLITS}
    model = StackedModels(plan.members, len(inputs_of(dataset.features)), settings, plan.global_batch_size)
    optimizer = build_optimizer(OptimizerSettings("adam", settings.learning_rate))
    at_once = min(_MOST_STEPS_PER_EXECUTION, steps[_TRAIN])
    # Without weighted_metrics Keras warns that no metric weighs the rows of a validation.
    model.compile(optimizer=optimizer, weighted_metrics=[], steps_per_execution=at_once)
    use_step_loop(model)
    stopping = ModelStopping(len(plan.members), settings.patience)
    stateful = {"models": stopping}
    model.fit(
        _batches(strategy, dataset, plan, _TRAIN, _start(strategy, folder, is_chief=is_chief)),
        validation_data=_batches(strategy, dataset, plan, _VALIDATION),
        epochs=settings.epochs,
        steps_per_epoch=steps[_TRAIN],
        validation_steps=steps[_VALIDATION],
        callbacks=[
            BackupAndRestore(folder, stateful=stateful),
            ShortExecutions(),
            stopping,
            ChiefCheckpoint(folder, monitor=None, stateful=stateful),
        ],
        verbose=0,
    )
    none = np.zeros(len(plan.members), bool)
    model.keep_best(none, none)
    model.scores.reset()
    model.evaluate(_batches(strategy, dataset, plan, _TEST), steps=steps[_TEST], verbose=0, return_dict=True)
    tested = {"test_loss": np.asarray(model.mean_losses.result()), "test_area": model.scores.areas()}
    path = Path(folder).parent / WEIGHTS_FILE
    if is_chief:
        _write(path, model, stopping, tested)
    return str(path)


def _start(strategy: tf.distribute.Strategy, folder: str, *, is_chief: bool) -> tuple[int, int]:
    """Return the epoch and its step, both from 0, at which the rows begin: those of the chief's newest checkpoint."""
    # The chief's view decides, because ranks may see different states of a shared store.
    point = resume_point(folder) if is_chief else None
    parts = (0, 0) if point is None else (point.epoch, point.step_in_epoch)
    epoch, step = (int(sum_over_ranks(strategy, part)) for part in parts)
    return epoch, step


def _batches(
    strategy: tf.distribute.Strategy, dataset: Dataset, plan: StackPlan, split: str, start: tuple[int, int] = (0, 0)
) -> Any:
    """Return this rank's share of every global batch of a split, epoch after epoch."""

    def rank_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        read = ReadPlan(
            split,
            plan.global_batch_size,
            rank=context.input_pipeline_id,
            workers=context.num_input_pipelines,
            seed=plan.settings.seed if split == _TRAIN else None,
            epoch=start[0],
            step=start[1],
            epochs=None,
        )
        features = dataset.features

        @tf.autograph.experimental.do_not_convert
        def assemble(batch: PaddedBatch) -> PaddedBatch:
            return assembled(batch, features, plan)

        return load_batches(dataset, read, values_as=NUMBERS, scaled_to="batch").map(assemble)

    return strategy.distribute_datasets_from_function(rank_dataset)


def assembled(batch: PaddedBatch, features: FittedFeatures, plan: StackPlan) -> PaddedBatch:
    """Return a batch of :func:`data_pipelines.reading.load_batches`, with ``NUMBERS``, as the stack takes it.

    The inputs are in the order of :func:`fleet.training.inputs.inputs_of`.
    """
    values, _, row_weights, scale = batch
    parts = [values[NUMBERS]] if features.spec.numeric else []
    for feature in features.spec.categorical:
        # A missing or unknown category becomes a number below 0, for which one_hot gives zeros.
        categories = features.id_count(feature) - kinds.FIRST_VOCABULARY_ID
        parts.append(tf.one_hot(values[feature.name] - kinds.FIRST_VOCABULARY_ID, categories))
    labels = values[TARGETS][:, : plan.targets]
    weights = row_weights[:, None]
    if plan.has_missing:
        weights *= values[TARGETS][:, plan.targets :]
    return PaddedBatch(tf.concat(parts, axis=1), labels, weights, scale)


def _write(path: Path, model: StackedModels, stopping: ModelStopping, tested: dict[str, np.ndarray]) -> None:
    layers = len(model.kernels)
    names = [f"{kind}_{layer}" for kind in ("kernel", "bias") for layer in range(layers)]
    weights = {name: values.numpy() for name, values in zip(names, model.best, strict=True)}
    state = {name: np.array(value) for name, value in stopping.get_state().items()}
    with atomic_file.replaced(path) as file:
        np.savez(file, **cast(dict[str, Any], weights | state | tested))
