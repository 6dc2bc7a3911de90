"""A process that scores single rows as a service does, and measures their times: ``python -m`` this module."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import ipc

ROWS_FILE, ANSWERS_FILE = "rows.arrow", "answers.arrow"

# The first calls compile, and fill caches.
_WARM_ROWS = 20


def main() -> int:
    """Score the rows that the plan on standard input names; print a JSON line with the 99th percentile of the times."""
    from mirrorspark.scoring import Predictor
    from mirrorspark.scoring.model.stored import PinnedModel
    from mirrorspark.training.executor import child_process

    line, answer = child_process.take_over()
    plan = json.loads(line)
    model = PinnedModel(**plan["model"] | {"path": Path(plan["model"]["path"])})
    with ipc.open_file(str(Path(plan["folder"]) / ROWS_FILE)) as file:
        rows = file.read_all().to_pylist()
    predictor = Predictor(model, other_versions=plan["other_versions"], trust=plan["trust"])
    for row in rows[:_WARM_ROWS]:
        predictor.predict(row)
    answers, times = [], []
    for row in rows:
        begin = time.perf_counter()
        answers.append(predictor.predict(row))
        times.append(time.perf_counter() - begin)
    table = pa.Table.from_pylist(answers)
    with ipc.new_file(str(Path(plan["folder"]) / ANSWERS_FILE), table.schema) as file:
        file.write_table(table)
    p99_ms = float(np.quantile(times, 0.99)) * 1000 if times else float("nan")
    print(json.dumps({"p99_ms": p99_ms}), file=answer, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
