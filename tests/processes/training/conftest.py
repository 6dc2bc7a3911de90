"""Fixtures that these tests share with the unit tests of the package, and one environment for all of their ranks."""

import os
from collections.abc import Generator

import pytest

from tests.unit.training.conftest import knobs, mlflow_store, new_config, recipe

__all__ = ["knobs", "mlflow_store", "new_config", "recipe"]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """Hide the name of the test: ranks are forked from a process that serves one environment, and starts slowly."""
    name = os.environ.pop("PYTEST_CURRENT_TEST")
    try:
        return (yield)
    finally:
        os.environ["PYTEST_CURRENT_TEST"] = name
