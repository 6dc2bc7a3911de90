"""Known vulnerabilities of the locked packages: ``check`` finds them without a network, ``update`` pins the list.

The list is ``tools/advisories.json``: records of the Open Source Vulnerability format (OSV) for the packages of
``requirements.lock``. ``update EXPORT.zip`` takes them from OSV's export of the ecosystem PyPI. An advisory that does
not concern this project is in ``tools/ignored_advisories.toml`` with a reason and a date::

    [PYSEC-2026-1]
    reason = "only its server is concerned, which is not started here"
    date = 2026-11-23
"""

import argparse
import json
import re
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

TOOLS = Path(__file__).resolve().parent
LOCK = TOOLS.parent / "requirements.lock"
LIST = TOOLS / "advisories.json"
IGNORED = TOOLS / "ignored_advisories.toml"

# A list that is older than this may lack what was found since.
_FRESH_DAYS = 90
_ENTRY = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
_ECOSYSTEM = "PyPI"
_KEPT = ("id", "aliases", "summary", "affected")


class AdvisoryError(ValueError):
    """A list of advisories, or of ignored ones, that cannot be used; the message says what to change."""


@dataclass(frozen=True)
class AffectedPackage:
    """A locked package that an advisory concerns."""

    package: str
    version: str
    advisory: Mapping[str, Any]

    @property
    def names(self) -> set[str]:
        """All identifiers of the advisory."""
        return {self.advisory["id"], *self.advisory.get("aliases", ())}

    def __str__(self) -> str:
        """Return one line: package, identifiers, summary, and the versions that repair it."""
        others = ", ".join(self.advisory.get("aliases", ()))
        fixed = ", ".join(sorted({event["fixed"] for event in _events(self.advisory, self.package, "fixed")}))
        return (
            f"{self.package} {self.version}: {self.advisory['id']}{f' ({others})' if others else ''}: "
            f"{self.advisory.get('summary') or 'no summary'}; {f'fixed in {fixed}' if fixed else 'not fixed yet'}"
        )


def locked(lock: str) -> dict[str, str]:
    """Return the versions in the text of a lock file by normalised name."""
    return {canonicalize_name(name): version for name, version in _ENTRY.findall(lock)}


def findings(advisories: Iterable[Mapping[str, Any]], versions: Mapping[str, str]) -> list[AffectedPackage]:
    """Return the advisories that concern the locked versions, by package."""
    found = [
        AffectedPackage(name, versions[name], advisory)
        for advisory in advisories
        for name in sorted({_name(affected) for affected in _affected(advisory)} & versions.keys())
        if any(
            _concerns(affected, Version(versions[name])) for affected in _affected(advisory) if _name(affected) == name
        )
    ]
    return sorted(found, key=lambda each: (each.package, each.advisory["id"]))


def ignored(text: str) -> set[str]:
    """Return the identifiers in the text of ``ignored_advisories.toml``.

    Raises:
        AdvisoryError: An entry lacks its reason or its date.
    """
    entries = tomllib.loads(text)
    for name, entry in entries.items():
        reason, day = (entry.get(key) for key in ("reason", "date")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(reason, str) and reason.strip() and isinstance(day, date)):
            raise AdvisoryError(
                f'{name} is ignored without a reason or a date; give reason = "..." and date = 2026-01-31'
            )
    return set(entries)


def taken(export: Path, versions: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the records of an export that concern the packages of the lock file in any version, by identifier.

    Raises:
        AdvisoryError: The file is not such an export.
    """
    try:
        with zipfile.ZipFile(export) as archive:
            records = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith(".json")]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise AdvisoryError(
            f"{export} is not a zip archive of OSV records ({error}); fetch the export again"
        ) from error
    if not records:
        raise AdvisoryError(f"{export} has no records; fetch OSV's export of the ecosystem {_ECOSYSTEM} again")
    kept = []
    for record in records:
        affected = [each for each in _affected(record) if _name(each) in versions]
        if affected and "withdrawn" not in record:
            parts = [{key: each[key] for key in ("package", "ranges", "versions") if key in each} for each in affected]
            kept.append({key: record[key] for key in _KEPT if key in record} | {"affected": parts})
    return sorted(kept, key=lambda record: record["id"])


def check(list_file: Path = LIST, ignored_file: Path = IGNORED, lock: Path = LOCK, today: date | None = None) -> int:
    """Print what concerns the locked packages, and return the exit status: 0 nothing or no list, 1 something.

    Raises:
        AdvisoryError: The list, or that of ignored advisories, is damaged.
    """
    if not list_file.exists():
        print(f"advisories: SKIPPED, nothing was checked: there is no {list_file.name}; `make advisories` writes it")
        return 0
    try:
        document = json.loads(list_file.read_text(encoding="utf-8"))
        taken_on, advisories = date.fromisoformat(document["taken"]), document["advisories"]
    except (LookupError, TypeError, ValueError) as error:
        raise AdvisoryError(f"{list_file} is damaged ({error!r}); write it anew with `make advisories`") from error
    if not advisories:
        raise AdvisoryError(f"{list_file} lists no advisory at all, which proves nothing; delete it, or write it anew")
    left_out = ignored(ignored_file.read_text(encoding="utf-8")) if ignored_file.exists() else set()
    versions = locked(lock.read_text(encoding="utf-8"))
    found = findings(advisories, versions)
    concerning = [finding for finding in found if not finding.names & left_out]
    for finding in concerning:
        print(finding)
    for name in sorted(left_out - {name for finding in found for name in finding.names}):
        print(f"advisories: {name} is ignored, but concerns no locked version any more; remove it")
    age = ((today or datetime.now(UTC).date()) - taken_on).days
    old = f", and is {age} days old: run `make advisories`" if age > _FRESH_DAYS else ""
    print(
        f"advisories: {len(concerning)} concern {len(versions)} locked packages, {len(found) - len(concerning)} are "
        f"ignored; the list has {len(advisories)}{old}"
    )
    return 1 if concerning else 0


def update(export: Path, list_file: Path = LIST, lock: Path = LOCK) -> int:
    """Write the list from an export of OSV."""
    advisories = taken(export, locked(lock.read_text(encoding="utf-8")))
    # The export's newest file, not today: an old one stays old.
    with zipfile.ZipFile(export) as archive:
        newest = max(info.date_time for info in archive.infolist())
    document = {"taken": date(*newest[:3]).isoformat(), "advisories": advisories}
    list_file.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"advisories: {len(advisories)} of {document['taken']} are in {list_file}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 2 means that a file cannot be used."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="find advisories that concern the locked packages")
    commands.add_parser("update", help="write the list").add_argument("export", type=Path, help="OSV's export, a zip")
    flags = parser.parse_args(arguments)
    try:
        return check() if flags.command == "check" else update(flags.export)
    except AdvisoryError as error:
        print(f"advisories: {error}", file=sys.stderr)
        return 2


def _affected(advisory: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [each for each in advisory.get("affected", ()) if each.get("package", {}).get("ecosystem") == _ECOSYSTEM]


def _name(affected: Mapping[str, Any]) -> str:
    return canonicalize_name(affected["package"]["name"])


def _events(advisory: Mapping[str, Any], package: str, kind: str) -> Iterator[Mapping[str, str]]:
    for affected in _affected(advisory):
        if _name(affected) == package:
            for span in _ranges(affected):
                yield from (event for event in span["events"] if kind in event)


def _ranges(affected: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    # Ranges of commits do not name releases.
    return [span for span in affected.get("ranges", ()) if span["type"] in ("ECOSYSTEM", "SEMVER")]


def _concerns(affected: Mapping[str, Any], version: Version) -> bool:
    """Return whether a version is listed, or is in one of the ranges.

    Source: the evaluation algorithm of the OSV schema.
    """
    if any(_version(text) == version for text in affected.get("versions", ())):
        return True
    return any(_is_in(span["events"], version) for span in _ranges(affected))


def _is_in(events: Sequence[Mapping[str, str]], version: Version) -> bool:
    inside = False
    for kind, text in sorted((next(iter(event.items())) for event in events), key=_place):
        at = _version(text)
        if kind == "introduced" and (text == "0" or at <= version):
            inside = True
        elif (kind == "fixed" and at <= version) or (kind == "last_affected" and at < version):
            inside = False
    return inside


def _place(event: tuple[str, str]) -> tuple[bool, Version, bool]:
    # "0" is before all versions; a version that is both repaired and introduced anew is concerned.
    kind, text = event
    return text != "0", _version(text), kind == "introduced"


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:  # of a time before the rules: older than any version that is locked today
        return Version("0.dev0")


if __name__ == "__main__":
    sys.exit(main())
