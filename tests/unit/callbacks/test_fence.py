"""A chief that was only cut off does not publish into the training that went on without it."""

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints import fence as fences
from mirrorspark.callbacks.checkpoints.fence import FENCE, Fence, Permit, StaleAttemptError, adopt, fence, read_fence
from mirrorspark.callbacks.checkpoints.store import CheckpointStoreError, Location
from tests.unit.callbacks.committed_files import publish_files


def publish(directory: Location, step: int, permit: Permit | None) -> None:
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


def test_a_checkpoint_committed_after_another_attempt_began_does_not_count(tmp_path: Path) -> None:
    """The process may be stopped between its look at the fence and the rename, for as long as it likes."""
    held = fence(tmp_path, 1)
    publish(tmp_path, 10, Permit(tmp_path, 1, held, held.id))

    class StoppedBeforeTheRename(Permit):
        def check(self) -> None:
            super().check()
            if read_fence(tmp_path) == held:
                later = fence(tmp_path, 2)
                adopt(tmp_path, later, [c.path.name for c in commit.committed(tmp_path)])

    with pytest.raises(StaleAttemptError):
        publish(tmp_path, 20, StoppedBeforeTheRename(tmp_path, 1, held, held.id))
    assert [c.step for c in commit.committed(tmp_path)] == [10]
    later = fence(tmp_path, 3)
    assert [c.step for c in commit.committed(tmp_path)] == [10]
    with pytest.raises(StaleAttemptError, match="attempt 3 has taken over"):
        adopt(tmp_path, held, [])
    (removed,) = commit.clean_staging(tmp_path)
    assert removed == commit.folder(tmp_path, 20, held.id)
    assert read_fence(tmp_path) == later


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_chief_that_was_paused_takes_nothing_from_the_next_one(tmp_path: Path, kind: str) -> None:
    """T6: both commit the same step, and only one checkpoint is kept."""
    store: Location = tmp_path if kind == "local" else f"memory://paused/{tmp_path.name}"
    held = fence(store, 1)

    class PausedBeforeTheRename(Permit):
        def check(self) -> None:
            super().check()
            if read_fence(store) == held:
                later = adopt(store, fence(store, 2), [])
                publish(store, 10, Permit(store, 2, later, later.id))
                commit.prune(store, keep_last=1, known_good=commit.checkpoint_of_step(store, 10))

    with pytest.raises(StaleAttemptError):
        publish(store, 10, PausedBeforeTheRename(store, 1, held, held.id))
    (left,) = commit.committed(store)
    assert (left.step, left.attempt, left.damage()) == (10, 2, None)


@pytest.mark.parametrize("digits", [("1" * 32, "2" * 32), ("2" * 32, "1" * 32)], ids=["sorted before", "sorted after"])
def test_of_two_attempts_checkpoints_of_one_step_the_newly_written_one_stays_alone(
    tmp_path: Path, digits: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = iter(digits)
    monkeypatch.setattr(fences, "uuid", SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=next(ids))))
    for _ in digits:  # two drivers, each at its first attempt
        held = fence(tmp_path, 1)
        permit = Permit(tmp_path, 1, held, held.id)
        written = publish_files(tmp_path, {"ckpt.index": "index"}, step=10, epoch=0, permit=permit)
    assert len(commit.committed(tmp_path)) == 2
    commit.prune(tmp_path, keep_last=1, known_good=written)
    assert [c.path for c in commit.committed(tmp_path)] == [written.path]


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
