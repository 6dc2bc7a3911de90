"""The protocol of the benchmark of sequences: what is learnt from, and what an item is ranked among."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.quality_sequences import batches, examples, hit_rate_and_ndcg, ranks, read_histories


def test_items_are_numbered_by_how_often_training_has_them(tmp_path: Path) -> None:
    """Without each user's last two, item 9 is there twice and item 7 once; 8 and 5 are never."""
    (tmp_path / "beauty.txt").write_text("1 9 7 8 5\n2 9 8 5\n")
    fitted, users = read_histories(tmp_path / "beauty.txt")
    assert fitted.vocabularies["item"].tokens.to_pylist()[:2] == ["9", "7"]
    assert fitted.vocabularies["item"].counts.to_pylist() == [2, 1, 0, 0]
    assert [user[0] for user in users] == [2, 2]


def test_training_sees_neither_of_the_last_two_items() -> None:
    users = [np.array([2, 3, 4, 5, 6]), np.array([7, 8, 9, 10])]
    histories, items = examples(users, every_item=False)
    assert histories[:, :3].tolist() == [[2, 3, 0], [7, 0, 0]]
    assert items.tolist() == [4, 8]
    histories, items = examples(users, every_item=True)
    assert histories[:, :3].tolist() == [[2, 0, 0], [2, 3, 0], [7, 0, 0]]
    assert items.tolist() == [3, 4, 8]
    chosen = list(batches(histories, items, 2, np.random.default_rng(1)))
    assert sorted(item for given, _, _ in chosen for item in given["item"]) == [3, 4, 8]


def test_an_item_is_ranked_among_all_that_the_user_has_not_had() -> None:
    """Scores fall with the id. Only item 3 is before the test item 6, and before the validation item 4."""
    embeddings = np.array([[-float(number)] for number in range(8)])
    model = SimpleNamespace(candidate_tower=SimpleNamespace(get_weights=lambda: [embeddings]))
    architecture = SimpleNamespace(predict=lambda _, inputs: tf.ones([len(inputs["history"]), 1], tf.float64))
    users = [np.array([2, 5, 4, 6])]
    assert ranks(architecture, model, users, back=1).tolist() == [1]
    assert ranks(architecture, model, users, back=2).tolist() == [1]


def test_hit_rate_and_ndcg_of_one_item_per_user() -> None:
    """The gain is 1 at the top and 1/2 in the third place; the eleventh is no hit."""
    assert hit_rate_and_ndcg(np.array([0, 2, 10])) == (pytest.approx(2 / 3), pytest.approx(0.5))
