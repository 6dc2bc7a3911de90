"""Known vulnerabilities of locked packages are found by name and version; an unchecked package does not pass."""

import json
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tools.advisories import AdvisoryError, check, findings, ignored, locked, main, taken, update

LOCK = "Some_Package==2.0.1 \\\n    --hash=sha256:00\n    # via other\nother==1.0 ; sys_platform == 'linux'\n"
TODAY = date(2026, 11, 23)


def advisory(*events: dict[str, str], name: str = "some-package", **more: Any) -> dict[str, Any]:
    affected = {"package": {"ecosystem": "PyPI", "name": name}, "ranges": [{"type": "ECOSYSTEM", "events": [*events]}]}
    return {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "summary": "reads any file", "affected": [affected]} | more


def test_names_and_versions_of_a_lock_file() -> None:
    assert locked(LOCK) == {"some-package": "2.0.1", "other": "1.0"}


@pytest.mark.parametrize(
    ("events", "concerned"),
    [
        ([{"introduced": "0"}], True),
        ([{"introduced": "0"}, {"fixed": "2.0.1"}], False),
        ([{"introduced": "0"}, {"fixed": "2.0.2"}], True),
        ([{"introduced": "0"}, {"fixed": "2.0.1rc1"}], False),
        ([{"introduced": "2.0.1"}], True),
        ([{"introduced": "2.0.10"}], False),
        ([{"introduced": "0"}, {"last_affected": "2.0.1"}], True),
        ([{"introduced": "0"}, {"last_affected": "2.0"}], False),
        ([{"introduced": "0"}, {"fixed": "1.5"}, {"introduced": "2.0"}, {"fixed": "2.0.5"}], True),
        # In any order, as the schema allows.
        ([{"fixed": "2.0.5"}, {"introduced": "2.0"}, {"fixed": "1.5"}, {"introduced": "0"}], True),
        ([{"introduced": "1.0"}, {"fixed": "1.5"}, {"introduced": "3.0"}], False),
        ([{"introduced": "0"}, {"fixed": "2004d"}], False),
    ],
)
def test_a_version_is_concerned_within_the_ranges(events: list[dict[str, str]], concerned: bool) -> None:
    assert bool(findings([advisory(*events)], locked(LOCK))) is concerned


def test_listed_versions_are_concerned_and_other_packages_ecosystems_and_commits_are_not() -> None:
    package = {"ecosystem": "PyPI", "name": "Some.Package"}
    commits = {"type": "GIT", "events": [{"introduced": "0"}]}
    cases = {
        "listed": {"package": package, "versions": ["1.0", "2.0.1.0"], "ranges": [commits]},
        "not listed": {"package": package, "versions": ["2.0"], "ranges": [commits]},
        "other ecosystem": {"package": package | {"ecosystem": "npm"}, "versions": ["2.0.1"]},
        "other package": {"package": package | {"name": "unlocked"}, "versions": ["2.0.1"]},
    }
    found = findings([advisory(id=name, affected=[affected]) for name, affected in cases.items()], locked(LOCK))
    assert [finding.advisory["id"] for finding in found] == ["listed"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lock").write_text(LOCK)
    return tmp_path


def run_check(folder: Path) -> int:
    return check(folder / "list.json", folder / "ignored.toml", folder / "lock", TODAY)


def write_list(folder: Path, *advisories: dict[str, Any], taken_on: str = "2026-11-01") -> None:
    (folder / "list.json").write_text(json.dumps({"taken": taken_on, "advisories": advisories}))


def test_a_concerned_package_fails_the_check_and_is_told_with_its_repair(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_list(folder, advisory({"introduced": "0"}, {"fixed": "2.0.2"}), advisory(name="unlocked"))
    assert run_check(folder) == 1
    assert capsys.readouterr().out.splitlines() == [
        "some-package 2.0.1: PYSEC-2026-1 (CVE-2026-1): reads any file; fixed in 2.0.2",
        "advisories: 1 concern 2 locked packages, 0 are ignored; the list has 2",
    ]


def test_an_ignored_advisory_passes_by_any_of_its_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_list(folder, advisory({"introduced": "0"}), taken_on="2026-01-01")
    entry = '[{}]\nreason = "its server is not started"\ndate = 2026-11-23\n'
    (folder / "ignored.toml").write_text(entry.format("CVE-2026-1") + entry.format("CVE-2020-1"))
    assert run_check(folder) == 0
    assert capsys.readouterr().out.splitlines() == [
        "advisories: CVE-2020-1 is ignored, but concerns no locked version any more; remove it",
        "advisories: 0 concern 2 locked packages, 1 are ignored; the list has 1, and is 326 days old: run "
        "`make advisories`",
    ]


@pytest.mark.parametrize(
    "entry", ["", 'reason = " "\ndate = 2026-11-23', 'reason = "x"', 'reason = "x"\ndate = "soon"']
)
def test_nothing_is_ignored_without_a_reason_and_a_date(entry: str) -> None:
    with pytest.raises(AdvisoryError, match="CVE-2026-1 is ignored without a reason or a date"):
        ignored(f"[CVE-2026-1]\n{entry}\n")


def test_without_a_list_the_check_says_that_nothing_was_checked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_check(folder) == 0
    assert "SKIPPED, nothing was checked" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "{}", '{"taken": "2026-11-01", "advisories": []}', '{"taken": 1, "advisories": [1]}']
)
def test_an_empty_or_damaged_list_proves_nothing(folder: Path, text: str) -> None:
    (folder / "list.json").write_text(text)
    with pytest.raises(AdvisoryError, match=r"is damaged|proves nothing"):
        run_check(folder)


def test_the_list_is_taken_from_an_export_for_the_locked_packages(folder: Path) -> None:
    records = [
        advisory({"introduced": "0"}, {"fixed": "2.0"}, details="long", references=[1]),
        advisory(name="unlocked", id="PYSEC-2026-2"),
        advisory(id="PYSEC-2026-3", withdrawn="2026-02-01T00:00:00Z"),
    ]
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for record in records:
            entry = zipfile.ZipInfo(f"{record['id']}.json", (2026, 10, 31, 0, 0, 0))
            archive.writestr(entry, json.dumps(record))
    assert update(folder / "all.zip", folder / "list.json", folder / "lock") == 0
    written = json.loads((folder / "list.json").read_text())
    assert written == {"taken": "2026-10-31", "advisories": [advisory({"introduced": "0"}, {"fixed": "2.0"})]}
    assert run_check(folder) == 0


def test_a_file_that_is_no_export_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "all.zip").write_text("<html>")
    with pytest.raises(AdvisoryError, match="is not a zip archive"):
        taken(folder / "all.zip", {})
    zipfile.ZipFile(folder / "empty.zip", "w").close()
    assert main(["update", str(folder / "empty.zip")]) == 2
    assert "has no records" in capsys.readouterr().err
