"""What the tests of the main job share: a recipe of real flights that is quick, and a way to kill a rank."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from training.config import RECIPE_FILE, SQL_FILE, load_recipe

Events = list[dict[str, Any]]

# Every day up to the ninth: a third of the rows, with all three splits.
_SOME_DAYS = "took_place AND CAST(split(flight_id, '-')[0] AS INT) % 100 <= 9"


@pytest.fixture(scope="session")
def some_flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the flights recipe on a third of its rows, without its baseline."""
    folder = tmp_path_factory.mktemp("recipes") / "some_flights"
    folder.mkdir()
    knobs = load_recipe("flights")
    sql = knobs.pop("sql")
    knobs.pop("recipe")
    assert sql.count("WHERE took_place") == 1
    (folder / SQL_FILE).write_text(sql.replace("WHERE took_place", f"WHERE {_SOME_DAYS}"), encoding="utf-8")
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(knobs | {"baseline": "none", "epochs": 4}), encoding="utf-8")
    return folder


def read_events(output: Path) -> Events:
    """Return the events of the newest run under ``output``; a line that is being written is left out."""
    files = sorted(_event_files(output), key=lambda path: path.stat().st_mtime)
    return _events_of(files[-1]) if files else []


def _event_files(output: Path) -> set[Path]:
    return set(output.glob("runs/*/events.jsonl"))


def _events_of(file: Path) -> Events:
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_until(condition: Callable[[], bool], timeout_seconds: float, what: str) -> None:
    """Wait for ``condition``, at most ``timeout_seconds``."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout_seconds} s")
        time.sleep(0.005)


@contextmanager
def killed_in_the_middle(output: Path, rank: int, after_epoch: int) -> Iterator[None]:
    """Send SIGKILL to ``rank`` of the run that starts inside, once the epoch after ``after_epoch`` is under way.

    The run begins a folder of its own: ranks of any other run are left alone.
    """
    before = _event_files(output)
    over = threading.Event()
    killed: list[int] = []
    failure: list[Exception] = []

    def events() -> Events:
        new = _event_files(output) - before
        return _events_of(min(new)) if new else []

    def is_due() -> bool:
        return any(event["event"] == "progress" and event["epoch"] > after_epoch for event in events())

    def kill() -> None:
        try:
            wait_until(lambda: over.is_set() or is_due(), 240, f"a step after epoch {after_epoch}")
            if not over.is_set():
                process = {e["rank"]: e["process"] for e in events() if e["event"] == "phase"}[rank]
                os.kill(process, signal.SIGKILL)
                killed.append(process)
        except Exception as error:
            failure.append(error)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join(timeout=10)
    assert not failure, failure
    assert killed, f"the run ended before rank {rank} could be killed"


def copy_datasets(source: Path, target: Path) -> None:
    """Give the output folder ``target`` the datasets of ``source``, so that it need not convert again."""
    shutil.copytree(source / "datasets", target / "datasets")
