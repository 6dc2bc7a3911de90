"""Watching on Spark: windows of a table and of a stream, and scores joined with outcomes (L2, L11)."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from sklearn.metrics import log_loss, roc_auc_score

from mirrorspark.data_pipelines.conversion import convert
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.lifecycle.watching.counting import NothingToWatchError
from mirrorspark.lifecycle.watching.live import ExpectedMetrics, live_metrics
from mirrorspark.lifecycle.watching.snapshot import Snapshot
from mirrorspark.lifecycle.watching.watcher import WindowDrift, watch, watch_stream

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.timeout(300)

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
# Windows of seven days begin on Thursdays, as 1970 did.
THURSDAY = MONDAY - timedelta(days=4)
WEEKS = 3
STARTS = [THURSDAY + timedelta(days=7 * week) for week in range(WEEKS)]
ROWS = 900
SPEC = {
    "features": {"x": {"kind": "numeric"}, "city": {"kind": "categorical"}, "words": {"kind": "text", "max_length": 4}},
    "label": "y",
    "keys": "id",
}


def rows_of(
    seed: int, rows: int = ROWS, *, shift: float = 0.0, cities: tuple[str, ...] = ("Oslo", "Rome")
) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    x = random.standard_normal(rows) + shift
    return pd.DataFrame(
        {
            "id": np.arange(rows) + seed * 100_000,
            "x": x,
            "city": random.choice(cities, rows),
            "words": random.choice(["Big box", "small BOX", "big"], rows),
            "y": (random.random(rows) < 1 / (1 + np.exp(-x))).astype(int),
            "score": 1 / (1 + np.exp(-x)),
        }
    )


@pytest.fixture(scope="module")
def snapshot(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    train = rows_of(1, 3_000)
    parts = np.array(["train"] * 8 + ["validation", "test"])
    table = spark.createDataFrame(train.assign(split=parts[train.id % 10]))
    dataset = convert(
        table, FeatureSpec.from_dict(SPEC), tmp_path_factory.mktemp("watching") / "dataset", progress=False
    )
    return Snapshot.of_dataset(dataset).with_scores(train.score)


@pytest.fixture(scope="module")
def weeks() -> list[pd.DataFrame]:
    """Return three weeks of rows; the last one is of other people."""
    frames = [rows_of(2), rows_of(3), rows_of(4, shift=0.9, cities=("Oslo", "Rome", "Linz"))]
    for number, frame in enumerate(frames):
        frame["at"] = [THURSDAY + timedelta(days=7 * number, minutes=10 * row) for row in range(len(frame))]
    return frames


@pytest.fixture(scope="module")
def table(spark: "SparkSession", weeks: list[pd.DataFrame]) -> "DataFrame":
    return spark.createDataFrame(pd.concat(weeks)).repartition(3)


def test_a_planted_shift_is_found_in_its_week_and_columns(table: "DataFrame", snapshot: Snapshot) -> None:
    windows = watch(table, snapshot, time="at")

    assert [one.rows for one in windows] == [ROWS] * WEEKS
    assert [one.start for one in windows] == STARTS
    assert [one.column for one in windows[0].columns] == ["x", "city", "words", "y", "score"]
    assert [one.alarms for one in windows[:2]] == [[], []]
    moved = {words.split(":")[0] for words in windows[2].alarms}
    assert {"x", "city", "score"} <= moved <= {"x", "city", "score", "y"}
    assert any("of the tokens are unknown, 0.0% in the training" in words for words in windows[2].alarms)
    (whole,) = watch(table.drop("at"), snapshot)
    assert whole.start is None
    assert whole.rows == ROWS * WEEKS
    with pytest.raises(NothingToWatchError, match="none of the columns"):
        watch(table.select("id", "at"), snapshot, time="at")


def test_a_stream_tells_of_each_week_what_the_table_does(
    spark: "SparkSession", table: "DataFrame", weeks: list[pd.DataFrame], snapshot: Snapshot, tmp_path: Path
) -> None:
    source, told = tmp_path / "rows", list[WindowDrift]()
    snapshot.save(tmp_path / "snapshot.json")
    after = weeks[0].head(1).assign(at=THURSDAY + timedelta(days=7 * WEEKS + 2))
    for number, frame in enumerate([*weeks, after]):
        spark.createDataFrame(frame).coalesce(1).write.parquet(str(source / f"week={number}"))
    stream = spark.readStream.schema(table.schema).option("maxFilesPerTrigger", 1).parquet(str(source / "week=*"))

    query = watch_stream(
        stream, tmp_path / "snapshot.json", told.append, time="at", checkpoint=str(tmp_path / "state"), late="1 day"
    )
    try:
        query.processAllAvailable()
    finally:
        query.stop()

    assert tuple(told) == watch(table, snapshot, time="at")


def test_live_metrics_are_those_of_scikit_learn_and_a_broken_promise_is_an_alarm(
    spark: "SparkSession", table: "DataFrame", weeks: list[pd.DataFrame]
) -> None:
    """The labels of the second week are noise; a third of those of the third week is not known yet."""
    outcomes = pd.concat(weeks)[["id", "y"]].reset_index(drop=True)
    outcomes.loc[ROWS : 2 * ROWS - 1, "y"] = np.arange(ROWS) % 2
    outcomes = outcomes[(outcomes.index < 2 * ROWS) | (outcomes.index % 3 != 0)]
    expected = ExpectedMetrics({"auc": 0.75, "log_loss": 0.58, "base_rate": 0.1, "calibration": 0.9}, "buyers/3")

    windows = live_metrics(
        table.select("id", "at", "score"),
        spark.createDataFrame(outcomes),
        **{"keys": "id", "label": "y", "time": "at", "expected": expected},
    )

    assert [one.start for one in windows] == STARTS
    assert [(one.scored, one.examples) for one in windows] == [(ROWS, ROWS), (ROWS, ROWS), (ROWS, ROWS * 2 // 3)]
    joined = pd.concat(weeks)[["id", "score"]].merge(outcomes, on="id")
    for one, frame in zip(windows, weeks, strict=True):
        known = joined[joined.id.isin(frame.id)]
        assert one.metrics["auc"].value == pytest.approx(roc_auc_score(known.y, known.score), abs=1e-6)
        assert one.metrics["log_loss"].value == pytest.approx(log_loss(known.y, known.score), abs=1e-6)
    assert [one.alarms for one in windows[::2]] == [(), ()]
    assert [words.split()[0] for words in windows[1].alarms] == ["auc", "log_loss"]
    (far,) = live_metrics(
        table.select("id", "at", (F.col("score") * 0.5).alias("score")),
        spark.createDataFrame(outcomes[outcomes.index < ROWS]),
        **{"keys": "id", "label": "y", "time": "at", "expected": ExpectedMetrics({"calibration": 0.9}, "buyers/3")},
    )
    assert re.fullmatch(r"calibration is 0\.[45]\d+ \(.*\), expected was 0\.9", far.alarms[0])
    with pytest.raises(ValueError, match=r"outcomes lacks the columns \['id'\]"):
        live_metrics(table, spark.createDataFrame(outcomes).drop("id"), keys="id", label="y", time="at")
    with pytest.raises(ValueError, match=r"are in 2,700 windows of 1 minute, and 1,000 are .* a longer window"):
        live_metrics(
            table, spark.createDataFrame(outcomes), **{"keys": "id", "label": "y", "time": "at", "window": "1 minute"}
        )
