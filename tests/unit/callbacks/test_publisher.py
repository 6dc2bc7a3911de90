"""T5: waiting for a slow store, and patience with one that fails."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.callbacks.checkpoints import checksums, commit
from mirrorspark.callbacks.checkpoints.checkpoint_store import CheckpointStoreError, Delivery, LocalStore
from mirrorspark.callbacks.checkpoints.publisher import CheckpointPublisher, Pending, RetentionPolicy, still_waiting

BY_AUC = RetentionPolicy(keep_last=9, keep_best=1, monitor="auc", mode="max")


class Text:
    """Stands for the tensors: writes a text, after the given errors."""

    def __init__(self, text: str, errors: list[Exception] | None = None, *, begun: threading.Event | None = None):
        self._text = text
        self._errors = errors or []
        self._begun = begun
        self.is_released = False

    def write(self, folder: Path) -> None:
        if self._begun:
            self._begun.set()
        if self._errors:
            raise self._errors.pop(0)
        (folder / "ckpt.index").write_text(self._text)

    def release(self) -> None:
        self.is_released = True


def pending(step: int, *, auc: float | None = None, is_optional: bool = False, text: Text | None = None) -> Pending:
    metrics = {} if auc is None else {"auc": auc}
    return Pending(text or Text(f"step {step}"), {}, step, 0, 1 if is_optional else 0, metrics, is_optional)


def steps_waiting(arrivals: list[Pending], retention: RetentionPolicy = BY_AUC) -> list[int]:
    waiting: list[Pending] = []
    for arrival in arrivals:
        waiting = still_waiting(waiting, arrival, retention)
    return [one.step for one in waiting]


def test_a_newer_one_takes_the_place_of_one_within_an_epoch() -> None:
    assert steps_waiting([pending(1, is_optional=True), pending(2, is_optional=True)]) == [2]
    assert steps_waiting([pending(1, is_optional=True), pending(2, auc=0.5)]) == [2]


def test_one_within_an_epoch_does_not_take_the_place_of_an_epochs_end() -> None:
    assert steps_waiting([pending(1, auc=0.5), pending(2, is_optional=True)]) == [1]


def test_the_best_by_metric_waits_beside_the_newest() -> None:
    arrivals = [pending(1, auc=0.5), pending(2, auc=0.9), pending(3, auc=0.7), pending(4, auc=0.9), pending(5, auc=0.1)]
    assert steps_waiting(arrivals) == [2, 5]
    assert steps_waiting([*arrivals, pending(6, auc=0.95)]) == [6]
    assert steps_waiting(arrivals, RetentionPolicy(1, 1, "auc", "min")) == [5]
    assert steps_waiting(arrivals, RetentionPolicy(1, 0, "auc", "max")) == [5]


def test_a_metric_that_is_no_number_is_never_the_best() -> None:
    assert steps_waiting([pending(1, auc=float("nan")), pending(2, auc=0.1), pending(3)]) == [2, 3]


@pytest.fixture
def open_publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CheckpointPublisher]:
    """Return a function that opens a publisher with short pauses."""
    monkeypatch.setattr("mirrorspark.callbacks.checkpoints.publisher._FIRST_PAUSE_SECONDS", 0.01)
    (tmp_path / "store").mkdir()

    def build(**arguments: Any) -> CheckpointPublisher:
        return CheckpointPublisher(tmp_path / "store", tmp_path / "scratch" / "ours-", BY_AUC, **arguments)

    return build


def test_files_are_prepared_in_scratch_which_is_empty_afterwards(
    tmp_path: Path, open_publisher: Callable[..., CheckpointPublisher]
) -> None:
    publisher, text = open_publisher(), Text("values")
    publisher.submit(pending(7, text=text))
    assert publisher.wait(60)
    assert publisher.last_committed == commit.read_committed(tmp_path / "store" / "step-00000007")
    assert text.is_released
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_error_that_passes_is_tried_again_and_forgotten(
    open_publisher: Callable[..., CheckpointPublisher], caplog: pytest.LogCaptureFixture
) -> None:
    publisher = open_publisher(retry_seconds=60)
    publisher.submit(pending(7, text=Text("values", [OSError("full"), OSError("still full")])))
    assert publisher.wait(60)
    publisher.submit(pending(8))
    assert publisher.wait(60)
    assert publisher.last_committed is not None
    assert publisher.last_committed.step == 8
    assert caplog.text.count("The checkpoint of step 7 waits") == 2


def test_a_store_that_stays_away_is_tried_until_the_budget_is_spent(
    tmp_path: Path, open_publisher: Callable[..., CheckpointPublisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, tries = [0.0], list[float]()

    def refuse(store: LocalStore, delivery: Delivery) -> None:
        tries.append(now[0])
        now[0] += 20.0
        raise OSError("gone")

    monkeypatch.setattr(LocalStore, "deliver", refuse)
    publisher = open_publisher(retry_seconds=50, clock=lambda: now[0])
    publisher.submit(pending(7))
    with pytest.raises(CheckpointStoreError, match=f"to {tmp_path / 'store'} .gone"):
        publisher.wait(60)
    # The first failure is noticed at 20 s, and the fourth one comes more than 50 s later.
    assert tries == [0.0, 20.0, 40.0, 60.0]


def test_files_are_read_for_their_checksums_once_however_often_they_are_published(
    open_publisher: Callable[..., CheckpointPublisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, refused, deliver = list[str](), list[str](), LocalStore.deliver

    def checksum_of(path: Path, *, beat: Callable[[], None]) -> str:
        read.append(path.name)
        return "crc32:0"

    def refuse_twice(store: LocalStore, delivery: Delivery) -> None:
        if len(refused) < 2:
            refused.append(delivery.marker("").decode())
            raise OSError("busy")
        deliver(store, delivery)

    monkeypatch.setattr(checksums, "checksum_of", checksum_of)
    monkeypatch.setattr(LocalStore, "deliver", refuse_twice)
    publisher = open_publisher(retry_seconds=60)
    publisher.submit(pending(7))
    assert publisher.wait(60)
    assert (len(refused), read) == (2, ["ckpt.index"])


def test_errors_that_are_not_the_stores_are_not_retried(open_publisher: Callable[..., CheckpointPublisher]) -> None:
    publisher = open_publisher()
    publisher.submit(pending(7, text=Text("values", [TypeError("a bug")])))
    with pytest.raises(TypeError, match="a bug"):
        publisher.wait(60)
    with pytest.raises(TypeError, match="a bug"):
        publisher.submit(pending(8))


def test_one_within_an_epoch_that_fails_gives_way_to_the_next(
    tmp_path: Path, open_publisher: Callable[..., CheckpointPublisher]
) -> None:
    publisher, begun = open_publisher(), threading.Event()
    failing = Text("values", [OSError("full")] * 10**6, begun=begun)
    publisher.submit(pending(7, is_optional=True, text=failing))
    assert begun.wait(60)
    publisher.submit(pending(8, is_optional=True))
    assert publisher.wait(60)
    assert [c.step for c in commit.committed(tmp_path / "store")] == [8]
    assert failing.is_released


class Hanging:
    """Stands for a call that hangs from when it is ``begun`` until it is ``freed``."""

    def __init__(self) -> None:
        self.begun, self.freed = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.freed.wait(60)


def test_a_store_that_says_nothing_ends_training_too(
    tmp_path: Path, open_publisher: Callable[..., CheckpointPublisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, hanging, deliver = [0.0], Hanging(), LocalStore.deliver

    def deliver_late(store: LocalStore, delivery: Delivery) -> None:
        hanging()
        deliver(store, delivery)

    monkeypatch.setattr(LocalStore, "deliver", deliver_late)
    publisher = open_publisher(retry_seconds=30, clock=lambda: now[0])
    publisher.submit(pending(7))
    assert hanging.begun.wait(60)
    now[0] = 29.0
    publisher.raise_failure()
    now[0] = 31.0
    with pytest.raises(CheckpointStoreError, match=f"to {tmp_path / 'store'} .no answer for 31 s"):
        publisher.wait(0.0)
    hanging.freed.set()
    assert publisher.wait(60)


class Slow(Text):
    """Writes one file after the other, each after another call that hangs."""

    def __init__(self, calls: list[Hanging]) -> None:
        super().__init__("values")
        self._calls = calls

    def write(self, folder: Path) -> None:
        for number, call in enumerate(self._calls):
            call()
            (folder / f"part-{number}").write_text("part")
        super().write(folder)


def test_a_slow_local_write_is_not_counted_against_the_store_while_its_files_grow(
    tmp_path: Path, open_publisher: Callable[..., CheckpointPublisher]
) -> None:
    now, calls, beats = [0.0], [Hanging(), Hanging(), Hanging()], [0]

    def beat() -> None:
        beats[0] += 1

    publisher = open_publisher(retry_seconds=30, clock=lambda: now[0], beat=beat)
    publisher.submit(pending(7, text=Slow(calls)))
    for number, call in enumerate(calls):
        assert call.begun.wait(60)
        publisher.wait(0.0)
        assert beats[0] == number
        now[0] += 29.0
        call.freed.set()
    assert publisher.wait(60)
    assert publisher.last_committed is not None

    stuck = Hanging()
    publisher.submit(pending(8, text=Slow([stuck])))
    assert stuck.begun.wait(60)
    now[0] += 31.0
    with pytest.raises(CheckpointStoreError, match=f"to {tmp_path / 'scratch'} .no answer for 31 s"):
        publisher.raise_failure()
    stuck.freed.set()
    assert publisher.wait(60)


def test_a_slow_local_write_that_nobody_waited_for_has_its_growth_seen_when_it_is_late(
    open_publisher: Callable[..., CheckpointPublisher],
) -> None:
    now, calls = [0.0], [Hanging(), Hanging()]
    publisher = open_publisher(retry_seconds=30, clock=lambda: now[0])
    publisher.submit(pending(7, text=Slow(calls)))
    assert calls[0].begun.wait(60)
    calls[0].freed.set()
    assert calls[1].begun.wait(60)
    now[0] = 100.0
    publisher.raise_failure()
    now[0] = 131.0
    with pytest.raises(CheckpointStoreError, match="no answer for 31 s"):
        publisher.raise_failure()
    calls[1].freed.set()
    assert publisher.wait(60)


def test_pruning_that_fails_does_not_cost_the_checkpoint(
    tmp_path: Path,
    open_publisher: Callable[..., CheckpointPublisher],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise PermissionError("no deletions here")

    monkeypatch.setattr("mirrorspark.callbacks.checkpoints.publisher.prune", fail)
    publisher = open_publisher()
    publisher.submit(pending(7))
    assert publisher.wait(60)
    assert [c.step for c in commit.committed(tmp_path / "store")] == [7]
    assert "no deletions here" in caplog.text


@pytest.mark.process
def test_a_program_that_ends_with_an_error_still_publishes_what_is_on_its_way(tmp_path: Path) -> None:
    program = f"""
import pathlib, threading
from mirrorspark.callbacks.checkpoints.publisher import CheckpointPublisher, RetentionPolicy, Pending

ending = threading.Event()

class Late:
    def write(self, folder):
        ending.wait(60)
        (folder / "ckpt.index").write_text("values")
    def release(self):
        pass

store, scratch = {str(tmp_path)!r}, pathlib.Path({str(tmp_path / "ours-")!r})
publisher = CheckpointPublisher(store, scratch, RetentionPolicy(1, 0, None, "max"))
publisher.submit(Pending(Late(), {{}}, 7, 0, 1, {{}}, True))
import atexit
atexit.register(ending.set)  # runs before the publisher's own
raise ValueError("the loss is NaN")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "the loss is NaN" in ended.stderr
    assert [c.step for c in commit.committed(tmp_path)] == [7]
