"""The model that the benchmarks of scoring use: exported as a training exports it, with weights that nobody trained."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipelines.feature_kinds import Categorical, Label, Numeric
from data_pipelines.features import FeatureSpec
from data_pipelines.fitted import FittedFeatures, NumericStatistics
from data_pipelines.vocabulary import Vocabulary

KEY = "key"


def feature_columns(names: Sequence[str]) -> list[str]:
    """Return those of the table's columns that the model takes."""
    return [name for name in names if name.startswith(("float_", "int_"))]


def export_model(folder: Path, rows: Path) -> Path:
    """Export a ``multi_field`` model of 8 numbers per id and layers of 128 and 64 units, and return its folder.

    Args:
        folder: Of the model.
        rows: Parquet file whose ids become the vocabularies.
    """
    import tf_keras

    from models import multi_field
    from models.serving import ScoringModule, save
    from scoring.model_directory import FEATURES_FOLDER, SAVED_MODEL_FOLDER, ModelDescription

    fitted = _fitted(pq.read_table(rows))
    tf_keras.utils.set_random_seed(1)
    settings = multi_field.Settings(embedding_dim=8, hidden_units=(128, 64))
    save(ScoringModule(multi_field, multi_field.build(settings, fitted, 1), fitted), folder / SAVED_MODEL_FOLDER)
    fitted.save(folder / FEATURES_FOLDER)
    ModelDescription("binary", "multi_field", fitted.hash, {"score": "float"}, {}).save(folder)
    return folder


def export_direct_model(folder: Path, files: Sequence[Path]) -> Path:
    """Write a SavedModel of the same layers that takes ids as they are, and return its folder.

    Its inputs are ``ids``, int64 ``[batch, columns]``, and ``numbers``, float32 ``[batch, columns]``. Its embeddings
    have a row for every id up to the largest in the Parquet files, so that it looks nothing up.
    """
    import tensorflow as tf
    import tf_keras

    table = pa.concat_tables(pq.read_table(file) for file in files)
    tf_keras.utils.set_random_seed(1)
    names = feature_columns(table.column_names)
    of_ids = [name for name in names if name.startswith("int_")]
    ids = tf_keras.Input((len(of_ids),), dtype=tf.int64, name="ids")
    numbers = tf_keras.Input((len(names) - len(of_ids),), dtype=tf.float32, name="numbers")
    embedded = [
        tf_keras.layers.Embedding(pc.max(table[name]).as_py() + 1, 8)(ids[:, place])
        for place, name in enumerate(of_ids)
    ]
    hidden = tf_keras.layers.Concatenate()([*embedded, numbers])
    for units in (128, 64):
        hidden = tf_keras.layers.Dense(units, activation="relu")(hidden)
    model = tf_keras.Model([ids, numbers], tf_keras.layers.Dense(1, activation="sigmoid")(hidden)[:, 0])
    call = tf.function(lambda ids, numbers: {"score": model([ids, numbers])}, autograph=False).get_concrete_function(
        tf.TensorSpec([None, len(of_ids)], tf.int64, "ids"),
        tf.TensorSpec([None, len(names) - len(of_ids)], tf.float32, "numbers"),
    )
    tf.saved_model.save(model, str(folder), signatures={"serving_default": call})
    return folder


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
