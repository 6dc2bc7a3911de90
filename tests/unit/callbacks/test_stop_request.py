"""A training that is asked to stop leaves a checkpoint of that very step (two ranks: tests/cluster)."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.stop_request import StopOnRequest, TrainingStopped

NewModel = Callable[..., tf_keras.Model]
NewDataset = Callable[..., tf.data.Dataset]


class RequestAfter(tf_keras.callbacks.Callback):
    """Requests a stop after a number of steps; list it first."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._left -= 1

    def is_requested(self) -> bool:
        return self._left <= 0


def fit(store: Path, model: tf_keras.Model, dataset: Any, after: int, *, epochs: int = 3, **arguments: Any) -> Any:
    request, checkpoint = RequestAfter(after), ChiefCheckpoint(store, monitor=None)
    stop = StopOnRequest(request.is_requested, checkpoint, **arguments)
    return model.fit(dataset, epochs=epochs, callbacks=[request, checkpoint, stop], verbose=0)


@pytest.mark.parametrize(
    ("after", "every_steps", "expected"),
    [
        (1, 1, (1, 0, 1)),  # at once
        (5, 1, (5, 1, 1)),
        (5, 3, (6, 1, 2)),  # asked after steps 3 and 6
        (4, 1, (4, 1, 0)),  # an epoch's end
        (3, 100, (4, 1, 0)),
    ],
)
def test_the_checkpoint_is_that_of_the_step_at_which_training_stopped(
    tmp_path: Path,
    new_model: NewModel,
    new_dataset: NewDataset,
    after: int,
    every_steps: int,
    expected: tuple[int, int, int],
) -> None:
    with pytest.raises(TrainingStopped) as stopped:
        fit(tmp_path, new_model(), new_dataset(), after, every_steps=every_steps)
    checkpoint = commit.latest_committed(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.epoch, checkpoint.step_in_epoch) == expected
    assert (stopped.value.step, stopped.value.path) == (checkpoint.step, str(checkpoint.path))


def test_by_the_clock_a_request_is_seen_within_the_interval(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    with pytest.raises(TrainingStopped) as stopped:
        fit(tmp_path, new_model(), new_dataset(), 2, every_seconds=1e-9)
    assert stopped.value.step == 2


def test_a_training_that_ends_anyway_ends_as_usual(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    assert fit(tmp_path, new_model(), new_dataset(), 4, epochs=1, every_steps=100).epoch == [0]


def test_steps_of_one_execution_count_each(tmp_path: Path, new_model: NewModel, new_dataset: NewDataset) -> None:
    model = new_model()
    model.compile("sgd", "mse", steps_per_execution=2)
    with pytest.raises(TrainingStopped) as stopped:
        fit(tmp_path, model, new_dataset(), 1, every_steps=2)
    assert stopped.value.step == 2


def test_an_epoch_of_unknown_length_stops_at_its_end(tmp_path: Path, new_model: NewModel, arrays: Any) -> None:
    features, labels = arrays
    dataset = tf.data.Dataset.from_generator(
        lambda: iter([(features[:8], labels[:8])] * 3),
        output_signature=(tf.TensorSpec((8, 3)), tf.TensorSpec((8, 1))),
    )
    with pytest.raises(TrainingStopped) as stopped:
        fit(tmp_path, new_model(), dataset, 1, every_steps=1)
    assert stopped.value.step == 3


def test_the_stop_survives_pickle_and_says_where_to_go_on() -> None:
    stop = TrainingStopped(7, "/store/step-00000007")
    again = pickle.loads(pickle.dumps(stop))  # noqa: S301
    assert (type(again), str(again)) == (TrainingStopped, str(stop))
    assert "at step 7; it goes on from /store/step-00000007" in str(stop)


def test_steps_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every_steps is 0"):
        StopOnRequest(lambda: False, ChiefCheckpoint(tmp_path), every_steps=0)
