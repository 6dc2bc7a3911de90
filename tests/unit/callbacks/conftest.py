"""A small model and its data, quick to train and the same in every test."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.unit.mlflow_stores import new_store

EXAMPLES = 32
BATCH = 8


@pytest.fixture(scope="session")
def new_model() -> Callable[..., tf_keras.Model]:
    """Return a function that builds and compiles a model; a seed fixes its weights.

    It runs eagerly, which for so few steps takes less time than building a graph. ``is_rich`` adds what has a state
    of its own (batch normalisation and dropout) and runs as a graph, as real trainings do.
    """

    def build(seed: int = 1, *, is_rich: bool = False, optimizer: Any = None) -> tf_keras.Model:
        tf_keras.utils.set_random_seed(seed)
        stateful_layers = [
            tf_keras.layers.BatchNormalization(),
            tf_keras.layers.Dropout(0.5, seed=seed, rng_type="stateful"),
        ]
        model = tf_keras.Sequential(
            [
                tf_keras.layers.Dense(4, activation="relu", input_shape=(3,)),
                *(stateful_layers if is_rich else []),
                tf_keras.layers.Dense(1),
            ]
        )
        optimizer = optimizer or tf_keras.optimizers.Adam(0.01, jit_compile=False)
        model.compile(optimizer, "mse", metrics=["mae"], run_eagerly=not is_rich)
        return model

    return build


@pytest.fixture(scope="session")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Return features `[32, 3]` and labels `[32, 1]`: four batches of eight."""
    rng = np.random.default_rng(7)
    features = rng.normal(size=(EXAMPLES, 3)).astype("float32")
    return features, features.sum(axis=1, keepdims=True)


@pytest.fixture(scope="session")
def new_dataset(arrays: tuple[np.ndarray, np.ndarray]) -> Callable[..., tf.data.Dataset]:
    """Return a function that makes the dataset, one epoch in a fixed order, without its first batches if asked."""

    def build(skip_batches: int = 0) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH, drop_remainder=True).skip(skip_batches)

    return build


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of an SQLite store."""
    return new_store(tmp_path_factory.mktemp("mlflow"))
