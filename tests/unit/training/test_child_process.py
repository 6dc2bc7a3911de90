"""Environment of a process that owns TensorFlow, and its end with its parent."""

import io
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from mirrorspark.training.executor.child_process import (
    DEFAULT_VARIABLES,
    EXIT_ABANDONED,
    LineBudget,
    Tail,
    answer,
    progress_reporter,
    send,
    tensorflow_environment,
    why_it_failed,
)

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.process
def test_an_abandoned_process_says_so_by_its_status() -> None:
    program = """
        import threading
        from mirrorspark.training.executor.child_process import take_over
        take_over()
        threading.Event().wait(100)
        """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdin=subprocess.PIPE, cwd=REPOSITORY
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"the plan\n")
        process.stdin.close()
        assert process.wait(timeout=60) == EXIT_ABANDONED


def start_child(program: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(program)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=REPOSITORY)


@pytest.mark.process
def test_output_during_preparation_does_not_reach_the_answer() -> None:
    program = """
        from mirrorspark.training.executor.child_process import take_over
        plan, answer = take_over(prepare=lambda: print("a library's greeting", flush=True))
        print("answer to", plan, file=answer, end="", flush=True)
        """
    with start_child(program) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "a library's greeting\n"
        send(process, "the plan")
        assert process.stdout is not None
        assert process.stdout.read() == "answer to the plan\n"


@pytest.mark.process
def test_a_process_that_is_never_told_a_plan_leaves_with_its_parent() -> None:
    with start_child("from mirrorspark.training.executor.child_process import take_over; take_over()") as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == EXIT_ABANDONED


def test_reports_on_the_way_are_told_and_the_last_line_is_the_answer() -> None:
    stream = io.StringIO()
    report = progress_reporter(stream)
    report("embedding", 3, 10)
    report("writing")
    stream.write('{"exact": 1.0}\n')
    stream.seek(0)
    process: Any = SimpleNamespace(stdout=stream)
    told: list[tuple[Any, ...]] = []
    assert answer(process, lambda *of: told.append(of)) == {"exact": 1.0}
    assert told == [("embedding", 3, 10), ("writing", 0, 0)]


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise OSError('the disk is full')", "OSError: the disk is full"),
        ("sys.exit(5)", "status 5"),
        ("print('a warning', file=sys.stderr); os.abort()", "killed by signal SIGABRT (a warning)"),
        ("raise MemoryError", "MemoryError: memory has run out; stop other programs on this machine, or use"),
        # The last line of a process that the kernel kills is some warning, and no reason.
        ("print('a warning', file=sys.stderr); os.kill(os.getpid(), 9)", "killed by signal SIGKILL: memory has run"),
        (
            "new = ctypes.CDLL('libstdc++.so.6')._Znwm; new.argtypes = [ctypes.c_size_t]; new(1 << 62)",
            "killed by signal SIGABRT (what():  std::bad_alloc): memory has run out; stop",
        ),
    ],
    ids=["error", "status", "abort", "MemoryError", "kernel", "bad_alloc"],
)
def test_the_reason_of_a_failure_names_the_signal_and_tells_of_memory(program: str, reason: str) -> None:
    with start_child(f"import ctypes, os, sys; {program}") as process:
        tail = Tail(process.stderr, echo=False)
        assert why_it_failed(process.wait(timeout=60), tail).startswith(reason)


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
    assert environment["GLIBC_TUNABLES"] == DEFAULT_VARIABLES["GLIBC_TUNABLES"]
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    assert tensorflow_environment(1, verbose=False)["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=0"


Pipe = tuple[IO[str], Callable[[str], object]]


@pytest.fixture
def pipe() -> Pipe:
    """A stream and what writes to it; the writer's end is let go of by writing nothing."""
    reader, writer = os.pipe()

    def write(text: str) -> None:
        if text:
            os.write(writer, text.encode())
        else:
            os.close(writer)

    return os.fdopen(reader), write


def test_lines_are_echoed_with_their_prefix_and_told_without_it(pipe: Pipe, capfd: pytest.CaptureFixture[str]) -> None:
    stream, write = pipe
    told: list[str] = []
    with stream:
        tail = Tail(stream, echo=True, prefix="rank 3: ", on_line=told.append)
        write("one\n1/10\r2/10\r\n")
        write("unfini")
        write("shed")
        write("")
        assert tail.text() == "one\n1/10\n2/10\nunfinished\n"
    lines = ["one", "1/10", "2/10", "unfinished"]
    assert capfd.readouterr().err == "".join(f"rank 3: {line}\n" for line in lines)
    assert told == lines


def test_nothing_is_shown_of_a_quiet_process(pipe: Pipe, capfd: pytest.CaptureFixture[str]) -> None:
    stream, write = pipe
    with stream:
        tail = Tail(stream, echo=False)
        write("one\n")
        write("")
        assert tail.text() == "one\n"
    assert capfd.readouterr().err == ""


def test_secrets_are_removed_from_the_output_of_a_process(
    pipe: Pipe, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", "planted-secret")
    monkeypatch.setenv("PLANTED_PASSWORD", "of-two\nlines-of-text")
    told: list[str] = []
    stream, write = pipe
    with stream:
        tail = Tail(stream, echo=True, on_line=told.append)
        write("planted-secret\nhttp://me:planted@host/\nof-two\nlines-of-text\n")
        write("")
        assert tail.text() == "***\nhttp://host/\n***\n"
    assert told[:2] == ["***", "http://host/"]
    assert "planted" not in capfd.readouterr().err


def test_a_stream_that_somebody_else_keeps_open_is_not_waited_for(pipe: Pipe) -> None:
    stream, write = pipe
    with stream:
        tail = Tail(stream, echo=False)
        write("all there is\n")
        begin = time.monotonic()
        assert tail.text() == "all there is\n"
        assert time.monotonic() - begin < 60
    write("")


def test_a_line_without_an_end_does_not_fill_the_memory(pipe: Pipe) -> None:
    stream, write = pipe
    told: list[str] = []
    with stream:
        tail = Tail(stream, echo=False, on_line=told.append)
        for _ in range(100):
            write("x" * 10_000)
        write("")
        tail.close()
    assert sum(map(len, told)) == 1_000_000
    assert max(map(len, told)) < 200_000


def test_a_few_lines_a_second_are_let_through_after_a_burst() -> None:
    now = 0.0
    budget = LineBudget(lambda: now)
    assert [budget.admit("line") for _ in range(60)] == ["line"] * 50 + [None] * 10
    now = 0.2
    assert [budget.admit("line") for _ in range(3)] == ["(10 lines left out) line", "line", None]
    now = 100.0
    assert [budget.admit("line") for _ in range(51)] == ["(1 lines left out) line", *["line"] * 49, None]
