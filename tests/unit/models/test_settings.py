"""Settings and fitted features are checked against each other before a training starts, without TensorFlow."""

import subprocess
import sys
from pathlib import Path

import pytest

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.models.settings import ModelSettingsError, check_candidates


@pytest.mark.parametrize("top_k", [1, 3])
def test_as_many_candidates_as_there_are_may_be_asked_for(rating_features: FittedFeatures, top_k: int) -> None:
    check_candidates(rating_features, top_k)


@pytest.mark.parametrize("top_k", [0, 4])
def test_more_candidates_than_there_are_is_refused(rating_features: FittedFeatures, top_k: int) -> None:
    with pytest.raises(
        ModelSettingsError, match=f"^top_k {top_k} cannot be met: feature 'movie' has 3 candidates .*; use 1 to 3$"
    ):
        check_candidates(rating_features, top_k)


@pytest.mark.process
def test_the_checks_load_no_tensorflow() -> None:
    program = "import mirrorspark.models.settings, sys; print('tensorflow' in sys.modules)"
    repository = Path(__file__).resolve().parents[3]
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (0, "False\n"), result.stderr
