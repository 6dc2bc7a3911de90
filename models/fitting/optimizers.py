"""Optimizers by name, with a learning-rate schedule, clipping, and gradient accumulation over parts of a batch."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import tensorflow as tf
import tf_keras

from mirrorspark.models.settings import ModelSettingsError, Schedule, check_warm_up
from mirrorspark.storage import meant


class DistinctSlices(tf.IndexedSlices):
    """A sparse gradient that names no row twice."""


class _SparseGradients:
    """Has Keras sum the parts of a sparse gradient that name the same row only where there may be such parts."""

    def _deduplicate_sparse_grad(self, grads: Sequence[Any]) -> list[Any]:
        may_repeat = [one for one in grads if not isinstance(one, DistinctSlices)]
        summed = iter(super()._deduplicate_sparse_grad(may_repeat))  # type: ignore[misc]
        return [one if isinstance(one, DistinctSlices) else next(summed) for one in grads]


class _FusedSteps(_SparseGradients):
    """Updates a weight by Adam in one kernel, where Keras has about ten operations, each of which reads all of it.

    The formulas are the same. The kernel computes ``1 - beta_2`` in float32, which keeps five of its digits, so its
    second moments differ from Keras's by a hundred-thousandth. A sparse gradient becomes a dense one, because Adam
    moves every row in every step: rows that were not read move by their moments.
    """

    def update_step(self: Any, gradient: Any, variable: Any) -> None:
        """Update a variable; a sparse gradient names no row twice."""
        if (
            self.amsgrad
            or getattr(self, "adaptive_epsilon", False)
            or tf.distribute.get_strategy()._should_use_with_coordinator
        ):
            super().update_step(gradient, variable)  # type: ignore[misc]
            return
        if isinstance(gradient, tf.IndexedSlices):
            gradient = tf.scatter_nd(gradient.indices[:, tf.newaxis], gradient.values, variable.shape)
        number, dtype = self._index_dict[self._var_key(variable)], variable.dtype
        step = tf.cast(self.iterations + 1, dtype)
        betas = [tf.cast(beta, dtype) for beta in (self.beta_1, self.beta_2)]
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[number].handle,
            v=self._velocities[number].handle,
            beta1_power=tf.pow(betas[0], step),
            beta2_power=tf.pow(betas[1], step),
            lr=tf.cast(self.learning_rate, dtype),
            beta1=betas[0],
            beta2=betas[1],
            epsilon=tf.cast(self.epsilon, dtype),
            grad=gradient,
        )


@tf_keras.utils.register_keras_serializable("mirrorspark")
class Adam(_FusedSteps, tf_keras.optimizers.Adam):
    """Keras's Adam, in one kernel."""


@tf_keras.utils.register_keras_serializable("mirrorspark")
class AdamW(_FusedSteps, tf_keras.optimizers.AdamW):
    """Keras's AdamW, in one kernel after the decay."""


@tf_keras.utils.register_keras_serializable("mirrorspark")
class LazyAdam(Adam):
    """Adam that updates only the rows of a table that a sparse gradient names, and their moments.

    Adam lets the moments of all rows decay in every step, and moves rows that no example has read by what is left of
    them: a step takes time in proportion to the table. Dense gradients are applied as Adam does.

    Source: TensorFlow Addons, ``tfa.optimizers.LazyAdam``.
    """

    def update_step(self, gradient: Any, variable: Any) -> None:
        """Update a variable; a sparse gradient names no row twice."""
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        number = self._index_dict[self._var_key(variable)]
        rows, dtype = gradient.indices, variable.dtype
        moments = []
        for slot, beta, values in (
            (self._momentums[number], self.beta_1, gradient.values),
            (self._velocities[number], self.beta_2, tf.square(gradient.values)),
        ):
            before = tf.gather(slot, rows)
            moments.append(before + (values - before) * (1 - beta))
            slot.scatter_update(tf.IndexedSlices(moments[-1], rows))
        step = tf.cast(self.iterations + 1, dtype)
        powers = [tf.pow(tf.cast(beta, dtype), step) for beta in (self.beta_1, self.beta_2)]
        rate = tf.cast(self.learning_rate, dtype) * tf.sqrt(1 - powers[1]) / (1 - powers[0])
        change = moments[0] * rate / (tf.sqrt(moments[1]) + self.epsilon)
        _add_to_rows(variable, rows, -change)


@tf_keras.utils.register_keras_serializable("mirrorspark")
class Adagrad(_SparseGradients, tf_keras.optimizers.Adagrad):
    """Keras's AdaGrad, bit for bit, whose sparse gradients take half the time."""

    def update_step(self, gradient: Any, variable: Any) -> None:
        """Update a variable; a sparse gradient names no row twice."""
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        accumulator, rows = self._accumulators[self._index_dict[self._var_key(variable)]], gradient.indices
        sums = _add_to_rows(accumulator, rows, tf.square(gradient.values))
        rate = tf.cast(self.learning_rate, variable.dtype)
        _add_to_rows(variable, rows, -rate * gradient.values / tf.sqrt(sums + self.epsilon))


def _add_to_rows(variable: Any, rows: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Add to rows of a variable, each of which is named once, and return their new values.

    Reading and writing rows whole takes a fifth of the time of ``scatter_add``, which waits for the memory of one row
    after the other. On a parameter server another worker may add to a row in between, so there it is ``scatter_add``.
    """
    if tf.distribute.get_strategy()._should_use_with_coordinator:
        variable.scatter_add(tf.IndexedSlices(values, rows))
        return tf.gather(variable, rows)
    sums = tf.gather(variable, rows) + values
    variable.scatter_update(tf.IndexedSlices(sums, rows))
    return sums


OPTIMIZERS: Mapping[str, type] = {
    "adam": Adam,
    "adagrad": Adagrad,
    "adamw": AdamW,
    "lazy_adam": LazyAdam,
    "lion": tf_keras.optimizers.Lion,
    "sgd": tf_keras.optimizers.SGD,
}


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of an optimizer and its learning-rate schedule.

    Attributes:
        name: A key of ``OPTIMIZERS``.
        learning_rate: The learning rate; with a schedule, its highest value.
        schedule: Learning rate after the warm-up: ``constant``, or falling to 0 as ``cosine`` or ``linear``.
        warmup_steps: Steps over which the learning rate rises from 0.
        total_steps: Steps of the whole training; required by the falling schedules.
        clip_norm: Largest norm of the gradient, over all weights and the whole batch; None does not clip.
        weight_decay: Share of a weight that a step takes away, times the learning rate; decoupled from the gradient.
            None is 0.004 for ``adamw``, Keras's default, and none for the others.
        start_step: Optimizer step from which steps have the batch size that ``total_steps`` assumes.
        start_share: Share of the training that was done by then, in steps of another batch size.
    """

    name: str = "adam"
    learning_rate: float = 0.001
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    total_steps: int = 0
    clip_norm: float | None = None
    weight_decay: float | None = None
    start_step: int = 0
    start_share: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            hint = meant(self.name, OPTIMIZERS)
            raise ModelSettingsError(f"optimizer '{self.name}' is unknown{hint}; use one of {sorted(OPTIMIZERS)}")
        if self.schedule not in get_args(Schedule):
            raise ModelSettingsError(
                f"learning-rate schedule '{self.schedule}' is unknown; use one of {list(get_args(Schedule))}"
            )
        check_warm_up(self.schedule, self.warmup_steps, self.total_steps)


def build_optimizer(settings: OptimizerSettings, *wrappers: Callable[[type], type]) -> Any:
    """Return a Keras optimizer.

    Its learning rate is always a schedule, even if it is constant: a plain number would be one of its variables, and a
    checkpoint would restore the value for another number of workers.

    Args:
        settings: The optimizer and its schedule.
        wrappers: Functions that extend an optimizer class, such as `gathering`; the last one is outermost.
    """
    kind = functools.reduce(lambda built, wrapper: wrapper(built), wrappers, OPTIMIZERS[settings.name])
    decay = {} if settings.weight_decay is None else {"weight_decay": settings.weight_decay}
    return kind(learning_rate=schedule(settings), global_clipnorm=settings.clip_norm, **decay)


def schedule(settings: OptimizerSettings) -> "WarmUpAndDecay":
    """Return the learning-rate schedule of the settings."""
    return WarmUpAndDecay(
        settings.learning_rate,
        settings.schedule,
        settings.warmup_steps,
        settings.total_steps,
        settings.start_step,
        settings.start_share,
    )


@tf_keras.utils.register_keras_serializable("mirrorspark")
class WarmUpAndDecay(tf_keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that rises linearly from 0, then stays constant or falls to 0 as a cosine or a straight line.

    Source of the warm-up: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2; of the cosine: Loshchilov
    and Hutter 2017, "SGDR", equation 5 without restarts.
    """

    def __init__(
        self,
        peak: float,
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        total_steps: int = 0,
        start_step: int = 0,
        start_share: float = 0.0,
    ) -> None:
        """Store the arguments, which are those of `OptimizerSettings`."""
        super().__init__()
        self.peak = peak
        self.schedule: Schedule = schedule
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.start_step = start_step
        self.start_share = start_share

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the learning rate of optimizer step ``step``, counted from 0."""
        step = tf.cast(step, tf.float32)
        risen = tf.minimum((step + 1.0) / self.warmup_steps, 1.0) if self.warmup_steps else tf.ones([])
        if self.schedule == "constant":
            return self.peak * risen
        warm = self.warmup_steps / self.total_steps
        share = self.start_share + (step - self.start_step) / self.total_steps
        done = tf.clip_by_value((share - warm) / (1.0 - warm), 0.0, 1.0)
        left = 1.0 - done if self.schedule == "linear" else 0.5 * (1.0 + tf.cos(math.pi * done))
        return self.peak * risen * left

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {
            "peak": self.peak,
            "schedule": self.schedule,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
            "start_step": self.start_step,
            "start_share": self.start_share,
        }


def gathering(kind: type) -> type:
    """Return a subclass of the optimizer class ``kind`` that can collect gradients before their mean is applied."""

    class Gathering(kind):
        """Applies gradients at once, or collects them in ``held`` while that is a list."""

        held: list[Any] | None = None

        def apply_gradients(self, grads_and_vars: Iterable[Any], **kwargs: Any) -> Any:
            """Apply the gradients, or append them to ``held`` if it is a list."""
            pairs = list(grads_and_vars)
            if self.held is None:
                return super().apply_gradients(pairs, **kwargs)
            self.held.append(pairs)
            return self.iterations

    Gathering.__name__ = f"Gathering{kind.__name__}"
    return Gathering


def accumulate_gradients(model: tf_keras.Model, parts: int) -> None:
    """Make every training step of ``model`` process its batch in ``parts`` parts, with a single update.

    The update is that of the whole batch (a mean of equal parts), the memory that of one part. A loss that compares
    the rows of a batch with each other, such as in-batch negatives, sees only the rows of its part. Loss scaling
    (``mixed_float16``) is not supported: it sums over the workers and checks each part before it can be collected.

    Args:
        model: Compiled with an optimizer whose outermost class is that of `gathering`.
        parts: Number of parts; the rows of a batch on one worker must be a multiple of it.
    """
    whole_step = model.train_step

    def train_step(batch: Any) -> Any:
        optimizer = model.optimizer
        optimizer.held = []
        try:
            for part in _parts(batch, parts):
                logs = whole_step(part)
        finally:
            held, optimizer.held = optimizer.held, None
        gradients = [_mean([gradient for gradient, _ in of]) for of in zip(*held, strict=True)]
        optimizer.apply_gradients(zip(gradients, [variable for _, variable in held[0]], strict=True))
        return logs

    model.train_step = train_step


def _parts(batch: Any, parts: int) -> list[Any]:
    tensors = tf.nest.flatten(batch, expand_composites=False)
    split = [_split(tensor, parts) for tensor in tensors]
    return [tf.nest.pack_sequence_as(batch, [of[part] for of in split]) for part in range(parts)]


def _split(tensor: Any, parts: int) -> list[Any]:
    if isinstance(tensor, tf.SparseTensor):
        return list(tf.sparse.split(tensor, parts, axis=0))
    if tensor.shape.rank == 0:  # the scale of a padded batch, which is that of each part
        return [tensor] * parts
    return list(tf.split(tensor, parts))


def _mean(gradients: Sequence[Any]) -> Any:
    if gradients[0] is None:
        return None
    share = 1.0 / len(gradients)
    if any(isinstance(gradient, tf.IndexedSlices) for gradient in gradients):
        values = tf.concat([gradient.values for gradient in gradients], axis=0)
        indices = tf.concat([gradient.indices for gradient in gradients], axis=0)
        return tf.IndexedSlices(values * share, indices, gradients[0].dense_shape)
    return tf.add_n(gradients) * share
