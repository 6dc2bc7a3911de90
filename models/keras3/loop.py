"""The training loop of a Keras 3 model: ``fit`` with many steps in one call of TensorFlow.

Keras 3's own ``fit`` cannot begin within an epoch, and an execution of several steps runs past an epoch's end unless it
divides the epoch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from mirrorspark.models.keras3.steps import plain_batch


def fit(
    model: Any,
    batches: Any,
    *,
    validation_data: Any,
    epochs: int,
    steps_per_epoch: int,
    validation_steps: int,
    callbacks: Sequence[Any],
) -> Any:
    """Train a compiled model as its own ``fit`` does, and return its history.

    Args:
        model: Its ``steps_per_execution`` is the largest number of steps before a return to Python.
        batches: This worker's batches, epoch after epoch, as a dataset without an end.
        validation_data: The same of the validation.
        epochs: Number of epochs.
        steps_per_epoch: Steps of an epoch.
        validation_steps: Steps of a validation.
        callbacks: Callbacks of tf-keras and of Keras 3, in their order.
    """
    listed = keras.callbacks.CallbackList(
        list(callbacks), add_history=True, model=model, verbose=0, epochs=epochs, steps=steps_per_epoch
    )
    # As in tf-keras, so that a callback may change it while the training goes on.
    object.__setattr__(model, "_steps_per_execution", tf.Variable(model.steps_per_execution, dtype=tf.int64))
    with model.distribute_strategy.scope():
        # The variables of metrics and optimizer: created within the first trace, they would cost a second one.
        model._symbolic_build(data_batch=plain_batch(model, batches.element_spec))
    train, test = _execution(model, "train"), _execution(model, "test")
    model.stop_training = False
    model._initial_epoch = model._initial_step = 0
    listed.on_train_begin()
    first = model._initial_step
    del model._initial_step
    iterator, logs = iter(batches), {}
    for epoch in range(model._initial_epoch, epochs):
        model.reset_metrics()
        listed.on_epoch_begin(epoch)
        around = listed.on_train_batch_begin, listed.on_train_batch_end
        logs = _run(model, "training", train, iterator, first, steps_per_epoch, *around)
        first = 0
        of_test = _evaluate(model, test, validation_data, validation_steps, listed)
        logs |= {f"val_{name}": value for name, value in of_test.items()}
        listed.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    listed.on_train_end(logs)
    return model.history


def _evaluate(model: Any, test: Callable[..., Any], batches: Any, steps: int, listed: Any) -> dict[str, Any]:
    listed.on_test_begin()
    if (candidates := getattr(model, "own_candidates", None)) is not None:
        candidates.refresh()
    model.reset_metrics()
    model.stop_evaluating = False
    logs = _run(
        model, "evaluating", test, iter(batches), 0, steps, listed.on_test_batch_begin, listed.on_test_batch_end
    )
    listed.on_test_end(logs)
    return logs


def _run(
    model: Any,
    what: str,
    execute: Callable[..., Any],
    iterator: Any,
    done: int,
    steps: int,
    before: Callable[[int], None],
    after: Callable[[int, Any], None],
) -> dict[str, Any]:
    """Run the steps from ``done`` to ``steps``, and return the metrics of all workers."""
    logs: dict[str, Any] = {}
    while done < steps and not getattr(model, f"stop_{what}"):
        before(done)
        count = min(int(model._steps_per_execution.numpy()), steps - done)
        logs = execute(iterator, tf.constant(count, tf.int64))
        done += count
        after(done - 1, logs)
    return dict(model._get_metrics_result_or_logs(logs))


def _execution(model: Any, kind: str) -> Callable[..., Any]:
    """Return the function that runs some steps of an iterator, and returns the logs of the last one."""

    def one_step(batch: Any) -> Any:
        return model.distribute_strategy.run(getattr(model, f"{kind}_step"), args=(batch,))

    def eagerly(iterator: Any, steps: Any) -> Any:
        for _ in range(int(steps)):
            logs = one_step(next(iterator))
        return logs

    if model.run_eagerly:
        return eagerly
    # Traced once for both of its calls.
    traced = tf.function(one_step, autograph=False, reduce_retracing=True)

    def execution(iterator: Any, steps: Any) -> Any:
        def one_more(done: Any) -> tuple[Any]:
            traced(iterator.get_next())
            return (done + 1,)

        tf.while_loop(lambda done: done < steps - 1, one_more, (tf.zeros((), steps.dtype),))
        return traced(iterator.get_next())

    return tf.function(execution, autograph=False, reduce_retracing=True)
