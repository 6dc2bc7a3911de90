"""#52: missing values as pandas has them have one score in every scorer, or are refused in one line with the column."""

import itertools
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.memory_tables import TableError
from mirrorspark.scoring.batch import score
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.mlflow_model import mlflow_flavour
from mirrorspark.scoring.model.stored.pinned import pinned_folder
from mirrorspark.scoring.predictor import Predictor
from mirrorspark.serving.errors import RequestError
from mirrorspark.serving.invocations_api import csv_rows, json_rows
from mirrorspark.serving.model import ServedModel
from mirrorspark.serving.rows import Rows
from mirrorspark.serving.tensors import tensor_rows
from tests.unit.scoring.exported_models import TYPES, export_types
from tests.unit.scoring.missing_values import FORMS, NOTHING, WRONG

Scorer = Callable[[pd.DataFrame], Sequence[float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_types(tmp_path_factory.mktemp("models") / "types")


@pytest.fixture(scope="module")
def scorers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Scorer]:
    saved = tmp_path_factory.mktemp("mlflow") / "model"
    flavour = mlflow_flavour(ModelDirectory.open(folder)) | {"pip_requirements": []}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
        mlflow.pyfunc.save_model(str(saved), data_path=str(folder), **flavour)
    of_mlflow, predictor = mlflow.pyfunc.load_model(str(saved)), Predictor(folder)
    pinned = pinned_folder(folder)
    assert pinned is not None
    served = ServedModel(pinned, "types", threads=1, trust=False)

    def of_server(rows: Rows) -> list[float]:
        (answer,) = served.compute([rows])
        if isinstance(answer, Exception):
            raise answer
        return list(answer["score"])

    def mlflow_server(frame: pd.DataFrame, form: str) -> list[float]:
        body = json.dumps({f"dataframe_{form}": parsed(frame, form)})
        answer = scoring_server.invocations(body, "application/json", of_mlflow, of_mlflow.metadata.get_input_schema())
        return [row["score"] for row in json.loads(answer.response)["predictions"]]

    def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
        return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]

    return {
        "a dict": lambda frame: [predictor.predict(row)["score"] for row in records(frame)],
        "a row of pandas": lambda frame: [predictor.predict(row)["score"] for _, row in frame.iterrows()],
        "records": lambda frame: [row["score"] for row in predictor.predict_rows(records(frame))],
        "a table as rows": lambda frame: [row["score"] for row in predictor.predict_rows(frame)],
        "pandas": lambda frame: score(frame, folder)["score"].tolist(),
        "polars": lambda frame: score(pl.from_pandas(frame), folder)["score"].to_list(),
        "arrow": lambda frame: score(pa.Table.from_pandas(frame), folder)["score"].to_pylist(),
        "MLflow": lambda frame: of_mlflow.predict(frame)["score"].tolist(),
        "MLflow's server, split": lambda frame: mlflow_server(frame, "split"),
        "MLflow's server, records": lambda frame: mlflow_server(frame, "records"),
        ":predict": lambda frame: of_server(json_rows({"instances": parsed(frame, "records")}, served.columns)),
        "dataframe_split": lambda frame: of_server(
            json_rows({"dataframe_split": parsed(frame, "split")}, served.columns)
        ),
        "dataframe_records": lambda frame: of_server(
            json_rows({"dataframe_records": parsed(frame, "records")}, served.columns)
        ),
        "v2": lambda frame: of_server(tensor_rows(tensors(frame), served.inputs, lambda rows: None)),
    }


def parsed(frame: pd.DataFrame, orient: str) -> Any:
    """Return a table as clients of pandas send it: times and decimals are texts and numbers in JSON."""
    plain = frame.map(lambda value: float(value) if isinstance(value, Decimal) else value)
    return json.loads(plain.to_json(orient=orient, date_format="iso"))


def tensors(frame: pd.DataFrame) -> dict[str, Any]:
    texts = ("shop", "size", "mood", "joined", "day", "when")
    split = parsed(frame, "split")
    columns = dict(zip(split["columns"], map(list, zip(*split["data"], strict=True)), strict=True))
    found = []
    for name, values in columns.items():
        if name == "codes":
            width = max([1, *(len(one) for one in values if one)])
            data = [[*(one or []), *[None] * (width - len(one or []))] for one in values]
            found.append({"name": name, "shape": [len(values), width], "datatype": "FP64", "data": data})
        else:
            kind = "BYTES" if name in texts else "BOOL" if any(type(one) is bool for one in values) else "FP64"
            found.append({"name": name, "shape": [len(values)], "datatype": kind, "data": values})
    return {"inputs": found}


IN_MEMORY = ("a dict", "a row of pandas", "records", "a table as rows", "pandas", "polars", "arrow", "MLflow")
# Every form has the same JSON.
IN_JSON = (
    "MLflow's server, split",
    "MLflow's server, records",
    ":predict",
    "dataframe_split",
    "dataframe_records",
    "v2",
)


@pytest.mark.parametrize(
    ("scorer", "form"), [*itertools.product(IN_MEMORY, FORMS), *itertools.product(IN_JSON, ["floats"])]
)
def test_every_form_of_a_missing_value_has_the_score_of_null(
    folder: Path, scorers: Mapping[str, Scorer], scorer: str, form: str
) -> None:
    expected = np.asarray(LoadedModel(folder).score(TYPES)["score"])
    np.testing.assert_allclose(scorers[scorer](FORMS[form](TYPES)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("scorer", "form"), [*itertools.product(IN_MEMORY, NOTHING), *itertools.product(IN_JSON, ["None"])]
)
def test_a_row_without_any_value_has_the_score_of_nulls(
    folder: Path, scorers: Mapping[str, Scorer], scorer: str, form: str
) -> None:
    nulls = pa.table({name: pa.nulls(1) for name in TYPES.column_names})
    expected = np.asarray(LoadedModel(folder).score(nulls)["score"])
    found = scorers[scorer](pd.DataFrame(dict.fromkeys(TYPES.column_names, NOTHING[form])))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("column", [name for name in TYPES.column_names if name != "id"])
def test_a_column_without_any_value_may_be_one_of_floats(folder: Path, column: str) -> None:
    place = TYPES.column_names.index(column)
    of_floats = TYPES.set_column(place, column, pa.array([None, math.nan, None, math.nan, math.nan], pa.float64()))
    model = LoadedModel(folder)
    ModelDirectory.open(folder).inputs.check(of_floats.schema)
    expected = model.score(TYPES.set_column(place, column, pa.nulls(5)))["score"].tolist()
    assert model.score(of_floats)["score"].tolist() == expected


@pytest.mark.parametrize(("column", "value"), WRONG)
@pytest.mark.parametrize("scorer", IN_MEMORY + IN_JSON)
def test_a_value_of_another_kind_is_refused_with_its_column(
    scorers: Mapping[str, Scorer], scorer: str, column: str, value: Any
) -> None:
    if value == math.inf and scorer in IN_JSON:
        pytest.skip("JSON has no infinity: pandas writes null")
    frame = FORMS["floats"](TYPES).assign(**{column: pd.Series([value, None, None, None, None])})
    errors = (ColumnError, ScoringError, TableError, RequestError, MlflowException, ValueError)
    with pytest.raises(errors) as raised:
        scorers[scorer](frame)
    assert f"'{column}'" in str(raised.value) or f"'{column}'" in str(raised.value.__context__), str(raised.value)


def test_csv_as_pandas_writes_it_has_whole_numbers_as_floats(folder: Path) -> None:
    model = ServedModel(pinned_folder(folder), "types", threads=1, trust=False)  # type: ignore[arg-type]
    scalars = TYPES.drop_columns("codes")
    fields = [field for field in model.inputs if field.name != "codes"]
    body = FORMS["floats"](scalars).to_csv(index=False)
    assert "\n1.0," in body or ",1.0," in body
    found = csv_rows(body.encode(), fields, lambda rows: None).columns
    assert found["store"] == [1, 2, None, 3, 2]
    assert found["member"] == [True, None, False, True, False]
