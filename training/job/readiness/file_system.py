"""The check of a folder's file system: its missing abilities, and what takes their place or has to be set."""

from collections.abc import Mapping
from pathlib import Path

from mirrorspark.storage import abilities
from mirrorspark.training.job.readiness.checks import Check, failure, warning

_NAME = "file system"

# Without these no run can be written.
_NEEDED: tuple[abilities.Ability, ...] = ("renames of files", "renames of folders")
# The work of a run without each of the others.
_INSTEAD: Mapping[abilities.Ability, str] = {
    "append": "events of a run stay in memory, so MLflow misses those that it has not got when the driver is killed; a "
    "sweep needs another --output",
    "random writes": "files are written from begin to end",
    "renames onto folders": "a folder is moved away first",
    "hard links": "files are copied, which takes more time and room",
    "locks": "a driver that has died is known by its file, which is then unchanged for a minute",
    "SQLite": "give MLflow's store another place (--tracking-uri), and stores of precomputed rows a local disk",
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
    needed = [f"no {name} ({missing[name]})" for name in _NEEDED if name in missing]
    if needed:
        return failure(
            _NAME,
            f"{folder} has {', '.join(needed)}, and a run appears by them; give a folder on a disk, or on NFS, as "
            f"--output",
        )
    # WAL needs all that SQLite needs.
    shown = [name for name in missing if name != "SQLite with WAL" or "SQLite" not in missing]
    return warning(
        _NAME, f"{folder} has " + "; ".join(f"no {name} ({missing[name]}): {_INSTEAD[name]}" for name in shown)
    )


def why_no_sqlite(folder: Path) -> str | None:
    """Return why SQLite cannot keep a file in an existing folder; None if it can."""
    try:
        return abilities.missing_abilities(folder, ("SQLite",)).get("SQLite")
    except OSError as error:
        return error.strerror
