"""Validation on Spark: metrics of slices as scikit-learn has them, and what blocks a promotion (L1, L3, S14)."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sklearn_metrics

from mirrorspark.lifecycle.gate.gate import validate
from mirrorspark.lifecycle.gate.slices import Slicing
from mirrorspark.lifecycle.gate.thresholds import Gap, Gates, Threshold
from mirrorspark.lifecycle.promotion.promotions import Promotion, PromotionRefusedError, promote
from mirrorspark.lifecycle.promotion.registry import FolderRegistry
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.parity import parity

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.timeout(300)

ROWS = 4_000
COUNTRIES = ("at", "de", "fr")
BETTER = {"x": 2.0, "is_de": 0.0}
# Better for all rows together, and worse in one country.
WORSE_IN_DE = {"x": 2.0, "is_de": -3.0}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    random = np.random.default_rng(5)
    x, other = random.standard_normal((2, ROWS))
    country = random.choice(COUNTRIES, ROWS, p=(0.6, 0.1, 0.3))
    late = random.random(ROWS) < 1 / (1 + np.exp(-2 * x))
    return pd.DataFrame(
        {
            "id": np.arange(ROWS),
            "x": x,
            "other": other,
            "is_de": (country == "de") * np.sign(x),
            "country": country,
            "late": late.astype(int),
        }
    )


@pytest.fixture(scope="module")
def table(spark: "SparkSession", rows: pd.DataFrame) -> "DataFrame":
    return spark.createDataFrame(rows).repartition(3).cache()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> FolderRegistry:
    """Return a registry: 1 is in production, 2 better, 3 worse in one country, 4 reads another column."""
    folder = tmp_path_factory.mktemp("registry")
    versions = [{"x": 0.4, "is_de": 0.0}, BETTER, WORSE_IN_DE, {"x": 2.0, "is_de": 0.0, "other": 0.0}]
    for version, coefficients in enumerate(versions, 1):
        model = {"coefficients": coefficients, "intercept": 0.0, "link": "logit"}
        package_model(model, folder / "late" / str(version))
    return FolderRegistry(folder)


def gates(**others: object) -> Gates:
    return Gates((Threshold("auc", at_least=0.7, slices=("all",)),), **others)  # type: ignore[arg-type]


def test_metrics_of_every_slice_are_those_of_scikit_learn(
    table: "DataFrame", rows: pd.DataFrame, registry: FolderRegistry
) -> None:
    slices = ["country", Slicing("x > 1", "large")]
    models = [registry.folder / "late" / version for version in ("2", "1")]

    found = validate(*models, table, slices, gates(), label="late", keys="id", task="binary", single_rows=0)

    masks = {
        "overall": np.ones(ROWS, bool),
        **{f"country = {country}": rows.country == country for country in COUNTRIES},
        "large = false": rows.x <= 1,
        "large = true": rows.x > 1,
    }
    assert {one.name for one in found.facts.slices} == set(masks)
    assert found.facts.slices[0].is_overall
    for one in found.facts.slices:
        mask = masks[one.name]
        late, x = rows.late[mask], rows.x[mask]
        assert one.examples == len(late)
        for measured, coefficient in ((one.candidate, 2.0), (one.champion, 0.4)):
            scores = 1 / (1 + np.exp(-coefficient * x.to_numpy(np.float32)))
            expected = {
                "auc": sklearn_metrics.roc_auc_score(late, scores),
                "pr_auc": sklearn_metrics.average_precision_score(late, scores),
                "log_loss": sklearn_metrics.log_loss(late, scores),
                "brier": sklearn_metrics.brier_score_loss(late, scores),
                "accuracy": sklearn_metrics.accuracy_score(late, scores >= 0.5),
                "precision": sklearn_metrics.precision_score(late, scores >= 0.5),
                "recall": sklearn_metrics.recall_score(late, scores >= 0.5),
            }
            for metric, value in expected.items():
                assert measured[metric].value == pytest.approx(value, abs=2e-6), (one.name, metric)
        assert one.candidate["auc"].low < one.candidate["auc"].value < one.candidate["auc"].high


@pytest.mark.full
def test_intervals_do_not_depend_on_the_partitions(table: "DataFrame", registry: FolderRegistry) -> None:
    model = registry.folder / "late" / "2"
    one, other = (
        validate(model, None, rows, ["country"], label="late", keys="id", task="binary", single_rows=0)
        for rows in (table, table.repartition(5, "x"))
    )

    for first, second in zip(one.facts.slices, other.facts.slices, strict=True):
        assert first.candidate["auc"].low == pytest.approx(second.candidate["auc"].low, abs=1e-9)


def test_a_better_version_passes_and_is_promoted(table: "DataFrame", registry: FolderRegistry, tmp_path: Path) -> None:
    """The folder's versions are the candidate and the champion, whose single rows are answered alike."""
    registry.set_alias("late", "champion", "1")
    asked = gates(latency_p99_ms=1_000.0, model_megabytes=1.0, gaps=(Gap("auc", "country", 0.2),), parity=True)

    found = validate(
        *(registry.folder / "late" / version for version in ("2", "1")),
        *(table, ["country"], asked),
        **{"label": "late", "keys": "id", "task": "binary", "single_rows": 20},
    )

    assert found.passed, found.as_text()
    overall = found.facts.slices[0]
    auc, former = overall.candidate["auc"].value, overall.champion["auc"].value
    assert found.as_text().splitlines()[1].startswith(f"  {overall.examples:,} rows: auc {auc:.4f} ({former:.4f}), ")
    assert found.facts.latency_p99_ms is not None
    assert found.facts.latency_p99_ms > 0
    document = json.loads(found.save(tmp_path).read_text())
    assert document["passed"] is True
    assert (tmp_path / "validation.html").is_file()
    done = promote(found, registry, why="auc", name="late", version="2")
    assert done == Promotion("late", "2", "1")


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("3", "auc.*country = de"),  # a regression in one slice
        # A changed schema, and one wrong score.
        *(
            pytest.param(*case, marks=pytest.mark.full)
            for case in (("4", "the candidate has the input other"), ("2", "parity"))
        ),
    ],
)
def test_a_planted_fault_blocks_the_promotion(
    table: "DataFrame", registry: FolderRegistry, version: str, words: str
) -> None:
    registry.set_alias("late", "champion", "1")
    scores = np.linspace(0.1, 0.9, 1_000)
    wrong = scores.copy()
    wrong[500] += 7e-3  # of a thousand; the 99th percentile of the differences is 0

    found = validate(
        *(registry.folder / "late" / one for one in (version, "1")),
        *(table, ["country"], gates()),
        **{"label": "late", "keys": "id", "task": "binary", "single_rows": 0},
        parity=parity(scores, wrong if version == "2" else scores),
    )

    assert [one for one in found.findings if one.outcome == "failed"] == list(found.failed)
    with pytest.raises(PromotionRefusedError, match=f"late/{version} stays out of production: .*{words}"):
        promote(found, registry, why="it is Monday", name="late", version=version)
    assert registry.alias("late", "champion") == "1"
