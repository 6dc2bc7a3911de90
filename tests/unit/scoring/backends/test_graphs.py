"""ONNX files, SavedModels and Keras files: arrays by name, outputs by name, and what no column holds."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import tensorflow as tf
import tf_keras
from onnx import TensorProto, helper, numpy_helper, save

from mirrorspark.scoring.backends.protocol import UnsupportedModelError
from mirrorspark.scoring.input.inputs import Column
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.predictor import Predictor
from mirrorspark.serving.export.export import export_model

ROWS = pa.table(
    {"x": [1.0, -2.0, 3.0], "n": [1, 2, 3], "text": ["a", "b", ""], "pair": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}
)


def save_onnx(path: Path, nodes: Any, inputs: Any, outputs: Any, constants: Any = ()) -> Path:
    """Save a graph; an input or output is a name, a type and the lengths of its dimensions."""
    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "graph",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        list(constants),
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of inputs of several types and ranks; each output is one of them, or all but unchanged."""
    return save_onnx(
        tmp_path_factory.mktemp("onnx") / "m.onnx",
        [
            ("Neg", ["x"], ["minus"]),
            ("Identity", ["n"], ["same"]),
            ("Identity", ["text"], ["copy"]),
            ("Neg", ["pair"], ["pairs"]),
            ("Less", ["x", "zero"], ["negative"]),
            ("Sub", ["x", "x"], ["zero"]),
        ][::-1],
        [
            ("x", TensorProto.DOUBLE, ["rows", 1]),
            ("n", TensorProto.INT64, ["rows"]),
            ("text", TensorProto.STRING, ["rows"]),
            ("pair", TensorProto.FLOAT, ["rows", 2]),
        ],
        [
            ("minus", TensorProto.DOUBLE, ["rows", 1]),
            ("same", TensorProto.INT64, ["rows"]),
            ("copy", TensorProto.STRING, ["rows"]),
            ("pairs", TensorProto.FLOAT, ["rows", 2]),
            ("negative", TensorProto.BOOL, ["rows", 1]),
        ],
    )


def test_onnx_arrays_and_the_exported_file_may_have_any_names(tmp_path: Path) -> None:
    names = ["a.b", "a b", "a/b", "a_b", "\u5e74\u9f62", "\U0001f3ac", "A.b", "class"]
    file = save_onnx(
        tmp_path / "m.onnx",
        [("Sum", names, ["score"])],
        [(name, TensorProto.FLOAT, ["rows", 1]) for name in names],
        [("score", TensorProto.FLOAT, ["rows", 1])],
    )
    rows = {name: [float(2**place), 0.5] for place, name in enumerate(names)}
    folder = package_model(file, tmp_path / "model")
    assert LoadedModel(folder).score(pa.table(rows))["score"].tolist() == [255.0, 4.0]
    (answer,) = Predictor(folder).predict_rows([{name: values[0] for name, values in rows.items()}])
    assert answer["score"] == 255.0
    exported = export_model(str(folder), tmp_path / "served", name="odd", version=1, format="onnx")
    session = onnxruntime.InferenceSession(exported.folder / "model.onnx", providers=["CPUExecutionProvider"])
    arrays = {name: np.array(values, np.float32)[:, None] for name, values in rows.items()}
    assert session.run(["score"], arrays)[0].ravel().tolist() == [255.0, 4.0]


def test_onnx_arrays_are_columns_by_name_of_the_types_that_the_model_says(onnx_file: Path, tmp_path: Path) -> None:
    folder = package_model(onnx_file, tmp_path / "model")
    directory = ModelDirectory.open(folder)
    assert [(column.name, column.type) for column in directory.description.inputs.given] == [
        ("x", "double"),
        ("n", "bigint"),
        ("text", "string"),
        ("pair", "array<float>"),
    ]
    columns = LoadedModel(folder).score_arrow(ROWS, batch_size=2)
    assert {name: (str(column.type), column.to_pylist()) for name, column in columns.items()} == {
        "minus": ("double", [-1.0, 2.0, -3.0]),
        "same": ("int64", [1, 2, 3]),
        "copy": ("string", ["a", "b", ""]),
        "pairs": ("list<item: float>", [[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]]),
        "negative": ("bool", [False, True, False]),
    }


def test_outputs_that_are_not_wanted_are_left_out(onnx_file: Path, tmp_path: Path) -> None:
    folder = package_model(onnx_file, tmp_path / "model", outputs={"text": "copy"})
    assert list(LoadedModel(folder).score(ROWS)) == ["text"]


def test_numbers_of_a_column_are_cast_to_what_the_model_takes(onnx_file: Path, tmp_path: Path) -> None:
    """The same holds where every array is a column of its own."""
    columns = [Column("x", "bigint", fill=7), Column("n", "boolean"), Column("pair", "array<int>")]
    folder = package_model(onnx_file, tmp_path / "model", columns=columns)
    table = pa.table({"x": [1, None], "n": [True, False], "text": ["a", "b"], "pair": [[1, 2], [3, 4]]})
    scores = LoadedModel(folder).score_arrow(table)
    assert {name: scores[name].to_pylist() for name in ("minus", "same", "pairs")} == {
        "minus": [-1.0, -7.0],
        "same": [1, 0],
        "pairs": [[-1.0, -2.0], [-3.0, -4.0]],
    }


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (Column("n", "double"), r"'n' is double, and the model takes bigint, to which \['boolean', 'int', "),
        (Column("text", "int"), r"'text' is int, and the model takes string, to which \['string'\] can be cast"),
        (Column("text", "binary"), r"'text' is binary, and the model takes string, to which \['string'\] can be cast"),
        (Column("n", "array<bigint>"), r"'n' is array<bigint>, and the model takes bigint; give it as that"),
        (Column("pair", "float"), r"'pair' is float, and the model takes array<float>; give it as that"),
    ],
)
def test_a_column_that_cannot_become_the_model_s_array_is_refused_when_it_is_packaged(
    onnx_file: Path, tmp_path: Path, column: Column, message: str
) -> None:
    with pytest.raises(ModelDirectoryError, match=message):
        package_model(onnx_file, tmp_path / "model", columns=[column])


def test_lists_of_one_value_become_an_array_of_two_dimensions(onnx_file: Path, tmp_path: Path) -> None:
    folder = package_model(onnx_file, tmp_path / "model", columns=[Column("x", "array<double>")])
    rows = ROWS.set_column(0, "x", pa.array([[1.0], [2.0], [3.0]]))
    assert LoadedModel(folder).score(rows)["minus"].tolist() == [-1.0, -2.0, -3.0]


def test_lists_of_another_length_than_the_model_takes_are_faults_of_their_rows(onnx_file: Path, tmp_path: Path) -> None:
    model = LoadedModel(package_model(onnx_file, tmp_path / "model"))
    pairs = pa.array([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]])
    (batch,) = ROWS.set_column(3, "pair", pairs).to_batches()
    assert {row: message.split(",")[0] for row, message in model.row_errors(batch).items()} == {
        1: "column 'pair' (array<float>) has 1 elements",
        2: "column 'pair' (array<float>) has 3 elements",
    }


def test_an_output_that_no_column_holds_is_refused_only_where_it_is_wanted(tmp_path: Path) -> None:
    source = save_onnx(
        tmp_path / "m.onnx",
        [("Neg", ["x"], ["minus"]), ("Reshape", ["x", "shape"], ["cube"])],
        [("x", TensorProto.FLOAT, ["rows"])],
        [("minus", TensorProto.FLOAT, ["rows"]), ("cube", TensorProto.FLOAT, ["rows", 1, 1])],
        [numpy_helper.from_array(np.array([-1, 1, 1], np.int64), "shape")],
    )
    with pytest.raises(UnsupportedModelError, match=r"'cube' is a tensor\(float\) of .* or leave such an output out"):
        package_model(source, tmp_path / "all")
    folder = package_model(source, tmp_path / "one", outputs={"minus": "minus"})
    assert LoadedModel(folder).score(ROWS)["minus"].tolist() == [-1.0, 2.0, -3.0]

    module = tf.Module()
    module.call = tf.function(
        lambda x: {"minus": -x, "cube": x[:, None, None], "half": tf.cast(x, tf.float16)},
        input_signature=[tf.TensorSpec([None], tf.float32, "x")],
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path / "tf"), signatures=module.call)
    for unwanted in ("cube", "half"):
        with pytest.raises(UnsupportedModelError, match=f"'{unwanted}' is a tensor of"):
            package_model(tmp_path / "tf", tmp_path / "all", outputs={"minus": "minus", "other": unwanted})
    folder = package_model(tmp_path / "tf", tmp_path / "two", outputs={"minus": "minus"})
    assert LoadedModel(folder).score(ROWS)["minus"].tolist() == [-1.0, 2.0, -3.0]


def test_one_array_of_numbers_may_be_a_column_of_arrays(tmp_path: Path) -> None:
    source = save_onnx(
        tmp_path / "m.onnx",
        [("ReduceSum", ["all"], ["sum"])],
        [("all", TensorProto.FLOAT, ["rows", 3])],
        [("sum", TensorProto.FLOAT, [1, 1])],
    )
    with pytest.raises(UnsupportedModelError, match=r"'sum' is a tensor\(float\) of shape \[1, 1\]"):
        package_model(source, tmp_path / "model", columns=["x", "y", "z"])
    source = save_onnx(
        tmp_path / "m.onnx",
        [("Neg", ["all"], ["minus"])],
        [("all", TensorProto.FLOAT, ["rows", 3])],
        [("minus", TensorProto.FLOAT, ["rows", 3])],
    )
    folder = package_model(source, tmp_path / "model", columns=["x", Column("pair", "array<float>")])
    assert LoadedModel(folder).score(ROWS)["minus"].tolist() == [[-1, -1, -2], [2, -3, -4], [-3, -5, -6]]


def test_labels_are_for_an_output_of_a_fixed_number_of_scores(tmp_path: Path) -> None:
    """S7."""
    source = save_onnx(
        tmp_path / "m.onnx",
        [("Neg", ["all"], ["minus"])],
        [("all", TensorProto.FLOAT, ["rows", "length"])],
        [("minus", TensorProto.FLOAT, ["rows", "length"])],
    )
    columns = [Column("pair", "array<float>")]
    with pytest.raises(ModelDirectoryError, match="'minus' has no fixed number of elements per row, and labels"):
        package_model(source, tmp_path / "model", columns=columns, labels={"minus": ["a", "b"]})


def test_an_onnx_input_that_no_column_holds_is_refused(tmp_path: Path) -> None:
    source = save_onnx(
        tmp_path / "m.onnx",
        [("Identity", ["image"], ["same"])],
        [("image", TensorProto.FLOAT, ["rows", 8, 8])],
        [("same", TensorProto.FLOAT, ["rows", 8, 8])],
    )
    with pytest.raises(UnsupportedModelError, match=r"'image' is a tensor\(float\) of shape \[None, 8, 8\]; arrays of"):
        package_model(source, tmp_path / "model")


class Looked(tf.Module):
    """Looks texts up in a table, whose content is in a file; has two signatures."""

    def __init__(self, file: Path) -> None:
        file.write_text("a\nb\n")
        initializer = tf.lookup.TextFileInitializer(
            str(file), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        )
        self.table = tf.lookup.StaticHashTable(initializer, -1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def place(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"place": self.table.lookup(text)}

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, "x")])
    def double(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"doubled": 2 * x, "text": tf.strings.as_string(x[:, 0], precision=0)}


def test_a_saved_model_is_called_by_the_signature_that_is_named(tmp_path: Path) -> None:
    module = Looked(tmp_path / "words.txt")
    signatures = {"place": module.place, "double": module.double}
    tf.saved_model.save(module, str(tmp_path / "source"), signatures=signatures)
    (tmp_path / "words.txt").unlink()
    place = package_model(tmp_path / "source", tmp_path / "place", signature="place")
    double = package_model(tmp_path / "source", tmp_path / "double", signature="double")
    of_bytes = package_model(
        tmp_path / "source", tmp_path / "bytes", signature="place", columns=[Column("text", "binary")]
    )
    assert LoadedModel(place).score(ROWS)["place"].tolist() == [0, 1, -1]
    # TensorFlow's strings are bytes, which need not be text.
    assert LoadedModel(of_bytes).score(pa.table({"text": [b"b", b"\xff"]}))["place"].tolist() == [1, -1]
    doubled = LoadedModel(double).score_arrow(ROWS)
    assert doubled["doubled"].to_pylist() == [2.0, -4.0, 6.0]
    assert doubled["text"].to_pylist() == ["1", "-2", "3"]


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_keras_model_of_several_inputs_and_outputs(tmp_path: Path, ending: str) -> None:
    x, pair = tf_keras.Input((1,), name="x"), tf_keras.Input((2,), name="pair")
    both = tf_keras.layers.Concatenate()([x, pair])
    outputs = [tf_keras.layers.Dense(1, name="one")(both), tf_keras.layers.Dense(2, name="two")(both)]
    model = tf_keras.Model([x, pair], outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.save(tmp_path / f"m.{ending}")
    folder = package_model(tmp_path / f"m.{ending}", tmp_path / "model")
    arrays = [np.array(ROWS[name].to_pylist(), np.float32) for name in ("x", "pair")]
    one, two = model(arrays)
    scores = LoadedModel(folder).score(ROWS)
    np.testing.assert_allclose(scores["one"], one[:, 0], rtol=1e-6)
    np.testing.assert_allclose(scores["two"], two, rtol=1e-6)


def test_texts_and_lists_of_a_fixed_number_of_rows_are_padded_too(tmp_path: Path) -> None:
    """S5: three rows are two calls of two."""
    source = save_onnx(
        tmp_path / "m.onnx",
        [("Identity", ["text"], ["copy"]), ("Neg", ["pair"], ["pairs"])],
        [("text", TensorProto.STRING, [2]), ("pair", TensorProto.FLOAT, [2, 2])],
        [("copy", TensorProto.STRING, [2]), ("pairs", TensorProto.FLOAT, [2, 2])],
    )
    columns = LoadedModel(package_model(source, tmp_path / "model")).score_arrow(ROWS)
    assert columns["copy"].to_pylist() == ["a", "b", ""]
    assert columns["pairs"].to_pylist() == [[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]]


@pytest.mark.parametrize(("name", "inputs"), [("window", [["rows"], [24]]), ("x", [[3], [24]])])
def test_a_fixed_length_that_is_not_that_of_all_inputs_is_no_number_of_rows(
    tmp_path: Path, name: str, inputs: list[list[Any]]
) -> None:
    lengths = dict(zip(("x", "window"), inputs, strict=True))
    source = save_onnx(
        tmp_path / "m.onnx",
        [("Neg", ["x"], ["minus"]), ("Neg", ["window"], ["other"])],
        [(of, TensorProto.FLOAT, length) for of, length in lengths.items()],
        [("minus", TensorProto.FLOAT, lengths["x"]), ("other", TensorProto.FLOAT, lengths["window"])],
    )
    message = rf"'{name}' is a tensor\(float\) of shape \[\d+\]; arrays of .* \(any number, or the same for all inputs"
    with pytest.raises(UnsupportedModelError, match=message):
        package_model(source, tmp_path / "model", outputs={"minus": "minus"})


def test_an_output_that_has_not_the_fixed_number_of_rows_is_refused(tmp_path: Path) -> None:
    source = save_onnx(
        tmp_path / "m.onnx",
        [("ReduceSum", ["x"], ["sum"])],
        [("x", TensorProto.FLOAT, [4])],
        [("sum", TensorProto.FLOAT, [1])],
    )
    with pytest.raises(UnsupportedModelError, match=r"'sum' is a tensor\(float\) of shape \[1\]"):
        package_model(source, tmp_path / "model")


def test_a_keras_model_that_keeps_a_state_between_calls_is_refused(tmp_path: Path) -> None:
    """It has a fixed number of rows, and what it gives for one depends on the call before."""
    series = tf_keras.Input((3, 1), batch_size=4)
    tf_keras.Sequential([series, tf_keras.layers.SimpleRNN(2, stateful=True)]).save(tmp_path / "m.keras")
    with pytest.raises(UnsupportedModelError, match="keeps a state from call to call"):
        package_model(tmp_path / "m.keras", tmp_path / "model")
