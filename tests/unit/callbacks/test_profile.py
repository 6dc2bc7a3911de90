"""A profile of some steps behind the warm-up, at any number of steps per execution, never at a run's cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.profile import ProfileSteps

NewModel = Callable[..., tf_keras.Model]


@pytest.fixture
def profiler(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the calls of TensorFlow's profiler, which is replaced by an empty one."""
    calls: list[str] = []
    monkeypatch.setattr(tf.profiler.experimental, "start", lambda folder: calls.append("start"))
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: calls.append("stop"))
    return calls


def train(callback: ProfileSteps, epochs: int, executions: int, steps_per_execution: int, calls: list[str]) -> None:
    """Call back as Keras does."""
    for epoch in range(epochs):
        for execution in range(executions):
            first = execution * steps_per_execution
            callback.on_train_batch_begin(first)
            calls.append(f"{epoch}.{execution}")
            callback.on_train_batch_end(first + steps_per_execution - 1)
        callback.on_test_begin()
        callback.on_epoch_end(epoch)
    callback.on_train_end()


@pytest.mark.parametrize(("steps_per_execution", "executions"), [(1, 20), (10, 2), (50, 2)])
def test_it_covers_the_steps_asked_for_and_two_executions_at_the_least(
    tmp_path: Path, profiler: list[str], steps_per_execution: int, executions: int
) -> None:
    train(ProfileSteps(tmp_path, steps=20), 1, 30, steps_per_execution, profiler)
    assert profiler.index("start") == 2
    assert profiler.index("stop") == 2 + 1 + executions
    assert profiler.count("start") == profiler.count("stop") == 1


def test_it_ends_with_an_epoch_that_is_too_short(tmp_path: Path, profiler: list[str]) -> None:
    train(ProfileSteps(tmp_path, steps=20), 3, 1, 4, profiler)
    assert profiler == ["0.0", "1.0", "start", "2.0", "stop"]


def test_it_ends_when_it_takes_too_long(tmp_path: Path, profiler: list[str]) -> None:
    seconds = iter(range(0, 1000, 6))
    train(ProfileSteps(tmp_path, steps=20, clock=lambda: float(next(seconds))), 1, 9, 1, profiler)
    assert profiler[2:6] == ["start", "0.2", "0.3", "stop"]


def test_a_profiler_that_does_not_start_costs_a_warning(
    tmp_path: Path, profiler: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(folder: str) -> None:
        raise tf.errors.AlreadyExistsError(None, None, "Another profiler is running.")

    monkeypatch.setattr(tf.profiler.experimental, "start", refuse)
    train(ProfileSteps(tmp_path), 1, 9, 1, profiler)
    assert "stop" not in profiler
    assert caplog.text.count(f"no profile is written to {tmp_path}: Another profiler is running.") == 1


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_tensorboard_finds_a_trace_in_the_folder(
    tmp_path: Path, new_model: NewModel, arrays: tuple[Any, Any], steps_per_execution: int
) -> None:
    model = new_model(is_rich=True)
    model.compile("sgd", "mse", steps_per_execution=steps_per_execution)
    dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(2).repeat()
    folder = tmp_path / "rank-0"
    model.fit(dataset, steps_per_epoch=24, epochs=1, callbacks=[ProfileSteps(folder, steps=6)], verbose=0)
    (trace,) = folder.glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 1000
