"""T8, H9: two results side by side."""

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mirrorspark.data_pipelines.features.kinds import Label
from mirrorspark.training.results.fit_result import FitResult

LATE = Label("late", positive="yes")


def result(version: int, content: str, label: Label = LATE, **test: float) -> FitResult:
    trained = SimpleNamespace(
        version_uri=f"models:/late/{version}", verdict=SimpleNamespace(metrics={"test": test}, baseline={})
    )
    dataset = SimpleNamespace(manifest=SimpleNamespace(content_hash=content), spec=SimpleNamespace(label=label))
    return FitResult(cast(Any, trained), cast(Any, dataset), cast(Any, None), cast(Any, None))


def test_two_results_are_compared_metric_by_metric(caplog: pytest.LogCaptureFixture) -> None:
    first = result(1, "one", rmse=2.0, bias=0.1, interval_coverage=0.8)
    second = result(2, "one", rmse=1.0, bias=-5.0, interval_coverage=0.9)
    compared = first.compare(second)
    assert list(compared["better"]) == ["models:/late/2", "models:/late/1", ""]
    assert list(compared["difference"]) == pytest.approx([1.0, 5.1, -0.1])
    assert not caplog.records


def test_results_on_different_datasets_are_compared_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result(1, "one", auc=0.7).compare(result(1, "other", auc=0.8))
    assert "the two datasets differ (one, other)" in caplog.text


def test_results_for_different_labels_are_not_compared() -> None:
    with pytest.raises(
        ValueError, match=r"predicts late \(binary\), the other delay \(number\); compare two models of one"
    ):
        result(1, "one", auc=0.7).compare(result(1, "other", Label("delay", kind="number"), rmse=0.8))


def test_a_result_says_what_it_predicts() -> None:
    text = repr(result(1, "one", auc=0.7))
    assert text.startswith("models:/late/1: probability that late is yes. On the test rows: AUC 0.7.")
