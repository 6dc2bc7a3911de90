"""S7, S18: a plan is checked against a table by name and type before a task starts, and Spark is asked once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql.types import DoubleType, LongType, MapType, StringType, StructField, StructType

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.output.forms import Struct
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.plan import ScoringPlan, SentColumns
from mirrorspark.scoring.task import ScoringOptions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model that reads x and y."""
    return package_model({"coefficients": {"x": 1.0, "y": 2.0}}, tmp_path_factory.mktemp("linear") / "model")


def test_a_plan_has_all_that_a_call_needs_to_know_of_its_model(model: Path) -> None:
    plan = ScoringPlan.of(model, "id", ScoringOptions(outputs=Struct(), bad_rows="mark"))
    assert (plan.keys, plan.inputs.columns, plan.columns) == (("id",), ("x", "y"), ("id", "x", "y"))
    assert plan.results.names == ["prediction", "error", "model_version"]
    assert ScoringPlan.of(plan.pinned, ("x", "id"), plan.options).columns == ("x", "id", "y")


@pytest.mark.parametrize(
    ("names", "key", "error", "message"),
    [
        (["x", "y"], "id", ScoringError, r"key columns \['id'\] are missing; the table has \['x', 'y'\]"),
        (
            ["id", "x", "y"],
            (),
            ScoringError,
            "keys is empty; name the columns that identify a row, or its score belongs to",
        ),
        (["id", "x"], "id", ColumnError, r"column 'y' is missing; the table has \['id', 'x'\]"),
        (["id", "y", "x", "y", "x", "x"], "id", ScoringError, r"the table has the columns \['x', 'y'\] twice"),
        (["id", "x", "y", "id"], "id", ScoringError, r"the table has the columns \['id'\] twice; drop or rename"),
        (["score", "x", "y"], "score", ScoringError, r"the result would have the columns \['score'\] twice"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_name(
    model: Path, names: list[str], key: str | tuple[str, ...], error: type[ValueError], message: str
) -> None:
    with pytest.raises(error, match=message):
        ScoringPlan.of(model, key, ScoringOptions()).check_names(names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["id", "age", "x", "y"],
            r"the table has the columns \['age'\], which the model's spec does not allow it to see; ",
        ),
        (["age", "x", "y"], r"key columns \['id'\] are missing"),
    ],
)
def test_a_table_may_be_refused_for_what_the_model_does_not_read(model: Path, names: list[str], message: str) -> None:
    schema = StructType([StructField(name, DoubleType()) for name in names])
    table: Any = SimpleNamespace(schema=schema, sparkSession=SimpleNamespace())
    with pytest.raises(ScoringError, match=message):
        ScoringPlan.of(model, "id", ScoringOptions()).table(table, extra_columns="refuse")


def test_columns_that_nobody_reads_may_come_twice(model: Path) -> None:
    ScoringPlan.of(model, "id", ScoringOptions()).check_names(["id", "other", "x", "other", "y", "score"])


def test_types_and_the_null_policy_are_checked_together(model: Path) -> None:
    columns = pa.schema({"id": pa.int64(), "x": pa.float64(), "y": pa.float64()})
    plan = ScoringPlan.of(model, "id", ScoringOptions.of("columns", 1, "model_version", {"y": 0}, "fail", "refuse"))
    plan.check_types(columns)
    with pytest.raises(ColumnError, match="column 'x' has type string"):
        plan.check_types(columns.set(1, pa.field("x", pa.string())))
    stray = ScoringPlan.of(model, "id", ScoringOptions.of("columns", 1, "model_version", {"id": 0}, "fail", "refuse"))
    with pytest.raises(ScoringError, match="the null policy names 'id', which the model does not read"):
        stray.check_types(columns)


COLUMNS = SentColumns.of(
    StructType(
        [
            StructField("id", LongType()),
            StructField("dotted.name", DoubleType()),
            StructField("basket", MapType(LongType(), DoubleType())),
            StructField("who", StructType([StructField("name", StringType())])),
        ]
    )
)


def test_columns_are_those_that_tasks_get() -> None:
    """A column that no model can take does no harm until one reads it."""
    assert COLUMNS.names == ("id", "dotted.name", "basket", "who")
    expected = pa.schema({"basket": pa.map_(pa.int64(), pa.float64()), "dotted.name": pa.float64()})
    assert COLUMNS.schema(["basket", "dotted.name"]) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("who", r"column 'who' has type struct<name:string>, which no model can take; cast it"),
        ("dotted.Name", r"\(did you mean 'dotted.name'\? Upper and lower case count\)"),
        ("day", r"column 'day' is missing; the table has \['id', 'dotted.name', 'basket', 'who'\]"),
    ],
)
def test_a_column_that_no_model_can_take_is_named(name: str, message: str) -> None:
    with pytest.raises(ColumnError, match=message):
        COLUMNS.schema(["id", name])
