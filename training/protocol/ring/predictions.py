"""``predict`` of Keras 3 in training functions and models of users' own, such as one that embeds all candidates."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import tensorflow as tf
import wrapt

from mirrorspark.training.protocol.ring.strategy import RingStrategy


@contextlib.contextmanager
def whole_predictions(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Let ``predict`` return the predictions of all rows on each rank while the block runs, if it is a ring.

    As Keras distributes its rows, a rank would return those of its share.
    """
    if not isinstance(strategy, RingStrategy):
        yield
        return
    is_over = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.callback(is_over.set)

        def replace(keras: ModuleType) -> None:
            if is_over.is_set():
                return
            plain = keras.Model.predict

            @functools.wraps(plain)
            def predict(model: Any, *args: Any, **kwargs: Any) -> Any:
                with strategy.with_all_rows():
                    return plain(model, *args, **kwargs)

            keras.Model.predict = predict
            stack.callback(setattr, keras.Model, "predict", plain)

        wrapt.register_post_import_hook(replace, "keras")
        yield
