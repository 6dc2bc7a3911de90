"""Re-ranked lists keep their rules, lose the least, and agree with a plain twin of the kernel (R6, R7)."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.recommending.reranking.reranker import rerank
from mirrorspark.scoring.errors import ScoringError

ITEMS = pa.table(
    {
        "item": list("abcdefgh"),
        "genre": ["x", "x", "x", "y", "y", "z", "z", None],
        "genres": [["x"], ["x", "y"], ["x", "z"], ["y"], [], ["z", "y", "x"], ["z"], None],
        "vector": [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [3.0, 4.0], [-1.0, 0.0], [0.0, -2.0], None],
        "boost": [0.0, 0.1, 0.25, None, 0.5, 0.0, -0.3, 0.0],
        "in_stock": [True, False, True, True, True, True, True, None],
    }
)
ROW = dict(zip(ITEMS["item"].to_pylist(), ITEMS.to_pylist(), strict=True))

tokens = st.permutations("abcdefghi").flatmap(lambda order: st.integers(0, 9).map(lambda size: list(order[:size])))
# Eighths are exact in binary, so that equal values are equal however they are computed.
scores = st.lists(st.integers(-4, 4).map(lambda eighths: eighths / 8), min_size=9, max_size=9)
limits = st.fixed_dictionaries({name: st.integers(0, 3) for name in "xyz"})


def lists_of(rows: Sequence[tuple[Sequence[str] | None, Sequence[float] | None]], **more: Any) -> pa.Table:
    """Return lists as ``recommend`` gives them."""
    candidates = pa.array([row[0] for row in rows], pa.list_(pa.string()))
    return pa.table(
        {"user": range(len(rows)), "candidates": candidates, "scores": pa.array([row[1] for row in rows])} | more
    )


def ranked(candidates: Sequence[str], given_scores: Sequence[float], **rules: Any) -> list[str]:
    """Return the re-ranked candidates of one list."""
    history = {"history": pa.array([list(rules.pop("past", []))], pa.list_(pa.string()))}
    lists = lists_of([(candidates, given_scores[: len(candidates)])], **history)
    made = rerank(lists, ITEMS, key="item", **rules).to_pylist()[0]
    by_token = dict(zip(candidates, given_scores, strict=False))
    assert made["scores"] == [by_token[token] for token in made["candidates"]]
    return list(made["candidates"])


def kinds(token: str, column: str) -> list[str]:
    found = ROW.get(token, {}).get(column) or []
    return [found] if isinstance(found, str) else sorted(found)


def shares(items: Sequence[str], column: str) -> defaultdict[str, float]:
    """Return the share of each category in a list, where an item's categories divide its count."""
    counts: defaultdict[str, float] = defaultdict(float)
    for item in items:
        for kind in kinds(item, column):
            counts[kind] += 1 / len(kinds(item, column))
    return counts


def divergence(wanted: Mapping[str, float], chosen: Sequence[str], column: str) -> float:
    """Return the Kullback-Leibler divergence of Steck's paper."""
    found = shares(chosen, column)
    return sum(
        share * math.log(share / (0.99 * found[kind] / len(chosen) + 0.01 * share)) for kind, share in wanted.items()
    )


def cosine(one: str, other: str) -> float:
    first, second = (ROW.get(token, {}).get("vector") for token in (one, other))
    if first is None or second is None:
        return 0.0
    return float(np.dot(first, second) / np.linalg.norm(first) / np.linalg.norm(second))


def worth(token: str, chosen: Sequence[str], relevance: Mapping[str, float], rules: Mapping[str, Any]) -> float:
    """Return the value of a candidate, given the chosen ones."""
    diversity, calibration = rules["diversity"], rules["calibration"]
    value = (1 - diversity - calibration) * relevance[token]
    value -= diversity * max([0.0, *(cosine(token, other) for other in chosen)])
    wanted = shares(rules["past"], "genres")
    total = sum(wanted.values())
    if calibration and total:
        of_all = {kind: share / total for kind, share in wanted.items()}
        value -= calibration * divergence(of_all, [*chosen, token], "genres")
    return value


@given(
    tokens, scores, limits, st.sampled_from([(0, 0), (0.25, 0), (0, 0.5), (0.3, 0.3), (1, 0)]),
    st.lists(st.sampled_from("abcdefghi"), max_size=5), st.integers(1, 6),
)  # fmt: skip
def test_every_place_has_the_candidate_of_the_highest_worth(
    candidates: list[str],
    values: list[float],
    most: dict[str, int],
    weights: tuple[float, float],
    past: list[str],
    k: int,
) -> None:
    """R7: the kernel agrees with a plain twin of MMR, calibration, boosts and maxima, item by item."""
    rules: dict[str, Any] = {"diversity": weights[0], "calibration": weights[1], "past": past}
    columns = {"vector": "vector"} if weights[0] else {}
    columns |= {"history": "history"} if weights[1] else {}
    made = ranked(candidates, values, k=k, category="genres", at_most=most, boost="boost", **rules, **columns)
    given_scores = values[: len(candidates)]
    spread = max(given_scores, default=0.0) - min(given_scores, default=0.0)
    relevance = {
        token: ((score - min(given_scores)) / spread if spread else 0.0) + (ROW.get(token, {}).get("boost") or 0.0)
        for token, score in zip(candidates, given_scores, strict=True)
    }
    for place in range(min(k, len(candidates))):
        chosen = made[:place]
        counts = Counter(kind for token in chosen for kind in kinds(token, "genres"))
        open_ones = [
            token
            for token in candidates
            if token not in chosen and all(counts[kind] < most[kind] for kind in kinds(token, "genres"))
        ]
        assert (place < len(made)) == bool(open_ones)
        if not open_ones:
            break
        worths = {token: worth(token, chosen, relevance, rules) for token in open_ones}
        assert worths[made[place]] >= max(worths.values()) - 1e-6
    assert len(set(made)) == len(made)


@given(tokens, scores, limits, limits, st.integers(1, 6))
def test_limits_hold_and_cost_the_least_score(
    candidates: list[str], values: list[float], one: dict[str, int], other: dict[str, int], k: int
) -> None:
    """R7: of all lists within the limits none has a higher sum of scores, where each item has one category."""
    least = {kind: min(one[kind], other[kind]) for kind in one}
    most = {kind: max(one[kind], other[kind]) for kind in one}
    if sum(least.values()) > k:
        least = dict.fromkeys(least, 0)
    made = ranked(candidates, values, k=k, category="genre", at_most=most, at_least=least)
    score_of = dict(zip(candidates, values, strict=False))
    there = Counter(kind for token in candidates for kind in kinds(token, "genre"))

    def is_allowed(chosen: Sequence[str]) -> bool:
        counts = Counter(kind for token in chosen for kind in kinds(token, "genre"))
        return all(min(least[kind], there[kind]) <= counts[kind] <= most[kind] for kind in most)

    assert is_allowed(made)
    allowed = [chosen for chosen in itertools.combinations(candidates, len(made)) if is_allowed(chosen)]
    best = max(sum(score_of[token] for token in chosen) for chosen in allowed)
    assert sum(score_of[token] for token in made) == best
    if len(made) < min(k, len(candidates)):
        assert not any(is_allowed(chosen) for chosen in itertools.combinations(candidates, len(made) + 1))
    # Best first, and equal ones in their former order.
    assert made == sorted(made, key=lambda token: (-score_of[token], candidates.index(token)))


def test_a_copy_of_the_first_item_makes_way_for_another_direction() -> None:
    """MMR by hand: b is a's copy, so that it is worth 0.5 * 0.9 - 0.5 * 1; c is at a right angle: 0.5 * 0."""
    assert ranked("abc", [1.0, 0.9, 0.0], k=3) == ["a", "b", "c"]
    assert ranked("abc", [1.0, 0.9, 0.0], k=3, diversity=0.5, vector="vector") == ["a", "c", "b"]


def test_opposite_directions_are_not_better_than_right_angles() -> None:
    """The cosine of f to a is -1 and counts as 0, as does that of c: the order of equal ones decides."""
    assert ranked("acf", [1.0, 0.0, 0.0], k=2, diversity=0.5, vector="vector") == ["a", "c"]
    assert ranked("afc", [1.0, 0.0, 0.0], k=2, diversity=0.5, vector="vector") == ["a", "f"]


def test_calibrated_list_has_the_shares_of_the_history() -> None:
    """Steck's example in small: two thirds x and one third y in the history, three places."""
    candidates, falling = "abcde", [1.0, 0.9, 0.8, 0.2, 0.1]
    rules = {"k": 3, "category": "genre", "calibration": 0.9, "history": "history"}
    assert ranked(candidates, falling, **rules, past="abd") == ["a", "d", "b"]
    assert ranked(candidates, falling, **rules) == ["a", "b", "c"], "no history, no calibration"


def test_limits_boosts_and_stock_by_hand() -> None:
    falling = [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    assert ranked("abcdefgh", falling, k=4, category="genre", at_most=1) == ["a", "d", "f", "h"]
    assert ranked("abcdefgh", falling, k=3, category="genre", at_least={"z": 2}) == ["a", "f", "g"]
    assert ranked("abcdefgh", falling, k=9, category="genre", at_most={"x": 0}) == list("defgh")
    # Scaled to sevenths: a 1, b .857 + .1, c .714 + .25, d .571, e .429 + .5
    assert ranked("abcdefgh", falling, k=5, boost="boost") == ["a", "c", "b", "e", "d"]
    assert ranked("abcdefghi", falling, k=4, available="in_stock") == ["a", "c", "d", "e"]
    assert ranked("abhi", falling, k=4, available="in_stock") == ["a"], "not available: b, h (null), i (unknown)"


def test_minima_of_items_of_several_categories_hold_as_far_as_maxima_leave_items() -> None:
    falling = [0.5, 0.4, 0.3]
    assert ranked("abd", falling, k=2, category="genres", at_least={"y": 1}) == ["a", "b"]
    assert ranked("abc", falling, k=2, category="genres", at_most={"x": 1}, at_least={"y": 1}) == ["a"]


def test_tables_of_every_kind_keep_their_other_columns_nulls_and_types() -> None:
    rows = [(["h", "a", "b"], [3.0, 2.0, 1.0]), (None, None), ([], []), (["b", "zzz"], [1.0, float("nan")])]
    lists = lists_of(rows, note=["p", "q", "r", "s"])
    made = rerank(lists, ITEMS, key="item", k=2)
    assert made.schema == lists.schema
    assert made.to_pylist() == [
        {"user": 0, "candidates": ["h", "a"], "scores": [3.0, 2.0], "note": "p"},
        {"user": 1, "candidates": None, "scores": None, "note": "q"},
        {"user": 2, "candidates": [], "scores": [], "note": "r"},
        {"user": 3, "candidates": ["b"], "scores": [1.0], "note": "s"},
    ]
    assert rerank(lists.slice(1, 3), ITEMS, key="item", k=2) == made.slice(1, 3)
    frame = rerank(lists.to_pandas().set_index(pd.Index([5, 6, 7, 8])), ITEMS.to_pandas(), key="item", k=2)
    assert frame.index.tolist() == [5, 6, 7, 8]
    assert frame["candidates"].map(lambda row: None if row is None else list(row)).tolist() == [
        row["candidates"] for row in made.to_pylist()
    ]
    assert rerank(lists.slice(0, 0), ITEMS, key="item", k=2).num_rows == 0


def test_integer_tokens_match_the_candidates_of_recommend() -> None:
    items = pa.table({"movie": [1, 2, 3], "genre": ["x", "x", "y"]})
    made = rerank(lists_of([(["1", "2", "3"], [3.0, 2.0, 1.0])]), items, key="movie", k=2, category="genre", at_most=1)
    assert made["candidates"].to_pylist() == [["1", "3"]]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"k": 0}, "k 0 leaves no candidate"),
        ({"k": 2, "at_most": 1}, "name their column: category"),
        ({"k": 2, "diversity": 0.5}, "diversity 0.5 and vector None belong together"),
        ({"k": 2, "history": "history"}, "calibration 0.0 and history 'history' belong together"),
        ({"k": 2, "diversity": 2.0, "vector": "vector"}, "diversity 2.0 is not a share"),
        ({"k": 2, "category": "genre", "at_least": {"x": 3}}, "at_least asks for 3 candidates of k 2"),
        ({"k": 2, "category": "genre", "at_least": {"x": 2}, "at_most": 1}, "above at_most for the categories ['x']"),
        ({"k": 2, "category": "genre", "at_most": {"w": 1}}, "no item has the categories ['w'] in 'genre'"),
        ({"k": 2, "category": "genre", "at_most": -1}, "below 0"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ScoringError) as raised:
        ranked("ab", [1.0, 0.5], **rules)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("column", "values", "rules", "message"),
    [
        ("item", ["a", "a"], {}, "'item' of items has 1 tokens more than once, ['a']"),
        ("item", ["a", None], {}, "'item' of items is null in 1 rows"),
        ("boosts", [1.0, 2.0], {"boost": "boost"}, "items has the column 'boost' 0 times (did you mean 'boosts'?)"),
        ("boost", [1.0, math.inf], {"boost": "boost"}, "the boosts 'boost' hold NaN or infinite numbers"),
        ("ok", [1, 0], {"available": "ok"}, "'ok' is int64, and has to be booleans"),
        ("v", [[1.0], [1.0, 2.0]], {"vector": "v", "diversity": 0.5}, "the vectors 'v' have [1, 2] numbers"),
        ("v", [[1.0], [None]], {"vector": "v", "diversity": 0.5}, "the vectors 'v' hold nulls"),
        ("v", [1.0, 2.0], {"vector": "v", "diversity": 0.5}, "'v' is double, and has to be lists of numbers"),
    ],
)
def test_items_that_cannot_be_used_are_named(
    column: str, values: list[Any], rules: dict[str, Any], message: str
) -> None:
    items = pa.table({"item": ["a", "b"]} | {column: values})
    with pytest.raises(ColumnError) as raised:
        rerank(lists_of([(["a"], [1.0])]), items, key="item", k=1, **rules)
    assert message in str(raised.value)


def test_lists_that_cannot_be_read_are_named() -> None:
    with pytest.raises(ColumnError, match="lists has no column 'scores'; it has"):
        rerank(lists_of([(["a"], [1.0])]).drop(["scores"]), ITEMS, key="item", k=1)
    with pytest.raises(ScoringError, match="row 1 of a batch has 1 candidates and 2 scores"):
        rerank(lists_of([(["a"], [1.0]), (["a"], [1.0, 2.0])]), ITEMS, key="item", k=1)
