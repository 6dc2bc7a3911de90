"""Scores are never written over what they were made of, nor where they would be read as input (S12)."""

from pathlib import Path

import pytest

from data_pipelines.storage import StoragePath
from scoring.checks import ScoringError
from scoring.own_input import refuse_own_input

OPTIONS = "?endpoint_override=127.0.0.1:5000"


@pytest.mark.parametrize("options", ["", OPTIONS])
@pytest.mark.parametrize("target", ["s3://lake/in", "s3a://lake/in", "s3://lake"])
def test_an_output_that_holds_the_input_is_refused(options: str, target: str) -> None:
    """Whatever options reach the store."""
    file = StoragePath.of(f"s3://lake/in/part.parquet{OPTIONS}")
    with pytest.raises(ScoringError, match="holds the input"):
        refuse_own_input([file], [f"s3://lake/in{OPTIONS}"], StoragePath.of(target + options))


def test_the_root_of_a_disk_holds_every_file_of_it(tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match="the output / holds the input"):
        refuse_own_input([StoragePath.of(tmp_path / "part.parquet")], [tmp_path], StoragePath.of("/"))


@pytest.mark.parametrize("options", ["", OPTIONS])
def test_an_output_in_the_input_is_refused(options: str) -> None:
    file = StoragePath.of(f"s3://lake/in/part.parquet{OPTIONS}")
    with pytest.raises(ScoringError, match="lies in the input"):
        refuse_own_input([file], [f"s3://lake/in{OPTIONS}"], StoragePath.of(f"s3a://lake/in/scores{options}"))
    refuse_own_input([file], [f"s3://lake/in{OPTIONS}"], StoragePath.of(f"s3a://lake/in-scores{options}"))


def test_names_of_files_count_where_a_glob_has_them(tmp_path: Path) -> None:
    target = StoragePath.of(tmp_path / "in" / "scores")
    with pytest.raises(ScoringError, match="lies in the input"):
        refuse_own_input([], [tmp_path / "in/*/part-*-*.parquet"], target)
    refuse_own_input([], [tmp_path / "in/*/day-*.parquet"], target)


def test_a_folder_whose_name_looks_like_a_glob_is_none(tmp_path: Path) -> None:
    for name in ("flights [2024-01]", "in[ab]"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.parquet").write_text("x")
    refuse_own_input([], [tmp_path / "flights [2024-01]", tmp_path / "in[ab]"], StoragePath.of(tmp_path / "ina"))
    with pytest.raises(ScoringError, match="lies in the input"):
        refuse_own_input([], [tmp_path / "in[ab]"], StoragePath.of(tmp_path / "in[ab]" / "scores"))
