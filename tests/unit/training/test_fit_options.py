"""T3, T6: the configuration of a training as its rank follows it, up to the first step, and what it says of a step."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, load_batches
from mirrorspark.training.configuration.config import TrainingConfig
from mirrorspark.training.executor.worker_control import WorkerControl
from mirrorspark.training.programs.keras_fit import fit
from mirrorspark.training.programs.keras_fit.start import Start
from mirrorspark.training.protocol.messages.event_client import EventClient
from mirrorspark.training.protocol.messages.stop import StopSignal
from mirrorspark.training.protocol.outcomes.activity import Activity
from mirrorspark.training.protocol.plan import TrainingPlan
from mirrorspark.training.protocol.ring.strategy import RingStrategy
from tests.unit.callbacks.committed_files import publish_files
from tests.unit.training import token_dataset
from tests.unit.training.test_fit_callbacks import NoDriver
from tests.unit.training.test_function_rank import Twin

BuildModel = Callable[..., tf_keras.Model]
Locate = tuple[Callable[[int, int], str], Mapping[str, ReadPlan]]
LossScaling = tf_keras.mixed_precision.LossScaleOptimizer

ROWS = 64
BATCH = 8
EPOCHS = 5
TOTAL_STEPS = ROWS // BATCH * EPOCHS


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return a dataset of eight batches, whose rows lie in eight records."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_dataset, "BLOCK_ROWS", 8)
        folder = tmp_path_factory.mktemp("tokens") / "dataset"
        return token_dataset.write_token_dataset(folder, {"train": ROWS, "validation": BATCH}, tokens=5000)


class Reached(Exception):  # noqa: N818 - no error
    """The training of a rank came as a test wants it to; ``value`` is what it had by then."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def train(plan: TrainingPlan, rank: int = 0) -> Any:
    """Train until a function that a test has put in place raises `Reached`, and return its value."""
    control = WorkerControl(rank, cast(EventClient, NoDriver()), StopSignal(), Activity())
    with pytest.raises(Reached) as reached:
        fit.train(plan, control, lambda epochs: None)
    return reached.value.value


@pytest.fixture
def build(tokens: Dataset, monkeypatch: pytest.MonkeyPatch) -> Iterator[BuildModel]:
    """Yield a function that returns the model which a rank trains, alone, with these fields of the configuration."""
    monkeypatch.delenv("TF_CONFIG", raising=False)
    build_model = fit.build_model

    def build_and_leave(*arguments: Any, **options: Any) -> Any:
        raise Reached(build_model(*arguments, **options))

    monkeypatch.setattr(fit, "build_model", build_and_leave)

    def build(learning_rate_scale: float = 1.0, **knobs: Any) -> tf_keras.Model:
        model = {"name": "multi_field", "embedding_dim": 2, "hidden_units": [4]}
        config = TrainingConfig(name="a", model=model, global_batch_size=BATCH, epochs=EPOCHS, **knobs)
        return train(
            TrainingPlan(
                config,
                str(tokens.path),
                checkpoints="none",
                workers=1,
                global_batch_size=BATCH,
                learning_rate_scale=learning_rate_scale,
            )
        )

    yield build
    tf_keras.mixed_precision.set_global_policy("float32")


def learn(model: tf_keras.Model, steps: int) -> np.ndarray:
    """Return the weights after ``steps`` steps, without any callback."""
    rng = np.random.default_rng(1)
    tokens, labels = rng.integers(0, 100, [steps, BATCH]), rng.integers(0, 2, [steps, BATCH]).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices(({"token": tokens}, labels))
    model.run_eagerly = True  # there is little to compute, and tracing takes longer
    model.fit(model.distribute_strategy.distribute_datasets_from_function(lambda _: data), verbose=0)
    return weights(model)


def weights(model: tf_keras.Model) -> np.ndarray:
    return np.concatenate([variable.numpy().ravel() for variable in model.trainable_variables])


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad", "lazy_adam", "lion", "sgd"])
def test_the_optimizer_is_the_one_of_that_name(build: BuildModel, name: str) -> None:
    assert type(build(optimizer=name).optimizer).__name__.lower() == name.replace("_", "")


@pytest.mark.parametrize(
    ("precision", "arithmetic", "is_scaled"),
    [("float32", "float32", False), ("mixed_float16", "float16", True), ("mixed_bfloat16", "bfloat16", False)],
)
def test_layers_compute_in_the_precision_that_is_configured(
    build: BuildModel, precision: str, arithmetic: str, is_scaled: bool
) -> None:
    """T3: weights and the last layer stay in single precision, and half precision has its loss scaled."""
    model = build(precision=precision)
    *hidden, logit = [layer for layer in model.layers if isinstance(layer, tf_keras.layers.Dense)]
    assert [layer.compute_dtype for layer in hidden] == [arithmetic]
    assert (logit.name, logit.compute_dtype) == ("logit", "float32")
    assert {variable.dtype for variable in model.trainable_variables} == {tf.float32}
    assert isinstance(model.optimizer, LossScaling) == is_scaled


@pytest.mark.parametrize("xla", [True, False])
def test_xla_compiles_what_is_configured_to_be(build: BuildModel, *, xla: bool) -> None:
    model = build(xla=xla)
    inputs = {"token": tf.zeros([BATCH], tf.int64)}
    text = ""
    if isinstance(model.call, tf.types.experimental.PolymorphicFunction):
        text = model.call.experimental_get_compiler_ir(inputs, training=None, mask=None)(stage="hlo")
    assert ("HloModule" in text) == xla


@pytest.mark.parametrize("norm", [None, 0.25])
def test_gradients_are_clipped_to_the_length_that_is_configured(build: BuildModel, norm: float | None) -> None:
    assert build(clip_norm=norm).optimizer.global_clipnorm == norm


@pytest.mark.parametrize(("configured", "expected"), [(3, 3), (50, ROWS // BATCH)])
def test_as_many_steps_are_made_at_once_as_are_configured_and_no_more_than_an_epoch_has(
    build: BuildModel, configured: int, expected: int
) -> None:
    assert build(steps_per_execution=configured)._steps_per_execution.numpy() == expected


@pytest.mark.parametrize("parts", [1, 4])
def test_a_batch_is_worked_through_in_as_many_parts_as_are_configured(build: BuildModel, parts: int) -> None:
    """T3: for one update."""
    model = build(accumulate=parts)
    call, rows = model.call, []

    def count(inputs: Any, *arguments: Any, **options: Any) -> Any:
        rows.append(len(inputs["token"]))
        return call(inputs, *arguments, **options)

    model.call = count
    learn(model, steps=1)
    assert rows == [BATCH // parts] * parts
    assert int(model.optimizer.iterations) == 1


@pytest.mark.parametrize(
    ("scaling", "workers", "factor"),
    [("none", 4, 1.0), ("linear", 2, 2.0), ("linear", 4, 4.0), ("sqrt", 2, math.sqrt(2)), ("sqrt", 4, 2.0)],
)
def test_the_learning_rate_grows_with_the_workers_as_configured(
    build: BuildModel, scaling: str, workers: int, factor: float
) -> None:
    """T3: and shrinks with those of this attempt."""
    rate = build(0.5, learning_rate=0.01, learning_rate_scaling=scaling, workers=workers).optimizer._learning_rate
    assert float(rate(0)) == pytest.approx(0.01 * factor * 0.5)


# At the last of 40 steps 31 of the 32 behind the warm-up are done.
@pytest.mark.parametrize(
    ("schedule", "last"),
    [("constant", 1.0), ("linear", 1 / 32), ("cosine", 0.5 * (1 + math.cos(math.pi * 31 / 32)))],
)
def test_the_learning_rate_rises_and_falls_as_configured(build: BuildModel, schedule: str, last: float) -> None:
    """T3: over the steps of all epochs."""
    rate = build(learning_rate=0.01, learning_rate_schedule=schedule, warmup_steps=8).optimizer._learning_rate
    found = [float(rate(step)) for step in (0, 3, 7, 8, TOTAL_STEPS - 1)]
    assert found == pytest.approx([0.01 / 8, 0.01 / 2, 0.01, 0.01, 0.01 * last], rel=1e-4)


def test_an_attempt_with_batches_of_another_size_goes_on_where_the_schedule_was(
    build: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T6: half of the training was done in 7 steps, so a quarter of it is left 10 steps of this size later."""
    monkeypatch.setattr(fit, "read_start", lambda *_: Start(1, 2, schedule_step=7, schedule_share=0.5))
    rate = build(learning_rate=0.01, learning_rate_schedule="linear").optimizer._learning_rate
    assert [float(rate(step)) for step in (7, 17, 27)] == pytest.approx([0.005, 0.0025, 0.0])


@pytest.mark.parametrize(
    ("local", "share"),
    [
        ({"local_steps": 3, "outer_learning_rate": 0.5}, 1.0),  # not yet
        ({"local_steps": 2}, 1.0),
        pytest.param({"local_steps": 2, "outer_learning_rate": 0.5}, 0.5, marks=pytest.mark.full),
        pytest.param({"local_steps": 2, "outer_momentum": 0.5}, 1.5, marks=pytest.mark.full),
        ({"local_steps": 2, "outer_momentum": 0.5, "outer_learning_rate": 0.5}, 0.75),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_after_the_local_steps_that_are_configured_comes_the_outer_one_that_is(
    build: BuildModel, local: dict[str, Any], share: float
) -> None:
    """T3: a first outer step goes the share ``rate * (1 + momentum)`` of the way that the local ones went."""
    sgd: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.5}
    model = build(**sgd, **local)
    assert type(model.optimizer).__name__ == "LocalUpdatesSGD"
    begin, local_end = weights(model), learn(build(**sgd), steps=2)
    assert not np.allclose(begin, local_end, atol=1e-3)
    np.testing.assert_allclose(learn(model, steps=2), begin + share * (local_end - begin), atol=1e-6)


@pytest.fixture
def locate(tokens: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Locate:
    """Return the second of two ranks' description of a step, and the plans that it was given to read."""
    read: list[ReadPlan] = []

    def note(dataset: Dataset, plan: ReadPlan, **options: Any) -> tf.data.Dataset:
        read.append(plan)
        return load_batches(dataset, plan, **options)

    def leave(*_: Any, locate: Callable[[int, int], str], **options: Any) -> Any:
        raise Reached(locate)

    second = Twin()
    second.rank = 1
    monkeypatch.setattr(fit, "open_strategy", lambda *_: RingStrategy(second))  # type: ignore[arg-type]
    monkeypatch.setattr(fit, "load_batches", note)
    monkeypatch.setattr(fit, "fit_callbacks", leave)
    # Of batches of two rows each rank has one: the rows of a record are read one after the other.
    config = TrainingConfig(name="a", workers=2, global_batch_size=2, epochs=2, seed=4)
    plan = TrainingPlan(
        config,
        str(tokens.path),
        checkpoints=str(tmp_path),
        workers=2,
        global_batch_size=2,
        class_weights=(1.0, 3.0),
    )
    said = train(TrainingPlan.from_json(plan.to_json()), rank=1)
    return said, {plan.split: plan for plan in read}


def test_the_records_that_are_told_of_a_step_are_those_that_its_rank_was_given(locate: Locate, tokens: Dataset) -> None:
    """T6: after a loss of NaN or infinity, in whatever epoch."""
    say, plans = locate
    plan = plans["train"]
    records = [set(block.features["token"].tolist()) for block in tokens.blocks("train")]  # type: ignore[union-attr]
    per_epoch = tokens.steps("train", 2)
    read = itertools.islice(load_batches(tokens, plan).as_numpy_iterator(), 2 * per_epoch)
    told = []
    for number, (features, _, _) in enumerate(read):
        told.append(say(*divmod(number, per_epoch)))
        # A few tokens are in two records.
        holding = [record for record, held in enumerate(records) if features["token"][0] in held]
        assert told[-1].partition("; ")[0] in [f"it read train/part-00000.tfrecord records {n}" for n in holding]
    assert told[:per_epoch] != told[per_epoch:]


def test_class_weights_are_those_of_training_rows_alone(locate: Locate) -> None:
    assert {split: plan.class_weights for split, plan in locate[1].items()} == {"train": (1.0, 3.0), "validation": ()}


def test_the_checkpoint_that_is_told_of_a_step_is_the_last_one_before_it(locate: Locate, tmp_path: Path) -> None:
    for step, epoch, step_in_epoch in ((10, 0, 10), (20, 0, 20), (1032, 1, 0)):
        publish_files(tmp_path, {"state.json": "{}"}, step=step, epoch=epoch, step_in_epoch=step_in_epoch)
    say, _ = locate
    told = [say(*place).partition("; ")[2] for place in ((0, 9), (0, 10), (0, 31), (1, 0), (1, 5))]
    last = "the last checkpoint is that of step"
    assert told == ["there is no checkpoint yet", f"{last} 10", f"{last} 20", f"{last} 1,032", f"{last} 1,032"]
