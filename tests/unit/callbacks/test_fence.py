"""A chief that was only cut off does not publish into the training that went on without it."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirrorspark.callbacks.checkpoints import commit, retention
from mirrorspark.callbacks.checkpoints import fencing as fences
from mirrorspark.callbacks.checkpoints.checkpoint_store import CheckpointStoreError, LocalStore, Location, ObjectStore
from mirrorspark.callbacks.checkpoints.fencing import FENCE, Fence, Permit, StaleAttemptError, adopt, fence, read_fence
from mirrorspark.storage.paths import StoragePath
from tests.unit.callbacks.committed_files import publish_files


def publish(directory: Location, step: int, permit: Permit | None) -> None:
    publish_files(directory, {"ckpt.index": "index"}, step=step, epoch=0, permit=permit)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Return an empty store of each kind."""
    return tmp_path / "store" if request.param == "local" else f"memory://{tmp_path.parent.name}-{tmp_path.name}"


def begun(store: Location, attempt: int) -> Fence:
    """Return the fence of an attempt whose driver has chosen where it begins."""
    held = fence(store, attempt)
    return adopt(store, held, [c.path.name for c in commit.committed(store)])


def publish_only(store: Location, step: int, held: Fence) -> None:
    """Commit ``step`` and keep no other."""
    publish(store, step, Permit(store, held.attempt, held, held.id))
    retention.prune(store, keep_last=1, known_good=commit.checkpoint_of_step(store, step))


def steps(store: Location) -> list[int]:
    return [c.step for c in commit.committed(store) if c.damage() is None]


def once(action: Callable[[], None]) -> Callable[[], None]:
    """Return a function that does ``action`` at its first call."""
    actions = [action]
    return lambda: actions.pop()() if actions else None


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
    """The process may be stopped between its look at the fence and the rename, for as it likes."""
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
    (removed,) = retention.clean_staging(tmp_path, later.id)
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
                retention.prune(store, keep_last=1, known_good=commit.checkpoint_of_step(store, 10))

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
    retention.prune(tmp_path, keep_last=1, known_good=written)
    assert [c.path for c in commit.committed(tmp_path)] == [written.path]


def test_a_store_that_lost_its_fence_is_gone(tmp_path: Path) -> None:
    permit = Permit(tmp_path, 1, fence(tmp_path, 1))
    next(tmp_path.glob(FENCE)).unlink()
    with pytest.raises(CheckpointStoreError, match="is the disk still there"):
        publish(tmp_path, 10, permit)
    with pytest.raises(CheckpointStoreError, match="of attempt 1: is the disk still there"):
        fence(tmp_path, 2)


@pytest.mark.parametrize("text", ["{", '{"attempt": 1e999, "id": "1"}'])
def test_a_fence_that_cannot_be_read_lets_nobody_publish(tmp_path: Path, text: str) -> None:
    permit = Permit(tmp_path, 1, fence(tmp_path, 1))
    next(tmp_path.glob(FENCE)).write_text(text)
    with pytest.raises(CheckpointStoreError, match=r"FENCE-000001-\w+\.json cannot be read"):
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


def test_a_chief_that_is_paused_while_it_cleans_up_removes_nothing_of_the_next_attempt(
    store: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T6: between its look at the fences and at the folders the next attempt commits, and keeps only that."""
    publish_only(store, 10, begun(store, 1))
    paused = begun(store, 2)
    goes_on = once(lambda: publish_only(store, 20, begun(store, 3)))
    for kind in (LocalStore, ObjectStore):
        list_folders: Callable[[Any], list[str]] = kind.folders

        def folders(self: Any, list_folders: Callable[[Any], list[str]] = list_folders) -> list[str]:
            goes_on()
            return list_folders(self)

        monkeypatch.setattr(kind, "folders", folders)
    assert retention.clean_staging(store, paused.id) == []
    assert steps(store) == [20]


def test_a_chief_that_wakes_up_late_removes_nothing_of_a_delivery_under_way(store: Location) -> None:
    """T6: nor of one that the attempt before it did not finish, once a later attempt knows it."""
    publish_only(store, 10, begun(store, 1))
    late = begun(store, 2)
    mine = begun(store, 3)
    clean = once(lambda: removed.extend(retention.clean_staging(store, late.id)))
    removed: list[object] = []

    class UnderWay(Permit):
        def check(self) -> None:
            clean()
            super().check()

    publish(store, 20, UnderWay(store, 3, mine, mine.id))
    retention.prune(store, keep_last=1, known_good=commit.checkpoint_of_step(store, 20))
    assert removed == []
    assert steps(store) == [20]


def test_each_attempt_removes_what_attempts_before_it_have_left_and_nothing_unknown(store: Location) -> None:
    first, second, third = (begun(store, number) for number in (1, 2, 3))
    root = StoragePath.of(store)

    def left_by(mark: str) -> StoragePath:
        return root / (f"step-00000010-{mark}/abc" if "://" in str(store) else f".staging-step-00000010-{mark}-abc")

    marks = [first.id[:8], second.id[:8], third.id[:8], "0123abcd"]
    for mark in marks:
        (left_by(mark) / "ckpt.index").parent.make_folder()
        (left_by(mark) / "ckpt.index").write_bytes(b"half")
    assert len(retention.clean_staging(store, second.id)) == 1
    assert [left_by(mark).exists() for mark in marks] == [False, True, True, True]
    assert len(retention.clean_staging(store, third.id)) == 1
    assert [left_by(mark).exists() for mark in marks] == [False, False, True, True]
    assert retention.clean_staging(store, "of a store that was removed") == []


def test_a_driver_that_is_paused_while_it_adopts_changes_nothing_of_the_next_one(
    store: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T6: it wakes up between its look at the fences and its write."""
    paused = fence(store, 1)
    later: list[Fence] = []

    def take_over() -> None:
        later.append(begun(store, 1))
        publish_only(store, 10, later[0])

    pause_before_writing_a_fence(monkeypatch, take_over)
    with pytest.raises(StaleAttemptError):
        adopt(store, paused, [])
    assert steps(store) == [10]
    publish_only(store, 20, later[0])
    last = begun(store, 1)
    retention.clean_staging(store, last.id)
    assert steps(store) == [20]


@pytest.mark.parametrize("digits", ["12", "21"], ids=["sorted before", "sorted after"])
def test_a_driver_that_is_paused_while_it_sets_its_fence_loses_no_step_of_the_next_one(
    store: Location, monkeypatch: pytest.MonkeyPatch, digits: str
) -> None:
    """T6: both have seen the same fences; if the late one gets the store, it begins from the other's step."""
    ids = iter(digits)
    monkeypatch.setattr(fences, "uuid", SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=next(ids, "3") * 32)))
    pause_before_writing_a_fence(monkeypatch, lambda: publish_only(store, 10, begun(store, 1)))
    paused = fence(store, 1)
    assert steps(store) == [10]
    if digits == "12":
        with pytest.raises(StaleAttemptError):
            adopt(store, paused, [])
    else:
        adopt(store, paused, [c.path.name for c in commit.committed(store)])
    last = begun(store, 1)
    retention.clean_staging(store, last.id)
    assert steps(store) == [10]


def pause_before_writing_a_fence(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    write, goes_on = StoragePath.write_bytes, once(action)

    def write_bytes(self: StoragePath, content: bytes) -> None:
        if self.name.startswith("FENCE"):
            goes_on()
        write(self, content)

    monkeypatch.setattr(StoragePath, "write_bytes", write_bytes)


def test_a_commit_that_reported_an_error_and_came_too_late_does_not_count_at_its_retry(store: Location) -> None:
    """T6: the store has it, and did not answer when the fence was looked at for the last time."""
    held = begun(store, 1)

    class NoAnswerAfterTheCommit(Permit):
        def check(self) -> None:
            if (StoragePath.of(commit.folder(store, 10, held.id)) / commit.MARKER).exists():
                raise OSError("no answer")
            super().check()
            begun(store, 2)

    with pytest.raises(CheckpointStoreError, match="no answer"):
        publish(store, 10, NoAnswerAfterTheCommit(store, 1, held, held.id))
    with pytest.raises(StaleAttemptError):
        publish(store, 10, Permit(store, 1, held, held.id))
    assert steps(store) == []


def test_checkpoints_of_a_run_with_the_former_file_go_on_counting(store: Location) -> None:
    """The only file of earlier versions listed what counted, and was overwritten by each attempt."""
    former = "0123abcd" * 4
    for step, id_ in ((10, former), (20, "4567abcd" * 4)):
        publish(store, step, Permit(store, 1, None, id_))
    document = {"attempt": 1, "id": former, "earlier": [], "kept": []}
    (StoragePath.of(store) / "FENCE.json").write_bytes(json.dumps(document).encode())
    assert steps(store) == [10]
    held = fence(store, 2)
    assert steps(store) == [10]
    held = adopt(store, held, [c.path.name for c in commit.committed(store)])
    assert (held.retired, held.kept) == ((former,), (f"step-00000010-{former[:8]}",))
    publish(store, 30, Permit(store, 2, held, held.id))
    assert steps(store) == [30, 10]
