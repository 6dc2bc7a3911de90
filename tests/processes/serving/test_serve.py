"""The online server answers by both protocols, refuses what it cannot answer, and follows an alias (L4, L8)."""

import base64
import contextlib
import gzip
import html
import http.client
import json
import re
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.scoring.predictor import Predictor
from tests.processes.serving.served import SECONDS, ask, said, serving
from tests.unit.scoring.exported_models import FLIGHTS, export_flights, log_flights

ROWS = [{**row, "distance": 100.0} for row in FLIGHTS.to_pylist()]

pytestmark = pytest.mark.timeout(480)


def test_both_protocols_have_the_predictors_scores(flights_model: Path) -> None:
    predicted = Predictor(flights_model).predict_rows(ROWS)
    expected, label = [row["score"] for row in predicted], predicted[0]["model_version"]
    name, _, version = label.partition("/")
    columns = {column: [row[column] for row in ROWS] for column in ("carrier", "hour", "stops", "distance")}
    with serving("--model", str(flights_model), "--max-rows", "10") as (port, process):
        model = f"/v1/models/{name}"
        status, answer, told = ask(port, "POST", f"{model}:predict", {"instances": ROWS})
        assert (status, told) == (200, version)
        assert answer["predictions"] == pytest.approx(expected, abs=1e-6)
        status, answer, _ = ask(port, "POST", f"{model}/versions/{version}:predict", {"inputs": columns})
        assert answer["outputs"] == pytest.approx(expected, abs=1e-6)
        _, answer, _ = ask(port, "POST", f"{model}:classify", {"examples": ROWS[:1]})
        assert dict(answer["result"][0])["1"] == pytest.approx(expected[0], abs=1e-6)
        _, answer, _ = ask(port, "POST", f"{model}:regress", {"examples": ROWS[:1]})
        assert answer["result"] == pytest.approx(expected[:1], abs=1e-6)
        assert ask(port, "GET", model)[1]["model_version_status"][0]["state"] == "AVAILABLE"
        signature = ask(port, "GET", f"{model}/metadata")[1]["metadata"]["signature_def"]["signature_def"]
        assert signature["serving_default"]["inputs"]["hour"]["dtype"] == "DT_INT32"

        tensors = [
            {"name": "carrier", "shape": [1], "datatype": "BYTES", "data": ["UA"]},
            {"name": "hour", "shape": [1, 1], "datatype": "INT32", "data": [5]},
            {"name": "stops", "shape": [1, 2], "datatype": "BYTES", "data": ["EWR", "JFK"]},
            {"name": "distance", "shape": [1], "datatype": "FP64", "data": [100]},
        ]
        status, answer, _ = ask(port, "POST", f"/v2/models/{name}/infer", {"id": "7", "inputs": tensors})
        assert (status, answer["model_version"], answer["id"]) == (200, version, "7")
        assert answer["outputs"][0]["data"] == pytest.approx(expected[:1], abs=1e-6)
        assert ask(port, "GET", "/v2/health/ready")[:2] == (200, {"ready": True})
        endless = {"name": "carrier", "shape": [10**12, 0], "datatype": "BYTES", "data": []}
        status, answer, _ = ask(port, "POST", f"/v2/models/{name}/infer", {"inputs": [endless, *tensors[1:]]})
        assert (status, answer["error"]) == (400, "the request has 1000000000000 rows; give 1 to 10")

        for rows, message in (
            ([ROWS[0], ROWS[1] | {"hour": 5.5}], "instances[1]: column 'hour' has type double"),
            ([{"carrier": "UA"}], "instances[0] lacks the columns 'hour', 'stops', 'distance': give null"),
            ([ROWS[0]] * 11, "the request has 11 rows; give 1 to 10"),
        ):
            status, answer, _ = ask(port, "POST", f"{model}:predict", {"instances": rows})
            assert (status, message in answer["error"]) == (400, True), answer
        check_invocations(port, expected, version)
        check_what_clients_get_wrong(port, name, expected)
        assert ask(port, "GET", "/v1/models/other")[0] == 404
        assert ask(port, "GET", f"{model}:predict")[0] == 405
        assert ask(port, "GET", model, Host="evil.example")[0] == 421
        counted = re.findall(r"^mirrorspark_requests_total{(.*)} 1\.0$", ask(port, "GET", "/metrics")[1], re.MULTILINE)
        assert any('protocol="v2"' in labels and 'code="200"' in labels for labels in counted)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


def check_invocations(port: int, expected: list[float], version: str) -> None:
    """The routes of SageMaker's containers take what MLflow's server takes, and check it as the other routes do."""

    def invoke(content: Any, media_type: str = "application/json") -> tuple[int, Any, str | None]:
        return ask(port, "POST", "/invocations", content, **{"Content-Type": media_type})

    assert ask(port, "GET", "/ping")[:2] == (200, {"ready": True})
    split = {"columns": list(ROWS[0]), "data": [list(row.values()) for row in ROWS], "index": [0, 1, 2]}
    for content in ({"dataframe_split": split}, {"dataframe_records": ROWS}, {"instances": ROWS}):
        status, answer, told = invoke(content)
        assert (status, told) == (200, version)
        assert [row["score"] for row in answer["predictions"]] == pytest.approx(expected, abs=1e-6)
    for refused, message in (
        (
            {"dataframe_records": [ROWS[0], ROWS[1] | {"hour": 5.5}]},
            "dataframe_records[1]: column 'hour' has type double",
        ),
        (
            {"dataframe_records": [{"carier": "UA", "hour": 5, "stops": [], "distance": 1.0}]},
            "dataframe_records[0] lacks the column 'carrier' (did you mean 'carier'?): give null where a value is not "
            "known; the model does not read the column 'carier'",
        ),
        (
            {"dataframe_split": {"columns": ["carrier", "stop"], "data": [["UA", []]]}},
            "'data' lacks the columns 'hour', 'stops' (did you mean 'stop'?), 'distance'; the model reads",
        ),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}}, "data[0] is not a list of 2 values"),
        ({"dataframe_split": split, "instances": ROWS}, "give one of ['dataframe_split'"),
        ({"instances": ROWS, "params": {"k": 1}}, "no model here takes 'params'"),
        ({"dataframe_records": [ROWS[0]] * 11}, "the request has 11 rows; give 1 to 10"),
    ):
        status, answer, _ = invoke(refused)
        assert (status, message in answer["error"]) == (400, True), answer
    status, answer, _ = invoke("carrier,hour,stops,distance\n", "text/csv; charset=utf-8")
    assert (status, answer["error"]) == (400, "the columns ['stops'] have values that CSV cannot hold; send JSON")
    assert invoke(json.dumps({"instances": ROWS}), "text/plain")[0] == 415
    assert ask(port, "GET", "/invocations")[0] == 405


def check_what_clients_get_wrong(port: int, name: str, expected: list[float]) -> None:
    """Q5: columns that no model reads are refused by name, and gzip and base64 are read."""
    good = ROWS[0]
    for change, message in (
        ({"carrier": "a\ud83d"}, "instances[0]: column 'carrier' has a text with '\\ud83d', half of a character"),
        ({"stops": ["a\ud83d"]}, "instances[0]: column 'stops' has a text with"),
        ({"distance": 10**309}, "instances[0]: column 'distance' has a whole number beyond 64 bits"),
        ({"hour": 2**70}, "instances[0]: column 'hour' has a whole number beyond 64 bits"),
        ({"carrier": {"b64": "/w=="}}, "instances[0]: column 'carrier' has bytes that are not text in UTF-8"),
    ):
        status, answer, _ = ask(port, "POST", f"/v1/models/{name}:predict", {"instances": [good | change]})
        assert (status, message in answer["error"]) == (400, True), answer
    texts = good | {"carrier": {"b64": base64.b64encode(b"UA").decode()}, "stops": [{"b64": "RVdS"}, "JFK"]}
    packed = gzip.compress(json.dumps({"instances": [texts]}).encode())
    for body, encoding, status in (
        (packed, "gzip", 200),
        (packed[:-9], "gzip", 400),
        (b"{}", "gzip", 400),
        (packed, "br", 415),
        (gzip.compress(b" " * (4 * 2**20 + 1)), "gzip", 413),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request("POST", f"/v1/models/{name}:predict", body, {"Content-Encoding": encoding})
            answer = connection.getresponse()
            text = json.loads(answer.read())
            assert answer.status == status, text
            if status == 200:
                assert text["predictions"] == pytest.approx(expected[:1], abs=1e-6)
    names = [{"name": ["carrier"], "shape": [1], "datatype": "BYTES", "data": ["UA"]}]
    status, answer, _ = ask(port, "POST", f"/v2/models/{name}/infer", {"inputs": names})
    assert (status, "'inputs' lacks the columns 'carrier'" in answer["error"]) == (400, True)


def test_the_front_page_lists_the_routes_with_a_request_that_works_as_it_is(
    flights_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("TOKEN\n")
    flags = ("--token-file", str(tmp_path / "tokens"), "--processes", "2")
    with serving("--model", str(flights_model), *flags) as (port, process):
        assert ask(port, "GET", "/")[0] == 401
        token = {"Authorization": "Bearer TOKEN"}
        status, front, _ = ask(port, "GET", "/", **token)
        assert (status, list(front["serves"])) == (200, [flights_model.name])
        path = front["example"]["url"].removeprefix(f"http://127.0.0.1:{port}")
        status, answer, _ = ask(port, "POST", path, front["example"]["body"], **token)
        assert (status, 0 <= answer["predictions"][0] <= 1) == (200, True)
        for route in front["routes"]:
            method, path = route.replace("NAME", flights_model.name).split()
            assert ask(port, method, path, {}, **token)[0] in (200, 400, 415), route
        page = ask(port, "GET", "/", Accept="text/html,*/*;q=0.8", **token)[1]
        assert page.startswith("<!doctype html>")
        command = shlex.split(html.unescape(re.findall("<pre>(.*)</pre>", page)[0]))
        done = subprocess.run([*command, "-sS"], capture_output=True, check=True, timeout=SECONDS)
        assert json.loads(done.stdout) == answer
        assert "tensorflow" not in (told := said(process.stderr)).lower(), told


def test_requests_without_the_token_are_refused(flights_model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("first\nsecond\n")
    flags = ("--token-file", str(tmp_path / "tokens"), "--drain-seconds", "4")
    with serving("--model", str(flights_model), *flags) as (port, process):
        path = f"/v1/models/{flights_model.name}"
        assert ask(port, "GET", path)[0] == 401
        assert ask(port, "GET", path, Authorization="Bearer third")[0] == 401
        assert ask(port, "GET", path, Authorization="Bearer second")[0] == 200
        assert ask(port, "GET", "/v2/health/ready")[0] == 200
        assert [ask(port, "GET", "/ping")[0], ask(port, "POST", "/invocations", {})[0]] == [200, 401]
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + SECONDS
        while ask(port, "GET", "/v2/health/ready")[0] != 503:
            assert time.monotonic() < deadline, "the server does not say that it ends"
        assert ask(port, "GET", "/ping")[0] == 503
        # Clients that still send requests get answers until a load balancer has noticed.
        assert ask(port, "GET", path, Authorization="Bearer first")[0] == 200
        assert process.wait(SECONDS) == 0


def test_an_alias_that_moves_changes_the_version_without_a_failed_or_mixed_answer(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    scores = {}
    for number, seed in (("1", 1), ("2", 2)):
        model = export_flights(tmp_path / f"flights-{number}", seed=seed)
        log_flights(store, tmp_path / "artifacts", model)
        scores[number] = Predictor(model).predict(ROWS[0])["score"]
    client = MlflowClient(store)
    client.set_registered_model_alias("flights", "champion", "1")
    flags = ("--model", "models:/flights@champion", "--tracking-uri", store, "--poll-seconds", "0.2")
    with serving(*flags) as (port, _):
        found: list[tuple[int, Any, str | None]] = []
        is_over = threading.Event()

        def keep_asking() -> None:
            while not is_over.is_set():
                found.append(ask(port, "POST", "/v1/models/flights/labels/champion:predict", {"instances": ROWS[:1]}))

        askers = [threading.Thread(target=keep_asking) for _ in range(3)]
        for asker in askers:
            asker.start()
        try:
            client.set_registered_model_alias("flights", "champion", "2")
            deadline = time.monotonic() + SECONDS
            while not found or found[-1][2] != "2":
                assert time.monotonic() < deadline, "the new version does not answer"
                is_over.wait(0.01)
        finally:
            is_over.set()
            for asker in askers:
                asker.join(SECONDS)
    assert {status for status, *_ in found} == {200}
    for _, answer, version in found:
        assert answer["predictions"] == pytest.approx([scores[str(version)]], abs=1e-6)
