"""Features and labels proposed for columns, from their measurements."""

from typing import Any

import pyarrow as pa
import pytest
from pyspark.ml.linalg import VectorUDT
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    StringType,
    StructField,
    StructType,
)

from mirrorspark.data_pipelines.features.column_facts import ColumnFacts, arrow_facts
from mirrorspark.data_pipelines.features.infer import likely_keys, propose_feature, propose_label, reason_of_label
from mirrorspark.data_pipelines.features.kinds import (
    Categorical,
    Date,
    Feature,
    FeatureSpecError,
    Label,
    MultiValued,
    Numeric,
    Ordinal,
    Sparse,
    Text,
    Vector,
)


def facts(kind: DataType, name: str = "x", *, rows: int = 10_000, distinct: int = 500, **known: Any) -> ColumnFacts:
    return ColumnFacts(name, kind, rows, distinct, **known)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (facts(DoubleType(), skewness=0.1, minimum=0.0), Numeric("x", clip="range")),
        (facts(DecimalType(10, 2), skewness=9.0, minimum=0.0), Numeric("x", log=True, clip="range")),
        (facts(DoubleType(), skewness=9.0, minimum=-1.0), Numeric("x", clip="range")),
        (facts(IntegerType(), skewness=0.1), Numeric("x", clip="range")),
        (facts(IntegerType(), distinct=7), Categorical("x")),
        (facts(LongType(), "user_id"), Categorical("user_id")),
        (facts(LongType(), "userId"), Categorical("userId")),
        (facts(LongType(), "ID"), Categorical("ID")),
        (facts(LongType(), "paid"), Numeric("paid", clip="range")),
        (facts(LongType(), "amount_paid"), Numeric("amount_paid", clip="range")),
        (facts(LongType(), "UNPAID"), Numeric("UNPAID", clip="range")),
        (facts(BooleanType(), distinct=2), Categorical("x")),
        (facts(StringType(), elements=2), Categorical("x")),
        (facts(StringType(), rows=10**8, distinct=3_000_000), Categorical("x", hash_buckets=4_194_304)),
        (facts(StringType(), distinct=9_900, elements=40), Text("x", max_length=40)),
        (facts(StringType(), distinct=9_900, elements=4_000), Text("x", max_length=200)),
        (facts(StringType(), distinct=20, elements=5), Categorical("x")),
        (facts(ArrayType(StringType()), elements=12), MultiValued("x", max_length=12)),
        (facts(ArrayType(LongType()), elements=0), MultiValued("x", max_length=1)),
        (facts(MapType(IntegerType(), DoubleType()), minimum=0, maximum=41), Sparse("x", size=42)),
        (facts(VectorUDT(), size=300_000), Sparse("x", size=300_000)),
        (facts(ArrayType(FloatType()), elements=384, size=384), Vector("x", size=384)),
        (facts(DateType()), Date("x", clip="range")),
        (facts(StringType(), distinct=9_900, elements=1, dates={"ymd": 10_000}), Date("x", clip="range")),
        (facts(StringType(), dates={"dmy": 9_500, "mdy": 4_000}), Date("x", order="dmy", clip="range")),
        (facts(StringType(), empty=5_000, dates={"time": 4_900}), Date("x", order="time", clip="range")),
        (facts(StringType(), elements=1, dates={"ymd": 9_000}), Categorical("x")),
        (facts(StringType(), elements=1, dates={"dmy": 10_000, "mdy": 10_000}), Categorical("x")),
        (facts(DoubleType(), "price in €"), Numeric("price in €", clip="range")),
        (facts(StringType(), order=("low", "mid", "high")), Ordinal("x", order=("low", "mid", "high"))),
        (facts(IntegerType(), distinct=3, order=("3", "1", "2")), Ordinal("x", order=("3", "1", "2"))),
    ],
)
def test_a_column_finds_its_kind(column: ColumnFacts, expected: Feature) -> None:
    assert propose_feature(column)[0] == expected


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (facts(DoubleType(), ""), "its name is empty; give the column a name"),
        (facts(DoubleType(), rows=0), "it has no value"),
        (facts(StringType(), distinct=1), "it has the same value everywhere"),
        (facts(StringType(), distinct=9_900, elements=1), "its 9900 different values identify single rows"),
        (facts(LongType(), "row_id", distinct=10_100), "its 10100 different values identify single rows"),
        (facts(DateType(), distinct=1), "it has the same value everywhere"),
        (facts(ArrayType(DoubleType())), "no feature takes the type array<double>"),
        (facts(MapType(StringType(), DoubleType())), "no feature takes the type map<string,double>"),
        (
            facts(MapType(IntegerType(), DoubleType()), minimum=-1, maximum=5),
            "no feature takes the type map<int,double>",
        ),
    ],
)
def test_a_column_that_can_be_no_feature_is_left_out_for_a_reason(column: ColumnFacts, reason: str) -> None:
    feature, why = propose_feature(column)
    assert feature is None
    assert why.startswith("left out: ")
    assert reason in why


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (facts(BooleanType(), distinct=2), Label("x")),
        (facts(DoubleType(), distinct=2, minimum=0, maximum=1), Label("x")),
        (facts(StringType(), distinct=9), Label("x", "multi_class")),
        (facts(StringType(), distinct=3, order=("S", "M", "L")), Label("x", "ordinal", classes=("S", "M", "L"))),
        (facts(LongType(), distinct=2, order=("3", "2", "1")), Label("x", "ordinal", classes=("3", "2", "1"))),
        (facts(LongType(), distinct=10, minimum=0, maximum=9), Label("x", "multi_class", classes=10)),
        (facts(LongType(), distinct=3, minimum=100, maximum=300), Label("x", "multi_class")),
        (facts(ArrayType(StringType())), Label("x", "multi_label")),
        (facts(DoubleType(), distinct=900, minimum=0.0, maximum=7.5), Label("x", "numeric")),
        (facts(LongType(), distinct=900, minimum=3, maximum=5000), Label("x", "numeric")),
    ],
)
def test_a_label_finds_its_kind(column: ColumnFacts, expected: Label) -> None:
    assert propose_label(column) == expected


def test_ratings_are_classes_and_the_log_names_the_way_to_make_them_numbers() -> None:
    ratings = facts(IntegerType(), "stars", distinct=5, minimum=1, maximum=5)
    assert reason_of_label(propose_label(ratings), ratings) == (
        "multi_class: it has 5 different whole numbers; if they are amounts or ratings, give "
        "{'name': 'stars', 'kind': 'numeric'} as label, or kind ordinal to learn their order"
    )
    words = facts(StringType(), "way", distinct=5)
    assert reason_of_label(propose_label(words), words) == "multi_class"


def test_the_log_shows_the_order_of_a_label() -> None:
    sizes = facts(StringType(), "size", distinct=3, order=("S", "M", "L"))
    assert reason_of_label(propose_label(sizes), sizes) == "ordinal, of classes in the table's order: S < M < L"
    many = facts(StringType(), "size", distinct=6, order=("1", "2", "3", "4", "5", "6"))
    assert reason_of_label(propose_label(many), many).endswith(": 1 < 2 < 3 < 4 < 5 < …")


def test_of_two_ordered_values_the_higher_one_is_positive_unless_a_word_says_yes() -> None:
    risk = facts(StringType(), "risk", distinct=2, order=("low", "high"))
    assert propose_label(risk, {"low": 1, "high": 9}) == Label("risk", positive="high")
    answer = facts(StringType(), "answer", distinct=2, order=("yes", "no"))
    assert propose_label(answer, {"yes": 9, "no": 1}) == Label("answer", positive="yes")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["$1,200.50", "€ 3", "12,5 €", "USD 7", "(5 EUR)", "-£2"], True),
        (["12 %", "3%", "0.5 %"], True),
        (["5 kg", "5.5km", "12 km/h", "30 min", "-4 °C"], True),
        (["1,200", "31 000 000", "1'000.5"], True),
        (["", "$5", "$6"], True),
        (["12", "01067", "7.5", "-3"], False),
        (["A12", "12B", "737-800", "3rd", "10.0.0.1", "12:30"], False),
        (["$5", "free", "on request"], False),
    ],
)
def test_numbers_with_a_currency_or_a_unit_are_named_in_the_log(texts: list[str], expected: bool) -> None:
    """F7."""
    found = arrow_facts(pa.table({"x": texts}), StructType([StructField("x", StringType())]))["x"]
    assert ("make numbers of them" in propose_feature(found)[1]) == expected


def test_the_log_says_why_dates_stay_categories_and_which_values_of_dates_are_missing() -> None:
    either = facts(StringType(), elements=1, dates={"dmy": 10_000, "mdy": 10_000})
    assert propose_feature(either)[1] == (
        "categorical, of 500 different values; its values are dates whose day and month cannot be told apart: give the "
        "feature 'x' the kind date and the order dmy or mdy"
    )
    some = facts(StringType(), elements=1, dates={"mdy": 9_700}, empty=200)
    assert propose_feature(some)[1] == (
        "date, as a number of days, written in the order mdy; 100 other values are missing ones"
    )


@pytest.mark.parametrize(
    ("values", "positive"),
    [
        ({"no": 1, "Yes": 9}, "Yes"),
        ({"<=50K": 24720, ">50K": 7841}, ">50K"),
        ({"b": 5, "a": 5}, "a"),
        ({"true": 9, "yes": 5}, "yes"),
    ],
    ids=["a word for yes", "the rarer one", "equally many", "two words for yes"],
)
def test_one_of_two_values_is_the_positive_one(values: dict[str, int], positive: str) -> None:
    assert propose_label(facts(StringType(), distinct=2), values) == Label("x", positive=positive)


@pytest.mark.parametrize(
    ("kind", "values", "positive"),
    [
        (DoubleType(), {"-1.0": 9, "1.0": 90}, "1.0"),
        (DecimalType(9, 2), {"2.00": 9, "1.00": 90}, "1.00"),
        (LongType(), {"1": 90, "2": 9}, "1"),
        (DoubleType(), {"2.0": 90, "3.0": 9}, "3.0"),
    ],
)
def test_of_two_numbers_one_is_the_positive_one(kind: DataType, values: dict[str, int], positive: str) -> None:
    assert propose_label(facts(kind, distinct=2, minimum=-1.0), values) == Label("x", positive=positive)


def test_a_label_that_cannot_be_learnt_is_refused() -> None:
    with pytest.raises(FeatureSpecError, match="label 'x' has type date; a label is a number, a class"):
        propose_label(facts(DateType()))
    with pytest.raises(FeatureSpecError, match="label 'x' has no value in any row"):
        propose_label(facts(BooleanType(), rows=0))


def test_a_column_is_a_key_by_its_name_or_because_no_model_can_learn_from_it() -> None:
    """T3: a text or an amount that is different in every row stays a feature."""
    unique = [
        facts(StringType(), "review", distinct=10_000, elements=40),
        facts(LongType(), "lot_area", distinct=10_000, skewness=0.2),
        facts(StringType(), "voucher", distinct=10_000, elements=1),
        facts(StringType(), "order no.", distinct=10_000, elements=1),
        facts(StringType(), "comment_id", distinct=10_000, elements=40),
        facts(LongType(), "orderId", distinct=10_000),
        facts(StringType(), "few", rows=20, distinct=20, elements=1),
    ]
    assert likely_keys(unique) == ["comment_id", "orderId", "voucher", "order no."]
