"""S8: the memory of a process does not grow with the batches that it scores."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mirrorspark.scoring.package import package_model
from tests.conftest import PATIENCE
from tests.unit.scoring.memory_soak import BATCHES
from tests.unit.scoring.other_models import LINEAR, save_logistic_saved_model

REPOSITORY = Path(__file__).resolve().parents[3]
WARM_UP = 2_000


@pytest.mark.full
def test_memory_grows_by_less_than_a_megabyte_in_a_thousand_batches(flights_model: Path, tmp_path: Path) -> None:
    """Each in a process of its own: a model computed by NumPy, a graph of other people's, and one trained here."""
    models = {
        "linear": package_model(LINEAR, tmp_path / "linear"),
        "SavedModel": package_model(save_logistic_saved_model(tmp_path / "saved"), tmp_path / "packaged"),
        "trained": flights_model,
    }
    command = [sys.executable, "-m", "tests.unit.scoring.memory_soak", *map(str, models.values())]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE * 110, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    for name, line in zip(models, done.stdout.splitlines()[-len(models) :], strict=True):
        memory = json.loads(line)
        assert len(memory) == BATCHES, name
        thousands = np.arange(WARM_UP, BATCHES) / 1_000
        bytes_per_thousand, _ = np.polyfit(thousands, memory[WARM_UP:], 1)
        assert bytes_per_thousand < 1e6, name
