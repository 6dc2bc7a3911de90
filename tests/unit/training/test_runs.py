"""T7: the command that lists, compares, diffs and resumes runs, on folders made by hand."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from mirrorspark.callbacks.mlflow.metric_replay import run_event
from mirrorspark.callbacks.mlflow.metric_requests import Target
from mirrorspark.training import pipeline
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.entry_points import runs
from mirrorspark.training.entry_points.runs import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, duration, main
from mirrorspark.training.protocol.names import STATE_FILE
from mirrorspark.training.results.report.summary import Summary
from mirrorspark.training.run_records.find_run import hold_run_folder
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.run_state import Status

REPOSITORY = Path(__file__).resolve().parents[3]

NewRun = Callable[..., RunFolder]
OnSummary = Callable[[Summary], None]


@pytest.fixture
def new_run(new_config: Callable[..., RunConfig], tmp_path: Path) -> NewRun:
    """Return a function that leaves the folder of a run whose driver, another process, has ended."""

    def make(
        status: Status = "finished", auc: float | None = None, state: dict[str, Any] | None = None, **knobs: Any
    ) -> RunFolder:
        config = new_config(output=str(tmp_path), epochs=3, **knobs)
        with hold_run_folder(replace(config, resume=False), "da7a") as folder:
            config.save(folder.config)
        folder.save_state(status, "mlflow-1")
        path = folder.path / STATE_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | {"process_started": 0.0} | (state or {})))
        if auc is not None:
            lines = [{"event": "attempt", "attempt": 1, "time": 10.0}]
            for epoch in (1, 2):
                logs = {"loss": 0.5, "val_auc": auc + epoch / 100}
                said = {"logs": logs, "seconds": 40.0, "time": 10.0 + 40 * epoch}
                lines.append({"event": "epoch_end", "epoch": epoch, "rank": 0, **said})
            folder.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
            summary = Summary("finished", metrics={"test": {"auc": auc}}, examples_per_second=1234.5)
            summary.save(folder.path / "summary.json")
        return folder

    return make


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run begin without source tables: no test here comes to read them."""
    monkeypatch.setattr("mirrorspark.training.commands.require_data", lambda config: None)


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Replace the main job by one that takes up the run's folder; return the configurations it was given."""
    configs: list[RunConfig] = []

    def run(config: RunConfig, on_summary: OnSummary, *, began: float) -> Summary:
        configs.append(config)
        with hold_run_folder(config, "da7a") as folder:
            folder.save_state("finished", folder.continues)
        return Summary("finished", run_folder=str(folder.path))

    monkeypatch.setattr(pipeline, "run", run)
    return configs


def state_of(folder: RunFolder) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder.path / STATE_FILE).read_text())
    return document


def output(tmp_path: Path, *arguments: str) -> list[str]:
    return [*arguments, f"--output={tmp_path}"]


def test_the_list_has_a_line_per_run_with_its_differences(
    new_run: NewRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = new_run(auc=0.7, workers=2)
    (tmp_path / "runs" / "foreign").mkdir()
    assert main(output(tmp_path, "list")) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "run",
        "status",
        "recipe",
        "workers",
        "epochs",
        "best",
        "test",
        "trained",
        "MLflow",
        "run",
    ]
    assert lines[1].split() == [
        folder.path.name,
        *("finished", "rides", "2", "2/3", "val_auc", "0.7200", "@2", "auc", "0.7000", "1m", "20s", "mlflow-1"),
    ]
    assert lines[-1].split(maxsplit=1) == ["foreign", "it has no run.json: no run"]


def test_the_list_as_json_holds_every_run_and_why_one_cannot_be_read(
    new_run: NewRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_run("failed")
    (tmp_path / "runs" / "foreign").mkdir()
    assert main(output(tmp_path, "list", "--json")) == EXIT_DONE
    documents = {document["run"].partition("-")[0]: document for document in json.loads(capsys.readouterr().out)}
    assert documents["rides"]["status"] == "failed"
    assert (documents["rides"]["best"], documents["rides"]["driver"]) == (None, None)
    assert documents["foreign"]["reason"] == "it has no run.json: no run"


def test_an_empty_output_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(output(tmp_path, "list")) == EXIT_DONE
    assert capsys.readouterr().out.startswith(f"no runs in {tmp_path}/runs; `mirrorspark train` begins one")


def test_a_comparison_shows_metrics_and_settings_that_differ_and_draws_the_curves(
    new_run: NewRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"name": "multi_field", "embedding_dim": 4}
    runs = [new_run(auc=0.7), new_run(auc=0.8, learning_rate=0.01, model=model), new_run("failed")]
    names = [folder.path.name for folder in runs]
    assert main(output(tmp_path, "compare", *names, f"--png={tmp_path / 'curves.png'}")) == EXIT_DONE
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert lines[:3] == [["A", names[0], "finished"], ["B", names[1], "finished"], ["C", names[2], "failed"]]
    assert ["val_auc", "0.7200", "0.8200", "-"] in lines
    assert ["auc", "0.7000", "0.8000", "-"] in lines
    assert ["examples/s", "1,234", "1,234", "-"] in lines
    assert ["learning_rate", "0.001", "0.01", "0.001"] in lines
    assert ["model.embedding_dim", "-", "4", "-"] in lines
    assert not any(line[0] == "seed" for line in lines)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison_as_json_holds_the_same(
    new_run: NewRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [new_run(auc=0.7), new_run(auc=float("nan"), seed=2)]
    assert main(output(tmp_path, "compare", "--json", *(folder.path.name for folder in runs))) == EXIT_DONE
    document = json.loads(capsys.readouterr().out)
    assert document["config"] == {"seed": [1, 2]}
    assert document["metrics"]["exported model, test"]["auc"][0] == 0.7
    assert document["metrics"]["run"]["epochs"] == [2, 2]


def test_a_figure_that_cannot_be_drawn_is_reported(
    new_run: NewRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without, with_curves = new_run("failed"), new_run(auc=0.7)
    assert main(output(tmp_path, "compare", without.path.name, "--png=a.png")) == EXIT_USAGE
    assert "none of the runs has finished an epoch" in capsys.readouterr().err
    png = tmp_path / "nowhere" / "a.png"
    assert main(output(tmp_path, "compare", with_curves.path.name, f"--png={png}")) == EXIT_USAGE
    assert f"png {png} cannot be written (No such file" in capsys.readouterr().err


def test_a_diff_goes_setting_by_setting_and_shows_queries_line_by_line(
    new_run: NewRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = new_run(sql="SELECT *\nFROM rides", model={"name": "multi_field"})
    after = new_run(sql="SELECT *\nFROM rides\nWHERE true", model={"name": "multi_field", "dropout": 0.5})
    names = before.path.name, after.path.name
    assert main(output(tmp_path, "diff", *names)) == EXIT_DONE
    out = capsys.readouterr().out.splitlines()
    assert ["model.dropout", "(not", "set)", "0.5"] in [line.split() for line in out]
    assert out[out.index(f"--- {names[0]}/sql") + 1] == f"+++ {names[1]}/sql"
    assert out[-1] == "+WHERE true"
    assert main(output(tmp_path, "diff", "--json", *names)) == EXIT_DONE
    assert set(json.loads(capsys.readouterr().out)) == {"model.dropout", "sql"}
    assert main(output(tmp_path, "diff", names[0], names[0])) == EXIT_DONE
    assert capsys.readouterr().out == f"{names[0]} and {names[0]} have the same settings\n"


def test_an_unfinished_run_goes_on_with_its_own_configuration(
    new_run: NewRun, tmp_path: Path, resumed: list[RunConfig], new_config: Callable[..., RunConfig]
) -> None:
    """The run that is named goes on, though a newer one of the same configuration did not finish either."""
    run, newer = new_run("failed", learning_rate=0.01), new_run("failed", learning_rate=0.01)
    os.utime(newer.path / STATE_FILE, (time.time() - 5, time.time() - 5))
    os.utime(run.path / STATE_FILE, (time.time() - 50, time.time() - 50))
    arguments = ["resume", run.path.name, "--tracking-uri=http://ann:pw@host", "--master=local[2]"]
    assert main(output(tmp_path, *arguments)) == EXIT_DONE
    expected = {"tracking_uri": "http://ann:pw@host", "master": "local[2]", "output": str(tmp_path)}
    assert resumed == [new_config(epochs=3, learning_rate=0.01, **expected)]
    assert (state_of(run)["status"], state_of(newer)["status"]) == ("finished", "failed")


def test_a_run_goes_on_where_its_folder_lies_now(new_run: NewRun, tmp_path: Path, resumed: list[RunConfig]) -> None:
    run = new_run("failed")
    moved = tmp_path / "moved"
    (moved / "runs").mkdir(parents=True)
    run.path.rename(moved / "runs" / run.path.name)
    assert main(["resume", "latest", f"--output={moved}"]) == EXIT_DONE
    assert resumed[0].output == str(moved)


def test_the_exit_status_is_that_of_the_run(
    new_run: NewRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new_run("failed", tracking_uri="http://ann:pw@host")

    def fail(config: RunConfig, on_summary: OnSummary, *, began: float) -> Summary:
        with hold_run_folder(config, "da7a") as folder:
            folder.save_state("failed", None)
        raise RuntimeError("the store refused")

    monkeypatch.setattr(pipeline, "run", fail)
    assert main(output(tmp_path, "resume", "latest")) == EXIT_FAILED
    err = capsys.readouterr().err
    assert "mirrorspark: the store refused" in err
    assert "where the tracking URI had a password, give it anew as --tracking-uri" in err


def test_a_run_whose_data_has_changed_is_left_as_it_is(
    new_run: NewRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run("failed", state={"process": 1})

    def other_data(config: RunConfig, on_summary: OnSummary, *, began: float) -> Summary:
        with hold_run_folder(config, "0ther") as folder:
            folder.save_state("finished", None)
        return Summary("finished")

    monkeypatch.setattr(pipeline, "run", other_data)
    main(output(tmp_path, "resume", run.path.name))
    assert f"the data has changed since {run.path.name} began, so it was left as it is" in capsys.readouterr().err


@pytest.mark.parametrize(
    "case", ["finished", "alive", "heard", "elsewhere", "from Python", "other version", "unknown field"]
)
def test_a_run_that_cannot_be_resumed_is_refused_with_the_reason(
    new_run: NewRun,
    tmp_path: Path,
    resumed: list[RunConfig],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    if case == "heard":
        monkeypatch.setattr(runs.run_state, "watch_driver", lambda folder, state: "alive")
    me = psutil.Process()
    alive = {"process": me.pid, "process_started": me.create_time()}
    heard = {"process": me.pid, "host": "node-7", "holder": "h", "heartbeat": time.time()}
    states: dict[str, tuple[Status, dict[str, Any], str]] = {
        "finished": ("finished", {}, "is finished; there is nothing left to resume"),
        "alive": ("running", alive, f"is under way (process {me.pid} on {socket.gethostname()}); wait for it"),
        "heard": ("running", heard, f"is under way (process {me.pid} on node-7); wait for it, or stop it"),
        "elsewhere": (
            "running",
            {"host": f"not-{socket.gethostname()}"},
            "which gives no signs of life that could be seen from here",
        ),
        "from Python": ("failed", {}, "was started from Python"),
        "other version": ("failed", {"identity": "0-da7a"}, "was begun by another version"),
        "unknown field": ("failed", {}, "cannot go on with its"),
    }
    status, state, words = states[case]
    run = new_run(status, state=state)
    text = run.config.read_text()
    if case == "from Python":
        run.config.write_text(text.replace("tables:", "others:"))
    elif case == "unknown field":
        run.config.write_text(text + "nonsense: 1\n")
    assert main(output(tmp_path, "resume", run.path.name)) == EXIT_USAGE
    err = capsys.readouterr().err
    assert err.startswith(f"mirrorspark: run {run.path.name} ")
    assert words in err
    assert len(err.splitlines()) == 1
    assert resumed == []


def test_a_run_whose_driver_died_goes_on(new_run: NewRun, tmp_path: Path, resumed: list[RunConfig]) -> None:
    run = new_run("running")
    assert main(output(tmp_path, "resume", run.path.name)) == EXIT_DONE
    assert state_of(run)["status"] == "finished"


def test_missing_metrics_of_an_ended_run_are_sent(
    new_run: NewRun, tmp_path: Path, mlflow_store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run("failed", auc=0.7)
    client = MlflowClient(mlflow_store)
    mlflow_run = client.create_run("0").info.run_id
    run.append_event(run_event(Target(mlflow_run, mlflow_store, "Default")))
    replay = output(tmp_path, "replay", run.path.name)
    assert main(replay) == EXIT_DONE
    assert [point.value for point in client.get_metric_history(mlflow_run, "val_auc")] == [0.71, 0.72]
    assert capsys.readouterr().out.startswith(f"8 metric values sent to run {mlflow_run}, 0 were there already")
    for again in (replay, ["replay", str(run.events)]):
        assert main(again) == EXIT_DONE
        assert capsys.readouterr().out.startswith(f"0 metric values sent to run {mlflow_run}, 8 were there already")
    # That of a run whose driver was killed at once holds nothing else, and stays, too.
    run.events.write_text(json.dumps(run_event(Target(mlflow_run, mlflow_store, "Default"))) + "\n")
    for again in (replay, ["replay", str(run.events)]):
        assert main(again) == EXIT_DONE
        capsys.readouterr()
    run.events.write_text("")
    assert main(replay) == EXIT_USAGE
    assert "holds nothing for MLflow" in capsys.readouterr().err


def test_the_driver_of_a_running_run_sends_missing_metrics_itself(
    new_run: NewRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    me = psutil.Process()
    run = new_run("running", state={"process": me.pid, "process_started": me.create_time()})
    run.append_event(run_event(Target(None, "http://tracking:5000", "Default")))
    for replay in (output(tmp_path, "replay", run.path.name), ["replay", str(run.events)]):
        assert main(replay) == EXIT_USAGE
        assert "its driver sends MLflow the missing records" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["diff", "one"], ["compare"], ["resume"], ["list", "--nonsense"]]
)
def test_bad_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == EXIT_USAGE
    assert "usage: mirrorspark runs" in capsys.readouterr().err


def test_a_name_that_no_run_has_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(output(tmp_path, "compare", "nope")) == EXIT_USAGE
    assert capsys.readouterr().err.startswith(f"mirrorspark: no run in {tmp_path}/runs is called 'nope'; there is none")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0s"), (9.26, "9.3s"), (59.96, "1m 00s"), (84, "1m 24s"), (3599.6, "1h 00m"), (7500, "2h 05m")],
)
def test_durations_are_told_in_the_two_units_that_tell_most(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.process
def test_the_list_needs_none_of_the_heavy_packages(new_run: NewRun, tmp_path: Path) -> None:
    new_run(auc=0.7)
    program = (
        "import sys; from mirrorspark.training.entry_points.runs import main\n"
        f"status = main(['list', '--output={tmp_path}'])\n"
        "heavy = {'matplotlib', 'mlflow', 'numpy', 'pyarrow', 'pyspark', 'tensorflow'} & set(sys.modules)\n"
        "sys.exit(status or (f'imports {heavy}' if heavy else 0))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "rides-" in done.stdout
