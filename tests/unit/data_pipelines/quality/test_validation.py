"""Planted problems are found, with column and value; sound data raises none (F10, L2)."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.features.kinds import Categorical, Feature, Label, MultiValued, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.quality.drift import measure_drift, stability_index
from mirrorspark.data_pipelines.quality.findings import Finding, Limits, Report, Severity
from mirrorspark.data_pipelines.quality.profile import DatasetProfile
from mirrorspark.data_pipelines.quality.profiling import SplitCounts, profile_columns
from mirrorspark.data_pipelines.quality.validation import validate

LATE = Label("late")
ROWS = 2_000


def spec_of(*features: Feature, label: Label = LATE, weight: str | None = None) -> FeatureSpec:
    return FeatureSpec(features, label, ("id",), weight=weight)


SPEC = spec_of(Numeric("x"), Categorical("c"))


def sound(seed: int, rows: int = ROWS, **changed: Any) -> pa.Table:
    generator = np.random.default_rng(seed)
    columns = {
        "id": np.arange(rows),
        "late": generator.integers(0, 2, rows),
        "x": generator.normal(10, 3, rows),
        "c": generator.choice(["red", "green", "blue"], rows, p=[0.5, 0.3, 0.2]),
    }
    return pa.table(columns | changed)


def tables(**changed: pa.Table) -> dict[str, pa.Table]:
    return {"train": sound(1), "validation": sound(2), "test": sound(3)} | changed


def judged(samples: dict[str, pa.Table], spec: FeatureSpec = SPEC, **others: Any) -> Report:
    return validate(profile_columns(samples, spec, **others), spec)


def only(report: Report, severity: Severity, check: str, column: str) -> Finding:
    """Return the one finding there is, which must be of this kind."""
    found = [(finding.severity, finding.check, finding.column) for finding in report.findings]
    assert found == [(severity, check, column)], [finding.sentence for finding in report.findings]
    return report.findings[0]


@pytest.mark.parametrize("seed", range(5))
def test_sound_data_is_quiet(seed: int) -> None:
    samples = {split: sound(10 * seed + n) for n, split in enumerate(("train", "validation", "test"))}
    former = profile_columns({"train": sound(99 + seed)}, SPEC)
    report = validate(profile_columns(samples, SPEC, reference=former), SPEC, former)
    assert report.findings == ()
    assert report.summary() == "nothing found"
    assert report.refusal() == ""


@pytest.mark.parametrize("rows", [30, 100, 300])
def test_small_samples_make_no_drift_by_chance(rows: int) -> None:
    # Without the bound of chance, two samples of 30 rows in eleven bins differ by more than 0.25 nearly always.
    for seed in range(10):
        former = profile_columns({"train": sound(seed, rows)}, SPEC)
        profile = profile_columns({"train": sound(50 + seed, rows)}, SPEC, reference=former)
        moved = [entry for entry in measure_drift(profile, former) if entry.excess >= Limits().drift]
        assert not moved


def test_stability_index_is_the_sum_over_bins() -> None:
    index, _ = stability_index((3_000_000, 7_000_000), (5_000_000, 5_000_000))
    assert index == pytest.approx((0.3 - 0.5) * math.log(0.3 / 0.5) + (0.7 - 0.5) * math.log(0.7 / 0.5), abs=1e-6)


def test_noise_of_the_stability_index_is_a_quantile_of_chi_squared() -> None:
    # The 99.9% quantile of chi-squared with 9 degrees of freedom is 27.877.
    _, noise = stability_index((10,) * 10, (10,) * 10)
    assert noise == pytest.approx(27.877 * (1 / 100 + 1 / 100), rel=0.01)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=1, max_size=12))
def test_stability_index_is_finite_and_not_below_zero(counts: list[tuple[int, int]]) -> None:
    one, other = (tuple(column) for column in zip(*counts, strict=True))
    index, noise = stability_index(one, other)
    assert 0 <= index < math.inf
    assert 0 <= noise < math.inf
    assert stability_index(one, one)[0] == 0


@pytest.mark.parametrize(("shift", "severity"), [(1.4, Severity.NOTE), (3.0, Severity.WARNING)])
def test_a_shifted_number_is_drift(shift: float, severity: Severity) -> None:
    former = profile_columns({"train": sound(5)}, SPEC)
    moved = {
        split: table.set_column(2, "x", pa.array(table["x"].to_numpy() + shift)) for split, table in tables().items()
    }
    report = validate(profile_columns(moved, SPEC, reference=former), SPEC, former)
    finding = only(report, severity, "drift", "x")
    assert "since the former dataset (stability index" in finding.sentence
    assert (report.drift[0].column, report.drift[0].against) == ("x", "reference")


def test_a_token_that_became_common_is_drift() -> None:
    former = profile_columns({"train": sound(5)}, SPEC)
    colours = np.random.default_rng(0).choice(["red", "green", "blue", "pink"], ROWS, p=[0.1, 0.2, 0.2, 0.5])
    profile = profile_columns({"train": sound(1, c=colours)}, SPEC, reference=former)
    found = [finding for finding in validate(profile, SPEC, former).findings if finding.check == "drift"]
    assert [(finding.column, finding.severity) for finding in found] == [("c", Severity.WARNING)]


def test_a_test_split_that_differs_is_noted() -> None:
    report = judged(tables(test=sound(3, c=np.array(["red", "blue"])[np.arange(ROWS) % 2])))
    finding = only(report, Severity.NOTE, "drift", "c")
    assert "'c' differs from the training rows in split 'test' (" in finding.sentence


def test_a_column_without_values_is_an_error() -> None:
    report = judged(tables(train=sound(1, x=pa.nulls(ROWS, pa.float64()))))
    assert "has no value in any of the 2,000 training rows" in report.errors[0].sentence
    assert report.refusal().startswith("validation found 1 error in the data: 'x' has no value in any of")


def test_a_column_that_a_later_split_lacks_is_an_error() -> None:
    report = judged(tables(test=sound(3, x=pa.nulls(ROWS, pa.float64()))))
    finding = report.errors[0]
    assert finding.column == "x"
    assert "has no value in any row of split 'test', but in 100% of the training rows" in finding.sentence


def test_a_column_that_is_missing_more_often_later_is_a_warning() -> None:
    holes = pa.array(np.random.default_rng(0).normal(10, 3, ROWS), mask=np.arange(ROWS) % 5 == 0)
    found = [finding for finding in judged(tables(validation=sound(2, x=holes))).findings if finding.check == "missing"]
    assert [finding.severity for finding in found] == [Severity.WARNING]
    assert "missing in 20.0% of split 'validation', but in 0% of the training rows" in found[0].sentence


def test_infinite_numbers_are_an_error() -> None:
    values = np.random.default_rng(0).normal(10, 3, ROWS)
    values[7] = np.inf
    finding = only(judged(tables(train=sound(1, x=values))), Severity.ERROR, "infinite", "x")
    assert "infinite in 1 of the sampled rows of split 'train'" in finding.sentence


def test_a_constant_column_is_a_warning_and_one_that_nearly_is_a_note() -> None:
    always = {split: sound(seed, c=["red"] * ROWS) for seed, split in enumerate(("train", "validation", "test"))}
    assert "is 'red' in every training row" in only(judged(always), Severity.WARNING, "constant", "c").sentence
    nearly = {
        split: sound(seed, c=["red"] * (ROWS - 4) + ["blue"] * 4)
        for seed, split in enumerate(("train", "validation", "test"))
    }
    assert "'red' in 99.8% of" in only(judged(nearly), Severity.NOTE, "constant", "c").sentence


def test_numbers_beyond_what_was_seen_are_a_warning() -> None:
    values = np.random.default_rng(0).normal(10, 3, ROWS)
    values[:100] = 1_000
    finding = only(judged(tables(test=sound(3, x=values))), Severity.WARNING, "range", "x")
    # A hundred of 2,000, and two that are a little below the training rows' lowest.
    assert "in 5.1% of split 'test'" in finding.sentence
    assert "to 1000;" in finding.sentence


def test_a_placeholder_among_numbers_is_a_note() -> None:
    values = np.random.default_rng(0).normal(10, 3, ROWS)
    values[0] = 999_999_999
    finding = only(judged(tables(train=sound(1, x=values))), Severity.NOTE, "range", "x")
    assert "has a largest value of 1e+09" in finding.sentence


def test_unseen_categories_are_a_warning_with_their_names() -> None:
    colours = np.random.default_rng(0).choice(["red", "green", "blue"], ROWS, p=[0.5, 0.3, 0.2]).astype(object)
    colours[:200] = "mauve"
    report = judged(tables(test=sound(3, c=colours.astype(str))))
    found = [finding for finding in report.findings if finding.check == "unseen"]
    assert [(finding.column, finding.severity) for finding in found] == [("c", Severity.WARNING)]
    assert "10.0% of the values of 'c' in split 'test'" in found[0].sentence
    assert "'mauve'" in found[0].sentence


def test_exact_counts_of_the_vocabulary_decide_where_there_are_some() -> None:
    counts = {
        split: SplitCounts(ROWS, tokens={"c": ROWS}, out_of_vocabulary={"c": unknown})
        for split, unknown in (("train", 20), ("validation", 30), ("test", 700))
    }
    finding = only(judged(tables(), counts=counts), Severity.WARNING, "unseen", "c")
    assert (
        "35.0% of the values of 'c' in split 'test' are not in its vocabulary; 1.0% would be usual" in finding.sentence
    )


def test_identifiers_that_never_repeat_are_as_new_in_one_split_as_in_another() -> None:
    samples = {
        split: sound(seed, c=[f"{split}-{n}" for n in range(ROWS)])
        for seed, split in enumerate(("train", "validation", "test"))
    }
    assert not [finding for finding in judged(samples).findings if finding.check == "unseen"]


def test_hashed_tokens_are_never_new() -> None:
    spec = spec_of(Numeric("x"), Categorical("c", hash_buckets=100))
    report = judged(tables(test=sound(3, c=["new"] * ROWS)), spec)
    assert not [finding for finding in report.findings if finding.check == "unseen"]


def planted(make: Any, *, seed: int = 0) -> dict[str, pa.Table]:
    samples = {}
    for number, split in enumerate(("train", "validation", "test")):
        generator = np.random.default_rng(seed + number)
        label = generator.integers(0, 2, ROWS)
        name, values = make(label, generator)
        samples[split] = sound(number, late=label, **{name: values})
    return samples


@pytest.mark.parametrize(
    "make",
    [
        lambda label, _: ("c", np.where(label == 1, "yes", "no")),
        lambda label, _: ("x", label.astype(float)),
        lambda label, _: ("x", 5.0 - label),
        lambda label, generator: ("x", label * 10 + generator.random(ROWS)),
        # Many values, each of which goes with one class.
        lambda label, generator: (
            "c",
            [f"{value}-{n}" for value, n in zip(label, generator.integers(0, 50, ROWS), strict=True)],
        ),
    ],
    ids=["words for classes", "the label", "its complement", "a threshold", "values of one class each"],
)
def test_a_column_made_of_the_label_is_an_error(make: Any) -> None:
    report = judged(planted(make))
    assert [finding.check for finding in report.errors] == ["label leak"]
    assert "take it out of the spec" in report.errors[0].sentence


@pytest.mark.parametrize(
    "make",
    [
        # A strong feature, right in 97 of 100 rows.
        lambda label, generator: ("c", np.where(generator.random(ROWS) < 0.97, label, 1 - label).astype(str)),
        # Values that repeat once or twice are often of one class by chance.
        lambda label, generator: ("c", generator.integers(0, ROWS, ROWS).astype(str)),
        lambda label, generator: ("x", label + generator.normal(0, 0.6, ROWS)),
    ],
    ids=["strong feature", "nearly unique values", "overlapping numbers"],
)
def test_a_strong_or_rarely_repeated_column_is_no_leak(make: Any) -> None:
    assert not judged(planted(make)).errors


def test_a_rare_class_is_no_reason_to_suspect_a_column() -> None:
    # One row in 200 is positive: guessing 0 always is right in 99.5% of the rows.
    samples = {
        split: sound(seed, 20_000, late=(np.random.default_rng(seed).random(20_000) < 0.005).astype(int))
        for seed, split in enumerate(("train", "validation", "test"))
    }
    assert not judged(samples).findings


def test_label_balance_is_judged_per_split() -> None:
    report = judged(tables(test=sound(3, late=(np.arange(ROWS) % 10 == 0).astype(int))))
    finding = next(finding for finding in report.findings if finding.check == "label balance")
    assert (finding.severity, finding.column) == (Severity.WARNING, "late")
    assert "in 10.0% of split 'test'" in finding.sentence or "in 90.0% of split 'test'" in finding.sentence


def test_a_label_of_one_class_is_an_error() -> None:
    report = judged(tables(validation=sound(2, late=[0] * ROWS)))
    assert "label 'late' is 0 in all 2,000 sampled rows of split 'validation'" in report.errors[0].sentence


def test_a_label_without_value_is_an_error_except_where_rows_may_have_none() -> None:
    holes = pa.array(np.arange(ROWS) % 2, mask=np.arange(ROWS) % 10 == 0)
    assert (
        "label 'late' is missing in 10.0% of split 'test'"
        in judged(tables(test=sound(3, late=holes))).errors[0].sentence
    )
    spec = spec_of(Numeric("x"), label=Label("late", "multi_label"))
    samples = tables(
        **{split: sound(1, late=[[], ["a"], ["b"], ["a"]] * 500) for split in ("train", "validation", "test")}
    )
    assert not judged(samples, spec).errors


def test_a_rare_class_is_a_warning() -> None:
    rare = {
        split: sound(seed, late=[1] + [0] * (ROWS - 1)) for seed, split in enumerate(("train", "validation", "test"))
    }
    finding = only(judged(rare), Severity.WARNING, "label balance", "late")
    assert "is 1 in less than 0.1% of the training rows (about 1)" in finding.sentence


def test_weights_below_zero_are_an_error() -> None:
    spec = spec_of(Numeric("x"), weight="importance")
    samples = {split: sound(1, importance=[1.0] * (ROWS - 1) + [-1.0]) for split in ("train", "validation", "test")}
    assert "weight 'importance' is as low as -1" in judged(samples, spec).errors[0].sentence


def test_a_column_of_the_spec_that_is_absent_is_an_error() -> None:
    spec = spec_of(Numeric("x"), Categorical("c"), MultiValued("basket", max_length=3))
    assert "column 'basket' of the spec is not in the table" in judged(tables(), spec).errors[0].sentence


def test_changes_of_the_schema_are_found() -> None:
    former = profile_columns(
        {"train": sound(5, x=["a"] * ROWS, gone=["b"] * ROWS)}, spec_of(Categorical("x"), Categorical("gone"))
    )
    report = validate(profile_columns(tables(), SPEC, reference=former), SPEC, former)
    assert {(finding.severity, finding.column) for finding in report.findings if finding.check == "schema"} == {
        (Severity.ERROR, "x"),
        (Severity.WARNING, "gone"),
        (Severity.NOTE, "c"),
    }
    assert "'x' was string in the former dataset and is double now" in report.errors[0].sentence


def test_findings_come_in_the_order_of_their_severity() -> None:
    report = judged(tables(train=sound(1, x=pa.nulls(ROWS, pa.float64()), c=["red"] * ROWS)))
    ranks = [list(Severity).index(finding.severity) for finding in report.findings]
    assert ranks == sorted(ranks)
    assert report.summary().startswith("1 error, ")


def test_a_split_without_rows_is_told() -> None:
    profile = profile_columns({"train": sound(1), "validation": sound(2)}, SPEC)
    assert "split 'test' has no rows" in only(validate(profile, SPEC), Severity.WARNING, "rows", "").sentence


def test_a_profile_that_was_stored_judges_like_a_fresh_one() -> None:
    former = profile_columns({"train": sound(5, c=["red"] * ROWS)}, SPEC)
    stored = DatasetProfile.from_dict(former.to_dict())
    profile = profile_columns(tables(), SPEC, reference=former)
    assert validate(profile, SPEC, stored) == validate(profile, SPEC, former)


def test_lists_may_be_empty_and_exclusions_may_be_absent() -> None:
    spec = FeatureSpec(
        (Categorical("c"), MultiValued("basket", max_length=3)), Label("c", "candidate"), ("id",), exclude="bought"
    )
    lists: list[list[str]] = [["a"], [], [], []] * (ROWS // 4)
    samples = {
        split: sound(seed, basket=lists, bought=pa.nulls(ROWS, pa.list_(pa.string())))
        for seed, split in enumerate(("train", "validation", "test"))
    }
    finding = only(judged(samples, spec), Severity.NOTE, "missing", "basket")
    assert "is empty in 75.0% of the training rows" in finding.sentence


def test_few_rows_to_choose_an_epoch_or_to_compare_by_are_told() -> None:
    """2 of 20 rows choose the best epoch by chance."""
    few = {"train": sound(1), "validation": sound(2).slice(0, 2), "test": sound(3).slice(0, 1)}
    report = validate(profile_columns(few, SPEC), SPEC)
    sentences = [finding.sentence for finding in report.findings if finding.check == "rows"]
    assert [finding.severity for finding in report.findings if finding.check == "rows"] == [Severity.WARNING] * 2
    assert "split 'validation' has 2 rows, so few that the choice of the best epoch is mostly chance" in sentences[0]
    assert "split 'test' has 1 row, so few that the comparison with a baseline is mostly chance" in sentences[1]
