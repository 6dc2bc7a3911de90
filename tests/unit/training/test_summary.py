"""Summary of a run at its end, for programs and for people."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mirrorspark.training.results.report.summary import CHALLENGER, Summary, make_way

BINARY = Summary(
    status="finished",
    run_id="run-1",
    experiment="flights",
    model_uri="models:/m-1",
    registered_model="flights",
    model_version="3",
    metrics={
        "validation": {"auc": 0.7012, "log_loss": 0.51, "brier": 0.2},
        "test": {"auc": 0.6877, "pr_auc": 0.41, "log_loss": 0.5, "brier": 0.19},
    },
    baseline={"name": "hist_gradient_boosting", "metrics": {"auc": 0.6789, "log_loss": 0.52}},
    parity={"max": 1.2e-7, "mean": 1e-8, "p99": 9e-8, "rows": 55_000},
    timings={"convert": 10.0, "train": 60.5},
    examples_per_second=51_000.0,
    workers=2,
    attempts=1,
    dataset={"path": "/data/flights-1", "rows": {"test": 55_000}, "bytes": 12, "layout": "block", "reused": False},
    scored_table="/runs/1/scores.parquet",
    run_folder="/runs/1",
    tracking_uri="sqlite:////out/mlflow.db",
)

# The fields that the documentation of --summary promises, in its order.
PROMISED = [
    *("status", "run_id", "experiment", "model_uri", "registered_model", "model_version", "metrics", "baseline"),
    *("parity", "timings", "cost", "examples_per_second", "workers", "attempts", "dataset", "scored_table"),
]


def saved(summary: Summary, folder: Path) -> dict[str, object]:
    summary.save(folder / "new" / "summary.json")
    document: dict[str, object] = json.loads((folder / "new" / "summary.json").read_text())
    return document


def test_the_document_has_the_promised_fields_and_where_to_look_further(tmp_path: Path) -> None:
    document = saved(BINARY, tmp_path)
    assert [name for name in document if name in PROMISED] == PROMISED
    assert set(document) - set(PROMISED) == {
        *("error", "run_folder", "tracking_uri", "run_page", "compare_page", "replay", "warm_start", "chosen"),
        "calibration",
        "decisions",
        "warnings",
        "verdict",
        "withheld",
    }
    assert document["parity"] == {"max": 1.2e-7, "mean": 1e-8, "p99": 9e-8, "rows": 55_000}
    assert document["dataset"] == BINARY.dataset
    assert document["error"] is None


def test_a_failed_run_has_the_same_fields(tmp_path: Path) -> None:
    document = saved(Summary(status="failed", error="rank 1: no luck"), tmp_path)
    assert set(document) == set(saved(BINARY, tmp_path))
    assert (document["status"], document["error"], document["run_id"]) == ("failed", "rank 1: no luck", None)


def test_the_document_is_json_that_every_reader_takes(tmp_path: Path) -> None:
    parity = {"max": math.inf, "mean": np.float32(0.5), "p99": math.nan, "rows": np.int64(3), "passed": False}
    (tmp_path / "new").mkdir()
    replace(BINARY, parity=parity).save(tmp_path / "new" / "summary.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    document = json.loads((tmp_path / "new" / "summary.json").read_text(), parse_constant=refuse)
    assert document["parity"] == {"max": "inf", "mean": 0.5, "p99": "nan", "rows": 3, "passed": False}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["summary.json"]


def test_a_summary_that_fails_half_way_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "summary.json").write_text("old")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        BINARY.save(tmp_path / "summary.json")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_bytes() == b"old"


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    make_way(tmp_path / "link.json")
    assert not (tmp_path / "real.json").exists()
    BINARY.save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["status"] == "finished"


def test_a_password_in_the_tracking_uri_is_not_written(tmp_path: Path) -> None:
    summary = replace(BINARY, tracking_uri="https://ann:s3cret@mlflow.example:8443")
    assert saved(summary, tmp_path)["tracking_uri"] == "https://mlflow.example:8443"
    assert "s3cret" not in summary.as_text()


def test_the_table_shows_the_headline_metrics_beside_the_baseline() -> None:
    lines = BINARY.as_text().splitlines()
    rows = {words[0]: words[1:] for line in lines if (words := line.split())}
    assert lines[0].split() == ["validation", "test", "hist_gradient_boosting"]
    assert rows["auc"] == ["0.7012", "0.6877", "0.6789"]
    assert rows["log_loss"] == ["0.5100", "0.5000", "0.5200"]
    assert "brier" not in rows


def test_sentences_are_broken_to_the_width_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    terminal = io.StringIO()
    sentence = "The model is better than gradient boosting on the test rows in AUC by 0.0035."
    summary = replace(BINARY, verdict=(sentence,))
    assert summary.as_text(terminal) == summary.as_text()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    broken = "The model is better than gradient boosting on the test rows\n  in AUC by 0.0035."
    assert summary.as_text(terminal) == summary.as_text().replace(sentence, broken)


def test_a_metric_that_one_split_lacks_leaves_its_place_empty() -> None:
    lines = BINARY.as_text().splitlines()
    auc, pr_auc = (next(line for line in lines if line.startswith(f"{name} ")) for name in ("auc", "pr_auc"))
    assert pr_auc.split() == ["pr_auc", "0.4100"]
    assert pr_auc.index("0.4100") == auc.index("0.6877")


def test_the_table_of_a_retrieval_run_shows_its_own_metrics() -> None:
    values = {"recall_at_10": 0.1, "ndcg_at_10": 0.05, "recall_at_20": 0.2, "ndcg_at_20": 0.07}
    baseline = {"name": "popularity", "metrics": {"recall_at_20": 0.11}}
    text = replace(BINARY, metrics={"validation": values, "test": values}, baseline=baseline).as_text()
    assert "recall_at_20        0.2000      0.2000                    0.1100" in text.splitlines()
    assert "popularity" in text.splitlines()[0]
    several = baseline | {"others": [{"name": "ease", "metrics": {"recall_at_20": 0.13, "ndcg_at_20": 0.05}}]}
    lines = replace(BINARY, metrics={"validation": values, "test": values}, baseline=several).as_text().splitlines()
    assert [line.split()[-2:] for line in lines[:2]] == [["popularity", "ease"], ["0.1100", "0.1300"]]
    assert lines[2].index("0.0500") == lines[1].index("0.1300")


def test_the_table_of_shorter_lists_shows_the_longest_of_them() -> None:
    values = {f"{name}_at_{k}": k / 100 for k in (1, 5, 10) for name in ("recall", "ndcg")}
    lines = replace(BINARY, metrics={"validation": values, "test": values}, baseline={}).as_text().splitlines()
    rows = [line.split() for line in lines[1:4]]
    expected = [("recall_at_10", "0.1000"), ("ndcg_at_10", "0.1000"), ("recall_at_5", "0.0500")]
    assert rows == [[name, value, value] for name, value in expected]
    alone = replace(BINARY, metrics={"test": {"recall_at_1": 0.5, "ndcg_at_1": 0.5}}, baseline={}).as_text()
    assert [line.split()[0] for line in alone.splitlines()[1:3]] == ["recall_at_1", "ndcg_at_1"]


@pytest.mark.parametrize(("passed", "verdict"), [(True, "max 1.2e-07"), (False, "FAILED: max 1.2e-07")])
def test_parity_that_failed_is_said(passed: bool, verdict: str) -> None:
    lines = replace(BINARY, parity={**BINARY.parity, "passed": passed}).as_text().splitlines()
    assert f"{'parity':<14}{verdict} over 55,000 rows" in lines


def test_the_table_says_where_things_are() -> None:
    places = dict(line.split("  ", 1) for line in BINARY.as_text().partition("\n\n")[2].splitlines())
    assert {name: place.strip() for name, place in places.items()} == {
        "parity": "max 1.2e-07 over 55,000 rows",
        "attempts": "1",
        "model": f"models:/flights/3 (alias {CHALLENGER})",
        "scores": "/runs/1/scores.parquet",
        "dataset": "/data/flights-1",
        "run folder": "/runs/1",
        "compare runs": "mlflow ui --backend-store-uri sqlite:////out/mlflow.db",
    }


def test_the_verdict_is_said_and_a_model_without_an_alias_says_why() -> None:
    verdict = ["Gradient boosting is better than the model on the test rows, in AUC (0.7 against 0.8): consider it."]
    text = replace(BINARY, verdict=verdict, warnings=["few updates"]).as_text()
    assert f"\n\n{verdict[0]}\n\n" in text
    assert f"{'warning':<14}few updates" in text.splitlines()
    assert "(alias challenger)" in text
    without = replace(BINARY, verdict=verdict, withheld="This version has no alias, because …").as_text()
    assert f"\n\n{verdict[0]}\nThis version has no alias, because …\n\n" in without
    assert "models:/flights/3 (no alias)" in without


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "https://mlflow.example"])
def test_a_tracking_server_is_opened_not_started(uri: str) -> None:
    assert f"open {uri}" in replace(BINARY, tracking_uri=uri).as_text()


def test_a_run_on_a_server_is_opened_and_compared_in_mlflows_pages() -> None:
    """L6: the last lines lead to the run, and to the runs of its experiment."""
    page = "https://mlflow.example/#/experiments/3/runs/0a1b?workflowType=machine_learning"
    text = replace(BINARY, tracking_uri="https://ann:s3cret@mlflow.example", run_page=page).as_text()
    assert f"MLflow run    {page}\n" in text
    assert text.endswith("compare runs  https://mlflow.example/#/experiments/3?workflowType=machine_learning")
    assert "s3cret" not in text
    view = "https://mlflow.example/#/experiments/3/runs?viewStateShareKey=mirrorspark-val_auc"
    assert replace(BINARY, run_page=page, compare_page=view).as_text().endswith(f"compare runs  {view}")
    own = replace(
        BINARY, tracking_uri="sqlite:////out/mlflow.db", compare_page="http://127.0.0.1:5000/#/view"
    ).as_text()
    started = "compare runs  mlflow ui --backend-store-uri sqlite:////out/mlflow.db"
    assert own.endswith(f"{started}\nthen open     http://127.0.0.1:5000/#/view")
