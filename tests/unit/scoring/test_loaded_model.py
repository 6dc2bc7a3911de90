"""A loaded model gives the SavedModel's own scores, and a process loads it once."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from data_pipelines.raw_columns import ColumnError, raw_inputs
from scoring.loaded_model import LoadedModel, ModelCache, ModelChangedError, ModelOutputError, load_once
from scoring.mirrorspark_pyfunc import RawColumnsModel
from scoring.model_directory import DESCRIPTION_FILE, folder_digest, needs_scann
from tests.unit.scoring.exported_models import (
    FLIGHTS,
    MEMBERS,
    ORDERS,
    export_members,
    export_movies,
    export_orders,
    orders_features,
)

# FLIGHTS as the raw signature takes it: NaN and "" for missing, lists padded with "".
RAW = {
    "carrier": ["UA", "AA", "", "", "unseen", "DL"],
    "hour": ["5", "6", "", "23", "7", "5"],
    "stops": [
        ["EWR", "JFK", "", ""],
        ["", "", "", ""],
        ["", "", "", ""],
        ["LGA", "", "", ""],
        ["a", "EWR", "JFK", "LGA"],
        ["JFK", "", "", ""],
    ],
    "distance": np.array([100.0, 2_500.0, np.nan, np.nan, -3.5, 1_000.0]),
}


@pytest.fixture(scope="module")
def loaded(flights_model: Path) -> LoadedModel:
    return LoadedModel(flights_model)


@pytest.fixture(scope="module")
def movies_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_movies(tmp_path_factory.mktemp("export") / "movies", scann=False)


def test_scores_equal_the_raw_signature_with_every_kind_of_missing_value(
    loaded: LoadedModel, flights_model: Path
) -> None:
    """S7, and the promise that train and serve cannot drift: both transforms meet here."""
    raw = tf.saved_model.load(str(flights_model / "saved_model")).signatures["serving_default"]
    expected = raw(**{name: tf.constant(values) for name, values in RAW.items()})["score"].numpy()
    scores = loaded.score(FLIGHTS)
    assert list(scores) == ["score"]
    assert scores["score"].shape == (6,)
    np.testing.assert_allclose(scores["score"], expected, rtol=0, atol=1e-6)
    assert len(np.unique(scores["score"])) == 6


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6, 100])
def test_scores_do_not_depend_on_the_batch_size(loaded: LoadedModel, batch_size: int) -> None:
    whole = loaded.score(FLIGHTS)["score"]
    np.testing.assert_allclose(loaded.score(FLIGHTS, batch_size=batch_size)["score"], whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rows", "batch_size"), [(40_000, 20_000), (100_000, 100_000), (70_000, 4_096), (5, 10)])
def test_every_call_but_the_last_is_of_the_batch_size(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, rows: int, batch_size: int
) -> None:
    """S5: however many rows are encoded together."""
    calls: list[int] = []
    call = LoadedModel._call

    def counted(model: LoadedModel, inputs: Any, size: int) -> Any:
        calls.append(size)
        return call(model, inputs, size)

    monkeypatch.setattr(LoadedModel, "_call", counted)
    table = pa.concat_tables([FLIGHTS] * -(-rows // FLIGHTS.num_rows)).slice(0, rows)
    scores = loaded.score(table, batch_size=batch_size)["score"]
    assert calls[:-1] == [batch_size] * (len(calls) - 1)
    assert sum(calls) == len(scores) == rows
    np.testing.assert_allclose(scores[-3:], loaded.score(table.slice(rows - 3))["score"], atol=1e-6)


def test_a_data_frame_s_booleans_are_the_tokens_that_a_table_s_are(tmp_path: Path) -> None:
    """Python writes True where Arrow and SQL write true."""
    folder = export_members(tmp_path)
    scores = LoadedModel(folder).score(MEMBERS)["score"]
    assert len(np.unique(scores)) == MEMBERS.num_rows
    frame = MEMBERS.drop_columns(["id"]).to_pandas()
    np.testing.assert_allclose(RawColumnsModel(folder).predict(frame)["score"], scores, rtol=0, atol=1e-6)


def test_a_table_without_rows_has_outputs_of_length_zero(loaded: LoadedModel) -> None:
    assert loaded.score_arrow(FLIGHTS.slice(0, 0))["score"] == pa.array([], pa.float32())


def test_a_missing_column_is_named(loaded: LoadedModel) -> None:
    with pytest.raises(ColumnError, match=r"column 'hour' \(categorical\) is missing"):
        loaded.score(FLIGHTS.drop_columns(["hour"]))


def test_retrieval_gives_lists_that_leave_out_what_is_excluded(movies_model: Path) -> None:
    model = LoadedModel(movies_model)
    table = pa.table(
        {
            "user": pa.array(["u0", "u0", "u0"]),
            "history": pa.array([["m1"], ["m1"], ["m1"]]),
            "seen": pa.array([[], None, ["m1"]], pa.list_(pa.string())),
        }
    )
    open_, null, _ = model.score_arrow(table)["candidates"].to_pylist()
    assert open_ == null
    assert len(set(open_)) == 3
    excluding = table.set_column(2, "seen", pa.array([open_[:2], [], None], pa.list_(pa.string())))
    outputs = model.score_arrow(excluding)
    assert outputs["candidates"].type == pa.list_(pa.string())
    assert outputs["scores"].type == pa.list_(pa.float32())
    rest, unchanged, _ = outputs["candidates"].to_pylist()
    assert rest[0] == open_[2]
    assert not set(rest) & set(open_[:2])
    assert unchanged == open_


def test_a_model_without_a_scann_index_needs_no_scann(movies_model: Path) -> None:
    assert not needs_scann(movies_model)


def test_outputs_other_than_described_are_refused(flights_model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(flights_model, tmp_path / "copy"))
    document = json.loads((copy / DESCRIPTION_FILE).read_text())
    (copy / DESCRIPTION_FILE).write_text(json.dumps(document | {"outputs": {"probability": "float"}}))
    with pytest.raises(ModelOutputError, match=r"outputs \['score'\], its description says \['probability'\]"):
        LoadedModel(copy)
    (copy / DESCRIPTION_FILE).write_text(json.dumps(document | {"outputs": {"score": "array<float>"}}))
    with pytest.raises(ModelOutputError, match=r"shape \(6,\) for 6 rows; its type array<float> needs \[rows, k\]"):
        LoadedModel(copy).score(FLIGHTS)


def fake_model() -> LoadedModel:
    return cast(LoadedModel, object())


def test_the_cache_loads_a_digest_once() -> None:
    """S1."""
    cache = ModelCache()
    first = cache.get("a", 1, fake_model)
    assert cache.get("a", 1, fake_model) is first
    assert cache.get("b", 1, fake_model) is not first
    assert cache.loads == 2


def test_the_cache_drops_the_least_recently_used_beyond_its_size() -> None:
    """S1: bounded LRU."""
    cache = ModelCache(capacity_bytes=10)
    for digest in ("a", "b", "a", "c"):
        cache.get(digest, 5, fake_model)
    assert [digest in cache for digest in "abc"] == [True, False, True]
    cache.get("larger than all", 50, fake_model)
    assert [digest in cache for digest in ("a", "c", "larger than all")] == [False, False, True]


def test_threads_that_ask_at_once_get_one_load() -> None:
    """S1: the second thread waits for the model that the first one loads."""
    cache = ModelCache()
    barrier = threading.Barrier(4, timeout=30)
    models: list[Any] = []

    def ask() -> None:
        barrier.wait()
        models.append(cache.get("a", 1, fake_model))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(models) == 4
    assert len(set(map(id, models))) == 1
    assert cache.loads == 1


def test_a_load_that_fails_leaves_nothing_behind() -> None:
    cache = ModelCache()

    def fail() -> LoadedModel:
        raise ModelChangedError("no")

    with pytest.raises(ModelChangedError):
        cache.get("a", 1, fail)
    assert cache.loads == 0
    assert cache.get("a", 1, fake_model)


def test_load_once_reports_its_load_and_refuses_changed_files(flights_model: Path, tmp_path: Path) -> None:
    cache = ModelCache()
    loads: list[LoadedModel] = []
    copy = Path(shutil.copytree(flights_model, tmp_path / "copy"))
    digest = folder_digest(copy)
    models = [load_once(copy, digest, on_load=loads.append, cache=cache) for _ in range(2)]
    assert models[0] is models[1]
    assert loads == models[:1]
    (copy / "added").touch()
    with pytest.raises(ModelChangedError, match="resolve the model's URI again"):
        load_once(copy, digest, cache=ModelCache())


def test_tensorflow_starts_with_the_threads_of_the_task(flights_model: Path) -> None:
    """S10, as far as issue 2 goes: the pools are bounded before TensorFlow is imported."""
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from scoring.loaded_model import LoadedModel\n"
        "assert 'tensorflow' not in sys.modules\n"
        "LoadedModel(Path(sys.argv[1]), threads=3)\n"
        "print(os.environ['TF_NUM_INTRAOP_THREADS'], os.environ['TF_NUM_INTEROP_THREADS'])\n"
    )
    repository = Path(__file__).resolve().parents[3]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    result = subprocess.run(
        [sys.executable, "-c", program, str(flights_model)],
        env=environment | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "3 3\n"), result.stderr


def test_features_of_every_kind_are_scored_alike_by_arrow_and_by_mlflow(tmp_path: Path) -> None:
    folder = export_orders(tmp_path)
    by_arrow = LoadedModel(folder).score(ORDERS)["score"]
    raw = raw_inputs(ORDERS, orders_features().spec)
    assert len(set(by_arrow.tolist())) == 3
    assert RawColumnsModel(folder).predict(raw.to_pandas())["score"].tolist() == by_arrow.tolist()
    # What the raw signature takes, the Arrow form takes too.
    assert LoadedModel(folder).score(raw)["score"].tolist() == by_arrow.tolist()
