"""Traffic between versions: the file that divides it, and when a variant must stop (L8, E1)."""

import asyncio
import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.requests import Request

from mirrorspark.lifecycle.experiments.definition import ExperimentError
from mirrorspark.lifecycle.experiments.intervals import share_above_p_value
from mirrorspark.lifecycle.experiments.live.checks import LiveChecks, Requests, VariantComparison
from mirrorspark.lifecycle.experiments.live.settings import TrafficError, TrafficFile
from mirrorspark.lifecycle.experiments.live.traffic import ExperimentSplit
from mirrorspark.lifecycle.experiments.units.assignment import sign_unit
from mirrorspark.lifecycle.experiments.units.exposures import EXPOSURE_COLUMNS, exposure
from mirrorspark.serving.batching import BatchLimits
from mirrorspark.serving.errors import RequestError
from mirrorspark.serving.fields import Field
from mirrorspark.serving.repeats import Repeats
from mirrorspark.serving.rows import Rows
from mirrorspark.serving.servable import Outputs
from mirrorspark.serving.service import RequestLimits, Service
from mirrorspark.serving.sources import ServedSources, Source
from mirrorspark.serving.tensorflow_api import routes
from mirrorspark.serving.traffic_split import differences, scores_of

CHECKS = LiveChecks(window=1000, min_requests=100, failures_at_most=0.02, p99_ms=20, score_change_at_most=0.05)
TRAFFIC = {
    "name": "late",
    "experiment": {"name": "canary", "weights": {"old": 90, "new": 10}},
    "models": {"old": "models:/late@champion", "new": "models:/late@challenger"},
}


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        (Requests(500, failed=10, slow=5), None),
        (Requests(500, failed=15, slow=8), None),  # beyond both limits, as chance has it
        (Requests(500, failed=40), "8.0% of 500 requests failed, at most 2.0% may"),
        (Requests(99, failed=99, slow=99), None),
        (Requests(100, failed=100), "100.0% of 100 requests failed, at most 2.0% may"),
        (Requests(500, slow=25), "5.0% of 500 requests took longer than 20 ms, at most 1% may"),
        (Requests(1000, failed=55), "5.5% of 1000 requests failed, at most 2.0% may"),
    ],
)
def test_a_variant_is_stopped_for_what_it_does_not_keep(requests: Requests, reason: str | None) -> None:
    assert VariantComparison(1, requests, Requests(500, failed=10, slow=5)).broken(CHECKS) == reason
    # A limit that the control exceeds as well is not the variant's fault.
    assert VariantComparison(1, requests, Requests(500, failed=11, slow=6)).broken(CHECKS) is None


def test_the_p_value_of_a_share_is_the_inverse_of_the_mixed_likelihood_ratio() -> None:
    # Two events of two units, limit 1/2: the mean of (p / 0.5)² over p from 1/2 to 1 is 4 · 2 · 7/24.
    assert share_above_p_value(2, 2, 0.5) == pytest.approx(3 / 7)
    assert [share_above_p_value(0, 9, 0.0), share_above_p_value(1, 9, 0.0), share_above_p_value(9, 9, 1.0)] == [1, 0, 1]
    assert [share_above_p_value(1, 10**6, 0.5), share_above_p_value(10**6, 10**6, 0.01)] == [1, 0]


def looked_at(draws: Any, checks: LiveChecks, failed: Any = None, slow: Any = None) -> str | None:
    """Return why a variant is stopped, which is looked at after every 20 requests of each side."""
    comparison = VariantComparison()
    for number, (control, variant) in enumerate(draws):
        comparison.control.add([control])
        has_failed = failed is not None and failed[number]
        comparison.variant.add(None if has_failed else [variant], is_slow=slow is not None and slow[number])
        if number % 20 == 19 and (reason := comparison.broken(checks)):
            return reason
    return None


def test_a_variant_at_its_limits_is_almost_never_stopped_at_any_look_and_a_change_is_found_in_any_round() -> None:
    random = np.random.default_rng(5)
    checks = LiveChecks(window=500, min_requests=100, failures_at_most=0.05, p99_ms=20.0, score_change_at_most=0.0)
    equal = random.beta(2, 5, (300, 1500, 2))
    failed, slow = random.random((300, 1500)) < 0.05, random.random((300, 1500)) < 0.01
    stopped = sum(looked_at(*each) is not None for each in zip(equal, [checks] * 300, failed, slow, strict=True))
    assert stopped <= 6  # 3 by FALSE_STOPS; 7 would be a chance of 3 %
    for begin in (0, 1000):
        is_late = np.arange(1500) >= begin
        draws = equal[0] + np.array([0.0, 0.15]) * is_late[:, None]
        assert (looked_at(draws, checks) or "").startswith("the mean score is")
        often = is_late & (random.random(1500) < 0.2)
        assert "requests failed" in (looked_at(equal[0], checks, failed=often) or "")
        assert "took longer" in (looked_at(equal[0], checks, slow=often) or "")
    tolerant = LiveChecks(window=500, min_requests=100, score_change_at_most=0.1)
    assert looked_at(equal[0] + [0.0, 0.1], tolerant) is None
    assert looked_at(equal[0] + [0.0, 0.25], tolerant)
    assert looked_at(np.column_stack([equal[0, :, 0], np.full(1500, math.nan)]), checks) == (
        "100 requests have no score that is a number, and those of the control have"
    )
    assert looked_at(np.full((600, 2), 0.5), checks) is None


def test_the_first_output_of_numbers_is_the_score() -> None:
    lists = {"candidates": [["a"], ["b"]], "scores": [[0.2, 0.4], [0.5, 0.1]]}
    assert scores_of(lists) == pytest.approx([0.3, 0.3])
    assert scores_of({"name": ["a"]}) == []
    assert list(differences({"score": [0.5, 0.1]}, {"score": [0.25, 0.1]})) == [0.25, 0.0]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"models": {"old": "a"}}, r"models for \['old'\], and its experiment the variants \['new', 'old'\]"),
        ({"shadow": {}}, r"sets unknown fields \['shadow'\]"),
        ({"shadows": {"new": "a"}}, r"has \['new'\] as variants and as shadows"),
        ({"checks": {"failures_at_most": 2}}, "failures_at_most is 2"),
        ({"checks": {"min_requests": 0}}, "min_requests is 0"),
        ({"experiment": {"name": "canary"}}, "needs a name and weights"),
        ({"name": None}, "name"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, object], error: str) -> None:
    (tmp_path / "traffic.yaml").write_text(json.dumps(TRAFFIC | change))
    with pytest.raises((TrafficError, ExperimentError), match=error):
        TrafficFile.load(tmp_path / "traffic.yaml")


def test_an_experiment_may_have_a_file_of_its_own(tmp_path: Path) -> None:
    experiment = TrafficFile.load(_written(tmp_path, TRAFFIC)).experiment
    experiment.save(tmp_path / "canary.yaml")
    before = TrafficFile.load(_written(tmp_path, TRAFFIC | {"experiment": "canary.yaml"}))
    assert before.experiment == experiment
    experiment.reweighted({"old": 50, "new": 50}).save(tmp_path / "canary.yaml")
    assert TrafficFile.load(before.path).text != before.text


def test_a_model_that_fails_with_every_request_has_one_traceback_and_then_a_line_a_minute() -> None:
    times = iter([0.0, 1.0, 2.0, 61.0, 62.0, 90.0, 91.0, 92.0])
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    handler.addFilter(Repeats(clock=lambda: next(times)))
    logger = logging.Logger("server")
    logger.addHandler(handler)

    def fail(label: str, read: Callable[[str], object], text: str) -> None:
        try:
            read(text)
        except ValueError:
            logger.exception("%s has failed with a request", label)

    for text in "abcde":  # each error has another message
        fail("late/1", int, text)
    # Another version may fail for another reason at the same line.
    fail("late/2", int, "a")
    fail("late/2", int, "b")
    try:
        float("elsewhere")
    except ValueError:
        logger.exception("%s has failed with a request", "late/1")
    logger.error("not of an exception")
    assert [(record.getMessage(), record.exc_info is not None) for record in records] == [
        ("late/1 has failed with a request", True),
        ("late/1 has failed with a request (3 more of the same ValueError since it was last logged)", False),
        ("late/2 has failed with a request", True),
        ("late/1 has failed with a request", True),
        ("not of an exception", False),
    ]


def _written(folder: Path, content: dict[str, object]) -> Path:
    (folder / "traffic.yaml").write_text(json.dumps(content))
    return folder / "traffic.yaml"


def traffic(folder: Path, *, settings: Mapping[str, object] | None = None, **checks: float) -> ExperimentSplit:
    """Return traffic between two models without content."""
    checks = {"min_requests": 10, "window": 100} | checks
    file = TrafficFile.load(_written(folder, TRAFFIC | {"checks": checks} | (settings or {})))
    return ExperimentSplit(file, {name: Source(name, model("1", name)) for name in ("old", "new")})


def model(version: str, digest: str) -> Any:
    return SimpleNamespace(name="late", version=version, digest=digest)


def fail(traffic: ExperimentSplit) -> None:
    variant = traffic.variants["new"]
    for _ in range(20):
        traffic.add(variant, variant.source.model, 0.001, None)
    asyncio.run(traffic.check())


def test_scores_are_compared_over_the_time_of_the_same_two_versions(tmp_path: Path) -> None:
    one = traffic(tmp_path, score_change_at_most=0.1)

    def answer(name: str, score: float) -> None:
        for number in range(30):
            variant = one.variants[name]
            one.add(variant, variant.source.model, 0.001, {"score": [score + number % 2 * 0.01]})

    answer("new", 0.9)
    one.variants["old"].source.model = model("3", "another champion")
    answer("old", 0.2)
    asyncio.run(one.check())
    assert not one.is_stopped(one.variants["new"])  # its scores next to the former champion do not count
    answer("new", 0.9)
    asyncio.run(one.check())
    assert one.is_stopped(one.variants["new"])


def test_a_stopped_version_stays_stopped_in_all_processes_and_the_next_version_may_answer(tmp_path: Path) -> None:
    one, other = traffic(tmp_path), traffic(tmp_path)
    fail(one)
    variant = one.variants["new"]
    assert one.is_stopped(variant)
    assert {one.variant_of(f"user-{number}") for number in range(50)} <= {None, one.variants["old"]}
    other.look_at_files()
    assert other.is_stopped(other.variants["new"])
    assert traffic(tmp_path).is_stopped(variant)
    variant.source.model = model("2", "the next")
    asyncio.run(one.check())  # the former version's failures are not the next one's
    assert not one.is_stopped(variant)
    # Deleting the record lets the version answer again, and its old failures do not stop it again.
    (tmp_path / "traffic.stopped.json").unlink()
    other.look_at_files()
    assert not other.is_stopped(other.variants["new"])


def test_a_variant_is_stopped_also_where_that_cannot_be_written_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "traffic.stopped.json.lock").mkdir()
    one = traffic(tmp_path)
    fail(one)
    one.look_at_files()
    assert one.is_stopped(one.variants["new"])
    assert "could not be written down for other processes" in caplog.text


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", b"\xff"])
def test_a_damaged_record_of_stopped_versions_ends_no_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | bytes
) -> None:
    one = traffic(tmp_path)
    (tmp_path / "traffic.stopped.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    one.look_at_files()
    assert "the traffic of late stays as it is" in caplog.text


def test_weights_change_while_it_answers_and_other_models_need_a_new_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = traffic(tmp_path)
    changed = TRAFFIC | {
        "experiment": {"name": "canary", "weights": {"old": 50, "new": 50}},
        "checks": {"window": 100, "min_requests": 9},
    }
    _written(tmp_path, changed)
    one.look_at_files()
    assert one.experiment.shares["new"] == 0.5
    _written(tmp_path, changed | {"models": {"old": "a", "new": "b"}})
    one.look_at_files()
    one.look_at_files()
    assert caplog.text.count("has another models than before; start the server anew") == 1


def test_an_exposure_is_the_event_that_spark_logs(tmp_path: Path) -> None:
    event = exposure("user-1", traffic(tmp_path).experiment, "new", "late/1", datetime(2026, 1, 31, 5, 0, 0, 7, UTC))
    assert list(event) == list(EXPOSURE_COLUMNS)
    text = f"canary:user-1:{int(datetime(2026, 1, 31, 5, tzinfo=UTC).timestamp()) * 1_000_000 + 7}"
    assert (event["event_id"], event["weight"]) == (hashlib.sha256(text.encode()).hexdigest(), 0.1)


KEY = "a key of 16 characters or more"


def test_a_unit_is_signed_by_whoever_knows_the_key(tmp_path: Path) -> None:
    (tmp_path / "unit.key").write_text(f"{KEY}\n")
    one = traffic(tmp_path, settings={"unit_key_file": "unit.key"})
    for unit in ("user-1", "a.b", "ü", ""):
        assert one.unit_of(sign_unit(unit, KEY)) == unit
    # By hand: printf user-1 | openssl dgst -sha256 -hmac "a key of 16 characters or more"
    assert sign_unit("user-1", KEY) == "user-1.e01b8049c8d37c9c8d43615b1d542f192836454a20e139139b0a5adef3cbd6df"
    for text in ("user-1", "", ".", "user-2" + sign_unit("user-1", KEY)[6:], sign_unit("user-1", KEY + "s")):
        with pytest.raises(RequestError, match="has no unit that is signed with this server's key"):
            one.unit_of(text)
    assert one.trusts_callers
    assert not traffic(tmp_path).trusts_callers
    assert traffic(tmp_path).unit_of("user-1") == "user-1"
    (tmp_path / "unit.key").write_text("short")
    with pytest.raises(TrafficError, match="has a key of 5 characters; write 16 or more"):
        traffic(tmp_path, settings={"unit_key_file": "unit.key"})


class Scripted:
    """A servable whose answer to a row is the row's own: a score, or the status of an error."""

    inputs = outputs = (Field("x", "double"),)
    example = None
    columns, labels, task, catalogues = ("x",), {}, None, {}  # type: ignore[var-annotated]

    def __init__(self, version: str, statuses: Mapping[float, int]) -> None:
        self.name, self.version, self.digest, self._statuses = "late", version, version, statuses

    def compute(self, requests: Sequence[Rows]) -> list[Outputs | Exception]:
        return [self._answer(one.columns["x"][0]) for one in requests]

    def warm_up(self, rows: Mapping[str, Sequence[Any]] | None = None) -> bool:
        return True

    def _answer(self, x: float) -> Outputs | Exception:
        status = self._statuses.get(x)
        if status is None:
            return {"x": [x]}
        return RuntimeError("of the model") if status == 500 else RequestError(status, "of the row")


# Values on which the two models differ: refused by the variant alone, an error of its code, an error of both.
REFUSED, FAILS, FAILS_BOTH, ODD_SCORE = 1.0, 2.0, 3.0, 1e9


@pytest.mark.parametrize(
    ("settings", "tokens", "stopped_by"),
    [
        ({}, False, {FAILS}),
        ({}, True, {REFUSED, FAILS, ODD_SCORE}),
        ({"trusts_callers": True}, False, {REFUSED, FAILS, ODD_SCORE}),
        ({"unit_key_file": "unit.key"}, False, {REFUSED, FAILS, ODD_SCORE}),
    ],
)
def test_whoever_may_choose_units_stops_a_variant_by_errors_of_its_own_code_alone(
    tmp_path: Path, settings: dict[str, object], tokens: bool, stopped_by: set[float]
) -> None:
    (tmp_path / "unit.key").write_text(KEY)
    sign = (lambda unit: sign_unit(unit, KEY)) if "unit_key_file" in settings else (lambda unit: unit)
    stopped = set()
    for row in (REFUSED, FAILS, ODD_SCORE, FAILS_BOTH):
        folder = tmp_path / str(row)
        folder.mkdir()
        (folder / "unit.key").write_text(KEY)
        one = traffic(folder, settings=settings, score_change_at_most=1.0)
        one.variants["old"].source.model = Scripted("1", {FAILS_BOTH: 500})
        one.variants["new"].source.model = Scripted("2", {REFUSED: 400, FAILS: 500, FAILS_BOTH: 500})
        units = {
            name: [u for u in map(str, range(600)) if one.variant_of(u) is one.variants[name]]
            for name in ("old", "new")
        }
        sources = ServedSources([one.variants["old"].source])
        service = Service(sources, RequestLimits(), BatchLimits(), traffics={"late": one}, has_tokens=tokens)
        asked = [(sign(unit), 0.0) for unit in units["old"][:40]] + [(sign(unit), row) for unit in units["new"][:40]]
        statuses = asyncio.run(_statuses(service, one, asked))
        assert set(statuses) <= {200, 500}
        assert (500 in statuses) == (row == FAILS_BOTH)
        if one.is_stopped(one.variants["new"]):
            stopped.add(row)
    assert stopped == stopped_by


async def _statuses(service: Service, one: ExperimentSplit, asked: Sequence[tuple[str, float]]) -> list[int]:
    predict = next(route for route in routes(service) if route.path == "/v1/models/{name:str}:predict")
    batches = asyncio.create_task(service.batcher.run())
    statuses = []
    for unit, x in asked:
        body = json.dumps({"instances": [x]}).encode()
        head = {"type": "http", "method": "POST", "path": "/", "path_params": {"name": "late"}, "query_string": b""}

        async def receive(body: bytes = body) -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        request = Request({**head, "headers": [(b"x-unit-id", unit.encode())]}, receive)
        statuses.append((await predict.endpoint(request)).status_code)
    await one.check()
    batches.cancel()
    return statuses
