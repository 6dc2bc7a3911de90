"""T6: how the training of one rank gets its data."""

from typing import Any

import pytest
import tensorflow as tf

from tests.unit.training.test_function_rank import Twin
from training import fit
from training.activity import Activity
from training.ring_strategy import RingStrategy


@pytest.mark.parametrize("name", ["mirrored", "ring"])
def test_a_gate_for_the_input_stands_before_its_distribution(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    is_ring = name == "ring"
    strategy: Any = RingStrategy(Twin()) if is_ring else tf.distribute.MirroredStrategy(["/cpu:0"])  # type: ignore[arg-type]
    monkeypatch.setattr(fit, "load_dataset", lambda *_, **__: tf.data.Dataset.range(1, 9).batch(4))
    monkeypatch.setattr(fit, "_read_plan", lambda *_: None)
    given: Any = None
    share = fit._batches(strategy, given, given, "train", (0, 0), Activity(), lambda data: data.map(lambda x: -x))
    assert next(iter(strategy.experimental_distribute_dataset(share) if is_ring else share)).numpy()[0] == -1


def test_a_share_stays_one_whatever_is_made_of_it() -> None:
    strategy = RingStrategy(Twin())  # type: ignore[arg-type]
    own = tf.data.Dataset.range(8).batch(4)
    share = strategy.distribute_datasets_from_function(lambda context: own)
    changed = share.map(lambda x: x).prefetch(2)
    assert strategy.experimental_distribute_dataset(changed) is changed
    assert strategy.experimental_distribute_dataset(own) is not own
