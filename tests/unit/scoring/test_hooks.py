"""S4, R8: functions that travel with a model run before and after it; they are files of it, and never pickled."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.scoring.backends.protocol import ModelOutputError, UnsupportedModelError
from mirrorspark.scoring.input.inputs import Column
from mirrorspark.scoring.model.folder.directory import DESCRIPTION_FILE, ModelDirectory
from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.model.hooks import HookError, Hooks
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.stored.digest import folder_digest
from mirrorspark.scoring.package import package_model
from tests.unit.scoring.other_models import (
    LINEAR,
    boxes,
    logistic,
    pictures,
    png,
    save_logistic_onnx,
    save_picture_keras,
)

HEIGHT, WIDTH = 6, 5
BOXES = boxes(100)

DECODE = """
import numpy as np

def raw(value):
    return np.frombuffer(value, np.uint8).reshape(6, 5, 3)
"""
# The sizes of a box as text, and what is said of its score.
TEXTS = """
import numpy as np

def preprocess(columns):
    assert set(columns) == {"sizes", "scale"}
    sizes = [[float(size) for size in text.split("x")] for text in columns["sizes"]]
    return {"features": np.array(sizes) * columns["scale"][:, None]}

def postprocess(outputs):
    score = outputs["score"]
    return {
        "verdict": np.where(score > 0.5, "large", "small"),
        "both": np.column_stack([1 - score, score]),
        "score": score,
    }
"""


def hooks_file(folder: Path, source: str) -> Path:
    file = folder / "code.py"
    file.write_text(source)
    return file


def packaged(tmp_path: Path, source: str, name: str = "model", **options: Any) -> Path:
    return package_model(LINEAR, tmp_path / name, hooks=hooks_file(tmp_path, source), **options)


def test_a_function_of_the_model_decodes_a_column(tmp_path: Path) -> None:
    model = save_picture_keras(tmp_path / "m.keras", HEIGHT, WIDTH)
    columns = [Column("image", "binary", decode="raw")]
    file = hooks_file(tmp_path, DECODE)
    folder = package_model(tmp_path / "m.keras", tmp_path / "model", columns=columns, hooks=file)
    assert ModelDirectory.open(folder).hooks == ("raw",)
    # Where it was packaged there may be nothing left of it.
    file.unlink()
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    images = pictures(5, HEIGHT, WIDTH)
    table = pa.table({"image": [each.tobytes() for each in images]})
    scores = LoadedModel(moved).score(table, batch_size=2)["score"]
    np.testing.assert_allclose(scores, model(images.astype(np.float32)).numpy()[:, 0], rtol=0, atol=1e-6)
    broken = pa.record_batch({"image": [images[0].tobytes(), b"short"]})
    ((row, message),) = LoadedModel(moved).row_errors(broken).items()
    assert row == 1
    assert message.startswith("column 'image' has a value that is not decoded by raw of hooks.py: cannot reshape")


def test_images_of_a_column_of_any_name_score_as_their_pixels_do(tmp_path: Path) -> None:
    """F13."""
    model = save_picture_keras(tmp_path / "m.keras", HEIGHT, WIDTH)
    columns = [Column("photo", "binary", decode="image", fill=0)]
    folder = package_model(tmp_path / "m.keras", tmp_path / "model", columns=columns)
    images = pictures(4, HEIGHT, WIDTH)
    images[2] = 0
    values = [png(images[0]), png(images[1]), None, png(images[3])]
    scores = LoadedModel(folder).score(pa.table({"photo": values}))["score"]
    np.testing.assert_allclose(scores, model(images.astype(np.float32)).numpy()[:, 0], rtol=0, atol=1e-6)
    assert len(np.unique(scores)) == 4
    with pytest.raises(ColumnError, match="column 'photo' has type string, the model takes binary"):
        ModelDirectory.open(folder).inputs.check(pa.schema({"photo": pa.string()}))


def test_an_onnx_model_gets_its_images_with_channels_first_and_other_columns_beside_them(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["numbers"], ["mean"], axes=[2, 3], keepdims=0),
            helper.make_node("Mul", ["mean", "weight"], ["brightness"]),
        ],
        "brightness",
        [
            helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["rows", 3, HEIGHT, WIDTH]),
            helper.make_tensor_value_info("weight", TensorProto.FLOAT, ["rows", 1]),
        ],
        [helper.make_tensor_value_info("brightness", TensorProto.FLOAT, ["rows", 3])],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedModelError, match=r"'pixels' is a tensor\(uint8\) of .*: .*decode such an input"):
        package_model(tmp_path / "m.onnx", tmp_path / "model")
    columns = [Column("pixels", "binary", decode="image"), Column("weight", "int")]
    folder = package_model(tmp_path / "m.onnx", tmp_path / "model", columns=columns)
    images = pictures(3, HEIGHT, WIDTH)
    table = pa.table({"weight": [1, 2, 3], "pixels": [png(each) for each in images]})
    expected = images.mean(axis=(1, 2)) * np.array([[1], [2], [3]])
    np.testing.assert_allclose(LoadedModel(folder).score(table)["brightness"], expected, rtol=1e-5)


def test_hooks_make_the_model_s_inputs_and_what_it_gives(tmp_path: Path) -> None:
    columns = [Column("sizes", "string"), Column("scale", "double", fill=1.0)]
    outputs_of = {"probability": "score", "verdict": "verdict", "p": "both"}
    folder = packaged(tmp_path, TEXTS, columns=columns, outputs=outputs_of)
    directory = ModelDirectory.open(folder)
    assert directory.hooks == ("preprocess", "postprocess")
    assert directory.inputs.columns == ("sizes", "scale")
    assert directory.description.outputs == {"probability": "double", "verdict": "string", "p": "array<double>"}
    sizes = ["x".join(str(row[name]) for name in LINEAR["coefficients"]) for row in BOXES.to_pylist()]
    calls: list[None] = []
    outputs = LoadedModel(folder).score_arrow(
        pa.table({"sizes": sizes, "scale": pa.nulls(100)}), batch_size=30, on_call=lambda: calls.append(None)
    )
    expected = logistic(BOXES)
    np.testing.assert_allclose(outputs["probability"], expected, rtol=0, atol=1e-6)
    assert outputs["verdict"].to_pylist() == ["large" if score > 0.5 else "small" for score in expected]
    np.testing.assert_allclose(outputs["p"].to_pylist(), np.column_stack([1 - expected, expected]), rtol=0, atol=1e-6)
    assert len(calls) == 4
    empty = LoadedModel(folder).score_arrow(pa.table({"sizes": pa.array([], pa.string()), "scale": pa.nulls(0)}))
    assert {name: len(column) for name, column in empty.items()} == {"probability": 0, "verdict": 0, "p": 0}


def test_postprocess_gets_outputs_that_no_column_holds(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.call = tf.function(
        lambda x: {"map": x[:, None, None, None] * tf.ones([1, 4, 4, 2])},
        input_signature=[tf.TensorSpec([None], tf.float32, "x")],
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path / "tf"), signatures=module.call)
    source = "def postprocess(outputs):\n    return {'area': (outputs['map'] > 0.5).sum(axis=(1, 2))}\n"
    folder = package_model(tmp_path / "tf", tmp_path / "model", hooks=hooks_file(tmp_path, source))
    assert LoadedModel(folder).score_arrow(pa.table({"x": [0.0, 1.0]}))["area"].to_pylist() == [[0, 0], [16, 16]]


def test_hooks_count_in_the_model_s_digest_and_leave_no_cache_beside_it(tmp_path: Path) -> None:
    outputs = {"score": "score"}
    source = "def postprocess(outputs):\n    return outputs\n"
    one, same, other = (
        packaged(tmp_path, text, name, outputs=outputs)
        for name, text in (("one", source), ("same", source), ("other", source + "# changed\n"))
    )
    assert folder_digest(one) == folder_digest(same) != folder_digest(other)
    LoadedModel(one).score(BOXES)
    assert sorted(path.name for path in one.rglob("*")) == ["hooks.py", "linear.json", DESCRIPTION_FILE]
    assert Hooks.load(one / "hooks.py").module is Hooks.load(same / "hooks.py").module
    assert Hooks.load(one / "hooks.py").module is not Hooks.load(other / "hooks.py").module


def test_classes_that_hooks_define_are_found_by_their_module(tmp_path: Path) -> None:
    source = (
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Rule:\n"
        "    limit: float\n"
        "def postprocess(outputs):\n"
        "    return {'above': outputs['score'] > Rule(0.5).limit}\n"
    )
    above = LoadedModel(packaged(tmp_path, source)).score(BOXES)["above"]
    assert above.tolist() == (logistic(BOXES) > 0.5).tolist()


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("def other(x): pass", {}, ModelDirectoryError, "has neither preprocess nor postprocess, and no column is"),
        ("def preprocess(columns): pass", {}, ModelDirectoryError, "columns of unknown type; give columns="),
        ("def postprocess(outputs) pass", {}, HookError, r"hooks.py cannot be run: SyntaxError: .*line 1"),
        ("import no_such_module", {}, ModuleNotFoundError, "hooks.py imports the module 'no_such_module', which"),
        ("def postprocess(outputs): return 1", {}, HookError, "postprocess of hooks.py gives int; have it return a"),
        ("def postprocess(outputs): return {'a': 1}", {}, HookError, r"gives 'a' of shape \[\] for 1 rows; have it"),
        ("def postprocess(outputs): return {'a': [1, 2]}", {}, HookError, r"gives 'a' of shape \[2\] for 1 rows"),
        ("def postprocess(outputs): return outputs['b']", {}, HookError, "postprocess of hooks.py failed: KeyError"),
        (
            "def postprocess(outputs): return {'a': outputs['score'].astype(complex)}",
            {},
            UnsupportedModelError,
            "'a' is an array of complex128 of shape",
        ),
        (
            "def decode(value): pass",
            {"columns": [Column("x", "binary", decode="decod")]},
            HookError,
            "hooks.py has no function 'decod'; define it there",
        ),
        (
            "def decode(value): pass",
            {"columns": [Column("x", "binary", decode="decode"), "width"]},
            ModelDirectoryError,
            r"takes one array, all of which a column that is decoded has to be, .*\['x', 'width'\]",
        ),
    ],
)
def test_hooks_that_do_not_fit_are_refused_when_the_model_is_packaged(
    tmp_path: Path, source: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        packaged(tmp_path, source, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["code.py"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("{}", r"preprocess of hooks.py gives \[\], and the model takes \['features'\]"),
        ("{'features': columns['x']}", r"gives 'features' of shape \[2, 1\] for 2 rows, and the model takes \[N"),
        ("{'features': np.zeros((3, 3))}", r"gives 'features' of shape \[3, 3\] for 2 rows"),
        ("{'features': np.zeros((2, 3), complex)}", "gives 'features' of complex128, and the model takes float64"),
        ("{'features': [[1, 2, 3], [4]]}", "preprocess of hooks.py failed: ValueError"),
    ],
)
def test_outputs_of_preprocess_are_checked_against_the_models_inputs(tmp_path: Path, made: str, message: str) -> None:
    source = f"import numpy as np\ndef preprocess(columns): return {made}\n"
    folder = packaged(tmp_path, source, columns=[Column("x", "double")])
    with pytest.raises(HookError, match=message):
        LoadedModel(folder).score(pa.table({"x": [1.0, 2.0]}))


def test_numbers_of_preprocess_are_cast_to_what_the_model_takes(tmp_path: Path) -> None:
    source = "import numpy as np\ndef preprocess(columns): return {'box': np.zeros((len(columns['x']), 3), np.int64)}\n"
    source_model = save_logistic_onnx(tmp_path / "m.onnx")
    columns = [Column("x", "binary", nulls="pass")]
    file = hooks_file(tmp_path, source)
    folder = package_model(source_model, tmp_path / "model", columns=columns, hooks=file)
    scores = LoadedModel(folder).score(pa.table({"x": [b"a", None]}))["score"]
    assert scores.tolist() == pytest.approx([1 / (1 + np.exp(-0.25))] * 2)


def test_whole_numbers_of_preprocess_that_the_model_s_type_does_not_hold_are_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.call = tf.function(
        lambda x: {"twice": 2.0 * tf.cast(x, tf.float32)},
        input_signature=[tf.TensorSpec([None], tf.int32, "x")],
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path / "tf"), signatures=module.call)
    file = hooks_file(tmp_path, "def preprocess(columns): return {'x': columns['x']}\n")
    folder = package_model(tmp_path / "tf", tmp_path / "model", columns=[Column("x", "bigint")], hooks=file)
    assert LoadedModel(folder).score(pa.table({"x": [1, 2]}))["twice"].tolist() == [2.0, 4.0]
    with pytest.raises(
        HookError, match=r"preprocess of hooks\.py gives 'x' with 3000000000, and the model takes int32"
    ):
        LoadedModel(folder).score(pa.table({"x": [1, 3_000_000_000]}))


def test_postprocess_gives_the_type_that_it_gave_for_a_row_of_zeros(tmp_path: Path) -> None:
    """The columns of scores have it; numbers are rounded to it, and nothing else becomes of them."""
    changing = (
        "import numpy as np\n"
        "def postprocess(outputs):\n"
        "    rows = len(outputs['score'])\n"
        "    return {'count': np.array([1 if rows == 1 else 0.5] * rows), 'narrow': np.zeros(rows, np.float32)}\n"
    )
    folder = packaged(tmp_path, changing)
    with pytest.raises(HookError, match=r"gives 'count' of float64, and gave bigint for a row of zeros; have it"):
        LoadedModel(folder).score(BOXES)
    assert ModelDirectory.open(folder).description.outputs == {"count": "bigint", "narrow": "float"}
    with_null = changing.replace("else 0.5", "else None")
    assert LoadedModel(packaged(tmp_path, with_null, "nulls")).score_arrow(BOXES)["count"].null_count == 100
    widening = changing.replace("np.float32", "np.float32 if rows == 1 else np.float64").replace("0.5", "2")
    outputs = LoadedModel(packaged(tmp_path, widening, "other")).score_arrow(BOXES)
    assert {name: str(column.type) for name, column in outputs.items()} == {"count": "int64", "narrow": "float"}


def test_postprocess_gives_as_many_scores_as_there_are_labels(tmp_path: Path) -> None:
    """S7: as it did for a row of zeros."""
    changing = (
        "import numpy as np\n"
        "def postprocess(outputs):\n"
        "    rows = len(outputs['score'])\n"
        "    return {'p': np.zeros((rows, 2 if rows < 10 else 3))}\n"
    )
    model = LoadedModel(packaged(tmp_path, changing, labels={"p": ["stays", "leaves"]}))
    assert model.score(BOXES.slice(0, 9))["p"].shape == (9, 2)
    with pytest.raises(ModelOutputError, match="'p' has 3 elements per row, and the model has 2 labels for them"):
        model.score(BOXES)


def test_a_model_that_has_lost_its_hooks_says_so(tmp_path: Path) -> None:
    folder = packaged(tmp_path, "def postprocess(outputs): return outputs")
    (folder / "hooks.py").unlink()
    with pytest.raises(ModelDirectoryError, match=r"lacks hooks\.py; package the model again"):
        ModelDirectory.open(folder)
    with pytest.raises(ModelDirectoryError, match="there is no file of hooks at"):
        package_model(LINEAR, tmp_path / "other", hooks=tmp_path / "gone.py")


def test_a_description_from_before_there_were_hooks_is_read(tmp_path: Path) -> None:
    folder = package_model(LINEAR, tmp_path / "model")
    document = json.loads((folder / DESCRIPTION_FILE).read_text())
    del document["hooks"]
    for column in document["inputs"]["given"]:
        del column["decode"]
    (folder / DESCRIPTION_FILE).write_text(json.dumps(document))
    np.testing.assert_allclose(LoadedModel(folder).score(BOXES)["score"], logistic(BOXES), rtol=0, atol=1e-6)


def test_a_file_of_hooks_that_fails_leaves_no_module_behind(tmp_path: Path) -> None:
    before = set(sys.modules)
    file = hooks_file(tmp_path, "x = 1 / 0\n")
    with pytest.raises(HookError, match=r"code\.py cannot be run: ZeroDivisionError"):
        Hooks.load(file)
    assert not [name for name in set(sys.modules) - before if name.startswith("mirrorspark_hooks")]
