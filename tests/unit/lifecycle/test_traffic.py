"""Traffic between versions: the file that divides it, and when a variant must stop (L8, E1)."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mirrorspark.lifecycle.experiments.definition import ExperimentError
from mirrorspark.lifecycle.serve.live_checks import LiveChecks, Measured, Window, fault
from mirrorspark.lifecycle.serve.traffic import differences, scores_of
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
        # Twice the standard error of 0.01, times three, is what chance explains: 0.042.
        ({"score": 0.39}, None),
        ({"score": 0.40}, "the mean score is 0.4, and 0.3 of the control"),
        ({"score": math.nan, "score_error": math.inf}, None),
    ],
)
def test_a_variant_is_stopped_for_what_it_does_not_keep_beyond_chance(
    change: dict[str, float], reason: str | None
) -> None:
    found = fault(Measured(**{**vars(GOOD), **change}), GOOD, CHECKS)
    assert found is None if reason is None else (found or "").startswith(reason)


def test_equal_variants_are_stopped_by_chance_alone_and_a_planted_shift_is_found() -> None:
    random = np.random.default_rng(5)
    checks = LiveChecks(min_requests=200, score_change_at_most=0.0)

    def measured(shift: float) -> Measured:
        window = Window(checks.window)
        for score in random.beta(2, 5, 200) + shift:
            window.add(0.001, has_failed=False, scores=[float(score)])
        return window.measured()

    stopped = sum(fault(measured(0.0), measured(0.0), checks) is not None for _ in range(300))
    assert stopped <= 4  # three deviations: 0.8 of 300
    assert fault(measured(0.1), measured(0.0), checks)


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
