"""An archive of the classes that Java loads for Spark, with which Spark starts in two thirds of the time.

Java calls it class data sharing (JEP 350): the first Java of a local session writes down, as it ends, the classes that
it has loaded, and every later one maps them into memory instead of reading and checking 13,000 classes of 250 JARs. The
file has some 150 MB, and Java itself checks that it fits: another Java, other JARs or a damaged file make a slow
start, never a wrong one.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyspark

from mirrorspark.storage import host_cache

VARIABLE = "MIRRORSPARK_CLASS_ARCHIVE"
"""``0`` turns the archive off; any other value is the folder of the archives."""

# Before 17, Java reads no archive that it wrote for a class path with wildcards, or does not know the options at all.
_OLDEST_JAVA = 17
_LEAST_FREE_BYTES = 2 << 30
_MOST_ARCHIVES = 3
_MOST_SECONDS = 120
# Java would print that an archive does not fit, to standard output.
_SILENT = "-Xshare:auto -Xlog:cds=off -Xlog:cds+dynamic=off"
_QUICK_LAUNCHER = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
_LOGGER = logging.getLogger(__name__)


def with_archive(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return options of ``subprocess.Popen`` by which Spark's Java reads an archive, or writes it at its end.

    Args:
        environment: The environment in which ``spark-submit`` is to run.
    """
    # The first of two Javas of spark-submit puts the command of the second together.
    changed = {"SPARK_LAUNCHER_OPTS": _QUICK_LAUNCHER, **environment}
    own, archive = environment.get("SPARK_SUBMIT_OPTS", ""), _archive(environment)
    if archive is None or "Archive" in own:
        return {"env": changed}
    is_there = archive.is_file()
    options = f"{_SILENT} -XX:{'SharedArchiveFile' if is_there else 'ArchiveClassesAtExit'}={archive}"
    changed["SPARK_SUBMIT_OPTS"] = f"{own} {options}".strip()
    # Java writes for some seconds after this process has ended, on whose output a pipe may wait.
    return {"env": changed} if is_there else {"env": changed, "stdout": subprocess.DEVNULL}


def write_archive() -> None:
    """Start Spark in this process and wait until its Java has written the archive; done already, it does nothing."""
    if "stdout" not in with_archive(os.environ):
        return
    from pyspark import SparkContext

    from mirrorspark.spark_session.start import open_session

    open_session(None, 1).range(1).count()
    gateway: Any = SparkContext._gateway
    gateway.proc.stdin.close()
    gateway.proc.wait(_MOST_SECONDS)


def _archive(environment: Mapping[str, str]) -> Path | None:
    """Return the file of the archive for this Java and this Spark, which may not exist yet; None to do without."""
    named = environment.get(VARIABLE, "")
    java, jars = _java(environment), Path(environment.get("SPARK_HOME") or Path(pyspark.__file__).parent) / "jars"
    # A folder with files in the class path cannot be in an archive: Spark's configuration, which is next to the JARs.
    if named == "0" or java is None or not jars.is_dir() or _has_files(environment, jars.parent / "conf"):
        return None
    about = [f"{path.resolve()}\0{path.stat().st_mtime_ns}" for path in (java, jars)]
    digest = hashlib.sha256(os.fsencode("\0".join(about))).hexdigest()
    folder = Path(named) if named else host_cache.user_folder("java")
    archive = folder / f"spark-{pyspark.__version__}-{digest[:12]}.jsa"
    # Spark divides options at blanks.
    if " " in str(archive):
        return None
    if archive.is_file():
        return archive
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        has_room = os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= _LEAST_FREE_BYTES
        _remove_older(folder)
    except OSError as error:
        _LOGGER.debug("no archive of Java's classes: %s", error)
        return None
    return archive if has_room else None


def _java(environment: Mapping[str, str]) -> Path | None:
    """Return the Java that Spark starts, if it is one whose archives are known to work."""
    home = environment.get("JAVA_HOME")
    found = Path(home) / "bin" / "java" if home else shutil.which("java", path=environment.get("PATH"))
    if found is None or not (java := Path(found)).is_file():
        return None
    with suppress(OSError):
        release = (java.resolve().parents[1] / "release").read_text(encoding="utf-8", errors="replace")
        version = re.search(r'^JAVA_VERSION="(\d+)', release, re.MULTILINE)
        if version and int(version[1]) >= _OLDEST_JAVA and 'JVM_VARIANT="Openj9"' not in release:
            return java
    return None


def _has_files(environment: Mapping[str, str], default: Path) -> bool:
    folders = [environment.get("SPARK_CONF_DIR") or str(default), environment.get("HADOOP_CONF_DIR", "")]
    return any(folder and Path(folder).is_dir() and any(Path(folder).iterdir()) for folder in folders)


def _remove_older(folder: Path) -> None:
    """Remove all but the latest archives; a Java that has one mapped keeps it."""
    archives = sorted(folder.glob("spark-*.jsa"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in archives[_MOST_ARCHIVES - 1 :]:
        path.unlink(missing_ok=True)
