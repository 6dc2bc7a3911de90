"""Traffic between versions: the file that divides it, and when a variant must stop (L8, E1)."""

import asyncio
import hashlib
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mirrorspark.lifecycle.experiments.definition import ExperimentError
from mirrorspark.lifecycle.experiments.exposures import EXPOSURE_COLUMNS, exposure
from mirrorspark.lifecycle.serve.live_checks import LiveChecks, Measured, Window, broken_check
from mirrorspark.lifecycle.serve.sources import Source
from mirrorspark.lifecycle.serve.traffic import Traffic, differences, scores_of
from mirrorspark.lifecycle.serve.traffic_settings import TrafficError, TrafficFile

CHECKS = LiveChecks(window=1000, min_requests=100, failures_at_most=0.02, p99_ms=20, score_change_at_most=0.05)
GOOD = Measured(requests=500, failures=0.0, p99_ms=8.0, score=0.3, score_error=0.01)
TRAFFIC = {
    "name": "late",
    "experiment": {"name": "canary", "weights": {"old": 90, "new": 10}},
    "models": {"old": "models:/late@champion", "new": "models:/late@challenger"},
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"failures": 0.02}, None),
        ({"failures": 0.03}, "3.0% of 500 requests failed, at most 2.0% may"),
        ({"failures": 1.0, "requests": 99}, None),
        ({"p99_ms": 21.0}, "99 % of 500 requests took up to 21.0 ms, at most 20 may be"),
        # Five standard errors of the difference, 0.014 each, are what chance explains.
        ({"score": 0.42}, None),
        ({"score": 0.43}, "the mean score is 0.43, and 0.3 of the control"),
        ({"score": math.nan, "score_error": math.inf}, "500 requests have no score that is a number"),
    ],
)
def test_a_variant_is_stopped_for_what_it_does_not_keep_beyond_chance(
    change: dict[str, float], reason: str | None
) -> None:
    found = broken_check(Measured(**{**vars(GOOD), **change}), GOOD, CHECKS)
    assert found is None if reason is None else (found or "").startswith(reason)


def test_what_the_control_does_not_keep_either_is_not_the_variants_fault() -> None:
    bad = Measured(**{**vars(GOOD), "failures": 0.5, "p99_ms": 90.0})
    assert broken_check(bad, GOOD, CHECKS)
    assert broken_check(bad, bad, CHECKS) is None


def test_equal_variants_are_stopped_by_chance_alone_and_a_planted_shift_is_found() -> None:
    random = np.random.default_rng(5)
    checks = LiveChecks(min_requests=200, score_change_at_most=0.0)

    def measured(shift: float) -> Measured:
        window = Window(checks.window)
        for score in random.beta(2, 5, 200) + shift:
            window.add(0.001, has_failed=False, scores=[float(score)])
        return window.measured()

    stopped = sum(broken_check(measured(0.0), measured(0.0), checks) is not None for _ in range(300))
    assert stopped == 0  # five deviations
    assert broken_check(measured(0.15), measured(0.0), checks)


def test_a_window_forgets_old_requests() -> None:
    window = Window(100)
    for number in range(300):
        window.add(0.5 if number < 200 else 0.001, has_failed=number < 200)
    assert (window.measured().requests, window.measured().failures) == (100, 0.0)
    assert window.measured().p99_ms == pytest.approx(1.0)


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


def _written(folder: Path, content: dict[str, object]) -> Path:
    (folder / "traffic.yaml").write_text(json.dumps(content))
    return folder / "traffic.yaml"


def traffic(folder: Path) -> Traffic:
    """Return traffic between two models without content."""
    checks = {"min_requests": 10, "window": 100}
    file = TrafficFile.load(_written(folder, TRAFFIC | {"checks": checks}))
    return Traffic(file, {name: Source(name, model("1", name)) for name in ("old", "new")})


def model(version: str, digest: str) -> Any:
    return SimpleNamespace(name="late", version=version, digest=digest)


def fail(traffic: Traffic) -> None:
    variant = traffic.variants["new"]
    for _ in range(20):
        variant.add(variant.source.model, 0.001, None)
    asyncio.run(traffic.check())


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
    # Whoever deletes the record lets the version answer, and its old failures do not stop it again.
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
