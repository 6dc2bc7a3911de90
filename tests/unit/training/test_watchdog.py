"""T6: a training that stands still is noticed within the limit of its phase, and the rank that is the reason named."""

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.training.driver.watchdog import Hang, Watch, Watchdog
from mirrorspark.training.protocol import limits
from mirrorspark.training.protocol.limits import PhaseLimits
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.protocol.outcomes.activity import Phase

LIMITS = PhaseLimits(
    start_seconds=300, first_step_seconds=600, step_seconds=120, checkpoint_seconds=600, end_seconds=300
)


def alive(rank: int, phase: str, step: int = 0, **more: Any) -> Event:
    return {"event": "alive", "rank": rank, "phase": phase, "step": step, "epoch": 1, "collectives": step * 3, **more}


def system(rank: int, state: str = "sleeping") -> Event:
    return {"event": "system", "from": "task", "rank": rank, "state": state}


def waiting(rank: int, phase: str, step: int, peer: int, seconds: float = 0.0) -> Event:
    return alive(rank, phase, step, waiting_for=f"rank {peer}", waiting_seconds=seconds)


class Ranks:
    """Ranks that report the same every 2 s, and tasks that do every 5 s, until they get another state to report."""

    def __init__(self, workers: int, limits: PhaseLimits = LIMITS) -> None:
        self.now = 1000.0
        self.watch = Watch(workers, limits, self.now)
        self.says: dict[int, Event] = {}
        self.states: dict[int, str] = {}

    def say(self, *events: Event) -> None:
        for event in events:
            self.says[event["rank"]] = event
            self.watch.feed(event, self.now)

    def silence(self, rank: int) -> None:
        del self.says[rank]

    def run(self, seconds: int) -> tuple[int, Hang] | None:
        """Let ``seconds`` go by; return the first verdict, and after how many seconds it came."""
        for second in range(1, seconds + 1):
            self.now += 1
            for event in self.says.values() if second % 2 == 0 else ():
                self.watch.feed(event, self.now)
            for rank, state in self.states.items() if second % 5 == 0 else ():
                self.watch.feed(system(rank, state), self.now)
            if (hang := self.watch.verdict(self.now)) is not None:
                return second, hang
        return None


@pytest.mark.parametrize(
    ("phase", "limit"),
    [
        ("starting", 300),
        ("connecting", 300),
        ("building", 300),
        ("restoring", 300),
        ("first_step", 600),
        ("training", 120),
        ("validation", 120),
        ("checkpoint", 600),
        ("ending", 300),
        ("something new", 120),
    ],
)
def test_every_phase_has_its_limit(phase: str, limit: int) -> None:
    ranks = Ranks(2)
    ranks.say(alive(0, phase), alive(1, phase))
    found = ranks.run(limit + 5)
    assert found is not None
    assert found[0] == limit + 1
    assert found[1].ranks == (0, 1)


def test_code_of_the_user_may_build_for_as_long_as_it_likes_and_a_start_still_has_its_limit() -> None:
    """T6: the phases before that code are ours, and take no longer for it."""
    limits = replace(LIMITS, build_seconds=math.inf)
    for phase, limit in (("starting", 300), ("connecting", 300), ("building", math.inf), ("first_step", 600)):
        assert limits.of(phase) == limit
    slow = Ranks(1, limits)
    slow.say(alive(0, "building"))
    assert slow.run(2000) is None
    unheard = Ranks(2, limits)
    found = unheard.run(400)
    assert found is not None
    assert (found[0], found[1].has_no_event) == (301, True)


def test_a_training_that_gets_on_is_left_alone() -> None:
    ranks = Ranks(2)
    for step in range(50):
        ranks.say(alive(0, "training", step), waiting(1, "training", step, 0))
        assert ranks.run(100) is None


def test_collectives_count_as_getting_on_where_one_step_takes_long() -> None:
    ranks = Ranks(1)
    for collectives in range(50):
        ranks.say(alive(0, "training", 7) | {"collectives": collectives})
        assert ranks.run(100) is None


def test_a_checkpoint_that_gets_on_slowly_is_left_alone() -> None:
    ranks = Ranks(1)
    for beats in range(20):
        ranks.say(alive(0, "checkpoint", 7, beats=beats))
        assert ranks.run(500) is None
    assert ranks.run(200) is not None


def test_no_phase_is_without_a_limit() -> None:
    assert set(limits._LIMITS) == set(get_args(Phase))


def tells_nothing(rank: int, phase: str, step: int, **more: Any) -> Event:
    """A rank under TensorFlow's own collectives, which do not say for whom they wait."""
    return alive(rank, phase, step, **more) | {"collectives": 0}


def test_a_possible_wait_for_a_checkpoint_is_no_hang_until_it_is_committed() -> None:
    ranks = Ranks(2)
    for beats in range(5):
        ranks.say(tells_nothing(0, "checkpoint", 40, beats=beats), tells_nothing(1, "training", 40))
        assert ranks.run(400) is None
    ranks.say(tells_nothing(0, "training", 40, beats=5))
    found = ranks.run(200)  # the same limit as any other step, from now on
    assert found is not None
    assert found[0] == 121


def test_a_checkpoint_that_hangs_excuses_nobody_any_more() -> None:
    ranks = Ranks(2)
    ranks.say(tells_nothing(0, "checkpoint", 40), tells_nothing(1, "training", 40))
    found = ranks.run(700)
    assert found is not None
    assert found[0] == 601


@pytest.mark.parametrize("evidence", [{"waiting_for": "input"}, {"collectives": 120}])
def test_a_checkpoint_excuses_nobody_who_knows_what_it_waits_for(evidence: dict[str, Any]) -> None:
    ranks = Ranks(2)
    ranks.say(tells_nothing(0, "checkpoint", 40), tells_nothing(1, "training", 40) | evidence)
    found = ranks.run(700)
    assert found is not None
    assert (found[0], found[1].ranks) == (121, (1,))


@pytest.mark.parametrize("kind", ["progress", "validation", "epoch_end"])
def test_events_of_the_work_count_as_getting_on(kind: str) -> None:
    ranks = Ranks(1)
    ranks.say(alive(0, "validation", 40))
    for _ in range(50):
        assert ranks.run(100) is None
        ranks.watch.feed({"event": kind, "rank": 0}, ranks.now)


@pytest.mark.parametrize("event", [{"event": "log", "rank": 0}, system(0), {"event": "log", "rank": 7}, {"event": "x"}])
def test_logs_tasks_and_strangers_do_not(event: Event) -> None:
    ranks = Ranks(1)
    ranks.say(alive(0, "training", 40))
    assert ranks.run(100) is None
    ranks.watch.feed(event, ranks.now)
    assert ranks.run(100) is not None


def test_a_rank_that_waits_for_input_is_the_reason_and_not_its_peer() -> None:
    ranks = Ranks(2)
    ranks.say(waiting(0, "training", 82, 1), alive(1, "training", 41, waiting_for="input", waiting_seconds=3.0))
    found = ranks.run(200)
    assert found is not None
    assert found[0] == 121
    # Its last word, a second ago, is said again and again here: it has then waited for 3 s.
    assert found[1] == Hang((1,), "rank 1 is 41 steps behind, waiting for input for 4 s", 41)


def test_a_rank_that_hangs_in_python_is_the_reason_through_all_the_ranks_between() -> None:
    ranks = Ranks(4)
    ranks.say(*(waiting(rank, "training", 40, (rank - 1) % 4) for rank in range(4)))
    ranks.say(alive(2, "training", 40))
    found = ranks.run(200)
    assert found is not None
    assert found[1] == Hang((2,), "rank 2 has been at step 40 for 121 s (limit 120 s)", 40)


def test_a_stopped_process_is_the_reason_whatever_it_said_last() -> None:
    ranks = Ranks(2)
    ranks.say(waiting(0, "training", 40, 1), waiting(1, "training", 40, 0))
    ranks.states = {0: "sleeping", 1: "stopped"}
    ranks.silence(1)
    found = ranks.run(200)
    assert found is not None
    assert found[1] == Hang((1,), "rank 1 is stopped (SIGSTOP)", 40)


@pytest.mark.parametrize(
    ("task_lives", "why"),
    [
        (True, "rank 0 has sent nothing for 121 s: its process is stuck"),
        (False, "rank 0 has sent nothing for 121 s, nor has its task: its machine is out of reach"),
    ],
)
def test_a_silent_rank_is_the_reason(task_lives: bool, why: str) -> None:
    ranks = Ranks(2)
    ranks.say(alive(0, "training", 40), waiting(1, "training", 40, 0))
    ranks.watch.feed(system(0), ranks.now)
    ranks.states = {0: "sleeping"} if task_lives else {}
    ranks.silence(0)
    found = ranks.run(200)
    assert found is not None
    assert found[1] == Hang((0,), why, 40)


def test_ranks_that_wait_for_one_with_time_left_are_left_alone() -> None:
    ranks = Ranks(2)
    ranks.say(waiting(0, "training", 40, 1), alive(1, "checkpoint", 40))
    found = ranks.run(700)
    assert found is not None
    assert found[0] == 601
    assert found[1] == Hang((1,), "rank 1 has been in its phase checkpoint for 601 s (limit 600 s)", 40)


def test_a_rank_that_has_come_to_the_end_waits_as_long_as_another_one_trains() -> None:
    ranks = Ranks(2)
    ranks.say(alive(0, "ending", 50))
    for step in range(10):
        ranks.say(alive(1, "training", step))
        assert ranks.run(100) is None
    ranks.say(alive(1, "ending", 50))
    ranks.silence(0)
    found = ranks.run(400)
    assert found is not None
    assert found[0] == 301


def test_the_slowest_of_ranks_that_wait_in_a_circle_is_blamed() -> None:
    ranks = Ranks(3)
    ranks.say(waiting(0, "training", 40, 1), waiting(1, "training", 40, 2), waiting(2, "training", 38, 0))
    found = ranks.run(200)
    assert found is not None
    why = "rank 2 is 2 steps behind, at step 38 for 121 s (limit 120 s), waiting for rank 0"
    assert found[1] == Hang((2,), why, 38)


def test_a_rank_that_was_never_heard_is_the_reason() -> None:
    ranks = Ranks(2)
    assert ranks.run(20) is None
    ranks.say(waiting(0, "connecting", 0, 1))
    found = ranks.run(400)
    assert found is not None
    assert found[0] == 281
    assert found[1] == Hang((1,), "rank 1 has not reported for 301 s since the start", None)


def test_slots_are_checked_after_a_start_without_any_report() -> None:
    found = Ranks(2).run(400)
    assert found is not None
    why = "no rank has reported for 301 s since the start; are 2 slots free?"
    assert found[1] == Hang((0, 1), why, None, has_no_event=True)
    alone = Ranks(1).run(400)
    assert alone is not None
    assert alone[1].why == "no rank has reported for 301 s since the start; is a slot free?"


def test_slots_are_not_checked_after_reports_of_tasks() -> None:
    ranks = Ranks(2)
    ranks.states = {0: "running", 1: "running"}
    found = ranks.run(400)
    assert found is not None
    assert found[1].why.startswith("rank 0 has not reported for 301 s since the start; rank 1 has")
    assert not found[1].has_no_event


@pytest.mark.parametrize(
    "name", ["start_seconds", "build_seconds", "first_step_seconds", "step_seconds", "end_seconds"]
)
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_limit_of_nothing_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; use a number of seconds above 0"):
        PhaseLimits(**{name: value})
    assert vars(PhaseLimits(**{name: 0.5}))[name] == 0.5


PHASES = ["starting", "connecting", "building", "first_step", "training", "validation", "checkpoint", "ending"]
ALIVE = st.builds(
    lambda rank, phase, step, waits: alive(rank, phase, step, waiting_for=waits, waiting_seconds=1.0),
    st.integers(0, 3),
    st.sampled_from(PHASES),
    st.integers(0, 3),
    st.sampled_from([None, "input", "rank 0", "rank 1", "rank 2", "rank 3", "rank 9"]),
)
SYSTEM = st.builds(system, st.integers(0, 3), st.sampled_from(["running", "sleeping", "stopped", "zombie"]))


@given(st.lists(st.tuples(st.integers(0, 400), ALIVE | SYSTEM), max_size=20))
def test_in_the_end_somebody_is_named_whatever_was_said(said: list[tuple[int, Event]]) -> None:
    watch, now = Watch(4, LIMITS, 0.0), 0.0
    for seconds, event in said:
        now += seconds
        watch.feed(event, now)
        verdict = watch.verdict(now)
        assert verdict is None or (verdict.ranks and verdict.why and set(verdict.ranks) <= {0, 1, 2, 3})
    assert watch.verdict(now) == watch.verdict(now)
    assert watch.verdict(now + 601) is not None


class Driver:
    """Ticks a watchdog every second."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.watchdog = Watchdog(Watch(2, LIMITS, self.now), self.now)

    def on_events(self, *events: Event) -> None:
        for event in events:
            self.watchdog.on_event(event, self.now)

    def tick(self, times: int = 1) -> list[tuple[float, str]]:
        """Return the moves and after how many seconds they came."""
        begin, moves = self.now, []
        for _ in range(times):
            self.now += 1
            if (move := self.watchdog.tick(self.now)) is not None:
                moves.append((self.now - begin, move))
        return moves

    def report(self) -> Event:
        assert self.watchdog.hang is not None
        return self.watchdog.report(self.watchdog.hang)


def test_a_hang_is_reported_once_all_stacks_have_arrived() -> None:
    driver = Driver()
    driver.on_events(alive(0, "training", 40), waiting(1, "training", 40, 0), system(0), system(1))
    assert driver.tick(121) == [(121, "ask_for_stacks")]
    driver.on_events({"event": "stacks", "from": "task", "rank": 1, "text": "in recv"})
    assert driver.tick() == []
    driver.on_events({"event": "stacks", "from": "task", "rank": 0, "text": "in sleep"})
    assert driver.tick(100) == [(3, "report")]  # the verdict has then held for two heartbeats
    assert driver.report() == {
        "event": "hung",
        "ranks": [0, 1],  # no message came for long: both are silent
        "why": "; ".join(f"rank {rank} has sent nothing for 125 s: its process is stuck" for rank in range(2)),
        "stacks": {"0": "in sleep", "1": "in recv"},
    }


def test_a_task_that_gives_no_stacks_is_waited_for_a_short_time_only() -> None:
    driver = Driver()
    driver.on_events(alive(0, "training", 40), alive(1, "training", 40), system(0), system(1))
    assert driver.tick(200) == [(121, "ask_for_stacks"), (126, "report")]
    assert driver.report()["stacks"] == {}


def test_a_rank_whose_progress_is_reported_after_that_of_the_others_is_left_alone() -> None:
    driver = Driver()
    for _ in range(200):  # a checkpoint that takes longer than a step may
        driver.on_events(alive(0, "checkpoint", 40, beats=driver.now), waiting(1, "training", 40, 0))
        assert driver.tick() == []
    driver.on_events(waiting(0, "training", 41, 1))
    assert driver.tick() == [(1, "ask_for_stacks")]
    driver.on_events(alive(1, "training", 41))
    assert driver.tick(20) == []
    assert driver.watchdog.hang is None


def test_a_driver_that_stood_still_listens_before_it_judges() -> None:
    driver = Driver()
    driver.on_events(alive(0, "training", 40), alive(1, "training", 40))
    driver.tick(10)
    driver.now += 1000  # for example stopped and continued
    assert driver.tick() == []
    driver.on_events(alive(0, "training", 41), alive(1, "training", 41))
    assert driver.tick(100) == []


def test_an_event_that_takes_the_driver_long_makes_no_rank_hang() -> None:
    driver = Driver()
    driver.on_events(alive(0, "training", 40), alive(1, "training", 40))
    driver.watchdog.handling_since(driver.now)
    assert driver.tick(1000) == []
    driver.watchdog.handling_since(None)
    # The first 5 s of the stall count.
    assert driver.tick(200)[0] == (116, "ask_for_stacks")
