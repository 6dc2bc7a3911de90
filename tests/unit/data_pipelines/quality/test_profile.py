"""A profile counts what is there, of any type, and reads back from JSON as it was (F10)."""

import json
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mirrorspark.data_pipelines.features.kinds import (
    Bucketed,
    Categorical,
    Feature,
    Label,
    MultiValued,
    Numeric,
    Sequence,
    Sparse,
    Text,
)
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.quality.column_card import rate_rows
from mirrorspark.data_pipelines.quality.profile import (
    QUANTILES,
    ColumnProfile,
    DatasetProfile,
    ProfileError,
    ValueCount,
)
from mirrorspark.data_pipelines.quality.profiling import HISTOGRAM_BINS, SplitCounts, profile_columns
from mirrorspark.data_pipelines.quality.raw_value_columns import ColumnKind, Role
from mirrorspark.data_pipelines.quality.validation import validate

LATE = Label("late")


def spec_of(*features: Feature, label: Label = LATE, weight: str | None = None) -> FeatureSpec:
    return FeatureSpec(features, label, ("id",), weight=weight)


def rows_of(rows: int, **columns: Any) -> pa.Table:
    return pa.table({"id": range(rows), "late": [n % 2 for n in range(rows)]} | columns)


def profiled(feature: Feature, values: Any, **others: Any) -> ColumnProfile:
    """Return the profile of the one feature's column; ``others`` are its values in other splits."""
    samples = {"train": values} | others
    tables = {split: rows_of(len(column), **{feature.columns[0]: column}) for split, column in samples.items()}
    column = profile_columns(tables, spec_of(feature)).column(feature.columns[0])
    assert column is not None
    return column


def test_numbers_are_measured_without_what_is_missing_or_infinite() -> None:
    column = profiled(Numeric("x"), pa.array([1.0, 2.0, 3.0, None, float("nan"), float("inf"), 2.0, None]))
    part = column.splits["train"]
    assert (part.values, part.nan, part.infinite, part.distinct) == (4, 1, 1, 3)
    assert part.missing_share == 3 / 8
    assert part.spread is not None
    assert (part.spread.minimum, part.spread.maximum, part.spread.mean, part.spread.median) == (1, 3, 2, 2)
    # The deviations from 2 are -1, 0, 1, 0: a variance of 2 / 4.
    assert part.spread.standard_deviation == pytest.approx(0.5**0.5)
    assert part.commonest[0] == ValueCount("2", 2)
    assert part.commonest_share == 0.5


def test_a_few_whole_numbers_get_a_bar_each() -> None:
    column = profiled(Numeric("x"), pa.array([1, 2, 2, 4]), test=pa.array([0, 3, 4, 9]))
    assert column.edges == (0.5, 1.5, 2.5, 3.5, 4.5)
    assert column.splits["train"].histogram == (1, 2, 0, 1)
    # Values beyond the range are in the outermost bars.
    assert column.splits["test"].histogram == (1, 0, 1, 2)
    assert column.splits["test"].outside_share == 0.5


def test_one_wild_value_does_not_squeeze_the_histogram() -> None:
    values = np.append(np.linspace(0, 1, 999), 1e9)
    column = profiled(Numeric("x"), pa.array(values))
    assert column.edges[-1] < 2
    assert max(column.splits["train"].histogram) < 60
    assert sum(column.splits["train"].histogram) == 1000


def test_a_column_that_is_zero_nearly_everywhere_shows_how_far_the_others_lie() -> None:
    column = profiled(Numeric("x"), pa.array([0.0] * 1000 + [0.01] * 4))
    assert (column.edges[0], column.edges[-1]) == (0.0, 0.01)
    assert (column.splits["train"].histogram[0], column.splits["train"].histogram[-1]) == (1000, 4)
    counts = profiled(Numeric("x"), pa.array([0.0] * 19_950 + [float(n) for n in range(1, 51)]))
    assert (counts.edges[0], counts.edges[-1]) == (0.0, 50.0)
    assert sum(counts.splits["train"].histogram) == 20_000


def test_one_value_in_all_rows_is_one_bar() -> None:
    column = profiled(Numeric("x"), pa.array([0.25] * 3))
    assert (column.edges, column.splits["train"].histogram) == ((-0.25, 0.75), (3,))


@pytest.mark.parametrize(
    "values", [[1e308, -1e308, 1e308], [5.0] * 3, [2.0**60, 2.0**60 + 256], [5e-324, 0.0], [1.7e308]]
)
def test_extreme_numbers_are_counted_too(values: list[float]) -> None:
    column = profiled(Numeric("x"), pa.array(values))
    part = column.splits["train"]
    assert sum(part.histogram) == len(values)
    assert (np.diff(column.edges) > 0).all()
    assert part.spread is not None
    assert np.isfinite([part.spread.mean, part.spread.standard_deviation]).all()


def test_drift_bins_are_deciles_of_the_training_rows_and_a_bin_of_missing_values() -> None:
    column = profiled(
        Numeric("x"), pa.array([float(n) for n in range(100)] + [None] * 10), test=pa.array([-5.0, 500.0])
    )
    assert len(column.bins.edges) == 9
    # A tenth of 100 rows each.
    assert column.splits["train"].bins == (10,) * 10 + (10,)
    assert column.splits["test"].bins == (1, *(0,) * 8, 1, 0)


def test_tokens_are_counted_ties_by_their_bytes_and_empty_ones_are_missing() -> None:
    column = profiled(
        Categorical("c"), pa.array(["b", "a", "b", "a", "ü", "", None]), test=pa.array(["a", "new", "new"])
    )
    train, test = column.splits["train"], column.splits["test"]
    assert train.commonest == (ValueCount("a", 2), ValueCount("b", 2), ValueCount("ü", 1))
    assert train.missing_share == 2 / 7
    assert column.bins.tokens == ("a", "b", "ü")
    assert train.bins == (2, 2, 1, 0, 2)
    assert test.bins == (1, 0, 0, 2, 0)
    assert test.unseen == (ValueCount("new", 2),)
    assert test.unseen_share == 2 / 3


def test_categorical_whole_numbers_are_tokens_and_numeric_ones_are_numbers() -> None:
    assert profiled(Categorical("c"), pa.array([1, 2, 2])).splits["train"].commonest[0] == ValueCount("2", 2)
    assert profiled(Numeric("c"), pa.array([1, 2, 2])).kind is ColumnKind.NUMBER
    assert profiled(Bucketed("c"), pa.array([1, 2, 2])).kind is ColumnKind.NUMBER


def test_lists_are_counted_by_token_and_by_length() -> None:
    column = profiled(MultiValued("m", max_length=2), pa.array([["a", "b"], [], None, ["a"]]))
    part = column.splits["train"]
    assert column.kind is ColumnKind.TOKENS
    assert (part.values, part.missing_share) == (3, 0.5)
    assert part.commonest[0] == ValueCount("a", 2)
    assert part.lengths is not None
    assert (part.lengths.minimum, part.lengths.maximum) == (0, 2)


def test_a_text_is_split_as_its_feature_says() -> None:
    column = profiled(Text("t", max_length=8), pa.array(["Red RED wine", None, "wine!"]))
    part = column.splits["train"]
    assert {entry.value: entry.count for entry in part.commonest} == {"red": 2, "wine": 2}
    assert part.missing_share == pytest.approx(1 / 3)


def test_a_sequence_has_tokens_and_times() -> None:
    feature = Sequence("seen", time="seen_at", max_length=4)
    times = pa.array([[datetime(2024, 1, 2), datetime(2024, 1, 1)], []], pa.list_(pa.timestamp("us")))
    table = rows_of(2, seen=pa.array([["a", "b"], []], pa.list_(pa.string())), seen_at=times)
    profile = profile_columns({"train": table}, spec_of(feature))
    seen, seen_at = profile.column("seen"), profile.column("seen_at")
    assert seen is not None
    assert seen_at is not None
    assert (seen.kind, seen_at.kind) == (ColumnKind.TOKENS, ColumnKind.TIME)
    assert seen_at.splits["train"].spread is not None
    # Seconds since 1970: 19,723 days.
    assert seen_at.splits["train"].spread.minimum == 19_723 * 86_400
    assert seen_at.feature_kind == "sequence"


def test_sparse_vectors_are_counted_by_index_whatever_holds_them() -> None:
    vectors = pa.array(
        [
            {"type": 0, "size": 9, "indices": [1, 7], "values": [0.5, 2.0]},
            None,
            {"type": 0, "size": 9, "indices": [7], "values": [1.0]},
        ],
        pa.struct(
            [
                ("type", pa.int8()),
                ("size", pa.int32()),
                ("indices", pa.list_(pa.int32())),
                ("values", pa.list_(pa.float64())),
            ]
        ),
    )
    maps = pa.array([[(1, 0.5), (7, 2.0)], None, [(7, 1.0)]], pa.map_(pa.int64(), pa.float64()))
    for values in (vectors, maps):
        column = profiled(Sparse("v", size=9), values)
        assert column.kind is ColumnKind.TOKENS
        assert column.splits["train"].commonest == (ValueCount("7", 2), ValueCount("1", 1))
        assert column.splits["train"].missing_share == pytest.approx(1 / 3)


def test_dense_vectors_are_not_missing() -> None:
    vector = pa.struct(
        [
            ("type", pa.int8()),
            ("size", pa.int32()),
            ("indices", pa.list_(pa.int32())),
            ("values", pa.list_(pa.float64())),
        ]
    )
    dense = {"type": 1, "size": None, "indices": None, "values": [0.0, 2.0, 1.0]}
    sparse = {"type": 0, "size": 3, "indices": [1], "values": [2.0]}
    part = profiled(Sparse("v", size=3), pa.array([dense, None, sparse, dense], vector)).splits["train"]
    assert part.missing_share == 0.25
    assert part.lengths is not None
    assert (part.lengths.minimum, part.lengths.maximum) == (1, 3)
    assert part.commonest == (ValueCount("1", 1),)


def test_sliced_maps_and_lists_are_counted_within_the_slice() -> None:
    maps = pa.array([[(9, 9.0)], [(1, 0.5)], [(7, 2.0)]], pa.map_(pa.int64(), pa.float64())).slice(1)
    assert {entry.value for entry in profiled(Sparse("v", size=10), maps).splits["train"].commonest} == {"1", "7"}
    lists = pa.array([["x"], ["a"], ["b"]], pa.list_(pa.string())).slice(1)
    part = profiled(MultiValued("m", max_length=2), lists).splits["train"]
    assert {entry.value for entry in part.commonest} == {"a", "b"}


def test_other_types_are_at_least_counted() -> None:
    for values in (
        pa.array([b"a", None]),
        pa.array([None, None], pa.null()),
        pa.array([{"a": 1}, None]),
        pa.array([date(2024, 1, 1), None]),
        pa.array([True, None]),
        pa.array(["a", None]).dictionary_encode(),
        pa.array([1, None]).cast(pa.decimal128(21, 2)),
        pa.array([[[1.0]], None], pa.list_(pa.list_(pa.float64()))),
        pa.array([[{"a": 1}], None]),
    ):
        assert profiled(Categorical("c"), values).splits["train"].missing_share >= 0.5


def test_keys_are_counted_and_never_shown() -> None:
    profile = profile_columns({"train": rows_of(5, x=[1.0] * 5)}, spec_of(Numeric("x")))
    key = profile.column("id")
    assert key is not None
    assert (key.role, key.kind, key.splits["train"].distinct) == (Role.KEY, ColumnKind.KEY, 5)
    assert key.splits["train"].commonest == ()
    assert key.bins.is_empty


def test_counts_of_all_rows_take_the_place_of_the_sample() -> None:
    counts = {"train": SplitCounts(1_000, 2_000, 4, missing={"c": 250}, tokens={"c": 750}, out_of_vocabulary={"c": 75})}
    profile = profile_columns({"train": rows_of(4, c=["a", "b", "c", None])}, spec_of(Categorical("c")), counts=counts)
    column = profile.column("c")
    assert column is not None
    assert column.splits["train"].missing_share == 0.25
    assert column.splits["train"].out_of_vocabulary_share == 0.1
    # All three are singletons of a sample of 3 in 750: 3 / (1 - (1 - 3/750) * 3/3).
    assert column.splits["train"].distinct_estimate == 750
    assert (profile.splits["train"].rows, profile.splits["train"].sampled) == (1_000, 4)


def test_a_sample_in_which_all_repeats_has_seen_everything() -> None:
    counts = {"train": SplitCounts(1_000)}
    profile = profile_columns({"train": rows_of(4, c=["a", "b", "a", "b"])}, spec_of(Categorical("c")), counts=counts)
    column = profile.column("c")
    assert column is not None
    assert column.splits["train"].distinct_estimate == 2


@pytest.mark.parametrize("seed", range(3))
def test_area_under_the_curve_equals_that_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 2, 400)
    values = np.round(generator.normal(label * 0.7, 1), 1)
    table = pa.table({"id": range(400), "late": label, "x": values})
    column = profile_columns({"train": table}, spec_of(Numeric("x"))).column("x")
    assert column is not None
    assert column.label is not None
    # Classes are numbered as they come: the area, or its complement.
    area = roc_auc_score(label, values)
    assert column.label.area is not None
    assert min(abs(column.label.area - area), abs(column.label.area - (1 - area))) < 1e-12


def test_agreement_with_the_label_is_the_mean_recall_of_guessing_by_value() -> None:
    # Value "a": 60 rows of class 0, 20 of class 1; value "b": 20 of class 1; 10 values once each.
    values = ["a"] * 80 + ["b"] * 20 + [f"once-{n}" for n in range(10)]
    label = [0] * 60 + [1] * 40 + [0] * 10
    table = pa.table({"id": range(110), "late": label, "c": values})
    column = profile_columns({"train": table}, spec_of(Categorical("c"))).column("c")
    assert column is not None
    assert column.label is not None
    # "a" guesses class 0: 60 of 60 right; "b" guesses class 1: 20 of 40.
    assert column.label.agreement == pytest.approx((1 + 0.5) / 2)
    assert column.label.coverage == pytest.approx(100 / 110)


def test_a_later_dataset_is_counted_in_the_bins_of_the_former() -> None:
    spec = spec_of(Numeric("x"), Categorical("c"))
    former = profile_columns({"train": rows_of(100, x=np.arange(100.0), c=["a", "b"] * 50)}, spec)
    later = profile_columns({"train": rows_of(20, x=np.arange(100.0, 120), c=["b"] * 20)}, spec, reference=former)
    x, c = later.column("x"), later.column("c")
    assert x is not None
    assert c is not None
    assert x.splits["train"].reference_bins == (*(0,) * 9, 20, 0)
    assert c.splits["train"].reference_bins == (0, 20, 0, 0)
    assert x.bins.edges != former.columns[1].bins.edges


def test_a_column_that_was_of_another_kind_is_not_counted_in_its_bins() -> None:
    former = profile_columns({"train": rows_of(10, x=["a"] * 10)}, spec_of(Categorical("x")))
    later = profile_columns({"train": rows_of(10, x=np.arange(10.0))}, spec_of(Numeric("x")), reference=former)
    column = later.column("x")
    assert column is not None
    assert column.splits["train"].reference_bins == ()


def test_without_training_rows_there_is_no_profile() -> None:
    with pytest.raises(ProfileError, match="no sample of split 'train'"):
        profile_columns({"test": rows_of(3, x=[1, 2, 3])}, spec_of(Numeric("x")))
    with pytest.raises(ProfileError, match="no sample of split 'train'"):
        profile_columns({"train": rows_of(0, x=pa.array([], pa.float64()))}, spec_of(Numeric("x")))


def test_a_split_without_rows_is_a_split_of_nothing() -> None:
    column = profiled(Numeric("x"), pa.array([1.0, 2.0]), test=pa.array([], pa.float64()))
    assert column.splits["test"].spread is None
    assert column.splits["test"].missing_share == 0


def test_a_damaged_profile_or_one_of_another_version_is_refused() -> None:
    document = profile_columns({"train": rows_of(3, x=[1, 2, 3])}, spec_of(Numeric("x"))).to_dict()
    with pytest.raises(ProfileError, match="version 99"):
        DatasetProfile.from_dict(document | {"version": 99})
    with pytest.raises(ProfileError, match="damaged"):
        DatasetProfile.from_dict(document | {"columns": [{"name": "x"}]})


numbers = st.one_of(st.none(), st.floats(width=64), st.integers(-3, 3).map(float))
tokens = st.one_of(st.none(), st.text(max_size=3))


@given(
    train=st.lists(st.tuples(numbers, tokens), min_size=1, max_size=60),
    test=st.lists(st.tuples(numbers, tokens), max_size=30),
)
def test_any_rows_are_counted_completely_and_survive_json(train: list[Any], test: list[Any]) -> None:
    spec = spec_of(Numeric("x"), Categorical("c"))
    tables = {
        split: rows_of(
            len(rows), x=pa.array([x for x, _ in rows], pa.float64()), c=pa.array([c for _, c in rows], pa.string())
        )
        for split, rows in (("train", train), ("test", test))
    }
    profile = profile_columns(tables, spec)
    profile = profile_columns(tables, spec, reference=profile)
    for split, rows in (("train", train), ("test", test)):
        x, c = (column.splits[split] for column in profile.columns if column.name in ("x", "c"))
        assert x.values + x.infinite + round(x.missing_share * len(rows)) == len(rows)
        assert c.values + round(c.missing_share * len(rows)) == len(rows)
        for part in (x, c):
            assert part.bins == part.reference_bins
            if part.bins:
                assert sum(part.bins) == len(rows) - part.infinite
        if x.histogram:
            assert sum(x.histogram) == x.values
            assert len(x.histogram) <= HISTOGRAM_BINS
        if x.spread:
            assert len(x.spread.quantiles) == len(QUANTILES)
            assert x.spread.minimum <= x.spread.median <= x.spread.maximum
    text = json.dumps(profile.to_dict(), allow_nan=False)
    assert DatasetProfile.from_dict(json.loads(text)) == profile


def test_a_text_of_bytes_that_are_no_utf8_is_counted_too() -> None:
    part = profiled(Text("t", max_length=8), pa.array([b"red \xff wine", b"wine"], pa.binary())).splits["train"]
    assert {value.value: value.count for value in part.commonest} == {"wine": 2, "red": 1}


def test_columns_that_say_the_same_are_named_once_and_chance_is_not_taken_for_it() -> None:
    """L2."""
    random = np.random.default_rng(7)
    rows = 400
    city = random.integers(0, 5, rows)
    miles = random.normal(900, 300, rows)
    sample = pa.table(
        {
            "id": np.arange(rows),
            "late": random.integers(0, 2, rows),
            "city": city,
            "code": np.array(["LGA", "JFK", "EWR", "SFO", "BOS"])[city],
            "state": np.array(["NY", "NY", "NJ", "CA", "MA"])[city],
            "miles": miles,
            "km": np.round(1.609 * miles),
            "noisy": miles + random.normal(0, 30, rows),
            # Never repeated, so that each has "one value for each" of any other.
            "serial": random.permutation(rows).astype(float),
            "fare": pa.array([None if value < 0 else value for value in random.normal(0, 1, rows)]),
            "tax": pa.array([None] * rows, pa.float64()),
        }
    )
    kinds = dict.fromkeys(("miles", "km", "noisy", "serial", "fare", "tax"), Numeric)
    spec = FeatureSpec(
        tuple(kinds.get(name, Categorical)(name) for name in sample.column_names[2:]), Label("late"), ("id",)
    )
    profile = profile_columns({"train": sample}, spec)
    assert [(each.column, each.same_as) for each in profile.redundant] == [("code", "city"), ("km", "miles")]
    assert profile.redundant[0].correlation is None
    assert profile.redundant[1].correlation == pytest.approx(1, abs=1e-5)
    assert DatasetProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
    said = {found.column: found for found in validate(profile, spec).findings if found.check == "redundant"}
    assert set(said) == {"code", "km"}
    assert said["code"].sentence.startswith("each value of 'code' goes with one value of 'city', and the other way")


def test_the_rate_of_the_label_is_measured_by_value_and_by_range() -> None:
    """F10."""
    sample = pa.table(
        {
            "id": np.arange(8),
            "late": ["yes", "no", "no", "no", "yes", "yes", "no", "yes"],
            "town": ["a", "a", "a", "a", "b", "b", None, ""],
            "size": pa.array([1.0, 1, 1, 1, 2, 2, None, 2]),
        }
    )
    spec = FeatureSpec((Categorical("town"), Numeric("size")), Label("late", positive="yes"), ("id",))
    profile = profile_columns({"train": sample}, spec)
    town, size = (profile.column(name) for name in ("town", "size"))
    assert town is not None
    assert size is not None
    assert rate_rows(town) == [("a", 4, 0.25), ("b", 2, 1.0), ("missing", 2, 0.5)]
    assert rate_rows(size) == [("up to 1", 4, 0.25), ("above 1 to 2", 3, 1.0), ("missing", 1, 0.0)]
    of_numbers = FeatureSpec((Categorical("town"),), Label("size", "numeric"), ("id",))
    numbers = profile_columns({"train": sample.slice(0, 6)}, of_numbers).column("town")
    assert numbers is not None
    assert rate_rows(numbers) == [("a", 4, 1.0), ("b", 2, 2.0)]
