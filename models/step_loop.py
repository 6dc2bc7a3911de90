"""Runs many steps in one call of TensorFlow, without what the loop of Keras' ``fit`` does over and over.

Keras writes its loop in Python and leaves the rest to autograph and ``tf.function``:

- the step is traced four times before the first one runs. Autograph goes through a loop's body once more, to learn what
  it leaves behind, and ``tf.function`` traces all of it again when it has met variables that had yet to be made: those
  of the optimizer;
- every step computes the value of every metric, though only that of the last step is handed to Python. An AUC goes
  through all its thresholds for it.

Here the optimizer's variables are made before the first trace, and metrics are read when the loop is over.

An optimizer that works in rounds (local updates) would have to look in every step whether its round is complete. Here
the steps of a round are a loop of their own, and it looks once, behind them.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import tensorflow as tf
import tf_keras
from tf_keras.src.engine.training import reduce_per_replica  # what Keras' loop makes of the replicas' logs

_Kind = Literal["train", "test"]
_Function = Callable[[Any], Mapping[str, Any]]


@runtime_checkable
class WorksInRounds(Protocol):
    """An optimizer that does something of its own whenever it has made so many steps: then a round is complete."""

    def steps_left(self) -> tf.Tensor:
        """Return the steps until the round is complete, a scalar of type int64."""

    def uncounted(self) -> AbstractContextManager[None]:
        """Let the steps that are traced in the block not be counted: their caller does it."""

    def count(self, steps: Any) -> None:
        """Count so many steps, at most those that are left, and do what is to be done if the round is complete."""


class _OtherLogs(Exception):  # noqa: N818 - no error: it takes a trace back
    """A step returns something under a name that none of its model's metrics has."""


def use_step_loop(model: tf_keras.Model) -> None:
    """Let ``fit`` and ``evaluate`` of the compiled ``model`` run their steps in a loop of ours.

    They compute what they computed before. What a step returns under the name of a metric is read from that metric.
    Keras keeps its own loop where a step returns anything under another name, where one step makes an execution, and
    for models that run eagerly, are compiled by XLA as a whole, or are trained by a coordinator.
    """
    for kind in ("train", "test"):
        _take_over(model, kind)


def _take_over(model: tf_keras.Model, kind: _Kind) -> None:
    keras_makes: Callable[..., _Function] = getattr(model, f"make_{kind}_function")

    def make(force: bool = False) -> _Function:
        made: _Function | None = getattr(model, f"{kind}_function")
        if made is not None and not force:
            return made
        if not _is_ours(model):
            return keras_makes(force)
        loop = _loop(model, kind)
        has_begun = False

        def execute(iterator: Any) -> Mapping[str, Any]:
            nonlocal has_begun
            if kind == "train" and not has_begun:
                _make_optimizer_variables(model)
            has_begun = True
            try:
                logs: Mapping[str, Any] = loop(iterator)
            except _OtherLogs:  # nothing has run yet
                return keras_makes(force=True)(iterator)  # which takes our place in the model, too
            return logs

        setattr(model, f"{kind}_function", execute)
        if kind == "train":
            model.train_tf_function = loop  # what callbacks look at that show the graph
        return execute

    setattr(model, f"make_{kind}_function", make)


def _is_ours(model: tf_keras.Model) -> bool:
    is_eager = model.run_eagerly or tf.config.functions_run_eagerly()
    is_plain = not (is_eager or model.jit_compile or model.autotune_steps_per_execution)
    return is_plain and model._cluster_coordinator is None and int(model._steps_per_execution.numpy()) > 1


def _make_optimizer_variables(model: tf_keras.Model) -> None:
    """Make them not before the first step: some begin with the weights, which may have come from elsewhere by then."""
    # A model that has seen no batch has no weights yet, and optimizers of before Keras 2.11 make theirs in the step.
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
            raise _OtherLogs
        getattr(model, f"_{kind}_counter").assign_add(1)

    # Autograph leaves it as it is, and with it the model's own step, as in Keras' loop: to convert that one may fail,
    # of names that only a function knows, say. What layers compute is converted all the same.
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
    # Without weights the optimizer has no variables either, and so no count of steps.
    return model.built and isinstance(model.optimizer, WorksInRounds)
