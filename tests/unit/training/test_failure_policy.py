"""T6: finish, restart, raise or stop, and which of many failures is the one to show."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.training.driver.failure_policy import Decision, Kind, decide, growth_pause_seconds, usable_slots
from mirrorspark.training.protocol.elastic import Elastic, WorkerRange
from mirrorspark.training.protocol.limits import Budgets
from mirrorspark.training.protocol.outcomes.cause import CAUSES_BY_PRECEDENCE, Attempt, Cause, RankError, known_errors

TWO = Elastic(WorkerRange(2, 2), 8)
TWO_TO_FOUR = Elastic(WorkerRange(2, 4), 12)


def error(cause: Cause, *, rank: int | None = 0, at: float = 0.0, step: int | None = None) -> RankError:
    return RankError(cause, rank, "Type", f"{cause} of {rank} at {at:g}", at, step=step)


def failed(number: int, *errors: RankError, resumed_from: int = 0, committed: int = 0) -> Attempt:
    return Attempt(number, None, errors, resumed_from, committed, workers=2)


def decided(
    attempts: list[Attempt], budgets: Budgets | None = None, slots: int = 2, elastic: Elastic = TWO
) -> Decision:
    return decide(attempts, budgets or Budgets(), slots, elastic)


FINISHED = Attempt(3, 5, (), resumed_from=40)


@pytest.mark.parametrize(
    ("attempts", "max_restarts", "kind"),
    [
        ([FINISHED], 0, "finish"),
        ([failed(1, error("lost")), failed(2, error("lost")), FINISHED], 0, "finish"),
        ([failed(1, error("lost"))], 0, "raise"),
        ([failed(1, error("lost"))], 1, "restart"),
        ([failed(1, error("hung"))], 1, "restart"),
        ([failed(1, error("spark", rank=None))], 1, "restart"),
        ([failed(1, error("peer"))], 1, "restart"),
        ([failed(1, error("lost")), failed(2, error("lost"))], 1, "raise"),
        ([failed(1, error("lost")), failed(2, error("hung"))], 1, "raise"),
        ([failed(1, error("lost")), failed(2, error("lost"))], 2, "restart"),
        ([failed(1, error("user"))], 9, "raise"),
        ([failed(1, error("cancelled", rank=None))], 9, "raise"),
        ([failed(1, error("peer"), error("cancelled", rank=None))], 9, "raise"),
        ([failed(1, error("lost")), failed(2, error("user"))], 9, "raise"),
        ([failed(1, error("peer"), error("lost"), error("user"))], 9, "raise"),
    ],
)
def test_a_lost_worker_restarts_within_the_budget_and_a_fault_of_the_user_never(
    attempts: list[Attempt], max_restarts: int, kind: Kind
) -> None:
    assert decided(attempts, Budgets(max_restarts=max_restarts)).kind == kind


@pytest.mark.parametrize(
    ("cause", "budget"),
    [
        ("lost", "max_restarts"),
        ("hung", "max_restarts"),
        ("machine", "max_restarts"),
        ("spark", "max_restarts"),
        ("peer", "max_restarts"),
        ("preempted", "max_preemptions"),
        ("start", "max_start_failures"),
        ("store", "max_store_faults"),
    ],
)
def test_each_cause_draws_on_its_own_budget(cause: Cause, budget: str) -> None:
    one = replace(Budgets(0, 0, 0, 0), **{budget: 1})
    assert decided([failed(1, error(cause))], one).kind == "restart"
    spent = decided([failed(1, error(cause)), failed(2, error(cause), committed=40)], one)
    assert spent == Decision("raise", f"{budget} is 1 and used up; the same command goes on from step 40")


def test_a_restart_says_what_it_costs_and_how_it_goes_on() -> None:
    first = failed(1, error("lost"))
    assert decided([first]) == Decision(
        "restart", "restart 1 of 3 (max_restarts) from step 0 with 2 workers", delay_seconds=0.0, workers=2
    )
    second = failed(2, error("lost"), committed=1200, resumed_from=1200)
    reason = "restart 2 of 3 (max_restarts) in 1 s from step 1,200 with 2 workers"
    assert decided([first, second]) == Decision("restart", reason, delay_seconds=1.0, workers=2)


def test_restarts_in_a_row_wait_longer_until_a_newer_checkpoint() -> None:
    budgets = Budgets(max_restarts=99, first_delay_seconds=2, longest_delay_seconds=10)
    attempts: list[Attempt] = []
    delays = []
    for number in range(1, 7):
        attempts.append(failed(number, error("lost")))
        delays.append(decided(attempts, budgets).delay_seconds)
    assert delays == [0, 2, 4, 8, 10, 10]
    attempts.append(failed(7, error("lost"), resumed_from=0, committed=5))
    assert decided(attempts, budgets).delay_seconds == 0
    attempts.append(failed(8, error("lost"), resumed_from=5, committed=5))
    assert decided(attempts, budgets).delay_seconds == 2


@given(st.integers(0, 10**9), st.floats(0, 1e6), st.floats(0, 1e6))
def test_no_wait_is_longer_than_the_longest_nor_shorter_than_the_one_before(
    failures: int, first: float, longest: float
) -> None:
    budgets = Budgets(first_delay_seconds=first, longest_delay_seconds=longest)
    assert 0 <= budgets.delay_seconds(failures) <= budgets.delay_seconds(failures + 1) <= longest


@pytest.mark.parametrize(("name", "value"), [("max_restarts", -1), ("longest_delay_seconds", float("nan"))])
def test_a_budget_below_nothing_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; use 0 or more"):
        Budgets(**{name: value})  # type: ignore[arg-type]


def test_the_same_error_at_the_same_step_twice_is_a_fault_of_the_user() -> None:
    def refused(port: int, *, step: int | None, cause: Cause = "peer", type_: str = "ConnectionError") -> RankError:
        return RankError(cause, 1, type_, f"lookup at  localhost:{port} refused 0x7f{port}", 1.0, step=step)

    twice = [failed(1, refused(4001, step=40)), failed(2, refused(4002, step=40))]
    assert decided(twice) == Decision("raise", "the same error came at step 40 in attempt 1 already")
    # ... also with another failure between them
    assert decided([twice[0], failed(2, error("lost")), failed(3, refused(7, step=40))]).kind == "raise"
    # ... but not at another step, at no step, of another type, or with another message
    for second in (
        refused(4002, step=41),
        refused(4002, step=None),
        refused(4002, step=40, type_="TimeoutError"),
        replace(refused(4002, step=40), message="another"),
    ):
        assert decided([twice[0], failed(2, second)]).kind == "restart"
    assert decided([failed(1, refused(1, step=None)), failed(2, refused(1, step=None))]).kind == "restart"


def test_an_error_of_unknown_cause_is_retried_once_in_an_epoch() -> None:
    """T6."""
    first = failed(1, error("unknown", step=40))
    retried = decided([first], Budgets(max_restarts=0))
    assert (retried.kind, retried.reason) == (
        "restart",
        "an error of unknown cause is retried once from step 0 with 2 workers",
    )
    again = "an error of unknown cause came again after a restart"
    assert decided([first, failed(2, error("unknown", step=41))]) == Decision("raise", again)
    assert decided([first, failed(2, error("lost")), failed(3, error("unknown"))]) == Decision("raise", again)
    same = failed(2, error("unknown", step=40))
    assert decided([first, same]) == Decision("raise", "the same error came at step 40 in attempt 1 already")
    # ... and once more when another epoch has been committed
    assert decided([first, replace(failed(2, error("unknown", step=90)), committed_epochs=1)]).kind == "restart"


def test_a_worker_that_the_kernel_killed_for_memory_is_not_started_again_the_same_way() -> None:
    killed = RankError("machine", 1, "killed", "killed by signal SIGKILL when the kernel of n1 ended a process", 1.0)
    assert decided([failed(1, killed)]) == Decision(
        "raise", "the same workers on the same machine would run out of memory again"
    )
    assert decided([failed(1, killed, resumed_from=40, committed=40)]).kind == "raise"
    # With a new checkpoint the next attempt is another one: it goes on.
    assert decided([failed(1, killed, committed=40)]).kind == "restart"


def test_an_error_of_unknown_cause_explains_less_than_a_lost_worker() -> None:
    """T6."""
    unknown = error("unknown", rank=0)
    assert failed(1, unknown, error("lost", rank=1, at=2.0)).first_error.cause == "lost"
    assert failed(1, unknown, error("peer", rank=1, at=-1.0)).first_error is unknown


def test_every_cause_has_its_place_among_the_others() -> None:
    assert sorted(CAUSES_BY_PRECEDENCE) == sorted(get_args(Cause))


@pytest.mark.parametrize(
    "fault",
    [
        RankError("store", 0, "OSError", "no space left", 1.0, step=40),
        RankError("machine", 0, "OSError", "too many open files", 1.0, step=40),
        RankError("preempted", 0, "Preempted", "its machine is taken away", 1.0, step=40),
        RankError("hung", 0, "Hung", "rank 0 is stopped (SIGSTOP)", 1.0, step=40),
        RankError("lost", 0, "killed", "killed by signal SIGKILL", 1.0, step=40),
        RankError("peer", 0, "RingError", "rank 1 disconnected", 1.0, step=40),
    ],
)
def test_a_full_disk_a_kill_or_a_lost_peer_may_come_twice_at_the_same_step(fault: RankError) -> None:
    assert decided([failed(1, fault), failed(2, fault)]).kind == "restart"


def test_a_requested_stop_wins_over_later_errors_of_the_ranks() -> None:
    asked = replace(failed(1, committed=1234), stop="requested")
    assert decided([asked]) == Decision("stopped", "stopped at step 1,234")
    for cause in ("lost", "cancelled", "peer", "hung", "store"):
        assert decided([replace(asked, errors=(error(cause),))], Budgets(0, 0, 0, 0)).kind == "stopped"
    assert decided([replace(asked, errors=(error("user"),))]).kind == "raise"
    assert decided([replace(asked, epochs=3)]).kind == "finish"


def test_a_stop_to_grow_costs_nothing_and_goes_on_with_more() -> None:
    grow = replace(failed(1, resumed_from=4, committed=4), stop="grow")
    decision = decided([grow], Budgets(0, 0, 0, 0), slots=9, elastic=TWO_TO_FOUR)
    assert decision == Decision("restart", "4 workers go on instead of 2", 0.0, 4)
    assert decided([replace(grow, errors=(error("lost"),))], Budgets(0, 0, 0, 0)).kind == "raise"


@pytest.mark.parametrize(("slots", "workers"), [(9, 4), (3, 3), (2, 2), (1, 2), (0, 2)])
def test_the_next_attempt_uses_the_slots_that_are_left_or_waits_for_the_fewest(slots: int, workers: int) -> None:
    assert decided([failed(1, error("lost"))], slots=slots, elastic=TWO_TO_FOUR).workers == workers


@pytest.mark.parametrize(("epochs", "said"), [(0, "0 epochs"), (1, "1 epoch"), (5, "5 epochs")])
def test_a_run_that_is_finished_says_after_how_many_epochs(epochs: int, said: str) -> None:
    assert decided([replace(FINISHED, epochs=epochs)]) == Decision("finish", f"finished after {said}")


def test_an_attempt_that_took_no_epoch_is_finished_all_the_same() -> None:
    assert Attempt(1, 0, (), resumed_from=40).finished
    assert not failed(1, error("lost")).finished


def test_an_attempt_without_errors_has_no_first_one() -> None:
    with pytest.raises(ValueError, match="attempt 3 ended without an error"):
        _ = FINISHED.first_error


@pytest.mark.parametrize(
    ("errors", "shown"),
    [
        ([error("peer", at=1), error("lost", rank=1, at=2)], "lost of 1 at 2"),
        ([error("peer", at=1), error("lost", rank=2, at=2), error("user", rank=1, at=3)], "user of 1 at 3"),
        ([error("user", rank=1, at=9), error("user", rank=2, at=8)], "user of 2 at 8"),
        ([error("peer", rank=1, at=2), error("spark", rank=None, at=5)], "spark of None at 5"),
        ([error("lost", rank=1, at=4), error("spark", rank=None, at=1)], "lost of 1 at 4"),
        ([error("lost", rank=0, at=1), error("hung", rank=1, at=2)], "hung of 1 at 2"),
        ([error("peer", rank=0, at=1), error("start", rank=1, at=2)], "start of 1 at 2"),
        ([error("lost", rank=1, at=1), error("preempted", rank=1, at=2)], "preempted of 1 at 2"),
        ([error("peer", rank=1, at=1), error("store", rank=0, at=2)], "store of 0 at 2"),
    ],
)
def test_the_failure_shown_is_the_earliest_that_no_peer_explains(errors: list[RankError], shown: str) -> None:
    assert failed(1, *errors).first_error.message == shown


def test_the_earliest_of_several_nan_losses_is_shown() -> None:
    """T6: a step later the gradients of one rank have spoilt the weights of all, and all notice together."""
    theirs = replace(error("user", rank=1, at=1), epoch=2, step_in_epoch=18)
    mine = replace(error("user", rank=0, at=2), epoch=2, step_in_epoch=17)
    assert failed(1, theirs, mine).first_error is mine
    assert failed(1, theirs, replace(mine, epoch=None, step_in_epoch=None)).first_error is theirs
    assert failed(1, theirs, replace(mine, type="OtherError")).first_error is theirs
    assert RankError.from_event(vars(mine)) == mine


CAUSES = st.sampled_from(
    ["cancelled", "user", "store", "preempted", "hung", "lost", "start", "spark", "driver", "peer"]
)
ERRORS = st.builds(error, CAUSES, rank=st.integers(0, 3), at=st.floats(0, 100))


@given(st.lists(ERRORS, min_size=1, max_size=6), st.randoms())
def test_the_order_of_arrival_does_not_matter_and_a_consequence_never_hides_a_cause(
    errors: list[RankError], random: object
) -> None:
    first = failed(1, *errors).first_error
    random.shuffle(errors)  # type: ignore[attr-defined]
    again = failed(1, *errors).first_error
    assert (again.cause, again.time) == (first.cause, first.time)
    assert first.cause != "peer" or {error.cause for error in errors} == {"peer"}
    assert all(first.time <= error.time for error in errors if error.cause == first.cause)


def test_an_error_is_read_from_its_event() -> None:
    event = {
        "event": "error",
        "cause": "lost",
        "type": "killed",
        "message": "gone",
        "time": 3.5,
        "rank": 1,
        "attempt": 2,
    }
    assert RankError.from_event(event) == RankError("lost", 1, "killed", "gone", 3.5)
    assert RankError.from_event(event | {"traceback": "line 1"}).traceback == "line 1"
    assert RankError.from_event(event | {"step": 40}).step == 40
    assert RankError.from_event(event | {"cause": "something new"}).cause == "user"


def test_outcomes_tell_what_no_event_told() -> None:
    heard = RankError("user", 0, "ValueError", "shapes differ", 3.0, traceback="in model.py", step=7)
    outcomes = [
        {"outcome": "failed", "cause": "user", "type": "ValueError", "message": "shapes differ", "step": 7},
        {"outcome": "failed", "cause": "lost", "type": "killed", "message": "by SIGKILL", "step": None},
        {"outcome": "aborted", "reason": "rank 0: ValueError: shapes differ"},
        {"outcome": "stopped", "reason": "preempted", "step": 7},
        {"outcome": "stopped", "reason": "driver", "step": 7},
        {"outcome": "finished", "epochs": 2},
    ]
    assert known_errors([heard], outcomes, 9.0) == (
        heard,
        RankError("lost", 1, "killed", "by SIGKILL", 9.0),
        RankError("peer", 2, "Aborted", "rank 0: ValueError: shapes differ", 9.0),
        RankError(
            "preempted", 3, "Preempted", "its machine is taken away; it stopped after saving step 7", 9.0, step=7
        ),
    )


def test_a_rank_that_lost_the_driver_says_so_and_one_that_never_had_it_could_not_start() -> None:
    lapsed = {"outcome": "aborted", "reason": "no word from the driver for 30 s", "cause": "driver"}
    told = {"outcome": "aborted", "reason": "rank 0: killed"}
    lost, never, aborted = known_errors([], [lapsed, lapsed, told], 9.0, connected={0})
    assert lost == RankError("driver", 0, "OutOfReach", "no word from the driver for 30 s", 9.0)
    message = "no word from the driver for 30 s, and has never reached it; is its port open?"
    assert never == RankError("start", 1, "OutOfReach", message, 9.0)
    assert aborted.cause == "peer"


def test_a_driver_that_sleeps_every_night_costs_no_budget() -> None:
    nights = [failed(number, error("peer", at=1), error("driver", at=2), committed=40) for number in range(1, 30)]
    nights = [replace(night, resumed_from=number - 1, committed=number) for number, night in enumerate(nights, 1)]
    decision = decided(nights, Budgets(0, 0, 0, 0))
    reason = "the driver was out of reach; restart from step 29 with 2 workers"
    assert decision == Decision("restart", reason, delay_seconds=0.0, workers=2)
    # A rank that was lost on the way counts.
    assert decided([failed(1, error("driver"), error("lost"))], Budgets(0, 0, 0, 0)).kind == "raise"
    # Where it gets nowhere, it waits longer each time.
    stuck = [failed(number, error("driver")) for number in range(1, 30)]
    assert decided(stuck).delay_seconds == 60


def test_a_budget_is_whole_again_when_a_further_epoch_is_committed() -> None:
    def lost(number: int, epoch: int) -> Attempt:
        return replace(failed(number, error("lost")), committed=10 * number, committed_epochs=epoch)

    one = Budgets(max_restarts=1)
    assert decided([lost(1, 4), lost(2, 4)], one).kind == "raise"
    assert decided([lost(1, 4), lost(2, 5)], one).kind == "restart"
    assert decided([lost(1, 4), lost(2, 5), lost(3, 5)], one).kind == "raise"
    # A newest checkpoint that is damaged takes the training back, and gives no budget back.
    assert decided([lost(1, 4), lost(2, 5), lost(3, 4)], one).kind == "raise"
    assert "restart 1 of 1" in decided([lost(1, 4), lost(2, 5), lost(3, 6)], one).reason


UNHEARD = error("start", rank=None)


def launched(workers: int, *errors: RankError, grows: bool = False, epochs: int = 0) -> Attempt:
    return Attempt(1, None, errors, 0, 0, workers, "grow" if grows else None, epochs)


@pytest.mark.parametrize(
    ("attempts", "usable"),
    [
        ([], 4),
        ([launched(4, UNHEARD)], 3),
        ([launched(4, UNHEARD), launched(3, UNHEARD)], 2),
        ([launched(2, UNHEARD)], 2),  # there is no smaller size
        ([launched(4, error("start"))], 4),  # a port that was taken
        # The usable number of workers is kept until more of them run, or may be tried.
        ([launched(4, UNHEARD), launched(3, error("lost"))], 3),
        ([launched(4, UNHEARD), launched(3, grows=True)], 4),
        ([launched(4, UNHEARD), launched(3, grows=True), launched(4, UNHEARD)], 3),
        ([launched(4, UNHEARD), launched(3, grows=True), launched(4, error("lost"))], 4),
    ],
)
def test_slots_that_nobody_was_heard_from_are_somebody_elses(attempts: list[Attempt], usable: int) -> None:
    assert usable_slots(attempts, 4, TWO_TO_FOUR) == usable
    assert usable_slots(attempts, 1, TWO_TO_FOUR) == 1


def test_fewer_workers_are_tried_after_a_start_without_any_report() -> None:
    decision = decided([launched(4, UNHEARD)], slots=4, elastic=TWO_TO_FOUR)
    assert (decision.kind, decision.workers) == ("restart", 3)
    assert decision.reason == "restart 1 of 3 (max_start_failures) from step 0 with 3 workers"


def test_growth_in_vain_is_tried_again_later_each_time() -> None:
    small, grown = launched(2, grows=True), launched(4, error("lost"))
    assert growth_pause_seconds([]) == growth_pause_seconds([grown]) == growth_pause_seconds([small]) == 30
    assert growth_pause_seconds([launched(4, UNHEARD)]) == 300
    flapping = [small, grown]
    assert growth_pause_seconds(flapping) == 300
    assert growth_pause_seconds(flapping * 2) == 600
    assert growth_pause_seconds([*flapping, launched(2, error("lost"))]) == 300
    assert growth_pause_seconds(flapping * 9) == 3600
    # A store that was away meanwhile changes nothing.
    assert growth_pause_seconds([small, launched(0, error("store")), grown]) == 300
    # One that lasted an epoch was worth it.
    assert growth_pause_seconds([*flapping, small, replace(grown, committed_epochs=1)]) == 30


@pytest.mark.parametrize("end", ["lost", "hung", "start", "spark", "driver"])
def test_tensorflows_words_for_a_peer_that_is_gone_are_a_consequence_whatever_they_are(end: Cause) -> None:
    survivor = RankError("user", 0, "InternalError", "RecvAsync is cancelled", 1.0, is_from_tensorflow=True)
    gone = error(end, rank=1, at=2.0)
    assert failed(1, survivor, gone).first_error is gone
    assert decided([failed(1, survivor, gone)]).kind == "restart"


def test_without_a_peer_that_is_gone_an_error_of_tensorflow_is_the_users() -> None:
    wrong = RankError("user", 0, "InvalidArgumentError", "shapes differ", 1.0, is_from_tensorflow=True)
    aborted = RankError("peer", 1, "killed", "killed by signal SIGABRT", 0.5)
    assert failed(1, wrong, aborted).first_error is wrong
    assert decided([failed(1, wrong, aborted)]).kind == "raise"


def test_pythons_own_error_is_the_users_even_when_a_peer_was_killed() -> None:
    wrong = error("user", rank=0, at=3.0)
    assert failed(1, error("lost", rank=1, at=1.0), wrong).first_error is wrong


def test_an_attempt_that_was_survived_is_shown_without_its_stacks() -> None:
    fault = RankError("peer", 0, "RingError", "rank 1 disconnected", 0.0, "Traceback of pages")
    assert "pages" not in repr(Attempt(1, None, (fault,), 0))
