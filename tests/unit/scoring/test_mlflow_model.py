"""MLflow loads a registered model and takes the table that it was trained from, whatever types that has."""

import dataclasses
import datetime
import json
import warnings
from decimal import Decimal
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow.pyfunc import PyFuncModel, scoring_server
from pyspark.ml.linalg import DenseVector, SparseVector

from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.mirrorspark_pyfunc import RawColumnsModel
from mirrorspark.scoring.model.mlflow_model import mlflow_flavour
from tests.unit.scoring.exported_models import (
    FLIGHTS,
    MEMBERS,
    ORDERS,
    TYPES,
    export_flights,
    export_members,
    export_orders,
    export_types,
    export_vectors,
)

TABLES = {
    "flights": (FLIGHTS, lambda folder: export_flights(folder, seed=2)),
    "orders": (ORDERS, export_orders),
    "members": (MEMBERS, export_members),
    "types": (TYPES, export_types),
}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model as this package loads it, and as MLflow does."""

    folder: Path
    own: LoadedModel
    of_mlflow: PyFuncModel


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    root = tmp_path_factory.mktemp("models")
    found = {}
    for name, (_, export) in TABLES.items():
        folder, saved = export(root / name), root / f"{name}-mlflow"
        flavour = mlflow_flavour(ModelDirectory.open(folder)) | {"pip_requirements": []}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
            mlflow.pyfunc.save_model(str(saved), data_path=str(folder), **flavour)
        found[name] = Loaded(folder, LoadedModel(folder), mlflow.pyfunc.load_model(str(saved)))
    return found


def as_pandas(table: pa.Table, form: str) -> pd.DataFrame:
    """Return a table as users have it: as Arrow converts it, with nullable types, or with categoricals."""
    if form == "nullable":
        nullable = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
        return table.to_pandas(types_mapper=nullable.get)
    frame = table.to_pandas()
    if form == "categorical":
        frame["shop"] = frame["shop"].astype("category")
        frame["store"] = frame["store"].astype("category")
    return frame


@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name in TABLES for form in ("plain", "nullable")] + [("types", "categorical")]
)
def test_mlflow_takes_the_very_table_of_the_training(models: dict[str, Loaded], name: str, form: str) -> None:
    loaded, table = models[name], TABLES[name][0]
    scores = loaded.of_mlflow.predict(as_pandas(table, form))["score"]
    np.testing.assert_allclose(scores, np.asarray(loaded.own.score(table)["score"]), rtol=0, atol=1e-6)
    assert len(set(scores)) > 1


def test_the_signature_leaves_the_types_of_columns_to_the_loader(models: dict[str, Loaded]) -> None:
    """Each of MLflow's own types refuses a table in which a value is missing, or a single row."""
    signature = models["types"].of_mlflow.metadata.signature
    found = {one["name"]: one["type"] for one in signature.inputs.to_dict()}
    assert found == dict.fromkeys(set(TYPES.column_names) - {"id"}, "any")


@pytest.mark.parametrize("form", ["dataframe_split", "dataframe_records"])
def test_mlflows_server_takes_the_table_of_the_training(models: dict[str, Loaded], form: str) -> None:
    model = models["types"].of_mlflow
    # As a client sends them: times and decimals are texts in JSON, and a missing value is null.
    orient = form.removeprefix("dataframe_")
    rows = json.loads(TYPES.drop_columns("price").to_pandas().to_json(orient=orient, date_format="iso"))
    prices = [None if price is None else float(price) for price in TYPES["price"].to_pylist()]
    if orient == "split":
        rows = {"columns": [*rows["columns"], "price"], "data": [[*a, b] for a, b in zip(rows["data"], prices)]}  # noqa: B905
    else:
        rows = [row | {"price": price} for row, price in zip(rows, prices, strict=True)]
    answer = scoring_server.invocations(
        json.dumps({form: rows}), "application/json", model, model.metadata.get_input_schema()
    )
    assert answer.status == 200, answer.response
    found = [row["score"] for row in json.loads(answer.response)["predictions"]]
    np.testing.assert_allclose(found, np.asarray(models["types"].own.score(TYPES)["score"]), rtol=0, atol=1e-6)


def test_whole_numbers_and_booleans_keep_their_tokens_where_a_missing_one_makes_them_floats(
    models: dict[str, Loaded],
) -> None:
    frame = TYPES.to_pandas()
    expected = np.asarray(models["types"].own.score(TYPES)["score"])
    frame["store"] = [None if value is None else Decimal(value) for value in TYPES["store"].to_pylist()]
    frame["member"] = np.array([np.nan if value is None else float(value) for value in TYPES["member"].to_pylist()])
    found = models["types"].of_mlflow.predict(frame)["score"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_sparse_vectors_come_in_one_column_in_any_form(tmp_path: Path) -> None:
    model = RawColumnsModel(export_vectors(tmp_path / "vectors"))
    forms: list[Any] = [
        SparseVector(3, {0: 1.5, 2: -2.0}),
        DenseVector([1.5, 0.0, -2.0]),
        {0: 1.5, 2: -2.0},
        {"0": 1.5, "2": -2.0},
        [(0, 1.5), (2, -2.0)],
        {"type": 0, "size": 3, "indices": [0, 2], "values": [1.5, -2.0]},
        {"type": 1, "size": None, "indices": None, "values": [1.5, 0.0, -2.0]},
        np.array([1.5, 0.0, -2.0]),
    ]
    scores = model.predict(pd.DataFrame({"vector": [*forms, None]}))["score"]
    parts = pd.DataFrame({"vector_indices": [[0, 2], []], "vector_values": [[1.5, -2.0], []]})
    expected, missing = model.predict(parts)["score"]
    np.testing.assert_allclose(scores, [expected] * len(forms) + [missing], rtol=0, atol=1e-7)
    assert expected != missing


def test_dates_are_read_whatever_type_they_have(models: dict[str, Loaded]) -> None:
    model = RawColumnsModel(models["types"].folder)
    rows = TYPES.slice(0, 1).to_pandas()
    day = datetime.date(2024, 2, 29)
    forms = ["2024-02-29", day, pd.Timestamp(day), np.datetime64("2024-02-29"), "29.02.2024", "29 Feb 2024"]
    scores = [float(model.predict(rows.assign(joined=[form]))["score"].iloc[0]) for form in forms]
    assert np.ptp(scores) == 0
    missing = [model.predict(rows.assign(joined=[form]))["score"].iloc[0] for form in (None, pd.NaT, "", "30.2.2024")]
    assert np.ptp(missing) == 0
    assert missing[0] != scores[0]


def test_a_column_that_is_missing_is_named(models: dict[str, Loaded]) -> None:
    with pytest.raises(ValueError, match=r"the columns \['store'\] are missing; the table has"):
        RawColumnsModel(models["types"].folder).predict(TYPES.drop_columns("store").to_pandas())
