"""The truth table of the gate."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from mirrorspark.lifecycle.gate.decide import GateFinding, decide, failed
from mirrorspark.lifecycle.gate.facts import Facts
from mirrorspark.lifecycle.gate.thresholds import Gap, Gates, Threshold
from mirrorspark.scoring.parity import parity
from tests.unit.lifecycle.gate_facts import facts_of, slice_of

NO_SCHEMA = Gates(same_schema=False)


def findings(facts: Facts, *thresholds: Threshold) -> dict[str, str]:
    """Return the outcome by slice of the findings about metrics."""
    found = decide(facts, Gates(thresholds, same_schema=False))
    return {one.slice: one.outcome for one in found if one.metric}


def outcome_of(gate: str, facts: Facts, gates: Gates) -> GateFinding:
    [found] = [one for one in decide(facts, gates) if one.gate == gate]
    return found


def test_absolute_bounds() -> None:
    """All combinations of value, examples, interval and its width, side of the bound, and kind of slice."""
    cases = itertools.product(
        (0.69, 0.7, 0.71, math.nan),
        (99, 100),
        ("ignore", "must_pass", "may_pass"),
        (math.nan, 0.005, 0.02),
        (True, False),
        (True, False),
    )
    for value, examples, interval, spread, is_least, is_overall in cases:
        own = slice_of(value, examples=examples, spread=spread)
        if not is_overall:
            own = replace(own, slicing="carrier", value="AA")
        bound = {"at_least": 0.7} if is_least else {"at_most": 0.7}
        threshold = Threshold("auc", **bound, slices=("all",), interval=interval)  # type: ignore[arg-type]
        others = () if is_overall else (slice_of(0.7),)

        found = findings(facts_of(*others, own), threshold)[own.name]

        # Reckoned anew: the distance to the bound on the side that passes, of the end of the interval that counts.
        margin = value - 0.7 if is_least else 0.7 - value
        reach = {"ignore": 0.0, "must_pass": -spread, "may_pass": spread}[interval]
        if math.isnan(reach):
            reach = -math.inf if interval == "must_pass" else 0.0
        if examples < 100:
            expected = "skipped"
        elif math.isnan(value):
            expected = "failed" if is_overall else "skipped"
        else:
            expected = "passed" if margin + reach >= -1e-12 else "failed"
        assert found == expected, (value, examples, interval, spread, is_least, is_overall)


GAINS = {
    # metric, candidate, champion: gain in the direction of the metric
    ("auc", 0.80, 0.79): 0.01,
    ("auc", 0.79, 0.80): -0.01,
    ("log_loss", 0.40, 0.41): 0.01,
    ("log_loss", 0.41, 0.40): -0.01,
    ("auc", 0.80, 0.80): 0.0,
}


def test_gains_over_the_champion() -> None:
    spread = 0.004
    for case, bound, is_share, interval in itertools.product(
        GAINS, (-0.02, -0.005, 0.0, 0.005), (True, False), ("ignore", "must_pass", "may_pass")
    ):
        metric, value, champion = case
        facts = facts_of(slice_of(value, champion, metric=metric, spread=spread))
        which = {"gain_share_at_least": bound} if is_share else {"gain_at_least": bound}

        found = findings(facts, Threshold(metric, **which, interval=interval))["overall"]  # type: ignore[arg-type]

        scale = 1 / champion if is_share else 1.0
        reach = {"ignore": 0.0, "must_pass": -spread, "may_pass": spread}[interval]
        gain = (value - champion) * (-1 if metric == "log_loss" else 1)
        assert gain == pytest.approx(GAINS[case])
        assert found == ("passed" if (gain + reach) * scale >= bound else "failed"), (case, bound, is_share, interval)


def test_a_gain_without_a_champion_is_said_and_blocks_nothing() -> None:
    [found] = [
        one for one in decide(facts_of(slice_of(0.8)), Gates((Threshold("auc", gain_at_least=0.0),))) if one.metric
    ]
    assert (found.outcome, found.words) == ("skipped", "auc has no champion to be compared with")


def test_a_small_slice_is_said_and_blocks_nothing() -> None:
    small = slice_of(0.1, slicing="carrier", name="HA", examples=12)
    found = decide(facts_of(slice_of(0.8), small), Gates((Threshold("auc", at_least=0.7, slices=("all",)),)))

    [of_small] = [one for one in found if one.slice == "carrier = HA"]
    assert of_small.outcome == "skipped"
    assert of_small.words == "carrier = HA has 12 examples, fewer than 100: not judged"
    assert failed(found) == ()


def test_a_regression_in_one_slice_blocks() -> None:
    slices = [slice_of(0.80, 0.79)] + [
        slice_of(value, 0.79, slicing="carrier", name=name)
        for name, value in (("AA", 0.81), ("B6", 0.74), ("UA", 0.80))
    ]
    gates = Gates((Threshold("auc", gain_at_least=-0.01, slices=("carrier",)),), same_schema=False)

    [blocking] = failed(decide(facts_of(*slices), gates))
    assert blocking.slice == "carrier = B6"
    assert blocking.words == "gain of auc in carrier = B6 is -0.05, at least -0.01 is asked for"


def test_a_gate_that_judges_nothing_blocks() -> None:
    small = slice_of(0.9, slicing="carrier", name="HA", examples=12)
    gates = Gates((Threshold("auc", at_least=0.7, slices=("carrier",)),), same_schema=False)

    [blocking] = failed(decide(facts_of(slice_of(0.8), small), gates))
    assert blocking.words == "auc was judged in no slice of carrier"


def test_a_metric_that_is_not_there_blocks() -> None:
    [blocking] = failed(decide(facts_of(), Gates((Threshold("aucc", at_least=0.7),), same_schema=False)))
    assert blocking.words == "there is no metric aucc in overall, only auc"


@pytest.mark.parametrize(("at_most", "outcome"), [(0.1, "failed"), (0.11, "passed")])
def test_gaps_between_slices(at_most: float, outcome: str) -> None:
    slices = [slice_of(0.8)] + [
        slice_of(value, slicing="sex", name=name, examples=examples)
        for name, value, examples in (("f", 0.7, 500), ("m", 0.805, 500), ("x", 0.1, 5))
    ]
    found = outcome_of("gap", facts_of(*slices), replace(NO_SCHEMA, gaps=(Gap("auc", "sex", at_most),)))

    assert found.outcome == outcome
    assert found.value == pytest.approx(0.105)
    assert "0.7 in sex = f and 0.805 in sex = m" in found.words


def test_a_gap_of_nothing_names_two_slices() -> None:
    slices = [slice_of(0.8), slice_of(0.7, slicing="sex", name="f"), slice_of(0.7, slicing="sex", name="m")]
    found = outcome_of("gap", facts_of(*slices), replace(NO_SCHEMA, gaps=(Gap("auc", "sex", 0.1),)))
    assert "0.7 in sex = f and 0.7 in sex = m, a gap of 0" in found.words


def test_a_gap_with_one_slice_blocks() -> None:
    found = outcome_of("gap", facts_of(), replace(NO_SCHEMA, gaps=(Gap("auc", "sex", 0.1),)))
    assert (found.outcome, found.words) == ("failed", "sex has 0 slices with enough examples and auc, fewer than two")


def test_one_outlier_blocks_though_the_99th_percentile_passes() -> None:
    expected = np.linspace(0.0, 1.0, 1000)
    actual = expected.copy()
    actual[500] += 7e-3
    report = parity(expected, actual, threshold=None)
    assert report.p99 <= report.tolerance

    found = outcome_of("parity", facts_of(parity={"parity": report}), NO_SCHEMA)

    assert found.outcome == "failed"
    assert "the largest of 1,000 differences is 7.000e-03" in found.words
    assert "the worst row is row=500" in found.words
    same = outcome_of("parity", facts_of(parity={"parity": parity(expected, expected)}), NO_SCHEMA)
    assert same.outcome == "passed"


PLAIN = {
    "parity": ({}, replace(NO_SCHEMA, parity=True), "failed"),
    "latency": ({"latency_p99_ms": 9.0}, replace(NO_SCHEMA, latency_p99_ms=10.0), "passed"),
    "latency ": ({"latency_p99_ms": 11.0}, replace(NO_SCHEMA, latency_p99_ms=10.0), "failed"),
    "latency  ": ({}, replace(NO_SCHEMA, latency_p99_ms=10.0), "failed"),
    "size": ({"model_bytes": 9_000_000}, replace(NO_SCHEMA, model_megabytes=9.0), "passed"),
    "size ": ({"model_bytes": 9_000_001}, replace(NO_SCHEMA, model_megabytes=9.0), "failed"),
    "schema": ({"schema_changes": ()}, Gates(), "passed"),
    "schema ": ({"schema_changes": ("the candidate lacks the input dest (string)",)}, Gates(), "failed"),
    "schema  ": ({"schema_changes": None}, Gates(), "skipped"),
}


@pytest.mark.parametrize("case", PLAIN)
def test_gates_of_the_model_itself(case: str) -> None:
    facts, gates, outcome = PLAIN[case]
    assert outcome_of(case.strip(), facts_of(**facts), gates).outcome == outcome


@pytest.mark.parametrize(
    ("examples", "invalid", "outcome"), [(1000, 0, "passed"), (1000, 1, "failed"), (99, 0, "failed")]
)
def test_every_row_needs_a_score_and_the_table_enough_rows(examples: int, invalid: int, outcome: str) -> None:
    facts = facts_of(slice_of(0.8, examples=examples, invalid=invalid))
    assert outcome_of("scores", facts, NO_SCHEMA).outcome == outcome


def test_one_failed_gate_of_any_kind_blocks() -> None:
    """Every combination of passed and failed gates: the candidate passes only if all do."""
    for auc, latency, size, schema in itertools.product(
        (0.6, 0.8), (5.0, 50.0), (1_000, 9_000_000), ((), ("changed",))
    ):
        facts = facts_of(slice_of(auc), latency_p99_ms=latency, model_bytes=size, schema_changes=schema)
        gates = Gates((Threshold("auc", at_least=0.7),), latency_p99_ms=10.0, model_megabytes=1.0)
        bad = (auc < 0.7) + (latency > 10) + (size > 1e6) + bool(schema)
        assert len(failed(decide(facts, gates))) == bad


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "auc"}, "has no bound"),
        ({"metric": "auc", "at_least": math.nan}, "is NaN"),
        ({"metric": "auc", "at_least": 0.9, "at_most": 0.8}, "no value can be both"),
        (
            {"metric": "bias", "gain_at_least": 0.0},
            "'bias' has no better direction, so it has no gain; give at_least and at_most, or higher_is_better",
        ),
        ({"metric": "base_rate", "gain_at_least": 0.0}, "has no better direction"),
        ({"metric": "auc", "at_least": 0.9, "slices": "carrier"}, "give a tuple"),
        ({"metric": "auc", "at_least": 0.9, "interval": "whole"}, "^interval 'whole' is unknown; use one of"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Threshold(**fields)  # type: ignore[arg-type]


def test_a_metric_of_ones_own_has_the_direction_that_is_given() -> None:
    facts = facts_of(slice_of(0.7, 0.8, metric="cost"))
    for higher, outcome in ((True, "failed"), (False, "passed")):
        threshold = Threshold("cost", gain_at_least=0.0, higher_is_better=higher)
        assert findings(facts, threshold) == {"overall": outcome}
    assert findings(facts, Threshold("cost", at_least=0.7, at_most=0.7)) == {"overall": "passed"}


def test_gates_need_an_example() -> None:
    assert Gates(min_examples=1).min_examples == 1
    with pytest.raises(ValueError, match="min_examples is 0; use one or more"):
        Gates(min_examples=0)


def test_gates_name_slicings_that_exist() -> None:
    gates = Gates((Threshold("auc", at_least=0.5, slices=("carier",)),), (Gap("auc", "sex", 0.1),))
    with pytest.raises(ValueError, match=r"name the slicings \['carier', 'sex'\]"):
        gates.check_slicings(("carrier",))
