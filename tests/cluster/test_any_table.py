"""T3, H2: tables in any form that users have become the same Spark table."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.any_table import TableError, as_dataframe, in_form_of, numbered

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS = {"town": ["here", None, "there"], "many": [1.5, None, 2.5], "at": [datetime(2024, 1, day) for day in (1, 2, 3)]}


def of_pandas() -> pd.DataFrame:
    frame = pd.DataFrame(ROWS)
    frame["town"] = frame["town"].astype("category")
    return frame.set_index(pd.Index([7, 8, 9]))


@pytest.mark.parametrize(
    "table",
    [of_pandas(), pl.DataFrame(ROWS), pl.DataFrame(ROWS).lazy(), pa.table(ROWS)],
    ids=["pandas", "polars", "lazy", "arrow"],
)
def test_a_table_in_memory_keeps_its_values_and_comes_back_in_its_form(spark: "SparkSession", table: Any) -> None:
    df = as_dataframe(table, spark)
    assert [tuple(row) for row in df.select("town", "many").collect()] == [("here", 1.5), (None, None), ("there", 2.5)]
    assert dict(df.dtypes)["at"].startswith("timestamp")
    back = in_form_of(as_dataframe(numbered(table), spark).orderBy("many").select("row_number", "town"), table)
    assert type(back) is {pl.LazyFrame: pl.DataFrame}.get(type(table), type(table))
    assert list(back["row_number"] if not isinstance(back, pa.Table) else back["row_number"].to_pylist()) == [0, 1, 2]


def test_stored_tables_are_found_by_name_and_path(spark: "SparkSession", tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    frame.to_csv(tmp_path / "some.csv", index=False)
    frame.to_json(tmp_path / "some.jsonl", orient="records", lines=True)
    spark.createDataFrame(frame).createOrReplaceTempView("some_view")
    spark.table("some_view").write.parquet(str(tmp_path / "folder"))
    for table in ("some_view", tmp_path / "some.csv", str(tmp_path / "some.jsonl"), tmp_path / "folder"):
        found = sorted(tuple(row) for row in as_dataframe(table, spark).select("a", "b").collect())
        assert found == [(1, "x"), (2, "y")], table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (3, "a int is not a table; give a Spark, pandas"),
        ("nowhere", "there is no table or view 'nowhere'"),
        ("catalog.schema.nowhere", "there is no table or view 'catalog.schema.nowhere'"),
        ("no/where.parquet", "there is no file or folder no/where.parquet"),
        (pd.DataFrame({"a": [1, "x"]}), "no column of the table can be used: a: its values have several types"),
        (pd.DataFrame({"a": [1 + 2j]}), "or one that no table has .*make them text or numbers"),
        (pd.DataFrame([[1]]), "column names .0. are not strings; rename them"),
        (pa.table([[1], [2]], names=["a", "a"]), r"several columns of one name: \['a'\]; rename or drop all but one"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "several columns of one name"),
        (pd.DataFrame({"age": [1], "Age": [2]}), r"the columns \['age', 'Age'\] differ in case alone"),
        (__file__, "has none of the suffixes"),
    ],
)
def test_what_is_no_table_is_refused(spark: "SparkSession", table: Any, message: str) -> None:
    with pytest.raises(TableError, match=message):
        as_dataframe(table, spark)


def test_a_folder_without_a_table_is_refused(spark: "SparkSession", tmp_path: Path) -> None:
    with pytest.raises(TableError, match=f"{tmp_path} holds no file of format parquet; give the folder or file"):
        as_dataframe(str(tmp_path), spark)
