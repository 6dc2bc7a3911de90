"""L14: MLflow's function for Spark takes the table that a model was trained from, whatever types that has."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow.pyfunc
import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.mlflow_model import mlflow_flavour
from tests.unit.scoring.exported_models import ORDERS, TYPES, export_orders, export_types

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.mark.parametrize(
    ("table", "key", "export"),
    [pytest.param(ORDERS, "order_id", export_orders, marks=pytest.mark.full), (TYPES, "id", export_types)],
    ids=["kinds", "types"],
)
def test_a_spark_udf_takes_the_very_table_of_the_training(
    spark: "SparkSession", tmp_path: Path, table: pa.Table, key: str, export: Callable[[Path], Path]
) -> None:
    folder, saved = export(tmp_path / "model"), tmp_path / "mlflow"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
        flavour = mlflow_flavour(ModelDirectory.open(folder)) | {"pip_requirements": []}
        mlflow.pyfunc.save_model(str(saved), data_path=str(folder), **flavour)
    predict = mlflow.pyfunc.spark_udf(spark, str(saved), env_manager="local")
    rows = spark.createDataFrame(table)
    found = rows.select(key, predict(F.struct(*rows.columns)).alias("score")).orderBy(key).toPandas()["score"]
    np.testing.assert_allclose(found, np.asarray(LoadedModel(folder).score(table)["score"]), rtol=0, atol=1e-6)
