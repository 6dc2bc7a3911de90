"""Short trainings on parts of the sets of docs/quality.md: the cost of a change of a layer, a loss or an optimizer.

A floor is somewhat below what was measured, and above what simpler models reach; ``make quality`` has the whole sets.
The shortest training is in every run of the tests.
"""

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quality_gowalla, quality_multi_label, quality_ratings, quality_sequences, quality_tables
from mirrorspark.models.classical import Recommender


def test_adult_with_numbers_in_pieces(shared_data: Path) -> None:
    """A quarter of the training rows, three epochs: 0.904 was measured."""
    fitted, rows, _ = quality_tables.read_adult(shared_data / "adult")
    train = rows["train"]
    few = quality_tables.Rows({name: of[::4] for name, of in train.inputs.items()}, train.labels[::4])
    how = quality_tables.arguments([str(shared_data)])
    options = {"numeric_embedding": "piecewise", "members": 4}
    model, *_ = quality_tables._trained(fitted, few, None, options, 1, how, epochs=3)
    scores = 1 / (1 + np.exp(-quality_tables._logits(model, rows["validation"])))
    assert quality_tables.binary_metrics(rows["validation"].labels, scores)["auc"] > 0.895


@pytest.mark.full
@pytest.mark.parametrize(("name", "epochs", "floor"), [("bibtex", 3, 0.45), ("rcv1_subset1", 2, 0.85)])
def test_several_labels(shared_data: Path, name: str, epochs: int, floor: float) -> None:
    """One member, three quarters of the rows: a P@1 of 0.50 and 0.90 was measured."""
    known, _ = quality_multi_label.read(shared_data, name)
    end = len(known.labels) * 3 // 4
    train, held = known[:end], known[end:]
    given = argparse.Namespace(options={"members": 1}, rate=None, decay=0.01, batch=None)
    trained = quality_multi_label.network(train, held, name, given, seed=1)
    scores = [next(trained) for _ in range(epochs)][-1]
    assert quality_multi_label.quality(held.labels, scores, 0.5)["P@1"] > floor


@pytest.mark.full
def test_ratings_beat_biases(shared_data: Path) -> None:
    """Every other user, two epochs of one member: an RMSE of 0.829 was measured, against 0.849 of the biases."""
    ratings = quality_ratings.read_ratings(shared_data / "ml_latest_small")
    ratings = ratings[ratings["userId"] % 2 == 0].reset_index(drop=True)
    is_test = np.random.default_rng(0).permutation(len(ratings)) % 5 == 0
    given = argparse.Namespace(options={"members": 1}, rate=0.003, decay=0.3, batch=512, epochs=2)
    rows = quality_ratings.fitted_rows(ratings[~is_test], ratings[is_test])
    rmse, _ = quality_ratings.trained(*rows, 1, given, told=False)
    assert rmse < quality_ratings.biases_rmse(ratings, is_test) - 0.01


@pytest.mark.full
def test_attention_over_sequences(shared_data: Path) -> None:
    """Two epochs: HR@10 and NDCG@10 of the validation items were 0.052 and 0.027."""
    fitted, users = quality_sequences.read_histories(shared_data / "amazon_beauty_seq" / "Beauty.txt")
    recipe = quality_sequences.RECIPES["sasrec"]
    found = quality_sequences.train(fitted, users, recipe, 1, epochs=2, patience=9, limit=60.0, every=2)
    assert found.validation[0] > 0.045
    assert found.validation[1] > 0.022


@pytest.mark.full
def test_neighbours_on_gowalla(shared_data: Path) -> None:
    """The whole set, without chance: the figures of the page."""
    checkins, held = quality_gowalla.known_and_held(shared_data / "gowalla_lightgcn", choose=False)
    found = quality_gowalla.measure(Recommender.parse("item_knn"), checkins, held, seed=1)
    assert (found["recall"], found["ndcg"]) == (pytest.approx(0.1336, abs=1e-4), pytest.approx(0.1014, abs=1e-4))
