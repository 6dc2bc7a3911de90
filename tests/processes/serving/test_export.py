"""A model is exported as TensorFlow Serving and servers of ONNX files want it, whole or not at all (L8)."""

import http.client
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.tfrecord.examples import varint
from mirrorspark.scoring.input.inputs import Column, ColumnInputs
from mirrorspark.scoring.model.folder.packaged import PackagedDescription
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.predictor import Predictor
from mirrorspark.serving.export import command, export
from mirrorspark.serving.export.export import ExportError, export_model
from mirrorspark.serving.export.server_config import ServerConfigError
from tests.conftest import PATIENCE
from tests.unit.scoring.exported_models import FLIGHTS, ORDERS, export_movies, export_orders, log_flights
from tests.unit.scoring.other_models import boxes, save_logistic_onnx, save_logistic_saved_model

pytestmark = pytest.mark.timeout(480)

SERVING_API = "tensorflow-serving-api==2.20.*"
OTHERS = """
# by hand
model_config_list {
  config {
    name: "other" base_path: "/models/other" model_platform: "tensorflow"
    model_version_policy { latest { num_versions: 2 } }
    logging_config { sampling_config { sampling_rate: 0.5 } }
  }
  config { name: "flights" base_path: "/old" version_labels { key: "champion" value: 2 } }
}
"""

# Reads an export with TensorFlow Serving's own messages, and computes its warm-up requests.
READER = """
import json, sys
from pathlib import Path
import tensorflow as tf
from google.protobuf import json_format, text_format
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig
base = Path(sys.argv[1])
config = text_format.Parse((base / "models.config").read_text(), ModelServerConfig())
scores = {}
for version in base.glob("*/[0-9]*"):
    model = tf.saved_model.load(str(version))
    for record in tf.data.TFRecordDataset(str(version / "assets.extra/tf_serving_warmup_requests")):
        request = PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        inputs = {name: tf.constant(values) for name, values in inputs.items()}
        answer = model.signatures[request.model_spec.signature_name](**inputs)
        scores.setdefault(request.model_spec.name, []).append(answer["score"].numpy().ravel().tolist())
print(json.dumps({"config": json_format.MessageToDict(config), "scores": scores}))
"""

# The command of MLflow's and SageMaker's containers, on a free port.
CONTAINER = """
import sys
from mlflow.pyfunc import load_model, scoring_server
from mirrorspark.serving.http_server import ConnectionLimits, listening, server
listener = listening("127.0.0.1", 0)
app = scoring_server.init(load_model(sys.argv[1]))
print(listener.getsockname()[1], flush=True)
server(app, ConnectionLimits(30)).run(sockets=[listener])
"""


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def packaged(folder: Path, backend: str, **options: Any) -> Path:
    """Return a package whose file nobody opens."""
    inputs = ColumnInputs((Column("x", "double"),))
    PackagedDescription(backend, "model.file", inputs, {"score": "float"}, {"score": "score"}, **options).save(folder)
    (folder / "model.file").write_text("")
    (folder / "hooks.py").write_text("")
    return folder


def test_a_server_finds_version_labels_and_warm_up_and_other_models_stay(flights_model: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    (tmp_path / "models.config").write_text(OTHERS)
    found = export_model(flights_model, tmp_path, version=3, labels=["next"], served_from="/models/")
    assert found.folder == tmp_path / "flights" / "3"
    assert {"saved_model.pb", "variables", "assets", "assets.extra"} <= {path.name for path in found.folder.iterdir()}
    assert found.inputs["hour"] == "string [rows]"
    assert found.inputs["stops"] == "string [rows, any]"
    assert found.outputs == {"score": "float [rows]"}
    # The champion stays loaded, and keeps its label.
    assert found.labels == {"champion": 2, "next": 3}
    text = (tmp_path / "models.config").read_text()
    assert 'name: "other"' in text
    assert "num_versions: 2" in text
    assert "sampling_rate: 0.5" in text
    assert 'base_path: "/models/flights"' in text
    assert "specific {\n        versions: 2\n        versions: 3\n      }" in text

    # Numbers of fields: tensorflow_serving/apis/{prediction_log,predict,model}.proto.
    tensors = {
        "carrier": tf.make_tensor_proto([""], tf.string),
        "distance": tf.make_tensor_proto([0.0], tf.float64),
        "hour": tf.make_tensor_proto([""], tf.string),
        "stops": tf.make_tensor_proto([], tf.string, [1, 0]),
    }
    inputs = [field(2, field(1, name.encode()) + field(2, one.SerializeToString())) for name, one in tensors.items()]
    spec = field(1, field(1, b"flights") + field(3, b"serving_default"))
    file = str(found.folder / "assets.extra/tf_serving_warmup_requests")
    records = [record.numpy() for record in tf.data.TFRecordDataset(file)]
    assert records == [field(6, field(1, spec + b"".join(inputs)))]

    again = export_model(flights_model, tmp_path, version=3, labels=["champion"])
    assert again.labels == {"champion": 3, "next": 3}
    text = (tmp_path / "models.config").read_text()
    assert "\n        versions: 2\n" not in text
    assert 'base_path: "/models/flights"' in text


def test_an_export_that_fails_leaves_no_part(
    flights_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(export, "write_warm_up", full_disk)
        with pytest.raises(OSError, match="No space left"):
            export_model(flights_model, tmp_path, version=1)
    assert list((tmp_path / "flights").iterdir()) == []
    (tmp_path / "models.config").write_text("model_config_list { config { colour: 1 } }")
    with pytest.raises(ServerConfigError, match="colour"):
        export_model(flights_model, tmp_path, version=1)
    assert list((tmp_path / "flights").iterdir()) == []


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("xgboost", {}, "backend 'xgboost' and has neither a SavedModel nor a file of ONNX"),
        ("pyfunc", {}, "backend 'pyfunc' and has neither"),
        ("onnx", {}, "it has the format 'onnx'"),
        ("saved_model", {"signature": "s", "hooks": ("preprocess",)}, "Python code that only Mirrorspark runs"),
    ],
)
def test_a_package_that_the_server_cannot_run_is_refused(
    backend: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = packaged(tmp_path / "model", backend, **options)
    with pytest.raises(ExportError, match=message):
        export_model(model, tmp_path / "served", version=1)
    assert not (tmp_path / "served").exists()


def test_bad_options_and_rows_are_refused(flights_model: Path, tmp_path: Path) -> None:
    for options, message in (
        ({}, "not a registered version"),
        ({"version": 0}, "version 0 is not a version"),
        ({"version": 1, "warm_up_rows": 1_001}, "takes 1 to 1000"),
        ({"version": 1, "name": "../up"}, "cannot be a folder"),
        ({"version": 1, "format": "onnx"}, "has no file of ONNX"),
    ):
        with pytest.raises(ExportError, match=message):
            export_model(flights_model, tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(ColumnError, match="'carrier'"):
        export_model(flights_model, tmp_path, version=1, warm_up=pa.table({"hour": [1]}))
    (tmp_path / "flights" / "1").mkdir(exist_ok=True)
    with pytest.raises(ExportError, match="was not exported here"):
        export_model(flights_model, tmp_path, version=1)


def test_an_onnx_file_is_exported_with_its_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = package_model(save_logistic_onnx(tmp_path / "m.onnx"), tmp_path / "boxes", columns=["a", "b", "c"])
    flags = ["--model", str(model), "--output", str(tmp_path / "served"), "--version", "7"]
    assert command.main(flags) == 2
    assert "it has the format 'onnx'" in capsys.readouterr().err
    assert command.main([*flags, "--format", "onnx"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["inputs"] == {"box": "float [rows, 3]"}
    assert told["config"] is None
    assert (tmp_path / "served/boxes/7/model.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


@pytest.mark.full
def test_tensorflow_servings_own_messages_read_the_export_and_its_requests_have_the_predictors_scores(
    flights_model: Path, tmp_path: Path
) -> None:
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    install = [str(uv), "-q", "pip", "install", "--no-deps", "--target", str(tmp_path / "api"), SERVING_API]
    subprocess.run(install, check=True, timeout=PATIENCE * 60)
    base = tmp_path / "served"
    base.mkdir()
    (base / "models.config").write_text(OTHERS)
    pq.write_table(FLIGHTS, tmp_path / "flights.parquet")
    orders = export_orders(tmp_path / "orders")
    logistic = package_model(save_logistic_saved_model(tmp_path / "saved"), tmp_path / "boxes")
    rows = {"flights": (flights_model, FLIGHTS), "orders": (orders, ORDERS), "boxes": (logistic, boxes(3))}
    export_model(flights_model, base, version=3, labels=["champion"], warm_up=tmp_path / "flights.parquet")
    export_model(orders, base, version=1, warm_up=ORDERS)
    export_model(logistic, base, version=1, warm_up=boxes(3))

    read = subprocess.run(
        [sys.executable, "-c", READER, str(base)],
        env={"PYTHONPATH": str(tmp_path / "api"), "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 120,
        check=False,
    )
    assert read.returncode == 0, read.stderr[-2_000:]
    told = json.loads(read.stdout)
    for name, (model, table) in rows.items():
        predicted = Predictor(model).predict_rows(table.to_pylist())
        assert [score for (score,) in told["scores"][name]] == pytest.approx(
            [row["score"] for row in predicted], abs=1e-6
        )
    models = {one["name"]: one for one in told["config"]["modelConfigList"]["config"]}
    assert sorted(models) == ["boxes", "flights", "orders", "other"]
    assert models["other"]["loggingConfig"] == {"samplingConfig": {"samplingRate": 0.5}}
    assert models["flights"]["versionLabels"] == {"champion": "3"}
    assert models["flights"]["modelVersionPolicy"] == {"specific": {"versions": ["3"]}}


def test_a_retrieval_model_is_exported_with_its_exact_search(tmp_path: Path) -> None:
    found = export_model(export_movies(tmp_path / "movies", scann=False), tmp_path / "served", version=1)
    assert set(found.outputs) == {"candidates", "scores"}
    assert found.inputs["seen"] == "string [rows, any]"
    assert found.warm_up_records == 1


@pytest.mark.full
def test_a_registered_model_keeps_the_contract_of_the_containers_of_sagemaker_and_mlflow(
    flights_model: Path, tmp_path: Path
) -> None:
    log_flights(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "artifacts", flights_model)
    (folder,) = (str(file.parent) for file in (tmp_path / "artifacts").rglob("MLmodel"))
    rows = [{**row, "distance": 100.0} for row in FLIGHTS.slice(0, 2).to_pylist()]
    with subprocess.Popen([sys.executable, "-c", CONTAINER, folder], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            answers = []
            for method, path, body in (
                ("GET", "/ping", None),
                ("POST", "/invocations", json.dumps({"dataframe_records": rows})),
            ):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE * 30)
                connection.request(method, path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                assert answer.status == 200
                answers.append(answer.read())
                connection.close()
        finally:
            process.terminate()
    predicted = Predictor(flights_model).predict_rows(rows)
    scores = [one["score"] for one in json.loads(answers[1])["predictions"]]
    assert scores == pytest.approx([one["score"] for one in predicted], abs=1e-6)
