"""#23, F7: the labels' centroids against a computation by hand, and the mixture with a network's probabilities."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tensorflow as tf
from scipy.sparse import csr_array
from scipy.special import expit, logit
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import normalize

from mirrorspark.data_pipelines.dataset.block_format import Block
from mirrorspark.data_pipelines.features.kinds import Label, Numeric, Sparse
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import RaggedIds, SparseRows
from mirrorspark.models import centroids, multi_label
from mirrorspark.models.calibration import CalibrationError
from mirrorspark.models.centroids import LabelledRows, fit_centroids, fit_mixture, sparse_features
from mirrorspark.models.serving.saved_functions import state
from mirrorspark.models.settings import ModelSettingsError
from mirrorspark.models.wrapped_architecture import saved_parts
from mirrorspark.training.results.calibrate import CalibrationResult, calibrate

SIZES = {"words": 40, "links": 30}
SPEC = FeatureSpec(
    tuple(Sparse(name, size=size) for name, size in SIZES.items()), Label("tags", kind="multi_label"), keys=("row",)
)


def drawn(rows: int) -> tuple[dict[str, csr_array], np.ndarray]:
    """Return sparse rows by feature and their three labels, of which the last is never set.

    Some rows have no entries, and some entries are stored zeros.
    """
    random = np.random.default_rng(2)
    sparse = {}
    for name, size in SIZES.items():
        table = random.poisson(0.15, (rows, size)).astype(np.float32)
        table[::17] = 0
        sparse[name] = csr_array(table)
        sparse[name].data[::19] = 0
    labels = np.stack([sparse["words"].toarray()[:, :5].sum(1) > 0, random.random(rows) < 0.3, np.zeros(rows)], axis=1)
    return sparse, labels.astype(np.float32)


def tensor(rows: csr_array) -> tf.SparseTensor:
    places = rows.tocoo()
    return tf.SparseTensor(np.stack([places.row, places.col], axis=1).astype(np.int64), places.data, places.shape)


def test_cosines_are_those_of_weighted_rows_and_of_their_sums() -> None:
    sparse, labels = drawn(200)
    weights = np.random.default_rng(3).integers(0, 3, 200).astype(np.float32)
    halves = (slice(0, 90), slice(90, 200))

    def parts() -> Iterator[LabelledRows]:
        for half in halves:
            of_half = {name: rows[half] for name, rows in sparse.items()}
            yield LabelledRows(of_half, csr_array(labels[half]), weights[half])

    centroids = fit_centroids(parts).in_variables()
    found = centroids.cosines({name: tensor(rows) for name, rows in sparse.items()}).numpy()
    together = np.concatenate([rows.toarray() for rows in sparse.values()], axis=1)
    weigh = TfidfTransformer().fit((together != 0)[weights > 0])
    rows = normalize(together * weigh.idf_)
    expected = rows @ normalize((labels * weights[:, None]).T @ rows).T
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.any(found[::17])
    assert not np.any(found[:, 2])
    halved = {name: in_halves(rows) for name, rows in sparse.items()}
    np.testing.assert_allclose(
        centroids.cosines({name: tensor(rows) for name, rows in halved.items()}), found, atol=1e-6
    )


def in_halves(rows: csr_array) -> csr_array:
    """Return the same rows with every entry as two of half its value."""
    return csr_array((np.repeat(rows.data / 2, 2), np.repeat(rows.indices, 2), 2 * rows.indptr), rows.shape)


def test_a_model_is_calibrated_by_the_cosines_of_its_dataset(tmp_path: Path) -> None:
    """The network knows nothing, so all that its predictions have learnt is the centroids'.

    Half of the training rows have a weight of 0 and the opposite labels, and all indices are repeated.
    """
    sparse, labels = drawn(700)
    sparse = {name: in_halves(rows) for name, rows in sparse.items()}
    right = labels[600:]
    labels[:300] = 1 - labels[:300]
    weights = np.repeat(np.float32([0, 1]), [300, 400])
    ragged = RaggedIds(np.nonzero(labels)[1], labels.sum(1).astype(np.int64))

    def blocks(split: str) -> Iterator[Block]:
        first, last = {"train": (0, 600), "validation": (600, 700)}[split]
        features: dict[str, Any] = {}
        for name, rows in sparse.items():
            lengths = np.diff(rows.indptr).astype(np.int64)
            features[name] = SparseRows(rows.indices.astype(np.int64), rows.data, lengths).cut(first, last)
        yield Block(features, ragged.cut(first, last), weights[first:last], {})

    class Network:
        TASK, probabilities = multi_label.TASK, staticmethod(multi_label.probabilities)

        @staticmethod
        def logits(model: Any, inputs: Any) -> tf.Tensor:
            return tf.zeros([inputs["words"].dense_shape[0], 3])

    manifest = SimpleNamespace(rows=lambda split: 100)
    dataset = SimpleNamespace(blocks=blocks, spec=SPEC, manifest=manifest, features=SimpleNamespace(classes=3))
    model = tf.Module()
    architecture = calibrate(cast(Any, Network), model, cast(Any, dataset), "centroids", tmp_path, lambda *_: None)
    assert architecture.TASK == "multi_label"
    kept = [entry for part in saved_parts(architecture, model) for entry in state(part)]
    assert {tuple(table.shape) for table in kept} == {(40,), (30,), (40, 3), (30, 3)}
    inputs = {name: tensor(rows[600:]) for name, rows in sparse.items()}
    scores = architecture.predict(model, inputs)["scores"].numpy()
    assert scores.dtype == np.float32
    assert scores[right[:, 0] > 0, 0].mean() > scores[right[:, 0] == 0, 0].mean() + 0.1
    assert scores[:, 2].max() < 0.2
    result = CalibrationResult.load(tmp_path)
    assert result is not None
    assert result.after.log_loss < result.before.log_loss - 0.2
    assert result.in_words().startswith("centroids, fitted on the validation rows: log loss 0.")

    class Sure(Network):
        """A network that knows all labels for certain: a mixture can only make it less sure."""

        @staticmethod
        def logits(model: Any, inputs: Any) -> tf.Tensor:
            return tf.constant(60 * right - 30, tf.float32)

    assert calibrate(cast(Any, Sure), model, cast(Any, dataset), "centroids", tmp_path, lambda *_: None) is Sure
    dropped = CalibrationResult.load(tmp_path)
    assert dropped is not None
    assert dropped.in_words().startswith("none: centroids was fitted on the validation rows and dropped")


@pytest.mark.parametrize(
    ("expected", "probability"), [((4, 3, -5), 1.0), ((200, 3, -7), 0.02)], ids=["few labels", "thousands of labels"]
)
def test_the_mixture_is_that_of_the_rows_that_count(expected: tuple[float, ...], probability: float) -> None:
    """There are thousands of labels, so that each is rare and its probability small."""
    random = np.random.default_rng(5)
    logits, cosines = logit(probability * random.random(200_000)), random.random(200_000)
    chance = expit(expected[0] * expit(logits) + expected[1] * cosines + expected[2])
    labels, weights = (random.random(200_000) < chance).astype(float), (random.random(200_000) < 0.9).astype(float)
    labels[weights == 0] = 1 - labels[weights == 0]
    found = fit_mixture(logits, cosines, labels, weights)
    np.testing.assert_allclose([found.of_probability, found.of_cosine, found.bias], expected, rtol=0.05)
    np.testing.assert_allclose(found.in_graph(tf.constant(logits), tf.constant(cosines)), found(logits, cosines))
    # A network that says the same of all rows, but for rounding, has no weight.
    alone = fit_mixture(np.full_like(logits, -1.3), cosines, labels, weights)
    assert alone.of_probability == 0
    assert alone.of_cosine == pytest.approx(expected[1], rel=0.2)
    with pytest.raises(CalibrationError, match="the 5 validation rows with a weight above 0 have fewer than two"):
        fit_mixture(logits[:5], cosines[:5], np.ones(5), np.ones(5))


def test_centroids_need_sparse_features_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [feature.name for feature in sparse_features(SPEC, 3)] == ["words", "links"]
    monkeypatch.setattr(centroids, "_MOST_BYTES", 4 * 70 * 3 - 1)
    with pytest.raises(ModelSettingsError, match="'centroids' would keep 70 columns for each of 3 labels"):
        sparse_features(SPEC, 3)
    numbers = FeatureSpec((Numeric("age"),), SPEC.label, keys=("row",))
    with pytest.raises(ModelSettingsError, match="compares sparse features, and there is none"):
        sparse_features(numbers, 0)
