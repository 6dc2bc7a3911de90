"""Examples per second, from times worked by hand."""

from collections.abc import Callable, Iterator

import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.throughput import RateMeter, Throughput


def test_the_step_that_builds_the_graph_is_left_out_once_there_is_another() -> None:
    meter = RateMeter(global_batch_size=10)
    meter.begin_epoch(0.0)
    assert meter.examples_per_second() == 0.0
    meter.step_done(5.0, 1)
    assert meter.examples_per_second() == 2.0  # 10 examples in 5 s
    meter.step_done(6.0, 2)
    meter.step_done(7.0, 3)
    assert meter.examples_per_second() == 10.0  # 20 examples in the 2 s since the first step

    meter.begin_epoch(100.0)
    meter.step_done(104.0, 1)
    assert meter.examples_per_second() == 2.5  # nothing is built again


def test_an_epoch_that_resumes_at_a_step_counts_only_its_own_steps() -> None:
    meter = RateMeter(global_batch_size=10)
    meter.begin_epoch(0.0, step_in_epoch=100)
    meter.step_done(1.0, 102)  # two steps in one call
    assert meter.examples_per_second() == 20.0


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="global_batch_size is 0"):
        RateMeter(0)


def test_the_rate_is_among_the_epochs_metrics_and_leaves_validation_out(
    new_model: Callable[..., tf_keras.Model], new_dataset: Callable[..., tf.data.Dataset]
) -> None:
    def ticks() -> Iterator[float]:
        # Epoch 1: begin 0, steps at 10, 11, 12, 13. Epoch 2: begin 50 (after validation), steps at 51, 52, 53, 54.
        yield from (0.0, 10.0, 11.0, 12.0, 13.0, 50.0, 51.0, 52.0, 53.0, 54.0)

    clock = ticks()
    history = new_model().fit(
        new_dataset(),
        validation_data=new_dataset(),
        epochs=2,
        callbacks=[Throughput(8, clock=lambda: next(clock))],
        verbose=0,
    )
    # Epoch 1: 3 steps of 8 in 3 s. Epoch 2: 4 steps of 8 in 4 s.
    assert history.history["examples_per_second"] == [8.0, 8.0]
