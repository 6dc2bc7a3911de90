"""S2, S5, S8: the task of the UDF: an array for each batch, scored in parts, and what it says of itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.scoring import udf
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.loading import loaded as loaded_model
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.output.bad_rows import BadRowError
from mirrorspark.scoring.task import Scorer, ScoringOptions, ShippedModel, batches
from mirrorspark.scoring.task.counts import Counters, ScoringCounts
from mirrorspark.scoring.udf import ColumnsTask
from tests.unit.scoring.exported_models import BASKETS

(ROWS,) = BASKETS.combine_chunks().to_batches()
TEN_TIMES = pa.concat_batches([ROWS] * 10)


class Told:
    """Keeps the reports of a task."""

    def __init__(self) -> None:
        self.counts: list[ScoringCounts] = []

    def add(self, counts: ScoringCounts) -> None:
        self.counts.append(counts)


def task_of(folder: Path, told: Told | None = None, **settings: object) -> ColumnsTask:
    inputs, pinned = ModelDirectory.open(folder).inputs, resolve(folder)
    shipped = ShippedModel(pinned.digest, pinned.label, str(pinned.path), None)
    return ColumnsTask(
        inputs.columns,
        inputs,
        Scorer(shipped, ScoringOptions(**settings), cast(Counters | None, told)),  # type: ignore[arg-type]
    )


def structs(*batches: pa.RecordBatch) -> Iterator[pa.StructArray]:
    """Yield batches as Spark sends ``struct(*)`` of a table."""
    for batch in batches:
        yield pa.StructArray.from_arrays(batch.columns, names=batch.schema.names)


def test_a_batch_is_one_array_though_its_rows_are_scored_in_parts(
    baskets_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of three labels takes 12 bytes, so that 240 bytes are 20 rows."""
    monkeypatch.setattr(loaded_model, "PART_BYTES", 240)
    told = Told()
    found = list(task_of(baskets_model, told)(structs(TEN_TIMES, ROWS)))
    assert [len(array) for array in found] == [40, 4]
    expected = LoadedModel(baskets_model).score(ROWS)["scores"]
    scores = np.array([row["scores"] for array in found for row in array.to_pylist()])
    np.testing.assert_allclose(scores, np.tile(expected, (11, 1)), rtol=0, atol=1e-6)
    (counts,) = told.counts
    assert (counts.rows, counts.calls, counts.bad_rows, counts.nans) == (44, 3, 0, 0)


def test_wide_rows_are_encoded_in_pieces(baskets_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S8: here a piece may take three quarters of what the batch does."""
    encoded: list[int] = []
    score = LoadedModel.score_arrow

    def counted(model: LoadedModel, batch: pa.RecordBatch, **options: object) -> dict[str, pa.Array]:
        encoded.append(batch.num_rows)
        return score(model, batch, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LoadedModel, "score_arrow", counted)
    most = TEN_TIMES.nbytes * 3 // 4
    monkeypatch.setattr(udf, "pieces", lambda batch: batches.pieces(batch, most))
    (array,) = task_of(baskets_model)(structs(TEN_TIMES))
    assert (len(array), encoded) == (40, [20, 20])


def test_a_batch_without_rows_is_an_array_without_rows(baskets_model: Path) -> None:
    (array,) = task_of(baskets_model, bad_rows="mark")(structs(ROWS.slice(0, 0)))
    assert len(array) == 0
    assert [field.name for field in array.type] == ["scores", "error", "model_version"]


def test_rows_scored_before_a_limit_are_counted(baskets_model: Path) -> None:
    """S5: Spark may close the iterator, for example for a query with a limit."""
    told = Told()
    scored = task_of(baskets_model, told)(structs(ROWS, ROWS, ROWS))
    next(scored)
    assert told.counts == []
    scored.close()  # type: ignore[attr-defined]
    (counts,) = told.counts
    assert (counts.rows, counts.calls) == (4, 1)
    assert list(task_of(baskets_model, told)(structs())) == []
    assert len(told.counts) == 1  # an empty partition reports nothing


def test_a_bad_row_is_named_by_its_place_for_there_are_no_keys(baskets_model: Path) -> None:
    products = pa.array([[3], [1], [5000], [1]], pa.list_(pa.int64()))
    counts = pa.array([[1.0], [1.0], [1.0], [1.0]], pa.list_(pa.float32()))
    bad = pa.record_batch({"products": products, "counts": counts})
    message = r"the row number 2 of 4 scored together \(the first is 0\) cannot be scored: sparse feature 'basket' has "
    with pytest.raises(BadRowError, match=message + "the index 5000"):
        list(task_of(baskets_model)(structs(bad)))
    told = Told()
    (array,) = task_of(baskets_model, told, bad_rows="mark")(structs(bad))
    assert [row["error"] is None for row in array.to_pylist()] == [True, True, False, True]
    assert (told.counts[0].rows, told.counts[0].bad_rows) == (4, 1)
