"""One model for all labels: a logit per class, trained on packed lists of classes (F8)."""

import dataclasses

import numpy as np
import tensorflow as tf
import tf_keras

from data_pipelines.feature_kinds import Label
from data_pipelines.fitted import FittedFeatures
from data_pipelines.transform import RaggedIds
from models import multi_label
from models.objectives import compile_model
from models.optimizers import OptimizerSettings, build_optimizer


def test_training_learns_every_label(flight_features: FittedFeatures) -> None:
    tf_keras.utils.set_random_seed(1)
    spec = dataclasses.replace(flight_features.spec, label=Label("delays", "multi_label", classes=3))
    fitted = dataclasses.replace(flight_features, spec=spec)
    model = multi_label.build(multi_label.Settings(hidden_units=(8,)), fitted, seed=1)
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
