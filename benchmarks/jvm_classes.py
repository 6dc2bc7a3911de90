"""What a benchmark adds to Spark's JVM: jars from Maven, and a class of its own that uses them.

Ivy fetches them, which Spark brings along, and Eclipse's compiler compiles it, which comes with them: all that it takes
is the Java that Spark runs on, even one without development tools.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pyspark

from benchmarks.other_environment import UnavailableError

_SPARK_JARS = Path(pyspark.__file__).parent / "jars"
_SECONDS = 1200
_JAVA_RELEASE = "17"


def class_path(modules: Path, source: Path, home: Path) -> list[Path]:
    """Return the jars that ``modules`` names and the folder of the classes of ``source``.

    Args:
        modules: Ivy file with the configurations ``run``, for the class path, and ``compile``, the compiler alone.
        source: Java file; it may use the jars and Spark.
        home: Folder for both, made unless it is there from the same files; ``ivy`` beside it keeps what was fetched.

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
        raise UnavailableError(f"what {modules.name} names was not fetched from Maven within {_SECONDS} s.") from error
    except OSError as error:
        raise UnavailableError(f"no Java can be started ({error}); set JAVA_HOME to a Java {_JAVA_RELEASE}.") from error
    if done.returncode:
        raise UnavailableError(f"what {modules.name} names cannot be had from Maven: {missing(done.stdout)}.")


def missing(log: str) -> str:
    """Return what Ivy did not find, or its last words where it does not say so."""
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
        timeout=_SECONDS,
        check=False,
    )


def _jars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jar"))
