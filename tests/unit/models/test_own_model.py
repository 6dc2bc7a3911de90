"""T3, F15: a user's own model travels by value, keeps its compilation, and its outputs become probabilities."""

import functools
import importlib
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.reading.padding import PaddedBatch
from mirrorspark.models import catalog, own_model
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings
from mirrorspark.models.keras3.loop import fit
from mirrorspark.models.keras3.optimizers import build_optimizer as keras3_optimizer
from mirrorspark.models.keras3.steps import share_steps
from mirrorspark.models.layers.input import feature_inputs, feature_vector
from mirrorspark.models.serving.export import ScoringModule, save
from mirrorspark.models.serving.signatures import ENCODED_SIGNATURE, RAW_SIGNATURE
from mirrorspark.models.settings import ModelSettingsError

SPEC = FeatureSpec.from_dict(
    {
        "label": "late",
        "keys": "ride",
        "features": {
            "town": {"kind": "categorical", "hash_buckets": 8},
            "distance": {"kind": "numeric"},
        },
    }
)
FEATURES = FittedFeatures(SPEC, {}, {})
LOCK = threading.Lock()
BATCH = {"town": tf.constant([2, 3], tf.int64), "distance": tf.constant([0.5, -1.0])}


def logits(features: FittedFeatures, of: Any = tf_keras) -> Any:
    inputs = feature_inputs(features, of)
    return of.Model(inputs, of.layers.Dense(1)(feature_vector(features, inputs, 4)))


def probabilities(features: FittedFeatures, of: Any = tf_keras) -> Any:
    inputs = feature_inputs(features, of)
    model = of.Model(inputs, of.layers.Dense(1, activation="sigmoid")(feature_vector(features, inputs)))
    model.compile("sgd", loss="binary_crossentropy", metrics=["mae"])
    return model


def from_logits(features: FittedFeatures, of: Any = tf_keras) -> Any:
    model = logits(features, of)
    model.compile("adam", loss=of.losses.BinaryCrossentropy(from_logits=True))
    return model


class Distances(tf_keras.Model):
    """Reads one feature of two, and has no weights before its first call."""

    def __init__(self, features: FittedFeatures) -> None:
        super().__init__()
        self.head = layers.Dense(1)

    def call(self, inputs: Any, training: Any = None) -> Any:
        return self.head(inputs["distance"][:, tf.newaxis])


class Distances3(keras.Model):
    """The same in Keras 3."""

    def __init__(self, features: FittedFeatures) -> None:
        super().__init__()
        self.head = keras.layers.Dense(1)

    def call(self, inputs: Any, training: Any = None) -> Any:
        return self.head(inputs["distance"][:, None])


def preprocessed(features: FittedFeatures) -> Any:
    """Return a graph of Keras 3 that reads one feature of two, by layers with tables and without weights."""
    distance = feature_inputs(features, keras)["distance"]
    places = keras.layers.Discretization([-0.5, 0.0, 0.7], dtype="int64")(distance)
    crossed = keras.layers.IntegerLookup(vocabulary=[1, 3], output_mode="one_hot")(places[:, None])
    scaled = keras.layers.Normalization(mean=0.5, variance=4.0)(distance[:, None])
    return keras.Model({"distance": distance}, keras.layers.Dense(1)(keras.layers.Concatenate()([crossed, scaled])))


WHOLE = (logits, probabilities)


def in_keras_3(build: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(build, of=keras)


def built(build: Callable[..., Any]) -> tuple[Any, tf_keras.Model]:
    given = own_model.own_model(build, "binary")
    architecture = catalog.architecture(given["name"])
    options = {key: value for key, value in given.items() if key != "name"}
    return architecture, architecture.build(catalog.settings(given["name"], options), FEATURES, 1)


@pytest.mark.parametrize(
    ("build", "is_logit"),
    [
        *((logits, True), (probabilities, False), (from_logits, True), (Distances, True)),
        *((in_keras_3(logits), True), (in_keras_3(probabilities), False), (in_keras_3(from_logits), True)),
        *((Distances3, True), (preprocessed, True)),
    ],
)
def test_the_score_is_a_probability_whatever_the_model_returns(build: Callable[..., Any], is_logit: bool) -> None:
    architecture, model = built(build)
    assert model.weights
    raw = tf.reshape(model({"distance": BATCH["distance"]} if build is preprocessed else BATCH), [-1])
    expected = tf.sigmoid(raw) if is_logit else raw
    score = architecture.predict(model, BATCH)["score"]
    np.testing.assert_allclose(score, expected, rtol=1e-6)
    assert score.shape == (2,)


@pytest.mark.parametrize(
    "build",
    [preprocessed, *(pytest.param(one, marks=pytest.mark.full) for one in (*map(in_keras_3, WHOLE), Distances3))],
)
def test_a_model_of_keras_3_trains_and_is_exported_with_raw_columns(build: Callable[..., Any], tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    architecture, model = built(build)
    if model.own_compilation:
        own_model.keep_compilation(model, 2)
    else:
        compile_model(model, "binary", keras3_optimizer(OptimizerSettings(learning_rate=0.1)), 2)
    share_steps(model)
    weights = np.array([1, 0], np.float32)  # the second row is padding
    batch = PaddedBatch(BATCH, tf.constant([1.0, 0.0]), weights, tf.constant(2.0))
    data = tf.data.Dataset.from_tensors(batch).repeat()
    history = fit(
        model, data, validation_data=data, epochs=3, steps_per_epoch=3, validation_steps=1, callbacks=[]
    ).history
    assert history["loss"][-1] < history["loss"][0]
    metric = "mae" if model.own_compilation else "log_loss"
    score = architecture.predict(model, BATCH)["score"].numpy()
    expected = 1 - score[0] if model.own_compilation else -np.log(score[0])
    assert history[f"val_{metric}"][-1] == pytest.approx(expected, rel=1e-4)
    fitted = FittedFeatures(SPEC, {}, {"distance": NumericStatistics(0.0, 1.0, -1.0, 1.0, 2)})
    save(ScoringModule(architecture, model, fitted), tmp_path / "model")
    signatures = tf.saved_model.load(str(tmp_path / "model")).signatures
    np.testing.assert_allclose(signatures[ENCODED_SIGNATURE](**BATCH)["score"], score, rtol=1e-6)
    assert set(signatures[RAW_SIGNATURE].structured_input_signature[1]) == {"town", "distance"}


class DistanceEncoder(tf.Module):
    """A module of TensorFlow alone, with a variable and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable([[2.0, -1.0]])
        values = tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1], tf.int64), tf.constant([0.5, -3.0]))
        self.offsets = tf.lookup.StaticHashTable(values, 0.0)

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32)])
    def __call__(self, distances: tf.Tensor) -> tf.Tensor:
        return distances @ self.kernel + self.offsets.lookup(tf.cast(distances > 0, tf.int64))


class Pretrained(layers.Layer):
    """The layer of the documentation."""

    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(**options)
        self.module = tf.saved_model.load(folder)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.module(inputs)


class FineTuned(Pretrained):
    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(folder, **options)
        self.kernel = self.module.kernel


@pytest.mark.parametrize("kind", [Pretrained, FineTuned])
def test_a_pretrained_module_that_is_no_keras_model_is_a_layer_and_is_exported(
    tmp_path: Path, kind: type[Pretrained]
) -> None:
    folder = str(tmp_path / "encoder")
    tf.saved_model.save(DistanceEncoder(), folder)

    def with_encoder(features: FittedFeatures) -> tf_keras.Model:
        inputs = feature_inputs(features)
        encoded = kind(folder)(inputs["distance"][:, None])
        joined = layers.Concatenate()([encoded, feature_vector(features, inputs, 4)])
        return tf_keras.Model(inputs, layers.Dense(1)(joined))

    tf_keras.utils.set_random_seed(1)
    architecture, model = built(with_encoder)
    compile_model(model, "binary", tf_keras.optimizers.Adam(0.1))
    before = architecture.predict(model, BATCH)["score"].numpy()
    model.fit(BATCH, np.array([1.0, 0.0]), epochs=3, verbose=0)
    score = architecture.predict(model, BATCH)["score"].numpy()
    assert (np.abs(score - before) > 0.01).all()
    (encoder,) = (layer for layer in model.layers if isinstance(layer, Pretrained))
    assert (encoder.module.kernel.numpy().tolist() == [[2.0, -1.0]]) is (kind is Pretrained)
    fitted = FittedFeatures(SPEC, {}, {"distance": NumericStatistics(0.0, 1.0, -1.0, 1.0, 2)})
    save(ScoringModule(architecture, model, fitted), tmp_path / "model")
    shutil.rmtree(folder)
    exported = tf.saved_model.load(str(tmp_path / "model")).signatures[ENCODED_SIGNATURE]
    np.testing.assert_allclose(exported(**BATCH)["score"], score, rtol=1e-6)


def test_a_compiled_model_keeps_what_it_was_compiled_with_and_counts_no_row_of_weight_zero() -> None:
    _, model = built(probabilities)
    assert model.own_compilation
    own_model.keep_compilation(model, 5)
    assert isinstance(model.optimizer, tf_keras.optimizers.SGD)
    assert model.loss == "binary_crossentropy"
    weighed = model.evaluate(
        BATCH, np.array([1.0, 0.0]), sample_weight=np.array([1.0, 0.0]), verbose=0, return_dict=True
    )
    assert weighed["mae"] == pytest.approx(1 - float(model(BATCH)[0, 0]), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "is_logit"),
    [
        ([tf_keras.losses.BinaryCrossentropy(from_logits=True)], True),
        ({"dense": tf_keras.losses.BinaryCrossentropy(from_logits=True)}, True),
        (["binary_crossentropy"], False),
    ],
)
def test_the_loss_of_the_one_output_may_be_in_a_list_or_a_mapping(loss: Any, is_logit: bool) -> None:
    model = SimpleNamespace(loss=loss, own_compilation=True)
    assert own_model.returns_logits(model) is is_logit


@pytest.mark.parametrize(
    ("metrics", "weighted"),
    [("mae", None), (["mae"], "mse"), ({"head": ["mae"]}, None), ({"head": "mae"}, {"head": ["mse"]}), (None, None)],
)
def test_metrics_are_kept_in_every_form_that_keras_takes(metrics: Any, weighted: Any) -> None:
    inputs = feature_inputs(FEATURES)
    head = layers.Dense(1, activation="sigmoid", name="head")
    model = tf_keras.Model(inputs, head(feature_vector(FEATURES, inputs)))
    model.compile("sgd", loss="binary_crossentropy", metrics=metrics, weighted_metrics=weighted, run_eagerly=True)
    own_model.keep_compilation(model, 1)
    counted = np.array([1.0, 0.0])
    found = model.evaluate(BATCH, counted, sample_weight=counted, verbose=0, return_dict=True)
    assert set(found) == {"loss", *(["mae"] if metrics else []), *(["mse"] if weighted else [])}
    assert model.run_eagerly
    if metrics:
        assert found["mae"] == pytest.approx(1 - float(model(BATCH)[0, 0]), rel=1e-5)


SOURCE = """
WIDTH = {width}

def helper(x):
    return x * {factor}

def build(features):
    return helper(WIDTH)
"""


def module(folder: Path, width: int, factor: int) -> ModuleType:
    (folder / "models_of_a_user.py").write_text("# line\n" * width + SOURCE.format(width=width, factor=factor))
    sys.modules.pop("models_of_a_user", None)
    importlib.invalidate_caches()
    return importlib.import_module("models_of_a_user")


def test_the_digest_changes_with_all_that_the_model_uses_and_with_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import linecache

    def digest(width: int, factor: int) -> str:
        linecache.clearcache()
        return str(own_model.own_model(module(tmp_path, width, factor).build, "binary")["digest"])

    first = digest(1, 2)
    assert digest(1, 2) == first
    assert len({first, digest(3, 2), digest(1, 3)}) == 3
    sent = own_model.own_model(module(tmp_path, 5, 2).build, "binary")
    sys.modules.pop("models_of_a_user")
    (tmp_path / "models_of_a_user.py").unlink()
    # By value: the worker has no such module.
    assert own_model._unpickled(own_model.OwnSettings(code=sent["code"]))[0](FEATURES) == 10


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        ("multi_field", "binary", "is not a function"),
        (lambda features, lock=LOCK: lock, "binary", "cannot be sent to the workers"),
        (lambda: None, "binary", "cannot be called with one argument, the fitted features; define it as"),
        (lambda features, width: width, "binary", r"lambda>\(features, width\) cannot be called with one argument"),
        (tf_keras.Sequential(), "binary", "model is a Sequential that is built already; give the function or class"),
    ],
)
def test_what_cannot_be_a_model_is_refused_before_anything_starts(build: Any, kind: str, message: str) -> None:
    with pytest.raises(ModelSettingsError, match=message):
        own_model.own_model(build, kind)


def test_averages_in_the_place_of_weights_are_refused() -> None:
    """#53: a checkpoint of an epoch would have them, and the export the weights."""
    with pytest.raises(ModelSettingsError, match=r"SwapEMAWeights\(swap_on_epoch=True\) would save averages as"):
        own_model.own_model(logits, "binary", [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)])
    own_model.own_model(logits, "binary", [keras.callbacks.SwapEMAWeights()])


def test_what_is_no_model_of_keras_is_named() -> None:
    with pytest.raises(ModelSettingsError, match="returns int; return a model of Keras"):
        built(lambda features: 3)


def test_keras_3_has_to_compute_with_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ModelSettingsError, match=r"of Keras 3 with the backend jax; .*: unset KERAS_BACKEND there"):
        built(in_keras_3(logits))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (lambda vector: layers.Dense(3)(vector), r"3 outputs per row, and the label 'late' .* needs 1: end it with"),
        (lambda vector: layers.Dense(1)(vector[:, None, :]), r"outputs of shape \[None, 1, 1\], .* needs 1 per row"),
        (lambda vector: [layers.Dense(1)(vector)] * 2, "a model with 2 outputs, .* needs 1 per row, in one output"),
    ],
)
def test_a_model_with_other_outputs_than_the_label_needs_is_named_in_a_line(ends: Any, message: str) -> None:
    """H2: the loss would raise with many pages of TensorFlow's frames."""

    def build(features: FittedFeatures) -> Any:
        inputs = feature_inputs(features)
        return tf_keras.Model(inputs, ends(feature_vector(features, inputs, 4)))

    with pytest.raises(ModelSettingsError, match=message):
        built(build)


@pytest.mark.parametrize(("of", "name"), [(tf_keras, "tf-keras"), (keras, "Keras 3")])
def test_a_loss_that_keras_does_not_know_is_named_before_the_first_step(of: Any, name: str) -> None:
    def build(features: FittedFeatures) -> Any:
        model = logits(features, of)
        model.compile("sgd", loss="binary_crossentropyy")
        return model

    with pytest.raises(ModelSettingsError, match=f"with the loss 'binary_crossentropyy', which {name} does not know"):
        built(build)
