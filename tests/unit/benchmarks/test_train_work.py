"""Parts shared by the benchmarks of training: the output of a run goes to a file."""

import os
from pathlib import Path

import pytest

from benchmarks.train_work import unwatched


def test_a_runs_output_goes_to_a_file_until_its_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # By the descriptors, as capfd takes the streams themselves away.
    with unwatched(tmp_path / "output"):
        os.write(1, b"MLflow: a run\n")
        os.write(2, b"epoch 1\n")
    os.write(1, b"a page\n")
    os.write(2, b"an error\n")

    assert capfd.readouterr() == ("a page\n", "an error\n")
    assert (tmp_path / "output" / "shown.txt").read_text(encoding="utf-8") == "MLflow: a run\nepoch 1\n"


def test_error_of_a_run_is_shown_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no such model"), unwatched(tmp_path):
        raise ValueError("no such model")
    os.write(2, b"shown")

    assert capfd.readouterr().err == "shown"
