"""A session starts while its user does other work (H1)."""

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pyspark import SparkContext
from pyspark.sql import SparkSession

from mirrorspark.spark_session import ahead, versions
from mirrorspark.spark_session.ahead import SessionAhead
from mirrorspark.spark_session.errors import SparkStartError


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Return the calls of ``open_session``: the workers, and whether the main thread made it."""
    calls: list[tuple[int, bool]] = []

    def open_session(master: str | None, workers: int, *, verbose: bool) -> Any:
        calls.append((workers, threading.current_thread() is threading.main_thread()))
        if workers == 0:
            raise SparkStartError("no Java")
        return SimpleNamespace(workers=workers)

    monkeypatch.setattr(ahead, "open_session", open_session)
    monkeypatch.setattr(versions, "make_active", lambda spark: None)
    monkeypatch.setattr(ahead, "_cancel_jobs_on_interrupt", lambda: None)
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    return calls


def test_a_session_starts_in_a_thread_and_is_then_the_callers(opened: list[tuple[int, bool]]) -> None:
    session: Any = SessionAhead(None, 3)
    assert (session.known, session.slots, opened) == (None, 3, [])
    session.begin()
    session.begin()
    assert session.get() is session.get() is session.known
    assert opened == [(3, False)]


def test_a_session_that_nobody_began_starts_when_it_is_asked_for(opened: list[tuple[int, bool]]) -> None:
    assert SessionAhead(None, 2).get().workers == 2  # type: ignore[attr-defined]
    assert opened == [(2, True)]


def test_a_start_that_fails_is_the_error_of_who_asks(opened: list[tuple[int, bool]]) -> None:
    session = SessionAhead(None, 0)
    session.begin()
    with pytest.raises(SparkStartError, match="no Java"):
        session.get()


def test_a_session_is_needless_only_where_there_is_none_in_any_thread(
    opened: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SparkContext, "_active_spark_context", None)
    assert SessionAhead(None, 2).is_needless
    assert not SessionAhead(cast(Any, SimpleNamespace()), 2).is_needless
    begun = SessionAhead(None, 2)
    begun.begin()
    assert not begun.is_needless
    begun.get()
    monkeypatch.setattr(SparkContext, "_active_spark_context", SimpleNamespace())
    assert not SessionAhead(None, 2).is_needless
    monkeypatch.setattr(SparkContext, "_active_spark_context", None)
    monkeypatch.setenv("SPARK_REMOTE", "sc://host")
    assert not SessionAhead(None, 2).is_needless


def test_a_given_session_is_not_started(opened: list[tuple[int, bool]]) -> None:
    given: Any = SimpleNamespace()
    session = SessionAhead(given, 2)
    session.begin()
    assert session.get() is given
    assert opened == []
