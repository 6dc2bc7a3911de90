"""M1, M17: stacked models learn what each would alone, stop one by one, go on after a restart, and become a fleet."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tf_keras
from sklearn.metrics import d2_tweedie_score, r2_score, roc_auc_score

from mirrorspark.callbacks.stop_request import TrainingStopped
from mirrorspark.data_pipelines.dataset.manifest import SPLITS
from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, Numeric, Vector
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import Encoder
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.data_pipelines.reading.padding import PaddedBatch
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.scorer import FleetScorer
from mirrorspark.fleet.training.declared import declared_models
from mirrorspark.fleet.training.inputs import inputs_of
from mirrorspark.fleet.training.plan import TARGETS, StackMember, StackPlan, StackSettings, train_stack
from mirrorspark.fleet.training.stack import PredictionHistograms, StackedModels, areas_under_curve
from mirrorspark.fleet.training.stopping import ModelStopping
from mirrorspark.fleet.training.targets import TargetSums
from mirrorspark.fleet.training.trained import fleet_of, report_of, summary
from mirrorspark.fleet.training.worker import NUMBERS, assembled
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.training.executor.training_hook import TrainingHook
from mirrorspark.training.programs.user_functions import worker as function_rank
from mirrorspark.training.programs.user_functions.plan import FunctionPlan, pack_function, unpack_value
from mirrorspark.training.protocol.outcomes.activity import Activity
from tests.unit.training.token_dataset import write_dataset

STEPS, ROWS, INPUTS = 12, 32, 4
RATE = 0.05
MEMBERS = (
    StackMember("plain", 0, "logit"),
    StackMember("rare", 1, "logit", penalty=0.3, share=0.5, start=-0.4),
    StackMember("amount", 2, "identity", penalty=0.1, mean=1.0, scale=2.0),
    StackMember("count", 3, "log", start=0.2),
    StackMember("narrow", 0, "logit", inputs=(0, 2)),
)
LOSSES = {
    "identity": lambda y, z: tf.reduce_mean(0.5 * tf.square(z - y), axis=-1),
    "logit": lambda y, z: tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, z), axis=-1),
    "log": lambda y, z: tf.reduce_mean(tf.exp(z) - y * z, axis=-1),
}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A rank's environment is its own; here the test's has to come back."""
    before = dict(os.environ)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    yield
    os.environ.clear()
    os.environ.update(before)


def batches() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inputs, labels of four targets, and their weights, ``[steps, rows, …]``; labels are missing."""
    random = np.random.default_rng(2)
    inputs = random.normal(size=(STEPS, ROWS, INPUTS)).astype(np.float32)
    drawn = random.random((STEPS, ROWS)) < 1 / (1 + np.exp(-inputs.sum(axis=2)))
    labels = np.stack(
        [drawn, random.random((STEPS, ROWS)) < 0.3, inputs[:, :, 1] * 3, random.poisson(2, drawn.shape)], axis=2
    )
    weights = np.ones(labels.shape)
    weights[:, :, 1] = random.random((STEPS, ROWS)) < 0.5
    weights[-1, ROWS // 2 :] = 0
    return inputs, labels.astype(np.float32), weights.astype(np.float32)


def stack_of(members: Sequence[StackMember], hidden: tuple[int, ...]) -> StackedModels:
    model = StackedModels(members, INPUTS, StackSettings(hidden, "tanh"), ROWS)
    model.compile(build_optimizer(OptimizerSettings("adam", RATE)))
    return model


def alone(member: StackMember, place: int, stack: StackedModels) -> tf_keras.Model:
    """Return the network of one member of an untrained stack, with its weights."""
    columns = INPUTS if member.inputs is None else len(member.inputs)
    units = [bias.shape[1] for bias in stack.biases]
    regulariser = tf_keras.regularizers.L2(member.penalty / 2)
    model = tf_keras.Sequential(
        [
            tf_keras.layers.InputLayer((columns,)),
            *(tf_keras.layers.Dense(one, "tanh", kernel_regularizer=regulariser) for one in units[:-1]),
            tf_keras.layers.Dense(1, kernel_regularizer=regulariser),
        ]
    )
    model.set_weights(weights_of(member, place, stack))
    # A trace takes longer than a few small steps.
    model.compile(tf_keras.optimizers.Adam(RATE), LOSSES[member.link], run_eagerly=True)
    return model


def weights_of(member: StackMember, place: int, stack: StackedModels) -> list[np.ndarray]:
    own = slice(None) if member.inputs is None else list(member.inputs)
    kernels = [stack.kernels[0].numpy()[own, place], *(kernel.numpy()[place] for kernel in stack.kernels[1:])]
    return [part for pair in zip(kernels, stack.biases, strict=True) for part in (pair[0], pair[1].numpy()[place])]


@pytest.mark.parametrize("hidden", [pytest.param((), marks=pytest.mark.full), (5, 3)])
def test_each_model_becomes_what_it_would_alone(hidden: tuple[int, ...]) -> None:
    stack, given = stack_of(MEMBERS, hidden), [part[-4:] for part in batches()]
    singles = [alone(member, place, stack) for place, member in enumerate(MEMBERS)]
    stack.fit(tf.data.Dataset.from_tensor_slices(tuple(given)), epochs=2, verbose=0)
    for place, (member, single) in enumerate(zip(MEMBERS, singles, strict=True)):
        own = slice(None) if member.inputs is None else list(member.inputs)
        for _ in range(2):
            for inputs, labels, weights in zip(*given, strict=True):
                label = (labels[:, member.target] - member.mean) / member.scale
                weight = (weights[:, member.target] / member.share).astype(np.float32)
                single.train_on_batch(inputs[:, own], label[:, None], sample_weight=weight)
        for ours, theirs in zip(weights_of(member, place, stack), single.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=member.name)
    unread = np.delete(stack.kernels[0].numpy()[:, 4], [0, 2], axis=0)
    assert not unread.any()


def test_padding_changes_neither_the_update_of_a_stack_nor_its_losses() -> None:
    """The mean over the rows of a full batch, and the penalty, keep their shares in a batch that is filled up."""
    given = [part[0, : ROWS // 2] for part in batches()]
    padded = [np.concatenate([part, np.zeros_like(part)]) for part in given]
    alone, filled = (StackedModels(MEMBERS, INPUTS, StackSettings((), "tanh"), rows) for rows in (ROWS // 2, ROWS))
    for stack, batch in ((alone, PaddedBatch(*given, 1.0)), (filled, PaddedBatch(*padded, tf.constant(2.0)))):
        stack.compile(tf_keras.optimizers.SGD(RATE))
        stack.train_step(batch)
    np.testing.assert_allclose(filled.kernels[0], alone.kernels[0], atol=1e-6)
    np.testing.assert_allclose(filled.mean_losses.result(), alone.mean_losses.result(), rtol=1e-6)


def test_the_weights_of_a_model_do_not_depend_on_the_others() -> None:
    every, few = stack_of(MEMBERS, (4,)), stack_of(MEMBERS[2:3], (4,))
    for ours, theirs in zip(weights_of(MEMBERS[2], 2, every), weights_of(MEMBERS[2], 0, few), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("hidden", [pytest.param((), marks=pytest.mark.full), (3,)])
def test_a_model_that_has_stopped_keeps_its_best_weights_and_touches_no_other(hidden: tuple[int, ...]) -> None:
    dataset = tf.data.Dataset.from_tensor_slices(batches())
    stack, unstopped = stack_of(MEMBERS, hidden), stack_of(MEMBERS, hidden)
    for model in (stack, unstopped):
        model.fit(dataset, verbose=0)
    is_first = np.arange(len(MEMBERS)) == 0
    stack.keep_best(is_first, ~is_first)
    best = weights_of(MEMBERS[0], 0, stack)
    for model in (stack, unstopped):
        model.fit(dataset, verbose=0)
    stack.keep_best(~is_first, ~is_first)
    for kept, now in zip(best, weights_of(MEMBERS[0], 0, stack), strict=True):
        np.testing.assert_array_equal(kept, now)
    for place, member in enumerate(MEMBERS[1:], start=1):
        pairs = zip(weights_of(member, place, stack), weights_of(member, place, unstopped), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_array_equal(ours, theirs)


def test_losses_and_areas_are_those_of_each_models_own_rows() -> None:
    stack, (inputs, labels, weights) = stack_of(MEMBERS, ()), batches()
    stack.fit(tf.data.Dataset.from_tensor_slices((inputs, labels, weights)), verbose=0)
    stack.scores.reset()
    stack.evaluate(tf.data.Dataset.from_tensor_slices((inputs, labels, weights)), verbose=0, return_dict=True)
    losses, areas = stack.mean_losses.result().numpy(), stack.scores.areas()
    predictors = stack.predictors(inputs.reshape(-1, INPUTS)).numpy()
    for place, member in enumerate(MEMBERS):
        is_own = weights[:, :, member.target].ravel() > 0
        label = (labels[:, :, member.target].ravel()[is_own] - member.mean) / member.scale
        predictor = predictors[is_own, place]
        own = LOSSES[member.link](label[:, None], predictor[:, None]).numpy()
        assert losses[place] == pytest.approx(own.mean(), rel=1e-5)
        if member.link == "logit":
            assert areas[place] == pytest.approx(roc_auc_score(label, predictor), abs=5e-3)
        else:
            assert math.isnan(areas[place])


def test_rows_of_equal_scores_count_half() -> None:
    # 2 and 1 negatives, 1 and 1 positives: of 6 pairs, 4 are in order and one is equal.
    counts = np.array([[[2, 0, 1], [1, 0, 0]], [[0, 1, 1], [0, 0, 0]]], np.float64)
    np.testing.assert_array_equal(areas_under_curve(counts), [4.5 / 6, math.nan])


def test_scores_that_differ_little_are_ranked() -> None:
    random = np.random.default_rng(7)
    labels = (random.random((4_000, 2)) < 0.3).astype(np.float32)
    predictors = (np.array([-4.0, 0.5]) + (labels + random.normal(size=labels.shape)) * [0.002, 3.0]).astype(np.float32)
    counts = PredictionHistograms(np.array([-4.0, 0.5], np.float32), [True, True])
    counts.add(tf.constant(predictors), tf.constant(labels), tf.ones(labels.shape))
    expected = [roc_auc_score(labels[:, place], predictors[:, place]) for place in range(2)]
    np.testing.assert_allclose(counts.areas(), expected, atol=2e-3)


class ScriptedStack:
    """A stack whose losses are given: of the training and of the validation in turn."""

    stop_training = False

    def __init__(self, losses: Sequence[Sequence[float]]) -> None:
        self._losses = iter(losses)
        self.mean_losses = SimpleNamespace(result=lambda: np.array(next(self._losses)))
        self.scores = SimpleNamespace(reset=lambda: None, areas=lambda: np.array([0.5, 0.75, math.nan]))
        self.kept: list[tuple[list[bool], list[bool]]] = []

    def keep_best(self, is_better: np.ndarray, is_active: np.ndarray) -> None:
        self.kept.append((is_better.tolist(), is_active.tolist()))


def test_each_model_stops_by_its_own_validation_loss() -> None:
    nan = math.nan
    validation = [[3, 1, nan], [2, 2, nan], [1, 1, nan], [2, 0, nan], [2, 0, nan]]
    stack = ScriptedStack([one for epoch, of in enumerate(validation) for one in ([epoch] * 3, of)])
    stopping = ModelStopping(models=3, patience=2)
    stopping.set_model(stack)
    logs: list[dict[str, Any]] = []
    for epoch in range(5):
        assert not stack.stop_training
        logs.append({"loss": "a vector"})
        stopping.on_test_begin()
        stopping.on_epoch_end(epoch, logs[-1])
    assert stack.stop_training
    assert stopping.stopped
    assert [active for _, active in stack.kept] == [
        [True, True, True],
        [True, True, False],
        [True, False, False],
        [True, False, False],
        [False, False, False],
    ]
    # The second model's 0 came after it had stopped.
    assert [better[:2] for better, _ in stack.kept] == [
        [True, True],
        [True, False],
        [True, False],
        [False, False],
        [False, False],
    ]
    assert (stopping.best_epoch.tolist(), stopping.waited.tolist()) == ([3, 1, 0], [2, 2, 2])
    assert (stopping.best_loss.tolist(), stopping.train_loss[:2].tolist()) == ([1, 1, math.inf], [2, 0])
    assert logs[0] == {"loss": 0.0, "val_loss": 2.0, "val_auc": 0.625, "active_models": 3.0}
    again = ModelStopping(models=3, patience=2)
    again.set_state(json.loads(json.dumps(stopping.get_state())))
    assert json.dumps(again.get_state()) == json.dumps(stopping.get_state())


# A training as a rank runs it, from a dataset on the disk.

SPEC = FeatureSpec(
    (
        Numeric("a"),
        Categorical("state"),
        Numeric("b", clip=(-1.0, 2.0), log=True),
        Vector(TARGETS, size=6),
    ),
    Label("labels", "numeric"),
    keys=("row",),
)
FITTED = FittedFeatures(
    SPEC,
    {"state": Vocabulary(pa.array(["CA", "NY"]), pa.array([2, 1], pa.int64()))},
    {"a": NumericStatistics(0.5, 2.0, -6.0, 6.0, 100), "b": NumericStatistics(0.1, 0.7, -1.0, 2.0, 100)},
)
PLANNED = (
    StackMember("likely", 0, "logit", penalty=0.01, share=0.9),
    StackMember("amount", 1, "identity", mean=10.0, scale=4.0),
    StackMember("count", 2, "log", start=0.5, inputs=(0, 2)),
)


def raw_rows(rows: int, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    a, b = random.normal(0.5, 2, rows), random.normal(0, 1.5, rows)
    labels = np.stack([random.random(rows) < 1 / (1 + np.exp(-a)), 10 + 2 * a, random.poisson(np.exp(a / 4))], axis=1)
    is_label = np.ones(labels.shape)
    is_label[:, 0] = random.random(rows) < 0.9
    return pa.table(
        {
            "row": np.arange(rows),
            "a": pa.array(np.where(random.random(rows) < 0.1, np.nan, a), from_pandas=True),
            "b": b,
            "state": random.choice(["CA", "NY", "TX", ""], rows),
            TARGETS: list(np.concatenate([np.where(is_label > 0, labels, 0), is_label], axis=1)),
            "labels": is_label.sum(axis=1),
        }
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    tables = {split: raw_rows(rows, seed) for seed, (split, rows) in enumerate(zip(SPLITS, (300, 90, 70), strict=True))}
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", FITTED, tables)


def plan_of(dataset: Dataset, hidden: tuple[int, ...]) -> StackPlan:
    settings = StackSettings(hidden, "relu", epochs=5, patience=2, learning_rate=0.05)
    return StackPlan(str(dataset.path), settings, 32, targets=3, has_missing=True, members=PLANNED)


def trained(folder: Path, plan: StackPlan, *, stop_after: int | None = None, attempt: int = 1) -> dict[str, np.ndarray]:
    """Train as the only rank, and return the arrays that it wrote; it is asked to stop after some epochs."""
    events: list[dict[str, Any]] = []
    answer: dict[str, Any] = {}

    def is_to_stop() -> bool:
        return stop_after is not None and sum(event["event"] == "epoch_end" for event in events) >= stop_after

    control = SimpleNamespace(
        rank=0,
        events=SimpleNamespace(send=events.append),
        stop_request=SimpleNamespace(is_set=is_to_stop),
        activity=Activity(),
        payload=pack_function(train_stack, {"plan": plan.to_json()}),
        hook=TrainingHook(),
    )
    attempted = FunctionPlan(workers=1, checkpoints=str(folder / "checkpoints"), strategy="ring", attempt=attempt)
    function_rank.train(attempted, control, lambda epochs, **more: answer.update(more))  # type: ignore[arg-type]
    assert all(math.isfinite(event["logs"]["val_loss"]) for event in events if event["event"] == "epoch_end")
    with np.load(unpack_value(answer["value"])) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("hidden", [pytest.param((), marks=pytest.mark.full), (4,)])
def test_a_restart_changes_no_bit_and_the_fleet_scores_as_the_stack_does(
    tmp_path: Path, dataset: Dataset, hidden: tuple[int, ...]
) -> None:
    plan = plan_of(dataset, hidden)
    unbroken = trained(tmp_path / "unbroken", plan)
    # At once, which is usually within the first epoch, and after an epoch.
    for attempt, epochs in enumerate((0, 1), start=1):
        with pytest.raises(TrainingStopped):
            trained(tmp_path / "broken", plan, stop_after=epochs, attempt=attempt)
    resumed = trained(tmp_path / "broken", plan, attempt=3)
    assert resumed.keys() == unbroken.keys()
    for name, values in unbroken.items():
        np.testing.assert_array_equal(resumed[name], values, err_msg=name)
    assert (unbroken["best_epoch"] > 0).all()
    declared = declared_models(
        pa.table({"model": ["likely", "amount", "count"], "link": [member.link for member in PLANNED]}),
        link="logit",
        penalty=0.0,
    )
    fleet = fleet_of(declared, plan, inputs_of(FITTED), unbroken, np.arange(3))
    raw = raw_rows(200, seed=9)
    scorer = FleetScorer(fleet, Layout.of(fleet, "packed", ["score"]))
    found = scorer.outputs(raw.drop_columns([TARGETS]).combine_chunks().to_batches()[0]).by_output["score"]
    np.testing.assert_allclose(found, forward(plan, unbroken, raw), rtol=2e-5, atol=2e-6)
    assert fleet.columns == ("a", "b", "state")
    assert fleet.is_network.all() == bool(hidden)


def forward(plan: StackPlan, arrays: dict[str, np.ndarray], raw: pa.Table) -> np.ndarray:
    """Return the predictions of the training framework for raw rows, ``[rows, models]``."""
    inputs, *_ = assembled(PaddedBatch(read_as(raw), None, tf.ones(raw.num_rows), 1.0), FITTED, plan)
    stack = StackedModels(plan.members, len(inputs_of(FITTED)), plan.settings, plan.global_batch_size)
    for layer, (kernel, bias) in enumerate(zip(stack.kernels, stack.biases, strict=True)):
        kernel.assign(arrays[f"kernel_{layer}"])
        bias.assign(arrays[f"bias_{layer}"])
    likely, amount, count = stack.predictors(inputs).numpy().T
    return np.stack([1 / (1 + np.exp(-likely)), 10 + 4 * amount, np.exp(count)], axis=1)


def read_as(raw: pa.Table) -> dict[str, tf.Tensor]:
    """Return raw rows as features of a batch that was read."""
    encoded = Encoder(FITTED).encode(raw)
    numbers = np.stack([encoded.pop(feature.name) for feature in FITTED.spec.numeric], axis=1)
    return {NUMBERS: tf.constant(numbers), **{name: tf.constant(values) for name, values in encoded.items()}}


def test_labels_weights_and_inputs_of_a_batch(dataset: Dataset) -> None:
    raw = raw_rows(50, seed=4)
    given = PaddedBatch(read_as(raw), None, tf.constant([1.0] * 49 + [0.0]), tf.constant(50 / 49))
    batch = assembled(given, FITTED, plan_of(dataset, ()))
    inputs, labels, weights, scale = (part.numpy() for part in batch)
    assert scale == np.float32(50 / 49)
    values = np.array(raw[TARGETS].to_pylist(), np.float32)
    np.testing.assert_array_equal(labels, values[:, :3])
    np.testing.assert_array_equal(weights[:49], values[:49, 3:])
    assert not weights[49].any()
    states = raw["state"].to_pylist()
    np.testing.assert_array_equal(inputs[:, 2:], [[state == "CA", state == "NY"] for state in states])
    assert [one.column for one in inputs_of(FITTED)] == ["a", "b", "state", "state"]


def test_a_plan_is_the_same_after_its_way_to_the_ranks(dataset: Dataset) -> None:
    plan = plan_of(dataset, (4,))
    assert StackPlan.from_json(plan.to_json()) == plan


# Summaries and messages about the results.


def test_the_report_has_the_metrics_of_scikit_learn() -> None:
    random = np.random.default_rng(6)
    labels = np.stack([random.random(400) < 0.3, random.normal(5, 2, 400), random.poisson(3, 400)], axis=1)
    sums = {split: TargetSums.of(labels) for split in SPLITS}
    members = (PLANNED[0], StackMember("amount", 1, "identity", mean=5.0, scale=2.0), StackMember("count", 2, "log"))
    plan = StackPlan("", StackSettings(patience=2), 32, targets=3, has_missing=False, members=members)
    amounts, counts = labels[:, 1] + random.normal(size=400), np.maximum(labels[:, 2] + random.normal(size=400), 0.1)
    losses = np.array(
        [0.5, 0.5 * np.mean((labels[:, 1] - amounts) ** 2) / 4, np.mean(counts - labels[:, 2] * np.log(counts))]
    )
    nobody = np.full(3, math.nan)
    arrays = {
        "best_epoch": np.array([3, 4, 0]),
        "waited": np.array([2, 1, 2]),
        "train_loss": losses,
        "best_loss": losses,
        "test_loss": losses,
        "area": np.array([0.8, math.nan, math.nan]),
        "test_area": nobody,
    }
    declared = declared_models(["likely", "amount", "count"], link="logit", penalty=0.0)
    report = report_of(declared, plan, arrays, sums)
    first, second, third = report.to_pylist()
    assert (first["metric"], first["validation_metric"], first["test_metric"]) == ("auc", 0.8, None)
    assert (first["rows"], first["positives"]) == (400, int(labels[:, 0].sum()))
    assert (first["epochs"], first["stopped_early"], second["epochs"], second["stopped_early"]) == (5, True, 5, False)
    assert second["positives"] is None
    assert second["validation_metric"] == pytest.approx(r2_score(labels[:, 1], amounts))
    assert second["train_loss"] == pytest.approx(0.5 * np.mean((labels[:, 1] - amounts) ** 2))
    assert (third["diverged"], third["validation_loss"], third["validation_metric"]) == (True, None, None)
    found = summary(report)
    assert (found["models"], found["models_stopped_early"], found["models_diverged"]) == (3, 1, 1)
    assert found["validation_auc_mean"] == found["validation_auc_min"] == 0.8
    arrays["best_epoch"] = np.array([3, 4, 2])
    whole = report_of(declared, plan, arrays, sums).to_pylist()
    assert whole[2]["test_metric"] == pytest.approx(d2_tweedie_score(labels[:, 2], counts, power=1))
