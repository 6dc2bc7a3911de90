"""Score on an executor of its own (``local-cluster``) with models that it cannot load, and print the user's messages.

Three lines: of a model whose file is damaged on the executor alone, by a table and by files, and of one whose hooks
import a module that only the driver has. Argument: an empty folder.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import SparkFiles
from pyspark.errors import PySparkException

from mirrorspark.data_pipelines.spark.tasks import WriteError
from mirrorspark.scoring.batch import score
from mirrorspark.scoring.files import score_files
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.package import package_model
from mirrorspark.spark_session.errors import task_message
from mirrorspark.spark_session.start import open_session
from tests.unit.scoring.other_models import LINEAR, boxes

HOOKS = """
from only_beside_the_driver import halved

def postprocess(outputs):
    return {"score": halved(outputs["score"])}
"""


def damage(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Change the one model that Spark has sent to this executor, so that it still is a model."""
    (model,) = Path(SparkFiles.getRootDirectory()).rglob("linear.json")
    model.write_text(model.read_text() + "\n")
    yield from batches


def told(work: Callable[[], object]) -> str:
    """Return the message that a user gets when the work fails."""
    try:
        work()
    except PySparkException as error:
        return task_message(error)
    except WriteError as error:
        return str(error)
    raise AssertionError("the executor could load the model")


def main() -> None:
    """Score with both models; a task is tried once."""
    folder = Path(sys.argv[1])
    os.environ["PYSPARK_SUBMIT_ARGS"] = "--conf spark.task.maxFailures=1 pyspark-shell"
    rows = folder / "boxes.parquet"
    pq.write_table(boxes(10), rows)
    (folder / "driver").mkdir()
    (folder / "driver/only_beside_the_driver.py").write_text("def halved(scores):\n    return scores / 2\n")
    sys.path.append(str(folder / "driver"))
    (folder / "code.py").write_text(HOOKS)
    plain = resolve(package_model(LINEAR, folder / "plain"))
    hooked = package_model(LINEAR, folder / "hooked", hooks=folder / "code.py")
    spark = open_session(master="local-cluster[1,1,1024]", workers=1)
    scored = score(spark.read.parquet(str(rows)), plain, keys="id")
    spark.range(1, numPartitions=1).mapInArrow(damage, "id long").collect()
    print(told(scored.collect))
    for model in (plain, hooked):
        print(told(partial(score_files, spark, rows, model, folder / "scores", keys="id")))
    spark.stop()


if __name__ == "__main__":
    main()
