"""T6: supervisor, fences and checkpoints under drivers and chiefs that are paused anywhere and wake up at any time.

The world is simulated: which attempt is lost when, where a driver or a chief is paused and when it goes on is drawn
from a seed, and one thing happens at a time. They are paused before any operation of the store: while a fence is set,
while an attempt adopts what was there, while leftovers are removed, in a commit, and while old checkpoints are removed.
The code under test is real: supervisor with its policy, fences, commits, cleaning and pruning, on a real folder and on
a store without rename. A failure is repeated by its seed: ``run_seed(4711, folder)``.
"""

import contextlib
import functools
import os
import random
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirrorspark.callbacks.checkpoints import checkpoint_store as store
from mirrorspark.callbacks.checkpoints import commit, retention
from mirrorspark.callbacks.checkpoints import fencing as fences
from mirrorspark.callbacks.checkpoints.checkpoint_store import STORE_ERRORS, open_store
from mirrorspark.callbacks.checkpoints.fencing import Fence, Permit, StaleAttemptError
from mirrorspark.storage.paths import StoragePath
from mirrorspark.training.driver import resume, running_attempt
from mirrorspark.training.driver.errors import TrainingFailedError
from mirrorspark.training.driver.supervisor import Supervisor
from mirrorspark.training.protocol.limits import Budgets
from tests.faults.conftest import Count, run_seeds, seeds
from tests.unit.callbacks.committed_files import publish_files
from tests.unit.training.test_supervisor import FINISHED, Cluster, Outcome, Plan, failed, supervised

pytestmark = pytest.mark.timeout(1800)

SEEDS, PARTS = 10_000, 4
LAST_STEP, EVERY = 40, 10
_SECONDS = 60.0

# Everything that a driver or a chief does to a store goes through one of these.
_OPERATIONS: tuple[tuple[Any, str], ...] = (
    (os, "link"),
    (os, "unlink"),
    (shutil, "rmtree"),
    (Path, "mkdir"),
    (Path, "rmdir"),
    (Path, "iterdir"),
    (Path, "is_dir"),
    (Path, "replace"),
    (Path, "write_bytes"),
    (StoragePath, "files"),
    (StoragePath, "folders"),
    (StoragePath, "is_file"),
    (StoragePath, "read_bytes"),
    (StoragePath, "write_bytes"),
    (StoragePath, "open_stream"),
    (StoragePath, "open_write"),
    (StoragePath, "delete"),
)
# About as many operations as it takes to begin an attempt, to prepare a training, and to commit and prune.
_BEGIN, _PREPARE, _COMMIT = 45, 20, 35


class Process:
    """A driver or a chief: works in a thread of its own, and stops where the world likes."""

    here = threading.local()

    def __init__(self, world: "World") -> None:
        self.world = world
        self.fence = ""
        self.error: BaseException | None = None
        self.is_done = False
        self._pause_in: int | None = None
        self._go, self._turn = threading.Event(), threading.Event()

    def run(self, work: Callable[[], None], pause_in: int | None = None) -> None:
        """Do ``work``; return when that is over, or at the operation before which the process is paused."""
        self._pause_in, self.is_done, self.error = pause_in, False, None
        self._turn.clear()
        threading.Thread(target=self._run, args=(work,), daemon=True).start()
        assert self._turn.wait(_SECONDS)

    def wake(self, pause_in: int | None) -> None:
        """Let a paused process go on, to its end or to a later operation."""
        self._pause_in = pause_in
        self._turn.clear()
        self._go.set()
        assert self._turn.wait(_SECONDS)

    def point(self) -> None:
        """A place at which this process may be stopped for as the world likes."""
        if self._pause_in is None:
            return
        self._pause_in -= 1
        if self._pause_in < 0:
            self._pause_in = None
            self._go.clear()
            self._turn.set()
            assert self._go.wait(_SECONDS * 10)

    def _run(self, work: Callable[[], None]) -> None:
        Process.here.process = self
        try:
            work()
        except StaleAttemptError as error:
            self.error = error
        except STORE_ERRORS as error:
            self.error = error
            if self.world.is_current(self.fence):
                self.world.broken.append(error)  # An earlier attempt has taken something away.
        except BaseException as error:
            self.world.broken.append(error)
        self.is_done = True
        self._turn.set()


class Chief(Process):
    """The chief of an attempt."""

    def __init__(self, world: "World", attempt: int, fence: str, begin: int) -> None:
        super().__init__(world)
        self.store = world.plan.checkpoints
        self.fence = fence
        self.permit = Permit(self.store, attempt, Fence(attempt, fence), fence)
        self.begin = begin
        self.is_given_up = False

    def prepare(self) -> None:
        """Do what a chief does before it trains; if it was given up meanwhile, it trains nevertheless."""
        self.permit.check()
        open_store(self.store).make()
        retention.clean_staging(self.store, self.fence)
        if self.is_given_up:
            self.commit(self.begin + EVERY)

    def commit(self, step: int) -> None:
        """Commit a step, and remove all older ones."""
        files = {"ckpt.index": f"step {step}"}
        published = publish_files(self.store, files, step=step, epoch=step // EVERY, permit=self.permit)
        self.world.acknowledge(step, self.fence, published.path.name)
        with contextlib.suppress(*STORE_ERRORS):
            retention.prune(self.store, keep_last=1, known_good=published)


class Driver(Process):
    """A second driver of the same command, given up or started where locks are invisible."""

    def drive(self) -> None:
        """Begin an attempt and train to the end, unless another one takes over."""
        point = resume.fence_and_find_start(self.world.plan, (), lambda: None, has_begun=False)
        self.fence = point.fence
        begin = 0 if point.checkpoint is None else point.checkpoint.step
        if self.world.is_current(point.fence):
            self.world.check_begin(begin)
        chief = Chief(self.world, 1, point.fence, begin)
        chief.prepare()  # in this thread, so that this process stops
        for step in range(begin + EVERY, LAST_STEP + 1, EVERY):
            chief.commit(step)


class World:
    """One run from a seed."""

    def __init__(self, seed: int, checkpoints: str) -> None:
        self.chance = random.Random(seed)
        self.plan: Any = Plan(checkpoints)
        self.acknowledged = 0
        self.asleep: list[Process] = []
        self.broken: list[BaseException] = []
        self.attempts = 0
        self.adoptions: list[tuple[str, set[str]]] = []

    def run(self) -> None:
        """Train to the end, by as many drivers as it takes."""
        for _ in range(20):
            if self.chance.random() < 0.4:
                driver = Driver(self)
                self.go(driver, driver.drive, 1.0, self.chance.choice((_BEGIN, 4 * _BEGIN)))
                self.check()
            cluster = Cluster(self.attempt)
            supervisor: Supervisor = supervised(cluster, Budgets(max_restarts=4, first_delay_seconds=0.0))
            try:
                supervisor.supervise(self.plan)
            except _DriverIsGoneError:
                continue
            except TrainingFailedError:
                self.check()
                continue  # the same command again
            break
        else:
            pytest.fail("the run does not end")
        while self.asleep:
            self.wake_one()
        assert self.newest() == LAST_STEP

    def attempt(self, cluster: Cluster) -> Sequence[Outcome]:
        """Do what the ranks of an attempt do, until one of them is lost."""
        self.attempts += 1
        assert self.attempts < 200, "the run does not end"
        plan = cluster.plan
        begin = 0 if plan.resume_from is None else commit.read_committed(plan.resume_from).step
        self.check_begin(begin)
        chief = Chief(self, plan.attempt, plan.fence or "", begin)
        if not self.go(chief, chief.prepare, 0.4, _PREPARE):
            chief.is_given_up = True
            return _HUNG
        if chief.error is not None:
            return [failed("peer", type(chief.error).__name__, str(chief.error), begin)] * 2
        for step in range(begin + EVERY, LAST_STEP + 1, EVERY):
            while self.asleep and self.chance.random() < 0.3:
                self.wake_one()
            cluster.train(step)
            match self.chance.choices(("commit", "lost", "machine", "driver"), (75, 12, 5, 8))[0]:
                case "commit":
                    if not self.go(chief, functools.partial(chief.commit, step), 0.4, _COMMIT):
                        chief.is_given_up = True
                        return _HUNG
                case "lost":
                    return [failed("peer", "RingError", "rank 1 disconnected", step), failed("lost")]
                case "machine":
                    return [failed("machine", "OSError", "Too many open files", step)] * 2
                case "driver":
                    raise _DriverIsGoneError
            self.check()
            if chief.error is not None:
                return [failed("peer", type(chief.error).__name__, str(chief.error), step)] * 2
        return [FINISHED, FINISHED]

    def go(self, process: Process, work: Callable[[], None], pausing: float, operations: int) -> bool:
        """Return whether a process has come to the end of its work; with probability ``pausing`` it is to pause."""
        process.run(work, self.chance.randrange(operations) if self.chance.random() < pausing else None)
        while not process.is_done and self.chance.random() < 0.6:
            # Nobody gives it up; others go on meanwhile.
            if self.asleep:
                self.wake_one()
            self.wake(process)
        if not process.is_done:
            self.asleep.append(process)
        return process.is_done

    def wake_one(self) -> None:
        """Let a process that was given up go on from where it stopped."""
        process = self.asleep.pop(self.chance.randrange(len(self.asleep)))
        self.wake(process)
        if not process.is_done:
            self.asleep.append(process)
        self.check()

    def wake(self, process: Process) -> None:
        process.wake(self.chance.randrange(_COMMIT) if self.chance.random() < 0.5 else None)

    def newest(self) -> int:
        found = commit.latest_committed(self.plan.checkpoints)
        return 0 if found is None else found.step

    def check(self) -> None:
        """Check the invariants."""
        assert not self.broken, self.broken
        assert self.newest() >= self.acknowledged, "a committed checkpoint has disappeared"

    def check_begin(self, step: int) -> None:
        assert step >= self.acknowledged, "a committed step is trained again"

    def adopted(self, fence: str) -> None:
        """Note an attempt that has begun, and what was there by then."""
        if self.is_current(fence):
            with unpaused():
                self.adoptions.append((fence, set(open_store(self.plan.checkpoints).folders())))

    def is_current(self, fence: str) -> bool:
        """Return whether no later attempt holds the store; if one does, this one's chief publishes nothing."""
        with unpaused():
            now = fences.read_fence(self.plan.checkpoints)
        return now is not None and now.id == fence

    def acknowledge(self, step: int, fence: str, name: str) -> None:
        """A chief has reported a step as published: all of it was there before a later attempt had begun."""
        self.acknowledged = max(self.acknowledged, step)
        attempts = [id_ for id_, _ in self.adoptions]
        later = self.adoptions[attempts.index(fence) + 1 :]
        assert not later or name in later[0][1], "a chief publishes although a later attempt has begun"
        with unpaused():
            self.check()


class _DriverIsGoneError(BaseException):
    """The driver's process was killed."""


_HUNG = [failed("hung"), failed("peer", "RingError", "rank 0 disconnected")]


@contextlib.contextmanager
def unpaused() -> Iterator[None]:
    """Let the world look at the store from a process's thread."""
    process, Process.here.process = getattr(Process.here, "process", None), None
    yield
    Process.here.process = process


def _pausing(operation: Callable[..., Any]) -> Callable[..., Any]:
    def paused(*arguments: Any, **options: Any) -> Any:
        process: Process | None = getattr(Process.here, "process", None)
        if process is not None:
            process.point()
        return operation(*arguments, **options)

    return paused


@contextlib.contextmanager
def simulated(seed: int, folder: Path) -> Iterator[World]:
    """Yield the world of a seed; every other one has a store without rename."""
    world = World(seed, f"memory://{folder.name}" if seed % 2 else str(folder / "checkpoints"))
    ids = random.Random(seed)
    seeded = SimpleNamespace(uuid4=lambda: uuid.UUID(int=ids.getrandbits(128)))
    adopt = fences.adopt

    def noted(directory: Any, mine: Fence, names: Any) -> Fence:
        found = adopt(directory, mine, names)
        world.adopted(mine.id)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running_attempt, "_LATE_EVENTS_SECONDS", 0.0)
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setattr(resume.fencing, "adopt", noted)
        for module in (fences, store):
            patch.setattr(module, "uuid", seeded)
        for place, name in _OPERATIONS:
            patch.setattr(place, name, _pausing(getattr(place, name)))
        try:
            yield world
        finally:
            StoragePath.of(world.plan.checkpoints).delete()


def run_seed(seed: int, folder: Path) -> int:
    """Return the number of attempts in the run of a seed."""
    with simulated(seed, folder) as world:
        world.run()
    return world.attempts


@pytest.mark.parametrize("some", seeds(SEEDS, PARTS, usual=50))
def test_no_committed_step_disappears_only_the_newest_chief_publishes_and_every_run_ends(
    some: range, count: Count
) -> None:
    memory = Path("/dev/shm")  # noqa: S108 - a file system that flushes at once

    def run(seed: int) -> int:
        parent = memory if memory.is_dir() else None
        with tempfile.TemporaryDirectory(prefix="mirrorspark-world-", dir=parent) as folder:
            return run_seed(seed, Path(folder))

    attempts = run_seeds(some, run, "run_seed({}, folder)")
    count("simulated attempts", {"seeds": len(some), "attempts": attempts})
