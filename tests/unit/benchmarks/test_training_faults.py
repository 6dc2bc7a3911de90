"""The arithmetic of the pages about faults: what an outage of MLflow or a kill costs, what is missing; T6, T7."""

import os
import random
from pathlib import Path

import pytest

from benchmarks.measure import Mark
from benchmarks.train_kills import Kill, Run, drawn_moment, epoch_seconds, kill_table, moment_after, weights_of
from benchmarks.train_local_updates import Outcome as Learned
from benchmarks.train_local_updates import Pair
from benchmarks.train_outage import (
    Outage,
    Outcome,
    Point,
    Round,
    epochs_of,
    over_epochs,
    points_table,
    speed_table,
)
from benchmarks.train_work import Event, unwatched
from mirrorspark.training.fault_injection.faults import Trigger

LOSS: Point = ("loss", 1, 0.5)
SAMPLE: Point = ("step/loss", 50, 0.7)
USAGE: Point = ("system/worker_0/cpu_utilization_percentage", 10, 99.0)


def outcome(*ends: float, told: frozenset[Point] = frozenset(), outage: Outage | None = None) -> Outcome:
    return Outcome(ends, told, told, outage, driver_cpu=tuple(0.02 * end for end in ends))


def test_epochs_of_an_outage_are_those_that_any_part_of_it_fell_into_but_not_the_start_of_the_server() -> None:
    # Epoch 2 ends at 20, 3 at 30, 4 at 40, 5 at 50.
    side = outcome(10.0, 20.0, 30.0, 40.0, 50.0, outage=Outage(killed=21.0, started=31.0, answering=45.0))

    assert side.epochs_of_outage == (3, 4)
    assert outcome(10.0, 20.0).epochs_of_outage == ()


def test_rate_is_of_whole_epochs_without_the_first() -> None:
    side = outcome(100.0, 101.0, 103.0, 107.0)  # 1, 2 and 4 s

    assert side.median_rate(rows=80) == 40.0
    assert side.median_rate(rows=80, epochs=(4,)) == 20.0


def test_share_of_the_driver_is_that_of_the_epochs_that_are_asked_for() -> None:
    side = Outcome((10.0, 20.0, 30.0, 40.0), frozenset(), frozenset(), driver_cpu=(5.0, 5.5, 6.5, 6.6))

    assert side.driver_share((3,)) == pytest.approx(10.0)
    assert side.driver_share((2, 3, 4)) == pytest.approx(100 * 1.6 / 30)


def test_slow_down_is_that_of_all_epochs_and_that_of_the_same_epochs_in_the_other_run() -> None:
    up = outcome(0.0, 10.0, 20.0, 28.0)  # 10, 10 and 8 s
    outage = outcome(0.0, 10.0, 20.0, 30.0, outage=Outage(21.0, 29.0, 29.5))

    # 100 rows in 10 s on both sides, in the median; in epoch 4 10 rows/s against 12.5.
    assert Round(up, outage).slowdowns(100) == (pytest.approx(0.0), pytest.approx(20.0))


def test_samples_by_the_clock_are_not_expected_to_be_the_same_in_two_runs() -> None:
    assert over_epochs(frozenset({LOSS, SAMPLE, USAGE})) == {LOSS}

    up = outcome(0.0, 1.0, told=frozenset({LOSS, SAMPLE, ("loss", 2, 0.4), ("world_size", 100, 2.0)}))
    outage = outcome(0.0, 1.0, told=frozenset({("loss", 1, 0.6), ("world_size", 100, 2.0)}))

    assert Round(up, outage).lacking == 1  # the loss of epoch 2; another value of epoch 1 is there


def test_table_of_points_counts_what_is_missing_and_what_is_too_much() -> None:
    up = outcome(0.0, 1.0, told=frozenset({LOSS, SAMPLE}))
    outage = Outcome((0.0, 1.0), frozenset({LOSS, SAMPLE, USAGE}), frozenset({SAMPLE, ("loss", 1, 0.4)}))

    assert [row[2:] for row in points_table([Round(up, outage)]).rows] == [
        ("2", "1", "2", "0", "0", ""),
        ("3", "1", "2", "2", "1", "0"),
    ]


def test_table_of_speed_names_the_epochs_of_the_outage() -> None:
    up = outcome(0.0, 10.0, 20.0, 28.0)
    outage = outcome(0.0, 10.0, 20.0, 30.0, outage=Outage(21.0, 29.0, 29.5))

    table = speed_table([Round(up, outage)], rows=100_000)

    assert [row[2:] for row in table.rows] == [
        ("10.00 k", "12.50 k", "28.0", "2.00", "", ""),
        ("10.00 k", "10.00 k", "30.0", "2.00", "+0.00", "+20.00"),
    ]
    assert "4 to 4 of 4" in table.note
    assert "away for 8.0 s, and took 0.5 s more" in table.note


def test_run_has_as_many_epochs_as_take_the_time() -> None:
    assert epochs_of([5.0, 7.0, 9.0, 14.0], seconds=100.0) == 50
    assert epochs_of([0.0, 60.0], seconds=100.0) == 6


def test_kill_costs_what_the_run_takes_longer() -> None:
    base = Run(10.0, Path("unbroken"))
    kills = [Kill("rank 1 killed", "2.50", Run(14.0, Path("1")), base)]
    kills += [Kill("rank 0 killed", "ending", Run(13.0, Path("2")), base)]

    assert kill_table("Kills", kills, kills[:1], "").rows == (
        ("1", "rank 1 killed", "2.50", "4.0", "yes"),
        ("2", "rank 0 killed", "ending", "3.0", "NO"),
    )


def test_weights_are_compared_by_their_values_and_not_by_what_else_a_checkpoint_holds(tmp_path: Path) -> None:
    import tensorflow as tf

    def saved(name: str, values: list[float], variable: str) -> str:
        weights = tf.Variable(values, name=variable)
        return str(tf.train.Checkpoint(weights=weights).write(str(tmp_path / name)))

    first = weights_of(saved("first", [1.0, 2.0], "Adam/m"))

    assert weights_of(saved("renamed", [1.0, 2.0], "m")) == first
    assert weights_of(saved("other", [1.0, 2.0 + 2**-22], "m")) != first


def test_epochs_are_counted_from_the_first_steps_of_the_chief() -> None:
    events: list[Event] = [
        {"event": "phase", "attempt": 1, "rank": 1, "phase": "training", "time": 1.0},
        {"event": "phase", "attempt": 1, "rank": 0, "phase": "training", "time": 2.0},
        {"event": "epoch_end", "attempt": 1, "rank": 0, "time": 5.0},
        {"event": "epoch_end", "attempt": 1, "rank": 0, "time": 7.0},
    ]

    assert epoch_seconds(events) == 2.5


def test_kill_waits_for_whole_epochs_so_that_it_does_not_come_after_the_end_of_a_run_that_is_faster() -> None:
    assert moment_after(3.25, epoch_seconds=4.0) == Trigger(phase="training", epoch=3, seconds=1.0)
    assert moment_after(0.5, epoch_seconds=4.0) == Trigger(phase="training", seconds=2.0)


def test_moments_of_kills_are_drawn_from_the_whole_life_of_a_rank() -> None:
    draw = random.Random(1)
    moments = [drawn_moment(draw, epoch_seconds=4.0) for _ in range(100)]

    assert {"connecting", "building", "first_step", "ending"} <= {when for when, _ in moments}
    assert 60 <= sum(moment.phase == "training" for _, moment in moments) <= 95


def test_difference_of_local_updates_is_what_they_lose() -> None:
    pair = Pair(1, synchronous=Learned(0.712, 1e5), local=Learned(0.710, 2e5))

    assert Mark("difference", pair.difference, 0.0021, "at most").is_met
    assert pair.difference > 0


def test_a_runs_output_goes_to_a_file_until_its_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # By the descriptors, as capfd takes the streams themselves away.
    with unwatched(tmp_path / "output"):
        os.write(1, b"MLflow: a run\n")
        os.write(2, b"epoch 1\n")
    os.write(1, b"a page\n")
    os.write(2, b"an error\n")

    assert capfd.readouterr() == ("a page\n", "an error\n")
    assert (tmp_path / "output" / "shown.txt").read_text(encoding="utf-8") == "MLflow: a run\nepoch 1\n"


def test_error_of_a_run_is_shown_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no such model"), unwatched(tmp_path):
        raise ValueError("no such model")
    os.write(2, b"shown")

    assert capfd.readouterr().err == "shown"
