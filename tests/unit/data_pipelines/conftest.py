"""Small fitted features, and dataset directories that are written without Spark."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.dataset.block_format import encode_blocks
from mirrorspark.data_pipelines.dataset.manifest import FEATURES_FOLDER, Manifest, Shard
from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics, Vocabulary
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import Encoder
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.data_pipelines.tfrecord.records import RecordWriter

CARRIERS = ("UA", "AA", "DL", "ü")


def vocabulary(*tokens: str) -> Vocabulary:
    return Vocabulary(pa.array(tokens, pa.string()), pa.array(range(len(tokens), 0, -1), pa.int64()))


@pytest.fixture(scope="session")
def flight_features() -> FittedFeatures:
    """Return features with UA = 2, AA = 3, DL = 4, ü = 5; ``distance`` has mean 100 and spread 50, ``row`` stays."""
    spec = FeatureSpec(
        features=(
            Numeric("row", impute=0, standardise=False),
            Numeric("distance"),
            Categorical("carrier"),
            MultiValued("earlier", max_length=3, truncate="head", vocabulary_of="carrier"),
        ),
        label=Label("late"),
        keys=("flight_id", "day"),
        weight="importance",
    )
    statistics = {
        "row": NumericStatistics(0.0, 1.0, 0.0, 0.0, 1),
        "distance": NumericStatistics(100.0, 50.0, 0.0, 200.0, 4),
    }
    return FittedFeatures(spec, {"carrier": vocabulary(*CARRIERS)}, statistics)


@pytest.fixture(scope="session")
def rating_features() -> FittedFeatures:
    """Return features of a retrieval: the label is the categorical ``movie``, and ``seen`` lists what to leave out."""
    spec = FeatureSpec(
        features=(Numeric("row", impute=0, standardise=False), Categorical("movie")),
        label=Label("movie", kind="candidate"),
        keys=("user",),
        exclude="seen",
    )
    statistics = {"row": NumericStatistics(0.0, 1.0, 0.0, 0.0, 1)}
    return FittedFeatures(spec, {"movie": vocabulary("Alien", "Brazil", "Casablanca")}, statistics)


def flights(start: int, rows: int) -> pa.Table:
    numbers = range(start, start + rows)
    return pa.table(
        {
            "row": pa.array(numbers, pa.int64()),
            "distance": pa.array([None if n % 7 == 3 else 10.0 * n for n in numbers], pa.float64()),
            "carrier": pa.array([(*CARRIERS, "??", "", None)[n % 7] for n in numbers], pa.string()),
            "earlier": pa.array([CARRIERS[: n % 5] for n in numbers], pa.list_(pa.string())),
            "late": pa.array([n % 2 for n in numbers], pa.int32()),
            "importance": pa.array([1.0 + n % 3 for n in numbers], pa.float64()),
            "flight_id": pa.array([f"flight-{n}" for n in numbers], pa.string()),
            "day": pa.array(numbers, pa.int64()),
        }
    )


def ratings(start: int, rows: int) -> pa.Table:
    numbers = range(start, start + rows)
    return pa.table(
        {
            "row": pa.array(numbers, pa.int64()),
            "movie": pa.array([("Alien", "Brazil", "Casablanca")[n % 3] for n in numbers], pa.string()),
            "user": pa.array(numbers, pa.int64()),
            "seen": pa.array([["Brazil", "Alien", "unknown"][: n % 4] for n in numbers], pa.list_(pa.string())),
        }
    )


@pytest.fixture(scope="session")
def flight_table() -> Callable[[int, int], pa.Table]:
    """Return a function that makes ``rows`` raw rows, numbered from ``start`` in the column ``row``."""
    return flights


@pytest.fixture(scope="session")
def write_dataset(flight_features: FittedFeatures, rating_features: FittedFeatures) -> Callable[..., Dataset]:
    """Return a function that writes a dataset directory.

    It takes the directory, per shard the rows of each block (``[[3, 2], [], [4]]``: three shards, one without rows),
    the name of the split and whether it is the retrieval problem. The examples are numbered from 0 in stored order.
    """

    def write(path: Path, shards: Sequence[Sequence[int]], *, split: str = "train", retrieval: bool = False) -> Dataset:
        fitted, make = (rating_features, ratings) if retrieval else (flight_features, flights)
        encoder = Encoder(fitted)
        (path / split).mkdir(parents=True)
        fitted.save(path / FEATURES_FOLDER)
        written = []
        row = 0
        for number, block_rows in enumerate(shards):
            name = f"{split}/part-{number:05d}.tfrecord"
            offsets = []
            with (path / name).open("wb") as file:
                records = RecordWriter(file)
                for rows in block_rows:
                    (payload,), _ = encode_blocks(make(row, rows), encoder, fitted.spec)
                    offsets.append(records.write(payload))
                    row += rows
            size, checksum = records.bytes_written, records.file_crc32c
            written.append(Shard(name, sum(block_rows), size, checksum, tuple(offsets), tuple(block_rows)))
        Manifest(fitted.hash, {split: tuple(written)}, {}, {}, {}, (), (), {}).save(path)
        return Dataset.open(path)

    return write
