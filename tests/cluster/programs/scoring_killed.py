"""Score files while a Python worker is killed in the middle of its rows, and say what came of it.

Arguments: the flights, the model, the output, a folder for the mark of the kill.
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

from scoring import call, files
from scoring.counters import Tally
from scoring.loaded_model import LoadedModel
from scoring.scorer import Scorer
from tests.cluster.programs import scoring_killed


@dataclasses.dataclass(frozen=True)
class KilledOnce(Scorer):
    """Kills its process once, after some rows; whoever is first to make the folder ``mark`` is the one."""

    mark: str = ""

    def scored(
        self, model: LoadedModel, batch: pa.RecordBatch, tally: Tally, keys: Sequence[str] = ()
    ) -> pa.RecordBatch:
        """Return the scores, or die."""
        if tally.rows > 1000:
            try:
                Path(self.mark).mkdir()
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().scored(model, batch, tally, keys)


def main() -> None:
    """Score, with two threads and up to three tries of a task."""
    flights, model, output, mark = sys.argv[1:]
    call.Scorer = functools.partial(scoring_killed.KilledOnce, mark=mark)  # type: ignore
    spark = SparkSession.builder.master("local[2,3]").config("spark.ui.enabled", "false").getOrCreate()
    scored = files.score_files(spark, flights, model, output, keys="flight_id")
    print(json.dumps(dataclasses.asdict(scored.counters)))
    spark.stop()


if __name__ == "__main__":
    main()
