"""How long MLflow asks a server that is away before it says so: by itself it tries for minutes, in silence."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_MAX_RETRIES, _TIMEOUT_SECONDS = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
# MLflow waits 0 s before the first retry, and 4 to 5 s before the second.
_OF_A_RUN = {_MAX_RETRIES: "2", _TIMEOUT_SECONDS: "20"}
# 20 s in all: a server that takes long to wake up is met by the second or third try.
_OF_A_QUESTION = {_MAX_RETRIES: "2", _TIMEOUT_SECONDS: "5"}


def limit_requests() -> None:
    """Let this process's requests to a server that is away end within a minute or so, unless the environment says more.

    For a process that is ours: what must not be lost is retried better, in the background.
    """
    for name, value in _OF_A_RUN.items():
        os.environ.setdefault(name, value)


@contextmanager
def brief_requests() -> Iterator[None]:
    """Let a request to a server that is away end within 20 s, unless the environment says more.

    For a question in a process that is somebody else's: afterwards MLflow is as patient as it was. Other threads are in
    a hurry meanwhile, too.
    """
    added = {name: value for name, value in _OF_A_QUESTION.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            # Of two threads that began at once, the other one may have ended before.
            os.environ.pop(name, None)
