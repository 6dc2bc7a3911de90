"""L16: a million mutations of everything that is read from files, with bounds checks in the kernels."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.faults.conftest import Count

REPOSITORY = Path(__file__).resolve().parents[2]
MUTATIONS, PARTS = 1_000_000, 5


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the kernels that check their bounds."""
    return tmp_path_factory.mktemp("kernels")


# In parts: a test that runs for a quarter of an hour counts as hanging.
@pytest.mark.full
@pytest.mark.timeout(800)
@pytest.mark.parametrize("seed", range(1, PARTS + 1))
def test_whatever_is_in_a_file_is_read_or_refused(seed: int, kernels: Path, tmp_path: Path, count: Count) -> None:
    environment = os.environ | {
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_CACHE_DIR": str(kernels),
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)]),
    }
    command = [sys.executable, "-m", "tests.faults.mutations", "--count", str(MUTATIONS // PARTS), "--seed", str(seed)]
    ended = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=PATIENCE * 750, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    total = re.search(r"^([\d,]+) mutations, 0 finds$", ended.stdout, re.MULTILINE)
    assert total is not None, ended.stdout
    mutations = int(total[1].replace(",", ""))
    assert mutations >= MUTATIONS // PARTS
    count("mutations", {"mutations": mutations})
