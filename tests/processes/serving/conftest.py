"""Fixtures that these tests share with the unit tests of the package."""

from tests.unit.scoring.conftest import flights_model

__all__ = ["flights_model"]
