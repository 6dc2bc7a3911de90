"""Progress events: their order, their numbers, and that the device is not waited for more often than asked."""

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.progress import EventCallback


class Clock:
    """Moves on by one second with each reading."""

    def __init__(self) -> None:
        self.now = -1.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class UnreadableLoss:
    """Stands for a loss that is still on the device."""

    def numpy(self) -> float:
        raise AssertionError("the loss was read although no event was due")


def test_a_training_tells_its_story_in_order(
    new_model: Callable[..., tf_keras.Model], new_dataset: Callable[..., tf.data.Dataset]
) -> None:
    events: list[dict[str, Any]] = []
    callback = EventCallback(events.append, global_batch_size=8, every_seconds=0.0, clock=Clock())
    begun = time.time()
    new_model().fit(new_dataset(), validation_data=new_dataset(), epochs=2, callbacks=[callback], verbose=0)

    epoch = ["progress"] * 4 + ["validation"] * 5 + ["epoch_end"]
    assert [event["event"] for event in events] == ["train_begin", *epoch, *epoch, "train_end"]
    begin = {"epochs": 2, "steps": 4, "global_batch_size": 8, "parameter_bytes": 4 * new_model().count_params()}
    assert events[0] == {"event": "train_begin"} | begin
    progress = events[4]
    assert (progress["step"], progress["epoch"], progress["step_in_epoch"], progress["steps"]) == (4, 1, 4, 4)
    assert progress["examples_per_second"] == 8.0  # one step of 8 a second, the first left out
    assert isinstance(progress["loss"], float)
    epoch_end = events[20]
    assert (epoch_end["epoch"], epoch_end["step"]) == (2, 8)
    assert set(epoch_end["logs"]) == {"loss", "mae", "val_loss", "val_mae"}
    # Ticks from the epoch's begin: four steps, four validation batches, the end itself.
    assert epoch_end["seconds"] == 9.0
    assert events[-1] == {"event": "train_end", "epochs": 2}
    json.dumps(events, allow_nan=False)

    told = callback.get_state()["told"]
    assert begun <= told[0]["time"] <= told[1]["time"] <= time.time()
    assert told == [event | {"time": mine["time"]} for event, mine in zip((events[10], epoch_end), told, strict=True)]


def test_between_events_the_loss_stays_on_the_device(new_model: Callable[..., tf_keras.Model]) -> None:
    events: list[dict[str, Any]] = []
    callback = EventCallback(events.append, global_batch_size=8, every_seconds=3.0, clock=Clock())
    callback.set_model(new_model())
    callback.set_params({"epochs": 1, "steps": 9})
    callback.on_train_begin()  # 0 s: due at once
    callback.on_epoch_begin(0)  # 1 s
    callback.on_train_batch_begin(0)
    callback.on_train_batch_end(0, {"loss": 0.25})  # 2 s: sent, next at 5 s
    callback.on_train_batch_end(1, {"loss": UnreadableLoss()})
    callback.on_train_batch_end(2, {"loss": UnreadableLoss()})
    callback.on_train_batch_end(3, {"loss": tf.constant(0.5)})  # 5 s
    assert [(e["step_in_epoch"], e["loss"]) for e in events[1:]] == [(1, 0.25), (4, 0.5)]


def test_an_error_of_send_ends_the_training(
    new_model: Callable[..., tf_keras.Model], new_dataset: Callable[..., tf.data.Dataset]
) -> None:
    def send(event: dict[str, Any]) -> None:
        raise BrokenPipeError("the driver has ended")

    with pytest.raises(BrokenPipeError, match="the driver has ended"):
        new_model().fit(new_dataset(), callbacks=[EventCallback(send, global_batch_size=8)], verbose=0)


@pytest.mark.parametrize(
    ("metric", "attributes", "loss"),
    [
        ("loss", {}, 0.25),
        ("loss", {"sums_batch_logs": False}, 0.5),
        # A step of the model's own returned it: the sum over the replicas, of which a rank has its share.
        ("mae", {}, 0.5),
        ("mae", {"sums_batch_logs": False}, 1.0),
    ],
)
def test_a_loss_is_that_of_all_replicas_whether_or_not_the_strategy_sums_it(
    metric: str, attributes: dict[str, Any], loss: float
) -> None:
    events: list[dict[str, Any]] = []
    callback = EventCallback(events.append, global_batch_size=8)
    strategy = SimpleNamespace(num_replicas_in_sync=2, **attributes)
    metrics = [SimpleNamespace(name=metric)]
    callback.set_model(SimpleNamespace(distribute_strategy=strategy, optimizer=None, built=False, metrics=metrics))
    callback.set_params({"epochs": 1, "steps": 9})
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    callback.on_train_batch_end(0, {"loss": 0.5})
    assert (events[-1]["loss"], events[-1]["step"]) == (loss, None)
