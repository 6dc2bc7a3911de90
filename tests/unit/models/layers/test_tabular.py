"""Embedded numbers, crosses and ensembles compute what their papers say, for every kind of label (F3, L18)."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import Label, Numeric, Sparse
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models import catalog
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.models.layers.tabular import (
    FactorProducts,
    LowRankCross,
    MemberDense,
    MemberHeads,
    NumberFactors,
    Periodic,
    PiecewiseLinear,
    bin_edges,
)
from mirrorspark.models.settings import ModelSettingsError

EVERYTHING: dict[str, Any] = {
    "hidden_units": (8, 4),
    "dropout": 0.2,
    "numeric_embedding": "piecewise",
    "numeric_dim": 3,
    "cross_layers": 2,
    "cross_rank": 2,
    "factor_dim": 2,
    "members": 5,
    "plain_members": 2,
    "plain_units": (6,),
}
LABELS = {
    "multi_field": Label("late"),
    "multi_label": Label("late", kind="multi_label", classes=5),
    "multi_class": Label("late", kind="multi_class", classes=5),
    "regression": Label("late", kind="numeric"),
}


def with_quantiles(fitted: FittedFeatures, label: Label = LABELS["multi_field"]) -> FittedFeatures:
    statistics = {**fitted.statistics, label.name: NumericStatistics(2.0, 3.0, 0.0, 9.0, 4)}
    return dataclasses.replace(
        fitted,
        spec=dataclasses.replace(fitted.spec, label=label),
        statistics=statistics,
        quantiles={"distance": (50.0, 150.0)},
    )


def inputs(rows: int) -> dict[str, tf.Tensor]:
    rng = np.random.default_rng(1)
    return {
        "distance": tf.constant(rng.normal(size=rows), tf.float32),
        "carrier": tf.constant(rng.integers(0, 4, rows)),
        "dest": tf.constant(rng.integers(0, 5, rows)),
        "earlier": tf.constant(rng.integers(0, 5, (rows, 3))),
    }


def test_a_number_fills_its_bins_one_after_the_other() -> None:
    layer = PiecewiseLinear([np.array([0.0, 1.0, 3.0]), np.array([5.0, 9.0]), np.array([7.0])], dim=2)
    encoded = layer.encode(tf.constant([[2.0, 4.0, 7.0], [-1.0, 6.0, 8.0], [4.0, 10.0, 0.0]])).numpy()
    assert encoded.tolist() == [
        [[1.0, 0.5], [0.0, 0.0], [0.0, 0.0]],  # the second number has one bin, the constant none
        [[0.0, 0.0], [0.25, 0.0], [0.0, 0.0]],
        [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]],
    ]


def test_edges_are_in_units_of_the_input(flight_features: FittedFeatures) -> None:
    # Mean 100, standard deviation 50, from 0 to 200.
    assert bin_edges(with_quantiles(flight_features), Numeric("distance")).tolist() == [-2.0, -1.0, 1.0, 2.0]
    with pytest.raises(ModelSettingsError, match=r"quantiles of feature 'distance'.*convert the data again"):
        bin_edges(flight_features, Numeric("distance"))


def test_embeddings_of_a_number_are_its_own() -> None:
    given = np.array([[0.5, 2.0], [1.0, -1.0]], np.float32)
    layer = Periodic(3, 2, 0.5)
    found = layer(given).numpy()
    frequency, kernel, bias = (weight.numpy() for weight in layer.weights)
    for number in range(2):
        angles = 2 * np.pi * given[:, [number]] * frequency[number]
        expected = np.concatenate([np.cos(angles), np.sin(angles)], 1) @ kernel[number] + bias[number]
        np.testing.assert_allclose(found[:, number * 3 : number * 3 + 3], np.maximum(expected, 0), atol=1e-6)


def test_a_cross_multiplies_the_features() -> None:
    layer = LowRankCross(1)
    first, last = tf.constant([[2.0, 3.0]]), tf.constant([[5.0, 7.0]])
    layer([first, last])
    layer.set_weights([np.array([[1.0], [2.0]]), np.array([[10.0, 100.0]]), np.array([1.0, 2.0])])
    # 5 + 2 * 7 = 19; 2 * (190 + 1) + 5, and 3 * (1,900 + 2) + 7.
    assert layer([first, last]).numpy().tolist() == [[387.0, 5713.0]]


def test_a_cross_is_that_of_tensorflow_recommenders() -> None:
    """#53: tables do without the package; towers have its layer."""
    first, last = (tf.random.stateless_normal([5, 6], (seed, 1)) for seed in (1, 2))
    ours, theirs = LowRankCross(3), tfrs.layers.dcn.Cross(projection_dim=3)
    for layer in (lambda: ours([first, last]), lambda: theirs(first, last)):
        layer()
    weights = [np.random.default_rng(1).normal(size=weight.shape) for weight in ours.get_weights()]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    np.testing.assert_array_equal(ours([first, last]), theirs(first, last))


@pytest.mark.parametrize("members", [1, 2])
def test_factors_are_multiplied_over_all_pairs_of_features(members: int) -> None:
    """R8, F3: two fields and a number of 3, whose vector is multiplied by it; each member has factors of its own."""
    fields = tf.constant([np.arange(1.0, 1.0 + 4 * members)], tf.float32)
    layer = NumberFactors(2 * members)
    layer(tf.constant([[3.0]]))
    layer.set_weights([np.full((1, 2 * members), 0.5)])
    found = FactorProducts(2, members)(tf.concat([fields, layer(tf.constant([[3.0]]))], axis=1)).numpy()
    one, other = fields.numpy().reshape(2, members, 2)
    expected = one * other + 1.5 * (one + other)
    np.testing.assert_allclose(found[0], expected[0] if members == 1 else expected)


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("kept", [slice(0, 1), slice(1, None)], ids=["numbers alone", "tokens alone"])
def test_factors_need_no_feature_of_a_certain_kind(name: str, kept: slice, flight_features: FittedFeatures) -> None:
    spec = dataclasses.replace(flight_features.spec, features=flight_features.spec.features[kept])
    fitted = with_quantiles(dataclasses.replace(flight_features, spec=spec), LABELS[name])
    model = catalog.architecture(name).build(catalog.settings(name, {"factor_dim": 2}), fitted, 1)
    assert model({key: value for key, value in inputs(4).items() if key in model.input}).shape[0] == 4


@pytest.mark.parametrize("members", [1, 2])
def test_a_linear_model_of_sparse_features_is_added_to_every_members_outputs(members: int) -> None:
    spec = FeatureSpec((Sparse("words", size=4),), LABELS["multi_label"], keys=("row",))
    fitted = FittedFeatures(spec, {}, {})
    options = {"embedding_dim": 2, "hidden_units": (3,), "members": members, "linear": True}
    model = catalog.architecture("multi_label").build(catalog.settings("multi_label", options), fitted, 1)
    words = np.array([[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    before = model({"words": tf.sparse.from_dense(words)}).numpy()
    (table,) = (weight for weight in model.weights if weight.name.startswith("linear_words"))
    assert not table.numpy().any()
    table.assign(np.arange(20.0).reshape(4, 5))
    change = model({"words": tf.sparse.from_dense(words)}).numpy() - before
    expected = words @ table.numpy()
    np.testing.assert_allclose(change, np.stack([expected] * 2, axis=1) if members == 2 else expected, rtol=1e-5)


def test_a_linear_model_without_sparse_features_is_refused(flight_features: FittedFeatures) -> None:
    with pytest.raises(ModelSettingsError, match="linear is true, but there is no sparse feature"):
        catalog.check_features("multi_field", {"linear": True}, flight_features.spec)


def test_a_member_is_a_network_of_its_own_scales() -> None:
    rng = np.random.default_rng(1)
    given = rng.normal(size=(4, 6)).astype(np.float32)
    layers = [MemberDense(3, 5, seed=1), MemberDense(3, 4, seed=2), MemberHeads(2)]
    stack = tf_keras.Sequential(layers)
    stack(given)
    assert set(np.unique(layers[0].get_weights()[1])) == {-1.0, 1.0}
    assert set(np.unique(layers[1].get_weights()[1])) == {1.0}
    stack.set_weights([rng.normal(size=weight.shape) for weight in stack.get_weights()])
    found = stack(given).numpy()
    for member in range(3):
        alone = given
        for layer in layers[:2]:
            kernel, scale_in, scale_out, bias = layer.get_weights()
            alone = np.maximum((alone * scale_in[member]) @ kernel * scale_out[member] + bias[member], 0)
        kernel, bias = layers[2].get_weights()
        np.testing.assert_allclose(found[:, member], alone @ kernel[member] + bias[member], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "multi_field",
        "multi_class",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("multi_label", "regression")),
    ],
)
def test_an_ensemble_predicts_the_mean_and_learns_each_members_loss(name: str, flight_features: FittedFeatures) -> None:
    fitted = with_quantiles(flight_features, LABELS[name])
    architecture = catalog.architecture(name)
    model = architecture.build(catalog.settings(name, EVERYTHING), fitted, 1)
    given = inputs(16)
    members = model(given, training=False).numpy().astype(np.float64)
    assert members.shape == (16, 5, 5 if name.startswith("multi_") and name != "multi_field" else 1)
    assert len(np.unique(members[0, :, 0])) == 5
    found = next(iter(architecture.predict(model, given).values())).numpy()
    exponentials = np.exp(members)
    shares = {"multi_class": exponentials / exponentials.sum(2, keepdims=True), "regression": members}
    expected = shares.get(name, 1 / (1 + np.exp(-members))).mean(1)
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-5, atol=1e-6)

    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, (16, 5) if name == "multi_label" else 16).astype(np.float32)
    weight = np.array([1.0] * 12 + [0.0] * 4, np.float32)
    compile_model(model, architecture.TASK, build_optimizer(OptimizerSettings("adam", 0.01)))
    model.run_eagerly = True  # which takes less time than the traces of an evaluation and of a few steps
    measured = model.evaluate(given, truth, sample_weight=weight, batch_size=16, verbose=0, return_dict=True)
    actual = truth[:12].astype(np.float64)
    predicted = expected[:12]
    if name == "regression":
        assert measured["rmse"] == pytest.approx(np.sqrt(np.mean((predicted[:, 0] - actual) ** 2)), rel=1e-4)
        each = ((members[:12, :, 0] - actual[:, None]) / 3.0) ** 2  # 3 is the label's standard deviation
    elif name == "multi_class":
        rows = np.arange(12)
        assert measured["log_loss"] == pytest.approx(-np.log(predicted[rows, actual.astype(int)]).mean(), rel=1e-4)
        each = -np.log(shares["multi_class"][:12][rows, :, actual.astype(int)])
    else:
        wide = actual.reshape(12, -1)
        found_loss = -(wide * np.log(predicted) + (1 - wide) * np.log(1 - predicted)).mean()
        assert measured["log_loss"] == pytest.approx(found_loss, rel=1e-4)
        sigmoids = 1 / (1 + np.exp(-members[:12]))
        each = -np.log(np.where(wide[:, None] == 1, sigmoids, 1 - sigmoids)).mean(2)
    # Keras divides by all 16 rows.
    assert measured["loss"] == pytest.approx(each.mean(1).sum() / 16, rel=1e-4)
    assert model.fit(given, truth, sample_weight=weight, epochs=8, verbose=0).history["loss"][-1] < measured["loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"numeric_embedding": "fourier"}, "numeric_embedding is 'fourier'; use one of"),
        ({"members": 0}, "members is 0; use a whole number from 1 on"),
        ({"members": 4, "hidden_units": ()}, "members is 4, but there are no hidden layers"),
        ({"members": 4, "plain_members": 3}, "plain_members is 3, of 4 members; use two at least, leave two others"),
        ({"members": 4, "plain_members": 2}, "plain_members is 2; it needs a numeric_embedding and plain_units"),
        ({"cross_layers": -1}, "cross_layers is -1"),
        ({"factor_dim": -1}, "factor_dim is -1"),
        ({"periodic_scale": 0.0}, "periodic_scale is 0.0"),
        ({"heads": "softmax", "members": 2}, "heads is softmax, and members is 2"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelSettingsError, match=re.escape(message)):
        catalog.settings("multi_label", options)


def test_without_numbers_an_embedding_of_numbers_changes_nothing(flight_features: FittedFeatures) -> None:
    spec = FeatureSpec(flight_features.spec.features[1:], Label("late"), keys=("flight_id",))
    fitted = FittedFeatures(spec, flight_features.vocabularies, {})
    model = catalog.architecture("multi_field").build(catalog.settings("multi_field", EVERYTHING), fitted, 1)
    assert not [weight.name for weight in model.weights if weight.name.startswith("embedded_numbers")]
