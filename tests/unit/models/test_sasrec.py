"""F14: SASRec over ragged histories: a state reads the past alone, and every position of a history is an example."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.item_rows import with_items
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Sparse
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models import catalog, sasrec
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.models.fitting.xla import compile_with_xla
from mirrorspark.models.layers import CausalStates
from mirrorspark.models.retrieval.saved_towers import SavedTowers, save_towers
from mirrorspark.models.retrieval.sequence import following_ids
from mirrorspark.models.settings import ModelSettingsError
from tests.unit.models.conftest import vocabulary

MOVIES, LONGEST = 30, 6
# Ids; the vocabulary's m0 has id 2.
HISTORIES: Sequence[Sequence[int]] = ([], [5], [2, 3, 4, 5, 2, 6], [9, 4], [7, 7, 7])
FOLLOWING = [2, 9, 4, 30, 8]


def features(*lists: str, others: bool = True) -> FittedFeatures:
    histories = [MultiValued(name, max_length=LONGEST, vocabulary_of="movie") for name in lists or ("watched",)]
    device = [Categorical("device")] if others else []
    spec = FeatureSpec((*histories, *device, Categorical("movie")), Label("movie", kind="candidate"), ("user",))
    vocabularies = {"movie": vocabulary([f"m{number}" for number in range(MOVIES)])}
    return FittedFeatures(spec, vocabularies | {one.name: vocabulary(["phone", "tv"]) for one in device}, {})


def built(fitted: FittedFeatures, **options: Any) -> Any:
    """Return an untrained model whose weights are large enough for a wrong step to be seen."""
    small: dict[str, Any] = {"embedding_dim": 4, "heads": 2, "hidden_units": (3,), "dropout": 0.0, "negatives": MOVIES}
    settings = sasrec.Settings(**small | options)
    tf_keras.utils.set_random_seed(2)
    model = sasrec.build(settings, fitted, seed=2)
    rng = np.random.default_rng(2)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(size=weight.shape, scale=0.5).astype(np.float32))
    return model


def inputs(histories: Sequence[Sequence[int]], width: int, first: int = 0) -> dict[str, tf.Tensor]:
    """Return histories padded to ``width``, with a feature that depends on the row's number."""
    watched = [[*history, *[0] * (width - len(history))] for history in histories]
    devices = np.arange(first, first + len(histories)) % 4
    return {"watched": tf.constant(watched, tf.int64), "device": tf.constant(devices, tf.int64)}


def loss_and_gradients(
    model: tf_keras.Model,
    given: dict[str, tf.Tensor],
    following: Sequence[int],
    weights: Sequence[float],
    *,
    graph: bool = False,
) -> list[np.ndarray]:
    """Return the loss and its gradients, without a graph unless XLA has to have one."""
    batch = given | {"movie": tf.constant(following, tf.int64)}

    def step() -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            loss = model.compute_loss((batch, tf.zeros(len(following)), tf.constant(weights)), training=True)
        return loss, [tf.convert_to_tensor(one) for one in tape.gradient(loss, model.trainable_variables)]

    loss, found = (tf.function(step) if graph else step)()
    return [loss.numpy(), *(gradient.numpy() for gradient in found)]


def test_a_row_has_the_same_query_however_it_is_padded() -> None:
    model = built(features())
    rows = [inputs([history], max(1, len(history)), number) for number, history in enumerate(HISTORIES)]
    alone = np.concatenate([model.query_tower(row).numpy() for row in rows])
    assert len(np.unique(alone.round(3), axis=0)) == len(HISTORIES)
    for width in (LONGEST, 17):
        np.testing.assert_allclose(model.query_tower(inputs(HISTORIES, width)), alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(sasrec.predict(model, inputs(HISTORIES, 17)), alone, rtol=0, atol=1e-6)


def test_the_user_is_read_unless_it_is_not_to_be() -> None:
    fitted = features()
    fitted = replace(fitted, spec=replace(fitted.spec, user="device"))
    for reads_user in (True, False):
        model = built(fitted, reads_user=reads_user)
        first, second = (sasrec.predict(model, inputs(HISTORIES[1:2], 6, first=device)).numpy() for device in (2, 3))
        assert np.array_equal(first, second) != reads_user


def test_every_position_has_the_loss_and_gradient_of_a_row_per_position() -> None:
    """The prefixes [] → 3, [3] → 4, [3, 4] → 9; [7] → 8 of the second history, whose first item is unknown (id 1)."""
    fitted = features()
    together = built(fitted, every_position=True)
    one_by_one = built(fitted)
    rows = [([], 3), ([3], 4), ([3, 4], 9), ([1], 7), ([1, 7], 8)]
    given = inputs([[3, 4], [1, 7], []], LONGEST) | {"device": tf.constant([1, 1, 1], tf.int64)}
    # Of the third row, padding of a batch, nothing counts; nor does the second history's unknown first item.
    of_all = loss_and_gradients(together, given, [9, 8, 0], [1.0, 2.0, 0.0])
    each = inputs([history for history, _ in rows], LONGEST) | {"device": tf.ones(len(rows), tf.int64)}
    of_each = loss_and_gradients(one_by_one, each, [item for _, item in rows], [1.0, 1.0, 1.0, 2.0, 2.0])
    assert float(together.mean_loss.result()) == pytest.approx(float(one_by_one.mean_loss.result()), abs=1e-5)
    for one, other in zip(of_all, of_each, strict=True):
        np.testing.assert_allclose(one * 3, other * 5, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("lengths", "width"), [([], 6), ([0, 0], 3), ([1, 1], 6), ([6, 6], 6), ([0, 1, 6, 2, 3], 6), ([2, 1, 3], 3)]
)
def test_rows_read_by_their_length_have_the_states_of_rows_read_together(lengths: list[int], width: int) -> None:
    """#55: batches without rows, without ids, of short or long histories alone, and of both."""
    layer = CausalStates(built(features()).candidate_tower, LONGEST, blocks=2, heads=2, dropout=0.0, seed=3)
    ids = tf.constant([[*range(2, 2 + length), *[0] * (width - length)] for length in lengths], tf.int64)
    ids = tf.reshape(ids, [len(lengths), width])
    found = []
    for is_for_xla in (False, True):
        layer.is_for_xla = is_for_xla
        with tf.GradientTape() as tape:
            states = layer(ids, training=True)
            known = tf.boolean_mask(states, tf.sequence_mask([1 + length for length in lengths], 1 + width))
            # Of normalised states the sum of squares is constant, and its gradients are rounding errors.
            loss = tf.reduce_sum(known**3)
        found.append([known, *map(tf.convert_to_tensor, tape.gradient(loss, layer.trainable_variables))])
    for apart, together in zip(*found, strict=True):
        np.testing.assert_allclose(apart, together, rtol=1e-4, atol=1e-5 * np.abs(together).max(initial=1))


def test_the_candidate_follows_the_last_id() -> None:
    found = following_ids(tf.constant([[5, 6, 0], [0, 0, 0], [7, 8, 9]], tf.int64), tf.constant([3, 4, 2], tf.int64))
    np.testing.assert_array_equal(found, [[5, 6, 3, 0], [4, 0, 0, 0], [7, 8, 9, 2]])


def test_validation_compares_the_rows_own_candidate_alone() -> None:
    given = inputs(HISTORIES, LONGEST) | {"movie": tf.constant(FOLLOWING, tf.int64)}
    batch = (given, tf.zeros(5), tf.ones(5))
    of_all, of_last = (built(features(), every_position=every).compute_loss(batch) for every in (True, False))
    np.testing.assert_allclose(of_all, of_last, rtol=1e-6)


@pytest.mark.parametrize("every_position", [True, pytest.param(False, marks=pytest.mark.full)])
def test_xla_compiles_forward_and_backward_pass_to_the_same(every_position: bool) -> None:
    model = built(features(), every_position=every_position)
    given = inputs(HISTORIES, LONGEST)
    plain = loss_and_gradients(model, given, FOLLOWING, [1.0] * 5)
    compile_with_xla(model)
    for one, other in zip(plain, loss_and_gradients(model, given, FOLLOWING, [1.0] * 5, graph=True), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)


def test_training_learns_what_only_the_order_tells() -> None:
    """The movie that follows depends on the last one watched; the mean of a history is the same in both orders."""
    pairs = [(one, other) for one in range(2, 10) for other in range(2, 10) if one != other]
    following = [2 + (newest - 1) % 8 for _, newest in pairs]
    tf_keras.utils.set_random_seed(1)
    settings = sasrec.Settings(embedding_dim=16, blocks=1, dropout=0.1, negatives=MOVIES)
    model = sasrec.build(settings, features(others=False), seed=1)
    compile_model(model, sasrec.TASK, build_optimizer(OptimizerSettings("adam", 0.01)), steps_per_execution=10)
    watched = tf.constant(pairs, tf.int64)
    batch = ({"watched": watched, "movie": tf.constant(following, tf.int64)}, tf.zeros(len(pairs)), tf.ones(len(pairs)))
    model.fit(tf.data.Dataset.from_tensors(batch).repeat(150), verbose=0)
    scores = sasrec.predict(model, {"watched": watched}).numpy() @ model.candidate_tower.get_weights()[0][2:].T
    assert np.mean(scores.argmax(axis=1) + 2 == following) > 0.9


def test_queries_of_mixed_precision_are_float32_and_finite() -> None:
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        queries = sasrec.predict(built(features()), inputs(HISTORIES, LONGEST))
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert queries.dtype == tf.float32
    assert np.isfinite(queries).all()


def with_film_features(fitted: FittedFeatures) -> FittedFeatures:
    """Return features of which the movies and two others, ``new`` and ``odd``, have a genre and words."""
    table = pa.table(
        {
            "id": [*(f"m{number}" for number in range(MOVIES)), "new", "odd"],
            "genre": [*(("war", "noir")[number % 2] for number in range(MOVIES)), "noir", None],
            "words": [*([number % 5] for number in range(MOVIES)), [3], []],
            "weights": [*([1.0 + number] for number in range(MOVIES)), [4.0], []],
        }
    )
    words = Sparse("plot", size=5, indices="words", values="weights")
    items = FeatureSpec.of_items("id", [Categorical("genre"), words])
    own = FittedFeatures(items, {"id": vocabulary(["m0"]), "genre": vocabulary(["noir", "war"])}, {})
    return with_items(replace(fitted, spec=replace(fitted.spec, items=items)), own, table)


# The features of the first two are equal.
M3, NEW, ODD = 5, 32, 33


def test_histories_are_read_by_the_features_of_their_items() -> None:
    fitted = with_film_features(features())
    ids = tf.constant([[M3, NEW, ODD], [0, 1, M3]], tf.int64)
    by_features, with_ids = (built(fitted, candidate_id=candidate_id) for candidate_id in (False, True))
    for model in (by_features, with_ids):
        tower = model.candidate_tower
        of_all = tower(tf.range(tower.input_dim, dtype=tf.int64)).numpy()
        np.testing.assert_allclose(tower.of_history(ids), of_all[ids.numpy()], atol=1e-6)
    given = inputs([[M3, 7], [NEW, 7], [ODD, 7]], 3)
    given["device"] = tf.zeros(3, tf.int64)
    one, alike, other = by_features.query_tower(given).numpy()
    np.testing.assert_allclose(alike, one, atol=1e-6)
    assert np.abs(other - one).max() > 0.01
    one, alike, _ = with_ids.query_tower(given).numpy()
    assert np.abs(alike - one).max() > 1e-4


def test_a_saved_query_tower_has_the_vectors_of_histories_in_place_of_features(tmp_path: Path) -> None:
    fitted = with_film_features(features())
    model, given = built(fitted, cosine=True), inputs([[M3, NEW], [], [ODD]], 2)
    queries = sasrec.predict(model, given).numpy()
    model.hold_histories()
    np.testing.assert_allclose(sasrec.predict(model, given), queries, atol=1e-6)
    save_towers(sasrec, model, fitted, tmp_path)
    saved = SavedTowers(tmp_path, fitted).query_tower
    np.testing.assert_allclose(saved(given), queries, atol=1e-6)
    for weight in model.candidate_tower.trainable_variables:
        weight.assign(tf.zeros_like(weight))
    np.testing.assert_allclose(sasrec.predict(model, given), queries, atol=1e-6)
    assert np.abs(model.query_tower(given, training=True) - queries).max() > 0.01
    model.hold_histories()
    assert np.abs(sasrec.predict(model, given) - queries).max() > 0.01


def test_a_spec_without_one_history_is_refused_with_the_mend() -> None:
    nothing = FeatureSpec((Categorical("user"), Categorical("movie")), Label("movie", kind="candidate"), ("user",))
    with pytest.raises(ModelSettingsError, match="model 'sasrec' has no history to read: no list has the ids of"):
        catalog.check_features("sasrec", {}, nothing)
    with pytest.raises(ModelSettingsError, match=r"reads one history, but \['watched', 'liked'\] have the ids of"):
        catalog.check_features("sasrec", {}, features("watched", "liked").spec)
    catalog.check_features("sasrec", {}, features().spec)
