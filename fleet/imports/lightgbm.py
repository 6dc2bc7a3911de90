"""Import of LightGBM's trees, from models in memory or from its text files."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.imports.imported_model import ImportedModel, check_trees, column_names, fleet_of, read_models
from mirrorspark.fleet.trees import TreeNodes
from mirrorspark.storage import read_text

_LINKS = {
    "binary": "logit",
    "cross_entropy": "logit",
    "poisson": "log",
    "gamma": "log",
    "tweedie": "log",
    "regression": "identity",
    "regression_l1": "identity",
    "huber": "identity",
    "fair": "identity",
    "quantile": "identity",
    "mape": "identity",
    "lambdarank": "identity",
    "rank_xendcg": "identity",
}
# Bits of decision_type. Source: LightGBM, include/LightGBM/tree.h.
_IS_CATEGORY, _DEFAULT_LEFT, _MISSING_SHIFT = 1, 2, 2
_NO_MISSING, _ZERO_MISSING = 0, 1
_ZERO = float(np.float32(1e-35))  # what is at most this far from 0 is missing if zeros are
_WORD = 32


def fleet_from_lightgbm(
    models: Mapping[str, Any],
    columns: Sequence[str] | None = None,
    *,
    group: str = "",
    thresholds: Mapping[str, float] | None = None,
    cut_points: Mapping[str, Sequence[float]] | None = None,
) -> Fleet:
    """Return the fleet of LightGBM's models; neither scoring nor reading its files needs LightGBM.

    The score is the prediction, or the probability of the second of two classes; a missing value goes where LightGBM
    sends it. Columns are computed in 32-bit floats, and each threshold is rounded so that these decide as LightGBM
    does. Categories may be whole numbers.

    Args:
        models: By name a ``Booster``, an ``LGBMModel``, or a file of ``save_model``. An early-stopped model has the
            trees up to its best iteration, as its predictions do.
        columns: Columns of models that were trained without names: these are called ``Column_0`` and so on.
        group: Group of the models.
        thresholds: Score from which ``binary`` is 1, by model.
        cut_points: Ascending scores at which ``Rank`` falls, by model.

    Raises:
        FleetError: A model has several outputs, linear trees, categories that are texts, or an objective without a
            link; or a file is not a model of LightGBM.
        OSError: A file cannot be read.
    """
    imported = read_models(models, lambda name, model: _imported(name, _text(name, model), columns))
    fleet = fleet_of(imported, group, thresholds, cut_points)
    in_memory = {name: model for name, model in models.items() if not isinstance(model, str | Path)}
    return check_trees(fleet, {name: partial(_predictions, model) for name, model in in_memory.items()})


def _predictions(model: Any, rows: Any) -> np.ndarray:
    return np.asarray(getattr(model, "booster_", model).predict(rows.to_numpy()))


def _text(name: str, model: Any) -> str:
    if isinstance(model, str | Path):
        return read_text(Path(model))
    booster = getattr(model, "booster_", model)
    if not hasattr(booster, "model_to_string"):
        raise FleetError(
            f"model '{name}', a {type(model).__name__}, is not a model of LightGBM; give a Booster or a file"
        )
    return str(booster.model_to_string())


def _imported(name: str, text: str, columns: Sequence[str] | None) -> ImportedModel:
    head, *trees = text.split("\nTree=")
    if not head.startswith("tree") or not trees:
        raise FleetError(f"model '{name}' is not a model in LightGBM's text format; write it with save_model")
    if "\nend of trees" not in trees[-1]:
        raise FleetError(f"the text of model '{name}' ends in the middle; write it again with save_model")
    header, tail = _fields(head), text.partition("\npandas_categorical:")[2].strip()
    objective, *options = header.get("objective", "regression").split()
    if objective not in _LINKS or "sqrt" in options:
        given = " ".join([objective, *options])
        raise FleetError(f"model '{name}' has the objective {given}; a fleet has {', '.join(_LINKS)}")
    if header["num_tree_per_iteration"] != "1":
        raise FleetError(
            f"model '{name}' has {header['num_tree_per_iteration']} outputs; give models of one output or two classes"
        )
    nodes = TreeNodes()
    for tree in trees:
        fields = _fields(tree.partition("\n\n")[0])
        if fields.get("is_linear", "0") != "0":
            raise FleetError(f"model '{name}' has linear models in its leaves; train it without linear_tree")
        if fields["num_cat"] != "0" and tail not in ("", "null", "[]"):
            raise FleetError(f"model '{name}' reads categories that are texts; train it on whole numbers for them")
        _add_tree(nodes, fields)
    scale = 1.0 / max(1, len(trees)) if "\naverage_output" in head else 1.0
    # The score of binary classification is the logistic function of the sum times the option ``sigmoid``.
    slope = [float(option.removeprefix("sigmoid:")) for option in options if option.startswith("sigmoid:")]
    nodes.scaled(scale * (slope[0] if slope else 1.0))
    found = header["feature_names"].split(" ")
    is_named = found != [f"Column_{place}" for place in range(len(found))]
    names = column_names(name, found if is_named or columns is None else columns, len(found))
    return ImportedModel.of_trees(_LINKS[objective], names, nodes)


def _fields(lines: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in lines.splitlines() if "=" in line)


def _add_tree(nodes: TreeNodes, fields: Mapping[str, str]) -> None:
    """Add a tree; its splits come before their children, and leaves are ``~number``."""

    def numbers(field: str, kind: Any = int) -> list[Any]:
        return [kind(value) for value in fields.get(field, "").split()]

    leaves = [nodes.leaf(value) for value in numbers("leaf_value", float)]
    lefts, rights = numbers("left_child"), numbers("right_child")
    features, kinds = numbers("split_feature"), numbers("decision_type")
    bounds, words = numbers("cat_boundaries"), numbers("cat_threshold")
    thresholds = numbers("threshold", float)
    # A tree of one leaf has no fields of splits.
    counts = {len(leaves) - 1, *(len(values) for values in (lefts, rights, features, kinds, thresholds))}
    if counts != {len(lefts)}:
        raise ValueError(f"lists of {sorted(counts)} splits in one tree")
    places = [0] * len(lefts)
    for split in reversed(range(len(lefts))):
        left, right = (places[child] if child >= 0 else leaves[~child] for child in (lefts[split], rights[split]))
        feature, threshold, kind = features[split], thresholds[split], kinds[split]
        if kind & _IS_CATEGORY:
            own = words[bounds[int(threshold)] : bounds[int(threshold) + 1]]
            codes = [place * _WORD + bit for place, word in enumerate(own) for bit in range(_WORD) if word >> bit & 1]
            places[split] = nodes.one_of(feature, codes, left, right)
            continue
        missing, missing_left = kind >> _MISSING_SHIFT & 3, bool(kind & _DEFAULT_LEFT)
        if missing == _NO_MISSING:
            missing_left = threshold >= 0  # a missing value is 0 then
        places[split] = nodes.at_most(feature, threshold, left, right, missing_left=missing_left)
        if missing == _ZERO_MISSING:
            default = left if missing_left else right
            above = nodes.at_most(feature, _ZERO, default, places[split], missing_left=True)
            places[split] = nodes.below(feature, -_ZERO, places[split], above, missing_left=False)
    nodes.roots.append(places[0] if places else leaves[0])
