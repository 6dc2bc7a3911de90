"""The start of a Spark session: for a run (the active one, a cluster's or a local one) or for a command that scores."""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyspark
from pyspark.sql import SparkSession

from mirrorspark.spark_session.errors import SESSION_ERRORS, SparkStartError
from mirrorspark.spark_session.interpreter import is_on_this_machine, require_fit_choice, run_this_interpreter
from mirrorspark.spark_session.kinds import session_of
from mirrorspark.spark_session.server import AnotherSessionError, connected, is_of, server_of, shown
from mirrorspark.spark_session.silence import SILENT, hide_interrupts, quiet_launch, user_settings
from mirrorspark.storage import terminal_text, without_credentials

# Settings that our code relies on.
REQUIRED = {"spark.sql.session.timeZone": "UTC", "spark.sql.execution.arrow.pyspark.enabled": "true"}


# Variables whose options Java, or Spark's start of it, takes.
_JAVA_OPTIONS = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "SPARK_SUBMIT_OPTS", "PYSPARK_SUBMIT_ARGS")
_MOST_CHARACTERS = 400
# Lines of stacks and greetings.
_NOISE = re.compile(
    r"^\s*(at |\.\.\. |$)|^An error occurred while calling "
    r"|^(Using |Setting default|To adjust|WARNING: |Picked up|NOTE: )|\b(WARN|INFO)\b"
)
_REASON = re.compile(
    r"(?i)error|exception|could not|cannot|can't|unrecogni[sz]ed|invalid|too (many|small|large)|no such file|not found"
)
_REMEDIES = (
    (
        re.compile(
            r"invalid null input|basedir must be absolute: \?|UnixPrincipal|LoginException"
            r"|whoami|cannot find name for user"
        ),
        "the user of this process has no line in /etc/passwd, which Java needs; add one, or run as another user",
    ),
    (re.compile(r"(?i)too many open files|EMFILE|A JNI error has occurred"), "allow more open files (ulimit -n 4096)"),
    (
        re.compile(r"(?i)heap|reserve enough space|allocate memory|OutOfMemory|unable to create native thread"),
        "Java gets less memory than it asks for, or than it needs; set spark.driver.memory and Java's options to fit",
    ),
    (
        re.compile(r"Could not parse Master URL"),
        "give --master as local[2], spark://host:7077, yarn, k8s://… or sc://host:15002",
    ),
    # Spark's script takes what Java says on its standard output for the command.
    (
        re.compile(r"CMD: bad array subscript"),
        "Java ended at once, as it does with too large a heap or a wrong option; look at its memory and options",
    ),
    (re.compile(r"(?i)unrecogni[sz]ed|could not create the java virtual machine"), "take the option away"),
    (re.compile(r"(?i)no such file|not found"), "install Java 17 or later, and set JAVA_HOME to it"),
)


MOST_LOCAL_SLOTS = 4


def local_slots() -> int:
    """Return the slots of a local session that is started without a number: one per core, four at most."""
    return min(MOST_LOCAL_SLOTS, os.cpu_count() or 1)


def open_session(
    master: str | None, workers: int, *, app_name: str = "mirrorspark", verbose: bool = False
) -> SparkSession:
    """Return the active session, or start one.

    Args:
        master: URL of a cluster or of a Spark Connect server (``sc://``); None for the active session, else that of
            ``SPARK_REMOTE``, else ``local[workers]``.
        workers: Slots that training needs; the size of a local session.
        app_name: Shown in the Spark UI.
        verbose: Leave Spark's own log level unchanged. By default Spark is silent: it prints pages about a lost worker,
            and our own message says more.

    Raises:
        AnotherSessionError: The active session is on another cluster than ``master``.
        SparkStartError: Spark does not start; the message has the reason that Java gives, and the remedy.
    """
    active = SparkSession.getActiveSession()
    if active is not None:
        if master is not None and not is_of(master, active, here := session_of(active).master):
            raise AnotherSessionError(
                f"master is {shown(master)}, but a Spark session on {here} is active; stop it or leave master out to "
                f"use it"
            )
        return active
    if (server := server_of(master)) is not None:
        return connected(server, app_name, REQUIRED)
    target = master or f"local[{workers}]"
    require_own_installation(is_local=is_on_this_machine(target))
    run_this_interpreter()
    if is_on_this_machine(target):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder.appName(app_name).master(target)
    for name, value in session_settings(target, workers, verbose=verbose).items():
        builder = builder.config(name, value)
    return _started(builder, verbose=verbose)


def open_command_session(
    master: str | None, *, verbose: bool, settings: Mapping[str, str] | None = None
) -> SparkSession:
    """Return a session for a command that scores; Spark's log is hidden unless ``verbose``.

    Args:
        master: URL of the cluster or of a Spark Connect server (``sc://``); by default that of ``SPARK_REMOTE``, or the
            one in Spark's own configuration.
        verbose: Whether to show the log of Spark.
        settings: Settings of Spark that apply where the user has not set them.

    Raises:
        SparkStartError: Spark does not start; the message has the reason that Java gives, and the remedy.
    """
    if (server := server_of(master)) is not None:
        return connected(server, "mirrorspark scoring", REQUIRED)
    require_own_installation(is_local=is_on_this_machine(master or ""))
    run_this_interpreter()
    builder = SparkSession.builder.appName("mirrorspark scoring")
    builder = builder.master(master) if master else builder
    own = {**(settings or {}), **({} if verbose else SILENT)}
    for name in own.keys() - user_settings().keys():
        builder = builder.config(name, own[name])
    if verbose:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0")
    return _started(builder, verbose=verbose)


def starts_java(master: str | None) -> bool:
    """Return True if the session that is active, or is asked for, has its JVM on this machine."""
    active = SparkSession.getActiveSession()
    return server_of(master) is None if active is None else session_of(active).has_context


def _started(builder: Any, *, verbose: bool) -> SparkSession:
    hide_interrupts()
    launch = quiet_launch()
    try:
        with nullcontext() if verbose else launch:
            session: SparkSession = builder.getOrCreate()
            return session
    except (*SESSION_ERRORS, OSError) as error:
        if terminal_text.is_interrupt(error):
            raise KeyboardInterrupt from error
        if launch.archive is not None and "JAVA_GATEWAY_EXITED" in str(error):
            # Java ends at once with an archive that the disk has spoilt.
            launch.archive.unlink(missing_ok=True)
            return _started(builder, verbose=verbose)
        raise SparkStartError(start_failure(error, lambda: _said_at_start(builder))) from error


def _said_at_start(builder: Any) -> str:
    """Return the output of Java when it is started again: the first time its output was hidden."""
    with tempfile.TemporaryFile() as file:
        with suppress(*SESSION_ERRORS, OSError), quiet_launch(file.fileno()):
            builder.getOrCreate()
        file.seek(0)
        return file.read().decode(errors="replace")


def start_failure(error: Exception, said: Callable[[], str]) -> str:
    """Return the line on a start of Spark that failed: the reason that Java gives, and the remedy.

    Args:
        error: The error of PySpark.
        said: Returns the output of Java, for an error that only reports its end.
    """
    text = without_credentials(said() if "JAVA_GATEWAY_EXITED" in str(error) else str(error))
    lines = [line.strip().removeprefix(": ") for line in text.splitlines() if not _NOISE.search(line)]
    reasons = [line for line in lines if _REASON.search(line)] or lines or [str(error)]
    reason = reasons[0] if len(reasons) == 1 or reasons[-1] in reasons[0] else f"{reasons[0]} ({reasons[-1]})"
    remedy = next(
        (remedy for sign, remedy in _REMEDIES if sign.search(text)), "run `java -version` and `mirrorspark doctor`"
    )
    given = [name for name in _JAVA_OPTIONS if os.environ.get(name)]
    about = f"; these variables give Java options: {', '.join(given)}" if given else ""
    return f"Spark does not start: {reason[:_MOST_CHARACTERS]}: {remedy}{about}"


def session_settings(target: str, workers: int, *, verbose: bool) -> Mapping[str, str]:
    """Return the settings of a session on ``target``.

    Only settings that our code relies on override the user's own ``spark-defaults.conf``.
    """
    defaults = {
        "spark.ui.showConsoleProgress": SILENT["spark.ui.showConsoleProgress"],
        # Shuffles are small here; Spark's default of 200 partitions would make 200 tiny tasks.
        "spark.sql.shuffle.partitions": str(max(2 * workers, 8)),
        # A barrier stage with too few slots is retried silently for ten minutes; preflight has counted them already.
        "spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures": "3",
    }
    if not verbose:
        defaults |= SILENT
    if is_on_this_machine(target):
        # A cluster's own pages are left to its operators.
        defaults |= {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.memory": "2g"}
    users = user_settings()
    return {name: value for name, value in defaults.items() if name not in users} | REQUIRED


def java_major_version() -> int | None:
    """Return the major version of the Java that Spark would start, or None if there is none."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else "java"
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    # Before 9, Java called itself 1.8 and so on. Other quoted text may come first: the value of JAVA_TOOL_OPTIONS.
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(found[1]) if found else None


def require_own_installation(*, is_local: bool) -> None:
    """Check that the variables of the environment lead to this version of Spark and, on this machine, of Python.

    Raises:
        SparkStartError: SPARK_HOME, PYTHONPATH, PYSPARK_PYTHON or Spark's configuration leads to another version, or
            nowhere.
    """
    home, own, installed = os.environ.get("SPARK_HOME"), pyspark.__version__, version("pyspark")
    if own.split(".")[:2] != installed.split(".")[:2]:
        raise SparkStartError(
            f"PYTHONPATH has PySpark {own} ({Path(pyspark.__file__).parent}) before the installed {installed}: take it "
            f"out of PYTHONPATH"
        )
    if home is not None:
        jars = [*Path(home).glob("jars/spark-core_*.jar")]
        # The jar's name has Scala's version, then Spark's, to which some vendors add theirs.
        found = f"Spark {jars[0].stem.rpartition('_')[2].partition('-')[2]}" if jars else "a Spark of its own"
        if not Path(home).is_dir() or (jars and not found.startswith(f"Spark {'.'.join(own.split('.')[:2])}.")):
            what = found if Path(home).is_dir() else "not a folder"
            raise SparkStartError(f"SPARK_HOME is {home}, {what}, and this Python has PySpark {own}: unset SPARK_HOME")
    # Elsewhere it is looked up where the tasks run.
    if is_local:
        require_fit_choice()
