"""T2: several workers log and learn in our loop of steps what they do in Keras', under every strategy of processes."""

from pathlib import Path

import pytest

from tests.cluster.test_callbacks_two_workers import PROGRAMS, run_ranks


@pytest.mark.parametrize("strategy", ["mirrored", "ring"])
@pytest.mark.full
def test_logs_and_weights_are_those_of_keras_loop(strategy: str, tmp_path: Path) -> None:
    command = [PROGRAMS / "step_loop_rank.py", strategy]
    for result in run_ranks(tmp_path, "trained", strategy, [command, command]):
        assert len(result["keras"]["batches"]) == 4
        assert result["ours"] == result["keras"]
