"""The training of one rank: strategy, data, model, ``model.fit``."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.callbacks import TrainingStopped
from mirrorspark.callbacks.collectives import whole_values
from mirrorspark.data_pipelines.features import FittedFeatures
from mirrorspark.data_pipelines.reading import Dataset, PaddedBatch, ReadPlan, load_batches
from mirrorspark.models import ModelSettingsError, catalog, keras3, own_model
from mirrorspark.models.fitting import (
    EarlierModel,
    OptimizerSettings,
    accumulate_gradients,
    begin_from,
    build_optimizer,
    compile_model,
    compile_with_xla,
    gathering,
    use_step_loop,
)
from mirrorspark.scoring.model.folder import FEATURES_FOLDER, SAVED_MODEL_FOLDER
from mirrorspark.training.configuration import TrainingConfig
from mirrorspark.training.executor import Finish, WorkerControl
from mirrorspark.training.programs.keras_fit import interaction_graph
from mirrorspark.training.programs.keras_fit.callback_list import fit_callbacks, with_local_checkpoint
from mirrorspark.training.programs.keras_fit.local_updates import SettleLocalUpdates, local_updates
from mirrorspark.training.programs.keras_fit.start import Start, read_start
from mirrorspark.training.programs.keras_fit.step_description import describe_step
from mirrorspark.training.programs.keras_fit.strategy import open_strategy
from mirrorspark.training.protocol import TrainingPlan
from mirrorspark.training.protocol.outcomes import Activity
from mirrorspark.training.protocol.ring import RingStrategy, mean_losses, whole_predictions


@whole_values()
def train(plan: TrainingPlan, control: WorkerControl, finish: Finish) -> None:
    """Fit the model on this rank's share of every batch, then call ``finish`` with the number of completed epochs.

    Args:
        plan: The attempt.
        control: Connects this rank to its driver.
        finish: Called within ``fit``, at the training's end. In a worker it does not return.

    Raises:
        RingError: Another rank is lost.
        TrainingStopped: A rank was asked to stop; the checkpoint of that step is committed.
    """
    activity = control.activity
    plan = with_local_checkpoint(plan, activity)  # Before the ranks connect: a download may take long.
    activity.enter("connecting")
    strategy = open_strategy(plan, activity, control.rendezvous)
    activity.enter("building")
    dataset = Dataset.open(plan.dataset)
    tf_keras.utils.set_random_seed(plan.config.seed)
    _set_precision(plan.config)
    start = read_start(plan, dataset)
    with mean_losses(strategy), whole_predictions(strategy):  # building a user's model calls it
        model = build_model(plan, dataset, strategy, start)
    activity.enter("restoring")
    if plan.warm_start is not None and plan.resume_from is None:
        _apply_warm_start(Path(plan.warm_start), model, dataset, control)
    if plan.graph is not None:  # after the warm start, since it propagates the embeddings loaded there
        interaction_graph.connect(model, Path(plan.graph))
    errors = strategy.ring_errors() if isinstance(strategy, RingStrategy) else contextlib.nullcontext()
    with errors, mean_losses(strategy), whole_predictions(strategy):
        try:
            position = start.epoch, start.step_in_epoch
            is_keras3 = keras3.is_keras3(model)
            fit = functools.partial(keras3.fit, model) if is_keras3 else functools.partial(model.fit, verbose=0)
            fit(
                _batches(strategy, dataset, plan, "train", position, activity, control.hook.input),
                validation_data=_batches(strategy, dataset, plan, "validation", (0, 0), activity),
                epochs=plan.config.epochs,
                steps_per_epoch=dataset.steps("train", plan.global_batch_size),
                validation_steps=dataset.steps("validation", plan.global_batch_size),
                # The last of them calls ``finish`` at the end of the training: in a worker, this call does not return.
                callbacks=fit_callbacks(
                    plan,
                    control,
                    start=start,
                    finish=finish,
                    locate=lambda epoch, step: describe_step(
                        dataset, _read_plan(plan, "train", control.rank), plan, activity, epoch, step
                    ),
                    after_restore=[
                        SettleLocalUpdates(),
                        *own_callbacks(plan.config),
                        *ranking_callbacks(plan, model, dataset, control, ranks=plan.workers),
                    ],
                ),
            )
        except TrainingStopped:
            activity.enter("ending")  # A stop is not a hang: the limit of this phase applies from here on.
            raise


def _set_precision(config: TrainingConfig) -> None:
    tf_keras.mixed_precision.set_global_policy(config.precision)
    if config.precision != "float32" and own_model.is_own(config.model):
        import keras  # a second, which a float32 model of tf-keras is spared

        keras.config.set_dtype_policy(config.precision)


def own_callbacks(config: TrainingConfig) -> list[tf_keras.callbacks.Callback]:
    """Return the callbacks that belong to a user's own model."""
    architecture = config.architecture
    if not isinstance(architecture, own_model.OwnArchitecture):
        return []
    return architecture.callbacks(catalog.settings(config.model["name"], config.model_options))


def ranking_callbacks(
    plan: TrainingPlan, model: tf_keras.Model, dataset: Dataset, control: WorkerControl, ranks: int
) -> list[tf_keras.callbacks.Callback]:
    """Return the callback that ranks the candidates after every epoch, if the configuration asks for it.

    Args:
        plan: The attempt.
        model: The model.
        dataset: The dataset of the training.
        control: Connects the rank to its driver.
        ranks: Number of ranks that share the queries.
    """
    config = plan.config
    if config.ranked_k is None:
        return []
    # Here, because no other model needs its searches.
    from mirrorspark.training.programs.keras_fit.rank_validation import RankValidation

    architecture = config.architecture
    return [
        RankValidation(
            tf.function(functools.partial(architecture.predict, model), reduce_retracing=True),
            dataset,
            k=config.ranked_k,
            rank=control.rank,
            workers=ranks,
            activity=control.activity,
            most_queries=config.ranked_queries,
        )
    ]


def build_model(plan: TrainingPlan, dataset: Dataset, strategy: tf.distribute.Strategy, start: Start) -> tf_keras.Model:
    """Return the compiled model, its variables equal on all ranks."""
    config = plan.config
    architecture = config.architecture
    steps = dataset.steps("train", plan.global_batch_size)
    settings = OptimizerSettings(
        name=config.optimizer,
        learning_rate=config.scaled_learning_rate * plan.learning_rate_scale,
        schedule=config.learning_rate_schedule,
        warmup_steps=config.warmup_steps,
        total_steps=steps * config.epochs,
        clip_norm=config.clip_norm,
        weight_decay=config.weight_decay,
        start_step=start.schedule_step,
        start_share=start.schedule_share,
    )
    optimizer_wrappers: list[Callable[[type], type]] = []
    if config.local_steps > 1:
        assert isinstance(strategy, RingStrategy)  # noqa: S101 - checked by the configuration
        optimizer_wrappers.append(
            local_updates(strategy.ring, config.local_steps, config.outer_momentum, config.outer_learning_rate)
        )
    if config.accumulate > 1:
        optimizer_wrappers.append(gathering)  # Outermost: gradients that are held back are not a step.
    with strategy.scope():
        model = architecture.build(
            catalog.settings(config.model["name"], config.model_options), dataset.features, config.seed
        )
        steps_per_execution = min(config.steps_per_execution, steps)
        is_keras3 = keras3.is_keras3(model)
        if is_keras3:
            _require_possible_in_keras3(plan)
        if getattr(model, "own_compilation", False):
            if optimizer_wrappers:
                raise ModelSettingsError(
                    "accumulate and local_steps need the configured optimizer, and the model was compiled with its "
                    "own; leave them out, or do not compile the model"
                )
            own_model.keep_compilation(model, steps_per_execution)
        elif is_keras3:
            compile_model(model, architecture.TASK, keras3.build_optimizer(settings), steps_per_execution)
        else:
            compile_model(model, architecture.TASK, build_optimizer(settings, *optimizer_wrappers), steps_per_execution)
        if config.xla:
            compile_with_xla(model)
        if config.accumulate > 1:
            accumulate_gradients(model, config.accumulate)
    if is_keras3:
        keras3.share_steps(model)
    else:
        use_step_loop(model)
    return model


def _require_possible_in_keras3(plan: TrainingPlan) -> None:
    """Check the settings of a training whose model is one of Keras 3.

    Raises:
        ModelSettingsError: A setting needs a model of tf-keras.
    """
    config = plan.config
    if config.strategy_name != "ring":
        raise ModelSettingsError(
            f"the strategy {config.strategy_name} needs a model of tf-keras, and this one is of Keras 3: set strategy "
            f"to ring, or build it with tf_keras"
        )
    refused = {"accumulate": config.accumulate > 1, "local_steps": config.local_steps > 1, "xla": config.xla}
    refused["warm_start"] = plan.warm_start is not None
    if asked := [name for name, is_asked in refused.items() if is_asked]:
        raise ModelSettingsError(
            f"{', '.join(asked)} needs a model of tf-keras, and this one is of Keras 3: leave it out, or build the "
            f"model with tf_keras"
        )


def _apply_warm_start(folder: Path, model: tf_keras.Model, dataset: Dataset, control: WorkerControl) -> None:
    """Load the weights in ``folder`` into the model, equal on every rank, and report it to the driver.

    Raises:
        WarmStartError: No weights fit.
        OSError: This rank does not see the folder.
    """
    beat = control.activity.beat  # Large tables take long to read, which is not a hang.
    features = FittedFeatures.load(folder / FEATURES_FOLDER)
    beat()
    earlier = EarlierModel(folder / SAVED_MODEL_FOLDER, features)
    with model.distribute_strategy.scope():
        taken = begin_from(model, dataset.features, earlier, beat)
    if control.rank == 0:
        control.events.send({"event": "warm_start", **dataclasses.asdict(taken), "message": taken.in_words()})


def _batches(
    strategy: tf.distribute.Strategy,
    dataset: Dataset,
    plan: TrainingPlan,
    split: str,
    start: tuple[int, int],
    activity: Activity,
    input_hook: Callable[[tf.data.Dataset], tf.data.Dataset] = lambda share: share,
) -> Any:
    """Return this rank's share of every global batch of ``split``, epoch after epoch.

    ``input_hook`` wraps it: :meth:`training.executor.training_hook.TrainingHook.input`, for tests that delay the data.
    """

    def rank_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        read_plan = _read_plan(plan, split, context.input_pipeline_id, start)
        shares = load_batches(dataset, read_plan, scaled_to="batch", busy=activity.input_busy)
        # A distributed dataset could not be wrapped any more.
        return input_hook(split_among_replicas(shares, context.num_replicas_in_sync // context.num_input_pipelines))

    # Every rank builds its own input: TensorFlow must neither shard nor re-batch it.
    return strategy.distribute_datasets_from_function(rank_dataset)


def split_among_replicas(shares: tf.data.Dataset, replicas: int) -> tf.data.Dataset:
    """Split a worker's share of every global batch into one batch per replica, that is, per GPU of the worker."""
    if replicas == 1:
        return shares

    def split(share: PaddedBatch) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(by_replica, share))

    def by_replica(rows: Any) -> Any:
        if rows.shape.rank == 0:  # the scale of a padded batch, which is that of all replicas
            return tf.repeat(rows, replicas)
        reshape = tf.sparse.reshape if isinstance(rows, tf.SparseTensor) else tf.reshape
        return reshape(rows, [replicas, rows.shape[0] // replicas, *rows.shape[1:]])

    return shares.flat_map(split)


def _read_plan(plan: TrainingPlan, split: str, rank: int, start: tuple[int, int] = (0, 0)) -> ReadPlan:
    return ReadPlan(
        split,
        plan.global_batch_size,
        rank=rank,
        workers=plan.workers,
        seed=plan.config.seed if split == "train" else None,
        epoch=start[0],
        step=start[1],
        epochs=None,
        class_weights=plan.class_weights if split == "train" else (),
    )
