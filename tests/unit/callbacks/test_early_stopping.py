"""T10, F6: early stopping in one process (two processes: tests/cluster/test_callbacks_two_workers.py)."""

import math
from typing import Any, Literal

import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.early_stopping import AgreedEarlyStopping


def stop_epoch(stopping: AgreedEarlyStopping, values: list[float], first_epoch: int = 0) -> int | None:
    """Return the completed epochs at which ``stopping`` stops a training that logs these values, or None."""
    model = tf_keras.Sequential()
    model.stop_training = False
    stopping.set_model(model)
    stopping.on_train_begin()
    for epoch, value in enumerate(values, start=first_epoch):
        stopping.on_epoch_begin(epoch)
        stopping.on_epoch_end(epoch, {"val_auc": tf.constant(value, tf.float64)})
        if model.stop_training:
            return epoch + 1
    return None


@pytest.mark.parametrize(
    ("mode", "values", "expected", "best_epoch"),
    [
        ("max", [0.5, 0.6, 0.6, 0.55, 0.9], 4, 2),
        ("min", [0.5, 0.4, 0.45, 0.41, 0.1], 4, 2),
        ("max", [0.5, math.nan, math.nan, 0.9], 3, 1),
        ("max", [math.nan, math.nan, 0.9], 2, 0),
        ("max", [0.5, 0.6, 0.5, 0.7, 0.6], None, 4),
    ],
)
def test_training_stops_after_patience_epochs_without_improvement(
    mode: Literal["min", "max"], values: list[float], expected: int | None, best_epoch: int
) -> None:
    stopping = AgreedEarlyStopping(mode=mode, patience=2)
    assert stop_epoch(stopping, values) == expected
    assert stopping.best_epoch == best_epoch
    assert stopping.stopped is (expected is not None)


def test_a_change_of_no_more_than_min_delta_is_no_improvement() -> None:
    # 0.5 -> 0.75 is exactly min_delta; 0.5 -> 0.875 is more.
    assert stop_epoch(AgreedEarlyStopping(patience=1, min_delta=0.25), [0.5, 0.75]) == 2
    assert stop_epoch(AgreedEarlyStopping(patience=1, min_delta=0.25), [0.5, 0.875]) is None


def test_a_baseline_has_to_be_beaten_from_the_start() -> None:
    assert stop_epoch(AgreedEarlyStopping(patience=2, baseline=0.7), [0.6, 0.7, 0.9]) == 2


def test_state_goes_over_to_another_process_and_the_count_goes_on() -> None:
    first = AgreedEarlyStopping(patience=3)
    assert stop_epoch(first, [0.8, 0.7, 0.6]) is None
    assert first.get_state() == {"epoch": 3, "best": 0.8, "best_epoch": 1, "wait": 2}

    second = AgreedEarlyStopping(patience=3)
    second.set_state(first.get_state())
    assert stop_epoch(second, [0.75, 0.9], first_epoch=3) == 4


def test_a_second_fit_starts_afresh() -> None:
    stopping = AgreedEarlyStopping(patience=1)
    assert stop_epoch(stopping, [0.9, 0.8]) == 2
    assert stop_epoch(stopping, [0.5, 0.6]) is None


def test_a_missing_monitor_is_an_error_that_lists_the_logs() -> None:
    stopping = AgreedEarlyStopping("val_acc")
    stopping.set_model(tf_keras.Sequential())
    with pytest.raises(ValueError, match=r"'val_acc', which is not among the logs \['loss', 'val_auc'\]"):
        stopping.on_epoch_end(0, {"loss": 1.0, "val_auc": 0.5})


@pytest.mark.parametrize("arguments", [{"patience": 0}, {"min_delta": -1.0}, {"min_delta": math.nan}, {"mode": "up"}])
def test_arguments_out_of_range_are_refused_when_built(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        AgreedEarlyStopping(**arguments)
