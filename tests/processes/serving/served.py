"""A server as a process, and its answers."""

import contextlib
import http.client
import json
import re
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).resolve().parents[3]
SECONDS = 60.0


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    command = [sys.executable, "-m", "mirrorspark", "serve", *flags]
    # A file: a pipe that nobody reads would stop a server that logs much.
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            found = re.match(r"listening on http://127\.0\.0\.1:(\d+) with ", process.stdout.readline())
            assert found, said(errors)
            process.stderr = errors
            yield int(found[1]), process
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextlib.contextmanager
def few_files(count: int) -> Iterator[None]:
    """Let processes that begin meanwhile open no more than ``count`` files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def silent_connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Keep connections open of which every second one has begun a request, and none ends it."""
    with contextlib.ExitStack() as opened:
        silent = []
        for number in range(count):
            silent.append(opened.enter_context(socket.create_connection(("127.0.0.1", port), SECONDS)))
            if number % 2:
                silent[-1].sendall(b"POST /rows HTTP/1.1\r\nContent-Length: 9\r\n")
        yield silent


def said(errors: IO[str] | None) -> str:
    """Return the text that a server has written to standard error."""
    assert errors is not None
    errors.seek(0)
    return errors.read()


def ask(port: int, method: str, path: str, content: Any = None, **headers: str) -> tuple[int, Any, str | None]:
    """Return status, answer and version; ``content`` is a text or becomes JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    body = content if content is None or isinstance(content, str) else json.dumps(content)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        is_json = answer.headers["content-type"] == "application/json"
        return answer.status, json.loads(text) if is_json else text, answer.headers["X-Model-Version"]
