"""Wide & Deep builds from a spec, crosses ids, and learns what neither of them says alone (F4)."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Categorical, Label
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models import catalog, wide_deep
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.models.layers.input import CrossedIds
from mirrorspark.models.settings import ModelSettingsError


def inputs(rows: int, seed: int) -> dict[str, tf.Tensor]:
    rng = np.random.default_rng(seed)
    return {
        "distance": tf.constant(rng.normal(size=rows), tf.float32),
        "carrier": tf.constant(rng.integers(2, 4, rows)),
        "dest": tf.constant(rng.integers(2, 4, rows)),
        "earlier": tf.constant(rng.integers(0, 5, (rows, 3))),
    }


def test_both_parts_reach_the_logit(flight_features: FittedFeatures) -> None:
    settings = wide_deep.Settings(embedding_dim=2, hidden_units=(4,), crosses=("carrier*dest",), cross_buckets=50)
    model = wide_deep.build(settings, flight_features, seed=1)
    weights = {variable.name: variable.shape.as_list() for variable in model.trainable_variables}
    # Wide: a weight per id (4 + 5), one per crossing, the number; deep: 3 fields of width 2 and the number into 4.
    assert weights == {
        "wide_fields/table:0": [9, 1],
        "weights_carrier_x_dest/embeddings:0": [50, 1],
        "deep_fields/table:0": [9, 2],
        "hidden_0/kernel:0": [7, 4],
        "hidden_0/bias:0": [4],
        "logit/kernel:0": [3 + 1 + 1 + 4, 1],
        "logit/bias:0": [1],
    }
    scores = wide_deep.predict(model, inputs(16, seed=1))["score"].numpy()
    assert (scores.shape, scores.dtype) == ((16,), np.float32)


def test_a_crossing_is_one_bucket_per_pair() -> None:
    crossed = CrossedIds(1 << 20)
    one, other = np.meshgrid(np.arange(40), np.arange(40))
    buckets = crossed([tf.constant(one.ravel()), tf.constant(other.ravel())]).numpy()
    assert len(np.unique(buckets)) == 1600
    assert buckets.min() >= 0
    assert buckets.max() < 1 << 20
    few = CrossedIds(7)([tf.constant(one.ravel()), tf.constant(other.ravel())]).numpy()
    assert set(few.tolist()) == set(range(7))


def test_a_crossing_learns_what_neither_feature_says_alone(flight_features: FittedFeatures) -> None:
    tf_keras.utils.set_random_seed(1)
    settings = wide_deep.Settings(embedding_dim=2, hidden_units=(), crosses=("carrier*dest",), cross_buckets=97)
    model = wide_deep.build(settings, flight_features, seed=1)
    compile_model(model, wide_deep.TASK, build_optimizer(OptimizerSettings("adam", 0.1)))
    features = inputs(256, seed=2)
    is_odd = tf.cast(tf.not_equal(features["carrier"], features["dest"]), tf.float32)
    data = tf.data.Dataset.from_tensors((features, is_odd, tf.ones(256))).repeat(60)
    model.fit(data, verbose=0)
    assert model.evaluate(data.take(1), verbose=0, return_dict=True)["auc"] > 0.95


@pytest.mark.parametrize("cross", ["carrier*nobody", "earlier*dest", "distance*dest"])
def test_a_crossing_of_what_is_no_single_id_is_refused(flight_features: FittedFeatures, cross: str) -> None:
    message = r"is not a feature of one id per row; use two of \['carrier', 'dest'\]"
    with pytest.raises(ModelSettingsError, match=message):
        wide_deep.build(wide_deep.Settings(crosses=(cross,)), flight_features, seed=1)
    with pytest.raises(ModelSettingsError, match=message):
        catalog.check_features("wide_deep", {"crosses": [cross]}, flight_features.spec)


def test_a_crossed_name_may_have_an_asterisk() -> None:
    spec = FeatureSpec((Categorical("x*y"), Categorical("z")), Label("late"), ("id",))
    wide_deep.check_features(wide_deep.Settings(crosses=("x*y*z", "z*x*y")), spec)
    with pytest.raises(ModelSettingsError, match=r"has 'x\*z', but 'x' is not a feature of one id per row"):
        wide_deep.check_features(wide_deep.Settings(crosses=("x*z",)), spec)
