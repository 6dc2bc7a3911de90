"""Layers against NumPy: fields averaged without padding (F3), sparse vectors (F9), dropout that resumes (T6)."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from data_pipelines.feature_kinds import Bucketed, Categorical, Label, MultiValued, Numeric, Sequence, Sparse, Text
from data_pipelines.features import FeatureSpec
from data_pipelines.fitted import FittedFeatures
from models import layers
from models.layers import (
    Field,
    FieldEmbeddings,
    ResumableDropout,
    SparseEmbedding,
    concatenated_inputs,
    lay_out_fields,
    symbolic_inputs,
)

FIELDS = (Field("carrier", 0, 1), Field("dest", 4, 1), Field("earlier", 4, 3))
ROWS, DIM = 9, 2


def embeddings(table: np.ndarray) -> FieldEmbeddings:
    layer = FieldEmbeddings(FIELDS, ROWS, DIM)
    layer.build({})
    layer.set_weights([table])
    return layer


def ids(carrier: list[int], dest: list[int], earlier: list[list[int]]) -> dict[str, tf.Tensor]:
    named = {"carrier": carrier, "dest": dest, "earlier": earlier}
    return {name: tf.constant(values, tf.int64) for name, values in named.items()}


def averaged_by_numpy(table: np.ndarray, inputs: dict[str, tf.Tensor]) -> np.ndarray:
    """Plain twin: one row and field at a time."""
    rows = []
    for row in range(len(inputs["carrier"])):
        parts = []
        for field in FIELDS:
            present = [int(i) for i in np.ravel(inputs[field.name][row]) if i != 0]
            vectors = [table[field.offset + i] for i in present]
            parts.append(np.mean(vectors, axis=0) if vectors else np.zeros(DIM))
        rows.append(np.concatenate(parts))
    return np.array(rows, np.float32)


def test_fields_lie_one_after_the_other_and_share_a_vocabulary(flight_features: FittedFeatures) -> None:
    # carrier has 2 + 2 ids, dest 2 + 3; earlier looks up where dest does.
    assert lay_out_fields(flight_features, flight_features.spec.features) == (FIELDS, ROWS)


def test_a_field_is_the_mean_of_its_ids_by_hand() -> None:
    table = np.arange(ROWS * DIM, dtype=np.float32).reshape(ROWS, DIM)
    out = embeddings(table)(ids([2, 0], [1, 3], [[2, 4, 0], [0, 0, 0]])).numpy()
    # Row 2 is (4, 5); row 4 + 1 is (10, 11); the mean of rows 4 + 2 (12, 13) and 4 + 4 (16, 17) is (14, 15).
    assert out.tolist() == [[4, 5, 10, 11, 14, 15], [0, 0, 14, 15, 0, 0]]


@pytest.mark.parametrize("dense_rows", [1 << 17, 1], ids=["dense gradient", "sparse gradient"])
def test_fields_are_averaged_as_numpy_does(monkeypatch: pytest.MonkeyPatch, dense_rows: int) -> None:
    monkeypatch.setattr(layers, "DENSE_GRADIENT_ROWS", dense_rows)
    rng = np.random.default_rng(1)
    table = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    earlier = rng.integers(0, 5, (50, 3))
    inputs = ids(rng.integers(0, 4, 50).tolist(), rng.integers(0, 5, 50).tolist(), earlier.tolist())
    out = embeddings(table)(inputs)
    assert out.shape == (50, 6)
    np.testing.assert_allclose(out, averaged_by_numpy(table, inputs), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dense_rows", [1 << 17, 1], ids=["dense gradient", "sparse gradient"])
def test_an_empty_field_is_zeros_and_its_gradient_is_finite_and_zero(
    monkeypatch: pytest.MonkeyPatch, dense_rows: int
) -> None:
    monkeypatch.setattr(layers, "DENSE_GRADIENT_ROWS", dense_rows)
    layer = embeddings(np.ones((ROWS, DIM), np.float32))
    with tf.GradientTape() as tape:
        out = layer(ids([0], [0], [[0, 0, 0]]))
        loss = tf.reduce_sum(out**2 + out)
    gradient = tf.convert_to_tensor(tape.gradient(loss, layer.trainable_variables[0]))
    assert out.numpy().tolist() == [[0.0] * 6]
    assert gradient.numpy().tolist() == [[0.0] * DIM] * ROWS


def test_padding_gets_no_gradient_and_every_id_its_share() -> None:
    layer = embeddings(np.zeros((ROWS, DIM), np.float32))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(ids([2], [0], [[2, 2, 3]])))
    gradient = tf.convert_to_tensor(tape.gradient(loss, layer.trainable_variables[0])).numpy()
    expected = np.zeros((ROWS, DIM))
    expected[2] = 1  # the carrier
    expected[4 + 2], expected[4 + 3] = 2 / 3, 1 / 3
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_a_lookup_in_a_small_table_has_a_dense_gradient_and_in_a_large_one_a_sparse_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gradient() -> object:
        layer = embeddings(np.ones((ROWS, DIM), np.float32))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ids([2], [3], [[2, 3, 0]])))
        return tape.gradient(loss, layer.trainable_variables[0])

    assert not isinstance(gradient(), tf.IndexedSlices)
    monkeypatch.setattr(layers, "DENSE_GRADIENT_ROWS", ROWS - 1)
    assert isinstance(gradient(), tf.IndexedSlices)


def hashed_features() -> FittedFeatures:
    """Return features whose ids need no vocabulary: five tables of ids, of which two features share one."""
    spec = FeatureSpec(
        (
            Categorical("customer", hash_buckets=10),
            MultiValued("friends", max_length=2, vocabulary_of="customer"),
            Bucketed("age", buckets=3),
            Sequence("seen", time="seen_at", max_length=4, hash_buckets=20),
            Text("review", max_length=5, hash_buckets=30),
            Sparse("basket", size=50),
            Numeric("amount"),
        ),
        Label("late"),
        ("id",),
    )
    return FittedFeatures(spec, {}, {}, {"age": (20.0, 40.0)})


def test_every_kind_of_ids_has_its_rows_of_the_table() -> None:
    fields, rows = lay_out_fields(hashed_features(), hashed_features().spec.features)
    # Each table has two rows more than buckets: for what is missing, and for what is out of vocabulary.
    assert fields == (
        Field("customer", 0, 1),
        Field("friends", 0, 2),
        Field("age", 12, 1),
        Field("seen", 17, 4),
        Field("review", 39, 5),
    )
    assert rows == 71


def sparse(rows: list[dict[int, float]], size: int) -> tf.SparseTensor:
    entries = [(row, column, value) for row, values in enumerate(rows) for column, value in values.items()]
    places = tf.reshape(tf.constant([entry[:2] for entry in entries], tf.int64), [-1, 2])
    return tf.SparseTensor(places, tf.constant([entry[2] for entry in entries], tf.float32), [len(rows), size])


def test_a_sparse_vector_times_the_table_is_its_embedding() -> None:
    table = np.random.default_rng(2).normal(size=(6, 3)).astype(np.float32)
    layer = SparseEmbedding(6, 3)
    layer.build(None)
    layer.set_weights([table])
    inputs = sparse([{1: 2.0, 4: -1.0}, {}, {0: 0.5}, {}], size=6)
    np.testing.assert_allclose(layer(inputs), tf.sparse.to_dense(inputs).numpy() @ table, rtol=1e-6)


def test_a_long_sparse_vector_is_never_made_dense() -> None:
    """Of a table of a million rows, a batch touches those that it names (F9)."""
    layer = SparseEmbedding(1_000_000, 2)
    layer.build(None)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(sparse([{7: 2.0, 999_999: 1.0}, {7: 1.0}], size=1_000_000)))
    gradient = tape.gradient(loss, layer.trainable_variables[0])
    assert isinstance(gradient, tf.IndexedSlices)
    assert gradient.indices.numpy().tolist() == [7, 999_999, 7]
    assert gradient.values.numpy().tolist() == [[2.0, 2.0], [1.0, 1.0], [1.0, 1.0]]


def test_every_form_of_feature_reaches_a_model() -> None:
    fitted = hashed_features()
    inputs = symbolic_inputs(fitted.spec.features)
    model = tf_keras.Model(inputs, concatenated_inputs(fitted, fitted.spec.features, inputs, embedding_dim=3))
    batch = {
        "customer": tf.constant([2, 0], tf.int64),
        "friends": tf.constant([[3, 4], [0, 0]], tf.int64),
        "age": tf.constant([2, 4], tf.int64),
        "seen": tf.zeros([2, 4], tf.int64),
        "review": tf.ones([2, 5], tf.int64),
        "basket": sparse([{3: 1.0}, {}], size=50),
        "amount": tf.constant([0.5, -1.0]),
    }
    joined = model(batch).numpy()
    # Five fields and a sparse vector of width 3, and a number.
    assert joined.shape == (2, 19)
    assert joined[:, -1].tolist() == [0.5, -1.0]
    assert joined[1, 15:18].tolist() == [0.0, 0.0, 0.0]
    assert joined[0, 15:18].tolist() == model.get_layer("basket_embedding").get_weights()[0][3].tolist()


def dropout(seed: int = 3, rate: float = 0.5) -> ResumableDropout:
    return ResumableDropout(rate, seed)


ONES = tf.ones((20, 30))


def test_dropout_repeats_its_sequence_of_masks_for_a_seed() -> None:
    one, other = dropout(), dropout()
    masks = [one(ONES, training=True).numpy() for _ in range(3)]
    assert all((other(ONES, training=True).numpy() == mask).all() for mask in masks)
    assert (masks[0] != masks[1]).any()
    assert (dropout(seed=4)(ONES, training=True).numpy() != masks[0]).any()


def test_dropout_drops_its_share_and_scales_the_rest() -> None:
    values, counts = np.unique(dropout(rate=0.25)(tf.ones((100, 100)), training=True).numpy(), return_counts=True)
    assert values.tolist() == [0.0, pytest.approx(4 / 3)]
    assert counts[0] / 10_000 == pytest.approx(0.25, abs=0.02)


def test_dropout_counts_training_calls_alone() -> None:
    layer = dropout()
    assert layer(ONES).numpy().tolist() == ONES.numpy().tolist()
    layer(ONES, training=True)
    layer(ONES, training=False)
    layer(ONES, training=True)
    assert [int(weight) for weight in layer.get_weights()] == [2]
    assert not layer.trainable_variables


def test_dropout_goes_on_where_a_checkpoint_left_it(tmp_path: Path) -> None:
    unbroken, resumed = dropout(), dropout()
    for _ in range(2):
        unbroken(ONES, training=True)
    path = tf.train.Checkpoint(layer=unbroken).save(str(tmp_path / "ckpt"))
    resumed(ONES, training=True)
    tf.train.Checkpoint(layer=resumed).restore(path).assert_consumed()
    assert (resumed(ONES, training=True).numpy() == unbroken(ONES, training=True).numpy()).all()


def test_inputs_have_the_types_of_the_transform(flight_features: FittedFeatures) -> None:
    found = {
        name: (tuple(tensor.shape), tensor.dtype)
        for name, tensor in symbolic_inputs(flight_features.spec.features).items()
    }
    assert found == {
        "distance": ((None,), tf.float32),
        "carrier": ((None,), tf.int64),
        "dest": ((None,), tf.int64),
        "earlier": ((None, 3), tf.int64),
    }


@pytest.mark.parametrize("kept", [slice(0, 1), slice(1, 2), slice(0, 2)], ids=["numeric", "categorical", "both"])
def test_any_mix_of_features_can_be_joined(flight_features: FittedFeatures, kept: slice) -> None:
    features = flight_features.spec.features[kept]
    inputs = symbolic_inputs(features)
    joined = layers.concatenated_inputs(flight_features, features, inputs, embedding_dim=4)
    width = sum(4 if isinstance(feature, Categorical | MultiValued) else 1 for feature in features)
    assert tuple(joined.shape) == (None, width)
    tf_keras.Model(inputs, joined)
