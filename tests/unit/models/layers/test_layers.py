"""Layers against NumPy: averaged fields (F3), sparse vectors (F9), heads fused (S6), dropout that resumes (T6)."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import (
    Bucketed,
    Categorical,
    Label,
    MultiValued,
    Numeric,
    Sequence,
    Sparse,
    Text,
)
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models import layers
from mirrorspark.models.layers import ResumableDropout, SoftmaxHeads, TwoWayHeads
from mirrorspark.models.layers.input import (
    Field,
    FieldEmbeddings,
    SparseEmbedding,
    concatenated_inputs,
    lay_out_fields,
    lists_of_any_length,
    symbolic_inputs,
)
from mirrorspark.models.serving.preprocessing import sparse_tensor

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
    monkeypatch.setattr("mirrorspark.models.layers.input.embeddings.DENSE_GRADIENT_ROWS", dense_rows)
    rng = np.random.default_rng(1)
    table = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    earlier = rng.integers(0, 5, (50, 3))
    inputs = ids(rng.integers(0, 4, 50).tolist(), rng.integers(0, 5, 50).tolist(), earlier.tolist())
    out = embeddings(table)(inputs)
    assert out.shape == (50, 6)
    np.testing.assert_allclose(out, averaged_by_numpy(table, inputs), rtol=1e-6, atol=1e-7)


LISTS: list[list[int]] = [[], [4], [2, 3, 4], [1, 1]]
IDS_OF_ANY_LENGTH = {
    "carrier": tf.TensorSpec([None], tf.int64),
    "dest": tf.TensorSpec([None], tf.int64),
    "earlier": tf.TensorSpec([None, None], tf.int64),
}


@pytest.mark.parametrize("width", [3, 4, 20])
def test_a_list_has_the_same_mean_however_it_is_padded(width: int) -> None:
    """F14: where the graph knows the length, and where it learns it when it is called."""
    layer = embeddings(np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32))
    others = [2, 0, 3, 1], [1, 2, 0, 4]
    expected = averaged_by_numpy(layer.get_weights()[0], ids(*others, [[*row, 0, 0, 0][:3] for row in LISTS]))
    inputs = ids(*others, [[*row, *[0] * (width - len(row))] for row in LISTS])
    np.testing.assert_allclose(layer(inputs), expected, rtol=1e-6, atol=1e-7)
    graph = tf.function(lambda given: layer(given, training=False), input_signature=[IDS_OF_ANY_LENGTH])
    np.testing.assert_allclose(graph(inputs), expected, rtol=1e-6, atol=1e-7)


def test_a_graph_that_knows_the_length_of_its_lists_does_not_compute_it() -> None:
    """All batches of a training have one length: that lists may have any costs a step nothing."""
    layer = embeddings(np.ones((ROWS, DIM), np.float32))
    known = IDS_OF_ANY_LENGTH | {"earlier": tf.TensorSpec([None, 3], tf.int64)}

    def operations(signature: dict[str, tf.TensorSpec]) -> set[str]:
        call = tf.function(lambda given: layer(given, training=True)).get_concrete_function(signature)
        return {operation.type for operation in call.graph.get_operations()}

    assert "Shape" in operations(IDS_OF_ANY_LENGTH)
    assert "Shape" not in operations(known)


@pytest.mark.parametrize("dense_rows", [1 << 17, 1], ids=["dense gradient", "sparse gradient"])
def test_an_empty_field_is_zeros_and_its_gradient_is_finite_and_zero(
    monkeypatch: pytest.MonkeyPatch, dense_rows: int
) -> None:
    monkeypatch.setattr("mirrorspark.models.layers.input.embeddings.DENSE_GRADIENT_ROWS", dense_rows)
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
    monkeypatch.setattr("mirrorspark.models.layers.input.embeddings.DENSE_GRADIENT_ROWS", ROWS - 1)
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
    for training in (True, False):
        np.testing.assert_allclose(layer(inputs, training), tf.sparse.to_dense(inputs).numpy() @ table, rtol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_rows_with_repeats_and_empty_rows_are_multiplied_as_scipy_does(training: bool) -> None:
    """S3: training and serving take different ways to the same product."""
    from scipy.sparse import csr_array

    rng = np.random.default_rng(8)
    lengths = rng.integers(0, 5, 300)
    columns, values = rng.integers(0, 40, lengths.sum()), rng.normal(size=lengths.sum()).astype(np.float32)
    expected = csr_array((values, columns, np.concatenate([[0], np.cumsum(lengths)])), shape=(300, 40))
    layer = SparseEmbedding(40, 7)
    layer.build(None)
    found = layer(sparse_tensor(40, tf.constant(columns), tf.constant(values), tf.constant(lengths)), training=training)
    np.testing.assert_allclose(found, expected @ layer.get_weights()[0], rtol=1e-5, atol=1e-7)


def test_serving_a_sparse_vector_holds_no_embedding_of_each_entry() -> None:
    """S3: those of 8,192 rows of 100 entries and 128 numbers would take 420 MB."""
    layer = SparseEmbedding(50, 3)
    layer.build(None)
    call = tf.function(lambda inputs: layer(inputs)).get_concrete_function(tf.SparseTensorSpec([None, 50]))
    operations = {operation.type for operation in call.graph.get_operations()}
    assert "SparseMatrixMatMul" in operations
    assert not {kind for kind in operations if "Gather" in kind}
    assert call(sparse([], size=50)).shape == (0, 3)


def test_a_long_sparse_vector_is_never_made_dense() -> None:
    """A batch touches only the rows that it names in a table of a million rows (F9)."""
    layer = SparseEmbedding(1_000_000, 2)
    layer.build(None)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(sparse([{7: 2.0, 999_999: 1.0}, {7: 1.0}], size=1_000_000), training=True))
    gradient = tape.gradient(loss, layer.trainable_variables[0])
    assert isinstance(gradient, tf.IndexedSlices)
    assert gradient.indices.numpy().tolist() == [7, 999_999, 7]
    assert gradient.values.numpy().tolist() == [[2.0, 2.0], [1.0, 1.0], [1.0, 1.0]]


def heads_and_twins(classes: tuple[int, ...]) -> tuple[SoftmaxHeads, list[tf_keras.layers.Dense]]:
    """Return fused heads on five units, and a layer of Keras with the same weights for each of them."""
    rng = np.random.default_rng(4)
    kernels = [rng.normal(size=(5, width)).astype(np.float32) for width in classes]
    biases = [rng.normal(size=width).astype(np.float32) for width in classes]
    fused = SoftmaxHeads(classes)
    fused.build((None, 5))
    fused.set_weights([np.concatenate(kernels, axis=1), np.concatenate(biases)])
    twins = [tf_keras.layers.Dense(width, activation="softmax") for width in classes]
    for twin, kernel, bias in zip(twins, kernels, biases, strict=True):
        twin.build((None, 5))
        twin.set_weights([kernel, bias])
    return fused, twins


HIDDEN = tf.constant(np.random.default_rng(6).normal(size=(50, 5)).astype(np.float32))


@pytest.mark.parametrize("classes", [(2, 2, 2), (2, 5, 3, 2), (4,), (2,) * 300], ids=str)
def test_fused_heads_equal_a_softmax_layer_for_each(classes: tuple[int, ...]) -> None:
    """S6."""
    fused, twins = heads_and_twins(classes)
    expected = np.concatenate([twin(HIDDEN) for twin in twins], axis=1)
    np.testing.assert_allclose(tf.exp(fused(HIDDEN)), expected, rtol=0, atol=1e-6)


def test_two_way_heads_equal_a_softmax_layer_for_each() -> None:
    """S6: by the sigmoid of one difference for each label."""
    fused, twins = heads_and_twins((2,) * 300)
    two_way = TwoWayHeads(300)
    two_way.build((None, 5))
    two_way.set_weights([np.stack([weight[..., ::2], weight[..., 1::2]]) for weight in fused.get_weights()])
    expected = np.stack([twin(HIDDEN).numpy()[:, 1] for twin in twins], axis=1)
    np.testing.assert_allclose(tf.sigmoid(two_way(HIDDEN)), expected, rtol=0, atol=1e-6)


def test_heads_stay_finite_where_a_probability_is_0_or_1() -> None:
    fused, _ = heads_and_twins((2, 3))
    assert np.isfinite(fused(HIDDEN * 1e4)).all()


def test_heads_begin_as_layers_of_their_own_would() -> None:
    """Drawn as one layer of 4,000 outputs, the kernel's bound would be 0.04."""
    layer = TwoWayHeads(2_000)
    layer.build((None, 128))
    assert np.abs(layer.get_weights()[0]).max() == pytest.approx((6 / (128 + 2)) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("classes", [(), (2, 1), (0,)])
def test_a_head_needs_two_classes(classes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"softmax heads of \[.*\] classes; give one head or more, each of 2 or more"):
        SoftmaxHeads(classes)


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


def test_a_model_says_which_lists_it_takes_of_any_length() -> None:
    """F14: by its Keras inputs; a model that is not a graph of layers has no such list."""
    fitted = hashed_features()
    features = fitted.spec.features

    def model(*, any_length: bool) -> tf_keras.Model:
        inputs = symbolic_inputs(features, any_length=any_length)
        return tf_keras.Model(inputs, concatenated_inputs(fitted, features, inputs, embedding_dim=3))

    assert set(lists_of_any_length(model(any_length=True))) == {"friends", "seen", "review"}
    assert lists_of_any_length(model(any_length=False)) == ()
    assert lists_of_any_length(tf_keras.Model()) == ()
    # A tower may be a layer or a module.
    assert lists_of_any_length(tf_keras.layers.Dense(1)) == ()
    assert lists_of_any_length(tf.Module()) == ()


@pytest.mark.parametrize("kept", [slice(0, 1), slice(1, 2), slice(0, 2)], ids=["numeric", "categorical", "both"])
def test_any_mix_of_features_can_be_joined(flight_features: FittedFeatures, kept: slice) -> None:
    features = flight_features.spec.features[kept]
    inputs = symbolic_inputs(features)
    joined = layers.input.concatenated_inputs(flight_features, features, inputs, embedding_dim=4)
    width = sum(4 if isinstance(feature, Categorical | MultiValued) else 1 for feature in features)
    assert tuple(joined.shape) == (None, width)
    tf_keras.Model(inputs, joined)
