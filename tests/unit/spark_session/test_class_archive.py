"""The archive of Java's classes: written by the first Java of a local session, read by those after it."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.spark_session.class_archive import VARIABLE, with_archive


def installation(folder: Path, release: str = 'JAVA_VERSION="17.0.15"') -> dict[str, str]:
    """Return an environment with a Java and a Spark that are files alone."""
    java, spark = folder / "jdk", folder / "spark"
    (java / "bin").mkdir(parents=True)
    (java / "bin" / "java").touch()
    (java / "release").write_text(release)
    (spark / "jars").mkdir(parents=True)
    return {"JAVA_HOME": str(java), "SPARK_HOME": str(spark), VARIABLE: str(folder / "archives"), "PATH": os.defpath}


def archive_of(options: Mapping[str, Any], way: str) -> Path | None:
    """Return the archive that the options name to be written or read."""
    _, named, path = str(options["env"].get("SPARK_SUBMIT_OPTS", "")).partition(f"-XX:{way}=")
    return Path(path) if named else None


def test_the_first_java_writes_the_archive_that_later_ones_read(tmp_path: Path) -> None:
    environment = installation(tmp_path) | {"SPARK_SUBMIT_OPTS": "-Dmine=1"}
    first = with_archive(environment)
    archive = archive_of(first, "ArchiveClassesAtExit")
    assert archive is not None
    assert archive.parent == tmp_path / "archives"
    assert first["env"]["SPARK_SUBMIT_OPTS"].startswith("-Dmine=1 -Xshare:auto ")
    # A pipe of the caller ends with this process, not with Java's writing.
    assert first["stdout"] == subprocess.DEVNULL
    archive.touch()
    later = with_archive(environment)
    assert archive_of(later, "SharedArchiveFile") == archive
    assert "stdout" not in later

    os.utime(tmp_path / "spark" / "jars", ns=(1, 1))  # other JARs
    other = archive_of(with_archive(environment), "ArchiveClassesAtExit")
    assert other not in (None, archive)


def test_the_latest_archives_are_kept(tmp_path: Path) -> None:
    environment = installation(tmp_path)
    folder = tmp_path / "archives"
    folder.mkdir()
    for age in range(5):
        (folder / f"spark-{age}.jsa").touch()
        os.utime(folder / f"spark-{age}.jsa", (1000 - age, 1000 - age))
    with_archive(environment)
    assert sorted(path.name for path in folder.iterdir()) == ["spark-0.jsa", "spark-1.jsa"]


@pytest.mark.parametrize(
    "reason", ["off", "old Java", "OpenJ9", "no Java", "Spark's configuration", "the user's archive", "a blank"]
)
def test_java_starts_as_ever_where_no_archive_can_be(tmp_path: Path, reason: str) -> None:
    releases = {"old Java": 'JAVA_VERSION="11.0.2"', "OpenJ9": 'JAVA_VERSION="21"\nJVM_VARIANT="Openj9"'}
    environment = installation(tmp_path, releases.get(reason, 'JAVA_VERSION="21.0.1"'))
    if reason == "off":
        environment[VARIABLE] = "0"
    elif reason == "no Java":
        environment |= {"JAVA_HOME": str(tmp_path / "none")}
    elif reason == "Spark's configuration":
        (tmp_path / "spark" / "conf").mkdir()
        (tmp_path / "spark" / "conf" / "log4j2.properties").touch()
    elif reason == "the user's archive":
        environment["SPARK_SUBMIT_OPTS"] = "-XX:SharedArchiveFile=mine.jsa"
    elif reason == "a blank":
        environment[VARIABLE] = str(tmp_path / "my archives")
    options = with_archive(environment)
    assert options["env"].get("SPARK_SUBMIT_OPTS") == environment.get("SPARK_SUBMIT_OPTS")
    assert "stdout" not in options


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    environment = installation(tmp_path)
    (tmp_path / "archives").touch()
    assert archive_of(with_archive(environment), "ArchiveClassesAtExit") is None
