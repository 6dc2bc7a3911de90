"""The retrieval task: TensorFlow Recommenders' own, with the losses and hard negatives of :class:`LossSettings`."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.models.recommenders import tfrs
from mirrorspark.models.retrieval.losses import named_loss, softmax_of_rows
from mirrorspark.models.retrieval.sampling import Columns, hardest
from mirrorspark.models.settings import LossSettings

# TensorFlow Recommenders' task gives a candidate that counts for nothing a hundredth of the lowest number.
_VOID = tf.float32.min / 200


class RetrievalTask(tfrs.tasks.Retrieval):
    """TensorFlow Recommenders' task, which goes into any ``tfrs.Model``, with a loss by its name.

    A call is that of TensorFlow Recommenders. Our models take :meth:`losses_of_rows`, with candidates of any source.
    """

    def __init__(
        self,
        settings: LossSettings | None = None,
        metrics: Any = None,
        *,
        batch_metrics: Sequence[Any] | None = None,
        loss_metrics: Sequence[Any] | None = None,
        remove_accidental_hits: bool = False,
        sampling_rate: float = 1.0,
        name: str = "retrieval",
    ) -> None:
        """Store the settings.

        Args:
            settings: The loss, its parameters, the temperature and the hard negatives; the softmax by default.
            metrics: As of ``tfrs.tasks.Retrieval``, for example ``tfrs.metrics.FactorizedTopK``.
            batch_metrics: As there.
            loss_metrics: As there.
            remove_accidental_hits: As there.
            sampling_rate: Share of all other candidates that is drawn for a row, for the loss ``gbce``.
            name: Name of the layer.
        """
        settings = settings or LossSettings(sampling="in_batch")
        super().__init__(
            loss=None if settings.loss == "softmax" else _NamedLoss(settings, sampling_rate),
            metrics=metrics,
            batch_metrics=batch_metrics,
            loss_metrics=loss_metrics,
            temperature=settings.temperature,
            num_hard_negatives=settings.hard_negatives or None,
            remove_accidental_hits=remove_accidental_hits,
            name=name,
        )
        self._settings, self._sampling_rate = settings, sampling_rate

    def scores(self, queries: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
        """Return float32 ``[queries, candidates]``."""
        return tf.matmul(queries, candidates, transpose_b=True) / self._settings.temperature

    def losses_of_rows(
        self,
        own: tf.Tensor,
        own_logits: tf.Tensor,
        columns: Columns,
        scores: tf.Tensor,
        training: bool,
        nearest: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Return the loss of each query, float32 ``[queries]``.

        Args:
            own: int64 ``[queries]``, their own candidates.
            own_logits: float32 ``[queries]``, the scores of these.
            columns: The candidates that all queries are compared with.
            scores: float32 ``[queries, columns]``.
            training: Whether only the hardest are kept.
            nearest: float32 ``[queries, any]``, scores of further others of each.
        """
        settings = self._settings
        logits, are_others = scores, columns.are_others(own)
        if settings.loss == "softmax" and columns.log_counts is not None:
            logits -= columns.log_counts
            if columns.are_rows:  # Yi et al. correct the own candidate too
                own_logits -= columns.log_counts
        hard_negatives = settings.hard_negatives if training else 0
        lowest = scores.dtype.min
        if settings.loss == "softmax" and columns.are_rows and not hard_negatives and nearest is None:
            is_compared = are_others | tf.eye(tf.shape(scores)[0], dtype=tf.bool)
            return softmax_of_rows(tf.where(is_compared, logits, lowest))
        others = tf.where(are_others, logits, lowest)
        if hard_negatives:
            others = hardest(others, tf.where(are_others, scores, lowest), hard_negatives)
        if nearest is not None:
            if settings.loss == "softmax" and columns.are_rows:
                # A row's candidate has the logit s - log(p), which leaves out log(rows) of s - log(rows * p).
                # A worker's share may be padding alone.
                rows = tf.maximum(tf.reduce_sum(tf.cast(columns.is_candidate, tf.float32)), 1.0)
                nearest += tf.math.log(rows)
            others = tf.concat([others, nearest], axis=1)
        return named_loss(settings, own_logits, others, self._sampling_rate if training else 1.0)


class _NamedLoss(tf_keras.losses.Loss):
    """A loss of :mod:`models.retrieval.losses` for one-hot labels and logits, as TensorFlow Recommenders calls it."""

    def __init__(self, settings: LossSettings, sampling_rate: float) -> None:
        super().__init__(reduction=tf_keras.losses.Reduction.SUM, name=settings.loss)
        self._settings, self._sampling_rate = settings, sampling_rate

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return float32 ``[rows]`` for ``[rows, candidates]`` each."""
        is_other = (y_true == 0) & (y_pred > _VOID)
        others = tf.where(is_other, y_pred, y_pred.dtype.min)
        return named_loss(self._settings, tf.reduce_sum(y_true * y_pred, axis=1), others, self._sampling_rate)
