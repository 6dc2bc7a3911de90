"""A chief that was only cut off does not publish into the training that went on without it."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints.fence import FENCE, Fence, Permit, StaleAttemptError, fence, read_fence
from mirrorspark.callbacks.checkpoints.store import CheckpointStoreError
from tests.unit.callbacks.committed_files import publish_files


def publish(directory: Path, step: int, permit: Permit | None) -> None:
    publish_files(directory, {"ckpt.index": "index"}, step=step, epoch=0, permit=permit)


def test_the_attempt_that_holds_the_fence_publishes_and_its_number_is_kept(tmp_path: Path) -> None:
    held = fence(tmp_path, 1)
    publish(tmp_path, 10, Permit(tmp_path, 1, held))
    assert [(c.step, c.attempt) for c in commit.committed(tmp_path)] == [(10, 1)]


@pytest.mark.parametrize("newer", [2, 1], ids=["next attempt", "first attempt of another driver"])
def test_an_attempt_that_lost_the_fence_publishes_nothing(tmp_path: Path, newer: int) -> None:
    permit = Permit(tmp_path, 1, fence(tmp_path, 1))
    fence(tmp_path, newer)
    with pytest.raises(StaleAttemptError, match=f"attempt {newer} has taken over"):
        publish(tmp_path, 10, permit)
    assert commit.committed(tmp_path) == []


def test_an_attempt_that_begins_behind_the_fence_is_refused(tmp_path: Path) -> None:
    fence(tmp_path, 1)
    fence(tmp_path, 2)
    with pytest.raises(StaleAttemptError):
        Permit(tmp_path, 1, read_fence(tmp_path)).check()


def test_a_checkpoint_committed_while_the_fence_changes_is_withdrawn(tmp_path: Path) -> None:
    """The process may be stopped between its look at the fence and the rename, for as long as it likes."""
    held = fence(tmp_path, 1)

    class StoppedBeforeTheRename(Permit):
        def check(self) -> None:
            super().check()
            if read_fence(tmp_path) == held:
                fence(tmp_path, 2)

    with pytest.raises(StaleAttemptError):
        publish(tmp_path, 10, StoppedBeforeTheRename(tmp_path, 1, held))
    assert commit.committed(tmp_path) == []


def test_a_store_that_lost_its_fence_is_gone(tmp_path: Path) -> None:
    permit = Permit(tmp_path, 1, fence(tmp_path, 1))
    (tmp_path / FENCE).unlink()
    with pytest.raises(CheckpointStoreError, match="is the disk still there"):
        publish(tmp_path, 10, permit)
    with pytest.raises(CheckpointStoreError, match="of attempt 1: is the disk still there"):
        fence(tmp_path, 2)


def test_a_fence_that_cannot_be_read_lets_nobody_publish(tmp_path: Path) -> None:
    permit = Permit(tmp_path, 1, fence(tmp_path, 1))
    (tmp_path / FENCE).write_text("{")
    with pytest.raises(CheckpointStoreError, match=r"FENCE.json cannot be read"):
        publish(tmp_path, 10, permit)


def test_without_a_fence_a_numbered_attempt_may_publish(tmp_path: Path) -> None:
    publish(tmp_path, 10, Permit(tmp_path, 1, read_fence(tmp_path)))
    assert [c.step for c in commit.committed(tmp_path)] == [10]


def test_a_remote_store_has_a_fence_too(s3_bucket: str) -> None:
    bucket, _, options = s3_bucket.partition("?")
    store = f"s3://{bucket}/fenced?{options}"
    permit = Permit(store, 1, fence(store, 1))
    permit.check()
    fence(store, 2)
    with pytest.raises(StaleAttemptError):
        permit.check()


@pytest.mark.parametrize("make", [lambda: StaleAttemptError("/store", 1, 2)])
def test_the_error_survives_pickle(make: Callable[[], Exception]) -> None:
    error = make()
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again)) == (type(error), str(error))


def test_a_chief_that_knows_its_fence_is_refused_by_another_drivers_of_the_same_number(tmp_path: Path) -> None:
    held = fence(tmp_path, 1)
    fence(tmp_path, 1)
    with pytest.raises(StaleAttemptError):
        Permit(tmp_path, 1, Fence(1, held.id)).check()
