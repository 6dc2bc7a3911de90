"""T8, L6: the report of a run says in a sentence whether it is better than its baseline."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from mirrorspark.training.results.report.report import (
    ReportFacts,
    is_better,
    metrics_table,
    verdict_sentence,
    write_report,
)

MODEL = {"auc": 0.75, "pr_auc": 0.5, "log_loss": 0.4}


@pytest.mark.parametrize(
    ("rival", "sentence"),
    [
        (
            {"auc": 0.7, "pr_auc": 0.4, "log_loss": 0.5},
            "The model is better than gradient boosting on the test rows, in AUC (0.75 against 0.7), PR AUC (0.5 "
            "against 0.4) and log loss (0.4 against 0.5).",
        ),
        (
            {"auc": 0.8, "pr_auc": 0.5, "log_loss": 0.3},
            "Gradient boosting is better than the model on the test rows, in AUC (0.75 against 0.8) and log loss (0.4 "
            "against 0.3): consider it.",
        ),
        (
            {"auc": 0.7, "pr_auc": 0.6, "log_loss": 0.4},
            "The model is better than gradient boosting on the test rows in AUC (0.75 against 0.7), but worse in PR "
            "AUC (0.5 against 0.6).",
        ),
        (
            {"auc": 0.75},
            "The model is as good as gradient boosting on the test rows: AUC (0.75 against 0.75).",
        ),
        ({}, "On the test rows: AUC 0.75, PR AUC 0.5, log loss 0.4. It was compared with nothing."),
    ],
)
def test_the_verdict_names_the_better_one_and_by_how_much(rival: dict[str, float], sentence: str) -> None:
    baseline = {"name": "hist_gradient_boosting", "metrics": rival} if rival else {}
    assert verdict_sentence({"test": MODEL}, baseline) == sentence


def test_the_page_stands_alone_and_shows_no_value_as_markup_and_no_secret(tmp_path: Path) -> None:
    facts = ReportFacts(
        title="<b>late</b> 3",
        metrics={"validation": MODEL, "test": MODEL},
        baseline={"name": "popularity", "metrics": {"auc": 0.7}},
        figures={"roc": Figure()},
        rows={"train": 1000, "test": 10},
        findings=[{"severity": "warning", "column": "x", "sentence": "column '<i>' is odd"}],
        seconds={"train": 3.0, "export": 1.0},
        settings={"tracking_uri": "postgresql://me:secret@host/db"},
    )
    page = write_report(facts, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert "&lt;b&gt;late&lt;/b&gt; 3" in page
    assert "Column &#39;&lt;i&gt;&#39; is odd." in page
    assert "secret" not in page
    assert page.count("src=") == page.count('src="data:image/png') == 1
    assert "--share:75.0" in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_table_has_a_column_per_split_and_the_baselines_beside() -> None:
    table = metrics_table({"validation": MODEL, "test": MODEL | {"brier": 0.1}}, {"name": "other", "metrics": MODEL})
    assert list(table.columns) == ["validation", "test", "other"]
    assert list(table.index) == ["auc", "pr_auc", "log_loss", "brier"]


@pytest.mark.parametrize(
    ("metric", "better", "worse"),
    [
        ("auc", 0.8, 0.7),
        ("val_loss", 0.1, 0.2),
        ("bias", 0.1, 5.0),
        ("bias", -0.1, -5.0),
        ("val_bias", 0.1, -5.0),
        ("interval_width", 1.0, 9.0),
    ],
)
def test_the_better_value_of_a_metric_is_larger_smaller_or_nearer_to_0(
    metric: str, better: float, worse: float
) -> None:
    assert is_better(metric, better, worse)
    assert not is_better(metric, worse, better)
    assert not is_better(metric, better, better)


@pytest.mark.parametrize("metric", ["base_rate", "interval_coverage", "val_base_rate"])
def test_a_metric_that_describes_has_no_better_value(metric: str) -> None:
    assert not is_better(metric, 0.9, 0.5)
    assert not is_better(metric, 0.5, 0.9)
