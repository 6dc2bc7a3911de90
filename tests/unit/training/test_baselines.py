"""Baselines of rows use the encoded features as promised: gradient boosting of three libraries, and linear models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csc_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mirrorspark.data_pipelines.features.transform import SparseRows
from mirrorspark.training.configuration.tasks import BOOSTING, RowBaseline
from mirrorspark.training.results.evaluation import baseline_fit, boosting, linear
from mirrorspark.training.results.evaluation.baseline_fit import BaselineFeature, FittedBaseline, baseline_data
from mirrorspark.training.results.evaluation.boosting import MAX_ITERATIONS, FittedBoosting, gradient_boosting
from mirrorspark.training.results.evaluation.linear import linear_model
from mirrorspark.training.results.evaluation.row_baselines import progress_of

FEATURES = (
    BaselineFeature("distance", "value"),
    BaselineFeature("carrier", "id"),
    BaselineFeature("previous", "ids"),
)


def columns(rows: int, seed: int, *, carriers: int = 20) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 5, rows)
    previous = generator.integers(2, 10, (rows, 4))
    previous[np.arange(4) >= lengths[:, None]] = 0
    carrier = generator.integers(0, carriers, rows)
    distance = generator.normal(size=rows).astype(np.float32)
    # Odd carriers are late: no order of ids tells them apart, so only a categorical split finds them at once.
    logit = distance + 2.0 * (carrier % 2) + lengths - 3
    label = (generator.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    return {"distance": distance, "carrier": carrier, "previous": previous, "late": label}


def hist_gradient_boosting(
    train: Any, validation: Any, features: Any, label: str, *, seed: int, on_progress: Any = None, **options: Any
) -> FittedBoosting:
    options_of_fit = {} if on_progress is None else {"on_progress": on_progress}
    return gradient_boosting(baseline_data(train, validation, features, label, **options), seed=seed, **options_of_fit)


def fit(name: str, train: Any, validation: Any, features: Any, label: str, **options: Any) -> FittedBaseline:
    rows = baseline_data(train, validation, features, label, **options)
    return linear_model(rows) if name == "linear" else gradient_boosting(rows, seed=0, library=name)


@pytest.mark.parametrize(("name", "least"), [(name, 0.84) for name in BOOSTING] + [("linear", 0.86)])
def test_a_baseline_learns_numeric_categorical_and_multi_valued_features(name: str, least: float) -> None:
    """F8, #23: the labels are drawn from a linear model, which a linear one finds best."""
    train, validation, test = (columns(4_000, seed) for seed in (1, 2, 3))
    full = roc_auc_score(test["late"], fit(name, train, validation, FEATURES, "late").predict(test))
    assert full > least
    for left_out in range(3):
        fewer = FEATURES[:left_out] + FEATURES[left_out + 1 :]
        assert roc_auc_score(test["late"], fit(name, train, validation, fewer, "late").predict(test)) < full - 0.02


@pytest.mark.parametrize("name", [*BOOSTING, "linear"])
@pytest.mark.parametrize(("task", "label"), [("multi_class", "class"), ("regression", "minutes")])
def test_a_baseline_learns_classes_and_numbers_with_weights(name: str, task: str, label: str) -> None:
    """#23: of six classes the training rows have two; the validation rows have a third."""
    train, validation = columns(2_000, 1), columns(1_000, 2)
    for part in (train, validation):
        part["class"] = np.where(part["late"] == 1, 4, 1)
        part["minutes"] = 10 * part["distance"] + part["carrier"] % 2
        part["weight"] = np.where(part["late"] == 1, 9.0, 1.0)
    validation["class"][:10] = 3
    fitted = fit(name, train, validation, FEATURES, label, task=task, weight="weight")
    found = fitted.predict(validation)
    if task == "regression":
        assert np.corrcoef(found, validation["minutes"])[0, 1] > 0.97
    else:
        assert fitted.class_numbers is not None
        assert fitted.class_numbers.tolist() == [1, 4]
        np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-6)
        assert found[:, 1].mean() > validation["late"].mean() + 0.1  # the weights


@pytest.mark.parametrize("name", [*BOOSTING, "linear"])
def test_a_baseline_scores_ids_and_lists_that_training_never_saw(name: str) -> None:
    train, validation = columns(2_000, 1), columns(1_000, 2)
    unseen = {**validation, "carrier": np.full(1_000, 200), "previous": np.full((1_000, 1), 900)}
    unseen["distance"] = np.where(np.arange(1_000) % 2, np.nan, unseen["distance"])
    fitted = fit(name, train, validation, FEATURES, "late")
    found, known = fitted.predict(unseen), unseen["distance"][::2]
    assert np.isfinite(found).all()
    assert np.corrcoef(found[::2], known)[0, 1] > 0.6, "what is known counts still"


def test_the_linear_model_takes_sparse_features_vectors_and_missing_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """#23: each of them alone determines the label; the validation rows choose a strong or a weak regularisation."""
    generator = np.random.default_rng(0)

    def rows(count: int) -> dict[str, Any]:
        label = generator.integers(0, 2, count)
        words = SparseRows(label + 2 * generator.integers(0, 2, count), np.full(count, 5.0), np.ones(count, np.int64))
        vector = generator.normal(size=(count, 3)) + 100 + 4 * label[:, None]
        age = np.where(label == 1, np.nan, generator.normal(size=count))
        return {"words": words, "vector": vector, "age": age, "label": label}

    train, validation = rows(500), rows(300)
    for name, form, size in (("words", "sparse", 4), ("vector", "vector", 3), ("age", "value", 0)):
        fitted = fit("linear", train, validation, [BaselineFeature(name, form, size)], "label")
        assert roc_auc_score(validation["label"], fitted.predict(validation)) > 0.99
        assert fitted.model.C >= 1.0
    monkeypatch.setattr(linear, "_MOST_WEIGHTS", 2)
    fitted = fit("linear", train, validation, [BaselineFeature("vector", "vector", 3)], "label")
    assert fitted.model.coef_.shape == (1, 2)
    assert roc_auc_score(validation["label"], fitted.predict(validation)) > 0.99
    noise = validation | {"label": generator.permutation(validation["label"])}
    assert fit("linear", train, noise, [BaselineFeature("vector", "vector", 3)], "label").model.C == 1e-4


def test_boosting_is_fixed_by_its_seed() -> None:
    train, validation = columns(2_000, 1), columns(1_000, 2)
    first, second = (
        hist_gradient_boosting(train, validation, FEATURES, "late", seed=4).predict(validation) for _ in range(2)
    )
    assert (first == second).all()
    assert ((first > 0) & (first < 1)).all()


def test_boosting_tells_its_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boosting, "_REPORT_SECONDS", 1e-4)
    reports: list[tuple[str, int, int]] = []
    fitted = hist_gradient_boosting(
        *(columns(20_000, 1), columns(1_000, 2), FEATURES, "late"),
        seed=0,
        on_progress=lambda *report: reports.append(report),
    )
    counts = [done for _, done, _ in reports]
    assert {(doing, most) for doing, _, most in reports} == {("boosting iterations", MAX_ITERATIONS)}
    assert counts == sorted(counts)
    assert 0 < counts[-1] <= fitted.model.n_iter_


@pytest.mark.parametrize("has_validation", [True, False])
@pytest.mark.parametrize("library", BOOSTING)
def test_boosting_ends_in_time_and_says_what_it_left_out(
    monkeypatch: pytest.MonkeyPatch, library: str, *, has_validation: bool
) -> None:
    data = baseline_data(columns(600, 1), columns(200, 2), FEATURES, "late")
    data = data if has_validation else replace(data, held_back=None)
    assert gradient_boosting(data, seed=0, library=library).left_out == ""
    monkeypatch.setattr(baseline_fit, "SECONDS", 0.0)
    fitted = gradient_boosting(data, seed=0, library=library)
    most = "1,000" if has_validation else "300"
    assert fitted.left_out == f"It had 0 seconds, which left out the iterations after 1 of {most}"
    assert np.isfinite(fitted.predict(columns(50, 3))).all()


def test_boosting_stops_early_on_the_validation_split() -> None:
    train, validation = columns(2_000, 1), columns(1_000, 2)
    generator = np.random.default_rng(0)
    unlearnable = {**validation, "late": generator.permutation(validation["late"])}
    usual = hist_gradient_boosting(train, validation, FEATURES, "late", seed=0).model.n_iter_
    # With shuffled validation labels nothing helps, so the patience runs out at once.
    assert hist_gradient_boosting(train, unlearnable, FEATURES, "late", seed=0).model.n_iter_ < usual < 300


@pytest.mark.parametrize("only", [[5], [0, 1, 5]], ids=["no other class", "other classes"])
def test_boosting_stops_by_the_validation_rows_of_classes_that_it_can_learn(only: list[int]) -> None:
    """T3, T8: a rare class may be in the validation rows alone."""
    train, validation = columns(600, 1), columns(300, 2)
    for part in (train, validation):
        part["class"] = part["late"].astype(np.int64)
        part["weight"] = np.ones(len(part["late"]))
    validation["class"] = np.resize(only, 300)
    fitted = hist_gradient_boosting(train, validation, FEATURES, "class", seed=0, weight="weight", task="multi_class")
    assert fitted.predict(validation).shape == (300, 2)


def test_boosting_orders_ids_where_a_vocabulary_exceeds_native_categories() -> None:
    train, validation = columns(4_000, 1, carriers=1_000), columns(1_000, 2, carriers=1_000)
    fitted = hist_gradient_boosting(train, validation, FEATURES, "late", seed=0)
    # distance, carrier, last previous destination, number of previous destinations
    assert fitted.native_categorical == (False, False, True, False)
    small = hist_gradient_boosting(columns(2_000, 1), validation, FEATURES, "late", seed=0)
    assert small.native_categorical == (False, True, True, False)


def test_boosting_uses_row_weights() -> None:
    train, validation = columns(2_000, 1), columns(1_000, 2)
    for part in (train, validation):
        part["weight"] = np.where(part["late"] == 1, 9.0, 1.0)
    plain = hist_gradient_boosting(train, validation, FEATURES, "late", seed=0).predict(validation)
    weighted = hist_gradient_boosting(train, validation, FEATURES, "late", seed=0, weight="weight").predict(validation)
    assert weighted.mean() > plain.mean() + 0.2


def test_multi_valued_feature_enters_as_last_id_and_length() -> None:
    rows = 400
    generator = np.random.default_rng(8)
    previous = np.zeros((rows, 3), dtype=np.int64)
    last = generator.integers(2, 4, rows)
    two = generator.random(rows) < 0.5
    previous[:, 0] = np.where(two, 9, last)
    previous[two, 1] = last[two]
    part = {"previous": previous, "late": (last == 3).astype(int)}
    fitted = hist_gradient_boosting(part, part, [BaselineFeature("previous", "ids")], "late", seed=0)
    assert roc_auc_score(part["late"], fitted.predict(part)) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"late": np.zeros(100)}, r"label has one class only \(0\) in split 'train' \(100 rows\)"),
        ({"carrier": np.zeros((100, 2))}, r"feature 'carrier' of form id has shape \(100, 2\); it needs 1 dimensions"),
        ({"previous": np.zeros(100)}, r"feature 'previous' of form ids has shape \(100,\); it needs 2 dimensions"),
        ({"carrier": np.zeros(99)}, "feature 'carrier' has 99 rows, others have 100"),
    ],
)
def test_boosting_refuses_bad_columns(change: dict[str, np.ndarray], message: str) -> None:
    train = columns(100, 1)
    with pytest.raises(ValueError, match=message):
        hist_gradient_boosting({**train, **change}, train, FEATURES, "late", seed=0)


def test_boosting_names_the_missing_column_and_split() -> None:
    train = columns(100, 1)
    with pytest.raises(ValueError, match="column 'carrier' is missing"):
        hist_gradient_boosting({k: v for k, v in train.items() if k != "carrier"}, train, FEATURES, "late", seed=0)
    with pytest.raises(ValueError, match="split 'validation'"):
        hist_gradient_boosting(train, {**train, "late": np.ones(100)}, FEATURES, "late", seed=0)
    with pytest.raises(ValueError, match="features is empty"):
        hist_gradient_boosting(train, train, (), "late", seed=0)


def several_labels(rows: int = 800) -> Any:
    """Return rows of three labels: two that are learnt from columns, and one that no row has."""
    generator = np.random.default_rng(5)
    parts = []
    for _ in range(2):
        numbers = generator.normal(size=(rows, 6))
        labels = np.stack([numbers[:, 0] > 0, numbers[:, 1] + numbers[:, 2] > 1, np.zeros(rows, bool)], axis=1)
        parts.append({"numbers": numbers, "labels": csc_matrix(labels)})
    return baseline_data(*parts, (BaselineFeature("numbers", "vector", 6),), "labels", task="multi_label"), parts[1]


def test_several_labels_are_learnt_as_scikit_learn_learns_each_with_a_bar() -> None:
    rows, validation = several_labels()
    told: list[tuple[int, int]] = []
    fitted = linear_model(rows, on_progress=lambda doing, done=0, total=0: told.append((done, total)))
    found = fitted.predict(validation)
    assert told[-1] == (15, 15)  # three labels, with five strengths
    assert (3, 15) in told
    assert (9, 15) not in told  # more regularisation than the first strengths have cannot be better
    assert fitted.left_out == ""
    scaled = fitted.inputs(rows.train.columns)
    wanted = rows.train.wanted[:, [1]].toarray().ravel()
    inverse = fitted.model.C
    twin = LogisticRegression(C=inverse, tol=1e-6, max_iter=2_000).fit(scaled, wanted)
    expected = twin.predict_proba(fitted.inputs(validation))[:, 1]
    np.testing.assert_allclose(found[:, 1], expected, atol=0.02)
    assert found[:, 2].max() < 0.01


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_model_ends_in_time_and_says_what_it_left_out(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    train, validation = columns(600, 1), columns(200, 2)
    for part in (train, validation):
        part["class"] = part["carrier"] % classes
    data = baseline_data(train, validation, FEATURES, "class", task="multi_class")
    whole = linear_model(data)
    assert whole.left_out == ""
    monkeypatch.setattr(baseline_fit, "SECONDS", 0.0)
    cut = linear_model(data)
    assert cut.left_out == (
        "It had 0 seconds, which left out the iterations after 1 of 200 and the strengths C = 0.001, 0.01, 0.1, 1, 10 "
        "of the regularisation"
    )
    assert np.isfinite(cut.predict(columns(50, 3))).all()


def test_the_parts_of_a_slow_linear_fit_end_where_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    data = baseline_data(columns(600, 1), columns(200, 2), FEATURES, "late")
    whole = linear_model(data, strengths=1.0)
    monkeypatch.setattr(linear, "_seconds_of_an_iteration", lambda *_: 1.0)
    in_parts = linear_model(data, strengths=1.0)
    assert (whole.left_out, in_parts.left_out) == ("", "")
    assert whole.model.max_iter == 200
    assert in_parts.model.max_iter == 14
    np.testing.assert_allclose(in_parts.predict(columns(50, 3)), whole.predict(columns(50, 3)), atol=0.01)


def test_the_progress_of_a_baseline_has_its_name() -> None:
    told: list[tuple[str, int, int]] = []
    several = [RowBaseline("xgboost"), RowBaseline("logistic_regression")]
    progress_of(several, 1, lambda *progress: told.append(progress))("strengths", 2, 6)
    progress_of(several[:1], 0, lambda *progress: told.append(progress))("boosting iterations")
    assert told == [("logistic regression (2 of 2): strengths", 2, 6), ("XGBoost: boosting iterations", 0, 0)]


def test_a_linear_model_of_several_labels_ends_in_time_and_says_what_it_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """574 s next to 31 s of training."""
    monkeypatch.setattr(baseline_fit, "SECONDS", 0.0)
    rows, validation = several_labels()
    fitted = linear_model(rows)
    assert fitted.left_out == (
        "It had 0 seconds, which left out the strengths C = 5, 0.2, 30, 150 of the regularisation and the last updates "
        "of 2 of its 3 labels"
    )
    assert np.isfinite(fitted.predict(validation)).all()
