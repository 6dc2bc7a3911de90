"""Hostile requests to both HTTP servers, and the figures of a run: worst answer to a probe, memory, statuses.

By hand, from the root of a clone: ``python -m tests.processes.serving.fuzzing --requests 100000``. It makes a model
and a store of its own, and sends half of the requests to each server, on the loopback interface.
"""

import argparse
import contextlib
import functools
import gzip
import http.client
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

BODY_BYTES = 4 * 2**20
VALUES = 131_072
SECONDS = 60.0
# A server waits for the rest of a request that is not whole, and nobody needs to see for how long.
_REST_SECONDS = 2.0
_HALF = "a\ud83d"
# Values of JSON that no model expects; texts, because Python would not write some of them.
ODD = (
    *(
        "null",
        "true",
        '""',
        '"a"',
        "0",
        "-1",
        "5",
        "1e999",
        "-1e999",
        "NaN",
        "Infinity",
        "9" * 25,
        "9" * 400,
        "9" * 5000,
    ),
    *("0.1", "[]", "{}", "[[]]", "[1, 2]", '["a", null]', '["a", 1]', '{"b64": "VUE="}', '{"b64": "?"}', '{"b64": []}'),
    *('{"7": 2.0}', '{"-1": 1}', '{"99999999999999999999": 1}', '{"a": 1}', '[{"b64": "VUE="}]', '{"7": "x"}'),
    *(
        json.dumps(_HALF),
        f"[{json.dumps(_HALF)}]",
        '"' + "x" * 3000 + '"',
        "[" * 20 + "]" * 20,
        '"\\u0000"',
        "1" + "0" * 308,
    ),
)


@functools.cache
def large_bodies() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Return by name the bodies below the limit of bytes that cost a server most, with their headers."""
    most = BODY_BYTES - 100

    def filled(part: str, count: int) -> str:
        return '{"instances": [' + part * count + "0]}"

    return {
        "nested lists": (
            ('{"instances": [' + "[" * 300 + "1" + "]" * 300 + ",0" * (most // 2 - 400) + "]}").encode(),
            {},
        ),
        "numbers": (filled("0,", VALUES - 9).encode(), {}),
        "too many numbers": (filled("0,", most // 2 - 20).encode(), {}),
        "lists": (filled("[],", VALUES // 2 - 9).encode(), {}),
        "texts": (filled('"a",', VALUES - 9).encode(), {}),
        "rows": (filled('{"x":0},', VALUES // 2 - 9).encode(), {}),
        "names": (("{" + "".join(f'"{one:025x}":0,' for one in range(VALUES - 9)) + '"a":0}').encode(), {}),
        "long numbers": (filled("9" * 4000 + ",", most // 4001 - 2).encode(), {}),
        "numbers of 300 digits": (filled("9" * 300 + ",", most // 301 - 2).encode(), {}),
        "one number": (filled("9" * (most - 30), 1).encode(), {}),
        "one text": (filled('"' + "a," * (most // 2 - 40) + '",', 1).encode(), {}),
        "escapes": (filled('"' + '\\"' * (most // 2 - 40) + '",', 1).encode(), {}),
        "half characters": (filled('"\\ud83d",', most // 9 - 20).encode(), {}),
        "only brackets": (b"[" * most, {}),
        "gzip": (gzip.compress(filled("0,", VALUES - 9).encode()), {"Content-Encoding": "gzip"}),
        "gzip that grows": (gzip.compress(b" " * 200 * 2**20, 9), {"Content-Encoding": "gzip"}),
        "columns": (b"x," * (most // 2 - 10) + b"x\n1\n", {"Content-Type": "text/csv"}),
        "lines": (b"x\n" + b"1\n" * (most // 2 - 10), {"Content-Type": "text/csv"}),
    }


@dataclass(frozen=True)
class Target:
    """A server.

    Attributes:
        name: The model that it serves; "" for a server of a store alone.
        columns: The model's columns.
        probe: Path of its probe.
    """

    port: int
    probe: str
    name: str = ""
    columns: tuple[str, ...] = ()


@dataclass
class Figures:
    """Figures of a run: answers by status, None where the connection was closed, and seconds of the worst probe."""

    statuses: Counter[int | None] = field(default_factory=Counter)
    worst_probe_seconds: float = 0.0
    probes: int = 0
    failed: list[bytes] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Requests that were sent."""
        return self.statuses.total()


def odd_request(random_: random.Random, target: Target) -> bytes:
    """Return a request, often one that no client would send."""
    make = random_.choice((_of_columns, _of_columns, _of_rows, _of_tensors, _of_cells, _path, _head, _damaged))
    return make(random_, target) if target.name else random_.choice((_path, _key, _head))(random_, target)


def _post(path: str, body: bytes, **headers: str) -> bytes:
    lines = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def _odd_columns(random_: random.Random, target: Target) -> dict[str, str]:
    names = [*target.columns, *(["more"] if random_.random() < 0.1 else [])]
    return {name: random_.choice(ODD) for name in names if random_.random() < 0.95}


def _object(pairs: dict[str, str]) -> str:
    return "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in pairs.items()) + "}"


def _of_columns(random_: random.Random, target: Target) -> bytes:
    rows = random_.randint(0, 3)
    columns = {name: "[" + ", ".join([value] * rows) + "]" for name, value in _odd_columns(random_, target).items()}
    return _post(f"/v1/models/{target.name}:predict", f'{{"inputs": {_object(columns)}}}'.encode())


def _of_rows(random_: random.Random, target: Target) -> bytes:
    rows = "[" + ", ".join(_object(_odd_columns(random_, target)) for _ in range(random_.randint(0, 3))) + "]"
    key = random_.choice(("instances", "dataframe_records", "examples", "signature_name"))
    path = "/invocations" if key == "dataframe_records" else f"/v1/models/{target.name}:predict"
    if key == "examples":
        path = path.replace("predict", random_.choice(("classify", "regress")))
    body = f'{{"{key}": {rows}}}'.encode()
    return _post(path, gzip.compress(body), Content_Encoding="gzip") if random_.random() < 0.1 else _post(path, body)


def _of_tensors(random_: random.Random, target: Target) -> bytes:
    tensors = []
    for name in target.columns:
        parts = {
            "name": json.dumps(name) if random_.random() < 0.9 else random_.choice(ODD),
            "shape": random_.choice(
                ("[1]", "[1, 1]", "[1, 2]", "[0]", "[1, 0]", "[" + "9" * 30 + "]", random_.choice(ODD))
            ),
            "datatype": random_.choice(
                ('"BYTES"', '"INT32"', '"INT64"', '"FP32"', '"FP64"', '"BOOL"', random_.choice(ODD))
            ),
            "data": random_.choice((f"[{random_.choice(ODD)}]", random_.choice(ODD))),
        }
        tensors.append(_object(parts))
    outputs = f', "outputs": [{{"name": {random_.choice(ODD)}}}]' if random_.random() < 0.1 else ""
    return _post(f"/v2/models/{target.name}/infer", f'{{"inputs": [{", ".join(tensors)}]{outputs}}}'.encode())


def _of_cells(random_: random.Random, target: Target) -> bytes:
    lines = [",".join(target.columns)] + [",".join(random_.choice(ODD) for _ in target.columns) for _ in range(2)]
    return _post("/invocations", "\n".join(lines).encode(errors="replace"), Content_Type="text/csv")


def _damaged(random_: random.Random, target: Target) -> bytes:
    request = bytearray(_of_rows(random_, target))
    for _ in range(random_.randint(1, 4)):
        request[random_.randrange(len(request))] = random_.randrange(256)
    return bytes(request)


_PATHS = (
    *(
        "/",
        "/rows",
        "/rows/%00",
        "/rows/%ff",
        "/rows/" + "9" * 3000,
        "/rows?key=",
        "/rows?" + "key=1&" * 2000,
        "//",
        "*",
    ),
    *("/v1/models/%F0", "/v1/models/a/versions/1e9", "/v2", "/v2/models/" + "x" * 2000, "/metrics", "/ping", "/health"),
)


def _path(random_: random.Random, target: Target) -> bytes:
    method = random_.choice(("GET", "POST", "HEAD", "OPTIONS", "PUT"))
    return f"{method} {random_.choice(_PATHS)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def _key(random_: random.Random, target: Target) -> bytes:
    keys = "&".join(
        f"key={random_.choice(('1', '-9', '99999999999999999999', '%ff', 'x'))}" for _ in range(random_.randint(1, 300))
    )
    path = f"/rows/{random_.randint(-9, 99)}" if random_.random() < 0.5 else f"/rows?{keys}"
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


_LINES = (
    *(b"GET /ping HTTP/1.1", b"GET / HTTP/9.9", b"\x16\x03\x01", b"GET", b"PRI * HTTP/2.0", b"GET http://[ HTTP/1.1"),
)
_CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n1;" + b"e" * 5000 + b"\r\na\r\n0\r\nT: " + b"t" * 20_000
_HEADERS = (
    *(
        b"Host: localhost",
        b"Host: \xff",
        b"X: " + b"x" * 20_000,
        b"a:b\r\n" * 3000,
        b"Upgrade: h2c\r\nConnection: Upgrade",
    ),
    *(
        b"Content-Length: -1",
        b"Content-Length: 9e9",
        b"Content-Length: " + b"9" * 5000,
        b"Content-Encoding: br",
        _CHUNKS,
    ),
)


def _head(random_: random.Random, target: Target) -> bytes:
    return random_.choice(_LINES) + b"\r\n" + random_.choice(_HEADERS) + b"\r\n\r\n"


def ask(target: Target, request: bytes, seconds: float = SECONDS) -> int | None:
    """Return the status of an answer; None where the server closes the connection, or waits for the rest."""
    with socket.create_connection(("127.0.0.1", target.port), seconds) as connection:
        try:
            connection.sendall(request)
            found = re.match(rb"HTTP/1\.1 (\d+) ", connection.recv(64))
        except (ConnectionError, TimeoutError):
            return None
    return int(found[1]) if found else None


def ask_large(target: Target, name: str, seconds: float = SECONDS) -> int | None:
    """Return the status of the answer to one of :func:`large_bodies`; None where the server refuses to read it."""
    body, headers = large_bodies()[name]
    path = "/invocations" if "Content-Type" in headers else f"/v1/models/{target.name}:predict"
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=seconds)
    with contextlib.closing(connection):
        try:
            connection.request("POST", path if target.name else "/rows", body, headers)
            return connection.getresponse().status
        except ConnectionError:
            return None


def probe_seconds(target: Target) -> float:
    """Return the seconds from a probe, on a connection of its own, to its answer with the status 200."""
    begin = time.perf_counter()
    status = ask(target, f"GET {target.probe} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert status == 200, f"{target.probe} has the status {status}"
    return time.perf_counter() - begin


@contextlib.contextmanager
def probing(target: Target, figures: Figures, pause_seconds: float = 0.005) -> Iterator[None]:
    """Probe a server again and again meanwhile."""
    is_over = threading.Event()

    def probe() -> None:
        while not is_over.is_set():
            figures.worst_probe_seconds = max(figures.worst_probe_seconds, probe_seconds(target))
            figures.probes += 1
            is_over.wait(pause_seconds)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def fuzz(target: Target, requests: int, seed: int, figures: Figures) -> None:
    """Send odd requests, one after the other, and keep those with the status 500."""
    random_ = random.Random(seed)
    for _ in range(requests):
        request = odd_request(random_, target)
        status = ask(target, request, _REST_SECONDS)
        figures.statuses[status] += 1
        if status == 500 and len(figures.failed) < 5:
            figures.failed.append(request)


def _fuzz_by_hand(target: Target, process: "subprocess.Popen[Any]", requests: int, threads: int) -> None:
    server = psutil.Process(process.pid)
    fuzz(target, 1000, 99, Figures())  # buffers and caches have their size now
    before, figures = server.memory_info().rss, Figures()
    begin = time.monotonic()
    prober = [sys.executable, "-m", "tests.processes.serving.fuzzing", "--probe", str(target.port), target.probe]
    with subprocess.Popen(prober, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probes:
        workers = [
            threading.Thread(target=fuzz, args=(target, requests // threads, seed, figures)) for seed in range(threads)
        ]
        for one in workers:
            one.start()
        large = list(large_bodies())
        while any(one.is_alive() for one in workers):
            figures.statuses[ask_large(target, random.choice(large))] += 1
        for one in workers:
            one.join()
        worst, count = probes.communicate("end")[0].split()
    after = server.memory_info().rss
    print(
        f"{target.probe} of {target.name or 'a store'}: {figures.requests:,} requests in "
        f"{time.monotonic() - begin:.0f} s; "
        f"worst of {int(count):,} probes {float(worst) * 1000:.0f} ms; memory {before / 2**20:.0f} MiB, "
        f"{(after - before) / 2**20:+.0f} MiB; statuses {dict(sorted(figures.statuses.items(), key=str))}",
        flush=True,
    )
    for request in figures.failed:
        print(f"status 500: {request!r:.600}")


def _probe_until_told(port: int, path: str) -> None:
    figures = Figures()
    with probing(Target(port, path), figures):
        sys.stdin.read()
    print(figures.worst_probe_seconds, figures.probes)


def main() -> None:
    """Fuzz both servers, or probe one for the process that does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="of both servers together")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--probe", nargs=2, metavar=("PORT", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        _probe_until_told(int(options.probe[0]), options.probe[1])
        return
    from tests.processes.scoring import test_lookup as lookup
    from tests.processes.serving.served import serving as serving_models
    from tests.unit.scoring.exported_models import ORDERS, export_orders

    with tempfile.TemporaryDirectory() as folder:
        model = export_orders(Path(folder) / "orders")
        with serving_models("--model", str(model)) as (port, process):
            target = Target(port, "/ping", model.name, tuple(ORDERS.column_names[1:]))
            _fuzz_by_hand(target, process, options.requests // 2, options.threads)
        with lookup.serving(lookup.store_of(Path(folder), list(range(1000)))) as (port, process):
            _fuzz_by_hand(Target(port, "/health"), process, options.requests // 2, options.threads)


if __name__ == "__main__":
    main()
