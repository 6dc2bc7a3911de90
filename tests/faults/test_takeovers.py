"""T6, S12: the requests of an owner that was taken for dead, and of those who end its write, in any order."""

import contextlib
import random
import threading
from collections.abc import Callable
from functools import partial

import pytest

from mirrorspark.storage.lease import Timing
from mirrorspark.storage.publish import SUCCESS_FILE, WriteInProgressError, recovery
from mirrorspark.storage.publish.recovery import living
from tests.faults.conftest import Count
from tests.unit.storage.bucket import Bucket
from tests.unit.storage.test_takeover import NEW, NOTE, OLD, OTHER, TARGET, THIRD, published, rows, taken_for_dead
from tests.unit.storage.writes import begin, listed, visible, write, written

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]

SEEDS = 2500


class Interleaving:
    """Runs actors, each in a thread, one at a time; from request to request the seed decides who goes on."""

    def __init__(self, bucket: Bucket, chance: random.Random) -> None:
        self._bucket = bucket
        self._chance = chance
        self._switches = chance.choice([0.02, 0.1, 0.5])
        self._turns: dict[threading.Thread, threading.Semaphore] = {}
        self._sleeping: set[threading.Thread] = set()
        self.timing = Timing(clock=lambda: 0.0, sleep=self._sleep)

    def run(self, *actors: Callable[[], bool]) -> list[bool]:
        over = threading.Event()
        results: dict[Callable[[], bool], bool] = {}
        errors: list[BaseException] = []

        def body(act: Callable[[], bool]) -> None:
            me = threading.current_thread()
            self._turns[me].acquire()
            try:
                results[act] = act()
            except BaseException as error:
                errors.append(error)
            del self._turns[me]
            if self._turns:
                self._next(me).release()
            else:
                over.set()

        threads = [threading.Thread(target=body, args=(actor,)) for actor in actors]
        self._turns = {thread: threading.Semaphore(0) for thread in threads}
        self._bucket.at_point = self._at_point
        for thread in threads:
            thread.start()
        self._chance.choice(list(self._turns.values())).release()
        assert over.wait(60)
        self._bucket.at_point = lambda: None
        if errors:
            raise errors[0]
        return [results[actor] for actor in actors]

    def _next(self, me: threading.Thread) -> threading.Semaphore:
        others = [thread for thread in self._turns if thread not in self._sleeping and thread is not me]
        return self._turns[self._chance.choice(others or list(self._turns))]

    def _at_point(self) -> None:
        me = threading.current_thread()
        if me in self._turns and self._chance.random() < self._switches:
            self._yield(me)

    def _yield(self, me: threading.Thread) -> None:
        turn = self._turns[me]
        self._next(me).release()
        turn.acquire()

    def _sleep(self, seconds: float) -> None:
        """Let the others go on until they are over."""
        me = threading.current_thread()
        self._sleeping.add(me)
        while any(thread not in self._sleeping for thread in self._turns):
            self._yield(me)
        self._sleeping.discard(me)


def written_in_the_end(mode: str, content: dict[str, bytes]) -> bool:
    """Write, and again after each failure, as its message advises: it has waited for a write that was alive."""
    is_done = False
    while not is_done:
        with contextlib.suppress(WriteInProgressError):
            job = begin(TARGET, mode)
            is_done = published(job, write(job, content))
    return is_done


@pytest.mark.parametrize("other", ["append", "overwrite"])
@pytest.mark.parametrize("mode", ["error", "append", "overwrite"])
def test_requests_of_an_owner_and_of_the_write_that_takes_it_for_dead_come_in_any_order(
    mode: str, other: str, monkeypatch: pytest.MonkeyPatch, count: Count
) -> None:
    old = {} if mode == "error" else OLD
    new = NEW if mode == "overwrite" else old | NEW
    bucket = Bucket.installed(monkeypatch)
    # An owner whose lock this host does not see counts as dead at once: it has been watched for long enough.
    monkeypatch.setattr(recovery, "living", lambda folders, _: living(folders, Timing(stale_seconds=0)))
    successes = 0
    for seed in range(SEEDS):
        chance = random.Random(seed)
        bucket.objects.clear()
        if old:
            written(TARGET, "error", old)
        order = Interleaving(bucket, chance)
        job = begin(TARGET, mode, order.timing)
        files = write(job, NEW)
        taken_for_dead(job, notices=chance.random() < 0.2)
        has_succeeded, _ = order.run(partial(published, job, files), partial(written_in_the_end, other, OTHER))

        told = f"seed {seed}, success: {has_succeeded}"
        expected = rows(OTHER) | (rows(new if has_succeeded else old) if other == "append" else {})
        assert visible(TARGET) == listed(TARGET) == expected, told
        written(TARGET, "append", THIRD)
        assert visible(TARGET) == expected | THIRD, told
        names = {file.path.relative_to(TARGET) for file in TARGET.files()}
        assert names == {*expected, *THIRD, NOTE, SUCCESS_FILE}, told
        successes += has_succeeded
    assert 0 < successes < SEEDS
    count("takeovers", {"seeds": SEEDS, "successes of the owner": successes})
