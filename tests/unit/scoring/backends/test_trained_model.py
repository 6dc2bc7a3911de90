"""An exported model is loaded as scoring uses it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mirrorspark.models.serving.signatures import ENCODED_SIGNATURE
from mirrorspark.scoring.backends.protocol import ModelOutputError
from mirrorspark.scoring.backends.trained_model import TrainedBackend, TrainedGraph
from mirrorspark.scoring.model.folder.directory import SAVED_MODEL_FOLDER
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from tests.unit.scoring.exported_models import FLIGHTS


def table_of(file: Path, *words: str) -> tf.lookup.StaticHashTable:
    file.write_text("".join(f"{word}\n" for word in words))
    whole_line, line_number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    initializer = tf.lookup.TextFileInitializer(str(file), tf.string, whole_line, tf.int64, line_number)
    return tf.lookup.StaticHashTable(initializer, -1)


class Looked(tf.Module):
    """Each signature looks texts up in a table of its own; one adds a variable to what it finds."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.raw_table = table_of(folder / "raw.txt", "x", "y")
        self.layer_table = table_of(folder / "layer.txt", "a", "b")
        self.offset = tf.Variable(10, dtype=tf.int64)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def raw(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"place": self.raw_table.lookup(text)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def encoded(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"place": self.layer_table.lookup(text) + self.offset}


def test_tables_are_filled_where_the_encoded_signature_looks_up_and_nowhere_else(tmp_path: Path) -> None:
    module = Looked(tmp_path)
    signatures = {"serving_default": module.raw, "encoded": module.encoded}
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=signatures)
    # Without its content the table of the raw signature could not be filled.
    (tmp_path / "model" / "assets" / "raw.txt").unlink()
    backend = TrainedBackend(TrainedGraph(tmp_path / "model"), ENCODED_SIGNATURE)
    places = backend({"text": np.array(["b", "a", "x"], object)}, ("place",))["place"]
    assert places.tolist() == [11, 10, 9]


def test_vocabularies_of_the_raw_signature_are_not_read(flights_model: Path, tmp_path: Path) -> None:
    expected = LoadedModel(flights_model).score(FLIGHTS)["score"]
    copy = Path(shutil.copytree(flights_model, tmp_path / "copy"))
    assets = list((copy / SAVED_MODEL_FOLDER / "assets").iterdir())
    assert len(assets) == 3
    for file in assets:
        file.unlink()
    assert LoadedModel(copy).score(FLIGHTS)["score"].tolist() == expected.tolist()


def test_a_saved_model_without_the_signature_is_refused(tmp_path: Path) -> None:
    module = Looked(tmp_path)
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": module.raw})
    with pytest.raises(ModelOutputError, match="but not 'encoded'; export the model again"):
        TrainedBackend(TrainedGraph(tmp_path / "model"), ENCODED_SIGNATURE)


def test_nothing_can_be_added_to_the_graph_of_a_model_that_is_loaded(flights_model: Path) -> None:
    """S5: a trace would be an error, so that none has to be counted."""
    graph = TrainedGraph(flights_model / SAVED_MODEL_FOLDER)
    TrainedBackend(graph, ENCODED_SIGNATURE)
    with graph._session.graph.as_default(), pytest.raises(RuntimeError, match="finalized"):
        tf.constant(1.0)
