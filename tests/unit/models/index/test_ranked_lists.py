"""Lists of candidates: which outputs they are, and which of their places are filled."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from mirrorspark.models.index.ranked_lists import is_filled, is_ranked_list


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [(["scores", "candidates"], True), (["scores"], False), (["candidates", "scores", "more"], False)],
)
def test_candidates_and_scores_alone_are_ranked_lists(outputs: list[str], expected: bool) -> None:
    assert is_ranked_list(outputs) is expected


def test_a_place_of_no_candidate_is_not_filled() -> None:
    assert is_filled(pa.array(["m1", "", "m2", ""])).to_pylist() == [True, False, True, False]


@pytest.mark.process
def test_the_driver_knows_them_without_tensorflow() -> None:
    program = (
        "import sys, mirrorspark.models.index.ranked_lists, mirrorspark.scoring.output.forms; "
        "sys.exit('tensorflow' in sys.modules)"
    )
    repository = Path(__file__).resolve().parents[4]
    finished = subprocess.run([sys.executable, "-c", program], cwd=repository, timeout=60, check=False)
    assert finished.returncode == 0
