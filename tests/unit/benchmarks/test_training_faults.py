"""The arithmetic of the pages about faults: what an outage of MLflow or a kill costs, what is missing; T6, T7."""

import os
import random
from pathlib import Path

import pytest

from benchmarks.measure import Mark
from benchmarks.train_kills import Kill, Run, drawn_moment, epoch_seconds, kill_table, moment_after, weights_of
from benchmarks.train_local_updates import Outcome as Learned
from benchmarks.train_local_updates import Pair
from benchmarks.train_work import Event, unwatched
from mirrorspark.training.fault_injection.faults import Trigger


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
