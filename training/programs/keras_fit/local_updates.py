"""Local updates (local SGD): every worker makes several local steps, then all continue from their mean.

For slow networks and small batches: one all-reduce for several steps. Sources: Lin et al. 2020, "Don't Use Large
Mini-Batches, Use Local SGD" (post-local SGD), and Douillard et al. 2023, "DiLoCo: Distributed Low-Communication
Training of Language Models", for the outer optimizer (Nesterov momentum on the mean of the workers' moves); without
momentum it is plain averaging.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.checkpoints import training_state
from mirrorspark.training.protocol.ring import Ring, all_reduce, local_variable


def local_updates(
    ring: Ring, every: int, outer_momentum: float = 0.0, outer_learning_rate: float = 1.0
) -> Callable[[type], type]:
    """Return the rule by which an optimizer class updates locally.

    :func:`models.fitting.optimizers.build_optimizer` takes it.

    Args:
        ring: The ring of workers.
        every: Local steps between two means.
        outer_momentum: Nesterov momentum of the outer step; DiLoCo uses 0.9.
        outer_learning_rate: Learning rate of the outer step; DiLoCo uses 0.7. With 1 and without momentum the outer
            step sets the mean.
    """
    settings = _Rule(ring, every, outer_momentum, outer_learning_rate)

    def rule(kind: type) -> type:
        return type(f"LocalUpdates{kind.__name__}", (_LocalUpdates, kind), {"_rule": settings})

    return rule


@dataclass(frozen=True)
class _Rule:
    """The arguments of :func:`local_updates`."""

    ring: Ring
    every: int
    outer_momentum: float
    outer_learning_rate: float

    @property
    def has_outer_state(self) -> bool:
        """Return True if the outer step is more than the mean."""
        return self.outer_momentum != 0.0 or self.outer_learning_rate != 1.0


class _LocalUpdates(tf_keras.optimizers.Optimizer):
    """Mixin: applies the worker's own gradients, and periodically averages the weights of all workers.

    Implements `models.fitting.step_loop.WorksInRounds`: a round ends with the mean.
    """

    _rule: _Rule
    _is_counting = True

    def aggregate_gradients(self, grads_and_vars: Iterable[Any]) -> list[Any]:
        """Return this worker's mean gradients: Keras has divided its loss by the number of workers."""
        return [(_scale(gradient, self._rule.ring.workers), variable) for gradient, variable in grads_and_vars]

    def build(self, var_list: Sequence[Any]) -> None:
        """Create the variables of the inner optimizer and of the outer step, and the count of local steps."""
        super().build(var_list)
        if getattr(self, "_trained", None):
            return
        self._trained = list(var_list)
        self._inner_variables = [variable for variable in self.variables if variable.dtype.is_floating]
        self._local_steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="local_steps")
        self._anchors, self._outer_velocities = [], []
        if self._rule.has_outer_state:
            for variable in var_list:
                of = {"model_variable": variable}
                self._anchors.append(
                    self.add_variable_from_reference(variable_name="anchor", initial_value=variable, **of)
                )
                self._outer_velocities.append(self.add_variable_from_reference(variable_name="outer_velocity", **of))

    def apply_gradients(self, grads_and_vars: Iterable[Any], **kwargs: Any) -> Any:
        """Make one local step, and the outer step when it is due."""
        iteration = super().apply_gradients(grads_and_vars, **kwargs)
        if self._is_counting:
            with tf.control_dependencies([iteration] if tf.is_tensor(iteration) else []):
                self.count(1)
        return iteration

    def steps_left(self) -> tf.Tensor:
        """Return the local steps until the outer step is due."""
        return self._rule.every - local_variable(self._local_steps)

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Do not count the steps that are traced in the block: the caller does."""
        self._is_counting = False
        try:
            yield
        finally:
            self._is_counting = True

    def count(self, steps: Any) -> None:
        """Count local steps, and make the outer step when it is due."""
        done = local_variable(self._local_steps).assign_add(steps)
        tf.cond(done >= self._rule.every, self._outer_step, lambda: tf.constant(0, tf.int64))

    def _outer_step(self) -> Any:
        own = [local_variable(variable) for variable in self._trained]
        means = [
            total / self._rule.ring.workers
            for total in all_reduce(self._rule.ring, [variable.read_value() for variable in own])
        ]
        for number, (variable, mean) in enumerate(zip(own, means, strict=True)):
            if not self._rule.has_outer_state:
                variable.assign(mean)
                continue
            anchor, velocity = local_variable(self._anchors[number]), local_variable(self._outer_velocities[number])
            move = anchor - mean
            velocity.assign(self._rule.outer_momentum * velocity + move)
            variable.assign(anchor - self._rule.outer_learning_rate * (self._rule.outer_momentum * velocity + move))
            anchor.assign(variable)
        return local_variable(self._local_steps).assign(0)

    def settle(self) -> None:
        """Make the outer step now, and average the variables of the workers' inner optimizers.

        Required before weights are validated or saved: a checkpoint holds one worker's state for all.
        """
        if not getattr(self, "_trained", None) or self._rule.ring.workers == 1:
            return
        if int(local_variable(self._local_steps).numpy()):
            self._outer_step()
        inner = [local_variable(variable) for variable in self._inner_variables]
        totals = all_reduce(self._rule.ring, [variable.read_value() for variable in inner])
        for variable, total in zip(inner, totals, strict=True):
            variable.assign(total / self._rule.ring.workers)


class SettleLocalUpdates(tf_keras.callbacks.Callback):
    """Settles local updates before a validation and at an epoch's end; list it first."""

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Make the weights equal on all workers."""
        training_state.settle(self.model)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Make the weights equal on all workers, also without a validation."""
        training_state.settle(self.model)


def _scale(gradient: Any, factor: float) -> Any:
    if gradient is None or factor == 1:
        return gradient
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
    return gradient * np.float32(factor)
