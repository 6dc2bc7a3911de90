"""S15: single rows without Spark have the scores that tables have."""

from pathlib import Path
from typing import Any

import pytest

from data_pipelines.raw_columns import ColumnError
from scoring.loaded_model import LoadedModel
from scoring.model_uri import resolve
from scoring.predictor import Predictor
from tests.unit.scoring.exported_models import FLIGHTS, MEMBERS, ORDERS, export_members, export_orders


@pytest.fixture(scope="module")
def predictor(flights_model: Path) -> Predictor:
    return Predictor(flights_model)


def test_each_row_has_the_score_of_the_table(predictor: Predictor, flights_model: Path) -> None:
    expected = LoadedModel(flights_model).score(FLIGHTS)["score"].tolist()
    rows = FLIGHTS.to_pylist()
    assert [predictor.predict(row)["score"] for row in rows] == pytest.approx(expected, rel=0, abs=1e-6)
    together = predictor.predict_rows(rows)
    assert [row["score"] for row in together] == pytest.approx(expected, rel=0, abs=1e-6)
    assert {row["model_version"] for row in together} == {resolve(flights_model).label}
    assert predictor.predict_rows([]) == []


def test_every_kind_of_feature_can_be_given(tmp_path: Path) -> None:
    """Times, maps as mappings, and lists of indices with their values."""
    model = export_orders(tmp_path)
    rows: list[dict[str, Any]] = ORDERS.to_pylist()
    for row in rows:
        row["basket"] = None if row["basket"] is None else dict(row["basket"])
    expected = LoadedModel(model).score(ORDERS)["score"].tolist()
    assert [row["score"] for row in Predictor(model).predict_rows(rows)] == pytest.approx(expected, rel=0, abs=1e-6)


def test_a_row_that_cannot_be_scored_says_why(predictor: Predictor, tmp_path: Path) -> None:
    row = FLIGHTS.to_pylist()[0]
    for wrong, message in (
        ({name: value for name, value in row.items() if name != "hour"}, "column 'hour' is missing in a row"),
        (row | {"distance": "far"}, "column 'distance' has type string"),
        (row | {"hour": 5.5}, "column 'hour' has type double"),
        (row | {"stops": "EWR"}, "column 'stops' has type string"),
        (row | {"stops": ["EWR", 3]}, "column 'stops' has values that are of no one type"),
    ):
        with pytest.raises(ColumnError, match=message):
            predictor.predict(wrong)
    members = Predictor(export_members(tmp_path))
    with pytest.raises(ColumnError, match="column 'member' has type int64, the model was trained with bool"):
        members.predict(MEMBERS.to_pylist()[0] | {"member": 1})
