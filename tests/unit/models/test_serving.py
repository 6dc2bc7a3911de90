"""Which signatures an exported retrieval model has (R6)."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from data_pipelines.features import Categorical, FeatureSpec, Label
from data_pipelines.fitted import FittedFeatures, Vocabulary
from models import two_tower
from models.serving import ENCODED_SIGNATURE, RAW_SIGNATURE, SCANN_SIGNATURE, RetrievalModule
from models.top_k import SCANN_LEAST_CANDIDATES

Retrieval = Callable[[int], RetrievalModule]


@pytest.fixture
def retrieval() -> Retrieval:
    """Return a function that makes an untrained model of so many candidates, with a ScaNN index wanted."""

    def make(candidates: int) -> RetrievalModule:
        spec = FeatureSpec((Categorical("user"), Categorical("movie")), Label("movie", kind="candidate"), ("user",))
        movies = Vocabulary(pa.array([f"m{n}" for n in range(candidates)]), pa.array(np.ones(candidates, np.int64)))
        fitted = FittedFeatures(spec, {"user": Vocabulary(pa.array(["u"]), pa.array([1])), "movie": movies}, {})
        model = two_tower.build(two_tower.Settings(embedding_dim=4, hidden_units=()), fitted, seed=1)
        return RetrievalModule(two_tower, model, fitted, 3, scann=True)

    return make


def test_too_few_candidates_for_scann_leave_the_exact_index_alone(retrieval: Retrieval) -> None:
    signatures = retrieval(SCANN_LEAST_CANDIDATES - 1).signatures()
    assert set(signatures) == {RAW_SIGNATURE, ENCODED_SIGNATURE}
    found = signatures[ENCODED_SIGNATURE](user=tf.constant([2, 0], tf.int64))["candidates"].numpy()
    assert found.shape == (2, 3)
    assert (found != b"").all()


def test_enough_candidates_for_scann_have_its_index_too(retrieval: Retrieval) -> None:
    pytest.importorskip("scann", reason="scann is not installed: it has wheels for Linux on x86-64 alone")
    signatures = retrieval(SCANN_LEAST_CANDIDATES).signatures()
    assert set(signatures) == {RAW_SIGNATURE, ENCODED_SIGNATURE, SCANN_SIGNATURE}
