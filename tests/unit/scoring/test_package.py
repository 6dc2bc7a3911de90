"""A model of another library, packaged, scores as that library does, whatever computes it."""

import importlib
import json
import shutil
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.scoring.backends import keras_file
from mirrorspark.scoring.backends.protocol import ModelOutputError, UnsupportedModelError
from mirrorspark.scoring.input.inputs import Column
from mirrorspark.scoring.model.folder.directory import (
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    ModelDescription,
    ModelDirectory,
    exported_with,
)
from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.model.folder.packaged import PackagedDescription
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.stored import consent
from mirrorspark.scoring.model.stored.consent import UntrustedModelError, check_consent
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.package import package_model
from tests.unit.scoring.other_models import (
    LINEAR,
    NAMES,
    boxes,
    damaged,
    logistic,
    save_lightgbm,
    save_logistic_keras,
    save_logistic_onnx,
    save_logistic_saved_model,
    save_xgboost,
)

BOXES = boxes(1000)
SOFTMAX = {"coefficients": {"age": [1.0, 0.0], "visits": [0.0, 1.0]}, "link": "softmax"}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One logistic model in the files of several libraries."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "linear.json").write_text(json.dumps(LINEAR))
    return {
        "saved_model": package_model(save_logistic_saved_model(folder / "tf"), folder / "a"),
        "keras": package_model(save_logistic_keras(folder / "m.keras"), folder / "b", columns=NAMES),
        "h5": package_model(save_logistic_keras(folder / "m.h5"), folder / "c", columns=NAMES),
        "keras 3": package_model(
            save_logistic_keras(folder / "m3.keras", module="keras"), folder / "k3", columns=NAMES
        ),
        "keras 3 h5": package_model(
            save_logistic_keras(folder / "m3.h5", module="keras"), folder / "h3", columns=NAMES
        ),
        "onnx": package_model(save_logistic_onnx(folder / "m.onnx"), folder / "d", columns=NAMES),
        "linear": package_model(LINEAR, folder / "e"),
        "linear file": package_model(folder / "linear.json", folder / "f"),
    }


@pytest.mark.parametrize(
    "name", ["saved_model", "keras", "h5", "keras 3", "keras 3 h5", "onnx", "linear", "linear file"]
)
def test_one_call_scores_every_version_of_a_model_alike(packages: dict[str, Path], name: str) -> None:
    """S13: TensorFlow, tf-keras, ONNX Runtime and NumPy."""
    scores = LoadedModel(resolve(packages[name]).path, threads=1).score(BOXES, batch_size=300)
    assert list(scores) == ["score"]
    assert scores["score"].shape == (1000,)
    np.testing.assert_allclose(scores["score"], logistic(BOXES), rtol=0, atol=1e-6)


def test_a_table_without_rows_has_outputs_of_length_zero(packages: dict[str, Path]) -> None:
    for path in packages.values():
        (column,) = LoadedModel(path).score_arrow(BOXES.slice(0, 0)).values()
        assert len(column) == 0


def test_the_columns_of_a_package_are_checked_before_it_scores(packages: dict[str, Path]) -> None:
    for path in packages.values():
        with pytest.raises(ColumnError, match="column 'width' is missing"):
            ModelDirectory.open(path).inputs.check(BOXES.drop_columns(["width"]).schema)


def test_a_description_is_read_as_it_was_written(packages: dict[str, Path]) -> None:
    """S4: columns with their types and policies travel with the model."""
    description = PackagedDescription.load(packages["onnx"])
    assert [(column.name, column.type) for column in description.inputs.given] == [(name, "float") for name in NAMES]
    assert (description.outputs, description.backend) == ({"score": "float"}, "onnx")


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("saved_model", ["tensorflow"]),
        ("keras", ["tensorflow", "tf_keras"]),
        ("h5", ["tensorflow", "tf_keras"]),
        ("keras 3", ["tensorflow", "keras"]),
        ("onnx", ["onnxruntime"]),
        ("linear", ["numpy"]),
    ],
)
def test_a_package_tells_the_versions_that_its_scores_depend_on(
    packages: dict[str, Path], name: str, modules: list[str]
) -> None:
    """L10: by the names that pip has for them."""
    installed = {module.replace("_", "-"): importlib.import_module(module).__version__ for module in modules}
    assert exported_with(packages[name]).compared == installed


def test_a_package_of_before_there_were_labels_and_versions_has_none(packages: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packages["linear"], tmp_path / "copy"))
    document = json.loads((copy / DESCRIPTION_FILE).read_text())
    del document["labels"], document["versions"]
    (copy / DESCRIPTION_FILE).write_text(json.dumps(document))
    assert (ModelDirectory.open(copy).labels, exported_with(copy).compared) == ({}, {})
    np.testing.assert_allclose(LoadedModel(copy).score(BOXES)["score"], logistic(BOXES), rtol=0, atol=1e-6)


def test_labels_travel_with_the_model_and_are_as_many_as_it_gives_wherever_it_is_loaded(tmp_path: Path) -> None:
    """S7: another order or number would give every score a wrong name."""
    folder = package_model(SOFTMAX, tmp_path / "model", outputs={"p": "score"}, labels={"p": ["stays", "leaves"]})
    assert ModelDirectory.open(folder).labels == LoadedModel(folder).labels == {"p": ("stays", "leaves")}
    document = json.loads((folder / DESCRIPTION_FILE).read_text())
    (folder / DESCRIPTION_FILE).write_text(json.dumps(document | {"labels": {"p": ["a", "b", "c"]}}))
    with pytest.raises(ModelOutputError, match=r"'p' of the model has 2 elements per row, .* names 3 labels"):
        LoadedModel(folder)
    (folder / DESCRIPTION_FILE).write_text(json.dumps(document | {"labels": {"p": ["a", "a"]}}))
    with pytest.raises(ModelDirectoryError, match=r"the labels of output 'p' hold \['a'\] twice"):
        ModelDirectory.open(folder)


@pytest.mark.parametrize(
    ("source", "labels", "message"),
    [
        (SOFTMAX, {"score": ["a"]}, "output 'score' has 2 elements per row, and labels names 1; .* one name for each"),
        (SOFTMAX, {"score": ["a", "a"]}, r"'score' hold \['a'\] twice; give each element a name of its own"),
        (SOFTMAX, {"score": ["a", " "]}, r"'score' hold \[' '\]; give each as a text that is not empty"),
        (SOFTMAX, {"score": [0, 1]}, r"'score' hold \[0, 1\]; give each as a text"),
        (SOFTMAX, {"scores": ["a", "b"]}, r"which 'scores' is not: the outputs are \{'score': 'array<double>'\}"),
        (LINEAR, {"score": ["a"]}, r"an output of several scores per row .*, which 'score' is not"),
    ],
)
def test_labels_that_do_not_name_each_element_once_are_refused(
    tmp_path: Path, source: Any, labels: Any, message: str
) -> None:
    with pytest.raises(ModelDirectoryError, match=message):
        package_model(source, tmp_path / "model", labels=labels)
    assert list(tmp_path.iterdir()) == []


def test_columns_change_what_becomes_of_null(tmp_path: Path) -> None:
    folder = package_model(LINEAR, tmp_path / "model", columns=[Column("width", "double", fill=1.0)])
    table = pa.table({"height": [0.0], "width": pa.array([None], pa.float64()), "depth": [0.0]})
    assert LoadedModel(folder).score(table)["score"] == pytest.approx(1 / (1 + np.exp(1.0)))


def test_outputs_are_chosen_and_named(tmp_path: Path) -> None:
    folder = package_model(LINEAR, tmp_path / "model", outputs={"probability": "score"})
    assert list(LoadedModel(folder).score(BOXES)) == ["probability"]
    assert ModelDirectory.open(folder).description.outputs == {"probability": "double"}


def test_several_outputs_of_a_linear_model_are_a_list(tmp_path: Path) -> None:
    source = {"coefficients": {"a": [1.0, 0.0], "b": [0.0, 1.0]}, "intercept": [0.0, 1.0], "link": "softmax"}
    folder = package_model(source, tmp_path / "model")
    scores = LoadedModel(folder).score_arrow(pa.table({"a": [1.0], "b": [2.0]}))["score"]
    assert scores.type == pa.list_(pa.float64())
    # Of 1 and 2 + 1.
    assert scores.to_pylist()[0] == pytest.approx([1 / (1 + np.exp(2)), 1 / (1 + np.exp(-2))])


@pytest.mark.parametrize(("link", "expected"), [("identity", 3.0), ("log", np.exp(3.0)), ("logit", 0.9525741268)])
def test_links_are_those_of_generalised_linear_models(tmp_path: Path, link: str, expected: float) -> None:
    folder = package_model({"coefficients": {"a": 2.0}, "intercept": 1.0, "link": link}, tmp_path / "model")
    assert LoadedModel(folder).score(pa.table({"a": [1.0]}))["score"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("m.onnx", {}, ModelDirectoryError, "takes one array of 3 values per row and has no names for them; give col"),
        ("m.onnx", {"columns": ["a"]}, ModelDirectoryError, r"takes 3 values per row, but columns names 1: \['a'\]"),
        ("m.ubj", {"columns": ["a"]}, ModelDirectoryError, r"columns \['a'\] are not inputs of the model, which has"),
        ("m.ubj", {"columns": ["width"] * 2}, ModelDirectoryError, "name one twice"),
        ("m.ubj", {"outputs": {"score": "margin"}}, ModelDirectoryError, r"\['margin'\] are none of .*\['score'\]"),
        (
            "m.pmml",
            {},
            ModelDirectoryError,
            r"ends in '.pmml', which is not a known format of models; give one of \['.h5'",
        ),
        ("absent.onnx", {}, ModelDirectoryError, "there is no model at"),
        ("empty", {}, ModelDirectoryError, "holds no SavedModel"),
        ("tf", {"signature": "predict"}, UnsupportedModelError, r"has the signatures \['serving_default'\] but not 'p"),
        ("damaged.onnx", {}, UnsupportedModelError, "ONNX Runtime .* cannot load"),
        ("parts.onnx", {}, UnsupportedModelError, "weights are stored in files of their own has to be saved as one"),
        ("damaged.ubj", {}, UnsupportedModelError, "XGBoost cannot read"),
        ("damaged.txt", {}, UnsupportedModelError, "LightGBM cannot read"),
        ("damaged.keras", {}, UnsupportedModelError, "holds no Keras model"),
        ("damaged.json", {}, UnsupportedModelError, "is not valid JSON"),
        ({"coefficients": {}}, {}, UnsupportedModelError, "one coefficient per column"),
        ({"coefficients": {"a": 1}, "bias": 2}, {}, UnsupportedModelError, r"the linear model has \['bias'\], which"),
        ({"coefficients": {"a": 1}, "link": "probit"}, {}, UnsupportedModelError, "link 'probit' is unknown; use one"),
        ({"coefficients": {"a": 1}, "intercept": [1, 2]}, {}, UnsupportedModelError, r"intercept has the shape \(2,\)"),
        ({"coefficients": {"a": [1, 2], "b": 3}}, {}, UnsupportedModelError, "must be numbers, or lists of one number"),
        ({"coefficients": {"a": 1}, "link": "softmax"}, {}, UnsupportedModelError, "softmax is of several outputs"),
    ],
)
def test_a_failed_package_gives_the_reason_and_leaves_no_files(
    sources: Path, tmp_path: Path, source: Any, options: Any, error: type[Exception], message: str
) -> None:
    given = source if isinstance(source, dict) else sources / source
    with pytest.raises(error, match=message) as raised:
        package_model(given, tmp_path / "model", **options)
    assert str(tmp_path) not in str(raised.value)  # where the copy was, of which nobody knows
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    save_logistic_saved_model(folder / "tf")
    save_logistic_onnx(folder / "m.onnx")
    save_xgboost(folder / "m.ubj")
    weights = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save_model(onnx.load(folder / "m.onnx"), folder / "parts.onnx", **weights)
    for ending in ("onnx", "ubj", "txt", "keras", "json"):
        (folder / f"damaged.{ending}").write_bytes(b"{no model")
    (folder / "m.pmml").touch()
    (folder / "empty").mkdir()
    return folder


def test_a_folder_that_holds_something_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "note").touch()
    with pytest.raises(ModelDirectoryError, match="exists already"):
        package_model(LINEAR, tmp_path)


def test_a_package_of_a_later_version_or_damaged_is_refused(packages: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packages["linear"], tmp_path / "copy"))
    document = json.loads((copy / DESCRIPTION_FILE).read_text())
    for change, message in (
        ({"format_version": 3}, "format version 3"),
        ({"inputs": {"given": [{"name": "a"}], "matrix": None}}, "is damaged .*package it again"),
        ({"inputs": {"given": [], "matrix": None}}, "at least one column"),
        ({"file": "gone.json"}, "lacks gone.json"),
    ):
        (copy / DESCRIPTION_FILE).write_text(json.dumps(document | change))
        with pytest.raises(ModelDirectoryError, match=message):
            ModelDirectory.open(copy)


def test_folders_of_the_first_format_are_read_and_still_written(flights_model: Path) -> None:
    """Models that were exported before there were packages stay readable."""
    document = json.loads((flights_model / DESCRIPTION_FILE).read_text())
    fields = {
        "task",
        "architecture",
        "features_hash",
        "outputs",
        "versions",
        "indexes",
        "format_version",
        "columns",
        "sealed",
    }
    assert (set(document), document["format_version"], FORMAT_VERSION) == (fields, 1, 1)
    assert ModelDirectory.open(flights_model).description == ModelDescription(**document)


def test_a_package_has_no_fitted_features_and_says_so(packages: dict[str, Path]) -> None:
    with pytest.raises(ModelDirectoryError, match=r"is of another library and has no fitted features.*training\.run"):
        _ = ModelDirectory.open(packages["onnx"]).features


@pytest.mark.parametrize(
    ("name", "module", "need"),
    [("onnx", "onnxruntime", "needs ONNX Runtime"), ("saved_model", "tensorflow", "needs TensorFlow")],
)
def test_a_library_that_is_missing_where_a_model_is_loaded_is_named(
    packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str, module: str, need: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    with pytest.raises(ModuleNotFoundError, match=rf"{need}, but .* has no module '{module}'; .* run: pip install"):
        LoadedModel(packages[name])


def lambda_model(path: Path, module: str = "tf_keras") -> Path:
    """Save a model of which a part is Python bytecode in the file."""
    keras = importlib.import_module(module)
    inputs = keras.Input((3,), name="boxes")
    doubled = keras.layers.Lambda(lambda values: values[:, :1] * 2.0, output_shape=(1,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # tf-keras calls its own HDF5 form legacy
        keras.Model(inputs, doubled(inputs)).save(path)
    return path


def with_foreign_class(path: Path) -> Path:
    """Save a model, and have its file name a class of another module in place of Keras' own."""
    import h5py

    save_logistic_keras(path)
    with h5py.File(path, "r+") as file:
        document = json.loads(file.attrs["model_config"])
        document["config"]["layers"][-1] |= {"module": "subprocess", "class_name": "Popen", "registered_name": "Popen"}
        file.attrs["model_config"] = json.dumps(document)
    return path


def test_code_in_a_keras_file_runs_only_for_those_who_trust_it(tmp_path: Path) -> None:
    """S12: the folder of the package carries the trust to wherever it is scored."""
    columns = ["width", "height", "depth"]
    table = pa.table({name: pa.array([float(number), 2.0]) for number, name in enumerate(columns, 3)})
    for suffix, module in ((".h5", "tf_keras"), (".keras", "tf_keras"), (".keras", "keras")):
        source = lambda_model(tmp_path / f"m{suffix}", module)
        with pytest.raises(UnsupportedModelError, match=rf"m\{suffix} holds a Lambda layer, .*give trust=True"):
            package_model(source, tmp_path / "refused", columns=columns)
        folder = package_model(source, tmp_path / f"{module}{suffix}", columns=columns, trust=True)
        (scores,) = LoadedModel(folder).score(table).values()
        assert scores.ravel().tolist() == [6.0, 4.0]
    with pytest.raises(UnsupportedModelError, match=r"holds an object of subprocess\.Popen, which loading would run"):
        package_model(with_foreign_class(tmp_path / "foreign.h5"), tmp_path / "refused", columns=NAMES)
    (tmp_path / "weights.h5").write_bytes(b"no model")
    with pytest.raises(UnsupportedModelError, match=r"weights\.h5 holds no Keras model"):
        package_model(tmp_path / "weights.h5", tmp_path / "refused", columns=NAMES)
    assert not (tmp_path / "refused").exists()


def test_an_archive_behind_an_hdf5_file_hides_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S12: tf-keras reads such a file as HDF5, so its archive does not matter."""
    source = lambda_model(tmp_path / "m.h5")
    with zipfile.ZipFile(save_logistic_keras(tmp_path / "harmless.keras")) as archive:
        harmless = archive.read("config.json")
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("config.json", harmless)
    with pytest.raises(UnsupportedModelError, match="holds a Lambda layer"):
        package_model(source, tmp_path / "refused", columns=NAMES)
    # Where the search finds nothing, tf-keras itself refuses the code.
    monkeypatch.setattr(keras_file, "_code_in", lambda path: None)
    with pytest.raises(UnsupportedModelError, match="arbitrary code execution"):
        package_model(source, tmp_path / "refused", columns=NAMES)


@pytest.mark.parametrize(
    "function",
    [
        *("keras.models.load_model", "load_op_library", "io.gfile.remove", "nothing", "py_function", "numpy_function"),
        *("io.read_file", "io.write_file", "io.matching_files", "compat.v1.py_func", "lookup.TextFileInitializer"),
        *(f"raw_ops.{name}" for name in ("ReadFile", "WriteFile", "PyFunc", "EagerPyFunc", "RestoreV2", "SaveV2")),
        *(
            f"raw_ops.{name}"
            for name in ("TFRecordDataset", "InitializeTableFromTextFile", "RemoteCall", "EncodeProto")
        ),
    ],
)
def test_a_keras_file_calls_only_operations_of_graphs(tmp_path: Path, function: str) -> None:
    """S12: a layer of an operation names any public function, and may call it when it is loaded."""
    import h5py
    import tf_keras

    inputs = tf_keras.Input((3,), name="boxes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # tf-keras calls its own HDF5 form legacy
        tf_keras.Model(inputs, tf_keras.activations.gelu(inputs[:, :1] * 2.0)).save(tmp_path / "m.h5")
    package_model(tmp_path / "m.h5", tmp_path / "model", columns=NAMES)
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        document = file.attrs["model_config"]
        assert '"math.multiply"' in document
        file.attrs["model_config"] = document.replace('"math.multiply"', f'"{function}"')
    with pytest.raises(UnsupportedModelError, match=f"holds a call of {function}, which loading would run"):
        package_model(tmp_path / "m.h5", tmp_path / "refused", columns=NAMES)


@pytest.mark.parametrize("layer", ["StringLookup", "IntegerLookup", "TextVectorization", "Hidden"])
def test_a_keras_file_reads_no_vocabulary_from_another_file_without_trust(tmp_path: Path, layer: str) -> None:
    """The path comes from whoever made the file, and what is read there may leave with the scores."""
    import tf_keras

    secret = tmp_path / "secret.txt"
    secret.write_text("3\n5\n")
    kind = "IntegerLookup" if layer == "IntegerLookup" else "StringLookup" if layer == "Hidden" else layer
    raw = tf_keras.Input((1,), name="word", dtype="int64" if kind == "IntegerLookup" else "string")
    looked_up = getattr(tf_keras.layers, kind)(vocabulary=str(secret))
    inner: Any = looked_up(raw)
    if layer == "Hidden":  # in a model that is a layer of the model
        inner = tf_keras.Model(raw, inner)(raw)
    tf_keras.Model(raw, inner).save(tmp_path / "m.keras")

    with pytest.raises(UnsupportedModelError, match=f"holds a layer {kind} that reads the file .*secret.txt"):
        package_model(tmp_path / "m.keras", tmp_path / "refused")


@pytest.mark.parametrize(
    ("module", "prefix"),
    [("subprocess", ""), ("keras.src.utils.file_utils", ""), ("keras.saving", ""), ("keras", "utils.")],
)
def test_a_file_of_keras_3_names_only_parts_of_models(tmp_path: Path, module: str, prefix: str) -> None:
    """S12: Keras itself would look the name up, and may find a function that fetches or reads files."""
    source = save_logistic_keras(tmp_path / "m.keras", module="keras")
    with zipfile.ZipFile(source) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    named = f'"{module}", "class_name": "{prefix}'.encode()
    content["config.json"] = content["config.json"].replace(b'"keras.initializers", "class_name": "', named)
    with zipfile.ZipFile(source, "w") as archive:
        for name, part in content.items():
            archive.writestr(name, part)
    with pytest.raises(UnsupportedModelError, match=rf"holds an object of {module}\.{prefix}\w+, which loading"):
        package_model(source, tmp_path / "refused", columns=NAMES)


def test_a_file_of_keras_3_keeps_names_order_and_types_of_its_inputs(tmp_path: Path) -> None:
    import keras

    size, rooms = keras.Input((1,), name="size"), keras.Input((1,), name="rooms", dtype="int64")
    known = keras.layers.Flatten()(keras.layers.Embedding(4, 2)(rooms))
    both = keras.layers.Concatenate()([keras.layers.Normalization(mean=1.0, variance=4.0)(size), known])
    model = keras.Model({"size": size, "rooms": rooms}, keras.layers.Dense(1, name="price")(keras.ops.abs(both) * 2.0))
    model.save(tmp_path / "m.keras")
    folder = package_model(tmp_path / "m.keras", tmp_path / "model")
    table = pa.table({"rooms": [1, 3], "size": [0.5, -2.0]})
    expected = model({"size": np.array([[0.5], [-2.0]]), "rooms": np.array([[1], [3]])}).numpy()
    np.testing.assert_allclose(LoadedModel(folder).score(table)["price"], expected[:, 0], rtol=1e-6)


def file_reader(folder: Path, operation: str) -> Path:
    """Save a SavedModel whose graph has an operation that calls Python, or reads or writes files."""
    import tensorflow as tf

    def call(path: Any) -> dict[str, Any]:
        if operation == "ReadFile":
            found = tf.map_fn(tf.io.read_file, path)
        elif operation == "WriteFile":
            with tf.control_dependencies([tf.io.write_file(path[0], "planted")]):
                found = tf.identity(path)
        elif operation == "PrintV2":
            with tf.control_dependencies([tf.print(path, output_stream=f"file://{folder}.planted")]):
                found = tf.identity(path)
        else:
            function = tf.py_function if operation == "EagerPyFunc" else tf.numpy_function
            found = function(lambda one: one, [path], tf.string)
        return {"found": tf.ensure_shape(found, [None])}

    module = tf.Module()
    module.call = tf.function(call, input_signature=[tf.TensorSpec([None], tf.string, "path")], autograph=False)
    tf.saved_model.save(module, str(folder), signatures=module.call)
    return folder


@pytest.mark.parametrize("operation", ["ReadFile", "WriteFile", "PrintV2"])
def test_the_graphs_of_a_saved_model_touch_files_only_for_those_who_trust_it(tmp_path: Path, operation: str) -> None:
    source = file_reader(tmp_path / "source", operation)
    with pytest.raises(UnsupportedModelError, match=f"has the operations {operation}, which read or write files"):
        package_model(source, tmp_path / "refused")

    folder = package_model(source, tmp_path / "model", trust=True)

    check_consent(ModelDirectory.open(folder), "it")  # by who has packaged it
    consent._PACKAGED_HERE.clear()
    with pytest.raises(UntrustedModelError, match="such as operations that read or write files"):
        check_consent(ModelDirectory.open(folder), "it")
    # A folder cannot consent for itself.
    document = json.loads((folder / "mirrorspark.json").read_text())
    (folder / "mirrorspark.json").write_text(json.dumps(document | {"trusted": False}))
    with pytest.raises(UnsupportedModelError, match=f"has the operations {operation}, which read or write files"):
        LoadedModel(folder)


@pytest.mark.parametrize("operation", ["EagerPyFunc", "PyFunc"])
def test_a_saved_model_that_calls_python_is_refused_because_the_function_is_not_in_it(
    tmp_path: Path, operation: str
) -> None:
    source = file_reader(tmp_path / "source", operation)
    for trust in (False, True):
        with pytest.raises(UnsupportedModelError, match=f"has the operations {operation}.*which call Python functions"):
            package_model(source, tmp_path / "refused", trust=trust)


def test_a_saved_model_without_such_operations_needs_no_consent_even_if_it_was_trusted(tmp_path: Path) -> None:
    folder = package_model(save_logistic_saved_model(tmp_path / "tf"), tmp_path / "model", trust=True)

    assert json.loads((folder / "mirrorspark.json").read_text()).get("trusted") in (None, False)


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.onnx", "m.ubj", "m.txt", "m.json", "saved_model.pb"])
def test_a_damaged_model_is_read_or_ends_in_an_error_of_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / "whole").mkdir()
    source = tmp_path / "whole" / name
    match name:
        case "saved_model.pb":
            save_logistic_saved_model(tmp_path / "whole")
        case "m.onnx":
            save_logistic_onnx(source)
        case "m.ubj":
            save_xgboost(source)
        case "m.txt":
            save_lightgbm(source)
        case "m.json":
            source.write_text(json.dumps(LINEAR))
        case _:
            save_logistic_keras(source)
    # XGBoost and LightGBM themselves do not survive every number in their trees.
    bits = 0 if name in ("m.ubj", "m.txt") else 12
    whole, refused = source.read_bytes(), 0
    for number, content in enumerate(damaged(whole, turned_bits=bits)):
        source.write_bytes(content)
        given = tmp_path / "whole" if name == "saved_model.pb" else source
        try:
            package_model(given, tmp_path / f"model-{number}", columns=None if name == "saved_model.pb" else NAMES)
        except (UnsupportedModelError, ModelDirectoryError):
            refused += 1
    assert refused >= 4


@pytest.mark.parametrize("file", ["../outside.json", "/outside.json", "inner/../../outside.json", "__pycache__/x.json"])
def test_a_package_scores_no_file_outside_of_its_digest(packages: dict[str, Path], tmp_path: Path, file: str) -> None:
    """S12."""
    copy = Path(shutil.copytree(packages["linear"], tmp_path / "copy"))
    document = json.loads((copy / DESCRIPTION_FILE).read_text())
    (tmp_path / "outside.json").write_bytes((copy / document["file"]).read_bytes())
    (copy / DESCRIPTION_FILE).write_text(json.dumps(document | {"file": file}))
    with pytest.raises(ModelDirectoryError, match="outside of the model's folder or its digest"):
        ModelDirectory.open(resolve(copy).path)


def test_a_linked_folder_in_a_model_is_refused(packages: dict[str, Path], tmp_path: Path) -> None:
    """S12: its files would be outside of the digest."""
    copy = Path(shutil.copytree(packages["saved_model"], tmp_path / "copy"))
    (copy / "saved_model").rename(tmp_path / "elsewhere")
    (copy / "saved_model").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelDirectoryError, match="saved_model is a link to a folder"):
        resolve(copy)
