"""The contract of the catalog's architectures: features of every kind, exact resume, sparse gradients, equal scores.

A new architecture takes part by being in the catalog, with its own settings unless ``OPTIONS`` has smaller ones.
``tests/processes/training/test_every_architecture.py`` trains the same models on another number of ranks, and
``tests/cluster/test_every_architecture.py`` scores them by Spark and MLflow.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tf_keras
from scipy.sparse import csr_array
from scipy.special import expit, softmax
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from mirrorspark.callbacks.checkpoints.training_state import tensors
from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.item_rows import with_items
from mirrorspark.data_pipelines.features.kinds import (
    FIRST_VOCABULARY_ID,
    Categorical,
    Label,
    MultiValued,
    Sparse,
    Text,
    TextEmbedding,
    Vector,
)
from mirrorspark.data_pipelines.features.raw_columns import raw_inputs
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import Encoder
from mirrorspark.models import catalog
from mirrorspark.models.calibration import CalibratedArchitecture, Calibration
from mirrorspark.models.classical import RECOMMENDERS
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.models.index.ranked_lists import CANDIDATES, SCORES
from mirrorspark.models.serving.export import (
    RetrievalModule,
    ScoringModule,
    build_indexes,
    candidate_embeddings,
    save,
)
from mirrorspark.models.serving.preprocessing import model_inputs
from mirrorspark.models.serving.saved_functions import concrete
from mirrorspark.models.serving.signatures import ENCODED_SIGNATURE, EXACT
from mirrorspark.models.settings import ModelSettingsError
from mirrorspark.recommending.ratings import rating_model
from mirrorspark.scoring.backends.protocol import ModelOutputError
from mirrorspark.scoring.embedding.model_encoders import graph_encoders, save_features
from mirrorspark.scoring.model.folder.directory import SAVED_MODEL_FOLDER
from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.model.loading.cache import load_once
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.predictor import Predictor
from mirrorspark.scoring.task import Scorer, ScoringOptions, ShippedModel
from mirrorspark.scoring.task.counts import ScoringCounts
from mirrorspark.serving.export.export import export_model
from mirrorspark.training.programs.recommenders.fitting import scores_of
from mirrorspark.training.programs.recommenders.lists import best
from mirrorspark.training.results.evaluation.ranking import best_candidates
from tests.unit.models.conftest import raw_tensors, vocabulary
from tests.unit.scoring.encoders import embedded, recorded, save_word_encoder
from tests.unit.scoring.exported_models import ORDERS, described, orders_features

# Settings that make an architecture small, with all that it draws by chance; without a line it has its own.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "lstm_retrieval": {"embedding_dim": 4, "hidden_units": [8], "dropout": 0.2, "negatives": 5, "lstm_units": 5},
    "multi_class": {"embedding_dim": 4, "hidden_units": [8], "dropout": 0.2, "linear": True},
    "multi_field": {"embedding_dim": 4, "hidden_units": [8], "dropout": 0.2},
    "multi_label": {"embedding_dim": 4, "hidden_units": [8], "dropout": 0.2, "linear": True},
    "ordinal": {"embedding_dim": 4, "hidden_units": [8], "dropout": 0.2, "linear": True},
    "regression": {"embedding_dim": 4, "hidden_units": [8], "dropout": 0.2, "linear": True},
    "sasrec": {"embedding_dim": 4, "blocks": 1, "heads": 2, "dropout": 0.2, "negatives": 5, "sampling": "popularity"},
    "two_tower": {"embedding_dim": 4, "hidden_units": [8], "dropout": 0.2},
    "wide_deep": {"embedding_dim": 4, "hidden_units": [8], "dropout": 0.2, "crosses": ["customer*movie"]},
    "youtube_dnn": {
        "embedding_dim": 4,
        "hidden_units": [8],
        "dropout": 0.2,
        "negatives": 5,
        "hard_negatives": 3,
        "index_negatives": 2,
    },
}
# Options of an architecture with items, in addition to those above.
OPTIONS_WITH_ITEMS: Mapping[str, Mapping[str, Any]] = {
    "lstm_retrieval": {"candidate_id": False},
    "sasrec": {"cosine": True},
    "two_tower": {"sampling": "mixed", "negatives": 5},
}
# Classical recommenders, which are fitted without steps; their parameters are drawn at random here.
RECOMMENDER_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    **{name: {} for name in RECOMMENDERS},
    "als": {"rank": 4},
    "bspm": {"last_items": 2},
    "item_knn": {"neighbours": 3},
}
# One of rows, one of vectors and items, one that reads an order, and both kinds of recommenders are saved and loaded in
# every run of the tests; of the others the graph that would be saved is asked.
SAVED = ("als", "ease", "multi_class", "sasrec", "two_tower")
# Architectures that learn ratings, too.
RATERS = ("two_tower",)
# One of each kind of calibration; in others the same operations are in a graph.
EXPORTED_WITH_A_CALIBRATION = ("multi_class", "multi_field")
LABELS = {
    "binary": Label("again"),
    "multi_class": Label("genre", "multi_class", classes=3),
    "multi_label": Label("genres", "multi_label", classes=3),
    "regression": Label("price", "numeric"),
    "retrieval": Label("movie", "candidate", rating="stars"),
}
# Of architectures that learn another kind of label of their task.
OWN_LABELS = {"ordinal": Label("genre", "ordinal", classes=("comedy", "drama", "noir"))}
# The columns that training reads for each kind of label.
TARGETS = {
    "binary": [1.0, 0.0, 1.0],
    "multi_class": [2, 0, 1],
    "multi_label": [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    "regression": [9.0, 3.0, 30.0],
    "retrieval": [4.0, 2.5, 5.0],
}
# Every kind of feature, and every kind of missing value.
ROWS = (
    ORDERS.append_column("watched", pa.array([["m3", "m0", "m5"], None, ["m7"] * 9]))
    .append_column("seen", pa.array([["m1", "m2"], [], None], pa.list_(pa.string())))
    .append_column("movie", pa.array(["m4", "m0", "m9"]))
    .append_column("comment", pa.array([" toy  Story", None, "unseen 2"]))
)
MOVIES, K = 120, 5
# Of the fields that are embedded apart: the movies, and the indices of the wider sparse vector.
FEWEST_IDS = 100
STEPS = 1
# Users and movies of a graph, each pair once; some have none.
PAIRS = np.unique(np.random.default_rng(6).integers(2, 90, [300, 2]), axis=0).T


WITH_ITEMS, OVER_A_GRAPH, BY_RANKS = " with items", " over a graph", " by ranks"
# Nothing is drawn by chance, and all candidates are compared: so it does not matter which rank has which rows.
OPTIONS_OF_RANKS: Mapping[str, Any] = {"dropout": 0.0, "id_dropout": 0.0, "sampling": "uniform", "negatives": 10_000}
ITEMS = FeatureSpec.of_items(
    "id",
    [
        Categorical("genre"),
        MultiValued("words", max_length=3),
        Text("title", max_length=20, hash_buckets=40, ngrams=(2, 3)),
        Vector("poster", size=2),
        Sparse("plot", size=300, indices="plot_words", values="plot_weights"),
    ],
)


@dataclasses.dataclass
class Trained:
    """A model after some steps, and the same model interrupted in between."""

    architecture: ModuleType
    name: str
    fitted: FittedFeatures
    batch: Any
    model: Any
    resumed: Any

    @property
    def is_retrieval(self) -> bool:
        return bool(self.architecture.TASK == "retrieval")

    @property
    def is_recommender(self) -> bool:
        return self.name in RECOMMENDERS


@pytest.fixture(scope="module")
def comment(tmp_path_factory: pytest.TempPathFactory) -> TextEmbedding:
    return comment_of(tmp_path_factory.mktemp("encoder"))


def comment_of(folder: Path) -> TextEmbedding:
    """Return a text with its encoder, which is saved below ``folder``."""
    return recorded(TextEmbedding("comment", str(save_word_encoder(folder / "words"))), size=3)


def features(task: str, comment: TextEmbedding, *, items: bool, label: Label | None = None) -> FittedFeatures:
    """Return features of every kind, of which one list has the movies' tokens; ``items`` have features, too.

    The label is that of the task unless given.
    """
    orders = orders_features()
    others = (MultiValued("watched", max_length=6, vocabulary_of="movie"), Categorical("movie"), comment)
    is_retrieval = task == "retrieval"
    spec = FeatureSpec(
        (*orders.spec.features, *others), label or LABELS[task], ("order_id",), exclude="seen" if is_retrieval else None
    )
    movies = [f"m{number}" for number in range(MOVIES)]
    fitted = dataclasses.replace(
        orders,
        spec=dataclasses.replace(spec, items=ITEMS) if items else spec,
        vocabularies={"movie": vocabulary(movies)},
        statistics={
            **orders.statistics,
            "price": NumericStatistics(9.0, 3.0, 1.0, 50.0, 20),
            "stars": NumericStatistics(3.5, 1.0, 0.5, 5.0, 20),
        },
    )
    if not items:
        return fitted
    table = pa.table(
        {
            # The last one has no training row.
            "id": [*movies, "new"],
            "genre": [("war", "noir", None)[number % 3] for number in range(MOVIES + 1)],
            "words": [["x", "y"][: number % 3] for number in range(MOVIES + 1)],
            "title": [("A Film", None, "Filme")[number % 3] for number in range(MOVIES + 1)],
            "poster": [[number / MOVIES, 0.5] for number in range(MOVIES + 1)],
            "plot_words": [[number, 250][: number % 3] for number in range(MOVIES + 1)],
            "plot_weights": [[0.5, 2.0][: number % 3] for number in range(MOVIES + 1)],
        }
    )
    known = {"id": vocabulary(["m0"]), "genre": vocabulary(["war", "noir"]), "words": vocabulary(["x", "y"])}
    return with_items(fitted, FittedFeatures(ITEMS, known, {}), table)


def options(case: str) -> Mapping[str, Any]:
    """Return the settings of a case."""
    name = name_of(case)
    of_items = OPTIONS_WITH_ITEMS.get(name, {}) if WITH_ITEMS in case else {}
    found = {**OPTIONS.get(name, {}), **of_items, **({"graph_layers": 2} if OVER_A_GRAPH in case else {})}
    if BY_RANKS not in case:
        return found
    return found | {
        name: value for name, value in OPTIONS_OF_RANKS.items() if name in catalog.setting_names(name_of(case))
    }


def name_of(case: str) -> str:
    """Return the name of a case's architecture."""
    return case.partition(" ")[0]


def compiled(case: str, fitted: FittedFeatures, seed: int) -> Any:
    """Return a compiled model whose initial weights follow from ``seed``."""
    name = name_of(case)
    architecture = catalog.architecture(name)
    tf_keras.utils.set_random_seed(seed)
    # The architecture's own seed is part of the configuration, which is the same in a resumed run.
    model = architecture.build(catalog.settings(name, options(case)), fitted, 1)
    if OVER_A_GRAPH in case:
        model.graph.connect(*PAIRS)
    # The candidates' gradients are sparse.
    optimizer = "lazy_adam" if architecture.TASK == "retrieval" else "adam"
    if BY_RANKS in case:
        # Adam makes a whole step of a gradient that is rounding alone, as that of an attention's key bias is.
        optimizer = "sgd"
    compile_model(model, architecture.TASK, build_optimizer(OptimizerSettings(optimizer, 0.05)))
    model.run_eagerly = True
    return model


def batch_of(fitted: FittedFeatures, task: str, rows: Sequence[int] = range(ROWS.num_rows)) -> Any:
    """Return a batch of the numbered rows."""
    spec = fitted.spec
    encoded = Encoder(fitted).encode_padded(embedded(ROWS.take(list(rows)), *spec.embedded), spec.features)
    inputs = model_inputs(spec.features, {name: tf.constant(column) for name, column in encoded.items()})
    return inputs, tf.constant([TARGETS[task][row] for row in rows]), tf.ones(len(rows))


def cases() -> list[Any]:
    """Return the names of the catalog, and again those of architectures that read items or a graph.

    Of one architecture the case that has all of it is in every run of the tests.
    """
    readers = [name for name in catalog.ARCHITECTURES if catalog.reads_items(name)]
    plain = [*catalog.ARCHITECTURES, *(name + WITH_ITEMS for name in readers)]
    graphs = [case for case in plain if "graph_layers" in catalog.setting_names(name_of(case))]
    found = sorted([*plain, *(case + OVER_A_GRAPH for case in graphs)])
    widest = {name_of(case): case for case in sorted(found, key=len)}
    return [case if case in widest.values() else pytest.param(case, marks=pytest.mark.full) for case in found]


@pytest.fixture(scope="module", params=cases())
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, comment: TextEmbedding
) -> Trained:
    return train(request.param, comment, tmp_path_factory.mktemp("training"))


def train(case: str, comment: TextEmbedding, folder: Path) -> Trained:
    """Train the model of a case by some steps, and again with an interruption, whose checkpoint is in ``folder``."""
    name = name_of(case)
    architecture = catalog.architecture(name)
    fitted = features(architecture.TASK, comment, items=WITH_ITEMS in case, label=OWN_LABELS.get(name))
    catalog.check_features(name, options(case), fitted.spec)
    batch, prefix = batch_of(fitted, architecture.TASK), str(folder / "checkpoint")
    model = compiled(case, fitted, seed=1)
    for _ in range(STEPS):
        model.train_step(batch)
    tensors(model, model.optimizer).write(prefix)
    resumed = compiled(case, fitted, seed=99)
    status = tensors(resumed, resumed.optimizer).read(prefix)
    status.assert_existing_objects_matched()
    status.assert_consumed()
    for one in (model, resumed):
        for _ in range(STEPS):
            one.train_step(batch)
    return Trained(architecture, name, fitted, batch, model, resumed)


def recommender(name: str, comment: TextEmbedding) -> Trained:
    """Return a classical recommender that has learnt numbers drawn at random."""
    architecture: Any = catalog.architecture(name)
    fitted = features("retrieval", comment, items=False)
    catalog.check_features(name, RECOMMENDER_OPTIONS[name], fitted.spec)
    rng = np.random.default_rng(7)
    weights = rng.random((MOVIES, MOVIES), np.float32)
    sparse = csr_array(np.where(weights > 0.9, weights, 0))
    arrays = {
        "popularity": {"counts": weights[0]},
        "ease": {"weights": weights},
        "slit": {"weights": weights},
        "als": {"factors": weights[:, :4]},
    }.get(name, {"ends": sparse.indptr, "columns": sparse.indices, "values": sparse.data})
    model = architecture.build(catalog.settings(name, RECOMMENDER_OPTIONS[name]), fitted, arrays)
    return Trained(architecture, name, fitted, batch_of(fitted, "retrieval"), model, resumed=None)


def test_a_resumed_training_has_the_bits_of_an_unbroken_one(trained: Trained) -> None:
    """T6: weights, optimizer, metrics, and what is drawn by chance."""
    mine_and_other = ([*one.variables, *one.optimizer.variables] for one in (trained.model, trained.resumed))
    for mine, other in zip(*mine_and_other, strict=True):
        np.testing.assert_array_equal(mine.numpy(), other.numpy(), err_msg=mine.name)


def test_the_gradient_of_a_large_table_is_sparse(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """F5: the cost of a step does not grow with the table."""
    monkeypatch.setattr("mirrorspark.models.layers.input.embeddings.DENSE_GRADIENT_ROWS", 0)
    model, (inputs, labels, weights) = trained.model, trained.batch
    with tf.GradientTape() as tape:
        if trained.is_retrieval:
            loss = model.compute_loss(trained.batch, training=True)
        else:
            loss = model.compute_loss(inputs, labels, model(inputs, training=True), weights)
    # The table of a graph has another gradient: most of its rows are near those of a batch.
    of_graph = model.graph.table if hasattr(model, "graph") else None
    variables = [variable for variable in model.trainable_variables if variable is not of_graph]
    gradients = tape.gradient(loss, variables)
    # A kernel has fewer rows than a field has ids.
    tables = {
        variable.name: type(gradient)
        for variable, gradient in zip(variables, gradients, strict=True)
        if variable.shape[0] >= FEWEST_IDS
    }
    assert tables
    assert set(tables.values()) == {tf.IndexedSlices}, tables


def expected_scores(trained: Trained) -> dict[str, np.ndarray]:
    """Return the predictions of the training framework, the lists of a retrieval ranked by NumPy."""
    spec, model = trained.fitted.spec, trained.model
    known = {feature.name: trained.batch[0][feature.name] for feature in spec.query_features}
    predicted = trained.architecture.predict(model, known)
    if not trained.is_retrieval:
        return {name: value.numpy() for name, value in predicted.items()}
    assert spec.excluded is not None
    seen = Encoder(trained.fitted).encode_padded(ROWS, (spec.excluded,))["seen"]
    if trained.is_recommender:
        histories = np.zeros((ROWS.num_rows, MOVIES), np.float32)
        row, _ = np.nonzero(predicted.numpy())
        histories[row, predicted.numpy()[predicted.numpy() > 0] - FIRST_VOCABULARY_ID] = 1
        ids, scores = best(scores_of(trained.name, model.settings, model.arrays), csr_array(histories), seen, K)
    else:
        ids, scores = best_candidates(predicted.numpy(), candidate_embeddings(model), seen, K)
    tokens = np.array(["", "", *trained.fitted.vocabulary(spec.candidate).tokens.to_pylist()])
    return {CANDIDATES: tokens[ids], SCORES: scores}


def test_a_calibrated_model_is_exported_with_its_calibration(trained: Trained, tmp_path: Path) -> None:
    """#23: the exported graph gives what the calibration gives in NumPy."""
    architecture, model = trained.architecture, trained.model
    if not hasattr(architecture, "logits"):
        with pytest.raises(ModelSettingsError, match="calibration 'temperature'"):
            catalog.check_calibration(trained.name, "temperature")
        return
    is_several = architecture.TASK == "multi_class"
    calibration = Calibration("isotonic", knots=((-0.5, -2.0), (0.0, -1.0), (0.5, 3.0)))
    if is_several:
        calibration = Calibration("temperature", temperature=0.3)
    known = {feature.name: trained.batch[0][feature.name] for feature in trained.fitted.spec.query_features}
    logits = calibration.applied(architecture.logits(model, known).numpy().astype(np.float64))
    expected = softmax(logits, axis=1) if is_several else expit(logits)
    calibrated: Any = CalibratedArchitecture(architecture, calibration)
    (predicted,) = calibrated.predict(model, known).values()
    np.testing.assert_allclose(predicted.numpy().reshape(expected.shape), expected, atol=1e-6)
    if trained.name in EXPORTED_WITH_A_CALIBRATION:
        folder = exported(dataclasses.replace(trained, architecture=calibrated), tmp_path / "model")
        loaded = load_once(resolve(folder).path, resolve(folder).digest, threads=1)
        (found,) = loaded.score_arrow(ROWS.combine_chunks().to_batches()[0]).values()
        np.testing.assert_allclose(np.array(found.to_pylist()).reshape(expected.shape), expected, atol=1e-6)
    (plain,) = architecture.predict(model, known).values()
    assert np.abs(plain.numpy().reshape(expected.shape) - expected).max() > 0.01, "the calibration changes nothing"


def module_of(trained: Trained, folder: Path) -> Any:
    """Return the module that is saved of a model, after saving its features in ``folder``."""
    architecture, model, fitted = trained.architecture, trained.model, trained.fitted
    save_features(fitted, folder)
    texts = graph_encoders(folder, fitted.spec.query_features)
    if not trained.is_retrieval:
        return ScoringModule(architecture, model, fitted, texts)
    indexes = {EXACT: model.index} if trained.is_recommender else build_indexes(model, K)
    return RetrievalModule(architecture, model, fitted, K, indexes, texts)


def exported(trained: Trained, folder: Path) -> Path:
    save(module_of(trained, folder), folder / SAVED_MODEL_FOLDER)
    recalls = {EXACT: 1.0} if trained.is_retrieval else None
    return described(folder, trained.name, trained.fitted, trained.architecture.TASK, indexes=recalls)


def by_graph(trained: Trained, folder: Path) -> dict[str, Any]:
    """Return the scores of the graph that would be saved, for encoded features: all are encoded in the same way."""
    function, specs = module_of(trained, folder).functions()[ENCODED_SIGNATURE]
    spec = trained.fitted.spec
    read = spec.query_features + ((spec.excluded,) if spec.excluded else ())
    encoded = Encoder(trained.fitted).encode_padded(embedded(ROWS, *spec.embedded), read)
    outputs = concrete(function, specs)(**{name: tf.constant(column) for name, column in encoded.items()})
    return {
        name: value.numpy().astype(str) if value.dtype == tf.string else value.numpy()
        for name, value in outputs.items()
    }


def assert_only_raters_export_ratings(trained: Trained, folder: Path) -> None:
    """Check the rating of each query and candidate, by a model of its own, and the metrics of the training."""
    # Loading it would trace every function again.
    saved = SavedModel.FromString((folder / SAVED_MODEL_FOLDER / "saved_model.pb").read_bytes())
    assert ("rating" in saved.meta_graphs[0].signature_def) == (trained.name in RATERS)
    if trained.name not in RATERS:
        if trained.name == "youtube_dnn":
            with pytest.raises(ModelDirectoryError, match="a youtube_dnn model, predicts no ratings"):
                rating_model(folder, folder.parent / "ratings")
        return
    signatures = tf.saved_model.load(str(folder / SAVED_MODEL_FOLDER)).signatures
    model, spec, inputs = trained.model, trained.fitted.spec, trained.batch[0]
    queries = trained.architecture.predict(
        model, {feature.name: inputs[feature.name] for feature in spec.query_features}
    )
    expected = model.rating(queries, model.candidate_tower(inputs["movie"])).numpy()
    asked = raw_inputs(ROWS, spec).append_column("movie", ROWS["movie"])
    raw = {name: raw_tensors(asked)[name] for name in signatures["rating"].structured_input_signature[1]}
    found = {"signature": signatures["rating"](**raw)["rating"].numpy()}
    ratings = rating_model(folder, folder.parent / "ratings")
    rows: list[dict[str, Any]] = ROWS.to_pylist()
    for row in rows:
        row["basket"] = None if row["basket"] is None else dict(row["basket"])
    found["table"] = load_once(resolve(ratings).path, resolve(ratings).digest, threads=1).score(ROWS)["rating"]
    found["rows"] = _columns([Predictor(ratings).predict(row) for row in rows])["rating"]
    for way, values in found.items():
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6, err_msg=way)
    served = export_model(ratings, folder.parent / "served", version=1)
    assert (served.signature, list(served.outputs)) == ("rating", ["rating"])
    errors = {metric.name: float(metric.result()) for metric in model.metrics}
    assert 0 < errors["mae"] <= errors["rmse"] < 3


def test_every_way_in_gives_the_scores_of_the_trained_model(
    trained: Trained, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """S15, F14: the exported model, the scorer of tables and the predictor of rows, whatever lists are padded to."""
    if trained.name not in SAVED and not pytestconfig.getoption("full"):
        assert_all_agree(trained, {"graph": by_graph(trained, tmp_path / "model")})
        return
    folder = exported(trained, tmp_path / "model")
    assert_all_agree(trained, ways_in(folder))
    if trained.is_retrieval:
        assert_only_raters_export_ratings(trained, folder)
    # Every retrieval has these functions from one place.
    if trained.is_retrieval and (trained.name == "two_tower" or pytestconfig.getoption("full")):
        assert_vectors_give_the_scores(folder)


@pytest.mark.parametrize("name", RECOMMENDER_OPTIONS)
def test_every_way_in_gives_the_lists_of_a_classical_recommender(
    name: str, comment: TextEmbedding, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """S15, #23."""
    fitted = recommender(name, comment)
    if name not in SAVED and not pytestconfig.getoption("full"):
        assert_all_agree(fitted, {"graph": by_graph(fitted, tmp_path / "model")})
        return
    folder = exported(fitted, tmp_path / "model")
    assert_all_agree(fitted, ways_in(folder))
    if name == "als":
        assert_vectors_give_the_scores(folder)
    else:
        with pytest.raises(ModelOutputError, match="but not 'candidate_vectors'"):
            load_once(resolve(folder).path, resolve(folder).digest, threads=1).vectors()


def assert_vectors_give_the_scores(folder: Path) -> None:
    """Check that the products of the vectors of queries and candidates are the scores of lists (R9)."""
    loaded = load_once(resolve(folder).path, resolve(folder).digest, threads=1)
    batch, candidates = ROWS.combine_chunks().to_batches()[0], loaded.vectors()
    (queries, excluded), lists = next(loaded.query_vectors(batch)), loaded.score(batch)
    assert excluded.shape[0] == ROWS.num_rows
    place = {token: number for number, token in enumerate(candidates.tokens)}
    for query, tokens, scores in zip(queries, lists[CANDIDATES], lists[SCORES], strict=True):
        products = candidates.vectors[[place[token] for token in tokens]] @ query
        np.testing.assert_allclose(products, scores, rtol=1e-5, atol=1e-6)


def ways_in(folder: Path) -> dict[str, Mapping[str, list[Any]]]:
    """Return the outputs for ``ROWS`` by each way in that needs no Spark."""
    pinned = resolve(folder)
    predictor = Predictor(folder)
    loaded = load_once(pinned.path, pinned.digest, threads=1)
    batch = ROWS.combine_chunks().to_batches()[0]
    scorer = Scorer(ShippedModel(pinned.digest, pinned.label, path=str(folder), archive=None), ScoringOptions())
    rows: list[dict[str, Any]] = ROWS.to_pylist()
    for row in rows:
        row["basket"] = None if row["basket"] is None else dict(row["basket"])
    return {
        "exported": {name: column.to_pylist() for name, column in loaded.score_arrow(batch).items()},
        "scorer": scorer.scored(loaded, batch, ScoringCounts(), ["order_id"]).to_pydict(),
        "predictor, all rows": _columns(predictor.predict_rows(rows)),
        "predictor, row by row": _columns([predictor.predict(row) for row in rows]),
    }


def assert_all_agree(trained: Trained, ways: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the outputs of each way in, in the order of ``ROWS``, against what the training framework predicts."""
    for name, expected in expected_scores(trained).items():
        are_apart = len(np.unique(expected, axis=0)) == ROWS.num_rows
        assert are_apart or name == CANDIDATES or trained.name == "popularity", "some rows are alike"
        for way, found in ways.items():
            if name == CANDIDATES:
                np.testing.assert_array_equal(np.array(found[name]), expected, err_msg=way)
            else:
                np.testing.assert_allclose(np.array(found[name]), expected, rtol=1e-6, atol=1e-6, err_msg=way)


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
