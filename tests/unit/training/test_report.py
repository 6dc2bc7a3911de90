"""T8, L6: the report of a run says in a sentence whether it is better than its baseline."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from mirrorspark.data_pipelines.features.kinds import Categorical, Label
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.quality.profiling import profile_columns
from mirrorspark.training.protocol.outcomes.cause import Attempt
from mirrorspark.training.results.report.cost import Reservation, cost_of
from mirrorspark.training.results.report.report import (
    ReportFacts,
    better_baseline,
    comparison_table,
    metrics_table,
    rates_of,
    report_page,
    verdict_sentences,
    write_report,
)
from mirrorspark.training.run_records.run_history import Launch

ATTEMPTS = (Attempt(1, 9, (), 0, 90, workers=3),)
MODEL = {"auc": 0.75, "pr_auc": 0.5, "log_loss": 0.4}


@pytest.mark.parametrize(
    ("baseline_metrics", "sentence"),
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
def test_the_verdict_names_the_better_one_and_by_how_much(baseline_metrics: dict[str, float], sentence: str) -> None:
    baseline = {"name": "hist_gradient_boosting", "metrics": baseline_metrics} if baseline_metrics else {}
    assert " ".join(verdict_sentences({"test": MODEL}, baseline)) == sentence


APART = {"auc": {"difference": -0.05, "low": -0.07, "high": -0.03}, "log_loss": {"difference": 0, "low": -1, "high": 1}}


@pytest.mark.parametrize(
    ("monitor", "intervals", "is_better"),
    [
        ("val_auc", APART, True),
        ("val_loss", APART, True),  # only the training has it, and the verdict begins with AUC
        ("val_log_loss", APART, False),
        ("val_auc", {"auc": {"difference": -0.05, "low": -0.12, "high": 0.02}}, False),
        ("val_auc", {"auc": {"difference": 0.05, "low": 0.02, "high": 0.07}}, False),
        ("val_auc", {}, False),
    ],
)
def test_a_baseline_is_better_by_the_monitored_metric_beyond_the_noise_alone(
    monitor: str, intervals: dict[str, dict[str, float]], is_better: bool
) -> None:
    other = MODEL["auc"] - intervals.get("auc", {}).get("difference", -0.05)
    entry = {"name": "hist_gradient_boosting", "metrics": {"auc": other, "log_loss": 0.4}, "intervals": intervals}
    for compared in (entry, {"name": "ease", "metrics": {}, "intervals": {}, "others": [entry]}):
        found = better_baseline({"test": MODEL}, compared, monitor)
        assert found == ("gradient boosting is better in AUC" if is_better else None)
    assert better_baseline({"test": MODEL}, {}, monitor) is None


def test_a_network_that_lost_is_named_with_its_article() -> None:
    (sentence,) = verdict_sentences({"test": {"auc": 0.75}}, {"name": "network", "metrics": {"auc": 0.7}})
    assert sentence.startswith("The model is better than the network on the test rows")


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


def test_the_table_of_a_recommender_begins_with_the_longest_lists_and_ends_with_segments() -> None:
    names = ["recall_at_5", "mrr_at_5", "recall_at_20", "ndcg_at_20", "mrr_at_20"]
    segment = ["new_items_rows", "new_items_mrr_at_20"]
    table = metrics_table({"test": dict.fromkeys([*names, *segment, "coverage"], 0.5)}, {})
    longest = ["recall_at_20", "ndcg_at_20", "recall_at_5", "mrr_at_20", "coverage"]
    assert list(table.index) == [*longest, "mrr_at_5", *segment]


def of_difference(difference: float, low: float, high: float) -> dict[str, float]:
    return {"difference": difference, "low": low, "high": high}


def test_a_difference_within_its_interval_is_none_and_any_other_is_told_with_its_ends() -> None:
    """F7: other test rows would give another difference."""
    baseline = {
        "name": "hist_gradient_boosting",
        "metrics": {"auc": 0.7, "pr_auc": 0.49, "log_loss": 0.5},
        "intervals": {
            "auc": of_difference(0.05, 0.03, 0.07),
            "pr_auc": of_difference(0.01, -0.01, 0.03),
            "log_loss": of_difference(-0.1, -0.2, -0.05),
        },
    }
    assert " ".join(verdict_sentences({"test": MODEL}, baseline)) == (
        "The model is better than gradient boosting on the test rows, in AUC by 0.05 (95% interval 0.03 to 0.07; 0.75 "
        "against 0.7) and log loss by 0.1 (95% interval 0.05 to 0.2; 0.4 against 0.5). There is no difference beyond "
        "the noise in PR AUC (0.5 against 0.49; difference +0.01, 95% interval -0.01 to +0.03)."
    )
    amounts = {
        "name": "popularity",
        "metrics": {"rmse": 32360.4},
        "intervals": {"rmse": of_difference(-3012, -4912, -1.3e3)},
    }
    assert " ".join(verdict_sentences({"test": {"rmse": 29390.0}}, amounts)) == (
        "The model is better than popularity on the test rows, in RMSE by 3,000 (95% interval 1,300 to 4,900; 29,390 "
        "against 32,360)."
    )
    within = baseline | {"intervals": dict.fromkeys(MODEL, of_difference(0.01, -0.01, 0.03))}
    assert " ".join(verdict_sentences({"test": MODEL}, within)).startswith(
        "The model and gradient boosting do not differ beyond the noise on the test rows: AUC (0.75 against 0.7; "
    )
    page = report_page(ReportFacts("late 3", {"test": MODEL}, baseline | {"resampled": "values of user"}, {}, {}))
    assert "Change of the difference when other values of user are drawn, each with all of its test rows." in page
    table = comparison_table({"test": MODEL}, baseline)
    assert list(table["the model is"]) == ["better", "no difference beyond the noise", "better"]
    assert comparison_table({"test": MODEL}, {}).empty


def test_each_of_several_baselines_has_its_column_sentence_and_differences() -> None:
    better, worse = ({"auc": of_difference(sign * 0.05, sign * 0.05 - 0.02, sign * 0.05 + 0.02)} for sign in (1, -1))
    baseline = {"name": "popularity", "metrics": {"auc": 0.7}, "intervals": better}
    baseline |= {"others": [{"name": "item_knn", "metrics": {"auc": 0.8}, "intervals": worse}]}
    assert " ".join(verdict_sentences({"test": {"auc": 0.75}}, baseline)) == (
        "The model is better than popularity on the test rows, in AUC by 0.05 (95% interval 0.03 to 0.07; 0.75 against "
        "0.7). Item knn is better than the model on the test rows, in AUC by 0.05 (95% interval 0.03 to 0.07; 0.75 "
        "against 0.8): consider it."
    )
    assert list(metrics_table({"test": {"auc": 0.75}}, baseline)) == ["test", "popularity", "item_knn"]
    far = [{"name": f"ease_{last}", "metrics": {"auc": 0.6}, "intervals": better} for last in (3, 5, 10)]
    baseline["others"] += far
    sentences = verdict_sentences({"test": {"auc": 0.75}}, baseline)
    assert [sentence[:24] for sentence in sentences] == ["Item knn is better than ", "The model is better than"]
    assert sentences[-1] == "The model is better than 4 others in AUC, too."
    page = report_page(ReportFacts("movies 1", {"test": {"auc": 0.75}}, baseline, {}, {}))
    titles = [f"Model minus {name}, with its 95% interval" for name in ("popularity", "item knn")]
    assert [page.count(title) for title in titles] == [1, 1]
    assert page.count("Change of the difference when") == 1


def test_the_cost_is_seconds_times_the_cores_that_a_stage_holds() -> None:
    seconds = {"start": 2.0, "convert": 10.0, "train": 100.0, "between stages": 1.0}
    reservation = Reservation((Launch(3, 100.0),), ATTEMPTS, slots=6, driver_cores=4, beside=1, cores_per_slot=2)
    cost = cost_of(seconds, reservation, price_per_core_hour=0.06)
    assert cost.core_seconds == {"start": 8.0, "convert": 120.0, "train": 800.0, "between stages": 4.0}
    assert cost.total_core_seconds == 932.0
    assert cost.money == pytest.approx(932 / 3600 * 0.06)
    assert cost_of(seconds, reservation).money is None
    page = report_page(ReportFacts("late 3", {}, {}, {}, {}, seconds=seconds, cost=cost))
    assert "800 core-s" in page
    assert "At 0.06 per core and hour they cost 0.01553." in page
    assert "core-s" not in report_page(ReportFacts("late 3", {}, {}, {}, {}, seconds=seconds))


def test_the_cost_has_the_attempts_of_all_drivers_with_their_own_workers() -> None:
    """F7: a run that lost slots, and was continued by another driver with fewer."""
    launches = (Launch(4, 100.0), Launch(3, 50.0), Launch(2, 10.0))
    cost = cost_of({"convert": 10.0, "train": 70.0}, Reservation(launches, ATTEMPTS, slots=2, driver_cores=1))
    assert cost.core_seconds == {"convert": 40.0, "train": 570.0}
    page = report_page(ReportFacts("late 3", {}, {}, {}, {}, seconds={"train": 70.0}, cost=cost))
    assert "Train includes attempts of earlier drivers (2), whose other stages are not known." in page


@pytest.mark.parametrize("launches", [(), (Launch(None, 0.0),)])
def test_the_report_says_where_the_events_lack_an_attempt(launches: tuple[Launch, ...]) -> None:
    cost = cost_of({"train": 70.0}, Reservation(launches, ATTEMPTS, slots=9, driver_cores=1))
    assert cost.core_seconds == {"train": 210.0}
    page = report_page(ReportFacts("late 3", {}, {}, {}, {}, seconds={"train": 70.0}, cost=cost))
    assert "events lack attempts: train is counted with the 3 workers of the last one" in page.replace("&#39;", "'")


def test_the_cost_of_a_training_whose_time_is_another_commands_is_shown() -> None:
    """L7: a sweep exports a trial that it has trained before."""
    cost = cost_of({"export": 5.0}, Reservation((Launch(3, 100.0),), ATTEMPTS, slots=3, driver_cores=1))
    page = report_page(ReportFacts("late 3", {}, {}, {}, {}, seconds={"export": 5.0}, cost=cost))
    assert "300 core-s" in page
    assert "305 core-s" in page


def test_the_columns_whose_values_differ_the_most_come_first() -> None:
    sample = pa.table(
        {
            "id": np.arange(60),
            "late": [n % 2 for n in range(60)],
            "weak": ["a", "b", "b"] * 20,
            "strong": ["<on>", "off"] * 30,
            "one": ["x"] * 60,
        }
    )
    features = tuple(Categorical(name) for name in ("weak", "strong", "one"))
    rates = rates_of(profile_columns({"train": sample}, FeatureSpec(features, Label("late"), ("id",))))
    assert [name for name, _ in rates] == ["strong", "weak"]
    assert rates[0][1] == [("<on>", 30, 0.0), ("off", 30, 1.0)]
    page = report_page(ReportFacts("late 3", {}, {}, {}, {}, rates=rates, rate_name="rate of late"))
    assert "<h2>Rate of late by value</h2>" in page
    assert "&lt;on&gt;" in page
