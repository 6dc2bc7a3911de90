"""Fixtures that these tests share with the unit tests of the package."""

from tests.unit.training.conftest import knobs, mlflow_store, new_config, recipe

__all__ = ["knobs", "mlflow_store", "new_config", "recipe"]
