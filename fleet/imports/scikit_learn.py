"""Import of scikit-learn's linear models, small networks and trees."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from mirrorspark.fleet.columns import LEAF, FleetError
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.imports.imported_model import PROBED_ROWS, ImportedModel, check_trees, column_names, fleet_of
from mirrorspark.fleet.trees import TreeNodes, edge_at_most

_INVERSE_LINKS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda values: values,
    "logit": lambda values: 1 / (1 + np.exp(-values)),
    "log": np.exp,
}
_TOLERANCE = 1e-6
_ACTIVATIONS = {"identity": "linear", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
_OUTPUT_LINKS = {"identity": "identity", "logistic": "logit", "exp": "log"}


def fleet_from_sklearn(
    models: Mapping[str, Any],
    columns: Sequence[str] | None = None,
    *,
    group: str = "",
    thresholds: Mapping[str, float] | None = None,
    cut_points: Mapping[str, Sequence[float]] | None = None,
) -> Fleet:
    """Return the fleet of scikit-learn's models: linear and logistic regressions, MLPs, trees, forests and boosting.

    The score is the prediction, or the probability of the second of two classes. A ``StandardScaler`` before a linear
    model or MLP, in a pipeline, becomes part of the coefficients. Missing values make their outputs null; in trees they
    go where scikit-learn sends them.

    Args:
        models: Fitted estimators by the name of the model.
        columns: Columns of the estimators that were fitted without names.
        group: Group of the models.
        thresholds: Score from which ``binary`` is 1, by model.
        cut_points: Ascending scores at which ``Rank`` falls, by model.

    Raises:
        FleetError: A model is of another kind, is not fitted, has several outputs or more than two classes, reads
            categories, or has columns without names.
    """
    imported = {name: _of_sklearn(name, model, columns) for name, model in models.items()}
    fleet = fleet_of(imported, group, thresholds, cut_points)
    return check_trees(fleet, {name: partial(_predictions, model) for name, model in models.items()})


def _of_sklearn(name: str, model: Any, columns: Sequence[str] | None) -> ImportedModel:
    from sklearn.base import is_classifier
    from sklearn.exceptions import NotFittedError
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(model)
    except (NotFittedError, TypeError) as error:
        raise FleetError(f"model '{name}' is not a fitted estimator of scikit-learn: {error}") from error
    steps = [step for _, step in model.steps] if isinstance(model, Pipeline) else [model]
    *before, last = steps
    if any(not isinstance(step, StandardScaler) for step in before):
        raise FleetError(f"model '{name}' has steps other than StandardScaler: {before}; fit it on prepared columns")
    columns = getattr(model, "feature_names_in_", columns)
    if (found := _trees(name, last)) is not None:
        if before:
            raise FleetError(f"model '{name}' has a StandardScaler before its trees; fit them without it")
        link, trees, intercept = found
        return ImportedModel.of_trees(link, column_names(name, columns, last.n_features_in_), trees, intercept)
    if hasattr(last, "coefs_"):
        return _of_network(name, before, last, columns)
    coefficients = getattr(last, "coef_", None)
    if coefficients is None:
        raise FleetError(
            f"model '{name}', a {type(last).__name__}, has no coefficients and no trees that a fleet knows; give "
            f"fitted linear models, MLPs, trees, forests or gradient boosting, or log it with MLflow for "
            f"fleet_from_models"
        )
    coefficients = np.array(coefficients, np.float64)
    if coefficients.size != coefficients.shape[-1]:
        raise FleetError(f"model '{name}' has {len(coefficients)} outputs; give models of one output or two classes")
    coefficients = coefficients.ravel()
    intercept = float(np.sum(last.intercept_))
    names = column_names(name, columns, len(coefficients))
    scale, offset = _scaling(before, len(coefficients))
    link = _sklearn_link(last, is_probability=is_classifier(last))
    linear = ImportedModel(link, names, coefficients * scale, intercept + float(coefficients @ offset))
    _check_predictions(name, model, linear, is_probability=is_classifier(last))
    return linear


def _scaling(scalers: Sequence[Any], inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors and offsets of the inputs by all scalers together."""
    scale, offset = np.ones(inputs), np.zeros(inputs)
    for scaler in scalers:
        if scaler.mean_ is not None and scaler.with_mean:
            offset = offset - scaler.mean_
        if scaler.scale_ is not None:
            scale, offset = scale / scaler.scale_, offset / scaler.scale_
    return scale, offset


def _of_network(name: str, scalers: Sequence[Any], model: Any, columns: Sequence[str] | None) -> ImportedModel:
    if model.n_outputs_ != 1 or model.out_activation_ not in _OUTPUT_LINKS:
        raise FleetError(
            f"model '{name}' has {model.n_outputs_} outputs with the activation {model.out_activation_}; give an MLP "
            f"of one output or two classes"
        )
    layers = list(zip(model.coefs_, model.intercepts_, strict=True))
    matrix, bias = layers[0]
    scale, offset = _scaling(scalers, len(matrix))
    layers[0] = (matrix * scale[:, None], bias + offset @ matrix)
    names = column_names(name, columns, len(matrix))
    hidden = [_ACTIVATIONS[model.activation]] * (len(layers) - 1)
    return ImportedModel(_OUTPUT_LINKS[model.out_activation_], names, np.ones(len(names)), 0.0, layers, hidden)


def _trees(name: str, model: Any) -> tuple[str, TreeNodes, float] | None:
    """Return link, trees and intercept of a model that is made of trees, else None."""
    from sklearn import ensemble, tree
    from sklearn.base import is_classifier

    forests: Any = (ensemble.RandomForestClassifier, ensemble.RandomForestRegressor)
    forests += (ensemble.ExtraTreesClassifier, ensemble.ExtraTreesRegressor)
    boosted: Any = (ensemble.GradientBoostingClassifier, ensemble.GradientBoostingRegressor)
    binned: Any = (ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor)
    known: Any = (*forests, *boosted, *binned, tree.BaseDecisionTree)
    if not isinstance(model, known):
        return None
    classes = len(getattr(model, "classes_", (0, 1))) if getattr(model, "n_outputs_", 1) == 1 else 0
    if is_classifier(model) and classes != 2:
        raise FleetError(f"model '{name}' has {classes or 'several lists of'} classes; give models of two classes")
    if not is_classifier(model) and getattr(model, "n_outputs_", 1) != 1:
        raise FleetError(f"model '{name}' has {model.n_outputs_} outputs; give models of one output")
    if isinstance(model, binned):
        return _binned_trees(name, model)
    nodes = TreeNodes()
    if isinstance(model, boosted):
        for one in model.estimators_[:, 0]:
            _add_tree(nodes, one.tree_, model.learning_rate * one.tree_.value[:, 0, 0])
        if model.init_ != "zero" and not type(model.init_).__name__.startswith("Dummy"):
            raise FleetError(f"model '{name}' begins with a {type(model.init_).__name__}; fit it without init=")
        begin = float(model._raw_predict_init(np.zeros((1, model.n_features_in_), np.float32))[0, 0])
        scale = 2.0 if model.loss == "exponential" else 1.0  # the link of this loss is half the logit
        nodes.scaled(scale)
        return "logit" if is_classifier(model) else "identity", nodes, scale * begin
    trees = model.estimators_ if isinstance(model, forests) else [model]
    for one in trees:
        values = one.tree_.value[:, 0, :]
        values = values[:, 1] / values.sum(axis=1) if is_classifier(model) else values[:, 0]
        _add_tree(nodes, one.tree_, values / len(trees))
    return "identity", nodes, 0.0


def _add_tree(nodes: TreeNodes, tree: Any, values: np.ndarray) -> None:
    is_leaf = tree.children_left < 0
    nodes.add_tree(
        np.where(is_leaf, LEAF, tree.feature),
        edge_at_most(tree.threshold),
        tree.children_left,
        tree.children_right,
        np.asarray(tree.missing_go_to_left, bool),
        values,
    )


def _binned_trees(name: str, model: Any) -> tuple[str, TreeNodes, float]:
    """Return link, trees and intercept of a histogram-based gradient boosting."""
    if model.is_categorical_ is not None:
        raise FleetError(f"model '{name}' reads categories; fit it on columns of 0 and 1 for them")
    nodes = TreeNodes()
    for (predictor,) in model._predictors:
        table = predictor.nodes
        nodes.add_tree(
            np.where(table["is_leaf"] != 0, LEAF, table["feature_idx"].astype(np.int64)),
            edge_at_most(table["num_threshold"]),
            table["left"].astype(np.int64),
            table["right"].astype(np.int64),
            table["missing_go_to_left"] != 0,
            table["value"],
        )
    links = {"IdentityLink": "identity", "LogLink": "log", "LogitLink": "logit"}
    return links[type(model._loss.link).__name__], nodes, float(np.ravel(model._baseline_prediction)[0])


def _predictions(model: Any, rows: Any) -> np.ndarray:
    """Return the scores of a model for a DataFrame."""
    given = rows if hasattr(model, "feature_names_in_") else rows.to_numpy()
    return np.asarray(model.predict_proba(given)[:, 1] if hasattr(model, "predict_proba") else model.predict(given))


def _sklearn_link(model: Any, *, is_probability: bool) -> str:
    """Return the link that the model should have; its predictions are compared afterwards."""
    if is_probability:
        return "logit"
    kind = type(model).__name__
    if kind == "TweedieRegressor":
        has_log = model.link == "log" or (model.link == "auto" and model.power > 0)
        return "log" if has_log else "identity"
    return "log" if kind in ("PoissonRegressor", "GammaRegressor") else "identity"


def _check_predictions(name: str, model: Any, found: ImportedModel, *, is_probability: bool) -> None:
    """Compare the model's predictions for some rows with those of the import, which may have misunderstood it."""
    import pandas as pd

    rows: Any = np.random.default_rng(0).normal(size=(PROBED_ROWS, len(found.columns)))
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
