"""The arithmetic of the pages: growth, sizes, starts, kills, aims, and the inputs of the sides."""

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pyspark.sql import Row

from benchmarks import train_gpu, train_plain, train_strategies
from benchmarks.benchmark import Options
from benchmarks.growth import beyond_start, growth
from benchmarks.measure import Mark, Timing, peak_bytes
from benchmarks.starts import restart_seconds, start_parts
from benchmarks.train_kills import Kill, Run, drawn_moment, epoch_seconds, kill_table, moment_after, weights_of
from benchmarks.train_local_updates import SLOWER, of_all_ranks
from benchmarks.train_models_data import Data, write_rows
from benchmarks.train_models_rank import plain_batches
from benchmarks.train_plain import LABEL, Encoding
from benchmarks.train_steps import ALONE_IN_OUR_LOOP, DDP, PLAIN_MANY, PLAIN_ONE, RING, Aim
from benchmarks.train_steps_rank import FitRank, Work
from benchmarks.train_work import Event
from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, load_batches
from mirrorspark.testing.faults import Trigger


def phase(attempt: int, rank: int, name: str, time: float, process: int = 1) -> Event:
    return {"event": "phase", "attempt": attempt, "rank": rank, "phase": name, "time": time, "process": process}


def test_growth_compares_the_cost_of_a_row_in_the_two_largest_tables() -> None:
    timings = [Timing("write", (1.0,)), Timing("write", (2.0,)), Timing("write", (30.0,))]

    # 30 s / 2,000 rows = 15 ms per row, against 2 s / 200 rows = 10 ms.
    assert growth(timings, [20, 200, 2_000]) == pytest.approx(1.5)


def test_the_cost_of_a_row_is_reported_without_the_start_of_a_job() -> None:
    start = {"write": Timing("write", (0.25,))}
    timings = [Timing("write", (0.5,)), Timing("write", (3.25,))]

    table = beyond_start(start, {"write": timings}, [200_000, 2_000_000])

    # 0.25 s for 200,000 rows, and 3 s for ten times as many.
    assert table.rows == (("write", "0.250", "1.250", "1.500"),)
    assert "a job of 1,000 rows takes the seconds of the first column" in table.note


def test_peak_memory_is_the_kernels_high_water_mark(tmp_path: Path) -> None:
    (tmp_path / "17").mkdir()
    (tmp_path / "17" / "status").write_text("Name:\tpython\nVmPeak:\t  99 kB\nVmHWM:\t  12 kB\n", encoding="utf-8")

    assert peak_bytes(17, root=tmp_path) == 12 * 1024
    assert peak_bytes(18, root=tmp_path) == 0


@pytest.mark.parametrize(("side", "our_loop"), [("ring", False), ("plain", True)])
def test_local_steps_that_nothing_would_make_are_refused(side: Any, our_loop: bool) -> None:
    work = Work.of_rows("mlp", 256, 1024)
    assert FitRank("ring", work, local_steps=8, our_loop=True).local_steps == 8
    with pytest.raises(ValueError, match="local_steps 8 need our loop and a ring"):
        FitRank(side, work, local_steps=8, our_loop=our_loop)


def test_aim_compares_with_the_best_reference_that_was_measured() -> None:
    times = {PLAIN_ONE: 9.0, PLAIN_MANY: 6.0, RING: 2.0}
    timings = {name: Timing(name, (seconds,)) for name, seconds in times.items()}

    work = Work("two_tower", 2_048, 10)
    mark = Aim(RING, (PLAIN_ONE, PLAIN_MANY), 3.0).mark(work, timings)

    assert mark == Mark(f"two towers: {RING} / {PLAIN_MANY}, batch 2,048", 3.0, 3.0)
    assert Aim(RING, (DDP,), 1.7).mark(work, timings) is None
    assert Aim(ALONE_IN_OUR_LOOP, (RING,), 1.0).mark(work, timings) is None


def test_workers_that_never_meet_add_up_and_the_slower_one_is_told_beside() -> None:
    first = {RING: Timing(RING, (6.0, 6.0)), ALONE_IN_OUR_LOOP: Timing(ALONE_IN_OUR_LOOP, (3.0, 4.0))}
    second = {RING: Timing(RING, (6.0, 6.0)), ALONE_IN_OUR_LOOP: Timing(ALONE_IN_OUR_LOOP, (6.0, 4.0))}

    timings = of_all_ranks([first, second])

    # 10 rows in 3 s and 10 in 6 s are 5 rows a second, as of two workers that take 4 s.
    assert {name: timing.seconds for name, timing in timings.items()} == {
        RING: (6.0, 6.0),
        ALONE_IN_OUR_LOOP: (4.0, 4.0),
        SLOWER: (6.0, 4.0),
    }


@pytest.mark.parametrize("data", ["table", "labels", "interactions"])
def test_the_plain_side_reads_the_rows_of_ours(data: Data, tmp_path: Path) -> None:
    write_rows(data, 204, tmp_path)
    dataset = Dataset.open(tmp_path)
    (ours,) = load_batches(dataset, ReadPlan("train", 204))
    (plain,) = plain_batches(dataset, 204, tf.distribute.InputContext()).take(1)

    assert ours[0].keys() == plain[0].keys()
    for mine, other in zip(tf.nest.flatten(ours), tf.nest.flatten(plain), strict=True):
        # In another order.
        rows = [np.sort(of.numpy().reshape(204, -1), axis=0) for of in (mine, other)]
        np.testing.assert_array_equal(*rows)


def test_parts_of_a_start_go_from_the_launch_to_the_first_steps_of_the_chief() -> None:
    events = [
        {"event": "attempt", "attempt": 1, "time": 10.0},
        phase(1, 1, "connecting", 10.5),
        phase(1, 0, "connecting", 11.0),
        phase(1, 0, "building", 11.25),
        phase(1, 0, "first_step", 12.0),
        phase(1, 1, "training", 12.25),
        phase(1, 0, "training", 13.5),
        phase(1, 0, "training", 19.0),
    ]

    assert start_parts(events) == [1.0, 0.25, 0.75, 1.5]


def test_restart_is_over_when_the_last_rank_trains_again() -> None:
    events = [
        {"event": "attempt", "attempt": 1, "time": 0.0},
        phase(1, 0, "training", 1.0),
        {"event": "restart", "attempt": 1, "time": 20.5},
        {"event": "attempt", "attempt": 2, "time": 21.0},
        phase(2, 0, "training", 23.0),
        phase(2, 1, "training", 23.5),
    ]

    assert restart_seconds(events, 20.0) == (0.5, 1.0, 3.5)


def test_plain_encoding_knows_missing_unknown_and_long_values() -> None:
    encoding = Encoding({"city": {"NYC": 2}, "stops": {"A": 2, "B": 3}}, {"stops": 2}, {"age": (10.0, 4.0)}, "late")

    known = encoding.encode(Row(city="NYC", stops=["A", "B", "A"], age=12, late=1).asDict())
    other = encoding.encode({"city": None, "stops": ["Z"], "age": None, "late": 0})

    assert known == {LABEL: [1], "city": [2], "stops": [3, 2], "age": [0.5]}
    assert other == {LABEL: [0], "city": [0], "stops": [1, 0], "age": [0.0]}
    assert encoding.size("stops") == 4


def test_time_of_the_plain_pattern_ends_with_its_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tf_keras

    encoding = Encoding({}, {}, {"age": (0.0, 1.0)}, "late")
    for split in train_plain.SPLITS:
        (tmp_path / split).mkdir()
        with tf.io.TFRecordWriter(f"{tmp_path / split}/part-0.tfrecord") as writer:
            for late in (0, 1):
                age = tf.train.Feature(float_list=tf.train.FloatList(value=[float(late)]))
                label = tf.train.Feature(int64_list=tf.train.Int64List(value=[late]))
                writer.write(
                    tf.train.Example(features=tf.train.Features(feature={"age": age, LABEL: label})).SerializeToString()
                )
    clock = [0.0]
    monkeypatch.setattr(train_plain, "time", SimpleNamespace(time=lambda: clock[0]))
    fit = tf_keras.Model.fit

    def fit_and_linger(model: Any, *arguments: Any, **options: Any) -> Any:
        history = fit(model, *arguments, **options)
        clock[0] = 60.0
        return history

    monkeypatch.setattr(tf_keras.Model, "fit", fit_and_linger)

    end, auc = train_plain.PlainRank(encoding, tmp_path, {"train": 1, "validation": 1}, 2, 2, 0.1, 1, (1,), 0.0)()

    assert end == 0.0
    assert 0.0 <= auc <= 1.0


def test_kill_costs_what_the_run_takes_longer() -> None:
    base = Run(10.0, Path("unbroken"))
    kills = [Kill("rank 1 killed", "2.50", Run(14.0, Path("1")), base)]
    kills += [Kill("rank 0 killed", "ending", Run(13.0, Path("2")), base)]

    assert kill_table("Kills", kills, kills[:1], "").rows == (
        ("1", "rank 1 killed", "2.50", "4.0", "yes"),
        ("2", "rank 0 killed", "ending", "3.0", "NO"),
    )


def test_weights_are_compared_by_their_values_and_not_by_what_else_a_checkpoint_holds(tmp_path: Path) -> None:
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


def test_strategies_are_compared_by_all_their_losses_also_after_a_kill() -> None:
    found = {
        train_strategies.RING: train_strategies.Found((0.5, 0.4), 300.0, 9.0, (0.5, 0.4)),
        train_strategies.MANY: train_strategies.Found((0.5, 0.4), 100.0, 9.5, (0.5, 0.5)),
    }
    assert train_strategies.difference(found) == pytest.approx(0.25)
    assert [row[1:3] for row in train_strategies.table_of(found).rows] == [("300", "1.0"), ("100", "3.0")]


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """T9: nothing is measured, and the page says why."""
    monkeypatch.setattr(train_gpu, "in_new_process", lambda function, *arguments: {train_gpu.gpus: []}[function])

    report = train_gpu.run(Options(1_000, 3, tmp_path))

    assert (report.tables, report.marks) == ((), ())
    assert "no GPU" in report.skipped


def test_sides_of_the_gpu_benchmark_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """T9: on the one side that every machine has."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # as all benchmarks begin

    train_gpu.gpus()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert train_gpu.seconds_of(train_gpu.CPU, Work("mlp", 8_192, 2)) > 0
    assert [side.name for side in train_gpu.SIDES[-2:]] == ["GPU, mixed_float16", "GPU, mixed_bfloat16, XLA"]
