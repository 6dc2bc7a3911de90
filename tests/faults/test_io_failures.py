"""T6: every I/O call of a write fails once, and the power goes between any two: old or new stays, and all goes on."""

import contextlib
import re
import resource
import shutil
from pathlib import Path

import pytest

from mirrorspark.storage.event_file import EventFile, EventTail
from tests.faults.conftest import Count
from tests.faults.io_failures import (
    Disk,
    PowerCutError,
    Survival,
    failing,
    power_cut,
)
from tests.faults.operations import LOCAL, NAMES, Operation, end_process
from tests.unit.storage.writes import in_place

pytestmark = [pytest.mark.full, pytest.mark.timeout(900), pytest.mark.usefixtures("operations_here")]


def tree(place: Path) -> list[str]:
    """Return the names of all files below a folder but the attempts' fences, without what is random in them.

    Pages are left out: a conversion is whole without its page, of which a full disk makes a warning.
    """
    names = (path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir())
    passing = ("cache/processes", "store/FENCE-")
    return sorted(
        re.sub(r"[0-9a-f]{8,}", "#", name)
        for name in names
        if not name.startswith(passing) and not name.endswith(".html")
    )


def without_success(names: list[str], place: Path) -> list[str]:
    """Return the names of files without Spark's mark of a whole write, which may be missing after a full disk."""
    return names if (place / "t" / "_SUCCESS").exists() else [name for name in names if name != "t/_SUCCESS"]


def fresh(place: Path, operation: Operation) -> None:
    end_process()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    operation.prepare(place)


def outcomes(place: Path, operation: Operation) -> tuple[object, object, list[str], list[int]]:
    """Return the old state, the new one, the names of files then, and the sizes of the files that were written."""
    fresh(place, operation)
    old = operation.look(place)
    sizes: list[int] = []
    with failing(place, 0):
        operation.act(place)
    sizes = sorted({path.stat().st_size for path in place.rglob("*") if path.is_file()})
    return old, operation.look(place), tree(place), sizes


@pytest.mark.parametrize("name", NAMES)
def test_each_call_fails_once(
    name: str, operations: dict[str, Operation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: Count
) -> None:
    if "in place" in name:
        in_place(monkeypatch)
    operation, place = operations[name], tmp_path / "place"
    old, new, names, _ = outcomes(place, operation)
    assert old != new
    number, failures = 0, 0
    while True:
        number += 1
        fresh(place, operation)
        with failing(place, number) as calls:
            error: Exception | None = None
            try:
                operation.act(place)
            except Exception as raised:
                error = raised
        if calls.count < number:
            break
        told = f"call {number}: {error!r}"
        if error is not None:
            failures += 1
            assert isinstance(error, OSError), told
            operation.recover(place)
            # A writer that gets an error writes again: an append would then be there twice.
            assert operation.look(place) in ((old,) if name.startswith("an append") else (old, new)), told
        else:
            assert operation.look(place) == new, told
        if operation.look(place) != new or (error is not None and operation.is_repeatable):
            operation.act(place)
        assert operation.look(place) == new, told
        operation.recover(place)
        assert tree(place) == without_success(names, place), told
    assert number > 3
    assert failures > 0
    count("calls that failed", {name: number - 1, "that ended the operation": failures})


@pytest.mark.parametrize("name", NAMES)
def test_files_that_cannot_grow_any_further(
    name: str, operations: dict[str, Operation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of every file fails, at its first byte and at its last, whichever library makes it."""
    if "in place" in name:
        in_place(monkeypatch)
    operation, place = operations[name], tmp_path / "place"
    old, new, names, sizes = outcomes(place, operation)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in sorted({0} | {size - 1 for size in sizes if size}):
        fresh(place, operation)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        error: Exception | None = None
        try:
            operation.act(place)
        except Exception as raised:
            error = raised
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        told = f"{limit} bytes: {error!r}"
        if error is not None:
            assert isinstance(error, OSError), told
            operation.recover(place)
            assert operation.look(place) == old, told
            operation.act(place)
        assert operation.look(place) == new, told
        operation.recover(place)
        assert tree(place) == names, told


SURVIVALS = ["what was flushed", "all names, but no content that was not flushed", 1, 2, 3]


# The finalizers of a process without power raise as well.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("survival", SURVIVALS)
# Scores that are appended are not flushed, as Spark's are not: files of new names may be empty then, which readers pass
# over.
@pytest.mark.parametrize("name", LOCAL)
def test_the_power_goes_before_each_call(
    name: str,
    survival: Survival,
    operations: dict[str, Operation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: Count,
) -> None:
    if "in place" in name:
        in_place(monkeypatch)
    operation, place = operations[name], tmp_path / "place"
    old, new, names, _ = outcomes(place, operation)
    number, seen = 0, set()
    while True:
        number += 1
        fresh(place, operation)
        disk = Disk(place)
        disk.flush_all()
        with power_cut(disk, number) as calls:
            try:
                operation.act(place)
            except PowerCutError:
                has_returned = False
            else:
                has_returned = True
                disk.cut()
        end_process()
        # A seed stands for another choice at every call.
        disk.restart(survival + 1000 * number if isinstance(survival, int) else survival)
        operation.recover(place)
        found = operation.look(place)
        assert operation.is_verified or found in (old, new), f"before call {number}"
        if has_returned and operation.is_durable:
            assert found == new, "a file that was reported as written is missing"
        seen.add(found == new)
        if found != new or operation.is_repeatable:
            operation.act(place)
        operation.recover(place)
        assert operation.look(place) == new
        assert tree(place) == names, f"before call {number}"
        if has_returned:
            assert calls.count < number
            break
    assert False in seen
    count("power cuts", {name: number})


def test_events_that_could_not_be_written_are_told_and_the_next_are_whole(tmp_path: Path) -> None:
    number = 0
    while True:
        number += 1
        path = tmp_path / "place" / f"{number}.jsonl"
        with failing(tmp_path / "place", number) as calls:
            events = EventFile(path)
            for epoch in range(4):
                events.append({"event": "epoch_end", "epoch": epoch})
        tail, found = EventTail(events), []
        while (event := tail.read()) is not None:
            found.append(event["epoch"])
        tail.close()
        events.close()
        assert sorted(found) == [0, 1, 2, 3]
        if calls.count < number:
            break
    assert number > 4


@pytest.mark.parametrize("survival", SURVIVALS)
def test_events_after_a_power_cut_follow_those_that_the_disk_kept(survival: Survival, tmp_path: Path) -> None:
    place = tmp_path / "place"
    number = 0
    while True:
        number += 1
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        disk, events = Disk(place), EventFile(place / "run" / "events.jsonl")
        disk.flush_all()
        with power_cut(disk, number) as calls:
            try:
                for epoch in range(4):
                    events.append({"event": "epoch_end", "epoch": epoch})
            except PowerCutError:
                pass
            else:
                disk.cut()
        events.close()
        disk.restart(survival + 1000 * number if isinstance(survival, int) else survival)
        again = EventFile(place / "run" / "events.jsonl")
        again.append({"event": "attempt"})
        again.close()
        with contextlib.closing(EventTail(again)) as tail:
            *kept, last = iter(tail.read, None)
        assert last == {"event": "attempt"}
        assert [event["epoch"] for event in kept] == list(range(len(kept))), f"before call {number}"
        if calls.count < number:
            break
    assert number > 4
