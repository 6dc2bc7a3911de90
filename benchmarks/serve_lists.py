"""How long does a user wait for a list over HTTP, among a million users?

The list lies in a store of precomputed rows, or is found by two towers among 100,000 items, alone or in a router whose
cascade re-ranks it. The server has one core, the client the other one; each request asks for another user, at a fixed
time, and its seconds count from then.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.http_load import Load, post, steady
from benchmarks.http_server import load_of, loads_table, served
from benchmarks.lookup_precomputed import FALLBACK, LIST_LENGTH, list_files
from benchmarks.measure import Mark
from benchmarks.recommender_model import clustered_vectors, export_recommender
from benchmarks.report import Report
from benchmarks.tables import SEED
from benchmarks.train_work import in_new_process

P99_MARK = 20.0
ITEMS, DEPTH, GENRES = 100_000, 100, 20
STORE, TOWERS, ROUTER = "store of lists", "two towers", "router: two towers, re-ranked"
PER_SECOND = {STORE: 500.0, TOWERS: 100.0, ROUTER: 50.0}
_SECONDS = 20.0
_ASKED = 10_000


def run(options: Options) -> Report:
    """Ask each kind of list for users at random."""
    users = np.random.default_rng(SEED).integers(options.rows, size=_ASKED)
    store = in_new_process(_store, options.scratch, options.rows)
    towers, router = in_new_process(_models, options.scratch, options.rows)
    loads = {}
    with served(options.scratch, "--store", f"lists={store}") as port:
        loads[STORE] = _load(STORE, port, "lists", [{"user_id": int(user)} for user in users])
    for way, model in ((TOWERS, towers), (ROUTER, router)):
        with served(options.scratch, "--model", str(model)) as port:
            loads[way] = _load(way, port, model.name, [{"user": str(user)} for user in users])
    marks = tuple(Mark(f"{way}, p99, ms", load.milliseconds(99), P99_MARK, "at most") for way, load in loads.items())
    title = f"A list of {LIST_LENGTH} for one of {options.rows:,} users, {_SECONDS:g} s at a fixed rate"
    note = f"The router's cascade finds {DEPTH} of {ITEMS:,} items, and shows at most four of a genre."
    return Report(BENCHMARK.name, BENCHMARK.question, (loads_table(title, loads, note),), marks)


def _load(way: str, port: int, name: str, rows: list[dict[str, object]]) -> Load:
    requests = [post(f"/v1/models/{name}:predict", json.dumps({"instances": [row]}).encode()) for row in rows]
    load_of(partial(steady, port, requests[:200], PER_SECOND[way] / 2, 2.0))  # it does not count
    load = load_of(partial(steady, port, requests, PER_SECOND[way], _SECONDS))
    if set(load.statuses) != {200}:
        raise RuntimeError(f"{way} did not answer: {dict(load.statuses)} by status")
    return load


def _store(scratch: Path, users: int) -> Path:
    from mirrorspark.serving.precomputed.precompute import precompute

    precompute(list_files(scratch / "lists", users), scratch / "lists.db", key="user_id", fallback=FALLBACK)
    return scratch / "lists.db"


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


BENCHMARK = Benchmark("serve_lists", question_of(__doc__), 1_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
