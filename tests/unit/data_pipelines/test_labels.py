"""Labels of every kind: their encoding, and the values that are refused (F8)."""

import re
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.candidate_lists import candidate_counts, candidates_of
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Categorical, FeatureSpecError, Label, Numeric
from mirrorspark.data_pipelines.features.labels import LabelError, binary_label, check_label, encode_label
from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import RaggedIds
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary


def fitted(label: Label) -> FittedFeatures:
    """Return features whose label, where it is learnt, has the classes b = 0 and a = 1."""
    spec = FeatureSpec((Numeric("x", impute=0, standardise=False),), label, ("id",))
    return FittedFeatures(spec, {label.name: Vocabulary(pa.array(["b", "a"]), pa.array([2, 1]))}, {})


def encoded(label: Label, values: pa.Array) -> np.ndarray:
    found = encode_label(pa.table({label.name: values}), fitted(label))
    assert isinstance(found, np.ndarray)
    return found


def packed(label: Label, values: pa.Array) -> list[list[float]]:
    found = encode_label(pa.table({label.name: values}), fitted(label))
    assert isinstance(found, RaggedIds)
    return found.multi_hot(fitted(label).classes).tolist()


@pytest.mark.parametrize("text", [pa.string(), pa.large_string()], ids=str)
def test_missing_candidates_are_not_among_those_of_lists(text: pa.DataType) -> None:
    """A null may lie over values, as in lists that Polars chooses between."""
    values, is_null = pa.array(["a", "", "b", None, "a"], text), pa.array([True, False, False])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 4, 5], pa.int32()), values, mask=is_null)
    candidates, row = candidates_of(lists)
    assert (candidates.to_pylist(), row.to_pylist()) == (["b", "a"], [1, 2])
    assert candidate_counts(lists).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "values",
    [pa.array([0, 1], pa.int8()), pa.array([0.0, 1.0], pa.float64()), pa.array([False, True])],
    ids=["integers", "doubles", "booleans"],
)
def test_a_label_is_any_number_or_a_boolean(values: pa.Array) -> None:
    label = encoded(Label("late"), values)
    assert (label.dtype, label.tolist()) == (np.float32, [0.0, 1.0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([0, 2, None]), "label 'late' has the value 2; a binary label is 0 or 1: filter such rows"),
        (pa.array([1, None]), "label 'late' has the value None"),
        (pa.array([0.0, float("nan")]), "label 'late' has the value nan"),
        (pa.array([0, 2**40]), f"label 'late' has the value {2**40}"),
        (pa.array(["0", "1"]), "label 'late' has type string; a binary label is a number or boolean"),
    ],
    ids=["two", "null", "NaN", "huge", "text"],
)
def test_a_label_that_is_neither_0_nor_1_is_shown(values: pa.Array, message: str) -> None:
    with pytest.raises(LabelError, match=re.escape(message)):
        binary_label(pa.table({"late": values}), "late")


def test_of_two_values_the_positive_one_counts() -> None:
    assert encoded(Label("paid", positive="yes"), pa.array(["no", "yes", "no"])).tolist() == [0.0, 1.0, 0.0]
    assert encoded(Label("paid", positive="2"), pa.array([1, 2])).tolist() == [0.0, 1.0]
    with pytest.raises(LabelError, match="label 'paid' has a null"):
        encoded(Label("paid", positive="yes"), pa.array(["no", None]))
    with pytest.raises(FeatureSpecError, match="positive is 'a'; give the text of one of the two values"):
        Label("paid", "multi_class", positive="a")


@pytest.mark.parametrize(
    ("values", "positive"),
    [
        (pa.array([-1.0, 1.0]), "1.0"),
        (pa.array([2.0, 1.0], pa.float32()), "1"),
        (pa.array([0.2, 0.1], pa.float32()), "0.1"),
        (pa.array([Decimal("2.00"), Decimal("1.00")], pa.decimal128(9, 2)), "1.0"),
        (pa.array([2, 1], pa.int8()), "1.0"),
        (pa.array([2**53, 2**53 + 1]), str(2**53 + 1)),
        (pa.array([5, 10**10]), "1.0E10"),
        (pa.array([5, 10**10], pa.float64()), "1.0E10"),
        (pa.array([False, True]), "true"),
    ],
)
def test_the_positive_value_of_numbers_is_a_number_however_it_is_written(values: pa.Array, positive: str) -> None:
    """T3: Spark's text of a double is another than Arrow's."""
    assert encoded(Label("paid", positive=positive), values).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("positive", ["yes", "1.5", "300", "nan", "inf", "0.001"])
@pytest.mark.parametrize(
    "values",
    [pa.array([2, 1], pa.int8()), pa.array([2.0, 1.0]), pa.array([Decimal(2), Decimal(1)])],
    ids=["integers", "doubles", "decimals"],
)
def test_no_row_has_a_positive_value_that_its_type_does_not_have(values: pa.Array, positive: str) -> None:
    assert encoded(Label("paid", positive=positive), values).tolist() == [0.0, 0.0]


def test_a_number_is_learnt_as_it_is() -> None:
    label = encoded(Label("price", "numeric"), pa.array([1, 250], pa.int16()))
    assert (label.dtype, label.tolist()) == (np.float32, [1.0, 250.0])
    for values, shown in (
        (pa.array([1.0, None]), "None"),
        (pa.array([float("nan")]), "nan"),
        (pa.array([1e39]), "1e+39"),
    ):
        with pytest.raises(LabelError, match=f"label 'price' has the value {re.escape(shown)}, which is not a finite"):
            encoded(Label("price", "numeric"), values)
    with pytest.raises(LabelError, match="label 'price' has type string; a label of kind numeric is a number: cast it"):
        encoded(Label("price", "numeric"), pa.array(["1"]))


def test_a_candidate_is_no_label_of_its_own() -> None:
    spec = FeatureSpec((Categorical("movie"),), Label("movie", "candidate"), ("id",))
    assert encode_label(pa.table({"movie": ["a"]}), FittedFeatures(spec, {}, {})) is None


def test_the_rating_of_a_candidate_is_the_label() -> None:
    spec = FeatureSpec((Categorical("movie"),), Label("movie", "candidate", rating="stars"), ("id",))
    table = pa.table({"movie": ["a", "b"], "stars": [4, 3]})
    label = encode_label(table, FittedFeatures(spec, {}, {}))
    assert isinstance(label, np.ndarray)
    assert (label.dtype, label.tolist()) == (np.float32, [4.0, 3.0])
    check_label(table.slice(0, 0), spec)
    for column, message in ((pa.nulls(2), "label 'stars' has the value None"), (["x", "y"], "label 'stars' has type")):
        with pytest.raises(LabelError, match=message):
            encode_label(table.set_column(1, "stars", column), FittedFeatures(spec, {}, {}))


def test_classes_are_numbers_or_learnt_from_tokens() -> None:
    by_number = encoded(Label("day", "multi_class", classes=7), pa.array([6, 0], pa.int8()))
    assert (by_number.dtype, by_number.tolist()) == (np.int64, [6, 0])
    assert encoded(Label("day", "multi_class"), pa.array(["a", "b", "a"])).tolist() == [1, 0, 1]


def test_lists_of_classes_are_packed() -> None:
    numbers = pa.array([[2, 0], [], [1, 1]], pa.list_(pa.int32()))
    assert packed(Label("topics", "multi_label", classes=3), numbers) == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    tokens = pa.array([["a"], [], ["b", "a"]], pa.list_(pa.string()))
    assert packed(Label("topics", "multi_label"), tokens) == [[0, 1], [0, 0], [1, 1]]


def test_a_class_that_no_training_row_has_is_left_out_of_a_list() -> None:
    tokens = pa.array([["new", "a"], ["new"]], pa.list_(pa.string()))
    assert packed(Label("topics", "multi_label"), tokens) == [[0, 1], [0, 0]]


CLASS, CLASSES = Label("y", "multi_class", classes=3), Label("y", "multi_label", classes=3)
TOKEN, TOKENS = Label("y", "multi_class"), Label("y", "multi_label")


@pytest.mark.parametrize(
    ("label", "values", "message"),
    [
        (
            CLASS,
            pa.array([0, 3]),
            "label 'y' has the value 3; its 3 classes are 0 to 2: correct the column or the spec",
        ),
        (CLASS, pa.array([-1]), "label 'y' has the value -1; its 3 classes"),
        (CLASS, pa.array([None, 1]), "label 'y' has a null or empty value; it names no class: filter such rows"),
        (CLASS, pa.array(["a"]), "label 'y' has type string; with 3 classes it is a whole number: cast it, or leave"),
        (CLASS, pa.array([1.0]), "label 'y' has type double; with 3 classes it is a whole number"),
        (CLASSES, pa.array([1]), "label 'y' has type int64; with 3 classes it is an array of whole numbers"),
        (CLASSES, pa.array([[3]]), "label 'y' has the value 3"),
        (CLASSES, pa.array([[0, None]]), "label 'y' has a null or empty value"),
        (CLASSES, pa.array([[0], None]), "label 'y' has a null; give a row without any class an empty list"),
        (TOKEN, pa.array(["a", "new"]), "label 'y' has the value 'new', which no training row has; filter such rows"),
        (TOKEN, pa.array([""]), "label 'y' has a null or empty value"),
        (TOKEN, pa.array([["a"]]), "label 'y' of kind multi_class: column 'y' has type list<item: string>"),
        (TOKENS, pa.array(["a"]), "label 'y' of kind multi_label: column 'y' has type string"),
        (TOKENS, pa.array([["a"], None]), "label 'y' has a null; give a row without any class"),
    ],
)
def test_a_label_that_names_no_class_is_shown(label: Label, values: pa.Array, message: str) -> None:
    with pytest.raises(LabelError, match=re.escape(message)):
        encode_label(pa.table({"y": values}), fitted(label))


@pytest.mark.parametrize("label", [Label("y"), CLASS, CLASSES, TOKENS], ids=lambda label: label.kind)
def test_a_wrong_type_is_found_without_any_row(label: Label) -> None:
    with pytest.raises(LabelError, match="has type string"):
        check_label(pa.table({"y": pa.array([], pa.string())}), fitted(label).spec)


def test_a_missing_label_is_named() -> None:
    with pytest.raises(ColumnError, match=r"column 'y' is missing; the table has \['id'\]"):
        encode_label(pa.table({"id": [1]}), fitted(CLASS))


SIZE = Label("size", "ordinal", classes=("S", "M", "L"))


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["L", "S", "M", "S"]),
        pa.array(["L", "S", "M", "S"], pa.large_string()),
    ],
    ids=["text", "long text"],
)
def test_an_ordinal_label_becomes_its_rank_however_often_a_class_comes(values: pa.Array) -> None:
    label = encoded(SIZE, values)
    assert (label.dtype, label.tolist()) == (np.int64, [2, 0, 1, 0])
    assert (fitted(SIZE).classes, fitted(SIZE).class_names) == (3, ("S", "M", "L"))
    assert encoded(Label("stars", "ordinal", classes=("3", "1")), pa.array([1, 3])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            pa.array(["S", "XL"]),
            "label 'size' has the value 'XL', which is not one of its classes ['S', 'M', 'L']; filter such rows out of "
            "the table, or add it to the label's classes, at its place in their order",
        ),
        (pa.array(["S", None]), "label 'size' has a null or empty value; it names no class"),
        (pa.array([[1]]), "label 'size' of kind ordinal: column 'size' has type list<item: int64>"),
    ],
    ids=["another", "null", "a list"],
)
def test_a_value_that_is_not_a_class_of_an_ordinal_label_is_shown(values: pa.Array, message: str) -> None:
    with pytest.raises(LabelError, match=re.escape(message)):
        encoded(SIZE, values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "ordinal"}, "'size': classes None is not a list of two or more texts; give all values as text"),
        ({"kind": "ordinal", "classes": 3}, "'size': classes 3 is not a list"),
        ({"kind": "ordinal", "classes": (1, 2)}, "'size': classes (1, 2) is not a list of two or more texts"),
        ({"kind": "ordinal", "classes": ("S", "M", "S")}, "'size': classes has ['S'] twice"),
        ({"kind": "multi_class", "classes": ("S", "M")}, "classes ['S', 'M'] is a list, which is for the kind ordinal"),
    ],
)
def test_the_classes_of_an_ordinal_label_are_its_order(options: dict[str, object], message: str) -> None:
    with pytest.raises(FeatureSpecError, match=re.escape(message)):
        Label("size", **options)  # type: ignore[arg-type]
