"""What a barrier task does with the process of its rank: starts it, outlives it, and never leaves it behind."""

import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from training.child_process import EXIT_ABANDONED, tensorflow_environment
from training.events import Event, EventServer
from training.plan import TrainingPlan
from training.supervisor import no_address
from training.worker import RankFailedError, RankTask

REPOSITORY = Path(__file__).resolve().parents[3]

PLAN = TrainingPlan(
    dataset="dataset",
    checkpoints="checkpoints",
    model="multi_field",
    model_options={},
    optimizer="adam",
    learning_rate=0.1,
    epochs=4,
    patience=2,
    monitor="val_auc",
    mode="max",
    global_batch_size=8,
    steps_per_execution=1,
    seed=1,
    workers=2,
    threads=None,
    attempt=2,
    resume_from=None,
    events=no_address(),
)


@pytest.fixture
def rank_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that puts a program of one's own in the place of the interpreter that runs the rank."""

    def plant(program: str) -> Path:
        script = tmp_path / "rank"
        script.write_text(f"#!{sys.executable}\n{textwrap.dedent(program)}")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(script))
        return script

    return plant


@pytest.fixture
def heard() -> Iterator[tuple[TrainingPlan, list[Event]]]:
    """A plan whose events somebody hears, and what was heard."""
    events: list[Event] = []
    with EventServer("127.0.0.1", events.append) as server:
        yield replace(PLAN, events=server.address), events


def test_a_rank_gets_the_plan_on_its_input_and_answers_with_its_epochs(
    rank_that: Callable[[str], Path], tmp_path: Path
) -> None:
    rank_that(
        f"""
        import sys
        open("{tmp_path}/arguments", "w").write(" ".join(sys.argv[1:]))
        open("{tmp_path}/plan", "w").write(sys.stdin.readline())
        print("a warning", file=sys.stderr)
        print('{{"epochs": 7}}')
        """
    )
    assert RankTask(PLAN)() == 7
    assert (tmp_path / "arguments").read_text() == "-m training.rank"
    assert TrainingPlan.from_json((tmp_path / "plan").read_text()) == PLAN


def test_the_secret_is_in_neither_arguments_nor_environment(
    rank_that: Callable[[str], Path], heard: tuple[TrainingPlan, list[Event]], tmp_path: Path
) -> None:
    plan, _ = heard
    rank_that(
        f"""
        import os, sys
        open("{tmp_path}/public", "w").write(repr(sys.argv) + repr(dict(os.environ)))
        sys.stdin.readline()
        print('{{"epochs": 1}}')
        """
    )
    RankTask(plan)()
    assert plan.events.token not in (tmp_path / "public").read_text()
    assert plan.events.token not in repr(RankTask(plan))


def test_a_rank_that_is_killed_is_reported_lost(rank_that: Callable[[str], Path]) -> None:
    events: list[Event] = []
    rank_that("import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 9)")
    with EventServer("127.0.0.1", events.append) as server:
        plan = replace(PLAN, events=server.address)
        with pytest.raises(RankFailedError, match="rank 0 was killed by signal 9"):
            RankTask(plan)()
    # Sent before it was raised, so the server has it when it has closed: nothing else has to be waited for.
    (event,) = events
    assert (event["event"], event["cause"], event["type"]) == ("error", "lost", "killed")
    assert event["message"] == "killed by signal SIGKILL"
    assert (event["rank"], event["attempt"]) == (0, 2)


def test_a_rank_that_fails_is_quoted_and_not_reported_lost(
    rank_that: Callable[[str], Path], heard: tuple[TrainingPlan, list[Event]]
) -> None:
    plan, events = heard
    rank_that("import sys; sys.stdin.readline(); print('ValueError: boom', file=sys.stderr); sys.exit(1)")
    with pytest.raises(RankFailedError) as raised:
        RankTask(plan)()
    assert str(raised.value) == "rank 0 left with status 1\nValueError: boom\n"
    assert events == []


def test_only_the_last_lines_of_a_talkative_rank_are_quoted(rank_that: Callable[[str], Path]) -> None:
    rank_that(
        """
        import sys
        sys.stdin.readline()
        for line in range(20_000):
            print("line", line, file=sys.stderr)
        sys.exit(1)
        """
    )
    with pytest.raises(RankFailedError) as raised:
        RankTask(PLAN)()
    lines = str(raised.value).splitlines()
    assert lines[1:] == [f"line {line}" for line in range(19_960, 20_000)]


def test_a_rank_that_dies_before_it_reads_its_plan_is_quoted(rank_that: Callable[[str], Path]) -> None:
    rank_that("import sys; print('no such module', file=sys.stderr); sys.exit(4)")
    # More than a pipe holds, so that the plan is still being written when the rank is gone.
    plan = replace(PLAN, model_options={"long": "x" * 1_000_000})
    with pytest.raises(RankFailedError) as raised:
        RankTask(plan)()
    assert str(raised.value) == "rank 0 left with status 4\nno such module\n"


def test_what_a_rank_says_is_shown_when_asked_for(
    rank_that: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rank_that("import sys; sys.stdin.readline(); print('TensorFlow says', file=sys.stderr); print('{\"epochs\": 1}')")
    for verbose, shown in ((False, ""), (True, "TensorFlow says\n")):
        RankTask(replace(PLAN, verbose=verbose))()
        assert capsys.readouterr().err == shown


def test_a_rank_passes_on_why_it_failed_even_without_the_channel(rank_that: Callable[[str], Path]) -> None:
    rank_that(
        """
        import json, sys
        sys.stdin.readline()
        print(json.dumps({"cause": "user", "type": "ValueError", "message": "no such column\\nhint"}), flush=True)
        sys.exit(1)
        """
    )
    with pytest.raises(RankFailedError) as raised:
        RankTask(PLAN)()
    assert str(raised.value) == "rank 0 failed (user): ValueError: no such column hint"


def test_an_abort_is_told_as_a_consequence(rank_that: Callable[[str], Path]) -> None:
    events: list[Event] = []
    rank_that("import os, sys; sys.stdin.readline(); os.abort()")
    with EventServer("127.0.0.1", events.append) as server, pytest.raises(RankFailedError, match="signal 6"):
        RankTask(replace(PLAN, events=server.address))()
    assert [(event["cause"], event["message"]) for event in events] == [("peer", "killed by signal SIGABRT")]


def test_a_rank_ends_with_the_task_that_started_it(
    rank_that: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = sys.executable
    script = rank_that(
        f"""
        import os, sys, threading
        from training.child_process import take_over
        take_over()
        with open("{tmp_path}/started.part", "w") as file:
            file.write(str(os.getpid()))
        os.rename("{tmp_path}/started.part", "{tmp_path}/started")
        threading.Event().wait(60)
        """
    )
    (tmp_path / "plan").write_text(PLAN.to_json())
    program = f"""
        import sys, threading
        from pathlib import Path
        from training.plan import TrainingPlan
        from training.worker import RankTask
        sys.executable = "{script}"
        def tell():
            while not Path("{tmp_path}/started").exists():
                threading.Event().wait(0.01)
            print("started", flush=True)
        threading.Thread(target=tell, daemon=True).start()
        RankTask(TrainingPlan.from_json(Path("{tmp_path}/plan").read_text()))()
        """
    with subprocess.Popen(
        [interpreter, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as task:
        assert task.stdout is not None
        assert task.stdout.readline() == "started\n"
        rank = psutil.Process(int((tmp_path / "started").read_text()))
        task.kill()
    assert rank.wait(timeout=20) in (EXIT_ABANDONED, None)  # None: it is no child of ours, so nobody tells us
    assert not rank.is_running()


def test_an_abandoned_rank_says_so_by_its_status() -> None:
    program = """
        import threading
        from training.child_process import take_over
        take_over()
        threading.Event().wait(60)
        """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdin=subprocess.PIPE, cwd=REPOSITORY
    ) as rank:
        assert rank.stdin is not None
        rank.stdin.write(b"the plan\n")
        rank.stdin.close()
        assert rank.wait(timeout=20) == EXIT_ABANDONED


def test_threads_are_those_asked_for() -> None:
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    environment = tensorflow_environment(3, verbose=False)
    assert [environment[name] for name in names] == ["3", "3", "3"]


def test_a_rank_uses_legacy_keras_whatever_the_task_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "0")
    assert tensorflow_environment(1, verbose=False)["TF_USE_LEGACY_KERAS"] == "1"


def test_tensorflow_is_quiet_unless_asked_to_speak() -> None:
    assert tensorflow_environment(1, verbose=False)["TF_CPP_MIN_LOG_LEVEL"] == "3"
    assert tensorflow_environment(1, verbose=True)["TF_CPP_MIN_LOG_LEVEL"] == "0"


def test_a_rank_sees_the_packages_and_the_environment_of_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("/shipped/by/spark")
    monkeypatch.setenv("TF_CONFIG", '{"task": {"index": 1}}')
    environment = tensorflow_environment(1, verbose=False)
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == "/shipped/by/spark"
    assert "" not in environment["PYTHONPATH"].split(os.pathsep)
    assert environment["TF_CONFIG"] == '{"task": {"index": 1}}'
