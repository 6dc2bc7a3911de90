"""What a process that owns TensorFlow is given, and that it leaves when its parent does."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from training.child_process import EXIT_ABANDONED, tensorflow_environment

REPOSITORY = Path(__file__).resolve().parents[3]


def test_an_abandoned_process_says_so_by_its_status() -> None:
    program = """
        import threading
        from training.child_process import take_over
        take_over()
        threading.Event().wait(60)
        """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdin=subprocess.PIPE, cwd=REPOSITORY
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"the plan\n")
        process.stdin.close()
        assert process.wait(timeout=20) == EXIT_ABANDONED


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
