"""Score files in a session whose tasks have some cores, and count the threads of the Python workers.

Arguments: the flights, the model, the output, a folder for the workers' reports, the cores of a task. Prints JSON:
``counted``, with how many threads the model computed, by the counters; ``settings``, the threads within and between
operations that TensorFlow was set to in a worker; ``started``, the most threads that a worker has started between its
asking for the model and its having scored rows.
"""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pyarrow as pa
from pyspark.sql import SparkSession

from mirrorspark.scoring import files, plan
from mirrorspark.scoring.backends.tensorflow_runtime import INTER_OP, INTRA_OP
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.task import Scorer
from mirrorspark.scoring.task.counts import ScoringCounts
from tests.cluster.programs import scoring_threads


@dataclasses.dataclass(frozen=True)
class Telling(Scorer):
    """Writes into the folder ``told`` how many threads its process has, before the model is loaded and after a call."""

    told: str = ""

    def load(self, counts: ScoringCounts) -> LoadedModel:
        """Return the model."""
        before = psutil.Process().num_threads()
        model = super().load(counts)
        settings = [int(os.environ[name]) for name in (INTRA_OP, INTER_OP)]
        (Path(self.told) / f"{os.getpid()}.settings").write_text(json.dumps(settings))
        if counts.loads:
            (Path(self.told) / f"{os.getpid()}.before").write_text(f"{before}")
        return model

    def scored(
        self, model: LoadedModel, batch: pa.RecordBatch, counts: ScoringCounts, keys: Sequence[str] = ()
    ) -> pa.RecordBatch:
        """Return the scores."""
        scored = super().scored(model, batch, counts, keys)
        (Path(self.told) / f"{os.getpid()}.after").write_text(f"{psutil.Process().num_threads()}")
        return scored


def started_threads(told: Path) -> int:
    """Return the highest number of threads that a process has started, from the workers' reports."""
    after = {path.stem: int(path.read_text()) for path in told.glob("*.after")}
    return max(after[path.stem] - int(path.read_text()) for path in told.glob("*.before"))


def main() -> None:
    """Score, with nine cores for all tasks."""
    flights, model, output, told, cores = sys.argv[1:]
    plan.Scorer = functools.partial(scoring_threads.Telling, told=told)  # type: ignore
    builder = SparkSession.builder.master("local[9]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.task.cpus", cores).getOrCreate()
    scored = files.score_files(spark, flights, model, output, keys="flight_id")
    settings = [json.loads(path.read_text()) for path in Path(told).glob("*.settings")]
    started = started_threads(Path(told))
    print(json.dumps({"counted": scored.counters.threads, "settings": settings, "started": started}))
    spark.stop()


if __name__ == "__main__":
    main()
