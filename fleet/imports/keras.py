"""Import of Keras' stacks of dense layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mirrorspark.fleet.columns import ACTIVATIONS, FleetError
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.imports.imported_model import PROBED_ROWS, ImportedModel, columns_of, fleet_of

# Links by the activation of a network's output.
_OUTPUT_LINKS = {"linear": "identity", "sigmoid": "logit", "exponential": "log"}
_NETWORK_TOLERANCE = 1e-3  # of sums in float32, in another order


def fleet_from_keras(
    models: Mapping[str, Any],
    columns: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    group: str = "",
    thresholds: Mapping[str, float] | None = None,
    cut_points: Mapping[str, Sequence[float]] | None = None,
) -> Fleet:
    """Return the fleet of Keras models that are stacks of dense layers with one output; scoring needs no TensorFlow.

    Layers may be ``Dense``, ``Activation``, ``Dropout`` and, first, ``Normalization``. The last activation is linear,
    sigmoid (the link ``logit``) or exponential (``log``). Missing values make the outputs null.

    Args:
        models: Built models of Keras or tf-keras by the name of the model.
        columns: The columns in the order of the inputs: of all models, or by model.
        group: Group of the models.
        thresholds: Score from which ``binary`` is 1, by model.
        cut_points: Ascending scores at which ``Rank`` falls, by model.

    Raises:
        FleetError: A model has another layer or activation, several outputs, or another number of inputs than columns,
            or its layers do not form a sequence.
    """
    imported = {name: _of_keras(name, model, columns_of(name, columns)) for name, model in models.items()}
    fleet = fleet_of(imported, group, thresholds, cut_points)
    _check_scores(fleet, models, {name: found.columns for name, found in imported.items()})
    return fleet


def _of_keras(name: str, model: Any, columns: Sequence[str]) -> ImportedModel:
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    activations: list[str] = []
    scale, offset = np.ones(len(columns)), np.zeros(len(columns))
    for layer in model.layers:
        kind = type(layer).__name__
        if kind in ("InputLayer", "Dropout"):
            continue
        if kind == "Dense":
            weights = [np.array(values) for values in layer.get_weights()]
            layers.append((weights[0], weights[1] if len(weights) > 1 else np.zeros(weights[0].shape[1])))
            activations.append(str(layer.get_config()["activation"]))
        elif kind == "Activation" and layers and activations[-1] == "linear":
            activations[-1] = str(layer.get_config()["activation"])
        elif kind == "Normalization" and not layers and not layer.invert:
            deviation = np.maximum(np.sqrt(np.ravel(layer.variance)), 1e-7)  # Keras' epsilon
            scale, offset = scale / deviation, offset - np.ravel(layer.mean) / deviation
        else:
            raise FleetError(
                f"model '{name}' has the layer '{layer.name}' ({kind}); a fleet takes Dense, Activation, Dropout and a "
                f"Normalization before them; package it with package_model, and give it to fleet_from_models"
            )
    if not layers or layers[0][0].shape[0] != len(columns) or layers[-1][0].shape[1] != 1:
        shapes = [matrix.shape for matrix, _ in layers]
        raise FleetError(
            f"model '{name}' has layers of the shapes {shapes}; it needs {len(columns)} inputs and 1 output"
        )
    hidden, output = activations[:-1], activations[-1]
    if unknown := [one for one in hidden if one not in ACTIVATIONS]:
        raise FleetError(f"model '{name}' has the activation {unknown[0]}; a fleet has {', '.join(ACTIVATIONS)}")
    if output not in _OUTPUT_LINKS:
        raise FleetError(f"model '{name}' ends with the activation {output}; it needs {', '.join(_OUTPUT_LINKS)}")
    matrix, bias = layers[0]
    layers[0] = (matrix * scale[:, None], bias + offset @ matrix)
    return ImportedModel(_OUTPUT_LINKS[output], columns, np.ones(len(columns)), 0.0, layers, hidden)


def _check_scores(fleet: Fleet, models: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> None:
    """Compare the models' predictions for some rows with those of the fleet: layers may be shared, or used twice."""
    from mirrorspark.fleet.layout import Layout
    from mirrorspark.fleet.scorer import FleetScorer

    random = np.random.default_rng(0)
    rows = {name: random.normal(size=PROBED_ROWS).astype(np.float32) for name in fleet.columns}
    scorer = FleetScorer(fleet, Layout.of(fleet, "packed", ["score"]))
    ours = scorer.outputs(pa.RecordBatch.from_pydict(rows)).by_output["score"]
    for place, (name, model) in enumerate(models.items()):
        theirs = np.ravel(model(np.stack([rows[column] for column in columns[name]], axis=1)))
        if not np.allclose(ours[:, place], theirs, rtol=_NETWORK_TOLERANCE, atol=_NETWORK_TOLERANCE):
            raise FleetError(
                f"model '{name}' predicts something else than its layers one after the other; give stacks of layers"
            )
