"""Score on the executor of a standalone cluster, whose master is named, with models on the driver's disk only.

Prints the score of each row in the order of its key, then how many archives were sent: one for the model of all rows,
and one for the models of some carriers.
"""

import shutil
import sys
from pathlib import Path

from mirrorspark.scoring.batch import score
from mirrorspark.scoring.groups import score_by_group
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.package import package_model
from mirrorspark.spark_session.start import open_session
from tests.unit.scoring.exported_models import FLIGHTS, FLIGHTS_DDL

folder, master = Path(sys.argv[1]), sys.argv[2]
by_carrier = folder.with_name("by_carrier")
spark = open_session(master=master, workers=1)
flights = spark.createDataFrame([tuple(row.values()) for row in FLIGHTS.to_pylist()], FLIGHTS_DDL).repartition(2)
model = resolve(folder)
scored = score(flights, model, keys="flight_id")
again = score(flights, model, keys="flight_id")
models = {
    carrier: package_model({"coefficients": {"distance": factor}}, by_carrier / carrier)
    for carrier, factor in {"UA": 2.0, "AA": 3.0}.items()
}
grouped = score_by_group(flights, models, group="carrier", keys="flight_id", unknown="null", colocate=False)
shutil.rmtree(folder)
shutil.rmtree(by_carrier)
rows = sorted(scored.collect())
assert sorted(again.collect()) == rows
assert {row.carrier: row.score for row in grouped.collect() if row.score is not None} == {"UA": 200.0, "AA": 7_500.0}
for row in rows:
    print(row.score)
print("archives", len(spark.sparkContext.listArchives))
spark.stop()
