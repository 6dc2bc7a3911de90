"""Unit tests stay in their own process; a test that starts another one, or a server, is marked ``process``."""

import platform
import sys
from collections.abc import Iterator

import pytest

_OUTSIDE = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "socket.bind"})


class _Guard:
    """Refuses child processes and servers while a test that is not marked for them runs."""

    pure_test: str | None = None

    def __call__(self, event: str, _: tuple[object, ...]) -> None:
        if self.pure_test is not None and event in _OUTSIDE:
            raise RuntimeError(f"{self.pure_test} is a unit test and calls {event}; mark it with pytest.mark.process")


# The standard library asks a child process for this once, when MLflow is imported, and then remembers it.
platform.processor()

_guard = _Guard()
sys.addaudithook(_guard)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _guard.pure_test = None if item.get_closest_marker("process") else item.nodeid
    try:
        return (yield)
    finally:
        _guard.pure_test = None
