"""YouTube's candidate generation: the softmax over all candidates, its sampled form, and what it learns (F4)."""

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.models import youtube_dnn
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer

MOVIES = 50


@pytest.fixture(scope="module")
def fitted() -> FittedFeatures:
    spec = FeatureSpec(
        (MultiValued("watched", max_length=3, vocabulary_of="movie"), Categorical("movie")),
        Label("movie", kind="candidate"),
        ("user",),
    )
    movies = Vocabulary(pa.array([f"m{n}" for n in range(MOVIES)]), pa.array(range(MOVIES, 0, -1), pa.int64()))
    return FittedFeatures(spec, {"movie": movies}, {})


Batch = tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]


def batch(watched: list[list[int]], movies: list[int], weights: list[float]) -> Batch:
    features = {"watched": tf.constant(watched, tf.int64), "movie": tf.constant(movies, tf.int64)}
    return features, tf.zeros(len(movies)), tf.constant(weights, tf.float32)


def build(fitted: FittedFeatures, negatives: int) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(3)
    model = youtube_dnn.build(
        youtube_dnn.Settings(embedding_dim=4, hidden_units=(), negatives=negatives), fitted, seed=3
    )
    model.candidate_tower.set_weights([np.random.default_rng(4).normal(size=(MOVIES + 2, 4)).astype(np.float32)])
    return model


def full_losses(model: tf_keras.Model, inputs: Batch) -> np.ndarray:
    """Plain twin: minus the log-probability of each row's movie among all of the vocabulary."""
    queries = youtube_dnn.predict(model, {"watched": inputs[0]["watched"]}).numpy().astype(np.float64)
    logits = queries @ model.candidate_tower.get_weights()[0][2:].astype(np.float64).T
    own = inputs[0]["movie"].numpy() - 2
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(own)), own]


def test_the_loss_is_the_softmax_over_all_candidates(fitted: FittedFeatures) -> None:
    model = build(fitted, negatives=MOVIES)
    inputs = batch([[2, 3, 0], [4, 0, 0]], [5, 51], [1.0, 3.0])
    expected = (full_losses(model, inputs) * [1.0, 3.0]).sum() / 2
    assert float(model.compute_loss(inputs, training=True)) == pytest.approx(expected, rel=1e-5)


def test_padding_and_candidates_that_no_training_row_has_cost_nothing(fitted: FittedFeatures) -> None:
    model = build(fitted, negatives=MOVIES)
    inputs = batch([[2, 3, 0], [4, 0, 0], [0, 0, 0]], [5, 1, 0], [1.0, 1.0, 0.0])
    expected = full_losses(model, batch([[2, 3, 0]], [5], [1.0]))[0] / 3
    assert float(model.compute_loss(inputs, training=True)) == pytest.approx(expected, rel=1e-5)


def test_the_sampled_loss_estimates_the_full_one(fitted: FittedFeatures) -> None:
    model = build(fitted, negatives=MOVIES - 1)
    inputs = batch([[2, 3, 0], [4, 0, 0], [9, 9, 9]], [5, 30, 51], [1.0, 1.0, 1.0])
    losses = tf.function(lambda: model.row_losses(inputs[0], inputs[2], training=True))
    # The unbiased estimate is that of the softmax's sum, which is the exponential of the loss.
    sampled = np.mean([np.exp(losses().numpy()) for _ in range(1500)], axis=0)
    assert sampled == pytest.approx(np.exp(full_losses(model, inputs)), rel=0.05)
    exact = model.row_losses(inputs[0], inputs[2], training=False).numpy()
    assert exact == pytest.approx(full_losses(model, inputs), rel=1e-5)


@pytest.mark.parametrize("negatives", [10, MOVIES], ids=["sampled", "all"])
def test_training_learns_what_follows_what(fitted: FittedFeatures, negatives: int) -> None:
    tf_keras.utils.set_random_seed(1)
    settings = youtube_dnn.Settings(embedding_dim=8, hidden_units=(16,), negatives=negatives)
    model = youtube_dnn.build(settings, fitted, seed=1)
    compile_model(model, youtube_dnn.TASK, build_optimizer(OptimizerSettings("adam", 0.02)))
    watched = np.arange(2, MOVIES + 2)
    following = np.roll(watched, 1)
    inputs = batch(np.stack([watched, 0 * watched, 0 * watched], 1).tolist(), following.tolist(), [1.0] * MOVIES)
    history = model.fit(tf.data.Dataset.from_tensors(inputs).repeat(300), verbose=0).history
    assert "loss" in history
    scores = youtube_dnn.predict(model, {"watched": inputs[0]["watched"]}) @ tf.transpose(
        model.candidate_tower(tf.range(2, MOVIES + 2, dtype=tf.int64))
    )
    assert np.mean(scores.numpy().argmax(axis=1) + 2 == following) > 0.9
