"""Peers in environments of their own: made once for the same requirements, and one sentence where one cannot be had."""

import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from benchmarks import other_environment
from benchmarks.jvm_connector import ARTIFACT, reason_in
from benchmarks.other_environment import (
    OtherProcess,
    UnavailableError,
    class_path,
    environment_with,
    last_error,
    missing,
    started,
)
from benchmarks.score_djl import for_older_tensorflow, native_libraries

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
    monkeypatch.setattr(other_environment, "_java", java)

    first, second = class_path(*files, home), class_path(*files, home)
    assert first == second == [home / "classes", home / "run" / "engine-1.0.jar"]
    assert (java.fetches, java.compilations) == (1, 1)

    files[1].write_text("class Score { int rows; }", encoding="utf-8")
    class_path(*files, home)
    assert (java.fetches, java.compilations) == (2, 2)


def test_module_that_maven_lacks_is_named(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_environment, "_java", lambda *arguments: CompletedProcess(arguments, 1, IVY_LOG))

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


class Doubling(tf.Module):
    """A module with one variable."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = tf.Variable(2.0, name="factor")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "values")])
    def doubled(self, values: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return twice the values."""
        return {"score": self.factor * values}


def attributes(folder: Path) -> set[str]:
    """Return the names of the attributes of all variables of a SavedModel."""
    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    nodes = [node for graph in model.meta_graphs for node in graph.graph_def.node if node.op == "VarHandleOp"]
    assert nodes
    return {name for node in nodes for name in node.attr}


def test_model_loses_the_debug_names_of_its_variables_and_gives_the_same_scores(tmp_path: Path) -> None:
    module = Doubling()
    tf.saved_model.save(module, str(tmp_path / "new"), signatures=module.doubled)

    for_older_tensorflow(tmp_path / "new", tmp_path / "old")

    assert attributes(tmp_path / "new") - attributes(tmp_path / "old") == {"debug_name"}
    scores = tf.saved_model.load(str(tmp_path / "old")).signatures["serving_default"](tf.constant([1.5, -2.0]))
    np.testing.assert_array_equal(scores["score"].numpy(), [3.0, -4.0])


def test_libraries_are_taken_out_of_their_jar_and_a_half_written_one_anew(tmp_path: Path) -> None:
    jar = tmp_path / "tensorflow-native-cpu-2.10.1-linux-x86_64.jar"
    with zipfile.ZipFile(jar, "w") as written:
        written.writestr("native/lib/libtensorflow_cc.so.2", b"all of it")
        written.writestr("native/lib/libjnitensorflow.so", b"bindings")
        written.writestr("native/lib/tensorflow.properties", b"classifier=cu113-linux-x86_64")
        written.writestr("META-INF/LICENSE", b"Apache")
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "libtensorflow_cc.so.2").write_bytes(b"half")

    found = native_libraries([tmp_path / "classes", jar], folder)

    assert {file.name: file.read_bytes() for file in found.iterdir()} == {
        "libtensorflow_cc.so.2": b"all of it",
        "libjnitensorflow.so": b"bindings",
    }


@pytest.mark.process
def test_environment_is_used_again_for_the_same_requirements_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def create(home: Path, with_pip: bool) -> None:
        assert with_pip
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "python").symlink_to("/bin/true")  # installs nothing, successfully
        made.append(home)

    monkeypatch.setattr("benchmarks.other_environment.venv.create", create)
    home = tmp_path / "torch"

    for requirements in (["torch==1", "numpy"], ["torch==1", "numpy"], ["torch==2", "numpy"]):
        assert environment_with(requirements, home) == home / "bin" / "python"

    assert made == [home, home]


@pytest.mark.process
def test_process_that_does_not_answer_in_time_is_killed_with_what_it_started(tmp_path: Path) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    command = [sys.executable, "-c", program]

    with started(command, {}, tmp_path / "log") as process:
        # Both hold the standard output open: the end of one would not end the wait.
        impatient = replace(process, answer_seconds=0.5)
        with pytest.raises(UnavailableError, match=r"had no answer to \{'work': 'train'\} within 0.5 s"):
            impatient.ask(work="train")


def test_end_of_the_other_process_is_told_by_its_last_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("starting\nImportError: no torch\n  at line 3\n", encoding="utf-8")
    requests, answers = (tmp_path / name for name in ("requests", "answers"))
    answers.write_text("noise\n", encoding="utf-8")

    with requests.open("w") as out, answers.open() as back, pytest.raises(UnavailableError, match="no torch"):
        OtherProcess(out, back, log, last_error, kill=lambda: None).ask(work="versions")

    assert json.loads(requests.read_text()) == {"work": "versions"}
    assert last_error("") == "the process ended: no word why"


def test_connector_that_maven_lacks_is_skipped_with_the_way_out() -> None:
    log = "Setting default log level\n:: UNRESOLVED DEPENDENCIES ::\nRuntimeException: [unresolved dependency: x]"

    assert ARTIFACT in reason_in(log)
    assert "--cache" in reason_in(log)
    other = "WARN something\nException in thread main java.lang.NoClassDefFoundError: org/x\n\tat a.b\n"
    assert reason_in(other).endswith("java.lang.NoClassDefFoundError: org/x")
