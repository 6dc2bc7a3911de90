"""Exported models that the tests of scoring share: making one takes TensorFlow a second."""

from pathlib import Path

import pytest

from tests.unit.scoring.exported_models import export_flights, export_movies


@pytest.fixture(scope="session")
def flights_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a binary model."""
    return export_flights(tmp_path_factory.mktemp("export") / "flights", seed=1)


@pytest.fixture(scope="session")
def movies_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a retrieval model of the movies m0 to m39, with exclusions, that recommends three."""
    return export_movies(tmp_path_factory.mktemp("export") / "movies", scann=False)
