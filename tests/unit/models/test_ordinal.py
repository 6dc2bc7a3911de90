"""The ordinal model: rising thresholds on one score, against NumPy (McCullagh 1980)."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from scipy.special import expit

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Label
from mirrorspark.models import catalog, ordinal
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.layers import OrdinalHead


def head(classes: int) -> OrdinalHead:
    """Return a head whose thresholds are drawn at random."""
    layer = OrdinalHead(classes)
    layer(tf.zeros([1, 1]))
    random = np.random.default_rng(classes)
    layer.set_weights([random.normal(size=weight.shape) / 5 for weight in layer.weights])
    return layer


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_probabilities_are_differences_of_sigmoids_and_sum_to_one(classes: int) -> None:
    layer, scores = head(classes), np.linspace(-6, 6, 13)
    thresholds = layer.thresholds().numpy().astype(np.float64)
    assert (np.diff(thresholds) > 0).all()
    up_to = np.column_stack([np.zeros(13), expit(thresholds - scores[:, None]), np.ones(13)])
    found = np.exp(layer(tf.constant(scores[:, None], tf.float32)).numpy())
    np.testing.assert_allclose(found, np.diff(up_to, axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    # The higher the score, the higher the rank.
    assert (np.diff(found @ np.arange(classes)) > 0).all()


def test_two_classes_are_a_logistic_regression_and_all_begin_with_equal_probabilities() -> None:
    scores = tf.constant([[-3.0], [0.0], [2.5]])
    np.testing.assert_allclose(np.exp(OrdinalHead(2)(scores).numpy())[:, 1], expit([-3.0, 0.0, 2.5]), rtol=1e-5)
    np.testing.assert_allclose(np.exp(OrdinalHead(5)(tf.zeros([1, 1])).numpy()), np.full((1, 5), 0.2), rtol=1e-5)
    # Members of an ensemble have a dimension of their own.
    assert OrdinalHead(3)(tf.zeros([4, 2, 1])).shape == (4, 2, 3)
    with pytest.raises(ValueError, match="an ordinal head of 1 classes; give 2 or more"):
        OrdinalHead(1)


@pytest.mark.parametrize("gap", [-200.0, 0.0, 200.0], ids=["no gap", "a gap", "a wide gap"])
def test_losses_and_gradients_are_finite_at_extremes(gap: float) -> None:
    layer = OrdinalHead(4)
    scores = tf.Variable([[-1e4], [-40.0], [0.0], [40.0], [1e4]])
    layer(scores)
    layer.set_weights([np.zeros(1), np.array([gap, 0.5])])
    for label in range(4):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.fill([5], label), layer(scores))
        assert np.isfinite(losses).all()
        for gradient in tape.gradient(losses, [scores, *layer.trainable_weights]):
            assert np.isfinite(gradient).all()


def test_a_network_has_one_score_and_the_classes_of_the_label_in_their_order(flight_features: FittedFeatures) -> None:
    label = Label("delay", "ordinal", classes=("none", "short", "long"))
    fitted = dataclasses.replace(flight_features, spec=dataclasses.replace(flight_features.spec, label=label))
    assert (fitted.classes, fitted.class_names) == (3, ("none", "short", "long"))
    settings = catalog.settings("ordinal", {"hidden_units": [4], "members": 2})
    model = ordinal.build(settings, fitted, 1)
    assert model.output_shape == (None, 2, 3)
    assert model.get_layer("ordinal_score").weights[0].shape == (2, 4, 1)
    assert [weight.shape.as_list() for weight in model.get_layer("ordinal_thresholds").weights] == [[1], [1]]


def test_a_model_of_two_classes_learns_their_rate(flight_features: FittedFeatures) -> None:
    """Nothing but the threshold is left to learn: of four rows three are late, so that its log-odds are ln 3."""
    label = Label("delay", "ordinal", classes=("none", "late"))
    fitted = dataclasses.replace(flight_features, spec=dataclasses.replace(flight_features.spec, label=label))
    model = ordinal.build(catalog.settings("ordinal", {"hidden_units": []}), fitted, 1)
    compile_model(model, "multi_class", tf_keras.optimizers.SGD(0.01))
    inputs = {
        "distance": tf.zeros(4),
        "carrier": tf.zeros(4, tf.int64),
        "dest": tf.zeros(4, tf.int64),
        "earlier": tf.zeros([4, 1], tf.int64),
    }
    for _ in range(60):
        model.train_on_batch(inputs, tf.constant([1, 1, 0, 1]))
    np.testing.assert_allclose(ordinal.predict(model, inputs)["scores"], [[0.25, 0.75]] * 4, atol=1e-3)
