"""F14: lists of ids that are read in order: embeddings that stay in it, and a state that padding does not move."""

from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf

from mirrorspark.models.layers.input import Field, FieldEmbeddings
from mirrorspark.models.layers.recurrent import LastState, OrderedEmbeddings, without_common_padding

FIELDS = (Field("device", 0, 1), Field("watched", 4, 3), Field("tags", 10, 2))
ROWS, DIM, UNITS = 15, 2, 3
LISTS: Sequence[Sequence[int]] = ([], [5], [2, 3, 4, 5, 2, 6], [4, 2], [3, 3, 3])


def padded(rows: Sequence[Sequence[int]], width: int) -> tf.Tensor:
    return tf.constant([[*row, *[0] * (width - len(row))] for row in rows], tf.int64)


def table() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float32)


def embeddings(ordered: Sequence[str], fields: Sequence[Field] = FIELDS) -> OrderedEmbeddings:
    layer = OrderedEmbeddings(fields, ordered, ROWS, DIM)
    layer.build({})
    layer.set_weights([table()])
    return layer


@pytest.mark.parametrize("width", [1, 3, 7])
def test_ordered_fields_stay_in_their_order_and_the_others_are_averaged_as_ever(width: int) -> None:
    inputs = {
        "device": tf.constant([2, 0], tf.int64),
        "watched": padded([[5], []], width),
        "tags": tf.constant([[2, 3], [4, 0]], tf.int64),
    }
    watched, others = embeddings(["watched"])(inputs)
    assert watched.shape == (2, width, DIM)
    np.testing.assert_array_equal(watched[0, 0], table()[4 + 5])
    assert not watched.numpy()[0, 1:].any()
    assert not watched.numpy()[1].any()
    averaged = FieldEmbeddings((FIELDS[0], FIELDS[2]), ROWS, DIM)
    averaged.build({})
    averaged.set_weights([table()])
    np.testing.assert_array_equal(others, averaged(inputs))


def test_ordered_fields_are_not_averaged() -> None:
    (watched,) = embeddings(["watched"], FIELDS[1:2])({"watched": padded([[2, 3]], 2)})
    np.testing.assert_array_equal(watched, table()[np.newaxis, [6, 7]])


def test_a_table_knows_all_of_its_fields() -> None:
    assert set(embeddings(["watched"]).fields) == set(FIELDS)


@pytest.mark.parametrize("dense_rows", [1 << 17, 1], ids=["dense gradient", "sparse gradient"])
def test_padding_gets_no_gradient(monkeypatch: pytest.MonkeyPatch, dense_rows: int) -> None:
    monkeypatch.setattr("mirrorspark.models.layers.input.embeddings.DENSE_GRADIENT_ROWS", dense_rows)
    layer = embeddings(["watched"], FIELDS[1:2])
    with tf.GradientTape() as tape:
        (watched,) = layer({"watched": padded([[2, 3, 2], []], 4)}, training=True)
        loss = tf.reduce_sum(watched)
    gradient = tf.convert_to_tensor(tape.gradient(loss, layer.trainable_variables[0])).numpy()
    assert gradient[:, 0].tolist() == [0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0]


@pytest.fixture(scope="module")
def last_state() -> LastState:
    """Return a layer whose weights are large enough for a wrong step to be seen."""
    layer = LastState(UNITS)
    layer([tf.zeros((1, 1, DIM)), tf.ones((1, 1), tf.int64)])
    rng = np.random.default_rng(2)
    layer.set_weights([rng.normal(size=weight.shape).astype(np.float32) for weight in layer.get_weights()])
    return layer


def states(layer: LastState, rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    ids = padded(rows, width)
    return layer([tf.gather(table(), ids), ids]).numpy()


def state_by_numpy(layer: LastState, row: Sequence[int]) -> np.ndarray:
    """Plain twin: one id after the other; Keras has the gates in the order input, forget, cell, output."""
    kernel, recurrent, bias = (weight.astype(np.float64) for weight in layer.get_weights())
    hidden, cell = np.zeros(UNITS), np.zeros(UNITS)
    for number in row:
        gates = table()[number] @ kernel + hidden @ recurrent + bias
        take, forget, give = (1 / (1 + np.exp(-gates[place : place + UNITS])) for place in (0, UNITS, 3 * UNITS))
        cell = forget * cell + take * np.tanh(gates[2 * UNITS : 3 * UNITS])
        hidden = give * np.tanh(cell)
    return hidden


@pytest.mark.parametrize("width", [6, 7, 20])
def test_the_state_is_that_after_the_last_id_however_a_list_is_padded(last_state: LastState, width: int) -> None:
    expected = [state_by_numpy(last_state, row) for row in LISTS]
    np.testing.assert_allclose(states(last_state, LISTS, width), expected, rtol=0, atol=1e-6)


def test_the_state_of_an_empty_list_is_zero(last_state: LastState) -> None:
    assert states(last_state, [[], []], 1).tolist() == [[0.0] * UNITS] * 2


def test_gradients_do_not_depend_on_padding(last_state: LastState) -> None:
    def gradients(width: int) -> list[np.ndarray]:
        ids = padded(LISTS, width)
        embedded = tf.Variable(tf.gather(table(), ids))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(last_state([embedded, ids]) ** 2)
        to_embedded, *others = tape.gradient(loss, [embedded, *last_state.trainable_variables])
        assert not tf.boolean_mask(to_embedded, tf.equal(ids, 0)).numpy().any()
        return [to_embedded.numpy()[:, :6], *(gradient.numpy() for gradient in others)]

    for short, long in zip(gradients(6), gradients(11), strict=True):
        np.testing.assert_allclose(long, short, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "width", "kept"),
    [(LISTS, 20, 6), (LISTS, 6, 6), ([[], [2]], 5, 1), ([[], []], 5, 1), ([[2, 0, 3]], 5, 3)],
    ids=["padding", "none", "one id", "no id", "a gap"],
)
def test_padding_common_to_all_rows_is_cut_except_one_column(
    rows: Sequence[Sequence[int]], width: int, kept: int
) -> None:
    given = {"watched": padded(rows, width), "device": tf.ones(len(rows), tf.int64)}
    found = without_common_padding(given, ["watched"])
    assert found["watched"].numpy().tolist() == given["watched"][:, :kept].numpy().tolist()
    assert found["device"] is given["device"]


def test_a_batch_of_no_rows_can_be_cut() -> None:
    assert without_common_padding({"watched": tf.zeros((0, 5), tf.int64)}, ["watched"])["watched"].shape == (0, 1)
