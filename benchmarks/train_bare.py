"""A rank with nothing around it: our reader, our ring and ``fit``, in Spark's Python worker; no events, no driver."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirrorspark.training.protocol.plan import TrainingPlan

if TYPE_CHECKING:  # the driver pickles the ranks without loading TensorFlow
    import tensorflow as tf

    from mirrorspark.data_pipelines.reading.dataset import Dataset


@dataclass(frozen=True)
class BareResult:
    """What a rank measured.

    Attributes:
        seconds: From the end of the first epoch to that of the last, validations included.
        stalls: Per epoch, what the callback that saves checkpoints held up the training for; empty without it.
    """

    seconds: float
    stalls: tuple[float, ...] = ()


@dataclass(frozen=True)
class BareRank:
    """What a barrier task runs.

    Attributes:
        plan: What to train.
        saves: Whether to commit a checkpoint after each epoch.
    """

    plan: TrainingPlan
    saves: bool = False

    def __call__(self) -> BareResult:
        """Train and return what was measured."""
        import tf_keras

        from benchmarks.train_fit import epoch_clock
        from mirrorspark.data_pipelines.reading.dataset import Dataset
        from mirrorspark.training.fitting.fit import build_model, open_strategy
        from mirrorspark.training.fitting.start import Start
        from mirrorspark.training.protocol.activity import Activity

        plan, config = self.plan, self.plan.config
        strategy = open_strategy(plan, Activity())
        dataset = Dataset.open(plan.dataset)
        tf_keras.utils.set_random_seed(config.seed)
        model = build_model(plan, dataset, strategy, Start())
        checkpoint = _timed_checkpoint(plan) if self.saves else None
        clock = epoch_clock(first=1)
        model.fit(
            distributed_batches(strategy, dataset, plan, "train"),
            validation_data=distributed_batches(strategy, dataset, plan, "validation"),
            epochs=config.epochs,
            steps_per_epoch=dataset.steps("train", plan.global_batch_size),
            validation_steps=dataset.steps("validation", plan.global_batch_size),
            callbacks=[*([checkpoint.guard, checkpoint] if checkpoint else []), clock],
            verbose=0,
        )
        return BareResult(clock.seconds, tuple(checkpoint.stalls) if checkpoint else ())


def distributed_batches(strategy: "tf.distribute.Strategy", dataset: "Dataset", plan: TrainingPlan, split: str) -> Any:
    """Return this rank's share of every global batch, as :mod:`training.fitting.fit` reads it."""
    from mirrorspark.data_pipelines.reading.dataset import ReadPlan, load_batches

    def mine(context: "tf.distribute.InputContext") -> "tf.data.Dataset":
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


def _timed_checkpoint(plan: TrainingPlan) -> Any:
    """Return the product's own callback, which notes how long it kept the training waiting at each epoch's end.

    With the check that the weights are finite, in which all ranks take part, as a training has it.
    """
    from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
    from mirrorspark.callbacks.nan_guard import StopOnNaN

    class TimedCheckpoint(ChiefCheckpoint):
        stalls: list[float]
        guard: StopOnNaN

        def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
            start = time.perf_counter()
            super().on_epoch_end(epoch, logs)
            self.stalls.append(time.perf_counter() - start)

    guard = StopOnNaN()
    checkpoint = TimedCheckpoint(
        plan.checkpoints, monitor=plan.config.monitor, mode=plan.config.mode, before_save=guard.check
    )
    checkpoint.guard = guard
    checkpoint.stalls = []
    return checkpoint
