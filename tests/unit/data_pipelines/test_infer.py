"""Features and labels proposed for columns, from their measurements."""

from pathlib import Path
from typing import Any

import numpy as np
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

from mirrorspark.data_pipelines.any_table import in_memory
from mirrorspark.data_pipelines.features.column_facts import ColumnFacts, arrow_facts
from mirrorspark.data_pipelines.features.infer import (
    encoded_spec,
    likely_keys,
    propose_feature,
    propose_label,
    reason_of_label,
)
from mirrorspark.data_pipelines.features.infer_ordinals import Evidence, Form, decided
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
    TokenNumber,
    Vector,
)
from mirrorspark.data_pipelines.features.spec import FeatureSpec


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


def evidence(values: int = 10, **known: Any) -> Evidence:
    """Return that of whole numbers by whose order alone the label rises, but for what is ``known``."""
    return Evidence(
        values, **{"rows": 200.0, "is_even": True, "spread": 20.0, "bends": 1.0, "neighbours": 0.05} | known
    )


@pytest.mark.parametrize(
    ("name", "found", "form", "reason"),
    [
        ("rooms", evidence(), Form.NUMBER, "by their order alone"),
        ("rooms", evidence(bends=9.0), Form.BOTH, "the order of its 10 different whole numbers, and on single ones"),
        ("floor", evidence(bends=9.0, neighbours=1.1), Form.CATEGORY, "but not on their order"),
        ("roomsLevel", evidence(bends=9.0, neighbours=1.1), Form.BOTH, "perhaps by their order"),
        ("floor", evidence(bends=9.0, neighbours=0.7), Form.BOTH, "perhaps by their order"),
        ("floor", evidence(4, bends=9.0, neighbours=1.1), Form.BOTH, "perhaps by their order"),
        ("floor", evidence(spread=1.1), Form.NUMBER, "follow each other, and the label hardly differs"),
        ("floor", evidence(spread=1.1, is_even=False), Form.BOTH, "have gaps, and the label hardly differs"),
        ("floor", evidence(rows=2.0, bends=9.0), Form.NUMBER, "hardly repeat"),
        ("shop_id", evidence(rows=2.0), Form.BOTH, "that of a code, but the label depends on the order"),
        ("POSTAL CODE", evidence(bends=9.0, neighbours=0.7), Form.CATEGORY, "its name is that of a code"),
        ("shopType", evidence(4), Form.CATEGORY, "its name is that of a code"),
    ],
)
def test_few_whole_numbers_are_a_number_a_category_or_both(name: str, found: Evidence, form: Form, reason: str) -> None:
    assert decided(name, found)[0] is form
    assert reason in decided(name, found)[1]


@pytest.mark.parametrize("kind", ["binary", "numeric", "multi_class", "ordinal"])
def test_the_label_decides_about_few_whole_numbers_with_a_reason_that_is_saved(kind: str, tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(2), 6_000
    rating, hour, floor, noise, shop = (rng.integers(0, most, rows) for most in (10, 24, 20, 5, 9))
    score = rating / 3 + 2 * np.sin(hour / 4) + 2 * (floor % 2) + rng.normal(size=rows)
    label = {
        "binary": (score > np.median(score)).astype(int),
        "numeric": score,
        "multi_class": np.array(["low", "mid", "high"])[np.digitize(score, np.quantile(score, [0.3, 0.6]))],
        "ordinal": np.digitize(score, np.quantile(score, [0.3, 0.6])),
    }[kind]
    columns = {"id": np.arange(rows), "rating": rating, "hour": hour, "floor": floor, "noise": noise, "shop_id": shop}
    table = pa.table(columns | {"flag": rng.integers(0, 2, rows), "late": label})
    names = [name for name in columns if name != "id"] + ["flag"]
    classes = ("0", "1", "2") if kind == "ordinal" else None
    known = FeatureSpec(tuple(map(Categorical, names)), Label("late", kind, classes=classes), ("id",))  # type: ignore[arg-type]
    spec = encoded_spec(in_memory(table), known)
    assert spec.features == (
        Numeric("rating", clip="range"),
        Categorical("hour"),
        TokenNumber("hour as a number", of="hour", clip="range"),
        Categorical("floor"),
        Numeric("noise", clip="range"),
        Categorical("shop_id"),
        Categorical("flag"),
    )
    assert set(spec.reasons) == {*names, "hour as a number"} - {"flag"}
    shown = str(spec).splitlines()[1]
    assert shown.split(maxsplit=4) == ["rating", "numeric", "clip", "range", spec.reasons["rating"]]
    spec.save(tmp_path / "spec.yaml")
    assert f"  # {spec.reasons['floor']}\n  floor:\n    kind: categorical\n" in (tmp_path / "spec.yaml").read_text()
    assert FeatureSpec.load(tmp_path / "spec.yaml") == spec
    shuffled = table.take(pa.array(rng.permutation(rows)))
    again = encoded_spec(in_memory(shuffled), known)
    assert (again, again.reasons) == (spec, spec.reasons)
