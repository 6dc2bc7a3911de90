"""A candidate tower that reads item features: in training, in the index, and for items that nobody has seen (R1)."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.item_rows import with_items
from mirrorspark.data_pipelines.features.kinds import Categorical, MultiValued, Sparse, Vector
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models import own_recommender, two_tower
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.models.fitting.warm_start import EarlierModel, begin_from
from mirrorspark.models.layers.input import SparseEmbedding
from mirrorspark.models.layers.input import item_features as features_by_id
from mirrorspark.models.retrieval import towers
from mirrorspark.models.retrieval.sampling import sampling_probability
from mirrorspark.models.serving import export as serving
from mirrorspark.models.settings import ModelSettingsError
from tests.unit.models.conftest import vocabulary

SETTINGS = two_tower.Settings(embedding_dim=4, hidden_units=(8,), item_hidden_units=(8,), id_dropout=0.5)
ITEMS = FeatureSpec.of_items(
    "id", [Categorical("genre"), MultiValued("words", max_length=3), Vector("poster", size=2), Sparse("plot", size=9)]
)
NEW, ODD = 5, 6


def with_films(fitted: FittedFeatures, genres: list[str]) -> FittedFeatures:
    """Return features of a = 2, b = 3, c = 4, and of two items without a row: new = 5, which is as b is, odd = 6."""
    table = pa.table(
        {
            "id": ["a", "b", "c", "new", "odd"],
            "genre": ["war", "noir", "jazz", "noir", None],
            "words": [["x"], ["y", "z"], ["x", "z"], ["y", "z"], []],
            "poster": [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 1.0], None],
            "plot": pa.array(
                [[(1, 0.5)], [(0, 2.0), (8, 1.0)], [], [(0, 2.0), (8, 1.0)], None], pa.map_(pa.int64(), pa.float64())
            ),
        }
    )
    own = FittedFeatures(
        ITEMS,
        {"id": vocabulary(["a"]), "genre": vocabulary(genres), "words": vocabulary(["z", "x", "y"])},
        {},
    )
    return with_items(dataclasses.replace(fitted, spec=dataclasses.replace(fitted.spec, items=ITEMS)), own, table)


@pytest.fixture(scope="module")
def item_features(rating_features: FittedFeatures) -> FittedFeatures:
    return with_films(rating_features, ["noir", "jazz", "war"])


def built(fitted: FittedFeatures, **settings: Any) -> Any:
    tf_keras.utils.set_random_seed(4)
    return two_tower.build(dataclasses.replace(SETTINGS, **settings), fitted, seed=4)


def ids(*numbers: int) -> tf.Tensor:
    return tf.constant(numbers, tf.int64)


def test_an_item_without_training_rows_is_what_its_features_are(item_features: FittedFeatures) -> None:
    tower = built(item_features).candidate_tower
    new, alike, odd = tower(ids(NEW, 3, ODD)).numpy()
    own = tower.id_embedding(ids(3)).numpy()[0]
    assert np.abs(own).max() > 0
    np.testing.assert_allclose(alike - own, new, atol=1e-6)
    assert not np.allclose(odd, new)


def test_a_tower_of_ones_own_reads_the_features_of_items_by_their_ids(
    item_features: FittedFeatures, rating_features: FittedFeatures
) -> None:
    """F13: zeros for ids without an item."""
    found = features_by_id(item_features)
    assert found["poster"].numpy().tolist() == [[0, 0], [0, 0], [1, 0], [0, 1], [-1, 0], [0, 1], [0, 0]]
    assert found["genre"].numpy().tolist() == [0, 0, 4, 2, 3, 2, 0]
    assert found["words"].shape == (7, 3)
    assert found["plot"].shape == (7, 9)
    assert isinstance(found["plot"], tf.SparseTensor)
    with pytest.raises(ModelSettingsError, match="the candidates have none; give items="):
        features_by_id(rating_features)


def test_the_last_layer_of_an_encoder_learns_along_in_a_tower_of_ones_own(item_features: FittedFeatures) -> None:
    """F13: it begins with its weights; an item without a row is what its features are."""
    posters = features_by_id(item_features)["poster"]
    last = tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_initializer="identity", input_shape=(2,))])

    class Films(tfrs.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.user, self.film = tf_keras.layers.Embedding(5, 2), last
            self.task = tfrs.tasks.Retrieval()

        def compute_loss(self, inputs: Any, training: bool = False) -> tf.Tensor:
            return self.task(self.user(inputs["user"]), self.film(tf.gather(posters, inputs["movie"])))

    model = Films()
    own_recommender.prepare(model, "retrieval", item_features, "Films")
    np.testing.assert_array_equal(serving.candidate_embeddings(model), posters)
    compile_model(model, two_tower.TASK, build_optimizer(OptimizerSettings("adam", 0.02)), steps_per_execution=1)
    rows = {"user": ids(2, 3, 4), "movie": ids(2, 3, 4)}
    model.fit(tf.data.Dataset.from_tensors((rows, tf.zeros(3), tf.ones(3))).repeat(20), verbose=0)
    found = serving.candidate_embeddings(model)
    assert not np.allclose(found, posters, atol=0.1)
    np.testing.assert_allclose(found[NEW], found[3], atol=1e-6)


def test_without_ids_equal_features_are_equal_candidates(item_features: FittedFeatures) -> None:
    tower = built(item_features, candidate_id=False).candidate_tower
    new, alike = tower(ids(NEW, 3)).numpy()
    np.testing.assert_array_equal(new, alike)
    assert not any("candidate_ids" in weight.name for weight in tower.weights)


def test_ids_are_left_out_by_chance_in_training_alone_and_as_a_restored_counter_says(
    item_features: FittedFeatures,
) -> None:
    """T3: a resumed training draws what the unbroken one draws."""
    tower = built(item_features).candidate_tower
    batch = ids(*[3] * 200)
    whole, content = tower(batch).numpy()[0], tower(ids(NEW)).numpy()[0]
    saved = tower.get_weights()
    drawn = tower(batch, training=True).numpy()
    has_id = np.isclose(drawn, whole, atol=1e-6).all(axis=1)
    assert np.isclose(drawn[~has_id], content, atol=1e-6).all()
    assert 70 < has_id.sum() < 130
    again = tower(batch, training=True).numpy()
    assert (again != drawn).any()
    tower.set_weights(saved)
    np.testing.assert_array_equal(tower(batch, training=True).numpy(), drawn)


def test_the_features_of_the_items_are_in_no_checkpoint(item_features: FittedFeatures) -> None:
    model = built(item_features)
    tracked = [one for one in tf.train.TrackableView(model).descendants() if isinstance(one, tf.Variable)]
    rows = [variable.name for variable in tracked if variable.shape[:1] == [7]]
    assert {name.partition("/")[0] for name in rows} <= {"candidate_tower", "candidate_ids", "embeddings:0"}
    assert len(rows) == 1


def test_the_index_holds_what_the_tower_gives_for_every_id(
    item_features: FittedFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(item_features)
    monkeypatch.setattr(towers, "_IDS_AT_ONCE", 3)
    found = serving.candidate_embeddings(model)
    np.testing.assert_allclose(found, model.candidate_tower(tf.range(7, dtype=tf.int64)).numpy(), atol=1e-6)
    assert found.shape == (7, 4)


def test_sparse_features_are_multiplied_and_learn(item_features: FittedFeatures) -> None:
    """The entries of the drawn items alone are read, in any order and repeated."""
    tower = built(item_features, item_hidden_units=()).candidate_tower
    (words,) = (part for part in tower.submodules if isinstance(part, SparseEmbedding))
    table = words.weights[0]
    table.assign(tf.zeros_like(table))
    without = tower(ids(3, 2, 3, ODD)).numpy()
    table.assign(tf.ones_like(table))
    kernel = tower.features.get_layer("item").kernel
    # `_features_net` gives its input in the order of tokens, sparse vectors, vectors.
    of_words = kernel[8:12].numpy().sum(axis=0)
    moved = tower(ids(3, 2, 3, ODD)).numpy() - without
    np.testing.assert_allclose(moved, np.outer([3.0, 0.5, 3.0, 0.0], of_words), atol=1e-6)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tower(ids(2, ODD), training=True))
    gradient = tf.convert_to_tensor(tape.gradient(total, table)).numpy()
    assert np.flatnonzero(gradient.any(axis=1)).tolist() == [1]


def test_training_brings_users_to_items_that_are_like_theirs(item_features: FittedFeatures) -> None:
    model = built(item_features)
    compile_model(model, two_tower.TASK, build_optimizer(OptimizerSettings("adam", 0.02)), steps_per_execution=10)
    features = {"user": ids(*[2, 3, 4] * 4), "movie": ids(*[3, 4, 2] * 4)}
    data = tf.data.Dataset.from_tensors((features, tf.zeros(12), tf.ones(12)))
    model.fit(data.repeat(200), verbose=0)
    queries, candidates = two_tower.predict(model, {"user": ids(2, 3, 4)}), model.candidate_tower(ids(2, 3, 4, NEW))
    scores = tf.matmul(queries, candidates, transpose_b=True).numpy()
    assert scores[:, :3].argmax(axis=1).tolist() == [1, 2, 0]
    # The film that nobody has seen is for the user of the film that is as it is.
    assert scores[0, 3] > max(scores[0, 0], scores[0, 2])
    assert scores[1, 3] < scores[1, 2]
    assert scores[2, 3] < scores[2, 0]


def test_towers_are_float32_in_mixed_precision(item_features: FittedFeatures) -> None:
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        tower = built(item_features).candidate_tower
        assert tower(ids(2, NEW), training=True).dtype == tf.float32
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")


def test_a_warm_start_finds_the_tokens_of_the_items_wherever_they_stand_now(
    rating_features: FittedFeatures, item_features: FittedFeatures, tmp_path: Path
) -> None:
    """T12."""
    before = built(item_features)
    indexes = serving.build_indexes(before, 1)
    serving.save(serving.RetrievalModule(two_tower, before, item_features, 1, indexes), tmp_path / "saved_model")  # type: ignore[arg-type]
    now = with_films(rating_features, ["war", "noir", "jazz"])
    tf_keras.utils.set_random_seed(5)
    model = two_tower.build(SETTINGS, now, seed=5)
    taken = begin_from(model, now, EarlierModel(tmp_path / "saved_model", item_features))
    assert taken.left_out == ()
    np.testing.assert_allclose(
        serving.candidate_embeddings(model)[2:], serving.candidate_embeddings(before)[2:], atol=1e-6
    )


def test_the_sampling_probability_of_items_without_rows_is_that_of_the_rarest(item_features: FittedFeatures) -> None:
    assert sampling_probability(item_features).tolist() == pytest.approx([0.2, 0.2, 0.5, 0.3, 0.2, 0.2, 0.2])


def test_candidates_that_are_not_of_the_batch_are_read_by_the_tower_too(item_features: FittedFeatures) -> None:
    """All of them to validate, those without a training row included; and in training what is drawn."""
    model = built(item_features, sampling="mixed", negatives=4)
    inputs = ({"user": ids(2, 3), "movie": ids(3, 4)}, tf.zeros(2), tf.ones(2))
    queries = two_tower.predict(model, {"user": ids(2, 3)}).numpy().astype(np.float64)
    logits = queries @ serving.candidate_embeddings(model)[2:].T
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[[0, 1], [1, 2]])
    assert float(model.compute_loss(inputs)) == pytest.approx(expected, rel=1e-5)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(inputs, training=True)
    table = tape.gradient(loss, model.candidate_tower.id_embedding.embeddings)
    assert len(table.indices) == 2 + 4


def test_candidates_of_neither_id_nor_features_are_refused(rating_features: FittedFeatures) -> None:
    settings = dataclasses.replace(SETTINGS, candidate_id=False)
    with pytest.raises(ModelSettingsError, match="candidate_id is false, but the candidates have no features"):
        two_tower.check_features(settings, rating_features.spec)
