"""S5: calls are padded where another number of rows costs an error, a trace or a compilation, and nowhere else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.scoring.model.loading import loaded as loaded_model
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.predictor import Predictor
from mirrorspark.scoring.task.counts import ScoringCounts
from tests.unit.scoring.other_models import (
    NAMES,
    boxes,
    logistic,
    package_with_tracing_hooks,
    save_counting_saved_model,
    save_logistic_keras,
    save_logistic_onnx,
    save_logistic_saved_model,
)

ROWS, CALL = 1_003, 128
BOXES = boxes(ROWS)
NUMBERS = pa.table({"x": np.arange(ROWS, dtype=np.float32)})


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    """One logistic model of 128 rows in the files of several libraries."""
    folder = tmp_path_factory.mktemp("fixed")
    packages = [
        package_model(save_logistic_saved_model(folder / "tf", rows=CALL), folder / "saved_model"),
        package_model(save_logistic_keras(folder / "m.keras", rows=CALL), folder / "keras", columns=NAMES),
        package_model(save_logistic_keras(folder / "m.h5", rows=CALL), folder / "h5", columns=NAMES),
        package_model(save_logistic_onnx(folder / "m.onnx", rows=CALL), folder / "onnx", columns=NAMES),
    ]
    return {package.name: LoadedModel(package) for package in packages}


def begun() -> ScoringCounts:
    """Return counts that begin now, as in a task that has loaded a model."""
    counts = ScoringCounts()
    counts.begin(loads=1, threads=1)
    return counts


@pytest.mark.parametrize("name", ["saved_model", "keras", "h5", "onnx"])
@pytest.mark.parametrize(("rows", "calls"), [(1, 1), (CALL, 1), (CALL + 1, 2), (ROWS, 8)])
def test_a_model_of_a_fixed_number_of_rows_scores_any_number(
    fixed: dict[str, LoadedModel], name: str, rows: int, calls: int
) -> None:
    """Whatever the size of a batch is said to be, for other models of the same job may have another."""
    table = BOXES.slice(0, rows)
    for batch_size in (50, 8_192):
        counts = begun()
        scores = fixed[name].score(table, batch_size=batch_size, on_call=counts.count_call)["score"]
        np.testing.assert_allclose(scores, logistic(table), rtol=0, atol=1e-6)
        report = counts.report()
        assert (report["calls"], report["traces"]) == (calls, 0)


@pytest.mark.parametrize(
    ("rows", "is_compiled", "rows_of_calls"),
    [(CALL, False, {CALL}), (None, True, {CALL}), (None, False, {CALL, ROWS % CALL})],
)
def test_padded_calls_trace_a_graph_only_once(
    tmp_path: Path, rows: int | None, is_compiled: bool, rows_of_calls: set[int]
) -> None:
    """The model reports the rows of its calls; its hooks are traced for each number, so that the counter can fail."""
    save_counting_saved_model(tmp_path / "tf", rows=rows, is_compiled=is_compiled)
    model = LoadedModel(package_with_tracing_hooks(tmp_path / "tf", tmp_path / "model"))
    counts = begun()
    scores = model.score(NUMBERS, batch_size=CALL, on_call=counts.count_call)
    assert scores["twice"].tolist() == [6.0 * number for number in range(ROWS)]
    assert set(scores["rows"].tolist()) == rows_of_calls
    report = counts.report()
    assert (report["calls"], report["traces"]) == (8, len(rows_of_calls))
    # A second table brings nothing new, nor does one that is shorter than a call of a fixed number.
    again = begun()
    model.score(NUMBERS, batch_size=CALL)
    if rows is not None:
        model.score(NUMBERS.slice(0, 5), batch_size=CALL)
    assert again.report()["traces"] == 0


def test_a_model_that_xla_compiles_is_called_with_powers_of_two_up_to_the_batch_size(tmp_path: Path) -> None:
    """One trace each: a single row does not take as a whole call."""
    save_counting_saved_model(tmp_path / "tf", is_compiled=True)
    model = LoadedModel(package_with_tracing_hooks(tmp_path / "tf", tmp_path / "model"))
    counts = begun()
    sizes = {1: 1, 2: 2, 3: 4, 5: 8, 8: 8, 33: 64, 65: 100, 100: 100}
    for rows, size in sizes.items():
        scores = model.score(NUMBERS.slice(0, rows), batch_size=100)
        assert scores["twice"].tolist() == [6.0 * number for number in range(rows)]
        assert scores["rows"].tolist() == [size] * rows
    assert counts.report()["traces"] == len(set(sizes.values()))


def test_postprocess_is_tried_with_the_rows_that_the_model_takes_and_gets_them_in_each_call(tmp_path: Path) -> None:
    """S4: its outputs are cut like the model's."""
    (tmp_path / "code.py").write_text(
        "def postprocess(outputs):\n    return {'twice': outputs['twice'].reshape(128), 'rows': outputs['rows']}\n"
    )
    source = save_counting_saved_model(tmp_path / "tf", rows=CALL)
    model = LoadedModel(package_model(source, tmp_path / "model", hooks=tmp_path / "code.py"))
    scores = model.score_arrow(NUMBERS)
    assert scores["twice"].to_pylist() == [2.0 * number for number in range(ROWS)]
    assert scores["rows"].to_pylist() == [CALL] * ROWS


@pytest.mark.parametrize(
    ("rows", "is_compiled", "parts"), [(CALL, False, [128, 128, 44]), (None, True, [100] * 3), (None, False, [30] * 10)]
)
def test_a_part_is_never_less_than_a_call_that_is_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int | None, is_compiled: bool, parts: list[int]
) -> None:
    """S8: a row's outputs take 8 bytes, so that 30 rows have 240."""
    source = save_counting_saved_model(tmp_path / "tf", rows=rows, is_compiled=is_compiled)
    model = LoadedModel(package_model(source, tmp_path / "model"))
    monkeypatch.setattr(loaded_model, "PART_BYTES", 240)
    (batch,) = NUMBERS.slice(0, 300).to_batches()
    assert [part.num_rows for part in model.parts(batch, batch_size=100)] == parts


@pytest.mark.parametrize(
    ("rows", "is_compiled", "rows_of_call"), [(CALL, False, lambda _: CALL), (None, True, int), (None, False, int)]
)
def test_single_rows_are_padded_only_where_the_model_has_a_fixed_number(
    tmp_path: Path, rows: int | None, is_compiled: bool, rows_of_call: Callable[[int], int]
) -> None:
    """S15: a model that XLA compiles is compiled for as are given."""
    source = save_counting_saved_model(tmp_path / "tf", rows=rows, is_compiled=is_compiled)
    predictor = Predictor(package_model(source, tmp_path / "model"))
    for count in (1, 3):
        found = predictor.predict_rows([{"x": float(number)} for number in range(count)])
        assert [(row["twice"], row["rows"]) for row in found] == [
            (2.0 * number, rows_of_call(count)) for number in range(count)
        ]
