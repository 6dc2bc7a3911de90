"""Ties of a rank's callbacks to its plan and to its board."""

import dataclasses
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.nan_guard import StopOnNaN
from mirrorspark.callbacks.short_executions import ShortExecutions
from mirrorspark.storage.paths import StoreUnreachableError
from mirrorspark.training.configuration.config import TrainingConfig
from mirrorspark.training.executor.worker import describe
from mirrorspark.training.executor.worker_control import WorkerControl
from mirrorspark.training.programs.keras_fit import callback_list as fit_callbacks_module
from mirrorspark.training.programs.keras_fit.callback_list import fit_callbacks, with_local_checkpoint
from mirrorspark.training.programs.keras_fit.start import Start
from mirrorspark.training.protocol.messages.event_client import EventClient
from mirrorspark.training.protocol.messages.stop import StopSignal
from mirrorspark.training.protocol.outcomes.activity import Activity, Phase
from mirrorspark.training.protocol.plan import TrainingPlan
from tests.unit.callbacks.committed_files import publish_files


class NoDriver:
    """Takes events."""

    def send(self, event: dict[str, Any]) -> None:
        pass


def plan_in(folder: Path | str, **fields: Any) -> TrainingPlan:
    """Return a plan with these fields of its own or of its configuration."""
    own = {field.name for field in dataclasses.fields(TrainingPlan)}
    knobs = {name: fields.pop(name) for name in set(fields) - own}
    config = TrainingConfig(name="a", model={"name": "multi_field"}, global_batch_size=8, **knobs)
    return TrainingPlan(config, "dataset", checkpoints=str(folder), workers=1, global_batch_size=8, **fields)


def checkpoint_arguments(plan: TrainingPlan, activity: Activity) -> tuple[list[Any], dict[str, Any]]:
    """Return the callbacks of a rank, and the arguments of the one that saves."""
    given: dict[str, Any] = {}

    def build(*arguments: Any, **options: Any) -> ChiefCheckpoint:
        given.update(options)
        return ChiefCheckpoint(*arguments, **options)

    control = WorkerControl(0, cast(EventClient, NoDriver()), StopSignal(), activity)
    callbacks = fit_callbacks(plan, control, start=Start(), finish=lambda epochs: None, checkpoint_class=build)
    return callbacks, given


@pytest.mark.parametrize(
    ("knobs", "may_vary"),
    [
        ({}, True),
        ({"checkpoint_every_steps": 10}, True),
        ({"local_steps": 4}, True),
        ({"local_steps": 4, "checkpoint_every_steps": 10}, False),
        ({"strategy": "parameter_server", "parameter_servers": 1}, False),
    ],
)
def test_executions_are_kept_short_where_their_ends_change_nothing(
    tmp_path: Path, knobs: dict[str, Any], may_vary: bool
) -> None:
    """T6: local workers meet for a checkpoint, whose steps are part of the result."""
    callbacks, _ = checkpoint_arguments(plan_in(tmp_path, **knobs), Activity())
    assert any(isinstance(callback, ShortExecutions) for callback in callbacks) == may_vary


def test_waiting_for_a_checkpoint_is_a_phase_in_which_its_beats_count(tmp_path: Path) -> None:
    """A slow save does not count as a hang; moves in the background do not make one look alive either."""
    told: list[Phase] = []
    activity = Activity(on_phase=told.append)
    _, given = checkpoint_arguments(plan_in(tmp_path), activity)
    activity.enter("training")
    given["beat"]()
    assert activity.snapshot()["beats"] == 0
    with given["on_wait"]():
        publisher = threading.Thread(target=given["beat"])
        publisher.start()
        publisher.join(60)
    assert activity.snapshot()["beats"] == 1
    assert told == ["training", "checkpoint", "training"]


def test_each_save_asks_the_guard_that_stands_before_it(tmp_path: Path) -> None:
    callbacks, given = checkpoint_arguments(plan_in(tmp_path), Activity())
    guard = next(callback for callback in callbacks if isinstance(callback, StopOnNaN))
    assert given["before_save"] == guard.check
    kinds = [type(callback) for callback in callbacks]
    assert kinds.index(StopOnNaN) < kinds.index(ChiefCheckpoint)


def test_the_chief_publishes_by_the_fence_that_its_driver_put_up(tmp_path: Path) -> None:
    _, given = checkpoint_arguments(plan_in(tmp_path, attempt=3, fence="by this driver"), Activity())
    assert (given["attempt"], given["fence"]) == (3, "by this driver")


def test_how_often_is_saved_and_what_is_kept_are_as_configured(tmp_path: Path) -> None:
    knobs = {"keep_last": 3, "keep_best": 4, "checkpoint_every_steps": 5, "checkpoint_every_seconds": 6.5}
    _, given = checkpoint_arguments(plan_in(tmp_path, **knobs), Activity())
    assert (given["keep_last"], given["keep_best"]) == (3, 4)
    assert (given["every_steps"], given["every_seconds"]) == (5, 6.5)


def publish(location: str | Path) -> commit.CommittedCheckpoint:
    return publish_files(location, {"ckpt.index": "index"}, step=10, epoch=1)


def test_a_remote_checkpoint_is_on_this_machine_before_the_ranks_meet(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bucket, _, options = s3_bucket.partition("?")
    store, activity = f"s3://{bucket}/{tmp_path.name}?{options}", Activity()
    plan = plan_in(store, resume_from=str(publish(store).path))
    resumed = with_local_checkpoint(plan, activity)
    assert resumed.checkpoints == store
    assert resumed.resume_from is not None
    assert Path(commit.read_committed(resumed.resume_from).prefix).with_suffix(".index").read_text() == "index"
    assert activity.beats == 1


@pytest.mark.parametrize("fault", [OSError("AWS Error SLOW_DOWN"), FileNotFoundError("no such folder")], ids=str)
def test_a_store_that_fails_when_a_rank_reads_it_is_no_fault_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError
) -> None:
    """T5: the driver has read it just before; the next attempt may read it, too."""
    plan = plan_in(tmp_path, resume_from=str(publish(tmp_path).path))

    def fails(path: str) -> None:
        raise fault

    monkeypatch.setattr(commit, "read_committed", fails)
    with pytest.raises(StoreUnreachableError, match=f"step-00000010 cannot be read here .{fault}") as told:
        with_local_checkpoint(plan, Activity())
    assert describe(told.value, "starting")["cause"] == "store"


def test_a_cache_that_others_may_write_to_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_in(tmp_path, resume_from=str(publish(tmp_path).path))

    def refuses(*_: object, **__: object) -> None:
        raise PermissionError(1, "is not a folder that this user alone may use")

    monkeypatch.setattr(fit_callbacks_module, "fetch", refuses)
    with pytest.raises(PermissionError) as told:
        with_local_checkpoint(plan, Activity())
    assert describe(told.value, "starting")["cause"] == "user"


def test_a_local_checkpoint_and_a_fresh_start_are_left_as_they_are(tmp_path: Path) -> None:
    fresh = plan_in(tmp_path)
    assert with_local_checkpoint(fresh, Activity()) == fresh
    local = plan_in(tmp_path, resume_from=str(publish(tmp_path).path))
    assert with_local_checkpoint(local, Activity()) == local
