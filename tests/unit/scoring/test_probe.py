"""S20: how fast a model scores is measured on a bounded sample and in bounded time, without what is done once.

Loading the model is not part of it, and nothing is written.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.data_pipelines.reading.parquet_rows import ParquetRows
from mirrorspark.scoring.files import ScoreWriter
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.task import Scorer, ShippedModel
from mirrorspark.scoring.task.counts import ScoringCounts
from mirrorspark.scoring.task.probe import ProbeTask
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import SaveMode, WriteJob
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
    results = scorer.options.schema(ModelDirectory.open(pinned.path))
    job = WriteJob(StoragePath.of(tmp_path / "scores"), SaveMode.ERROR, StoragePath.of(tmp_path / "staging"))
    writer = ScoreWriter(job, pa.schema([FLIGHTS.schema.field("flight_id")]), scorer, results)
    columns = ["flight_id", *ModelDirectory.open(pinned.path).inputs.columns]
    source = ParquetRows.of(tmp_path / "flights.parquet", columns)
    return ProbeTask(source, source.groups, writer)


def told(probe: ProbeTask, *numbers: int) -> list[dict[str, float]]:
    batches = probe([pa.record_batch({"id": pa.array(numbers, pa.int64())})])
    return [row for batch in batches for row in batch.to_pylist()]


@dataclass
class Clock:
    """A clock that goes on while rows are scored, by what the model would take.

    Attributes:
        first_call: Seconds of what the first call does once.
        per_row: Seconds of each row.
        seconds: Time of the clock.
    """

    first_call: float
    per_row: float
    seconds: float = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    def scored(
        self, _model: LoadedModel, rows: pa.RecordBatch, _counts: ScoringCounts, _keys: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        if not self.seconds:
            self.seconds = self.first_call
        self.seconds += rows.num_rows * self.per_row
        return iter(())


def on_a_clock(monkeypatch: pytest.MonkeyPatch, *, per_row: float, first_call: float = 0.0) -> Clock:
    clock = Clock(first_call, per_row)
    monkeypatch.setattr("mirrorspark.scoring.task.probe.time", clock)
    monkeypatch.setattr(Scorer, "scored_parts", clock.scored)
    return clock


def test_the_first_task_measures_and_the_others_only_load_the_model(probe: ProbeTask, tmp_path: Path) -> None:
    measured, loaded = told(probe, 0, 1)
    # The first piece, of 256 rows, warms up.
    assert measured["rows"] == ROWS - 256
    assert 0 < measured["seconds"] < 60
    assert loaded == {"rows": 0, "seconds": 0.0, "loads": 0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flights.parquet"]


def test_a_slow_first_call_is_not_taken_for_the_speed(probe: ProbeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = on_a_clock(monkeypatch, first_call=8.0, per_row=1 / 1024)
    [measured] = told(probe, 0)
    # After the first piece come 256, 512, 1,024 and 2,048 rows: all but the last of them take 1.75 s.
    assert (measured["rows"], measured["seconds"]) == (3_840, 3.75)
    assert clock.seconds == 8.25 + 3.75


def test_a_slow_model_is_not_asked_for_the_whole_sample(probe: ProbeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = on_a_clock(monkeypatch, per_row=10 / 256)
    [measured] = told(probe, 0)
    assert (measured["rows"], measured["seconds"]) == (256, 10.0)
    assert clock.seconds == 20.0


@pytest.mark.parametrize(("first_call", "per_row"), [(0.0, 40 / 256), (40.0, 1 / 1024)])
def test_a_first_piece_of_half_a_minute_is_all_that_is_measured(
    probe: ProbeTask, monkeypatch: pytest.MonkeyPatch, first_call: float, per_row: float
) -> None:
    clock = on_a_clock(monkeypatch, first_call=first_call, per_row=per_row)
    [measured] = told(probe, 0)
    assert (measured["rows"], measured["seconds"]) == (256, clock.seconds)


@pytest.mark.parametrize(
    ("first_call", "piece_seconds"), [(0.0, 29.9), (19.0, 10.9), (28.0, 1.9), (29.0, 0.9), (29.0, 0.6)]
)
def test_a_measurement_whose_first_piece_takes_below_half_a_minute_takes_below_a_minute(
    probe: ProbeTask, monkeypatch: pytest.MonkeyPatch, first_call: float, piece_seconds: float
) -> None:
    clock = on_a_clock(monkeypatch, first_call=first_call, per_row=piece_seconds / 256)
    [measured] = told(probe, 0)
    assert measured["rows"] / measured["seconds"] == pytest.approx(256 / piece_seconds)
    assert clock.seconds < 60


def test_a_sample_ends_where_it_says_enough(probe: ProbeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorspark.scoring.task.probe._MOST_ROWS", 1_000)
    [measured] = told(probe, 0)
    # 256, 256 and 512 rows, of which the first warm up.
    assert measured["rows"] == 768


def test_the_first_piece_is_a_call_where_calls_are_padded(probe: ProbeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """S5: less would take as long, and the speed would look lower than it is."""
    monkeypatch.setattr(LoadedModel, "least_rows", lambda _model, _batch_size: 1_000)
    on_a_clock(monkeypatch, per_row=1 / 100_000)
    [measured] = told(probe, 0)
    assert measured["rows"] == ROWS - 1_000


def test_rows_that_cannot_be_read_give_no_measurement(probe: ProbeTask, tmp_path: Path) -> None:
    (tmp_path / "flights.parquet").unlink()
    [measured] = told(probe, 0)
    assert (measured["rows"], measured["seconds"]) == (0, 0.0)
