"""S5, S7: bad rows are marked in every form, with their own keys; errors name the row."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input.inputs import Column
from mirrorspark.scoring.input.null_policy import NullPolicy
from mirrorspark.scoring.model.folder.directory import DESCRIPTION_FILE, ModelDirectory
from mirrorspark.scoring.model.loading.cache import PROCESS_CACHE
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.loading.versions import ModelVersionsError
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.output.bad_rows import BadRowError
from mirrorspark.scoring.output.forms import AtLeast, Columns, Form, Labelled, Long, Struct, TopK, Wide
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.task import Scorer, ScoringOptions, ShippedModel
from mirrorspark.scoring.task.counts import ScoringCounts
from tests.unit.scoring.exported_models import BASKETS, export_baskets
from tests.unit.scoring.other_models import (
    LINEAR,
    NAMES,
    boxes,
    pictures,
    png,
    save_lightgbm,
    save_onnx_classifier,
    save_picture_keras,
    save_xgboost,
)

# The second and the last row have an index that the model does not know.
ROWS = pa.record_batch(
    {
        "id": pa.array([10, 11, 12, 13]),
        "products": pa.array([[3, 1], [5000], [999], [3, 7000]], pa.list_(pa.int64())),
        "counts": pa.array([[1.0, 2.0], [1.0], [0.5], [1.0, 1.0]], pa.list_(pa.float32())),
    }
)


def scorer_of(folder: Path, **settings: object) -> Scorer:
    return Scorer(ShippedModel("0" * 64, "baskets/1", path=str(folder), archive=None), ScoringOptions(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [Columns(), Struct(), Labelled(), Wide(), Long(), TopK(2), AtLeast(0.0)], ids=repr)
def test_marked_rows_have_nulls_and_the_reason_and_the_others_their_scores(baskets_model: Path, form: Form) -> None:
    model, counts = LoadedModel(baskets_model), ScoringCounts()
    scorer = scorer_of(baskets_model, outputs=form, bad_rows="mark")
    scored = scorer.scored(model, ROWS, counts, ["id"])
    assert scored.schema.names == ["id", *scorer.options.schema(ModelDirectory.open(baskets_model)).names]
    rows = scored.to_pylist()
    per_row = 3 if isinstance(form, Long) else 1
    assert [row["id"] for row in rows] == [10] * per_row + [11] + [12] * per_row + [13]
    names = [name for name in scored.schema.names if name not in ("id", "error", "model_version")]
    for row in rows:
        is_bad = row["id"] in (11, 13)
        assert (row["error"] is not None) == is_bad
        assert all((row[name] is None) == is_bad for name in names)
    assert {row["error"].split(";")[0] for row in rows if row["error"]} == {
        f"sparse feature 'basket' has the index {index}" for index in (5000, 7000)
    }
    assert (counts.rows, counts.bad_rows, counts.calls) == (4, 2, 1)
    sound = (
        scorer_of(baskets_model, outputs=form)
        .scored(model, ROWS.take(pa.array([0, 2])), ScoringCounts(), ["id"])
        .to_pylist()
    )
    assert [{**row, "error": None} for row in sound] == [row for row in rows if row["error"] is None]


def test_a_batch_of_bad_rows_alone_is_marked_without_a_call_of_the_model(baskets_model: Path) -> None:
    counts = ScoringCounts()
    bad = ROWS.take(pa.array([1, 3]))
    scored = scorer_of(baskets_model, bad_rows="mark").scored(LoadedModel(baskets_model), bad, counts, ["id"])
    assert scored.column("scores").null_count == 2
    assert scored.column("error").null_count == 0
    assert (counts.rows, counts.bad_rows, counts.calls) == (2, 2, 0)


def test_nulls_that_may_not_be_and_other_faults_are_marked_together(baskets_model: Path) -> None:
    rows = pa.concat_batches(
        [ROWS, pa.RecordBatch.from_pylist([{"id": 14, "products": None, "counts": None}], ROWS.schema)]
    )
    scorer = scorer_of(baskets_model, bad_rows="mark", nulls=NullPolicy({"products": "fail"}))
    scored = scorer.scored(LoadedModel(baskets_model), rows, ScoringCounts(), ["id"])
    assert [error is not None for error in scored.column("error").to_pylist()] == [False, True, False, True, True]
    assert "column 'products' is null" in scored.column("error")[4].as_py()


def test_the_first_bad_row_is_named_by_its_key(baskets_model: Path) -> None:
    model = LoadedModel(baskets_model)
    with pytest.raises(BadRowError, match=r"the row id=11 cannot be scored: .*the index 5000"):
        scorer_of(baskets_model).scored(model, ROWS, ScoringCounts(), ["id"])
    strict = scorer_of(baskets_model, nulls=NullPolicy({"counts": "fail"}))
    with pytest.raises(BadRowError, match=r"the row id=2 cannot be scored: column 'counts' is null"):
        strict.scored(model, BASKETS.combine_chunks().to_batches()[0], ScoringCounts(), ["id"])


def test_a_column_of_a_wrong_type_is_no_row_s_fault(baskets_model: Path) -> None:
    wrong = ROWS.set_column(1, "products", pa.array(["a", "b", "c", "d"]))
    with pytest.raises(ColumnError, match="column 'products' has type string"):
        scorer_of(baskets_model, bad_rows="mark").scored(LoadedModel(baskets_model), wrong, ScoringCounts(), ["id"])


def test_scores_that_would_have_a_column_twice_are_refused(tmp_path: Path) -> None:
    from mirrorspark.data_pipelines.features.kinds import Label

    directory = ModelDirectory.open(export_baskets(tmp_path, Label("tags", "multi_label", classes=3)))
    assert ScoringOptions(outputs=Wide()).schema(directory).names == ["0", "1", "2", "model_version"]
    clash = ModelDirectory(directory.path, directory.description)
    object.__setattr__(clash, "labels", {"scores": ("a", "error", "b")})
    with pytest.raises(ScoringError, match=r"would have the columns \['error'\] twice"):
        ScoringOptions(outputs=Wide(), bad_rows="mark").schema(clash)


KINDS = ("flat", "tall", "cube")


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of three kinds of boxes, with their names."""
    folder = tmp_path_factory.mktemp("classifiers")
    save_xgboost(folder / "m.ubj", classes=3)
    save_lightgbm(folder / "m.txt", classes=3)
    save_onnx_classifier(folder / "m.onnx")
    linear = {"coefficients": {name: [1.0, -1.0, 0.5] for name in NAMES}, "link": "softmax"}
    return {
        "xgboost": package_model(folder / "m.ubj", folder / "a", labels={"score": KINDS}),
        "lightgbm": package_model(folder / "m.txt", folder / "b", labels={"score": KINDS}),
        "onnx": package_model(folder / "m.onnx", folder / "c", columns=NAMES, labels={"probabilities": KINDS}),
        "linear": package_model(linear, folder / "d", labels={"score": KINDS}),
    }


@pytest.mark.parametrize("name", ["xgboost", "lightgbm", "onnx", "linear"])
def test_the_labels_of_a_package_are_in_every_form_that_has_labels(classifiers: dict[str, Path], name: str) -> None:
    """S7, S13: also where the model gives double, or a class in addition to its probabilities."""
    folder, (batch,) = classifiers[name], boxes(50).to_batches()
    model = LoadedModel(folder, threads=1)
    (output,) = model.labels

    def scored(form: Form) -> list[dict[str, object]]:
        scorer = scorer_of(folder, outputs=form, with_columns=())
        columns = scorer.scored(model, batch, ScoringCounts(), ["id"])
        announced = scorer.options.schema(ModelDirectory.open(folder))
        assert columns.schema.types[1:] == announced.types
        return columns.to_pylist()

    scores = [dict(zip(KINDS, row, strict=True)) for row in model.score(batch)[output].astype(np.float32).tolist()]
    assert scored(Wide()) == [{"id": number, **row} for number, row in enumerate(scores)]
    assert scored(Long()) == [
        {"id": number, "label": label, "score": score}
        for number, row in enumerate(scores)
        for label, score in row.items()
    ]
    ranked = [
        [{"label": label, "score": score} for label, score in sorted(row.items(), key=lambda pair: -pair[1])]
        for row in scores
    ]
    assert scored(TopK(2)) == [{"id": number, "predictions": row[:2]} for number, row in enumerate(ranked)]
    assert scored(AtLeast(0.4)) == [
        {"id": number, "predictions": [entry for entry in row if entry["score"] >= np.float32(0.4)]}
        for number, row in enumerate(ranked)
    ]


@pytest.fixture(scope="module")
def pictures_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    save_picture_keras(folder / "m.keras", 6, 5)
    columns = [Column("image", "binary", decode="image")]
    return package_model(folder / "m.keras", folder / "model", columns=columns)


def test_a_broken_image_is_one_bad_row_among_good_ones(pictures_model: Path) -> None:
    """F13: named by its key, or marked, whichever call of the model it is in; a null is what the column says."""
    model = LoadedModel(pictures_model)
    good = [png(each) for each in pictures(7, 6, 5)]
    values = [good[0], good[1][:50], good[2], None, good[4], png(pictures(1, 8, 8)[0]), good[6]]
    batch = pa.record_batch({"id": range(7), "image": pa.array(values, pa.binary())})
    with pytest.raises(BadRowError, match=r"the row id=1 cannot be scored: column 'image' has a value that is not dec"):
        scorer_of(pictures_model, batch_size=2).scored(model, batch, ScoringCounts(), ["id"])
    counts = ScoringCounts()
    rows = scorer_of(pictures_model, bad_rows="mark", batch_size=2).scored(model, batch, counts, ["id"]).to_pylist()
    reasons = {row["id"]: row["error"] for row in rows if row["error"] is not None}
    assert list(reasons) == [1, 3, 5]
    assert "column 'image' (binary) has null" in reasons[3]
    assert "the image is 8 x 8" in reasons[5]
    expected = model.score(pa.table({"image": [good[row] for row in (0, 2, 4, 6)]}))["score"]
    assert [row["score"] for row in rows if row["error"] is None] == pytest.approx(expected.tolist(), abs=1e-6)
    assert (counts.rows, counts.bad_rows) == (7, 3)


def test_lists_of_another_length_are_bad_rows_where_the_model_takes_any(tmp_path: Path) -> None:
    """The length that most rows have is the right one; the first row alone would not show that it is wrong."""
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["all"], ["mean"], axes=[1], keepdims=0)],
        "mean",
        [helper.make_tensor_value_info("all", TensorProto.FLOAT, ["rows", "length"])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["rows"])],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    columns = [Column("list", "array<float>")]
    folder = package_model(tmp_path / "m.onnx", tmp_path / "model", columns=columns)
    batch = pa.record_batch({"id": range(4), "list": [[9.0], [1.0, 3.0], [2.0, 2.0, 2.0], [5.0, 7.0]]})
    model = LoadedModel(folder)
    with pytest.raises(BadRowError, match=r"the row id=0 cannot be scored: .* has 1 elements, where 2 are wanted"):
        scorer_of(folder).scored(model, batch, ScoringCounts(), ["id"])
    rows = scorer_of(folder, bad_rows="mark").scored(model, batch, ScoringCounts(), ["id"]).to_pylist()
    assert [row["mean"] for row in rows] == [None, 2.0, None, 6.0]
    assert [row["error"] is None for row in rows] == [False, True, False, True]


class TaskOfOneCore:
    """Spark's ``TaskContext`` of a task with one core."""

    @classmethod
    def get(cls) -> "TaskOfOneCore":
        return cls()

    def cpus(self) -> int:
        return 1


def test_a_task_limits_the_numeric_libraries_of_its_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """S10: NumPy multiplies with as many threads as the task has cores."""
    pinned = resolve(package_model({**LINEAR, "intercept": 0.5}, tmp_path / "model"))  # which no test has loaded yet
    scorer = Scorer(ShippedModel(pinned.digest, pinned.label, path=str(pinned.path), archive=None))
    monkeypatch.setattr("mirrorspark.spark_session.task.TaskContext", TaskOfOneCore)
    monkeypatch.setattr("mirrorspark.scoring.task.scorer.freeze_gc", lambda **_: None)
    with threadpool_limits(2):
        assert scorer.load(ScoringCounts()).threads == 1
        assert {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"} == {1}


def test_a_task_refuses_a_package_of_other_libraries_before_it_loads_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """L10."""
    monkeypatch.setattr("mirrorspark.scoring.task.scorer.freeze_gc", lambda **_: None)
    folder = package_model({**LINEAR, "intercept": 1.5}, tmp_path / "model")  # which no test has loaded yet
    document = json.loads((folder / DESCRIPTION_FILE).read_text())
    (folder / DESCRIPTION_FILE).write_text(json.dumps(document | {"versions": {"numpy": "0.1.2"}}))
    pinned = resolve(folder)
    shipped = ShippedModel(pinned.digest, pinned.label, path=str(folder), archive=None)
    with pytest.raises(ModelVersionsError, match=rf"{pinned.label} cannot be .*numpy \S+ instead of 0\.1\.2, which"):
        Scorer(shipped).load(ScoringCounts())
    assert pinned.digest not in PROCESS_CACHE
    Scorer(shipped, ScoringOptions(other_versions="allow")).load(ScoringCounts())
    assert pinned.digest in PROCESS_CACHE


class KeptCalls:
    """Stands for Python's garbage collector, and keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def unfreeze(self) -> None:
        self.asked.append("unfreeze")

    def collect(self) -> None:
        self.asked.append("collect")

    def freeze(self) -> None:
        self.asked.append("freeze")


def test_objects_that_are_frozen_are_walked_again_only_where_a_model_was_let_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """S1, S18: a worker may load thousands of models; of those that it lets go nothing may stay."""
    collector = KeptCalls()
    monkeypatch.setattr("mirrorspark.scoring.model.loading.cache.gc", collector)
    for number, capacity_bytes in enumerate([2**40, 1]):
        model = {"coefficients": {"x": 31.5 + number}}  # which no test has loaded yet
        pinned = resolve(package_model(model, tmp_path / str(number)))
        monkeypatch.setattr(PROCESS_CACHE, "_capacity_bytes", capacity_bytes)
        Scorer(ShippedModel(pinned.digest, pinned.label, path=str(pinned.path), archive=None)).load(ScoringCounts())
    assert collector.asked == ["collect", "freeze", "unfreeze", "collect", "freeze"]
