"""Peers that the project does not depend on: an environment or jars for them, and the process that runs one.

Ivy, a part of Spark, fetches jars, and Eclipse's compiler, which comes with them, compiles a class: the Java
that Spark runs on is enough, even one without development tools. A process takes requests on its standard input, one
JSON object per line, and answers each with one line of JSON.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyspark

from benchmarks.peer_process import RESULT_PREFIX

_INSTALL_SECONDS = 1200
_END_SECONDS = 60
_SPARK_JARS = Path(pyspark.__file__).parent / "jars"
_JAVA_SECONDS = 1200
_JAVA_RELEASE = "17"
_ANSWER_SECONDS = 1200.0


class UnavailableError(RuntimeError):
    """The other side cannot be measured here; the message is one sentence that says why."""


@dataclass(frozen=True)
class OtherProcess:
    """A process that answers requests.

    Attributes:
        requests: Takes one JSON object per line.
        answers: Gives one line per request, and lines that others write in between.
        log: The process's other output.
        explain: Makes one sentence of that, on why the process ended.
        kill: Ends the process and all that it started.
        answer_seconds: Longest time for an answer.
    """

    requests: IO[str]
    answers: IO[str]
    log: Path
    explain: Callable[[str], str]
    kill: Callable[[], None]
    answer_seconds: float = _ANSWER_SECONDS

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to ``request``.

        Raises:
            UnavailableError: The process ended instead, or has not answered in time and was killed.
        """
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            self.kill()

        limit = threading.Timer(self.answer_seconds, give_up)
        limit.daemon = True
        limit.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # what it said before it ended is read below
                self.requests.write(json.dumps(request) + "\n")
                self.requests.flush()
            for line in self.answers:
                if line.startswith(RESULT_PREFIX):
                    answer: dict[str, Any] = json.loads(line.removeprefix(RESULT_PREFIX))
                    return answer
        finally:
            limit.cancel()
        if is_late.is_set():
            raise UnavailableError(f"the process had no answer to {request} within {self.answer_seconds:g} s.")
        raise UnavailableError(self.explain(self.log.read_text(encoding="utf-8", errors="replace")))


def environment_with(requirements: Sequence[str], home: Path) -> Path:
    """Return the Python of the environment ``home``, which is made unless it is there with these ``requirements``.

    Raises:
        UnavailableError: They cannot be installed.
    """
    python = home / "bin" / "python"
    ready, wanted = home / "ready", "\n".join(requirements)
    if ready.is_file() and ready.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    names = ", ".join(requirements)
    try:
        subprocess.run(install, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{names}: not installed within {_INSTALL_SECONDS} s.") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no word why"])[-1]
        raise UnavailableError(f"{names}: cannot be installed from the package index ({last}).") from error
    ready.write_text(wanted, encoding="utf-8")
    return python


def last_error(log: str) -> str:
    """Return one sentence on why the process ended, from what it wrote."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if "Exception" in line or "Error" in line]
    return f"the process ended: {(telling or lines or ['no word why'])[-1]}"


@contextmanager
def started(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    explain: Callable[[str], str] = last_error,
) -> Iterator[OtherProcess]:
    """Yield the process that ``command`` starts, and end it.

    Args:
        command: Its first word is the Python of the other environment.
        environment: Added to this process's own, without the variables that lead to our packages and our Spark.
        log: File for its output other than answers.
        explain: Makes one sentence of the log, on why the process ended.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYSPARK_", "PYTHON"))}
    inherited.pop("SPARK_HOME", None)
    own = {"PYSPARK_PYTHON": command[0], "PYSPARK_DRIVER_PYTHON": command[0], "SPARK_LOCAL_IP": "127.0.0.1"}
    with log.open("w", encoding="utf-8") as messages:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            env={**inherited, **own, **environment},
            cwd=log.parent,
            start_new_session=True,  # so that it can be killed with all that it starts
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield OtherProcess(process.stdin, process.stdout, log, explain, partial(_kill_group, process))
    finally:
        # The end of its input ends it, and the JVM with it.
        with contextlib.suppress(BrokenPipeError):  # it ended with a request unread
            process.stdin.close()
        try:
            process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            process.wait()
        process.stdout.close()


def _kill_group(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGKILL)


def class_path(modules: Path, source: Path, home: Path) -> list[Path]:
    """Return the jars that ``modules`` names and the folder of the classes of ``source``.

    Args:
        modules: Ivy file with the configurations ``run``, for the class path, and ``compile``, the compiler alone.
        source: Java file; it may use the jars and Spark.
        home: Folder for both, made unless it is there from the same files; ``ivy`` next to it keeps downloads.

    Raises:
        UnavailableError: Maven lacks one of them or cannot be reached, or there is no Java.
        RuntimeError: The Java file does not compile.
    """
    ready = home / "ready"
    wanted = modules.read_text(encoding="utf-8") + source.read_text(encoding="utf-8")
    if not (ready.is_file() and ready.read_text(encoding="utf-8") == wanted):
        shutil.rmtree(home, ignore_errors=True)
        _fetch(modules, home)
        _compile(source, home)
        ready.write_text(wanted, encoding="utf-8")
    return [home / "classes", *_jars(home / "run")]


def _fetch(modules: Path, home: Path) -> None:
    [ivy] = _SPARK_JARS.glob("ivy-*.jar")
    pattern = home / "[conf]" / "[artifact]-[revision](-[classifier]).[ext]"
    files = ["-ivy", str(modules), "-cache", str(home.parent / "ivy"), "-retrieve", str(pattern), "-symlink"]
    try:
        done = _java("-cp", str(ivy), "org.apache.ivy.Main", *files)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(
            f"what {modules.name} names was not fetched from Maven within {_JAVA_SECONDS} s."
        ) from error
    except OSError as error:
        raise UnavailableError(f"no Java can be started ({error}); set JAVA_HOME to a Java {_JAVA_RELEASE}.") from error
    if done.returncode:
        raise UnavailableError(f"what {modules.name} names cannot be had from Maven: {missing(done.stdout)}.")


def missing(log: str) -> str:
    """Return the artifacts that Ivy did not find, or its last words if it does not name them."""
    lines = [line.strip(" :\t") for line in log.splitlines() if line.strip(" :\t")]
    not_found = [line for line in lines if line.endswith(": not found")]
    return ", ".join(dict.fromkeys(not_found)) or (lines or ["no word why"])[-1]


def _compile(source: Path, home: Path) -> None:
    [compiler] = _jars(home / "compile")
    used = os.pathsep.join(map(str, [*_jars(home / "run"), *_jars(_SPARK_JARS)]))
    files = ["-classpath", used, "-d", str(home / "classes"), str(source)]
    done = _java("-jar", str(compiler), f"-{_JAVA_RELEASE}", "-nowarn", "-proc:none", *files)
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile:\n{done.stdout}")


def _java(*arguments: str) -> "subprocess.CompletedProcess[str]":
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else "java"
    return subprocess.run(
        [java, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_JAVA_SECONDS,
        check=False,
    )


def _jars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jar"))
