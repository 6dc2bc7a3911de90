"""T5, L6: work that is done before a process ends, in whichever way."""

import os
import subprocess
import sys
import threading
import time

import pytest

from mirrorspark.callbacks.collectives import at_exit


@pytest.fixture(autouse=True)
def nothing_else_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_exit, "_WAITING", [])


def test_all_that_waits_is_done_once_and_one_that_fails_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError("the disk is full")

    at_exit.register(done.append, "first")
    at_exit.register(fail)
    at_exit.register(done.clear)
    at_exit.unregister(done.clear)
    at_exit.finish(20)
    at_exit.finish(20)
    assert done == ["first"]
    assert "the disk is full" in caplog.text


def test_a_timed_out_call_is_abandoned_and_delays_no_other() -> None:
    done, late = threading.Event(), threading.Event()
    at_exit.register(done.set)
    at_exit.register(late.wait, 100)
    begin = time.monotonic()
    at_exit.finish(0.2)
    assert time.monotonic() - begin < 60
    assert done.wait(60)
    late.set()


@pytest.mark.process
def test_pythons_own_exit_does_it_too_last_things_first() -> None:
    program = """
from mirrorspark.callbacks.collectives import at_exit
for number in range(3):
    at_exit.register(print, number)
at_exit.unregister(lambda: None)
raise SystemExit(3)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout.split()) == (3, ["2", "1", "0"])
