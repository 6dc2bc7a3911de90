"""The model that the benchmarks of scoring use: exported as a training exports it, with weights that nobody trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.scoring.model.folder import SAVED_MODEL_FOLDER

KEY = "key"


def feature_columns(names: Sequence[str]) -> list[str]:
    """Return those of the table's columns that the model takes."""
    return [name for name in names if name.startswith(("float_", "int_"))]


def export_model(folder: Path, rows: Path) -> Path:
    """Export a ``multi_field`` model of 8 numbers per id and layers of 128 and 64 units, and return its folder.

    Args:
        folder: Folder of the model.
        rows: Parquet file whose ids become the vocabularies.
    """
    return _exported(folder, _fitted(pq.read_table(rows)))


def export_ragged_model(folder: Path, fields: int, longest: int, tokens: int) -> Path:
    """Export a ``multi_field`` model of fields with lists of tokens, each with a vocabulary of ``tokens`` tokens."""
    names = pa.array([f"app.of.vendor.{number}" for number in range(tokens)])
    vocabulary = Vocabulary(names, pa.array(range(tokens, 0, -1), pa.int64()))
    features = tuple(MultiValued(f"field_{field}", max_length=longest) for field in range(fields))
    fitted = FittedFeatures(
        FeatureSpec(features, Label("label"), (KEY,)), {feature.name: vocabulary for feature in features}, {}
    )
    return _exported(folder, fitted)


def keras_model(fitted: FittedFeatures) -> Any:
    """Return the model that is exported, of the same weights every time."""
    import tf_keras

    from mirrorspark.models import multi_field

    tf_keras.utils.set_random_seed(1)
    return multi_field.build(multi_field.Settings(embedding_dim=8, hidden_units=(128, 64)), fitted, 1)


def _exported(folder: Path, fitted: FittedFeatures) -> Path:
    from mirrorspark.models import multi_field
    from mirrorspark.models.serving.export import ScoringModule, save
    from mirrorspark.scoring.model.folder import FEATURES_FOLDER, ModelDescription

    save(ScoringModule(multi_field, keras_model(fitted), fitted), folder / SAVED_MODEL_FOLDER)
    fitted.save(folder / FEATURES_FOLDER)
    ModelDescription("binary", "multi_field", fitted.hash, {"score": "float"}, {}).with_columns(fitted, folder).save(
        folder
    )
    return folder


def exported_for_mlflow(scratch: Path, rows: Path) -> Path:
    """Return the folder of an exported model, with MLflow's folder next to it, as a training logs it."""
    import mlflow

    from mirrorspark.scoring.model import mirrorspark_pyfunc

    model = export_model(scratch / "exported", rows)
    mlflow.pyfunc.save_model(
        path=of_mlflow(model),
        loader_module="mirrorspark_pyfunc",
        data_path=str(model),
        code_paths=[str(mirrorspark_pyfunc.__file__)],
        pip_requirements=[],
    )
    return model


def of_mlflow(model: Path) -> str:
    """Return MLflow's folder next to an exported model."""
    return str(model.with_name("mlflow"))


def export_direct_model(folder: Path, files: Sequence[Path]) -> Path:
    """Write a model of the same layers that takes ids as they are, in three forms, and return its folder.

    ``saved_model`` and ``model.onnx`` have the inputs ``ids``, int64 ``[batch, columns]``, and ``numbers``, float32
    ``[batch, columns]``, and the output ``score``, float32 ``[batch]``; ``model.keras`` takes both in a list. The
    embeddings have a row for every id up to the largest in the Parquet files, so that nothing is looked up.
    """
    import tensorflow as tf
    import tf_keras

    table = pa.concat_tables(pq.read_table(file) for file in files)
    tf_keras.utils.set_random_seed(1)
    names = feature_columns(table.column_names)
    of_ids = [name for name in names if name.startswith("int_")]
    ids = tf_keras.Input((len(of_ids),), dtype=tf.int64, name="ids")
    numbers = tf_keras.Input((len(names) - len(of_ids),), dtype=tf.float32, name="numbers")
    embeddings = [tf_keras.layers.Embedding(pc.max(table[name]).as_py() + 1, 8) for name in of_ids]
    dense = [tf_keras.layers.Dense(units, activation="relu") for units in (128, 64)]
    dense.append(tf_keras.layers.Dense(1, activation="sigmoid"))
    hidden = tf_keras.layers.Concatenate()([*(one(ids[:, place]) for place, one in enumerate(embeddings)), numbers])
    for layer in dense:
        hidden = layer(hidden)
    model = tf_keras.Model([ids, numbers], hidden[:, 0])
    folder.mkdir(parents=True)
    model.save(folder / "model.keras")
    call = tf.function(lambda ids, numbers: {"score": model([ids, numbers])}, autograph=False).get_concrete_function(
        tf.TensorSpec([None, len(of_ids)], tf.int64, "ids"),
        tf.TensorSpec([None, len(names) - len(of_ids)], tf.float32, "numbers"),
    )
    tf.saved_model.save(model, str(folder / SAVED_MODEL_FOLDER), signatures={"serving_default": call})
    _write_onnx(
        folder / "model.onnx", [one.get_weights()[0] for one in embeddings], [one.get_weights() for one in dense]
    )
    return folder


def _write_onnx(path: Path, embeddings: Sequence[np.ndarray], dense: Sequence[Sequence[np.ndarray]]) -> None:
    """Write the direct model from its weights: all embeddings in one table, looked up once."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    offsets = np.cumsum([0, *(len(table) for table in embeddings[:-1])], dtype=np.int64)
    width = sum(table.shape[1] for table in embeddings)
    weights = {
        "table": np.concatenate(embeddings),
        "offsets": offsets,
        "flat": np.array([-1, width]),
        "row": np.array([-1]),
    }
    nodes = [
        helper.make_node("Add", ["ids", "offsets"], ["rows"]),
        helper.make_node("Gather", ["table", "rows"], ["embedded"]),
        helper.make_node("Reshape", ["embedded", "flat"], ["joined"]),
        helper.make_node("Concat", ["joined", "numbers"], ["hidden_0"], axis=1),
    ]
    for number, (kernel, bias) in enumerate(dense):
        weights |= {f"kernel_{number}": kernel, f"bias_{number}": bias}
        is_last = number == len(dense) - 1
        nodes += [
            helper.make_node("Gemm", [f"hidden_{number}", f"kernel_{number}", f"bias_{number}"], [f"linear_{number}"]),
            helper.make_node("Sigmoid" if is_last else "Relu", [f"linear_{number}"], [f"hidden_{number + 1}"]),
        ]
    nodes.append(helper.make_node("Reshape", [f"hidden_{len(dense)}", "row"], ["score"]))
    numbers = len(dense[0][0]) - width
    graph = helper.make_graph(
        nodes,
        "direct",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, [None, len(embeddings)]),
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, [None, numbers]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def _fitted(table: pa.Table) -> FittedFeatures:
    names = feature_columns(table.column_names)
    numbers = [name for name in names if name.startswith("float_")]
    ids = [name for name in names if name.startswith("int_")]
    spec = FeatureSpec((*map(Numeric, numbers), *map(Categorical, ids)), Label("label"), (KEY,))
    statistics = {name: NumericStatistics(0.0, 1.0, -5.0, 5.0, table.num_rows) for name in numbers}
    return FittedFeatures(spec, {name: _vocabulary(table[name]) for name in ids}, statistics)


def _vocabulary(column: pa.ChunkedArray) -> Vocabulary:
    counts = pc.value_counts(column.combine_chunks())
    order = pc.sort_indices(counts.field("counts"), sort_keys=[("", "descending")])
    return Vocabulary(counts.field("values").take(order).cast(pa.string()), counts.field("counts").take(order))
