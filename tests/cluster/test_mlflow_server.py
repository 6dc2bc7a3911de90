"""L5, L6, L14: a training in a team's MLflow: a server with PostgreSQL and S3, an active run, autologging.

A model that it registers gives the same scores in every way that MLflow has.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from pyspark.sql.functions import struct

import mirrorspark as ms
from tests.conftest import PATIENCE
from tests.mlflow_server import end, free_port, mlflow_server, postgresql

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.timeout(900), pytest.mark.full]

ROWS = 600
EXPERIMENT = "a team's"
SERVE_SECONDS = 120


def rides() -> pd.DataFrame:
    number = pd.Series(range(ROWS))
    late = (number % 2 == 1) ^ (number % 10 == 9)
    towns = number.map(lambda n: "here" if n % 2 == 0 else "there")
    return pd.DataFrame(
        {"id": number, "town": towns, "kilometres": (number % 7).astype(float), "late": late.astype(int)}
    )


@dataclass(frozen=True)
class Trained:
    """A server, a user's run on it, and the training in that run; ``scores`` are those of the first rows."""

    server: str
    outer_run: str
    fitted: ms.FitResult
    rows: pd.DataFrame
    scores: np.ndarray


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, s3_bucket: str) -> Iterator[str]:
    bucket, _, options = s3_bucket.partition("?")
    endpoint = dict(option.split("=") for option in options.split("&"))["endpoint_override"]
    variables = {"MLFLOW_S3_ENDPOINT_URL": f"http://{endpoint}", "AWS_DEFAULT_REGION": "us-east-1"}
    folder = tmp_path_factory.mktemp("server")
    with postgresql() as database, mlflow_server(folder, database, f"s3://{bucket}/mlflow", variables) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def trained(spark: "SparkSession", server: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    mlflow.set_tracking_uri(server)
    mlflow.set_experiment(EXPERIMENT)
    # mlflow.autolog() is all of these, and hooks into every later import of this process.
    kinds = (mlflow.sklearn, mlflow.tensorflow, mlflow.pyspark.ml)
    for kind in kinds:
        kind.autolog(silent=True)
    try:
        with mlflow.start_run(run_name="mine") as outer:
            output = str(tmp_path_factory.mktemp("output"))
            settings = {"epochs": 1, "register": "always"}
            fitted = ms.fit(rides(), label="late", keys="id", output=output, spark=spark, **settings)
    finally:
        for kind in kinds:
            kind.autolog(disable=True, silent=True)
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    rows = rides().drop(columns="late").head(50)
    scores = fitted.score(rows).sort_values("id")["score"].to_numpy()
    return Trained(server, outer.info.run_id, fitted, rows, scores)


@pytest.fixture(autouse=True)
def mlflow_is_set_to_the_server(mlflow_is_set_to_nothing: None, server: str) -> None:
    mlflow.set_tracking_uri(server)


def _answer(process: "subprocess.Popen[bytes]", log: Path, port: int, rows: pd.DataFrame) -> dict[str, Any]:
    """Send the rows to a model server as it answers."""
    body = json.dumps({"dataframe_split": rows.drop(columns="id").to_dict(orient="split")}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}, method="POST"
    )
    deadline = time.monotonic() + SERVE_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE * 60) as response:  # noqa: S310 - http
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


def test_the_active_run_is_the_only_one_and_ends_with_its_block(trained: Trained) -> None:
    """L5: a notebook's autologging opens no other for the baseline or for the training."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (trained.outer_run, "mine", "FINISHED")
    assert trained.fitted.trained.run_id == trained.outer_run
    assert {"loss", "val_auc", "test_auc", "baseline_auc"} <= set(run.data.metrics)
    assert run.inputs.dataset_inputs[0].dataset.name == trained.fitted.dataset.path.name
    assert "report.html" in {entry.path for entry in client.list_artifacts(run.info.run_id)}
    page = f"{trained.server}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"
    assert trained.fitted.trained.run_page == f"{page}?workflowType=machine_learning"
    assert page in trained.fitted._repr_html_()


def test_the_registered_version_has_its_runs_name_tags_and_a_card(trained: Trained) -> None:
    """L6: in the registry, and on the page of the logged model that it was made from."""
    client = MlflowClient()
    version = client.get_model_version_by_alias("late", "challenger")
    name = trained.fitted.trained.run_folder.name
    assert version.run_id == trained.outer_run
    assert version.tags.items() >= {"run": name, "label": "late", "recipe": "late"}.items()
    assert version.description.startswith("Predicts `late` (binary) from 2 columns: `town`, `kilometres`.")
    logged = mlflow.get_logged_model(version.source.removeprefix("models:/"))
    assert logged.name == name
    assert logged.tags["mlflow.note.content"] == version.description
    assert "test_auc" in {metric.key for metric in logged.metrics}


def test_pyfunc_gives_the_scores_of_score(trained: Trained) -> None:
    """L14."""
    model = mlflow.pyfunc.load_model("models:/late@challenger")
    np.testing.assert_allclose(model.predict(trained.rows)["score"], trained.scores, atol=1e-6)


def test_a_spark_udf_gives_the_scores_of_score(trained: Trained, spark: "SparkSession") -> None:
    """L14."""
    predict = mlflow.pyfunc.spark_udf(spark, "models:/late@challenger", env_manager="local")
    rows = spark.createDataFrame(trained.rows)
    scored = rows.select("id", predict(struct("town", "kilometres")).alias("score")).orderBy("id").toPandas()
    np.testing.assert_allclose(scored["score"], trained.scores, atol=1e-6)


def test_a_served_model_gives_the_scores_of_score(trained: Trained, tmp_path: Path) -> None:
    """L14."""
    log, port = tmp_path / "serve.log", free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/late@challenger"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # MLflow starts uvicorn by its name.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"MLFLOW_TRACKING_URI": trained.server, "PATH": path}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=tmp_path, env=environment, start_new_session=True
        )
    try:
        answer = _answer(process, log, port, trained.rows)
    finally:
        end(process)
    np.testing.assert_allclose([row["score"] for row in answer["predictions"]], trained.scores, atol=1e-6)
