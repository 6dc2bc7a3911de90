"""S5: in a Spark job, too, calls are padded where that saves traces, and TensorFlow traces what is promised."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest

from mirrorspark.scoring.batch import score
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.task.counts import Counters
from tests.unit.scoring.other_models import (
    NAMES,
    boxes,
    logistic,
    package_with_tracing_hooks,
    save_counting_saved_model,
    save_logistic_keras,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(300)

# Of some 250 rows in each task, the second call has 122 or 123.
ROWS, TASKS, CALL = 1_003, 4, 128


@pytest.mark.full
@pytest.mark.parametrize(("rows", "is_compiled"), [(CALL, False), (None, True), (None, False)])
def test_hooks_of_a_saved_model_are_traced_once_in_each_python_worker_where_calls_are_padded(
    spark: "SparkSession", tmp_path: Path, rows: int | None, is_compiled: bool
) -> None:
    """They would be traced for each number of rows, as they are where calls are not padded.

    Where XLA compiles the model, the last call of a task becomes the next power of two, which here is a whole call.
    """
    source = save_counting_saved_model(tmp_path / "tf", rows=rows, is_compiled=is_compiled)
    model, counters = package_with_tracing_hooks(source, tmp_path / "model"), Counters(spark)
    table = spark.range(ROWS, numPartitions=TASKS).selectExpr("id", "CAST(id AS FLOAT) AS x")
    scored = score(table, model, keys="id", batch_size=CALL, counters=counters).collect()
    assert {row.id: row.twice for row in scored} == {number: 6.0 * number for number in range(ROWS)}
    told = counters.value
    assert (told.tasks, told.rows, told.calls) == (TASKS, ROWS, 8)
    of_calls = {row.rows for row in scored}
    if rows is None and not is_compiled:
        assert of_calls == {CALL, 122, 123}
        assert told.traces >= 2 * told.processes
    else:
        assert of_calls == {CALL}
        assert told.traces == told.processes


@pytest.mark.parametrize("rows", [pytest.param(CALL, marks=pytest.mark.full), None])
def test_a_keras_file_and_its_graph_are_traced_when_it_is_loaded_and_never_again(
    spark: "SparkSession", tmp_path: Path, rows: int | None
) -> None:
    table = boxes(ROWS)
    pq.write_table(table, tmp_path / "boxes.parquet")
    source = save_logistic_keras(tmp_path / "m.keras", rows=rows)
    model, counters = package_model(source, tmp_path / "model", columns=NAMES), Counters(spark)
    dealt = spark.read.parquet(str(tmp_path / "boxes.parquet")).repartition(TASKS)
    scored = score(dealt, model, keys="id", batch_size=CALL, counters=counters).collect()
    found = {row.id: row.score for row in scored}
    np.testing.assert_allclose([found[number] for number in range(ROWS)], logistic(table), rtol=0, atol=1e-6)
    told = counters.value
    assert (told.tasks, told.rows, told.calls, told.traces) == (TASKS, ROWS, 8, 0)
