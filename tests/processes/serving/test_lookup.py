"""S19: the lookup server answers by key over HTTP, with the fallback where a key is unknown, and ends on a signal."""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.serving.precomputed.precomputation import precompute
from tests.conftest import PATIENCE
from tests.processes.serving.served import few_files, silent_connections

REPOSITORY = Path(__file__).resolve().parents[3]
SECONDS = 60.0
FALLBACK = {"items": ["m1"], "score": 0.5, "model_version": "popular/1"}

pytestmark = pytest.mark.timeout(180)


def store_of(folder: Path, keys: list[Any], score: float = 1.0, **knobs: Any) -> Path:
    rows = {"id": keys, "items": [["a", "b"]] * len(keys), "score": [score] * len(keys)}
    pq.write_table(pa.table(rows | {"model_version": ["movies/3"] * len(keys)}), folder / "rows.parquet")
    precompute(folder / "rows.parquet", folder / "rows.db", key="id", **knobs)
    return folder / "rows.db"


def row(key: Any, score: float | None = 1.0) -> dict[str, Any]:
    return {"id": key, "items": ["a", "b"], "score": score, "model_version": "movies/3"}


def started(store: Path, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mirrorspark.serving.lookup", "--store", str(store), *flags]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def serving(store: Path, *flags: str) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """Yield the port of a server, and its process."""
    process = started(store, *flags)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        found = re.match(r"listening on http://127\.0\.0\.1:(\d+) with [0-9,]+ rows$", line)
        assert found, process.stderr.read()
        yield int(found[1]), process
    finally:
        process.kill()
        process.communicate()


def ask(port: int, path: str, **headers: str) -> tuple[int, Any]:
    """Return status and answer, which is always JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text, parse_constant=refuse)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_rows_are_found_by_key_and_unknown_keys_have_the_fallback(tmp_path: Path) -> None:
    with serving(store_of(tmp_path, [7, -8], fallback=FALLBACK)) as (port, _):
        assert ask(port, "/rows/7") == (200, {"is_fallback": False, "row": row(7)})
        fallback = {"is_fallback": True, "row": {"id": 9, **FALLBACK}}
        assert ask(port, "/rows/9") == (200, fallback)
        together = {"rows": [{"is_fallback": False, "row": row(-8)}, fallback, {"is_fallback": False, "row": row(7)}]}
        assert ask(port, "/rows?key=-8&key=9&key=7") == (200, together)
        status, health = ask(port, "/health")
        assert (status, health["rows"], health["model_versions"]) == (200, 2, ["movies/3"])
        for path, message in (("/rows/seven", "key 'seven' is not a whole number"), ("/rows", "no key is given")):
            status, answer = ask(port, path)
            assert (status, message in answer["error"]) == (400, True)
        status, front = ask(port, "/")
        assert (status, front["serves"]) == (200, {"rows": "2"})
        assert front["example"] == {"url": f"http://127.0.0.1:{port}/rows/KEY", "body": None}
        assert ask(port, "/other")[0] == 404
        assert len(ask(port, "/rows?" + "&".join(["key=7"] * 256))[1]["rows"]) == 256
        assert "257 keys are given; ask for at most 256" in ask(port, "/rows?" + "&".join(["key=7"] * 257))[1]["error"]


def test_without_a_fallback_an_unknown_key_is_not_found(tmp_path: Path) -> None:
    keys = ["a/b", "ü ?&=%", "7"]
    with serving(store_of(tmp_path, keys)) as (port, _):
        for key in keys:
            expected = {"is_fallback": False, "row": row(key)}
            assert ask(port, f"/rows/{quote(key, safe='')}") == (200, expected)
            assert ask(port, f"/rows?key={quote(key)}") == (200, {"rows": [expected]})
        assert ask(port, "/rows/none") == (404, {"error": "key 'none' is unknown, and the store has no fallback"})
        assert ask(port, "/rows?key=none") == (200, {"rows": [None]})


def test_numbers_that_json_does_not_know_are_null(tmp_path: Path) -> None:
    with serving(store_of(tmp_path, [1], float("nan"))) as (port, _):
        assert ask(port, "/rows/1") == (200, {"is_fallback": False, "row": row(1, None)})


def test_a_store_that_takes_the_place_of_the_old_one_is_served(tmp_path: Path) -> None:
    with serving(store_of(tmp_path, [1], 1.0)) as (port, _):
        assert ask(port, "/rows/1")[1]["row"]["score"] == 1.0
        store_of(tmp_path, [1, 2], 2.0, mode="overwrite")
        deadline = time.monotonic() + SECONDS
        while ask(port, "/health")[1]["rows"] == 1:
            assert time.monotonic() < deadline, "the new store has not been seen"
        assert ask(port, "/rows/1")[1]["row"]["score"] == 2.0


def test_damage_is_told_by_status_and_by_health(tmp_path: Path) -> None:
    """S19, T6: a damaged replacement is refused, and a damaged row of the open store has no answer."""
    keys = range(400)  # several pages, of which the server has read the first and the last
    store = store_of(tmp_path, list(keys), 0.125)
    sound = store.read_bytes()
    with serving(store) as (port, _):
        assert ask(port, "/health")[1]["refused"] is None
        damaged = tmp_path / "damaged.db"
        places = [found.start() for found in re.finditer(rb"0\.125", sound)]
        damaged.write_bytes(sound.replace(b"0.125", b"0.625"))
        store.rename(tmp_path / "open.db")
        damaged.rename(store)
        deadline = time.monotonic() + SECONDS
        while (refused := ask(port, "/health")[1]["refused"]) is None:
            assert time.monotonic() < deadline, "the damaged store has not been seen"
        assert "the store is damaged: its checksum does not match" in refused
        assert str(tmp_path) not in refused
        assert ask(port, "/rows/0") == (200, {"is_fallback": False, "row": row(0, 0.125)})
        with (tmp_path / "open.db").open("r+b") as file:
            file.seek(places[200])
            file.write(b"0.625")
        answers = [ask(port, f"/rows/{key}") for key in keys]
        (damage,) = [answer["error"] for status, answer in answers if status == 503]
        assert "the store is damaged: the checksum of the row" in damage
        assert {answer["row"]["score"] for status, answer in answers if status == 200} == {0.125}
        status, health = ask(port, "/health")
        assert (status, str(tmp_path) in str([damage, health])) == (503, False)


def test_requests_for_another_host_are_refused(tmp_path: Path) -> None:
    """S12: no page of another site reads rows through its visitor's browser."""
    with serving(store_of(tmp_path, [1]), "--allow-host", "Scores.Example") as (port, _):
        for host in ("localhost", f"127.0.0.1:{port}", "[::1]:80", "scores.example:443", socket.gethostname()):
            assert ask(port, "/rows/1", Host=host)[0] == 200
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
            status, answer = ask(port, "/rows/1", Host=host)
            assert (status, "is not a name of this server" in answer["error"]) == (421, True)


def test_a_request_without_a_host_is_answered(tmp_path: Path) -> None:
    """S12: probes by HTTP/1.0 send none, and browsers always do."""
    with (
        serving(store_of(tmp_path, [1])) as (port, _),
        socket.create_connection(("127.0.0.1", port), SECONDS) as connection,
        connection.makefile("rb") as answer,
    ):
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert answer.readline().split()[1] == b"200"


def answered(port: int, sent: bytes) -> bytes:
    """Return the first line of the answer to some bytes; "" where the server closes the connection without one."""
    with (
        socket.create_connection(("127.0.0.1", port), SECONDS) as connection,
        connection.makefile("rb") as answer,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(sent)
        return answer.readline()
    return b""


def test_a_head_has_a_limit_whole_or_not(tmp_path: Path) -> None:
    with serving(store_of(tmp_path, [1])) as (port, _):
        for size, status in ((16_000, b"200"), (17_000, b"431")):
            assert answered(port, b"GET /health HTTP/1.1\r\nX: " + b"x" * size + b"\r\n\r\n").split()[1] == status
        # Without an end, it is refused as it is too long, and so are trailers behind a body.
        assert answered(port, b"GET /health HTTP/1.1\r\nX: " + b"x" * 17_000).split()[1] == b"431"
        assert answered(port, b"GET /" + b"x" * 17_000).split()[1] == b"431"
        chunks = b"PUT /rows/1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
            connection.sendall(chunks)
            assert connection.recv(100).split()[1] == b"405"
            with pytest.raises(ConnectionError):  # noqa: PT012 - which of the two finds out is the system's
                for _ in range(10_000):
                    connection.sendall(b"T: " + b"t" * 10_000 + b"\r\n")


def test_silent_connections_make_room_and_health_is_answered(tmp_path: Path) -> None:
    """256 files allow 128 connections: those that have waited longest are closed for the next ones."""
    with few_files(256):
        process = started(store_of(tmp_path, [1]))
    with process, contextlib.ExitStack() as opened:
        opened.callback(process.kill)
        assert process.stdout is not None
        port = int(process.stdout.readline().split(":")[2].split()[0])
        with silent_connections(port, 500) as silent:
            for _ in range(20):
                assert ask(port, "/health")[0] == 200
            assert silent[0].recv(1) == b""
            assert len([*Path(f"/proc/{process.pid}/fd").iterdir()]) < 256


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_though_a_connection_is_open(tmp_path: Path, number: signal.Signals) -> None:
    with serving(store_of(tmp_path, [1])) as (port, process):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", "/rows/1")
            connection.getresponse().read()
            process.send_signal(number)
            assert process.wait(SECONDS) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_store_that_cannot_be_served_is_reported(tmp_path: Path) -> None:
    process = started(tmp_path / "nothing.db")
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert errors.startswith("mirrorspark: there is no store of rows at ")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = started(store_of(tmp_path, [1]), "--port", str(taken.getsockname()[1]))
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "cannot be listened on" in errors


def test_to_look_rows_up_takes_neither_spark_nor_tensorflow() -> None:
    code = (
        "import sys, mirrorspark.serving.lookup; print(sorted({'pyspark', 'tensorflow', 'pyarrow'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE * 60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
