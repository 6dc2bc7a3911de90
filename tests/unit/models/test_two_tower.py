"""The two-tower loss against NumPy: in-batch softmax, sampling correction, weights, padding, accidental hits (R1)."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import MISSING_ID, Label
from mirrorspark.data_pipelines.reading.padding import PaddedBatch
from mirrorspark.models import two_tower
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.models.retrieval.sampling import Columns, sampling_probability
from mirrorspark.models.retrieval.task import RetrievalTask
from mirrorspark.models.settings import LossSettings, ModelSettingsError

SETTINGS = two_tower.Settings(embedding_dim=4, hidden_units=(), temperature=0.5)


def batch(
    users: list[int], movies: list[int], weights: list[float]
) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    features = {"user": tf.constant(users, tf.int64), "movie": tf.constant(movies, tf.int64)}
    return features, tf.zeros(len(users)), tf.constant(weights, tf.float32)


def loss_by_numpy(
    queries: np.ndarray, candidates: np.ndarray, movies: list[int], weights: list[float], probability: list[float]
) -> float:
    """Plain twin: the weighted negative log-probability of each row's own movie among the others of the batch."""
    total = 0.0
    for row, movie in enumerate(movies):
        if weights[row] == 0:
            continue
        logits = {
            other: queries[row] @ candidates[other] / SETTINGS.temperature - np.log(probability[movies[other]])
            for other in range(len(movies))
            if weights[other] > 0 and (other == row or movies[other] != movie)
        }
        total += weights[row] * (np.log(sum(np.exp(value) for value in logits.values())) - logits[row])
    return total / len(movies)


@pytest.fixture
def model(rating_features: FittedFeatures) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(4)
    model = two_tower.build(SETTINGS, rating_features, seed=4)
    # Initial embeddings are so small that every loss is near log(batch); these are not.
    model.candidate_tower.set_weights([np.random.default_rng(4).normal(size=(5, 4)).astype(np.float32)])
    model.query_tower.set_weights(
        [
            np.random.default_rng(5).normal(size=weight.shape).astype(np.float32)
            for weight in model.query_tower.get_weights()
        ]
    )
    return model


def test_the_sampling_probability_is_the_share_of_the_training_rows(rating_features: FittedFeatures) -> None:
    # Watched 5, 3 and 2 times; ids without a count are taken for the rarest.
    assert sampling_probability(rating_features).tolist() == pytest.approx([0.2, 0.2, 0.5, 0.3, 0.2])


def test_two_tasks_add_the_error_of_the_rating_to_the_loss_of_the_retrieval(rating_features: FittedFeatures) -> None:
    """#23: from both vectors, in the unit of the rating, with the weights of the rows and of the tasks."""
    label = Label("movie", "candidate", rating="stars")
    rated = dataclasses.replace(
        rating_features,
        spec=dataclasses.replace(rating_features.spec, label=label),
        statistics={**rating_features.statistics, "stars": NumericStatistics(3.5, 2.0, 0.5, 5.0, 10)},
    )
    settings = dataclasses.replace(SETTINGS, rating_hidden_units=(), retrieval_weight=0.25, rating_weight=3.0)
    tf_keras.utils.set_random_seed(4)
    model = two_tower.build(settings, rated, seed=4)
    features, _, weight = batch([2, 3, 4], [2, 3, 4], [1.0, 2.0, 0.0])
    stars = tf.constant([4.0, 1.0, 0.0])
    queries, candidates = model.query_tower({"user": features["user"]}), model.candidate_tower(features["movie"])
    kernel, bias = model.rating.get_weights()[:2]
    vectors = np.concatenate([queries, candidates, queries * candidates], axis=1)
    predicted = (vectors @ kernel + bias)[:, 0] * 2.0 + 3.5
    of_retrieval = float(tf.reduce_sum(model.row_losses(features, weight, training=True) * weight)) / 3
    squared = (predicted - stars.numpy()) ** 2
    expected = 0.25 * of_retrieval + 3.0 * (squared[0] + 2 * squared[1]) / 4.0 / 3
    compile_model(model, "retrieval", build_optimizer(OptimizerSettings()))

    assert float(model.compute_loss((features, stars, weight), training=True)) == pytest.approx(expected, rel=1e-5)
    logs = {metric.name: float(metric.result()) for metric in model.metrics}
    assert logs["rmse"] == pytest.approx(np.sqrt((squared[0] + 2 * squared[1]) / 3), rel=1e-5)
    assert logs["mae"] == pytest.approx((abs(predicted[0] - 4.0) + 2 * abs(predicted[1] - 1.0)) / 3, rel=1e-5)


def test_the_weight_of_a_task_is_above_0() -> None:
    with pytest.raises(ModelSettingsError, match=r"model setting rating_weight is 0\.0; use a number above 0"):
        two_tower.Settings(rating_weight=0.0)


BATCHES = pytest.mark.parametrize(
    ("users", "movies", "weights"),
    [
        ([2, 3, 4], [2, 3, 4], [1.0, 1.0, 1.0]),
        ([2, 3, 4, 2], [2, 3, 2, 4], [1.0, 2.0, 0.5, 1.0]),
        ([2, 3, 0, 0], [4, 3, MISSING_ID, MISSING_ID], [1.0, 1.0, 0.0, 0.0]),
    ],
    ids=["distinct movies", "accidental hit and weights", "padding"],
)


@BATCHES
def test_the_loss_is_the_corrected_softmax_over_the_batch(
    model: tf_keras.Model, users: list[int], movies: list[int], weights: list[float]
) -> None:
    inputs = batch(users, movies, weights)
    queries = two_tower.predict(model, {"user": inputs[0]["user"]}).numpy().astype(np.float64)
    candidates = model.candidate_tower(inputs[0]["movie"]).numpy().astype(np.float64)
    expected = loss_by_numpy(queries, candidates, movies, weights, [0.2, 0.2, 0.5, 0.3, 0.2])
    assert float(model.compute_loss(inputs, training=True)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"hard_negatives": 1},
        {"index_negatives": 1},
        {"loss": "bpr"},
        {"sampling": "mixed", "negatives": 2},
        {"sampling": "uniform", "negatives": 3},
    ],
    ids=lambda changed: " ".join(changed) or "softmax",
)
def test_padding_changes_neither_the_loss_nor_its_gradient(
    rating_features: FittedFeatures, changed: dict[str, Any]
) -> None:
    """R1: nor the number of rows by which logits are corrected; the draws of both batches are the same."""
    tf_keras.utils.set_random_seed(4)
    model = two_tower.build(dataclasses.replace(SETTINGS, **changed), rating_features, seed=4)
    model.candidate_tower.set_weights([np.random.default_rng(4).normal(size=(5, 4)).astype(np.float32)])
    drawn = [] if model.sample is None else model.sample.get_weights()
    alone = batch([2, 3], [4, 3], [1.0, 2.0])
    padded = PaddedBatch(*batch([2, 3, 0, 0], [4, 3, MISSING_ID, MISSING_ID], [1.0, 2.0, 0.0, 0.0]), tf.constant(2.0))
    losses, gradients = [], []
    for inputs in (alone, padded):
        if model.sample is not None:
            model.sample.set_weights(drawn)
        with tf.GradientTape() as tape:
            losses.append(model.compute_loss(inputs, training=True))
        gradients.append([tf.convert_to_tensor(one) for one in tape.gradient(losses[-1], model.trainable_variables)])
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=1e-6)
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@BATCHES
def test_the_loss_and_its_gradients_have_the_bits_of_tensorflow_recommenders(
    model: tf_keras.Model, users: list[int], movies: list[int], weights: list[float]
) -> None:
    features, _, weight = inputs = batch(users, movies, weights)
    task = tfrs.tasks.Retrieval(temperature=SETTINGS.temperature, remove_accidental_hits=True)
    rows = len(users)

    def of_task() -> tf.Tensor:
        return (
            task(
                model.query_tower({"user": features["user"]}),
                model.candidate_tower(features["movie"]),
                sample_weight=weight,
                candidate_sampling_probability=tf.gather([0.2, 0.2, 0.5, 0.3, 0.2], features["movie"]),
                candidate_ids=features["movie"],
                score_mask=tf.broadcast_to(weight > 0, [rows, rows]),
            )
            / rows
        )

    found = []
    for loss_of in (of_task, lambda: model.compute_loss(inputs, training=True)):
        with tf.GradientTape() as tape:
            loss = loss_of()
        gradients = tape.gradient(loss, model.trainable_variables)
        found.append([loss.numpy(), *(tf.convert_to_tensor(gradient).numpy() for gradient in gradients)])
    for theirs, ours in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_its_parts_go_into_a_model_of_tensorflow_recommenders_and_theirs_into_it(
    model: tf_keras.Model, rating_features: FittedFeatures
) -> None:
    """#53: a task, towers and cross layers are theirs."""
    assert isinstance(model, tfrs.Model)
    assert isinstance(model.task, tfrs.tasks.Retrieval)

    class Theirs(tfrs.Model):
        def __init__(self, task: Any) -> None:
            super().__init__()
            self.query_model, self.candidate_model, self.task = model.query_tower, model.candidate_tower, task

        def compute_loss(self, inputs: Any, training: bool = False) -> tf.Tensor:
            return self.task(
                self.query_model({"user": inputs["user"]}), self.candidate_model(inputs["movie"]), compute_metrics=False
            )

    features, _, _ = batch([2, 3, 4], [2, 3, 4], [1.0, 1.0, 1.0])
    losses = []
    for task in (tfrs.tasks.Retrieval(temperature=0.5), RetrievalTask(SETTINGS)):
        theirs = Theirs(task)
        theirs.compile(optimizer=tf_keras.optimizers.SGD(0.0))
        history = theirs.fit(tf.data.Dataset.from_tensors(features), verbose=0).history
        losses.append(history["loss"])
    assert losses[0] == losses[1]
    crossed = two_tower.build(dataclasses.replace(SETTINGS, cross_layers=2, cross_rank=3), rating_features, seed=1)
    kinds = [type(layer) for layer in crossed.query_tower.layers]
    assert kinds.count(tfrs.layers.dcn.Cross) == 2
    with pytest.raises(ModelSettingsError, match="cross_layers is -1; use a number from 0 on"):
        two_tower.Settings(cross_layers=-1)


@pytest.mark.parametrize("name", ["bpr", "gbce", "softmax"])
@pytest.mark.parametrize("hard_negatives", [0, 2])
def test_the_task_of_any_loss_gives_in_their_models_what_it_gives_in_ours(name: str, hard_negatives: int) -> None:
    """#53: with an accidental hit and weights; a row of weight 0 is another's candidate in theirs."""
    settings = LossSettings(
        sampling="in_batch", loss=name, temperature=0.5, calibration=0.0, hard_negatives=hard_negatives
    )
    task, random = RetrievalTask(settings, remove_accidental_hits=True), np.random.default_rng(3)
    queries, candidates = (tf.constant(random.normal(size=(5, 4)), tf.float32) for _ in range(2))
    ids, weight = tf.constant([2, 3, 2, 4, 5], tf.int64), tf.constant([1.0, 2.0, 0.5, 1.0, 0.0])
    scores = task.scores(queries, candidates)
    ours = task.losses_of_rows(ids, tf.linalg.diag_part(scores), Columns(ids, None, are_rows=True), scores, True)
    found = task(queries, candidates, sample_weight=weight, candidate_ids=ids, compute_metrics=False)
    assert float(found) == pytest.approx(float(tf.reduce_sum(ours * weight)), rel=1e-5)


def test_a_batch_of_nothing_but_padding_costs_nothing_and_moves_nothing(model: tf_keras.Model) -> None:
    inputs = batch([0, 0], [0, 0], [0.0, 0.0])
    with tf.GradientTape() as tape:
        loss = model.compute_loss(inputs, training=True)
    gradients = [tf.convert_to_tensor(part) for part in tape.gradient(loss, model.trainable_variables)]
    assert float(loss) == 0.0
    assert all(not part.numpy().any() for part in gradients)


def test_the_score_of_a_row_is_the_dot_product_of_its_towers(model: tf_keras.Model) -> None:
    features, _, _ = batch([2, 3], [4, 2], [1.0, 1.0])
    queries = two_tower.predict(model, {"user": features["user"]}).numpy()
    candidates = model.candidate_tower(features["movie"]).numpy()
    assert queries.shape == (2, 4)
    np.testing.assert_allclose(model(features), (queries * candidates).sum(axis=1), rtol=1e-5)


def test_training_brings_users_to_their_movies(rating_features: FittedFeatures) -> None:
    tf_keras.utils.set_random_seed(1)
    settings = dataclasses.replace(SETTINGS, hidden_units=(8,), dropout=0.1, temperature=1.0)
    model = two_tower.build(settings, rating_features, seed=1)
    compile_model(model, two_tower.TASK, build_optimizer(OptimizerSettings("adagrad", 0.5)))
    inputs = batch([2, 3, 4] * 4, [3, 4, 2] * 4, [1.0] * 12)
    history = model.fit(tf.data.Dataset.from_tensors(inputs).repeat(60), verbose=0).history
    assert "loss" in history
    scores = two_tower.predict(model, {"user": tf.constant([2, 3, 4], tf.int64)}) @ tf.transpose(
        model.candidate_tower(tf.constant([2, 3, 4], tf.int64))
    )
    assert scores.numpy().argmax(axis=1).tolist() == [1, 2, 0]
