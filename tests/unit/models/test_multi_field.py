"""The multi-field model builds from a spec, learns, and gives probabilities (F3)."""

import numpy as np
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.models import multi_field
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer


def inputs(rows: int, seed: int) -> dict[str, tf.Tensor]:
    rng = np.random.default_rng(seed)
    return {
        "distance": tf.constant(rng.normal(size=rows), tf.float32),
        "carrier": tf.constant(rng.integers(0, 4, rows)),
        "dest": tf.constant(rng.integers(0, 5, rows)),
        "earlier": tf.constant(rng.integers(0, 5, (rows, 3))),
    }


def test_scores_are_probabilities_one_per_row(flight_features: FittedFeatures) -> None:
    model = multi_field.build(multi_field.Settings(hidden_units=(8, 4), dropout=0.2), flight_features, seed=1)
    scores = multi_field.predict(model, inputs(64, seed=1))["score"].numpy()
    assert (scores.shape, scores.dtype) == ((64,), np.float32)
    assert ((scores > 0) & (scores < 1)).all()
    assert model(inputs(64, seed=1)).shape == (64, 1)


def test_a_model_without_hidden_layers_is_a_logistic_regression(flight_features: FittedFeatures) -> None:
    model = multi_field.build(multi_field.Settings(embedding_dim=2, hidden_units=()), flight_features, seed=1)
    weights = {variable.name: variable.shape.as_list() for variable in model.trainable_variables}
    # Three fields of width 2, and one number; 4 + 5 rows of embeddings.
    assert weights == {"fields/table:0": [9, 2], "logit/kernel:0": [7, 1], "logit/bias:0": [1]}


def test_training_learns_what_a_field_says(flight_features: FittedFeatures) -> None:
    tf_keras.utils.set_random_seed(1)
    model = multi_field.build(multi_field.Settings(hidden_units=(8,), dropout=0.1), flight_features, seed=1)
    compile_model(model, multi_field.TASK, build_optimizer(OptimizerSettings("adam", 0.05)))
    features = inputs(256, seed=2)
    late = tf.cast(features["carrier"] == 2, tf.float32)
    weight = tf.ones(256)
    data = tf.data.Dataset.from_tensors((features, late, weight)).repeat(60)
    history = model.fit(data, verbose=0).history
    assert set(history) == {"loss", "log_loss", "auc"}
    result = model.evaluate(data.take(1), verbose=0, return_dict=True)
    assert result["auc"] > 0.95
