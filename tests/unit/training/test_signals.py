"""Ctrl-C and SIGTERM on the driver: the first saves and stops, the next stops at once, a further one leaves."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from mirrorspark.training.driver.signals import on_stop_signals
from tests.conftest import PATIENCE


@pytest.fixture(autouse=True)
def handlers_of_others() -> Iterator[None]:
    """Handlers as PySpark or a notebook may have set them; they must not run."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, _not_ours)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _not_ours(*_: object) -> None:
    raise AssertionError("another handler ran")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("third", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_for_a_stop_the_second_stops_now_and_the_third_leaves(
    first: signal.Signals, third: signal.Signals
) -> None:
    said: list[str] = []
    with on_stop_signals(said.append, lambda: said.append("now")):
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGINT)
        assert said == [first.name, "now"]
        with pytest.raises(KeyboardInterrupt, match=f"{third.name}, for the third time"):
            os.kill(os.getpid(), third)
        # A fourth one would end the process, also where Python does not come to run.
        assert {signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} == {signal.SIG_DFL}
    assert said == [first.name, "now"]
    assert signal.getsignal(signal.SIGINT) is _not_ours


def test_two_signals_at_once_reach_a_main_thread_that_waits() -> None:
    """The system may give both to another thread, which for Python is none that handles them."""
    asked, stopped = threading.Event(), threading.Event()

    def signal_twice() -> None:
        main = Path(f"/proc/self/task/{os.getpid()}/stat")  # the main thread's number is that of the process
        until = time.monotonic() + PATIENCE
        while main.read_text().rpartition(")")[2].split()[0] != "S" and time.monotonic() < until:
            time.sleep(0.001)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        both = asked.wait(PATIENCE) and stopped.wait(PATIENCE)
        waiting.set_result(both)

    waiting: Future[bool] = Future()
    with on_stop_signals(lambda _: asked.set(), stopped.set):
        thread = threading.Thread(target=signal_twice)
        thread.start()
        assert waiting.result()
    thread.join()


def test_handlers_are_put_back_also_after_an_error() -> None:
    with pytest.raises(KeyError), on_stop_signals(lambda _: None, lambda: None):
        raise KeyError
    assert signal.getsignal(signal.SIGINT) is _not_ours
    assert signal.getsignal(signal.SIGTERM) is _not_ours


def test_stopping_now_may_raise() -> None:
    def stop_now() -> None:
        raise KeyboardInterrupt

    with on_stop_signals(lambda _: None, stop_now):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is _not_ours


def test_outside_the_main_thread_signals_stay_whose_they_are() -> None:
    seen: list[object] = []

    def work() -> None:
        with on_stop_signals(lambda _: None, lambda: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [_not_ours]
