"""Exported models that the tests of scoring share: making one takes TensorFlow a second."""

from pathlib import Path

import pytest

from tests.unit.scoring.exported_models import export_als, export_baskets, export_flights, export_movies


@pytest.fixture(scope="session")
def flights_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a binary model."""
    return export_flights(tmp_path_factory.mktemp("export") / "flights", seed=1)


@pytest.fixture(scope="session")
def movies_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a retrieval model of the movies m0 to m39, with exclusions, that recommends three."""
    return export_movies(tmp_path_factory.mktemp("export") / "movies", scann=False)


@pytest.fixture(scope="session")
def als_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an ALS model of the movies m20 to m49."""
    return export_als(tmp_path_factory.mktemp("export") / "als", [f"m{number}" for number in range(20, 50)])


@pytest.fixture(scope="session")
def baskets_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a multi-label model of the labels tea, milk and ü."""
    return export_baskets(tmp_path_factory.mktemp("export") / "baskets")
