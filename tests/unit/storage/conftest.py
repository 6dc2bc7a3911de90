"""Locks of writes that tests leave unfinished stay out of the machine's folder for temporary files."""

import tempfile

import pytest


@pytest.fixture(autouse=True)
def locks_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process and its children put temporary files into a folder of their own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.getbasetemp()))
    monkeypatch.setattr(tempfile, "tempdir", None)
