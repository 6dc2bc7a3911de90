"""Import of XGBoost's trees, from models in memory or from its files."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirrorspark.extras import needed
from mirrorspark.fleet.columns import LEAF, FleetError
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.imports.imported_model import (
    ImportedModel,
    check_trees,
    column_names,
    fleet_of,
    read_models,
    require_local,
)
from mirrorspark.fleet.trees import TreeNodes, edge_below
from mirrorspark.scoring.backends import check_whole

_LINKS = {
    "binary:logistic": "logit",
    "reg:logistic": "logit",
    "binary:logitraw": "identity",
    "count:poisson": "log",
    "reg:gamma": "log",
    "reg:tweedie": "log",
    "survival:cox": "log",
    "reg:squarederror": "identity",
    "reg:squaredlogerror": "identity",
    "reg:pseudohubererror": "identity",
    "reg:absoluteerror": "identity",
    "reg:quantileerror": "identity",
    "rank:pairwise": "identity",
    "rank:ndcg": "identity",
    "rank:map": "identity",
}
_OF_XGB_MODEL = "scikit_learn"  # attribute of the files that an XGBModel writes
_BASES: Mapping[str, Callable[[float], float]] = {
    "identity": lambda score: score,
    "logit": lambda score: float(np.log(score) - np.log1p(-score)),
    "log": lambda score: float(np.log(score)),
}


def fleet_from_xgboost(
    models: Mapping[str, Any],
    columns: Sequence[str] | None = None,
    *,
    group: str = "",
    thresholds: Mapping[str, float] | None = None,
    cut_points: Mapping[str, Sequence[float]] | None = None,
) -> Fleet:
    """Return the fleet of XGBoost's models of trees; scoring needs no XGBoost, nor does reading its JSON files.

    The score is the prediction, or the probability of the second of two classes; a missing value goes where XGBoost
    sends it. An ``XGBModel`` that was stopped early, or the file that it wrote, has the trees up to its best iteration,
    as its predictions do.

    Args:
        models: By name a ``Booster``, an ``XGBModel``, or a file of ``save_model``: JSON, or UBJSON (``.ubj``).
        columns: Columns of models that were trained without names.
        group: Group of the models.
        thresholds: Score from which ``binary`` is 1, by model.
        cut_points: Ascending scores at which ``Rank`` falls, by model.

    Raises:
        FleetError: A model is not a sum of trees with one output, reads categories, has an objective without a link, or
            has columns without names; or a file is not a model of XGBoost.
        OSError: A file cannot be read.
    """
    for name, model in models.items():
        require_local(name, model)
    loaded = {name: _loaded(model) for name, model in models.items()}
    imported = read_models(loaded, lambda name, model: _imported(name, _document(name, model), columns))
    fleet = fleet_of(imported, group, thresholds, cut_points)
    predict = {name: _predictor(model) for name, model in loaded.items() if not isinstance(model, Path)}
    return check_trees(fleet, predict)


def _loaded(model: Any) -> Any:
    """Return a booster, or the path of a file that needs none."""
    if isinstance(model, str | Path):
        if Path(model).suffix == ".json":
            return Path(model)
        xgboost = needed("xgboost", "reading models of XGBoost")
        try:
            check_whole(Path(model))
            booster = xgboost.Booster(model_file=str(model))
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise FleetError(f"{model} is not a model of XGBoost: {[*str(error).splitlines(), ''][0]}") from error
        # A file of a Booster has all trees, whatever its best iteration.
        if _OF_XGB_MODEL not in booster.attributes():
            return booster
    elif hasattr(model, "get_booster"):
        booster = model.get_booster()
    else:
        return model
    best = booster.attributes().get("best_iteration")
    return booster if best is None else booster[: int(best) + 1]


def _document(name: str, model: Any) -> Mapping[str, Any]:
    if isinstance(model, Path):
        try:
            return dict(json.loads(model.read_bytes())["learner"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FleetError(f"{model} is not a model of XGBoost as JSON; write it with save_model") from error
    if not hasattr(model, "save_raw"):
        raise FleetError(
            f"model '{name}', a {type(model).__name__}, is not a model of XGBoost; give a Booster or a file"
        )
    return dict(json.loads(model.save_raw("json"))["learner"])


def _predictor(booster: Any) -> Callable[[Any], np.ndarray]:
    def predict(rows: Any) -> np.ndarray:
        import xgboost

        names = booster.feature_names
        return np.asarray(booster.predict(xgboost.DMatrix(rows.to_numpy(), feature_names=names)))

    return predict


def _imported(name: str, learner: Mapping[str, Any], columns: Sequence[str] | None) -> ImportedModel:
    parameters, booster = learner["learner_model_param"], learner["gradient_booster"]
    objective = learner["objective"]["name"]
    if objective not in _LINKS:
        raise FleetError(f"model '{name}' has the objective {objective}; a fleet has {', '.join(_LINKS)}")
    outputs = max(int(parameters.get("num_class", 0)), int(parameters.get("num_target", 1)))
    if outputs > 1:
        raise FleetError(f"model '{name}' has {outputs} outputs; give models of one output or two classes")
    kind, weights = booster["name"], booster.get("weight_drop")
    if kind not in ("gbtree", "dart"):
        raise FleetError(f"model '{name}' has the booster {kind}; give models of trees (gbtree, dart)")
    model = (booster["gbtree"] if kind == "dart" else booster)["model"]
    nodes = TreeNodes()
    for number, tree in enumerate(model["trees"][: _used_trees(learner, model)]):
        _add_tree(name, nodes, tree, 1.0 if weights is None else weights[number])
    # Versions from 3.1 on write a list of one score.
    base = float(str(parameters["base_score"]).strip("[]"))
    link = _LINKS[objective]
    names = column_names(name, learner.get("feature_names") or columns, int(parameters["num_feature"]))
    return ImportedModel.of_trees(link, names, nodes, _BASES[link](base))


def _used_trees(learner: Mapping[str, Any], model: Mapping[str, Any]) -> int | None:
    """Return the number of trees up to the best iteration in a file of an XGBModel; None if all trees are used."""
    attributes = learner.get("attributes", {})
    if _OF_XGB_MODEL not in attributes or "best_iteration" not in attributes:
        return None
    return (int(attributes["best_iteration"]) + 1) * int(model["gbtree_model_param"].get("num_parallel_tree", 1))


def _add_tree(name: str, nodes: TreeNodes, tree: Mapping[str, Any], weight: float) -> None:
    if any(tree.get("split_type", ())):
        raise FleetError(f"model '{name}' splits by categories; train it on columns of 0 and 1 for them")
    lefts, values = np.array(tree["left_children"]), np.array(tree["split_conditions"], np.float32)
    nodes.add_tree(
        np.where(lefts < 0, LEAF, tree["split_indices"]),
        edge_below(values),
        lefts,
        np.array(tree["right_children"]),
        np.array(tree["default_left"], bool),
        values.astype(np.float64) * weight,
    )
