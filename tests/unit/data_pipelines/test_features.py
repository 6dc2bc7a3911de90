"""The feature spec as plain data: its YAML form, its hash, and what it refuses (F1, F3)."""

import dataclasses
import pickle
from typing import Any

import pytest
import yaml

from data_pipelines.features import (
    UNBOUNDED,
    Categorical,
    FeatureSpec,
    FeatureSpecError,
    Label,
    MultiValued,
    Numeric,
)

YAML = """
features:
  distance: {kind: numeric}
  precip: {kind: numeric, impute: 0, standardise: false}
  dest: {kind: categorical, min_count: 10, max_size: 500}
  previous: {kind: multi_valued, max_length: 4, truncate: tail, vocabulary_of: dest}
label: late
keys: [flight_id, day]
weight: importance
"""

SPEC = FeatureSpec(
    features=(
        Numeric("distance"),
        Numeric("precip", impute=0, standardise=False),
        Categorical("dest", min_count=10, max_size=500),
        MultiValued("previous", max_length=4, truncate="tail", vocabulary_of="dest"),
    ),
    label=Label("late"),
    keys=("flight_id", "day"),
    weight="importance",
)

RETRIEVAL = FeatureSpec(
    features=(Categorical("user"), Categorical("movie")),
    label=Label("movie", kind="candidate"),
    keys=("user",),
    exclude="seen",
)


def changed(**parts: Any) -> dict[str, Any]:
    return yaml.safe_load(YAML) | parts


def test_the_yaml_form_says_what_the_dataclasses_say() -> None:
    assert FeatureSpec.from_dict(yaml.safe_load(YAML)) == SPEC


@pytest.mark.parametrize("spec", [SPEC, RETRIEVAL], ids=["binary", "retrieval"])
def test_a_spec_survives_yaml_and_pickle_with_its_hash(spec: FeatureSpec) -> None:
    by_yaml = FeatureSpec.from_dict(yaml.safe_load(yaml.safe_dump(spec.to_dict(), sort_keys=False)))
    by_pickle = pickle.loads(pickle.dumps(spec))  # noqa: S301 - our own bytes
    assert by_yaml == by_pickle == spec
    assert by_yaml.hash == by_pickle.hash == spec.hash
    assert by_yaml.columns == spec.columns


def test_one_key_and_one_label_need_no_list() -> None:
    spec = FeatureSpec.from_dict({"features": {"x": {"kind": "numeric"}}, "label": "y", "keys": "id"})
    assert spec.keys == ("id",)
    assert spec.label == Label("y", "binary")
    assert (spec.weight, spec.exclude) == (None, None)


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(SPEC, features=(Numeric("distance", impute=1.5), *SPEC.features[1:])),
        dataclasses.replace(SPEC, features=SPEC.features[:3]),
        dataclasses.replace(SPEC, features=(SPEC.features[0], *SPEC.features[:0:-1])),
        dataclasses.replace(SPEC, label=Label("early")),
        dataclasses.replace(SPEC, keys=("flight_id",)),
        dataclasses.replace(SPEC, weight=None),
    ],
    ids=["option", "fewer features", "other order", "label", "keys", "weight"],
)
def test_the_hash_changes_with_every_part_of_the_spec(other: FeatureSpec) -> None:
    assert other.hash != SPEC.hash
    assert len(other.hash) == len(SPEC.hash) == 16


def test_columns_lists_each_column_once_keys_first() -> None:
    assert SPEC.columns == ("flight_id", "day", "distance", "precip", "dest", "previous", "late", "importance")
    assert RETRIEVAL.columns == ("user", "movie", "seen")


def test_features_are_found_by_kind_and_by_name() -> None:
    assert [feature.name for feature in SPEC.numeric] == ["distance", "precip"]
    assert [feature.name for feature in SPEC.token_features] == ["dest", "previous"]
    assert SPEC["dest"] is SPEC.features[2]
    assert [SPEC.vocabulary_name(feature) for feature in SPEC.token_features] == ["dest", "dest"]


def test_the_label_of_a_retrieval_is_its_candidate_and_no_query_feature() -> None:
    assert RETRIEVAL.candidate == Categorical("movie")
    assert RETRIEVAL.query_features == (Categorical("user"),)
    assert RETRIEVAL.excluded == MultiValued("seen", max_length=UNBOUNDED, vocabulary_of="movie")
    assert SPEC.query_features == SPEC.features
    assert SPEC.excluded is None


def test_a_binary_label_has_no_candidate() -> None:
    with pytest.raises(FeatureSpecError, match="'late' is of kind binary: there is nothing to retrieve"):
        _ = SPEC.candidate


FEATURE_MISTAKES = {
    "unknown kind": ({"kind": "number"}, r"feature 'x': kind 'number' is unknown; use one of .*'numeric'"),
    "no kind": ({"impute": 0}, "feature 'x': kind 'None' is unknown"),
    "a kind that is no text": ({"kind": ["numeric"]}, "feature 'x': kind .* is unknown"),
    "no options": ("numeric", "feature 'x' is 'numeric'; give a mapping"),
    "empty": (None, "feature 'x' is None; give a mapping"),
    "unknown option": ({"kind": "numeric", "scale": 2}, r"feature 'x': option \['scale'\] is unknown; use .*'impute'"),
    "unknown imputation": ({"kind": "numeric", "impute": "median"}, "impute 'median' is unknown; use mean or a number"),
    "NaN imputation": ({"kind": "numeric", "impute": float("nan")}, "impute nan is unknown"),
    "missing length": ({"kind": "multi_valued"}, "feature 'x': .*max_length"),
    "no length": ({"kind": "multi_valued", "max_length": 0}, "feature 'x': max_length is 0; use a whole number from 1"),
    "length as text": ({"kind": "multi_valued", "max_length": "4"}, "feature 'x': max_length is '4'"),
    "unknown side": (
        {"kind": "multi_valued", "max_length": 4, "truncate": "left"},
        "feature 'x': truncate 'left' is unknown; use head or tail",
    ),
    "rarest below one": ({"kind": "categorical", "min_count": 0}, "feature 'x': min_count is 0"),
    "no room": ({"kind": "categorical", "max_size": 0}, "feature 'x': max_size is 0"),
    "vocabulary of nobody": (
        {"kind": "multi_valued", "max_length": 4, "vocabulary_of": "nobody"},
        r"feature 'x': vocabulary_of 'nobody' is no categorical feature of this spec; use one of \['dest'\]",
    ),
    "vocabulary of a number": (
        {"kind": "multi_valued", "max_length": 4, "vocabulary_of": "distance"},
        "feature 'x': vocabulary_of 'distance' is no categorical feature",
    ),
}


@pytest.mark.parametrize(("options", "message"), FEATURE_MISTAKES.values(), ids=FEATURE_MISTAKES.keys())
def test_a_mistake_in_a_feature_is_named(options: Any, message: str) -> None:
    features = changed()["features"] | {"x": options}
    with pytest.raises(FeatureSpecError, match=message):
        FeatureSpec.from_dict(changed(features=features))


SPEC_MISTAKES = {
    "unknown part": ({"lable": "late"}, r"unknown parts \['lable'\]; use \['features', 'label'"),
    "no features": ({"features": {}}, r"lacks \['features'\]"),
    "no label": ({"label": None}, r"lacks \['label'\]"),
    "no keys": ({"keys": []}, r"lacks \['keys'\]"),
    "features as a list": ({"features": ["distance"]}, r"features is \['distance'\]; give a mapping"),
    "label without a name": ({"label": {"kind": "binary"}}, "label: .*name"),
    "label of an unknown kind": (
        {"label": {"name": "late", "kind": "ordinal"}},
        "label 'late': kind 'ordinal' is unknown; use binary or candidate",
    ),
    "unknown option of the label": ({"label": {"name": "late", "positive": 1}}, r"label: option \['positive'\]"),
    "label as feature": ({"label": "distance"}, "label 'distance' is also a feature or key; a model must not see"),
    "label as key": ({"label": "day"}, "label 'day' is also a feature or key"),
    "candidate that is no feature": (
        {"label": {"name": "late", "kind": "candidate"}},
        r"label 'late' of kind candidate must be a categorical feature of this spec; use one of \['dest'\]",
    ),
    "candidate that is a number": (
        {"label": {"name": "distance", "kind": "candidate"}},
        "must be a categorical feature",
    ),
    "exclusions without candidates": ({"exclude": "seen"}, "exclude 'seen' needs a label of kind candidate"),
    "name that is no column of SQL": ({"keys": ["flight id"]}, "column name 'flight id' cannot be used; rename it"),
    "name that leads out of the folder": ({"weight": "../../weight"}, "column name '../../weight' cannot be used"),
}


@pytest.mark.parametrize(("parts", "message"), SPEC_MISTAKES.values(), ids=SPEC_MISTAKES.keys())
def test_a_mistake_in_the_spec_is_named(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(FeatureSpecError, match=message):
        FeatureSpec.from_dict(changed(**parts))


@pytest.mark.parametrize(
    "clash",
    [{"exclude": "user"}, {"exclude": "movie"}, {"exclude": "id", "keys": ("id",)}, {"weight": "seen"}],
    ids=["feature", "candidate", "key", "weight"],
)
def test_exclusions_need_a_column_of_their_own(clash: dict[str, Any]) -> None:
    with pytest.raises(
        FeatureSpecError, match=r"exclude '(?P<name>.+)' is also a feature, key or weight; .*(?P=name) AS"
    ):
        dataclasses.replace(RETRIEVAL, **clash)


def test_a_feature_listed_twice_is_refused() -> None:
    with pytest.raises(FeatureSpecError, match=r"\['x'\] is listed twice"):
        FeatureSpec((Numeric("x"), Numeric("y"), Categorical("x")), Label("late"), ("id",))


def test_a_name_that_no_model_input_can_have_is_refused() -> None:
    with pytest.raises(FeatureSpecError, match="column name 'Größe' cannot be used"):
        FeatureSpec((Numeric("Größe"),), Label("late"), ("id",))
