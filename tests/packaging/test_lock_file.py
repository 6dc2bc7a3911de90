"""The lock file: complete, hashed, in step with setup.cfg, and without a word on where packages come from."""

import configparser
import re
from collections.abc import Set
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?P<rest>(?:.*\\\n)*.*)", re.MULTILINE)


@pytest.fixture(scope="module")
def lock() -> str:
    return (REPOSITORY / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def locked_versions(lock: str) -> dict[str, str]:
    return {canonicalize_name(entry["name"]): entry["version"] for entry in ENTRY.finditer(lock)}


@pytest.fixture(scope="module")
def declared() -> list[Requirement]:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(REPOSITORY / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    return [Requirement(line) for text in lists for line in text.splitlines() if line.strip()]


def test_every_declared_requirement_is_locked_at_a_version_it_allows(
    declared: list[Requirement], locked_versions: dict[str, str]
) -> None:
    linux: dict[str, str | Set[str]] = {"sys_platform": "linux", "platform_machine": "x86_64"}
    needed = [each for each in declared if each.marker is None or each.marker.evaluate(linux)]
    wrong = {
        str(requirement): locked_versions.get(canonicalize_name(requirement.name))
        for requirement in needed
        if not requirement.specifier.contains(locked_versions.get(canonicalize_name(requirement.name), "0"))
    }
    assert needed
    assert wrong == {}, "run `make lock`"


def test_every_locked_package_has_hashes(lock: str) -> None:
    entries = list(ENTRY.finditer(lock))
    assert len(entries) > 100
    assert [entry["name"] for entry in entries if "--hash=sha256:" not in entry["rest"]] == []


def test_lock_names_no_package_index(lock: str) -> None:
    assert "://" not in lock
    assert "--index" not in lock
    assert "--find-links" not in lock


def test_lock_holds_the_installer_that_setup_bootstraps_from(locked_versions: dict[str, str]) -> None:
    assert {"uv", "setuptools"} <= locked_versions.keys()
