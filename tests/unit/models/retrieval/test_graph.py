"""Embeddings that are propagated over the graph of users and candidates, and a training with them (#23, R1)."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models import two_tower
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.models.retrieval.graph import GraphEmbeddings
from mirrorspark.models.settings import ModelSettingsError

# u and v have had a, v also b; nobody has had c, and w nothing.
USERS, MOVIES = np.array([2, 3, 3]), np.array([2, 2, 3])
LAYERS = 3


def propagation() -> npt.NDArray[np.float64]:
    """Return the mean of the powers 0 to 3 of the normalised adjacency matrix of five users and five movies, dense."""
    had = np.zeros((5, 5))
    had[USERS, MOVIES] = 1
    adjacency = np.block([[np.zeros((5, 5)), had], [had.T, np.zeros((5, 5))]])
    degree = adjacency.sum(axis=1)
    root = np.divide(1, np.sqrt(degree), out=np.zeros(10), where=degree > 0)
    normalised = root[:, np.newaxis] * adjacency * root
    mean = sum(np.linalg.matrix_power(normalised, layer) for layer in range(LAYERS + 1)) / (LAYERS + 1)
    # A user without items keeps the embedding as it is.
    mean[degree == 0] *= LAYERS + 1
    return np.asarray(mean)


def built(fitted: FittedFeatures, **settings: Any) -> Any:
    tf_keras.utils.set_random_seed(4)
    model: Any = two_tower.build(two_tower.Settings(embedding_dim=4, graph_layers=LAYERS, **settings), fitted, seed=4)
    model.graph.connect(USERS, MOVIES)
    compile_model(model, two_tower.TASK, build_optimizer(OptimizerSettings("sgd", 0.5)))
    return model


def batch(users: list[int], movies: list[int]) -> Any:
    ids = {"user": tf.constant(users, tf.int64), "movie": tf.constant(movies, tf.int64)}
    return ids, tf.zeros(len(users)), tf.ones(len(users))


def test_the_propagated_table_is_the_mean_of_the_layers() -> None:
    graph = GraphEmbeddings(5, 5, 2, LAYERS)
    table = np.random.default_rng(1).normal(size=(10, 2)).astype(np.float32)
    graph.table.assign(table)
    graph.connect(USERS, MOVIES)
    np.testing.assert_allclose(graph.propagated.numpy(), propagation() @ table, atol=1e-6)
    np.testing.assert_array_equal(graph.propagated.numpy()[[0, 1, 4, 9]], table[[0, 1, 4, 9]])
    # By hand, in one layer: u has had a alone, which two have had; a also has v, who has had two movies.
    one = GraphEmbeddings(5, 5, 2, 1)
    one.table.assign(table)
    one.connect(USERS, MOVIES)
    u, v, a = table[2], table[3], table[5 + 2]
    np.testing.assert_allclose(one.propagated.numpy()[[2, 7]], [(u + a / 2**0.5) / 2, (a + u / 2**0.5 + v / 2) / 2])


def test_a_user_and_a_movie_are_scored_by_their_propagated_embeddings(rating_features: FittedFeatures) -> None:
    """LightGCN's scores, without other features; a missing user is zeros."""
    model = built(rating_features)
    expected = propagation() @ model.graph.table.numpy()
    queries = two_tower.predict(model, {"user": tf.constant([2, 1, 0], tf.int64)}).numpy()
    np.testing.assert_allclose(queries, [expected[2], expected[1], np.zeros(4)], atol=1e-6)
    np.testing.assert_allclose(model.candidate_tower(tf.constant([2, 4], tf.int64)), expected[[7, 9]], atol=1e-6)
    np.testing.assert_allclose(model.candidate_tower.all_embeddings(), expected[5:], atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"cosine": True, "sampling": "mixed", "negatives": 2}])
def test_an_update_follows_the_gradient_through_the_propagation(
    rating_features: FittedFeatures, settings: dict[str, Any]
) -> None:
    model, twin = built(rating_features, **settings), built(rating_features, **settings)
    given, table = batch([2, 3, 3], [2, 2, 4]), tf.Variable(twin.graph.table)
    with tf.GradientTape() as tape:
        twin.graph.propagated = tf.constant(propagation(), tf.float32) @ table
        loss = twin.compute_loss(given, training=True)
    expected = table.numpy() - 0.5 * tf.convert_to_tensor(tape.gradient(loss, table)).numpy()
    model.train_step(given)
    np.testing.assert_allclose(model.graph.table.numpy(), expected, atol=1e-6)
    assert np.abs(expected - table.numpy()).max() > 1e-3
    # Validation, checkpoints and exports use the table as it is now.
    np.testing.assert_allclose(model.graph.propagated.numpy(), propagation() @ model.graph.table.numpy(), atol=1e-6)


def test_training_brings_users_to_their_movies_in_a_compiled_loop(rating_features: FittedFeatures) -> None:
    model = built(rating_features)
    compile_model(model, two_tower.TASK, build_optimizer(OptimizerSettings("adam", 0.05)))
    data = tf.data.Dataset.from_tensors(batch([2, 3, 4] * 4, [2, 3, 4] * 4))
    model.fit(data.repeat(200), verbose=0)
    users = two_tower.predict(model, {"user": tf.constant([2, 3, 4], tf.int64)})
    scores = tf.matmul(users, model.candidate_tower(tf.constant([2, 3, 4], tf.int64)), transpose_b=True)
    assert scores.numpy().argmax(axis=1).tolist() == [0, 1, 2]


def test_a_training_without_the_graph_is_refused(rating_features: FittedFeatures) -> None:
    settings = two_tower.Settings(embedding_dim=4, graph_layers=1)
    model = two_tower.build(settings, rating_features, seed=4)
    compile_model(model, two_tower.TASK, build_optimizer(OptimizerSettings("sgd", 0.5)))
    with pytest.raises(ValueError, match="need the graph of the interactions to train"):
        model.train_step(batch([2], [2]))


def test_settings_and_features_that_leave_nothing_to_propagate_are_refused() -> None:
    with pytest.raises(ModelSettingsError, match="graph_layers is -1; use a number from 0 on"):
        two_tower.Settings(graph_layers=-1)
    with pytest.raises(ModelSettingsError, match="candidates have no embedding by id to propagate"):
        two_tower.Settings(graph_layers=1, candidate_id=False)
    histories = FeatureSpec.from_dict(
        {
            "features": {
                "movie": {"kind": "categorical"},
                "seen": {"kind": "multi_valued", "max_length": 3, "vocabulary_of": "movie"},
            },
            "label": {"name": "movie", "kind": "candidate"},
            "keys": "row",
        }
    )
    with pytest.raises(ModelSettingsError, match="no feature is the users of the graph; name"):
        two_tower.check_features(two_tower.Settings(graph_layers=1), histories)
