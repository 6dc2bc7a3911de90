"""The training benchmarks' own arithmetic: work, marks, what events tell, how a row is encoded; T3, T6."""

import importlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pyspark.sql import Row

from benchmarks import train_gpu, train_plain, training
from benchmarks.benchmark import Benchmark, Options
from benchmarks.measure import Mark, Timing
from benchmarks.other_environment import OtherProcess, UnavailableError, environment_with, last_error, started
from benchmarks.report import Report, Table
from benchmarks.suite import Suite, overview
from benchmarks.train_data import ITEMS, USERS, Work, rows_of
from benchmarks.train_fit import FitRank
from benchmarks.train_local_steps import SLOWER, of_all_ranks
from benchmarks.train_models import ALONE as IN_ONE_PROCESS
from benchmarks.train_models import OPTIMIZERS, OURS, PLAIN, marks_of, tables_of
from benchmarks.train_models_data import DCN, MODELS, SASREC_ROWS, TABLES, Data, table_case, write_rows
from benchmarks.train_models_rank import plain_batches
from benchmarks.train_plain import LABEL, Encoding
from benchmarks.train_restart import process_of, restart_seconds
from benchmarks.train_start import start_parts
from benchmarks.train_steps import ALONE, ALONE_IN_OUR_LOOP, DDP, PLAIN_MANY, PLAIN_ONE, RING, Aim
from benchmarks.train_work import Event, epoch_times, first_time, read_events
from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, load_batches


def phase(attempt: int, rank: int, name: str, time: float, process: int = 1) -> Event:
    return {"event": "phase", "attempt": attempt, "rank": rank, "phase": name, "time": time, "process": process}


@pytest.mark.parametrize("name", training.SUITE.benchmarks)
def test_every_benchmark_goes_by_the_name_of_its_file_and_asks_a_question(name: str) -> None:
    benchmark: Benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK

    assert benchmark.name == name
    assert "?" in benchmark.question


def test_overview_lists_the_marks_of_the_pages_that_lie_there_and_how_to_run_again(tmp_path: Path) -> None:
    suite = Suite("some", "Some benchmarks", ("one", "unmeasured"), "some.md", "python -m benchmarks.some")
    measured = {"date": "2026-01-31", "commit": "0123456789"}
    table = Table("Sizes", ("way", "size"), (("row", "9"),))
    Report("one", "How fast?", (table,), (Mark("a / b", 2.0, 3.0),), conditions=measured).save(tmp_path)

    page = overview(suite, tmp_path)

    assert page.startswith("# Some benchmarks\n")
    assert "- [one](one.md) (2026-01-31, 0123456789): How fast?\n" in page
    assert "unmeasured" not in page
    assert "row" not in page
    assert "| [one](one.md) | a / b | 2.00 | at least 3.00 | **not met** |" in page
    assert page.endswith("Run again: `python -m benchmarks.some`\n")


def test_work_is_cut_into_whole_batches() -> None:
    work = Work.of_rows("mlp", 256, 1_000_000)

    assert work.steps == 3_906
    assert work.rows == 999_936
    assert work.warm_up_steps == 390
    assert Work("mlp", 256, 10).warm_up_steps == 257  # all rows that lie in memory, once
    assert Work.from_json(work.to_json()) == work


def test_rows_are_the_same_for_the_same_rank_and_differ_between_ranks() -> None:
    work = Work("mlp", 1_000, 1)

    ((features,), labels), ((again,), _), ((others,), _) = (rows_of(work, rank) for rank in (0, 0, 1))

    assert features.shape == (65_000, 64)
    assert labels.shape == (65_000, 1)
    np.testing.assert_array_equal(features, again)
    assert not np.array_equal(features, others)


def test_label_of_a_two_tower_row_is_the_place_of_its_item_in_the_batch() -> None:
    (users, items), labels = rows_of(Work("two_tower", 4, 1), 0)

    assert (users.max() < USERS, items.max() < ITEMS) == (True, True)
    assert labels[:6].tolist() == [0, 1, 2, 3, 0, 1]


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
    assert Aim(ALONE, (RING,), 1.0).mark(work, timings) is None


def test_workers_that_never_meet_add_up_and_the_slower_one_is_told_beside() -> None:
    first = {RING: Timing(RING, (6.0, 6.0)), ALONE_IN_OUR_LOOP: Timing(ALONE_IN_OUR_LOOP, (3.0, 4.0))}
    second = {RING: Timing(RING, (6.0, 6.0)), ALONE_IN_OUR_LOOP: Timing(ALONE_IN_OUR_LOOP, (6.0, 4.0))}

    timings = of_all_ranks([first, second])

    # 10 rows in 3 s and 10 in 6 s are 5 rows a second, as many as of two workers that take 4 s.
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


def test_the_speeds_of_models_give_their_marks_and_tables() -> None:
    def of(**seconds: float) -> dict[str, Timing]:
        return {name: Timing(name, (each,)) for name, each in seconds.items()}

    timings = {case: of(**{OURS: 0.5, PLAIN: 2.0, IN_ONE_PROCESS: 1.0}) for case in MODELS}
    timings[SASREC_ROWS] = of(**{OURS: 0.5})
    timings |= {table_case(name, rows): of(**{OURS: rows**0.5}) for name in OPTIMIZERS for rows in TABLES}
    found = {mark.what: mark.found for mark in marks_of(timings)}

    assert found[f"{DCN.name}: ours / {PLAIN}"] == 4.0
    assert not any(name.endswith("PyTorch DDP") for name in found)
    # 128 rows of 51 interactions each, and 256 of one.
    assert found["SASRec / LSTM, interactions learnt per second"] == 25.5
    assert found["SASRec / LSTM, row for row"] == 1.0
    assert found["a step with `lazy_adam`, a million rows / 10,000 rows"] == pytest.approx(10.0)
    speeds, sequences, tables = tables_of(timings)
    assert speeds.rows[0][2:] == ("2.00 ± 0%", "0.5 ± 0%", "1.00 ± 0%", "", "4.00", "2.00", "")
    assert sequences.rows[-1][1:] == ("0.512 k", "26.11 k")
    assert tables.rows[0][-1] == "10.00"


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

    assert restart_seconds(events, killed=20.0) == (0.5, 1.0, 3.5)


def test_process_of_a_rank_is_the_newest_one() -> None:
    events = [phase(1, 1, "training", 1.0, 7), phase(2, 1, "training", 2.0, 9), phase(2, 0, "training", 3.0, 8)]

    assert process_of(events, 1) == 9


def test_run_without_an_expected_event_is_told_by_name() -> None:
    with pytest.raises(LookupError, match=r"no event 'phase' with \{'rank': 1\}"):
        first_time([], "phase", rank=1)


def test_ends_of_epochs_are_those_the_chief_told_in_that_attempt() -> None:
    told = ((1, 0, 1), (1, 1, 2), (2, 0, 3))
    events = [{"event": "epoch_end", "attempt": attempt, "rank": rank, "time": time} for attempt, rank, time in told]

    assert epoch_times(events) == [1.0]


def test_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(json.dumps({"event": "attempt"}) + '\n{"eve', encoding="utf-8")

    assert read_events(file) == [{"event": "attempt"}]
    assert read_events(tmp_path / "none") == []


def test_plain_encoding_knows_missing_unknown_and_long_values() -> None:
    encoding = Encoding({"city": {"NYC": 2}, "stops": {"A": 2, "B": 3}}, {"stops": 2}, {"age": (10.0, 4.0)}, "late")

    known = encoding.encode(Row(city="NYC", stops=["A", "B", "A"], age=12, late=1).asDict())
    other = encoding.encode({"city": None, "stops": ["Z"], "age": None, "late": 0})

    assert known == {LABEL: [1], "city": [2], "stops": [3, 2], "age": [0.5]}
    assert other == {LABEL: [0], "city": [0], "stops": [1, 0], "age": [0.0]}
    assert encoding.size("stops") == 4


def test_time_of_the_plain_pattern_ends_with_its_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf
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


@pytest.mark.process
def test_environment_is_used_again_for_the_same_requirements_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def create(home: Path, with_pip: bool) -> None:
        assert with_pip
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "python").symlink_to("/bin/true")  # installs nothing, successfully
        made.append(home)

    monkeypatch.setattr("benchmarks.other_environment.venv.create", create)
    home = tmp_path / "torch"

    for requirements in (["torch==1", "numpy"], ["torch==1", "numpy"], ["torch==2", "numpy"]):
        assert environment_with(requirements, home) == home / "bin" / "python"

    assert made == [home, home]


@pytest.mark.process
def test_process_that_does_not_answer_in_time_is_killed_with_what_it_started(tmp_path: Path) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    command = [sys.executable, "-c", program]

    with started(command, {}, tmp_path / "log") as process:
        # Both hold the standard output open: the end of one would not end the wait.
        impatient = replace(process, answer_seconds=0.5)
        with pytest.raises(UnavailableError, match=r"had no answer to \{'work': 'train'\} within 0.5 s"):
            impatient.ask(work="train")


def test_end_of_the_other_process_is_told_by_its_last_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("starting\nImportError: no torch\n  at line 3\n", encoding="utf-8")
    requests, answers = (tmp_path / name for name in ("requests", "answers"))
    answers.write_text("noise\n", encoding="utf-8")

    with requests.open("w") as out, answers.open() as back, pytest.raises(UnavailableError, match="no torch"):
        OtherProcess(out, back, log, last_error, kill=lambda: None).ask(work="versions")

    assert json.loads(requests.read_text()) == {"work": "versions"}
    assert last_error("") == "the process ended: no word why"


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
