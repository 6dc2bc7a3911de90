"""Routers: rules choose the model of each row, and the folder scores like any model (R5, R8, R9)."""

import datetime
import functools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.recommending.recommendations import recommend
from mirrorspark.recommending.reranking.ranking import Ranking
from mirrorspark.recommending.routing.blend import as_arrays, as_lists, blended, of_length
from mirrorspark.recommending.routing.decision import check_columns, decide
from mirrorspark.recommending.routing.package import package_router
from mirrorspark.recommending.routing.router import Cascade, Route, Router
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input.inputs import Column
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.model.hooks import HookError
from mirrorspark.scoring.model.loading.loaded import LoadedModel, Search
from mirrorspark.scoring.model.stored.consent import UntrustedModelError
from mirrorspark.scoring.model.stored.digest import folder_digest
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.predictor import Predictor
from mirrorspark.scoring.registration import register_model
from tests.unit.mlflow_stores import new_store
from tests.unit.scoring.exported_models import export_movies, export_watches

NOON = datetime.datetime(2026, 3, 10, 12, tzinfo=datetime.UTC)
DAY = datetime.date
ROWS = pa.table(
    {
        "born": [DAY(2026, 3, 9), DAY(2026, 2, 8), DAY(2020, 1, 1), None],
        "today": [DAY(2026, 3, 10)] * 4,
        "text": [1.0, 2.0, 3.0, 4.0],
        "visits": [10.0, 20.0, 30.0, None],
    }
)
MOVIES = [f"m{number}" for number in range(40)]
# The third has seen all but two, the last all.
VISITORS = pa.table(
    {
        "user": ["u0", "u1", "nobody", "u0"],
        "history": pa.array([["m1"], [], None, ["m3", "m4"]], pa.list_(pa.string())),
        "seen": pa.array([["m1", "m2"], None, MOVIES[:38], MOVIES], pa.list_(pa.string())),
        "rebate": [0.0, 0.5, 1.0, 0.0],
    }
)
CATALOGUE = pa.table(
    {
        "movie": MOVIES,
        "price": [float(number % 3) for number in range(40)],
        "genre": [f"g{number % 5}" for number in range(40)],
        "in_stock": [number % 2 == 0 for number in range(40)],
    }
)
FUNNEL = Cascade("towers", "movie", rank="prices", rerank={"category": "genre", "at_most": 1}, depth=12, k=4)
BY_AGE = Router((Route("content", "born", younger_than_days=30, nulls="match"), Route("learned")), as_of="today")


def linear(folder: Path, column: str, weight: float) -> Path:
    """Package a model that multiplies a column, which must not be null."""
    return package_model({"coefficients": {column: weight}}, folder, columns=[Column(column, "double", nulls="fail")])


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    return {
        "content": linear(tmp_path / "content", "text", 2.0),
        "learned": linear(tmp_path / "learned", "visits", 1.0),
    }


@functools.cache
def opened(model: Path) -> LoadedModel:
    """Return a model that no test changes, which is loaded once."""
    return LoadedModel(model)


@pytest.fixture(autouse=True, scope="module")
def _close() -> Iterator[None]:
    """Let the models go before TensorFlow does."""
    yield
    opened.cache_clear()


def chosen(rule: Route, column: list[Any], *, time_zone: str = "UTC", now: datetime.datetime = NOON) -> list[str]:
    """Return whether the rule takes each row, with its reason."""
    router = Router((rule, Route("other")), time_zone=time_zone)
    decision = decide(router, pa.record_batch({"born": pa.array(column)}), now=lambda: now)
    assert not decision.errors
    return list(decision.models)


@pytest.mark.parametrize(("boundary", "on_the_day"), [("exclusive", "other"), ("inclusive", "new")])
def test_the_day_of_the_limit_belongs_to_one_side(boundary: Any, on_the_day: str) -> None:
    """R5: on 10 March, 29, 30 and 31 days ago, and tomorrow."""
    rule = Route("new", "born", younger_than_days=30, boundary=boundary)
    days = [DAY(2026, 2, 9), DAY(2026, 2, 8), DAY(2026, 2, 7), DAY(2026, 3, 11)]
    assert chosen(rule, days) == ["new", on_the_day, "other", "new"]


def test_days_are_those_of_the_time_zone() -> None:
    """R5: 23:30 in UTC is the next day in Berlin, both for the row and for the time of the call."""
    rule = Route("new", "born", younger_than_days=1)
    moment = [datetime.datetime(2026, 3, 9, 23, 30, tzinfo=datetime.UTC)]
    assert chosen(rule, moment) == ["other"]
    assert chosen(rule, moment, time_zone="Europe/Berlin") == ["new"]
    late = datetime.datetime(2026, 3, 10, 23, 30, tzinfo=datetime.UTC)
    assert chosen(rule, [DAY(2026, 3, 10)], now=late) == ["new"]
    assert chosen(rule, [DAY(2026, 3, 10)], now=late, time_zone="Europe/Berlin") == ["other"]
    wall = [datetime.datetime(2026, 3, 10, 0, 15)]
    assert chosen(rule, wall, time_zone="Europe/Berlin") == ["new"]
    berlin = [datetime.datetime(2026, 3, 10, 0, 15, tzinfo=ZoneInfo("Europe/Berlin"))]
    assert chosen(rule, berlin) == ["other"], "it is still 9 March in UTC"


def test_rows_without_a_date_follow_the_rule_for_nulls() -> None:
    rows = pa.record_batch({"born": pa.array([None, DAY(2026, 3, 9)])})
    for nulls, expected in (("skip", "other"), ("match", "new")):
        router = Router((Route("new", "born", younger_than_days=5, nulls=nulls), Route("other")))  # type: ignore[arg-type]
        assert list(decide(router, rows, now=lambda: NOON).models) == [expected, "new"]
    strict = Router((Route("new", "born", younger_than_days=5, nulls="fail"), Route("other")))
    assert decide(strict, rows, now=lambda: NOON).errors == {
        0: "column 'born' is null, and the route to 'new' needs a value"
    }
    undated = pa.record_batch({"born": [DAY(2020, 1, 1), None], "day": pa.array([None, None], pa.date32())})
    matching, strict = (
        Router((Route("new", "born", younger_than_days=5, nulls=nulls), Route("other")), as_of="day")
        for nulls in ("match", "fail")
    )
    assert list(decide(matching, undated).reasons) == ["day: null", "born: null"]
    assert decide(strict, undated).errors[0] == "column 'day' is null, and the route to 'new' needs a value"


def test_errors_are_in_the_order_of_the_rows_whatever_rule_finds_them() -> None:
    columns = {"born": [DAY(2020, 1, 1), None, DAY(2020, 1, 1)], "shop": [None, "de", None]}
    router = Router(
        (
            Route("new", "born", younger_than_days=5, nulls="fail"),
            Route("shop", "shop", values=("de",), nulls="fail"),
            Route("other"),
        )
    )
    assert list(decide(router, pa.record_batch(columns), now=lambda: NOON).errors.items()) == [
        (0, "column 'shop' is null, and the route to 'shop' needs a value"),
        (1, "column 'born' is null, and the route to 'new' needs a value"),
        (2, "column 'shop' is null, and the route to 'shop' needs a value"),
    ]


def test_every_row_has_its_models_score_and_the_reason(models: dict[str, Path], tmp_path: Path) -> None:
    """R5, R9: the same from batches and row by row; the last row has no date."""
    folder = package_router(BY_AGE, tmp_path / "router", models=models)
    rows = ROWS.slice(0, 4)
    found = pa.table(LoadedModel(folder).score_arrow(rows)).to_pylist()
    old, young, unknown = "no other rule applies", "born: age < 30 days", "born: null"
    assert found == [
        {"score": 2.0, "model": "content", "reason": young},
        {"score": 20.0, "model": "learned", "reason": old},
        {"score": 30.0, "model": "learned", "reason": old},
        {"score": 8.0, "model": "content", "reason": unknown},
    ]
    predictor = Predictor(folder)
    assert [
        {name: value for name, value in predictor.predict(row).items() if name != "model_version"}
        for row in rows.to_pylist()
    ] == found
    assert ModelDirectory.open(folder).inputs.columns == ("text", "visits", "born", "today")


def test_a_row_that_its_model_cannot_score_falls_back(models: dict[str, Path], tmp_path: Path) -> None:
    router = Router((Route("learned"),), fallback=("content",))
    model = LoadedModel(package_router(router, tmp_path / "router", models=models))
    found = pa.table(model.score_arrow(ROWS)).to_pylist()
    assert [row["model"] for row in found] == ["learned", "learned", "learned", "content"]
    assert found[3]["score"] == 8.0
    assert found[3]["reason"].startswith("no other rule applies; learned cannot score it: column 'visits'")
    nobody = ROWS.set_column(2, "text", pa.array([1.0, 2.0, 3.0, None]))
    assert list(model.row_errors(nobody.to_batches()[0])) == [3]
    with pytest.raises(ColumnError, match="visits"):
        model.score(nobody)


def test_blend_is_the_weighted_sum(models: dict[str, Path], tmp_path: Path) -> None:
    """R9: 0.25 * 2 * text + 0.75 * visits."""
    router = Router((Route("both"),), blends={"both": {"content": 0.25, "learned": 0.75}})
    found = LoadedModel(package_router(router, tmp_path / "router", models=models)).score(ROWS.slice(0, 2))
    assert found["score"].tolist() == [8.0, 16.0]
    assert found["model"].tolist() == ["both", "both"]


def test_lists_are_fused_by_their_places() -> None:
    """R9: by the weighted sums of 1 / (60 + place); lists have different lengths and empty ends."""
    random = np.random.default_rng(5)
    parts, weights = {}, {"a": 1.0, "b": 0.5, "c": 2.0}
    for name, width in (("a", 7), ("b", 12), ("c", 5)):
        candidates = np.full((40, width), b"", object)
        for row in candidates:
            length = random.integers(0, width + 1)
            row[:length] = [f"m{item}".encode() for item in random.permutation(30)[:length]]
        parts[name] = {"candidates": candidates, "scores": np.zeros((40, width), np.float32)}
    fused = blended(parts, weights)
    assert fused["candidates"].shape == (40, 12)
    for row, found in enumerate(fused["candidates"]):
        gains: dict[bytes, float] = {}
        for name, lists in parts.items():
            for place, item in enumerate(lists["candidates"][row], start=1):
                if item:
                    gains[item] = gains.get(item, 0) + weights[name] / (60 + place)
        expected = sorted(gains, key=lambda item: -gains[item])[:12]
        assert found.tolist() == expected + [b""] * (12 - len(expected))
    longer, shorter = of_length(fused, 15)["candidates"], of_length(fused, 3)["candidates"]
    assert (longer[:, 12:] == b"").all()
    assert (shorter == fused["candidates"][:, :3]).all()


def test_lists_are_fused_by_their_scores() -> None:
    """R9: scaled within each list, where equal scores count as zero; y has 0.5 of one list and 0.25 of the other."""
    parts = {
        "a": as_arrays(pa.array([["x", "y", "z"], []]), pa.array([[3.0, 2.0, 1.0], []]), 3),
        "b": as_arrays(pa.array([["y", "w"], ["w"]]), pa.array([[10.0, 5.0], [-8.0]]), 3),
        "c": as_arrays(pa.array([["w", "z"], None]), pa.array([[7.0, 7.0], None]), 2),
    }
    fused = blended(parts, {"a": 1.0, "b": 0.25, "c": 2.0}, "scores")
    candidates, scores = as_lists(fused)
    assert candidates.to_pylist() == [["x", "y", "z"], ["w"]]
    assert scores.to_pylist() == [[1.0, 0.75, 0.0], [0.0]]


@pytest.mark.parametrize("fusion", ["dot", "cosine"])
def test_one_search_ranks_all_candidates_by_the_vectors_of_several_models(
    movies_model: Path, als_model: Path, fusion: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R9: towers and ALS under one scorer; ALS knows other movies as well, but no user without a history."""
    router = Router((Route("both"),), blends={"both": {"towers": 1.0, "als": 0.5}}, fusion=fusion)
    model = LoadedModel(package_router(router, tmp_path / "router", models={"towers": movies_model, "als": als_model}))
    rows = VISITORS.slice(0, 3)
    expected = np.zeros((3, 50))
    for name, weight in (("towers", 1.0), ("als", 0.5)):
        loaded = opened({"towers": movies_model, "als": als_model}[name])
        (queries, _), of = next(loaded.query_vectors(rows.to_batches()[0])), loaded.vectors()
        for token, vector in zip(of.tokens, of.vectors, strict=True):
            lengths = np.linalg.norm(queries, axis=1) * np.linalg.norm(vector) if fusion == "cosine" else np.ones(3)
            products = np.divide(queries @ vector, lengths, out=np.zeros(3), where=lengths > 0)
            expected[:, int(token[1:])] += weight * products
    seen = [[] if of is None else [int(movie[1:]) for movie in of] for of in rows["seen"].to_pylist()]
    for row, ids in enumerate(seen):
        expected[row, ids] = -np.inf
    found = model.with_search(Search("exact", 10, np.zeros(0, np.int64), searches())).score(rows)
    for row in range(3):
        best = np.argsort(-expected[row], kind="stable")[:10]
        assert [int(token[1:]) for token in found["candidates"][row]] == best.tolist()
        np.testing.assert_allclose(found["scores"][row], expected[row][best], rtol=1e-5)
    assert max(int(token[1:]) for token in found["candidates"].ravel()) >= 40
    # Lists of the usual length, and by rows: as the models have them.
    usual = pa.table(model.score_arrow(rows)).to_pylist()
    assert [len(row["candidates"]) for row in usual] == [3, 3, 3]
    assert [row["candidates"] for row in usual] == [
        [token.decode() for token in row[:3]] for row in found["candidates"]
    ]
    predicted = Predictor(tmp_path / "router").predict_rows(rows.to_pylist())
    assert [row["candidates"] for row in predicted] == [row["candidates"] for row in usual]
    # In parts and tiles of a row or two, and as the first stage of a cascade.
    monkeypatch.setattr("mirrorspark.scoring.model.loading.loaded._VECTOR_ROWS", 2)
    monkeypatch.setattr("mirrorspark.recommending.routing.vector_search._TILE_SCORES", 1)
    again = LoadedModel(tmp_path / "router").score(rows)
    np.testing.assert_array_equal(again["candidates"], model.score(rows)["candidates"])
    genres = pa.table({"movie": [f"m{number}" for number in range(50)], "genre": ["g"] * 50})
    shown = Cascade("both", "movie", rerank={"category": "genre", "at_most": 5}, depth=10, k=3)
    cascade = replace(router, routes=(Route("shown"),), cascades={"shown": shown})
    folder = package_router(
        cascade, tmp_path / "cascade", models={"towers": movies_model, "als": als_model}, items=genres
    )
    np.testing.assert_array_equal(LoadedModel(folder).score(rows)["candidates"], again["candidates"])


def test_one_search_by_vectors_loads_no_index(movies_model: Path, als_model: Path, tmp_path: Path) -> None:
    """#23: neither model has an index of ScaNN, and a route to one of them alone would need it."""
    router = Router((Route("both"),), blends={"both": {"towers": 1.0, "als": 1.0}}, fusion="cosine")
    folder = package_router(router, tmp_path / "router", models={"towers": movies_model, "als": als_model})
    model, nobody = LoadedModel(folder), np.zeros(0, np.int64)
    no_table: Any = None  # It is refused before the table is read.
    exact = model.with_search(Search("exact", 5, nobody, searches())).score(VISITORS)
    asked = {name: replace(search, index="scann") for name, search in searches().items()}
    found = model.with_search(Search("scann", 5, nobody, asked)).score(VISITORS)
    np.testing.assert_array_equal(found["candidates"], exact["candidates"])
    with pytest.raises(ScoringError, match=r"index 'scann' is of no use to router/.*; leave index out"):
        recommend(no_table, folder, keys="row", k=5, index="scann")
    lists = replace(router, routes=(Route("als", "device", values=("tv",)), Route("both")))
    assert (router.listing, lists.listing) == ((), ("als",))


def searches(unavailable: int | None = None) -> dict[str, Search]:
    """Return a search of the towers and ALS, without the movie of that number."""
    first = [2 + unavailable, 2 + unavailable - 20] if unavailable is not None else [None, None]
    return {
        name: Search("exact", 10, np.array([] if place is None else [place], np.int64))
        for name, place in zip(("towers", "als"), first, strict=True)
    }


def test_what_no_model_may_find_is_in_no_list_of_one_search(
    movies_model: Path, als_model: Path, tmp_path: Path
) -> None:
    router = Router((Route("both"),), blends={"both": {"towers": 1.0, "als": 1.0}}, fusion="dot")
    models = {"towers": movies_model, "als": als_model}
    model = LoadedModel(package_router(router, tmp_path / "router", models=models))
    row = VISITORS.slice(1, 1)
    nobody = np.zeros(0, np.int64)
    every = model.with_search(Search("exact", 50, nobody, searches())).score(row)["candidates"][0].tolist()
    number = int(next(token for token in every if 20 <= int(token[1:]) < 40)[1:])
    rest = model.with_search(Search("exact", 50, nobody, searches(unavailable=number))).score(row)["candidates"][0]
    assert [token for token in every if token != f"m{number}".encode()] == rest.tolist()[:-1]
    assert rest[-1] == b""
    prices = package_model({"coefficients": {"price": 1.0}}, tmp_path / "prices", outputs={"scores": "score"})
    numbers = Router((Route("both"),), blends={"both": {"prices": 1.0}}, fusion="dot")
    with pytest.raises(ModelDirectoryError, match="'prices' of the blend 'both' has none"):
        package_router(numbers, tmp_path / "other", models={"prices": prices})


def test_values_choose_and_unknown_ones_go_on(models: dict[str, Path], tmp_path: Path) -> None:
    router = Router((Route("content", "shop", values=("de", "at")), Route("learned")))
    model = LoadedModel(package_router(router, tmp_path / "router", models=models))
    rows = ROWS.slice(0, 3).append_column("shop", pa.array(["de", "fr", None]))
    assert model.score(rows)["model"].tolist() == ["content", "learned", "learned"]
    with pytest.raises(ColumnError, match="column 'shop' has type int64, and the router compares it with"):
        ModelDirectory.open(tmp_path / "router").inputs.check(rows.set_column(4, "shop", pa.array([1, 2, 3])).schema)


def test_ranges_have_their_lower_end_and_not_their_upper_one(models: dict[str, Path], tmp_path: Path) -> None:
    router = Router(
        (Route("content", "text", at_least=2.0, below=4.0), Route("learned", "text", below=0), Route("content"))
    )
    decision = decide(router, pa.record_batch({"text": [1.5, 2.0, 3.9, 4.0, -1.0, None, float("nan")]}))
    in_range, below, other = "text >= 2 and text < 4", "text < 0", "no other rule applies"
    assert list(decision.reasons) == [other, in_range, in_range, other, below, other, other]
    assert list(decide(router, pa.record_batch({"text": [2, -3]})).models) == ["content", "learned"]
    assert list(decide(router, pa.record_batch({"text": pa.nulls(1)})).reasons) == [other]
    of_ids = Router((Route("content", "text", at_least=2**60), Route("learned")))
    assert list(decide(of_ids, pa.record_batch({"text": [2**61, 2**53 + 1]})).models) == ["content", "learned"]
    strict = Router((Route("content", "text", at_least=2.0, nulls="fail"), Route("learned")))
    assert list(decide(strict, pa.record_batch({"text": [float("nan"), 3.0]})).errors) == [0]
    folder = package_router(router, tmp_path / "router", models=models)
    with pytest.raises(ColumnError, match="column 'text' has type string, and a range needs numbers; cast it"):
        check_columns(router, pa.schema({"text": pa.string()}))
    assert LoadedModel(folder).score(ROWS)["reason"].tolist() == [other, in_range, in_range, other]


def test_an_empty_list_falls_back(stages: dict[str, Path], tmp_path: Path) -> None:
    """R9: the last visitor has seen all movies that the towers know."""
    everyone = export_movies(tmp_path / "everyone", scann=False, prefix="n")
    router = Router((Route("towers"),), fallback=("towers", "everyone"))
    model = LoadedModel(
        package_router(router, tmp_path / "router", models={"towers": stages["towers"], "everyone": everyone})
    )
    found = pa.table(model.score_arrow(VISITORS)).to_pylist()
    assert [row["model"] for row in found] == ["towers", "towers", "towers", "everyone"]
    assert found[3]["reason"] == "no other rule applies; towers has no candidates"
    assert found[3]["candidates"][0].startswith("n")
    assert all(not name or name.startswith("m") for row in found[:3] for name in row["candidates"])


HOOKS = """
import numpy as np
import pyarrow.compute as pc

def preprocess(rows):
    # A column without any value has the type null.
    visits = pc.fill_null(rows.column("visits").cast("double"), 5.0)
    return rows.set_column(rows.schema.get_field_index("visits"), "visits", visits)

def postprocess(outputs):
    return outputs | {"score": np.maximum(outputs["score"], 6.0)}
"""


def test_hooks_of_a_router_travel_with_it_by_their_digest(models: dict[str, Path], tmp_path: Path) -> None:
    """R8: rows before the decision, answers after it; another file is another version, which needs consent."""
    (tmp_path / "hooks.py").write_text(HOOKS)
    folder = package_router(BY_AGE, tmp_path / "router", models=models, hooks=tmp_path / "hooks.py")
    nulls = ROWS.set_column(0, "born", pa.array([DAY(2020, 1, 1)] * 4))
    found = Predictor(folder).predict_rows(nulls.to_pylist())
    assert [row["score"] for row in found] == [10.0, 20.0, 30.0, 6.0]
    before = folder_digest(folder)
    (folder / "hooks.py").write_text(HOOKS.replace("6.0", "7.0"))
    assert folder_digest(folder) != before
    with pytest.raises(UntrustedModelError, match=r"preprocess, postprocess of its hooks\.py"):
        Predictor(folder)
    assert Predictor(folder, trust=True).predict(nulls.to_pylist()[3])["score"] == 7.0


TAGS = """
import pyarrow as pa
import pyarrow.compute as pc

def preprocess(rows):
    return rows.append_column("text", pc.utf8_length(pc.fill_null(rows.column("title"), "")).cast("double"))
"""


def test_a_hook_makes_columns_that_the_table_lacks_of_others(models: dict[str, Path], tmp_path: Path) -> None:
    """F13: a tagger travels with the model that was trained on its tags."""
    hooks = tmp_path / "hooks.py"
    hooks.write_text(TAGS)
    makes = {"text": ["title"]}
    folder = package_router(BY_AGE, tmp_path / "router", models=models, hooks=hooks, makes=makes)
    titles = ROWS.set_column(2, "title", pa.array(["a", "bc", "", None], pa.string()))
    model = LoadedModel(folder)
    assert set(ModelDirectory.open(folder).inputs.columns) == {"visits", "born", "today", "title"}
    assert model.score(titles)["score"].tolist() == [2.0, 20.0, 30.0, 0.0]
    with pytest.raises(ColumnError, match=r"\['title'\] are missing, which .* or the hook preprocess read;"):
        ModelDirectory.open(folder).inputs.check(ROWS.schema)
    hooks.write_text("def preprocess(rows): return rows")
    idle = package_router(BY_AGE, tmp_path / "idle", models=models, hooks=hooks, makes=makes)
    with pytest.raises(HookError, match=r"and makes of the router has \['text'\]; have it add them"):
        LoadedModel(idle).score(titles)
    for given, code, message in (
        (makes, "def postprocess(outputs): return outputs", "there is no hook preprocess that makes them"),
        ({"tags": ["title"]}, TAGS, r"makes has the columns \['tags'\], which neither the router nor its models read"),
        ({"text": "title"}, TAGS, r"give a list of columns: \['title'\]"),
        ({"text": ["text"]}, TAGS, r"makes has 'text' from \['text'\], which are made themselves"),
    ):
        hooks.write_text(code)
        with pytest.raises(ModelDirectoryError, match=message):
            package_router(BY_AGE, tmp_path / "refused", models=models, hooks=hooks, makes=given)


def test_a_registered_router_answers_by_its_uri_and_through_mlflow(
    stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R9: a version, an alias, and MLflow's own form; the ages, lists and reasons are those of the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path))
    router = Router(
        (Route("towers", "rebate", at_least=0.5), Route("funnel")), cascades={"funnel": replace(FUNNEL, k=3)}
    )
    folder = package_router(router, tmp_path / "shop", models=stages, items=CATALOGUE)
    uri = register_model(folder, "shop", alias="champion")
    assert uri == "models:/shop/1"
    assert register_model(folder, "shop") == "models:/shop/2"
    for name, alias, message in (
        ("shop/eu", None, "name 'shop/eu' must be a name without"),
        ("shop", "v1", "alias 'v1' is not one that MLflow takes"),
        ("shop", "the best", "alias 'the best' is not one"),
    ):
        with pytest.raises(ScoringError, match=message):
            register_model(folder, name, alias=alias)
    expected = [
        row | {"model_version": "shop/1"} for row in pa.table(LoadedModel(folder).score_arrow(VISITORS)).to_pylist()
    ]
    predictor = Predictor("models:/shop@champion")
    assert predictor.predict_rows(VISITORS.to_pylist()) == expected
    found = mlflow.pyfunc.load_model("models:/shop@champion").predict(VISITORS.to_pandas())
    for row, answer in zip(found.to_dict("records"), expected, strict=True):
        assert [list(of) if isinstance(of, np.ndarray) else of for of in row.values()] == list(answer.values())[:-1]
    ratings = register_model(stages["prices"], "prices")
    prices = mlflow.pyfunc.load_model(ratings).predict(pd.DataFrame({"price": [1, 2], "rebate": [0.0, 0.5]}))
    assert prices["score"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def preprocess(rows): return rows.slice(1)", "preprocess of hooks.py gives 3 rows for 4 rows"),
        ("def preprocess(rows): return None", "preprocess of hooks.py gives NoneType for 4 rows"),
        ("def preprocess(rows): return 1 / 0", "preprocess of hooks.py failed: ZeroDivisionError"),
        ("def preprocess(rows): return rows.drop_columns(['born'])", "cannot be routed: column 'born' is missing"),
        ("def postprocess(outputs): return {'score': outputs['score']}", r"gives \['score'\], and the router has"),
        (
            "def postprocess(outputs): return outputs | {'score': outputs['score'][:2]}",
            r"of shape \[2\], and got \[4\]",
        ),
        ("def postprocess(outputs): return outputs | {'score': outputs['score'].astype(str)}", "gives 'score' of <U"),
    ],
)
def test_what_a_router_cannot_use_of_its_hooks_is_told(
    code: str, message: str, models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "hooks.py").write_text(code)
    router = Router((Route("content", "born", younger_than_days=9, nulls="match"), Route("content")), as_of="today")
    folder = package_router(router, tmp_path / "r", models={"content": models["content"]}, hooks=tmp_path / "hooks.py")
    with pytest.raises(HookError, match=message):
        LoadedModel(folder).score(ROWS)
    (tmp_path / "hooks.py").write_text("def other(rows): return rows")
    with pytest.raises(ModelDirectoryError, match="has neither preprocess nor postprocess"):
        package_router(router, tmp_path / "s", models={"content": models["content"]}, hooks=tmp_path / "hooks.py")


CUTS = "def postprocess(outputs): return {name: v[:, :2] if v.ndim == 2 else v for name, v in outputs.items()}"


def test_hooks_cut_both_lists_of_a_router_alike(movies_model: Path, tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(CUTS)
    router, models = Router((Route("towers"),)), {"towers": movies_model}
    folder = package_router(router, tmp_path / "two", models=models, hooks=tmp_path / "hooks.py")
    assert [len(row) for row in LoadedModel(folder).score(VISITORS)["candidates"]] == [2, 2, 2, 2]
    one = "def postprocess(outputs): return outputs | {'scores': outputs['scores'][:, :2]}"
    (tmp_path / "hooks.py").write_text(one)
    folder = package_router(router, tmp_path / "one", models=models, hooks=tmp_path / "hooks.py")
    with pytest.raises(HookError, match=r"'candidates' of shape \[4, 3\], and 'scores' of \[4, 2\]"):
        LoadedModel(folder).score(VISITORS)


def test_digest_is_over_the_rules_and_all_models(models: dict[str, Path], tmp_path: Path) -> None:
    """R8: another rule or another model, hooks included, is another version."""
    digests = {folder_digest(package_router(BY_AGE, tmp_path / "one", models=models))}
    digests.add(folder_digest(package_router(Router(BY_AGE.routes), tmp_path / "two", models=models)))
    hooks = tmp_path / "hooks.py"
    hooks.write_text("def postprocess(outputs):\n    return {'score': outputs['score'] + 1}\n")
    own = package_model(
        {"coefficients": {"text": 2.0}}, tmp_path / "own", columns=[Column("text", "double")], hooks=hooks
    )
    folder = package_router(BY_AGE, tmp_path / "three", models=models | {"content": own})
    digests.add(folder_digest(folder))
    assert len(digests) == 3
    assert LoadedModel(folder).score(ROWS.slice(0, 1))["score"].tolist() == [3.0]


@pytest.fixture
def stages(movies_model: Path, tmp_path: Path) -> dict[str, Path]:
    ranker = package_model({"coefficients": {"price": 1.0, "rebate": -2.0}}, tmp_path / "prices")
    return {"towers": movies_model, "prices": ranker}


def found(model: Path, depth: int, visitors: pa.Table = VISITORS) -> list[list[str]]:
    """Return the lists that a retrieval model finds for the visitors."""
    searching = opened(model).with_search(Search("exact", depth, np.zeros(0, np.int64)))
    lists = searching.score_arrow(visitors)["candidates"].to_pylist()
    return [[movie for movie in row if movie] for row in lists]


def listed(model: LoadedModel) -> list[list[str]]:
    """Return the lists that a router gives the visitors."""
    return [[movie for movie in row if movie] for row in model.score_arrow(VISITORS)["candidates"].to_pylist()]


def test_a_cascade_is_its_stages_one_after_the_other(stages: dict[str, Path], tmp_path: Path) -> None:
    """R9: twelve are found, the dearest are first, of equal ones the one found first, and one of a genre is listed."""
    folder = package_router(
        Router((Route("funnel"),), cascades={"funnel": FUNNEL}), tmp_path / "router", models=stages, items=CATALOGUE
    )
    of = {row["movie"]: row for row in CATALOGUE.to_pylist()}
    expected = []
    for movies in found(stages["towers"], 12):
        genres: Counter[str] = Counter()
        expected.append([])
        for movie in sorted(movies, key=lambda movie: -of[movie]["price"]):
            genres[of[movie]["genre"]] += 1
            if genres[of[movie]["genre"]] == 1:
                expected[-1].append(movie)
    model = LoadedModel(folder)
    assert listed(model) == [movies[:4] for movies in expected]
    assert [len(movies) for movies in listed(model)] == [4, 4, 2, 0]
    for row, answer in zip(VISITORS.to_pylist(), Predictor(folder).predict_rows(VISITORS.to_pylist()), strict=True):
        movies = [movie for movie in answer["candidates"] if movie]
        assert answer["scores"][: len(movies)] == [of[movie]["price"] - 2 * row["rebate"] for movie in movies]
        assert answer["model"] == "funnel"
        assert answer["reason"] == "no other rule applies; candidates of towers, ranked by prices, re-ranked"
    assert ModelDirectory.open(folder).inputs.columns == ("user", "history", "seen", "rebate")
    # Twice the same model finds the same, and a price is part of the digest.
    twice = Router(
        (Route("funnel"),),
        blends={"both": {"towers": 1.0, "again": 0.5}},
        cascades={"funnel": replace(FUNNEL, retrieve="both")},
    )
    models = stages | {"again": stages["towers"]}
    other = package_router(twice, tmp_path / "twice", models=models, items=CATALOGUE)
    assert listed(LoadedModel(other)) == [movies[:4] for movies in expected]
    dearer = CATALOGUE.set_column(1, "price", pa.array([9.0] * 40))
    again = package_router(twice, tmp_path / "dearer", models=models, items=dearer)
    assert folder_digest(again) != folder_digest(other)


def test_what_is_not_available_takes_no_place_in_a_cascade(stages: dict[str, Path], tmp_path: Path) -> None:
    """R6: it is left out of the search, so that four are listed of four that are found; m30 to m39 are not items."""
    stock = Cascade("towers", "movie", rerank={"available": "in_stock"}, depth=4, k=4)
    router = Router((Route("stock"),), cascades={"stock": stock})
    models = {"towers": stages["towers"]}
    folder = package_router(router, tmp_path / "router", models=models, items=CATALOGUE.slice(0, 30).to_pandas())
    expected = [[movie for movie in row if movie in MOVIES[:30:2]][:4] for row in found(stages["towers"], 40)]
    assert listed(LoadedModel(folder)) == expected
    assert [len(row) for row in expected] == [4, 4, 0, 0]
    # A search has a length of its own, and leaves out more.
    search = Search("exact", 6, np.zeros(0, np.int64), {"towers": Search("exact", 40, np.arange(2, 12))})
    assert listed(LoadedModel(folder).with_search(search)) == [
        [movie for movie in row if movie in MOVIES[10:30:2]][:6] for row in found(stages["towers"], 100)
    ]


def test_a_candidate_that_cannot_be_ranked_fails_its_row(stages: dict[str, Path], tmp_path: Path) -> None:
    """Without a price a movie is NaN to a model that takes it, and comes last; another model falls back.

    The cascade's depth is more than all candidates, which are found where nobody asks for a number, too.
    """
    models = {"towers": stages["towers"], "prices": linear(tmp_path / "strict", "price", -1.0)}
    cascade = Cascade("towers", "movie", rank="prices", k=3)
    router = Router((Route("all"),), cascades={"all": cascade}, fallback=("towers",))
    unknown = CATALOGUE.slice(0, 39)
    strict = LoadedModel(package_router(router, tmp_path / "fallback", models=models, items=unknown.slice(1)))
    answers = pa.table(strict.score_arrow(VISITORS)).to_pylist()
    assert [row["model"] for row in answers] == ["towers", "towers", "towers", "all"]
    assert answers[2]["reason"].startswith(
        "no other rule applies; all cannot score it: candidate 'm39': column 'price' (double) has null or NaN"
    )
    alone = Router((Route("all"),), cascades={"all": cascade})
    model = LoadedModel(package_router(alone, tmp_path / "alone", models=models, items=unknown))
    assert list(model.row_errors(VISITORS.to_batches()[0])) == [0, 1, 2]
    with pytest.raises(ColumnError, match="price"):
        model.score(VISITORS)
    lenient = package_router(alone, tmp_path / "lenient", models=stages, items=unknown)
    assert listed(LoadedModel(lenient))[2] == ["m38", "m39"]


def test_candidates_are_integers_to_a_ranking_model_that_takes_no_strings(tmp_path: Path) -> None:
    """R9: lists hold tokens, and the ranking model was trained on numbers, which the table of items has as well."""
    towers = export_movies(tmp_path / "towers", scann=False, prefix="")
    watches = export_watches(tmp_path / "watches")
    stock = {"available": "in_stock"}
    cascade = Cascade("towers", "movie", rank="watches", rerank=stock, depth=12, k=4)
    router = Router((Route("funnel"),), cascades={"funnel": cascade})
    items = CATALOGUE.set_column(0, "movie", pa.array(range(40))).slice(0, 30)
    folder = package_router(router, tmp_path / "router", models={"towers": towers, "watches": watches}, items=items)
    visitors = VISITORS.set_column(2, "seen", pa.array([["1", "2"], None, [*map(str, range(38))], ["0"]]))
    answers = Predictor(folder).predict_rows(visitors.to_pylist())
    together = LoadedModel(folder).score_arrow(visitors)["candidates"].to_pylist()
    of_stock = [[movie for movie in row if int(movie) in range(0, 30, 2)][:12] for row in found(towers, 40, visitors)]
    for row, movies, answer, listed_ in zip(visitors.to_pylist(), of_stock, answers, together, strict=True):
        numbers = pa.array([int(movie) for movie in movies], pa.int64())
        scores = opened(watches).score(pa.table({"movie": numbers, "rebate": [row["rebate"]] * len(movies)}))
        best = [movies[place] for place in np.argsort(-scores["score"], kind="stable")][:4]
        assert [movie for movie in answer["candidates"] if movie] == best
        assert listed_ == answer["candidates"]
    assert [len(movies) for movies in of_stock] == [12, 12, 0, 12]


def test_a_candidate_that_is_no_integer_fails_its_row_where_the_ranking_model_takes_integers(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    models = {"towers": stages["towers"], "prices": linear(tmp_path / "numbers", "movie", 1.0)}
    cascade = Cascade("towers", "movie", rank="prices", depth=40, k=3)
    alone = Router((Route("all"),), cascades={"all": cascade})
    model = LoadedModel(package_router(alone, tmp_path / "alone", models=models))
    errors = model.row_errors(VISITORS.to_batches()[0])
    assert list(errors) == [0, 1, 2]
    expected = (
        r"candidate 'm\d+' is not a 64-bit integer in plain decimal digits, and the ranking model takes 'movie' as "
        r"integers; rank by a model that was trained with these tokens"
    )
    assert all(re.match(expected, message) for message in errors.values())
    with pytest.raises(ColumnError, match=expected):
        model.score(VISITORS)
    fallback = package_router(replace(alone, fallback=("towers",)), tmp_path / "fallback", models=models)
    assert LoadedModel(fallback).score(VISITORS)["model"].tolist() == ["towers", "towers", "towers", "all"]


def test_only_what_an_integer_is_written_as_is_one() -> None:
    ranking = Ranking("movie", pa.int64(), ())
    integers = ["0", "-7", "10", "9223372036854775807", "-9223372036854775808"]
    others = ["", "-0", "07", "+7", " 7", "7\n", "1_0", "7.0", "٣", "9223372036854775808", "-9223372036854775809", "m7"]
    lists = pa.array([integers, None, [], [None, *integers], *([*integers, other] for other in others)])
    assert list(ranking.row_errors(lists)) == list(range(4, 4 + len(others)))
    pairs = ranking.pairs(pa.record_batch({"candidates": lists.slice(0, 4)}))
    assert pairs.column("movie").to_pylist() == [*map(int, integers), None, *map(int, integers)]
    assert not Ranking("movie", pa.string(), ()).row_errors(lists)


def test_cascades_that_do_not_fit_their_models_or_items_are_refused(
    stages: dict[str, Path], models: dict[str, Path], tmp_path: Path
) -> None:
    def packaged(cascade: Cascade, items: Any = CATALOGUE, of: dict[str, Path] = stages) -> None:
        router = Router((Route("funnel"),), cascades={"funnel": cascade})
        package_router(router, tmp_path / "router", models=of, items=items)

    with pytest.raises(ModelDirectoryError, match="re-ranks by attributes of the items; give items"):
        packaged(FUNNEL, None)
    repeated = r"'movie' of items has 40 tokens more than once, \['m0', 'm1', 'm10', 'm11', 'm12'\]"
    for order in (range(40), range(39, -1, -1)):
        with pytest.raises(ColumnError, match=repeated):
            packaged(FUNNEL, pa.concat_tables([CATALOGUE.take(pa.array(order)), CATALOGUE]))
    with pytest.raises(ColumnError, match="items has the column 'genre' 0 times"):
        packaged(FUNNEL, CATALOGUE.drop(["genre"]))
    with pytest.raises(ColumnError, match="column 'price' has type string"):
        packaged(FUNNEL, CATALOGUE.set_column(1, "price", CATALOGUE["movie"]))
    with pytest.raises(ModelDirectoryError, match=r"'rate' is not a number of 'prices', which gives \{'score': "):
        packaged(Cascade("towers", "movie", rank="prices", output="rate"))
    with pytest.raises(ModelDirectoryError, match="'funnel' needs models that list candidates"):
        packaged(Cascade("content", "movie", rank="learned"), of=models)
    with pytest.raises(ModelDirectoryError, match="no cascade that reads them"):
        package_router(BY_AGE, tmp_path / "router", models=models, items=CATALOGUE)
    assert not (tmp_path / "router").exists()


def test_router_is_read_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(
        "routes:\n"
        "  - {model: content, column: born, younger_than_days: 30, nulls: match}\n"
        "  - {model: learned}\n"
        "as_of: today\n"
    )
    assert Router.from_yaml(file) == BY_AGE
    BY_AGE.save(tmp_path / "router.json")
    assert Router.from_yaml(tmp_path / "router.json") == BY_AGE
    router = Router((Route("funnel"),), cascades={"funnel": FUNNEL}, fusion="scores")
    router.save(tmp_path / "router.json")
    assert Router.from_yaml(tmp_path / "router.json") == router
    file.write_text("routes: [{modle: content}]")
    with pytest.raises(ScoringError, match=r"describes no router .*modle"):
        Router.from_yaml(file)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Router(()), "the last one, and no other, has to have none"),
        (lambda: Router((Route("a"), Route("b"))), "the last one, and no other, has to have none"),
        (lambda: Route("a", "born"), "has the column 'born' and 0 rules"),
        (lambda: Route("a", values=("x",)), "has the column None and 1 rules"),
        (lambda: Route("a", "age", values=(1,), below=3.0), "has the column 'age' and 2 rules"),
        (lambda: Route("a", "age", at_least=3.0, below=3.0), "takes no number: at_least 3, below 3"),
        (lambda: Route("a", "age", at_least="3"), "at_least '3' of the route to 'a' is not a number"),  # type: ignore[arg-type]
        (lambda: Route("a", "age", below=float("nan")), "below nan of the route to 'a' is not a number"),
        (lambda: Route("a", "born", values=("x", 1)), "have several types"),
        (lambda: Route("a", nulls="drop"), "nulls 'drop' of the route to 'a' is none of"),
        (lambda: Router((Route("a"),), time_zone="Mars/Base"), "time_zone 'Mars/Base' is unknown"),
        (lambda: Router((Route("a"),), blends={"b": {}}), r"the blends \['b'\] have no models"),
        (lambda: Router((Route("a"),), fusion="mean"), "fusion 'mean' is none of"),
        (lambda: Cascade("a", "id"), "has neither rank nor rerank"),
        (lambda: Cascade("a", "id", rank="b", k=600), "lists k 600 of depth 500 candidates"),
        (lambda: Cascade("a", "id", rerank={"at_most": 1}), "count categories; name their column"),
        (lambda: Cascade("a", "id", rerank={"genre": "x"}), r"has other names or types than the rules of .*'genre'"),
        (
            lambda: Router((Route("c"),), cascades={"c": Cascade("a", "id", rank="a")}),
            r"\['a'\] rank the candidates of a cascade, and cannot find or list any",
        ),
        (
            lambda: Router((Route("c"),), cascades={"c": Cascade("d", "id", rank="a"), "d": FUNNEL}),
            r"the cascades \['d'\] are stages of others",
        ),
        (
            lambda: Router((Route("c"),), cascades={"c": FUNNEL}, blends={"c": {"towers": 1.0}}),
            r"\['c'\] are blends and cascades",
        ),
    ],
)
def test_rules_that_leave_rows_or_contradict_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ScoringError, match=message):
        make()


def test_models_that_do_not_fit_the_router_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"names the models \['content', 'learned'\], and models has"):
        package_router(BY_AGE, tmp_path / "router", models={"content": models["content"]})
    other = package_model(
        {"coefficients": {"text": 2.0}}, tmp_path / "other", columns=["text"], outputs={"rate": "score"}
    )
    with pytest.raises(ModelDirectoryError, match=r"'learned' has .* give models with the same"):
        package_router(BY_AGE, tmp_path / "router", models=models | {"content": other})
    assert not (tmp_path / "router").exists()
