"""Score while a Python worker is killed in the middle of its rows, and say what came of it.

Arguments: ``files`` to score them into files, or ``table`` to have Spark write the scores of their table; the flights,
the model, the output, a folder for the mark of the kill.
"""

import dataclasses
import functools
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyspark.sql import SparkSession

from mirrorspark.scoring import files, plan
from mirrorspark.scoring.batch import score
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.task import Scorer
from mirrorspark.scoring.task.counts import Counters, JobCounters, ScoringCounts
from tests.cluster.programs import scoring_killed


@dataclasses.dataclass(frozen=True)
class KilledOnce(Scorer):
    """Kills its process once, after some rows; whoever is first to make the folder ``mark`` is the one."""

    mark: str = ""

    def scored(
        self, model: LoadedModel, batch: pa.RecordBatch, counts: ScoringCounts, keys: Sequence[str] = ()
    ) -> pa.RecordBatch:
        """Return the scores, or die."""
        if counts.rows > 1000:
            try:
                Path(self.mark).mkdir()
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().scored(model, batch, counts, keys)


def score_files(spark: SparkSession, flights: str, model: str, output: str) -> JobCounters:
    """Score into files that appear at once."""
    return files.score_files(spark, flights, model, output, keys="flight_id").counters


def score_table(spark: SparkSession, flights: str, model: str, output: str) -> JobCounters:
    """Have Spark write the scores."""
    counters = Counters(spark)
    score(spark.read.parquet(flights), model, keys="flight_id", counters=counters).write.parquet(output)
    return counters.value


def main() -> None:
    """Score, with two threads and up to three tries of a task."""
    way, flights, model, output, mark = sys.argv[1:]
    plan.Scorer = functools.partial(scoring_killed.KilledOnce, mark=mark)  # type: ignore
    spark = SparkSession.builder.master("local[2,3]").config("spark.ui.enabled", "false").getOrCreate()
    told = {"files": score_files, "table": score_table}[way](spark, flights, model, output)
    print(json.dumps(dataclasses.asdict(told)))
    spark.stop()


if __name__ == "__main__":
    main()
