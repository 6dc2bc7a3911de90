"""The signatures of exported models: their indexes (R6), features of every form (F1, F9), lists of any length (F14)."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Numeric, Sequence, Sparse, Text
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import Encoder
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.models import multi_field, two_tower
from mirrorspark.models.index import scann
from mirrorspark.models.layers.input import symbolic_inputs
from mirrorspark.models.serving.export import (
    RetrievalModule,
    ScoringModule,
    build_indexes,
    recalls,
    save,
    save_retrieval,
)
from mirrorspark.models.serving.saved_functions import concrete
from mirrorspark.models.serving.signatures import (
    CANDIDATE_VECTORS,
    ENCODED_SIGNATURE,
    EXACT,
    IVF,
    QUERY_VECTORS,
    RAW_SIGNATURE,
    SCANN,
    scann_folder,
)

SAMPLE = np.random.default_rng(1).normal(size=(30, 4)).astype(np.float32)
LOWEST = np.finfo(np.float32).min
OF_VECTORS = (CANDIDATE_VECTORS, QUERY_VECTORS)


def features(candidates: int, user: str = "user") -> FittedFeatures:
    spec = FeatureSpec(
        (Categorical(user), Categorical("movie")), Label("movie", kind="candidate"), ("key",), exclude="seen"
    )
    movies = Vocabulary(pa.array([f"m{n}" for n in range(candidates)]), pa.array(np.ones(candidates, np.int64)))
    return FittedFeatures(spec, {user: Vocabulary(pa.array(["u"]), pa.array([1])), "movie": movies}, {})


def towers(fitted: FittedFeatures) -> tf_keras.Model:
    return two_tower.build(two_tower.Settings(embedding_dim=4, hidden_units=()), fitted, seed=1)


def retrieval(candidates: int, *, user: str = "user", k: int = 3) -> RetrievalModule:
    """Return an untrained model of ``candidates`` candidates, with all indexes of stock operations."""
    fitted = features(candidates, user)
    model = towers(fitted)
    return RetrievalModule(two_tower, model, fitted, k, build_indexes(model, min(k, candidates), sample=SAMPLE))


def test_a_small_catalogue_has_the_exact_index_alone() -> None:
    assert set(build_indexes(towers(features(15)), 3, scann=True, sample=SAMPLE)) == {EXACT}
    functions = retrieval(15).functions()
    assert set(functions) == {RAW_SIGNATURE, ENCODED_SIGNATURE, EXACT, *OF_VECTORS}
    signature, nothing = concrete(*functions[ENCODED_SIGNATURE]), tf.zeros((2, 0), tf.int64)
    found = signature(user=tf.constant([2, 0], tf.int64), seen=nothing)["candidates"].numpy()
    assert found.shape == (2, 3)
    assert (found != b"").all()


def test_the_building_of_indexes_is_told() -> None:
    reports: list[tuple[str, int, int]] = []
    build_indexes(towers(features(200)), 3, sample=SAMPLE, on_progress=lambda *report: reports.append(report))
    rounds = [("rounds to divide the candidates into lists", done, 10) for done in range(10)]
    assert reports == [("candidates embedded", 0, 202), *rounds]


def test_scann_is_saved_beside_the_indexes_that_load_without_it(tmp_path: Path) -> None:
    """R1: the operation of ScaNN is in a SavedModel of its own."""
    pytest.importorskip("scann", reason="scann is not installed: it has wheels for Linux on x86-64 alone")
    fitted = features(scann.LEAST_CANDIDATES)
    model = towers(fitted)
    indexes = build_indexes(model, 3, scann=True, sample=SAMPLE)
    save_retrieval(two_tower, model, fitted, 3, indexes, tmp_path / "stock")
    stock, beside = (
        tf.saved_model.load(str(folder)) for folder in (tmp_path / "stock", scann_folder(tmp_path / "stock"))
    )
    assert set(stock.signatures) == {RAW_SIGNATURE, ENCODED_SIGNATURE, EXACT, IVF, *OF_VECTORS}
    assert set(beside.signatures) == {SCANN}
    assert b"Scann>" not in (tmp_path / "stock" / "saved_model.pb").read_bytes()


@pytest.mark.parametrize("index", [EXACT, IVF])
def test_an_index_gives_as_many_as_asked_for_of_what_is_available(index: str) -> None:
    """R6: k and the mask are inputs, so neither needs another export; missing places are empty."""
    functions = retrieval(40).functions()
    signatures = {name: concrete(*functions[name]) for name in (index, ENCODED_SIGNATURE)}
    row = {"user": tf.constant([2], tf.int64), "seen": tf.constant([[4, 0]], tf.int64)}

    def search(k: int, unavailable: list[int]) -> tuple[list[bytes], list[float]]:
        mask = tf.constant(unavailable, tf.int64)
        found = signatures[index](**row, most_candidates=tf.constant(k), unavailable_ids=mask)
        return found["candidates"].numpy()[0].tolist(), found["scores"].numpy()[0].tolist()

    every, _ = search(39, [])
    assert set(every) == {b"m%d" % n for n in range(40)} - {b"m2"}
    assert every[:3] == signatures[ENCODED_SIGNATURE](**row)["candidates"].numpy()[0].tolist()
    # Ids 2, 3 and 4 are m0, m1 and m2: with all but those left out, and m2 seen, two are left.
    left, scores = search(3, list(range(5, 42)))
    assert set(left[:2]) == {b"m0", b"m1"}
    assert (left[2], scores[2]) == (b"", LOWEST)


def test_recalls_are_those_of_the_indexes_on_the_sample() -> None:
    found = recalls(build_indexes(towers(features(40)), 3, sample=SAMPLE), 3, SAMPLE)
    assert found[EXACT] == 1.0
    assert 0.95 <= found[IVF] <= 1.0


@pytest.mark.parametrize("k", [0, 5])
def test_a_k_that_cannot_be_met_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k {k} cannot be met by 4 candidates; use 1 to 4"):
        retrieval(4, k=k)


def test_a_feature_with_the_name_of_an_input_of_the_indexes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"inputs called \['unavailable_ids'\]; give the features another name"):
        retrieval(4, user="unavailable_ids")


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_units": (64, 32), "numeric_embedding": "piecewise", "cross_layers": 1, "members": 3, "dropout": 0.1},
        pytest.param({"hidden_units": (64,), "numeric_embedding": "periodic"}, marks=pytest.mark.full),
    ],
    ids=["everything", "periodic"],
)
def test_raw_and_encoded_rows_of_every_form_get_the_same_score(options: dict[str, Any], tmp_path: Path) -> None:
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
    fitted = FittedFeatures(spec, {}, {"amount": NumericStatistics(1.0, 2.0, 0.0, 9.0, 3)}, {"amount": (0.5, 2.0)})
    # With few units, drawn at random, two rows may find all of them silent.
    model = multi_field.build(multi_field.Settings(**options), fitted, seed=1)
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


class Flattening:
    """An architecture of somebody's own, in which every place of a list has weights."""

    @staticmethod
    def predict(model: tf_keras.Model, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {"score": model(inputs)[:, 0]}


def test_a_model_whose_keras_inputs_have_a_length_is_exported_with_that() -> None:
    spec = FeatureSpec((MultiValued("tags", max_length=5, hash_buckets=10),), Label("late"), ("id",))
    inputs = symbolic_inputs(spec.features)
    flat = tf_keras.layers.Flatten()(tf_keras.layers.Embedding(12, 2)(inputs["tags"]))
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(1)(flat))
    module = ScoringModule(cast(ModuleType, Flattening), model, FittedFeatures(spec, {}, {}))
    _, takes = module.functions()[ENCODED_SIGNATURE]
    assert takes["tags"].shape.as_list() == [None, 5]


class OfAnotherTower:
    """An architecture of somebody's own, whose query tower is not a Keras model."""

    @staticmethod
    def predict(model: tf_keras.Model, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return model.query_tower(inputs["user"])


class ModuleTower(tf.Module):
    """A table of one row per id."""

    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(SAMPLE)

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.table, ids)


@pytest.mark.parametrize("kind", ["layer", "module"])
def test_a_query_tower_may_be_a_layer_or_a_module(tmp_path: Path, kind: str) -> None:
    fitted = features(15)
    model = tf_keras.Model()
    model.query_tower = tf_keras.layers.Embedding(len(SAMPLE), 4) if kind == "layer" else ModuleTower()
    model.query_tower(tf.constant([0], tf.int64))  # a trained layer has its variables
    model.candidate_tower = towers(fitted).candidate_tower
    module = RetrievalModule(cast(ModuleType, OfAnotherTower), model, fitted, 3, build_indexes(model, 3))
    save(module, tmp_path)
    signature = tf.saved_model.load(str(tmp_path)).signatures[ENCODED_SIGNATURE]
    seen = tf.zeros([2, 1], tf.int64)
    found = signature(user=tf.constant([2, 1], tf.int64), seen=seen)["candidates"]
    assert found.shape == (2, 3)


class ByIdAlone:
    """An architecture of somebody's own, whose model holds a table in addition to its weights."""

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
