"""L6: metrics may be floats, NumPy scalars or tensors."""

import numpy as np
import pytest
import tensorflow as tf

from mirrorspark.callbacks.collectives.metric_values import as_float, scalar_metrics


@pytest.mark.parametrize(
    "value",
    [
        0.5,
        np.float32(0.5),
        np.array([0.5]),
        tf.constant(0.5),
        tf.constant([0.5], tf.float64),
        tf.constant(0.5, tf.bfloat16),
        tf.Variable(0.5),
    ],
)
def test_each_kind_of_scalar_becomes_the_same_float(value: object) -> None:
    assert as_float(value) == 0.5
    assert type(as_float(value)) is float


@pytest.mark.parametrize("value", [None, "0.5", np.array([1.0, 2.0]), tf.constant("x"), np.array([])])
def test_values_that_are_no_single_number_are_none(value: object) -> None:
    assert as_float(value) is None


def test_scalar_metrics_leave_out_vectors_and_keep_the_order() -> None:
    logs = {"loss": tf.constant(1.5), "per_class": np.zeros(3), "count": np.int64(4), "flag": True}
    assert list(scalar_metrics(logs).items()) == [("loss", 1.5), ("count", 4.0), ("flag", 1.0)]
    assert scalar_metrics(None) == {}
