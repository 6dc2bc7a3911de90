"""The parity check reports every difference between two scorings and passes only when none matters (S14)."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mirrorspark.scoring.parity import join_on_keys, parity, ranking_parity


def test_identical_scores_give_zeros_and_pass() -> None:
    """S14: identical -> zeros."""
    report = parity([0.1, 0.5, 0.9], [0.1, 0.5, 0.9])
    assert report.passed
    assert (report.rows, report.mean, report.std, report.p99, report.max) == (3, 0, 0, 0, 0)
    assert (report.max_relative, report.above_tolerance, report.threshold_flips) == (0, 0, 0)
    assert report.worst == ()


def test_one_bad_row_among_many_fails_although_p99_passes() -> None:
    """S14: 7e-3 on one of 440,000 rows must fail the gate although P99 passes."""
    reference = np.linspace(0.01, 0.99, 440_000)
    candidate = reference.copy()
    candidate[123] += 7e-3
    report = parity(reference, candidate)
    assert report.p99 == 0
    assert report.max == pytest.approx(7e-3)
    assert report.above_tolerance == 1
    assert not report.passed
    assert [row.keys for row in report.worst] == [{"row": 123}]


def test_statistics_hold_hand_worked_numbers() -> None:
    # Differences 0, 0.1, 0.2, 0.3, 0.4.
    report = parity([0.0, 0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0, 0.0], threshold=None)
    assert report.mean == pytest.approx(0.2)
    assert report.std == pytest.approx(math.sqrt(0.1 / 4))
    assert (report.p25, report.p50, report.p75) == pytest.approx((0.1, 0.2, 0.3))
    assert report.p99 == pytest.approx(0.396)
    assert report.max == pytest.approx(0.4)
    assert report.max_relative == pytest.approx(1.0)
    assert report.above_tolerance == 4


def test_statistics_agree_with_pandas_describe() -> None:
    generator = np.random.default_rng(3)
    reference, candidate = generator.random(1_001), generator.random(1_001)
    report = parity(reference, candidate)
    described = pd.Series(np.abs(reference - candidate)).describe(percentiles=[0.25, 0.5, 0.75, 0.99])
    assert [report.mean, report.std, report.p25, report.p50, report.p75, report.p99, report.max] == pytest.approx(
        described[["mean", "std", "25%", "50%", "75%", "99%", "max"]].tolist()
    )


def test_a_score_that_crosses_the_threshold_fails_within_tolerance() -> None:
    report = parity([0.5, 0.2], [0.499999, 0.2], tolerance=1e-5)
    assert report.max < report.tolerance
    assert report.threshold_flips == 1
    assert not report.passed
    assert parity([0.5, 0.2], [0.499999, 0.2], tolerance=1e-5, threshold=None).passed


@pytest.mark.parametrize(
    ("reference", "candidate"), [([math.nan], [0.5]), ([0.5], [math.nan]), ([math.nan], [math.nan])]
)
def test_nan_is_an_infinite_difference_on_either_side_and_on_both(
    reference: list[float], candidate: list[float]
) -> None:
    report = parity([0.1, 0.2, 0.3, *reference], [0.1, 0.2, 0.3, *candidate], threshold=None)
    assert report.nans == 1
    assert report.max == report.mean == report.std == report.max_relative == math.inf
    assert report.p50 == 0
    assert report.p99 == math.inf
    assert report.above_tolerance == 1
    assert not report.passed


def test_equal_infinities_do_not_differ_and_opposite_ones_do() -> None:
    assert parity([math.inf, -math.inf], [math.inf, -math.inf]).passed
    assert parity([math.inf], [-math.inf]).max == math.inf


def test_worst_rows_come_largest_first_with_keys_and_both_scores() -> None:
    keys = {"customer_id": np.array([7, 8, 9, 10]), "day": ["mo", "tu", "we", "th"]}
    report = parity([0.1, 0.2, 0.3, 0.4], [0.1, 0.25, 0.2, 0.41], keys=keys, worst=2)
    first, second = report.worst
    assert first.keys == {"customer_id": 9, "day": "we"}
    assert (first.reference, first.candidate) == (0.3, 0.2)
    assert first.difference == pytest.approx(0.1)
    assert second.keys == {"customer_id": 8, "day": "tu"}


def test_keys_may_be_an_arrow_table() -> None:
    keys = pa.table({"id": pa.array(["a", "b"])})
    assert parity([0.1, 0.2], [0.1, 0.9], keys=keys).worst[0].keys == {"id": "b"}


def test_several_outputs_are_compared_by_name() -> None:
    report = parity({"click": [0.1, 0.2], "buy": [0.3, 0.4]}, {"buy": [0.3, 0.6], "click": [0.1, 0.2]}, threshold=None)
    assert report.rows == 2
    assert report.worst[0].keys == {"row": 1, "output": "buy"}
    with pytest.raises(ValueError, match=r"reference has outputs \['click'\] but candidate has \['buy'\]"):
        parity({"click": [0.1]}, {"buy": [0.1]})


@pytest.mark.parametrize(
    ("reference", "candidate", "message"),
    [
        ([], [], "at least one row"),
        ([0.1, 0.2], [0.1], r"shape \(2, 1\) but candidate has \(1, 1\)"),
        ([[0.1]], [[0.1]], "one score per row"),
        ({}, {}, "no outputs"),
        ({"a": [0.1], "b": [0.1, 0.2]}, {"a": [0.1], "b": [0.1]}, "'b' has 2 rows but 'a' has 1"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(reference: object, candidate: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parity(reference, candidate)  # type: ignore[arg-type]


def test_keys_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="key column 'id' has 1 rows but there are 2 scores"):
        parity([0.1, 0.2], [0.1, 0.2], keys={"id": [1]})


def test_table_lists_the_statistics_in_the_usual_order() -> None:
    """S14: count/mean/std/P25/P50/P75/P99/max, plus what decides the verdict."""
    text = parity([0.1, 0.7], [0.1, 0.2], keys={"id": [4, 5]}).as_table()
    lines = text.splitlines()
    titles = [line.split()[0] for line in lines[1:9]]
    assert titles == ["count", "mean", "std", "P25", "P50", "P75", "P99", "max"]
    assert lines[1].split() == ["count", "2"]
    assert lines[8].split() == ["max", "5.000e-01"]
    assert "FAILED" in text
    assert lines[-1] == "  id=5: reference 0.7, candidate 0.2, difference 5.000e-01"
    assert "passed" in parity([0.1], [0.1]).as_table()


def test_dictionary_is_strict_json_even_with_nan_and_dates() -> None:
    keys = pa.table({"day": pa.array([19_000], pa.date32())})
    plain = parity([0.1], [math.nan], keys=keys).to_dict()
    text = json.dumps(plain, allow_nan=False)
    assert json.loads(text) == plain
    assert (plain["max"], plain["passed"], plain["rows"]) == ("inf", False, 1)
    assert plain["worst"] == [
        {"keys": {"day": "2022-01-08"}, "reference": 0.1, "candidate": "nan", "difference": "inf"}
    ]


IDS = np.array([[1, 2, 3], [4, 5, 6]])
SCORES = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]])


def test_identical_rankings_pass() -> None:
    report = ranking_parity(IDS, IDS, SCORES, SCORES)
    assert report.passed
    assert report.identical_order_share == 1.0
    assert report.max == 0
    assert report.threshold is None


def test_swapped_items_fail_although_scores_by_rank_agree() -> None:
    swapped = np.array([[1, 2, 3], [5, 4, 6]])
    report = ranking_parity(IDS, swapped, SCORES, SCORES, keys={"user": ["a", "b"]})
    assert report.identical_order_share == 0.5
    assert report.order_changes == 1
    assert not report.passed
    assert report.worst[0].keys == {"user": "b", "rank": 1, "reference_id": 4, "candidate_id": 5}
    assert "order changes" in report.as_table()


def test_items_that_tie_may_trade_places_and_leave_the_end_of_the_list() -> None:
    ids = np.array([[1, 2, 3]])
    scores = np.array([[0.9, 0.9 - 1e-7, 0.7]])
    report = ranking_parity(ids, np.array([[2, 1, 8]]), scores, scores)
    assert report.identical_order_share == 0
    assert report.order_changes == 0
    assert report.passed


def test_an_unlisted_item_at_the_top_is_a_change_of_order() -> None:
    report = ranking_parity([[1, 2]], [[8, 2]], [[0.9, 0.7]], [[0.9, 0.7]])
    assert report.order_changes == 1
    assert not report.passed


def test_ranking_scores_that_differ_fail_with_the_same_order() -> None:
    report = ranking_parity(IDS, IDS, SCORES, SCORES + np.array([[0, 0, 0.01], [0, 0, 0]]))
    assert report.max == pytest.approx(0.01)
    assert report.identical_order_share == 1.0
    assert not report.passed
    assert report.worst[0].keys == {"row": 0, "rank": 3, "reference_id": 3, "candidate_id": 3}


def test_rankings_of_unequal_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\) but candidate has \(2, 2\)"):
        ranking_parity(IDS, IDS[:, :2], SCORES, SCORES)
    with pytest.raises(ValueError, match=r"reference_scores has shape \(3,\)"):
        ranking_parity(IDS[0], IDS[0], SCORES[0], SCORES[0])


def test_join_aligns_the_candidate_with_the_reference_order() -> None:
    generator = np.random.default_rng(5)
    order = generator.permutation(1_000)
    reference = pa.table({"id": np.arange(1_000), "part": np.arange(1_000) % 3, "score": np.arange(1_000) / 1_000})
    left, right = join_on_keys(reference, reference.take(pa.array(order)), ["id", "part"])
    assert left.equals(reference)
    assert right.equals(reference)


def test_join_accepts_keys_of_another_integer_width_and_string_encoding() -> None:
    reference = pa.table({"id": pa.array([1, 2], pa.int64()), "name": pa.array(["a", "b"])})
    candidate = pa.table({"id": pa.array([2, 1], pa.int32()), "name": pa.array(["b", "a"], pa.large_string())})
    _, right = join_on_keys(reference, candidate, ["id", "name"])
    assert right["id"].to_pylist() == [1, 2]


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (
            {"id": [1, 2]},
            r"candidate lacks 1 keys that reference has, for example id=3 \(reference 3 rows, candidate 2",
        ),
        ({"id": [1, 2, 3, 4]}, r"reference lacks 1 keys that candidate has, for example id=4"),
        ({"id": [1, 2, 2, 3]}, r"candidate has 1 keys more than once, for example id=2; keys must"),
        ({"id": [1, 2, None]}, r"candidate key 'id' is null in 1 rows"),
        ({"other": [1, 2, 3]}, r"candidate has no key column 'id'; it has \['other'\]"),
        ({"id": ["a", "b", "c"]}, r"key 'id' is int64 in reference but string in candidate"),
    ],
)
def test_join_refuses_keys_that_do_not_pair_rows_one_to_one(candidate: dict[str, list[object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join_on_keys(pa.table({"id": [1, 2, 3]}), pa.table(candidate), ["id"])


def test_join_refuses_no_keys() -> None:
    with pytest.raises(ValueError, match="keys is empty"):
        join_on_keys(pa.table({"id": [1]}), pa.table({"id": [1]}), [])
