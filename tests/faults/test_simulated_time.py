"""T6: supervisor, fence and checkpoints under chiefs that are paused anywhere and wake up at any later time.

The world is simulated: which attempt is lost when, where a chief is paused and when it goes on is drawn from a seed,
and one thing happens at a time. What is tested is real: the supervisor with its policy, the fence, commits and
pruning, on a real folder. A failure is repeated
by its seed: ``run_seed(4711, folder)``.
"""

import contextlib
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints.fence import Fence, Permit, StaleAttemptError
from mirrorspark.callbacks.checkpoints.store import STORE_ERRORS
from mirrorspark.training.driver import running_attempt
from mirrorspark.training.driver.errors import TrainingFailedError
from mirrorspark.training.driver.supervisor import Supervisor
from mirrorspark.training.protocol.limits import Budgets
from tests.unit.callbacks.committed_files import publish_files
from tests.unit.training.test_supervisor import FINISHED, Cluster, Outcome, Plan, failed, supervised

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

SEEDS, PARTS = 10_000, 4
LAST_STEP, EVERY = 40, 10
_SECONDS = 60.0


class Chief:
    """The chief of an attempt: commits checkpoints in a thread of its own, and stops where it is told to."""

    def __init__(self, world: "World", plan: Plan) -> None:
        self.world = world
        self.plan = plan
        self.is_given_up = False
        self.pause_in: int | None = None
        self.error: BaseException | None = None
        self.is_done = False
        self._go, self._turn = threading.Event(), threading.Event()

    def commit(self, step: int, pause_in: int | None = None) -> None:
        """Commit ``step``; return when that is over, or at the point at which the chief is paused."""
        self.pause_in, self.is_done, self.error = pause_in, False, None
        self._turn.clear()
        threading.Thread(target=self._commit, args=(step,), daemon=True).start()
        assert self._turn.wait(_SECONDS)

    def wake(self, pause_in: int | None) -> None:
        """Let a paused chief go on, to its end or to a later point."""
        self.pause_in = pause_in
        self._turn.clear()
        self._go.set()
        assert self._turn.wait(_SECONDS)

    def point(self) -> None:
        """A place at which this process may be stopped for as long as the world likes."""
        if self.pause_in is None:
            return
        self.pause_in -= 1
        if self.pause_in < 0:
            self.pause_in = None
            self._go.clear()
            self._turn.set()
            assert self._go.wait(_SECONDS * 10)

    def _commit(self, step: int) -> None:
        self.world.here.chief = self
        try:
            self._publish(step)
        except (StaleAttemptError, *STORE_ERRORS) as error:
            self.error = error
        except BaseException as error:
            self.world.broken.append(error)
        self.is_done = True
        self._turn.set()

    def _publish(self, step: int) -> None:
        directory = self.plan.checkpoints
        assert self.plan.fence is not None
        held = Fence(self.plan.attempt, self.plan.fence)
        permit = _PausingPermit(directory, self.plan.attempt, held, self.plan.fence)
        self.point()
        files = {"ckpt.index": f"step {step}"}
        published = publish_files(Path(directory), files, step=step, epoch=step // EVERY, permit=permit)
        self.world.acknowledged = max(self.world.acknowledged, step)
        self.point()
        with contextlib.suppress(*STORE_ERRORS):
            commit.prune(directory, keep_last=1, known_good=published)


class _PausingPermit(Permit):
    def check(self) -> None:
        chief: Chief = World.here.chief
        chief.point()
        super().check()
        chief.point()


class World:
    """One run from a seed."""

    here = threading.local()

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance = random.Random(seed)
        self.plan: Any = Plan(str(folder / "checkpoints"))
        self.acknowledged = 0
        self.asleep: list[Chief] = []
        self.broken: list[BaseException] = []
        self.attempts = 0

    def run(self) -> None:
        """Train to the end, by as many drivers as it takes."""
        for _ in range(20):
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
        begin = 0 if plan.resume_from is None else commit.read_committed(Path(plan.resume_from)).step
        assert begin >= self.acknowledged, "a committed step is trained again"
        chief = Chief(self, plan)
        commit.clean_staging(plan.checkpoints)
        for step in range(begin + EVERY, LAST_STEP + 1, EVERY):
            while self.asleep and self.chance.random() < 0.3:
                self.wake_one()
            cluster.train(step)
            match self.chance.choices(("commit", "paused", "lost", "machine", "driver"), (60, 15, 12, 5, 8))[0]:
                case "commit":
                    chief.commit(step)
                case "paused":
                    chief.commit(step, pause_in=self.chance.randrange(8))
                    if not chief.is_done:
                        self.asleep.append(chief)
                        return [failed("hung"), failed("peer", "RingError", "rank 0 is gone")]
                case "lost":
                    return [failed("peer", "RingError", "rank 1 is gone", step), failed("lost")]
                case "machine":
                    return [failed("machine", "OSError", "Too many open files", step)] * 2
                case "driver":
                    raise _DriverIsGoneError
            self.check()
            if chief.error is not None:
                return [failed("peer", type(chief.error).__name__, str(chief.error), step)] * 2
        return [FINISHED, FINISHED]

    def wake_one(self) -> None:
        """Let a chief that was given up go on from where it stopped."""
        chief = self.asleep.pop(self.chance.randrange(len(self.asleep)))
        chief.wake(self.chance.randrange(8) if self.chance.random() < 0.3 else None)
        if not chief.is_done:
            self.asleep.append(chief)
        self.check()

    def newest(self) -> int:
        found = commit.latest_committed(self.plan.checkpoints)
        return 0 if found is None else found.step

    def check(self) -> None:
        """What always holds."""
        assert not self.broken, self.broken
        assert self.newest() >= self.acknowledged, "a committed checkpoint has disappeared"


class _DriverIsGoneError(BaseException):
    """The driver's process was killed."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(running_attempt, "_LATE_EVENTS_SECONDS", 0.0)
    discard: Callable[[Any], None] = commit.discard

    def pausing_discard(path: Any) -> None:
        chief = getattr(World.here, "chief", None)
        if chief is not None:
            chief.point()
        discard(path)

    monkeypatch.setattr(commit, "discard", pausing_discard)
    yield
    World.here.chief = None


def run_seed(seed: int, folder: Path) -> int:
    """Return how many attempts the run of a seed took."""
    world = World(seed, folder)
    world.run()
    return world.attempts


@pytest.mark.parametrize("part", range(PARTS))
def test_no_committed_step_disappears_and_every_run_ends(part: int) -> None:
    attempts = 0
    memory = Path("/dev/shm")  # noqa: S108 - a file system that flushes at once
    parent = memory if memory.is_dir() else Path(tempfile.gettempdir())
    for seed in range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS):
        folder = Path(tempfile.mkdtemp(prefix="mirrorspark-world-", dir=parent))
        try:
            attempts += run_seed(seed, folder)
        except BaseException as error:
            error.add_note(f"repeat it: run_seed({seed}, folder)")
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{SEEDS // PARTS:,} seeds, {attempts:,} attempts")
