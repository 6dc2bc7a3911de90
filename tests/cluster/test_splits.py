"""Rows are split by time or by key, the same way each time (F10)."""

from collections import Counter
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pyspark.errors import PySparkException
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.features.kinds import Label
from mirrorspark.data_pipelines.quality.missing_labels import without_null_labels
from mirrorspark.data_pipelines.quality.splits import SplitError, default_split, key_fraction, random_split, time_split

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

FIRST = datetime(2024, 1, 1)


def days(spark: "SparkSession", count: int = 10) -> "DataFrame":
    """Return one row per day from 1 January 2024 on, its time in several types."""
    rows = [
        (n, FIRST + timedelta(days=n), (FIRST + timedelta(days=n)).date(), f"{FIRST + timedelta(days=n):%Y-%m-%d}")
        for n in range(count)
    ]
    return spark.createDataFrame(rows, "n int, at timestamp, day date, text string")


def splits_of(df: "DataFrame") -> dict[int, str]:
    return {row.n: row.split for row in df.select("n", "split").collect()}


def test_a_split_by_time_is_the_same_for_every_type_of_time(spark: "SparkSession") -> None:
    expected = {n: "train" if n < 6 else "validation" if n < 8 else "test" for n in range(10)}
    cases: list[tuple[str, Any, Any]] = [
        ("at", datetime(2024, 1, 7), datetime(2024, 1, 9)),
        ("at", "2024-01-07", "2024-01-09"),
        ("day", date(2024, 1, 7), date(2024, 1, 9)),
        ("text", "2024-01-07", "2024-01-09"),
        ("n", 6, 8),
    ]
    for column, validation, test in cases:
        assert splits_of(time_split(days(spark), column, validation=validation, test=test)) == expected, column


def test_a_gap_leaves_out_what_lies_just_before_either_moment(spark: "SparkSession") -> None:
    expected = {n: split for n, split in enumerate(["train"] * 4 + [""] * 2 + ["validation"] * 2) if split}
    expected |= {10: "test", 11: "test"}
    df = days(spark, 12)
    for column, validation, test, gap in (
        ("at", "2024-01-07", "2024-01-11", timedelta(days=2)),
        ("day", "2024-01-07", "2024-01-11", timedelta(days=2)),
        ("n", 6, 10, 2),
    ):
        assert splits_of(time_split(df, column, validation=validation, test=test, gap=gap)) == expected, column


def test_a_row_without_time_fails_instead_of_going_anywhere(spark: "SparkSession") -> None:
    df = days(spark).withColumn("at", F.when(F.col("n") != 3, F.col("at")))
    for gap in (None, timedelta(days=1)):
        split = time_split(df, "at", validation="2024-01-07", test="2024-01-09", gap=gap)
        with pytest.raises(PySparkException, match="column 'at' is null"):
            split.collect()


def test_a_split_that_cannot_be_made_is_refused(spark: "SparkSession") -> None:
    df = days(spark)
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: time_split(df, "when", validation=1, test=2), "'when' is missing"),
        (lambda: time_split(df, "at", validation="soon", test="2024-01-09"), "'soon' is not a timestamp"),
        (lambda: time_split(df, "n", validation=8, test=8), "test 8 is not after validation 8"),
        (lambda: time_split(df, "n", validation=6, test=8, gap=timedelta(days=1)), "give it in their unit"),
        (lambda: time_split(df, "at", validation="2024-01-07", test="2024-01-09", gap=3), "use a timedelta"),
        (lambda: time_split(df.withColumn("split", F.lit("")), "n", validation=6, test=8), "has a column 'split'"),
        (lambda: time_split(df.select(F.array("n").alias("n")), "n", validation=6, test=8), "no order in time"),
        (lambda: random_split(df, "when"), r"\['when'\] cannot be used"),
        (lambda: random_split(df, "N"), r"\['N'\] cannot be used.*\(did you mean 'n'\? Upper and lower case count\)"),
        (lambda: random_split(df, "n", shares={"train": 0.5, "dev": 0.5}), r"split \['dev'\] is unknown"),
        (lambda: random_split(df, "n", shares={"train": 0.5, "test": 0.6}), "sum of 1"),
    ]
    for make, message in refused:
        with pytest.raises(SplitError, match=message):
            make()


def test_a_random_split_goes_by_the_key_and_nothing_else(spark: "SparkSession") -> None:
    df = spark.range(3_000).select((F.col("id") % 1_000).alias("n"), F.col("id").alias("row"))
    first = random_split(df, "n", seed=7)
    by_row = {row.row: (row.n, row.split) for row in first.collect()}
    # Each customer's three rows share a split.
    assert all(by_row[row] == by_row[row + 1_000] == by_row[row + 2_000] for row in range(1_000))
    counts = Counter(split for _, split in by_row.values())
    # 1,000 customers: three standard deviations are 38 customers of the 800, 29 of either 100.
    assert abs(counts["train"] / 3 - 800) < 38
    assert abs(counts["validation"] / 3 - 100) < 29
    assert abs(counts["test"] / 3 - 100) < 29
    other_order = random_split(
        df.orderBy(F.desc("row")).repartition(5).withColumn("n", F.col("n").cast("int")), "n", seed=7
    )
    assert {row.row: (row.n, row.split) for row in other_order.collect()} == by_row
    other_seed = random_split(df, "n", seed=8)
    assert {row.row: (row.n, row.split) for row in other_seed.collect()} != by_row


def test_shares_of_zero_get_no_row(spark: "SparkSession") -> None:
    df = spark.range(300).toDF("n")
    assert set(splits_of(random_split(df, "n", shares={"train": 0.3, "validation": 0.7})).values()) == {
        "train",
        "validation",
    }
    assert set(splits_of(random_split(df, "n", shares={"train": 1.0})).values()) == {"train"}


def test_a_null_in_one_key_column_is_not_a_null_in_another(spark: "SparkSession") -> None:
    df = spark.createDataFrame([("a", None), (None, "a"), ("", "a"), ("a", "")], "x string, y string")
    fractions = [row[0] for row in df.select(key_fraction(["x", "y"])).collect()]
    assert len(set(fractions)) == 4
    assert all(0 <= fraction < 1 for fraction in fractions)


def test_by_default_the_newest_tenth_is_for_test_and_the_next_newest_for_validation(spark: "SparkSession") -> None:
    expected = {n: "train" if n < 79 else "validation" if n < 89 else "test" for n in range(100)}
    for column in ("at", "day", "text", "n"):
        assert splits_of(default_split(days(spark, 100), "n", time=column)) == expected, column
    with pytest.raises(SplitError, match="time column 'n' has too few different times"):
        default_split(days(spark, 1), "n", time="n")
    mostly_old = days(spark, 10).withColumn("n", F.greatest(F.lit(8), "n"))
    with pytest.raises(SplitError, match="time column 'n' has too few different times"):
        default_split(mostly_old, "n", time="n")
    given = days(spark).withColumn("split", F.lit("test"))
    assert set(splits_of(default_split(given, "n", time="at")).values()) == {"test"}


def test_text_that_does_not_sort_by_time_is_refused(spark: "SparkSession") -> None:
    """T3: rows are compared as text, so February of `2020-2-1` would be after October."""
    df = days(spark, 300).withColumn("text", F.date_format("at", "yyyy-M-d"))
    message = "time column 'text' is text that does not sort by time: '2024-8-9' is before '2024-10-1' in time, but not"
    with pytest.raises(SplitError, match=f"{message} as text; cast the column to timestamp"):
        default_split(df, "n", time="text")
    with pytest.raises(SplitError, match="'2024-7-9' is before '2024-08-01' in time, but not as text"):
        time_split(df, "text", validation="2024-08-01", test="2024-10-01")
    german = df.withColumn("text", F.when(F.col("n") > 3, F.date_format("at", "dd.MM.yyyy")).otherwise("2024-01-01"))
    message = "time column 'text' has text that is not a timestamp in 296 rows, such as '01.02.2024'; cast the column"
    for split in (
        lambda: default_split(german, "n", time="text"),
        lambda: time_split(german, "text", validation="2024-08-01", test="2024-10-01"),
    ):
        with pytest.raises(SplitError, match=message):
            split()
    weeks = df.withColumn("text", F.format_string("week-%02d", F.col("n").cast("int")))
    assert splits_of(time_split(weeks, "text", validation="week-50", test="week-60"))[55] == "validation"


def test_a_rare_class_is_in_every_split_in_its_share_and_the_others_stay_where_their_keys_put_them(
    spark: "SparkSession",
) -> None:
    df = spark.range(5000).select(F.col("id").alias("n"), (F.col("id") % 250 == 0).alias("rare"))
    stratified = default_split(df, "n", label="rare", seed=3)
    rare = Counter(row.split for row in stratified.where("rare").collect())
    assert rare == {"train": 16, "validation": 2, "test": 2}
    plain = splits_of(random_split(df, "n", seed=3).where("NOT rare"))
    assert splits_of(stratified.where("NOT rare")) == plain
    assert splits_of(stratified) == splits_of(default_split(df.repartition(7), "n", label="rare", seed=3))
    for kind in ("double", "decimal(9,2)"):
        fractional = df.withColumn("rare", F.col("rare").cast("int").cast(kind))
        assert splits_of(default_split(fractional, "n", label="rare", seed=3)) == splits_of(stratified), kind


def test_a_class_of_one_row_is_learnt_and_one_of_two_rows_is_judged_too(spark: "SparkSession") -> None:
    """T3: NaN and null do not count as classes."""
    values = [1.0, 2.0, 2.0, 3.0, 3.0, 3.0, float("nan"), None]
    df = spark.createDataFrame(list(enumerate(values)), "n int, value double")
    split = default_split(df, "n", label="value").where("value < 4").groupBy("value").agg(F.collect_list("split"))
    assert {row[0]: sorted(row[1]) for row in split.collect()} == {
        1.0: ["train"],
        2.0: ["test", "train"],
        3.0: ["test", "train", "validation"],
    }


def test_rows_without_a_label_are_counted_and_left_out(spark: "SparkSession", caplog: pytest.LogCaptureFixture) -> None:
    rows = [(1, 0.5, "a"), (2, float("nan"), ""), (3, None, None), (4, 1.5, "b")]
    table = spark.createDataFrame(rows, "id long, size double, `a.b` string")
    left = {name: without_null_labels(table, Label(name, kind)) for name, kind in _LABELS}
    assert {name: [row.id for row in of.orderBy("id").collect()] for name, of in left.items()} == {
        "size": [1, 4],
        "a.b": [1, 4],
    }
    assert [record.getMessage() for record in caplog.records] == [
        "label size: 2 rows have no value; they are left out",
        "label a.b: 2 rows have no value; they are left out",
    ]
    assert without_null_labels(table, Label("id", "numeric")) is table


_LABELS: tuple[tuple[str, Any], ...] = (("size", "numeric"), ("a.b", "multi_class"))
