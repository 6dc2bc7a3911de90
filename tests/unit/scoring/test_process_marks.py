"""Locks and marks of processes that share a folder."""

import fcntl
import os
from pathlib import Path

from scoring.process_marks import free, hold, mark, marked


def test_a_lock_is_free_though_a_child_has_the_same_open_file(tmp_path: Path) -> None:
    lock = hold(tmp_path / "lock")
    of_the_child = os.dup(lock)  # as a fork leaves it
    free(lock)
    with (tmp_path / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(of_the_child)


def test_who_finds_a_lock_held_is_told_before_it_waits(tmp_path: Path) -> None:
    lock = hold(tmp_path / "lock")
    # That frees it, so the wait is short.
    free(hold(tmp_path / "lock", lambda: free(lock)))


def test_a_living_process_keeps_its_marks(tmp_path: Path) -> None:
    mark(tmp_path, "model")
    assert "model" in marked(tmp_path)
    assert "model" in marked(tmp_path), "looking does not end it"
