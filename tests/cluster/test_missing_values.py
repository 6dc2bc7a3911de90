"""#52: gaps in the types of pandas have the scores of nulls on Spark, in files, SQL and streams."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.any_table import read_table
from mirrorspark.scoring.batch import score
from mirrorspark.scoring.files import score_files
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.sql import register_sql
from mirrorspark.spark_session import versions
from tests.unit.scoring.exported_models import TYPES, export_types
from tests.unit.scoring.missing_values import FORMS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Way = Callable[["SparkSession", pd.DataFrame, Path, Path], pd.DataFrame]


of_no_type = pytest.mark.skipif(
    not versions.HAS_ARROW_UDFS,  # Spark 4.1 brought both
    reason="Spark before 4.1 writes no Parquet column of no type",
)
in_sql = pytest.mark.skipif(not versions.HAS_ARROW_UDFS, reason="PySpark 4.0 has no UDFs on Arrow arrays")


def of_table(spark: "SparkSession", frame: pd.DataFrame, model: Path, folder: Path) -> pd.DataFrame:
    return score(read_table(spark, frame), model, keys="id").toPandas()


def of_files(spark: "SparkSession", frame: pd.DataFrame, model: Path, folder: Path) -> pd.DataFrame:
    frame.to_parquet(folder / "rows.parquet")
    score_files(spark, folder / "rows.parquet", model, folder / "scores", keys="id")
    return pd.read_parquet(folder / "scores")


def of_sql(spark: "SparkSession", frame: pd.DataFrame, model: Path, folder: Path) -> pd.DataFrame:
    read_table(spark, frame).createOrReplaceTempView("rows_with_gaps")
    register_sql(spark, "of_gaps", model)
    return spark.sql("SELECT id, of_gaps(struct(*)).score AS score FROM rows_with_gaps").toPandas()


def of_stream(spark: "SparkSession", frame: pd.DataFrame, model: Path, folder: Path) -> pd.DataFrame:
    (folder / "rows").mkdir()
    table = read_table(spark, frame)
    table.write.parquet(str(folder / "rows"), mode="append")
    stream = spark.readStream.schema(table.schema).parquet(str(folder / "rows"))
    writer = score(stream, model, keys="id").writeStream.option("checkpointLocation", str(folder / "checkpoint"))
    writer.trigger(availableNow=True).start(str(folder / "scores"), format="parquet").awaitTermination()
    return spark.read.parquet(str(folder / "scores")).toPandas()


@pytest.mark.parametrize(
    ("way", "form"),
    [
        *((way, "floats") for way in (of_table, of_files, of_stream)),
        pytest.param(of_sql, "floats", marks=in_sql),
        (of_files, "decimals"),
    ],
)
def test_gaps_of_pandas_have_the_scores_of_nulls(spark: "SparkSession", tmp_path: Path, way: Way, form: str) -> None:
    model = export_types(tmp_path / "model")
    found = way(spark, FORMS[form](TYPES), model, tmp_path).sort_values("id")["score"]
    np.testing.assert_allclose(found, np.asarray(LoadedModel(model).score(TYPES)["score"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "way", [of_table, of_files, pytest.param(of_sql, marks=in_sql), pytest.param(of_stream, marks=of_no_type)]
)
def test_columns_without_any_value_are_missing_whatever_their_type(
    spark: "SparkSession", tmp_path: Path, way: Way
) -> None:
    model = export_types(tmp_path / "model")
    empty = dict.fromkeys(("shop", "size", "member", "joined", "day", "codes", "store"))
    frame = FORMS["floats"](TYPES).assign(**empty)
    # As pandas writes them to Parquet: of no type, or of floats.
    frame = frame.astype(dict.fromkeys(("size", "member", "joined", "codes"), float))
    found = way(spark, frame, model, tmp_path).sort_values("id")["score"]
    nulls = TYPES
    for name in empty:
        nulls = nulls.set_column(nulls.column_names.index(name), name, pa.nulls(len(TYPES)))
    np.testing.assert_allclose(found, np.asarray(LoadedModel(model).score(nulls)["score"]), rtol=0, atol=1e-6)
