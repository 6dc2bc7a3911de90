"""One rank of the TensorFlow sides of ``train_steps``: its work, its rows, and ``fit`` under the strategy of each side.

PyTorch's process, whose environment has NumPy and Spark but neither TensorFlow nor our packages, imports this, too.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import harmonic_mean
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pyspark import BarrierTaskContext

if TYPE_CHECKING:  # the driver pickles the ranks without loading TensorFlow
    import tensorflow as tf
    import tf_keras

    from mirrorspark.models.fitting.optimizers import OptimizerSettings
    from mirrorspark.training.protocol.ring.ring import Ring

# Rows that a worker holds, and goes through again and again: 16 MiB of them for the feed-forward net.
ROWS_IN_MEMORY = 1 << 16

FEATURES = 64
HIDDEN_UNITS = (256, 128)
LEARNING_RATE = 0.001

USERS, ITEMS = 50_000, 20_000
EMBEDDING_DIM = 32
EMBEDDING_LEARNING_RATE = 0.05

ModelName = Literal["mlp", "two_tower"]
Side = Literal["plain", "ring", "alone"]


@dataclass(frozen=True)
class Work:
    """The training of every side.

    Attributes:
        model: ``mlp``, a feed-forward net 64-256-128-1; or ``two_tower``, a table of users and one of items.
        batch: Rows of a step on one worker.
        steps: Timed steps, in one epoch: the time of an epoch's end is not that of a step.
    """

    model: ModelName
    batch: int
    steps: int

    @classmethod
    def of_rows(cls, model: ModelName, batch: int, rows: int) -> "Work":
        """Return the work of about ``rows`` timed rows per worker."""
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


@dataclass(frozen=True)
class FitRank:
    """The body of a barrier task.

    Attributes:
        side: ``plain``: the strategy in whose scope it is called, the runner's; ``ring``: `RingStrategy`; ``alone``:
            TensorFlow's default, by which the workers know nothing of each other.
        work: The training.
        steps_per_execution: Steps that TensorFlow runs before it comes back to Python.
        local_steps: Steps of a worker between two means; 1 is synchronous training.
        our_loop: True if the steps run in our loop (`models.fitting.step_loop`) with our optimizer; else in Keras' own.
        token: Secret of the ring.

    Raises:
        ValueError: ``local_steps`` without our loop, or on the side ``plain``, where nothing would make them.
    """

    side: Side
    work: Work
    steps_per_execution: int = 50
    local_steps: int = 1
    our_loop: bool = False
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    def __post_init__(self) -> None:
        if self.local_steps > 1 and (self.side == "plain" or not self.our_loop):
            raise ValueError(
                f"local_steps {self.local_steps} need our loop and a ring, and the side '{self.side}' with our_loop "
                f"{self.our_loop} lacks one; give our_loop=True on the side 'ring' or 'alone', or local_steps 1"
            )

    def __call__(self) -> float:
        """Train and return the seconds of the timed steps, in the mean of the ranks."""
        train = self.trainer(None if self.side == "plain" else connected_ring(self.token))
        train(self.work.warm_up_steps)
        seconds = train(self.work.steps)
        # The rates of all workers add up to the rate of the whole.
        return harmonic_mean([float(text) for text in BarrierTaskContext.get().allGather(repr(seconds))])

    def trainer(self, ring: "Ring | None") -> Callable[[int], float]:
        """Return a function that trains for a number of steps in one epoch, and returns this rank's seconds.

        Args:
            ring: The ring of the ranks, which begin each epoch together by it; None for ``plain``.
        """
        import tensorflow as tf

        from mirrorspark.training.programs.keras_fit.local_updates import SettleLocalUpdates
        from mirrorspark.training.protocol.ring.strategy import RingStrategy

        strategy = RingStrategy(ring) if ring and self.side == "ring" else tf.distribute.get_strategy()
        with strategy.scope():
            model = self._compiled(ring)
        clock = epoch_clock(ring)
        callbacks = [*([SettleLocalUpdates()] if self.local_steps > 1 else []), clock]
        batches = strategy.distribute_datasets_from_function(lambda context: _batches(self.work))

        def train(steps: int) -> float:
            model.fit(batches, steps_per_epoch=steps, callbacks=callbacks, verbose=0)
            seconds: float = clock.seconds
            return seconds

        return train

    def _compiled(self, ring: "Ring | None") -> "tf_keras.Model":
        import tf_keras

        from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
        from mirrorspark.models.fitting.step_loop import use_step_loop
        from mirrorspark.training.programs.keras_fit.local_updates import local_updates

        tf_keras.utils.set_random_seed(1)
        rules = [local_updates(ring, self.local_steps)] if ring and self.local_steps > 1 else []
        if self.work.model == "mlp":
            model, settings = mlp(), OptimizerSettings("adam", LEARNING_RATE)
            loss: Any = tf_keras.losses.BinaryCrossentropy(from_logits=True)
            metrics = [tf_keras.metrics.AUC(name="auc", from_logits=True)]
        else:
            # Adam goes through the whole tables in every step; this one through the rows that a batch names.
            model, settings = _two_tower(), OptimizerSettings("adagrad", EMBEDDING_LEARNING_RATE)
            loss, metrics = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True), []
        optimizer = build_optimizer(settings, *rules) if self.our_loop else keras_optimizer(settings)
        model.compile(optimizer, loss, metrics=metrics, steps_per_execution=self.steps_per_execution)
        if self.our_loop:
            use_step_loop(model)
        return model


def keras_optimizer(settings: "OptimizerSettings") -> Any:
    """Return Keras's own optimizer of that name and learning rate, as plain ``fit`` has it."""
    import tf_keras

    config = {"learning_rate": settings.learning_rate}
    return tf_keras.optimizers.get({"class_name": settings.name, "config": config})


def connected_ring(token: str) -> "Ring":
    """Return the ring of the ranks of this barrier job."""
    from mirrorspark.training.protocol.ring.ring import Ring

    cluster = json.loads(os.environ["TF_CONFIG"])
    return Ring.connect(_rank(), cluster["cluster"]["worker"], token)


def _rank() -> int:
    return int(json.loads(os.environ["TF_CONFIG"])["task"]["index"])


def mlp() -> "tf_keras.Model":
    """Return the feed-forward net."""
    import tf_keras

    hidden = [tf_keras.layers.Dense(units, activation="relu") for units in HIDDEN_UNITS]
    return tf_keras.Sequential([tf_keras.Input((FEATURES,)), *hidden, tf_keras.layers.Dense(1)])


def _two_tower() -> "tf_keras.Model":
    import tensorflow as tf
    import tf_keras

    users, items = tf_keras.Input((), dtype=tf.int64), tf_keras.Input((), dtype=tf.int64)
    embedded = [tf_keras.layers.Embedding(rows, EMBEDDING_DIM)(ids) for rows, ids in ((USERS, users), (ITEMS, items))]
    logits = tf_keras.layers.Lambda(lambda towers: tf.matmul(*towers, transpose_b=True))(embedded)
    return tf_keras.Model((users, items), logits)


def _batches(work: Work) -> "tf.data.Dataset":
    import tensorflow as tf

    inputs, labels = rows_of(work, _rank())
    rows = (inputs if len(inputs) > 1 else inputs[0], labels)
    batches = tf.data.Dataset.from_tensor_slices(rows).batch(work.batch, drop_remainder=True)
    # Cut once; from then on they lie in memory.
    batches = batches.cache().repeat().prefetch(4)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    return batches.with_options(options)


def epoch_clock(ring: "Ring | None" = None, *, first: int = 0) -> Any:
    """Return a callback whose ``seconds`` are those of the epochs of a ``fit``.

    Args:
        ring: By which the ranks begin together, whether they wait for each other later or not.
        first: Epoch, from 0, from which on they count.
    """
    import tf_keras

    class Clock(tf_keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self._supports_tf_logs = True
            self._begin = 0.0
            self.seconds = 0.0

        def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
            if epoch == first:
                if ring is not None:
                    ring.barrier()
                self._begin = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
            if epoch >= first:
                self.seconds = time.perf_counter() - self._begin

    return Clock()
