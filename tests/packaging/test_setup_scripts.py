"""The set-up scripts, run with programs of our own on PATH: their search, their output, their results."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import PATIENCE

REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEM_COMMANDS = [
    *(
        "awk",
        "cat",
        "chmod",
        "cp",
        "cut",
        "dirname",
        "echo",
        "env",
        "grep",
        "head",
        "id",
        "mkdir",
        "mktemp",
        "mv",
        "rm",
    ),
    *("sed", "sh", "sha256sum", "tail", "timeout", "touch", "uname"),
]

FAKE_JAVA = """#!/bin/sh
echo '    java.home = {home}' >&2
echo '    java.specification.version = {version}' >&2
"""

FAKE_APT_GET = """#!/bin/sh
for last; do :; done
case "$*" in
    *" install "*)
        echo "apt $last" >>"{log}"
        {install}
        ;;
esac
"""

# A Python that makes environments, and whose uv fails while the file `uv-fails` lies next to the log of its calls.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    "-m venv --clear "*)
        rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo "VIRTUAL_ENV=$4" >"$4/bin/activate"
        echo "venv" >>"{log}" ;;
    "-m pip --disable-pip-version-check install"*)
        cp "{uv}" "$(dirname "$0")/uv"
        echo "pip install" >>"{log}" ;;
    "-c import setuptools") [ -x "$(dirname "$0")/uv" ] ;;
    "-m pip "*"config list") echo "global.index-url='mirror'" ;;
    --version) echo "Python 3.12.9" ;;
esac
"""
FAKE_UV = """#!/bin/sh
[ "$1" = --version ] && exit 0
echo "uv $1 $2" >>"{log}"
echo "$UV_DEFAULT_INDEX" >"{folder}/index"
[ ! -e "{folder}/uv-fails" ]
"""


class Machine:
    """A PATH with only the programs that a test put there, a clone and no JVM folder but our own."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.jvm_folder = folder / "jvm"
        self.log = folder / "log"
        self.clone = folder / "clone"
        for made in (self.bin, self.jvm_folder, self.clone):
            made.mkdir()
        self.log.touch()
        for command in SYSTEM_COMMANDS:
            (self.bin / command).symlink_to(shutil.which(command) or pytest.fail(f"no {command} on this machine"))
        for name in ("setup.cfg", "pyproject.toml", "requirements.lock"):
            shutil.copy(REPOSITORY / name, self.clone)
        shutil.copytree(REPOSITORY / "tools", self.clone / "tools")

    def add_program(self, path: str, text: str) -> Path:
        """Put an executable at ``path``, relative to the PATH folder."""
        program = self.bin / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.unlink(missing_ok=True)
        program.write_text(text)
        program.chmod(0o755)
        return program

    def set_user_id(self, user_id: int) -> None:
        self.add_program("id", f"#!/bin/sh\necho {user_id}\n")

    def add_apt(self, install: str = "") -> None:
        """Put an apt-get on PATH that logs its packages and runs ``install``, and an apt-cache that knows 21 only."""
        self.add_program("apt-get", FAKE_APT_GET.format(log=self.log, install=install))
        self.add_program("apt-cache", '#!/bin/sh\n[ "$2" = openjdk-21-jre-headless ]\n')

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(self.clone / "tools" / script), *arguments],
            env={"PATH": str(self.bin), **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE * 60,
            check=False,
        )

    def logged(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.set_user_id(1000)
    return machine


def add_java(machine: Machine, path: str, version: str, home: str) -> None:
    machine.add_program(path, FAKE_JAVA.format(version=version, home=home))


def add_python(machine: Machine, name: str) -> None:
    uv = machine.add_program("../uv", FAKE_UV.format(log=machine.log, folder=machine.log.parent))
    machine.add_program(name, FAKE_PYTHON.format(log=machine.log, uv=uv))


def test_java_on_path_is_found(machine: Machine) -> None:
    add_java(machine, "java", "17", "/opt/java17")
    found = machine.run("java.sh", str(machine.jvm_folder))
    assert (found.returncode, found.stdout, found.stderr) == (0, "/opt/java17\n", "")


def test_java_home_comes_before_path_when_new_enough(machine: Machine) -> None:
    add_java(machine, "java", "17", "/opt/java17")
    add_java(machine, "../home/bin/java", "21", "/opt/java21")
    found = machine.run("java.sh", str(machine.jvm_folder), JAVA_HOME=str(machine.bin.parent / "home"))
    assert found.stdout == "/opt/java21\n"


@pytest.mark.parametrize("version", ["1.8", "11"])
def test_java_too_old_is_passed_over_for_one_in_the_jvm_folder(machine: Machine, version: str) -> None:
    add_java(machine, "java", version, "/opt/old")
    add_java(machine, "../jvm/temurin-25/bin/java", "25", "/opt/java25")
    assert machine.run("java.sh", str(machine.jvm_folder)).stdout == "/opt/java25\n"


def test_missing_java_says_what_to_install_when_we_may_not(machine: Machine) -> None:
    machine.add_apt()
    found = machine.run("java.sh", str(machine.jvm_folder))
    assert (found.returncode, found.stdout) == (1, "")
    assert "Spark needs Java 17 or newer" in found.stderr
    assert "apt-get install openjdk-17-jre-headless" in found.stderr
    assert machine.logged() == []


def test_missing_java_is_installed_by_root_from_the_packages_the_distribution_has(machine: Machine) -> None:
    machine.set_user_id(0)
    java = machine.jvm_folder / "java-21" / "bin" / "java"
    text = FAKE_JAVA.format(version=21, home="/opt/java21")
    machine.add_apt(f"mkdir -p '{java.parent}'\ncat >'{java}' <<'END'\n{text}END\nchmod +x '{java}'")
    found = machine.run("java.sh", str(machine.jvm_folder))
    assert (found.returncode, found.stdout) == (0, "/opt/java21\n")
    assert machine.logged() == ["apt openjdk-21-jre-headless"]


def test_failed_java_installation_shows_the_reason_and_what_to_do(machine: Machine) -> None:
    machine.set_user_id(0)
    machine.add_apt("echo 'E: disk full'; exit 100")
    found = machine.run("java.sh", str(machine.jvm_folder))
    assert (found.returncode, found.stdout) == (1, "")
    assert "E: disk full" in found.stderr
    assert "Spark needs Java 17 or newer" in found.stderr


def test_unsupported_python_is_refused_with_its_version(machine: Machine) -> None:
    machine.add_program("python3", '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2"\n')
    done = machine.run("setup.sh")
    assert done.returncode == 1
    assert "Python 3.11 to 3.13 is needed, found: Python 3.9.2." in done.stderr
    assert not (machine.clone / ".venv").exists()


def test_python_without_venv_says_which_package_has_it(machine: Machine) -> None:
    machine.add_program(
        "python3.12",
        '#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; *python3.*-venv*) echo python3.12-venv ;; esac\n',
    )
    done = machine.run("setup.sh")
    assert done.returncode == 1
    assert "apt-get install python3.12-venv" in done.stderr


def test_python_that_can_make_environments_is_taken_before_one_that_cannot(machine: Machine) -> None:
    machine.add_program("python3.11", '#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\n')
    add_python(machine, "python3")
    done = machine.run("setup.sh")
    assert done.returncode == 0, done.stderr
    assert "making .venv with Python 3.12.9" in done.stderr


def test_second_set_up_does_nothing(machine: Machine) -> None:
    add_python(machine, "python3.11")
    assert machine.run("setup.sh").returncode == 0
    first = machine.logged()
    again = machine.run("setup.sh")
    assert first == ["venv", "pip install", "uv pip sync", "uv pip install"]
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert machine.logged() == first


def test_interrupted_set_up_leaves_no_stamp_and_is_made_anew(machine: Machine) -> None:
    add_python(machine, "python3.11")
    failing = machine.log.parent / "uv-fails"
    failing.touch()
    assert machine.run("setup.sh").returncode != 0
    assert not (machine.clone / ".venv" / ".setup-stamp").exists()
    failing.unlink()
    assert machine.run("setup.sh").returncode == 0
    assert machine.logged() == [
        *("venv", "pip install", "uv pip sync"),
        *("venv", "pip install", "uv pip sync", "uv pip install"),
    ]


def test_set_up_follows_a_changed_lock_file_in_the_same_environment(machine: Machine) -> None:
    add_python(machine, "python3.11")
    assert machine.run("setup.sh").returncode == 0
    with (machine.clone / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert machine.run("setup.sh").returncode == 0
    assert machine.logged()[4:] == ["uv pip sync", "uv pip install"]


def test_package_mirror_of_pip_serves_uv_too_unless_uv_has_its_own(machine: Machine) -> None:
    add_python(machine, "python3.11")
    index = machine.log.parent / "index"
    assert machine.run("setup.sh").returncode == 0
    assert index.read_text() == "mirror\n"
    (machine.clone / ".venv" / ".setup-stamp").unlink()
    assert machine.run("setup.sh", UV_DEFAULT_INDEX="own").returncode == 0
    assert index.read_text() == "own\n"


def test_moved_clone_gets_a_new_environment(machine: Machine) -> None:
    add_python(machine, "python3.11")
    assert machine.run("setup.sh").returncode == 0
    machine.clone = machine.clone.rename(machine.clone.with_name("moved"))
    assert machine.run("setup.sh").returncode == 0
    assert machine.logged()[4:] == ["venv", "pip install", "uv pip sync", "uv pip install"]


def test_missing_browser_is_a_note_and_no_failure(machine: Machine) -> None:
    machine.add_apt()
    done = machine.run("browser.sh")
    assert done.returncode == 0
    assert "the browser tests will skip" in done.stderr
    assert machine.logged() == []


@pytest.mark.parametrize(("system", "installed"), [("debian", ["apt chromium-driver"]), ("ubuntu", [])])
def test_browser_is_installed_by_root_on_debian_only(
    machine: Machine, tmp_path: Path, system: str, installed: list[str]
) -> None:
    machine.set_user_id(0)
    machine.add_apt()
    (tmp_path / "os-release").write_text(f"NAME=any\nID={system}\n")
    done = machine.run("browser.sh", str(tmp_path / "os-release"))
    assert done.returncode == 0
    assert machine.logged() == installed


def test_scripts_are_executable() -> None:
    scripts = [
        REPOSITORY / ".ci" / "run",
        *(REPOSITORY / "tools" / name for name in ("setup.sh", "java.sh", "browser.sh")),
    ]
    assert [script.name for script in scripts if not os.access(script, os.X_OK)] == []


def test_the_environment_that_a_link_leads_to_stays_as_it_is(machine: Machine) -> None:
    """``venv --clear`` would empty it: it is another clone's."""
    add_python(machine, "python3.11")
    other = machine.clone.with_name("other-venv")
    other.mkdir()
    (other / "kept").touch()
    (machine.clone / ".venv").symlink_to(other)
    done = machine.run("setup.sh")
    assert done.returncode != 0
    assert f".venv is a link to {other}" in done.stderr
    assert "rm .venv" in done.stderr
    assert (other / "kept").is_file()
    assert machine.logged() == []
