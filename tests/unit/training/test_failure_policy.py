"""T6: finish, restart or raise, and which of many failures is the one to show."""

import pytest

from training.failure_policy import Attempt, Cause, Decision, RankError, decide


def error(cause: Cause, *, rank: int | None = 0, at: float = 0.0) -> RankError:
    return RankError(cause, rank, "Type", f"{cause} of {rank} at {at:g}", at)


def failed(number: int, *errors: RankError) -> Attempt:
    return Attempt(number, None, errors, resumed_from=0)


FINISHED = Attempt(3, 5, (), resumed_from=40)


@pytest.mark.parametrize(
    ("attempts", "max_restarts", "decision"),
    [
        ([FINISHED], 0, Decision.FINISH),
        ([failed(1, error("lost")), failed(2, error("lost")), FINISHED], 0, Decision.FINISH),
        ([failed(1, error("lost"))], 0, Decision.RAISE),
        ([failed(1, error("lost"))], 1, Decision.RESTART),
        ([failed(1, error("spark", rank=None))], 1, Decision.RESTART),
        ([failed(1, error("peer"))], 1, Decision.RESTART),
        ([failed(1, error("lost")), failed(2, error("lost"))], 1, Decision.RAISE),
        ([failed(1, error("lost")), failed(2, error("lost"))], 2, Decision.RESTART),
        ([failed(1, error("user"))], 9, Decision.RAISE),
        ([failed(1, error("cancelled", rank=None))], 9, Decision.RAISE),
        ([failed(1, error("peer"), error("cancelled", rank=None))], 9, Decision.RAISE),
        ([failed(1, error("lost")), failed(2, error("user"))], 9, Decision.RAISE),
        ([failed(1, error("peer"), error("lost"), error("user"))], 9, Decision.RAISE),
    ],
)
def test_a_lost_worker_restarts_within_the_budget_and_a_fault_of_the_user_never(
    attempts: list[Attempt], max_restarts: int, decision: Decision
) -> None:
    assert decide(attempts, max_restarts) is decision


def test_an_attempt_that_took_no_epoch_is_finished_all_the_same() -> None:
    assert Attempt(1, 0, (), resumed_from=40).finished
    assert not failed(1, error("lost")).finished


@pytest.mark.parametrize(
    ("errors", "shown"),
    [
        ([error("peer", at=1), error("lost", rank=1, at=2)], "lost of 1 at 2"),
        ([error("peer", at=1), error("lost", rank=2, at=2), error("user", rank=1, at=3)], "user of 1 at 3"),
        ([error("user", rank=1, at=9), error("user", rank=2, at=8)], "user of 2 at 8"),
        ([error("peer", rank=1, at=2), error("spark", rank=None, at=5)], "spark of None at 5"),
        ([error("lost", rank=1, at=4), error("spark", rank=None, at=1)], "lost of 1 at 4"),
    ],
)
def test_the_failure_shown_is_the_earliest_that_no_peer_explains(errors: list[RankError], shown: str) -> None:
    assert failed(1, *errors).first_error.message == shown


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


def test_tensorflows_words_for_a_peer_that_was_killed_are_a_consequence_whatever_they_are() -> None:
    survivor = RankError("user", 0, "InternalError", "RecvAsync is gone", 1.0, is_from_tensorflow=True)
    killed = error("lost", rank=1, at=2.0)
    assert failed(1, survivor, killed).first_error is killed
    assert decide([failed(1, survivor, killed)], 1) is Decision.RESTART


def test_without_a_killed_peer_an_error_of_tensorflow_is_the_users() -> None:
    wrong = RankError("user", 0, "InvalidArgumentError", "shapes differ", 1.0, is_from_tensorflow=True)
    aborted = RankError("peer", 1, "killed", "killed by signal SIGABRT", 0.5)
    assert failed(1, wrong, aborted).first_error is wrong
    assert decide([failed(1, wrong, aborted)], 9) is Decision.RAISE


def test_pythons_own_error_is_the_users_even_when_a_peer_was_killed() -> None:
    wrong = error("user", rank=0, at=3.0)
    assert failed(1, error("lost", rank=1, at=1.0), wrong).first_error is wrong
