"""The graph form of the transform gives the bits of the Arrow form on the same rows (F1)."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from data_pipelines.features import UNBOUNDED, Categorical, Feature, FeatureSpec, Label, MultiValued, Numeric
from data_pipelines.fitted import FittedFeatures, NumericStatistics, Vocabulary
from data_pipelines.transform import Encoder
from models.preprocessing import GraphEncoder, encoded_signature

FEATURES = (
    Numeric("standardised"),
    Numeric("imputed", impute=-7.25),
    Numeric("plain", impute=0.1, standardise=False),
    Numeric("constant"),
    Categorical("token"),
    MultiValued("heads", max_length=3, truncate="head", vocabulary_of="token"),
    MultiValued("tails", max_length=2, truncate="tail"),
)
EXCLUDED = MultiValued("unbounded", max_length=UNBOUNDED, vocabulary_of="token")

ALPHABET = ["a", "B", " ", "ü", "ß", "日", "🛫", "\u0301", "'", "0"]


@pytest.fixture(scope="module")
def fitted() -> FittedFeatures:
    rng = np.random.default_rng(17)
    tokens = [f"{''.join(rng.choice(ALPHABET, rng.integers(1, 6)))}{number}" for number in range(200)]
    vocabulary = Vocabulary(pa.array(tokens, pa.string()), pa.array([1] * len(tokens), pa.int64()))
    statistics = {
        "standardised": NumericStatistics(1234.567890123, 0.3141592653589793, 0.0, 0.0, 9),
        "imputed": NumericStatistics(-3e-5, 7e4, 0.0, 0.0, 9),
        "plain": NumericStatistics(5.0, 2.0, 0.0, 0.0, 9),
        "constant": NumericStatistics(42.1, 0.0, 42.1, 42.1, 9),
    }
    spec = FeatureSpec(FEATURES, Label("label"), ("id",))
    return FittedFeatures(spec, {"token": vocabulary, "tails": vocabulary}, statistics)


def random_rows(fitted: FittedFeatures, rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    known = fitted.vocabularies["token"].tokens.to_pylist()

    def token() -> str | None:
        kind = rng.random()
        if kind < 0.1:
            return None
        if kind < 0.2:
            return ""
        if kind < 0.4:
            return "".join(rng.choice(ALPHABET, rng.integers(1, 300)))
        return str(known[rng.integers(len(known))])

    def tokens() -> list[str | None] | None:
        return None if rng.random() < 0.1 else [token() for _ in range(rng.integers(0, 9))]

    def number() -> float | None:
        kind = rng.random()
        if kind < 0.1:
            return None
        if kind < 0.2:
            return float(rng.choice([math.nan, 0.0, -0.0, 1.0, 42.1, 1e30, -1e30]))
        return float(rng.normal() * 10.0 ** rng.integers(-20, 20))

    columns: dict[str, pa.Array] = {}
    for feature in (*FEATURES, EXCLUDED):
        if isinstance(feature, Numeric):
            columns[feature.name] = pa.array([number() for _ in range(rows)], pa.float64())
        elif isinstance(feature, Categorical):
            columns[feature.name] = pa.array([token() for _ in range(rows)], pa.string())
        else:
            columns[feature.name] = pa.array([tokens() for _ in range(rows)], pa.list_(pa.string()))
    return pa.table(columns)


def raw_tensors(table: pa.Table, features: tuple[Feature, ...]) -> dict[str, tf.Tensor]:
    """Return the rows as a caller of the exported model gives them: NaN and ``""`` for what is missing."""
    raw: dict[str, Any] = {}
    for feature in features:
        values = table.column(feature.name).to_pylist()
        if isinstance(feature, Numeric):
            raw[feature.name] = tf.constant([math.nan if value is None else value for value in values], tf.float64)
        elif isinstance(feature, Categorical):
            raw[feature.name] = tf.constant([value or "" for value in values], tf.string)
        else:
            width = max((len(value or []) for value in values), default=0)
            rows = [[token or "" for token in value or []] for value in values]
            padded = [row + [""] * (width - len(row)) for row in rows]
            raw[feature.name] = tf.reshape(tf.constant(padded, tf.string), [len(values), width])
    return raw


@pytest.mark.parametrize("rows", [400, 1, 0])
def test_graph_and_arrow_give_the_same_bits(fitted: FittedFeatures, rows: int) -> None:
    features = (*FEATURES, EXCLUDED)
    module = GraphEncoder(fitted, features)
    # As a compiled function, because TensorFlow's optimiser may rewrite arithmetic that is exact eagerly.
    encode = tf.function(module, input_signature=[module.signature()])
    table = random_rows(fitted, rows, seed=rows)
    by_graph = encode(raw_tensors(table, features))
    by_arrow = Encoder(fitted).encode_padded(table, features)
    assert list(by_graph) == list(by_arrow) == [feature.name for feature in features]
    for name, expected in by_arrow.items():
        found = by_graph[name].numpy()
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape, name
        np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8), err_msg=name)


def test_the_random_rows_reach_every_kind_of_id(fitted: FittedFeatures) -> None:
    encoded = Encoder(fitted).encode_padded(random_rows(fitted, 400, seed=400))
    assert {0, 1, 2, 201} <= set(encoded["token"].tolist())
    assert {0, 1} < set(encoded["heads"].ravel().tolist())


def test_the_graph_form_by_hand(fitted: FittedFeatures) -> None:
    first, second = fitted.vocabularies["token"].tokens.to_pylist()[:2]
    module = GraphEncoder(fitted, (FEATURES[4], FEATURES[5], FEATURES[6]))
    encoded = module(
        {
            "token": tf.constant([first, "", "nobody"]),
            "heads": tf.constant([[first, "", second, "x", second], [""] * 5, [second, "", "", "", ""]]),
            "tails": tf.constant([[first, "", second, "x"], [""] * 4, [second, "", "", ""]]),
        }
    )
    assert encoded["token"].numpy().tolist() == [2, 0, 1]
    assert encoded["heads"].numpy().tolist() == [[3, 1, 3], [0, 0, 0], [3, 0, 0]]
    assert encoded["tails"].numpy().tolist() == [[2, 3], [0, 0], [3, 0]]


def test_signatures_say_what_goes_in_and_what_comes_out(fitted: FittedFeatures) -> None:
    features = (FEATURES[0], FEATURES[4], FEATURES[5], EXCLUDED)
    assert GraphEncoder(fitted, features).signature() == {
        "standardised": tf.TensorSpec([None], tf.float64, "standardised"),
        "token": tf.TensorSpec([None], tf.string, "token"),
        "heads": tf.TensorSpec([None, None], tf.string, "heads"),
        "unbounded": tf.TensorSpec([None, None], tf.string, "unbounded"),
    }
    assert encoded_signature(features) == {
        "standardised": tf.TensorSpec([None], tf.float32, "standardised"),
        "token": tf.TensorSpec([None], tf.int64, "token"),
        "heads": tf.TensorSpec([None, 3], tf.int64, "heads"),
        "unbounded": tf.TensorSpec([None, None], tf.int64, "unbounded"),
    }
