"""T6: whoever makes a training stand still is named within the limits, and nobody else ever is.

Workers, tasks and the network between them and the driver are simulated, and their clock with them: steps that take
long, late reports, a driver that stands still, a worker that hangs, is stopped, starves or is cut off. The attempt on
the driver with its watchdog is real. A failure is repeated by its seed: ``World(4711).run()``.
"""

import random
from collections import deque
from typing import Any, Literal

import pytest

from mirrorspark.training.driver.running_attempt import RunningAttempt
from mirrorspark.training.protocol.limits import PhaseLimits
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.protocol.messages.stop import StopSignal
from mirrorspark.training.protocol.outcomes.timing import ABORT_SECONDS, ALIVE_SECONDS, LEASE_SECONDS, SILENT_SECONDS
from tests.faults.conftest import Count, run_seeds, seeds

pytestmark = pytest.mark.timeout(1800)

SEEDS, PARTS = 10_000, 4
LIMITS = PhaseLimits(
    start_seconds=40.0, first_step_seconds=60.0, step_seconds=30.0, checkpoint_seconds=60.0, end_seconds=40.0
)
STEPS, SAVE_EVERY = 24, 8
_TICK = 0.5
_MOST_DELAY = 4.0
# Moments that a verdict may be late: ticks, the stacks that are asked for first, the period of the heartbeat.
_SLACK = 15.0

Fault = Literal["none", "hangs", "is stopped", "freezes", "starves", "is cut off"]


class Worker:
    """A training process and its task, which report to the driver until they are ended."""

    def __init__(self, rank: int, world: "World") -> None:
        self.rank, self.world = rank, world
        chance = world.chance
        self.phase = "starting"
        self.left = chance.uniform(1, 10)
        self.step = self.beats = 0
        self.is_waiting = False
        self.fault: Fault = "none"
        self.is_over = False
        self.leased_at = 0.0
        self.delay = chance.choice([0.0, 0.5, _MOST_DELAY])
        self.arriving: deque[tuple[float, Event]] = deque()
        self.begins = chance.uniform(0, 2)

    @property
    def is_reachable(self) -> bool:
        return self.fault != "is cut off"

    def go_on(self) -> None:
        """Do half a second of work."""
        if self.fault != "none" or self.is_waiting:
            return
        self.left -= _TICK
        self.beats += self.phase == "checkpoint"
        if self.left > 0:
            return
        before, chance = self.phase, self.world.chance
        following = {"starting": "connecting", "connecting": "building", "building": "restoring"}
        if before in following:
            self.enter(following[before], chance.uniform(0.5, 20))
        elif before == "restoring":
            self.enter("first_step", chance.uniform(1, 50))
        elif before == "checkpoint":
            self.enter("training", self.world.work())
        elif before != "ending":
            self.is_waiting = True  # for the others, in a collective

    def enter(self, phase: str, seconds: float) -> None:
        self.phase, self.left = phase, seconds
        self.send({"event": "phase", "phase": phase})

    def has_met(self) -> None:
        """Go on to the next step: all have done this one."""
        self.is_waiting = False
        self.step += 1
        if self.step == STEPS:
            self.enter("ending", 1.0)
        elif self.rank == 0 and self.step % SAVE_EVERY == 0:
            self.enter("checkpoint", self.world.chance.uniform(1, 50))
        elif self.phase == "first_step":
            self.enter("training", self.world.work())
        else:
            self.left = self.world.work()

    def report(self) -> None:
        """Send the reports of process and task at this time, unless they cannot."""
        half_seconds = round(self.world.now / _TICK)
        if half_seconds % 10 == 0:
            state = "stopped" if self.fault == "is stopped" else "sleeping"
            self.send({"event": "system", "from": "task", "state": state})
        if self.fault in ("is stopped", "freezes") or self.phase == "starting":
            return
        if half_seconds % round(ALIVE_SECONDS / _TICK) == 0:
            waits = {"waiting_for": None}
            if self.is_waiting:
                waits = {"waiting_for": f"rank {(self.rank - 1) % len(self.world.workers)}"}
            elif self.fault == "starves":
                waits = {"waiting_for": "input"}
            counters = {"step": self.step, "epoch": 1, "collectives": 2 * self.step, "beats": self.beats}
            self.send({"event": "alive", "phase": self.phase, "waiting_seconds": 0.0} | counters | waits)

    def send(self, event: Event) -> None:
        if self.is_reachable and not self.is_over:
            delay = self.world.chance.uniform(0, self.delay)
            self.arriving.append((self.world.now + delay, event | {"rank": self.rank, "attempt": 1}))


class World:
    """An attempt from a seed; also the server through which its driver sends commands."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.now = 0.0
        self.mean_work = chance.choice([0.5, 3.0, 12.0])
        self.workers = [Worker(rank, self) for rank in range(chance.randint(2, 4))]
        self.culprit = chance.choice(self.workers)
        self.fault: Fault = chance.choice(
            ["none", "none", "hangs", "is stopped", "freezes", "starves", "is cut off"],
        )
        self.fault_at = chance.uniform(1, 200)
        self.driver_stands = (chance.uniform(0, 250), chance.choice([0.0, 0.0, 8.0, 60.0]))
        self.told: list[Event] = []
        self.cancelled_at: float | None = None
        self.attempt = RunningAttempt(
            1,
            len(self.workers),
            limits=LIMITS,
            signal=StopSignal(),
            on_event=self.told.append,
            cancel=self.cancel,
            clock=lambda: self.now,
        )
        self.attempt.begin(self)

    def work(self) -> float:
        """Return the seconds of a step's work, below the limit by what reports may be late."""
        return min(self.chance.expovariate(1 / self.mean_work), LIMITS.step_seconds - _MOST_DELAY - 2 * ALIVE_SECONDS)

    def command(self, command: dict[str, Any]) -> None:
        """Deliver a command of the driver."""
        for worker in self.workers:
            if not worker.is_reachable or worker.is_over:
                continue
            if command["command"] == "lease":
                worker.leased_at = self.now
            if command["command"] == "stacks":
                worker.send({"event": "stacks", "from": "task", "text": "a stack"})
            if command["command"] == "abort":
                worker.is_over = True

    def cancel(self) -> None:
        """End Spark's job."""
        self.cancelled_at = self.now
        for worker in self.workers:
            worker.is_over = True

    def run(self) -> bool:
        """Let the attempt come to its end; return whether a worker was named."""
        struck_at: float | None = None
        while not all(worker.is_over for worker in self.workers):
            self.now += _TICK
            assert self.now < 3_000, "the attempt does not end"
            # A rank that waits for others in a collective does nothing that a fault could stop.
            may_strike = not self.culprit.is_waiting and self.culprit.phase not in ("starting", "ending")
            if self.fault != "none" and struck_at is None and self.now >= self.fault_at and may_strike:
                self.culprit.fault, struck_at = self.fault, self.now
            self._workers_go_on()
            self._driver_goes_on()
            if all(worker.phase == "ending" for worker in self.workers):
                break
        hangs = [event for event in self.told if event["event"] == "hung"]
        if struck_at is None:
            assert not hangs, hangs
            return False
        assert [event["ranks"] for event in hangs] == [[self.culprit.rank]], (struck_at, hangs)
        seconds = self.driver_stands[1]
        late = LIMITS.of(self.culprit.phase) + SILENT_SECONDS + _MOST_DELAY + 2 * seconds + _SLACK
        assert self.now - struck_at < late + ABORT_SECONDS, "it took too long"
        return True

    def _workers_go_on(self) -> None:
        for worker in self.workers:
            if not worker.is_over and self.now >= worker.begins:
                worker.go_on()
                worker.report()
                # A task ends its process when the driver's lease runs out.
                worker.is_over |= worker.fault == "is cut off" and self.now - worker.leased_at > LEASE_SECONDS
        if all(worker.is_waiting for worker in self.workers):
            for worker in self.workers:
                worker.has_met()

    def _driver_goes_on(self) -> None:
        stands_from, seconds = self.driver_stands
        if stands_from <= self.now < stands_from + seconds:
            return
        for worker in self.workers:
            while worker.arriving and worker.arriving[0][0] <= self.now:
                self.attempt.on_event(worker.arriving.popleft()[1])
        half_seconds = round(self.now / _TICK)
        if half_seconds % 10 == 0:
            self.attempt.renew_leases()
        if half_seconds % 2 == 0:
            self.attempt.tick()
            self.attempt.cancel_when_due()


@pytest.mark.parametrize("some", seeds(SEEDS, PARTS, usual=100))
def test_who_stands_still_is_named_and_nobody_else(some: range, count: Count) -> None:
    named = run_seeds(some, lambda seed: World(seed).run(), "World({0}).run(), which has World({0}).fault")
    count("simulated supervision", {"seeds": len(some), "workers named": named})
