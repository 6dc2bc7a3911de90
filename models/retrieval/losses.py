"""Losses of retrieval by name: of a row's own candidate against others, as pure functions of their logits.

All take ``own``, float32 ``[rows]``, and ``others``, float32 ``[rows, negatives]``, and return float32 ``[rows]``. An
entry of ``others`` that is a row's own candidate after all has the lowest number of its type, and counts for nothing.
"""

import tensorflow as tf

from mirrorspark.models.settings import LossSettings


def named_loss(settings: LossSettings, own: tf.Tensor, others: tf.Tensor, sampling_rate: float) -> tf.Tensor:
    """Return the loss that ``settings`` name; ``sampling_rate`` is the share of the other candidates in ``others``."""
    if settings.loss == "bpr":
        return bpr(own, others)
    if settings.loss == "cosine_contrastive":
        return cosine_contrastive(own, others, settings.margin, settings.negative_weight)
    if settings.loss == "gbce":
        return gbce(own, others, sampling_rate, settings.calibration)
    return softmax(own, others)


def softmax_of_rows(logits: tf.Tensor) -> tf.Tensor:
    """Return the cross-entropy of column ``i`` of row ``i`` among all columns, float32 ``[rows]``.

    Args:
        logits: float32 ``[rows, rows]``; entries that count for nothing have the lowest number of its type.
    """
    return tf.nn.softmax_cross_entropy_with_logits(labels=tf.eye(tf.shape(logits)[0]), logits=logits)


def softmax(own: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Return the cross-entropy of the own candidate among itself and the others."""
    return tf.reduce_logsumexp(tf.concat([own[:, tf.newaxis], others], axis=1), axis=1) - own


def bpr(own: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Return minus the mean log-probability that the own candidate is preferred to another.

    Source: Rendle et al. 2009, "BPR: Bayesian Personalized Ranking from Implicit Feedback", section 4.1.
    """
    return _mean_of_others(tf.nn.softplus(others - own[:, tf.newaxis]), others)


def cosine_contrastive(own: tf.Tensor, others: tf.Tensor, margin: float, negative_weight: float) -> tf.Tensor:
    """Return the distance of the own candidate, and the weighted mean excess of the others over ``margin``.

    Source: Mao et al. 2021, "SimpleX: A Simple and Strong Baseline for Collaborative Filtering", equation 1; the logits
    are cosines.
    """
    return 1.0 - own + negative_weight * _mean_of_others(tf.nn.relu(others - margin), others)


def gbce(own: tf.Tensor, others: tf.Tensor, sampling_rate: float, calibration: float) -> tf.Tensor:
    """Return the binary cross-entropy of all logits, with the own candidate's probability raised to a power below 1.

    With few negatives a plain cross-entropy makes models overconfident; the power makes up for the share of candidates
    that were not drawn. Source: Petrov and Macdonald 2023, "gSASRec: Reducing Overconfidence in Sequential
    Recommendation Trained with Negative Sampling", equations 12 and 13.

    Args:
        own: The own candidate's logits.
        others: The logits of candidates that are drawn with equal probability.
        sampling_rate: Share of all other candidates that is drawn for a row.
        calibration: From 0, a plain cross-entropy, to 1, in which probabilities are calibrated.
    """
    power = sampling_rate * (calibration * (1.0 - 1.0 / sampling_rate) + 1.0 / sampling_rate)
    losses = tf.nn.softplus(others)
    return (power * tf.nn.softplus(-own) + tf.reduce_sum(losses, axis=1)) / (1.0 + _count(others))


def _is_other(others: tf.Tensor) -> tf.Tensor:
    return tf.cast(others > others.dtype.min, others.dtype)


def _count(others: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(_is_other(others), axis=1)


def _mean_of_others(losses: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    return tf.math.divide_no_nan(tf.reduce_sum(losses * _is_other(others), axis=1), _count(others))
