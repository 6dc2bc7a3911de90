"""How fast are single rows answered over HTTP, next to ``mlflow models serve`` and to ``Predictor`` without a server?

And do requests get answers under overload, while the version changes, and when a process is killed? The server has one
core, the client the other one. The client sends at fixed times, and counts from when a request was due.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.http_load import (
    BROKEN,
    ENVIRONMENT,
    SERVER_CORE,
    START_SECONDS,
    Load,
    load_of,
    loads_table,
    on_core,
    on_server_core,
    post,
    saturated,
    served,
    steady,
)
from benchmarks.measure import Mark
from benchmarks.report import Report, Table
from benchmarks.score_model import exported_for_mlflow, feature_columns, of_mlflow
from benchmarks.tables import Kind, parquet_files
from benchmarks.train_work import in_new_process

SERVER, MLFLOW, PREDICTOR = "mirrorspark serve", "mlflow models serve", "Predictor, no server"
P99_MARK, MLFLOW_MARK, PREDICTOR_MARK = 10.0, 5.0, 0.5
PER_SECOND = 500.0
_SECONDS = 8.0
_CONNECTIONS = 16


def run(options: Options) -> Report:
    """Ask all sides for one row again and again."""
    files = parquet_files(options.scratch, Kind.CLICKS, options.rows)
    model = in_new_process(exported_for_mlflow, options.scratch, files[0])
    table = pq.read_table(files[0])
    (row,) = table.select(feature_columns(table.column_names)).slice(0, 1).to_pylist()
    # The next version: the same model under another name has the digest of the first, so it is exported anew.
    second = in_new_process(exported_for_mlflow, options.scratch / "second", files[0])
    speeds, loads = _peers(options, model, row)
    loads |= _under_stress(options, (model, second), row)
    return Report(BENCHMARK.name, BENCHMARK.question, _tables(speeds, loads), _marks(speeds, loads))


def _marks(speeds: dict[str, list[float]], loads: dict[str, Load]) -> tuple[Mark, ...]:
    by_side = {side: sorted(found)[len(found) // 2] for side, found in speeds.items()}
    at_rate = next(load for name, load in loads.items() if name.startswith("steady"))
    overload, change = loads["overload"], loads["version change"]
    refused = overload.statuses[429] + overload.statuses[503]
    answered_or_refused = (refused + overload.statuses[200]) / overload.statuses.total()
    unanswered = change.statuses.total() - change.statuses[200]
    return (
        Mark(f"p99 at {PER_SECOND:g} requests/s, ms", at_rate.milliseconds(99), P99_MARK, "at most"),
        Mark(f"requests/s, {SERVER} / {MLFLOW}", by_side[SERVER] / by_side[MLFLOW], MLFLOW_MARK),
        Mark(f"requests/s, {SERVER} / {PREDICTOR}", by_side[SERVER] / by_side[PREDICTOR], PREDICTOR_MARK),
        Mark("overload: share that is answered or refused at once", answered_or_refused, 1.0),
        Mark("version change: requests without an answer", unanswered, 0, "at most"),
    )


def _tables(speeds: dict[str, list[float]], loads: dict[str, Load]) -> tuple[Table, ...]:
    peers = tuple(
        (side, ", ".join(f"{one:,.0f}" for one in found), f"{sorted(found)[len(found) // 2]:,.0f}")
        for side, found in speeds.items()
    )
    note = (
        "Steady requests are sent at fixed times, to the end. Overload: 256 connections that ask again at once, with "
        "room for 64 rows in the queue. The version changes, and one of two processes is killed, in the middle; "
        "without an answer are requests that the dead process had accepted."
    )
    return (
        Table(f"One row of 39 features, {_CONNECTIONS} connections", ("side", "requests/s", "median"), peers),
        loads_table("Loads", loads, note),
    )


def _peers(options: Options, model: Path, row: dict[str, object]) -> tuple[dict[str, list[float]], dict[str, Load]]:
    """Return requests per second by side and round, and the server at fixed rates."""
    speeds: dict[str, list[float]] = {SERVER: [], MLFLOW: [], PREDICTOR: []}
    loads: dict[str, Load] = {}
    ours = post(f"/v1/models/{model.name}:predict", json.dumps({"instances": [row]}).encode())
    split = {"columns": list(row), "data": [list(row.values())]}
    theirs = post("/invocations", json.dumps({"dataframe_split": split}).encode())
    with served(options.scratch, "--model", str(model)) as port, _mlflow(options, model) as mlflow_port:
        for _ in range(options.rounds):
            speeds[SERVER].append(_saturated(port, ours))
            speeds[MLFLOW].append(_saturated(mlflow_port, theirs))
            speeds[PREDICTOR].append(in_new_process(_predictor_speed, model, row))
        for rate in (PER_SECOND, 2 * PER_SECOND):
            name = f"steady, {rate:g}/s"
            loads[name] = load_of(partial(steady, port, (ours,), rate, _SECONDS))
    return speeds, loads


def _under_stress(options: Options, models: tuple[Path, Path], row: dict[str, object]) -> dict[str, Load]:
    """Return the outcome of requests under overload, a version change, and a killed process."""
    first, second = models
    body = json.dumps({"instances": [row]}).encode()
    asked = post(f"/v1/models/{first.name}:predict", body)
    loads = {}
    with served(options.scratch, "--model", str(first), "--queue-rows", "64") as port:
        loads["overload"] = load_of(partial(saturated, port, (asked,), _SECONDS, 256))
    store = _registered(options.scratch, first, second)
    flags = ("--model", "models:/clicks@champion", "--tracking-uri", store, "--poll-seconds", "1")
    of_registry = post("/v1/models/clicks:predict", body)
    with served(options.scratch, *flags) as port, _later(partial(_move_alias, store)):
        loads["version change"] = load_of(partial(steady, port, (of_registry,), 200, 3 * _SECONDS))
    with served(options.scratch, "--model", str(first), "--processes", "2") as port, _later(_kill_a_process):
        loads["killed process"] = load_of(partial(steady, port, (asked,), 200, 3 * _SECONDS))
    if not {"1", "2"} <= set(loads["version change"].versions):
        raise RuntimeError(f"versions {dict(loads['version change'].versions)} answered, not 1 and then 2")
    return loads


def _saturated(port: int, request: bytes) -> float:
    load = load_of(partial(saturated, port, (request,), _SECONDS, _CONNECTIONS))
    if set(load.statuses) != {200}:
        raise RuntimeError(f"a side did not answer: {dict(load.statuses)} by status, {BROKEN} are broken connections")
    return load.per_second


def _predictor_speed(model: Path, row: dict[str, object]) -> float:
    """Return rows per second, one by one, on the core that servers have."""
    on_core(SERVER_CORE)
    os.environ |= ENVIRONMENT
    from mirrorspark.scoring.predictor import Predictor

    predictor = Predictor(model)
    for _ in range(50):  # they do not count
        predictor.predict(row)
    calls, begin = 0, time.perf_counter()
    while time.perf_counter() < begin + _SECONDS:
        predictor.predict(row)
        calls += 1
    return calls / (time.perf_counter() - begin)


@contextlib.contextmanager
def _mlflow(options: Options, model: Path) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ("-m", of_mlflow(model), "--env-manager", "local", "--port", str(port), "--host", "127.0.0.1")
    with on_server_core(options.scratch, "mlflow", sys.executable, "-m", "mlflow", "models", "serve", *flags) as daemon:
        daemon.wait_for("Application startup complete|Listening at", START_SECONDS)
        yield port


@contextlib.contextmanager
def _later(function: Callable[[], None]) -> Iterator[None]:
    """Call a function in the middle of what is measured meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        called = thread.submit(_call_later, function)
        yield
        called.result()


def _call_later(function: Callable[[], None]) -> None:
    time.sleep(1.5 * _SECONDS)
    function()


def _registered(scratch: Path, *models: Path) -> str:
    """Return the store in which the models are the versions of one name."""
    from mlflow import MlflowClient

    store = f"sqlite:///{scratch / 'mlflow.db'}"
    client = MlflowClient(store)
    client.create_registered_model("clicks")
    for model in models:
        client.create_model_version("clicks", of_mlflow(model))
    client.set_registered_model_alias("clicks", "champion", "1")
    return store


def _move_alias(store: str) -> None:
    from mlflow import MlflowClient

    MlflowClient(store).set_registered_model_alias("clicks", "champion", "2")


def _kill_a_process() -> None:
    mine = psutil.Process().children(recursive=True)
    servers = [one for one in mine if "--listener" in one.cmdline()]
    os.kill(servers[0].pid, signal.SIGKILL)


BENCHMARK = Benchmark("serve_online", question_of(__doc__), 100_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
