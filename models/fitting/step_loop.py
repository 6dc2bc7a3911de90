"""A loop of many steps in one call of TensorFlow, without the repeated work in the loop of Keras' ``fit``.

Keras writes its loop in Python and relies on autograph and ``tf.function``:

- the step is traced four times before the first one runs. Autograph traces a loop's body twice to find its results, and
  ``tf.function`` traces everything again if new variables were created, as those of the optimizer are;
- every step computes the value of every metric, although only that of the last step is returned to Python. For an AUC
  that covers all its thresholds.

Here the optimizer's variables are created before the first trace, and metrics are read after the loop.

An optimizer that works in rounds (local updates) would have to check in every step whether its round is complete. Here
the steps of a round are an inner loop, followed by one check.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import tensorflow as tf
import tf_keras
from tf_keras.src.engine.training import reduce_per_replica  # as Keras' loop combines the replicas' logs

_Kind = Literal["train", "test"]
_Function = Callable[[Any], Mapping[str, Any]]


@runtime_checkable
class WorksInRounds(Protocol):
    """An optimizer with rounds: after a number of steps a round is complete, and an extra action follows."""

    def steps_left(self) -> tf.Tensor:
        """Return the number of steps until the round is complete, a scalar of type int64."""

    def uncounted(self) -> AbstractContextManager[None]:
        """Disable counting for the steps that are traced in the block; their caller counts them."""

    def count(self, steps: Any) -> None:
        """Count ``steps`` steps, at most those that are left, and finish the round if it is complete."""


class _UnknownLogs(Exception):  # noqa: N818 - no error: it cancels a trace
    """A step returns a value whose name is not that of a metric of its model."""


def use_step_loop(model: tf_keras.Model) -> None:
    """Make ``fit`` and ``evaluate`` of the compiled ``model`` run their steps in our loop, with the same results.

    A value that a step returns under the name of a metric is read from that metric. Keras' own loop is used if a step
    returns a value under another name, if an execution has one step, and for models that run eagerly, are compiled by
    XLA as a whole, or are trained by a coordinator.
    """
    for kind in ("train", "test"):
        _take_over(model, kind)


def _take_over(model: tf_keras.Model, kind: _Kind) -> None:
    keras_make: Callable[..., _Function] = getattr(model, f"make_{kind}_function")

    def make(force: bool = False) -> _Function:
        made: _Function | None = getattr(model, f"{kind}_function")
        if made is not None and not force:
            return made
        if not _is_supported(model):
            return keras_make(force)
        loop = _loop(model, kind)
        has_begun = False

        def execute(iterator: Any) -> Mapping[str, Any]:
            nonlocal has_begun
            if kind == "train" and not has_begun:
                _make_optimizer_variables(model)
            has_begun = True
            try:
                logs: Mapping[str, Any] = loop(iterator)
            except _UnknownLogs:  # nothing has run yet
                return keras_make(force=True)(iterator)  # also replaces this function in the model
            return logs

        setattr(model, f"{kind}_function", execute)
        if kind == "train":
            model.train_tf_function = loop  # read by callbacks that show the graph
        return execute

    setattr(model, f"make_{kind}_function", make)


def _is_supported(model: tf_keras.Model) -> bool:
    is_eager = model.run_eagerly or tf.config.functions_run_eagerly()
    is_plain = not (is_eager or model.jit_compile or model.autotune_steps_per_execution)
    return is_plain and model._cluster_coordinator is None and int(model._steps_per_execution.numpy()) > 1


def _make_optimizer_variables(model: tf_keras.Model) -> None:
    """Create the optimizer's variables at the first step: some copy the weights, which may be restored until then."""
    # A model without a batch has no weights yet, and optimizers from before Keras 2.11 create variables in the step.
    if model.built and hasattr(model.optimizer, "build"):
        model.optimizer.build(model.trainable_variables)


def _loop(model: tf_keras.Model, kind: _Kind) -> Any:
    """Return the ``tf.function`` of one execution: from an iterator to the logs of its last step."""
    strategy = model.distribute_strategy
    names: list[str] = []

    def step(batch: Any) -> None:
        logs = getattr(model, f"{kind}_step")(batch)
        names[:] = logs
        if not set(names) <= {metric.name for metric in model.metrics}:
            raise _UnknownLogs
        getattr(model, f"_{kind}_counter").assign_add(1)

    # Autograph skips this function, and so the model's own step, as in Keras' loop: converting the step may fail, for
    # example because of a function's local names. The calls of layers are still converted.
    step.autograph_info__ = None  # type: ignore[attr-defined]

    def values() -> dict[str, Any]:
        return {metric.name: metric.result() for metric in model.metrics if metric.name in names}

    @tf.function(reduce_retracing=True)
    def execution(iterator: Any) -> dict[str, Any]:
        def one_more(done: Any) -> tuple[Any]:
            strategy.run(step, args=(next(iterator),))
            return (done + 1,)

        def until(end: Any, body: Callable[[Any], tuple[Any]], done: Any) -> Any:
            return tf.while_loop(lambda done: done < end, body, (done,))

        def one_round(done: Any) -> tuple[Any]:
            end = tf.minimum(done + model.optimizer.steps_left(), steps)
            with model.optimizer.uncounted():
                until(end, one_more, done)
            model.optimizer.count(end - done)
            return (end,)

        steps = model._steps_per_execution
        until(steps, one_round if kind == "train" and _works_in_rounds(model) else one_more, tf.zeros((), steps.dtype))
        logs = reduce_per_replica(strategy.run(values), strategy, model.distribute_reduction_method)
        return {name: logs[name] for name in names}

    return execution


def _works_in_rounds(model: tf_keras.Model) -> bool:
    # Without weights the optimizer has no variables either, and therefore no count of steps.
    return model.built and isinstance(model.optimizer, WorksInRounds)
