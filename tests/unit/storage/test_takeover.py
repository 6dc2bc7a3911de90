"""An owner that was taken for dead and goes on loses nothing of anybody's, on a store without conditions (T6, S12)."""

from dataclasses import dataclass

import pytest

from mirrorspark.storage.lease import Heartbeat, Holder, Lease, LeaseLostError
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import SUCCESS_FILE, SaveMode, WriteJob
from mirrorspark.storage.publish.journal import Journal
from mirrorspark.storage.publish.recovery import recover
from mirrorspark.storage.publish.staging import LEASE_FILE
from tests.unit.storage.bucket import Bucket
from tests.unit.storage.writes import FakeTime, begin, kill_owner_elsewhere, listed, visible, write, written

TARGET = StoragePath("memory://store/t")
NOTE = "_notes.json"
OLD = {"part-0": b"old", "day=1/part-1": b"old", NOTE: b"0"}
NEW = {"part-2": b"new", "day=2/part-3": b"new", NOTE: b"1"}
OTHER = {"part-4": b"other", NOTE: b"2"}
THIRD = {"part-5": b"third"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    return Bucket.installed(monkeypatch)


def rows(content: dict[str, bytes]) -> dict[str, bytes]:
    return {name: text for name, text in content.items() if name != NOTE}


class PausedLease(Lease):
    """The lease of an owner that was paused; an owner that goes on without noticing has renewed it since."""

    notices = True

    @property
    def is_kept(self) -> bool:
        return True

    def check(self) -> None:
        if self.notices:
            raise LeaseLostError("paused")


def taken_for_dead(job: WriteJob, *, notices: bool) -> None:
    """Stop the heartbeats, as a pause does."""
    kill_owner_elsewhere(job)
    lease = job._lease
    lease.__class__ = PausedLease  # type: ignore[assignment]
    lease.notices = notices  # type: ignore[union-attr]


def published(job: WriteJob, files: list) -> bool:  # type: ignore[type-arg]
    """Publish as the product does, and return whether that succeeded."""
    try:
        job.publish(files)
    except OSError:
        job.abort()
        return False
    return True


@dataclass
class Others:
    """Ends the write of an owner, and writes, at the n-th point of the owner.

    Attributes:
        found: The rows between the two.
    """

    bucket: Bucket
    left: int
    job: WriteJob
    notices: bool
    mode: str
    found: dict[str, bytes] | None = None

    def __call__(self) -> None:
        self.left -= 1
        if self.left:
            return
        self.bucket.at_point = lambda: None
        taken_for_dead(self.job, notices=self.notices)
        recover(TARGET, Holder("host-b", 1), timing=FakeTime().timing)
        self.found = visible(TARGET)
        written(TARGET, self.mode, OTHER)


@pytest.mark.parametrize(
    ("other", "notices"),
    [("append", True), ("append", False), ("overwrite", False)],
    ids=["append, the owner notices", "append", "overwrite"],
)
@pytest.mark.parametrize("mode", ["error", "append", "overwrite"])
def test_an_owner_that_is_paused_at_any_request_while_others_write_reports_what_became_of_its_rows(
    bucket: Bucket, mode: str, other: str, notices: bool
) -> None:
    old = {} if mode == "error" else OLD
    new = NEW if mode == "overwrite" else old | NEW
    point, seen = 0, set()
    while True:
        point += 1
        bucket.objects.clear()
        if old:
            written(TARGET, "error", old)
        job = begin(TARGET, mode)
        files = write(job, NEW)
        others = Others(bucket, point, job, notices, other)
        bucket.at_point = others
        has_succeeded = published(job, files)
        bucket.at_point = lambda: None
        if others.found is None:
            break
        between = others.found

        told = f"point {point}, success: {has_succeeded}"
        assert between in (rows(old), rows(new)), told
        if has_succeeded:
            assert between == rows(new), told
        elif other == "append":
            assert between == rows(old), told
        expected = rows(OTHER) if other == "overwrite" else between | rows(OTHER)
        assert visible(TARGET) == listed(TARGET) == expected, told
        assert (TARGET / NOTE).read_bytes() == OTHER[NOTE], told
        assert (TARGET / SUCCESS_FILE).exists(), told
        seen.add(has_succeeded)
        written(TARGET, "append", THIRD)
        assert visible(TARGET) == expected | THIRD, told
        names = {file.path.relative_to(TARGET) for file in TARGET.files()}
        assert names == {*expected, *THIRD, NOTE, SUCCESS_FILE}, told
    assert seen == {True, False}
    print(f"{point - 1} points")


def test_a_query_that_goes_on_elsewhere_is_not_disturbed_by_the_driver_that_was_paused(bucket: Bucket) -> None:
    paused = WriteJob.begin(TARGET, SaveMode.APPEND, name="query")
    files = write(paused, {"part-0": b"paused"})
    taken_for_dead(paused, notices=False)
    Heartbeat("host-a", 77).save(paused.staging / LEASE_FILE)
    again = WriteJob.begin(TARGET, SaveMode.APPEND, name="query", timing=FakeTime().timing)
    (paused.attempt_folder("0") / "part-0").write_bytes(b"paused")

    assert not published(paused, files)
    again.publish(write(again, {"part-0": b"again"}))

    assert visible(TARGET) == {"part-0": b"again"}
    assert {file.path.relative_to(TARGET) for file in TARGET.files()} == {"part-0", SUCCESS_FILE}


def test_what_a_request_that_was_delayed_brings_back_has_no_effect(bucket: Bucket) -> None:
    """The owner may have ended before its store carries out its last request."""
    written(TARGET, "error", {"part-0": b"old"})
    dead = begin(TARGET, "overwrite")
    taken_for_dead(dead, notices=False)
    written(TARGET, "append", {"part-1": b"1"})

    Journal(("part-2",), deletes=("part-0", "part-1")).commit(dead.staging, TARGET)

    assert listed(TARGET) == {"part-0": b"old", "part-1": b"1"}
    written(TARGET, "append", {"part-3": b"3"})
    assert visible(TARGET) == {"part-0": b"old", "part-1": b"1", "part-3": b"3"}
    assert not dead.staging.exists()


def test_a_store_that_lost_the_answer_to_the_commit_of_a_write_taken_for_dead_tells_no_failure(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write was finished by another process, and the caller would append its rows again."""
    written(TARGET, "error", {"part-0": b"old"})
    job = begin(TARGET, "append")
    files = write(job, {"part-1": b"1"})
    commit = Journal.commit

    def late(journal: Journal, staging: StoragePath, target: StoragePath) -> Journal:
        commit(journal, staging, target)
        taken_for_dead(job, notices=False)
        recover(TARGET, Holder("host-b", 1), timing=FakeTime().timing)
        raise OSError("timed out")

    monkeypatch.setattr(Journal, "commit", late)

    assert published(job, files)
    assert visible(TARGET) == {"part-0": b"old", "part-1": b"1"}
    assert {file.path.relative_to(TARGET) for file in TARGET.files()} == {"part-0", "part-1", SUCCESS_FILE}
