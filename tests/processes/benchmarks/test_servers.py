"""Programs that run during a measurement: awaited by their output, ended with all that they started."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.servers import Daemon, DaemonError, TrackingServer

SLEEP = "import time; time.sleep(60)"


@contextmanager
def program(text: str, log: Path) -> Iterator[Daemon]:
    """Run a Python program, and end it."""
    daemon = Daemon.start([sys.executable, "-u", "-c", text], log, {"GREETING": "hello"})
    try:
        yield daemon
    finally:
        daemon.kill()


def test_program_is_ready_when_it_has_said_so_as_often_as_asked(tmp_path: Path) -> None:
    text = f"import os; print(os.environ['GREETING'], 1); print('hello 2'); {SLEEP}"

    with program(text, tmp_path / "greeter.log") as daemon:
        assert daemon.wait_for(r"hello (\d)", 30, times=2)[1] == "2"
        assert daemon.wait_for(r"hello (\d)", 60)[1] == "1"


def test_program_that_ends_before_it_is_ready_is_told_with_its_last_words(tmp_path: Path) -> None:
    with (
        program("raise SystemExit('no memory')", tmp_path / "greeter.log") as daemon,
        pytest.raises(DaemonError, match="greeter ended; its last words: no memory"),
    ):
        daemon.wait_for("ready", 60)


def test_program_that_is_not_ready_in_time_is_told_so(tmp_path: Path) -> None:
    with (
        program(SLEEP, tmp_path / "greeter.log") as daemon,
        pytest.raises(DaemonError, match=r"greeter has not said 'ready' within 0.1 s; its last words: nothing"),
    ):
        daemon.wait_for("ready", 0.1)


@pytest.mark.parametrize("way", [Daemon.kill, Daemon.end])
def test_nothing_is_left_of_a_program_that_started_others(way: object, tmp_path: Path) -> None:
    text = f"import subprocess, sys; print('child', subprocess.Popen([sys.executable, '-c', '{SLEEP}']).pid); {SLEEP}"
    with program(text, tmp_path / "parent.log") as daemon:
        child = psutil.Process(int(daemon.wait_for(r"child (\d+)\n", 60)[1]))

        way(daemon)  # type: ignore[operator]

        assert daemon.process.returncode < 0
        # Nobody but the system's first process is left to reap it.
        assert not child.is_running() or child.wait(60) is None


def test_server_comes_back_on_its_port_and_store(tmp_path: Path) -> None:
    commands: list[Sequence[str]] = []

    def start(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Daemon:
        commands.append(command)
        talk = f"print('Uvicorn running on http://127.0.0.1:4711 (Press CTRL+C to quit)'); {SLEEP}"
        return Daemon.start([sys.executable, "-u", "-c", talk], log, environment)

    with TrackingServer(tmp_path / "server", start) as server:
        assert server.uri == "http://127.0.0.1:4711"
        server.kill()
        server.start()

    first, second = ([*command] for command in commands)
    port = first.index("--port") + 1
    assert (first[port], second[port]) == ("0", "4711")
    assert first[:port] + first[port + 1 :] == second[:port] + second[port + 1 :]
    assert f"sqlite:///{tmp_path}/server/mlflow.db" in first
