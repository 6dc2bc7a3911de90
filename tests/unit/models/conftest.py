"""Fitted features that every architecture can be built on."""

from collections.abc import Sequence

import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary


def vocabulary(tokens: Sequence[str], counts: Sequence[int] | None = None) -> Vocabulary:
    counts = range(len(tokens), 0, -1) if counts is None else counts
    return Vocabulary(pa.array(tokens, pa.string()), pa.array(counts, pa.int64()))


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
