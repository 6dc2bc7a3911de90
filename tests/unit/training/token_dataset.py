"""A small dataset directory, written without Spark: rows whose label is whether their token has an odd number."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.dataset.blocks import encode_blocks
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
    fitted = FittedFeatures(spec, {"token": vocabulary}, {})
    fitted.save(path / FEATURES_FOLDER)
    encoder, rng = Encoder(fitted), np.random.default_rng(3)
    splits = {}
    for split, count in rows.items():
        (path / split).mkdir()
        name = f"{split}/part-00000.tfrecord"
        offsets, block_rows = [], []
        with (path / name).open("wb") as file:
            records = RecordWriter(file)
            for start in range(0, count, BLOCK_ROWS):
                numbers = rng.integers(0, tokens, min(BLOCK_ROWS, count - start))
                table = pa.table(
                    {
                        "token": pa.array([names[number] for number in numbers]),
                        "is_odd": pa.array(numbers % 2, pa.int32()),
                        "row": pa.array(range(start, start + len(numbers)), pa.int64()),
                    }
                )
                (payload,), _ = encode_blocks(table, encoder, spec)
                offsets.append(records.write(payload))
                block_rows.append(len(numbers))
        shard = Shard(name, count, records.bytes_written, records.file_crc32c, tuple(offsets), tuple(block_rows))
        splits[split] = (shard,)
    Manifest(fitted.hash, splits, {}, {}, {}, (), (), {}).save(path)
    return Dataset.open(path)
