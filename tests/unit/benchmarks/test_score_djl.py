"""What the benchmark against DJL does so that an older TensorFlow is found and reads a model of today's (S9)."""

import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from benchmarks.score_djl import for_older_tensorflow, native_libraries


class Doubling(tf.Module):
    """A module with one variable."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = tf.Variable(2.0, name="factor")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "values")])
    def doubled(self, values: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return twice the values."""
        return {"score": self.factor * values}


def attributes(folder: Path) -> set[str]:
    """Return the names of the attributes of all variables of a SavedModel."""
    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    nodes = [node for graph in model.meta_graphs for node in graph.graph_def.node if node.op == "VarHandleOp"]
    assert nodes
    return {name for node in nodes for name in node.attr}


def test_model_loses_the_debug_names_of_its_variables_and_gives_the_same_scores(tmp_path: Path) -> None:
    module = Doubling()
    tf.saved_model.save(module, str(tmp_path / "new"), signatures=module.doubled)

    for_older_tensorflow(tmp_path / "new", tmp_path / "old")

    assert attributes(tmp_path / "new") - attributes(tmp_path / "old") == {"debug_name"}
    scores = tf.saved_model.load(str(tmp_path / "old")).signatures["serving_default"](tf.constant([1.5, -2.0]))
    np.testing.assert_array_equal(scores["score"].numpy(), [3.0, -4.0])


def test_libraries_are_taken_out_of_their_jar_and_a_half_written_one_anew(tmp_path: Path) -> None:
    jar = tmp_path / "tensorflow-native-cpu-2.10.1-linux-x86_64.jar"
    with zipfile.ZipFile(jar, "w") as written:
        written.writestr("native/lib/libtensorflow_cc.so.2", b"all of it")
        written.writestr("native/lib/libjnitensorflow.so", b"bindings")
        written.writestr("native/lib/tensorflow.properties", b"classifier=cu113-linux-x86_64")
        written.writestr("META-INF/LICENSE", b"Apache")
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "libtensorflow_cc.so.2").write_bytes(b"half")

    found = native_libraries([tmp_path / "classes", jar], folder)

    assert {file.name: file.read_bytes() for file in found.iterdir()} == {
        "libtensorflow_cc.so.2": b"all of it",
        "libjnitensorflow.so": b"bindings",
    }
