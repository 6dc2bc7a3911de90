"""M17: imported models predict what their libraries do, on random rows; others are refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    TweedieRegressor,
)
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.imports.keras import fleet_from_keras
from mirrorspark.fleet.imports.lightgbm import fleet_from_lightgbm
from mirrorspark.fleet.imports.onnx import fleet_from_onnx
from mirrorspark.fleet.imports.pmml import fleet_from_pmml
from mirrorspark.fleet.imports.scikit_learn import fleet_from_sklearn
from mirrorspark.fleet.imports.xgboost import fleet_from_xgboost
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.scorer import FleetScorer
from tests.unit.fleet.test_pmml import AVERAGE, HEAD
from tests.unit.scoring.other_models import (
    NAMES,
    damaged,
    save_lightgbm,
    save_logistic_onnx,
    save_xgboost,
)

COLUMNS = ["a", "b", "c"]
RANDOM = np.random.default_rng(5)
X = pd.DataFrame(RANDOM.normal([0.0, 50.0, 0.0], [1.0, 10.0, 0.1], (400, 3)), columns=COLUMNS)
Y = X["a"] - X["b"] / 20 + 3 * X["c"] + RANDOM.normal(size=400)
TEST = pd.DataFrame(RANDOM.normal([0.0, 50.0, 0.0], [1.0, 10.0, 0.1], (100, 3)), columns=COLUMNS)


def scores(fleet: Fleet) -> dict[str, np.ndarray]:
    scorer = FleetScorer(fleet, Layout.of(fleet, "wide", ["score"]))
    (batch, nulls), *_ = scorer.batches(pa.RecordBatch.from_pandas(TEST), [])
    assert nulls == 0
    return {name: batch.column(f"{name}_score").to_numpy() for name in fleet.names}


def test_models_of_sklearn_predict_the_same() -> None:
    counts = np.exp(Y / 4)
    models = {
        "linear": LinearRegression(fit_intercept=False).fit(X, Y),
        "ridge": make_pipeline(StandardScaler(), Ridge()).fit(X, Y),
        "logistic": make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y.median() < Y),
        "poisson": make_pipeline(StandardScaler(), PoissonRegressor()).fit(X, counts),
        "gamma": make_pipeline(StandardScaler(), TweedieRegressor(power=2)).fit(X, counts),
        "mlp": make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(5, 4), tol=0.1)).fit(X, Y),
        "classes": make_pipeline(StandardScaler(), MLPClassifier((5,), activation="tanh", tol=0.1)).fit(
            X, Y.median() < Y
        ),
    }
    fleet = fleet_from_sklearn(models, thresholds={"logistic": 0.5}, cut_points={"logistic": [0.2, 0.8]}, group="g")
    assert fleet.table["link"].to_pylist() == ["identity", "identity", "logit", "log", "log", "identity", "logit"]
    assert fleet.groups == ("g",)
    found = scores(fleet)
    for name, model in models.items():
        expected = model.predict_proba(TEST)[:, 1] if name in ("logistic", "classes") else model.predict(TEST)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogisticRegression().fit(X, pd.cut(X["a"], 3, labels=False)), "outputs; give models of one output"),
        (lambda: RidgeClassifier().fit(X, Y > 0), "gives no probabilities"),
        (lambda: KNeighborsRegressor().fit(X, Y), "a KNeighborsRegressor, has no coefficients"),
        (lambda: MLPRegressor(hidden_layer_sizes=(3,), tol=1e9, random_state=0).fit(X, X[["a", "b"]]), "has 2 outputs"),
        (lambda: make_pipeline(PolynomialFeatures(), Ridge()).fit(X, Y), "steps other than StandardScaler"),
        (lambda: Ridge().fit(X.to_numpy(), Y), "3 inputs and 0 names of columns"),
    ],
)
def test_models_of_sklearn_that_are_not_linear_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(FleetError, match=f"model 'm'.*{message}"):
        fleet_from_sklearn({"m": make()})


@pytest.mark.process  # TensorFlow asks `uname` when it is imported
def test_networks_of_keras_predict_the_same() -> None:
    from tf_keras import Input, Model, Sequential, layers

    normalization = layers.Normalization()
    normalization.adapt(X.to_numpy(np.float32))
    models = {
        "binary": Sequential(
            [
                Input((3,)),
                normalization,
                layers.Dense(8, activation="relu"),
                layers.Dropout(0.5),
                layers.Dense(4),
                layers.Activation("tanh"),
                layers.Dense(1, activation="sigmoid"),
            ]
        ),
        "amount": Sequential([Input((3,)), layers.Dense(5, activation="elu", use_bias=False), layers.Dense(1)]),
        "count": Sequential([Input((3,)), layers.Dense(1, activation="exponential", kernel_initializer="zeros")]),
    }
    fleet = fleet_from_keras(models, COLUMNS, thresholds={"binary": 0.5})
    assert fleet.table["link"].to_pylist() == ["logit", "identity", "log"]
    found = scores(fleet)
    for name, model in models.items():
        expected = model(TEST.to_numpy(np.float32)).numpy()[:, 0]
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)
    twice, inputs = layers.Dense(3, activation="relu"), Input((3,))
    for odd, message in {
        Model(inputs, layers.Dense(1)(twice(twice(inputs)))): "something else than its layers one after the other",
        Sequential([Input((3,)), layers.BatchNormalization(), layers.Dense(1)]): "BatchNormalization",
        Sequential([Input((3,)), layers.Dense(2)]): r"shapes \[\(3, 2\)\]; it needs 3 inputs and 1 output",
        Sequential([Input((3,)), layers.Dense(2, activation="gelu"), layers.Dense(1)]): "the activation gelu",
        Sequential([Input((3,)), layers.Dense(1, activation="relu")]): "ends with the activation relu",
    }.items():
        with pytest.raises(FleetError, match=message):
            fleet_from_keras({"m": odd}, COLUMNS)


@pytest.mark.parametrize("name", ["m.onnx", "m.pmml", "m.json", "m.ubj", "m.txt"])
def test_a_damaged_file_is_read_or_ends_in_a_fleet_error(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    read: dict[str, Callable[[], object]] = {
        "m.onnx": lambda: fleet_from_onnx({"m": file}, NAMES),
        "m.pmml": lambda: fleet_from_pmml({"m": file}),
        "m.json": lambda: fleet_from_xgboost({"m": file}),
        "m.ubj": lambda: fleet_from_xgboost({"m": file}),
        "m.txt": lambda: fleet_from_lightgbm({"m": file}),
    }
    match name:
        case "m.onnx":
            save_logistic_onnx(file)
        case "m.pmml":
            file.write_text(f"{HEAD}{AVERAGE}</PMML>")
        case "m.txt":
            save_lightgbm(file)
        case _:
            save_xgboost(file)
    # XGBoost itself does not survive every number in its binary form.
    bits = 0 if name == "m.ubj" else 12
    whole, refused = file.read_bytes(), 0
    for content in damaged(whole, turned_bits=bits):
        file.write_bytes(content)
        try:
            read[name]()
        except FleetError:
            refused += 1
    assert refused >= 8
