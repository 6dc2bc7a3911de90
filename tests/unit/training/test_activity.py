"""Phases, waits and input on the board of a rank."""

import pytest

from mirrorspark.training.protocol.outcomes.activity import Activity


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_new_board_says_that_the_rank_starts() -> None:
    assert Activity(clock=Clock()).snapshot() == {
        "phase": "starting",
        "step": 0,
        "epoch": 0,
        "collectives": 0,
        "beats": 0,
        "waiting_for": None,
        "waiting_seconds": 0.0,
        "input_share": 0.0,
    }


def test_a_phase_is_told_once() -> None:
    told: list[str] = []
    activity = Activity(on_phase=told.append)
    for phase in ("connecting", "training", "training", "validation", "training"):
        activity.enter(phase)  # type: ignore[arg-type]
    assert told == ["connecting", "training", "validation", "training"]


def test_the_longest_wait_is_shown_until_it_ends() -> None:
    clock = Clock()
    activity = Activity(clock=clock)
    with activity.waiting_for("rank 1"):
        clock.now += 2
        with activity.waiting_for("input"):
            clock.now += 1
            shown = activity.snapshot()
        assert (shown["waiting_for"], shown["waiting_seconds"]) == ("rank 1", 3.0)
    assert activity.snapshot()["waiting_for"] is None


def test_a_wait_that_ends_in_an_error_is_over() -> None:
    activity = Activity()
    with pytest.raises(ConnectionError), activity.waiting_for("rank 1"):
        raise ConnectionError
    assert activity.snapshot()["waiting_for"] is None


def test_input_counts_once_however_many_threads_read() -> None:
    clock = Clock()
    activity = Activity(clock=clock)
    clock.now += 1
    with activity.input_busy():
        clock.now += 1
        with activity.input_busy():
            clock.now += 1
    clock.now += 1
    assert activity.snapshot()["input_share"] == 0.5


def test_the_share_is_that_since_the_last_snapshot_and_counts_what_is_under_way() -> None:
    clock = Clock()
    activity = Activity(clock=clock)
    with activity.input_busy():
        clock.now += 2
        assert activity.snapshot()["input_share"] == 1.0
        clock.now += 1
    clock.now += 3
    assert activity.snapshot()["input_share"] == 0.25
    clock.now += 1
    assert activity.snapshot()["input_share"] == 0.0


def test_a_phase_within_another_gives_way_to_it_again() -> None:
    told: list[str] = []
    activity = Activity(on_phase=told.append)
    activity.enter("training")
    with pytest.raises(OSError, match="full"), activity.within("checkpoint"), activity.within("checkpoint"):
        raise OSError("full")
    assert told == ["training", "checkpoint", "training"]


def test_a_read_that_takes_long_is_what_the_training_waits_for() -> None:
    clock = Clock()
    activity = Activity(clock=clock)
    with activity.input_busy():
        clock.now += 1.0
        assert activity.snapshot()["waiting_for"] is None
        clock.now += 4.0
        told = activity.snapshot()
    assert (told["waiting_for"], told["waiting_seconds"]) == ("input", 5.0)
    assert activity.snapshot()["waiting_for"] is None
