"""Fitted features that every architecture can be built on, and raw columns as tensors."""

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
import tensorflow as tf

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary


def vocabulary(tokens: Sequence[str], counts: Sequence[int] | None = None) -> Vocabulary:
    counts = range(len(tokens), 0, -1) if counts is None else counts
    return Vocabulary(pa.array(tokens, pa.string()), pa.array(counts, pa.int64()))


def raw_tensors(raw: pa.Table) -> dict[str, tf.Tensor]:
    """Return the raw columns as a caller of the exported model gives them: NaN, ``""``, padding for what is missing."""
    tensors: dict[str, Any] = {}
    for name in raw.column_names:
        values, kind = raw[name].to_pylist(), raw[name].type
        if not pa.types.is_list(kind):
            missing, dtype = (math.nan, tf.float64) if pa.types.is_floating(kind) else ("", tf.string)
            tensors[name] = tf.constant([missing if value is None else value for value in values], dtype)
            continue
        width = max((len(value or []) for value in values), default=0)
        if pa.types.is_string(kind.value_type):
            missing, dtype = "", tf.string
        else:
            missing, dtype = (math.nan, tf.float64) if pa.types.is_floating(kind.value_type) else (-1, tf.int64)
        padded = [[missing if v is None else v for v in value or []] for value in values]
        padded = [row + [missing] * (width - len(row)) for row in padded]
        tensors[name] = tf.reshape(tf.constant(padded, dtype), [len(values), width])
    return tensors


@pytest.fixture(scope="session")
def flight_features() -> FittedFeatures:
    """Return features with UA = 2, AA = 3 and JFK = 2, LAX = 3, ü = 4; ``earlier`` has the ids of ``dest``."""
    spec = FeatureSpec(
        features=(
            Numeric("distance"),
            Categorical("carrier"),
            Categorical("dest"),
            MultiValued("earlier", max_length=3, vocabulary_of="dest"),
        ),
        label=Label("late"),
        keys=("flight_id",),
    )
    vocabularies = {"carrier": vocabulary(["UA", "AA"]), "dest": vocabulary(["JFK", "LAX", "ü"])}
    return FittedFeatures(spec, vocabularies, {"distance": NumericStatistics(100.0, 50.0, 0.0, 200.0, 4)})


@pytest.fixture(scope="session")
def rating_features() -> FittedFeatures:
    """Return features of a retrieval: a = 2, b = 3, c = 4 were watched 5, 3 and 2 times."""
    spec = FeatureSpec(
        features=(Categorical("user"), Categorical("movie")),
        label=Label("movie", kind="candidate"),
        keys=("user",),
    )
    return FittedFeatures(
        spec, {"user": vocabulary(["u", "v", "w"]), "movie": vocabulary(["a", "b", "c"], [5, 3, 2])}, {}
    )
