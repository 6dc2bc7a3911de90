"""The training benchmarks' own arithmetic: work, marks, what events tell, how a row is encoded; T12."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import Row

from benchmarks import training
from benchmarks.benchmark import Benchmark
from benchmarks.measure import Mark, Timing
from benchmarks.other_environment import OtherProcess, UnavailableError, environment_with, last_error
from benchmarks.report import Report
from benchmarks.suite import Suite, overview
from benchmarks.train_bare import BareResult
from benchmarks.train_checkpoints import stalled_share
from benchmarks.train_data import ITEMS, USERS, Work, rows_of
from benchmarks.train_overhead import lost_share
from benchmarks.train_plain import LABEL, Encoding
from benchmarks.train_restart import process_of, restart_seconds
from benchmarks.train_steps import ALONE, DDP, PLAIN_MANY, PLAIN_ONE, RING, Aim
from benchmarks.train_work import Event, epoch_times, first_time, read_events, start_seconds


def phase(attempt: int, rank: int, name: str, time: float, process: int = 1) -> Event:
    return {"event": "phase", "attempt": attempt, "rank": rank, "phase": name, "time": time, "process": process}


@pytest.mark.parametrize("name", training.SUITE.benchmarks)
def test_every_benchmark_goes_by_the_name_of_its_file_and_asks_a_question(name: str) -> None:
    benchmark: Benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK

    assert benchmark.name == name
    assert "?" in benchmark.question


def test_overview_lists_the_marks_and_how_to_run_again() -> None:
    suite = Suite("some", "Some benchmarks", ("one",), "some.md", "python -m benchmarks.some")

    page = overview(suite, [Report("one", "How fast?", (), (Mark("a / b", 2.0, 3.0),))], rounds=3)

    assert page.startswith("# Some benchmarks\n")
    assert "| [one](one.md) | a / b | 2.00 | at least 3.00 | **not met** |" in page
    assert page.endswith("Run again: `python -m benchmarks.some`\n")


def test_work_is_cut_into_epochs_of_whole_batches() -> None:
    work = Work.of_rows("mlp", 256, 1_000_000)

    assert work.steps == 976  # 1,000,000 / 256 / 4 epochs
    assert work.rows == 999_424
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


def test_aim_compares_with_the_best_reference_that_was_measured() -> None:
    times = {PLAIN_ONE: 9.0, PLAIN_MANY: 6.0, RING: 2.0}
    timings = {name: Timing(name, (seconds,)) for name, seconds in times.items()}

    mark = Aim(RING, (PLAIN_ONE, PLAIN_MANY), 3.0).mark(256, timings)

    assert mark == Mark(f"{RING} / {PLAIN_MANY}, batch 256", 3.0, 3.0)
    assert Aim(RING, (DDP,), 1.7).mark(256, timings) is None
    assert Aim(ALONE, (RING,), 1.0).mark(256, timings) is None


def test_start_takes_from_the_launch_to_the_first_steps_of_the_chief() -> None:
    events = [
        {"event": "attempt", "attempt": 1, "time": 10.0},
        phase(1, 0, "connecting", 11.0),
        phase(1, 1, "training", 12.0),
        phase(1, 0, "training", 12.5),
        phase(1, 0, "training", 19.0),
    ]

    assert start_seconds(events, attempt=1) == 2.5


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


def test_lost_share_is_that_of_the_throughput() -> None:
    assert lost_share(supervised_seconds=10.0, bare_seconds=9.8) == pytest.approx(0.02)
    assert lost_share(supervised_seconds=9.0, bare_seconds=10.0) == 0.0


def test_stall_of_the_first_epoch_is_outside_the_time() -> None:
    assert stalled_share(BareResult(20.0, (5.0, 0.1, 0.3))) == pytest.approx(0.02)


def test_plain_encoding_knows_missing_unknown_and_long_values() -> None:
    encoding = Encoding({"city": {"NYC": 2}, "stops": {"A": 2, "B": 3}}, {"stops": 2}, {"age": (10.0, 4.0)}, "late")

    known = encoding.encode(Row(city="NYC", stops=["A", "B", "A"], age=12, late=1).asDict())
    other = encoding.encode({"city": None, "stops": ["Z"], "age": None, "late": 0})

    assert known == {LABEL: [1], "city": [2], "stops": [3, 2], "age": [0.5]}
    assert other == {LABEL: [0], "city": [0], "stops": [1, 0], "age": [0.0]}
    assert encoding.size("stops") == 4


def test_environment_that_is_ready_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "ready").touch()

    assert environment_with(["torch"], tmp_path) == tmp_path / "bin" / "python"


def test_end_of_the_other_process_is_told_by_its_last_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("starting\nImportError: no torch\n  at line 3\n", encoding="utf-8")
    requests, answers = (tmp_path / name for name in ("requests", "answers"))
    answers.write_text("noise\n", encoding="utf-8")

    with requests.open("w") as out, answers.open() as back, pytest.raises(UnavailableError, match="no torch"):
        OtherProcess(out, back, log, last_error).ask(work="versions")

    assert json.loads(requests.read_text()) == {"work": "versions"}
    assert last_error("") == "the process ended: no word why"
