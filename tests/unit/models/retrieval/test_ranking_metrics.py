"""R2: ranked lists against hand-worked numbers, against scikit-learn, and against a full sort of all scores."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from mirrorspark.models.retrieval.list_metrics import catalogue_metrics, ranking_metrics


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
    # Of one relevant item they are the same.
    for k in (1, 2, 3):
        assert (result[f"hit_rate_at_{k}"], result[f"map_at_{k}"]) == (result[f"recall_at_{k}"], result[f"mrr_at_{k}"])


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
    found = ranking_metrics([[5, 5]], [5], ks=(2,))
    assert found == {f"{name}_at_2": 1.0 for name in ("recall", "ndcg", "mrr", "hit_rate", "map")}


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
