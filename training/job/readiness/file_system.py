"""The check of a folder's file system: its missing abilities, and what takes their place or has to be set."""

from collections.abc import Mapping
from pathlib import Path

from mirrorspark.storage import abilities
from mirrorspark.training.job.readiness.checks import Check, warning

_NAME = "file system"

# The work of a run without each of the others.
_INSTEAD: Mapping[abilities.Ability, str] = {
    "append": "events of a run become numbered files; a sweep needs another --output",
    "random writes": "files are written from begin to end",
    "renames of files": "files are copied to their places",
    "renames of folders": "files appear one by one, those that readers look for last",
    "renames onto folders": "a folder is moved away first",
    "hard links": "files are copied, which takes more time and room",
    "locks": "a driver that has died is known by its file, which is then unchanged for a minute",
    "SQLite": "give MLflow's store (--tracking-uri) and the ledgers of fleets (--ledger) another place",
    "SQLite with WAL": "its other journal is used",
}


def check_file_system(folder: Path) -> Check | None:
    """Return the check of the abilities that runs use in an existing folder; None if nothing can be written there."""
    try:
        missing = abilities.missing_abilities(folder)
    except OSError:  # The check of the output says so.
        return None
    if not missing:
        return Check(_NAME, True, "appends, renames, links and locks files, and keeps SQLite")
    # These need all that the others need.
    implied = {"SQLite with WAL": "SQLite", "renames onto folders": "renames of folders"}
    shown = [name for name in missing if implied.get(name) not in missing]
    return warning(
        _NAME, f"{folder} has " + "; ".join(f"no {name} ({missing[name]}): {_INSTEAD[name]}" for name in shown)
    )


def why_no_sqlite(folder: Path) -> str | None:
    """Return why SQLite cannot keep a file in an existing folder; None if it can."""
    try:
        return abilities.missing_abilities(folder, ("SQLite",)).get("SQLite")
    except OSError as error:
        return error.strerror
