"""How many lists of 200 candidates does one core re-rank per second to the best 20, by each rule and by all?

`rerank` reads Arrow and gives Arrow: tokens are looked up among 20,000 items, the rules applied, new lists built.
It is compared with the same greedy choice in NumPy, list by list, on arrays that are ready: the numbers of the items,
and their vectors scaled to length 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.benchmark import Benchmark, Options, main, on_one_core, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave
from benchmarks.report import Report, timing_table

ITEMS, CANDIDATES, K, CATEGORIES, DIM, HISTORY = 20_000, 200, 20, 20, 64, 30
AT_MOST, DIVERSITY = 2, 0.3
MARK = 50_000
# NumPy re-ranks one list in this number; its times are those of all.
NUMPY_SHARE = 20

RULES: Mapping[str, Mapping[str, Any]] = {
    "rerank, at_most": {"category": "category", "at_most": AT_MOST},
    "rerank, at_most and at_least": {"category": "category", "at_most": 3, "at_least": {"c1": 1, "c2": 2}},
    "rerank, boost and available": {"boost": "boost", "available": "available"},
    "rerank, diversity (MMR)": {"vector": "vector", "diversity": DIVERSITY},
    "rerank, calibration": {"category": "category", "history": "history", "calibration": 0.5},
}
ALL = "rerank, all of these"
LIMITS, MMR = "NumPy, at_most", "NumPy, diversity (MMR)"


@dataclass(frozen=True)
class _Data:
    """Lists and items, as tables and as arrays."""

    lists: pa.Table
    items: pa.Table
    numbers: np.ndarray
    scores: np.ndarray
    categories: np.ndarray
    vectors: np.ndarray


def run(options: Options) -> Report:
    """Time every rule on one core."""
    timings = on_one_core(_measure, options.rows, options.rounds)
    marks = tuple(Mark(f"{name}, lists/s", options.rows / timings[name].median, MARK) for name in RULES)
    title = f"{options.rows:,} lists of {CANDIDATES} candidates to the best {K}, vectors of {DIM}, one core"
    note = f"NumPy re-ranked one list in {NUMPY_SHARE}; its seconds are multiplied. A row is a list."
    return Report(
        BENCHMARK.name, BENCHMARK.question, (timing_table(title, options.rows, timings, LIMITS, note=note),), marks
    )


def _measure(rows: int, rounds: int) -> dict[str, Timing]:
    from mirrorspark.recommending.reranking.reranker import rerank

    data = _data(rows)
    together = {name: value for rules in RULES.values() for name, value in rules.items()}
    together |= {"calibration": DIVERSITY}
    ways: dict[str, Callable[[], object]] = {
        name: partial(rerank, data.lists, data.items, key="item", k=K, **rules)
        for name, rules in {**RULES, ALL: together}.items()
    }
    ways |= {LIMITS: partial(_in_numpy, data, _limited), MMR: partial(_in_numpy, data, _diverse)}
    timings = interleave([Contender(name, work) for name, work in ways.items()], rounds)
    return {
        name: Timing(name, tuple(of * NUMPY_SHARE for of in timing.seconds)) if name in (LIMITS, MMR) else timing
        for name, timing in timings.items()
    }


def _data(rows: int) -> _Data:
    random = np.random.default_rng(1)
    categories = random.integers(0, CATEGORIES, ITEMS)
    vectors = random.normal(size=(ITEMS, DIM)).astype(np.float32)
    tokens = pa.array([f"item-{number}" for number in range(ITEMS)])
    items = pa.table(
        {
            "item": tokens,
            "category": [f"c{number}" for number in categories],
            "vector": _lists(pa.array(vectors.ravel()), DIM),
            "boost": random.random(ITEMS) / 10,
            "available": random.random(ITEMS) > 0.1,
        }
    )
    numbers = random.integers(0, ITEMS, (rows, CANDIDATES))
    scores = -np.sort(-random.normal(size=(rows, CANDIDATES)).astype(np.float32), axis=1)
    lists = pa.table(
        {
            "candidates": _lists(tokens.take(pa.array(numbers.ravel())), CANDIDATES),
            "scores": _lists(pa.array(scores.ravel()), CANDIDATES),
            "history": _lists(tokens.take(pa.array(random.integers(0, ITEMS, rows * HISTORY))), HISTORY),
        }
    )
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return _Data(lists, items, numbers, scores, categories, unit)


def _lists(values: pa.Array, length: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, length, dtype=np.int32)), values)


def _in_numpy(data: _Data, choose: Callable[[_Data, int], np.ndarray]) -> None:
    for row in range(0, len(data.numbers), NUMPY_SHARE):
        choose(data, row)


def _limited(data: _Data, row: int) -> np.ndarray:
    """Return the places of the best: the first few of each category, of those the best."""
    kinds = data.categories[data.numbers[row]]
    order = np.argsort(kinds, kind="stable")
    starts = np.searchsorted(kinds[order], np.arange(CATEGORIES))
    rank = np.arange(CANDIDATES) - starts[kinds[order]]
    return np.sort(order[rank < AT_MOST])[:K]


def _diverse(data: _Data, row: int) -> np.ndarray:
    """Return the places that MMR chooses, from a matrix of all cosines of the list."""
    vectors, scores = data.vectors[data.numbers[row]], data.scores[row]
    cosines = vectors @ vectors.T
    relevance = (1 - DIVERSITY) * (scores - scores.min()) / (scores.max() - scores.min())
    similarity, places = np.zeros(CANDIDATES, np.float32), np.empty(K, np.int64)
    for count in range(K):
        places[count] = np.argmax(relevance - DIVERSITY * similarity)
        relevance[places[count]] = -np.inf
        similarity = np.maximum(similarity, cosines[places[count]])
    return places


BENCHMARK = Benchmark("rerank", question_of(__doc__), 16_384, run)

if __name__ == "__main__":
    main(BENCHMARK)
