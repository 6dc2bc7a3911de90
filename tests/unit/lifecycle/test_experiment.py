"""E1: definition of an experiment, assignment of variants, and moves when the weights change."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from scipy.stats import chisquare

from mirrorspark.lifecycle.experiments.allocation import BUCKETS, bucket_counts, buckets_of
from mirrorspark.lifecycle.experiments.definition import Experiment, ExperimentError, check_experiments
from mirrorspark.lifecycle.experiments.units.assignment import assign, assign_array, bucket_of

HALVES = Experiment("ranker", {"control": 50, "deep": 50})
# printf 'ranker:user-1' | sha256sum | cut -c1-15, and so on, modulo 10,000.
KNOWN_BUCKETS = [9073, 1172, 7506, 1611]
UNITS = pa.array([f"user-{number}" for number in range(100_000)])
SOME = UNITS[:20_000]


def test_the_bucket_is_the_published_formula() -> None:
    digits = hashlib.sha256(b"ranker:user-1").hexdigest()[:15]
    assert bucket_of("ranker", "user-1") == int(digits, 16) % 10_000
    assert bucket_of("ranker", "7") == bucket_of("ranker", 7) == bucket_of("ranker", np.int64(7))


def test_a_known_unit_stays_where_it_was_yesterday() -> None:
    # Written down once: another value here would move all users of running experiments.
    assert [bucket_of("ranker", unit) for unit in ("user-1", "", "ä€😀", 7)] == KNOWN_BUCKETS
    assert [assign(unit, HALVES) for unit in ("user-1", "", "ä€😀", 7)] == [
        "control" if bucket < 5_000 else "deep" for bucket in KNOWN_BUCKETS
    ]


@pytest.mark.parametrize("weights", [{"a": 1, "b": 1}, {"a": 0.6, "b": 0.3, "c": 0.1}, {"a": 90, "b": 9, "c": 1}])
def test_the_variants_of_100_000_units_have_their_shares(weights: dict[str, float]) -> None:
    counts = counted(assign_array(UNITS, Experiment("shares", weights)))
    expected = np.array(list(weights.values())) / sum(weights.values()) * len(UNITS)
    assert chisquare([counts[name] for name in weights], expected).pvalue > 1e-3


def test_experiments_with_different_salts_are_independent() -> None:
    one = assign_array(SOME, Experiment("one", {"a": 1, "b": 1})).to_pylist()
    other = assign_array(SOME, Experiment("other", {"a": 1, "b": 1})).to_pylist()
    counts = Counter(zip(one, other, strict=True))
    assert chisquare(list(counts.values())).pvalue > 1e-3
    assert len(counts) == 4


@pytest.mark.parametrize(
    ("weights", "new", "moved"),
    [
        ({"a": 50, "b": 50}, {"a": 60, "b": 40}, 0.10),
        ({"a": 90, "b": 10}, {"a": 50, "b": 50}, 0.40),
        ({"a": 50, "b": 50}, {"a": 40, "b": 40, "c": 20}, 0.20),
        ({"a": 40, "b": 40, "c": 20}, {"a": 50, "b": 50}, 0.20),
        ({"a": 1, "b": 1}, {"b": 1, "a": 1}, 0.0),
        ({"a": 1, "b": 1}, {"a": 1, "b": 0}, 0.5),
    ],
)
def test_new_weights_move_the_fewest_units(weights: dict[str, float], new: dict[str, float], moved: float) -> None:
    before = Experiment("moves", weights)
    after = before.reweighted(new)
    one, other = assign_array(UNITS, before).to_numpy(False), assign_array(UNITS, after).to_numpy(False)
    assert (one != other).mean() == pytest.approx(moved, abs=0.005)
    # Nobody moves to a variant that does not grow.
    shrunk = {name for name in weights if after.shares.get(name, 0.0) < before.shares[name]}
    assert set(one[one != other]) <= shrunk
    assert not shrunk & set(other[one != other])


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcde"), st.integers(0, 100), min_size=1).filter(
            lambda w: sum(w.values()) > 0
        ),
        min_size=2,
        max_size=5,
    )
)
def test_any_course_of_weights_deals_every_bucket_and_moves_no_more_than_it_must(
    course: list[dict[str, int]],
) -> None:
    experiment = Experiment("course", course[0])
    for weights in course[1:]:
        before, experiment = owners(experiment), experiment.reweighted(weights)
        counts = bucket_counts(weights)
        assert Counter(owners(experiment)) == Counter({name: count for name, count in counts.items() if count})
        former = Counter(before)
        must = sum(max(0, former[name] - counts.get(name, 0)) for name in former)
        assert sum(one != other for one, other in zip(before, owners(experiment), strict=True)) == must


def test_held_out_units_are_in_no_experiment() -> None:
    one = Experiment("one", {"a": 1, "b": 1}, holdout=0.05)
    other = Experiment("other", {"c": 1, "d": 1}, holdout=0.05)
    wider = Experiment("wider", {"e": 1}, holdout=0.1)
    outs = [np.array(assign_array(SOME, each).to_pylist()) == "holdout" for each in (one, other, wider)]
    assert outs[0].mean() == pytest.approx(0.05, abs=0.005)
    np.testing.assert_array_equal(outs[0], outs[1])
    assert not (outs[0] & ~outs[2]).any()
    rest = Counter(assign_array(SOME, one).to_pylist())
    assert chisquare([rest["a"], rest["b"]]).pvalue > 1e-3


def test_experiments_of_one_layer_share_no_unit() -> None:
    parts = ((0.0, 0.3), (0.3, 0.6), (0.6, 1.0))
    experiments = [Experiment(f"e{i}", {"a": 1, "b": 1}, layer="home", part=part) for i, part in enumerate(parts)]
    check_experiments(experiments)
    taken = np.array([[name is not None for name in assign_array(SOME, one).to_pylist()] for one in experiments])
    np.testing.assert_array_equal(taken.sum(axis=0), 1)
    assert taken.mean(axis=1) == pytest.approx([0.3, 0.3, 0.4], abs=0.01)
    # Another layer is dealt independently.
    across = np.array(assign_array(SOME, Experiment("x", {"a": 1, "b": 1}, layer="mail")).to_pylist()) == "a"
    assert across[taken[0]].mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"layer": "home", "part": (0.0, 0.5)}, {"layer": "home", "part": (0.4, 1.0)}, "parts that do not overlap"),
        ({"layer": "home"}, {"layer": "home"}, "parts that do not overlap"),
        ({"salt": "s"}, {"salt": "s"}, "have the salt 's'"),
        ({}, {"name": "one"}, "two experiments have the name 'one'"),
    ],
)
def test_experiments_that_cannot_run_together_are_refused(
    one: dict[str, Any], other: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        check_experiments(
            [Experiment(**{"name": each, "weights": {"a": 1}} | more) for each, more in (("one", one), ("two", other))]
        )


def test_parts_that_touch_by_rounding_do_not_overlap() -> None:
    check_experiments(
        [
            Experiment("one", {"a": 1}, layer="home", part=(0.0, 0.1 + 0.2)),
            Experiment("two", {"a": 1}, layer="home", part=(0.3, 1.0)),
        ]
    )


@pytest.mark.parametrize(
    "experiment", [HALVES, Experiment("l", {"a": 1, "b": 2}, holdout=0.1, layer="x", part=(0, 0.5))]
)
def test_arrow_gives_every_unit_the_variant_that_python_gives_it(experiment: Experiment) -> None:
    texts = [*(str(number) for number in range(2_000)), "", " ", "ä", "a\u0308", "€😀", "line\nbreak", "NULL", "user:1"]
    expected = [assign(text, experiment) for text in texts]
    arrays: list[Any] = [
        pa.array(texts),
        pa.array(texts, pa.large_string()),
        pa.array(texts, pa.string_view()),
        pa.array(texts).dictionary_encode(),
        pa.chunked_array([texts[:500], texts[500:]]),
    ]
    for array in arrays:
        assert assign_array(array, experiment).to_pylist() == expected
    for type_ in (pa.int16(), pa.int64(), pa.uint64()):
        assert assign_array(pa.array(range(2_000), type_), experiment).to_pylist() == expected[:2_000]


def test_a_null_unit_has_no_variant_in_arrow_and_is_an_error_in_python() -> None:
    found = assign_array(pa.array([None, "", "user-1", None, ""]), HALVES).to_pylist()
    assert found == [None, assign("", HALVES), assign("user-1", HALVES), None, assign("", HALVES)]
    assert assign_array(pa.nulls(2), HALVES).to_pylist() == [None, None]
    assert assign_array(pa.array([], pa.string()), HALVES).to_pylist() == []
    with pytest.raises(ExperimentError, match="a unit is None; pass a text or an integer"):
        assign(None, HALVES)  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", [1.0, True, b"user-1"])
def test_units_of_other_types_are_refused(unit: Any) -> None:
    with pytest.raises(ExperimentError, match="pass a text or an integer"):
        assign(unit, HALVES)
    with pytest.raises(ExperimentError, match="pass texts or integers, or cast them"):
        assign_array(pa.array([unit]), HALVES)


def test_a_text_that_utf_8_cannot_hold_is_refused() -> None:
    with pytest.raises(ExperimentError, match="cannot be written in UTF-8"):
        assign("\ud800", HALVES)


@pytest.mark.parametrize("name", ["experiment.yaml", "experiment.json"])
def test_a_saved_experiment_is_read_as_it_was(tmp_path: Path, name: str) -> None:
    experiment = Experiment(
        "ränker", {"control": 0.5, "tief €": 0.5}, salt="2026", holdout=0.05, layer="home", part=(0.25, 0.75)
    ).reweighted({"control": 0.6, "tief €": 0.3, "new": 0.1})
    experiment.save(tmp_path / name)
    read = Experiment.load(tmp_path / name)
    assert read == experiment
    assert read.declaration() == experiment.declaration()


def test_an_experiment_does_not_change_with_the_mapping_that_it_was_made_of() -> None:
    weights = {"control": 1.0, "deep": 1.0}
    experiment = Experiment("ranker", weights)
    weights["deep"] = 9.0
    assert experiment.weights == {"control": 1.0, "deep": 1.0}


def test_a_definition_needs_a_name_and_weights_alone(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("name: ranker\nweights: {control: 50, deep: 50}\n")
    assert Experiment.load(path) == HALVES
    assert HALVES.control == "control"
    assert HALVES.shares == {"control": 0.5, "deep": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "has the name ''"),
        ({"weights": {}}, "give a weight by variant"),
        ({"weights": {"a": -1, "b": 2}}, "weighs -1; use 0 or more"),
        ({"weights": {"a": float("nan")}}, "weighs 'NaN'; use 0 or more"),
        ({"weights": {"a": 0, "b": 0}}, "all weights .* are 0"),
        ({"weights": {"holdout": 1}}, "a variant 'holdout'; use a text other than"),
        ({"weights": {"a": 2, "b": 1}}, "change weights with reweighted"),
        ({"weights": {"a": 1, "c": 1}}, r"buckets for \['a', 'b'\] and weights for \['a', 'c'\]"),
        ({"allocation": {"a": [[0, 5_000]], "b": [[4_999, 9_999]]}}, "bucket 4999 .* belongs to 2 variants"),
        ({"allocation": {"a": [[0, 5_000]], "b": [[5_000, 10_001]]}}, "outside 0 to 10000"),
        ({"allocation": {"a": [0, 5_000]}}, "not a list of pairs"),
        ({"holdout": 1.0}, "holds out 1.0; use a share from 0 to below 1"),
        ({"holdout": "5%"}, "holds out '5%'"),
        ({"layer": "home", "part": [0.5, 0.5]}, "use shares 0 <= from < to <= 1"),
        ({"layer": "home", "part": [0.5, 0.500001]}, "use shares 0 <= from < to <= 1"),
        ({"part": [0.0, 0.5]}, "of no layer; name the layer"),
        ({"part": [0.0, 0.5, 1.0]}, "not a list of pairs"),
        ({"salt": 2026}, "has the salt 2026; use a text"),
        ({"salt": "holdout"}, "which decides who takes part"),
        ({"variants": 2}, r"has the fields \['variants'\]"),
    ],
)
def test_a_definition_that_makes_no_sense_is_refused(tmp_path: Path, change: Mapping[str, Any], message: str) -> None:
    path = tmp_path / "experiment.json"
    declared = Experiment("ranker", {"a": 1, "b": 1}).declaration() | change
    path.write_text(json.dumps(declared))
    with pytest.raises(ExperimentError, match=message) as found:
        Experiment.load(path)
    assert str(path) in str(found.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "name: [", "name: ranker"])
def test_a_file_without_an_experiment_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    with pytest.raises(ExperimentError, match=re.escape("experiment.yaml")):
        Experiment.load(path)


def counted(variants: pa.Array) -> Counter[str]:
    return Counter(variants.to_pylist())


def owners(experiment: Experiment) -> list[str]:
    owner = [""] * BUCKETS
    for name, ranges in experiment.allocation.items():
        for bucket in buckets_of(ranges):
            owner[bucket] = name
    return owner
