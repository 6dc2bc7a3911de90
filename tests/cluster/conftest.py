"""What the tests of the main job share: a recipe of real flights that is quick, and what a run has said so far."""

import json
import shutil
import time
from collections.abc import Callable
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
    files = sorted(output.glob("runs/*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = files[-1].read_text(encoding="utf-8").splitlines(keepends=True) if files else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def epochs_told(output: Path) -> set[int]:
    """Return the epochs that the newest run under ``output`` has completed so far."""
    return {event["epoch"] for event in read_events(output) if event["event"] == "epoch_end"}


def wait_until(condition: Callable[[], bool], timeout_seconds: float, what: str) -> None:
    """Wait for ``condition``, at most ``timeout_seconds``."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout_seconds} s")
        time.sleep(0.005)


def copy_datasets(source: Path, target: Path) -> None:
    """Give the output folder ``target`` the datasets of ``source``, so that it need not convert again."""
    shutil.copytree(source / "datasets", target / "datasets")
