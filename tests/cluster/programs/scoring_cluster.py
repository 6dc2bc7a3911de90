"""Score on an executor of its own (``local-cluster``) with a model that is on the driver's disk only.

Prints the score of each row in the order of its key, then how many archives were sent.
"""

import shutil
import sys
from pathlib import Path

from scoring.batch import score
from scoring.model_uri import resolve
from tests.unit.scoring.exported_models import FLIGHTS, FLIGHTS_DDL
from training.spark_session import open_session

folder = Path(sys.argv[1])
spark = open_session(master="local-cluster[1,1,1024]", workers=1)
flights = spark.createDataFrame([tuple(row.values()) for row in FLIGHTS.to_pylist()], FLIGHTS_DDL).repartition(2)
model = resolve(folder)
scored = score(flights, model, keys="flight_id")
again = score(flights, model, keys="flight_id")
shutil.rmtree(folder)
rows = sorted(scored.collect())
assert sorted(again.collect()) == rows
for row in rows:
    print(row.score)
print("archives", len(spark.sparkContext.listArchives))
spark.stop()
