"""S20: how fast a model scores is measured on a bounded sample, without loading it, and without writing anything."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.parquet_rows import ParquetRows
from data_pipelines.publish import SaveMode, WriteJob
from data_pipelines.storage import StoragePath
from scoring.model_directory import ModelDirectory
from scoring.model_uri import resolve
from scoring.probe import ProbeTask
from scoring.score_writer import ScoreWriter
from scoring.scorer import Scorer
from scoring.shipping import ShippedModel
from tests.unit.scoring.exported_models import FLIGHTS

ROWS = 5_000


@pytest.fixture
def probe(flights_model: Path, tmp_path: Path) -> ProbeTask:
    """Return a probe of one row group of 5,000 flights."""
    copies = -(-ROWS // FLIGHTS.num_rows)
    flights = pa.concat_tables([FLIGHTS] * copies).slice(0, ROWS)
    pq.write_table(flights, tmp_path / "flights.parquet")
    pinned = resolve(flights_model)
    scorer = Scorer(ShippedModel(pinned.digest, pinned.label, path=str(pinned.path), archive=None))
    added = scorer.settings.schema(ModelDirectory.open(pinned.path))
    job = WriteJob(StoragePath.of(tmp_path / "scores"), SaveMode.ERROR, StoragePath.of(tmp_path / "staging"))
    writer = ScoreWriter(job, ("flight_id",), pa.schema([FLIGHTS.schema.field("flight_id"), *added]), scorer)
    columns = ["flight_id", *ModelDirectory.open(pinned.path).inputs.columns]
    source = ParquetRows.of(tmp_path / "flights.parquet", columns)
    return ProbeTask(source, source.groups, writer)


def told(probe: ProbeTask, *numbers: int) -> list[dict[str, float]]:
    batches = probe([pa.record_batch({"id": pa.array(numbers, pa.int64())})])
    return [row for batch in batches for row in batch.to_pylist()]


def test_the_first_task_measures_and_the_others_only_load_the_model(probe: ProbeTask, tmp_path: Path) -> None:
    measured, loaded = told(probe, 0, 1)
    # The first piece, of 256 rows, warms up.
    assert measured["rows"] == ROWS - 256
    assert 0 < measured["seconds"] < 60
    assert loaded == {"rows": 0, "seconds": 0.0, "loads": 0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flights.parquet"]


def test_a_slow_model_is_not_asked_for_the_whole_sample(probe: ProbeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoring.probe._MOST_SECONDS", 0.0)
    [measured] = told(probe, 0)
    assert measured["rows"] == 256


def test_a_sample_ends_where_it_says_enough(probe: ProbeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoring.probe._MOST_ROWS", 1_000)
    [measured] = told(probe, 0)
    # 256, 512 and 1,024 rows, of which the first warm up.
    assert measured["rows"] == 1_536


def test_rows_that_cannot_be_read_give_no_measurement(probe: ProbeTask, tmp_path: Path) -> None:
    (tmp_path / "flights.parquet").unlink()
    [measured] = told(probe, 0)
    assert (measured["rows"], measured["seconds"]) == (0, 0.0)
