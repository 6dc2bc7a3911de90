"""One model for all labels: a head per class, trained on packed lists of classes (F8, S6)."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Label
from mirrorspark.data_pipelines.features.transform import RaggedIds
from mirrorspark.models import multi_label
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer


def of_three_delays(features: FittedFeatures) -> FittedFeatures:
    spec = dataclasses.replace(features.spec, label=Label("delays", "multi_label", classes=3))
    return dataclasses.replace(features, spec=spec)


@pytest.mark.parametrize("heads", ["sigmoid", "softmax"])
def test_training_learns_every_label(flight_features: FittedFeatures, heads: str) -> None:
    tf_keras.utils.set_random_seed(1)
    fitted = of_three_delays(flight_features)
    model = multi_label.build(multi_label.Settings(hidden_units=(8,), heads=heads), fitted, seed=1)
    compile_model(model, multi_label.TASK, build_optimizer(OptimizerSettings("adam", 0.05)))
    rng = np.random.default_rng(2)
    carrier, dest = rng.integers(0, 4, 200), rng.integers(0, 5, 200)
    features = {
        "distance": tf.constant(rng.normal(size=200), tf.float32),
        "carrier": tf.constant(carrier),
        "dest": tf.constant(dest),
        "earlier": tf.constant(rng.integers(0, 5, (200, 3))),
    }
    classes = [
        [c for c, is_so in enumerate((a == 2, b == 3, a == 1)) if is_so] for a, b in zip(carrier, dest, strict=True)
    ]
    packed = RaggedIds(np.concatenate(classes).astype(np.int64), np.array([len(row) for row in classes])).multi_hot(3)
    data = tf.data.Dataset.from_tensors((features, tf.constant(packed), tf.ones(200))).repeat(80)
    history = model.fit(data, verbose=0).history
    assert set(history) == {"loss", "log_loss", "auc"}
    scores = multi_label.predict(model, features)["scores"].numpy()
    assert (scores.shape, scores.dtype) == ((200, 3), np.float32)
    assert ((scores > 0.5) == packed.astype(bool)).mean() > 0.97


def test_a_softmax_has_two_logits_per_label_and_a_sigmoid_one(flight_features: FittedFeatures) -> None:
    fitted = of_three_delays(flight_features)
    widths = {
        heads: multi_label.build(multi_label.Settings(heads=heads), fitted, seed=1).get_layer("heads").weights[0].shape
        for heads in ("sigmoid", "softmax")
    }
    assert widths == {"sigmoid": (64, 3), "softmax": (2, 64, 3)}
