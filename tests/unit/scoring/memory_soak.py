"""Score thousands of batches with one model after the other, and print the memory of this process as it goes.

Arguments: folders of models that read ``ROWS``. Prints a line for each: a list of the resident memory whenever the task
asked for the next batch, in bytes.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from mirrorspark.scoring.batch import BatchTask
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.task import Scorer, ScoringOptions, ShippedModel
from tests.unit.scoring.exported_models import FLIGHTS
from tests.unit.scoring.other_models import NAMES, boxes

BATCHES = 6_000
BATCH_ROWS = 256

_BOXES = boxes(FLIGHTS.num_rows)
ROWS = pa.record_batch(
    {name: FLIGHTS[name].combine_chunks() for name in FLIGHTS.column_names}
    | {name: _BOXES[name].combine_chunks() for name in NAMES}
)


def batches(memory: list[int]) -> Iterator[pa.RecordBatch]:
    """Yield batches of ``ROWS`` in random order, and note the memory before each."""
    process, random = psutil.Process(), np.random.default_rng(1)
    for _ in range(BATCHES):
        memory.append(process.memory_info().rss)
        yield ROWS.take(pa.array(random.integers(0, ROWS.num_rows, BATCH_ROWS)))


def main() -> None:
    """Score with a call of the model for each batch."""
    for folder in sys.argv[1:]:
        pinned = resolve(Path(folder))
        model = ShippedModel(pinned.digest, pinned.label, path=str(pinned.path), archive=None)
        task = BatchTask(("flight_id",), Scorer(model, ScoringOptions(batch_size=BATCH_ROWS)))
        memory: list[int] = []
        rows = sum(scored.num_rows for scored in task(batches(memory)))
        assert rows == BATCHES * BATCH_ROWS
        print(json.dumps(memory))


if __name__ == "__main__":
    main()
