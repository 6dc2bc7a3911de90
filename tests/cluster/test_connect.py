"""Each call of the API over Spark Connect, in a client without a JVM: the same results as on a classic session."""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest

from benchmarks.connect_server import own_connect_server
from mirrorspark.scoring.package import package_model
from mirrorspark.spark_session import versions
from mirrorspark.storage import abilities
from tests.cluster.conftest import wait_until
from tests.cluster.programs import connect_calls
from tests.cluster.programs.connect_calls import CONTRACTS, Contract, Inputs, in_order
from tests.cluster.programs.shared_compute import SharedCompute, shared_compute, why_not
from tests.conftest import PATIENCE
from tests.unit.scoring.encoders import save_image_encoder, save_onnx_encoder
from tests.unit.scoring.exported_models import FLIGHTS, export_flights, export_movies
from tools import weight

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS = 3_000
NO_ARROW_UDFS = "PySpark 4.0 has no UDFs on Arrow arrays"

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not versions.HAS_PYTHON_SOURCES, reason="PySpark 3.5 has no Spark Connect that we can use"),
]


def write_inputs(folder: Path) -> Path:
    """Write the files that all calls read."""
    random = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "id": np.arange(ROWS),
            "region": random.choice(["north", "south", "east"], ROWS),
            "x": random.normal(size=ROWS),
            "y": random.normal(size=ROWS),
            "when": pd.Timestamp("2026-01-01") + pd.to_timedelta(random.integers(0, 100 * 86_400, ROWS), unit="s"),
        }
    )
    frame["late"] = (frame.x + random.normal(size=ROWS) > 0).astype("int64")
    (folder / "rows").mkdir(parents=True)
    for number, part in enumerate((frame[: ROWS // 2], frame[ROWS // 2 :])):
        part.to_parquet(folder / "rows" / f"{number}.parquet", index=False, coerce_timestamps="us")
    lake = folder / "lake"
    for name in ("_delta_log/0.json", "part=1/0.parquet"):
        (lake / name).parent.mkdir(parents=True)
        (lake / name).write_text("{}")
    frame.drop(columns="when").to_csv(folder / "rows.csv", index=False)
    package_model({"coefficients": {"x": 1.5, "y": -0.25}, "intercept": 0.1, "link": "logit"}, folder / "one")
    package_model({"coefficients": {"x": -1.0, "y": 2.0}, "link": "logit"}, folder / "two")
    return folder


def write_trained_models(folder: Path) -> None:
    """Write models of TensorFlow, and an encoder."""
    pq.write_table(FLIGHTS, folder / "flights.parquet")
    export_flights(folder / "flights", 1)
    export_movies(folder / "movies", scann=False)
    from tests.unit.recommending import test_item_index as shelves  # it imports TensorFlow

    fitted = shelves.fitted_to(shelves.items_table(range(40)))
    shelves.export(folder / "shelves", shelves.built(fitted), fitted, shelves.SAMPLE)
    pq.write_table(shelves.items_table(range(41)), folder / "items.parquet")
    save_onnx_encoder(folder / "encoder" / "model.onnx")
    save_image_encoder(folder / "images")


@pytest.fixture(scope="module")
def inputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("inputs") / "given")
    if {"trained_model", "recommend", "refresh_index", "embed_text", "embed_images"} & asked(request, "inputs"):
        write_trained_models(folder)
    return folder


def asked(request: pytest.FixtureRequest, fixture: str) -> set[str]:
    """Return the calls that are tested with a fixture."""
    items = [item for item in request.session.items if {"name", fixture} <= {*getattr(item, "fixturenames", ())}]
    return {item.callspec.params["name"] for item in items}


@pytest.fixture(scope="module")
def over_connect(
    request: pytest.FixtureRequest, connect_url: str, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Any]:
    """Return the outcome of each call that is tested, by one client for all of them."""
    names = [name for name in CONTRACTS if name in asked(request, "over_connect")]
    return outcomes_of(connect_url, inputs, tmp_path_factory.mktemp("over connect"), names)


# Spark starts the Java of this folder, or fails.
WITHOUT_JAVA = {"JAVA_HOME": "/nowhere", "PATH": "/usr/bin:/bin"}


def outcomes_of(
    url: str, inputs: Path, output: Path, names: Sequence[str], python: str = sys.executable
) -> Mapping[str, Any]:
    """Run calls in a client that has no Java, and return their outcomes; another Python has its own packages."""
    program = [python, "-m", connect_calls.__name__, url, str(inputs), str(output), *names]
    hidden = set() if python == sys.executable else {"PYTHONPATH", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | WITHOUT_JAVA
    subprocess.run(program, check=True, cwd=REPOSITORY, env=environment, timeout=PATIENCE * 280)
    outcomes: Mapping[str, Any] = pickle.loads((output / "outcomes.pickle").read_bytes())  # noqa: S301 - our own
    return outcomes


def needs_of(one: Contract) -> tuple[pytest.MarkDecorator, ...]:
    """Return the mark of a call that PySpark 4.0 lacks."""
    is_in_sql = not {"scorer_udf", "register_sql"}.isdisjoint(one.names)
    return (pytest.mark.skipif(not versions.HAS_ARROW_UDFS, reason=NO_ARROW_UDFS),) if is_in_sql else ()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[*(() if one.is_small else (pytest.mark.full,)), *needs_of(one)])
        for name, one in CONTRACTS.items()
        if not one.needs_retries
    ],
)
def test_a_call_over_connect_has_the_result_of_a_classic_session(
    name: str, spark: "SparkSession", over_connect: Mapping[str, Any], inputs: Path, tmp_path: Path
) -> None:
    assert_same(over_connect[name], CONTRACTS[name].run(spark, Inputs(inputs, tmp_path)))


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_client_with_pyspark_client_in_place_of_pyspark_has_the_results_of_a_classic_session(
    spark: "SparkSession", connect_url: str, inputs: Path, tmp_path: Path
) -> None:
    """H15: it has no JVM, and is of an earlier version than the server where there is one."""
    major, minor = map(int, pyspark.__version__.split(".")[:2])
    same = [f"{package}=={version(package)}" for package in ("tensorflow", "tf-keras", "pyarrow", "numpy", "pandas")]
    wheel = weight.requirement(weight.built(tmp_path), "train,keras,score")
    earlier = f"pyspark-client<{major}.{max(minor, 1)}"
    client = weight.Environment.made(tmp_path / "client", wheel, earlier, "mlflow", *same)
    assert not {"pyspark", "py4j"} & client.versions.keys()
    names = [name for name, one in CONTRACTS.items() if one.is_small]
    (tmp_path / "output").mkdir()
    found = outcomes_of(connect_url, inputs, tmp_path / "output", names, client.python)
    for name in names:
        assert_same(found[name], CONTRACTS[name].run(spark, Inputs(inputs, tmp_path / name)))


@pytest.fixture(scope="module")
def compute() -> Iterator[SharedCompute]:
    """Yield a stand-in for Databricks' shared compute."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OF_THE_SERVER", "which a user may not set")
        with shared_compute() as running:
            yield running


@pytest.fixture(scope="module")
def on_shared_compute(
    request: pytest.FixtureRequest, compute: SharedCompute, inputs: Path
) -> tuple[Path, Mapping[str, Any]]:
    """Return the inputs and the outcome of each call that is tested on the stand-in, by one client for all of them."""
    names = [name for name in CONTRACTS if name in asked(request, "on_shared_compute")]
    given = shutil.copytree(inputs, compute.folder / "given")
    arguments = ["-m", connect_calls.__name__, compute.url, str(given), str(compute.volume), *names]
    done = compute.run(arguments, timeout=PATIENCE * 900)
    assert done.returncode == 0, done.stdout
    outcomes: Mapping[str, Any] = pickle.loads((compute.volume / "outcomes.pickle").read_bytes())  # noqa: S301
    return given, outcomes


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_of(one)) for name, one in CONTRACTS.items() if not one.needs_retries]
)
def test_a_call_on_shared_compute_has_the_result_of_a_classic_session(
    name: str, spark: "SparkSession", on_shared_compute: tuple[Path, Mapping[str, Any]], tmp_path: Path
) -> None:
    given, outcomes = on_shared_compute
    assert_same(outcomes[name], CONTRACTS[name].run(spark, Inputs(given, tmp_path)))


_FORBIDDEN = """
import os, socket, sys
from pathlib import Path
import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
import mirrorspark as ms
from mirrorspark.spark_session import session_of
from mirrorspark.storage import abilities

url, volume, given = sys.argv[1:]
spark = SparkSession.builder.remote(url).getOrCreate()
port = int(url.rpartition(":")[2])

def tried(batches):
    for _ in batches:
        answers = [str(os.getuid()), os.environ.get("OF_THE_SERVER", "no variable")]
        for place in (("127.0.0.1", port), ("10.0.0.1", 80)):
            try:
                socket.create_connection(place, 5)
            except OSError as error:
                answers.append(error.strerror)
        for file, mode in ((Path(ms.__file__), "ab"), (Path(volume, "old"), "ab")):
            try:
                file.open(mode)
            except OSError as error:
                answers.append(error.strerror)
        yield pa.RecordBatch.from_pydict({"answer": answers})

Path(volume, "old").write_text("old")
print([row.answer for row in spark.range(0, 1, 1, 1).mapInArrow(tried, "answer string").collect()])
print(sorted(abilities.missing_abilities(Path(volume))))
print(session_of(spark).is_local, hasattr(spark, "sparkContext"))

spark.sql("CREATE NAMESPACE main.default")
ms.read_table(spark, given + "/rows").drop("when").writeTo("main.default.rows").create()
scores = ms.score(ms.read_table(spark, "main.default.rows"), given + "/one", keys="id")
scores.writeTo("main.default.scores").create()
print(ms.read_table(spark, "main.default.scores").where("score > 0").count())

spark.sql("CREATE NAMESPACE main.`my pay`")
quoted = "main.`my pay`.`rows.of 2026/11.csv`"
spark.table("main.default.rows").writeTo(quoted).create()
files = ms.score_files(spark, quoted, given + "/one", volume + "/scores", keys="id")
spec = ms.FeatureSpec.from_dict({"features": {"x": {"kind": "numeric"}}, "label": "late", "keys": "id"})
dataset = ms.convert(ms.random_split(ms.read_table(spark, quoted), ["id"]), spec, volume + "/dataset")
print(ms.score(quoted, given + "/one", keys="id", spark=spark).count(), files.rows, Path(dataset.path).is_dir())
for name in ("main.nowhere.rows", "nowhere.default.rows", "main.my pay.rows"):
    for call in (
        lambda: ms.read_table(spark, name),
        lambda: ms.score_files(spark, name, given + "/one", volume + "/none", keys="id"),
        lambda: ms.fit(name, "late", keys="id", output=volume + "/runs", spark=spark),
    ):
        try:
            call()
        except Exception as error:
            print(type(error).__name__, len(str(error).splitlines()))

rows = pa.table({"x": [b"0" * 1024] * (144 * 1024)})
try:
    spark.createDataFrame(rows).count()
except PySparkException as error:
    print(error.getCondition())
print(session_of(spark).table_of(rows).count())
"""


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_stand_in_for_shared_compute_forbids_what_shared_compute_forbids(
    compute: SharedCompute, inputs: Path
) -> None:
    given = shutil.copytree(inputs, compute.folder / "tables")
    done = compute.run(["-c", _FORBIDDEN, compute.url, str(compute.volume), str(given)], timeout=PATIENCE * 500)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines() == [
        "['65534', 'no variable', 'Connection refused', 'Network is unreachable', 'Permission denied', "
        "'Operation not supported']",
        str(sorted(get_args(abilities.Ability))),
        "False False",
        str(ROWS),
        f"{ROWS} {ROWS} True",
        *["TableError 1", "ScoringError 1", "TableError 1"] * 3,
        "LOCAL_RELATION_SIZE_LIMIT_EXCEEDED",
        str(144 * 1024),
    ]


@pytest.mark.full
@pytest.mark.timeout(600)
def test_executors_of_a_cluster_get_models_from_the_client_and_run_the_task_of_a_killed_process_again(
    spark: "SparkSession", tmp_path: Path
) -> None:
    names = ["stream", "killed_task", "lake_table", "score", "sql", "score_files", "groups", "score_fleet"]
    inputs, output = write_inputs(tmp_path / "given"), tmp_path / "over connect"
    output.mkdir()
    killed = tmp_path / "killed"
    # A model is tried when it is packaged.
    killed.touch()
    (tmp_path / "hooks.py").write_text(
        f"import os\n\ndef postprocess(given):\n    if not os.path.exists({str(killed)!r}):\n"
        f"        open({str(killed)!r}, 'x').close()\n        os.kill(os.getpid(), 9)\n    return given\n"
    )
    package_model({"coefficients": {"x": 1.0}}, inputs / "killing", hooks=tmp_path / "hooks.py")
    killed.unlink()
    with own_connect_server("local-cluster[2,1,1024]", tmp_path) as url:
        found = outcomes_of(url, inputs, output, names)
    assert killed.exists()
    for name in names:
        assert_same(found[name], CONTRACTS[name].run(spark, Inputs(inputs, tmp_path / name)))


@pytest.mark.full
def test_a_client_finds_its_server_by_the_variable_spark_remote(
    connect_url: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H15: the command, and a table in memory for which no session was started."""
    monkeypatch.setenv("SPARK_REMOTE", connect_url)
    flags = [f"--model={inputs / 'one'}", f"--input={inputs / 'rows'}", f"--output={tmp_path / 'scores'}", "--keys=id"]
    program = f"""
import pandas as pd
import mirrorspark as ms
from mirrorspark.scoring import memory
from mirrorspark.spark_session import SessionAhead, session_of
memory.MOST_ROWS = 100
ahead = SessionAhead(None, 2)
ahead.begin()
assert session_of(ahead.get()).kind == "Spark Connect"
scored = ms.score(pd.read_parquet({str(inputs / "rows")!r}), {str(inputs / "one")!r}, keys="id")
scored.to_parquet({str(tmp_path / "scored.parquet")!r})
"""
    for arguments in (["-m", "mirrorspark", "score", *flags], ["-c", program]):
        subprocess.run([sys.executable, *arguments], check=True, cwd=REPOSITORY, timeout=PATIENCE * 100)
    written = in_order(pq.read_table(tmp_path / "scores"))
    assert written.num_rows == ROWS
    assert in_order(pq.read_table(tmp_path / "scored.parquet")).select(["id", "score"]) == written.select(
        ["id", "score"]
    )


@pytest.mark.full
def test_ctrl_c_in_a_client_ends_the_tasks_and_leaves_no_scores(
    spark: "SparkSession", connect_url: str, tmp_path: Path
) -> None:
    (tmp_path / "hooks.py").write_text(
        f"import os, time\n\ndef postprocess(given):\n    if not os.path.exists({str(tmp_path / 'out')!r}):\n"
        "        return given\n    time.sleep(100)\n"
    )
    model = package_model({"coefficients": {"x": 1.0}}, tmp_path / "model", hooks=tmp_path / "hooks.py")
    scores, tracker = tmp_path / "out" / "scores", spark.sparkContext.statusTracker()
    scores.parent.mkdir()
    rows = write_inputs(tmp_path / "given") / "rows"
    flags = [f"--model={model}", f"--input={rows}", f"--output={scores}", "--keys=id", "--trust"]
    client = subprocess.Popen(
        [sys.executable, "-m", "mirrorspark", "score", f"--remote={connect_url}", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: bool(tracker.getActiveStageIds()) or client.poll() is not None, 60, "tasks of the client")
    client.send_signal(signal.SIGINT)
    said = client.communicate(timeout=PATIENCE * 60)
    assert (client.returncode, *said) == (130, "", "mirrorspark: interrupted\n")
    wait_until(lambda: not tracker.getActiveStageIds(), 20, "the end of the tasks")
    assert list(scores.parent.iterdir()) == []


# Scores rows twice, into files of ours and into a table of Spark's. Then it loses a session in two ways.
_SCORES_TWICE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pyspark.sql import SparkSession
import mirrorspark as ms

url, model, rows, output, then = sys.argv[1:]
spark = SparkSession.builder.remote(url).getOrCreate()
table = spark.read.parquet(rows)
by_spark = ms.score(table, model, keys="id", trust=True)
with ThreadPoolExecutor() as threads:
    calls = [
        threads.submit(ms.score_files, spark, rows, model, output + "/scores", keys="id", trust=True),
        threads.submit(by_spark.write.mode("overwrite").parquet, output + "/table"),
    ]
    [call.result() for call in calls]

for way in then.split():
    lost = SparkSession.builder.remote(url).create()
    table = lost.read.parquet(rows)
    ms.score(table, model, keys="id", trust=True)
    if way == "ended":
        lost.client.release_session()
    else:
        lost.client._channel.close()
    spec = ms.FeatureSpec.from_dict({"features": {"x": {"kind": "numeric"}}, "label": "late", "keys": "id"})
    for call in (
        lambda: ms.score(table, model, keys="id", trust=True),
        lambda: ms.score_files(lost, rows, model, output + "/again", keys="id", trust=True),
        lambda: ms.read_table(lost, rows).schema,
        lambda: ms.convert(table.drop("when", "region", "y"), spec, output + "/dataset"),
        lambda: ms.write_tfrecords(table.drop("when"), output + "/records"),
        lambda: ms.fit(table.drop("when"), "late", keys="id", output=output + "/runs", workers=1, verbose=False),
    ):
        try:
            call()
            print("no error")
        except Exception as error:
            print(type(error).__name__, error)
new = SparkSession.builder.remote(url).create()
print(ms.score(new.read.parquet(rows), model, keys="id", trust=True).count())
"""


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_client_that_is_killed_leaves_nothing_running_and_a_session_that_is_lost_is_named(
    spark: "SparkSession", connect_url: str, tmp_path: Path
) -> None:
    """H15: the same calls end right afterwards, and leave no other file."""
    go, output = tmp_path / "go", tmp_path / "out"
    (tmp_path / "hooks.py").write_text(
        f"import os, time\n\ndef postprocess(given):\n    if not os.path.exists({str(go)!r}):\n"
        "        time.sleep(100)\n    return given\n"
    )
    go.touch()  # a model is tried when it is packaged
    model = package_model({"coefficients": {"x": 1.0}}, tmp_path / "model", hooks=tmp_path / "hooks.py")
    go.unlink()
    output.mkdir()
    given = [connect_url, str(model), str(write_inputs(tmp_path / "given") / "rows"), str(output)]
    conf, tracker = spark.sparkContext._jsc.sc().conf(), spark.sparkContext.statusTracker()
    limits = (
        "spark.connect.execute.reattachable.senderMaxStreamDuration",
        "spark.connect.execute.manager.detachedTimeout",
    )
    for name in limits:
        conf.set(name, "2s")
    try:
        client = subprocess.Popen([sys.executable, "-c", _SCORES_TWICE, *given, ""], cwd=REPOSITORY)
        wait_until(lambda: len(tracker.getActiveStageIds()) > 1 or client.poll() is not None, 100, "both queries")
        client.kill()
        assert client.wait() == -signal.SIGKILL
        wait_until(lambda: not tracker.getActiveStageIds(), 100, "the end of the tasks")
    finally:
        for name in limits:
            conf.remove(name)
    assert not (output / "scores").exists()
    assert not (output / "table" / "_SUCCESS").exists()

    go.touch()
    again = [sys.executable, "-c", _SCORES_TWICE, *given, "ended closed"]
    done = subprocess.run(again, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True, timeout=PATIENCE * 200)
    *said, rows = done.stdout.splitlines()
    assert {pq.read_table(output / name).num_rows for name in ("scores", "table")} == {ROWS} == {int(rows)}
    assert sorted(path.name for path in output.iterdir() if path.name not in ("runs", "dataset")) == ["scores", "table"]
    assert len(said) == 12
    for line in said:
        assert re.search(r"the session of Spark Connect is lost \(.*\); create another one \(", line), said


def assert_same(outcome: tuple[bool, Any], expected: Any) -> None:
    """Check that a call has the results of a classic session."""
    has_result, found = outcome
    assert has_result, found
    for one, other in zip(*(each if isinstance(each, tuple) else (each,) for each in (found, expected)), strict=True):
        assert_equal(one, other)


def assert_equal(found: Any, expected: Any) -> None:
    """Check that two results are the same to the bit."""
    if isinstance(expected, pd.DataFrame):
        found, expected = (pa.Table.from_pandas(table).replace_schema_metadata() for table in (found, expected))
    if isinstance(expected, pa.Table):
        assert found.schema == expected.schema
        assert found.num_rows == expected.num_rows > 0 or found.num_rows == 0
    assert found == expected


def test_where_barrier_jobs_are_refused_doctor_says_so_with_the_way_without(
    spark: "SparkSession", connect_url: str, tmp_path: Path
) -> None:
    """T8: as on clusters whose executors come and go, and on serverless ones."""
    conf = spark.sparkContext._jsc.sc().conf()
    refusing = {"spark.dynamicAllocation.enabled": "true", "spark.dynamicAllocation.testing": "true"}
    for name, value in refusing.items():
        conf.set(name, value)
    try:
        command = [sys.executable, "-m", "mirrorspark", "doctor", "--remote", connect_url, "--output", str(tmp_path)]
        done = subprocess.run(
            command, cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=PATIENCE * 280
        )
    finally:
        for name in refusing:
            conf.remove(name)

    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert re.search(r"session .*no barrier jobs \(.+dynamic.+\); train on .*--workers 1 --local-mode", line)
