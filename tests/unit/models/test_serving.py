"""The signatures of exported models: their indexes (R6), and features of every form (F1, F9)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tf_keras

from data_pipelines.feature_kinds import Categorical, Label, Numeric, Sequence, Sparse, Text
from data_pipelines.features import FeatureSpec
from data_pipelines.fitted import FittedFeatures, NumericStatistics
from data_pipelines.transform import Encoder
from data_pipelines.vocabulary import Vocabulary
from models import multi_field, two_tower
from models.serving import ENCODED_SIGNATURE, RAW_SIGNATURE, SCANN_SIGNATURE, RetrievalModule, ScoringModule, save
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


def test_raw_and_encoded_rows_of_every_form_get_the_same_score(tmp_path: Path) -> None:
    spec = FeatureSpec(
        (
            Numeric("amount", log=True),
            Categorical("customer", hash_buckets=100),
            Sequence("seen", time="seen_at", max_length=3, hash_buckets=100),
            Text("review", max_length=4, hash_buckets=100),
            Sparse("basket", size=1000),
        ),
        Label("late"),
        ("id",),
    )
    fitted = FittedFeatures(spec, {}, {"amount": NumericStatistics(1.0, 2.0, 0.0, 9.0, 3)})
    model = multi_field.build(multi_field.Settings(hidden_units=(4,)), fitted, seed=1)
    save(ScoringModule(multi_field, model, fitted), tmp_path)
    signatures = tf.saved_model.load(str(tmp_path)).signatures
    table = pa.table(
        {
            "amount": [3.5, None, -1.0],
            "customer": ["a", "", "ü"],
            "seen": [["x", "y"], [], ["z"]],
            "seen_at": [[2, 1], [], [5]],
            "review": ["Very good!", "", "bad"],
            "basket": pa.array([[(7, 2.0), (1, 1.0)], [], [(999, 0.5)]], pa.map_(pa.int64(), pa.float64())),
        }
    )
    encoded = {name: tf.constant(values) for name, values in Encoder(fitted).encode_padded(table).items()}
    raw = {
        "amount": tf.constant([3.5, np.nan, -1.0], tf.float64),
        "customer": tf.constant(["a", "", "ü"]),
        "seen": tf.constant([["x", "y"], ["", ""], ["z", ""]]),
        "seen_at": tf.constant([[2, 1], [0, 0], [5, 0]], tf.int64),
        "review": tf.constant(["Very good!", "", "bad"]),
        "basket_indices": tf.constant([[7, 1], [-1, -1], [999, -1]], tf.int64),
        "basket_values": tf.constant([[2.0, 1.0], [0.0, 0.0], [0.5, 0.0]], tf.float64),
    }
    by_raw = signatures[RAW_SIGNATURE](**raw)["score"].numpy()
    by_encoded = signatures[ENCODED_SIGNATURE](**encoded)["score"].numpy()
    assert by_raw.shape == (3,)
    assert len(set(by_raw.tolist())) == 3
    assert by_raw.tolist() == by_encoded.tolist()


class ByIdAlone:
    """An architecture of somebody's own, whose model holds a table beside its weights."""

    @staticmethod
    def predict(model: tf_keras.Model, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {"score": tf.reshape(model(inputs["customer"]), [-1])}


def test_tables_of_a_models_own_layers_are_saved_but_nothing_for_keras_alone(tmp_path: Path) -> None:
    fitted = FittedFeatures(FeatureSpec((Categorical("customer", hash_buckets=100),), Label("late"), ("id",)), {}, {})
    inputs = tf_keras.Input((), dtype=tf.int64)
    known = tf_keras.layers.IntegerLookup(vocabulary=[7, 9])(inputs)
    embedded = tf_keras.layers.Embedding(3, 1, embeddings_initializer=tf_keras.initializers.Constant([[1], [2], [3]]))
    model = tf_keras.Model(inputs, embedded(known))
    save(ScoringModule(cast(ModuleType, ByIdAlone), model, fitted), tmp_path)
    signature = tf.saved_model.load(str(tmp_path)).signatures[ENCODED_SIGNATURE]
    assert signature(customer=tf.constant([9, 5, 7], tf.int64))["score"].numpy().tolist() == [3.0, 1.0, 2.0]
    # Functions that Keras would add for every layer take most of the time of saving and loading.
    assert b"call_and_return" not in (tmp_path / "saved_model.pb").read_bytes()
