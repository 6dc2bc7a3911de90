"""L17: each check fires on a planted fault, within seconds, and says what to do."""

import http.server
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark import cloudpickle
from pyspark.errors import PySparkException

from training import preflight
from training.preflight import Check, PreflightError, check_cluster, check_driver, require


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
    assert {check.name for check in checks} == {"java", "packages", "legacy keras", "output", "tracking"}
    assert [check.detail for check in checks if not check.passed] == []
    require(checks)
    assert list(tmp_path.iterdir()) == []


def test_all_failed_checks_are_told_in_one_line() -> None:
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
        ('openjdk version "11.0.21" 2023-10-17', False, "found 11; Spark 4 needs 17 or later: set JAVA_HOME to one"),
        ('java version "1.8.0_392"', False, "found 8; Spark 4 needs 17 or later: set JAVA_HOME to one"),
    ],
)
def test_the_version_of_java_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, passed: bool, detail: str
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "jdk", said)))
    assert checked(tmp_path, "java") == Check("java", passed, detail)


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
    monkeypatch.setattr(preflight, "SHARED_PACKAGES", ("numpy", "no-such-package"))
    check = checked(tmp_path, "packages")
    assert check == Check("packages", False, "no-such-package is not installed; run: pip install mirrorspark")


def test_a_tensorflow_that_does_not_work_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"tensorflow": "2.21.0"}
    monkeypatch.setattr(preflight, "version", lambda package: versions.get(package, "2.20.1"))
    check = checked(tmp_path, "packages")
    assert check == Check("packages", False, "tensorflow 2.21.0 does not work here; install tensorflow==2.20.*")


@pytest.mark.parametrize(("value", "passed"), [("0", False), ("false", False), ("1", True), (None, True)])
def test_keras_3_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None, passed: bool) -> None:
    if value is None:
        monkeypatch.delenv("TF_USE_LEGACY_KERAS")
    else:
        monkeypatch.setenv("TF_USE_LEGACY_KERAS", value)
    check = checked(tmp_path, "legacy keras")
    assert check.passed is passed
    if not passed:
        assert check.detail.startswith(f"TF_USE_LEGACY_KERAS is '{value}', but Keras 3 cannot train")


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


def test_a_store_in_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = checked(tmp_path, "tracking", uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    assert not check.passed
    assert check.detail.startswith(f"sqlite:///{tmp_path}/file/mlflow.db cannot be written (")


@pytest.mark.parametrize("uri", ["foo://bar", "postgres://host/db", "ftp://host"])
def test_a_store_that_mlflow_does_not_know_is_told(tmp_path: Path, uri: str) -> None:
    check = checked(tmp_path, "tracking", uri=uri)
    assert not check.passed
    assert check.detail.startswith(f"{uri} is no store that MLflow knows; --tracking-uri takes ['http', ")


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "databricks-uc", "sqlite://"])
def test_a_store_that_only_mlflow_can_open_passes(tmp_path: Path, uri: str) -> None:
    assert checked(tmp_path, "tracking", uri=uri).passed


def test_a_database_that_is_not_there_is_told_within_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    begin = time.monotonic()
    check = checked(tmp_path, "tracking", uri=f"postgresql://ann:s3cret@127.0.0.1:{port}/db")
    assert time.monotonic() - begin < 10
    assert not check.passed
    assert check.detail.startswith(f"postgresql://127.0.0.1:{port}/db cannot be reached (")
    assert "s3cret" not in check.detail


def test_a_database_whose_driver_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"mysql://127.0.0.1:{listener.getsockname()[1]}/db"
        check = checked(tmp_path, "tracking", uri=uri)
    assert not check.passed
    assert check.detail.startswith(f"{uri} needs the Python package 'MySQLdb', which is not installed")


def test_a_database_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "REACH_SECONDS", 0.1)
    may_end = threading.Event()
    monkeypatch.setattr(preflight, "_database_problem", lambda *_: may_end.wait(30))
    check = checked(tmp_path, "tracking", uri="postgresql://host/db")
    may_end.set()
    assert not check.passed
    assert check.detail.startswith("postgresql://host/db did not answer within 0.2 s")


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_folder_is_a_store_only_where_mlflow_is_told_to_take_one(
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
def test_a_tracking_server_that_is_broken_is_told_with_its_status(
    tmp_path: Path, serve: Callable[[int], str], status: int
) -> None:
    uri = serve(status)
    check = checked(tmp_path, "tracking", uri=uri)
    expected = f"{uri} answers with status {status}; start it or give another --tracking-uri"
    assert check == Check("tracking", False, expected)


def test_a_tracking_server_that_is_not_there_is_told_within_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    begin = time.monotonic()
    check = checked(tmp_path, "tracking", uri=f"http://127.0.0.1:{port}")
    assert time.monotonic() - begin < 10
    assert not check.passed
    assert check.detail.startswith(f"http://127.0.0.1:{port} cannot be reached (")
    assert check.detail.endswith("start it or give another --tracking-uri")


def test_a_tracking_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "REACH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        begin = time.monotonic()
        check = checked(tmp_path, "tracking", uri=f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert time.monotonic() - begin < 10
    assert not check.passed
    assert "timed out" in check.detail


def test_what_answers_but_is_no_web_server_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        talker = threading.Thread(target=talk, daemon=True)
        talker.start()
        check = checked(tmp_path, "tracking", uri=f"http://127.0.0.1:{listener.getsockname()[1]}")
        talker.join(10)
    assert not check.passed
    assert "cannot be reached" in check.detail


@pytest.mark.parametrize("uri", ["http://127.0.0.1:port", "http://[::1"])
def test_a_tracking_uri_that_is_none_is_told(tmp_path: Path, uri: str) -> None:
    check = checked(tmp_path, "tracking", uri=uri)
    assert not check.passed
    assert check.detail.startswith(f"{uri} cannot be reached (")


def test_the_password_of_a_tracking_uri_is_not_shown(tmp_path: Path, serve: Callable[[int], str]) -> None:
    for server, is_there in ((serve(200), True), ("http://127.0.0.1:1", False)):
        check = checked(tmp_path, "tracking", uri=server.replace("://", "://annabel:s3cret@"))
        assert check.passed is is_there
        assert "s3cret" not in check.detail
        assert "annabel" not in check.detail
        assert server in check.detail


class FakeSpark:
    """A session that has ``slots``, and runs the tasks of a barrier job here, one for each of ``executors``.

    An executor is what differs there from the driver's packages; ``host`` and ``is_apart`` say where it is.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        slots: list[int],
        master: str,
        executors: Sequence[dict[str, str]] | Exception = (),
        **conf: str,
    ) -> None:
        self._executors = executors
        self._monkeypatch = monkeypatch
        self.is_barrier = False
        monkeypatch.setattr(preflight, "task_slots", lambda _: slots.pop(0) if len(slots) > 1 else slots[0])
        monkeypatch.setattr(preflight, "EXECUTORS_SECONDS", 0.5)
        self.sparkContext = SimpleNamespace(
            master=master, getConf=lambda: conf, parallelize=self._parallelize, setLogLevel=None
        )

    def _parallelize(self, rows: range, tasks: int) -> "FakeSpark":
        assert len(rows) == tasks
        return self

    def barrier(self) -> "FakeSpark":
        self.is_barrier = True
        return self

    def mapPartitions(self, task: Any) -> "FakeSpark":  # noqa: N802 - Spark's name
        self._task = pickle.loads(cloudpickle.dumps(task))  # noqa: S301
        return self

    def collect(self) -> list[Any]:
        assert self.is_barrier, "one executor could run all tasks of a plain job"
        if isinstance(self._executors, Exception):
            raise self._executors
        return [answer for executor in self._executors for answer in self._answer(dict(executor))]

    def _answer(self, executor: dict[str, str]) -> list[Any]:
        mine = preflight.fingerprint()
        host = executor.pop("host", "node-1")
        with self._monkeypatch.context() as there:
            there.setattr(socket, "gethostname", lambda: host)
            if executor.pop("is_apart", None):
                there.setattr(Path, "read_text", self._absent)
            there.setattr(preflight, "fingerprint", lambda: mine | executor)
            return list(self._task(iter([0])))

    @staticmethod
    def _absent(path: Path, **_: Any) -> str:
        raise FileNotFoundError(path)


def cluster(
    monkeypatch: pytest.MonkeyPatch, workers: int, slots: list[int], shared: Path | None = None, /, **rest: Any
) -> dict[str, Check]:
    spark: Any = FakeSpark(monkeypatch, slots, **{"master": "spark://host:7077"} | rest)
    return {check.name: check for check in check_cluster(spark, workers, shared)}


def test_too_few_slots_are_told_before_spark_waits_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    checks = cluster(monkeypatch, 4, [2], master="local[2]")
    assert time.monotonic() - begin < 0.4  # a local session gets no more
    assert not checks["slots"].passed
    assert checks["slots"].detail.startswith("local[2] has 2 task slots for 4 workers")
    assert "use --workers 2 or a larger cluster" in checks["slots"].detail
    assert "executors" not in checks


def test_executors_that_are_still_on_their_way_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = cluster(monkeypatch, 2, [0, 1, 2], executors=[{}, {}])
    assert checks["slots"] == Check("slots", True, "2 on spark://host:7077")


def test_executors_that_do_not_come_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    checks = cluster(monkeypatch, 2, [0])
    assert time.monotonic() - begin < 5
    assert not checks["slots"].passed


def test_dynamic_allocation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = cluster(monkeypatch, 1, [1], None, **{"spark.dynamicAllocation.enabled": "TRUE"})
    assert not checks["allocation"].passed
    assert checks["allocation"].detail.endswith("set it to false")


def test_executors_with_the_drivers_packages_and_files_pass_and_nothing_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    executors = [{"host": "node-1"}, {"host": "node-2"}]
    checks = cluster(monkeypatch, 2, [2], tmp_path / "new" / "output", executors=executors)
    detail = "same Python and packages for all 2 workers, on node-1, node-2"
    assert checks["executors"] == Check("executors", True, detail)
    assert list(tmp_path.iterdir()) == []


def test_an_executor_with_another_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = cluster(monkeypatch, 2, [2], executors=[{}, {"host": "node-2", "numpy": "1.26.4"}])
    assert not checks["executors"].passed
    assert checks["executors"].detail.startswith("numpy is 1.26.4 on node-2 and ")
    assert checks["executors"].detail.endswith("on the driver; install the same version")


def test_an_executor_that_does_not_share_the_output_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executors = [{}, {"host": "node-2", "is_apart": "yes"}]
    checks = cluster(monkeypatch, 2, [2], tmp_path, executors=executors)
    detail = f"the one on node-2 does not see {tmp_path}; use storage that all nodes share"
    assert checks["executors"] == Check("executors", False, detail)
    assert list(tmp_path.iterdir()) == []
    assert cluster(monkeypatch, 2, [2], executors=executors)["executors"].passed


def test_executors_that_cannot_run_our_code_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = PySparkException(
        "Could not recover from a failed barrier ResultStage\n"
        "ModuleNotFoundError: python3 on this executor cannot import 'training'; install mirrorspark\n"
        "\tat org.apache.spark"
    )
    checks = cluster(monkeypatch, 2, [2], tmp_path, executors=error)
    assert not checks["executors"].passed
    expected = "cannot run our code: python3 on this executor cannot import 'training'; install mirrorspark"
    assert checks["executors"].detail == expected
    assert list(tmp_path.iterdir()) == []


def test_a_local_session_shares_the_drivers_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = cluster(monkeypatch, 2, [2], master="local[2]")
    assert set(checks) == {"slots", "allocation"}
