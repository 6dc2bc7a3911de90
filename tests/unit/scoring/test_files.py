"""S12: a share that two attempts write, as slow tasks do, is published once; no score replaces its input."""

from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.scoring import run
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.file_job import refuse_own_input
from mirrorspark.scoring.files import ScoreWriter
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.task import Scorer, ShippedModel
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import SUCCESS_FILE, SaveMode, WriteJob, WrittenFile
from tests.unit.scoring.other_models import LINEAR, boxes, logistic

ROWS = boxes(5_000)
OPTIONS = "?endpoint_override=127.0.0.1:5000"
BATCHES = ROWS.to_batches(1_000)


@pytest.fixture
def writer(tmp_path: Path) -> ScoreWriter:
    """Return a writer of the scores of boxes for a job that has begun."""
    pinned = resolve(package_model(LINEAR, tmp_path / "model"))
    scorer = Scorer(ShippedModel(pinned.digest, pinned.label, path=str(pinned.path), archive=None))
    results = scorer.options.schema(ModelDirectory.open(pinned.path))
    job = WriteJob.begin(StoragePath.of(tmp_path / "scores"), SaveMode.ERROR)
    return ScoreWriter(job, pa.schema([ROWS.schema.field("id")]), scorer, results)


def written(writer: ScoreWriter, batches: Iterable[pa.RecordBatch]) -> list[WrittenFile]:
    """Return the files of an attempt to write share 0, as the task reports them to the driver."""
    told = writer.write(0, lambda _: batches).to_pylist()
    names = [field.name for field in fields(WrittenFile)]
    return [WrittenFile(**{name: row[name] for name in names}) for row in told if row["path"] is not None]


def check_scores(folder: Path, published: str) -> None:
    """Check that every row is there once, in one file, and that nothing else is left."""
    found = pq.read_table(folder / "scores")
    assert found["id"].to_pylist() == list(range(ROWS.num_rows))
    np.testing.assert_allclose(found["score"], logistic(ROWS), rtol=0, atol=1e-9)
    assert sorted(path.name for path in (folder / "scores").iterdir()) == sorted([SUCCESS_FILE, published])
    assert sorted(path.name for path in folder.iterdir()) == ["model", "scores"]


def test_only_the_attempt_that_spark_accepts_is_visible(writer: ScoreWriter, tmp_path: Path) -> None:
    [first], [second] = written(writer, BATCHES), written(writer, BATCHES)
    assert first.path != second.path
    writer.job.publish([second])
    check_scores(tmp_path, second.path)


def test_an_attempt_that_is_overtaken_by_the_end_of_the_job_adds_nothing(writer: ScoreWriter, tmp_path: Path) -> None:
    taken: list[WrittenFile] = []

    def overtaken() -> Iterator[pa.RecordBatch]:
        yield BATCHES[0]
        taken.extend(written(writer, BATCHES))
        writer.job.publish(taken)
        yield from BATCHES[1:]

    with pytest.raises(FileNotFoundError):
        writer.write(0, lambda _: overtaken())
    check_scores(tmp_path, taken[0].path)


def test_an_attempt_that_dies_in_its_middle_leaves_the_next_one_alone(writer: ScoreWriter, tmp_path: Path) -> None:
    def dying() -> Iterator[pa.RecordBatch]:
        yield BATCHES[0]
        raise ConnectionResetError("the executor was lost")

    with pytest.raises(ConnectionResetError):
        writer.write(0, lambda _: dying())
    [published] = written(writer, BATCHES)
    writer.job.publish([published])
    check_scores(tmp_path, published.path)


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


@pytest.mark.parametrize("flags", [(), ("--trust",)])
def test_command_hands_on_the_callers_consent(flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def refused(*_: object, **options: object) -> None:
        given.update(options)
        raise ScoringError("not today")

    monkeypatch.setattr(run, "open_command_session", lambda *_, **__: SimpleNamespace(stop=lambda: None))
    monkeypatch.setattr(run, "resolve", lambda *_, **__: "model")
    monkeypatch.setattr(run, "score_files", refused)
    assert run.main(["--model=m", "--input=i", "--output=o", "--keys=id", *flags]) == 2
    assert given["trust"] == bool(flags)
