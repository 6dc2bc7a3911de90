"""The feature spec as plain data: its YAML form, its hash, and what it refuses (F1, F3)."""

import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
import yaml

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import (
    UNBOUNDED,
    Bucketed,
    Categorical,
    Date,
    Feature,
    FeatureSpecError,
    ImageEmbedding,
    Label,
    LabelKind,
    MultiValued,
    Numeric,
    Ordinal,
    Sequence,
    Sparse,
    Text,
    TextEmbedding,
    Vector,
)
from mirrorspark.data_pipelines.features.names import plain_name, repeated_names
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary

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


EVERY_KIND_YAML = r"""
features:
  amount: {kind: numeric, clip: [0, null], log: true}
  grade: {kind: ordinal, order: [low, high], standardise: false}
  joined: {kind: date, order: dmy}
  age: {kind: bucketed, buckets: 4}
  shop: {kind: categorical}
  customer: {kind: categorical, hash_buckets: 1000}
  seen: {kind: sequence, time: seen_at, max_length: 20, vocabulary_of: shop}
  clicked: {kind: sequence, time: seen_at, max_length: 20, hash_buckets: 50}
  bought: {kind: multi_valued, max_length: 5, vocabulary_of: customer}
  review: {kind: text, max_length: 30, min_count: 2}
  query: {kind: text, max_length: 3, pattern: '\s+', hash_buckets: 512, ngrams: [3, 5]}
  basket: {kind: sparse, size: 300000}
  visits: {kind: sparse, size: 100, indices: visit_ids, values: visit_counts}
  picture: {kind: vector, size: 512}
  blurb: {kind: text_embedding, encoder: encoders/minilm, max_length: 64}
  cover: {kind: image_embedding, encoder: encoders/mobilenet.onnx, max_pixels: 1000000}
label: {name: topics, kind: multi_label}
keys: order_id
"""

EVERY_KIND = FeatureSpec(
    features=(
        Numeric("amount", clip=(0, None), log=True),
        Ordinal("grade", order=("low", "high"), standardise=False),
        Date("joined", order="dmy"),
        Bucketed("age", buckets=4),
        Categorical("shop"),
        Categorical("customer", hash_buckets=1000),
        Sequence("seen", time="seen_at", max_length=20, vocabulary_of="shop"),
        Sequence("clicked", time="seen_at", max_length=20, hash_buckets=50),
        MultiValued("bought", max_length=5, vocabulary_of="customer"),
        Text("review", max_length=30, min_count=2),
        Text("query", max_length=3, pattern=r"\s+", hash_buckets=512, ngrams=(3, 5)),
        Sparse("basket", size=300_000),
        Sparse("visits", size=100, indices="visit_ids", values="visit_counts"),
        Vector("picture", size=512),
        TextEmbedding("blurb", "encoders/minilm", max_length=64),
        ImageEmbedding("cover", "encoders/mobilenet.onnx", max_pixels=1_000_000),
    ),
    label=Label("topics", kind="multi_label"),
    keys=("order_id",),
)


def changed(**parts: Any) -> dict[str, Any]:
    return yaml.safe_load(YAML) | parts


@pytest.mark.parametrize(
    ("names", "user", "found"),
    [
        (("hour", "user_id"), None, "user_id"),
        (("customerId", "town"), None, "customerId"),
        (("user_age", "userCountry", "hour"), None, None),
        (("hour", "kunde"), "kunde", "kunde"),
        (("user", "household"), "household", "household"),
    ],
)
def test_a_user_is_what_the_spec_calls_one_or_nobody(
    names: tuple[str, ...], user: str | None, found: str | None
) -> None:
    features = (*map(Categorical, names), Categorical("movie"))
    spec = FeatureSpec(features, Label("movie", "candidate"), keys=("row",), user=user)
    assert spec.user_feature == found
    assert FeatureSpec.from_dict(spec.to_dict()) == spec
    assert FeatureSpec.from_dict(spec._edited()) == spec
    assert ("user" in spec.to_dict()) == (user is not None)


@pytest.mark.parametrize(
    ("user", "kind", "message"),
    [
        ("movie", "candidate", "user 'movie' is not a feature of the query with a single id per row; use one of"),
        ("age", "candidate", "use one of \\['town'\\]"),
        ("town", "binary", "user 'town' needs a label of kind candidate"),
    ],
)
def test_a_user_who_is_not_a_single_id_of_the_query_is_refused(user: str, kind: Any, message: str) -> None:
    features = (Categorical("town"), Numeric("age"), *([Categorical("movie")] if kind == "candidate" else []))
    with pytest.raises(FeatureSpecError, match=message):
        FeatureSpec(features, Label("movie", kind), keys=("row",), user=user)


def test_the_yaml_form_says_what_the_dataclasses_say() -> None:
    assert FeatureSpec.from_dict(yaml.safe_load(YAML)) == SPEC
    assert FeatureSpec.from_dict(yaml.safe_load(EVERY_KIND_YAML)) == EVERY_KIND


@pytest.mark.parametrize("spec", [SPEC, RETRIEVAL, EVERY_KIND], ids=["binary", "retrieval", "every kind"])
def test_a_spec_survives_yaml_and_pickle_with_its_hash(spec: FeatureSpec) -> None:
    by_yaml = FeatureSpec.from_dict(yaml.safe_load(yaml.safe_dump(spec.to_dict(), sort_keys=False)))
    by_pickle = pickle.loads(pickle.dumps(spec))  # noqa: S301 - our own bytes
    assert by_yaml == by_pickle == spec
    assert by_yaml.hash == by_pickle.hash == spec.hash
    assert by_yaml.columns == spec.columns


def test_a_spec_prints_a_line_per_feature() -> None:
    first, *features = str(SPEC).split("\n")
    assert first.startswith(f"label {SPEC.label.name} (binary), keys ")
    assert [line.split()[0] for line in features] == [feature.name for feature in SPEC.features]


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
        FeatureSpec((*SPEC.features, TextEmbedding("blurb", "e")), SPEC.label, SPEC.keys, SPEC.weight),
        FeatureSpec((*SPEC.features, TextEmbedding("blurb", "e", digest="1")), SPEC.label, SPEC.keys, SPEC.weight),
    ],
    ids=["option", "fewer features", "other order", "label", "keys", "weight", "text", "encoder"],
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


def test_every_kind_says_what_it_is_to_the_model_and_what_it_is_read_from() -> None:
    forms = {feature.name: feature.form for feature in EVERY_KIND}
    assert forms == {
        "amount": "value",
        "grade": "value",
        "joined": "value",
        "age": "id",
        "shop": "id",
        "customer": "id",
        "seen": "ids",
        "clicked": "ids",
        "bought": "ids",
        "review": "ids",
        "query": "ids",
        "basket": "sparse",
        "visits": "sparse",
        "picture": "vector",
        "blurb": "vector",
        "cover": "vector",
    }
    assert EVERY_KIND["seen"].columns == ("seen", "seen_at")
    assert EVERY_KIND["basket"].columns == ("basket",)
    assert EVERY_KIND["visits"].columns == ("visit_ids", "visit_counts")
    assert EVERY_KIND["basket"].raw == {"basket_indices": "indices", "basket_values": "values"}
    assert EVERY_KIND["visits"].raw == {"visit_ids": "indices", "visit_counts": "values"}


def test_a_column_that_two_features_read_is_listed_once() -> None:
    assert EVERY_KIND.columns.count("seen_at") == 1
    assert "visits" not in EVERY_KIND.columns


def test_vocabularies_are_learnt_for_what_neither_hashes_nor_shares_and_for_a_label_of_tokens() -> None:
    assert [owner.name for owner in EVERY_KIND.vocabulary_owners] == ["shop", "review", "topics"]
    assert EVERY_KIND.label_tokens == MultiValued("topics", max_length=UNBOUNDED)
    numbered = dataclasses.replace(EVERY_KIND, label=Label("topic", "multi_class", classes=7))
    assert [owner.name for owner in numbered.vocabulary_owners] == ["shop", "review"]
    learnt = dataclasses.replace(EVERY_KIND, label=Label("topic", "multi_class"))
    assert learnt.label_tokens == Categorical("topic")
    assert SPEC.label_tokens is None


def test_the_classes_of_an_ordinal_label_come_back_in_their_order_and_are_part_of_the_hash(tmp_path: Path) -> None:
    ordinal = dataclasses.replace(EVERY_KIND, label=Label("size", "ordinal", classes=("S", "M", "L")))
    assert ordinal.to_dict()["label"] == {"name": "size", "kind": "ordinal", "classes": ["S", "M", "L"]}
    assert FeatureSpec.from_dict(json.loads(json.dumps(ordinal.to_dict()))) == ordinal
    ordinal.save(tmp_path / "spec.yaml")
    assert FeatureSpec.load(tmp_path / "spec.yaml") == ordinal
    turned = dataclasses.replace(ordinal, label=Label("size", "ordinal", classes=("L", "M", "S")))
    assert turned.hash != ordinal.hash
    # The order says all classes, so none is learnt.
    assert [owner.name for owner in ordinal.vocabulary_owners] == ["shop", "review"]
    assert ordinal.label.prediction == "probability of each class of size"


def test_a_feature_that_shares_hashed_ids_is_hashed_alike() -> None:
    buckets = {feature.name: EVERY_KIND.hash_buckets(feature) for feature in EVERY_KIND.token_features}
    assert buckets == {
        "shop": None,
        "customer": 1000,
        "seen": None,
        "clicked": 50,
        "bought": 1000,
        "review": None,
        "query": 512,
    }


def test_the_label_of_a_retrieval_is_its_candidate_and_no_query_feature() -> None:
    assert RETRIEVAL.candidate == Categorical("movie")
    assert RETRIEVAL.query_features == (Categorical("user"),)
    assert RETRIEVAL.excluded == MultiValued("seen", max_length=UNBOUNDED, vocabulary_of="movie")
    assert SPEC.query_features == SPEC.features
    assert SPEC.excluded is None


def test_a_rating_is_read_and_measured_and_no_query_feature() -> None:
    rated = dataclasses.replace(RETRIEVAL, label=Label("movie", "candidate", rating="stars"))
    assert rated.columns == (*RETRIEVAL.columns[:-1], "stars", RETRIEVAL.columns[-1])
    assert rated.measured == (Numeric("stars"),)
    assert rated.query_features == RETRIEVAL.query_features
    assert FeatureSpec.from_dict(rated.to_dict()) == rated
    assert "rating" not in RETRIEVAL.to_dict()["label"], "specs from before there were ratings have another hash"


def test_a_binary_label_has_no_candidate() -> None:
    with pytest.raises(FeatureSpecError, match="'late' is of kind binary: there is nothing to retrieve"):
        _ = SPEC.candidate


def test_number_is_another_name_of_the_kind_numeric(tmp_path: Path) -> None:
    given = {"features": {"x": {"kind": "number"}}, "label": {"name": "y", "kind": "number"}, "keys": ["id"]}
    spec = FeatureSpec.from_dict(given)
    assert spec == FeatureSpec((Numeric("x"),), Label("y", "numeric"), ("id",))
    assert (spec.hash, spec.label.form) == ("b676aebf97a5a7d2", "numeric")  # as before the kinds had one name
    spec.save(tmp_path / "spec.yaml")
    assert "number" not in (tmp_path / "spec.yaml").read_text()
    assert FeatureSpec.load(tmp_path / "spec.yaml") == spec


FEATURE_MISTAKES = {
    "unknown kind": (
        {"kind": "numerical"},
        r"kind 'numerical' is unknown \(did you mean 'numeric'\?\); use one of .*'numeric'",
    ),
    "no kind": ({"impute": 0}, "feature 'x': kind 'None' is unknown"),
    "a kind that is not a text": ({"kind": ["numeric"]}, "feature 'x': kind .* is unknown"),
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
    "range that is none": (
        {"kind": "numeric", "clip": [3, 1]},
        r"feature 'x': clip \(3, 1\) is not a range; give the low",
    ),
    "range of nothing": ({"kind": "numeric", "clip": [None, None]}, r"feature 'x': clip \(None, None\) is not a range"),
    "range as a number": ({"kind": "numeric", "clip": 3}, "feature 'x': clip 3 is not a range"),
    "range up to infinity": ({"kind": "numeric", "clip": [0, float("inf")]}, "is not a range"),
    "switch as text": ({"kind": "numeric", "log": "yes"}, "feature 'x': log is 'yes'; use true or false"),
    "ranks without an order": ({"kind": "ordinal"}, r"'x': order \(\) is not a list of two or more texts"),
    "ranks of numbers": ({"kind": "ordinal", "order": [1, 2]}, r"order \(1, 2\) is not .*numbers in quotes"),
    "ranks that repeat": ({"kind": "ordinal", "order": ["a", "b", "a"]}, r"'x': order has \['a'\] twice"),
    "dates in no order": ({"kind": "date", "order": "ydm"}, "feature 'x': order 'ydm' is unknown; use ymd or dmy"),
    "one bucket": ({"kind": "bucketed", "buckets": 1}, "feature 'x': buckets is 1; use a whole number from 2 on"),
    "no hash buckets": ({"kind": "categorical", "hash_buckets": 0}, "feature 'x': hash_buckets is 0"),
    "hash with a vocabulary": (
        {"kind": "categorical", "hash_buckets": 10, "min_count": 2},
        "feature 'x': hash_buckets learns no vocabulary; leave out min_count and max_size",
    ),
    "hash with another's vocabulary": (
        {"kind": "multi_valued", "max_length": 4, "hash_buckets": 10, "vocabulary_of": "dest"},
        "feature 'x' has vocabulary_of and hash_buckets; leave one of them out",
    ),
    "sequence without times": ({"kind": "sequence", "max_length": 4}, "feature 'x': .*time"),
    "n-grams with a vocabulary": (
        {"kind": "text", "max_length": 4, "ngrams": [3, 5]},
        "feature 'x': ngrams are hashed; give hash_buckets",
    ),
    "n-grams of a mark": (
        {"kind": "text", "max_length": 4, "hash_buckets": 9, "ngrams": [1, 5]},
        r"feature 'x': ngrams \(1, 5\) is not a range; give the fewest and the most characters, whole numbers from 2",
    ),
    "n-grams as a number": (
        {"kind": "text", "max_length": 4, "hash_buckets": 9, "ngrams": 3},
        "feature 'x': ngrams 3 is not a range",
    ),
    "n-grams that fall": (
        {"kind": "text", "max_length": 4, "hash_buckets": 9, "ngrams": [5, 3]},
        r"feature 'x': ngrams \(5, 3\) is not a range",
    ),
    "text split at a script": (
        {"kind": "text", "max_length": 4, "pattern": r"\p{Greek}"},
        r"feature 'x': pattern .* has the class '\\p\{Greek\}'; use a general category",
    ),
    "sequence that is its own time": (
        {"kind": "sequence", "max_length": 4, "time": "x"},
        "feature 'x': time is its own column; name the column of the times",
    ),
    "indices that are the values": (
        {"kind": "sparse", "size": 9, "indices": "i", "values": "i"},
        "feature 'x': indices and values are both column 'i'; name one column for each",
    ),
    "vector without a size": ({"kind": "sparse"}, "feature 'x': .*size"),
    "indices without values": (
        {"kind": "sparse", "size": 9, "indices": "i"},
        "feature 'x': give both indices and values, or neither for one column",
    ),
    "one column as two things": (
        {"kind": "sequence", "max_length": 4, "time": "distance"},
        "feature 'x' takes column 'distance' as times, 'distance' as number; give the table a column of its own",
    ),
    "vocabulary of nobody": (
        {"kind": "multi_valued", "max_length": 4, "vocabulary_of": "nobody"},
        r"feature 'x': vocabulary_of 'nobody' is not a categorical feature of this spec; use one of \['dest'\]",
    ),
    "vocabulary of a number": (
        {"kind": "multi_valued", "max_length": 4, "vocabulary_of": "distance"},
        "feature 'x': vocabulary_of 'distance' is not a categorical feature",
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
    "text without an encoder": (
        {"features": {"x": {"kind": "text_embedding", "encoder": ""}}},
        "feature 'x': encoder is ''; give the path of a folder with a SavedModel or an ONNX file",
    ),
    "image of no pixels": (
        {"features": {"x": {"kind": "image_embedding", "encoder": "e", "max_pixels": 0}}},
        "feature 'x': max_pixels is 0; use a whole number from 1 on",
    ),
    "text cut to nothing": (
        {"features": {"x": {"kind": "text_embedding", "encoder": "e", "max_length": 2}}},
        "feature 'x': max_length is 2; use a whole number from 3 on",
    ),
    "label of an unknown kind": (
        {"label": {"name": "late", "kind": "ranked"}},
        "label 'late': kind 'ranked' is unknown; use one of .*'multi_label', 'numeric', 'ordinal'",
    ),
    "unknown option of the label": ({"label": {"name": "late", "threshold": 1}}, r"label: option \['threshold'\]"),
    "label as feature": ({"label": "distance"}, "label 'distance' is also a feature or key; a model must not see"),
    "key twice": ({"keys": ["day", "day"]}, r"keys \['day', 'day'\] name a column twice; keep one of each"),
    "label as weight": ({"weight": "late"}, "weight 'late' is also the label; give the table a column of its own"),
    "label as key": ({"label": "day"}, "label 'day' is also a feature or key"),
    "classes of a binary label": (
        {"label": {"name": "late", "classes": 2}},
        "label 'late': classes is 2, but a label of kind binary has none; leave it out",
    ),
    "no classes": (
        {"label": {"name": "late", "kind": "multi_class", "classes": 0}},
        "label 'late': classes is 0; use a whole number from 1 on",
    ),
    "candidate that is hashed": (
        {
            "features": {"x": {"kind": "categorical", "hash_buckets": 9}},
            "label": {"name": "x", "kind": "candidate"},
        },
        "label 'x' is hashed; a hash does not lead back to the token to recommend: leave out hash_buckets",
    ),
    "label that a feature is read from": (
        {"features": {"x": {"kind": "sparse", "size": 3, "indices": "late", "values": "v"}}},
        "label 'late' is also a feature or key; a model must not see its label",
    ),
    "part of a sparse feature": (
        {"features": {"x": {"kind": "sparse", "size": 3}, "x_row_lengths": {"kind": "numeric"}}},
        "feature 'x_row_lengths' has the name of a part of sparse feature 'x'; rename one",
    ),
    "candidate that is not a feature": (
        {"label": {"name": "late", "kind": "candidate"}},
        r"label 'late' of kind candidate must be a categorical feature of this spec; use one of \['dest'\]",
    ),
    "rating of another label": (
        {"label": {"name": "late", "rating": "stars"}},
        "label 'late': rating is 'stars', but a label of kind binary has none; leave it out, or use kind candidate",
    ),
    "rating that is a feature": (
        {"label": {"name": "dest", "kind": "candidate", "rating": "distance"}},
        "rating 'distance' of label 'dest' is also a feature, key, weight or exclude; a model must not see its own",
    ),
    "candidate that is a number": (
        {"label": {"name": "distance", "kind": "candidate"}},
        "must be a categorical feature",
    ),
    "exclusions without candidates": ({"exclude": "seen"}, "exclude 'seen' needs a label of kind candidate"),
    "name that is empty": ({"keys": [""]}, "the column name '' is empty; give the column a name"),
    "name with half of a character": (
        {"weight": "a\ud800"},
        "has half of a character, which UTF-8 cannot hold; rename",
    ),
    "name with a null character": ({"keys": ["a\0b"]}, "has a null character; rename the column"),
    "name that is a number": ({"keys": [7]}, r"is not a text; rename .* df.columns = df.columns.astype\(str\)"),
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


def test_a_name_may_have_any_characters_and_its_files_stay_in_their_folder(tmp_path: Path) -> None:
    names = ("Größe", "../../Größe", "a/b", "a b", "a.b", "年齢", "x" * 300, "con:", "_id")
    spec = FeatureSpec(tuple(map(Categorical, names)), Label("is late?"), ("flight id",))
    words = Vocabulary(pa.array(["a"]), pa.array([1]))
    fitted = FittedFeatures(spec, dict.fromkeys(names, words), {})
    fitted.save(tmp_path / "features")
    assert FittedFeatures.load(tmp_path / "features").hash == fitted.hash
    assert [path.name for path in tmp_path.iterdir()] == ["features"]
    files = {path.name for path in (tmp_path / "features" / "vocabularies").iterdir()}
    assert len(files) == len(names)
    assert "_id.arrow" in files
    assert all(re.fullmatch(r"[A-Za-z0-9_]{1,60}\.arrow", name) for name in files)
    spec.save(tmp_path / "spec.yaml")
    assert FeatureSpec.load(tmp_path / "spec.yaml") == spec


def test_a_name_that_is_plain_stays_and_any_other_is_told_by_a_digest() -> None:
    assert plain_name("dep_delay2") == "dep_delay2"
    assert re.fullmatch("is_late_[0-9a-f]{8}", plain_name("is late"))
    assert re.fullmatch("column_[0-9a-f]{8}", plain_name("年齢"))
    assert re.fullmatch("class_[0-9a-f]{8}", plain_name("class"))
    assert re.fullmatch("column_1st_[0-9a-f]{8}", plain_name("1st"))
    assert len({plain_name(name) for name in ("a b", "a  b", "a.b", "a_b", "_a_b", "a_b ")}) == 6


RECIPES_PAGE = Path(__file__).resolve().parents[3] / "docs" / "recipes.md"


def test_the_page_lists_every_kind_with_all_its_options() -> None:
    section = RECIPES_PAGE.read_text(encoding="utf-8").partition("## The features")[2].partition("## The model")[0]
    of_features, _, of_labels = section.partition("`label` is a column")
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|", of_features, re.MULTILINE))
    assert set(get_args(LabelKind)) == set(re.findall(r"^\| `(\w+)` \|[^|]*\|[^|]*\|$", of_labels, re.MULTILINE))
    kinds = {kind.kind: kind for kind in get_args(Feature)}
    documented = {kind: set(re.findall(r"`(\w+)`", rows[kind])) for kind in kinds}
    for name, kind in kinds.items():
        options = {knob.name for knob in dataclasses.fields(kind)} - {"name"}
        assert options <= documented[name], name


def test_the_page_s_example_is_a_spec() -> None:
    section = RECIPES_PAGE.read_text(encoding="utf-8").partition("## The features")[2]
    [example] = re.findall(r"```yml\n(features:.*?)```", section, re.DOTALL)
    features = yaml.safe_load(example)["features"] | {"product": {"kind": "categorical"}}
    spec = FeatureSpec.from_dict({"features": features, "label": "orders_again", "keys": "order_id"})
    assert {feature.kind for feature in spec} == {
        "numeric",
        "ordinal",
        "date",
        "target_encoding",
        "bucketed",
        "categorical",
        "sequence",
        "text",
        "sparse",
        "vector",
        "text_embedding",
        "image_embedding",
    }


def test_names_that_come_more_than_once_are_told_once() -> None:
    assert repeated_names(["b", "a", "c", "b", "a", "b"]) == ["a", "b"]
    assert repeated_names(name for name in ("a", "A")) == []
