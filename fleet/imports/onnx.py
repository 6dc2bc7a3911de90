"""Import of ONNX models: linear models, stacks of dense layers, and ensembles of trees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mirrorspark.extras import needed
from mirrorspark.fleet.columns import LEAF, FleetError
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.imports.imported_model import (
    ImportedModel,
    column_names,
    columns_of,
    fleet_of,
    read_models,
)
from mirrorspark.fleet.trees import TreeNodes, edge_at_most, edge_below

_ACTIVATIONS = {name: name.lower() for name in ("Relu", "Tanh", "Sigmoid", "Elu", "Softplus", "Exp")}
_LINKS = {"linear": "identity", "sigmoid": "logit", "exp": "log"}
_UNCHANGED = ("Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "ZipMap")
_FLOATS = (1, 11)  # float and double, of TensorProto.DataType
_POSITIVE = 1  # place of the second class


def fleet_from_onnx(
    models: Mapping[str, Any],
    columns: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    group: str = "",
    thresholds: Mapping[str, float] | None = None,
    cut_points: Mapping[str, Sequence[float]] | None = None,
) -> Fleet:
    """Return the fleet of ONNX models with one input and one output or two classes; scoring needs no ONNX.

    A graph may have ``LinearRegressor``, ``LinearClassifier``, ``TreeEnsembleRegressor``, ``TreeEnsembleClassifier``,
    or ``Gemm`` and ``MatMul`` with activations, and before them ``Scaler`` or arithmetic with constants. The score is
    its last output, of two classes the probability of the second one. Missing values make the outputs null; in trees
    they go where the model sends them. Reading needs the package ``onnx``.

    Weights in files of their own are read from the folder of the model's file, or below it, and from nowhere else.

    Args:
        models: By name a file, a ``ModelProto``, or the bytes of one; the last two have their weights in them.
        columns: The columns in the order of the input: of all models, or by model.
        group: Group of the models.
        thresholds: Score from which ``binary`` is 1, by model.
        cut_points: Ascending scores at which ``Rank`` falls, by model.

    Raises:
        FleetError: A model has another operator, input or output, or another number of inputs than columns; a file is
            no ONNX; or weights lie in a file that is missing, is outside the model's folder, or is a link, or in any
            file where the model was not given as one.
        OSError: A file cannot be read.
        ModuleNotFoundError: The package ``onnx`` is not installed.
    """
    imported = read_models(models, lambda name, model: _imported(name, model, columns_of(name, columns)))
    return fleet_of(imported, group, thresholds, cut_points)


@dataclass(frozen=True)
class _Value:
    """The computation of a tensor in a graph: the input is scaled, then goes through layers or trees.

    Attributes:
        scale: Factor of the input: a number, or ``[inputs]``.
        offset: Number added to the scaled input.
        layers: Matrix ``[inputs, outputs]`` and bias of each layer.
        activations: Activations of the layers.
        trees: Link, trees, and the constant that is added to them.
        is_probability: Whether it is the second column of two that add up to 1.
    """

    scale: Any = 1.0
    offset: Any = 0.0
    layers: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    activations: tuple[str, ...] = ()
    trees: tuple[str, TreeNodes, float] | None = field(default=None)
    is_probability: bool = False

    @property
    def is_input(self) -> bool:
        return not self.layers and self.trees is None

    def then(self, matrix: np.ndarray, bias: Any, activation: str = "linear") -> "_Value":
        """Return it after a dense layer."""
        layer = (matrix, np.broadcast_to(np.ravel(bias), matrix.shape[1]))
        activations = (*self.activations, activation)
        return replace(self, layers=(*self.layers, layer), activations=activations, is_probability=False)


def _imported(name: str, given: Any, columns: Sequence[str]) -> ImportedModel:
    onnx = needed("onnx", "reading models of ONNX")

    folder = None
    if isinstance(given, str | Path | bytes):
        content, called = (given, f"model '{name}'") if isinstance(given, bytes) else (Path(given).read_bytes(), given)
        folder = None if isinstance(given, bytes) else Path(given).parent
        try:
            given = onnx.load_model_from_string(content)
        except Exception as error:
            raise FleetError(f"{called} is not an ONNX model: {error}") from error
    graph = given.graph
    constants = {one.name: _array(name, one, folder) for one in graph.initializer}
    inputs = [one for one in graph.input if one.name not in constants]
    if len(inputs) != 1:
        names = [one.name for one in inputs]
        raise FleetError(f"model '{name}' has the inputs {names}; give models of one matrix of numbers")
    values: dict[str, _Value] = {inputs[0].name: _Value()}
    for node in graph.node:
        options = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Constant" and "value" in options:
            constants[node.output[0]] = _array(name, options["value"], folder)
        elif any(one in values for one in node.input):
            found = _computed(name, node, options, values, constants)
            # The first output of a classifier is its label, the second one of a Dropout its mask.
            values[node.output[0 if node.op_type == "Dropout" else -1]] = found
    output = graph.output[-1].name
    if output not in values:
        raise FleetError(f"the output '{output}' of model '{name}' is not a score; give a model that ends with one")
    dimensions = [one.dim_value for one in inputs[0].type.tensor_type.shape.dim]
    return _model(name, values[output], columns, dimensions[-1] if dimensions else 0)


def _array(name: str, tensor: Any, folder: Path | None) -> np.ndarray:
    """Return the values of a tensor, from the model or from a file in its ``folder``; None if the model has no file."""
    onnx = needed("onnx", "reading models of ONNX")

    if not onnx.external_data_helper.uses_external_data(tensor):
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    file = _side_file(name, f"the weights '{tensor.name}' of model '{name}'", location, folder)
    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor, base_dir=str(folder)))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise FleetError(
            f"the weights '{tensor.name}' of model '{name}' cannot be read from {file} ({error}); save the model again"
        ) from error


def _side_file(name: str, what: str, location: str, folder: Path | None) -> Path:
    """Return the file of weights at ``location``, which a model from elsewhere must not choose freely.

    Raises:
        FleetError: The model has no folder, or the file is missing there or may be anywhere.
    """
    if folder is None:
        raise FleetError(
            f"{what} are in a file '{location}', and model '{name}' was not given as a file, so that there is no "
            f"folder to look in; give the path of the model, or the result of onnx.load"
        )
    parts = PurePosixPath(location).parts
    is_outside = not parts or PurePosixPath(location).is_absolute() or ".." in parts or "\\" in location
    steps = [folder.joinpath(*parts[: place + 1]) for place in range(len(parts))]
    if is_outside or any(step.is_symlink() for step in steps):
        raise FleetError(
            f"{what} are in '{location}', which is outside the model's folder or a link; put the file next to the "
            f"model, and save the model with its name alone"
        )
    if not steps[-1].is_file():
        raise FleetError(f"{what} are in '{location}', and {folder} has no such file; put it there")
    return steps[-1]


def _computed(
    name: str, node: Any, options: Mapping[str, Any], values: Mapping[str, _Value], constants: Mapping[str, np.ndarray]
) -> _Value:
    """Return the value that a node computes from its input."""
    (value, *more) = [values[one] for one in node.input if one in values]
    kind, others = node.op_type, [constants[one] for one in node.input if one in constants]
    if unknown := [one for one in node.input if one and one not in values and one not in constants]:
        raise FleetError(
            f"model '{name}' has the operator {kind} of {unknown}, which are not constants; give them as initializers"
        )
    is_first = node.input[0] in values
    if kind in _UNCHANGED or (kind == "Cast" and options["to"] in _FLOATS):
        return value
    if kind == "Normalizer" and options.get("norm", b"MAX") == b"L1" and value.is_probability:
        return value
    if kind in _ACTIVATIONS and value.layers and value.activations[-1] == "linear" and options.get("alpha", 1.0) == 1:
        return replace(value, activations=(*value.activations[:-1], _ACTIVATIONS[kind]))
    is_of_classes = kind == "Softmax" and options.get("axis", -1) in (1, -1)
    if is_of_classes and value.layers and value.activations[-1] == "linear":
        matrix, bias = value.layers[-1]
        if len(bias) == 2:
            before = replace(value, layers=value.layers[:-1], activations=value.activations[:-1])
            return replace(before.then(np.diff(matrix, axis=1), np.diff(bias), "sigmoid"), is_probability=True)
    if value.trees is None and not more and is_first:
        if kind == "Gemm" and others and not options.get("transA", 0):
            matrix = others[0].T if options.get("transB", 0) else others[0]
            added = options.get("beta", 1.0) * others[1] if len(others) > 1 else 0.0
            return value.then(options.get("alpha", 1.0) * matrix, added)
        if kind == "MatMul" and others and others[0].ndim == 2:
            return value.then(others[0], 0.0)
        if kind in ("LinearRegressor", "LinearClassifier"):
            return replace(_linear(name, kind, options, value), is_probability=kind == "LinearClassifier")
        if kind in ("TreeEnsembleRegressor", "TreeEnsembleClassifier") and value == _Value():
            trees = _trees(name, kind, options)
            return replace(value, trees=trees, is_probability=kind.endswith("Classifier") and trees[0] == "logit")
    if value.trees is None and not more and (scaled := _scaled(kind, options, value, others, is_first)) is not None:
        return scaled
    raise FleetError(
        f"model '{name}' has the operator {kind}, or has it where a fleet does not read it; package it with "
        f"package_model, and give it to fleet_from_models"
    )


def _scaled(
    kind: str, options: Mapping[str, Any], value: _Value, others: Sequence[np.ndarray], is_first: bool
) -> _Value | None:
    """Return the result of arithmetic with a constant on the input or a sum; None for any other operation."""
    if kind == "Add" and others and value.layers and value.activations[-1] == "linear":
        matrix, bias = value.layers[-1]
        return replace(value, layers=(*value.layers[:-1], (matrix, bias + np.ravel(others[0]))))
    if not value.is_input:
        return None
    if kind == "Scaler":
        scale, shift = np.array(options.get("scale", [1.0])), np.array(options.get("offset", [0.0]))
        return replace(value, scale=value.scale * scale, offset=(value.offset - shift) * scale)
    if not others or (kind in ("Sub", "Div") and not is_first):
        return None
    other = np.ravel(others[0])
    if kind in ("Add", "Sub"):
        return replace(value, offset=value.offset + (other if kind == "Add" else -other))
    if kind in ("Mul", "Div"):
        factor = other if kind == "Mul" else 1 / other
        return replace(value, scale=value.scale * factor, offset=value.offset * factor)
    return None


def _linear(name: str, kind: str, options: Mapping[str, Any], value: _Value) -> _Value:
    transform = options.get("post_transform", b"NONE").decode()
    rows = len(options.get("intercepts", [0.0]))
    matrix = np.reshape(options["coefficients"], (rows, -1)).T
    bias = np.array(options.get("intercepts", [0.0]))
    if kind == "LinearRegressor" and rows == 1 and transform == "NONE":
        return value.then(matrix, bias)
    if kind == "LinearClassifier" and rows == 1 and transform == "LOGISTIC":
        return value.then(matrix, bias, "sigmoid")
    is_mirrored = rows == 2 and np.array_equal(matrix[:, 0], -matrix[:, 1]) and bias[0] == -bias[1]
    if kind == "LinearClassifier" and transform == "LOGISTIC" and is_mirrored:
        return value.then(matrix[:, 1:], bias[1:], "sigmoid")
    if kind == "LinearClassifier" and rows == 2 and transform == "SOFTMAX":
        return value.then(np.diff(matrix, axis=1), np.diff(bias), "sigmoid")
    raise FleetError(
        f"model '{name}' has a {kind} of {rows} outputs with the transform {transform}; give models of one output or "
        f"two classes"
    )


def _trees(name: str, kind: str, options: Mapping[str, Any]) -> tuple[str, TreeNodes, float]:
    """Return link, trees and intercept of an ensemble."""
    if doubles := [option for option in options if option.endswith("_as_tensor")]:
        raise FleetError(f"model '{name}' has {doubles[0]} of doubles; convert it with numbers of 32 bits")
    transform, aggregate = (
        options.get(option, default).decode()
        for option, default in (("post_transform", b"NONE"), ("aggregate_function", b"SUM"))
    )
    prefix = "target" if kind == "TreeEnsembleRegressor" else "class"
    labels = len(options.get("classlabels_int64s", options.get("classlabels_strings", [])))
    is_one = options.get("n_targets", 1) == 1 if prefix == "target" else labels == 2
    used = set(options[f"{prefix}_ids"])
    is_known = transform in ("NONE", "LOGISTIC") or (transform == "SOFTMAX" and used == {0, 1})
    # ONNX Runtime adds those of classifiers as intended only to one score, of which the second class is not mentioned.
    bases = list(options.get("base_values", []))
    is_known &= not bases or (len(bases) == 1 and (prefix == "target" or used == {0}))
    if not is_one or not is_known or aggregate not in ("SUM", "AVERAGE"):
        raise FleetError(
            f"model '{name}' has a {kind} of {labels or options.get('n_targets', 1)} outputs with the transform "
            f"{transform} of {aggregate} and {len(bases)} base values; give models of one output or two classes"
        )
    signs = dict.fromkeys(used, 1.0)
    if len(used) == 2:
        signs = {0: -1.0 if transform == "SOFTMAX" else 0.0, _POSITIVE: 1.0}
    nodes = TreeNodes()
    _add_trees(name, nodes, options, prefix, signs)
    if aggregate == "AVERAGE":
        nodes.scaled(1 / len(nodes.roots))
    return "identity" if transform == "NONE" else "logit", nodes, float(sum(bases))


def _add_trees(
    name: str, nodes: TreeNodes, options: Mapping[str, Any], prefix: str, signs: Mapping[int, float]
) -> None:
    owners = np.array(options["nodes_treeids"])
    modes = np.array([mode.decode() for mode in options["nodes_modes"]])
    if unknown := set(modes) - {"LEAF", "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"}:
        raise FleetError(f"model '{name}' has splits of the kind {sorted(unknown)[0]}; a fleet compares by order")
    numbers = np.array(options["nodes_nodeids"])
    is_leaf, is_swapped = modes == "LEAF", np.isin(modes, ["BRANCH_GTE", "BRANCH_GT"])
    thresholds = np.array(options["nodes_values"], np.float64)
    edges = np.where(np.isin(modes, ["BRANCH_LEQ", "BRANCH_GT"]), edge_at_most(thresholds), edge_below(thresholds))
    yes, no = np.array(options["nodes_truenodeids"]), np.array(options["nodes_falsenodeids"])
    tracks = np.array(options.get("nodes_missing_value_tracks_true") or np.zeros(len(owners)), bool)
    places = {pair: place for place, pair in enumerate(zip(owners.tolist(), numbers.tolist(), strict=True))}
    values = np.zeros(len(owners))
    leaves = (options[f"{prefix}_{one}"] for one in ("treeids", "nodeids", "ids", "weights"))
    for tree, node, target, weight in zip(*leaves, strict=True):
        values[places[tree, node]] += signs[target] * weight
    features = np.where(is_leaf, LEAF, options["nodes_featureids"])
    for tree in np.unique(owners).tolist():
        own = np.flatnonzero(owners == tree)
        order = {number: place for place, number in enumerate(numbers[own].tolist())}
        lefts, rights = (
            np.array([order.get(child, -1) for child in children[own].tolist()])
            for children in (np.where(is_swapped, no, yes), np.where(is_swapped, yes, no))
        )
        is_child = np.isin(np.arange(len(own)), np.concatenate([lefts[~is_leaf[own]], rights[~is_leaf[own]]]))
        root = int(np.argmin(is_child))
        missing_left = tracks[own] ^ is_swapped[own]
        nodes.add_tree(features[own], edges[own], lefts, rights, missing_left, values[own], root)


def _model(name: str, value: _Value, columns: Sequence[str], inputs: int) -> ImportedModel:
    """Return the model of a value; ``inputs`` is the number of columns of the input, 0 if the graph does not say it."""
    if value.trees is not None:
        link, nodes, intercept = value.trees
        return ImportedModel.of_trees(link, column_names(name, columns, inputs or len(columns)), nodes, intercept)
    if value.is_input or value.layers[-1][0].shape[1] != 1 or value.activations[-1] not in _LINKS:
        shapes = [matrix.shape for matrix, _ in value.layers]
        raise FleetError(
            f"model '{name}' has layers of the shapes {shapes} and the activations {list(value.activations)}; it needs "
            f"1 output of {', '.join(_LINKS)}"
        )
    matrix, bias = value.layers[0]
    names = column_names(name, columns, len(matrix))
    scale, offset = (np.broadcast_to(part, len(matrix)) for part in (value.scale, value.offset))
    first = (matrix * scale[:, None], bias + offset @ matrix)
    link, hidden = _LINKS[value.activations[-1]], value.activations[:-1]
    if unknown := [one for one in hidden if one == "exp"]:
        raise FleetError(f"model '{name}' has the activation {unknown[0]} before its output; a fleet has none there")
    if not hidden:
        return ImportedModel(link, names, first[0][:, 0].astype(np.float64), float(first[1][0]))
    return ImportedModel(link, names, np.ones(len(names)), 0.0, (first, *value.layers[1:]), hidden)
