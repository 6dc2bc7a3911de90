"""Fixtures for tests of real runs: a small recipe of real flights, the output of a run so far, and kills."""

import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints.checkpoint_store import Location
from mirrorspark.testing.faults import Act, Run
from mirrorspark.training.configuration.recipe import RECIPE_FILE, SQL_FILE, load_recipe
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Events = list[dict[str, Any]]

JOB_SECONDS = 600
"""When a whole job in a process of its own is given up. It takes about one minute, but many where other work runs."""

# Every day up to the ninth: a third of the rows, with all three splits. The query looks at no other day of a flight, so
# the other days need not go through its windows and joins.
_ALL_DAYS, _SOME_DAYS = "FROM flights\n", "FROM flights WHERE day <= 9\n"


@pytest.fixture(scope="session")
def some_flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the flights recipe on a third of its rows, without its baseline."""
    folder = tmp_path_factory.mktemp("recipes") / "some_flights"
    folder.mkdir()
    knobs = load_recipe("flights")
    sql = knobs.pop("sql")
    knobs.pop("recipe")
    assert sql.count(_ALL_DAYS) == 1
    (folder / SQL_FILE).write_text(sql.replace(_ALL_DAYS, _SOME_DAYS), encoding="utf-8")
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(knobs | {"baseline": "none", "epochs": 4}), encoding="utf-8")
    return folder


@pytest.fixture
def own_python_workers(request: pytest.FixtureRequest, spark: "SparkSession", monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test's jobs Python workers of their own, at most one per slot.

    A query with two Python steps leaves twice as many in Spark's pool, and later jobs of the session take turns on all
    of them.
    """
    # Spark keeps a pool for each environment.
    monkeypatch.setitem(spark.sparkContext.environment, "MIRRORSPARK_TEST", request.node.nodeid)


def read_events(output: Path) -> Events:
    """Return the events of the newest run under ``output``; a line that is being written is left out."""
    files = sorted(output.glob("runs/*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = files[-1].read_text(encoding="utf-8").splitlines(keepends=True) if files else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_until(condition: Callable[[], bool], seconds: float, what: str, *, is_promised: bool = False) -> None:
    """Wait for ``condition``, within ``seconds`` if they are promised; else they end a hang, and may be longer."""
    limit = seconds if is_promised else PATIENCE * seconds
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {limit} s")
        time.sleep(0.005)


def checkpoints_of(run: Run) -> Location:
    """Return the default folder of a run's checkpoints."""
    return run.folder / "checkpoints"


def kill_within_an_epoch(
    rank: int, *, epoch: int = 1, until: float = math.inf, where: Callable[[Run], Location] = checkpoints_of
) -> Act:
    """Return a function that sends ``rank`` SIGKILL once the newest checkpoint of its run lies within an epoch.

    Args:
        rank: The rank to kill.
        epoch: The least number of epochs that are complete in that checkpoint.
        until: Most steps of the next one in it. Those after it, which are being published in the background, are within
            the epoch, too, if this is well below an epoch's steps.
        where: Returns the store of the run's checkpoints.
    """

    def is_saved(checkpoints: Location) -> bool:
        newest = commit.latest_committed(checkpoints, verify=False)
        return newest is not None and newest.epoch >= epoch and 0 < newest.step_in_epoch <= until

    @contextlib.contextmanager
    def act(run: Run) -> Iterator[int]:
        process, checkpoints = run.process(rank), where(run)

        def is_stopped_in_time() -> bool:
            if not is_saved(checkpoints):
                return False
            # While it stands still, the others get no further than the next step.
            os.kill(process, signal.SIGSTOP)
            if not is_saved(checkpoints):
                os.kill(process, signal.SIGCONT)
                return False
            return True

        wait_until(is_stopped_in_time, 60, "a checkpoint within an epoch")
        os.kill(process, signal.SIGKILL)
        yield process

    return act
