"""What is added to Spark's JVM: made once for the same files, and one sentence where Maven lacks something."""

from pathlib import Path
from subprocess import CompletedProcess

import pytest

from benchmarks import jvm_classes
from benchmarks.jvm_classes import class_path, missing
from benchmarks.other_environment import UnavailableError

IVY_LOG = """
		module not found: com.example#engine;1.0
	==== public: tried
		::::::::::::::::::::::::::::::::::::::::::::::
		::          UNRESOLVED DEPENDENCIES         ::
		::::::::::::::::::::::::::::::::::::::::::::::
		:: com.example#engine;1.0: not found
		::::::::::::::::::::::::::::::::::::::::::::::
"""


class FakeJava:
    """Stands for Ivy and for the compiler: leaves what they would, and counts."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.fetches = self.compilations = 0

    def __call__(self, *arguments: str) -> "CompletedProcess[str]":
        if "org.apache.ivy.Main" in arguments:
            self.fetches += 1
            for jar in (self.home / "run" / "engine-1.0.jar", self.home / "compile" / "compiler-1.0.jar"):
                jar.parent.mkdir(parents=True)
                jar.touch()
        else:
            self.compilations += 1
            (self.home / "classes").mkdir()
        return CompletedProcess(arguments, 0, "")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Return an Ivy file and a Java file."""
    modules, source = tmp_path / "modules.xml", tmp_path / "Score.java"
    modules.write_text("<ivy-module/>", encoding="utf-8")
    source.write_text("class Score {}", encoding="utf-8")
    return modules, source


def test_classes_are_made_anew_only_when_a_file_has_changed(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    java = FakeJava(home)
    monkeypatch.setattr(jvm_classes, "_java", java)

    first, second = class_path(*files, home), class_path(*files, home)
    assert first == second == [home / "classes", home / "run" / "engine-1.0.jar"]
    assert (java.fetches, java.compilations) == (1, 1)

    files[1].write_text("class Score { int rows; }", encoding="utf-8")
    class_path(*files, home)
    assert (java.fetches, java.compilations) == (2, 2)


def test_module_that_maven_lacks_is_named(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jvm_classes, "_java", lambda *arguments: CompletedProcess(arguments, 1, IVY_LOG))

    with pytest.raises(UnavailableError, match=r"cannot be had from Maven: com\.example#engine;1\.0: not found\.$"):
        class_path(*files, tmp_path / "home")


def test_other_failures_of_ivy_are_told_by_its_last_words() -> None:
    assert missing("resolving\n\tServer access error at url x\n") == "Server access error at url x"
    assert missing("") == "no word why"


@pytest.mark.process
def test_java_that_cannot_be_started_is_told(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))

    with pytest.raises(UnavailableError, match="set JAVA_HOME to a Java 17"):
        class_path(*files, tmp_path / "home")
