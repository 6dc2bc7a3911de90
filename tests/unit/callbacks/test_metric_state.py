"""T6: an epoch that is resumed in its middle logs the training metrics of the whole epoch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.backup import BackupAndRestore
from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
from mirrorspark.callbacks.checkpoints.metric_states import MetricState
from mirrorspark.callbacks.stop_request import StopOnRequest, TrainingStopped

NewDataset = Callable[..., tf.data.Dataset]


def build(metrics: list[Any], *, steps_per_execution: int = 1, scope: tf.distribute.Strategy | None = None) -> Any:
    tf_keras.utils.set_random_seed(1)
    with (scope or tf.distribute.get_strategy()).scope():
        model = tf_keras.Sequential([tf_keras.layers.Dense(1, activation="sigmoid", input_shape=(3,))])
        model.compile("sgd", "mse", metrics=metrics, steps_per_execution=steps_per_execution)
    return model


def auc_of_sign() -> list[Any]:
    """Return metrics that are sums of many numbers, and ones that Keras builds late."""
    return ["mae", tf_keras.metrics.RootMeanSquaredError()]


def interrupted(store: Path, new_dataset: NewDataset, after: int, **options: Any) -> None:
    checkpoint = ChiefCheckpoint(store, monitor=None)
    stop = StopOnRequest(lambda: True, checkpoint, every_steps=after)
    with pytest.raises(TrainingStopped):
        build(auc_of_sign(), **options).fit(new_dataset(), epochs=2, callbacks=[checkpoint, stop], verbose=0)


@pytest.mark.parametrize(("after", "steps_per_execution"), [(1, 1), (3, 1), (2, 2)])
def test_a_resumed_epoch_logs_what_an_unbroken_one_does(
    tmp_path: Path, new_dataset: NewDataset, after: int, steps_per_execution: int
) -> None:
    options = {"steps_per_execution": steps_per_execution}
    unbroken = build(auc_of_sign(), **options).fit(new_dataset(), epochs=2, verbose=0).history
    interrupted(tmp_path, new_dataset, after, **options)

    data = new_dataset(after).concatenate(new_dataset().repeat())
    resumed = build(auc_of_sign(), **options).fit(
        data, epochs=2, steps_per_epoch=4, callbacks=[BackupAndRestore(tmp_path)], verbose=0
    )
    # The same bits; with two steps in an execution the sums are rounded in another order.
    tolerance = 0 if steps_per_execution == 1 else 1e-6
    for name, values in unbroken.items():
        np.testing.assert_allclose(resumed.history[name], values, rtol=tolerance)


def test_metrics_that_exist_already_are_set_at_the_epochs_begin(tmp_path: Path, new_dataset: NewDataset) -> None:
    unbroken = build(auc_of_sign(), steps_per_execution=2).fit(new_dataset(), epochs=2, verbose=0).history
    interrupted(tmp_path, new_dataset, 2, steps_per_execution=2)

    model = build(auc_of_sign(), steps_per_execution=2)
    model.fit(new_dataset(), epochs=1, verbose=0)  # builds the metrics
    data = new_dataset(2).concatenate(new_dataset().repeat())
    resumed = model.fit(data, epochs=2, steps_per_epoch=4, callbacks=[BackupAndRestore(tmp_path)], verbose=0)
    assert resumed.history == unbroken


def test_other_metrics_than_those_saved_are_left_alone_with_a_warning(
    tmp_path: Path, new_dataset: NewDataset, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path, new_dataset, 3)
    data = new_dataset(3).concatenate(new_dataset().repeat())
    other = build([tf_keras.metrics.MeanSquaredError(name="other")])
    other.fit(data, epochs=1, steps_per_epoch=4, callbacks=[BackupAndRestore(tmp_path)], verbose=0)
    assert "cover the steps since the checkpoint only" in caplog.text


def test_with_another_number_of_replicas_the_sum_stays(tmp_path: Path, new_dataset: NewDataset) -> None:
    unbroken = build(auc_of_sign()).fit(new_dataset(), epochs=1, verbose=0).history
    interrupted(tmp_path, new_dataset, 3)
    state_file = next(tmp_path.glob("step-*/epoch_metrics.npz"))
    whole = MetricState.from_bytes(state_file.read_bytes())
    # As two replicas would have left it.
    halves = MetricState(whole.names, np.concatenate([whole.values / 4, whole.values * 3 / 4]))
    state_file.write_bytes(halves.to_bytes())

    data = new_dataset(3).concatenate(new_dataset().repeat())
    newest = next(tmp_path.glob("step-*"))
    backup = BackupAndRestore(tmp_path, resume_from=newest, verify=False)
    resumed = build(auc_of_sign()).fit(data, epochs=1, steps_per_epoch=4, callbacks=[backup], verbose=0)
    for name, values in unbroken.items():
        np.testing.assert_allclose(resumed.history[name], values, rtol=1e-6)


def test_a_state_survives_its_file() -> None:
    state = MetricState(("loss/0[]", "auc/1[200]"), np.array([[0.1, 1e300], [np.inf, 3.0]]))
    again = MetricState.from_bytes(state.to_bytes())
    assert again.names == state.names
    np.testing.assert_array_equal(again.values, state.values)
