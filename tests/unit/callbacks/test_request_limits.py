"""T7, L4: how long requests to an MLflow server that is away may take, and whose word counts."""

import os

import pytest

from callbacks.request_limits import brief_requests, limit_requests

RETRIES, TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (RETRIES, TIMEOUT):
        monkeypatch.setenv(name, "")  # for the environment to be as it was afterwards
        monkeypatch.delenv(name)


def limits() -> tuple[str | None, str | None]:
    return os.environ.get(RETRIES), os.environ.get(TIMEOUT)


def test_a_question_takes_20_seconds_at_most_and_leaves_mlflow_as_it_was() -> None:
    with brief_requests():
        retries, seconds = map(int, map(os.environ.__getitem__, (RETRIES, TIMEOUT)))
    # Before its second, third and further retries MLflow waits 4, 8, ... s, and up to a second more.
    waits = sum(2**number + 1 for number in range(2, retries + 1))
    assert (retries + 1) * seconds + waits <= 20
    assert limits() == (None, None)


def test_a_question_that_fails_leaves_mlflow_as_it_was() -> None:
    with pytest.raises(ConnectionRefusedError), brief_requests():
        raise ConnectionRefusedError
    assert limits() == (None, None)


def test_a_limit_that_somebody_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RETRIES, "9")
    with brief_requests():
        assert limits() == ("9", "5")
    assert limits() == ("9", None)
    limit_requests()
    assert limits() == ("9", "20")
    with brief_requests():
        assert limits() == ("9", "20")
    assert limits() == ("9", "20")


def test_a_question_that_begins_during_another_leaves_nothing_behind() -> None:
    """As those of two threads do: the second one finds what the first has set."""
    first, second = brief_requests(), brief_requests()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert limits() == (None, None)
