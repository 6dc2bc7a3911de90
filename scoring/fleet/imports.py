"""Import of trained models: linear models of scikit-learn, and stacks of dense layers of Keras."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from mirrorspark.scoring.fleet.columns import (
    ACTIVATIONS,
    FLEET_SCHEMA,
    MODEL_FIELDS,
    TERM_FIELDS,
    FleetError,
    lists_from,
    lists_of_nulls,
)
from mirrorspark.scoring.fleet.fleet import Fleet

# Links by the activation of a network's output.
_OUTPUT_LINKS = {"linear": "identity", "sigmoid": "logit", "exponential": "log"}
_INVERSE_LINKS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda values: values,
    "logit": lambda values: 1 / (1 + np.exp(-values)),
    "log": np.exp,
}
_PROBED_ROWS = 16
_TOLERANCE = 1e-6
_NETWORK_TOLERANCE = 1e-3  # of sums in float32, in another order


@dataclass(frozen=True)
class _Imported:
    """One imported model; a network if it has layers.

    Attributes:
        coefficients: float64 ``[columns]``.
        layers: Matrix ``[inputs, outputs]`` and bias of each layer.
        activations: Of the hidden layers.
    """

    link: str
    columns: Sequence[str]
    coefficients: np.ndarray
    intercept: float = 0.0
    layers: Sequence[tuple[np.ndarray, np.ndarray]] = ()
    activations: Sequence[str] = field(default_factory=tuple)


def fleet_from_sklearn(
    models: Mapping[str, Any],
    columns: Sequence[str] | None = None,
    *,
    group: str = "",
    thresholds: Mapping[str, float] | None = None,
    cut_points: Mapping[str, Sequence[float]] | None = None,
) -> Fleet:
    """Return the fleet of linear models of scikit-learn: regressions, logistic regressions of two classes.

    The score is the prediction, or the probability of the second class. A ``StandardScaler`` before the model, in a
    pipeline, becomes part of the coefficients. Missing values make the outputs null: scikit-learn has none, either.

    Args:
        models: Fitted estimators by the name of the model.
        columns: Columns of the estimators that were fitted without names.
        group: Group of the models.
        thresholds: Score from which ``binary`` is 1, by model.
        cut_points: Ascending scores at which ``Rank`` falls, by model.

    Raises:
        FleetError: A model is not linear, is not fitted, has several outputs, or has columns without names.
    """
    imported = {name: _of_sklearn(name, model, columns) for name, model in models.items()}
    return _fleet(imported, group, thresholds, cut_points)


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
            or its layers do not stand one after the other.
    """
    imported = {
        name: _of_keras(name, model, columns[name] if isinstance(columns, Mapping) else columns)
        for name, model in models.items()
    }
    fleet = _fleet(imported, group, thresholds, cut_points)
    _check_scores(fleet, models, {name: found.columns for name, found in imported.items()})
    return fleet


def _of_sklearn(name: str, model: Any, columns: Sequence[str] | None) -> _Imported:
    from sklearn.base import is_classifier
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    steps = [step for _, step in model.steps] if isinstance(model, Pipeline) else [model]
    *before, last = steps
    if any(not isinstance(step, StandardScaler) for step in before):
        raise FleetError(f"model '{name}' has steps that are no StandardScaler: {before}; fit it on prepared columns")
    coefficients = getattr(last, "coef_", None)
    if coefficients is None:
        raise FleetError(f"model '{name}', a {type(last).__name__}, has no coefficients; give fitted linear models")
    coefficients = np.array(coefficients, np.float64)
    if coefficients.size != coefficients.shape[-1]:
        raise FleetError(f"model '{name}' has {len(coefficients)} outputs; give models of one output or two classes")
    coefficients = coefficients.ravel()
    intercept = float(np.sum(last.intercept_))
    names = getattr(model, "feature_names_in_", columns)
    if names is None or len(names) != len(coefficients):
        raise FleetError(
            f"model '{name}' has {len(coefficients)} inputs and {0 if names is None else len(names)} names of columns; "
            f"fit it on a DataFrame, or give columns="
        )
    for scaler in reversed(before):
        scale = np.ones(len(coefficients)) if scaler.scale_ is None else scaler.scale_
        mean = np.zeros(len(coefficients)) if scaler.mean_ is None or not scaler.with_mean else scaler.mean_
        coefficients = coefficients / scale
        intercept -= float(coefficients @ mean)
    link = _sklearn_link(last, is_probability=is_classifier(last))
    found = _Imported(link, [str(one) for one in names], coefficients, intercept)
    _check_predictions(name, model, found, is_probability=is_classifier(last))
    return found


def _sklearn_link(model: Any, *, is_probability: bool) -> str:
    """Return the link that the model should have; its predictions are compared afterwards."""
    if is_probability:
        return "logit"
    kind = type(model).__name__
    if kind == "TweedieRegressor":
        has_log = model.link == "log" or (model.link == "auto" and model.power > 0)
        return "log" if has_log else "identity"
    return "log" if kind in ("PoissonRegressor", "GammaRegressor") else "identity"


def _check_predictions(name: str, model: Any, found: _Imported, *, is_probability: bool) -> None:
    """Compare the model's predictions for some rows with those of the import, which may have misunderstood it."""
    import pandas as pd

    rows: Any = np.random.default_rng(0).normal(size=(_PROBED_ROWS, len(found.columns)))
    # Predictors of moderate size, so that the link can be seen.
    rows /= 1 + np.abs(rows @ found.coefficients)[:, None]
    predictors = rows @ found.coefficients + found.intercept
    if hasattr(model, "feature_names_in_"):
        rows = pd.DataFrame(rows, columns=list(found.columns))
    if is_probability and not hasattr(model, "predict_proba"):
        raise FleetError(
            f"model '{name}', a {type(model).__name__}, gives no probabilities; give a logistic regression"
        )
    theirs = model.predict_proba(rows)[:, -1] if is_probability else model.predict(rows)
    if not np.allclose(_INVERSE_LINKS[found.link](predictors), np.ravel(theirs), rtol=_TOLERANCE, atol=_TOLERANCE):
        raise FleetError(
            f"model '{name}', a {type(model).__name__}, predicts something else than its coefficients with the link "
            f"{found.link}; give a linear or logistic regression"
        )


def _of_keras(name: str, model: Any, columns: Sequence[str]) -> _Imported:
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
                f"Normalization before them; score it on its own with score_files"
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
    return _Imported(_OUTPUT_LINKS[output], columns, np.ones(len(columns)), 0.0, layers, hidden)


def _check_scores(fleet: Fleet, models: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> None:
    """Compare the models' predictions for some rows with those of the fleet: layers may be shared, or used twice."""
    from mirrorspark.scoring.fleet.layout import Layout
    from mirrorspark.scoring.fleet.scorer import FleetScorer

    random = np.random.default_rng(0)
    rows = {name: random.normal(size=_PROBED_ROWS).astype(np.float32) for name in fleet.columns}
    scorer = FleetScorer(fleet, Layout.of(fleet, "packed", ["score"]))
    ours = scorer.outputs(pa.RecordBatch.from_pydict(rows)).by_output["score"]
    for place, (name, model) in enumerate(models.items()):
        theirs = np.ravel(model(np.stack([rows[column] for column in columns[name]], axis=1)))
        if not np.allclose(ours[:, place], theirs, rtol=_NETWORK_TOLERANCE, atol=_NETWORK_TOLERANCE):
            raise FleetError(
                f"model '{name}' predicts something else than its layers one after the other; give stacks of layers"
            )


def _fleet(
    models: Mapping[str, _Imported],
    group: str,
    thresholds: Mapping[str, float] | None,
    cut_points: Mapping[str, Sequence[float]] | None,
) -> Fleet:
    for given in (thresholds or {}, cut_points or {}):
        if strangers := [name for name in given if name not in models]:
            raise FleetError(f"thresholds or cut_points name {strangers}, and there are no such models")
    every = list(models.values())
    lengths = np.array([len(model.columns) for model in every], np.int64)
    networks = [_flat(model.layers) for model in every]
    values: dict[str, pa.Array] = {
        "model": pa.array(list(models), pa.string()),
        "group": pa.array([group] * len(every), pa.string()),
        "link": pa.array([model.link for model in every], pa.string()),
        "intercept": pa.array([model.intercept for model in every], pa.float64()),
        "threshold": pa.array([(thresholds or {}).get(name) for name in models], pa.float64()),
        "cut_points": pa.array(
            [(cut_points or {}).get(name, []) for name in models], MODEL_FIELDS.field("cut_points").type
        ),
        "column": lists_from(lengths, pa.array([name for model in every for name in model.columns], pa.string())),
        "coefficient": lists_from(
            lengths, pa.array(np.concatenate([model.coefficients for model in every] or [np.empty(0)]))
        ),
        "layer_sizes": pa.array([_sizes(model.layers) for model in every], FLEET_SCHEMA.field("layer_sizes").type),
        "activations": pa.array([list(model.activations) for model in every], pa.list_(pa.string())),
        "weights": lists_from(
            np.array([len(flat) for flat in networks], np.int64),
            pa.array(np.concatenate([*networks, np.empty(0, np.float32)]).astype(np.float32)),
        ),
    }
    for term in TERM_FIELDS:
        values.setdefault(term.name, lists_of_nulls(lengths, term.type))
    return Fleet.of(pa.Table.from_arrays([values[name] for name in FLEET_SCHEMA.names], schema=FLEET_SCHEMA))


def _sizes(layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[int]:
    return [layers[0][0].shape[0], *(len(bias) for _, bias in layers)] if layers else []


def _flat(layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return matrices ``[outputs, inputs]`` and biases one after the other."""
    return np.concatenate([np.concatenate([matrix.T.ravel(), bias]) for matrix, bias in layers] or [np.empty(0)])
