"""State of a training after the events of the ranks, and the lines that show it."""

import re
from collections.abc import Iterable
from typing import Any, cast

import pytest
from rich.console import Console

from mirrorspark.training.executor import task as worker
from mirrorspark.training.protocol.messages.events import Event, EventAddress
from mirrorspark.training.run_records.live.drawing import bar, headline, metrics, rank_table, training
from mirrorspark.training.run_records.live.state import TrainingState, input_bound_warning
from tests.unit.training import rank_entries


def after(events: Iterable[Event], *, now: float = 0.0, epochs: int = 3) -> TrainingState:
    """Return the state after events that all came at ``now``."""
    state = TrainingState(epochs)
    for event in events:
        state = state.after(event, now)
    return state


def rank_rows(state: TrainingState, now: float, *, columns: int = 120) -> list[str]:
    """Return the lines of the ranks as a terminal shows them, without their head."""
    console = Console(width=columns, color_system=None)
    with console.capture() as drawn:
        console.print(rank_table(state, now))
    head, *rows = drawn.get().splitlines()
    assert head.split()[:2] == ["step", "examples/s"]
    return [row.rstrip() for row in rows]


def attempt(number: int = 1, workers: int = 2) -> Event:
    return {"event": "attempt", "attempt": number, "workers": workers, "resumed_from": 0}


def train_begin(rank: int, size: int | None = 500) -> Event:
    return {"event": "train_begin", "rank": rank, "attempt": 1, "epochs": 3, "steps": 100, "global_batch_size": size}


def alive(rank: int, **fields: object) -> Event:
    known = {"phase": "training", "step": 30, "collectives": 60, "waiting_for": None, "waiting_seconds": 0.0}
    return {"event": "alive", "rank": rank, "attempt": 1, "input_share": 0.12, **known, **fields}


def progress(step: int, rank: int = 0) -> Event:
    return {
        "event": "progress",
        "rank": rank,
        "attempt": 1,
        "step": step,
        "epoch": 1 + step // 100,
        "step_in_epoch": step % 100,
        "steps": 100,
        "examples_per_second": 50_000.0,
        "loss": 0.51234,
    }


def epoch_end(epoch: int, rank: int = 0, **logs: float) -> Event:
    told = {"epoch": epoch, "step": 100 * epoch, "logs": logs, "examples_per_second": 80_000.0}
    return {"event": "epoch_end", "rank": rank, "attempt": 1, **told}


def system(rank: int, **fields: object) -> Event:
    known = {"cpu_percent": 180.0, "memory_bytes": 1_240_000_000, "state": "running", "host": "a"}
    return {"event": "system", "rank": rank, "attempt": 1, "from": "task", **known, **fields}


def test_each_rank_has_a_row_with_step_speed_input_memory_and_state() -> None:
    state = after([attempt(), *(train_begin(rank) for rank in (0, 1)), *(system(rank) for rank in (0, 1))])
    for now, steps in ((0.0, (1030, 10)), (2.0, (1230, 30))):
        for rank, step in enumerate(steps):
            state = state.after(alive(rank, step=step), now)
    # 100 and 10 steps a second; of a step's 500 examples each rank takes half.
    assert rank_rows(state, 2.0) == [
        "  rank 0        1,230      25,000         12%   1.24 GB  training",
        "  rank 1           30       2,500         12%   1.24 GB  training",
    ]


def test_the_speed_of_a_rank_is_that_of_its_last_seconds_of_training() -> None:
    def speed() -> str:
        return rank_rows(state, 0.0)[0].split()[3]

    state = after([attempt(workers=1), train_begin(0, 10)])
    for now, step in ((0.0, 0), (10.0, 10), (12.0, 12), (14.0, 112), (16.0, 212)):
        state = state.after(alive(0, step=step), now)
    assert speed() == f"{10 * (212 - 10) / 6:,.0f}"  # without what was more than ten seconds ago
    state = state.after(alive(0, step=212, phase="validation"), 18.0)
    assert speed() == "337"  # meanwhile as before
    state = state.after(alive(0, step=212), 60.0)
    state = state.after(alive(0, step=222), 62.0)
    assert speed() == "50"
    for now in (64.0, 70.0, 80.0):
        state = state.after(alive(0, step=222), now)
    assert speed() == "0"
    state = state.after(alive(0, step=1), 82.0)  # another training of the same function
    state = state.after(alive(0, step=5), 84.0)
    assert speed() == "20"


def test_a_worker_of_parameter_servers_takes_whole_batches() -> None:
    state = after([attempt(workers=2), train_begin(0)])  # the coordinator's, which alone runs fit
    for now, step in ((0.0, 0), (2.0, 20)):
        state = state.after(alive(1, step=step), now)
    assert " 5,000 " in rank_rows(state, 2.0)[1]


def test_without_the_size_of_a_batch_there_is_no_speed() -> None:
    state = after([attempt(workers=1), train_begin(0, None)])
    for now, step in ((0.0, 0), (2.0, 20)):
        state = state.after(alive(0, step=step), now)
    assert rank_rows(state, 2.0)[0].split()[:4] == ["rank", "0", "20", "-"]


def test_the_host_is_shown_where_there_are_several() -> None:
    state = after([attempt(), system(0), system(1, host="b")])
    assert [row.rsplit(maxsplit=1)[-1] for row in rank_rows(state, 0.0)] == ["a", "b"]


def test_unknown_values_are_shown_as_a_dash() -> None:
    state = after([attempt(), {"event": "phase", "rank": 0, "attempt": 1, "phase": "building"}])
    assert rank_rows(state, 0.0) == ["  rank 0            0           -           -         -  building the model"]


@pytest.mark.parametrize(
    ("events", "now", "words"),
    [
        ([alive(0, waiting_for="rank 1", waiting_seconds=4.0)], 1.0, "waiting for rank 1 (5 s)"),
        ([alive(0, waiting_for="rank 1", waiting_seconds=0.2)], 0.0, "training"),
        ([alive(0, waiting_for="input", waiting_seconds=9.0)], 0.0, "waiting for input (9 s)"),
        ([alive(0, phase="checkpoint")], 0.0, "checkpoint"),
        ([alive(0), {"event": "validation", "rank": 0, "attempt": 1, "epoch": 1, "step": 0}], 0.0, "validation"),
        ([alive(0)], 20.0, "silent (20 s)"),
        ([alive(0), system(0, state="stopped")], 20.0, "stopped by a signal"),
        ([alive(0), system(0, state="zombie")], 0.0, "its process is dead"),
        ([alive(0), {"event": "error", "rank": 0, "attempt": 1}], 99.0, "failed"),
        ([alive(0), {"event": "train_end", "rank": 0, "attempt": 1, "epochs": 3}], 99.0, "finished"),
    ],
)
def test_the_state_of_a_rank_in_words(events: list[Event], now: float, words: str) -> None:
    assert rank_rows(after([attempt(), *events]), now)[0].endswith(f"  {words}")


def test_many_ranks_are_shown_as_the_slowest_few_and_one_line() -> None:
    events = [alive(rank, step=100, waiting_for="rank 7", waiting_seconds=3.0) for rank in range(64)]
    events[7] = alive(7, step=100, input_share=0.97)
    events[40] = alive(40, step=98)
    events[63] = alive(63, step=101)
    rows = rank_rows(after([attempt(workers=64), *events, system(50, state="stopped")]), 0.0)
    # First who is in trouble, then who is behind, then who the others wait for.
    assert [row.split()[1] for row in rows[:3]] == ["50", "40", "7"]
    assert len(rows) == 6
    assert rows[5].startswith("  59 more     100-101 ")
    assert rows[5].endswith("58 waiting for rank 7, 1 training")


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        (82, "  rank 0        1,230           -         12%   1.24 GB  waiting for rank 1 (9 s)"),
        (79, "  rank 0        1,230           -         12%  waiting for rank 1 (9 s)"),
        (60, "  rank 0        1,230           -  waiting for rank 1 (9 s)"),
        (40, "  rank 0        1,230           -  wait…"),
    ],
)
def test_a_narrow_terminal_leaves_columns_out_before_it_cuts_a_condition(columns: int, row: str) -> None:
    state = after([attempt(), system(0), alive(0, step=1230, waiting_for="rank 1", waiting_seconds=9.0)])
    assert rank_rows(state, 0.0, columns=columns) == [row]


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (80, "export       4% {20} 0:00:03, 0:01:09 left 5/9 rows read"),
        (70, "export       4% {10} 0:00:03, 0:01:09 left 5/9 rows read"),
        (55, "export       4% 0:00:03, 0:01:09 left 5/9 rows read"),
        (45, "export       4% 0:00:03, 0:01:09 left"),
    ],
)
def test_the_line_of_a_stage_never_wraps(columns: int, line: str) -> None:
    console = Console(width=columns, color_system=None)
    with console.capture() as drawn:
        console.print(bar("export", 3.0, 0.04, left=69.0, text="5/9 rows read"))
    assert re.sub(r"(?<=4% )[━╸ ]{9,}(?= 0)", lambda found: f"{{{len(found[0])}}}", drawn.get()).rstrip() == line


def test_metrics_that_do_not_fit_are_on_a_line_of_their_own() -> None:
    state = after([attempt(workers=1), progress(130), epoch_end(1, val_auc=0.81, val_log_loss=0.4, val_pr_auc=0.71)])
    console = Console(width=70, color_system=None)
    with console.capture() as drawn:
        console.print(training("train", 3.0, state, 0.0))
    assert [line.rstrip() for line in drawn.get().splitlines()[1:3]] == [
        "  epoch 1/3  step 100/100  80,000 examples/s  loss 0.5123",
        "  val_auc 0.8100  val_log_loss 0.4000  val_pr_auc 0.7100",
    ]


def test_events_of_an_earlier_attempt_and_of_none_change_nothing() -> None:
    state = after([attempt(), attempt(2)])
    assert state.after(alive(0), 0.0) == state
    assert state.after({"event": "stopping", "reason": "preempted", "attempt": 2}, 0.0) == state


def test_before_the_first_step_the_headline_tells_what_the_ranks_are_doing() -> None:
    begun = [attempt(workers=4)]
    assert headline(after(begun)) == "waiting for Spark to start 4 workers"
    begun += [{"event": "phase", "rank": rank, "attempt": 1, "phase": "first_step"} for rank in (0, 1)]
    assert headline(after(begun)) == "2 of 4 workers: first step"
    begun.append({"event": "phase", "rank": 2, "attempt": 1, "phase": "connecting"})
    assert headline(after(begun)) == "3 of 4 workers: first step 2, connecting 1"


def test_the_headline_of_a_training_is_that_of_the_chief() -> None:
    state = after([attempt(), progress(130), progress(250, rank=1)])
    assert headline(state) == "epoch 2/3  step 30/100  50,000 examples/s"
    assert metrics(state) == "loss 0.5123"


def test_the_speed_counts_validation_and_not_what_earlier_attempts_did() -> None:
    state = after([attempt(), progress(100)], now=50.0)
    assert state.position.steps_per_second is None
    # 100 steps in 20 s, of which validation took some.
    assert state.after(progress(200), 70.0).position.steps_per_second == 5.0
    again = state.after(progress(200), 70.0).after(attempt(2), 80.0)
    assert again.position.done == 200
    assert again.position.steps_per_second is None


def train_end(rank: int) -> Event:
    return {"event": "train_end", "rank": rank, "attempt": 1, "epochs": 3}


def test_a_function_that_trains_again_is_shown_as_training_again() -> None:
    state = after([attempt(), *map(train_begin, (0, 1)), alive(0), alive(1), *map(train_end, (0, 1))])
    assert all(row.endswith("  finished") for row in rank_rows(state, 0.0))
    # A rank may end the first training after another one has begun the second.
    for event in (train_begin(0), train_end(1), train_begin(1)):
        state = state.after(event, 10.0)
    assert [row.rsplit("  ", 1)[1] for row in rank_rows(state, 10.0)] == ["training", "training"]
    assert [row.rsplit("  ", 1)[1] for row in rank_rows(state, 40.0)] == ["silent (30 s)", "silent (30 s)"]


def test_another_training_of_the_function_begins_with_a_speed_of_its_own() -> None:
    state = after([attempt(), train_begin(0)])
    for now, step in ((0.0, 10), (10.0, 90)):
        state = state.after(progress(step), now)
    state = state.after(train_end(0), 10.0).after(train_begin(0), 1000.0)
    assert state.position.done == 0
    for now, step in ((1000.0, 0), (1005.0, 20)):
        state = state.after(progress(step), now)
    assert state.position.steps_per_second == 4.0


def test_epochs_that_are_over_before_they_tell_of_their_progress_move_the_bar_and_the_ranks() -> None:
    state = after([attempt(), *map(train_begin, (0, 1)), alive(0, step=50), alive(1, step=40), progress(50)])
    for epoch in (1, 2):
        for rank in (0, 1):
            state = state.after(epoch_end(epoch, rank, loss=0.5 / epoch, val_auc=0.7), float(epoch))
    assert headline(state) == "epoch 2/3  step 100/100  80,000 examples/s"
    assert metrics(state) == "loss 0.2500  val_auc 0.7000"
    assert [state.ranks[rank].step for rank in (0, 1)] == [200, 200]
    assert state.position.done == 200


def test_a_resumed_training_stands_where_it_was_until_its_first_step() -> None:
    state = after([attempt(), train_begin(0), progress(250), attempt(2), train_begin(0) | {"attempt": 2}])
    assert state.position.done == 250


def test_an_epoch_whose_steps_wait_for_data_is_called_input_bound() -> None:
    busy = [alive(1, input_share=share) for share in (0.9, 1.0)]
    state = after([attempt(), alive(0, input_share=0.3), *busy, alive(0, phase="validation", input_share=1.0)])
    assert input_bound_warning(state) == (
        "input-bound: the input of rank 1 was busy 95% of the epoch's steps, which wait for it; "
        "more cores per worker (spark.task.cpus) or faster storage would help"
    )
    assert input_bound_warning(state.after(epoch_end(1), 0.0)) is None


def test_the_advice_names_a_setting_that_decides_over_the_threads_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    def environment(threads: int, *, verbose: bool) -> dict[str, str]:
        given.append(threads)
        raise InterruptedError  # enough is known

    monkeypatch.setattr(worker, "task_cores", lambda: 3)  # what spark.task.cpus says
    monkeypatch.setattr(worker, "tensorflow_environment", environment)
    with pytest.raises(InterruptedError):
        worker.WorkerTask(cast(Any, rank_entries.Plan(EventAddress("127.0.0.1", 1, ""))))()
    assert given == [3]
