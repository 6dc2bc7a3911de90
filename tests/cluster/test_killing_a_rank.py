"""What kills ranks in these tests kills the right one, and stops when its run does."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import killed_in_the_middle


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that waits to be killed."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as waiting:
        yield waiting
        waiting.kill()


def begin_run(output: Path, name: str, process: int) -> None:
    """Write what a run in its third epoch has written."""
    events = [{"event": "phase", "rank": 1, "process": process}, {"event": "progress", "epoch": 3}]
    (output / "runs" / name).mkdir(parents=True)
    text = "".join(json.dumps(event) + "\n" for event in events)
    (output / "runs" / name / "events.jsonl").write_text(text, encoding="utf-8")


def test_rank_of_the_new_run_is_killed_whatever_an_older_one_writes(
    tmp_path: Path, process: "subprocess.Popen[bytes]"
) -> None:
    begin_run(tmp_path, "old", process=4_194_305)  # no process has a number above 4,194,304
    with killed_in_the_middle(tmp_path, rank=1, after_epoch=2):
        begin_run(tmp_path, "new", process.pid)
        (tmp_path / "runs" / "old" / "events.jsonl").touch()
        assert process.wait(timeout=30) == -9


def test_run_that_fails_takes_its_killer_with_it(tmp_path: Path, process: "subprocess.Popen[bytes]") -> None:
    with (
        pytest.raises(RuntimeError, match="the run failed"),
        killed_in_the_middle(tmp_path, rank=1, after_epoch=2),
    ):
        raise RuntimeError("the run failed")
    begin_run(tmp_path, "later", process.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)


def test_run_that_ends_before_its_rank_is_killed_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="the run ended before rank 1 could be killed"),
        killed_in_the_middle(tmp_path, rank=1, after_epoch=2),
    ):
        pass
