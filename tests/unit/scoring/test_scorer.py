"""S5, S7: rows that cannot be scored are marked in every form, beside their own keys; what fails names the row."""

from pathlib import Path

import pyarrow as pa
import pytest

from data_pipelines.raw_columns import ColumnError
from scoring.bad_rows import BadRowError
from scoring.checks import ScoringError
from scoring.counters import Tally
from scoring.forms import AtLeast, Columns, Form, Long, Struct, TopK, Wide
from scoring.loaded_model import LoadedModel
from scoring.model_directory import ModelDirectory
from scoring.null_policy import NullPolicy
from scoring.scorer import Scorer, Settings
from scoring.shipping import ShippedModel
from tests.unit.scoring.exported_models import BASKETS, export_baskets

# The second and the last row have an index that the model does not know.
ROWS = pa.record_batch(
    {
        "id": pa.array([10, 11, 12, 13]),
        "products": pa.array([[3, 1], [5000], [999], [3, 7000]], pa.list_(pa.int64())),
        "counts": pa.array([[1.0, 2.0], [1.0], [0.5], [1.0, 1.0]], pa.list_(pa.float32())),
    }
)


@pytest.fixture(scope="module")
def baskets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_baskets(tmp_path_factory.mktemp("baskets"))


def scorer_of(folder: Path, **settings: object) -> Scorer:
    return Scorer(ShippedModel("0" * 64, "baskets/1", path=str(folder), archive=None), Settings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [Columns(), Struct(), Wide(), Long(), TopK(2), AtLeast(0.0)], ids=repr)
def test_marked_rows_have_nulls_and_the_reason_and_the_others_their_scores(baskets: Path, form: Form) -> None:
    model, tally = LoadedModel(baskets), Tally()
    scorer = scorer_of(baskets, outputs=form, bad_rows="mark")
    scored = scorer.scored(model, ROWS, tally, ["id"])
    assert scored.schema.names == ["id", *scorer.settings.schema(ModelDirectory.open(baskets)).names]
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
    assert (tally.rows, tally.bad_rows, tally.calls) == (4, 2, 1)
    sound = scorer_of(baskets, outputs=form).scored(model, ROWS.take(pa.array([0, 2])), Tally(), ["id"]).to_pylist()
    assert [{**row, "error": None} for row in sound] == [row for row in rows if row["error"] is None]


def test_a_batch_of_bad_rows_alone_is_marked_without_a_call_of_the_model(baskets: Path) -> None:
    tally = Tally()
    bad = ROWS.take(pa.array([1, 3]))
    scored = scorer_of(baskets, bad_rows="mark").scored(LoadedModel(baskets), bad, tally, ["id"])
    assert scored.column("scores").null_count == 2
    assert scored.column("error").null_count == 0
    assert (tally.rows, tally.bad_rows, tally.calls) == (2, 2, 0)


def test_nulls_that_may_not_be_and_other_faults_are_marked_together(baskets: Path) -> None:
    rows = pa.concat_batches(
        [ROWS, pa.RecordBatch.from_pylist([{"id": 14, "products": None, "counts": None}], ROWS.schema)]
    )
    scorer = scorer_of(baskets, bad_rows="mark", nulls=NullPolicy({"products": "fail"}))
    scored = scorer.scored(LoadedModel(baskets), rows, Tally(), ["id"])
    assert [error is not None for error in scored.column("error").to_pylist()] == [False, True, False, True, True]
    assert "column 'products' is null" in scored.column("error")[4].as_py()


def test_the_first_bad_row_is_named_by_its_key(baskets: Path) -> None:
    model = LoadedModel(baskets)
    with pytest.raises(BadRowError, match=r"the row id=11 cannot be scored: .*the index 5000"):
        scorer_of(baskets).scored(model, ROWS, Tally(), ["id"])
    strict = scorer_of(baskets, nulls=NullPolicy({"counts": "fail"}))
    with pytest.raises(BadRowError, match=r"the row id=2 cannot be scored: column 'counts' is null"):
        strict.scored(model, BASKETS.combine_chunks().to_batches()[0], Tally(), ["id"])


def test_a_column_of_a_wrong_type_is_no_row_s_fault(baskets: Path) -> None:
    wrong = ROWS.set_column(1, "products", pa.array(["a", "b", "c", "d"]))
    with pytest.raises(ColumnError, match="column 'products' has type string"):
        scorer_of(baskets, bad_rows="mark").scored(LoadedModel(baskets), wrong, Tally(), ["id"])


def test_scores_that_would_have_a_column_twice_are_refused(tmp_path: Path) -> None:
    from data_pipelines.feature_kinds import Label

    directory = ModelDirectory.open(export_baskets(tmp_path, Label("tags", "multi_label", classes=3)))
    assert Settings(outputs=Wide()).schema(directory).names == ["0", "1", "2", "model_version"]
    clash = ModelDirectory(directory.path, directory.description, directory.fitted)
    object.__setattr__(clash, "labels", {"scores": ("a", "error", "b")})
    with pytest.raises(ScoringError, match=r"would have the columns \['error'\] twice"):
        Settings(outputs=Wide(), bad_rows="mark").schema(clash)
