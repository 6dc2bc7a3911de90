"""What each task optimises and watches: loss, metrics, and the metric that early stopping looks at."""

from collections.abc import Mapping

import tensorflow as tf
import tf_keras

# 200 thresholds (Keras's default) miss the AUC by up to 0.005 when scores crowd near the base rate.
AUC_THRESHOLDS = 2000

OPTIMIZERS: Mapping[str, type] = {
    "adam": tf_keras.optimizers.Adam,
    "adagrad": tf_keras.optimizers.Adagrad,
    "sgd": tf_keras.optimizers.SGD,
}


def compile_model(
    model: tf_keras.Model, task: str, optimizer: str, learning_rate: float, steps_per_execution: int = 1
) -> None:
    """Compile ``model`` for ``task``.

    Raises:
        ValueError: The task or the optimizer is unknown.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer '{optimizer}' is unknown; use one of {sorted(OPTIMIZERS)}")
    chosen = OPTIMIZERS[optimizer](learning_rate=learning_rate)
    if task == "binary":
        model.compile(
            chosen,
            loss=tf_keras.losses.BinaryCrossentropy(from_logits=True),
            weighted_metrics=[
                # The compiled loss divides by the padded batch; this one by the rows that count.
                tf_keras.metrics.BinaryCrossentropy(name="log_loss", from_logits=True),
                tf_keras.metrics.AUC(name="auc", num_thresholds=AUC_THRESHOLDS, from_logits=True),
            ],
            steps_per_execution=steps_per_execution,
        )
    elif task == "retrieval":
        model.compile(chosen, steps_per_execution=steps_per_execution)
    else:
        raise ValueError(f"task '{task}' is unknown; use binary or retrieval")


def multi_label_log_loss(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the mean over labels of the log loss, float32 ``[batch]``, for ``[batch, labels]`` inputs.

    Source: the multi-label log loss of scikit-learn's ``log_loss`` applied per label, from logits for stability.
    """
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.cast(labels, logits.dtype), logits=logits)
    return tf.reduce_mean(losses, axis=-1)
