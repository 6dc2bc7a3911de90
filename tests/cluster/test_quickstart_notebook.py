"""The notebooks run from top to bottom, in kernels of their own, and leave what they say they leave."""

import ast
import contextlib
import json
import os
import re
import sqlite3
import sys
from pathlib import Path

import jupyter_client
import mlflow
import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbformat.v4 import new_code_cell

from benchmarks.connect_server import own_connect_server
from mirrorspark.serving.precomputed.store import PrecomputedScores
from mirrorspark.spark_session import versions
from tests.conftest import PATIENCE
from tests.mlflow_server import mlflow_server

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOK = REPOSITORY / "notebooks" / "quickstart.ipynb"
YOUR_TABLE = REPOSITORY / "notebooks" / "your_table.ipynb"
OWN_MODEL = REPOSITORY / "notebooks" / "own_model.ipynb"
KERAS3 = REPOSITORY / "notebooks" / "keras3.ipynb"
RECOMMENDER = REPOSITORY / "notebooks" / "recommender.ipynb"
TFRS = REPOSITORY / "notebooks" / "tfrs.ipynb"
FLEET = REPOSITORY / "notebooks" / "fleet.ipynb"
LIFECYCLE = REPOSITORY / "notebooks" / "lifecycle.ipynb"
DATABRICKS = REPOSITORY / "notebooks" / "databricks.ipynb"

CELL_TIMEOUT_SECONDS = PATIENCE * 240
EPOCHS = 4


@pytest.mark.full
@pytest.mark.timeout(800)
def test_notebook_converts_trains_twice_compares_and_scores(tmp_path: Path) -> None:
    """S7, T1: a data scientist's whole way, from the source tables to scores that mean something."""
    executed = run_notebook(tmp_path)
    output = tmp_path / "mirrorspark-output"

    scores = pd.read_parquet(output / "scores.parquet")
    assert list(scores.columns) == ["flight_id", "score", "model_version"]
    assert len(scores) > 10_000
    assert scores["flight_id"].is_unique
    assert scores["score"].between(0, 1).all()
    assert set(scores["model_version"]) == {"late-flights/2"}

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("late-flights")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.params["model.dropout"] for run in runs} == {"0.0", "0.5"}
    assert all(run.info.status == "FINISHED" for run in runs)
    assert all(run.data.metrics["test_auc"] > 0.6 for run in runs)
    assert all(len(client.get_metric_history(run.info.run_id, "val_auc")) == EPOCHS for run in runs)
    assert str(client.get_model_version_by_alias("late-flights", "challenger").version) == "2"

    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    figures = [entry for cell in cells for entry in cell.outputs if "image/png" in entry.get("data", {})]
    assert len(figures) == 3
    # The progress of each training is one output that stays; no library's warning is printed next to it.
    views = [entry.get("data", {}).get("text/html", "") for cell in cells for entry in cell.outputs]
    trainings = [view for view in views if "val_auc" in view and "<svg" in view]
    epochs = [set(re.findall(r">(\d)(?: \(best\))?<", view)) for view in trainings]
    assert len(epochs) == 2
    assert all({str(epoch + 1) for epoch in range(EPOCHS)} <= found for found in epochs)
    printed = "".join(entry.text for cell in cells for entry in cell.outputs if entry.output_type == "stream")
    assert re.findall(r"warn.*|error.*", printed, re.IGNORECASE) == []


def test_the_first_notebook_defines_nothing() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code = "\n".join(re.sub("^%.*", "", cell.source) for cell in cells)
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert [node for node in ast.walk(ast.parse(code)) if isinstance(node, definitions)] == []


@pytest.mark.full
@pytest.mark.timeout(800)
def test_a_table_is_fitted_in_one_call_and_compared_with_another_model(tmp_path: Path) -> None:
    """T3, H2, H9: every result is a picture."""
    executed = run_notebook(tmp_path, YOUR_TABLE)
    pages = shown(executed)
    assert pictures(pages) >= 8
    assert "gradient boosting" in pages[1]
    assert "models:/late-flights/2" in pages[-2]
    assert "late-flights/2" in pages[-1]
    assert len(list(tmp_path.glob("mirrorspark-output/runs/*/report.html"))) == 2


@pytest.mark.full
@pytest.mark.timeout(800)
@pytest.mark.parametrize("session", ["connect", "classic"])
def test_in_a_users_run_a_table_of_the_catalog_gets_a_model_in_sql_and_a_table_of_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: str
) -> None:
    """H2, H15, L5: the notebook for Databricks, by a client without Java, and with Spark in a standard Jupyter."""
    places = [tmp_path / name for name in ("spark", "mlflow", "notebook")]
    for place in places:
        place.mkdir()
    spark, tracking, folder = places
    # The other session has no catalog of this one's tables, only their folders.
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", f"{os.environ['SPARK_SUBMIT_OPTS']} -Dspark.sql.warehouse.dir={spark}")
    with contextlib.ExitStack() as servers:
        if session == "connect":
            monkeypatch.setenv("SPARK_REMOTE", servers.enter_context(own_connect_server("local[2]", spark)))
            monkeypatch.setenv("JAVA_HOME", "/nowhere")
        database, artifacts = f"sqlite:///{tracking / 'store.db'}", str(tracking / "artifacts")
        port = servers.enter_context(mlflow_server(tracking, database, artifacts))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        notebook = nbformat.read(DATABRICKS, as_version=4)
        if not versions.HAS_ARROW_UDFS:
            notebook.cells = [cell for cell in notebook.cells if "register_sql" not in cell.source]
        begin, end = "import mlflow\nmlflow.start_run(run_name='mine')", "mlflow.end_run()"
        notebook.cells = [new_code_cell(begin), *notebook.cells, new_code_cell(end)]
        executed = execute(folder, notebook)

        client = mlflow.MlflowClient(f"http://127.0.0.1:{port}")
        (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
        assert {"val_auc", "test_auc"} <= set(run.data.metrics)
        assert client.get_model_version_by_alias("late", "challenger").run_id == run.info.run_id
    result, *by_carrier, best = shown(executed)
    assert "models:/late/1" in result
    assert len(by_carrier) == versions.HAS_ARROW_UDFS
    for table in by_carrier:
        expected, seen = np.reshape(cells(table), (-1, 2)).T
        assert np.corrcoef(expected, seen)[0, 1] > 0.8
    assert "late/1" in best


@pytest.mark.full
@pytest.mark.timeout(800)
def test_a_recommender_is_trained_refreshed_reranked_and_looked_up(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1, R3, R6, S6: items with features, segments, a catalogue without a training, rules, lists by user."""
    monkeypatch.setenv("MOVIELENS", str(shared_data / "ml_latest_small"))
    executed = run_notebook(tmp_path, RECOMMENDER)

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mirrorspark-output' / 'mlflow.db'}")
    assert str(client.get_model_version_by_alias("movies", "champion").version) == "2"
    with PrecomputedScores(tmp_path / "mirrorspark-output" / "lists.db") as store:
        assert 10 < len(store.get("1")["candidates"]) <= 20
        assert store.get("nobody").is_fallback
    ((_, found, by_chance),) = [cells(page) for page in shown(executed) if "by_chance" in page]
    assert found > 2 * by_chance
    (segments,) = [cells(page) for page in shown(executed) if "light users" in page]
    rows, of_all, of_light = segments[0], segments[3], segments[4]
    assert rows == 610
    assert min(of_all, of_light) > 0.05
    (fitted,) = [page for page in shown(executed) if "models:/movies-in-one-call/1" in page and "popularity" in page]
    assert "item knn" in fitted


@pytest.mark.full
@pytest.mark.timeout(1600)
def test_models_of_tensorflow_recommenders_retrieve_rank_and_search(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """#53: each kind of tfrs.Model by fit, and an index of ScaNN from a function, on two workers."""
    monkeypatch.setenv("MOVIELENS", str(shared_data / "ml_latest_small"))
    pages = shown(run_notebook(tmp_path, TFRS))
    assert all(any(f"models:/{name}/1" in page for page in pages) for name in ("what-next", "stars", "both", "titles"))
    assert "candidates" in pages[-1]


@pytest.mark.full
@pytest.mark.timeout(800)
def test_a_model_of_ones_own_trains_on_both_workers_is_edited_and_mended(tmp_path: Path) -> None:
    """T3, T6, T8, H2: loss, metric, callback and a pretrained layer; changed code begins another run."""
    executed = run_notebook(tmp_path, OWN_MODEL)
    epochs = [file.read_text().splitlines() for file in (tmp_path / "notes").glob("worker-*.txt")]
    assert sorted(map(len, epochs)) == [3, 3]  # one file per worker
    pages = shown(executed)
    assert "models:/own-model/1" in pages[1]
    assert "models:/own-model/2" in pages[2]
    assert "own-model/3" in pages[3]
    # Lines that a training prints are part of its live view.
    text = "".join(json.dumps(entry) for cell in executed.cells for entry in cell.get("outputs", ()))
    assert "the disk for my notes is full" in text
    assert "settings have changed: the code of the model build" in text


@pytest.mark.full
@pytest.mark.timeout(800)
def test_a_model_of_keras_3_learns_from_a_table_and_in_a_function(tmp_path: Path) -> None:
    """T3, T6, H9: the function goes on after a kill, and its file scores."""
    executed = run_notebook(tmp_path, KERAS3)
    pages = shown(executed)
    assert "keras3/1" in pages[1]
    results = [entry for cell in executed.cells for entry in cell.get("outputs", ())]
    texts = [entry.data["text/plain"] for entry in results if entry.output_type == "execute_result"]
    attempts, accuracy = ast.literal_eval(texts[2])
    assert attempts == 2
    assert accuracy[-1] > 0.8
    found, digits = ast.literal_eval(texts[3])
    assert found == digits


@pytest.mark.full
@pytest.mark.timeout(800)
def test_a_fleet_is_scored_with_a_bad_model_resumed_and_an_audience_chosen(tmp_path: Path) -> None:
    """M6, M17: the ledger has the bad model and the second attempt, and the audience buys."""
    executed = run_notebook(tmp_path, FLEET)
    with contextlib.closing(sqlite3.connect(tmp_path / "weekly" / "_run" / "ledger.db")) as ledger:
        assert ledger.execute("SELECT model, stage FROM fleet_errors").fetchall() == [("campaign13", "columns")]
        attempts = ledger.execute("SELECT microbatch, outcome FROM fleet_attempts ORDER BY microbatch").fetchall()
    assert attempts == [(number, "done") for number in (0, 1, 2, 3, 3, 4, 5)]
    assert (tmp_path / "weekly" / "_run" / "report.html").is_file()
    (page,) = [page for page in shown(executed) if "caravans" in page]
    everybody, audience, buyers, buyers_chosen = cells(page)
    assert audience > 300
    assert buyers_chosen / audience > 2.5 * buyers / everybody


@pytest.mark.full
@pytest.mark.timeout(800)
def test_three_weeks_of_a_shop_end_with_the_good_model_in_production(tmp_path: Path) -> None:
    """L1, L7, L11: a bad model stops at the gate, drift is found, the server answers what Spark scores."""
    executed = run_notebook(tmp_path, LIFECYCLE)

    pages = tmp_path / "mirrorspark-output" / "pipelines" / "buyers"
    assert pages.joinpath("index.html").read_text(encoding="utf-8").count("stopped at gate") == 1
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mirrorspark-output' / 'mlflow.db'}")
    assert str(client.get_model_version_by_alias("buyers", "champion").version) == "2"
    assert str(client.get_model_version_by_alias("buyers", "challenger").version) == "3"
    printed = "".join(entry.text for cell in executed.cells for entry in cell.get("outputs", ()) if "text" in entry)
    assert re.search(r"stage 'gate' has failed: auc in overall is 0\.\d+", printed)
    assert re.search(r"2026-01-22 \[\]\n2026-01-29 \['income: ", printed)
    (answer,) = [
        entry.data["text/plain"]
        for cell in executed.cells
        if ":predict" in cell.source
        for entry in cell.outputs
        if entry.output_type == "execute_result"
    ]
    version, *answered = re.findall(r"[\d.]+(?:e-\d+)?", answer)
    scored = cells(shown(executed)[-1])[1::2]
    assert (version, len(answered)) == ("2", 3)
    assert [float(value) for value in answered] == pytest.approx(scored, abs=1e-5)
    assert (tmp_path / "watch.html").is_file()
    assert (tmp_path / "ranker.html").is_file()


@pytest.mark.parametrize(
    ("path", "images"),
    [
        (NOTEBOOK, 0),
        (YOUR_TABLE, 8),
        (OWN_MODEL, 5),
        (KERAS3, 0),
        (RECOMMENDER, 1),
        (TFRS, 0),
        (FLEET, 0),
        (LIFECYCLE, 0),
        (DATABRICKS, 2),
    ],
    ids=lambda given: str(given)[-20:],
)
def test_notebooks_are_committed_with_their_outputs(path: Path, images: int) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert pictures(shown(notebook)) >= images
    numbers = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert numbers == list(range(1, len(numbers) + 1))
    text = path.read_text(encoding="utf-8")
    assert str(REPOSITORY) not in text
    assert "/tmp/" not in text  # noqa: S108 - no reader has files there


@pytest.mark.parametrize("path", sorted((REPOSITORY / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_no_committed_output_is_on_standard_error(path: Path) -> None:
    """H9: a notebook shows that in pink."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [entry for cell in cells for entry in cell.get("outputs", ()) if entry.output_type == "stream"]
    assert [entry.text for entry in outputs if entry.name == "stderr"] == []


def shown(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the HTML of every result, in order."""
    outputs = [entry for cell in notebook.cells for entry in cell.get("outputs", ())]
    results = [entry for entry in outputs if entry.output_type == "execute_result"]
    return ["".join(entry.data["text/html"]) for entry in results if "text/html" in entry.data]


def pictures(pages: list[str]) -> int:
    """Return the number of pictures in the HTML of results."""
    return sum(page.count("<img") + page.count("<svg") for page in pages)


def cells(table: str) -> list[float]:
    """Return the numbers of a pandas table in HTML, row after row."""
    return [float(value) for value in re.findall(r"<td>([-\d.e]+)</td>", table)]


def run_notebook(folder: Path, path: Path = NOTEBOOK) -> nbformat.NotebookNode:
    """Execute the notebook of a file."""
    return execute(folder, nbformat.read(path, as_version=4))


def execute(folder: Path, notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Execute a notebook with this interpreter as its kernel and ``folder`` as its working directory."""
    kernels = folder / "kernels" / "this-python"
    kernels.mkdir(parents=True)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "this Python",
        "language": "python",
    }
    (kernels / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    manager = jupyter_client.AsyncKernelManager(
        kernel_name="this-python", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(folder / "kernels")])
    )
    client = nbclient.NotebookClient(
        notebook, km=manager, timeout=CELL_TIMEOUT_SECONDS, resources={"metadata": {"path": str(folder)}}
    )
    # The manager is ours, so its kernel would be ours to end, too.
    executed = client.execute(cleanup_kc=True)
    assert isinstance(executed, nbformat.NotebookNode)
    return executed
