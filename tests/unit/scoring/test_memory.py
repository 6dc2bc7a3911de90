"""#52: ``score`` gives a table in memory back in its form, order and index, without Spark."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.memory_tables import TableError
from mirrorspark.scoring import memory
from mirrorspark.scoring.batch import score
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.output.bad_rows import BadRowError
from tests.unit.scoring.exported_models import BASKETS, FLIGHTS


@pytest.fixture(autouse=True)
def _no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a session was started")

    monkeypatch.setattr(memory, "open_session", started)


def flights() -> pd.DataFrame:
    """Return the flights with an index of towns, two of them the same."""
    return FLIGHTS.to_pandas().set_axis(pd.Index(["x", "y", "z", "x", "v", "w"], name="town"))


def test_pandas_keeps_its_index_its_order_and_the_types_of_its_keys(flights_model: Path) -> None:
    table = flights()[::-1]
    table["flight_id"] = table["flight_id"].astype("category")
    scored = score(table, flights_model, keys="flight_id")
    assert list(scored.columns) == ["flight_id", "score", "model_version"]
    assert list(scored.index) == ["w", "v", "x", "z", "y", "x"]
    assert scored["flight_id"].equals(table["flight_id"])
    expected = LoadedModel(flights_model).score(FLIGHTS)["score"][::-1]
    np.testing.assert_array_equal(scored["score"].to_numpy(), expected)


def test_keys_may_be_missing_or_levels_of_the_index(flights_model: Path) -> None:
    table = flights()
    assert list(score(table, flights_model).columns) == ["score", "model_version"]
    by_id = score(table.set_index("flight_id"), flights_model, keys="flight_id")
    assert list(by_id.columns) == ["score", "model_version"]
    assert list(by_id.index) == list(table["flight_id"])
    with pytest.raises(ScoringError, match=r"key columns \['flight_ids'\] are missing; .*did you mean 'flight_id'"):
        score(table, flights_model, keys="flight_ids")


@pytest.mark.parametrize(
    "form", [pa.table, pl.DataFrame, lambda rows: pl.DataFrame(rows).lazy()], ids=["arrow", "polars", "lazy"]
)
def test_arrow_and_polars_come_back(flights_model: Path, form: Any) -> None:
    table = form({name: FLIGHTS[name].to_pylist() for name in FLIGHTS.column_names})
    scored = score(table, flights_model, keys=["flight_id", "unused"])
    assert isinstance(scored, pa.Table if isinstance(table, pa.Table) else pl.DataFrame)
    names = scored.column_names if isinstance(scored, pa.Table) else scored.columns
    assert names == ["flight_id", "unused", "score", "model_version"]
    np.testing.assert_array_equal(scored["score"].to_numpy(), LoadedModel(flights_model).score(FLIGHTS)["score"])


def test_labels_are_columns(baskets_model: Path) -> None:
    table = BASKETS.to_pandas().set_index(pd.RangeIndex(10, 10 + BASKETS.num_rows))
    scored = score(table, baskets_model)
    labels = [name for name in scored.columns if name.startswith("probability_")]
    assert list(scored.columns) == ["predicted_label", *labels, "model_version"]
    found = scored[labels].to_numpy()
    as_list = score(table, baskets_model, outputs="columns")
    np.testing.assert_array_equal(found, np.stack(as_list["scores"].to_numpy()))
    best = [labels[place].removeprefix("probability_") for place in found.argmax(axis=1)]
    assert list(scored["predicted_label"]) == best
    long = score(table, baskets_model, outputs="long", with_columns=())
    assert list(long.columns) == ["label", "score"]
    assert list(long.index) == [row for row in table.index for _ in labels]


def test_rows_that_cannot_be_scored_are_named_or_marked(flights_model: Path) -> None:
    rows = {"nulls": {"hour": "fail"}, "keys": "flight_id"}
    with pytest.raises(BadRowError, match="the row flight_id='f2' cannot be scored"):
        score(flights(), flights_model, **rows)
    marked = score(flights(), flights_model, bad_rows="mark", **rows)
    assert list(marked["error"].notna()) == [False, False, True, False, False, False]
    assert list(marked["score"].isna()) == [False, False, True, False, False, False]


def test_mistakes_are_named(flights_model: Path) -> None:
    with pytest.raises(ColumnError, match=r"column 'hour' \(categorical\) is missing"):
        score(flights().drop(columns="hour"), flights_model)
    with pytest.raises(ColumnError, match=r"the columns 'hour' \(did you .*\), 'stops' are missing; the table"):
        score(flights().drop(columns="stops").rename(columns={"hour": "Hour"}), flights_model)
    with pytest.raises(TableError, match="column 'hour' cannot be used: its values have several types"):
        score(flights().assign(hour=["5", 6, None, 7.5, "a", 1]), flights_model)
    with pytest.raises(ScoringError, match=r"the table has the columns \['flight_id', 'unused'\], which the model's"):
        score(flights(), flights_model, extra_columns="refuse")
    with pytest.raises(ScoringError, match=r"the table has the columns \['hour'\] twice"):
        score(pd.concat([flights(), flights()[["hour"]]], axis=1), flights_model)
    with pytest.raises(TableError, match="a dict is not a table; give a Spark, pandas or Polars DataFrame"):
        score({"hour": [1]}, flights_model)


def test_an_empty_table_has_no_scores(flights_model: Path) -> None:
    scored = score(flights().head(0), flights_model, keys="flight_id")
    assert (len(scored), list(scored.columns)) == (0, ["flight_id", "score", "model_version"])
    assert str(scored["score"].dtype) == "float32"


def test_many_rows_and_times_without_a_zone_are_for_spark(flights_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_ROWS", 5)
    with pytest.raises(AssertionError, match="a session was started"):
        score(flights(), flights_model)
