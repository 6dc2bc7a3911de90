"""T7: which unfinished run a command continues, and what a crash leaves of its folder."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from training.config import RunConfig
from training.run_folder import STATE_FILE, RunFolder, Status, open_run_folder

DATASET = "0123456789abcdef"


@pytest.fixture
def config(new_config: Callable[..., RunConfig], tmp_path: Path) -> RunConfig:
    return new_config(output=str(tmp_path / "output"))


def left_behind(config: RunConfig, status: Status, **changes: object) -> RunFolder:
    """Make the folder of a run whose driver was another process, which has ended; ``changes`` are to its state."""
    folder = open_run_folder(replace(config, resume=False), DATASET)
    folder.save_state(status, "mlflow-run-1")
    path = folder.path / STATE_FILE
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"process_started": state["process_started"] - 3600} | changes))
    return folder


@pytest.fixture
def other_driver() -> Iterator[psutil.Process]:
    """A process that lives until the test is over."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield psutil.Process(process.pid)
        process.kill()


def test_a_new_run_gets_a_folder_named_after_the_recipe_and_no_two_share_one(config: RunConfig) -> None:
    folders = [open_run_folder(config, DATASET) for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3
    for folder in folders:
        assert folder.path.parent == Path(config.output) / "runs"
        assert folder.path.name.startswith("rides-")
        assert folder.path.is_dir()
        assert folder.continues is None


@pytest.mark.parametrize("status", ["running", "failed"])
def test_an_unfinished_run_of_the_same_identity_goes_on(config: RunConfig, status: Status) -> None:
    before = left_behind(config, status)
    after = open_run_folder(replace(config, workers=2), DATASET)
    assert (after.path, after.continues) == (before.path, "mlflow-run-1")


def test_the_newest_of_several_unfinished_runs_goes_on(config: RunConfig) -> None:
    folders = [left_behind(config, "failed") for _ in range(3)]
    for folder, modified in zip(folders, (200, 300, 100), strict=True):
        os.utime(folder.path / STATE_FILE, (modified, modified))
    assert open_run_folder(config, DATASET).path == folders[1].path


def test_a_finished_run_is_not_done_again_in_its_folder(config: RunConfig) -> None:
    before = left_behind(config, "finished")
    assert open_run_folder(config, DATASET).path != before.path


def test_without_resume_a_new_run_begins(config: RunConfig) -> None:
    before = left_behind(config, "failed")
    assert open_run_folder(replace(config, resume=False), DATASET).path != before.path


def test_a_run_that_learns_something_else_begins_anew(config: RunConfig) -> None:
    before = left_behind(config, "failed")
    assert open_run_folder(replace(config, seed=2), DATASET).path != before.path
    assert open_run_folder(config, "another dataset").path != before.path


def test_a_run_whose_driver_lives_is_left_alone(config: RunConfig, other_driver: psutil.Process) -> None:
    alive = {"process": other_driver.pid, "process_started": other_driver.create_time()}
    before = left_behind(config, "running", **alive)
    assert open_run_folder(config, DATASET).path != before.path


def test_a_run_of_this_very_process_is_left_alone(config: RunConfig) -> None:
    before = open_run_folder(config, DATASET)
    before.save_state("running", "mlflow-run-1")
    assert open_run_folder(config, DATASET).path != before.path
    before.save_state("failed", "mlflow-run-1")
    assert open_run_folder(config, DATASET).path == before.path


def test_a_process_that_got_the_dead_drivers_number_is_not_taken_for_it(
    config: RunConfig, other_driver: psutil.Process
) -> None:
    before = left_behind(config, "running", process=other_driver.pid)
    assert open_run_folder(config, DATASET).path == before.path


def test_a_run_whose_driver_is_gone_goes_on(config: RunConfig) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(timeout=30)
    before = left_behind(config, "running", process=process.pid)
    assert open_run_folder(config, DATASET).path == before.path


def test_nobody_can_tell_whether_a_driver_on_another_host_lives(config: RunConfig) -> None:
    elsewhere = f"not-{socket.gethostname()}"
    before = left_behind(config, "running", host=elsewhere)
    assert open_run_folder(config, DATASET).path != before.path
    failed = left_behind(config, "failed", host=elsewhere)
    assert open_run_folder(config, DATASET).path == failed.path


def test_a_crash_while_the_state_is_written_leaves_the_old_one(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = left_behind(config, "failed")

    def crash(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            before.save_state("finished", "mlflow-run-1")
    assert open_run_folder(config, DATASET).path == before.path


def test_a_damaged_state_is_passed_over_with_a_warning(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    good, torn, foreign = (left_behind(config, "failed") for _ in range(3))
    (torn.path / STATE_FILE).write_text('{"identity": "')
    (foreign.path / STATE_FILE).write_text('{"unknown": 1}')
    assert open_run_folder(config, DATASET).path == good.path
    assert str(torn.path) in caplog.text
    assert str(foreign.path) in caplog.text


def test_past_events_are_read_in_order_without_what_a_crash_cut_off(config: RunConfig) -> None:
    folder = open_run_folder(config, DATASET)
    assert list(folder.past_events()) == []
    for epoch in (1, 2):
        folder.append_event({"event": "epoch_end", "epoch": epoch})
    with folder.events.open("a") as file:
        file.write('{"event": "epo')
    assert list(folder.past_events()) == [{"event": "epoch_end", "epoch": 1}, {"event": "epoch_end", "epoch": 2}]


def test_everything_of_a_run_lies_in_its_folder(config: RunConfig) -> None:
    folder = open_run_folder(config, DATASET)
    places = [folder.config, folder.checkpoints, folder.model, folder.predictions, folder.events]
    assert len(set(places)) == len(places)
    assert all(place.parent == folder.path for place in places)
