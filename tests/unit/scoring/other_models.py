"""Small models of other libraries for the tests of scoring, with rows for them."""

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mirrorspark.scoring.input.inputs import Column
from mirrorspark.scoring.package import package_model

NAMES = ("height", "width", "depth")
WEIGHTS = (0.5, -1.25, 2.0)
INTERCEPT = 0.25
LINEAR = {"coefficients": dict(zip(NAMES, WEIGHTS, strict=True)), "intercept": INTERCEPT, "link": "logit"}


def boxes(rows: int, *, missing: float = 0.0) -> pa.Table:
    """Return rows of three float columns with a key; some values are null, some NaN."""
    random = np.random.default_rng(11)
    columns: dict[str, Any] = {"id": pa.array(range(rows))}
    for name in NAMES:
        values = random.standard_normal(rows).astype(np.float32)
        values[random.random(rows) < missing / 2] = np.nan
        columns[name] = pa.array(values, mask=random.random(rows) < missing / 2)
    return pa.table(columns)


def matrix(table: pa.Table) -> np.ndarray:
    """Return the rows as float32 ``[rows, 3]``, NaN for null."""
    return np.column_stack([table[name].to_numpy() for name in NAMES]).astype(np.float32)


def logistic(table: pa.Table) -> np.ndarray:
    """Return the expected scores of the logistic models here, by the formula."""
    return 1 / (1 + np.exp(-(matrix(table).astype(np.float64) @ np.array(WEIGHTS) + INTERCEPT)))


def save_logistic_saved_model(folder: Path, *, rows: int | None = None) -> Path:
    """Save a SavedModel of the logistic model whose inputs have the columns' names.

    Args:
        folder: Becomes the SavedModel.
        rows: The number of rows that it takes, of this model as of the others; None for any.
    """
    import tensorflow as tf

    module = tf.Module()
    module.weights = tf.Variable(WEIGHTS, dtype=tf.float32)
    module.call = tf.function(
        lambda height, width, depth: {
            "score": tf.sigmoid(tf.linalg.matvec(tf.stack([height, width, depth], axis=1), module.weights) + INTERCEPT)
        },
        autograph=False,
    )
    specs = {name: tf.TensorSpec([rows], tf.float32, name) for name in NAMES}
    tf.saved_model.save(module, str(folder), signatures=module.call.get_concrete_function(**specs))
    return folder


def save_parsing_saved_model(folder: Path) -> Path:
    """Save a SavedModel of the logistic model that parses serialized examples; signature ``columns`` takes numbers."""
    import tensorflow as tf

    module = tf.Module()
    module.weights = tf.Variable(WEIGHTS, dtype=tf.float32)
    features = {name: tf.io.FixedLenFeature([], tf.float32) for name in NAMES}

    def of_columns(height: tf.Tensor, width: tf.Tensor, depth: tf.Tensor) -> dict[str, tf.Tensor]:
        linear = tf.linalg.matvec(tf.stack([height, width, depth], axis=1), module.weights)
        return {"score": tf.sigmoid(linear + INTERCEPT)}

    def of_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        return of_columns(**tf.io.parse_example(examples, features))

    specs = {name: tf.TensorSpec([None], tf.float32, name) for name in NAMES}
    examples = tf.TensorSpec([None], tf.string, "examples")
    signatures = {
        "serving_default": tf.function(of_examples, autograph=False).get_concrete_function(examples=examples),
        "columns": tf.function(of_columns, autograph=False).get_concrete_function(**specs),
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


def serialized_examples(table: pa.Table) -> list[bytes]:
    """Return each row's three columns as a serialized ``tf.train.Example``."""
    import tensorflow as tf

    def example(row: dict[str, float]) -> bytes:
        feature = {name: tf.train.Feature(float_list=tf.train.FloatList(value=[row[name]])) for name in NAMES}
        return bytes(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())

    return [example(row) for row in table.to_pylist()]


def save_logistic_keras(path: Path, *, rows: int | None = None, module: str = "tf_keras") -> Path:
    """Save the logistic model as a file of tf-keras, or of Keras 3, that takes one array."""
    keras = importlib.import_module(module)
    box = keras.Input((3,), batch_size=rows, name="box")
    model = keras.Sequential([box, keras.layers.Dense(1, "sigmoid", name="score")])
    model.layers[-1].set_weights([np.array(WEIGHTS)[:, None], np.array([INTERCEPT])])
    with warnings.catch_warnings():
        # tf-keras calls its own HDF5 form legacy.
        warnings.simplefilter("ignore", UserWarning)
        model.save(path)
    return path


def save_logistic_onnx(path: Path, *, rows: int | None = None) -> Path:
    """Save the logistic model as an ONNX file that takes one array and gives ``[rows, 1]``."""
    from onnx import TensorProto, helper, numpy_helper, save

    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["box", "weights", "intercept"], ["linear"]),
            helper.make_node("Sigmoid", ["linear"], ["score"]),
        ],
        "logistic",
        [helper.make_tensor_value_info("box", TensorProto.FLOAT, [rows or "rows", 3])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [rows or "rows", 1])],
        [
            numpy_helper.from_array(np.array(WEIGHTS, np.float32)[:, None], "weights"),
            numpy_helper.from_array(np.array([INTERCEPT], np.float32), "intercept"),
        ],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def save_onnx_classifier(path: Path) -> Path:
    """Save an ONNX file that gives the class and the probabilities of three, as one of scikit-learn does."""
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [
            helper.make_node("Softmax", ["box"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
        ],
        "classifier",
        [helper.make_tensor_value_info("box", TensorProto.FLOAT, ["rows", 3])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 3]),
        ],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def save_counting_saved_model(folder: Path, *, rows: int | None = None, is_compiled: bool = False) -> Path:
    """Save a SavedModel that gives for every ``x`` its double, ``twice``, and how many ``rows`` the call has.

    Args:
        folder: Becomes the SavedModel.
        rows: The number of rows that it takes; None for any.
        is_compiled: Whether XLA compiles it.
    """
    import tensorflow as tf

    module = tf.Module()
    module.call = tf.function(
        lambda x: {"twice": 2.0 * x, "rows": tf.zeros_like(x, tf.int32) + tf.shape(x)[0]},
        input_signature=[tf.TensorSpec([rows], tf.float32, "x")],
        autograph=False,
        jit_compile=is_compiled,
    )
    tf.saved_model.save(module, str(folder), signatures=module.call)
    return folder


_TRACING_HOOKS = """
import tensorflow as tf

@tf.function(autograph=False)
def tripled(x):
    return 3.0 * x

def preprocess(columns):
    return {"x": tripled(tf.constant(columns["x"])).numpy()}
"""


def package_with_tracing_hooks(saved_model: Path, folder: Path) -> Path:
    """Package a model of :func:`save_counting_saved_model` with hooks that are traced for every number of rows.

    They triple its ``x``.
    """
    hooks = folder.with_suffix(".py")
    # A process runs hooks of one content once: the path makes these no other model's, whose traces they would share.
    hooks.write_text(f"# {hooks}\n{_TRACING_HOOKS}")
    return package_model(saved_model, folder, columns=[Column("x", "float")], hooks=hooks)


def save_xgboost(path: Path, *, classes: int = 2, names: bool = True) -> Any:
    """Train a booster on rows with missing values, save it, and return it."""
    import xgboost

    table = boxes(300, missing=0.3)
    labels = np.nan_to_num(matrix(table)) @ np.array(WEIGHTS) > 0
    target = labels if classes == 2 else np.arange(table.num_rows) % classes
    objective: dict[str, Any] = (
        {"objective": "binary:logistic"} if classes == 2 else {"objective": "multi:softprob", "num_class": classes}
    )
    rows = xgboost.DMatrix(matrix(table), label=target, feature_names=list(NAMES) if names else None)
    booster = xgboost.train({**objective, "max_depth": 3, "nthread": 1, "seed": 1}, rows, num_boost_round=5)
    booster.save_model(path)
    return booster


def save_lightgbm(path: Path, *, classes: int = 2) -> Any:
    """Train a booster on rows with missing values, save it, and return it."""
    import lightgbm

    table = boxes(300, missing=0.3)
    labels = np.nan_to_num(matrix(table)) @ np.array(WEIGHTS) > 0
    target = labels if classes == 2 else np.arange(table.num_rows) % classes
    objective: dict[str, Any] = (
        {"objective": "binary"} if classes == 2 else {"objective": "multiclass", "num_class": classes}
    )
    rows = lightgbm.Dataset(matrix(table), label=target, feature_name=list(NAMES))
    settings = {**objective, "num_threads": 1, "verbosity": -1, "seed": 1}
    booster = lightgbm.train(settings, rows, num_boost_round=5)
    booster.save_model(path)
    return booster


def people() -> Any:
    """Return a DataFrame of a number and a text per row, both of which may be missing."""
    import pandas as pd

    return pd.DataFrame(
        {"age": [31.0, np.nan, 17.0, 50.0] * 5, "city": ["Bonn", "Ulm", None, "Bonn"] * 5, "visits": [1, 2, 3, 4] * 5}
    )


def save_sklearn(folder: Path, *, signature: bool = True, outputs: str = "classes") -> Any:
    """Log a pipeline of scikit-learn that imputes and encodes, as MLflow does it, and return the pipeline.

    Args:
        folder: Becomes the MLflow model.
        signature: Whether it has one.
        outputs: Its prediction: ``classes`` or the ``probabilities`` of both.
    """
    import mlflow.sklearn
    from mlflow.models import infer_signature
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    frame = people()
    pipeline = make_pipeline(
        make_column_transformer(
            (SimpleImputer(), ["age", "visits"]), (OneHotEncoder(handle_unknown="ignore"), ["city"])
        ),
        LogisticRegression(),
    )
    pipeline.fit(frame, np.arange(len(frame)) % 2)
    predict = {"classes": pipeline.predict, "probabilities": pipeline.predict_proba}[outputs]
    with warnings.catch_warnings():
        # MLflow says of whole numbers that they cannot be missing.
        warnings.filterwarnings("ignore", ".*integer column", UserWarning)
        of_frame = infer_signature(frame, predict(frame))
    mlflow.sklearn.save_model(
        pipeline,
        str(folder),
        signature=of_frame if signature else None,
        pyfunc_predict_fn={"classes": "predict", "probabilities": "predict_proba"}[outputs],
        pip_requirements=[],
        skops_trusted_types=["numpy.dtype"],
    )
    return pipeline


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """Return random pixels, uint8 ``[count, height, width, 3]``."""
    return np.random.default_rng(5).integers(0, 256, (count, height, width, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """Return an image of uint8 ``[height, width, channels]``, or ``[height, width]`` of a grey one, as PNG."""
    import tensorflow as tf

    return bytes(tf.io.encode_png(pixels if pixels.ndim == 3 else pixels[..., None]).numpy())


def save_picture_keras(path: Path, height: int, width: int) -> Any:
    """Save a small convolutional model of images as a file of tf-keras, and return it; it has fixed weights."""
    import tf_keras

    model = tf_keras.Sequential(
        [
            tf_keras.Input((height, width, 3), name="pixels"),
            tf_keras.layers.Rescaling(1 / 255),
            tf_keras.layers.Conv2D(2, 3, activation="relu"),
            tf_keras.layers.GlobalAveragePooling2D(),
            tf_keras.layers.Dense(1, "sigmoid", name="score"),
        ]
    )
    random = np.random.default_rng(6)
    model.set_weights([random.standard_normal(weights.shape) for weights in model.get_weights()])
    model.save(path)
    return model


def damaged(content: bytes, *, turned_bits: int = 12) -> Iterator[bytes]:
    """Yield a file cut off at some places, nested without end, and with bits turned, the same ones in every run."""
    for part in range(8):
        yield content[: len(content) * part // 8]
    yield from (opening * 50_000 for opening in (b"[", b"{", b"<a>"))
    random = np.random.default_rng(50)
    for place in random.integers(0, len(content), turned_bits):
        turned = bytearray(content)
        turned[place] ^= 1 << int(random.integers(8))
        yield bytes(turned)
