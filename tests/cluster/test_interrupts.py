"""Ctrl-C while Spark works: one line, status 130, no half-written files and no process left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.scoring.exported_models import TYPES, export_types

ROWS = 2_000_000


def processes_of(group: int) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "sid,stat,args"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [one[2] for one in lines if one[0] == str(group) and not one[1].startswith("Z")]


def wait_until(is_true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it has not come to that"
        time.sleep(0.05)


@pytest.mark.parametrize("moment", ["Java starts", "tasks run"])
def test_ctrl_c_ends_a_scoring_at_any_moment(tmp_path: Path, moment: str) -> None:
    model, scores = export_types(tmp_path / "model"), tmp_path / "out" / "scores"
    scores.parent.mkdir()
    rows = TYPES.take(pa.array([row % len(TYPES) for row in range(ROWS // 100)]))
    pq.write_table(pa.concat_tables([rows] * 100), tmp_path / "rows.parquet", row_group_size=20_000)
    flags = [f"--model={model}", f"--input={tmp_path / 'rows.parquet'}", f"--output={scores}", "--keys=id"]
    command = subprocess.Popen(
        [sys.executable, "-m", "mirrorspark", "score", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        if moment == "Java starts":
            wait_until(lambda: any("java" in one for one in processes_of(command.pid)), 60)
        else:
            wait_until(lambda: any(not one.name.startswith(".abilities") for one in scores.parent.iterdir()), 60)
        os.killpg(command.pid, signal.SIGINT)  # as a terminal does it
        said = command.communicate(timeout=60)
        assert (command.returncode, *said) == (130, "", "mirrorspark: interrupted\n")
        assert list(scores.parent.iterdir()) == []
        wait_until(lambda: not processes_of(command.pid), 30)
    finally:
        if command.poll() is None or processes_of(command.pid):
            os.killpg(command.pid, signal.SIGKILL)
