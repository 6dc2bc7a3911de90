"""Reports of a task to the driver about its files."""

from pathlib import Path

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.spark.tasks import outcome
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import SaveMode, WriteJob, WrittenFile


def test_after_one_task_has_refused_its_rows_no_other_begins(tmp_path: Path) -> None:
    """A bad row in the first of thousands of tasks is reported at once: nothing would be published anyway."""
    job = WriteJob.begin(StoragePath.of(tmp_path / "scores"), SaveMode.ERROR)
    begun: list[int] = []

    def write(number: int) -> list[WrittenFile]:
        begun.append(number)
        if number == 1:
            raise ColumnError("row 7 has no carrier")
        return [WrittenFile(f"{number}", "part", 1, 1, 10)]

    told = [
        outcome(job, lambda number=number: write(number), refusals=(ColumnError,)).to_pylist() for number in range(4)
    ]

    assert begun == [0, 1]
    assert [[row["path"] or row["refused"] for row in rows] for rows in told] == [
        ["part"],
        ["row 7 has no carrier"],
        ["row 7 has no carrier"],
        ["row 7 has no carrier"],
    ]
    job.abort()
    assert list(tmp_path.iterdir()) == []
