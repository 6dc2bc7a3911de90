"""T8, H9: the causes of predictions, for a model whose answer is known."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.training.results.evaluation import explanation as explain_module
from mirrorspark.training.results.evaluation.explanation import (
    Explanation,
    ExplanationError,
    explain,
    explain_on_kept_rows,
)

SPEC = FeatureSpec.from_dict(
    {
        "label": "late",
        "keys": "ride",
        "features": {"town": {"kind": "categorical"}, "distance": {"kind": "numeric"}, "noise": {"kind": "numeric"}},
    }
)
ROUNDS = 200
ROWS = pa.table(
    {
        "ride": range(4 * ROUNDS),
        "town": ["here", "there", "here", "there"] * ROUNDS,
        "distance": pa.array([0.0, 0.0, 1.0, 1.0] * ROUNDS),
        "noise": pa.array(np.random.default_rng(1).normal(size=4 * ROUNDS)),
        "late": [0, 1, 0, 1] * ROUNDS,
    }
)


def knows_the_town(rows: pa.Table) -> np.ndarray:
    """Return the right answer most clearly for short distances."""
    is_there = rows["town"].to_numpy() == "there"
    return np.where(is_there, 0.9, 0.1) - np.where(is_there, 0.2, -0.2) * rows["distance"].to_numpy()


def test_the_feature_that_the_model_reads_is_the_important_one_and_the_ignored_one_is_not() -> None:
    found = explain(ROWS, FittedFeatures(SPEC, {}, {}), knows_the_town)
    importance = found.importance.set_index("feature")["importance"]
    assert list(importance.index) == ["town", "distance", "noise"]
    assert importance["town"] > 0.5 > importance["distance"]
    assert importance["noise"] == 0
    town = found.dependence["town"].set_index("value")["prediction"]
    assert town["there"] == pytest.approx(0.8)
    assert town["here"] == pytest.approx(0.2)
    assert list(found.dependence["distance"]["value"]) == [0.0, 1.0]
    slices = found.slices.set_index("feature")
    assert set(slices.loc["town", "value"]) == {"here", "there"}
    assert list(slices.loc["distance", "value"]) == ["1.0", "0.0"]  # the worst first
    assert (slices.loc[["town", "distance"], "rows"] == 2 * ROUNDS).all()
    assert len(slices.loc["noise"]) == 5
    assert (slices.loc["noise", "rows"] == 4 * ROUNDS / 5).all()
    assert slices.loc["noise", "value"].str.fullmatch(r"\(-?\d\.\d+, -?\d\.\d+]").all()
    assert found.worst.loc[0, "loss"] == pytest.approx(-np.log(0.7))
    assert list(found.worst.columns) == ["ride", "label", "prediction", "loss", "town", "distance", "noise"]
    assert set(found.figures) == {"importance", "dependence"}
    assert found._repr_html_().count("<svg") == 2
    assert str(found).startswith(f"What the predictions depend on ({found.rows:,} test rows):\n")
    assert "\n\nSlices with the largest loss:\n" in str(found)


def test_of_several_classes_the_names_and_the_share_of_right_predictions_are_shown() -> None:
    label = Label("way", "multi_class")
    spec = FeatureSpec((Categorical("town"),), label, ("ride",))
    features = FittedFeatures(spec, {"way": Vocabulary(pa.array(["road", "rail", "sea"]), pa.array([3, 2, 1]))}, {})
    ways = {"here": ["sea", "sea", "rail", "road"], "there": ["road", "rail", "rail", "rail"]}
    rows = pa.table(
        {
            "ride": range(8 * ROUNDS),
            "town": [town for town, found in ways.items() for _ in found] * ROUNDS,
            "way": [way for found in ways.values() for way in found] * ROUNDS,
        }
    )

    def by_town(rows: pa.Table) -> np.ndarray:
        return np.where((rows["town"].to_numpy() == "here")[:, None], [0.1, 0.2, 0.7], [0.05, 0.9, 0.05])

    found = explain(rows, features, by_town, repeats=1)
    slices = found.slices.set_index("value")
    assert list(slices.columns) == ["feature", "rows", "label", "prediction", "right", "loss"]
    assert list(slices.loc["here", ["label", "prediction", "right"]]) == ["sea", "sea", 0.5]
    assert list(slices.loc["there", ["label", "prediction", "right"]]) == ["rail", "rail", 0.75]
    assert list(found.worst.loc[0, ["label", "prediction"]]) == ["road", "rail"]
    of_classes = found.dependence["town"].set_index("value")
    assert list(of_classes) == ["road", "rail", "sea"]
    assert list(of_classes.loc["here"]) == pytest.approx([0.1, 0.2, 0.7])
    assert set(found.figures) == {"importance", "dependence"}
    assert "<td>sea</td>" in found._repr_html_()


def test_what_cannot_be_explained_is_said() -> None:
    features = FittedFeatures(SPEC, {}, {})
    with pytest.raises(ExplanationError, match="no test rows"):
        explain(ROWS.slice(0, 0), features, knows_the_town)
    candidates = FeatureSpec.from_dict(
        {
            "label": {"name": "item", "kind": "candidate"},
            "keys": "ride",
            "features": {"item": {"kind": "categorical"}, "town": {"kind": "categorical"}},
        }
    )
    with pytest.raises(ExplanationError, match="label of kind candidate cannot be explained"):
        explain(ROWS, FittedFeatures(candidates, {}, {}), knows_the_town)


def test_values_of_few_rows_are_no_slice() -> None:
    rows = ROWS.slice(0, 100).set_column(1, "town", pa.array(["rare"] * 29 + ["often"] * 70 + [None]))
    found = explain(rows, FittedFeatures(SPEC, {}, {}), knows_the_town, repeats=1)
    assert list(found.slices.set_index("feature").loc[["town"], "value"]) == ["often"]
    none = explain(rows.slice(0, 20), FittedFeatures(SPEC, {}, {}), knows_the_town, repeats=1)
    assert none.slices.empty
    assert "label" in none.slices


def test_after_a_training_the_kept_rows_are_explained_and_the_result_survives_its_file(tmp_path: Path) -> None:
    features = FittedFeatures(SPEC, {}, {})
    found = explain_on_kept_rows(ROWS, features, knows_the_town)
    assert found is not None
    found.save(tmp_path / "explanation.json")
    again = Explanation.load(tmp_path / "explanation.json")
    assert again is not None
    for name in ("importance", "slices", "worst"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name), check_dtype=False)
    assert set(again.dependence) == set(found.dependence)
    assert (again.loss, again.rows) == ("log loss", 4 * ROUNDS)
    assert again._repr_html_() == found._repr_html_()
    assert Explanation.load(tmp_path / "none.json") is None


def test_what_would_take_minutes_or_cannot_be_explained_is_left_out_after_a_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = FittedFeatures(SPEC, {}, {})
    assert explain_on_kept_rows(None, features, knows_the_town) is None
    assert explain_on_kept_rows(ROWS.slice(0, 0), features, knows_the_town) is None
    candidate = FeatureSpec((Categorical("town"), Categorical("way")), Label("way", "candidate"), ("ride",))
    assert explain_on_kept_rows(ROWS, FittedFeatures(candidate, {}, {}), knows_the_town) is None
    monkeypatch.setattr(explain_module, "MOST_FEATURES", 2)
    assert explain_on_kept_rows(ROWS, features, knows_the_town) is None


def test_a_list_a_time_and_a_column_named_label_are_kept_as_they_are_shown(tmp_path: Path) -> None:
    spec = FeatureSpec(
        (Categorical("town"), MultiValued("stops", max_length=2), Numeric("label")), Label("late"), ("ride",)
    )
    rows = pa.table(
        {
            "ride": pa.array([datetime(2026, 1, day) for day in range(1, 5)]),
            "town": ["here", "there", None, "here"],
            "stops": [["a"], [], None, ["b", "c"]],
            "label": [0.5, 1.5, None, 2.5],
            "late": [0, 1, 0, 1],
        }
    )
    found = explain(rows, FittedFeatures(spec, {}, {}), lambda table: np.full(table.num_rows, 0.4))
    found.save(tmp_path / "explanation.json")
    again = Explanation.load(tmp_path / "explanation.json")
    assert again is not None
    assert list(again.worst.columns) == list(found.worst.columns)
    assert "2026-01-02" in again._repr_html_()


def test_numbers_beyond_the_precision_of_floats_and_infinite_ones_have_values_and_slices() -> None:
    ids = pa.chunked_array([[2**60 + number for number in range(50)]])
    assert set(explain_module._grid(ids)) <= set(ids.to_pylist())
    # Of an amount that most rows lack, the others are shown as well.
    mostly_0 = pa.chunked_array([[0] * 900, [*range(1, 101)]])
    assert explain_module._grid(mostly_0)[0] == 0
    assert len(explain_module._grid(mostly_0)) == 16
    numbers = pa.chunked_array([[*map(float, range(40)), *[np.inf] * 10]])
    slices = explain_module._sliced(numbers, SPEC["distance"])
    assert slices.isna().sum() == 10
    assert slices.nunique() == 5
