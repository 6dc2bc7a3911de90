"""T6: whole runs whose ranks hang, are killed, paused or cut off: nothing committed is lost and no rank trains twice.

Supervisor, attempts with their watchdog and leases, event channel, fences and commits are real. Spark, the tasks, the
workers, their clocks and the network are simulated from a seed. A failure is repeated by its seed:
``World(4711).run()``.
"""

import random
import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from mirrorspark.callbacks.checkpoints import checkpoint_store as store
from mirrorspark.callbacks.checkpoints import commit, retention
from mirrorspark.callbacks.checkpoints import fencing as fences
from mirrorspark.callbacks.checkpoints.checkpoint_store import open_store
from mirrorspark.callbacks.checkpoints.fencing import Fence, Permit, StaleAttemptError
from mirrorspark.storage.paths import StoragePath
from mirrorspark.training.driver import running_attempt, supervisor
from mirrorspark.training.driver.launcher import BarrierJobError
from mirrorspark.training.driver.store_reads import StoreReader
from mirrorspark.training.driver.supervisor import Supervisor
from mirrorspark.training.protocol.elastic import Elastic, WorkerRange
from mirrorspark.training.protocol.limits import Budgets, PhaseLimits
from mirrorspark.training.protocol.messages import admissions, event_client, event_server, handshake, stop
from mirrorspark.training.protocol.messages.event_client import EventClient
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.protocol.outcomes import rounds
from mirrorspark.training.protocol.outcomes.cause import RankError
from mirrorspark.training.protocol.outcomes.timing import LEASE_SECONDS, SYSTEM_SECONDS
from tests.faults.conftest import Count, run_seeds, seeds
from tests.faults.simulated import Process, Room
from tests.faults.simulated_network import STAND_INS, simulate
from tests.unit.callbacks.committed_files import publish_files
from tests.unit.training.test_supervisor import ABORTED, FINISHED, Outcome, Plan, failed

pytestmark = pytest.mark.timeout(1800)

SEEDS, PARTS = 1_000, 2
WORKERS, LAST_STEP, EVERY = 2, 18, 6
LIMITS = PhaseLimits(
    start_seconds=40.0, first_step_seconds=30.0, step_seconds=20.0, checkpoint_seconds=30.0, end_seconds=40.0
)
# Spark gives up an executor after this time without a heartbeat.
_EXECUTOR_SECONDS = 120.0
_LONGEST_SECONDS = 3_000.0


class Rank:
    """A rank of an attempt: a worker, and the task that ends it on a command, or when no message arrives."""

    def __init__(self, world: "World", plan: Plan, rank: int) -> None:
        self.world, self.plan, self.rank = world, plan, rank
        skew = world.room.chance.uniform(-100, 100)
        self.task, self.worker = (
            Process(world.room, f"{what} {rank} of attempt {plan.attempt}", skew) for what in ("task", "worker")
        )
        self.outcome: Outcome | None = None
        self.answer: Outcome | None = None
        self.hangs = self.was_paused = False

    @property
    def is_reachable(self) -> bool:
        return self.world.room.now >= max(self.task.cut_off_until, self.world.driver.cut_off_until)

    def run_task(self) -> None:
        """Do what :class:`training.executor.rank_monitor.RankMonitor` does."""
        commands: list[Event] = []
        events = self._channel("task", commands)
        self.worker.start(self._train, "training")
        while self.outcome is None:
            events.send({"event": "system", "state": "sleeping"})
            self.world.room.wait(lambda: bool(commands) or self.answer is not None, SYSTEM_SECONDS)
            while commands:
                command = commands.pop(0)["command"]
                if command == "stacks":
                    events.send({"event": "stacks", "text": "a stack"})
                if command == "abort":
                    self.outcome = ABORTED
            if events.silent_seconds > LEASE_SECONDS:
                self.outcome = ABORTED | {"cause": "driver"}
            if self.worker.is_killed:
                self.outcome = failed("lost")
            self.outcome = self.outcome or self.answer
        self.worker.kill()
        events.close()

    def end(self) -> None:
        """End it, as Spark does with a cancelled job."""
        self.worker.kill()
        self.task.kill()

    def _channel(self, sender: Any, commands: list[Event]) -> EventClient:
        clock = STAND_INS["time"].monotonic
        return EventClient(
            self.plan.events, self.rank, self.plan.attempt, on_command=commands.append, sender=sender, clock=clock
        )

    def _train(self) -> None:
        room, plan = self.world.room, self.plan
        events = self._channel("rank", [])
        permit = Permit(plan.checkpoints, plan.attempt, Fence(plan.attempt, plan.fence or ""), plan.fence or "")
        step = 0 if plan.resume_from is None else commit.read_committed(plan.resume_from).step
        self.world.begins(self, step)
        try:
            for phase in ("connecting", "building", "restoring", "first_step"):
                events.send({"event": "phase", "phase": phase})
                room.sleep(room.chance.uniform(0.1, 3.0))
            if self.rank == 0:
                permit.check()
                open_store(plan.checkpoints).make()
                retention.clean_staging(plan.checkpoints, plan.fence or "")
            while step < LAST_STEP:
                room.sleep(room.chance.uniform(0.5, 3.0))
                if self.hangs:
                    room.sleep(10 * _LONGEST_SECONDS)
                step += 1
                self.world.trained.append((self, room.now, step))
                self._say_alive(events, step)
                if self.rank == 0 and step % EVERY == 0:
                    events.send({"event": "phase", "phase": "checkpoint"})
                    room.sleep(room.chance.uniform(0.1, 10.0))
                    published = publish_files(
                        plan.checkpoints, {"ckpt.index": f"{step}"}, step=step, epoch=step // EVERY, permit=permit
                    )
                    self.world.acknowledge(self, step)
                    retention.prune(plan.checkpoints, keep_last=1, known_good=published)
                    events.send({"event": "phase", "phase": "training"})
            events.send({"event": "phase", "phase": "ending"})
            self.answer = FINISHED
        except StaleAttemptError as error:
            self.answer = failed("peer", "StaleAttemptError", str(error), step)
        events.close()

    def _say_alive(self, events: EventClient, step: int) -> None:
        counters = {"step": step, "epoch": 1, "collectives": 2 * step, "beats": 0}
        events.send(
            {"event": "alive", "phase": "training", "waiting_seconds": 0.0, "waiting_for": None, **counters},
        )


class World:
    """A run from a seed; also the Spark that launches its attempts."""

    def __init__(self, seed: int) -> None:
        self.room = Room(seed)
        self.driver = Process(self.room, "driver", self.room.chance.uniform(-100, 100))
        self.plan: Any = Plan(f"memory://run-{seed}")
        self.ranks: list[Rank] = []
        self.trained: list[tuple[Rank, float, int]] = []
        self.began: dict[tuple[int, int], float] = {}
        self.acknowledged = 0
        self.attempts = 0
        self._is_cancelled = False
        self._ids = random.Random(seed)

    def run(self) -> int:
        """Train to the end; return the number of attempts that it took."""
        seeded = SimpleNamespace(uuid4=lambda: uuid.UUID(int=self._ids.getrandbits(128)))
        channel = (admissions, event_client, event_server, handshake)
        with pytest.MonkeyPatch.context() as patch:
            simulate(patch, *channel, supervisor, running_attempt, rounds, stop)
            patch.setattr(handshake.read_line, "__defaults__", (STAND_INS["time"].monotonic,))
            patch.setattr(StoreReader, "read", lambda reader, where, read: read(lambda: None))
            for module in (fences, store):
                patch.setattr(module, "uuid", seeded)
            for module in (event_client, event_server, supervisor, running_attempt):
                patch.setattr(module.logger, "disabled", True)
            try:
                self.room.run(self._drive, self.driver)
            finally:
                StoragePath.of(self.plan.checkpoints).delete()
        self._check_trained()
        return self.attempts

    def __call__(self, plan: Plan) -> tuple[Outcome, ...]:
        """Run an attempt, as Spark does."""
        self.attempts += 1
        self._is_cancelled = False
        self.ranks = [Rank(self, plan, rank) for rank in range(plan.workers)]
        for rank in self.ranks:
            rank.task.start(rank.run_task, "task")
        has_answers = self.room.wait(self._is_over, LIMITS.start_seconds + _EXECUTOR_SECONDS + 10 * LAST_STEP)
        if not has_answers or self._is_cancelled:
            for rank in self.ranks:
                if rank.is_reachable:
                    rank.end()
            cause: Any = "cancelled" if self._is_cancelled else "spark"
            raise BarrierJobError(RankError(cause, None, "BarrierJobError", "the job has failed", self.room.now))
        return tuple(rank.outcome or ABORTED for rank in self.ranks)

    def cancel(self) -> None:
        """End the job."""
        self._is_cancelled = True

    def begins(self, rank: Rank, step: int) -> None:
        """Note that a rank of an attempt begins."""
        self.began[rank.plan.attempt, rank.rank] = self.room.now
        if rank.plan.attempt == self.attempts and step < self.acknowledged:
            self.room.stop(AssertionError(f"step {self.acknowledged} was committed, and is trained again"))

    def acknowledge(self, rank: Rank, step: int) -> None:
        """Note that a chief has committed a step."""
        now = fences.read_fence(self.plan.checkpoints)
        if now is None or now.id != rank.plan.fence:
            self.room.stop(AssertionError(f"the chief of attempt {rank.plan.attempt} publishes too late"))
        self.acknowledged = max(self.acknowledged, step)
        self._check_committed()

    def _is_over(self) -> bool:
        return self._is_cancelled or all(rank.outcome is not None and rank.is_reachable for rank in self.ranks)

    def _drive(self) -> None:
        Process(self.room, "the world").start(self._disturb, "faults")
        Supervisor(
            launch=self,  # type: ignore[arg-type]
            host="driver",
            advertised="driver",
            elastic=Elastic(WorkerRange(WORKERS, WORKERS), 8),
            slots=lambda: WORKERS,
            on_event=lambda event: None,
            budgets=Budgets(max_restarts=20, first_delay_seconds=0.5),
            limits=LIMITS,
            clock=lambda: self.room.now,
        ).supervise(self.plan)
        assert self.acknowledged == LAST_STEP
        assert self.room.now < _LONGEST_SECONDS, "the run takes too long"
        self._check_committed()

    def _disturb(self) -> None:
        room, chance = self.room, self.room.chance
        for _ in range(chance.choice([1, 1, 2, 4])):
            room.sleep(chance.uniform(0, 60))
            if not self.ranks:
                continue
            rank, seconds = chance.choice(self.ranks), chance.choice([3.0, 12.0, 40.0, 150.0])
            processes = chance.choice([(rank.task, rank.worker), (rank.task, rank.worker), (self.driver,)])
            match chance.choice(["cut", "cut off", "cut off", "pause", "kill", "hang"]):
                case "cut":
                    for process in processes:
                        process.cut()
                case "cut off":
                    for process in processes:
                        process.cut_off(seconds)
                case "pause":
                    rank.was_paused |= processes != (self.driver,)
                    for process in processes:
                        process.pause(seconds)
                case "kill":
                    rank.worker.kill()
                case "hang":
                    rank.hangs = True

    def _check_committed(self) -> None:
        found = commit.latest_committed(self.plan.checkpoints)
        if found is None or found.step < self.acknowledged:
            self.room.stop(AssertionError(f"the checkpoint of step {self.acknowledged} has disappeared"))

    def _check_trained(self) -> None:
        """A rank has ended before that of the next attempt begins, unless its machine slept through its lease."""
        for rank, at, step in self.trained:
            later = [
                began
                for (attempt, number), began in self.began.items()
                if attempt > rank.plan.attempt and number == rank.rank
            ]
            if later and not rank.was_paused:
                assert at <= min(later), f"rank {rank.rank} trains step {step} at {at:g} s, and from {min(later):g} s"


@pytest.mark.parametrize("some", seeds(SEEDS, PARTS, usual=30))
def test_every_run_ends_with_all_that_was_committed_and_no_rank_trains_twice(some: range, count: Count) -> None:
    attempts = run_seeds(some, lambda seed: World(seed).run(), "World({}).run()")
    count("simulated runs", {"seeds": len(some), "attempts": attempts})
