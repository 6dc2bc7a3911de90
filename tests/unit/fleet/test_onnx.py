"""M2: models of ONNX predict what ONNX Runtime does."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper

from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.imports.lightgbm import fleet_from_lightgbm
from mirrorspark.fleet.imports.onnx import fleet_from_onnx
from mirrorspark.fleet.imports.pmml import fleet_from_pmml
from mirrorspark.fleet.imports.xgboost import fleet_from_xgboost
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.scorer import FleetScorer

COLUMNS = ["a", "b", "c"]
RANDOM = np.random.default_rng(4)
W1, W2 = RANDOM.normal(size=(3, 5)).astype(np.float32), RANDOM.normal(size=(5, 1)).astype(np.float32)
B1 = RANDOM.normal(size=5).astype(np.float32)
ML = "ai.onnx.ml"
Node = tuple[str, list[str], list[str], dict[str, Any]]


def model_of(*nodes: Node, **constants: np.ndarray) -> onnx.ModelProto:
    """Return a graph from ``x`` to the last output of the last node."""
    ml = ("Linear", "Tree", "Scaler", "Normalizer")
    made = [
        helper.make_node(kind, inputs, outputs, domain=ML if kind.startswith(ml) else "", **options)
        for kind, inputs, outputs, options in nodes
    ]
    graph = helper.make_graph(
        made,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info(made[-1].output[-1], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(ML, 3)], ir_version=8
    )


def trees(kind: str, modes: list[str], **options: Any) -> Node:
    """Return two trees of two splits, the first at the root."""
    leaf, prefix = "LEAF", "target" if kind.endswith("Regressor") else "class"
    weights = options.pop("weights", [1.0, -2.0, 0.5, 3.0, 0.25, -0.75])
    attributes = {
        "nodes_treeids": [0] * 5 + [1] * 5,
        "nodes_nodeids": [0, 1, 2, 3, 4] * 2,
        "nodes_featureids": [0, 1, 0, 0, 0, 2, 0, 0, 0, 0],
        "nodes_modes": [modes[0], modes[1], leaf, leaf, leaf, modes[2], modes[3], leaf, leaf, leaf],
        "nodes_values": [0.1, 1.0, 0, 0, 0, -0.2, 0.0, 0, 0, 0],
        "nodes_truenodeids": [1, 3, 0, 0, 0, 1, 3, 0, 0, 0],
        "nodes_falsenodeids": [2, 4, 0, 0, 0, 2, 4, 0, 0, 0],
        "nodes_missing_value_tracks_true": [1, 0, 0, 0, 0, 0, 1, 0, 0, 0],
        f"{prefix}_treeids": [0, 0, 0, 1, 1, 1],
        f"{prefix}_nodeids": [2, 3, 4] * 2,
        f"{prefix}_ids": [0 if prefix == "target" else 1] * 6,
        f"{prefix}_weights": weights,
    }
    if prefix == "class":
        attributes["classlabels_int64s"] = [0, 1]
    else:
        attributes["n_targets"] = 1
    outputs = ["y"] if prefix == "target" else ["label", "y"]
    return kind, ["x"], outputs, attributes | options


def both_classes(**options: Any) -> Node:
    """Return trees whose leaves have a weight for each of two classes."""
    kind, inputs, outputs, attributes = trees("TreeEnsembleClassifier", ["BRANCH_LEQ"] * 4, **options)
    for name in ("treeids", "nodeids"):
        attributes[f"class_{name}"] = attributes[f"class_{name}"] * 2
    attributes["class_ids"] = [0] * 6 + [1] * 6
    attributes["class_weights"] = [0.1, 0.4, 0.2, 0.3, 0.5, 0.0, 0.4, 0.1, 0.3, 0.2, 0.0, 0.5]
    return kind, inputs, outputs, attributes


NORMALISED: Node = ("Normalizer", ["p"], ["y"], {"norm": "L1"})
WHOLE: list[Node] = [("Cast", ["i"], ["f"], {"to": TensorProto.FLOAT}), ("MatMul", ["f", "w"], ["y"], {})]
SCALER: Node = ("Scaler", ["x"], ["s"], {"offset": [1.0, 0.0, 2.0], "scale": [0.5, 2.0, 1.0]})
LINEAR = {"coefficients": [0.5, -1.0, 2.0], "intercepts": [0.25]}
TWO_ROWS = {"coefficients": [-0.5, 1.0, -2.0, 0.5, -1.0, 2.0], "intercepts": [-0.25, 0.25], "classlabels_ints": [0, 1]}
ORDERS = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"]
DENSE: list[Node] = [
    ("Gemm", ["x", "w1", "b1"], ["h"], {"alpha": 0.5}),
    ("Tanh", ["h"], ["t"], {}),
    ("MatMul", ["t", "w2"], ["m"], {}),
    ("Add", ["m", "b2"], ["y"], {}),
]
LAYERS = {"w1": W1, "b1": B1, "w2": W2, "b2": np.array([0.3], np.float32)}
MODELS = {
    "linear": model_of(SCALER, ("LinearRegressor", ["s"], ["y"], LINEAR)),
    "classes": model_of(("LinearClassifier", ["x"], ["label", "y"], TWO_ROWS | {"post_transform": "LOGISTIC"})),
    "normalised": model_of(
        ("LinearClassifier", ["x"], ["label", "p"], TWO_ROWS | {"post_transform": "SOFTMAX"}),
        NORMALISED,
    ),
    "network": model_of(
        ("Sub", ["x", "mean"], ["d"], {}),
        ("Div", ["d", "scale"], ["z"], {}),
        ("Gemm", ["z", "w1", "b1"], ["h"], {"transB": 1}),
        ("Relu", ["h"], ["q"], {}),
        ("Dropout", ["q"], ["r", "mask"], {}),
        ("MatMul", ["r", "w2"], ["m"], {}),
        ("Sigmoid", ["m"], ["y"], {}),
        mean=np.array([1, 2, 3], np.float32),
        scale=np.array([2, 1, 4], np.float32),
        **LAYERS | {"w1": np.ascontiguousarray(W1.T)},
    ),
    "added": model_of(*DENSE, **LAYERS),
    "softmax": model_of(
        ("Gemm", ["x", "w1", "b1"], ["h"], {}), ("Softmax", ["h"], ["y"], {"axis": 1}), w1=W1[:, :2], b1=B1[:2]
    ),
    "trees": model_of(trees("TreeEnsembleRegressor", ORDERS, base_values=[0.5])),
    "averaged": model_of(trees("TreeEnsembleRegressor", ORDERS[::-1], aggregate_function="AVERAGE")),
    "boosted": model_of(
        trees("TreeEnsembleClassifier", ORDERS, post_transform="LOGISTIC", base_values=[-0.3], class_ids=[0] * 6)
    ),
    "second": model_of(trees("TreeEnsembleClassifier", ORDERS, post_transform="LOGISTIC")),
    "forest": model_of(both_classes()),
    "softmax_trees": model_of(both_classes(post_transform="SOFTMAX")),
}


def test_models_of_onnx_predict_the_same(tmp_path: Path) -> None:
    onnx.save_model(MODELS["network"], tmp_path / "network.onnx")
    fleet = fleet_from_onnx(MODELS | {"network": tmp_path / "network.onnx"}, COLUMNS, group="g")
    rows = RANDOM.normal(size=(300, 3)).astype(np.float32)
    rows[:50] = rows[:50].round(0)
    for holey in (rows, np.where(RANDOM.random(rows.shape) < 0.2, np.float32(np.nan), rows)):
        scorer = FleetScorer(fleet, Layout.of(fleet, "packed", ["score"]))
        batch = pa.RecordBatch.from_arrays([pa.array(column) for column in holey.T], COLUMNS)
        found = scorer.outputs(batch).by_output["score"]
        for place, name in enumerate(fleet.names):
            if holey is not rows and not fleet.has_trees[place]:
                continue
            session = onnxruntime.InferenceSession(MODELS[name].SerializeToString())
            (expected,) = session.run([MODELS[name].graph.output[0].name], {"x": holey})
            np.testing.assert_allclose(found[:, place], expected[:, -1], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (model_of(("Neg", ["x"], ["y"], {})), "operator Neg"),
        (model_of(("MatMul", ["x", "w1"], ["y"], {}), w1=W1), r"shapes \[\(3, 5\)\]"),
        (model_of(("MatMul", ["x", "w2"], ["y"], {}), w2=W2), "has 5 inputs and 3 names"),
        (model_of(("LinearRegressor", ["x"], ["y"], LINEAR | {"post_transform": "PROBIT"})), "transform PROBIT"),
        (model_of(trees("TreeEnsembleRegressor", ORDERS, aggregate_function="MAX")), "of MAX"),
        (model_of(trees("TreeEnsembleRegressor", ["BRANCH_EQ"] * 4)), "splits of the kind BRANCH_EQ"),
        (model_of(both_classes(base_values=[0.3, 0.1])), "2 base values"),
        (model_of(trees("TreeEnsembleClassifier", ORDERS, classlabels_int64s=[0, 1, 2])), "of 3 outputs"),
        (model_of(trees("TreeEnsembleRegressor", ORDERS, target_treeids=[7] * 6)), "not as its library writes it"),
        (
            model_of(trees("TreeEnsembleRegressor", ORDERS, base_values_as_tensor=numpy_helper.from_array(W1))),
            "base_values_as_tensor of doubles",
        ),
        (model_of(("Cast", ["x"], ["i"], {"to": TensorProto.INT64}), *WHOLE, w=W1[:, :1]), "operator Cast"),
        (model_of(("MatMul", ["x", "w"], ["p"], {}), NORMALISED, w=W1[:, :1]), "operator Normalizer"),
        (
            model_of(
                ("Constant", [], ["b"], {"value_floats": [1.0]}), ("Gemm", ["x", "w", "b"], ["y"], {}), w=W1[:, :1]
            ),
            r"operator Gemm of \['b'\]",
        ),
    ],
)
def test_graphs_that_a_fleet_does_not_have_are_refused(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(FleetError, match=f"model 'm'.*{message}"):
        fleet_from_onnx({"m": model}, COLUMNS)


def test_columns_have_to_be_as_many_as_the_inputs_of_trees() -> None:
    model = MODELS["trees"]
    with pytest.raises(FleetError, match="model 'm' has 3 inputs and 4 names"):
        fleet_from_onnx({"m": model}, [*COLUMNS, "d"])
    with pytest.raises(FleetError, match="columns names none of model 'm'"):
        fleet_from_onnx({"m": model}, {"other": COLUMNS})


def test_a_missing_package_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'needs the package onnx, .* run: pip install "mirrorspark\[score\]"'
    ):
        fleet_from_onnx({"m": MODELS["trees"]}, COLUMNS)


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no protocol buffer")
    with pytest.raises(FleetError, match="is not an ONNX model"):
        fleet_from_onnx({"m": tmp_path / "model.onnx"}, COLUMNS)


def with_side_file(folder: Path, weights: list[float], location: str = "weights.bin") -> Path:
    """Write a linear model of two inputs, whose weights are in a file next to it that it calls ``location``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.bin").write_bytes(np.array(weights, np.float32).tobytes())
    outside = TensorProto(name="w", data_type=1, dims=[2, 1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("length", "8")):
        outside.external_data.add(key=key, value=value)
    model = model_of(("MatMul", ["x", "w"], ["y"], {}))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2
    model.graph.initializer.append(outside)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("directory", ["a", "."])
def test_weights_of_a_side_file_lie_beside_their_model_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    with_side_file(tmp_path / "a", [1, 2])
    with_side_file(tmp_path / "b", [100, 200])
    monkeypatch.chdir(tmp_path / directory)
    models = {name: tmp_path / name / "m.onnx" for name in ("a", "b")}
    models["relative"] = Path(os.path.relpath(models["b"]))
    fleet = fleet_from_onnx(models, ["p", "q"])
    assert fleet.table["coefficient"].to_pylist() == [[1, 2], [100, 200], [100, 200]]


def test_a_model_in_memory_brings_its_weights_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_side_file(tmp_path, [3, 4])
    monkeypatch.chdir(tmp_path)  # where the file would be found
    without = onnx.load(str(path), load_external_data=False)
    for given in (without, path.read_bytes()):
        with pytest.raises(FleetError, match=r"'weights.bin', and model 'm' was not given as a file.*give the path"):
            fleet_from_onnx({"m": given}, ["p", "q"])
    whole = onnx.load(str(path))
    for given in (whole, whole.SerializeToString()):
        assert fleet_from_onnx({"m": given}, ["p", "q"]).table["coefficient"].to_pylist() == [[3, 4]]


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/{outside}", "sub/../../weights.bin", "link.bin", "way/w.bin", ""]
)
def test_weights_outside_the_folder_of_the_model_are_refused(tmp_path: Path, location: str) -> None:
    outside = with_side_file(tmp_path, [5, 6]).parent / "weights.bin"
    path = with_side_file(tmp_path / "model", [7, 8], location.format(outside=outside))
    (path.parent / "sub").mkdir()
    (path.parent / "link.bin").symlink_to(outside)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "w.bin").write_bytes(outside.read_bytes())
    (path.parent / "way").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FleetError, match=r"outside the model's folder or a link; put the file next to"):
        fleet_from_onnx({"m": path}, ["p", "q"])


def test_weights_that_are_missing_or_too_few_are_named(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"weights 'w' of model 'm' are in 'other.bin', and .* has no such file"):
        fleet_from_onnx({"m": with_side_file(tmp_path, [1, 2], "other.bin")}, ["p", "q"])
    with pytest.raises(FleetError, match=r"weights 'w' of model 'm' cannot be read from .*weights.bin"):
        fleet_from_onnx({"m": with_side_file(tmp_path, [1])}, ["p", "q"])


@pytest.mark.parametrize(
    ("read", "file"),
    [
        (lambda models: fleet_from_onnx(models, COLUMNS), "s3://bucket/m.onnx"),
        (fleet_from_pmml, "https://somewhere/m.pmml"),
        (fleet_from_lightgbm, "file:///tmp/m.txt"),
        (fleet_from_xgboost, "s3://bucket/m.ubj"),
    ],
)
def test_an_address_instead_of_a_file_is_refused_with_what_to_do(read: Any, file: str) -> None:
    with pytest.raises(FleetError, match=rf"'m' is at {file}, .* copy it here, with the files next to it"):
        read({"m": file})
