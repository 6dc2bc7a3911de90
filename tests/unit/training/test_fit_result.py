"""T8, H9: a result as text, and two results side by side."""

import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.kinds import Label, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.training.results.evaluation.evaluate_run import BaselineComparison
from mirrorspark.training.results.fit_result import FitResult
from mirrorspark.training.results.report.baselines import as_baseline
from mirrorspark.training.results.report.shown import trained_html
from tests.unit.notebook_outputs import BASELINE, METRICS, trained

LATE = Label("late", positive="yes")


ROWS = 200
KEYS = np.arange(ROWS)
ACTUAL = KEYS % 2
# Three quarters of the rows, and half of them, are on the right side.
GOOD = np.where(KEYS % 4 < 3, ACTUAL, 1 - ACTUAL) * 0.5 + 0.25
POOR = np.where(KEYS % 4 < 2, ACTUAL, 1 - ACTUAL) * 0.5 + 0.25


def result(
    version: int,
    content: str = "one",
    label: Label = LATE,
    score: Any = GOOD,
    rows: Any = slice(None),
    classes: tuple[str, ...] = (),
    **test: float,
) -> FitResult:
    """Return a result with predictions of the chosen rows in their order."""
    columns = {"row": KEYS, "label": ACTUAL, "weight": np.ones(ROWS)}
    predicted = pa.table({name: of[rows] for name, of in columns.items()})
    predicted = predicted.append_column("scores" if classes else "score", pa.array(list(score[rows])))
    trained = SimpleNamespace(
        withheld=None,
        version_uri=f"models:/late/{version}",
        verdict=SimpleNamespace(metrics={"test": test}, baseline={}, compared={}),
        predictions={"test": predicted},
    )
    dataset = SimpleNamespace(
        manifest=SimpleNamespace(content_hash=content),
        spec=FeatureSpec((Numeric("km"),), label, ("row",)),
        features=SimpleNamespace(class_names=classes, classes=len(classes)),
    )
    return FitResult(cast(Any, trained), cast(Any, dataset), cast(Any, None), cast(Any, None))


def test_two_results_are_compared_by_the_intervals_of_their_differences() -> None:
    # The log loss is ln 4 - p ln 3 where a share p is right: 0.5623 of three quarters, 0.8370 of a half.
    first = result(1, log_loss=0.5623, base_rate=0.5)
    second = result(2, score=POOR, log_loss=0.8370, base_rate=0.5)
    compared = first.compare(second)
    row = compared.loc["log_loss"]
    # The rows that differ are a quarter, by ln 3 each: the deviation of the mean is ln 3 sqrt(3 / 16 / 200) = 0.0336.
    assert row["difference"] == pytest.approx(-0.2747, abs=1e-4)
    assert (row["from"], row["to"]) == pytest.approx((-0.2747 - 0.066, -0.2747 + 0.066), abs=0.02)
    assert list(compared["better"]) == ["models:/late/1", ""]
    assert list(compared["verdict"]) == ["significantly better", ""]
    assert second.compare(first).loc["log_loss", "verdict"] == "significantly worse"
    assert compared.in_words() == "models:/late/1 is significantly better in log_loss."


def test_a_difference_within_the_noise_is_no_verdict() -> None:
    # One row of 200 is better.
    nearly = np.where(KEYS == 3, 1 - GOOD, GOOD)
    compared = result(1, log_loss=0.5623).compare(result(2, score=nearly, log_loss=0.5568))
    assert list(compared["better"]) == [""]
    assert compared.in_words() == "There is no clear difference in log_loss."
    assert "There is no clear difference in log_loss." in compared._repr_html_()


def test_rows_of_other_features_in_another_order_are_paired_by_their_keys() -> None:
    backwards = np.arange(ROWS)[::-1]
    compared = result(1, log_loss=0.5623).compare(result(2, "other", rows=backwards, log_loss=0.5623))
    assert compared.loc["log_loss", ["difference", "from", "to"]].tolist() == [0, 0, 0]


def test_classes_of_another_order_are_the_same_classes() -> None:
    kind = Label("late", kind="multi_class")
    first = result(1, "one", kind, np.stack([1 - GOOD, GOOD], axis=1), classes=("no", "yes"), log_loss=0.5623)
    second = result(2, "other", kind, np.stack([GOOD, 1 - GOOD], axis=1), classes=("yes", "no"), log_loss=0.5623)
    labels = second.trained.predictions["test"]
    flipped = labels.set_column(1, "label", pa.array(1 - ACTUAL))
    cast(Any, second.trained).predictions = {"test": flipped}
    assert first.compare(second).loc["log_loss", ["from", "to"]].tolist() == [0, 0]
    with pytest.raises(ValueError, match="has the classes no, yes and models:/late/3 no, maybe; give both fits"):
        first.compare(result(3, "other", kind, np.stack([GOOD, GOOD], axis=1), classes=("no", "maybe")))


def test_classes_of_another_order_are_other_classes_of_an_ordinal_label() -> None:
    scores = np.stack([1 - GOOD, GOOD], axis=1)
    rising, falling = (Label("late", "ordinal", classes=classes) for classes in (("no", "yes"), ("yes", "no")))
    first = result(1, "one", rising, scores, classes=("no", "yes"), rank_mae=0.1)
    same = first.compare(result(2, "other", rising, scores, classes=("no", "yes"), rank_mae=0.1))
    # The order of equal predictions is that of the first row: none differs.
    assert same.loc["rank_mae", ["difference", "from", "to"]].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="yes, no; give both fits the label with the same classes in the same order"):
        first.compare(result(3, "other", falling, scores[:, ::-1], classes=("yes", "no"), rank_mae=0.1))


def test_results_with_other_test_rows_are_not_compared() -> None:
    with pytest.raises(
        ValueError,
        match=r"models:/late/1 was tested on 200 rows and models:/late/2 on 150, of which 150 are the same; give both "
        r"fits the same table, keys, time and seed",
    ):
        result(1).compare(result(2, "other", rows=slice(150)))
    relabelled = result(2, "other")
    predicted = relabelled.trained.predictions["test"].set_column(1, "label", pa.array(1 - ACTUAL))
    cast(Any, relabelled.trained).predictions = {"test": predicted}
    with pytest.raises(ValueError, match="have different labels or weights for the same keys; to compare the two"):
        result(1).compare(relabelled)


def test_results_for_different_labels_are_not_compared() -> None:
    with pytest.raises(
        ValueError, match=r"predicts late \(binary\), the other delay \(numeric\); compare two models of one"
    ):
        result(1, auc=0.7).compare(result(1, "other", Label("delay", kind="numeric"), rmse=0.8))


def test_a_result_is_a_few_lines_with_its_verdict_and_places(tmp_path: Path) -> None:
    """#52: name, rows, metrics next to the baseline's, the model's URI and the run's folder; the table has the rest."""
    others = [{**BASELINE, "name": name} for name in "abc"]
    verdict = BaselineComparison(METRICS, as_baseline([BASELINE, *others]), {})
    rows = {"train": 244_737, "validation": 28_618, "test": 53_991}
    whole = replace(trained(tmp_path), registered_model="late", verdict=verdict, chosen="the better one", rows=rows)
    spec = FeatureSpec((Numeric("km"),), LATE, ("row",))
    text = repr(FitResult(whole, cast(Any, SimpleNamespace(spec=spec)), cast(Any, None), cast(Any, None)))
    lines = text.splitlines()
    assert lines[0] == "models:/late/3: probability that late is yes"
    assert lines[1].startswith("The model is better than gradient boosting on the test rows in AUC (0.6997 against")
    assert lines[2:] == [
        "registered              the better one",
        "rows                    244,737 train, 28,618 validation, 53,991 test",
        "test                    auc 0.6997, pr_auc 0.4433, log_loss 0.5144",
        "hist_gradient_boosting  auc 0.6963, pr_auc 0.4582, log_loss 0.5145",
        "a                       auc 0.6963, pr_auc 0.4582, log_loss 0.5145",
        "compared                with b, c, too",
        f"run folder              {tmp_path}",
        f"report                  {tmp_path / 'report.html'}",
    ]
    assert repr(whole).splitlines()[1:] == lines[1:]
    unnamed = repr(replace(whole, withheld="This version has no alias, because gradient boosting is better"))
    assert unnamed.splitlines()[2] == "This version has no alias, because gradient boosting is better."


def test_a_notebook_shows_ten_metrics_and_the_others_behind_a_summary(tmp_path: Path) -> None:
    for count in (10, 11):
        verdict = BaselineComparison({"test": {f"m{number}": 0.5 for number in range(count)}}, {}, {})
        page = trained_html(replace(trained(tmp_path), verdict=verdict))
        assert page.count(">m0<") == (1 if count == 10 else 2)
        assert page.count(">m10<") == (count == 11)
        assert ("all 11 metrics" in page) is (count == 11)


def test_a_report_is_a_path_and_in_a_notebook_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs" / "late & more"
    folder.mkdir(parents=True)
    report = trained(folder).report
    assert (repr(report), os.fspath(report)) == (str(folder / "report.html"), str(folder / "report.html"))
    assert report.read_text(encoding="utf-8") == "<p>all of it</p>"
    assert pickle.loads(pickle.dumps(report)) == report  # noqa: S301 - our own
    assert f'href="file://{tmp_path}/runs/late%20%26%20more/report.html"' in report._repr_html_()
    monkeypatch.chdir(tmp_path)
    assert 'href="runs/late%20%26%20more/report.html"' in report._repr_html_()
    assert "late &amp; more/report.html</a>" in report._repr_html_()
    report.unlink()
    assert "is not there" in report._repr_html_()
