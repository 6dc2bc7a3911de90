"""T11: batches that one process gives to graphs that another one made; here both are the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, load_batches
from mirrorspark.training.configuration.config import TrainingConfig
from mirrorspark.training.programs.parameter_servers import train
from mirrorspark.training.programs.parameter_servers.data import BatchSupply, RemoteBatches
from mirrorspark.training.protocol.outcomes.activity import Activity
from mirrorspark.training.protocol.plan import TrainingPlan
from mirrorspark.training.protocol.roles import Roles
from tests.unit.training.token_dataset import write_token_dataset

TRAINING = ReadPlan("train", 32, rank=1, workers=2, seed=3, epochs=None)
VALIDATION = ReadPlan("validation", 8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder: Path = tmp_path_factory.mktemp("data") / "tokens"
    return write_token_dataset(folder, {"train": 100, "validation": 40}, 50)


def assert_equal(found: Any, expected: Any) -> None:
    tf.nest.assert_same_structure(found, expected)
    for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_training_stream_is_that_of_the_worker(dataset: Dataset) -> None:
    activity = Activity()
    supply = BatchSupply(dataset, TRAINING, VALIDATION, activity)
    # The coordinator plans as some worker: the shapes are those of all.
    remote = RemoteBatches(supply.name, dataset, ReadPlan("train", 32, workers=2), VALIDATION)
    stream = remote.training(tf.distribute.InputContext())
    assert stream.element_spec == load_batches(dataset, TRAINING, scaled_to="share").element_spec
    for found, expected in zip(stream.take(9), load_batches(dataset, TRAINING, scaled_to="share").take(9), strict=True):
        assert_equal(found, expected)
    assert activity.step >= 9


def test_class_weights_are_those_of_training_rows_alone(dataset: Dataset, tmp_path: Path) -> None:
    config = TrainingConfig(name="a", strategy="parameter_server", parameter_servers=1, workers=2, global_batch_size=16)
    plan = TrainingPlan(
        *(config, str(dataset.path)),
        checkpoints=str(tmp_path),
        workers=2,
        global_batch_size=16,
        class_weights=(1.0, 3.0),
    )
    roles = Roles(2, 1)
    training, validation = train._read_plans(plan, roles, roles.of(1), dataset)
    assert (training.class_weights, validation.class_weights) == ((1.0, 3.0), ())


def test_the_input_hook_holds_up_the_training_stream_alone(dataset: Dataset) -> None:
    def held_up(stream: tf.data.Dataset) -> tf.data.Dataset:
        return stream.skip(3)

    supply = BatchSupply(dataset, TRAINING, VALIDATION, Activity(), held_up)
    remote = RemoteBatches(supply.name, dataset, TRAINING, VALIDATION)
    (found,) = remote.training(tf.distribute.InputContext()).take(1)
    (expected,) = load_batches(dataset, TRAINING, scaled_to="share").skip(3).take(1)
    assert_equal(found, expected)
    (first,) = load_batches(dataset, VALIDATION, scaled_to="batch").take(1)
    assert_equal(remote.validation(tf.constant(0, tf.int64)), first)


def test_validation_batches_come_by_number_in_any_order(dataset: Dataset) -> None:
    supply = BatchSupply(dataset, TRAINING, VALIDATION, Activity())
    remote = RemoteBatches(supply.name, dataset, TRAINING, VALIDATION)
    ask = tf.function(remote.validation)
    expected = list(load_batches(dataset, VALIDATION, scaled_to="batch"))
    for step in (3, 4, 0, 1, 1):
        assert_equal(ask(tf.constant(step, tf.int64)), expected[step])


def test_a_name_that_no_worker_gave_is_an_error(dataset: Dataset) -> None:
    remote = RemoteBatches("pyfunc_999999", dataset, TRAINING, VALIDATION)
    with pytest.raises(tf.errors.OpError, match="pyfunc_999999"):
        remote.validation(tf.constant(0, tf.int64))
