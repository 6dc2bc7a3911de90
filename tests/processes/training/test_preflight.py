"""L17: each check fires on a planted fault, within seconds, and says what to do."""

import http.server
import importlib.util
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyspark
import pytest
from pyspark.sql import SparkSession

from mirrorspark import extras
from mirrorspark.spark_session import versions
from mirrorspark.spark_session.classic import ClassicSession
from mirrorspark.storage import abilities
from mirrorspark.storage.paths import StoragePath
from mirrorspark.training.job.readiness import preflight
from mirrorspark.training.job.readiness.checks import warning
from mirrorspark.training.job.readiness.preflight import Check, PreflightError, check_cluster, check_driver, require


def checked(tmp_path: Path, name: str, *, output: Path | None = None, uri: str | None = None) -> Check:
    checks = check_driver(output or tmp_path / "output", uri or f"sqlite:///{tmp_path}/mlflow.db")
    return next(check for check in checks if check.name == name)


def fake_java(folder: Path, said: str, *, mode: int = 0o755) -> Path:
    """Make a JAVA_HOME whose java says ``said`` when it is asked for its version."""
    (folder / "bin").mkdir(parents=True)
    (folder / "said").write_text(said)
    java = folder / "bin" / "java"
    java.write_text(f"#!/bin/sh\ncat {folder}/said >&2\n")
    java.chmod(mode)
    return folder


@pytest.fixture(autouse=True)
def _java_17(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has, a test that is not about Java finds one that will do."""
    home = fake_java(tmp_path_factory.mktemp("java") / "17", 'openjdk version "17.0.9" 2023-10-17')
    monkeypatch.setenv("JAVA_HOME", str(home))


@pytest.fixture
def serve() -> Iterator[Callable[[int], str]]:
    """Return a function that starts a server which gives every request one status, and returns its address."""
    servers: list[http.server.HTTPServer] = []

    def start(status: int) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_machine_that_is_ready_passes_every_check_and_nothing_is_left_behind(tmp_path: Path) -> None:
    checks = check_driver(tmp_path / "new" / "output", f"sqlite:///{tmp_path}/new/output/mlflow.db")
    assert {check.name for check in checks} == {
        *("session", "java", "packages", "keras", "recommenders", "output", "file system", "tracking")
    }
    assert [check.detail for check in checks if not check.passed] == []
    require(checks)
    assert list(tmp_path.iterdir()) == []


def test_all_failed_checks_are_reported_in_one_line() -> None:
    checks = [Check("java", False, "there is none"), Check("output", True, "/out"), Check("slots", False, "too few")]
    with pytest.raises(PreflightError) as raised:
        require(checks)
    assert str(raised.value) == "java: there is none; slots: too few"


@pytest.mark.parametrize(
    ("said", "passed", "detail"),
    [
        ('openjdk version "17.0.9" 2023-10-17', True, "17"),
        ('openjdk version "21-ea" 2023-09-19', True, "21"),
        ('java version "25" 2025-09-16 LTS', True, "25"),
        ('Picked up JAVA_TOOL_OPTIONS: -Da="b"\nopenjdk version "17.0.9"', True, "17"),
        ('openjdk version "11.0.21" 2023-10-17', False, "found 11; PySpark {} needs 17 or later: set JAVA_HOME to one"),
        ('java version "1.8.0_392"', False, "found 8; PySpark {} needs 17 or later: set JAVA_HOME to one"),
    ],
)
def test_the_version_of_java_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, passed: bool, detail: str
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "jdk", said)))
    assert checked(tmp_path, "java") == Check("java", passed, detail.format(pyspark.__version__))


def test_spark_3_5_takes_the_java_of_its_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """#53: Dataproc has Java 11, Databricks' runtimes before 16 have 8."""
    monkeypatch.setattr(versions, "OLDEST_JAVA", 8)
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "jdk", 'openjdk version "11.0.21"')))
    assert checked(tmp_path, "java") == Check("java", True, "11")


def test_no_java_at_all_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    check = checked(tmp_path, "java")
    assert check.detail == "there is none on PATH; install Java 17 or later and set JAVA_HOME to it"
    assert not check.passed


def test_java_on_the_path_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_java(tmp_path / "jdk", 'openjdk version "17.0.9"')
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert checked(tmp_path, "java").passed


@pytest.mark.parametrize("plant", ["empty folder", "not executable", "no java"])
def test_a_java_home_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: str) -> None:
    home = tmp_path / "jdk"
    if plant == "not executable":
        fake_java(home, "", mode=0o644)
    elif plant == "no java":
        fake_java(home, "what?")
    monkeypatch.setenv("JAVA_HOME", str(home))
    check = checked(tmp_path, "java")
    assert not check.passed
    assert check.detail.startswith(f"JAVA_HOME is {home}, where none starts; install Java 17")


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package.startswith("pyspark"):
            raise PackageNotFoundError(package)
        return "2.20.0"

    monkeypatch.setattr(preflight, "library_version", version)
    check = checked(tmp_path, "packages")
    assert check == Check("packages", False, 'pyspark is not installed; run: pip install "mirrorspark[local]"')


@pytest.mark.parametrize(
    ("absent", "status", "message"),
    [
        (("numba", "optuna"), "FAIL", 'Python finds no module numba; run: pip install "mirrorspark[train]"'),
        (
            ("optuna", "sklearn"),
            "warn",
            "Python finds no module optuna, sklearn, which parts of training need; run: pip",
        ),
    ],
)
def test_a_part_of_the_extra_train_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: tuple[str, ...], status: str, message: str
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None if name in absent else there(name))
    check = checked(tmp_path, "parts")
    assert (check.status, check.detail[: len(message)]) == (status, message)


def test_keras_3_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(preflight, "library_version", version)
    assert checked(tmp_path, "keras").detail.endswith("; for your own of Keras 3 run: pip install keras")


@pytest.mark.parametrize(
    ("build", "tensorflow", "keras", "message"),
    [
        (
            "tensorflow",
            "2.18.1",
            "2.18.0",
            "tensorflow 2.18.1 is none of 2.19, 2.20 and 2.21; install tensorflow==2.20.*",
        ),
        ("tf-nightly", "2.22.0", "2.22.0", "tensorflow 2.22.0 is none of 2.19, 2.20 and 2.21; install a build of 2.20"),
        (
            "tensorflow",
            "2.19.1",
            "2.20.1",
            'tf-keras 2.20.1 does not go with tensorflow 2.19.1; run: pip install "tf-keras==2.19.*"',
        ),
        (
            "tensorflow-cpu",
            "2.19.1",
            "2.20.1",
            'tf-keras 2.20.1 does not go with tensorflow 2.19.1; run: pip install --no-deps "tf-keras==2.19.*"',
        ),
        ("tensorflow", "2.21.0", "2.21.0", None),
    ],
)
def test_a_tensorflow_that_does_not_work_here_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: str, tensorflow: str, keras: str, message: str | None
) -> None:
    versions = {"tensorflow": tensorflow, "tf-keras": keras}
    monkeypatch.setattr(preflight, "library_version", lambda package: versions.get(package, "4.1.0"))
    for module in (preflight, extras):
        monkeypatch.setattr(module, "distribution_of", lambda _: build)
    check = checked(tmp_path, "packages")
    assert (check.passed, check.detail) == (False, message) if message else check.passed


@pytest.mark.parametrize(
    ("package", "number", "passed", "message"),
    [
        ("pyspark", "3.4.4", False, "pyspark 3.4.4 is older than 3.5; install a later one"),
        (
            "pyspark",
            "4.0.1.dev3",
            True,
            "; with pyspark 4.0 a model cannot be a function in SQL, for which Spark 4.1 is needed",
        ),
        ("mlflow", "2.22.0", False, "mlflow 2.22.0 is older than 3.0; install a later one"),
        ("mlflow", "3.17.2", True, ", mlflow 3.17.2"),
    ],
)
def test_versions_of_a_platform_are_refused_or_named_with_their_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, number: str, passed: bool, message: str
) -> None:
    versions = {"tensorflow": "2.20.0", "tf-keras": "2.20.1", package: number}
    monkeypatch.setattr(preflight, "library_version", lambda name: versions.get(name, "4.1.0"))
    check = checked(tmp_path, "packages")
    assert check.passed is passed
    assert check.detail.endswith(message)


def test_the_oldest_versions_are_those_of_the_ranges() -> None:
    setup = (Path(__file__).parents[3] / "setup.cfg").read_text()
    assert {
        package: re.findall(rf"^    {package}(?:\[connect\])?>=([\d.]+)", setup, re.MULTILINE)
        for package in preflight.OLDEST
    } == {package: [oldest] for package, oldest in preflight.OLDEST.items()}


@pytest.mark.parametrize("value", ["0", "1", None])
def test_the_keras_of_the_driver_is_not_that_of_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("TF_USE_LEGACY_KERAS")
    else:
        monkeypatch.setenv("TF_USE_LEGACY_KERAS", value)
    check = checked(tmp_path, "keras")
    assert check.passed
    assert f"your own of Keras {version('keras')}" in check.detail


@pytest.mark.parametrize(
    ("versions", "legacy", "status", "message"),
    [
        ({"tensorflow": "2.20.0", "scann": "1.4.2"}, "1", "ok", "tensorflow-recommenders 0.7.7, scann 1.4.2"),
        ({"tensorflow": "2.21.0"}, "1", "ok", "tensorflow-recommenders 0.7.7, without ScaNN"),
        (
            {"tensorflow": "2.21.0", "scann": "1.4.2"},
            "1",
            "warn",
            "scann 1.4.2 loads with tensorflow 2.20 alone, not with 2.21.0: retrieval models have no index scann",
        ),
        ({"tensorflow": "2.20.0"}, "0", "warn", "0.7.7 cannot be imported with Keras 3, and retrieval models need it"),
    ],
)
def test_where_tensorflow_recommenders_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], legacy: str, status: str, message: str
) -> None:
    """#53: the rest goes on without it, and without a word where it is not installed."""

    def found(package: str) -> str:
        if package not in versions:
            raise PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(preflight, "library_version", found)
    monkeypatch.setattr(preflight, "requires", lambda _: ["protobuf", 'tensorflow~=2.20.0; extra == "tf"'])
    assert preflight._recommenders() is None
    versions["tensorflow-recommenders"] = "0.7.7"
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", legacy)
    check = preflight._recommenders()
    assert check is not None
    assert check.status == status
    assert message in check.detail


@pytest.mark.parametrize("inside", [".", "output", "deep/down"])
def test_an_output_that_cannot_be_written_is_named(tmp_path: Path, inside: str) -> None:
    # A file in the place of a folder: permissions do not stop root.
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / inside
    check = checked(tmp_path, "output", output=output)
    assert not check.passed
    assert check.detail.startswith(f"{output} cannot be written (")
    assert "Not a directory" in check.detail
    assert check.detail.endswith("give another folder as --output")


@pytest.mark.parametrize(("scheme", "options"), [("sqlite", ""), ("sqlite+pysqlite", "?timeout=60")])
def test_a_store_in_a_folder_that_cannot_be_written_is_named(tmp_path: Path, scheme: str, options: str) -> None:
    (tmp_path / "file").write_text("")
    uri = f"{scheme}:///{tmp_path}/file/mlflow.db{options}"
    check = checked(tmp_path, "tracking", uri=uri)
    assert not check.passed
    assert check.detail.startswith(f"{uri} cannot be written (")


@pytest.mark.parametrize("uri", ["foo://bar", "postgres://host/db", "ftp://host"])
def test_a_store_unknown_to_mlflow_is_reported(tmp_path: Path, uri: str) -> None:
    check = checked(tmp_path, "tracking", uri=uri)
    assert not check.passed
    assert check.detail.startswith(f"{uri} is not a store that MLflow knows; --tracking-uri takes ['http', ")


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "databricks-uc", "sqlite://"])
def test_a_store_that_only_mlflow_can_open_passes(tmp_path: Path, uri: str) -> None:
    assert checked(tmp_path, "tracking", uri=uri).passed


def test_an_unreachable_database_is_reported_within_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    begin = time.monotonic()
    check = checked(tmp_path, "tracking", uri=f"postgresql://ann:s3cret@127.0.0.1:{port}/db")
    assert time.monotonic() - begin < 30
    assert not check.passed
    assert check.detail.startswith(f"postgresql://127.0.0.1:{port}/db cannot be reached (")
    assert "s3cret" not in check.detail


def test_a_missing_database_driver_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"mysql://127.0.0.1:{listener.getsockname()[1]}/db"
        check = checked(tmp_path, "tracking", uri=uri)
    assert not check.passed
    assert check.detail.startswith(f"{uri} needs the Python package 'MySQLdb', which is not installed")


def test_a_database_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "REACH_SECONDS", 0.1)
    may_end = threading.Event()
    monkeypatch.setattr(preflight, "_database_problem", lambda *_: may_end.wait(100))
    check = checked(tmp_path, "tracking", uri="postgresql://host/db")
    may_end.set()
    assert not check.passed
    assert check.detail.startswith("postgresql://host/db did not answer within 0.2 s")


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_folder_is_a_store_only_if_mlflow_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    (tmp_path / "file").write_text("")
    good, bad = (form.format(tmp_path / name / "mlruns") for name in ("new", "file"))
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    assert "use sqlite:///FILE" in checked(tmp_path, "tracking", uri=good).detail
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert checked(tmp_path, "tracking", uri=good) == Check("tracking", True, good)
    assert checked(tmp_path, "tracking", uri=bad).detail.startswith(f"{bad} cannot be written (")


def test_a_tracking_server_that_answers_passes(tmp_path: Path, serve: Callable[[int], str]) -> None:
    uri = serve(200)
    assert checked(tmp_path, "tracking", uri=uri) == Check("tracking", True, uri)
    assert checked(tmp_path, "tracking", uri=f"{uri}/").passed


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_tracking_server_that_wants_more_of_us_is_there(
    tmp_path: Path, serve: Callable[[int], str], status: int
) -> None:
    assert checked(tmp_path, "tracking", uri=serve(status)).passed


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_broken_tracking_server_is_reported_with_its_status(
    tmp_path: Path, serve: Callable[[int], str], status: int
) -> None:
    uri = serve(status)
    check = checked(tmp_path, "tracking", uri=uri)
    expected = f"{uri} answers with status {status}; start it: the run's metrics are kept and sent later"
    assert check == warning("tracking", expected)


def test_an_unreachable_tracking_server_is_reported_within_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    begin = time.monotonic()
    check = checked(tmp_path, "tracking", uri=f"http://127.0.0.1:{port}")
    assert time.monotonic() - begin < 30
    assert check.status == "warn"
    assert check.detail.startswith(f"http://127.0.0.1:{port} cannot be reached (")
    assert check.detail.endswith("start it: the run's metrics are kept and sent later")


def test_a_tracking_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "REACH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        begin = time.monotonic()
        check = checked(tmp_path, "tracking", uri=f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert time.monotonic() - begin < 30
    assert check.status == "warn"
    assert "timed out" in check.detail


def test_a_server_without_http_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        talker = threading.Thread(target=talk, daemon=True)
        talker.start()
        check = checked(tmp_path, "tracking", uri=f"http://127.0.0.1:{listener.getsockname()[1]}")
        talker.join(60)
    assert not check.passed
    assert "is not a tracking server (" in check.detail


@pytest.mark.parametrize("uri", ["http://127.0.0.1:port", "http://[::1", "http://no-such-host.invalid"])
def test_an_invalid_tracking_uri_is_reported(tmp_path: Path, uri: str) -> None:
    check = checked(tmp_path, "tracking", uri=uri)
    assert not check.passed
    assert check.detail.startswith(uri)
    assert check.detail.endswith("; give another --tracking-uri")


def test_the_password_of_a_tracking_uri_is_not_shown(tmp_path: Path, serve: Callable[[int], str]) -> None:
    for server, status in ((serve(200), "ok"), ("http://127.0.0.1:1", "warn")):
        check = checked(tmp_path, "tracking", uri=server.replace("://", "://annabel:s3cret@"))
        assert check.status == status
        assert "s3cret" not in check.detail
        assert "annabel" not in check.detail
        assert server in check.detail


class FakeSpark:
    """A session that has ``slots``; questions to its executors land in ``asked``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slots: list[int], master: str, **conf: str) -> None:
        self.asked: list[tuple[int, dict[str, StoragePath], int]] = []
        monkeypatch.setattr(ClassicSession, "task_slots", lambda _: slots.pop(0) if len(slots) > 1 else slots[0])
        monkeypatch.setattr(preflight, "check_executors", self._check_executors)
        self.sparkContext = SimpleNamespace(master=master, getConf=lambda: conf)

    def _check_executors(
        self,
        _: object,
        workers: int,
        java: int | None,
        folders: dict[str, StoragePath],
        gpus_per_worker: int,
        gpu_resource_name: str,
        events: str,
    ) -> list[Check]:
        assert (java, gpu_resource_name, events) == (17, "gpu", "auto")
        self.asked.append((workers, folders, gpus_per_worker))
        return [Check("executors", True, "asked")]


def cluster(
    monkeypatch: pytest.MonkeyPatch, workers: int, slots: list[int], shared: Path | None = None, /, **rest: Any
) -> dict[str, Check]:
    # Those that never come are not waited for long.
    monkeypatch.setattr(preflight, "EXECUTORS_SECONDS", 60.0 if slots[-1] >= workers else 0.5)
    spark: Any = FakeSpark(
        monkeypatch, slots, **{"master": "spark://host:7077", "spark.driver.host": "127.0.0.1"} | rest
    )
    return {check.name: check for check in check_cluster(spark, workers, shared)}


def test_too_few_slots_are_reported_before_spark_waits_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = cluster(monkeypatch, 4, [2, 4], master="local[2]")  # a local session gets no more: it is asked once
    assert not checks["slots"].passed
    assert checks["slots"].detail.startswith("local[2] has 2 task slots for 4 workers")
    assert "use --workers 2 or use a larger cluster" in checks["slots"].detail
    assert "executors" not in checks


def test_tasks_with_other_packages_are_asked_on_this_machine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of Spark Connect has a Python of its own."""
    assert "executors" not in cluster(monkeypatch, 2, [2], master="local[2]")
    monkeypatch.setattr(ClassicSession, "tasks_share_packages", False)
    assert "executors" in cluster(monkeypatch, 2, [2], master="local[2]")


def test_executors_that_are_still_on_their_way_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = cluster(monkeypatch, 2, [0, 1, 2])
    assert checks["slots"] == Check("slots", True, "2 on spark://host:7077")


def test_executors_that_do_not_come_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    checks = cluster(monkeypatch, 2, [0])
    assert time.monotonic() - begin < 60
    assert not checks["slots"].passed


def test_dynamic_allocation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = cluster(monkeypatch, 4, [0], None, **{"spark.dynamicAllocation.enabled": "TRUE"})
    assert "slots" not in checks  # their number is not the cause
    assert not checks["allocation"].passed
    assert checks["allocation"].detail.endswith("set it to false")
    local = {"master": "local[2]", "spark.dynamicAllocation.enabled": "true"}  # Spark itself ignores it there
    assert cluster(monkeypatch, 2, [2], None, **local)["allocation"].passed


@pytest.mark.parametrize(("master", "found"), [("yarn", [False]), ("local[2]", []), (None, [])])
def test_dynamic_allocation_of_sparks_defaults_is_found_before_spark_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, master: str | None, found: list[bool]
) -> None:
    (tmp_path / "spark-defaults.conf").write_text("spark.dynamicAllocation.enabled   true\n")
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    checks = check_driver(tmp_path / "output", f"sqlite:///{tmp_path}/mlflow.db", master)
    assert [check.passed for check in checks if check.name == "allocation"] == found


@pytest.mark.parametrize(
    ("slots", "settings", "message"),
    [
        (
            0,
            {"spark.task.cpus": "8"},
            "has 0 task slots for 2 workers with spark.task.cpus=8, .*; set spark.task.cpus lower or use",
        ),
        (1, {"spark.task.cpus": "2"}, "; use --workers 1 or set spark.task.cpus lower or use a larger cluster$"),
        (0, {}, "; look on the cluster's pages for its executors or give another --master$"),
    ],
)
def test_the_settings_that_take_the_slots_are_named(
    monkeypatch: pytest.MonkeyPatch, slots: int, settings: dict[str, str], message: str
) -> None:
    assert re.search(message, cluster(monkeypatch, 2, [slots], None, **settings)["slots"].detail)


@pytest.mark.parametrize(
    ("missing", "status", "message"),
    [
        ({}, "ok", "appends, renames, links and locks files, and keeps SQLite"),
        ({"hard links": "no"}, "warn", "has no hard links (no): files are copied, which takes more time and room"),
        (
            {"append": "Operation not supported", "locks": "No locks available"},
            "warn",
            "no append (Operation not supported): events of a run become numbered files; a sweep needs another "
            "--output; no locks (No locks available): a "
            "driver that has died",
        ),
        ({"SQLite": "disk I/O error", "SQLite with WAL": "same"}, "warn", "give MLflow's store (--tracking-uri)"),
        (
            dict.fromkeys(("renames of folders", "renames onto folders"), "Function not implemented"),
            "warn",
            "has no renames of folders (Function not implemented): files appear one by one, those that readers look "
            "for last",
        ),
    ],
)
def test_what_the_file_system_of_the_output_lacks_is_told_with_what_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: dict[str, str], status: str, message: str
) -> None:
    """A mount of Databricks' volumes has no append, no random writes, no links and no locks."""
    monkeypatch.setattr(abilities, "missing_abilities", lambda *_: missing)
    check = checked(tmp_path, "file system")
    assert check.status == status
    assert message in check.detail
    tracking = checked(tmp_path, "tracking", uri=f"sqlite:///{tmp_path}/mlflow.db")
    if "SQLite" in missing:
        assert tracking.detail.endswith(
            "mlflow.db cannot be used: its file system keeps no SQLite (disk I/O error); give a server, or "
            "sqlite:////FILE on a local disk of the driver, as --tracking-uri"
        )
    else:
        assert tracking.passed


def test_executors_are_asked_of_the_nearest_folder_that_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    conf = {"spark.driver.host": "127.0.0.1"}
    spark: Any = FakeSpark(monkeypatch, [2], "spark://host:7077", **conf)
    checks = check_cluster(spark, 2, tmp_path / "new" / "output", checkpoints="s3://bucket/a", gpus_per_worker=1)
    assert [check.name for check in checks] == ["slots", "allocation", "executors"]
    folders = {"--output": StoragePath.of(tmp_path), "--checkpoints": StoragePath.of("s3://bucket/a")}
    assert spark.asked == [(2, folders, 1)]
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_place_for_checkpoints_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    conf = {"spark.driver.host": "127.0.0.1"}
    spark: Any = FakeSpark(monkeypatch, [2], "spark://host:7077", **conf)
    checks = check_cluster(spark, 2, checkpoints="s3:/bucket/a")
    assert not checks[-1].passed
    assert checks[-1].detail.startswith("s3:/bucket/a has one slash after s3:")
    assert spark.asked == []


def test_a_local_session_is_asked_only_when_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    spark: Any = FakeSpark(monkeypatch, [2], "local[2]")
    assert {check.name for check in check_cluster(spark, 2)} == {"slots", "allocation"}
    assert {check.name for check in check_cluster(spark, 2, asks_local=True)} == {"slots", "allocation", "executors"}


def test_a_local_session_writes_to_the_store_of_the_checkpoints_before_anything_is_converted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """T9: a run whose checkpoints cannot be written would train in vain, and find out only after all its retries."""
    (tmp_path / "file").write_text("")
    spark: Any = FakeSpark(monkeypatch, [2], "local[2]")
    *_, refused = check_cluster(spark, 2, tmp_path, checkpoints=str(tmp_path / "file" / "below"))
    assert (refused.name, refused.passed) == ("checkpoints", False)
    assert refused.detail.startswith(f"{tmp_path / 'file'} cannot be written (Not a directory")
    assert refused.detail.endswith("give another place as --checkpoints")
    *_, written = check_cluster(spark, 2, tmp_path, checkpoints=str(tmp_path / "new"))
    assert written == Check("checkpoints", True, f"written and read by the driver: {tmp_path}")
    *_, unknown = check_cluster(spark, 2, tmp_path, checkpoints="s3:/bucket/a")
    assert unknown.detail.startswith("s3:/bucket/a has one slash after s3:")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert spark.asked == []


def test_an_unreadable_folder_is_reported_like_an_unwritable_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    look = os.stat

    def refuse(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{tmp_path}/locked/"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, *arguments, **options)

    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "stat", refuse)
    spark: Any = FakeSpark(monkeypatch, [2], "local[2]")
    *_, check = check_cluster(spark, 2, checkpoints=str(tmp_path / "locked" / "deep" / "checkpoints"))
    assert check.detail == f"written and read by the driver: {tmp_path / 'locked'}"  # root may write there all the same


def test_an_encrypted_cluster_is_refused_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    ignore = "tensorflow.spark.distributor.ignoreSsl"
    refused = cluster(monkeypatch, 1, [1], None, **{"spark.ssl.enabled": "true"})["encryption"]
    assert (refused.status, ignore in refused.detail) == ("FAIL", True)
    allowed = cluster(monkeypatch, 1, [1], None, **{"spark.ssl.enabled": "true", ignore: "true"})["encryption"]
    assert allowed.status == "warn"
    assert "encryption" not in cluster(monkeypatch, 1, [1])


def test_an_open_network_is_reported_and_open_servers_need_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    """S12: on a cluster; on one machine nobody else can connect."""
    there = {"spark.driver.host": "10.0.0.5"}
    on_network = cluster(monkeypatch, 1, [1], **there)["network"]
    assert (on_network.status, "spark.authenticate is off" in on_network.detail) == ("warn", True)
    authenticated = there | {"spark.authenticate": "true"}
    clear = cluster(monkeypatch, 1, [1], **authenticated)["network"]
    assert (clear.status, "exchange rows in the clear" in clear.detail) == ("warn", True)
    assert "network" not in cluster(monkeypatch, 1, [1], **authenticated | {"spark.network.crypto.enabled": "true"})
    assert "network" not in cluster(monkeypatch, 1, [1], **{"spark.driver.host": "127.0.0.1"})
    for strategy, host, status in (
        ("parameter_server", "10.0.0.5", "FAIL"),
        ("parameter_server", "127.0.0.1", None),
        (None, "10.0.0.5", None),
    ):
        spark: Any = FakeSpark(monkeypatch, [1], **{"master": "spark://host:7077", "spark.driver.host": host})
        servers = [check for check in check_cluster(spark, 1, open_servers=strategy) if check.name == "servers"]
        assert [check.status for check in servers] == ([status] if status else [])
        assert all("--allow-open-servers" in check.detail for check in servers)


@pytest.mark.parametrize("where", ["variable", "master"])
def test_a_server_of_spark_connect_that_does_not_answer_is_reported_without_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    url = "sc://host:15002/;token=s3cret"
    master = url if where == "master" else None
    if where == "variable":
        monkeypatch.setenv("SPARK_REMOTE", url)
    checks = {check.name: check for check in check_driver(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", master)}
    assert not checks["session"].passed
    assert "sc://host:15002 cannot be reached" in checks["session"].detail
    assert "s3cret" not in checks["session"].detail


def test_an_unreachable_master_is_reported_within_seconds(tmp_path: Path) -> None:
    """Spark itself would try for a minute."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        there = check_driver(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", f"spark://127.0.0.1:1,127.0.0.1:{port}")
    gone = check_driver(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", f"spark://127.0.0.1:{port}")
    assert there[0].passed
    assert gone[0].detail.startswith(f"spark://127.0.0.1:{port} cannot be reached (")


def test_an_output_on_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=200_000_000))
    check = checked(tmp_path, "output")
    assert (check.passed, check.status) == (True, "warn")
    assert check.detail.endswith("has 0.2 GB free; make room, or give another --output")


def test_a_missing_tf_keras_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pain 28: TensorFlow takes Keras 3 where it does not find the legacy one."""
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda _: None)
    assert not checked(tmp_path, "keras").passed


def test_an_output_in_a_lake_table_is_refused_and_nothing_written(tmp_path: Path) -> None:
    (tmp_path / "table" / "_delta_log").mkdir(parents=True)
    output = tmp_path / "table" / "out"
    (check,) = [one for one in preflight.check_driver(output, f"sqlite:///{tmp_path}/ml.db") if one.name == "output"]
    assert not check.passed
    assert "table is a Delta table" in check.detail
    assert "give another folder as --output" in check.detail
    assert not output.exists()
