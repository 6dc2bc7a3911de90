"""Scores are added to older ones of the same columns alone: Spark would read null where they differ (S12)."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.data_pipelines.reading.parquet_rows import ParquetError
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.output.older_scores import check_same_columns
from mirrorspark.storage.paths import StoragePath

SCORES = pa.schema({"id": pa.int64(), "score": pa.float32(), "model_version": pa.string()})


@pytest.fixture
def older(tmp_path: Path) -> StoragePath:
    """Return a folder of scores, as Spark or a task writes them."""
    pq.write_table(SCORES.empty_table(), tmp_path / "part-1.parquet", store_schema=False)
    (tmp_path / "_SUCCESS").touch()
    return StoragePath.of(tmp_path)


def test_scores_of_the_same_columns_may_be_added_in_any_order_of_them(older: StoragePath) -> None:
    check_same_columns(older, SCORES)
    check_same_columns(older, pa.schema(reversed(list(SCORES))))


def test_types_are_those_that_a_file_keeps(older: StoragePath) -> None:
    """Arrow has several texts, of which Parquet makes one."""
    check_same_columns(older, SCORES.set(2, pa.field("model_version", pa.large_string(), nullable=False)))


TIME = pa.timestamp("us", "UTC")
PLAIN = pa.list_(pa.field("element", pa.int64(), nullable=False))


@pytest.mark.parametrize(
    ("there", "here"),
    [
        (pa.timestamp("ms", "UTC"), TIME),
        (pa.timestamp("us", "Europe/Berlin"), TIME),
        (PLAIN, pa.list_(pa.int64())),
        (pa.list_(pa.int64(), 3), pa.list_(pa.int64())),
        (pa.struct({"b": pa.string(), "a": pa.int64()}), pa.struct({"a": pa.int64(), "b": pa.string()})),
        (pa.map_(pa.string(), pa.field("value", pa.int64(), nullable=False)), pa.map_(pa.string(), pa.int64())),
        (pa.dictionary(pa.int32(), pa.string()), pa.string()),
        (pa.large_string(), pa.string()),
        (pa.binary(16), pa.binary()),
        (pa.uint32(), pa.uint32()),
        (pa.date64(), pa.date32()),
    ],
    ids=str,
)
def test_types_that_spark_reads_alike_are_equal(tmp_path: Path, there: pa.DataType, here: pa.DataType) -> None:
    """The file is from another library, and has a note of its types in Arrow."""
    pq.write_table(pa.schema({"key": there}).empty_table(), tmp_path / "part.parquet")
    check_same_columns(StoragePath.of(tmp_path), pa.schema({"key": here}))


def test_times_may_be_as_spark_writes_them(tmp_path: Path) -> None:
    times = pa.table({"key": pa.array([0], TIME)})
    pq.write_table(times, tmp_path / "part.parquet", use_deprecated_int96_timestamps=True)
    check_same_columns(StoragePath.of(tmp_path), times.schema)


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "part.parquet").write_bytes(b"nothing of that kind")
    with pytest.raises(ParquetError, match=r"part\.parquet"):
        check_same_columns(StoragePath.of(tmp_path), SCORES)


def test_other_types_are_told(older: StoragePath) -> None:
    message = "have other types, .*: 'id' is bigint there and string here, 'score' is float there and double here; cast"
    other = SCORES.set(0, pa.field("id", pa.string())).set(1, pa.field("score", pa.float64()))
    with pytest.raises(ScoringError, match=message):
        check_same_columns(older, other)


@pytest.mark.parametrize(
    ("schema", "differing"),
    [
        (SCORES.append(pa.field("error", pa.string())), "error"),
        (SCORES.remove(2), "model_version"),
        (SCORES.set(1, pa.field("prediction", pa.struct({"score": pa.float32()}))), "prediction, score"),
    ],
)
def test_other_columns_are_refused_by_name(older: StoragePath, schema: pa.Schema, differing: str) -> None:
    with pytest.raises(ScoringError, match=rf"would read null where they differ \({differing}\); score with the same"):
        check_same_columns(older, schema)


def test_an_empty_place_accepts_any_write(tmp_path: Path) -> None:
    check_same_columns(StoragePath.of(tmp_path / "none"), SCORES)
    check_same_columns(StoragePath.of(tmp_path), SCORES)
