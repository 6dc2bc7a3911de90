"""What one Spark task of the fit tells the driver, without Spark: partial counts and moments (F1)."""

import math

import numpy as np
import pyarrow as pa
import pytest

from data_pipelines.features import Categorical, FeatureSpec, Label, MultiValued, Numeric
from data_pipelines.fitting import FitTask, Moments

SPEC = FeatureSpec(
    (
        Numeric("distance"),
        Categorical("dest"),
        MultiValued("previous", max_length=1, vocabulary_of="dest"),
        MultiValued("tags", max_length=1),
    ),
    Label("late"),
    ("id",),
)


def test_moments_by_hand() -> None:
    statistics = Moments.of(np.array([2.0, 4.0, 9.0])).statistics()
    # Mean 5, squared deviations 9 + 1 + 16 = 26, over three values.
    assert statistics.mean == 5.0
    assert statistics.standard_deviation == pytest.approx(math.sqrt(26 / 3), rel=1e-9)
    assert (statistics.minimum, statistics.maximum, statistics.count) == (2.0, 9.0, 3)


def test_moments_of_parts_merge_to_those_of_the_whole() -> None:
    values = np.random.default_rng(3).normal(1e6, 2.0, 1_000)
    whole = Moments.of(values).statistics()
    for cuts in ([500], [1, 2, 999], [0, 0, 300]):
        merged = Moments()
        for part in np.split(values, cuts):
            merged = merged.merged(Moments.of(part))
        assert merged.statistics() == whole


def test_a_column_without_values_counts_as_constant_zero() -> None:
    statistics = Moments().merged(Moments.of(np.array([]))).statistics()
    assert (statistics.mean, statistics.standard_deviation, statistics.count) == (0.0, 0.0, 0)


def test_a_task_counts_tokens_numbers_and_rows_over_its_batches() -> None:
    first = {"distance": [1.0, None], "dest": ["LAX", ""], "previous": [["JFK"], []], "tags": [["a", "b"], None]}
    second = {
        "distance": [math.nan, 3.0],
        "dest": ["LAX", None],
        "previous": [["JFK"], []],
        "tags": [["a", "", None], []],
    }
    batches = [pa.RecordBatch.from_pydict(first), pa.RecordBatch.from_pydict(second)]
    (result,) = FitTask(SPEC)(batches)
    rows = result.to_pylist()
    tokens = {(row["name"], row["token"]): row["count"] for row in rows if row["token"] is not None}
    # Every token of a list counts, whatever the length it will be cut to; "previous" uses the vocabulary of "dest".
    assert tokens == {("dest", "LAX"): 2, ("tags", "a"): 2, ("tags", "b"): 1}
    (distance,) = [row for row in rows if row["name"] == "distance"]
    assert (distance["count"], distance["mean"], distance["m2"]) == (2, 2.0, 2.0)
    assert [row["count"] for row in rows if row["name"] == ""] == [4]
