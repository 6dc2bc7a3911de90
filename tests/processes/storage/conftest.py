"""Fixtures that these tests share with the unit tests of the package."""

from tests.unit.storage.conftest import locks_folder

__all__ = ["locks_folder"]
