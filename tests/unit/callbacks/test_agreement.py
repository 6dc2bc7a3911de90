"""Collectives where there is one process; several: tests/cluster/test_callbacks_two_workers.py."""

import numpy as np
import pytest
import tensorflow as tf

from mirrorspark.callbacks.collectives.agreement import (
    AgreedInterval,
    gather_over_ranks,
    local_replicas,
    mean_over_ranks,
    steps_until,
    sum_over_ranks,
)
from mirrorspark.callbacks.collectives.roles import Role, current_role
from mirrorspark.training.protocol.ring.ring import Ring
from mirrorspark.training.protocol.ring.strategy import RingStrategy


@pytest.fixture(params=["none", "mirrored", "ring"])
def strategy(request: pytest.FixtureRequest) -> tf.distribute.Strategy:
    if request.param == "none":
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(["CPU:0"]) if request.param == "mirrored" else RingStrategy(Ring(0, 1))


def test_a_process_alone_agrees_with_itself(strategy: tf.distribute.Strategy) -> None:
    assert sum_over_ranks(strategy, 0.1) == mean_over_ranks(strategy, 0.1) == 0.1
    rows = np.array([[0.1, 1e300]])
    np.testing.assert_array_equal(gather_over_ranks(strategy, rows), rows)
    assert local_replicas(strategy) == 1


def test_a_strategy_of_several_processes_without_a_resolver_tells_the_role() -> None:
    assert current_role(RingStrategy(Ring(0, 1))) == Role("worker", 0, workers=1, rank=0, is_chief=True)


@pytest.mark.parametrize(
    ("seconds", "steps_done", "seconds_taken", "expected"),
    [
        (10.0, 50, 5.0, 100),  # 0.1 s per step
        (0.25, 50, 5.0, 3),  # rounded up
        (0.0, 50, 5.0, 1),  # never the same step again
        (1000.0, 50, 5.0, 200),  # no further than four times what was measured
        (10.0, 1, 0.0, 4),
    ],
)
def test_the_next_look_follows_the_pace(seconds: float, steps_done: int, seconds_taken: float, expected: int) -> None:
    assert steps_until(seconds, steps_done, seconds_taken) == expected


def test_an_interval_ends_by_the_clock_after_few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = [0.0], 0

    def count(strategy: tf.distribute.Strategy, value: float) -> float:
        nonlocal looks
        looks += 1
        return value

    monkeypatch.setattr("mirrorspark.callbacks.collectives.agreement.sum_over_ranks", count)
    interval = AgreedInterval(10.0, clock=lambda: now[0])
    interval.restart(0)
    over = []
    for step in range(1, 3001):
        now[0] += 0.01
        if interval.is_over(tf.distribute.get_strategy(), step, is_chief=True):
            over.append(step)
    # Every 1,000 steps of 10 ms, give or take what a look comes late.
    assert len(over) in (2, 3)
    assert over[0] == pytest.approx(1000, abs=3)
    assert over[1] - over[0] == pytest.approx(1000, abs=3)
    assert looks < 30


def test_an_interval_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="every_seconds is 0"):
        AgreedInterval(0)
