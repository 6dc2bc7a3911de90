"""The two recipes that come with the installation, on their real data and with their own settings."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from tests.cluster.test_main_job import run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(400)


def test_flights_reaches_its_baseline(spark: "SparkSession", tmp_path: Path) -> None:
    """F1, F3: the multi-field model is no more than 0.01 AUC below gradient boosting on the same features."""
    finished = run(tmp_path, "--recipe=flights", "--workers=2", "--epochs=4")
    baseline = finished.summary["baseline"]
    assert baseline["name"] == "hist_gradient_boosting"
    assert finished.auc >= baseline["metrics"]["auc"] - 0.01
    assert finished.summary["dataset"]["rows"] == {"train": 244_737, "validation": 28_618, "test": 53_991}
    assert finished.summary["parity"]["max"] <= 1e-5


def test_movielens_beats_popularity(spark: "SparkSession", tmp_path: Path, shared_data: Path) -> None:
    """T1, S7: two-tower retrieval recommends the held-back movie more often than the most popular ones would."""
    data = shared_data / "ml_latest_small"
    finished = run(tmp_path, "--recipe=movielens", f"--data={data}", "--workers=2")
    test = finished.summary["metrics"]["test"]
    popularity = finished.summary["baseline"]["metrics"]
    assert test["recall_at_20"] > popularity["recall_at_20"]
    assert test["ndcg_at_20"] > popularity["ndcg_at_20"]
    assert finished.summary["parity"]["max"] <= 1e-5

    table = pq.read_table(finished.summary["scored_table"]).to_pandas()
    assert len(table) == 610
    assert (table["candidates"].map(len) == 20).all()
    assert (table["candidates"].map(lambda movies: len(set(movies))) == 20).all()
    assert set(table["model_version"]) == {"movielens/1"}
