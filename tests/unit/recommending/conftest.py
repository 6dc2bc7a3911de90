"""Fixtures that these tests share with those of scoring."""

from tests.unit.scoring.conftest import als_model, movies_model

__all__ = ["als_model", "movies_model"]
