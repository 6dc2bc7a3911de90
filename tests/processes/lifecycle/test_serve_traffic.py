"""The online server with a model that is slow or fails: limits, a stopped variant, a dead process (L8)."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.models import infer_signature

from mirrorspark.lifecycle.experiments.definition import Experiment
from mirrorspark.lifecycle.experiments.units.assignment import assign
from mirrorspark.serving.precomputed.precomputation import precompute
from tests.processes.serving.served import REPOSITORY, SECONDS, ask, few_files, said, serving, silent_connections

EXPERIMENT = Experiment("canary", {"old": 50, "new": 50})
UNITS = [f"user-{number}" for number in range(40)]
# A model that multiplies, that waits while a file is there, and fails while another one is.
SOURCE = """
import os, time
class Model:
    def predict(self, rows):
        if os.path.exists({folder!r} + "/fails"):
            raise RuntimeError("a row of user-1")
        end = time.monotonic() + 120
        while os.path.exists({folder!r} + "/waits") and time.monotonic() < end:
            open({folder!r} + "/entered", "w").close()
            time.sleep(0.005)
        return rows["x"] * {factor}
def _load_pyfunc(path): return Model()
"""

pytestmark = [
    pytest.mark.timeout(480),
    pytest.mark.filterwarnings("ignore:.*An input example was not provided:UserWarning"),
]


def multiplying(folder: Path, factor: float) -> Path:
    """Save a model whose output is ``factor`` times its column ``x``; files in ``folder`` make it wait or fail."""
    folder.mkdir()
    module = folder / f"planted_{folder.name}.py"
    module.write_text(SOURCE.format(folder=str(folder), factor=factor))
    mlflow.pyfunc.save_model(
        str(folder / "model"),
        loader_module=module.stem,
        code_paths=[str(module)],
        signature=infer_signature(pd.DataFrame({"x": [1.0]}), np.array([1.0])),
        pip_requirements=[],
    )
    return folder / "model"


def predict(port: int, path: str = "late", **headers: str) -> tuple[int, Any, str | None]:
    return ask(port, "POST", f"/v1/models/{path}:predict", {"instances": [{"x": 2.0}]}, **headers)


def invoke(port: int, text: str, **headers: str) -> tuple[int, Any]:
    """Return the status, and the predictions or the error, of rows in CSV."""
    status, answer, _ = ask(port, "POST", "/invocations", text, **{"Content-Type": "text/csv", **headers})
    return status, [one["prediction"] for one in answer["predictions"]] if status == 200 else answer["error"]


def check_csv(port: int) -> None:
    """Rows of CSV have the types of their columns, and each wrong cell is named."""
    assert invoke(port, 'more,x\r\n"a, b",2\r\n,-1e2\r\n\r\n') == (200, [6.0, -300.0])
    for text, message in (
        (
            "x\n1\na\n1_0\n",
            "row[1]: column 'x' is 'a', which is not of type double; row[2]: column 'x' is '1_0', which is not",
        ),
        ("y\n1\n", "the first line lacks the column 'x'"),
        ("x,y\n1\n", "row[0] has 1 cells, and the first line 2 columns"),
        ("x\n", "the request has 0 rows"),
        ("", "the body is not CSV in UTF-8 with a line of columns"),
        ('x\n"1', "the body is not CSV in UTF-8"),
    ):
        status, found = invoke(port, text)
        assert (status, message in found) == (400, True), found


def until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def metric(port: int, line: str) -> float:
    found = re.search(rf"^{re.escape(line)} (\S+)$", ask(port, "GET", "/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else 0.0


@contextlib.contextmanager
def divided(folder: Path, **settings: Any) -> Iterator[int]:
    """Yield the port of a server that divides requests between two models, with a third as a shadow."""
    for name, factor in (("old", 1.0), ("new", 10.0), ("shadow", 3.0)):
        multiplying(folder / name, factor)
    traffic = {
        "name": "late",
        "experiment": EXPERIMENT.declaration(),
        "models": {name: str(folder / name / "model") for name in EXPERIMENT.variants},
        "shadows": {"next": str(folder / "shadow" / "model")},
        "exposures": "exposures.jsonl",
        **settings,
    }
    (folder / "traffic.yaml").write_text(json.dumps(traffic))
    with serving("--traffic", str(folder / "traffic.yaml"), "--trust") as (port, _):
        yield port


def test_units_keep_their_variants_and_a_failing_one_is_stopped_without_a_failed_answer(tmp_path: Path) -> None:
    """E1, E2: assignment and exposures; a variant that fails is stopped, also after a new start."""
    expected = {unit: {"old": 2.0, "new": 20.0}[str(assign(unit, EXPERIMENT))] for unit in UNITS}
    with divided(tmp_path, checks={"min_requests": 5, "window": 100}) as port:
        for unit in UNITS[:32]:
            assert predict(port, **{"X-Unit-Id": unit})[:2] == (200, {"predictions": [expected[unit]]})
        for unit in UNITS[32:]:
            assert invoke(port, "x\n2\n", **{"X-Unit-Id": unit}) == (200, [expected[unit]])
        assert predict(port)[:2] == (200, {"predictions": [2.0]})
        assert len(ask(port, "GET", "/v1/models/late")[1]["model_version_status"]) == 2
        # A request that is wrong for every version is nobody's failure.
        wrong = {"instances": [{"x": "a text"}]}
        assert ask(port, "POST", "/v1/models/late:predict", wrong, **{"X-Unit-Id": UNITS[0]})[0] == 400
        lines = [json.loads(line) for line in (tmp_path / "exposures.jsonl").read_text().splitlines()]
        assert [(line["unit"], line["variant"]) for line in lines] == [(u, assign(u, EXPERIMENT)) for u in UNITS]
        assert {line["weight"] for line in lines} == {0.5}
        # The shadow computes 6 where the answers are 2 and 20, and nobody has seen it.
        until(lambda: metric(port, 'mirrorspark_shadow_difference_count{shadow="next"}') == len(UNITS) + 1, "no shadow")
        assert not any("shadow" in line["model_version"] for line in lines)

        (tmp_path / "new" / "fails").touch()

        def asked() -> bool:
            answers = {unit: predict(port, **{"X-Unit-Id": unit})[:2] for unit in UNITS}
            assert set(map(str, answers.values())) == {str((200, {"predictions": [2.0]}))}
            return metric(port, 'mirrorspark_variant_stopped{traffic="late",variant="new"}') == 1

        until(asked, "the variant was not stopped")
        until((tmp_path / "traffic.stopped.json").exists, "the stop was not written")
        (tmp_path / "new" / "fails").unlink()
        assert predict(port, **{"X-Unit-Id": next(unit for unit in UNITS if expected[unit] == 20)})[1] == {
            "predictions": [2.0]
        }
    (stopped,) = json.loads((tmp_path / "traffic.stopped.json").read_text()).values()
    assert (stopped["variant"], "requests failed" in stopped["reason"]) == ("new", True)
    with serving("--traffic", str(tmp_path / "traffic.yaml"), "--trust") as (port, _):
        assert {predict(port, **{"X-Unit-Id": unit})[1]["predictions"][0] for unit in UNITS} == {2.0}


def test_too_much_and_too_slow_is_refused_by_status_and_the_next_request_is_answered(tmp_path: Path) -> None:
    model = multiplying(tmp_path / "slow", 3.0)
    flags = ("--trust", "--timeout-seconds", "8", "--queue-rows", "1", "--max-body-bytes", "1000")
    with serving("--model", str(model), *flags) as (port, _):
        assert predict(port, "model")[:2] == (200, {"predictions": [6.0]})
        check_csv(port)
        big = {"instances": [{"x": 2.0, "more": "m" * 1000}]}
        assert ask(port, "POST", "/v1/models/model:predict", big)[0] == 413
        (tmp_path / "slow" / "waits").touch()
        with ThreadPoolExecutor(2) as threads:
            computed = threads.submit(predict, port, "model")
            until((tmp_path / "slow" / "entered").exists, "the model does not compute")
            waiting = threads.submit(predict, port, "model")
            until(lambda: metric(port, "mirrorspark_queue_rows") == 1, "no row waits")
            status, answer, _ = predict(port, "model")
            assert (status, "1 rows wait already" in answer["error"]) == (429, True)
            assert [computed.result()[0], waiting.result()[0]] == [504, 504]
        (tmp_path / "slow" / "waits").unlink()
        until(lambda: predict(port, "model")[0] == 200, "the server does not answer again")
        (tmp_path / "slow" / "fails").touch()
        status, answer, _ = predict(port, "model")
        assert (status, "user-1" in str(answer)) == (500, False)


# Serves a store, and what computes fails: nothing from outside makes it.
FAILING = """
import sys
from mirrorspark.lifecycle.experiments.live import command
from mirrorspark.serving import batching
async def fail(self): raise RuntimeError("planted")
batching.Batcher.run = fail
sys.exit(command.main(sys.argv[1:]))
"""


def test_a_server_that_ends_because_a_part_of_it_failed_says_so_by_its_status(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [7], "model_version": ["movies/3"]}), tmp_path / "lists.parquet")
    precompute(str(tmp_path / "lists.parquet"), tmp_path / "lists.db", key="user")
    command = [sys.executable, "-c", FAILING, "--store", f"lists={tmp_path / 'lists.db'}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS * 4, check=False)
    assert done.returncode == 1
    assert "the task 'batches' has failed, so the server ends" in done.stderr


def test_a_store_answers_beside_the_models(tmp_path: Path) -> None:
    """S19: the user goes in, the list comes out."""
    rows = {"user": [7, 8], "items": [["a", "b"], ["c"]], "model_version": ["movies/3"] * 2}
    pq.write_table(pa.table(rows), tmp_path / "lists.parquet")
    fallback = {"items": ["popular"], "model_version": "movies/3"}
    precompute(str(tmp_path / "lists.parquet"), tmp_path / "lists.db", key="user", fallback=fallback)
    with contextlib.ExitStack() as started:
        with few_files(256):
            port, process = started.enter_context(serving("--store", f"lists={tmp_path / 'lists.db'}"))
        asked = {"instances": [{"user": 8}, {"user": 9}]}
        status, answer, version = ask(port, "POST", "/v1/models/lists:predict", asked)
        assert status == 200
        assert version
        assert answer["predictions"] == [
            {"items": ["c"], "model_version": "movies/3", "is_fallback": False},
            {"items": ["popular"], "model_version": "movies/3", "is_fallback": True},
        ]
        status, answer, _ = ask(port, "POST", "/v1/models/lists:predict", {"instances": [{"user": "x"}]})
        assert (status, answer["error"]) == (
            400,
            "instances[0]: column 'user' is 'x'; give a whole number of 64 bits",
        )
        tensor = {"name": "user", "shape": [1], "datatype": "INT64", "data": [7]}
        _, answer, _ = ask(port, "POST", "/v2/models/lists/infer", {"inputs": [tensor]})
        assert answer["outputs"][0] == {"name": "items", "datatype": "BYTES", "shape": [1, 2], "data": ["a", "b"]}
        # Q5: of 128 connections, those that have waited longest are closed for the next ones.
        with silent_connections(port, 200) as silent:
            for path in ("/health", "/ping", "/v2/health/ready"):
                assert ask(port, "GET", path)[:2] == (200, {"ready": True})
            assert silent[0].recv(1) == b""
            assert len([*Path(f"/proc/{process.pid}/fd").iterdir()]) < 256


def test_a_process_that_is_killed_or_stopped_is_replaced_and_all_end_together(flights_model: Path) -> None:
    with serving("--model", str(flights_model), "--processes", "2") as (port, server):
        path = f"/v1/models/{flights_model.name}"

        def children() -> list[int]:
            text = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
            return [int(one) for one in text.split()]

        before = children()
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        # The other one answers meanwhile: connections that the dead one had not accepted are in the queue of both.
        assert all(ask(port, "GET", path)[0] == 200 for _ in range(20))
        until(lambda: len(children()) == 2 and before[0] not in children(), "the process was not replaced")
        # One that is stopped, or hangs, answers nobody either.
        os.kill(before[1], signal.SIGSTOP)
        until(lambda: len(children()) == 2 and before[1] not in children(), "the stopped process was not replaced")
        after = children()
        server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS) == 0
        assert "Fatal" not in said(server.stderr)
        until(lambda: not any(Path(f"/proc/{one}").exists() for one in after), "a process stays behind")
