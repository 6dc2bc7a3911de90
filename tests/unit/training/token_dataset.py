"""Small dataset directories, written without Spark: of given rows, or with tokens of odd and even numbers."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.dataset.block_format import encode_blocks
from mirrorspark.data_pipelines.dataset.manifest import FEATURES_FOLDER, Manifest, Shard
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Categorical, Label
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import Encoder
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.data_pipelines.tfrecord.records import RecordWriter

BLOCK_ROWS = 512


def write_token_dataset(path: Path, rows: Mapping[str, int], tokens: int) -> Dataset:
    """Write ``rows`` rows per split, in which ``tokens`` tokens are equally frequent."""
    spec = FeatureSpec(features=(Categorical("token"),), label=Label("is_odd"), keys=("row",))
    names = [f"t{number}" for number in range(tokens)]
    vocabulary = Vocabulary(pa.array(names), pa.array([1] * tokens, pa.int64()))
    rng = np.random.default_rng(3)
    tables = {}
    for split, count in rows.items():
        sizes = [min(BLOCK_ROWS, count - start) for start in range(0, count, BLOCK_ROWS)]
        numbers = np.concatenate([rng.integers(0, tokens, size) for size in sizes])
        tables[split] = pa.table(
            {
                "token": pa.array([names[number] for number in numbers]),
                "is_odd": pa.array(numbers % 2, pa.int32()),
                "row": pa.array(range(count), pa.int64()),
            }
        )
    return write_dataset(path, FittedFeatures(spec, {"token": vocabulary}, {}), tables)


def write_dataset(path: Path, fitted: FittedFeatures, tables: Mapping[str, pa.Table]) -> Dataset:
    """Write the raw rows of each split."""
    fitted.save(path / FEATURES_FOLDER)
    encoder, splits = Encoder(fitted), {}
    for split, table in tables.items():
        (path / split).mkdir()
        name = f"{split}/part-00000.tfrecord"
        with (path / name).open("wb") as file:
            records = RecordWriter(file)
            payloads, _ = encode_blocks(table, encoder, fitted.spec, BLOCK_ROWS)
            offsets = tuple(records.write(payload) for payload in payloads)
        block_rows = tuple(min(BLOCK_ROWS, table.num_rows - start) for start in range(0, table.num_rows, BLOCK_ROWS))
        splits[split] = (Shard(name, table.num_rows, records.bytes_written, records.file_crc32c, offsets, block_rows),)
    Manifest(fitted.hash, splits, {}, {}, {}, (), (), {}).save(path)
    return Dataset.open(path)
