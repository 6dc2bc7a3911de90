"""S14: a sample goes through two scorings: rows joined on keys, scores and their order compared, the report kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mirrorspark.scoring.parity import log_parity, parity, parity_check
from mirrorspark.scoring.parity.order import label_changes, rank_changes
from tests.unit.mlflow_stores import new_store

Way = Callable[[object], pa.Table]


def scores(*values: object) -> Way:
    """Return a way that gives rows 1, 2, … these scores, whatever the sample."""
    return lambda _: pa.table({"id": range(1, len(values) + 1), "score": list(values)})


def test_both_functions_get_the_sample_and_rows_are_joined_on_keys() -> None:
    def reference(sample: pa.Table) -> pa.Table:
        return pa.table({"id": sample["id"], "score": sample["x"]})

    def scorer(sample: pa.Table) -> pa.Table:
        scored = pa.table({"id": sample["id"].cast(pa.int32()), "score": sample["x"], "model_version": ["m/1"] * 3})
        return scored.take(pa.array([2, 0, 1]))

    report = parity_check(reference, scorer, pa.table({"id": [1, 2, 3], "x": [0.1, 0.2, 0.3]}), keys="id")
    assert report.passed
    assert (report.rows, report.max, report.order_changes, report.identical_order_share) == (3, 0, 0, 1)


def test_a_sample_may_be_a_dataframe_and_keys_several_columns() -> None:
    sample = pd.DataFrame({"day": ["mo", "mo", "tu"], "id": [1, 2, 1], "x": [0.1, 0.2, 0.3]})

    def reference(frame: pd.DataFrame) -> pa.Table:
        return pa.table({"day": frame["day"], "id": frame["id"], "score": frame["x"]})

    def scorer(frame: pd.DataFrame) -> pa.Table:
        return pa.table({"day": frame["day"], "id": frame["id"], "score": frame["x"].where(frame["x"] < 0.3, 0.9)})

    report = parity_check(reference, scorer, sample, keys=["day", "id"])
    assert [row.keys for row in report.worst] == [{"day": "tu", "id": 1}]
    assert report.max == pytest.approx(0.6)


def test_a_score_that_crosses_the_threshold_fails_and_is_named_by_its_key() -> None:
    report = parity_check(scores(0.1, 0.5, 0.9), scores(0.1, 0.4, 0.9), None, keys="id", tolerance=1, threshold=0.5)
    assert report.max <= report.tolerance
    assert (report.threshold_flips, report.order_changes, report.passed) == (1, 0, False)
    assert [row.keys for row in report.worst] == [{"id": 2}]
    assert parity_check(scores(0.5), scores(0.4), None, keys="id", tolerance=1).passed


def test_rows_that_trade_places_fail_unless_they_tie() -> None:
    before, after = scores(0.1, 0.2, 0.3, 0.4), scores(0.1, 0.35, 0.3, 0.4)
    report = parity_check(before, after, None, keys="id")
    assert (report.order_changes, report.identical_order_share) == (2, 0.5)
    assert "order changes" in report.as_table()
    tied = parity_check(before, after, None, keys="id", tolerance=0.2)
    assert (tied.order_changes, tied.identical_order_share, tied.passed) == (0, 0.5, True)


def test_rank_changes_agree_with_a_comparison_of_all_pairs() -> None:
    generator = np.random.default_rng(7)
    tolerance = 1 / 16  # these numbers have no rounding
    for _ in range(20):
        expected, actual = generator.integers(0, 64, (2, 100)) / 64
        actual = np.where(generator.random(100) < 0.7, expected, actual)
        is_clearly_lower = expected[:, None] < expected[None, :] - tolerance
        trades = is_clearly_lower & (actual[:, None] > actual[None, :])
        changed = trades.any(axis=0) | trades.any(axis=1)
        assert rank_changes(expected, actual, tolerance).rows == changed.sum() > 0


def test_a_null_score_is_nan_and_has_no_place_in_the_order() -> None:
    report = parity_check(scores(0.1, 0.2, None), scores(0.1, 0.2, 0.3), None, keys="id")
    assert (report.nans, report.order_changes, report.passed) == (1, 0, False)
    assert report.identical_order_share == pytest.approx(2 / 3)


def test_a_label_that_takes_the_place_of_the_best_one_is_a_change() -> None:
    before, after = scores([0.9, 0.5, 0.1], [0.2, 0.3, 0.25]), scores([0.9, 0.5, 0.1], [0.3, 0.2, 0.25])
    report = parity_check(before, after, None, keys="id", tolerance=0.05)
    assert (report.rows, report.order_changes, report.identical_order_share) == (2, 1, 0.5)
    assert [row.keys for row in report.worst] == [{"id": 2, "output": "0"}, {"id": 2, "output": "1"}]
    assert parity_check(before, after, None, keys="id", tolerance=0.2).passed


@pytest.mark.parametrize(
    ("expected", "actual", "top_k", "rows"),
    [
        ([0.5, 0.5 - 1e-7, 0.1], [0.5 - 1e-7, 0.5, 0.1], 1, 0),
        ([0.9, 0.5, 0.4], [0.9, 0.4, 0.5], 1, 0),
        ([0.9, 0.5, 0.4], [0.9, 0.4, 0.5], 2, 1),
        # The label that takes the place ties with the last one of the best, not with the one that goes.
        ([0.9, 0.5, 0.5 - 1e-7], [0.1, 0.5, 0.5], 2, 1),
        ([0.9, 0.5, 0.4], [0.1, 0.5, 0.4], 3, 0),
        ([0.9, 0.5, 0.4], [0.1, 0.5, 0.4], 10, 0),
    ],
)
def test_best_labels_change_where_the_others_are_worse_by_more_than_rounding(
    expected: list[float], actual: list[float], top_k: int, rows: int
) -> None:
    assert label_changes(np.array([expected]), np.array([actual]), top_k, 1e-5).rows == rows


def test_a_row_without_a_list_counts_as_nan() -> None:
    report = parity_check(scores([0.1, 0.2], [0.3, 0.4]), scores([0.1, 0.2], None), None, keys="id")
    assert (report.rows, report.nans, report.above_tolerance) == (2, 2, 2)


def test_ranked_lists_are_compared_rank_by_rank() -> None:
    def lists(second: list[str]) -> Way:
        columns = {"user": ["u", "v"], "candidates": [["a", "b"], second], "scores": [[0.9, 0.8], [0.7, 0.6]]}
        return lambda _: pa.table(columns)

    report = parity_check(lists(["c", "d"]), lists(["d", "c"]), None, keys="user", output="scores", ids="candidates")
    assert (report.max, report.order_changes, report.identical_order_share) == (0, 1, 0.5)
    assert report.worst[0].keys == {"user": "v", "rank": 1, "reference_id": "c", "candidate_id": "d"}


@pytest.mark.parametrize(
    ("candidate", "knobs", "message"),
    [
        (scores(0.1, 0.2), {"output": "risk"}, r"reference has no column 'risk'; it has \['id', 'score'\]"),
        (scores("a", "b"), {}, "candidate 'score' has type string; name a column of numbers"),
        (scores([0.1], [0.1, 0.2]), {}, r"candidate 'score' has lists of the lengths \[1, 2\]"),
        (scores([0.1], [0.2]), {}, r"reference has shape \(2,\) but candidate has \(2, 1\)"),
        (scores(0.1, 0.2), {"ids": "score"}, "reference 'score' has type double; name a column of lists"),
        (scores(0.1, 0.2, 0.3), {}, r"reference lacks 1 keys that candidate has, for example id=3"),
        (scores(0.1, 0.2), {"top_k": 0}, "top_k 0 is below 1"),
    ],
)
def test_incomparable_values_are_refused(candidate: Way, knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parity_check(scores(0.1, 0.2), candidate, None, keys="id", **knobs)  # type: ignore[arg-type]


def test_a_run_keeps_the_report_as_artifacts_and_tags(tmp_path: Path) -> None:
    """S14: the table and all figures; checks of other names stay."""
    from mlflow import MlflowClient

    store_uri = new_store(tmp_path)
    client = MlflowClient(store_uri)
    experiment_id = client.create_experiment("checks", (tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment_id).info.run_id
    failed = parity([0.1, 0.7], [0.1, 0.2])
    log_parity(failed, run_id, tracking_uri=store_uri)
    log_parity(parity([0.1], [0.1]), run_id, tracking_uri=store_uri, name="of_sql")

    tags = client.get_run(run_id).data.tags
    assert (tags["parity_check"], tags["parity_check.max"], tags["of_sql"]) == ("FAILED", "5.000e-01", "passed")
    artifacts = {file.path for file in client.list_artifacts(run_id)}
    assert artifacts == {"parity_check.txt", "parity_check.json", "of_sql.txt", "of_sql.json"}
    [table] = (tmp_path / "artifacts").rglob("parity_check.txt")
    assert table.read_text() == failed.as_table() + "\n"
    assert json.loads(table.with_suffix(".json").read_text()) == failed.to_dict()
