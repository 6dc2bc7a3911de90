"""Metrics of slices from sums that merge: equal to scikit-learn's, whatever the partitioning."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from mirrorspark.evaluation.metrics import multi_class_metrics, multi_label_metrics, regression_metrics
from mirrorspark.lifecycle.gate import metric_sums
from mirrorspark.lifecycle.gate.facts import SliceFacts, slice_facts
from mirrorspark.lifecycle.gate.measure import MeasureTask
from mirrorspark.lifecycle.gate.metric_sums import MetricSums
from mirrorspark.lifecycle.gate.score_counts import ScoreCounts, score_codes
from mirrorspark.lifecycle.gate.slices import Slicing, slicings_of
from mirrorspark.lifecycle.gate.task_metrics import Binary, MultiClass, MultiLabel, Regression, Retrieval, TaskMetrics
from mirrorspark.models.retrieval.list_metrics import ranking_metrics
from mirrorspark.pages.figures.calibration import calibration_bins
from mirrorspark.pages.figures.inputs import binary_inputs

ROWS = 3000
RANDOM = np.random.default_rng(5)
CARRIER = RANDOM.choice(["AA", "B6", "UA"], ROWS)
BUCKET = RANDOM.integers(0, metric_sums.BUCKETS, ROWS).astype(np.int32)
SCORE = RANDOM.random(ROWS).astype(np.float32)
OTHER = RANDOM.random(ROWS).astype(np.float32)
LABEL = (RANDOM.random(ROWS) < SCORE).astype(np.float64)


def batch(label: pa.Array, *scores: pa.Array, weight: np.ndarray | None = None) -> pa.RecordBatch:
    weights = np.ones(len(label)) if weight is None else weight
    columns = [label, pa.array(weights), pa.array(BUCKET[: len(label)]), pa.array(CARRIER[: len(label)]), *scores]
    return pa.RecordBatch.from_arrays(columns, names=[f"c{number}" for number in range(len(columns))])


def facts(metrics: TaskMetrics, *batches: pa.RecordBatch, tasks: int = 1) -> dict[str | None, SliceFacts]:
    """Return the facts of each carrier, and of all rows under None, from several tasks whose parts are merged."""
    models = batches[0].num_columns - 4
    parts: dict[tuple[int, str | None], list[list[MetricSums]]] = {}
    for number in range(tasks):
        for out in MeasureTask(metrics, models, 1, ((),))(batches[number::tasks]):
            for row in out.to_pylist():
                of = parts.setdefault((row["slicing"], row["value"]), [[] for _ in range(models)])
                of[row["model"]].append(MetricSums.from_bytes(row["sums"]))
    return {
        value: slice_facts("carrier", value, [MetricSums.merged(of) for of in models], metrics, seed=1, resamples=50)
        for (_, value), models in parts.items()
    }


BINARY = batch(pa.array(LABEL), pa.array(SCORE), pa.array(OTHER))


def test_binary_metrics_of_each_slice_are_those_of_scikit_learn() -> None:
    found = facts(Binary(0.5), BINARY)

    assert set(found) == {None, "AA", "B6", "UA"}
    for carrier, one in found.items():
        own = np.full(ROWS, True) if carrier is None else carrier == CARRIER
        label, score = LABEL[own], SCORE[own]
        called = score >= 0.5
        expected = {
            "auc": metrics.roc_auc_score(label, score),
            "pr_auc": metrics.average_precision_score(label, score),
            "log_loss": metrics.log_loss(label, score),
            "brier": metrics.brier_score_loss(label, score),
            "accuracy": metrics.accuracy_score(label, called),
            "precision": metrics.precision_score(label, called),
            "recall": metrics.recall_score(label, called),
            "calibration": score.astype(np.float64).sum() / label.sum(),
            "base_rate": label.mean(),
        }
        for name, value in expected.items():
            assert one.candidate[name].value == pytest.approx(value, abs=1e-7), name
            assert one.candidate[name].error == 0.0
        error = calibration_bins(binary_inputs(label, score), 10).expected_calibration_error
        # A row at the edge of each of the ten bins may be on its other side.
        assert one.candidate["ece"].value == pytest.approx(error, abs=10 / own.sum())
        assert one.examples == own.sum()
        other = metrics.roc_auc_score(label, OTHER[own])
        assert one.champion["auc"].value == pytest.approx(other)
        assert one.change["auc"].value == pytest.approx(expected["auc"] - other)


def test_weights_count_as_in_scikit_learn() -> None:
    weight = RANDOM.integers(0, 4, ROWS).astype(np.float64)
    one = facts(Binary(0.5), batch(pa.array(LABEL), pa.array(SCORE), weight=weight))[None]

    assert one.candidate["auc"].value == pytest.approx(metrics.roc_auc_score(LABEL, SCORE, sample_weight=weight))
    expected = metrics.average_precision_score(LABEL, SCORE, sample_weight=weight)
    assert one.candidate["pr_auc"].value == pytest.approx(expected)
    assert one.candidate["log_loss"].value == pytest.approx(metrics.log_loss(LABEL, SCORE, sample_weight=weight))


@pytest.mark.parametrize("shift", [0.0, -4.0])
def test_grouped_scores_are_within_the_error_that_is_given(monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    # Rare events, whose scores are all small, get as many cells as others.
    monkeypatch.setattr(metric_sums, "FINE_CELLS", 256)
    logits = RANDOM.standard_normal(ROWS) + shift
    score = (1 / (1 + np.exp(-logits))).astype(np.float32)
    label = (RANDOM.random(ROWS) < score).astype(np.float64)
    one = facts(Binary(0.5), batch(pa.array(label), pa.array(score)))[None]

    for name, exact in (
        ("auc", metrics.roc_auc_score(label, score)),
        ("pr_auc", metrics.average_precision_score(label, score)),
    ):
        estimate = one.candidate[name]
        assert 0 < estimate.error < 0.03
        assert abs(estimate.value - exact) <= estimate.error


def test_any_partitioning_gives_the_same_counts_metrics_and_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_sums, "FINE_CELLS", 256)
    whole = facts(Binary(0.5), BINARY)
    parts = facts(Binary(0.5), *(BINARY.slice(first, 500) for first in range(0, ROWS, 500)), tasks=3)

    assert set(parts) == set(whole)
    for value, one in whole.items():
        for name, estimate in one.candidate.items():
            got = parts[value].candidate[name]
            assert (got.value, got.low, got.high) == pytest.approx(
                (estimate.value, estimate.low, estimate.high), rel=1e-9
            )


def test_intervals_are_those_of_the_binomial_and_of_pairs() -> None:
    one = facts(Binary(0.5), BINARY)[None]
    rate, half = LABEL.mean(), 1.96 * math.sqrt(LABEL.mean() * (1 - LABEL.mean()) / ROWS)

    estimate = one.candidate["base_rate"]
    assert estimate.low < rate < estimate.high
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.35)
    # The same rows are drawn for both models: metrics that are equal in both have no spread.
    assert one.change["base_rate"].low == one.change["base_rate"].high == 0.0
    again = facts(Binary(0.5), BINARY)[None]
    assert again.candidate == one.candidate


def test_rows_without_a_valid_score_are_counted_and_left_out() -> None:
    score = pa.array([0.2, None, math.nan, 1.5, 0.9], pa.float32())
    one = facts(Binary(0.5), batch(pa.array([0.0, 1.0, 1.0, 1.0, 1.0]), score))[None]

    assert (one.examples, one.invalid) == (2, 3)
    assert one.candidate["accuracy"].value == 1.0


def test_a_slice_of_one_class_has_no_auc() -> None:
    one = facts(Binary(0.5), batch(pa.array([0.0, 0.0]), pa.array([0.1, 0.2], pa.float32())))[None]

    assert math.isnan(one.candidate["auc"].value)
    assert one.candidate["brier"].value == pytest.approx(0.025)


def test_regression_metrics_are_those_of_the_evaluation() -> None:
    label, score = RANDOM.standard_normal(ROWS), RANDOM.standard_normal(ROWS).astype(np.float32)
    found = facts(Regression(), batch(pa.array(label), pa.array(score)))

    for carrier, one in found.items():
        own = np.full(ROWS, True) if carrier is None else carrier == CARRIER
        for name, value in regression_metrics(label[own], score[own]).items():
            assert one.candidate[name].value == pytest.approx(value, abs=1e-9), name


def test_multi_class_metrics_are_those_of_the_evaluation() -> None:
    classes = ("a", "b", "c")
    scores = RANDOM.dirichlet(np.ones(3), ROWS)
    label = RANDOM.integers(0, 3, ROWS)
    column = pa.array(scores.tolist(), pa.list_(pa.float64()))
    rows = batch(pa.array(np.array(classes)[label].tolist()), column)
    one, ordinal = (facts(MultiClass(classes, is_ordinal), rows)[None] for is_ordinal in (False, True))

    expected = multi_class_metrics(label, scores, is_ordinal=True)
    for name in ("accuracy", "macro_f1", "log_loss"):
        assert one.candidate[name].value == ordinal.candidate[name].value == pytest.approx(expected[name]), name
    for name in ("rank_mae", "quadratic_kappa"):
        assert name not in one.candidate
        assert ordinal.candidate[name].value == pytest.approx(expected[name]), name


@pytest.mark.parametrize("as_names", [True, False])
def test_multi_label_metrics_are_those_of_the_evaluation(as_names: bool) -> None:
    classes = ("a", "b", "c", "d")
    scores = RANDOM.random((ROWS, 4)).astype(np.float32)
    label = RANDOM.random((ROWS, 4)) < scores
    names = [[classes[number] for number in np.flatnonzero(row)] for row in label]
    labels = pa.array(names) if as_names else pa.array(label.astype(float).tolist())
    found = facts(MultiLabel(classes, 0.5), batch(labels, pa.array(scores.tolist(), pa.list_(pa.float32()))))

    own = CARRIER == "B6"
    expected = multi_label_metrics(label[own], scores[own])
    for name in ("auc", "pr_auc", "log_loss", "brier", "base_rate", "precision_at_1", "precision_at_3"):
        measured = found["B6"].candidate[name]  # all pairs have more scores than are kept apart
        assert measured.value == pytest.approx(expected[name], abs=measured.error + 1e-6), name
        assert measured.error < 5e-3
    macro = metrics.roc_auc_score(label[own], scores[own], average="macro")
    assert found["B6"].candidate["macro_auc"].value == pytest.approx(macro)


def test_retrieval_metrics_are_those_of_ranked_lists() -> None:
    items = np.array([f"i{number}" for number in range(50)])
    lists = np.stack([RANDOM.permutation(items)[:20] for _ in range(200)])
    held_back = RANDOM.choice(items, 200)
    column = pa.array(lists.tolist())
    one = facts(Retrieval((1, 5, 10)), batch(pa.array(held_back.tolist()), column))[None]

    expected = ranking_metrics(lists, held_back, (1, 5, 10))
    for name in ("recall_at_5", "ndcg_at_10", "mrr_at_10"):
        assert one.candidate[name].value == pytest.approx(expected[name]), name

    several = RANDOM.choice(items, 300)  # #55: a row with all of its items
    row = np.concatenate([np.arange(200), np.arange(100)])
    of_rows = pa.array([several[row == number].tolist() for number in range(200)])
    one = facts(Retrieval((1, 5, 10)), batch(of_rows, column))[None]
    expected = ranking_metrics(lists, several, (1, 5, 10), rows=row)
    for name in ("recall_at_5", "ndcg_at_10", "mrr_at_10"):
        assert one.candidate[name].value == pytest.approx(expected[name]), name
    with pytest.raises(ValueError, match=r"a label is \[''\]; a row of a retrieval holds back one item or more"):
        Retrieval((1,)).rows(pa.array([["i1"], [""]]), pa.array([["i1"], ["i1"]]), np.ones(2))


@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=60),
    st.integers(1, 10),
    st.integers(1, 5),
)
def test_counts_by_score_depend_on_the_scores_alone(scores: list[float], most: int, parts: int) -> None:
    values = np.array(scores, np.float32)

    def counts(part: np.ndarray) -> ScoreCounts:
        codes = np.sort(score_codes(part))
        ones = np.ones((1, len(codes)))
        return ScoreCounts.of_sorted(codes, np.zeros((1, len(codes)), np.int64), ones, 1, most)

    whole = counts(values)
    merged = ScoreCounts.merged([counts(part) for part in np.array_split(values, parts) if len(part)], most)

    assert len(whole.codes) <= most
    assert (merged.shift, merged.codes.tolist()) == (whole.shift, whole.codes.tolist())
    assert merged.counts.tolist() == whole.counts.tolist()
    assert whole.counts.sum() == len(values)


def test_codes_have_the_order_of_the_scores() -> None:
    scores = np.array([-np.inf, -2.5, -1e-30, -0.0, 0.0, 1e-30, 0.5, 3.0, np.inf], np.float32)
    codes = score_codes(scores)

    assert codes[3] == codes[4]
    assert (np.diff(codes.astype(np.int64)) >= 0).all()
    assert len(np.unique(codes)) == 8


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0.0, None]}, "1 of 2 rows have no label"),
        ({"label": [0.0, 2.0]}, "a label is 2.0; a binary label is 0 or 1"),
        ({"weight": [1.0, -1.0]}, "a weight is -1.0; use zero or more"),
    ],
)
def test_rows_that_cannot_be_measured_are_refused(columns: dict[str, list[float]], message: str) -> None:
    label = pa.array(columns.get("label", [0.0, 1.0]), pa.float64())
    rows = batch(label, pa.array([0.1, 0.2], pa.float32()), weight=np.array(columns.get("weight", [1.0, 1.0])))

    with pytest.raises(ValueError, match=message):
        list(MeasureTask(Binary(0.5), 1, 1, ((),))([rows]))


def test_only_the_values_that_are_named_are_slices() -> None:
    out = MeasureTask(Binary(0.5), 2, 1, (("AA", "UA"),))([BINARY])

    assert {row["value"] for part in out for row in part.to_pylist()} == {None, "AA", "UA"}


def test_a_slicing_with_too_many_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorspark.lifecycle.gate.measure.MOST_SLICES", 2)
    with pytest.raises(ValueError, match="more than 2 values"):
        list(MeasureTask(Binary(0.5), 2, 1, ((),))([BINARY]))


def test_slicings_have_names_of_their_own() -> None:
    assert [one.name for one in slicings_of(["carrier", Slicing("distance > 1000", "far")])] == ["carrier", "far"]
    with pytest.raises(ValueError, match=r"\['carrier'\] are given twice"):
        slicings_of(["carrier", Slicing("upper(carrier)", "carrier")])
    with pytest.raises(ValueError, match="has the name 'overall'"):
        Slicing("overall")
