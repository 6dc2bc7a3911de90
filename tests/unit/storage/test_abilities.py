"""Abilities of a folder's file system, and those that one lacks."""

import errno
import fcntl
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.storage.abilities import missing_abilities


def test_a_disk_has_every_ability_and_nothing_is_left_on_it(tmp_path: Path) -> None:
    assert missing_abilities(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        missing_abilities(tmp_path / "none")


def _refuse(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _no_mode(*modes: str) -> Callable[..., Any]:
    opened = Path.open

    def refuse(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        return _refuse() if mode in modes else opened(path, mode, *arguments, **options)

    return refuse


def _no_database(*_: Any, **__: Any) -> Any:
    raise sqlite3.OperationalError("disk I/O error")


@pytest.mark.parametrize(
    ("part", "name", "fake", "missing"),
    [
        (Path, "open", _no_mode("ab"), {"append"}),
        (Path, "replace", _refuse, {"renames of files"}),
        (Path, "rename", _refuse, {"renames of folders", "renames onto folders"}),
        (Path, "hardlink_to", _refuse, {"hard links"}),
        (fcntl, "flock", _refuse, {"locks"}),
        (fcntl, "lockf", _refuse, {"locks"}),
        (fcntl, "flock", lambda *_: None, {"locks"}),  # a mount that takes every lock for granted
        (sqlite3, "connect", _no_database, {"SQLite", "SQLite with WAL"}),
    ],
)
def test_a_missing_ability_is_found_with_the_reason_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: Any, name: str, fake: Any, missing: set[str]
) -> None:
    monkeypatch.setattr(part, name, fake)
    found = missing_abilities(tmp_path)
    assert set(found) == missing
    assert set(found.values()) <= {"Operation not supported", "two get the same lock", "disk I/O error"}
    assert list(tmp_path.iterdir()) == []


def test_content_that_does_not_arrive_is_a_missing_ability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some mounts take an append, and write another file."""
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path)[:3])
    assert missing_abilities(tmp_path, ("append", "hard links")) == {"append": "Input/output error"}
