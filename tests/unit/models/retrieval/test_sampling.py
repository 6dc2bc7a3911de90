"""Negative candidates of a row: draws, corrections, and losses against NumPy (S6)."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Categorical, Label
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models import two_tower
from mirrorspark.models.retrieval.sampling import (
    CandidateSample,
    CandidateSampling,
    LogUniformSample,
    PopularitySample,
    UniformSample,
    hardest,
)
from mirrorspark.models.settings import LOSSES, LossSettings
from tests.unit.models.conftest import vocabulary

COUNTS = [40, 20, 10, 10, 5, 5, 4, 3, 2, 1]
MOVIES, NEGATIVES = len(COUNTS), 5
SAMPLINGS = ("in_batch", "uniform", "popularity", "log_uniform", "mixed")
PAIRS = list(itertools.product(LOSSES, SAMPLINGS))
# Those of a batch's loss: whether hard ones are chosen, and whether some come from the index.
CHOICES = [(0, 0), (0, 3), (2, 0), (2, 3)]


def some(cases: Iterable[tuple[Any, ...]], usual: Collection[tuple[Any, ...]]) -> list[Any]:
    """Return the cases, of which those that are not ``usual`` wait for ``make test-faults``."""
    return [pytest.param(*case, marks=() if case in usual else pytest.mark.full) for case in cases]


@pytest.fixture(scope="module")
def fitted() -> FittedFeatures:
    """Return features of as many users as there are movies, of which the first has id 2."""
    spec = FeatureSpec((Categorical("user"), Categorical("movie")), Label("movie", kind="candidate"), ("user",))
    tokens = [f"m{number}" for number in range(MOVIES)]
    return FittedFeatures(spec, {"user": vocabulary(tokens), "movie": vocabulary(tokens, COUNTS)}, {})


def settings(loss: str, sampling: str, **options: Any) -> two_tower.Settings:
    """Return settings of a small model; gBCE is calibrated where it can be."""
    is_cosine = loss == "cosine_contrastive"
    defaults = {
        "negatives": NEGATIVES,
        "temperature": 1.0 if is_cosine else 0.5,
        "calibration": 0.75 if sampling == "uniform" else 0.0,
        "negative_weight": 10.0,
    }
    return two_tower.Settings(
        embedding_dim=8,
        hidden_units=(),
        loss=loss,
        sampling=sampling,
        cosine=is_cosine,
        **defaults | options,
    )


def built(chosen: two_tower.Settings, fitted: FittedFeatures) -> tf_keras.Model:
    """Return a model whose weights are large enough for a wrong step to be seen."""
    model = two_tower.build(chosen, fitted, seed=3)
    rng = np.random.default_rng(3)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(size=weight.shape, scale=0.7).astype(np.float32))
    return model


def batch(users: list[int], movies: list[int], weights: list[float]) -> Any:
    features = {"user": tf.constant(users, tf.int64), "movie": tf.constant(movies, tf.int64)}
    return features, tf.zeros(len(users)), tf.constant(weights, tf.float32)


def popularity(count: int, seed: int) -> PopularitySample:
    return PopularitySample(count, np.array([5, 0, 3, 2]), seed)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (lambda count, seed: LogUniformSample(count, 9, seed), [math.log((n + 2) / (n + 1), 10) for n in range(9)]),
        (lambda count, seed: UniformSample(count, 4, seed), [0.25] * 4),
        (popularity, [0.5, 0.0, 0.3, 0.2]),
    ],
    ids=["log_uniform", "uniform", "popularity"],
)
def test_candidates_are_drawn_as_often_as_is_said_and_drawing_goes_on_after_a_checkpoint(
    kind: Callable[[int, int], CandidateSample], expected: list[float]
) -> None:
    one, other = kind(20_000, 5), kind(20_000, 5)
    first, second = one(tf.zeros(1)).numpy(), one(tf.zeros(1)).numpy()
    assert np.bincount(first, minlength=len(expected)) / 20_000 == pytest.approx(expected, abs=0.02)
    counts = one.expected_count(tf.range(len(expected), dtype=tf.int64)).numpy()
    assert counts / 20_000 == pytest.approx(expected, rel=1e-9)
    other.build(None)
    other.set_weights([np.int64(1)])
    assert other(tf.zeros(1)).numpy().tolist() == second.tolist() != first.tolist()


# Models from before sampling could be configured: their runs resume with the same draws.
@pytest.mark.parametrize(("loss", "kind"), [("softmax", LogUniformSample), ("bpr", UniformSample)])
def test_by_default_the_softmax_draws_by_rank_and_other_losses_uniformly(
    fitted: FittedFeatures, loss: str, kind: type
) -> None:
    sampling = CandidateSampling(LossSettings(negatives=NEGATIVES, loss=loss), fitted, 1)
    assert type(sampling.sample) is kind
    assert not sampling.reads_batch


def expected_counts(sampling: str, drawn: np.ndarray, rows: int) -> dict[int, float]:
    """Return by id how often a candidate is expected among those that a row is compared with."""
    share = {number + 2: count / sum(COUNTS) for number, count in enumerate(COUNTS)}
    rank = {number + 2: math.log((number + 2) / (number + 1), MOVIES + 1) for number in range(MOVIES)}
    return {
        movie: {
            "in_batch": share[movie],
            "popularity": NEGATIVES * share[movie],
            "log_uniform": NEGATIVES * rank[movie],
            "uniform": NEGATIVES / MOVIES,
            "mixed": (rows - 1) * share[movie] + NEGATIVES / MOVIES,
        }[sampling]
        for movie in share
    }


def loss_by_numpy(chosen: two_tower.Settings, own: float, others: list[float]) -> float:
    """Return the plain twin of a row's loss, from logits."""
    values = np.array(others)
    if chosen.loss == "softmax":
        return float(np.log(np.exp([own, *others]).sum()) - own)
    if not others:
        return 1 - own if chosen.loss == "cosine_contrastive" else float(np.log1p(np.exp(-own)))
    if chosen.loss == "bpr":
        return float(np.log1p(np.exp(values - own)).mean())
    if chosen.loss == "cosine_contrastive":
        return float(1 - own + chosen.negative_weight * np.maximum(values - chosen.margin, 0).mean())
    rate = NEGATIVES / (MOVIES - 1)
    power = rate * (chosen.calibration * (1 - 1 / rate) + 1 / rate)
    return float((power * np.log1p(np.exp(-own)) + np.log1p(np.exp(values)).sum()) / (1 + len(others)))


# Usually each pair without a choice, and with one of the three in turn.
TURNS = [(*pair, *choice) for number, pair in enumerate(PAIRS) for choice in (CHOICES[0], CHOICES[1 + number % 3])]


@pytest.mark.parametrize(
    ("loss", "sampling", "hard", "nearest"), some([(*pair, *choice) for pair in PAIRS for choice in CHOICES], TURNS)
)
def test_the_loss_of_a_batch_is_that_of_numpy(
    fitted: FittedFeatures, loss: str, sampling: str, hard: int, nearest: int
) -> None:
    """Rows of weight 0 are nobody's candidates, and a row's own candidate is never another one."""
    plain = {"calibration": 0.0} if hard or nearest else {}
    chosen = settings(loss, sampling, hard_negatives=hard, index_negatives=nearest, **plain)
    model = built(chosen, fitted)
    users, movies, weights = [2, 3, 4, 5, 0], [2, 4, 2, 11, 6], [1.0, 2.0, 0.5, 1.0, 0.0]
    inputs = batch(users, movies, weights)
    queries = two_tower.predict(model, {"user": inputs[0]["user"]}).numpy().astype(np.float64)
    candidates = model.candidate_tower(tf.range(MOVIES + 2, dtype=tf.int64)).numpy().astype(np.float64)
    # The same draw as the first one of the model's layer.
    again = CandidateSampling(chosen, fitted, 3)
    drawn = [] if sampling == "in_batch" else again.drawn_ids(inputs[0]["movie"]).numpy().tolist()
    rows = [movie for movie, weight in zip(movies, weights, strict=True) if weight]
    columns = [*(rows if sampling in ("in_batch", "mixed") else []), *drawn]
    counts = expected_counts(sampling, np.array(drawn), len(rows))
    total = 0.0
    for query, movie, weight in zip(queries, movies, weights, strict=True):
        scores = {other: query @ candidates[other] / chosen.temperature for other in {*columns, movie}}
        others = sorted((other for other in columns if other != movie), key=scores.__getitem__, reverse=True)
        kept = others[:hard] if hard else others
        is_corrected = loss == "softmax"
        logits = [scores[other] - (math.log(counts[other]) if is_corrected else 0.0) for other in kept]
        in_catalogue = {other: query @ candidates[other] / chosen.temperature for other in range(2, MOVIES + 2)}
        of_index = sorted(in_catalogue.keys() - {movie}, key=in_catalogue.__getitem__, reverse=True)[:nearest]
        # The counts of a batch's candidates are shares of its rows, of which there are four without padding.
        rows_of_one = math.log(len(rows)) if is_corrected and sampling == "in_batch" else 0.0
        logits += [in_catalogue[other] + rows_of_one for other in of_index]
        own = scores[movie] - (math.log(counts[movie]) if is_corrected and sampling == "in_batch" else 0.0)
        total += weight * loss_by_numpy(chosen, own, logits)
    assert float(model.compute_loss(inputs, training=True)) == pytest.approx(total / len(movies), rel=1e-4)


@pytest.mark.parametrize("sampling", ["uniform", "popularity", "log_uniform", "mixed"])
def test_the_corrected_softmax_and_its_gradient_estimate_the_full_one_without_bias(
    fitted: FittedFeatures, sampling: str
) -> None:
    """One row is compared with others whose movies are drawn by popularity, as those of a batch are."""
    model, others = built(settings("softmax", sampling), fitted), 20
    in_batch = PopularitySample(others, np.array(COUNTS), seed=9)
    in_batch.build(None)
    own, table = tf.constant([6], tf.int64), model.candidate_tower.embeddings

    @tf.function
    def estimate(times: int, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        total, gradient = tf.zeros([]), tf.zeros_like(table)
        for _ in tf.range(times):
            movies = tf.concat([own, in_batch(own) + 2], axis=0)
            features = {"user": tf.fill([1 + others], tf.constant(4, tf.int64)), "movie": movies}
            with tf.GradientTape() as tape:
                # The exponential of the loss is the sum of the softmax, in units of the own candidate's part.
                found = tf.exp(model.row_losses(features, tf.ones(1 + others), training=training)[0])
            total += found
            gradient += tf.convert_to_tensor(tape.gradient(found, table))
        return total / times, gradient / times

    full, full_gradient = (value.numpy() for value in estimate(1, False))
    total, gradient = (value.numpy() for value in estimate(1500, True))
    assert total == pytest.approx(full, rel=0.05)
    assert np.linalg.norm(gradient - full_gradient) < 0.1 * np.linalg.norm(full_gradient)


def test_the_hardest_are_the_highest_scores_whatever_their_logits() -> None:
    scores = tf.constant([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    found = hardest(-scores, scores, 2).numpy()
    assert [sorted(row) for row in found.tolist()] == [[-3.0, -2.0], [-5.0, -4.0]]
    np.testing.assert_array_equal(np.sort(hardest(scores, scores, 9)), np.sort(scores))


def test_hard_negatives_of_all_candidates_are_the_best_of_the_whole_catalogue(fitted: FittedFeatures) -> None:
    """Nothing is drawn if there are as many negatives as candidates, and the index of all is never out of date."""
    chosen = settings("bpr", "uniform", negatives=MOVIES, hard_negatives=1)
    model = built(chosen, fitted)
    inputs = batch([4], [7], [1.0])
    query = two_tower.predict(model, {"user": inputs[0]["user"]}).numpy()[0].astype(np.float64)
    scores = model.candidate_tower(tf.range(2, MOVIES + 2, dtype=tf.int64)).numpy() @ query / chosen.temperature
    expected = np.log1p(np.exp(np.delete(scores, 5).max() - scores[5]))
    assert float(model.compute_loss(inputs, training=True)) == pytest.approx(expected, rel=1e-4)
    assert float(model.compute_loss(inputs)) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("loss", "sampling"), some(PAIRS, list(zip(itertools.cycle(LOSSES), SAMPLINGS, strict=False))))
def test_every_loss_ranks_what_it_has_learnt_from_every_source(
    fitted: FittedFeatures, loss: str, sampling: str
) -> None:
    """Each user has a movie; all of them but one differ from the most popular."""
    tf_keras.utils.set_random_seed(1)
    chosen = dataclasses.replace(settings(loss, sampling), hard_negatives=3 if loss == "bpr" else 0)
    model = two_tower.build(chosen, fitted, seed=1)
    model.compile(tf_keras.optimizers.Adam(0.1))
    users = np.arange(2, MOVIES + 2)
    movies = np.roll(users, 3)
    rows = batch(users.tolist(), movies.tolist(), [1.0] * MOVIES)
    step = tf.function(model.train_step)
    for _ in range(60):
        step(rows)
    queries = two_tower.predict(model, {"user": rows[0]["user"]}).numpy()
    candidates = model.candidate_tower(tf.range(2, MOVIES + 2, dtype=tf.int64)).numpy()
    assert np.mean((queries @ candidates.T).argmax(axis=1) + 2 == movies) >= 0.8
