"""M1, M2: trees of a fleet decide as a plain descent does, and imported trees predict what their libraries do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.imports.imported_model import ImportedModel, fleet_of
from mirrorspark.fleet.imports.lightgbm import fleet_from_lightgbm
from mirrorspark.fleet.imports.scikit_learn import fleet_from_sklearn
from mirrorspark.fleet.imports.xgboost import fleet_from_xgboost
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.scorer import FleetScorer
from mirrorspark.fleet.trees import TreeNodes, edge_at_most, edge_below

COLUMNS = ["a", "b", "c", "d"]
RANDOM = np.random.default_rng(7)


def rows_of(count: int, *, missing: float = 0.0) -> pd.DataFrame:
    """Return float32 columns, the last one of whole numbers."""
    rows = pd.DataFrame(RANDOM.normal(size=(count, 4)), columns=COLUMNS).assign(d=RANDOM.integers(-1, 20, count))
    return rows.astype(np.float32).mask(RANDOM.random(rows.shape) < missing)


FULL, HOLEY = rows_of(1_500), rows_of(1_500, missing=0.1)
TEST, HOLEY_TEST = rows_of(700), rows_of(700, missing=0.1)


def target(rows: pd.DataFrame) -> np.ndarray:
    values = rows.fillna(0.3)
    return (values["a"] * values["b"] + values["c"] + np.sin(values["d"])).to_numpy(np.float64)


def scores(fleet: Fleet, rows: pd.DataFrame) -> dict[str, np.ndarray]:
    scorer = FleetScorer(fleet, Layout.of(fleet, "packed", ["score"]))
    batch = pa.RecordBatch.from_pandas(rows, preserve_index=False)
    parts = [scorer.outputs(batch.slice(start, 300)).by_output["score"] for start in range(0, len(rows), 300)]
    return dict(zip(fleet.names, np.concatenate(parts).T, strict=True))


def prediction(model: Any, rows: Any) -> np.ndarray:
    return np.asarray(model.predict_proba(rows)[:, 1] if hasattr(model, "predict_proba") else model.predict(rows))


@given(st.floats(width=32, allow_subnormal=False) | st.floats(-10, 10), st.floats(width=32, allow_subnormal=False))
def test_rounded_thresholds_decide_as_the_thresholds_do(threshold: float, value: float) -> None:
    if np.isnan(threshold):
        return
    with np.errstate(over="ignore"):
        near = np.float32(threshold)
        neighbours = [np.nextafter(near, np.float32(to)) for to in (-np.inf, np.inf)]
    for x in (near, *neighbours, np.float32(value)):
        if np.isfinite(x):
            assert (x < edge_below(np.float64(threshold))) == (float(x) < threshold)
            assert (x < edge_at_most(np.float64(threshold))) == (float(x) <= threshold)


def random_tree(nodes: TreeNodes, random: np.random.Generator, leaves: int) -> int:
    """Add a tree, of which some nodes share a child."""
    if leaves == 1:
        return nodes.leaf(None if random.random() < 0.02 else float(random.normal()))
    left = int(random.integers(1, leaves))
    children = random_tree(nodes, random, left), random_tree(nodes, random, leaves - left)
    feature, threshold = int(random.integers(4)), float(random.normal())
    is_left = bool(random.random() < 0.5)
    root = nodes.below(feature, threshold, *children, missing_left=is_left)
    if random.random() < 0.05:
        root = nodes.at_most(3 - feature, threshold, root, children[0], missing_left=not is_left)
    if random.random() < 0.02:
        root = nodes.is_missing(feature, children[1], root)
    return root


def descended(model: dict[str, Any], values: np.ndarray) -> float:
    """Return the sum of a model's leaves for one row, null as NaN."""
    total = model["intercept"]
    for root in model["tree_roots"]:
        node = root
        while (feature := model["node_features"][node]) >= 0:
            x, edge = values[feature], np.float32(model["node_values"][node])
            is_left = model["node_missing_left"][node] if np.isnan(x) else x < edge
            node = model["node_lefts" if is_left else "node_rights"][node]
        leaf = model["node_values"][node]
        total += np.nan if leaf is None else leaf
    return float(total)


def test_trees_of_all_sizes_agree_with_a_plain_descent(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    models = {}
    for number, sizes in enumerate([(1,), (2, 64, 3), (65, 40), (63, 300, 1, 64)]):
        nodes = TreeNodes()
        nodes.roots += [random_tree(nodes, random, leaves) for leaves in sizes]
        columns = list(random.permutation(COLUMNS))
        models[f"m{number}"] = ImportedModel.of_trees("identity", columns, nodes, intercept=float(number))
    fleet = fleet_of(models, "", None, None)
    fleet.save(tmp_path / "fleet")
    loaded = Fleet.load(tmp_path / "fleet")
    assert loaded.digests == fleet.digests
    assert len(set(fleet.digests)) == len(fleet)
    found, nulls = scores(loaded.select(fleet.names[::-1]), HOLEY_TEST), 0
    for model in fleet.table.to_pylist():
        values = HOLEY_TEST[model["column"]].to_numpy()
        expected = [descended(model, row) for row in values]
        nulls += int(np.isnan(expected).sum())
        np.testing.assert_allclose(found[model["model"]], expected, rtol=1e-6, atol=1e-6)
    assert 0 < nulls < 4 * 700


def test_models_whose_trees_are_all_single_leaves_are_constants(tmp_path: Path) -> None:
    constant = RandomForestClassifier(5, max_depth=1, min_samples_leaf=500, random_state=0).fit(TEST, TEST["a"] > 0)
    nodes = TreeNodes()
    nodes.roots += [nodes.leaf(value) for value in (1.0, 20.0, 300.0)]
    sums = ImportedModel.of_trees("identity", ["a"], nodes, intercept=0.5)
    assert set(scores(fleet_of({"m": sums}, "", None, None), TEST)["m"]) == {321.5}
    null = TreeNodes()
    null.roots.append(null.leaf(None))
    fleet_of({"m": ImportedModel.of_trees("identity", ["a"], null)}, "", None, None).save(tmp_path / "fleet")
    assert np.isnan(scores(Fleet.load(tmp_path / "fleet"), TEST)["m"]).all()
    found = scores(fleet_from_sklearn({"m": constant}), TEST)["m"]
    np.testing.assert_allclose(found, prediction(constant, TEST), rtol=1e-6)


def test_trees_read_categories_clips_and_what_stands_for_missing_values() -> None:
    nodes = TreeNodes()
    leaves = [nodes.leaf(value) for value in (1.0, 20.0, 300.0)]
    amount = nodes.below(1, 2.0, leaves[0], leaves[1], missing_left=True)
    nodes.roots.append(nodes.below(0, 0.5, amount, leaves[2], missing_left=True))
    transforms: dict[str, list[Any]] = {"category": ["CA", None], "clip_high": [None, 5.0], "missing": [None, 3.0]}
    imported = ImportedModel("identity", ["state", "amount"], np.ones(2), trees=nodes, transforms=transforms)
    fleet = fleet_of({"m": imported}, "", {"m": 20.0}, {"m": [2.0, 200.0]})
    rows = pa.RecordBatch.from_pydict({"state": ["CA", "NY", None, "NY"], "amount": [0.0, 1.5, 1.5, None]})
    scorer = FleetScorer(fleet, Layout.of(fleet, "wide", ["score", "binary", "Rank"]))
    ((outputs, nulls),) = scorer.batches(rows, [])
    assert (outputs["m_score"].to_pylist(), nulls) == ([300.0, 1.0, 1.0, 20.0], 0)
    assert outputs["m_binary"].to_pylist() == [1, 0, 0, 1]
    assert outputs["m_Rank"].to_pylist() == [1, 3, 3, 2]
    with pytest.raises(ColumnError, match="lacks 1 of the 2 columns"):
        scorer.check(pa.schema([("state", pa.string())]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node_lefts": [0, 0, 2]}, "a split without its children"),
        ({"node_features": [-1, -1, 4]}, "a split without its children or its term"),
        ({"node_lefts": [None, 0, 0]}, "a split without its children"),
        ({"node_missing_left": [False, False, None]}, "a split without its children"),
        ({"node_values": [0.0, float("nan"), 1.0]}, "value is NaN or infinite"),
        ({"node_rights": [0, 0]}, "trees whose lists do not fit"),
        ({"tree_roots": [3]}, "a root that is not a node"),
        ({"tree_roots": []}, "trees whose lists do not fit"),
        ({"coefficient": [2.0, 1.0, 1.0, 1.0]}, "a coefficient that trees do not use"),
        ({"layer_sizes": [4, 1], "weights": [1.0] * 5}, "trees whose lists do not fit"),
    ],
)
def test_trees_that_cannot_be_computed_are_refused(change: dict[str, Any], message: str) -> None:
    nodes = TreeNodes()
    nodes.roots.append(nodes.below(0, 0.5, nodes.leaf(1.0), nodes.leaf(2.0), missing_left=True))
    table = fleet_of({"m": ImportedModel.of_trees("identity", COLUMNS, nodes)}, "", None, None).table
    (row,) = table.to_pylist()
    with pytest.raises(FleetError, match=rf"{message}.*\('m'\)"):
        Fleet.of(pa.Table.from_pylist([row | change], schema=table.schema))


def test_a_tree_whose_nodes_refer_to_each_other_is_refused() -> None:
    one, two = np.array([1, 0]), np.array([0, 1])
    with pytest.raises(FleetError, match="refer to nodes that are not there, or to each other"):
        TreeNodes().add_tree(np.zeros(2), np.zeros(2), one, two, one, np.zeros(2))


def test_trees_of_sklearn_predict_the_same() -> None:
    y, holey_y = target(FULL), target(HOLEY)
    holey = {
        "tree": DecisionTreeRegressor().fit(HOLEY, holey_y),
        "classes": DecisionTreeClassifier(max_leaf_nodes=30).fit(HOLEY, holey_y > 0),
        "forest": RandomForestClassifier(10, random_state=0).fit(HOLEY, holey_y > 0),
        "histograms": HistGradientBoostingClassifier(max_iter=20).fit(HOLEY, holey_y > 0),
        "poisson": HistGradientBoostingRegressor(loss="poisson", max_iter=20).fit(HOLEY, np.exp(holey_y / 4)),
    }
    full = {
        "extra": ExtraTreesRegressor(5, random_state=0).fit(FULL, y),
        "boosted": GradientBoostingClassifier(n_estimators=20).fit(FULL, y > 0),
        "exponential": GradientBoostingClassifier(n_estimators=20, loss="exponential").fit(FULL, y > 0),
        "huber": GradientBoostingRegressor(n_estimators=20, loss="huber").fit(FULL, y),
        "zero": GradientBoostingRegressor(n_estimators=5, init="zero").fit(FULL, y),
    }
    fleet = fleet_from_sklearn(holey | full, thresholds={"forest": 0.5}, group="g")
    for models, rows in ((holey, HOLEY_TEST), (full, TEST)):
        found = scores(fleet, rows)
        for name, model in models.items():
            np.testing.assert_allclose(found[name], prediction(model, rows), rtol=1e-6, atol=1e-6)


def test_trees_of_xgboost_predict_the_same(tmp_path: Path) -> None:
    y, rest = target(HOLEY), {"n_estimators": 20}
    is_high, positive = y > 0, np.exp(y / 4)
    stopped = xgboost.XGBClassifier(n_estimators=50, early_stopping_rounds=2, learning_rate=1.0)
    stopped.fit(HOLEY, is_high, eval_set=[(HOLEY[:200], ~is_high[:200])], verbose=False)
    models = {
        "classes": xgboost.XGBClassifier(**rest).fit(HOLEY, is_high),
        "deep": xgboost.XGBRegressor(max_depth=10, base_score=0.7, **rest).fit(HOLEY, y),
        "poisson": xgboost.XGBRegressor(objective="count:poisson", **rest).fit(HOLEY, positive),
        "gamma": xgboost.XGBRegressor(objective="reg:gamma", base_score=2.0, **rest).fit(HOLEY, positive),
        "dart": xgboost.XGBClassifier(booster="dart", rate_drop=0.3, base_score=0.2, **rest).fit(HOLEY, is_high),
        "stopped": stopped,
        "forest": xgboost.XGBRFRegressor(n_estimators=7).fit(HOLEY, y),
    }
    assert stopped.best_iteration < stopped.get_booster().num_boosted_rounds() - 1
    fleet = fleet_from_xgboost(models)
    found = scores(fleet, HOLEY_TEST)
    for name, model in models.items():
        # XGBoost adds leaves in float32.
        np.testing.assert_allclose(found[name], prediction(model, HOLEY_TEST), rtol=1e-6, atol=2e-6)
    for ending, names in {"json": ["classes", "dart", "stopped", "forest"], "ubj": ["dart", "stopped"]}.items():
        files = {name: tmp_path / f"{name}.{ending}" for name in names}
        for name, file in files.items():
            models[name].save_model(file)
        assert fleet_from_xgboost(files).digests == fleet.select(names).digests


def test_trees_of_lightgbm_predict_the_same(tmp_path: Path) -> None:
    rest: dict[str, Any] = {"n_estimators": 20, "n_jobs": 1, "verbose": -1}
    y, zeros = target(HOLEY), FULL.round(0)
    is_high = y > 0
    stopped = lightgbm.LGBMRegressor(**rest).fit(HOLEY, y).booster_
    stopped.best_iteration = 3  # as early stopping sets it
    models = {
        "stopped": stopped,
        "constant": lightgbm.LGBMRegressor(min_data_in_leaf=1_000, **rest).fit(HOLEY, y),
        "classes": lightgbm.LGBMClassifier(sigmoid=2.0, **rest).fit(HOLEY, is_high),
        "many_leaves": lightgbm.LGBMRegressor(num_leaves=100, **rest).fit(HOLEY, y),
        "tweedie": lightgbm.LGBMRegressor(objective="tweedie", **rest).fit(HOLEY, np.exp(y / 4)),
        "zeros": lightgbm.LGBMClassifier(zero_as_missing=True, **rest).fit(zeros, target(FULL) > 0),
        "never_missing": lightgbm.LGBMClassifier(**rest).fit(FULL, target(FULL) > 0),
        "forest": lightgbm.LGBMRegressor(boosting="rf", bagging_freq=1, bagging_fraction=0.5, **rest).fit(HOLEY, y),
        "categories": lightgbm.LGBMRegressor(min_data_per_group=5, cat_smooth=0, **rest).fit(
            FULL, target(FULL), categorical_feature=["d"]
        ),
    }
    # Numbers between two categories, and around 0, which may stand for a missing value.
    rows = HOLEY_TEST.assign(d=HOLEY_TEST["d"] + np.where(RANDOM.random(700) < 0.3, np.float32(0.5), 0), a=0)
    rows["a"] = HOLEY_TEST["a"].round(0)
    fleet = fleet_from_lightgbm(models)
    assert "cat_threshold=" in models["categories"].booster_.model_to_string()
    found = scores(fleet, rows)
    for name, model in models.items():
        np.testing.assert_allclose(found[name], prediction(model, rows), rtol=1e-6, atol=1e-7)
    models["classes"].booster_.save_model(tmp_path / "classes.txt")
    assert fleet_from_lightgbm({"classes": tmp_path / "classes.txt"}).digests == fleet.select(["classes"]).digests


def test_files_that_are_damaged_are_refused(tmp_path: Path) -> None:
    text = (
        lightgbm.LGBMRegressor(n_estimators=3, n_jobs=1, verbose=-1).fit(FULL, target(FULL)).booster_.model_to_string()
    )
    file = tmp_path / "model.txt"
    for part, message in (
        (text[: text.index("Tree=2")], "ends in the middle"),
        ("table", "not a model in LightGBM's text format"),
    ):
        file.write_text(part)
        with pytest.raises(FleetError, match=message):
            fleet_from_lightgbm({"m": file})
    for part in (text.replace("left_child=", "left="), text.replace("leaf_value=", "leaf_value=x ")):
        file.write_text(part)
        with pytest.raises(FleetError, match=r"model 'm' is not as its library writes it \(ValueError:"):
            fleet_from_lightgbm({"m": file})
    file.write_bytes(b"\xff\xff")
    with pytest.raises(FleetError, match="UnicodeDecodeError"):
        fleet_from_lightgbm({"m": file})
    file = tmp_path / "model.json"
    for document, message in (({"version": 1}, "not a model of XGBoost as JSON"), ({"learner": {}}, "KeyError")):
        file.write_text(json.dumps(document))
        with pytest.raises(FleetError, match=message):
            fleet_from_xgboost({"m": file})


def of_categories(library: Any) -> Any:
    """Return a model that splits by categories that are texts."""
    texts = FULL.assign(d=FULL["d"].astype(int).astype(str).astype("category"))
    if library is lightgbm:
        return lightgbm.LGBMRegressor(n_estimators=5, min_data_per_group=5, n_jobs=1, verbose=-1).fit(
            texts, target(FULL)
        )
    return xgboost.XGBRegressor(n_estimators=5, enable_categorical=True).fit(texts, target(FULL))


THIRDS = pd.cut(FULL["a"], 3, labels=False)


@pytest.mark.parametrize(
    ("read", "make", "message"),
    [
        (fleet_from_sklearn, lambda: DecisionTreeClassifier().fit(FULL, THIRDS), "has 3 classes"),
        (fleet_from_sklearn, lambda: DecisionTreeRegressor().fit(FULL, FULL[["a", "b"]]), "has 2 outputs"),
        (fleet_from_sklearn, lambda: DecisionTreeRegressor().fit(FULL.to_numpy(), THIRDS), "0 names of columns"),
        (
            fleet_from_sklearn,
            lambda: make_pipeline(StandardScaler(), DecisionTreeRegressor(max_depth=1)).fit(FULL, THIRDS),
            "a StandardScaler before its trees",
        ),
        (fleet_from_sklearn, DecisionTreeRegressor, "not a fitted estimator"),
        (fleet_from_sklearn, lambda: IsolationForest(n_estimators=2).fit(FULL), "no trees that a fleet knows"),
        (
            fleet_from_sklearn,
            lambda: HistGradientBoostingRegressor(categorical_features=[3]).fit(FULL.abs(), THIRDS),
            "reads categories",
        ),
        (
            fleet_from_sklearn,
            lambda: GradientBoostingRegressor(n_estimators=2, init=DecisionTreeRegressor()).fit(FULL, THIRDS),
            "begins with a DecisionTreeRegressor",
        ),
        (fleet_from_xgboost, lambda: xgboost.XGBClassifier(n_estimators=2).fit(FULL, THIRDS), "multi:softprob"),
        (fleet_from_xgboost, lambda: xgboost.XGBRegressor(booster="gblinear").fit(FULL, THIRDS), "booster gblinear"),
        (fleet_from_xgboost, lambda: xgboost.XGBRegressor().fit(FULL, FULL[["a", "b"]]), "has 2 outputs"),
        (fleet_from_xgboost, lambda: of_categories(xgboost), "splits by categories"),
        (fleet_from_xgboost, lambda: 5, "an? int, is not a model of XGBoost"),
        (
            fleet_from_lightgbm,
            lambda: lightgbm.LGBMClassifier(n_estimators=2, n_jobs=1, verbose=-1).fit(FULL, THIRDS),
            "multiclass",
        ),
        (fleet_from_lightgbm, lambda: of_categories(lightgbm), "categories that are texts"),
        (
            fleet_from_lightgbm,
            lambda: lightgbm.LGBMRegressor(n_estimators=2, linear_tree=True, n_jobs=1, verbose=-1).fit(FULL, THIRDS),
            "linear models in its leaves",
        ),
        (fleet_from_lightgbm, lambda: 5, "an? int, is not a model of LightGBM"),
    ],
)
def test_models_that_are_no_sum_of_trees_are_refused(
    read: Callable[..., Fleet], make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(FleetError, match=f"model 'm'.*{message}"):
        read({"m": make()})
