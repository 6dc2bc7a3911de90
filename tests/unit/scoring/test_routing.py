"""Routers: rules choose the model of each row, and the folder scores like any model (R5, R8, R9)."""

import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input.inputs import Column
from mirrorspark.scoring.model.directory import ModelDirectory, ModelDirectoryError, folder_digest
from mirrorspark.scoring.model.loaded import LoadedModel
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.predictor import Predictor
from mirrorspark.scoring.routing.blend import blended, of_length
from mirrorspark.scoring.routing.decision import decide
from mirrorspark.scoring.routing.package import package_router
from mirrorspark.scoring.routing.router import Route, Router

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
    """R5: 23:30 in UTC is the next day in Berlin, for the row as for the time of the call."""
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
    """R9: what the weighted sums of 1 / (60 + place) say; lists have different lengths and empty ends."""
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


def test_values_choose_and_unknown_ones_go_on(models: dict[str, Path], tmp_path: Path) -> None:
    router = Router((Route("content", "shop", values=("de", "at")), Route("learned")))
    model = LoadedModel(package_router(router, tmp_path / "router", models=models))
    rows = ROWS.slice(0, 3).append_column("shop", pa.array(["de", "fr", None]))
    assert model.score(rows)["model"].tolist() == ["content", "learned", "learned"]
    with pytest.raises(ColumnError, match="column 'shop' has type int64, and the router compares it with"):
        ModelDirectory.open(tmp_path / "router").inputs.check(rows.set_column(4, "shop", pa.array([1, 2, 3])).schema)


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
        (lambda: Route("a", "born", values=("x", 1)), "have several types"),
        (lambda: Route("a", nulls="drop"), "nulls 'drop' of the route to 'a' is none of"),
        (lambda: Router((Route("a"),), time_zone="Mars/Base"), "time_zone 'Mars/Base' is unknown"),
        (lambda: Router((Route("a"),), blends={"b": {}}), r"the blends \['b'\] have no models"),
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
