"""F7, F15, T8: the best of network, gradient boosting and their blend, and those with trees as a graph."""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csc_matrix  # type: ignore[import-untyped]

from mirrorspark.data_pipelines import convert
from mirrorspark.data_pipelines.any_table import in_memory
from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Numeric, Sparse, Vector
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import SparseRows
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.data_pipelines.reading import dataset as dataset_module
from mirrorspark.models.serving.signatures import ENCODED_SIGNATURE
from mirrorspark.training.configuration import BOOSTING, ConfigError, RowBaseline, class_factors
from mirrorspark.training.configuration.tasks import DEFAULT_BOOSTING as BASELINE
from mirrorspark.training.results.evaluation import boosting
from mirrorspark.training.results.evaluation.baseline_fit import BaselineFeature, baseline_data
from mirrorspark.training.results.evaluation.boosting import FittedBoosting, gradient_boosting
from mirrorspark.training.results.evaluation.evaluate_run import BaselineComparison, list_column
from mirrorspark.training.results.evaluation.linear import linear_model as linear_model_of
from mirrorspark.training.results.evaluation.model_choice import (
    BLEND,
    NETWORK,
    OTHERS_FOLDER,
    Choice,
    best_by_metric,
    best_weights,
    choose_model,
    classes_of,
    graph_of,
    read_scores,
    trees_of,
)
from mirrorspark.training.results.evaluation.row_baselines import weighed_by_class
from mirrorspark.training.results.report.leaderboard import leaderboard_html, leaderboard_rows, leaderboard_table

FEATURES = (
    BaselineFeature("distance", "value"),
    BaselineFeature("carrier", "id"),
    BaselineFeature("plane", "id"),
    BaselineFeature("previous", "ids"),
)


@pytest.mark.parametrize(
    ("task", "monitor", "network", "baseline", "blend", "registered", "metric"),
    [
        ("binary", "val_auc", {"auc": 0.70}, {"auc": 0.71}, {"auc": 0.70}, BASELINE, "auc"),
        ("binary", "val_auc", {"auc": 0.70}, {"auc": 0.70}, {"auc": 0.70}, NETWORK, "auc"),
        ("binary", "val_log_loss", {"log_loss": 0.5}, {"log_loss": 0.6}, {"log_loss": 0.4}, BLEND, "log_loss"),
        ("regression", "val_rmse", {"rmse": 2.0}, {"rmse": 1.5}, {"rmse": 1.5}, BASELINE, "rmse"),
        ("multi_class", "val_accuracy", {"accuracy": 0.8}, {"accuracy": 0.9}, {"accuracy": 0.91}, BLEND, "accuracy"),
        # Only the network has a loss, and a metric of the user's own.
        ("binary", "val_loss", {"auc": 0.6, "loss": 0.1}, {"auc": 0.7}, {"auc": 0.7}, BASELINE, "auc"),
        ("multi_class", "val_f1", {"log_loss": 0.6}, {"log_loss": 0.7}, {"log_loss": 0.6}, NETWORK, "log_loss"),
    ],
)
def test_the_best_one_by_the_monitored_metric_is_registered_and_the_simpler_one_of_equal_ones(
    task: str,
    monitor: str,
    network: Mapping[str, float],
    baseline: Mapping[str, float],
    blend: Mapping[str, float],
    registered: str,
    metric: str,
) -> None:
    found = best_by_metric(task, monitor, {NETWORK: network, BASELINE: baseline, BLEND: blend})
    assert found[:2] == (registered, metric)


def test_a_choice_is_described_and_kept(tmp_path: Path) -> None:
    weights, seconds = {NETWORK: 0.25, BASELINE: 0.75}, {BASELINE: 3.0}
    boosting = Choice(BASELINE, "auc", {NETWORK: 0.7, BASELINE: 0.71, BLEND: 0.705}, weights, seconds)
    assert boosting.in_words() == (
        "gradient boosting, better than the network and the blend on the validation rows "
        "(auc 0.7100 against 0.7000 and 0.7050)"
    )
    blend = Choice(BLEND, "auc", {NETWORK: 0.7, BASELINE: 0.71, BLEND: 0.72}, weights, seconds)
    assert blend.in_words() == (
        "the blend (25% the network, 75% gradient boosting), better than gradient boosting and the network on the "
        "validation rows (auc 0.7200 against 0.7100 and 0.7000)"
    )
    close = replace(blend, values={NETWORK: 0.7, BASELINE: 0.93321, BLEND: 0.93324})
    assert close.in_words().endswith("(auc 0.93324 against 0.93321 and 0.70000)")
    assert blend.others == [BASELINE, NETWORK]
    blend.save(tmp_path)
    assert Choice.load(tmp_path) == blend
    other = RowBaseline(BASELINE, {"max_leaf_nodes": 15}).label
    both = {BASELINE: 3.0, other: 2.0}
    only = Choice(NETWORK, "auc", {NETWORK: 0.7}, {NETWORK: 1.0}, {}, reason="as it is")
    assert only.in_words() == "the network alone, as it is"
    several = Choice(NETWORK, "rmse", {NETWORK: 1.0, BASELINE: 1.2, other: 1.1, BLEND: 1.0}, weights, both)
    assert several.in_words() == (
        "the network, as good as or better than the 3 others on the validation rows (rmse 1.0000 against 1.0000 of the "
        "next best, the blend)"
    )
    alone = Choice(other, "rmse", {NETWORK: 1.0, other: 0.9}, {other: 1.0}, {other: 2.0})
    assert alone.in_words() == (
        "gradient boosting (max_leaf_nodes_15), better than the network on the validation rows (rmse 0.9000 against "
        "1.0000)"
    )


def test_the_weights_of_a_blend_have_the_smallest_loss() -> None:
    random = np.random.default_rng(1)
    weight = np.ones(2_000)
    number, noise = random.normal(size=2_000), random.normal(size=(2, 2_000))
    # The mean of two errors of variances 1 and 4 is smallest with shares of 0.8 and 0.2.
    noisy = {"little": number + noise[0], "much": number + 2 * noise[1]}
    assert best_weights("regression", number, noisy, weight) == {"little": 0.8, "much": 0.2}
    useless = noisy | {"useless": np.zeros(2_000), "as little": number - noise[0]}
    assert best_weights("regression", number, useless, weight) == {"little": 0.5, "as little": 0.5}
    # Rows of weight 0 count for nothing.
    only = (np.arange(2_000) < 1_000).astype(float)
    swapped = np.where(only > 0, number, number + 100)
    assert best_weights("regression", number, {"a": swapped, "b": number + noise[1]}, only) == {"a": 1.0}
    label = (number > 0).astype(float)
    right, wrong = np.where(label > 0, 0.8, 0.2), np.full(2_000, 0.5)
    assert best_weights("binary", label, {"right": right, "wrong": wrong}, weight) == {"right": 1.0}
    wrong_classes, right_classes = (np.stack([1 - of, of], axis=1) for of in (wrong, right))
    by_name = {"wrong": wrong_classes, "right": right_classes}
    assert best_weights("multi_class", label, by_name, weight) == {"right": 1.0}


def test_a_leaderboard_has_the_best_one_first_with_what_is_known_of_each() -> None:
    weights = {NETWORK: 0.25, BASELINE: 0.75}
    choice = Choice(BLEND, "auc", {NETWORK: 0.7, BASELINE: 0.71, BLEND: 0.72}, weights, {BASELINE: 3.0})
    interval = {"auc": {"difference": 0.02, "low": 0.01, "high": 0.03}}
    others = [{"name": NETWORK, "metrics": {"auc": 0.69}}, {"name": "lightgbm", "metrics": {"auc": 0.66}, "seconds": 5}]
    baseline = {"name": BASELINE, "metrics": {"auc": 0.7}, "intervals": interval, "seconds": 3.0, "others": others}
    verdict = BaselineComparison({"validation": {"auc": 0.72}, "test": {"auc": 0.72}}, baseline, {})
    rows = leaderboard_rows(verdict, choice, name="multi_field", monitor="val_auc", seconds=20.0)
    table = leaderboard_table(rows)
    assert list(table.index) == [BLEND, BASELINE, NETWORK, "lightgbm"]
    assert table["test_auc"].tolist() == [0.72, 0.7, 0.69, 0.66]
    assert table["seconds"].tolist() == [23.0, 3.0, 20.0, 5.0]
    assert table["share"].tolist()[1:3] == [0.75, 0.25]
    assert table["registered"].tolist() == [True, False, False, False]
    assert (rows[1]["low"], rows[1]["high"], rows[3]["validation_auc"]) == (0.01, 0.03, None)
    assert "monotone" not in table
    shown = leaderboard_html(rows)
    assert "blend</span><small>registered</small>" in shown
    assert "+0.0200<small>+0.0100 to +0.0300</small>" in shown
    constrained = dataclasses.replace(choice, registered=BASELINE, monotone=True)
    marked = leaderboard_table(leaderboard_rows(verdict, constrained, name="", monitor="val_auc", seconds=20.0))
    assert marked["monotone"].to_dict() == {BLEND: True, BASELINE: True, NETWORK: False, "lightgbm": True}
    alone = BaselineComparison({"validation": {"rmse": 2.0, "mae": 1.0}, "test": {"rmse": 2.5, "mae": 1.5}}, {}, {})
    only = leaderboard_rows(alone, None, name="regression", monitor="val_loss", seconds=None)
    assert only[0] | {"model": "regression", "registered": True} == only[0]
    assert leaderboard_table(only).index.tolist() == ["regression"]
    assert leaderboard_table(()).empty


def rides(rows: int, seed: int, *, planes: int = 600) -> dict[str, np.ndarray]:
    """Return rows with few carriers (split as categories), many planes (ordered by frequency), lists, and gaps."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 5, rows)
    previous = random.integers(2, 10, (rows, 4))
    previous[np.arange(4) >= lengths[:, None]] = 0
    carrier, plane = random.integers(0, 20, rows), random.integers(0, planes, rows)
    distance = random.normal(size=rows).astype(np.float32)
    number = distance + 2.0 * (carrier % 2) + lengths - 3 + (plane == 0) + 0.3 * random.normal(size=rows)
    return {
        "distance": distance,
        "carrier": carrier,
        "plane": plane,
        "previous": previous,
        "late": (number > 0).astype(np.float32),
        "minutes": number,
        "way": np.digitize(number, [-2, 0, 2]).astype(np.int64),
        "sometimes": np.where(number > 0, 3, 1),
    }


def fitted(label: str, task: str) -> FittedBoosting:
    return gradient_boosting(baseline_data(rides(6_000, 1), rides(1_000, 2), FEATURES, label, task=task), seed=0)


@pytest.mark.parametrize(
    ("label", "task", "classes"),
    [("late", "binary", 0), ("minutes", "regression", 0), ("way", "multi_class", 4), ("sometimes", "multi_class", 5)],
)
def test_the_graph_of_the_trees_scores_as_scikit_learn_does_also_unknown_ids_and_empty_lists(
    label: str, task: str, classes: int
) -> None:
    import tensorflow as tf

    from mirrorspark.models import boosted_trees

    model = fitted(label, task)
    rows = rides(3_000, 3, planes=5_000)
    rows["carrier"][:100] = 77
    expected = model.predict(rows)
    given: dict[str, Any] = {feature.name: tf.constant(rows[feature.name]) for feature in FEATURES}
    trees = boosted_trees.BoostedTrees(trees_of(model, classes))
    scores = next(iter(boosted_trees.predict(trees, given).values())).numpy()
    if classes:
        assert model.class_numbers is not None
        known = model.class_numbers
        assert scores.shape == (3_000, classes)
        np.testing.assert_array_equal(np.delete(scores, known, axis=1), 0)
        scores = scores[:, known]
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-7)
    empty = given | {"previous": tf.zeros([3_000, 0], tf.int64)}
    without = model.predict({**rows, "previous": np.zeros((3_000, 1), np.int64)})
    found = next(iter(boosted_trees.predict(trees, empty).values())).numpy()
    np.testing.assert_allclose(found[:, known] if classes else found, without, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("task", ["binary", "regression", "multi_class", "multi_label"])
def test_the_graph_of_a_linear_model_scores_as_scikit_learn_does(task: str) -> None:
    """F15: numbers, ids, lists, vectors and sparse columns, with ids that no training row has."""
    import tensorflow as tf

    from mirrorspark.models import linear_model
    from mirrorspark.models.serving import input_tensors

    label = {"binary": "late", "regression": "minutes", "multi_class": "sometimes", "multi_label": "tags"}[task]
    rest = (BaselineFeature("place", "vector", 2), BaselineFeature("words", "sparse", 9))

    def rows(number: int, seed: int, **options: Any) -> dict[str, Any]:
        found, random = rides(number, seed, **options), np.random.default_rng(seed)
        words = SparseRows(
            np.tile([1, 4, 8], number), random.normal(size=3 * number).astype(np.float32), np.full(number, 3)
        )
        tags = csc_matrix(np.stack([found["late"] > 0, random.random(number) < 0.2, np.zeros(number)], 1).astype(bool))
        return found | {"place": random.normal(size=(number, 2)).astype(np.float32), "words": words, "tags": tags}

    fit = linear_model_of(baseline_data(rows(2_000, 1), rows(500, 2), (*FEATURES, *rest), label, task=task))
    classes = {"multi_class": 5, "multi_label": 3}.get(task, 0)
    given = rows(300, 3, planes=5_000)
    expected = fit.predict(given)
    specs = (Numeric("distance"), Categorical("carrier"), Categorical("plane"), MultiValued("previous", max_length=4))
    tensors = input_tensors((*specs, Vector("place", size=2), Sparse("words", size=9)), given)
    graph, model = graph_of(fit, task, classes)
    assert graph is linear_model
    found = next(iter(linear_model.predict(model, tensors).values())).numpy()
    if task == "multi_class":
        assert fit.class_numbers is not None
        np.testing.assert_array_equal(np.delete(found, fit.class_numbers, axis=1), 0)
        found = found[:, fit.class_numbers]
    assert tf.convert_to_tensor(found).shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("library", list(BOOSTING))
@pytest.mark.parametrize("sign", [1, -1, 0])
def test_predictions_along_a_grid_hold_a_monotone_constraint_also_in_the_exported_graph(
    library: str, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    from mirrorspark.models import boosted_trees

    monkeypatch.setattr(boosting, "MAX_ITERATIONS", 50)
    of_trees = (dataclasses.replace(FEATURES[0], monotone=sign), FEATURES[1])
    splits = [rides(3_000, 1), rides(500, 2)]
    for rows in splits:  # a wave
        rows["minutes"] = np.sin(2 * rows["distance"]) + 0.1 * (rows["carrier"] % 2)
    model = gradient_boosting(baseline_data(*splits, of_trees, "minutes", task="regression"), seed=0, library=library)
    grid = np.linspace(-3, 3, 200).astype(np.float32)
    for carrier in (0, 1):
        columns = {"distance": grid, "carrier": np.full(200, carrier)}
        steps = [np.diff(model.predict(columns))]
        if library == BASELINE:
            trees = boosted_trees.BoostedTrees(trees_of(model))
            given = {name: tf.constant(values) for name, values in columns.items()}
            steps.append(np.diff(boosted_trees.predict(trees, given)["score"].numpy()))
        for step in steps:
            assert np.abs(step).max() > 0.01
            assert (sign * step >= -1e-6).all()
            assert sign or (step.min() < -0.01 and step.max() > 0.01)


def test_a_blend_is_the_mean_of_its_parts_and_is_saved_with_the_variables_of_both(tmp_path: Path) -> None:
    import tensorflow as tf

    from mirrorspark.models import blend, boosted_trees, multi_field
    from mirrorspark.models.calibration import CalibratedArchitecture, Calibration, ProbabilisticArchitecture
    from mirrorspark.models.serving.export import ScoringModule, save
    from mirrorspark.models.wrapped_architecture import saved_parts

    spec = FeatureSpec((Numeric("distance"), Categorical("carrier", hash_buckets=20)), Label("late"), ("id",))
    statistics = {"distance": NumericStatistics(0.0, 1.0, -3.0, 3.0, 0)}
    fitted_features = FittedFeatures(spec, {}, statistics)
    of_trees = tuple(feature for feature in FEATURES if feature.name in ("distance", "carrier"))
    fit = gradient_boosting(baseline_data(rides(3_000, 1), rides(500, 2), of_trees, "late"), seed=0)
    trees = boosted_trees.BoostedTrees(trees_of(fit))
    network = multi_field.build(multi_field.Settings(hidden_units=(8,)), fitted_features, seed=1)
    rows = rides(100, 3)
    inputs = {name: tf.constant(rows[name]) for name in ("distance", "carrier")}
    parts = [of.predict(model, inputs)["score"] for of, model in ((multi_field, network), (boosted_trees, trees))]
    mixed = blend.Blend((blend.Part(multi_field, network, 0.25), blend.Part(boosted_trees, trees, 0.75)))
    calibrated = CalibratedArchitecture(ProbabilisticArchitecture(multi_field, blend), Calibration("temperature"))
    assert (calibrated.TASK, saved_parts(calibrated, mixed)) == ("binary", [network, trees])
    save(ScoringModule(blend, mixed, fitted_features), tmp_path)
    signature = tf.saved_model.load(str(tmp_path)).signatures[ENCODED_SIGNATURE]
    np.testing.assert_allclose(signature(**inputs)["score"], 0.25 * parts[0] + 0.75 * parts[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("label", "kind", "task"),
    [
        ("late", "binary", "binary"),
        ("minutes", "numeric", "regression"),
        ("way", "multi_class", "multi_class"),
    ],
)
def test_a_network_that_has_learnt_nothing_is_beaten_and_kept_for_the_comparison(
    label: str, kind: Any, task: str, tmp_path: Path
) -> None:
    rows = rides(3_000, 1)
    splits = ["train"] * 2_000 + ["validation"] * 500 + ["test"] * 500
    columns = {"distance": rows["distance"], "carrier": rows["carrier"].astype(str), label: rows[label]}
    spec = FeatureSpec((Numeric("distance"), Categorical("carrier")), Label(label, kind), ("id",))
    convert(in_memory(pa.table({**columns, "id": range(3_000), "split": splits})), spec, tmp_path / "dataset")
    dataset = Dataset.open(tmp_path / "dataset")
    column = "scores" if task == "multi_class" else "score"
    tables = {}
    for split in ("validation", "test"):
        labels = np.concatenate([block.label for block in dataset.blocks(split)])
        same = np.tile(np.float32([0.94, 0.02, 0.02, 0.02]), (len(labels), 1))
        scores = list_column(same) if task == "multi_class" else pa.array(same[:, 0])
        tables[split] = pa.table({column: scores, "label": labels, "weight": np.ones(len(labels))})
    told: list[str] = []
    found = choose_model(
        *(dataset, task, "val_loss", 1, [RowBaseline(BASELINE)], tables, tmp_path),
        lambda doing, done=0, total=0: told.append(doing),
    )
    assert set(told[:-1]) <= {"gradient boosting: boosting iterations"}
    assert told[-1] == "comparing the models on the validation rows"
    choice = found.choice
    assert choice.registered != NETWORK
    kind_of_graph, _ = graph_of(found.fitted[BASELINE], task, classes_of(dataset, task))
    assert kind_of_graph.__name__.endswith("boosted_trees")
    assert choice.seconds[BASELINE] > 0
    assert choice.learnt_from == {}
    (tmp_path / OTHERS_FOLDER / choice.registered).mkdir()
    pq.write_table(found.tables["test"], tmp_path / OTHERS_FOLDER / choice.registered / "test.parquet")
    scores = {name: read_scores(tmp_path / OTHERS_FOLDER / name / "test.parquet") for name in choice.values}
    mean = sum(weight * scores[name] for name, weight in choice.weights.items())
    np.testing.assert_allclose(scores.get(BLEND, scores[BASELINE]), mean, rtol=1e-5)


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return rides of which a fifth is late, in words; rows of an even number count twice."""
    rows = rides(3_000, 1)
    late = np.random.default_rng(2).random(3_000) < 0.1 + 0.2 * (rows["distance"] > 0)
    splits = ["train"] * 2_000 + ["validation"] * 500 + ["test"] * 500
    columns = {"distance": rows["distance"], "late": np.where(late, "yes", "no"), "w": 2.0 - np.arange(3_000) % 2}
    spec = FeatureSpec((Numeric("distance"),), Label("late", positive="yes"), ("id",), weight="w")
    folder = tmp_path_factory.mktemp("late") / "dataset"
    convert(in_memory(pa.table({**columns, "id": range(3_000), "split": splits})), spec, folder)
    return Dataset.open(folder)


def test_balanced_classes_count_the_same_by_the_weights_of_the_rows(late: Dataset) -> None:
    counts = late.class_counts("train")
    assert counts.sum() == 3_000
    np.testing.assert_allclose(np.array(class_factors("balanced", late)) * counts, [1_500, 1_500])
    assert class_factors({"yes": 3}, late) == (1.0, 3.0)
    assert class_factors({"no": 0.5, "yes": 3}, late) == (0.5, 3.0)
    with pytest.raises(
        ConfigError, match=r"class 'yess', which label 'late' does not have \(did you mean 'yes'\?\); use no, yes"
    ):
        class_factors({"yess": 3}, late)
    with pytest.raises(ConfigError, match="leave no training row any weight"):
        class_factors({"no": 0, "yes": 0}, late)


def test_class_weights_above_0_read_no_row(late: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(dataset: Dataset, split: str) -> np.ndarray:
        raise AssertionError(f"{split} of {dataset.path} was read")

    monkeypatch.setattr(Dataset, "class_counts", refused)
    assert class_factors({"no": 0.5}, late) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("label", "counts"), [(Label("late", positive="yes"), [70, 50]), (Label("late", "multi_class"), [70, 30, 20])]
)
def test_rows_without_weights_are_counted_by_conversion_alone(
    tmp_path: Path, label: Label, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["no"] * 70 + (["yes"] * 50 if label.kind == "binary" else ["yes"] * 30 + ["maybe"] * 20)
    splits = ["train"] * 120 + ["validation", "test"] * 3
    columns = {"distance": np.arange(126.0) % 7, "late": [*words, "no", "no", "yes", "yes", "no", "no"]}
    table = pa.table({**columns, "id": range(126), "split": splits})
    convert(in_memory(table), FeatureSpec((Numeric("distance"),), label, ("id",)), tmp_path / "dataset")
    dataset = Dataset.open(tmp_path / "dataset")
    read = np.bincount(np.concatenate([block.label for block in dataset.blocks("train")]).astype(int))
    assert read.tolist() == counts
    monkeypatch.setattr(dataset_module, "StoredBlocks", None)
    assert dataset.class_counts("train").tolist() == counts


def test_a_class_that_no_profile_shows_is_taken_as_the_other_one_with_a_warning(
    late: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unseen = dataclasses.replace(late, path=tmp_path)
    assert class_factors({"Yes": 5}, unseen) == (5.0, 1.0)
    assert caplog.messages == [
        "class_weights: class 'Yes' of label 'late' is taken as not 'yes'; if that is meant, write 'yes'"
    ]


def test_class_weights_that_leave_the_validation_rows_nothing_do_not_change_theirs() -> None:
    weight = np.array([1.0, 2.0])
    assert weighed_by_class(weight, np.zeros(2), (0.0, 1.0)).tolist() == [1.0, 2.0]
    assert weighed_by_class(weight, np.array([0, 1]), (0.0, 3.0)).tolist() == [0.0, 6.0]


def test_gradient_boosting_learns_by_class_weights_and_is_judged_without_them(late: Dataset, tmp_path: Path) -> None:
    tables = {}
    for split in ("validation", "test"):
        blocks = list(late.blocks(split))
        label, weight = (np.concatenate([getattr(of, name) for of in blocks]) for name in ("label", "weight"))
        tables[split] = pa.table(
            {"score": pa.array(np.full(len(label), 0.5, np.float32)), "label": label, "weight": weight}
        )
    means, values = [], []
    for weights in ((), class_factors("balanced", late)):
        choice = choose_model(
            late, "binary", "val_auc", 1, [RowBaseline(BASELINE)], tables, tmp_path, class_weights=weights
        )
        scores = choice.tables["test"]["score"].to_numpy()
        means.append(np.average(scores, weights=tables["test"]["weight"]))
        values.append(choice.choice.values[BASELINE])
    assert means == pytest.approx([0.2, 0.45], abs=0.05)
    assert values[0] == pytest.approx(values[1], abs=0.03)


def test_with_monotone_constraints_gradient_boosting_is_registered_though_the_network_is_better(
    late: Dataset, tmp_path: Path
) -> None:
    tables = {}
    for split in ("validation", "test"):
        label = np.concatenate([block.label for block in late.blocks(split)])
        scores = pa.array((0.8 * label + 0.1).astype(np.float32))
        tables[split] = pa.table({"score": scores, "label": label, "weight": np.ones(len(label))})
    assert (
        choose_model(late, "binary", "val_auc", 1, [RowBaseline(BASELINE)], tables, tmp_path).choice.registered
        != BASELINE
    )
    found = choose_model(
        late, "binary", "val_auc", 1, [RowBaseline(BASELINE)], tables, tmp_path, monotone={"distance": "decreasing"}
    )
    assert (found.choice.registered, found.choice.monotone) == (BASELINE, True)
    assert "the best that holds the monotone constraints, compared with the network" in found.choice.in_words()
    by_distance = np.argsort(np.concatenate([block.features["distance"] for block in late.blocks("test")]))
    assert (np.diff(found.tables["test"]["score"].to_numpy()[by_distance]) <= 1e-6).all()
    assert Choice.load(tmp_path) == found.choice
