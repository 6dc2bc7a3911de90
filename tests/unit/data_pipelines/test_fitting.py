"""Measurements of a task's training rows, and the features fitted from them, without Spark (F1)."""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features import fitting
from mirrorspark.data_pipelines.features.fitting import TOKEN_COUNTS_SCHEMA, Measurement, Moments
from mirrorspark.data_pipelines.features.kinds import (
    Bucketed,
    Categorical,
    FeatureSpecError,
    Label,
    MultiValued,
    Numeric,
)
from mirrorspark.data_pipelines.features.raw_columns import column_plans
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.storage.paths import StoragePath

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


def token_counts(parts: Iterable[pa.RecordBatch]) -> Counter[tuple[str, str]]:
    counted: Counter[tuple[str, str]] = Counter()
    for row in pa.Table.from_batches(parts, TOKEN_COUNTS_SCHEMA).to_pylist():
        counted[row["name"], row["token"]] += row["count"]
    return counted


FIRST = {"distance": [1.0, None], "dest": ["LAX", ""], "previous": [["JFK"], []], "tags": [["a", "b"], None]}
PLANS = column_plans(pa.RecordBatch.from_pydict(FIRST).schema, SPEC)
SECOND = {
    "distance": [math.nan, 3.0],
    "dest": ["LAX", None],
    "previous": [["JFK"], []],
    "tags": [["a", "", None], []],
}


def test_items_of_histories_count_as_candidates_where_the_label_says_so() -> None:
    """#55: not those of other lists."""
    for history_items, counts in ((False, {"LAX": 1}), (True, {"LAX": 2, "JFK": 2})):
        label = Label("dest", "candidate", history_items=history_items)
        spec = FeatureSpec(SPEC.features[1:], label, ("id",))
        row = {"dest": ["LAX", ""], "previous": [["JFK", "LAX"], ["JFK"]], "tags": [["JFK"], None]}
        batch = pa.RecordBatch.from_pydict(row)
        measurement = Measurement(spec, column_plans(batch.schema, spec))
        tokens = token_counts([*measurement.add(batch), *measurement.finish()])
        assert {token: count for (name, token), count in tokens.items() if name == "dest"} == counts
    with pytest.raises(FeatureSpecError, match="label 'late': history_items is True; give true or false, and true to"):
        Label("late", history_items=True)


def test_tokens_and_numbers_are_measured_over_all_batches() -> None:
    measurement = Measurement(SPEC, PLANS)
    parts = [part for batch in (FIRST, SECOND) for part in measurement.add(pa.RecordBatch.from_pydict(batch))]
    tokens = token_counts([*parts, *measurement.finish()])
    # Every token of a list counts, whatever the length it will be cut to; "previous" uses the vocabulary of "dest".
    assert tokens == {("dest", "LAX"): 2, ("tags", "a"): 2, ("tags", "b"): 1}
    distance = measurement.moments["distance"]
    assert (distance.count, distance.mean, distance.m2) == (2, 2.0, 2.0)


def test_counts_for_which_there_is_no_room_are_passed_on_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_WAITING_COUNTS", 20)
    monkeypatch.setattr(fitting, "_DISTINCT_TOKENS", 10)
    generator = np.random.default_rng(8)
    expected: Counter[tuple[str, str]] = Counter()
    measurement = Measurement(SPEC, PLANS)
    longest = 0
    parts: list[pa.RecordBatch] = []
    for _ in range(50):
        tokens = [f"t{number}" for number in generator.integers(0, 60, 8)]
        expected.update(("dest", token) for token in tokens)
        batch = {"distance": [1.0] * 8, "dest": tokens, "previous": [[]] * 8, "tags": [["x"]] * 8}
        parts += measurement.add(pa.RecordBatch.from_pydict(batch))
        longest = max(longest, sum(len(table) for table in measurement._tokens["dest"]._waiting))
    early = len(parts)
    parts += measurement.finish()
    assert token_counts(parts) == expected + Counter({("tags", "x"): 400})
    assert early > 0
    assert longest <= 28


def test_vocabularies_are_cut_from_the_ranked_files_in_their_order(tmp_path: Path) -> None:
    # Spark sorts by name, then rank, and a name's tokens may go on in the next file.
    rows = [
        [("carrier", "UA", 9), ("carrier", "AA", 7), ("dest", "LAX", 5)],
        [("dest", "ATL", 5), ("dest", "BOS", 4), ("tags", "x", 1)],
    ]
    paths = []
    for number, part in enumerate(rows):
        paths.append(StoragePath.of(tmp_path / f"{number}"))
        batch = pa.RecordBatch.from_pylist(
            [dict(zip(("name", "token", "count"), row, strict=True)) for row in part], schema=TOKEN_COUNTS_SCHEMA
        )
        with paths[-1].open_write() as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
    fitting._write_vocabularies(paths, {"carrier": 1, "dest": 100, "tags": 2}, tmp_path)
    kept = {name: Vocabulary.load(tmp_path / f"{name}.arrow") for name in ("carrier", "dest", "tags")}
    assert {name: vocabulary.tokens.to_pylist() for name, vocabulary in kept.items()} == {
        "carrier": ["UA"],
        "dest": ["LAX", "ATL", "BOS"],
        "tags": ["x"],
    }
    assert kept["dest"].counts.to_pylist() == [5, 5, 4]


@pytest.mark.parametrize(
    ("values", "buckets", "boundaries"),
    [
        # Four equal shares of 0 .. 99: a boundary is the lowest value of the upper share.
        ([float(number) for number in range(100)], 4, (25.0, 50.0, 75.0)),
        ([0.0] * 90 + [1.0] * 5 + [2.0] * 5, 10, (1.0,)),
        ([7.0] * 10, 10, ()),
        ([None, math.nan], 3, ()),
        ([1.0, None, 2.0], 2, (2.0,)),
    ],
    ids=["even", "mostly zero", "constant", "missing", "two values"],
)
def test_boundaries_are_distinct_values_of_the_sample(
    values: list[float | None], buckets: int, boundaries: tuple[float, ...]
) -> None:
    sample = pa.table({"delay": pa.array(values, pa.float64())})
    assert fitting._boundaries(Bucketed("delay", buckets=buckets), sample["delay"].combine_chunks()) == boundaries


def test_a_number_keeps_its_quantiles_after_clip_and_logarithm() -> None:
    spec = FeatureSpec((Numeric("delay", clip=(0.0, None), log=True),), Label("late"), ("id",))
    sample = pa.table({"delay": [None, *(float(number) for number in range(-1, 95))]})
    plans = column_plans(sample.schema, spec)
    found = fitting._quantiles(spec, plans, sample)["delay"]
    # 48 shares of two rows each; clipped, the lowest two are 0.
    assert found == pytest.approx([math.log1p(number) for number in range(1, 94, 2)])


@pytest.mark.parametrize(
    ("values", "boundaries"),
    [
        # More than a 48th of the rows are 0, and as many 5: each has a bin up to the next value.
        ([0.0] * 50 + [5.0] * 50 + [1.0, 2.0, 6.0, 7.0], (1.0, 2.0, 5.0, 6.0, 7.0)),
        (
            [0.0] * 960 + [float(number) for number in range(1, 97)],
            (1.0, *(float(number) for number in range(3, 96, 2))),
        ),
        ([7.0] * 10, ()),
        ([math.nan], ()),
    ],
    ids=["frequent values", "mostly zero", "constant", "missing"],
)
def test_frequent_values_leave_the_bins_to_the_others(values: list[float], boundaries: tuple[float, ...]) -> None:
    assert fitting.bin_boundaries(np.array(values)) == boundaries
