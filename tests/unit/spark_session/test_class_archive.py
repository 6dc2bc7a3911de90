"""The archive of Java's classes: written by the first Java of a local session, read by those after it."""

import os
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
from pyspark.errors import PySparkRuntimeError

from mirrorspark.spark_session import start
from mirrorspark.spark_session.class_archive import VARIABLE, Launch, launch_of


def installation(folder: Path, release: str = 'JAVA_VERSION="17.0.15"') -> dict[str, str]:
    """Return an environment with a Java and a Spark that are files alone."""
    java, spark = folder / "jdk", folder / "spark"
    (java / "bin").mkdir(parents=True)
    (java / "bin" / "java").touch()
    (java / "release").write_text(release)
    (spark / "jars").mkdir(parents=True)
    return {"JAVA_HOME": str(java), "SPARK_HOME": str(spark), VARIABLE: str(folder / "archives"), "PATH": os.defpath}


def written(launch: Launch) -> Path:
    """Return the part that Java writes at its end."""
    assert (launch.writes, launch.archive) == (True, None)
    # A pipe of the caller ends with this process, not with Java's writing.
    assert launch.options["stdout"] == subprocess.DEVNULL
    return Path(launch.options["env"]["SPARK_SUBMIT_OPTS"].partition("-XX:ArchiveClassesAtExit=")[2])


def test_a_part_that_java_has_written_to_its_end_is_the_archive_of_later_sessions(tmp_path: Path) -> None:
    environment = installation(tmp_path) | {"SPARK_SUBMIT_OPTS": "-Dmine=1"}
    part = written(launch_of(environment))
    assert part.parent == tmp_path / "archives"
    part.write_bytes(b"\0" * 8)  # Java writes the head last
    assert written(launch_of(environment)) == part
    part.write_bytes(bytes.fromhex("a8ab0bf0") + b"classes")
    later = launch_of(environment)
    assert later.archive is not None
    assert later.archive.read_bytes().endswith(b"classes")
    assert [*part.parent.iterdir()] == [later.archive]
    assert "stdout" not in later.options
    assert later.options["env"]["SPARK_SUBMIT_OPTS"].startswith("-Dmine=1 -Xshare:auto ")
    assert later.options["env"]["SPARK_SUBMIT_OPTS"].endswith(f" -XX:SharedArchiveFile={later.archive}")
    assert launch_of(environment) == later

    os.utime(tmp_path / "spark" / "jars", ns=(1, 1))  # other JARs
    assert written(launch_of(environment)).name.partition(".jsa")[0] != later.archive.stem


def test_the_latest_archives_are_kept_and_no_part_that_nobody_writes(tmp_path: Path) -> None:
    environment = installation(tmp_path)
    folder = tmp_path / "archives"
    folder.mkdir()
    for age in range(5):
        (folder / f"spark-{age}.jsa").touch()
        os.utime(folder / f"spark-{age}.jsa", (1000 - age, 1000 - age))
    own = written(launch_of(environment))
    own.touch()
    (folder / "spark-0.jsa.another-boot.7.part").touch()
    (folder / own.name.replace(str(os.getpid()), "7")).touch()
    os.utime(folder / own.name.replace(str(os.getpid()), "7"), (1000, 1000))
    launch_of(environment)
    own.unlink()
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
    launch = launch_of(environment)
    assert (launch.archive, launch.writes) == (None, False)
    assert launch.options["env"].get("SPARK_SUBMIT_OPTS") == environment.get("SPARK_SUBMIT_OPTS")
    assert "stdout" not in launch.options


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    environment = installation(tmp_path)
    (tmp_path / "archives").touch()
    assert not launch_of(environment).writes


def test_an_archive_with_which_java_ends_at_once_is_deleted_and_spark_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = tmp_path / "spark.jsa"
    spoilt.touch()

    class FakeLaunch(nullcontext[None]):
        archive = spoilt

    class Builder:
        def getOrCreate(self) -> str:  # noqa: N802 - Spark's name
            if spoilt.exists():
                raise PySparkRuntimeError("[JAVA_GATEWAY_EXITED] Java gateway process exited", messageParameters={})
            FakeLaunch.archive = None  # type: ignore[assignment]
            return "a session"

    monkeypatch.setattr(start, "quiet_launch", FakeLaunch)
    assert start._started(Builder(), verbose=False) == "a session"
