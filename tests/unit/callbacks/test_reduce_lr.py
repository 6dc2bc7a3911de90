"""The learning rate falls when progress stalls, and goes on where it was after a restart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

from mirrorspark.callbacks.backup import BackupAndRestore
from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
from mirrorspark.callbacks.reduce_lr import AgreedReduceLROnPlateau


class Logs(tf_keras.callbacks.Callback):
    """Logs given values of ``score``, one per epoch."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self._values = values

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["score"] = self._values[epoch]


class Rates(tf_keras.callbacks.Callback):
    """Notes the learning rate at every epoch's end."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append(float(self.model.optimizer.learning_rate.numpy()))


def plateau(**arguments: Any) -> AgreedReduceLROnPlateau:
    return AgreedReduceLROnPlateau("score", factor=0.5, patience=2, **arguments)


def train(new_model: Any, new_dataset: Any, values: list[float], *callbacks: Any, epochs: int | None = None) -> Any:
    rates = Rates()
    model = new_model(optimizer=tf_keras.optimizers.SGD(1.0))
    model.fit(
        new_dataset().take(1), epochs=epochs or len(values), callbacks=[Logs(values), *callbacks, rates], verbose=0
    )
    return rates.seen


@pytest.mark.parametrize(
    ("arguments", "values", "expected"),
    [
        ({}, [3, 2, 2, 2, 1, 1, 1], [1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
        ({"mode": "max"}, [3, 2, 2, 4], [1, 1, 0.5, 0.5]),
        ({"min_delta": 0.5}, [3.0, 2.8, 2.7, 2.0], [1, 1, 0.5, 0.5]),
        ({"cooldown": 1}, [1, 1, 1, 1, 1, 1], [1, 1, 0.5, 0.5, 0.5, 0.25]),
        ({"min_learning_rate": 0.4}, [1] * 5, [1, 1, 0.5, 0.5, 0.4]),
        ({}, [1, np.nan, np.nan], [1, 1, 0.5]),
    ],
)
def test_the_rate_falls_after_patience_without_progress(
    new_model: Any, new_dataset: Any, arguments: dict[str, Any], values: list[float], expected: list[float]
) -> None:
    assert train(new_model, new_dataset, values, plateau(**arguments)) == pytest.approx(expected)


@pytest.mark.parametrize("break_after", [1, pytest.param(2, marks=pytest.mark.full), 3, 4])
def test_a_resumed_training_reduces_when_an_unbroken_one_would(
    tmp_path: Path, new_model: Any, new_dataset: Any, break_after: int
) -> None:
    values = [3.0, 3.0, 3.0, 3.0, 3.0]
    for epochs in (break_after, len(values)):
        reduce = plateau()
        stateful = {"plateau": reduce}
        backup = BackupAndRestore(tmp_path, stateful=stateful)
        checkpoint = ChiefCheckpoint(tmp_path, monitor=None, stateful=stateful)
        rates = train(new_model, new_dataset, values, backup, reduce, checkpoint, epochs=epochs)
    assert rates == pytest.approx([1, 1, 0.5, 0.5, 0.25][break_after:])


def test_a_schedule_is_refused(new_model: Any, new_dataset: Any) -> None:
    schedule = tf_keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    with pytest.raises(ValueError, match="follows a schedule"):
        new_model(optimizer=tf_keras.optimizers.SGD(schedule)).fit(new_dataset(), callbacks=[plateau()], verbose=0)


def test_a_value_that_is_not_logged_is_named(new_model: Any, new_dataset: Any) -> None:
    with pytest.raises(ValueError, match=r"'score', which is not among the logs \['loss', 'mae'\]"):
        new_model().fit(new_dataset(), callbacks=[plateau()], verbose=0)


@pytest.mark.parametrize(
    "arguments", [{"mode": "up"}, {"factor": 1.0}, {"patience": 0}, {"min_delta": -1.0}, {"cooldown": -1}]
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        AgreedReduceLROnPlateau("score", **arguments)
