"""A feature from the future is found, and one from the past is not (F10)."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.quality.leakage import LeakageError, check_leakage, find_leaks

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

BUY = datetime(2024, 3, 1)
SCHEMA = "customer int, seen_at timestamp, visits array<timestamp>, label_from timestamp"


def table(spark: "SparkSession", **planted: object) -> "DataFrame":
    """Return ten customers whose features are older than their label; ``planted`` changes the one of number 7."""
    rows = [
        {
            "customer": n,
            "seen_at": None if n == 2 else BUY + timedelta(days=n, seconds=-1),
            "visits": [] if n == 3 else [BUY - timedelta(days=1), None, BUY + timedelta(days=n, hours=-1)],
            "label_from": BUY + timedelta(days=n),
        }
        for n in range(10)
    ]
    rows[7] |= planted
    return spark.createDataFrame([tuple(row.values()) for row in rows], SCHEMA)


def check(df: "DataFrame") -> None:
    check_leakage(df, feature_time=["seen_at", "visits"], label_time="label_from", keys="customer")


def test_features_of_the_past_pass(spark: "SparkSession") -> None:
    check(table(spark))
    assert find_leaks(table(spark), feature_time="seen_at", label_time="label_from") == ()


def test_a_planted_feature_from_the_future_is_found_with_its_row(spark: "SparkSession") -> None:
    leaking = table(spark, seen_at=BUY + timedelta(days=9))
    with pytest.raises(LeakageError) as caught:
        check(leaking)
    message = str(caught.value)
    assert "'seen_at' is not before the label's window in 1 of 9 rows" in message
    assert "customer = 7, seen_at = 2024-03-10 00:00:00, label_from = 2024-03-08 00:00:00" in message
    assert "visits" not in message
    assert "join each feature as of its row's 'label_from'" in message


def test_the_very_moment_of_the_label_is_too_late(spark: "SparkSession") -> None:
    with pytest.raises(LeakageError, match="in 1 of 9 rows"):
        check(table(spark, seen_at=BUY + timedelta(days=7)))


def test_one_event_of_a_sequence_is_enough(spark: "SparkSession") -> None:
    leaking = table(spark, visits=[BUY + timedelta(days=8), BUY])
    with pytest.raises(
        LeakageError, match=r"'visits' is not before the label's window in 1 of 9 rows \(for example cust"
    ):
        check(leaking)


def test_a_feature_whose_label_has_no_time_cannot_be_called_older(spark: "SparkSession") -> None:
    with pytest.raises(LeakageError, match="customer = 7, seen_at = 2024-03-07 23:59:59, label_from = null"):
        check(table(spark, label_from=None))


def test_every_leaking_column_is_told_with_some_of_its_rows(spark: "SparkSession") -> None:
    late = table(spark).withColumn("label_from", F.lit(BUY - timedelta(days=99)))
    seen_at, visits = find_leaks(late, feature_time=["seen_at", "visits"], label_time="label_from", keys=["customer"])
    assert (seen_at.rows, visits.rows) == (9, 9)
    assert seen_at.examples == (
        # First and last in the order of the text, and the one that is latest: the same two here.
        "customer = 0, seen_at = 2024-02-29 23:59:59, label_from = 2023-11-23 00:00:00",
        "customer = 9, seen_at = 2024-03-09 23:59:59, label_from = 2023-11-23 00:00:00",
    )
    assert 1 <= len(visits.examples) <= 3


def test_columns_that_are_no_times_are_refused(spark: "SparkSession") -> None:
    df = table(spark).withColumn("day", F.col("customer"))
    with pytest.raises(ValueError, match=r"columns \['when'\] cannot be checked"):
        check_leakage(df, feature_time="when", label_time="label_from")
    with pytest.raises(ValueError, match="feature_time 'day' is int and label_time 'label_from' is timestamp"):
        check_leakage(df, feature_time="day", label_time="label_from")
    with pytest.raises(ValueError, match="label_time 'visits' is array<timestamp>"):
        check_leakage(df, feature_time="seen_at", label_time="visits")
