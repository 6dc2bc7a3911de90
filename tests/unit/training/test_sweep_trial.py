"""One trial: a stop reaches its training whenever it comes, and its end says what becomes of it."""

import pytest

from mirrorspark.training.driver.errors import TrainingFailedError, TrainingStoppedError
from mirrorspark.training.protocol.cause import Attempt, Cause, RankError
from mirrorspark.training.run_records.run_state import RunUnderWayError
from mirrorspark.training.run_records.tracking import TrackingError
from mirrorspark.training.sweep.trial import PRUNED, TrialControl, classify_end


def failed(cause: Cause = "user", message: str = "no such layer", kind: str = "ValueError") -> TrainingFailedError:
    return TrainingFailedError((Attempt(1, None, (RankError(cause, 0, kind, message, 0.0),), 0),))


SESSION_LOST = failed("spark", "the JVM does not answer any more", "SessionLost")


def test_a_stop_before_the_training_has_begun_reaches_it() -> None:
    control = TrialControl(lambda event: None, lambda: 1, lambda text: None, lambda name, value: None)
    control.request_stop("SIGTERM")
    asked: list[tuple[str, str]] = []
    control.connect(lambda reason: asked.append(("stop", reason)), lambda reason: asked.append(("now", reason)))
    control.stop_now("again")
    assert asked == [("stop", "SIGTERM"), ("now", "SIGTERM")]


@pytest.mark.parametrize(
    ("error", "reason", "state"),
    [
        (None, None, "complete"),
        (None, PRUNED, "complete"),  # it was over before the order arrived
        (TrainingStoppedError((), 5, PRUNED), PRUNED, "pruned"),
        (TrainingStoppedError((), 5, "SIGINT"), "SIGINT", "running"),
        (failed(), None, "failed"),
        (failed(), PRUNED, "failed"),
        (ConnectionError("gone"), "SIGINT", "running"),  # torn down by a second Ctrl-C
        (ConnectionError("gone"), None, "failed"),
        (TrackingError("the store says no"), None, "running"),
        (RunUnderWayError("run rides-0003 is under way in another driver"), None, "running"),
        (SESSION_LOST, None, "running"),
        (SESSION_LOST, PRUNED, "running"),
    ],
)
def test_how_a_training_ends_says_what_becomes_of_its_trial(
    error: Exception | None, reason: str | None, state: str
) -> None:
    assert classify_end(error, reason).state == state


def test_an_error_is_kept_in_one_line_and_without_passwords() -> None:
    end = classify_end(OSError("cannot reach\nhttp://me:secret@host/"), None)
    assert end.error is not None
    assert "secret" not in end.error
    assert "\n" not in end.error
