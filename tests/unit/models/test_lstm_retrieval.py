"""F14: an LSTM over ragged histories: one result however a row is padded, in Keras, exported, and compiled by XLA."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models import catalog, lstm_retrieval
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.models.fitting.xla import compile_with_xla
from mirrorspark.models.settings import ModelSettingsError
from tests.unit.models.conftest import vocabulary

MOVIES, LONGEST = 30, 6
# Ids; the vocabulary's m0 has id 2.
HISTORIES: Sequence[Sequence[int]] = ([], [5], [2, 3, 4, 5, 2, 6], [9, 4], [7, 7, 7])
SETTINGS = lstm_retrieval.Settings(embedding_dim=4, hidden_units=(8,), negatives=10, lstm_units=5)


def features(*others: Categorical | Numeric) -> FittedFeatures:
    spec = FeatureSpec(
        (MultiValued("watched", max_length=LONGEST, vocabulary_of="movie"), *others, Categorical("movie")),
        Label("movie", kind="candidate"),
        ("user",),
    )
    vocabularies = {"movie": vocabulary([f"m{number}" for number in range(MOVIES)])}
    vocabularies |= {other.name: vocabulary(["phone", "tv"]) for other in others if isinstance(other, Categorical)}
    numbers = {other.name: NumericStatistics(0.0, 1.0, -1.0, 1.0, 9) for other in others if isinstance(other, Numeric)}
    return FittedFeatures(spec, vocabularies, numbers)


@pytest.fixture(scope="module")
def fitted() -> FittedFeatures:
    return features(Categorical("device"), Numeric("age"))


@pytest.fixture(scope="module")
def model(fitted: FittedFeatures) -> tf_keras.Model:
    """Return an untrained model whose weights are large enough for a wrong step to be seen."""
    tf_keras.utils.set_random_seed(2)
    model = lstm_retrieval.build(SETTINGS, fitted, seed=2)
    rng = np.random.default_rng(2)
    model.query_tower.set_weights(
        [rng.normal(size=weight.shape, scale=0.5).astype(np.float32) for weight in model.query_tower.get_weights()]
    )
    return model


def inputs(histories: Sequence[Sequence[int]], width: int, first: int = 0) -> dict[str, tf.Tensor]:
    """Return histories padded to ``width``, with other features that depend on the row's number."""
    numbers = np.arange(first, first + len(histories))
    watched = [[*history, *[0] * (width - len(history))] for history in histories]
    return {
        "watched": tf.constant(watched, tf.int64),
        "device": tf.constant(numbers % 4, tf.int64),
        "age": tf.constant(numbers / 3.0, tf.float32),
    }


def one_by_one(width: int | None = None) -> Iterator[dict[str, tf.Tensor]]:
    """Yield every row alone, padded to ``width``, or as can be."""
    for number, history in enumerate(HISTORIES):
        yield inputs([history], width or max(1, len(history)), number)


@pytest.mark.parametrize("width", [LONGEST, LONGEST + 1, 17])
def test_a_row_has_the_same_query_however_it_is_padded(model: tf_keras.Model, width: int) -> None:
    alone = np.concatenate([model.query_tower(row).numpy() for row in one_by_one()])
    assert len(np.unique(alone.round(3), axis=0)) == len(HISTORIES)
    np.testing.assert_allclose(model.query_tower(inputs(HISTORIES, width)), alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(lstm_retrieval.predict(model, inputs(HISTORIES, width)), alone, rtol=0, atol=1e-6)


def test_the_order_of_a_history_matters(model: tf_keras.Model) -> None:
    forth, back = (lstm_retrieval.predict(model, inputs([history], 2)).numpy() for history in ([3, 4], [4, 3]))
    assert np.abs(forth - back).max() > 1e-3


def test_a_prediction_makes_as_many_steps_as_the_longest_history_has(model: tf_keras.Model) -> None:
    seen = []
    watched = model.query_tower.get_layer("watched_lstm")
    call = watched.call

    def noting(given: Sequence[tf.Tensor]) -> tf.Tensor:
        seen.append(given[1].shape[1])
        return call(given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watched, "call", noting)
        lstm_retrieval.predict(model, inputs([[5], [9, 4], []], LONGEST))
    assert seen == [2]


Batch = tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]


def batch(histories: Sequence[Sequence[int]], following: Sequence[int], width: int = LONGEST) -> Batch:
    given = inputs(histories, width) | {"movie": tf.constant(following, tf.int64)}
    return given, tf.zeros(len(following)), tf.ones(len(following))


def gradients(model: tf_keras.Model, given: Batch, *, graph: bool = False) -> list[np.ndarray]:
    """Return the loss over all candidates, and its gradients, without a graph unless XLA has to have one."""

    def step() -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(given, training=True)
        return loss, [tf.convert_to_tensor(one) for one in tape.gradient(loss, model.trainable_variables)]

    loss, found = (tf.function(step) if graph else step)()
    return [loss.numpy(), *(gradient.numpy() for gradient in found)]


def whole_softmax(fitted: FittedFeatures, **others: Any) -> tf_keras.Model:
    """Return a model that draws no sample: its loss is a function of its weights."""
    tf_keras.utils.set_random_seed(4)
    settings = lstm_retrieval.Settings(embedding_dim=4, hidden_units=(8,), negatives=MOVIES, lstm_units=5, **others)
    return lstm_retrieval.build(settings, fitted, seed=4)


@pytest.mark.parametrize("cell", ["lstm", pytest.param("gru", marks=pytest.mark.full)])
def test_training_does_not_depend_on_padding(fitted: FittedFeatures, cell: str) -> None:
    model = whole_softmax(fitted, cell=cell)
    short, long = (gradients(model, batch(HISTORIES, [2, 9, 4, 30, 8], width)) for width in (LONGEST, 13))
    for one, other in zip(short, long, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_xla_compiles_forward_and_backward_pass_to_the_same(fitted: FittedFeatures, cell: str) -> None:
    model = whole_softmax(fitted, cell=cell)
    # The second width is compiled from a graph that takes any.
    given = [batch(HISTORIES, [2, 9, 4, 30, 8], width) for width in (LONGEST, 13)]
    plain = gradients(model, given[0])
    compile_with_xla(model)
    for one_width in given:
        for one, other in zip(plain, gradients(model, one_width, graph=True), strict=True):
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)


@pytest.mark.full
def test_training_learns_what_only_the_order_tells() -> None:
    """The movie that follows depends on the last one watched; the mean of a history is the same in both orders."""
    pairs = [(one, other) for one in range(2, 10) for other in range(2, 10) if one != other]
    following = [2 + (newest - 1) % 8 for _, newest in pairs]
    tf_keras.utils.set_random_seed(1)
    fitted = features()
    settings = lstm_retrieval.Settings(embedding_dim=8, hidden_units=(16,), negatives=MOVIES, lstm_units=16)
    model = lstm_retrieval.build(settings, fitted, seed=1)
    compile_model(model, lstm_retrieval.TASK, build_optimizer(OptimizerSettings("adam", 0.02)), steps_per_execution=10)
    given, label, weight = batch(pairs, following)
    kept = {name: given[name] for name in ("watched", "movie")}
    history = model.fit(tf.data.Dataset.from_tensors((kept, label, weight)).repeat(150), verbose=0).history
    assert "loss" in history
    queries = lstm_retrieval.predict(model, {"watched": given["watched"]})
    scores = queries.numpy() @ model.candidate_tower.get_weights()[0][2:].T
    assert np.mean(scores.argmax(axis=1) + 2 == following) > 0.9


@pytest.fixture
def bfloat16() -> Iterator[None]:
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    tf_keras.mixed_precision.set_global_policy("float32")


@pytest.mark.usefixtures("bfloat16")
def test_queries_of_mixed_precision_are_float32_and_finite(fitted: FittedFeatures) -> None:
    queries = lstm_retrieval.predict(whole_softmax(fitted), inputs(HISTORIES, LONGEST))
    assert queries.dtype == tf.float32
    assert np.isfinite(queries).all()


def test_a_spec_without_a_history_is_refused_with_the_mend() -> None:
    spec = FeatureSpec(
        (Categorical("user"), MultiValued("tags", max_length=3), Categorical("movie")),
        Label("movie", kind="candidate"),
        ("user",),
    )
    message = "no list has the ids of 'movie'; give a multi_valued or sequence feature vocabulary_of: movie, or use"
    with pytest.raises(ModelSettingsError, match=message):
        catalog.check_features("lstm_retrieval", {}, spec)
    catalog.check_features("lstm_retrieval", {}, features().spec)
