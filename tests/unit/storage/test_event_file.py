"""T7: the events file of a day stays small, survives a crash and a full disk, and holds no secrets."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.storage import abilities, event_file, lock_state
from mirrorspark.storage.event_file import Event, EventFile, EventTail


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def kept(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def read(tail: EventTail) -> list[Event]:
    """Return the events that are left to read, and close the file."""
    found = []
    while (event := tail.read()) is not None:
        found.append(event)
    tail.close()
    return found


def test_an_event_can_be_read_as_soon_as_it_is_written(path: Path) -> None:
    events = EventFile(path)
    for epoch in (1, 2):
        events.append({"event": "epoch_end", "rank": 0, "epoch": epoch})
        assert [event["epoch"] for event in kept(path)] == list(range(1, epoch + 1))


def test_a_file_that_has_grown_too_large_takes_only_what_says_how_the_run_went(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(event_file, "LARGEST_BYTES", 1000)
    events = EventFile(path, clock=clock)
    for number in range(100):
        clock.now += 60
        events.append({"event": "log", "rank": 0, "message": f"message {number}"})
    size = path.stat().st_size
    assert 1000 < size < 1200
    events.append({"event": "progress", "rank": 0, "step": 7})
    events.append({"event": "epoch_end", "rank": 0, "epoch": 1})
    assert kept(path)[-1] == {"event": "epoch_end", "rank": 0, "epoch": 1}
    assert caplog.text.count("samples and logs are left out from now on") == 1


def test_records_for_mlflow_leave_the_samples_their_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_file, "LARGEST_BYTES", 1000)
    events = EventFile(path)
    events.append({"event": "mlflow_call", "content": "x" * 2000}, as_is=True)
    events.append({"event": "progress", "rank": 0, "step": 7})
    assert kept(path)[-1]["event"] == "progress"


def test_a_file_shows_that_it_is_still_written(path: Path) -> None:
    for locks, state in ((True, "held"), (False, "free")):
        events = EventFile(path, locks=locks)
        events.append({"event": "attempt", "attempt": 1})
        assert lock_state(path) == state
        events.close()
        assert lock_state(path) == "free"


def test_frequent_events_are_sampled_once_per_rank_and_ten_seconds(path: Path, clock: Clock) -> None:
    events = EventFile(path, clock=clock)
    for second in range(0, 60, 2):
        clock.now = second
        for rank in (0, 1):
            for kind in ("alive", "system", "progress"):
                events.append({"event": kind, "rank": rank, "step": second + 1})
    for kind, rank_steps in (("alive", [1, 11, 21, 31, 41, 51]), ("progress", [1, 7, 13, 19, 25, 31, 37, 43, 49, 55])):
        for rank in (0, 1):
            assert [e["step"] for e in kept(path) if (e["event"], e["rank"]) == (kind, rank)] == rank_steps


def test_sampling_follows_the_events_times_and_survives_a_clock_that_is_set_back(path: Path) -> None:
    events = EventFile(path)
    for time in (100.0, 104.0, 105.0, 20.0, 24.0, 25.0):
        events.append({"event": "progress", "rank": 0, "time": time})
    assert [event["time"] for event in kept(path)] == [100.0, 105.0, 20.0, 25.0]


def test_a_warning_at_every_step_is_kept_now_and_then_and_another_one_at_once(path: Path, clock: Clock) -> None:
    events = EventFile(path, clock=clock)
    for second in range(20):
        clock.now = second
        events.append({"event": "log", "rank": 0, "message": "again"})
    events.append({"event": "log", "rank": 0, "message": "new"})
    assert [event["message"] for event in kept(path)] == ["again", "again", "new"]


def test_a_line_cut_off_by_a_crash_does_not_spoil_the_next(path: Path) -> None:
    path.write_text('{"event": "epo')
    EventFile(path).append({"event": "attempt", "attempt": 1})
    assert path.read_text().splitlines()[1:] == ['{"event": "attempt", "attempt": 1}']


def test_a_full_disk_is_reported_once_and_what_follows_is_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events = EventFile(path)
    events.append({"event": "attempt", "attempt": 1})

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        for attempt in (2, 3):
            events.append({"event": "attempt", "attempt": attempt})
    events.append({"event": "attempt", "attempt": 4})
    assert [event["attempt"] for event in kept(path)] == [1, 4]
    assert [event["attempt"] for event in read(EventTail(events))] == [1, 4, 2, 3]
    assert caplog.text.count("its events are kept in memory") == 1


def test_a_tail_reads_on_behind_what_it_has_read_and_passes_over_what_a_crash_cut_off(path: Path) -> None:
    path.write_text('{"event": "attempt", "attempt": 1}\n{"event": "epo')
    events = EventFile(path)
    tail = EventTail(events)
    assert tail.read() == {"event": "attempt", "attempt": 1}
    assert tail.read() is None
    events.append({"event": "attempt", "attempt": 2})
    assert read(tail) == [{"event": "attempt", "attempt": 2}]
    assert tail.read() is None


def test_without_a_file_events_wait_in_memory_without_their_secrets() -> None:
    events = EventFile(None)
    events.append({"event": "log", "message": "http://ann:s3cret@host"})
    assert read(EventTail(events)) == [{"event": "log", "message": "http://host"}]


def test_a_closed_file_is_opened_by_the_next_event(path: Path) -> None:
    events = EventFile(path)
    for attempt in (1, 2):
        events.append({"event": "attempt", "attempt": attempt})
        events.close()
        events.close()
    assert len(kept(path)) == 2


def test_secrets_do_not_reach_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken-t0ken")
    error = {"message": "http://ann:s3cret@host refused t0ken-t0ken", "traceback": "secret_key='k3y-of-the-store'"}
    EventFile(path).append({"event": "restart", "attempt": 1, "error": error, "stacks": ["password=s3cret"]})
    text = path.read_text()
    assert not [secret for secret in ("s3cret", "t0ken", "k3y-of") if secret in text]
    assert "http://host refused ***" in text


def test_where_nothing_is_appended_events_become_numbered_files_that_are_read_as_one(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T8: a mounted object store; a driver that is killed has lost samples of ten seconds at most."""
    monkeypatch.setattr(abilities, "can_append", lambda folder: False)
    events, tail = EventFile(path, clock=clock), EventTail(EventFile(path))
    assert tail.read() is None
    events.append({"event": "attempt"})
    assert (tail.read(), tail.read()) == ({"event": "attempt"}, None)
    for clock.now, number in ((1, 0), (6, 1)):
        events.append({"event": "progress", "rank": number})
    assert tail.read() is None
    events.append({"event": "epoch_end", "rank": 0})
    # The driver is killed here; the next one goes on.
    resumed = EventFile(path, clock=clock)
    resumed.append({"event": "attempt", "attempt": 2})
    resumed.append({"event": "progress", "rank": 9})
    resumed.close()
    kinds = ["progress", "progress", "epoch_end", "attempt", "progress"]
    assert [event["event"] for event in read(tail)] == kinds
    names = [path.name, *(f"{path.name}.0000000{number}" for number in (2, 3, 4))]
    assert [file.name for file in event_file.files_of(path)] == names
    lines = [json.loads(line)["event"] for line in event_file.lines_of(path)]
    assert lines == ["attempt", *kinds]
    assert tail.position == sum(file.stat().st_size for file in event_file.files_of(path))
    event_file.remove(path)
    assert list(path.parent.iterdir()) == []


def test_a_file_of_events_that_another_disk_began_goes_on_in_numbered_ones(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text('{"event": "attempt"}\n{"event": "cut o')
    monkeypatch.setattr(abilities, "can_append", lambda folder: False)
    EventFile(path).append({"event": "restart"})
    assert [event["event"] for event in read(EventTail(EventFile(path)))] == ["attempt", "restart"]
