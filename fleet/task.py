"""Tasks that score rows with a fleet and write the outputs, one file each."""

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.counting import packed_counts
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.scorer import FleetScorer
from mirrorspark.scoring import file_job
from mirrorspark.scoring.model.loading import limit_numeric_libraries
from mirrorspark.scoring.task import ShippedModel, TaskCounts
from mirrorspark.spark_session import task_cores

MODELS_KEY = "mirrorspark_models"
"""Key of the Parquet files' metadata under which the names of the models are, in the order of the lists' elements."""

FLEET_KEY = "mirrorspark_fleet"
"""Key of the Parquet files' metadata under which the digest of the fleet is."""


@dataclass
class FleetCounts(TaskCounts):
    """Counters of one task that scores with a fleet.

    Attributes:
        nulls: Rows of models without outputs, because a value is missing.
        by_bin: int32 ``[models, BINS]``: outputs by bin, where a manifest needs them.
        digests: SHA-256 of the files by path, where a manifest needs them.
        failures: Models that raised an error, where these are left out.
        model_seconds: Seconds of each model, where a ledger needs them.
    """

    nulls: int = 0
    by_bin: np.ndarray | None = None
    digests: dict[str, str] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    model_seconds: list[float] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Return the counters as JSON values."""
        return super().report() | {"by_bin": packed_counts(self.by_bin)}


@dataclass(frozen=True)
class FleetWriter(file_job.FileWriter[FleetCounts]):
    """Scores rows with a fleet and writes the outputs into one file.

    Attributes:
        fleet: Where tasks find the fleet.
        layout: Name of the layout.
        outputs: The outputs to write.
    """

    fleet: ShippedModel
    layout: str
    outputs: tuple[str, ...]

    def counts(self) -> FleetCounts:
        """Return the counters of a new task."""
        return FleetCounts()

    def scorer(self) -> FleetScorer:
        """Return the scorer of the rows, from the cache of this process or from the fleet's files."""
        return cached_scorer(self.fleet.folder(), self.fleet.digest, self.layout, self.outputs)

    def scoring(self, read: file_job.Read, counts: FleetCounts) -> file_job.TaskScoring:
        """Return the scoring of a task's rows, which counts them."""
        scorer = self.scorer()
        layout = scorer.layout
        return file_job.TaskScoring(
            pa.schema([*self.keys, *layout.fields]),
            read(scorer.batch_rows),
            lambda rows: self.scored(scorer, rows, counts),
            layout.keeps_rows,
            layout.dictionary_columns,
            # Lists of small numbers take four times as much while Parquet encodes them.
            file_job.ROW_GROUP_BYTES // 2,
            {MODELS_KEY: json.dumps(layout.models), FLEET_KEY: self.fleet.digest},
        )

    def scored(self, scorer: FleetScorer, rows: pa.RecordBatch, counts: FleetCounts) -> Iterator[pa.RecordBatch]:
        """Yield keys and outputs of some rows, and count them."""
        for scored, nulls in scorer.batches(rows, self.keys.names, counts.by_bin):
            counts.nulls += nulls
            yield scored
        counts.rows += rows.num_rows


def load_scorer(
    folder: Path,
    digest: str,
    layout: str,
    outputs: tuple[str, ...],
    part: Callable[[Fleet], Fleet] | None = None,
) -> FleetScorer:
    """Return the scorer of the fleet in a folder, or of a part of it.

    Raises:
        FleetError: The folder has another fleet by now.
    """
    fleet = Fleet.load(folder)
    if fleet.digest != digest:
        raise FleetError(
            f"the fleet in {folder} on {socket.gethostname()} has the digest {fleet.digest[:12]}, pinned was "
            f"{digest[:12]}: its files were changed since; score again, in a new session"
        )
    if (cores := task_cores()) is not None:
        limit_numeric_libraries(cores)
    if part is not None:
        fleet = part(fleet)
    return FleetScorer(fleet, Layout.of(fleet, layout, outputs, is_part=part is not None))


# Spark reuses Python workers with their imported modules, so a fleet is loaded once by each.
cached_scorer = lru_cache(maxsize=2)(load_scorer)
