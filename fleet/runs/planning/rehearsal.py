"""A run over a few rows, which takes hardly more than the start of a run and of its microbatches."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.layout import OUTPUTS, Layout
from mirrorspark.fleet.runs import tables
from mirrorspark.fleet.runs.ledger import Ledger
from mirrorspark.fleet.runs.run import run_fleet
from mirrorspark.spark_session import session_of
from mirrorspark.storage import StoragePath

# The first one loads the models, which is part of a run's start; the last one has no beginning after it.
_MICROBATCHES = 4
# On a large cluster, a row group for each core would make a large file.
_MOST_TASKS = 16
_ROWS = 8


@dataclass(frozen=True)
class Starts:
    """Seconds in which no task of a run reads, scores or writes.

    Attributes:
        run: From the call to the first microbatch and after the last one, and of loading the models.
        microbatch: Between the tasks of a microbatch and those of the next one.
    """

    run: float
    microbatch: float

    @classmethod
    def of(cls, seconds: float, attempts: Sequence[Mapping[str, Any]]) -> "Starts":
        """Divide the seconds of a run by its attempts, as the ledger has them, of microbatches one after the other."""
        ordered = sorted(attempts, key=lambda one: one["began"])
        # A microbatch lasts until the next one begins, so the time between belongs to it. The first one loads models.
        later = list(pairwise(ordered))[1:]
        of_one = max(0.0, mean(after["began"] - one["began"] - one["slowest_seconds"] for one, after in later))
        of_tasks = min(one["slowest_seconds"] for one in ordered)
        return cls(max(0.0, seconds - len(ordered) * (of_one + of_tasks)), of_one)


def rehearse(
    spark: SparkSession,
    fleet: Fleet,
    rows: pa.RecordBatch,
    folder: StoragePath,
    ledger: Path,
    *,
    keys: Sequence[str],
    layout: Layout,
) -> Starts:
    """Run a fleet over some copies of ``rows``.

    Args:
        spark: The session.
        fleet: The models of one microbatch.
        rows: Some rows of the table, of which a few are taken.
        folder: For the rows and their scores.
        ledger: File of the run's ledger.
        keys: See :func:`run_fleet`.
        layout: Layout of a fleet that these models are part of.

    Raises:
        FleetRunError: A microbatch fails.
    """
    tasks = min(session_of(spark).default_parallelism, _MOST_TASKS)
    few = pa.Table.from_batches([rows.slice(0, _ROWS)])
    file = folder / "rows.parquet"
    with file.open_write() as sink, pq.ParquetWriter(sink, few.schema) as writer:
        for _ in range(_MICROBATCHES * tasks):
            writer.write_table(few)
    # Perhaps none of these models has one of the outputs of the whole fleet.
    places = Layout.of(fleet, layout.name, layout.outputs, is_part=True).places
    begin = time.perf_counter()
    run = run_fleet(
        spark,
        fleet,
        file,
        folder / "scores",
        keys=keys,
        ledger=ledger,
        layout=layout.name,
        outputs=[output for column, output in enumerate(OUTPUTS) if (places[:, column] >= 0).any()] or None,
        models_per_microbatch=len(fleet),
        rows_per_microbatch=tasks * few.num_rows,
        failure_budget=1.0,
        at_once=1,
        trust=True,  # the plan has checked it
    )
    seconds = time.perf_counter() - begin
    with Ledger.open(ledger) as book:
        return Starts.of(seconds, book.rows(tables.ATTEMPTS, run.run))
