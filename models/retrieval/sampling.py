"""The candidates that a row's own is compared with: where they come from, how often, and which of them are others.

A softmax over a sample of the candidates is corrected by the logarithm of the number of times that each is expected in
it ("logQ"): divided by that number, the sum over the sample estimates the sum over all candidates but the row's own.

Source: Bengio and Senécal 2008, "Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language
Model"; for the candidates of the batch Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
Recommendations"; for these and a uniform sample together Yang et al. 2020, "Mixed Negative Sampling for Learning
Two-tower Neural Networks in Recommendations".
"""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from mirrorspark.data_pipelines.features import FittedFeatures, kinds
from mirrorspark.models.layers import CountedCalls
from mirrorspark.models.settings import LossSettings

# TensorFlow Recommenders' bound of a probability before its logarithm.
_LEAST_PROBABILITY = 1e-6


class CandidateSample(CountedCalls):
    """Draws candidates, numbered from 0 by falling frequency, with replacement.

    The sequence continues after a checkpoint. Subclasses define ``call``, which returns int64 ``[count]``, and
    ``probability``.
    """

    def __init__(self, count: int, classes: int, seed: int, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self._count = count
        self._classes = classes

    def probability(self, numbers: tf.Tensor) -> tf.Tensor:
        """Return the probability that a draw is each of ``numbers``, as float64."""
        raise NotImplementedError

    def expected_count(self, numbers: tf.Tensor) -> tf.Tensor:
        """Return the expected number of draws of each of ``numbers`` per call, as float64."""
        return self.probability(numbers) * self._count


class LogUniformSample(CandidateSample):
    """Draws frequent candidates more often, by their rank alone.

    Candidate ``c`` of ``classes`` has the probability ``log((c + 2) / (c + 1)) / log(classes + 1)``, as in
    ``tf.random.log_uniform_candidate_sampler``.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return int64 ``[count]``, the same for all rows; ``inputs`` are ignored."""
        uniform = tf.random.stateless_uniform([self._count], self._next_seed(), dtype=tf.float64)
        drawn = tf.exp(uniform * tf.math.log(tf.constant(self._classes + 1.0, tf.float64))) - 1.0
        return tf.minimum(tf.cast(drawn, tf.int64), self._classes - 1)

    def probability(self, numbers: tf.Tensor) -> tf.Tensor:
        """Return the probability that a draw is each of ``numbers``, as float64."""
        ranks = tf.cast(numbers, tf.float64) + 1.0
        return tf.math.log1p(1.0 / ranks) / tf.math.log(tf.constant(self._classes + 1.0, tf.float64))


class UniformSample(CandidateSample):
    """Draws all candidates with equal probability."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return int64 ``[count]``, the same for all rows; ``inputs`` are ignored."""
        return tf.random.stateless_uniform([self._count], self._next_seed(), 0, self._classes, tf.int64)

    def probability(self, numbers: tf.Tensor) -> tf.Tensor:
        """Return the probability that a draw is each of ``numbers``, as float64."""
        return tf.fill(tf.shape(numbers), tf.constant(1.0 / self._classes, tf.float64))


class PopularitySample(CandidateSample):
    """Draws candidates as the training rows have them; those without a row are never drawn."""

    def __init__(self, count: int, counts: np.ndarray, seed: int, **kwargs: Any) -> None:
        """Store the arguments.

        Args:
            count: Number of draws per call.
            counts: int64 ``[classes]``, the training rows of each candidate.
            seed: Seed of the draws.
            **kwargs: Arguments of a Keras layer.
        """
        super().__init__(count, len(counts), seed, **kwargs)
        self._rows = int(counts.sum())
        self._up_to = tf.constant(np.cumsum(counts), tf.int64)
        self._share = tf.constant(counts / counts.sum(), tf.float64)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return int64 ``[count]``, the same for all rows; ``inputs`` are ignored."""
        # A training row with equal probability, then its candidate.
        rows = tf.random.stateless_uniform([self._count], self._next_seed(), 0, self._rows, tf.int64)
        return tf.searchsorted(self._up_to, rows, side="right", out_type=tf.int64)

    def probability(self, numbers: tf.Tensor) -> tf.Tensor:
        """Return the probability that a draw is each of ``numbers``, as float64."""
        return tf.gather(self._share, numbers)


class Columns(NamedTuple):
    """The candidates that all rows of a step are compared with.

    Attributes:
        ids: int64 ``[columns]``; in a batch's comparison with itself, those of its rows come first.
        log_counts: float32 ``[columns]``, the logarithm of how often each is expected among them; None for all
            candidates, each of them once.
        is_candidate: bool ``[columns]``, false for the padding of a batch; None if there is none.
        are_rows: Whether they are the batch's own candidates and nothing else, a column for each row.
    """

    ids: tf.Tensor
    log_counts: tf.Tensor | None = None
    is_candidate: tf.Tensor | None = None
    are_rows: bool = False

    def are_others(self, own: tf.Tensor) -> tf.Tensor:
        """Return bool ``[rows, columns]``: whether a column is another candidate than the row's own, int64 ``[rows]``.

        A row's own candidate comes up by accident, in another row of the batch or in the sample.
        """
        are_others = tf.not_equal(own[:, tf.newaxis], self.ids[tf.newaxis, :])
        return are_others if self.is_candidate is None else are_others & self.is_candidate


class CandidateSampling:
    """Source of a step's columns, named as in :class:`models.settings.LossSettings`.

    Attributes:
        sample: The layer that draws, whose counter belongs to the model's weights; None if nothing is drawn.
        reads_batch: Whether the candidates of the batch's rows are among the columns.
        rate: Share of all other candidates that is drawn for a row with equal probability; 1 for other draws.
    """

    def __init__(self, settings: LossSettings, fitted: FittedFeatures, seed: int) -> None:
        vocabulary = fitted.vocabulary(fitted.spec.candidate)
        classes, negatives, name = len(vocabulary), settings.negatives, settings.sampling
        if name == "auto":
            name = "log_uniform" if settings.loss == "softmax" else "uniform"
        self._is_batch = name == "in_batch"
        self.reads_batch = name in ("in_batch", "mixed")
        self.sample: CandidateSample | None = None
        self.rate = 1.0
        if self.reads_batch:
            self._probability = tf.constant(sampling_probability(fitted))
            self._share = tf.constant(_share(fitted))
        if self._is_batch or negatives >= classes:
            return
        if name == "popularity":
            self.sample = PopularitySample(negatives, vocabulary.counts.to_numpy(), seed)
        elif name == "log_uniform":
            self.sample = LogUniformSample(negatives, classes, seed)
        else:
            self.sample = UniformSample(negatives, classes, seed)
        if name == "uniform":
            self.rate = negatives / (classes - 1)
        # A checkpoint is restored before the first step, into variables that exist.
        self.sample.build(None)

    def compares_with_all(self, training: bool) -> bool:
        """Return whether each row is compared with all candidates: to validate, or as no fewer would be drawn."""
        return not self._is_batch and (self.sample is None or not training)

    def drawn_ids(self, own: tf.Tensor) -> tf.Tensor | None:
        """Return int64 ``[negatives]``, another draw at each call; None if nothing is drawn for the rows of ``own``."""
        return None if self.sample is None else self.sample(own) + kinds.FIRST_VOCABULARY_ID

    def columns(self, own: tf.Tensor, is_row: tf.Tensor, drawn: tf.Tensor | None) -> Columns:
        """Return the candidates that the rows are compared with.

        Args:
            own: int64 ``[rows]``, the ids of the rows' own candidates.
            is_row: bool ``[rows]``, false for padding.
            drawn: The result of :meth:`drawn_ids`.
        """
        if drawn is None:
            return Columns(own, self._log_probability(own), is_row, are_rows=True)
        if not self.reads_batch:
            return Columns(drawn, self._log_expected(drawn, None))
        ids = tf.concat([own, drawn], axis=0)
        is_candidate = tf.concat([is_row, tf.ones_like(drawn, tf.bool)], axis=0)
        return Columns(ids, self._log_expected(ids, is_row), is_candidate)

    def _log_probability(self, ids: tf.Tensor) -> tf.Tensor:
        """Return float32 ``[ids]``: as TensorFlow Recommenders has it, without the number of rows, a constant."""
        return tf.math.log(tf.clip_by_value(tf.gather(self._probability, ids), _LEAST_PROBABILITY, 1.0))

    def _log_expected(self, ids: tf.Tensor, is_row: tf.Tensor | None) -> tf.Tensor:
        """Return the logarithm of how often ``ids`` are expected in the sample and, given ``is_row``, in other rows."""
        assert self.sample is not None  # noqa: S101 - only called with what it has drawn
        numbers = ids - kinds.FIRST_VOCABULARY_ID
        expected = self.sample.expected_count(numbers)
        if is_row is not None:
            other_rows = tf.reduce_sum(tf.cast(is_row, tf.float64)) - 1.0
            expected += tf.maximum(other_rows, 0.0) * tf.gather(self._share, ids)
        return tf.cast(tf.math.log(expected), tf.float32)


def hardest(logits: tf.Tensor, scores: tf.Tensor, count: int) -> tf.Tensor:
    """Return the logits of each row's ``count`` columns with the highest scores, or of all if there are no more.

    Source: Zhang et al. 2013, "Optimizing Top-N Collaborative Filtering via Dynamic Negative Item Sampling".
    """
    _, columns = tf.math.top_k(scores, tf.minimum(count, tf.shape(scores)[1]), sorted=False)
    return tf.gather(logits, columns, batch_dims=1)


def sampling_probability(fitted: FittedFeatures) -> np.ndarray:
    """Return float32 ``[ids]``: the probability of each candidate in the rows of the training data."""
    share = _share(fitted)
    # Ids without a count (missing, out of vocabulary, items without training rows) get that of the rarest candidate,
    # because the loss takes the log.
    return np.maximum(share, share[share > 0].min()).astype(np.float32)


def _share(fitted: FittedFeatures) -> np.ndarray:
    """Return float64 ``[ids]``: the share of the training rows that each candidate has."""
    counts = fitted.vocabulary(fitted.spec.candidate).counts.to_numpy().astype(np.float64)
    return np.concatenate([np.zeros(kinds.FIRST_VOCABULARY_ID), counts / counts.sum()])
