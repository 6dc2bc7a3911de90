"""A loaded model gives the SavedModel's own scores, and a process loads it once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from mirrorspark.data_pipelines.features.kinds import Label
from mirrorspark.data_pipelines.features.names import plain_name
from mirrorspark.data_pipelines.features.raw_columns import ColumnError, raw_inputs
from mirrorspark.scoring.backends.protocol import ModelOutputError
from mirrorspark.scoring.backends.trained_model import TrainedBackend
from mirrorspark.scoring.input.inputs import Column
from mirrorspark.scoring.model import mirrorspark_pyfunc
from mirrorspark.scoring.model.folder.directory import DESCRIPTION_FILE, FEATURES_FOLDER
from mirrorspark.scoring.model.loading import loaded as loaded_model
from mirrorspark.scoring.model.loading.loaded import LoadedModel, Search
from mirrorspark.scoring.model.mirrorspark_pyfunc import RawColumnsModel
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.predictor import Predictor
from tests.unit.scoring.exported_models import (
    BASKETS,
    FLIGHTS,
    HISTORIES,
    MEMBERS,
    ORDERS,
    export_baskets,
    export_histories,
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


@pytest.fixture(scope="module")
def histories_model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return LoadedModel(export_histories(tmp_path_factory.mktemp("histories")))


def test_a_ragged_row_has_the_scores_of_the_same_row_padded(histories_model: LoadedModel) -> None:
    """F14: alone, with longer ones, and padded with missing values; of a longer list the newest count."""
    model = histories_model
    together = model.score(HISTORIES)
    assert len(np.unique(together["scores"].round(4), axis=0)) == HISTORIES.num_rows - 1  # no list is an empty list
    lists = HISTORIES["watched"].to_pylist()
    tables = {
        "alone": (HISTORIES, 1),
        "in pairs": (HISTORIES, 2),
        "null": (as_histories([[*(row or []), *[None] * 7] for row in lists]), 6),
        "empty text": (as_histories([[*(row or []), *[""] * 20] for row in lists]), 6),
        "older ones": (as_histories([*lists[:2], ["m30", "m31", *lists[2]], *lists[3:]]), 6),
    }
    for name, (table, batch_size) in tables.items():
        found = model.score(table, batch_size=batch_size)
        np.testing.assert_array_equal(found["candidates"], together["candidates"], err_msg=name)
        np.testing.assert_allclose(found["scores"], together["scores"], rtol=0, atol=1e-6, err_msg=name)


def as_histories(lists: list[list[str | None] | None]) -> pa.Table:
    return pa.table({"watched": pa.array(lists, pa.list_(pa.string()))})


@pytest.fixture
def given_shapes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, tuple[int, ...]]]:
    """Return a list that gets the shapes of what models are given, a dict for each call."""
    shapes: list[dict[str, tuple[int, ...]]] = []
    call = TrainedBackend.__call__

    def noting(backend: TrainedBackend, inputs: Any, outputs: Any) -> Any:
        shapes.append({name: array.shape for name, array in inputs.items()})
        return call(backend, inputs, outputs)

    monkeypatch.setattr(TrainedBackend, "__call__", noting)
    return shapes


def test_a_call_of_short_rows_gives_the_model_short_lists(
    loaded: LoadedModel, histories_model: LoadedModel, given_shapes: list[dict[str, tuple[int, ...]]]
) -> None:
    """F14: of as many places as the power of two that the longest row fits in, and never more than ``max_length``."""
    histories_model.score(as_histories([["m1"] * n for n in range(9)]), batch_size=1)
    assert [shapes["watched"] for shapes in given_shapes] == [(1, length) for length in (1, 1, 2, 4, 4, 6, 6, 6, 6)]
    given_shapes.clear()
    # Stops are averaged, and those of FLIGHTS are 2, 0, 0, 1, 4 and 1 in number, of which 3 count.
    loaded.score(FLIGHTS, batch_size=2)
    assert [shapes["stops"] for shapes in given_shapes] == [(2, 2), (2, 1), (2, 3)]


@pytest.mark.full
def test_a_model_whose_lists_have_a_fixed_length_is_scored_alike(
    histories_model: LoadedModel,
    given_shapes: list[dict[str, tuple[int, ...]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F14: such as one that was exported before lists could have any length."""
    expected = histories_model.score(HISTORIES)
    monkeypatch.setattr("mirrorspark.models.serving.export.lists_of_any_length", lambda model: ())
    fixed = LoadedModel(export_histories(tmp_path / "fixed"))
    given_shapes.clear()
    found = fixed.score(HISTORIES, batch_size=2)
    assert [shapes["watched"] for shapes in given_shapes] == [(2, 6)] * 3
    np.testing.assert_array_equal(found["candidates"], expected["candidates"])
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rows", "batch_size"), [(40_000, 20_000), (100_000, 100_000), (70_000, 4_096), (5, 10)])
def test_every_call_but_the_last_is_of_the_batch_size(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, rows: int, batch_size: int
) -> None:
    """S5: however many rows are encoded together."""
    calls: list[int] = []
    call = LoadedModel._call

    def counted(model: LoadedModel, inputs: Any, size: int, most: int, on_call: Any) -> Any:
        calls.append(size)
        assert model._padded_rows(size, most) == size
        return call(model, inputs, size, most, on_call)

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


_WITHOUT_SCANN = """
import sys
from pathlib import Path
import numpy as np
import pyarrow as pa
sys.modules["scann"] = None  # what cannot be imported
from mirrorspark.scoring.model.loading.loaded import LoadedModel, Search
model = LoadedModel(Path(sys.argv[1]))
rows = pa.table({"user": ["u0"], "history": [["m1"]], "seen": [["m2"]]})
nothing = np.empty(0, np.int64)
for index in ("exact", "ivf"):
    (found,) = model.with_search(Search(index, 5, nothing)).score_arrow(rows)["candidates"].to_pylist()
    print(len(set(found)))
try:
    model.with_search(Search("scann", 5, nothing))
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.full
@pytest.mark.process
def test_a_model_with_a_scann_index_needs_scann_for_that_index_alone(tmp_path: Path) -> None:
    """R1: where the package is missing, all but its own index works."""
    pytest.importorskip("scann", reason="scann is not installed: it has wheels for Linux on x86-64 alone")
    model = export_movies(tmp_path / "movies", scann=True)
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_SCANN, str(model)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    first, second, error = done.stdout.splitlines() or [done.stderr] * 3
    assert (first, second) == ("5", "5"), done.stderr
    assert error.startswith("the model holds a ScaNN index, which needs the package scann")


def test_a_search_finds_as_many_as_asked_for_of_what_is_available(movies_model: Path) -> None:
    """R6: the model that it is made of answers as before."""
    model = LoadedModel(movies_model)
    table = pa.table({"user": ["u0"], "history": [["m1"]], "seen": pa.array([["m5"]], pa.list_(pa.string()))})
    before = model.score_arrow(table)
    exact = model.with_search(Search("exact", 39, np.empty(0, np.int64))).score_arrow(table)["candidates"][0].as_py()
    assert set(exact) == {f"m{number}" for number in range(40)} - {"m5"}
    # Ids 2 to 21 are m0 to m19.
    half = model.with_search(Search("ivf", 3, np.arange(2, 22))).score_arrow(table)["candidates"][0].as_py()
    assert len(half) == 3
    assert not set(half) & {f"m{number}" for number in range(20)}
    assert model.score_arrow(table) == before
    assert before["candidates"][0].as_py() == exact[:3]


def test_an_index_that_the_model_lacks_is_named(movies_model: Path) -> None:
    with pytest.raises(ModelOutputError, match="but not 'hnsw'; export the model again"):
        LoadedModel(movies_model).with_search(Search("hnsw", 3, np.empty(0, np.int64)))


def test_outputs_other_than_described_are_refused(flights_model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(flights_model, tmp_path / "copy"))
    document = json.loads((copy / DESCRIPTION_FILE).read_text())
    (copy / DESCRIPTION_FILE).write_text(json.dumps(document | {"outputs": {"probability": "float"}}))
    with pytest.raises(ModelOutputError, match=r"outputs \['score'\], its description says \['probability'\]"):
        LoadedModel(copy)
    (copy / DESCRIPTION_FILE).write_text(json.dumps(document | {"outputs": {"score": "array<float>"}}))
    with pytest.raises(ModelOutputError, match=r"shape \(6,\) for 6 rows; its type array<float> needs \[rows, k\]"):
        LoadedModel(copy).score(FLIGHTS)


# Other alphabets, marks, names of layers, of Python and of nothing.
ODD_NAMES = {
    "amount": "\u5e74\u53ce",
    "age": "is late",
    "customer": "a.b`c",
    "viewed": "Gr\u00f6\u00dfe/t",
    "viewed_at": "self",
    "review": "numbers",
    "basket": "hidden_0",
    "clicked": "features",
    "click_ids": "1st",
    "clicks": "class",
    "picture": "a'b\"c\nd" + "e" * 300,
}


def test_names_in_any_language_give_the_scores_of_plain_names(tmp_path: Path) -> None:
    plain, odd = export_orders(tmp_path / "plain"), export_orders(tmp_path / "odd", ODD_NAMES)
    renamed = ORDERS.rename_columns([ODD_NAMES.get(name, name) for name in ORDERS.column_names])
    expected = LoadedModel(plain).score(ORDERS)["score"].tolist()
    assert LoadedModel(odd).score(renamed)["score"].tolist() == expected
    assert [row["score"] for row in Predictor(odd).predict_rows(renamed.to_pylist())] == pytest.approx(expected)
    # The loader of MLflow maps the columns without Mirrorspark.
    loaded = mirrorspark_pyfunc._load_pyfunc(str(odd))
    assert loaded.predict(renamed.to_pandas())["score"].tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="the columns \\['is late'\\] are missing"):
        loaded.predict(renamed.drop_columns(["is late"]).to_pandas())
    for name in (*ODD_NAMES.values(), "", "_x", "None", "match", "a" * 101):
        assert mirrorspark_pyfunc._plain_name(name) == plain_name(name)


@pytest.mark.parametrize("heads", ["sigmoid", "softmax"])
def test_a_multi_label_model_gives_a_score_per_label(baskets_model: Path, tmp_path: Path, heads: str) -> None:
    """S3, S6: from lists of indices and values, empty ones and repeated indices among them."""
    folder = baskets_model if heads == "sigmoid" else export_baskets(tmp_path, heads=heads)
    scores = LoadedModel(folder).score_arrow(BASKETS)["scores"]
    assert scores.type == pa.list_(pa.float32())
    raw = tf.saved_model.load(str(folder / "saved_model")).signatures["serving_default"]
    expected = raw(
        products=tf.constant([[3, 1, -1], [-1, -1, -1], [-1, -1, -1], [999, 3, 3]], tf.int64),
        counts=tf.constant([[1.0, 2.0, 0], [0, 0, 0], [0, 0, 0], [0.5, 1, 1]], tf.float64),
    )["scores"].numpy()
    assert expected.shape == (4, 3)
    np.testing.assert_allclose(scores.to_pylist(), expected, rtol=0, atol=1e-6)
    assert expected[1].tolist() == expected[2].tolist() != expected[0].tolist()


def test_labels_that_are_not_those_of_the_model_are_refused(baskets_model: Path, tmp_path: Path) -> None:
    """S7: another training's vocabulary would give every score a wrong name."""
    folder = Path(shutil.copytree(baskets_model, tmp_path / "three"))
    other = export_baskets(tmp_path / "four", Label("tags", "multi_label", classes=4))
    for part in (FEATURES_FOLDER, DESCRIPTION_FILE):
        shutil.move(folder / part, tmp_path / part)
        shutil.move(other / part, folder / part)
    with pytest.raises(ModelOutputError, match=r"'scores' of the model has 3 elements per row, .* names 4 labels"):
        LoadedModel(folder)


def test_a_batch_with_many_outputs_is_scored_in_parts(baskets_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3, S8: a row of three labels takes 12 bytes, so that 240 bytes are 20 rows, or 2 calls of 8."""
    model = LoadedModel(baskets_model)
    (batch,) = pa.concat_tables([BASKETS] * 10).combine_chunks().to_batches()
    assert [part.num_rows for part in model.parts(batch)] == [40]
    monkeypatch.setattr(loaded_model, "PART_BYTES", 240)
    assert [part.num_rows for part in model.parts(batch, batch_size=8)] == [16, 16, 8]
    assert [part.num_rows for part in model.parts(batch, batch_size=30)] == [20, 20]
    assert pa.Table.from_batches(model.parts(batch, batch_size=8)) == pa.Table.from_batches([batch])


def package_same(folder: Path) -> Path:
    """Package a model that gives the lists that it takes, and does not say how long they are."""
    from onnx import TensorProto, helper, save

    shape = ["rows", "length"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["all"], ["same"])],
        "same",
        [helper.make_tensor_value_info("all", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, shape)],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "m.onnx")
    return package_model(folder / "m.onnx", folder / "model", columns=[Column("list", "array<float>")])


def test_outputs_of_no_told_width_are_bounded_once_a_call_has_shown_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3, S8: a row of three floats takes 12 bytes, so that 240 bytes are 20 rows; the widest rows so far count."""
    model = LoadedModel(package_same(tmp_path))
    batch = pa.record_batch({"list": [[1.0, 2.0, 3.0]] * 100})
    monkeypatch.setattr(loaded_model, "PART_BYTES", 240)
    sizes = []
    for part in model.parts(batch, batch_size=30):
        sizes.append(part.num_rows)
        assert model.score(part, batch_size=30)["same"].shape == (part.num_rows, 3)
    assert sizes == [30, 20, 20, 20, 10]
    model.score(pa.table({"list": [[1.0]]}))
    assert (model.part_rows(30), model.part_rows(8)) == (20, 16)


def test_features_of_every_kind_are_scored_alike_by_arrow_and_by_mlflow(tmp_path: Path) -> None:
    folder = export_orders(tmp_path)
    by_arrow = LoadedModel(folder).score(ORDERS)["score"]
    raw = raw_inputs(ORDERS, orders_features().spec)
    assert len(set(by_arrow.tolist())) == 3
    assert RawColumnsModel(folder).predict(raw.to_pandas())["score"].tolist() == by_arrow.tolist()
    # The Arrow form takes the same rows as the raw signature.
    assert LoadedModel(folder).score(raw)["score"].tolist() == by_arrow.tolist()
