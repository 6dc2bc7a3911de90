"""An archive of the classes that Java loads for Spark, with which Spark starts in two thirds of the time.

Java calls it class data sharing (JEP 350): the first Java of a local session writes down, as it ends, the classes that
it has loaded, and every later one maps them into memory instead of reading and checking 13,000 classes of 250 JARs. The
file has some 150 MB.

Java checks that an archive is of its own version and of these JARs, but not that the file is whole: half of one ends
it. So Java writes a part with a name of its own, and its head last (``ArchiveBuilder::write_archive`` of OpenJDK). A
later session gives a part with a head the archive's name, if the machine has not been started anew in between. Where
Spark does not start with an archive all the same, the archive is deleted and Spark started again.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyspark

from mirrorspark.storage import boot_id, host_cache

VARIABLE = "MIRRORSPARK_CLASS_ARCHIVE"
"""``0`` turns the archive off; any other value is the folder of the archives."""

# An older Java may not know the options.
_OLDEST_JAVA = 17
_LEAST_FREE_BYTES = 2 << 30
_MOST_ARCHIVES = 3
# The head of an archive begins with it (CDS_DYNAMIC_ARCHIVE_MAGIC).
_MAGIC = (0xF00BABA8).to_bytes(4, "little")
_MOST_SECONDS = 120
_LONGEST_WRITE_SECONDS = 3600
# Java would print that an archive does not fit, to standard output.
_SILENT = "-Xshare:auto -Xlog:cds=off -Xlog:cds+dynamic=off"
_QUICK_LAUNCHER = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """A start of ``spark-submit``.

    Attributes:
        options: Options of ``subprocess.Popen``.
        archive: The archive that Java reads, if there is one.
        writes: Java writes an archive at its end.
    """

    options: dict[str, Any]
    archive: Path | None = None
    writes: bool = False


def launch_of(environment: Mapping[str, str]) -> Launch:
    """Return a start by which Spark's Java reads an archive or, if there is none yet, writes it at its end.

    Args:
        environment: The environment in which ``spark-submit`` is to run.
    """
    # The first of two Javas of spark-submit puts the command of the second together.
    changed = {"SPARK_LAUNCHER_OPTS": _QUICK_LAUNCHER, **environment}
    own, archive = environment.get("SPARK_SUBMIT_OPTS", ""), _archive(environment)
    if archive is None or "Archive" in own:
        return Launch({"env": changed})
    if archive.is_file() or _adopted(archive):
        changed["SPARK_SUBMIT_OPTS"] = f"{own} {_SILENT} -XX:SharedArchiveFile={archive}".strip()
        return Launch({"env": changed}, archive)
    part = f"{archive}.{_boot()}.{os.getpid()}.part"
    changed["SPARK_SUBMIT_OPTS"] = f"{own} {_SILENT} -XX:ArchiveClassesAtExit={part}".strip()
    # Java writes for some seconds after this process has ended, on whose output a pipe may wait.
    return Launch({"env": changed, "stdout": subprocess.DEVNULL}, writes=True)


def write_archive() -> None:
    """Start Spark in this process and wait until its Java has written the archive; done already, it does nothing."""
    if not launch_of(os.environ).writes:
        return
    from pyspark import SparkContext

    from mirrorspark.spark_session.errors import SparkStartError
    from mirrorspark.spark_session.start import open_session

    try:
        open_session(None, 1).range(1).count()
        gateway: Any = SparkContext._gateway
        gateway.proc.stdin.close()
        gateway.proc.wait(_MOST_SECONDS)
    except (SparkStartError, subprocess.TimeoutExpired) as error:
        # All works without it, and the call that needs Spark says what is wrong.
        _LOGGER.warning("no archive of Java's classes: %s", error)
    launch_of(os.environ)  # gives the part its name


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


def _boot() -> str:
    return hashlib.sha256(boot_id().encode()).hexdigest()[:12]


def _adopted(archive: Path) -> bool:
    """Give the name of the archive to a part that a Java has written to its end; return whether there is one."""
    for part in archive.parent.glob(f"{archive.name}.{_boot()}.*.part"):
        with suppress(OSError), part.open("rb") as file:  # another session may adopt it first
            if file.read(len(_MAGIC)) == _MAGIC:
                os.fsync(file.fileno())
                part.replace(archive)
                return True
    return archive.is_file()


def _remove_older(folder: Path) -> None:
    """Remove all but the latest archives, which a Java that has one mapped keeps, and parts that nobody writes."""
    archives = sorted(folder.glob("spark-*.jsa"), key=lambda path: path.stat().st_mtime, reverse=True)
    lost = [
        part
        for part in folder.glob("spark-*.part")
        if f".{_boot()}." not in part.name or time.time() - part.stat().st_mtime > _LONGEST_WRITE_SECONDS
    ]
    for path in [*archives[_MOST_ARCHIVES - 1 :], *lost]:
        path.unlink(missing_ok=True)
