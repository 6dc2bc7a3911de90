"""Metrics of scores and ranked lists equal hand-worked numbers and scikit-learn (F7)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from mirrorspark.training.results.evaluation.metrics import (
    binary_metrics,
    catalogue_metrics,
    check_binary_label,
    is_better,
    multi_class_metrics,
    multi_label_metrics,
    ranking_metrics,
    regression_metrics,
)

# By descending score: 1, 0, 1, 0.
LABEL = [0, 0, 1, 1]
SCORE = [0.1, 0.4, 0.35, 0.8]


def test_binary_metrics_hold_hand_worked_numbers() -> None:
    result = binary_metrics(LABEL, SCORE)
    assert result["auc"] == pytest.approx(0.75)
    assert result["pr_auc"] == pytest.approx((1 + 2 / 3) / 2)
    assert result["log_loss"] == pytest.approx(-(math.log(0.9) + math.log(0.6) + math.log(0.35) + math.log(0.8)) / 4)
    assert result["brier"] == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4)
    assert result["base_rate"] == 0.5


def test_recall_at_precision_is_the_largest_recall_that_keeps_it() -> None:
    """F7: recall at desired precision."""
    result = binary_metrics(LABEL, SCORE)
    # Precision is 1 at recall 1/2, then 1/2, then 2/3 at recall 1.
    assert result["recall_at_precision_0.3"] == 1.0
    assert result["recall_at_precision_0.5"] == 1.0
    assert result["recall_at_precision_0.7"] == 0.5


def test_recall_at_an_unreachable_precision_is_zero() -> None:
    assert binary_metrics([1, 0, 0, 0], [0.1, 0.2, 0.3, 0.4])["recall_at_precision_0.5"] == 0.0


def test_weighted_metrics_equal_repeated_rows() -> None:
    weighted = binary_metrics(LABEL, SCORE, [1, 0, 2, 3])
    repeated = binary_metrics([0, 1, 1, 1, 1, 1], [0.1, 0.35, 0.35, 0.8, 0.8, 0.8])
    assert weighted == pytest.approx(repeated)


def test_binary_metrics_agree_with_scikit_learn_on_float32() -> None:
    """F7: test vs scikit-learn; models give float32, whose 0 and 1 must not make the loss infinite."""
    generator = np.random.default_rng(11)
    score = generator.random(2_000).astype(np.float32)
    score[:2] = [0, 1]
    label = (generator.random(2_000) < score).astype(np.float32)
    result = binary_metrics(label, score)
    exact = score.astype(np.float64)
    assert result["auc"] == pytest.approx(metrics.roc_auc_score(label, score))
    assert result["pr_auc"] == pytest.approx(metrics.average_precision_score(label, score))
    assert result["log_loss"] == pytest.approx(metrics.log_loss(label, exact))
    assert result["brier"] == pytest.approx(np.mean((exact - label) ** 2))
    assert all(isinstance(value, float) and math.isfinite(value) for value in result.values())


@pytest.mark.parametrize(
    ("label", "score", "weight", "message"),
    [
        ([0, 0], [0.1, 0.2], None, r"label has one class only \(0\) in split 'test' \(2 rows\)"),
        ([0, 1], [0.1, 0.2], [1, 0], r"label has one class only \(0\) in split 'test' \(1 rows\)"),
        ([], [], None, "split 'test' has no rows"),
        ([0, 2], [0.1, 0.2], None, "label is 2 in row 1 of split 'test'"),
        ([0, 1], [0.1], None, r"score has shape \(1,\) but label has \(2,\) in split 'test'"),
        ([0, 1], [0.1, 1.2], None, r"score is 1.2 in row 1 of split 'test' \(1 such rows\)"),
        ([0, 1], [math.nan, 0.2], None, "score is nan in row 0"),
        ([0, 1], [0.1, 0.2], [1, -1], "weight is -1.0 in row 1"),
        ([[0, 1]], [[0.1, 0.2]], None, r"label has shape"),
    ],
)
def test_input_without_metrics_is_refused_in_one_clear_line(
    label: list[int], score: list[float], weight: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        binary_metrics(label, score, weight)


def test_messages_name_the_split() -> None:
    with pytest.raises(ValueError, match="in split 'validation'"):
        check_binary_label([1, 1], split="validation")


# By descending score, the first row's labels are 1, 0, 1, 0, the second's 0, 1, 0, 0.
LABELS = [[1, 1, 0, 0], [0, 1, 0, 0]]
SCORES = [[0.9, 0.3, 0.7, 0.1], [0.8, 0.6, 0.2, 0.4]]


def test_multi_label_metrics_hold_hand_worked_numbers() -> None:
    """F7: over the eight pairs of a row and a label, and over the best labels of each row."""
    result = multi_label_metrics(LABELS, SCORES)
    # Positives at 0.9, 0.3 and 0.6; negatives at 0.7, 0.1, 0.8, 0.2 and 0.4: 5, 2 and 3 of five lie below.
    assert result["auc"] == pytest.approx(10 / 15)
    assert result["base_rate"] == 3 / 8
    right = (0.9, 0.3, 0.3, 0.9, 0.2, 0.6, 0.8, 0.6)
    assert result["log_loss"] == pytest.approx(-sum(map(math.log, right)) / 8)
    assert result["precision_at_1"] == 0.5
    assert result["precision_at_3"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    # There are four labels.
    assert "precision_at_5" not in result


def test_multi_label_metrics_agree_with_scikit_learn() -> None:
    generator = np.random.default_rng(7)
    scores = generator.random((300, 20)).astype(np.float32)
    labels = (generator.random((300, 20)) < scores / 3).astype(np.float32)
    weight = generator.integers(0, 3, 300)
    result = multi_label_metrics(labels, scores, weight)
    assert result["auc"] == pytest.approx(metrics.roc_auc_score(labels, scores, average="micro", sample_weight=weight))
    assert result["pr_auc"] == pytest.approx(
        metrics.average_precision_score(labels, scores, average="micro", sample_weight=weight)
    )
    best = np.argsort(-scores, axis=1)[:, :5]
    hits = np.take_along_axis(labels, best, axis=1).mean(axis=1)
    assert result["precision_at_5"] == pytest.approx(np.average(hits, weights=weight))


def test_labels_and_scores_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"label has shape \(2, 4\) and scores \(2, 3\) in split 'test'"):
        multi_label_metrics(LABELS, np.ones((2, 3)))


def test_ranking_metrics_hold_hand_worked_numbers() -> None:
    recommended = [[7, 8, 9], [7, 8, 9], [7, 8, 9], [7, 8, 9]]
    held_back = [7, 9, 8, 1]  # ranks 1, 3, 2, not listed
    result = ranking_metrics(recommended, held_back, ks=(1, 2, 3))
    assert result["recall_at_1"] == 0.25
    assert result["recall_at_2"] == 0.5
    assert result["recall_at_3"] == 0.75
    assert result["ndcg_at_1"] == 0.25
    assert result["ndcg_at_2"] == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert result["ndcg_at_3"] == pytest.approx((1 + 1 / math.log2(3) + 1 / 2) / 4)
    assert result["mrr_at_1"] == 0.25
    assert result["mrr_at_3"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 4)


def test_rows_of_one_query_are_several_relevant_items_of_its_first_list() -> None:
    lists = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [4, 5, 6], [9, 9, 9]]
    result = ranking_metrics(lists, [3, 5, 1, 6, 8], ks=(2, 3), queries=["u", "v", "u", "v", "u"])
    # u wants 1, 3 and 8, and has ranks 1 and 3; v wants 5 and 6, and has ranks 2 and 3.
    assert result["recall_at_2"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert result["recall_at_3"] == pytest.approx((2 / 3 + 1) / 2)
    second, third = 1 / math.log2(3), 1 / 2
    assert result["ndcg_at_2"] == pytest.approx((1 / (1 + second) + second / (1 + second)) / 2)
    of_u, of_v = (1 + third) / (1 + second + third), (second + third) / (1 + second)
    assert result["ndcg_at_3"] == pytest.approx((of_u + of_v) / 2)
    assert result["mrr_at_3"] == pytest.approx((1 + 1 / 2) / 2)
    assert result["hit_rate_at_2"] == 1.0
    assert result["map_at_3"] == pytest.approx(((1 + 2 / 3) / 3 + (1 / 2 + 2 / 3) / 2) / 2)


@given(seed=st.integers(0, 2**32 - 1), users=st.integers(1, 6), k=st.integers(1, 8))
def test_metrics_of_lists_equal_those_of_a_full_sort_of_all_scores(seed: int, users: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.permuted(np.tile(np.arange(8.0), (users, 1)), axis=1)
    relevant = [generator.choice(8, generator.integers(1, 6), replace=False) for _ in range(users)]
    ranked = np.argsort(-scores, axis=1)
    query = np.repeat(np.arange(users), [len(items) for items in relevant])
    result = ranking_metrics(ranked[query, :k], np.concatenate(relevant), ks=(k,), queries=query)
    truth = np.array([np.isin(np.arange(8), items) for items in relevant])
    recalls, ranks = [], []
    for user, items in enumerate(relevant):
        mine = sorted(int((scores[user] > scores[user, item]).sum()) + 1 for item in items)
        recalls.append(sum(rank <= k for rank in mine) / len(mine))
        ranks.append(mine[0])
    assert result[f"recall_at_{k}"] == pytest.approx(np.mean(recalls))
    assert result[f"ndcg_at_{k}"] == pytest.approx(metrics.ndcg_score(truth, scores, k=k))
    assert result[f"mrr_at_{k}"] == pytest.approx(np.mean([1 / rank if rank <= k else 0 for rank in ranks]))
    assert result[f"hit_rate_at_{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
    everything = ranking_metrics(ranked[query], np.concatenate(relevant), ks=(8,), queries=query)
    precision = [metrics.average_precision_score(*of) for of in zip(truth, scores, strict=True)]
    assert everything["map_at_8"] == pytest.approx(np.mean(precision))


def test_what_lists_show_of_the_catalogue() -> None:
    # Candidates with 4, 2, 1, 1 and 0 interactions; the last list is empty, the one before it half empty.
    result = catalogue_metrics([[0, 1], [0, 3], [4, -1], [-1, -1]], [4, 2, 1, 1, 0])
    assert result == {"coverage": 0.8, "mean_popularity": (3 + 2.5 + 0) / 3, "novelty": (1.5 + 2 + 3) / 3}
    assert catalogue_metrics([[-1]], [1]) == {"coverage": 0.0, "mean_popularity": 0.0, "novelty": 0.0}


def test_ndcg_agrees_with_scikit_learn() -> None:
    generator = np.random.default_rng(2)
    recommended = np.stack([generator.permutation(30) for _ in range(50)])
    held_back = generator.integers(0, 30, 50)
    result = ranking_metrics(recommended, held_back)
    relevance = (recommended == held_back[:, None]).astype(int)
    descending = np.tile(np.arange(30, 0, -1), (50, 1))
    for k in (5, 10, 20):
        assert result[f"ndcg_at_{k}"] == pytest.approx(metrics.ndcg_score(relevance, descending, k=k))
        assert result[f"recall_at_{k}"] == pytest.approx(relevance[:, :k].sum() / 50)


def test_an_item_listed_twice_counts_once_at_its_first_rank() -> None:
    assert ranking_metrics([[5, 5]], [5], ks=(2,)) == {"recall_at_2": 1.0, "ndcg_at_2": 1.0, "mrr_at_2": 1.0}


def test_text_ids_are_compared_as_text() -> None:
    assert ranking_metrics([["a", "b"]], ["b"], ks=(2,))["recall_at_2"] == 1.0
    with pytest.raises(ValueError, match="use the same ids in both"):
        ranking_metrics([["1", "2"]], [2], ks=(2,))


@pytest.mark.parametrize(
    ("recommended", "held_back", "message"),
    [
        ([[1, 2]], [1], "k 5 is not between 1 and the 2 recommended ids"),
        ([[1, 2]], [1, 2], r"recommended_ids has shape \(1, 2\) and held_back \(2,\)"),
        (np.empty((0, 20), dtype=int), np.empty(0, dtype=int), "held_back has no rows"),
    ],
)
def test_rankings_without_metrics_are_refused(recommended: object, held_back: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranking_metrics(recommended, held_back)  # type: ignore[arg-type]


def test_errors_of_numbers_worked_by_hand() -> None:
    found = regression_metrics([1.0, 3.0, 5.0, 7.0], [1.0, 4.0, 5.0, 5.0], [1, 1, 1, 1])
    assert found == pytest.approx({"rmse": (5 / 4) ** 0.5, "mae": 0.75, "r2": 1 - 5 / 20, "bias": -0.25})
    heavy = regression_metrics([1.0, 3.0], [1.0, 4.0], [3, 1])
    assert heavy["mae"] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="split 'test' has no rows"):
        regression_metrics([], [])


def test_classes_worked_by_hand() -> None:
    scores = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]]
    found = multi_class_metrics([0, 1, 1, 2], scores)
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx(np.mean([2 / 3, 2 / 3, 1.0]))
    assert found["log_loss"] == pytest.approx(-np.log([0.7, 0.8, 0.4, 0.6]).mean())
    assert found["base_rate"] == 0.5
    with pytest.raises(ValueError, match=r"scores has shape \(2,\) and label \(2,\)"):
        multi_class_metrics([0, 1], [0.5, 0.5])


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
