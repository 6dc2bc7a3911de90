"""M1, M2, M17: one job trains many targets on two workers, and the result is a fleet that Spark scores alike."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from mlflow import MlflowClient

import mirrorspark as ms
from benchmarks.train_fleet import yeast
from mirrorspark.data_pipelines.dataset.manifest import SPLITS
from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.memory_tables import TableError
from mirrorspark.data_pipelines.reading.dataset import Dataset, load_dataset
from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.training.declared import declared_models
from mirrorspark.fleet.training.inputs import inputs_of
from mirrorspark.fleet.training.plan import TARGETS, WEIGHTS_FILE, StackMember, StackPlan, StackSettings
from mirrorspark.fleet.training.rows import converted, split_rows
from mirrorspark.fleet.training.stack import StackedModels
from mirrorspark.fleet.training.worker import NUMBERS, assembled

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(400)

ROWS, COLUMNS = 2_000, ("c0", "c1", "c2", "c3")
MODELS = pd.DataFrame(
    {
        "model": ["buys", "buys_rarely", "leaves", "spends", "visits"],
        "target": ["buys", "buys", "leaves", "spends", "visits"],
        "link": ["logit", "logit", "logit", "identity", "log"],
        "penalty": [0.0, 1.0, 0.0, 0.0, 0.0],
        "columns": [None, None, ["c0", "state"], None, None],
        "threshold": [0.5, None, 0.2, None, None],
    }
)


def people() -> pd.DataFrame:
    """Return four columns of numbers, some missing, one of texts, and four targets; ``leaves`` has few labels."""
    random = np.random.default_rng(8)
    table = pd.DataFrame(random.normal(size=(ROWS, len(COLUMNS))), columns=list(COLUMNS))
    table["state"] = random.choice(["CA", "NY", "TX"], ROWS)
    predictor = table["c0"] - table["c1"] / 2 + (table["state"] == "CA")
    table["buys"] = (random.random(ROWS) < 1 / (1 + np.exp(-predictor))).astype("int32")
    leaves = (random.random(ROWS) < 1 / (1 + np.exp(1 - table["c0"]))).astype(float)
    table["leaves"] = leaves.where(random.random(ROWS) < 0.3)
    table["spends"] = 100 + 20 * table["c2"] + random.normal(0, 10, ROWS)
    table["visits"] = random.poisson(np.exp(table["c3"] / 2))
    table["c1"] = table["c1"].where(random.random(ROWS) < 0.9)
    return table


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fleets")


@pytest.fixture(scope="module")
def trained(spark: "SparkSession", output: Path) -> ms.TrainedFleet:
    return ms.train_fleet(
        people(),
        MODELS,
        columns=[*COLUMNS, "state"],
        learning_rate=0.05,
        epochs=12,
        patience=3,
        workers=2,
        output=output,
        spark=spark,
    )


def test_each_model_is_reported(trained: ms.TrainedFleet) -> None:
    report = trained.report.to_pandas().set_index("model")
    assert list(report.index) == list(MODELS["model"]) == list(trained.fleet.names)
    table = people()
    rows = report["rows"] + report["validation_rows"] + report["test_rows"]
    assert rows["buys"] == rows["spends"] == ROWS
    assert rows["leaves"] == table["leaves"].notna().sum()
    assert 0 < report["positives"]["leaves"] < report["rows"]["leaves"]
    assert report["metric"].to_dict() == {
        "buys": "auc",
        "buys_rarely": "auc",
        "leaves": "auc",
        "spends": "r2",
        "visits": "d2",
    }
    assert report["test_metric"]["buys"] > 0.7
    assert report["test_metric"]["spends"] > 0.6
    assert report["test_metric"]["visits"] > 0.1
    assert (report["best_epoch"] >= 1).all()
    assert (report["epochs"] <= 12).all()
    assert not report["diverged"].any()
    # A penalty of 1 leaves little of the weights.
    squares = [sum(coefficient**2 for coefficient in terms) for terms in trained.fleet.table["coefficient"].to_pylist()]
    assert squares[1] < squares[0] / 4
    assert set(trained.fleet.select(["leaves"]).columns) == {"c0", "state"}


def test_spark_scores_the_fleet_as_the_training_framework_does(
    spark: "SparkSession", trained: ms.TrainedFleet, tmp_path: Path
) -> None:
    dataset = load_dataset(trained.dataset)
    table = people()
    table["row_number"] = np.arange(ROWS)
    pq.write_table(pa.Table.from_pandas(table), tmp_path / "people.parquet")
    scored = ms.score_fleet(
        tmp_path / "people.parquet",
        trained.folder,
        tmp_path / "scores",
        keys="row_number",
        outputs="score",
        layout="packed",
        spark=spark,
    )
    assert scored.models == trained.fleet.names
    scores = pq.read_table(tmp_path / "scores").sort_by("row_number")
    found = np.array(scores["score"].to_pylist())
    blocks = list(dataset.blocks("test", keys=True))
    with np.load(trained.folder.parent / WEIGHTS_FILE) as weights:
        expected = np.concatenate([forward(block, dataset, dict(weights)) for block in blocks])
    keys = np.concatenate([block.keys["row_number"] for block in blocks])
    # The scale of the label, by which an error of its prediction is multiplied, is that of the training rows.
    units = np.array([1, 1, 1, np.std(table["spends"]), 1])
    np.testing.assert_allclose(found[keys] / units, expected / units, rtol=1e-6, atol=1e-6)


def forward(block: Any, dataset: ms.Dataset, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Return the predictions of TensorFlow for the rows of a block, ``[rows, models]``."""
    own = (None, None, (0, 4, 5, 6), None, None)
    members = tuple(
        StackMember(name, 0, link, inputs=inputs)
        for name, link, inputs in zip(MODELS["model"], MODELS["link"], own, strict=True)
    )
    plan = StackPlan("", StackSettings(), 64, targets=4, has_missing=True, members=members)
    values = {name: tf.constant(column) for name, column in block.features.items()}
    values[NUMBERS] = tf.stack([values.pop(feature.name) for feature in dataset.spec.numeric], axis=1)
    inputs, *_ = assembled((values, None, tf.ones(block.rows), 1.0), dataset.features, plan)
    stack = StackedModels(members, len(inputs_of(dataset.features)), plan.settings, 64)
    stack.kernels[0].assign(weights["kernel_0"])
    stack.biases[0].assign(weights["bias_0"])
    found = stack.predictors(inputs).numpy().astype(np.float64)
    train = people()["spends"].to_numpy()[_rows_of(dataset, "train")]
    found[:, :3] = 1 / (1 + np.exp(-found[:, :3]))
    found[:, 3] = found[:, 3] * train.std() + train.mean()
    found[:, 4] = np.exp(found[:, 4])
    return found


def _rows_of(dataset: ms.Dataset, split: str) -> np.ndarray:
    return np.concatenate([block.keys["row_number"] for block in dataset.blocks(split, keys=True)])


def test_mlflow_has_the_summary_the_table_and_the_fleet(trained: ms.TrainedFleet) -> None:
    client = MlflowClient(trained.tracking_uri)
    assert trained.run_id is not None
    run = client.get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    metrics = run.data.metrics
    assert (metrics["models"], metrics["models_diverged"]) == (5, 0)
    assert metrics["test_auc_min"] <= metrics["test_auc_median"] <= metrics["test_auc_max"]
    curve = client.get_metric_history(trained.run_id, "val_loss")
    assert [point.step for point in curve] == list(range(1, len(curve) + 1))
    artifacts = {artifact.path for artifact in client.list_artifacts(trained.run_id)}
    assert {"models.json", "fleet"} <= artifacts
    assert not any(name.startswith("buys") for name in metrics)


def test_tables_that_cannot_be_trained_on_are_refused_in_a_line(spark: "SparkSession", output: Path) -> None:
    table = people()

    def refused(models: Any, **changes: Any) -> None:
        ms.train_fleet(changes.pop("table", table), models, output=output, spark=spark, **changes)

    with pytest.raises(FleetError, match=r"no column 'c9' \(column\)"):
        refused(["buys"], columns=["c0", "c9"])
    with pytest.raises(FleetError, match=r"no column 'buy' \(target\) \(did you mean 'buys'\?\)"):
        refused(["buy"])
    with pytest.raises(FleetError, match="target 'state' has type string; a target is a number or boolean"):
        refused(["state"])
    with pytest.raises(FleetError, match=r"labels other than 0 and 1 in 2 models \('visits', 'spends'\)"):
        refused(["visits", "buys", "spends"])
    with pytest.raises(FleetError, match="there is no column to learn from"):
        refused(["buys"], table=table[["buys", "state"]])
    with pytest.raises(FleetError, match="a fleet reads the kinds numeric and categorical"):
        refused(["buys"], columns={"state": {"kind": "text", "max_length": 3}})
    with pytest.raises(TableError, match="give keys="):
        refused(["buys"], table=spark.createDataFrame(table))
    with pytest.raises(ColumnError, match="column 'c0' holds an infinite number"):
        refused(["buys"], table=table.assign(c0=np.inf))
    with pytest.raises(ms.ConfigError, match="global_batch_size 7 does not divide among 2 workers"):
        refused(["buys"], columns=["c0"], workers=2, global_batch_size=7)


def test_rows_are_converted_once_for_the_same_targets_without_those_that_have_no_label(
    spark: "SparkSession", tmp_path: Path
) -> None:
    table = people()[["c0", "buys", "spends"]].astype(float)
    table.loc[:9, ["buys", "spends"]] = np.nan

    def dataset(*targets: str) -> Dataset:
        rows = split_rows(table, declared_models(targets, link="identity", penalty=0.0), ["c0"], None, 1, spark)
        assert not rows.has_missing
        return converted(rows, tmp_path, "people")

    once = dataset("buys", "spends")
    assert sum(once.manifest.rows(split) for split in SPLITS) == ROWS - 10
    labels = np.concatenate([block.features[TARGETS] for split in SPLITS for block in once.blocks(split)])
    assert np.sort(labels[:, 0]).tolist() == np.sort(table["buys"].dropna()).tolist()
    assert np.sort(labels[:, 1]) == pytest.approx(np.sort(table["spends"].dropna()))
    assert dataset("buys", "spends").path == once.path
    assert dataset("spends", "buys").path != once.path


@pytest.mark.full
def test_the_classes_of_yeast_are_learnt_together(spark: "SparkSession", shared_data: Path, tmp_path: Path) -> None:
    table, arguments = yeast(shared_data)
    settings: dict[str, Any] = {"penalty": 0.02, "global_batch_size": 64, "workers": 1, "spark": spark}
    trained = ms.train_fleet(table, **arguments, **settings, output=tmp_path)
    networks = ms.train_fleet(table, **arguments, **settings, hidden=16, name="networks", output=tmp_path)
    assert len(trained.fleet) == len(networks.fleet) == 14
    areas = [one.report["test_metric"].to_numpy() for one in (trained, networks)]
    # Guessing gives 0.5; one class has hardly any gene.
    assert min(np.nanmean(own) for own in areas) > 0.6
    score = ms.score_fleet(
        spark.createDataFrame(table.append_column("gene", pa.array(range(table.num_rows)))),
        networks.fleet,
        tmp_path / "scores",
        keys="gene",
    )
    assert score.rows == table.num_rows
    assert score.counters.nulls == 0
