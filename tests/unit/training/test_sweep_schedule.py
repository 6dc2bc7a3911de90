"""What a sweep does next, from trials, slots and limits."""

from typing import Any

import pytest

from training.supervision.elastic import Elastic, WorkerRange
from training.sweeping.schedule import SweepLimits, SweepProgress, next_step, share_of, slots_needed


@pytest.mark.parametrize(
    ("running", "slots", "needed", "step"),
    [
        ({}, 4, 2, "start"),
        ({0: 2}, 4, 2, "start"),
        ({0: 2, 1: 2}, 4, 2, "wait"),
        ({0: 2}, 4, 3, "wait"),
        ({0: 2}, 1, 1, "wait"),  # an executor is gone; what is left belongs to the trial that runs
        ({}, 0, 2, "start"),  # its supervisor waits for slots, and says so
    ],
)
def test_a_trial_starts_when_its_workers_have_slots(
    running: dict[int, int], slots: int, needed: int, step: str
) -> None:
    assert next_step(SweepLimits(trials=9), SweepProgress(running=running), slots, needed) == step


@pytest.mark.parametrize(
    ("limits", "progress"),
    [
        ({"trials": 3}, {"ended": 2, "running": {7: 1}}),
        ({"failures": 2}, {"failures": 2, "running": {7: 1}}),
        ({"timeout_seconds": 60.0}, {"seconds": 60.0, "running": {7: 1}}),
        ({}, {"is_stopping": True, "running": {7: 1}}),
    ],
)
def test_at_a_limit_no_trial_starts_and_those_under_way_are_waited_for(
    limits: dict[str, Any], progress: dict[str, Any]
) -> None:
    assert next_step(SweepLimits(**limits), SweepProgress(**progress), 99, 1) == "wait"
    over = SweepProgress(**{**progress, "ended": progress.get("ended", 0) + 1, "running": {}})
    assert next_step(SweepLimits(**limits), over, 99, 1) == "end"


def test_no_more_train_side_by_side_than_were_asked_for() -> None:
    limits = SweepLimits(trials=9, parallel=2)
    assert next_step(limits, SweepProgress(running={0: 1}), 99, 1) == "start"
    assert next_step(limits, SweepProgress(running={0: 1, 1: 1}), 99, 1) == "wait"


@pytest.mark.parametrize(("slots", "needed"), [(8, 4), (4, 4), (3, 2), (2, 2), (1, 2)])
def test_an_elastic_trial_takes_its_most_workers_or_what_the_cluster_has(slots: int, needed: int) -> None:
    assert slots_needed(Elastic(WorkerRange(2, 4), 64), slots) == needed
    assert slots_needed(Elastic(WorkerRange(2, 4), 64), slots + 2, beside_workers=2) == needed + 2


def test_a_trial_may_count_on_what_the_others_leave() -> None:
    assert share_of(1, {0: 2, 1: 2, 2: 1}, 6) == 3
    assert share_of(1, {0: 2, 1: 2, 2: 4}, 5) == 0


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"trials": 0}, "--trials is 0; use 1 or more"),
        ({"parallel": 0}, "--parallel is 0; use 1 or more"),
        ({"failures": 0}, "--max-failures is 0; use 1 or more"),
        ({"timeout_seconds": 0.0}, "--timeout is 0; use seconds above 0"),
    ],
)
def test_limits_that_end_a_sweep_before_it_begins_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SweepLimits(**limits)
