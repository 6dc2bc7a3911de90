"""The benchmark of embeddings over the graph: a training that goes on in another call, and what it is measured by."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality_gowalla import Checkins
from benchmarks.quality_graph import Training

# Each of ten users has had four items in a row of thirty.
USERS = np.repeat(np.arange(10), 4)
ITEMS = USERS * 2 + np.tile(np.arange(4), 10)


def training(layers: int, state: Path | None, **options: Any) -> Training:
    given = {"seed": 1, "rate": 0.05, "batch": 16, "choose": True, "state": state, "options": {"negatives": 5}}
    return Training(Checkins(USERS, ITEMS, (10, 30)), layers, argparse.Namespace(**given | options))


@pytest.mark.parametrize("layers", [0, 2])
def test_a_training_that_goes_on_has_learnt_the_same(layers: int, tmp_path: Path) -> None:
    whole, first = training(layers, None), training(layers, tmp_path)
    for _ in range(2):
        whole.epoch()
    first.epoch()
    second = training(layers, tmp_path)
    assert second.epochs == 1
    second.epoch()
    assert second.epochs == whole.epochs == 2
    for mine, of_whole in zip(second.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, of_whole)
    with pytest.raises(SystemExit, match=r"has a training with options, batch and rate \(.*, 0.05\), not .*, 0.01\)"):
        training(layers, tmp_path, rate=0.01)


def test_items_that_a_user_has_had_are_not_listed() -> None:
    """Scores fall with the item's number. User 1 has had 2 to 5, so of the 20 best 0 and 1 are there, and then 6."""
    some = training(0, None, options={"negatives": 5, "cosine": False})
    falling = np.linspace(1, 0, 32)[:, np.newaxis] * np.ones((1, 64))
    some.model.candidate_tower.set_weights([falling])
    weights = [np.abs(values) for values in some.model.query_tower.get_weights()]
    some.model.query_tower.set_weights(weights)
    assert some.measured(np.array([[1, 1], [0, 6]]))["recall"] == 1
    assert some.measured(np.array([[1, 1], [2, 29]]))["recall"] == 0
