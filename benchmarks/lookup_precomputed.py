"""How long does it take to find a list that was computed before by its key, and a user to get a list over HTTP?

Each key has a list of 20 candidates with their scores, as ``recommend`` returns them. One caller asks in a process and
through a server; Spark finds a key by a filter on the Parquet files that the store was made of. Then a server gets
requests at fixed times, whose seconds count from then, for lists out of the store, and for such that two towers find
among 100,000 items, alone or in a router whose cascade re-ranks them; it has one core, the client the other one.
"""

import http.client
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.http_load import Load, load_of, loads_table, post, served, steady
from benchmarks.measure import Mark
from benchmarks.recommend import clustered_vectors, export_recommender
from benchmarks.report import Report, Table, megabytes, rate, significant
from benchmarks.servers import Daemon
from benchmarks.tables import SEED
from benchmarks.train_work import in_new_process

GET, UNKNOWN, HTTP, SPARK = "get", "get, unknown keys", "GET /rows/KEY", "a filter in Spark"
CALLS = {GET: 20_000, UNKNOWN: 20_000, HTTP: 3_000, SPARK: 20}
LIST_LENGTH = 20
CANDIDATES = 100_000
FALLBACK = {"candidates": ["m1"], "scores": [0.0], "model_version": "popular/1"}
# 100 ms are asked for through the server; an answer whose parts wait for each other's confirmation takes 40.
GET_MARK, HTTP_MARK, SPARK_MARK = 1.0, 10.0, 5.0
STORE, TOWERS, ROUTER = "store of lists", "two towers", "router: two towers, re-ranked"
PER_SECOND = {STORE: 500.0, TOWERS: 100.0, ROUTER: 50.0}
LOAD_MARK = 20.0
ITEMS, DEPTH, GENRES = 100_000, 100, 20
_LOAD_SECONDS = 20.0
_USERS_ASKED = 10_000
_FILES = 4
_WARM_UP_SHARE = 10
_START_SECONDS = 60.0


def run(options: Options) -> Report:
    """Write the lists and the store, and ask for one key after the other, as there are rounds."""
    from mirrorspark.serving.precomputed.precomputation import precompute

    files, store = list_files(options.scratch / "lists", options.rows), options.scratch / "lists.db"
    begin = time.perf_counter()
    precompute(files, store, key="user_id", fallback=FALLBACK)
    seconds = time.perf_counter() - begin
    found: dict[str, list[np.ndarray]] = {way: [] for way in CALLS}
    for number in range(options.rounds):
        of_process = in_new_process(_in_process, store, options.rows, number)
        of_server = {HTTP: _through_server(store, options.rows, number)}
        of_spark = {SPARK: in_new_process(_in_spark, files, options.rows, number)}
        for way, milliseconds in {**of_process, **of_server, **of_spark}.items():
            found[way].append(milliseconds)
    loads = _loads(options, store)
    quantiles = {way: np.percentile(np.concatenate(rounds), [50, 99]) for way, rounds in found.items()}
    marks = (
        Mark(f"{GET}, p99, ms", float(quantiles[GET][1]), GET_MARK, "at most"),
        Mark(f"{HTTP}, p99, ms", float(quantiles[HTTP][1]), HTTP_MARK, "at most"),
        Mark(f"{SPARK} / {HTTP}, p50", float(quantiles[SPARK][0] / quantiles[HTTP][0]), SPARK_MARK),
        *(Mark(f"{way}, p99, ms", load.milliseconds(99), LOAD_MARK, "at most") for way, load in loads.items()),
    )
    title = f"A list of {LIST_LENGTH} for one of {options.rows:,} users, {_LOAD_SECONDS:g} s at a fixed rate"
    note = f"The router's cascade finds {DEPTH} of {ITEMS:,} items, and shows at most four of a genre."
    tables = (_table(options, quantiles), _size(files, store, seconds), loads_table(title, loads, note))
    conditions = {"rounds": f"all calls of {options.rounds}"}
    return Report(BENCHMARK.name, BENCHMARK.question, tables, marks, conditions=conditions)


def _table(options: Options, quantiles: dict[str, np.ndarray]) -> Table:
    rows = tuple(
        (way, f"{CALLS[way]:,}", significant(float(p50)), significant(float(p99)))
        for way, (p50, p99) in quantiles.items()
    )
    note = f"In each of {options.rounds} rounds, one caller, random keys, after some that do not count."
    title = f"Milliseconds for one key of {options.rows:,}, each with a list of {LIST_LENGTH}"
    return Table(title, ("way", "calls a round", "p50", "p99"), rows, note)


def _size(files: Sequence[Path], store: Path, seconds: float) -> Table:
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    cells = (
        megabytes(sum(file.stat().st_size for file in files)),
        megabytes(store.stat().st_size),
        f"{seconds:.1f}",
        rate(rows / seconds),
    )
    return Table("The store, written from the Parquet files once", ("Parquet", "store", "seconds", "rows/s"), (cells,))


def list_files(folder: Path, rows: int) -> list[Path]:
    """Write the lists of keys 0 to ``rows``, in an order of no use, into some Parquet files."""
    folder.mkdir()
    generator = np.random.default_rng(SEED)
    files = []
    for number, keys in enumerate(np.array_split(generator.permutation(rows), _FILES)):
        files.append(folder / f"part-{number}.parquet")
        pq.write_table(_lists(generator, keys), files[-1])
    return files


def _lists(generator: np.random.Generator, keys: np.ndarray) -> pa.Table:
    values = len(keys) * LIST_LENGTH
    names = pc.binary_join_element_wise("m", pa.array(generator.integers(CANDIDATES, size=values)).cast("string"), "")
    offsets = pa.array(np.arange(len(keys) + 1, dtype=np.int32) * LIST_LENGTH)
    return pa.table(
        {
            "user_id": keys,
            "candidates": pa.ListArray.from_arrays(offsets, names),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(generator.random(values, dtype=np.float32))),
            "model_version": pa.repeat("movielens/3", len(keys)),
        }
    )


def _in_process(store: Path, rows: int, seed: int) -> dict[str, np.ndarray]:
    """Return the milliseconds of each call, of known and of unknown keys."""
    from mirrorspark.serving.precomputed.store import PrecomputedScores

    with PrecomputedScores.open(store) as scores:
        return {way: _timed(scores.get, _keys(way, rows, seed)) for way in (GET, UNKNOWN)}


def _through_server(store: Path, rows: int, seed: int) -> np.ndarray:
    command = [sys.executable, "-m", "mirrorspark.serving.lookup", "--store", str(store)]
    server = Daemon.start(command, store.with_suffix(".log"), {})
    try:
        port = int(server.wait_for(r"listening on http://127\.0\.0\.1:(\d+)", _START_SECONDS)[1])
        return in_new_process(_over_http, port, rows, seed)
    finally:
        server.end()


def _over_http(port: int, rows: int, seed: int) -> np.ndarray:
    """Return the milliseconds of each request, all on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask(key: int) -> None:
        connection.request("GET", f"/rows/{key}")
        answer = connection.getresponse()
        assert answer.status == 200, answer.status
        answer.read()

    try:
        return _timed(ask, _keys(HTTP, rows, seed))
    finally:
        connection.close()


def _in_spark(files: Sequence[Path], rows: int, seed: int) -> np.ndarray:
    session = spark_work.session()
    table = spark_work.table(session, files)
    found = _timed(lambda key: table.where(table["user_id"] == key).collect(), _keys(SPARK, rows, seed))
    session.stop()
    return found


def _keys(way: str, rows: int, seed: int) -> list[int]:
    """Return keys at random, and before them some that only warm up."""
    first = rows if way == UNKNOWN else 0
    calls = CALLS[way] + CALLS[way] // _WARM_UP_SHARE
    drawn = np.random.default_rng([SEED, seed]).integers(first, first + rows, size=calls)
    return [int(key) for key in drawn]


def _timed(call: Callable[[int], object], keys: Sequence[int]) -> np.ndarray:
    warm_ups = len(keys) // (_WARM_UP_SHARE + 1)
    for key in keys[:warm_ups]:
        call(key)
    milliseconds = np.empty(len(keys) - warm_ups)
    for number, key in enumerate(keys[warm_ups:]):
        begin = time.perf_counter()
        call(key)
        milliseconds[number] = (time.perf_counter() - begin) * 1e3
    return milliseconds


def _loads(options: Options, store: Path) -> dict[str, Load]:
    """Ask each kind of list for users at random."""
    users = np.random.default_rng(SEED).integers(options.rows, size=_USERS_ASKED)
    towers, router = in_new_process(_models, options.scratch, options.rows)
    loads = {}
    with served(options.scratch, "--store", f"lists={store}") as port:
        loads[STORE] = _load(STORE, port, "lists", [{"user_id": int(user)} for user in users])
    for way, model in ((TOWERS, towers), (ROUTER, router)):
        with served(options.scratch, "--model", str(model)) as port:
            loads[way] = _load(way, port, model.name, [{"user": str(user)} for user in users])
    return loads


def _load(way: str, port: int, name: str, rows: list[dict[str, object]]) -> Load:
    requests = [post(f"/v1/models/{name}:predict", json.dumps({"instances": [row]}).encode()) for row in rows]
    load_of(partial(steady, port, requests[:200], PER_SECOND[way] / 2, 2.0))  # it does not count
    load = load_of(partial(steady, port, requests, PER_SECOND[way], _LOAD_SECONDS))
    if set(load.statuses) != {200}:
        raise RuntimeError(f"{way} did not answer: {dict(load.statuses)} by status")
    return load


def _models(scratch: Path, users: int) -> tuple[Path, Path]:
    """Export the towers, and the router that re-ranks what they find."""
    import mirrorspark as ms

    towers = export_recommender(scratch / "towers", *clustered_vectors(ITEMS, users), k=LIST_LENGTH, scann=False)
    genres = np.random.default_rng(SEED).integers(GENRES, size=ITEMS)
    items = pd.DataFrame({"item": np.arange(ITEMS).astype(str), "genre": np.char.add("g", genres.astype(str))})
    rules = {"category": "genre", "at_most": 4}
    shown = ms.Cascade("towers", key="item", rerank=rules, depth=DEPTH, k=LIST_LENGTH)
    router = ms.Router(routes=(ms.Route("shown"),), cascades={"shown": shown})
    return towers, ms.package_router(router, scratch / "router", models={"towers": towers}, items=items)


BENCHMARK = Benchmark("lookup_precomputed", question_of(__doc__), 1_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
