"""Choice of a run's session, its settings, and the address of its driver."""

import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyspark
import pytest
from pyspark import SparkContext, java_gateway
from pyspark.logger import PySparkLogger
from pyspark.sql import SparkSession

from mirrorspark.spark_session import interfaces, interpreter, server
from mirrorspark.spark_session.errors import SparkStartError
from mirrorspark.spark_session.interfaces import DriverAddressError
from mirrorspark.spark_session.kinds import session_of
from mirrorspark.spark_session.server import AnotherSessionError
from mirrorspark.spark_session.silence import quiet_launch
from mirrorspark.spark_session.start import (
    open_session,
    require_own_installation,
    session_settings,
    start_failure,
)


def session(master: str, **conf: str) -> Any:
    settings = {name.replace("_", "."): value for name, value in conf.items()}
    return SimpleNamespace(sparkContext=SimpleNamespace(master=master, getConf=lambda: settings))


@pytest.fixture
def spark_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return Spark's configuration folder, empty."""
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    return tmp_path


def test_the_active_session_is_used_unless_another_cluster_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    active = session("local[2]")
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: active)
    assert open_session(None, 4) is active
    assert open_session("local[2]", 4) is active
    with pytest.raises(AnotherSessionError, match=r"master is spark://host:7077, but a Spark session on local\[2\]"):
        open_session("spark://host:7077", 4)


def test_a_server_with_other_parameters_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """They choose the user, and behind a workspace the cluster; records of a run leave them out."""
    active: Any = SimpleNamespace(session_id="one")
    monkeypatch.setitem(server._started_here, "one", "sc://host/;token=one")
    asked = ("sc://host", "sc://host:15002", "sc://host/;token=one", "sc://host/;token=two", "sc://other")
    assert [server.is_of(url, active, "sc://host:15002") for url in asked] == [True, True, True, False, False]
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    with pytest.raises(SparkStartError, match=r"parameters of sc://host:15002 were not saved.* give --remote"):
        server.connected("sc://host/;***", "a test", {})


@pytest.mark.parametrize(
    ("said", "reason", "remedy"),
    [
        (
            "Picked up JAVA_TOOL_OPTIONS: -XX:+Nonsense\nUnrecognized VM option 'Nonsense'\n"
            "Error: Could not create the Java Virtual Machine.",
            "Unrecognized VM option 'Nonsense' .Error: Could not create the Java Virtual Machine",
            "take the option away; these variables give Java options: JAVA_TOOL_OPTIONS",
        ),
        (
            "Error occurred during initialization of VM\nCould not reserve enough space for 900000000KB object heap",
            "Could not reserve enough space for 900000000KB object heap",
            "Java gets less memory than it asks for",
        ),
        (
            "Exception in thread main LoginException: java.lang.NullPointerException: invalid null input: name\n"
            "\tat java.base/com.sun.security.auth.UnixPrincipal.<init>(UnixPrincipal.java:67)",
            "invalid null input: name: the user",
            "the user of this process has no line in /etc/passwd",
        ),
        ("java.io.IOException: Too many open files", "Too many open files", "ulimit -n"),
        ("/no/java/bin/java: No such file or directory", "No such file", "install Java 17 or later, and set JAVA_HOME"),
        (
            "An error occurred while calling None.org.apache.spark.api.java.JavaSparkContext.\n"
            ": org.apache.spark.SparkException: Could not parse Master URL: 'host:7077'\n\tat org.apache.spark.Spark",
            "not start: org.apache.spark.SparkException: Could not parse Master URL: 'host:7077': give",
            "give --master as local[2], spark://host:7077",
        ),
        ("", "JAVA_GATEWAY_EXITED", "run `java -version`"),
    ],
)
def test_the_reason_that_java_gives_is_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, said: str, reason: str, remedy: str
) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:+Nonsense")
    line = start_failure(RuntimeError("[JAVA_GATEWAY_EXITED] Java gateway process exited"), lambda: said)
    assert re.search(reason, line)
    assert remedy in line
    assert "\n" not in line


def test_variables_of_another_installation_are_named_before_a_session_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.delenv("SPARK_HOME", raising=False)
    require_own_installation(is_local=True)
    (tmp_path / "jars").mkdir()
    jar = tmp_path / "jars" / "spark-core_2.13-3.5.1.jar"
    jar.touch()
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    with pytest.raises(SparkStartError, match=rf"SPARK_HOME is {tmp_path}, Spark 3\.5\.1, and .* unset SPARK_HOME"):
        require_own_installation(is_local=False)
    jar.rename(jar.with_name(f"spark-core_2.13-{pyspark.__version__}-vendor.jar"))
    require_own_installation(is_local=True)
    monkeypatch.setenv("SPARK_HOME", str(tmp_path / "gone"))
    with pytest.raises(SparkStartError, match="not a folder"):
        require_own_installation(is_local=False)
    monkeypatch.delenv("SPARK_HOME")
    monkeypatch.setenv("PYSPARK_PYTHON", "/old/python")
    require_own_installation(is_local=False)  # a path of the executors
    with pytest.raises(SparkStartError, match=r"PYSPARK_PYTHON is /old/python, which does .*: unset PYSPARK_PYTHON$"):
        require_own_installation(is_local=True)
    monkeypatch.setattr(pyspark, "__version__", "3.5.1")
    with pytest.raises(SparkStartError, match=r"PYTHONPATH has PySpark 3\.5\.1 .*: take it out of PYTHONPATH$"):
        require_own_installation(is_local=False)


def test_the_python_of_sparks_configuration_runs_the_tasks_unless_a_variable_names_one(
    spark_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (spark_conf / "spark-defaults.conf").write_text("spark.pyspark.python /none/python\n")
    for name in ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"):
        monkeypatch.setenv(name, "before")  # and afterwards again
        monkeypatch.delenv(name)
    with pytest.raises(SparkStartError, match=r"^spark\.pyspark\.python is /none/python, .*: unset spark\.pyspark\.py"):
        require_own_installation(is_local=True)
    interpreter.run_this_interpreter()
    assert (os.environ["PYSPARK_PYTHON"], os.environ["PYSPARK_DRIVER_PYTHON"]) == ("/none/python", sys.executable)
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    require_own_installation(is_local=True)


@pytest.mark.parametrize(
    ("master", "variable", "setting", "found"),
    [
        ("local[2]", None, None, sys.executable),
        ("local-cluster[1,1,1024]", None, None, sys.executable),
        ("spark://host:7077", None, None, "python3"),
        ("spark://host:7077", None, "/opt/python", "/opt/python"),
        ("spark://host:7077", "python3", "/opt/python", "python3"),
    ],
)
def test_the_tasks_of_a_session_that_names_no_python_run_this_one(
    monkeypatch: pytest.MonkeyPatch, master: str, variable: str | None, setting: str | None, found: str
) -> None:
    monkeypatch.delenv("PYSPARK_PYTHON", raising=False)
    if variable:
        monkeypatch.setenv("PYSPARK_PYTHON", variable)
    spark = session(master, **({"spark_pyspark_python": setting} if setting else {}))
    spark.sparkContext.pythonExec = variable or "python3"
    assert session_of(spark).master == master
    assert spark.sparkContext.pythonExec == found


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("echo 2.7", r"Python 2\.7"),
        ("exit 1", "which does not start as a Python"),
        (f"echo {sys.version_info.major}.{sys.version_info.minor} mirrorspark pyarrow", "which lacks mirrorspark, pya"),
    ],
)
@pytest.mark.process
def test_a_python_that_cannot_run_the_tasks_is_refused_with_the_remedy(tmp_path: Path, answer: str, why: str) -> None:
    python = tmp_path / "python3"
    python.write_text(f"#!/bin/sh\n{answer}\n")
    python.chmod(0o755)
    spark = session("local[2]")
    spark.sparkContext.pythonExec = str(python)
    remedy = rf"set PYSPARK_PYTHON to {re.escape(sys.executable)}, and start it again$"
    with pytest.raises(SparkStartError, match=rf"^the tasks of the Spark session run {python}, {why}.*{remedy}"):
        session_of(spark)


@pytest.mark.process
@pytest.mark.parametrize("program", [("-m", "mirrorspark", "train"), ("-c", "import mirrorspark as ms; ms.fit")])
def test_another_pyspark_in_front_is_named_with_its_place(tmp_path: Path, program: tuple[str, ...]) -> None:
    package = tmp_path / "pyspark"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '3.5.1'\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, *program],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    line = ended.stderr.splitlines()[-1]
    assert re.search(rf"PySpark 3\.5\.1 at {package} has no pyspark[.\w]+, and .*: take it out of PYTHONPATH$", line), (
        line
    )
    assert ended.returncode == 1
    assert program[0] == "-c" or ended.stderr.count("\n") == 1


def test_a_local_session_is_small_and_silent(spark_conf: Path) -> None:
    settings = session_settings("local[2]", 2, verbose=False)
    assert settings["spark.driver.memory"] == "2g"
    assert settings["spark.ui.enabled"] == "false"
    assert settings["spark.log.level"] == "OFF"
    assert "spark.log.level" not in session_settings("local[2]", 2, verbose=True)


def test_an_error_of_a_query_is_raised_and_not_printed_as_well(capfd: pytest.CaptureFixture[str]) -> None:
    logger = PySparkLogger.getLogger("SQLQueryContextLogger")
    logger.setLevel(logging.NOTSET)
    logger.exception("no such column", errorClass="UNRESOLVED_COLUMN")
    assert "no such column" in capfd.readouterr().err
    with quiet_launch():
        pass
    logger.exception("no such column", errorClass="UNRESOLVED_COLUMN")
    assert capfd.readouterr().err == ""


@pytest.mark.process
def test_java_does_not_outlive_an_interrupt_of_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparkContext, "_gateway", None)  # as before a first session
    launch = quiet_launch()
    launch.__enter__()
    started = java_gateway.Popen(["sleep", "60"])
    launch.__exit__(KeyboardInterrupt)
    assert started.poll() is not None


def test_a_cluster_keeps_its_pages_memory_and_address(spark_conf: Path) -> None:
    settings = session_settings("spark://host:7077", 2, verbose=False)
    assert settings.keys().isdisjoint({"spark.ui.enabled", "spark.driver.memory", "spark.driver.host"})


@pytest.mark.parametrize("target", ["local[2]", "spark://host:7077"])
def test_the_users_defaults_stand_over_ours(spark_conf: Path, target: str) -> None:
    (spark_conf / "spark-defaults.conf").write_text(
        "# spark.sql.shuffle.partitions 7\n\nspark.driver.memory   8g\nspark.ui.enabled=true\n"
        "  spark.log.level: WARN\nspark.sql.session.timeZone CET\n"
    )
    settings = session_settings(target, 2, verbose=False)
    assert settings.keys().isdisjoint({"spark.driver.memory", "spark.ui.enabled", "spark.log.level"})
    assert settings["spark.sql.shuffle.partitions"] == "8"
    # Splits and time stamps must not depend on the machine.
    assert settings["spark.sql.session.timeZone"] == "UTC"


def test_the_users_log4j_file_decides_what_is_logged(spark_conf: Path) -> None:
    (spark_conf / "log4j2.properties").write_text("rootLogger.level = info\n")
    assert "spark.log.level" not in session_settings("spark://host:7077", 2, verbose=False)


@pytest.mark.parametrize(
    ("master", "local"),
    [("local", True), ("local[2]", True), ("local[*]", True), ("local-cluster[1,1,1024]", False), ("yarn", False)],
)
def test_executors_of_their_own_are_not_local(master: str, local: bool) -> None:
    assert session_of(session(master)).is_local is local


def test_the_driver_is_found_at_its_host_and_listens_where_it_is_told_to() -> None:
    behind = session("k8s://api", spark_driver_host="driver.svc", spark_driver_bindAddress="10.0.0.7")
    assert (session_of(behind).driver_address, session_of(behind).bind_address()) == ("driver.svc", "10.0.0.7")
    plain = session("spark://host:7077", spark_driver_host="10.0.0.1")
    assert (session_of(plain).driver_address, session_of(plain).bind_address()) == ("10.0.0.1", "10.0.0.1")
    local = session("local[2]", spark_driver_bindAddress="0.0.0.0")  # noqa: S104
    assert (session_of(local).driver_address, session_of(local).bind_address()) == ("127.0.0.1", "127.0.0.1")


def resolve(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def getaddrinfo(host: str, *_: object) -> list[Any]:
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("every", ["0.0.0.0", "::", "[::]"])  # noqa: S104
def test_the_driver_listens_on_one_interface_where_spark_listens_on_all(
    every: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interfaces, "_ANYWHERE", "127.0.0.3")
    spark = session("k8s://api", spark_driver_host="127.0.0.2", spark_driver_bindAddress=every)
    # The kernel picks the interface: that of an address of this machine is that address, or its network's own.
    assert session_of(spark).bind_address() == interface_of("127.0.0.2")
    named = session("k8s://api", spark_driver_host="driver.svc", spark_driver_bindAddress=every)
    for found in ((), ("127.0.1.1",)):  # no such name; a hosts file in which the machine's name is loopback
        resolve(monkeypatch, *found)
        assert session_of(named).bind_address() == interface_of("127.0.0.3")


def interface_of(address: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((address, 9))
        return str(way.getsockname()[0])


def test_without_a_way_to_the_driver_no_interface_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch)
    monkeypatch.setattr(interfaces, "_ANYWHERE", "255.255.255.255")  # which a plain socket may not be connected to
    spark = session("k8s://api", spark_driver_host="driver.svc", spark_driver_bindAddress="0.0.0.0")  # noqa: S104
    with pytest.raises(DriverAddressError, match=r"spark.driver.host driver.svc; set spark.driver.bindAddress to the"):
        session_of(spark).bind_address()
