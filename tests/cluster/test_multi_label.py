"""S3, S6, S7: a model of many labels, from sparse vectors to scores with names, on posts and their tags."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mirrorspark.models.calibration import CALIBRATION_FILE
from mirrorspark.scoring.files import score_files
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.training.configuration.recipe import RECIPE_FILE, SQL_FILE
from tests.cluster.test_main_job import Finished, run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(300)

WORDS, TAGS = 1_836, 159

RECIPE = {
    "tables": {"posts": "post string, words array<bigint>, counts array<float>, tags array<string>, split string"},
    "features": {"text": {"kind": "sparse", "size": WORDS, "indices": "words", "values": "counts"}},
    "label": {"name": "tags", "kind": "multi_label"},
    "keys": "post",
    "model": {"name": "multi_label", "embedding_dim": 64, "hidden_units": [64], "heads": "softmax"},
    "baseline": ["popularity", "logistic_regression"],
    "calibration": "centroids",
    "register": "better",
    "epochs": 12,
    "global_batch_size": 256,
    "learning_rate": 0.01,
    "shards": 2,
}


def posts(arff: Path, part: str) -> pa.Table:
    """Return the posts of a sparse ARFF file of BibSonomy: a row is ``{index 1,index 1,...}``, tags come last."""
    lines = arff.read_text(encoding="utf-8").splitlines()
    names = [line.split()[1] for line in lines if line.startswith("@attribute")]
    found = [[int(entry.split()[0]) for entry in line.strip("{}").split(",")] for line in lines if line.startswith("{")]
    words = [[index for index in row if index < WORDS] for row in found]
    columns = {
        "post": [f"{part}-{number}" for number in range(len(found))],
        "words": pa.array(words, pa.list_(pa.int64())),
        "counts": pa.array([[1.0] * len(row) for row in words], pa.list_(pa.float32())),
        "tags": [[names[index] for index in row if index >= WORDS] for row in found],
        # A fifth of the posts to learn from is held back.
        "split": ["validation" if part == "train" and number % 5 == 0 else part for number in range(len(found))],
    }
    return pa.table(columns)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """A recipe and its table."""
    folder = tmp_path_factory.mktemp("posts")
    parts = [posts(shared_data / "bibtex" / f"bibtex-{part}.arff", part) for part in ("train", "test")]
    pq.write_table(pa.concat_tables(parts), folder / "posts.parquet")
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    (folder / SQL_FILE).write_text("SELECT * FROM posts", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def finished(spark: "SparkSession", folder: Path) -> Finished:
    return run(folder / "output", f"--recipe={folder}", f"--data={folder}", "--name=posts", "--workers=2")


@pytest.mark.full
def test_a_multi_label_model_learns_tags_from_words(finished: Finished) -> None:
    """F7, F8: its best tag is right more often than not, its scores are those of the training framework.

    Registered is a calibrated blend of the network and logistic regression, which is better than either.
    """
    test, first = finished.summary["metrics"]["test"], finished.summary["baseline"]
    compared = {of["name"]: of for of in (first, *first["others"])}
    assert set(compared) == {"logistic_regression", "network", "popularity"}
    popularity, logistic = compared["popularity"]["metrics"], compared["logistic_regression"]
    assert finished.summary["dataset"]["rows"] == {"train": 3_904, "validation": 976, "test": 2_515}
    assert test["precision_at_1"] > 0.5 > popularity["precision_at_1"]
    assert test["auc"] > popularity["auc"] + 0.05
    assert test["log_loss"] < popularity["log_loss"]
    assert logistic["metrics"]["precision_at_1"] > 0.55
    assert set(logistic["intervals"]) > {"micro_f1", "precision_at_5"}
    assert finished.summary["parity"]["max"] <= 1e-5
    model = Path(finished.summary["run_folder"]) / "model"
    calibration = json.loads((model / CALIBRATION_FILE).read_text(encoding="utf-8"))
    assert calibration["kind"] == "centroids"
    assert calibration["of_cosine"] > 0
    assert calibration["measured"]["after"]["precision"] > calibration["measured"]["before"]["precision"]
    choice = json.loads((Path(finished.summary["run_folder"]) / "predictions" / "choice.json").read_text("utf-8"))
    assert set(choice["weights"]) == {"network", "logistic_regression"}
    assert choice["registered"] == "blend"
    scores = pq.read_table(finished.summary["scored_table"])
    assert scores.schema.field("scores").type == pa.list_(pa.field("element", pa.float32()))
    assert set(scores["model_version"].to_pylist()) == {"posts/1"}


@pytest.mark.full
def test_its_scores_have_the_names_of_the_labels_wherever_a_table_is_scored(
    spark: "SparkSession", finished: Finished, folder: Path
) -> None:
    """S7: rows in another order, joined by key, and names out of the model's files."""
    model = resolve("models:/posts@challenger", tracking_uri=finished.summary["tracking_uri"])
    (names,) = ModelDirectory.open(model.path).labels.values()
    assert len(set(names)) == TAGS
    table = pq.read_table(folder / "posts.parquet", filters=[("split", "=", "test")])
    shuffled = table.take(np.random.default_rng(3).permutation(table.num_rows)).drop_columns(["tags", "split"])
    pq.write_table(shuffled, folder / "shuffled.parquet")
    score_files(spark, folder / "shuffled.parquet", model, folder / "scores", keys="post")
    scored = pq.read_table(folder / "scores").to_pydict()
    tags = dict(zip(table["post"].to_pylist(), table["tags"].to_pylist(), strict=True))
    best = {post: names[int(np.argmax(of))] for post, of in zip(scored["post"], scored["scores"], strict=True)}
    right = np.mean([best[post] in tags[post] for post in tags])
    assert len(best) == 2_515
    assert right == pytest.approx(finished.summary["metrics"]["test"]["precision_at_1"])


@pytest.mark.full
def test_mlflow_has_its_curves_and_figures(finished: Finished) -> None:
    client = mlflow.MlflowClient(finished.summary["tracking_uri"])
    found = client.get_run(finished.summary["run_id"]).data.metrics
    assert {"val_auc", "val_log_loss", "test_precision_at_5", "baseline_pr_auc"} <= set(found)
