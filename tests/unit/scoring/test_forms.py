"""S6, S7: the forms of scores, against what NumPy and plain Python make of the same scores."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.output.forms import (
    AtLeast,
    Columns,
    Labelled,
    Long,
    Named,
    Struct,
    TopK,
    Wide,
    form_named,
    form_of,
    form_of_labels,
)

LABELS = {"scores": ("books", "toys", "music")}
OUTPUTS = {"scores": pa.array([[0.5, 0.1, 0.5], [0.2, 0.9, 0.3]], pa.list_(pa.float32()))}
SCHEMA = pa.schema([("scores", pa.list_(pa.float32()))])
CANDIDATES = {
    "candidates": pa.array([["m1", "m2"], ["m3", ""]]),
    "scores": pa.array([[2.0, 1.0], [4.0, np.finfo(np.float32).min]], pa.list_(pa.float32())),
}
CANDIDATES_SCHEMA = pa.schema([("candidates", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))])


def pairs(column: pa.Array) -> list[list[tuple[str, float]]]:
    return [[(entry["label"], round(entry["score"], 6)) for entry in row] for row in column.to_pylist()]


def test_columns_are_what_the_model_gives_and_a_struct_holds_them() -> None:
    assert Columns().shaped(OUTPUTS, LABELS).columns == OUTPUTS
    assert Struct("of_model").fields(SCHEMA, {}) == pa.schema([("of_model", pa.struct(list(SCHEMA)))])
    (column,) = Struct("of_model").shaped(OUTPUTS, {}).columns.values()
    assert column.field("scores").equals(OUTPUTS["scores"])


def test_named_has_the_best_label_a_probability_for_each_and_the_other_outputs() -> None:
    more = {**OUTPUTS, "margin": pa.array([1.0, 2.0])}
    schema = SCHEMA.append(pa.field("margin", pa.float64()))
    assert Named().fields(schema, LABELS).names == [
        "predicted_label",
        "probability_books",
        "probability_toys",
        "probability_music",
        "margin",
    ]
    columns = Named().shaped(more, LABELS).columns
    assert list(columns) == Named().fields(schema, LABELS).names
    assert columns["predicted_label"].to_pylist() == ["books", "toys"]
    assert columns["probability_music"].to_pylist() == pytest.approx([0.5, 0.3])
    assert form_named("named") == Named()


def test_labels_are_columns_where_spark_can_tell_them_apart() -> None:
    assert form_of_labels(["a", "b"]) == Named()
    assert form_of_labels(["a", "A"]) == Labelled()
    assert form_of_labels([str(number) for number in range(201)]) == Labelled()


def test_wide_has_a_column_for_each_label() -> None:
    assert Wide().fields(SCHEMA, LABELS) == pa.schema([(name, pa.float32()) for name in LABELS["scores"]])
    columns = Wide().shaped(OUTPUTS, LABELS).columns
    assert {name: np.round(column.to_pylist(), 6).tolist() for name, column in columns.items()} == {
        "books": [0.5, 0.2],
        "toys": [0.1, 0.9],
        "music": [0.5, 0.3],
    }


def test_long_has_a_row_for_each_label_and_the_row_it_comes_from() -> None:
    shaped = Long().shaped(OUTPUTS, LABELS)
    assert shaped.rows is not None
    assert shaped.rows.tolist() == [0, 0, 0, 1, 1, 1]
    assert shaped.columns["label"].to_pylist() == ["books", "toys", "music"] * 2
    assert np.round(shaped.columns["score"].to_pylist(), 6).tolist() == [0.5, 0.1, 0.5, 0.2, 0.9, 0.3]


def test_the_best_labels_come_best_first_and_of_equal_scores_the_earlier_one() -> None:
    (column,) = TopK(2).shaped(OUTPUTS, LABELS).columns.values()
    assert pairs(column) == [[("books", 0.5), ("music", 0.5)], [("toys", 0.9), ("music", 0.3)]]
    (column,) = TopK(9).shaped(OUTPUTS, LABELS).columns.values()
    assert [len(row) for row in pairs(column)] == [3, 3]


def test_the_predicted_label_is_the_first_of_the_best_beside_the_outputs() -> None:
    numbers = [[0.5, 0.1, 0.5], [np.nan, 0.2, np.nan], [np.nan] * 3, [0.1, 0.2, 0.3]]
    outputs = {"scores": pa.array(numbers, pa.list_(pa.float32()))}
    columns = Labelled().shaped(outputs, LABELS).columns
    assert columns["predicted_label"].to_pylist() == ["books", "toys", None, "music"]
    assert columns["scores"] is outputs["scores"]
    assert Labelled().shaped(CANDIDATES, {}).columns["predicted_label"].to_pylist() == ["m1", "m3"]
    with pytest.raises(ScoringError, match="an output 'predicted_label'"):
        Labelled().fields(pa.schema([*SCHEMA, ("predicted_label", pa.string())]), LABELS)


def test_the_labels_above_a_threshold_come_best_first_and_may_be_none() -> None:
    """The threshold itself is above: 0.3 as a float32 is not below 0.3."""
    (column,) = AtLeast(0.3).shaped(OUTPUTS, LABELS).columns.values()
    assert pairs(column) == [[("books", 0.5), ("music", 0.5)], [("toys", 0.9), ("music", 0.3)]]
    (column,) = AtLeast(0.6).shaped(OUTPUTS, LABELS).columns.values()
    assert pairs(column) == [[], [("toys", 0.9)]]


def test_candidates_are_labels_and_places_that_none_fills_are_left_out() -> None:
    shaped = Long().shaped(CANDIDATES, {})
    assert shaped.rows is not None
    assert (shaped.rows.tolist(), shaped.columns["label"].to_pylist()) == ([0, 0, 1], ["m1", "m2", "m3"])
    (column,) = TopK(1).shaped(CANDIDATES, {}).columns.values()
    assert pairs(column) == [[("m1", 2.0)], [("m3", 4.0)]]


@given(
    st.integers(1, 6).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0, np.nan]), min_size=width, max_size=width), max_size=5
        )
    ),
    st.integers(1, 7),
)
def test_the_best_are_those_of_a_full_sort(rows: list[list[float]], k: int) -> None:
    names = [f"l{place}" for place in range(len(rows[0]) if rows else 3)]
    outputs = {"scores": pa.array(rows, pa.list_(pa.float32()))}
    (column,) = TopK(k).shaped(outputs, {"scores": names}).columns.values()
    expected = [
        sorted((place for place, score in enumerate(row) if score == score), key=lambda place: (-row[place], place))[:k]
        for row in rows
    ]
    assert [[entry["label"] for entry in row] for row in column.to_pylist()] == [
        [names[place] for place in places] for places in expected
    ]


@pytest.mark.parametrize("form", [Columns(), Struct(), Labelled(), Wide(), Long(), TopK(2), AtLeast(0.4)], ids=repr)
@pytest.mark.parametrize("rows", [0, 2])
def test_columns_have_the_types_that_were_announced(form: Columns, rows: int) -> None:
    outputs = {name: column.slice(0, rows) for name, column in OUTPUTS.items()}
    columns = form.shaped(outputs, LABELS).columns
    assert {name: column.type for name, column in columns.items()} == {
        field.name: field.type for field in form.fields(SCHEMA, LABELS)
    }


@pytest.mark.parametrize("form", [Labelled(), Wide(), Long(), TopK(2), AtLeast(0.4)], ids=repr)
def test_slices_of_a_larger_array_have_their_own_rows(form: Columns) -> None:
    whole, part = form.shaped(OUTPUTS, LABELS), form.shaped({"scores": OUTPUTS["scores"].slice(1)}, LABELS)
    of_part = [column.to_pylist() for column in part.columns.values()]
    kept = 3 if whole.rows is not None else 1
    assert of_part == [column.to_pylist()[-kept:] for column in whole.columns.values()]


@pytest.mark.parametrize("form", [Wide(), Long(), TopK(2), AtLeast(0.3)], ids=repr)
def test_scores_of_labels_are_float_of_models_that_give_double_too(form: Columns) -> None:
    """S13: as LightGBM and linear models do."""
    of_double = {"scores": OUTPUTS["scores"].cast(pa.list_(pa.float64()))}
    assert form.shaped(of_double, LABELS).columns == form.shaped(OUTPUTS, LABELS).columns


def test_outputs_without_labels_have_no_labelled_form() -> None:
    score = pa.schema([("score", pa.float32())])
    for form in (Labelled(), Wide(), Long(), TopK(3), AtLeast(0.5)):
        with pytest.raises(ScoringError, match=r"of \{'score': 'float'\} no output has labels.*use columns"):
            form.fields(score, {})
    with pytest.raises(ScoringError, match="no output has labels that hold for all rows"):
        Wide().fields(CANDIDATES_SCHEMA, {})
    with pytest.raises(ScoringError, match=r"labels \['a'\] twice; use the long form"):
        Wide().fields(SCHEMA, {"scores": ("a", "b", "a")})


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("columns", Columns()),
        ("struct", Struct()),
        ("wide", Wide()),
        ("long", Long()),
        ("top:3", TopK(3)),
        ("at_least:0.25", AtLeast(0.25)),
        ("labelled", Labelled()),
    ],
)
def test_forms_have_names(text: str, form: Columns) -> None:
    assert form_named(text) == form


def test_a_form_may_be_given_by_its_name_and_nothing_else_is_one() -> None:
    assert form_of("top:3") == form_of(TopK(3)) == TopK(3)
    for wrong in (Long, 3, None, "best"):
        with pytest.raises(ScoringError, match="columns, struct, labelled, named, wide"):
            form_of(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "best", "top", "top:x", "top:0", "wide:3", "at_least:nan", "at_least:"])
def test_an_unknown_form_of_output_is_refused(text: str) -> None:
    with pytest.raises(ScoringError):
        form_named(text)
