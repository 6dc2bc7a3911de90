"""F7: the comparison of a trained model with baselines, with numbers worked by hand."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from mirrorspark.data_pipelines.dataset.block_format import Block
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import RaggedIds
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.models.classical import Recommender
from mirrorspark.training.configuration.tasks import RowBaseline
from mirrorspark.training.programs.recommenders.interactions import Interactions
from mirrorspark.training.programs.recommenders.lists import recommended
from mirrorspark.training.results.evaluation import baseline_fit, boosting, evaluate_run, row_baselines
from mirrorspark.training.results.evaluation.boosting import gradient_boosting
from mirrorspark.training.results.evaluation.evaluate_run import (
    ComparedModel,
    compare_binary,
    compare_multi_class,
    compare_multi_label,
    compare_regression,
    compare_retrieval,
    curves_of,
)
from mirrorspark.training.results.evaluation.row_baselines import (
    baseline_scores,
    fit_baseline,
    label_rates,
    read_baseline_data,
    train_fraction,
)
from mirrorspark.training.results.evaluation.segments import held_back_items
from mirrorspark.training.results.report.baselines import each_baseline
from mirrorspark.training.results.report.report import better_baseline, verdict_sentences


@dataclass(frozen=True)
class HandmadeDataset:
    """Gives what a comparison asks of a dataset from memory."""

    spec: FeatureSpec
    splits: Mapping[str, list[Block]]
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)

    @property
    def features(self) -> FittedFeatures:
        """The features; where no vocabulary is given, it has the ids that there are."""
        return FittedFeatures(
            self.spec,
            {of.name: self._tokens(of.name) for of in self.spec.vocabulary_owners} | dict(self.vocabularies),
            {},
        )

    def _tokens(self, name: str) -> Vocabulary:
        blocks = [block for split in self.splits.values() for block in split if name in block.features]
        ids = max((int(np.max(block.features[name], initial=1)) for block in blocks), default=1) - 1
        return Vocabulary(
            pa.array([f"{name} {number}" for number in range(ids)], pa.string()), pa.array([1] * ids, pa.int64())
        )

    def blocks(self, split: str, *, keys: bool = False) -> Iterator[Block]:
        yield from self.splits[split]


def block(label: list[float] | None, /, excluded: list[list[int]] | None = None, **features: Any) -> Block:
    arrays = {name: np.asarray(values) for name, values in features.items()}
    rows = len(next(iter(arrays.values())))
    return Block(
        arrays,
        None if label is None else np.asarray(label, np.float32),
        np.ones(rows, np.float32),
        {},
        None if excluded is None else np.asarray(excluded),
    )


BINARY_SPEC = FeatureSpec.from_dict(
    {
        "features": {
            "size": {"kind": "numeric"},
            "town": {"kind": "categorical"},
            "stops": {"kind": "multi_valued", "max_length": 2},
            # A name that a column of ours could be taken for.
            "label": {"kind": "numeric"},
        },
        "label": "late",
        "keys": "ride_id",
    }
)


def rides(rows: int, seed: int, noise: float = 0.3) -> Block:
    """Return rows whose label says whether ``size`` is positive, but for some noise."""
    rng = np.random.default_rng(seed)
    size = rng.normal(size=rows).astype(np.float32)
    label = (size + noise * rng.normal(size=rows) > 0).astype(np.float32)
    return block(
        label.tolist(),
        size=size,
        town=rng.integers(0, 5, rows),
        stops=rng.integers(0, 3, (rows, 2)),
        label=np.zeros(rows, np.float32),
    )


def predictions(label: list[float], score: list[float]) -> pa.Table:
    columns = {"label": label, "score": score, "weight": [1.0] * len(label)}
    return pa.table({name: pa.array(values, pa.float32()) for name, values in columns.items()})


@pytest.fixture
def binary(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Rides in three splits, and a baseline that is quick: more threads than free cores wait for each other."""
    monkeypatch.setattr(baseline_fit, "MAX_THREADS", 1)
    monkeypatch.setattr(boosting, "MAX_ITERATIONS", 20)
    test = [rides(40, 3), rides(60, 4)]
    return HandmadeDataset(
        BINARY_SPEC, {"train": [rides(300, 0), rides(300, 1)], "validation": [rides(200, 2)], "test": test}
    )


def baseline_of(dataset: Any, name: str = "hist_gradient_boosting") -> ComparedModel:
    return ComparedModel(
        name,
        baseline_scores(fit_baseline(RowBaseline(name), read_baseline_data(dataset, "binary"), 1), dataset, "test"),
    )


def test_a_binary_model_is_measured_on_every_evaluated_split() -> None:
    comparison = compare_binary(
        {
            # Positives at 0.35 and 0.8, negatives at 0.1 and 0.4: three of four pairs are in order.
            "test": predictions([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]),
            "validation": predictions([0, 1], [0.25, 0.75]),
        },
        [],
        seed=1,
        curves=None,
    )
    assert comparison.metrics["test"]["auc"] == pytest.approx(0.75)
    assert comparison.metrics["test"]["base_rate"] == 0.5
    assert comparison.metrics["validation"]["auc"] == 1.0
    # Both rows got 0.75 for what happened: -ln 0.75.
    assert comparison.metrics["validation"]["log_loss"] == pytest.approx(0.287682, abs=1e-6)
    assert comparison.baseline == {}


def test_a_binary_verdict_has_its_plots_and_the_learning_curves_if_there_are_any() -> None:
    table = {split: predictions([0, 1], [0.2, 0.9]) for split in ("validation", "test")}
    figures = compare_binary(table, [], seed=1, curves=None).figures
    assert sorted(figures) == ["calibration", "lift", "precision_recall", "roc", "score_histogram"]
    curves = Figure()
    assert compare_binary(table, [], seed=1, curves=curves).figures["learning_curves"] is curves


def test_without_a_baseline_each_kind_of_label_is_compared_with_the_base_rate() -> None:
    """A model that ranks the wrong way round is worse than the same prediction for all rows, beyond the noise."""
    label = [0.0, 1.0] * 50
    wrong = {split: predictions(label, [0.9, 0.2] * 50) for split in ("validation", "test")}
    found = compare_binary(wrong, [], 1, None)
    assert (found.baseline, found.compared["name"]) == ({}, "base_rate")
    assert found.base_rate["metrics"]["auc"] == 0.5
    assert found.base_rate["intervals"]["auc"]["high"] < 0
    assert better_baseline(found.metrics, found.compared, "val_auc") is not None
    number = compare_regression(wrong, [], 1, None)
    assert number.base_rate["metrics"]["rmse"] == pytest.approx(0.5)
    assert (verdict := verdict_sentences(number.metrics, number.compared))[0].startswith("The base rate is better than")
    assert len(verdict) == 1
    columns = {"label": pa.array([0, 1] * 50), "weight": pa.array([1.0] * 100)}
    columns["scores"] = pa.array([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]] * 50, pa.list_(pa.float64()))
    classes = compare_multi_class(dict.fromkeys(wrong, pa.table(columns)), [], 1, None, ["a", "b", "c"])
    assert classes.base_rate["metrics"]["log_loss"] == pytest.approx(-np.log(51 / 103))
    columns["label"] = pa.array([[0], [1]] * 50, pa.list_(pa.int64()))
    several = compare_multi_label(dict.fromkeys(wrong, pa.table(columns)), [], 1, None, 3)
    assert several.base_rate["intervals"]["log_loss"]["low"] > 0
    # Without validation rows there is no rate.
    none = wrong | {"validation": wrong["validation"].slice(0, 0)}
    with contextlib.suppress(ValueError):  # the metrics need rows
        assert compare_regression(none, [], 1, None).compared == {}


def test_gradient_boosting_is_fitted_on_the_same_rows_and_drawn_beside_the_model(binary: Any) -> None:
    label = np.concatenate([part.label for part in binary.splits["test"]]).tolist()
    table = {"test": predictions(label, [0.5] * len(label)), "validation": predictions([0, 1], [0.2, 0.9])}
    comparison = compare_binary(table, [baseline_of(binary)], seed=1, curves=None)
    assert comparison.baseline["name"] == "hist_gradient_boosting"
    # The label is a threshold on one feature with a little noise, which trees find; 0.5 for all rows is chance.
    assert comparison.baseline["metrics"]["auc"] > 0.9
    assert comparison.baseline["resampled"] == "test rows"
    assert comparison.metrics["test"]["auc"] == 0.5
    legend = comparison.figures["roc"].axes[0].get_legend()
    assert legend is not None
    assert any("gradient boosting" in text.get_text() for text in legend.get_texts())


def test_each_of_several_baselines_is_compared_and_drawn(binary: Any) -> None:
    """#23: the first one is the one whose metrics runs are compared by."""
    label = np.concatenate([part.label for part in binary.splits["test"]]).tolist()
    table = {"test": predictions(label, [0.5] * len(label)), "validation": predictions([0, 1], [0.2, 0.9])}
    names = ["lightgbm", "logistic_regression", "xgboost"]
    told: list[tuple[str, int, int]] = []
    baselines = [baseline_of(binary, name) for name in names]
    comparison = compare_binary(table, baselines, 1, None, lambda *progress: told.append(progress))
    of = ("comparing with LightGBM", "comparing with logistic regression", "comparing with XGBoost")
    assert told == [(doing, place, 3) for place, doing in enumerate(of)]
    found = each_baseline(comparison.baseline)
    assert [one["name"] for one in found] == names
    for one in found:
        assert one["metrics"]["auc"] > 0.9
        assert one["intervals"]["auc"]["high"] < 0
    legend = comparison.figures["roc"].axes[0].get_legend()
    texts = " ".join(text.get_text() for text in legend.get_texts())
    assert all(name in texts for name in ("LightGBM", "logistic regression", "XGBoost"))


def test_the_baseline_does_not_see_the_label_through_a_feature_of_that_name(binary: Any) -> None:
    noise = {
        split: [block(part.label.tolist(), **dict(part.features) | {"size": np.zeros(part.rows, np.float32)})]
        for split, parts in binary.splits.items()
        for part in parts[:1]
    }
    dataset: Any = HandmadeDataset(BINARY_SPEC, noise)
    label = noise["test"][0].label.tolist()
    table = {"test": predictions(label, [0.5] * len(label)), "validation": predictions([0, 1], [0.2, 0.9])}
    comparison = compare_binary(table, [baseline_of(dataset)], seed=1, curves=None)
    assert comparison.baseline["metrics"]["auc"] < 0.8


def test_the_baseline_learns_from_a_bounded_number_of_rows_and_is_judged_on_all(
    binary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt_from: list[int] = []

    def spy(rows: Any, **options: Any) -> Any:
        learnt_from.extend(len(values) for values in rows.train.columns.values())
        return gradient_boosting(rows, **options)

    monkeypatch.setattr(row_baselines, "gradient_boosting", spy)
    monkeypatch.setattr(row_baselines, "BASELINE_ROWS", 300)
    label = np.concatenate([part.label for part in binary.splits["test"]]).tolist()
    table = {"test": predictions(label, [0.5] * len(label)), "validation": predictions([0, 1], [0.2, 0.9])}
    comparison = compare_binary(table, [baseline_of(binary)], seed=1, curves=None)
    assert set(learnt_from) == {300}  # of 600
    assert train_fraction(read_baseline_data(binary, "binary"), 600) == {"rows": 300, "of": 600}
    assert train_fraction(read_baseline_data(binary, "binary"), 300) == {}
    assert comparison.baseline["metrics"]["base_rate"] == pytest.approx(float(np.mean(label)))
    assert any("boosting" in text.get_text() for text in comparison.figures["roc"].axes[0].get_legend().get_texts())


TAGS_SPEC = FeatureSpec.from_dict(
    {
        "features": {"size": {"kind": "numeric"}},
        "label": {"name": "tags", "kind": "multi_label", "classes": 3},
        "keys": "row",
    }
)


def tagged(labels: list[list[int]], weight: list[float]) -> Block:
    """Return rows with these labels."""
    ids = RaggedIds(np.concatenate(labels).astype(np.int64), np.array([len(row) for row in labels]))
    return Block({"size": np.zeros(len(labels), np.float32)}, ids, np.asarray(weight, np.float32), {})


@pytest.fixture
def tags() -> Any:
    """Label 0 is on 4 of 5 rows by weight, label 1 on 1 and label 2 on 2."""
    train = [tagged([[0], [0, 2]], [1, 2]), tagged([[1], [0]], [1, 1])]
    return HandmadeDataset(TAGS_SPEC, {"train": train})


def label_scores(labels: list[list[int]], scores: list[list[float]]) -> pa.Table:
    return pa.table(
        {
            "label": pa.array(labels, pa.list_(pa.int64())),
            "scores": pa.array(scores, pa.list_(pa.float32())),
            "weight": pa.array([1.0] * len(labels), pa.float32()),
        }
    )


def test_a_multi_label_model_is_measured_beside_what_labels_are_frequent(tags: Any) -> None:
    """F7: a row that has no label counts, too."""
    table = label_scores([[1, 2], [], [0]], [[0.1, 0.9, 0.8], [0.2, 0.3, 0.1], [0.7, 0.1, 0.2]])
    popular = ComparedModel("popularity", np.broadcast_to(label_rates(tags), (3, 3)))
    comparison = compare_multi_label({"validation": table, "test": table}, [popular], 1, None, classes=3)
    assert comparison.metrics["validation"] == comparison.metrics["test"]
    assert comparison.metrics["test"]["auc"] == 1.0
    assert comparison.metrics["test"]["base_rate"] == pytest.approx(3 / 9)
    # The best label of rows 1 and 3 is theirs; of three labels, 2, 0 and 1.
    assert comparison.metrics["test"]["precision_at_1"] == pytest.approx(2 / 3)
    assert comparison.metrics["test"]["precision_at_3"] == pytest.approx((2 / 3 + 0 + 1 / 3) / 3)
    # The pairs of 0.9, 0.8 and 0.7 are the three that there are.
    assert comparison.metrics["test"]["micro_f1"] == 1.0
    # All rows get 0.8, 0.2 and 0.4. The three pairs that are so have one of each, as have the six that are not two.
    baseline = comparison.baseline["metrics"]
    assert comparison.baseline["name"] == "popularity"
    assert baseline["auc"] == 0.5
    # Squares of what is missing: of each label one row has it and two have not.
    assert baseline["brier"] == pytest.approx((0.04 + 2 * 0.64 + 0.64 + 2 * 0.04 + 0.36 + 2 * 0.16) / 9)
    assert sorted(comparison.figures) == ["calibration", "lift", "precision_recall", "roc", "score_histogram"]


def test_each_label_of_several_has_a_logistic_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    """#23: labels without rows are not learnt, and the intervals are those of means and of a ratio."""
    size = np.linspace(-1, 1, 40).astype(np.float32)
    labels = [[0] if of > 0.5 else [1] if of < 0 else [] for of in size]
    rows = dataclasses.replace(tagged(labels, [1.0] * 40), features={"size": size})
    dataset: Any = HandmadeDataset(TAGS_SPEC, {"train": [rows, rows], "validation": [rows], "test": [rows]})
    fitted = fit_baseline(RowBaseline("logistic_regression"), read_baseline_data(dataset, "multi_label"), seed=1)
    scores = baseline_scores(fitted, dataset, "test")
    table = label_scores(labels, [[0.5, 0.5, 0.1]] * 40)
    comparison = compare_multi_label(
        {"test": table}, [ComparedModel("logistic_regression", scores)], 1, None, classes=TAGS_SPEC.label.classes or 0
    )
    assert comparison.baseline["metrics"]["precision_at_1"] == pytest.approx(np.mean([bool(of) for of in labels]))
    assert scores[:, 2].max() < 0.02
    intervals = comparison.baseline["intervals"]
    assert set(intervals) == {"log_loss", "brier", "precision_at_1", "precision_at_3", "micro_f1"}
    # 30 of 80 pairs are right, and 30 of 110 are named or so in truth.
    named = 2 * comparison.metrics["test"]["base_rate"] * 120 / (comparison.metrics["test"]["base_rate"] * 120 + 80)
    assert comparison.metrics["test"]["micro_f1"] == pytest.approx(named)
    difference = comparison.metrics["test"]["micro_f1"] - comparison.baseline["metrics"]["micro_f1"]
    assert intervals["micro_f1"]["difference"] == pytest.approx(difference)
    assert intervals["micro_f1"]["high"] < 0 < intervals["log_loss"]["low"]
    assert "learnt_from" not in comparison.baseline
    # 40 rows of three labels are as it takes, of 80.
    monkeypatch.setattr(row_baselines, "BASELINE_PAIRS", 120)
    part = train_fraction(read_baseline_data(dataset, "multi_label"), 80)
    sampled = compare_multi_label(
        {"test": table}, [ComparedModel("logistic_regression", scores, part)], 1, None, classes=3
    )
    assert sampled.baseline["learnt_from"] == {"rows": 40, "of": 80}
    (sentence,) = verdict_sentences(sampled.metrics, sampled.baseline)
    assert sentence.endswith(". Logistic regression learnt from the first 40 of the 80 training rows.")


def test_rows_of_weight_0_teach_a_label_nothing_and_a_step_leaves_out_scores() -> None:
    labels, weights = [[0], [1], [0], [], [1], [0], [2]], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    size = np.array([1, -1, 1, 0, -1, 1, 0], np.float32)
    rows = dataclasses.replace(tagged(labels, weights), features={"size": size})
    dataset: Any = HandmadeDataset(TAGS_SPEC, {"train": [rows], "validation": [rows], "test": [rows, rows, rows]})
    fitted = fit_baseline(RowBaseline("logistic_regression"), read_baseline_data(dataset, "multi_label"), seed=1)
    scores = baseline_scores(fitted, dataset, "test")
    assert scores[:, 2].max() < 0.2
    np.testing.assert_array_equal(baseline_scores(fitted, dataset, "test", 4), scores[::4])
    assert evaluate_run.evaluated_step(21, 3) == 1


def test_a_long_split_of_many_labels_is_judged_by_some_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_run, "EVALUATED_PAIRS", 6)
    # Of four rows of three labels every other one is left, whose scores are right.
    table = label_scores([[0], [0], [1], [1]], [[0.9, 0.1, 0.2], [0.1, 0.9, 0.9], [0.2, 0.8, 0.1], [0.9, 0.1, 0.9]])
    comparison = compare_multi_label(dict.fromkeys(("validation", "test"), table), [], 1, None, classes=3)
    assert comparison.metrics["test"]["auc"] == 1.0


RETRIEVAL_SPEC = FeatureSpec.from_dict(
    {
        "features": {"movie": {"kind": "categorical"}, "user": {"kind": "categorical"}},
        "label": {"name": "movie", "kind": "candidate"},
        "keys": "row",
        "exclude": "watched",
    }
)


@pytest.fixture
def retrieval() -> Any:
    """Movie 2 was watched three times, 3 twice, 4 once; 1 stands for all that are out of vocabulary."""
    train = [block(None, movie=[2, 3, 2, 1], user=[2, 2, 3, 3]), block(None, movie=[4, 1, 1, 1, 3, 2], user=[2] * 6)]
    test = [
        block(None, excluded=[[2, 0], [0, 0]], movie=[3, 2], user=[2, 3]),
        block(None, excluded=[[3, 2], [4, 0]], movie=[1, 4], user=[4, 5]),
    ]
    movies = Vocabulary(pa.array(["a", "b", "c"]), pa.array([3, 2, 1]))
    return HandmadeDataset(RETRIEVAL_SPEC, {"train": train, "test": test}, {"movie": movies})


def lists(candidates: list[list[str]], label: Any) -> pa.Table:
    return pa.table({"candidates": pa.array(candidates, pa.list_(pa.string())), "label": label})


def test_a_retrieval_model_is_measured_by_rank(retrieval: Any) -> None:
    table = lists([["a", "b"], ["b", "c"], ["c", "a"], ["a", "c"]], ["a", "c", "c", "c"])
    comparison = compare_retrieval(retrieval, {"test": table}, {}, k=2, curves=None)
    # Of the usual ranks only 1 is within the lists: two hits of four in the first place, two in the second.
    expected: dict[str, Any] = {f"{name}_at_1": 0.5 for name in ("recall", "ndcg", "mrr", "hit_rate", "map")}
    expected |= {"recall_at_2": 1.0, "hit_rate_at_2": 1.0, "mrr_at_2": 0.75, "map_at_2": 0.75}
    second = 1 / math.log2(3)
    expected |= {"ndcg_at_2": pytest.approx((1 + second) / 2)}
    # The third row holds back what is out of vocabulary, and the second one has seen the least.
    expected |= {f"new_items_{name}_at_2": 1.0 for name in ("recall", "ndcg", "mrr", "hit_rate", "map")}
    expected |= {f"light_users_{name}_at_2": 1.0 for name in ("recall", "hit_rate")}
    expected |= {f"light_users_{name}_at_2": 0.5 for name in ("mrr", "map")}
    expected |= {"light_users_ndcg_at_2": pytest.approx(second), "new_items_rows": 1.0, "light_users_rows": 1.0}
    # Their lists are the third and the second.
    bits = [math.log2(6 / count) for count in (3, 2, 1)]
    for segment, listed, popularity in (("new_items", (2, 0), 2.0), ("light_users", (1, 2), 1.5)):
        expected |= {f"{segment}_coverage": pytest.approx(2 / 3), f"{segment}_mean_popularity": popularity}
        expected |= {f"{segment}_novelty": pytest.approx(sum(bits[place] for place in listed) / 2)}
    # The lists have counts 3 + 2, 2 + 1, 1 + 3, 3 + 1, and name all three movies.
    expected |= {"coverage": 1.0, "mean_popularity": 2.0}
    novelty = (3 * bits[0] + 2 * bits[1] + 3 * bits[2]) / 8
    expected |= {"novelty": pytest.approx(novelty)}
    assert comparison.metrics == {"test": expected}
    assert comparison.baseline == {}
    assert sorted(comparison.figures) == ["recall_at_k"]


def test_predicted_ratings_are_measured_by_their_errors(retrieval: Any) -> None:
    table = lists([["a", "b"]] * 4, ["a", "c", "c", "c"])
    columns = {"rating": [4.0, 1.0, 3.0, 2.0], "predicted_rating": [3.0, 3.0, 3.0, 9.0], "weight": [1.0, 2.0, 1.0, 0.0]}
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    metrics = compare_retrieval(retrieval, {"test": table}, {}, k=2, curves=None).metrics["test"]
    assert metrics["mae"] == (1 + 2 * 2) / 4
    assert metrics["rmse"] == pytest.approx(((1 + 2 * 4) / 4) ** 0.5)


def test_rows_with_the_same_query_are_one_with_several_relevant_items(retrieval: Any) -> None:
    test = block(None, excluded=[[2, 3], [3, 2], [0, 0]], movie=[4, 1, 2], user=[2, 2, 2])
    dataset = dataclasses.replace(retrieval, splits=retrieval.splits | {"test": [test]})
    spark: Any = None
    popular = {"popularity": recommended(Recommender("popularity"), Interactions(dataset), 5, 1, spark)}
    comparison = compare_retrieval(dataset, {"test": lists([["c"] * 5] * 3, ["c", "", "a"])}, popular, 5, curves=None)
    # The first two rows want two items and get one of them; the third, which excludes others, is a query of its own.
    assert comparison.metrics["test"]["recall_at_5"] == (1 / 2 + 0) / 2
    assert comparison.metrics["test"]["hit_rate_at_5"] == 1 / 2
    # The most popular one that the third row has not seen is what it wants.
    assert comparison.baseline["metrics"]["recall_at_1"] == (1 / 2 + 1) / 2
    assert set(comparison.baseline["intervals"]) == {
        f"{name}_at_{k}" for name in ("recall", "ndcg", "mrr", "hit_rate", "map") for k in (1, 5)
    }


def test_a_row_with_a_list_is_measured_as_a_row_for_each_of_its_items(retrieval: Any) -> None:
    """#55: lists, segments, intervals and baselines are the same; the users of the rows are, too."""
    test = block(None, excluded=[[2, 0], [0, 0], [3, 0]], movie=[4, 1, 2], user=[2, 3, 4])
    held_back = RaggedIds(np.array([4, 3, 1, 2, 3]), np.array([2, 1, 2]))
    rows = [0, 0, 1, 2, 2]
    columns = {"movie": held_back.values, "user": test.features["user"][rows]}  # type: ignore[call-overload]
    exploded = block(None, excluded=test.excluded[rows].tolist(), **columns)  # type: ignore[index]
    found = []
    spark: Any = None
    for part, labels, places in (
        (dataclasses.replace(test, held_back=held_back), [["c", "b"], [""], ["a", "b"]], [0, 1, 2]),
        (exploded, ["c", "b", "", "a", "b"], rows),
    ):
        label = dataclasses.replace(RETRIEVAL_SPEC.label, lists=part.held_back is not None)
        spec = dataclasses.replace(RETRIEVAL_SPEC, label=label)
        dataset = dataclasses.replace(retrieval, spec=spec, splits=retrieval.splits | {"test": [part]})
        shown = [[["b", "a"], ["a", "c"], ["c", "a"]][place] for place in places]
        popular = {"popularity": recommended(Recommender("popularity"), Interactions(dataset), 2, 1, spark)}
        found.append(compare_retrieval(dataset, {"test": lists(shown, labels)}, popular, k=2, curves=None))
    of_lists, of_items = found
    for mine, other in (
        (of_lists.metrics["test"], of_items.metrics["test"]),
        (of_lists.baseline["metrics"], of_items.baseline["metrics"]),
    ):
        # The catalogue's metrics are those of rows, of which there are fewer, and so are the light users.
        names = [name for name in mine if name.startswith(("recall", "ndcg", "mrr", "hit_rate", "map"))]
        assert {name: mine[name] for name in names} == {name: other[name] for name in names}
    assert of_lists.baseline["intervals"] == of_items.baseline["intervals"]
    # One of two, none of one, one of two.
    assert of_lists.metrics["test"]["recall_at_2"] == pytest.approx((1 / 2 + 0 + 1 / 2) / 3)
    assert of_lists.metrics["test"]["recall_at_1"] == pytest.approx((1 / 2 + 0 + 0) / 3)


@pytest.mark.parametrize(
    ("changes", "light"),
    [
        ({"exclude": "watched"}, [False, True, False, False]),
        # Users 2 and 3 have eight and two training rows, the others none.
        ({}, [False, False, True, True]),
        (
            {"features": {"last": {"kind": "multi_valued", "max_length": 2, "vocabulary_of": "movie"}}},
            [True] + [False] * 3,
        ),
    ],
    ids=["excluded", "training rows", "history"],
)
def test_a_light_user_is_known_by_little(retrieval: Any, changes: dict[str, Any], light: list[bool]) -> None:
    parts = {name: part for name, part in RETRIEVAL_SPEC.to_dict().items() if name != "exclude"}
    features = parts["features"] | changes.get("features", {})
    spec = FeatureSpec.from_dict(parts | changes | {"features": features})
    last = iter([[[0, 0], [2, 0]], [[3, 2], [3, 0]]])
    test = [
        dataclasses.replace(
            part,
            features={**part.features, "last": np.array(next(last))},
            excluded=part.excluded if "exclude" in changes else None,
        )
        for part in retrieval.splits["test"]
    ]
    dataset: Any = dataclasses.replace(retrieval, spec=spec, splits=retrieval.splits | {"test": test})
    rows = held_back_items(dataset, "test")
    assert rows.is_light.tolist() == light
    assert (rows.users.tolist(), rows.is_new.tolist()) == ([2, 3, 4, 5], [False, False, True, False])


@pytest.mark.parametrize("changes", [{}, {"exclude": None}], ids=["excluded", "training rows"])
def test_without_a_user_rows_are_resampled_and_nobody_is_light(retrieval: Any, changes: dict[str, Any]) -> None:
    parts = RETRIEVAL_SPEC.to_dict()
    features = {"hour" if name == "user" else name: part for name, part in parts["features"].items()}
    spec = FeatureSpec.from_dict(parts | changes | {"features": features})

    def by_hour(part: Any) -> Any:
        return dataclasses.replace(part, features={"hour": part.features["user"], "movie": part.features["movie"]})

    splits = {name: [by_hour(part) for part in blocks] for name, blocks in retrieval.splits.items()}
    dataset: Any = dataclasses.replace(retrieval, spec=spec, splits=splits)
    rows = held_back_items(dataset, "test")
    assert rows.unit == "test rows"
    assert len(set(rows.users.tolist())) == 4
    table = lists([["a"] * 5] * 4, ["a", "b", "b", "b"])
    comparison = compare_retrieval(dataset, {"test": table}, {}, k=5, curves=None)
    assert not [name for name in comparison.metrics["test"] if name.startswith("light_users")]
    assert Interactions(dataset).user is None


def test_popularity_recommends_what_a_user_has_not_seen_and_never_what_nobody_can(retrieval: Any) -> None:
    table = lists([["a"] * 5] * 4, ["a", "b", "b", "b"])
    spark: Any = None
    popular = recommended(Recommender("popularity"), Interactions(retrieval), 5, 1, spark)
    comparison = compare_retrieval(retrieval, {"test": table}, {"popularity": popular}, k=5, curves=None)
    metrics = comparison.baseline["metrics"]
    assert comparison.baseline["name"] == "popularity"
    assert comparison.baseline["resampled"] == "values of user"
    # Row 1 has seen movie 2 and gets 3, a hit; row 2 gets 2, a hit; row 3 wants one out of vocabulary, and row 4 one
    # that it is said to have seen: neither can be listed, however many places are empty.
    assert metrics["recall_at_1"] == 0.5
    assert metrics["recall_at_5"] == 0.5
    assert metrics["ndcg_at_5"] == 0.5
    assert metrics["coverage"] == 1.0
    # Counts of the lists, without the empty places: 2, 1; 3, 2, 1; 1; 3, 2.
    assert metrics["mean_popularity"] == (1.5 + 2 + 1 + 2.5) / 4
    assert comparison.metrics["test"]["recall_at_5"] == 0.25


def test_a_retrieval_model_is_compared_with_each_of_several(retrieval: Any) -> None:
    """F7: the other baselines are reported with the first one, each with its own intervals."""
    table = lists([["b"], ["b"], ["b"], ["b"]], ["b", "a", "", "c"])
    baselines = {"popularity": np.array([[2], [2], [2], [2]]), "ease_l2_9": np.array([[3], [2], [-1], [4]])}
    comparison = compare_retrieval(retrieval, {"test": table}, baselines, k=1, curves=None)
    assert comparison.metrics["test"]["recall_at_1"] == 0.25
    assert comparison.baseline["metrics"]["recall_at_1"] == 0.25
    (other,) = comparison.baseline["others"]
    assert (other["name"], other["metrics"]["recall_at_1"]) == ("ease_l2_9", 0.75)
    assert other["intervals"]["recall_at_1"]["difference"] == -0.5
    texts = comparison.figures["recall_at_k"].axes[0].get_legend().get_texts()
    assert [text.get_text().split(" (")[0] for text in texts] == ["model", "popularity", "ease l2 9"]


def test_an_empty_place_of_a_list_is_no_hit_for_a_label_out_of_vocabulary(retrieval: Any) -> None:
    table = lists([["a", ""], ["a", "b"]] * 2, ["", "a"] * 2)
    comparison = compare_retrieval(retrieval, {"test": table}, {}, k=2, curves=None)
    assert comparison.metrics["test"]["recall_at_1"] == 0.5
    five = lists([["a", "", "", "", ""], ["a", "b", "c", "d", "e"]] * 2, ["", "e"] * 2)
    comparison = compare_retrieval(retrieval, {"test": five}, {}, k=5, curves=None)
    assert comparison.metrics["test"]["recall_at_5"] == 0.5


def test_learning_curves_show_what_every_epoch_has() -> None:
    history = [{"loss": 0.9, "val_auc": 0.6}, {"loss": 0.8, "val_auc": 0.7, "late": 1.0}]
    figure = curves_of(history, best_epoch=2, restarts=[1.5])
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "auc"]


def test_without_an_epoch_there_are_no_curves() -> None:
    assert curves_of([], best_epoch=3, restarts=[]) is None
