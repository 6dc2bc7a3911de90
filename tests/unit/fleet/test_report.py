"""M15, M16: the figures of a run's report, worked by hand, and its page."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mirrorspark.fleet.bins import BINS, Distribution
from mirrorspark.fleet.coefficients import fleet_from_coefficients
from mirrorspark.fleet.runs.kept import RunRecords
from mirrorspark.fleet.runs.plan import RunPlan, Share, Step
from mirrorspark.fleet.runs.report.page import report_page
from mirrorspark.fleet.runs.report.report import FleetReport, report_of
from mirrorspark.scoring.errors import ScoringError

FIRST: Mapping[str, Any] = {"microbatch": 0, "attempt": 1, "outcome": "done", "began": 100.0, "seconds": 5.0}
TIMES = {"tasks": 3, "task_seconds": 8.0, "read_seconds": 1.0, "score_seconds": 4.0, "write_seconds": 2.5}
TIMES |= {"slowest_seconds": 4.0, "median_seconds": 2.0, "bytes": 3_000}
UNMEASURED = {"model_seconds": ""}


def records() -> RunRecords:
    """Return a run of two models, one with a term and one with three, on 1,000 and 500 rows."""
    terms = [("small", "x"), *(("large", column) for column in "xyz")]
    frame = pd.DataFrame(terms, columns=["model", "column"]).assign(coefficient=1.0)
    steps = (Step("spring", 0, {"small": "a", "large": "b"}),)
    shares = (Share(0, 1_000, (2, 2, 1)), Share(5, 500, (3,)))
    plan = RunPlan("fleet-1", "abc", (), ("id",), "wide", ("Rank",), "", 0.1, steps, shares, (), ())
    failed = dict.fromkeys(TIMES, 0) | UNMEASURED | {"microbatch": 1, "attempt": 1, "outcome": "failed"}
    failed |= {"began": 103.0, "seconds": 17.0}  # at the same time as the first one
    resumed = failed | {"attempt": 2, "began": 1_000.0, "seconds": 10.0}
    # The first one is published, whatever a driver has entered later; the second is not.
    rows = [{"number": 0, "state": "waiting"}, {"number": 1, "state": "failed"}]
    errors = [{"model": "large", "stage": "score", "message": "<b>division by zero</b>"}]
    return RunRecords(
        "scores",
        "ledger.db",
        plan,
        fleet_from_coefficients(frame),
        rows,
        [FIRST | TIMES | {"model_seconds": "[3.0, 0.5]"}, failed, resumed],
        errors,
        {0: {"failed": []}},
    )


def ranked(counts: list[int], rows: int) -> Distribution:
    found = np.zeros(BINS, np.int64)
    found[1 : len(counts) + 1] = counts
    return Distribution("Rank", rows, found)


@pytest.fixture(scope="module")
def report() -> FleetReport:
    distributions = {"small": ranked([100, 200, 700], 1_000), "large": ranked([], 1_000)}
    former = {"small": ranked([100, 200, 700], 1_000), "large": ranked([500, 250, 250], 1_000)}
    return report_of(records(), distributions, ("last week", former), price_per_core_hour=3.6)


def test_seconds_and_cost_are_those_of_the_tasks_that_have_published(report: FleetReport) -> None:
    totals = report.totals
    # From 100 to 120 and, when it was resumed, from 1,000 to 1,010.
    assert (totals["inferences"], totals["task_seconds"], totals["wall_seconds"]) == (2_000, 8, 30)
    assert (totals["inferences_per_core_second"], totals["core_seconds_per_million"]) == (250, 4_000)
    assert (totals["cost"], totals["cost_per_million"]) == pytest.approx((0.008, 4.0))
    assert (totals["skew_median"], totals["skew_largest"], totals["bytes_per_inference"]) == (2, 2, 1.5)
    assert (totals["microbatches"], totals["microbatches_done"], totals["attempts_not_done"]) == (2, 1, 2)
    first, second = report.microbatches.to_pylist()
    assert (first["inferences_per_core_second"], first["skew"], first["attempts"]) == (250, 2, 1)
    assert (second["state"], second["task_seconds"], second["skew"]) == ("failed", None, None)


def test_a_model_costs_its_seconds_of_scoring_and_its_share_of_all_others(report: FleetReport) -> None:
    small, large = report.models.to_pylist()
    # Each has half of the 4.5 seconds in which no model was computed.
    assert (small["core_seconds"], large["core_seconds"]) == pytest.approx((3 + 2.25, 0.5 + 2.25))
    assert small["core_seconds_from"] == large["core_seconds_from"] == "measured"
    assert report.totals["models_estimated"] == 0
    assert small["core_seconds_per_million"] == pytest.approx(small["core_seconds"] * 1_000)
    assert small["cost_per_million"] == pytest.approx(small["core_seconds"])
    assert (small["nulls"], small["p10"], small["median"], small["p90"]) == (0, 1, 3, 3)
    assert (small["state"], small["drift"], small["drifted"]) == ("sound", 0, "")
    assert (large["nulls"], large["median"], large["drifted"]) == (1_000, None, "large")
    assert large["problem"] == "score: <b>division by zero</b>"


def test_seconds_that_were_not_measured_are_estimated_by_terms_and_marked() -> None:
    found = records()
    first, failed, resumed = map(dict, found.attempts)
    second = resumed | TIMES | {"outcome": "done", "model_seconds": "[1.0, 3.0]"}
    for attempts in ([first | UNMEASURED], [first | UNMEASURED, second], [first, second | UNMEASURED]):
        report = report_of(replace(found, attempts=attempts), {})
        assert report.models["core_seconds_from"].to_pylist() == ["estimated"] * 2
        assert report.totals["models_estimated"] == 2
        assert "The core-seconds of 2 models are estimated, at least in part," in report_page(report)
    # Each has half of the 4 seconds that were not scoring; of the 4 that were, 2 / 6 and 4 / 6.
    estimated = np.array([2 + 4 * 2 / 6, 2 + 4 * 4 / 6])
    whole = report_of(replace(found, attempts=[first | UNMEASURED]), {})
    assert whole.models["core_seconds"].to_pylist() == pytest.approx(estimated)
    partly = report_of(replace(found, attempts=[first | UNMEASURED, second]), {})
    assert partly.models["core_seconds"].to_pylist() == pytest.approx(estimated + np.array([1 + 2, 3 + 2]))
    none = report_of(replace(found, attempts=[failed]), {})
    assert none.models["core_seconds_from"].to_pylist() == [None, None]
    assert "are estimated" not in report_page(none)


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(report: FleetReport) -> None:
    page = report_page(report)
    assert "&lt;b&gt;division by zero&lt;/b&gt;" in page
    assert "<b>division" not in page
    assert all(text in page for text in ("compared with last week", "1 of 2 models have drifted", "cost per million"))
    assert "are estimated" not in page
    assert "cost" not in report_page(report_of(records(), {}))


def test_models_that_failed_are_known_by_the_manifests_of_a_run_whose_ledger_is_lost() -> None:
    failed = [{"model": f"m{number}", "stage": "score", "message": "too long"} for number in range(250)]
    found = records()
    steps = (Step("spring", 0, dict.fromkeys(("sound", *(one["model"] for one in failed)), "")),)
    terms = pd.DataFrame({"model": [*steps[0].digests], "column": "x", "coefficient": 1.0})
    lost = replace(
        found,
        plan=replace(found.plan, steps=steps),
        fleet=fleet_from_coefficients(terms),
        microbatches=(),
        attempts=(),
        errors=(),
        manifests={0: {"failed": failed}},
    )
    report = report_of(lost, {})
    assert (report.totals["models_failed"], report.totals["microbatches_done"]) == (250, 1)
    assert {row["model"]: row["problem"] for row in report.models.to_pylist()}["m7"] == "score: too long"
    assert "200 of 250; report_models.parquet has all" in report_page(report)


def test_a_price_below_zero_is_refused() -> None:
    with pytest.raises(ScoringError, match="price_per_core_hour -1 is below 0"):
        report_of(records(), {}, price_per_core_hour=-1)
