"""Fixtures that tests of faults share with those of undisturbed runs, and with each other."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mirrorspark.data_pipelines.spark import tasks
from tests.faults.operations import Operation, all_operations, end_process, run_here

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Takes a name and numbers by what they count.
Count = Callable[[str, Mapping[str, int]], None]


def seeds(total: int, parts: int, usual: int) -> list[Any]:
    """Return ranges of seeds as parameters: the ``usual`` ones for every run of the tests, all for ``--full``."""
    size = total // parts
    ranges = [range(start, start + size) for start in range(0, total, size)]
    every = [pytest.param(some, marks=pytest.mark.full, id=f"from {some.start}") for some in ranges]
    return [pytest.param(range(usual), id="some"), *every]


def run_seeds(seeds: range, run: Callable[[int], int], repeat: str) -> int:
    """Return the sum of what the simulated worlds give; an error has the call that repeats it, as ``repeat`` has it."""
    total = 0
    for seed in seeds:
        try:
            total += run(seed)
        except BaseException as error:
            error.add_note(f"repeat it: {repeat.format(seed)}")
            raise
    return total


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Count:
    """Return a function that adds to the numbers with which the whole run of the tests closes."""

    def add(name: str, numbers: Mapping[str, int]) -> None:
        record_property(name, dict(numbers))

    return add


@pytest.fixture(scope="session")
def operations(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> dict[str, Operation]:
    """Return the operations that change files, by name."""
    return all_operations(spark, tmp_path_factory.mktemp("scored"))


@pytest.fixture
def operations_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process run what Spark's would, and write its temporary files outside of the folder under test."""
    monkeypatch.setattr(tasks, "_task_rows", run_here)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    end_process()
