"""T3: a regression by each of its losses."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import Label, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models import regression
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.models.settings import ModelSettingsError

ROWS = 4_000


def learnt(labels: np.ndarray, feature: np.ndarray, **settings: Any) -> dict[str, np.ndarray]:
    """Return a model's predictions for the rows that it was trained on."""
    spec = FeatureSpec((Numeric("size"),), Label("cost", "numeric"), ("id",))
    of_label = NumericStatistics(
        float(labels.mean()), float(labels.std()), float(labels.min()), float(labels.max()), len(labels)
    )
    fitted = FittedFeatures(spec, {}, {"size": NumericStatistics(0.0, 1.0, -4.0, 4.0, ROWS), "cost": of_label})
    tf_keras.utils.set_random_seed(1)
    model = regression.build(regression.Settings(hidden_units=(16,), **settings), fitted, 1)
    compile_model(model, regression.TASK, build_optimizer(OptimizerSettings("adam", 0.02)))
    inputs = {"size": tf.constant(feature[:, None] if model.inputs[0].shape.rank == 2 else feature, tf.float32)}
    data = tf.data.Dataset.from_tensor_slices((inputs, labels.astype(np.float32), np.ones(ROWS, np.float32)))
    history = model.fit(data.batch(200), epochs=15, verbose=0).history
    assert set(history) == {"loss", "rmse", "mae"}
    return {name: value.numpy() for name, value in regression.predict(model, inputs).items()}


def test_quantiles_make_an_interval_that_holds_as_many_labels_as_they_say() -> None:
    draw = np.random.default_rng(1)
    feature = draw.normal(size=ROWS)
    labels = 1_000 + 200 * feature + 50 * (2 + feature.clip(-1.5, 1.5)) * draw.normal(size=ROWS)
    found = learnt(labels, feature, loss="quantile", quantiles=(0.05, 0.25, 0.5, 0.75, 0.95))
    assert (np.diff(found["quantiles"], axis=1) > 0).all()
    np.testing.assert_array_equal(found["score"], found["quantiles"][:, 2])
    for share, column in zip((0.05, 0.25, 0.5, 0.75, 0.95), found["quantiles"].T, strict=True):
        assert (labels < column).mean() == pytest.approx(share, abs=0.04)
    width = found["quantiles"][:, -1] - found["quantiles"][:, 0]
    assert width[feature > 1].mean() > 2 * width[feature < -1].mean()


@pytest.mark.parametrize("loss", ["poisson", "tweedie"])
def test_amounts_of_which_many_are_zero_have_their_mean(loss: str) -> None:
    draw = np.random.default_rng(1)
    feature = draw.normal(size=ROWS)
    labels = draw.poisson(np.exp(0.5 * feature - 0.5)) * draw.gamma(2.0, 30.0, ROWS)
    found = learnt(labels, feature, loss=loss)
    assert set(found) == {"score"}
    assert found["score"].min() > 0
    for part in (feature < -0.5, abs(feature) <= 0.5, feature > 0.5):
        assert found["score"][part].mean() == pytest.approx(labels[part].mean(), rel=0.15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "huber"}, r"loss is 'huber'; use one of \['squared'"),
        ({"tweedie_power": 2}, "tweedie_power is 2; use a number between 1 and 2"),
        ({"quantiles": (0.1, 0.9)}, r"quantiles is \[0.1, 0.9\]; use an odd number of ascending shares"),
        ({"quantiles": (0.5, 0.1, 0.9)}, "ascending shares"),
        ({"quantiles": (0.0, 0.5, 0.9)}, "between 0 and 1"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelSettingsError, match=message):
        regression.Settings(**settings)
