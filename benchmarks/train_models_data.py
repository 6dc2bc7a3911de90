"""The models of ``train_models``, and their rows, drawn from a seed and laid out as by a conversion, without Spark."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mirrorspark.data_pipelines.dataset.block_format import encode_blocks
from mirrorspark.data_pipelines.dataset.manifest import FEATURES_FOLDER, TRAIN_SPLIT, Manifest, Shard
from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import Encoder
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.data_pipelines.tfrecord.records import RecordWriter
from mirrorspark.data_pipelines.tfrecord.table_blocks import ROWS_PER_BLOCK
from mirrorspark.training.configuration.fields import Optimizer

SHARDS = 8
NUMBERS = 20
# Tokens of each categorical column: from 10 to 10,000, each a like factor above the one before.
TOKENS = tuple(int(count) for count in np.geomspace(10, 10_000, 20))
QUANTILES = 48
CLASSES, CLASSES_PER_ROW = 100, 3
# HetRec 2011's LastFM has 17,632 artists, and 49 of the 50 that it lists of nearly every user.
ITEMS, HISTORY = 17_632, 50
IDS_PER_ROW = 8
TABLES = (10_000, 1_000_000)

Data = Literal["table", "labels", "interactions", "users", "small", "large"]


@dataclass(frozen=True)
class Case:
    """A model and how it is trained, on every side alike.

    Attributes:
        name: As the page has it.
        model: Its name in the catalog.
        data: Its rows, of :func:`write_rows`.
        options: Its settings.
        batch: Rows of a step on one worker.
        steps_per_execution: Steps that TensorFlow runs before it returns to Python; few where a step is long.
        learnt: Items that a row teaches to predict.
        peer: The model of ``torch_peer`` that is the same one, if there is one.
    """

    name: str
    model: str
    data: Data
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    batch: int = 256
    steps_per_execution: int = 50
    optimizer: Optimizer = "adam"
    learnt: int = 1
    peer: str | None = None


_ATTENTION = {"embedding_dim": 64, "blocks": 1, "dropout": 0.4, "negatives": 1000}
DCN = Case("`multi_field`, `cross_layers` 2 (DCN-V2)", "multi_field", "table", {"cross_layers": 2}, peer="dcn")
LSTM = Case(
    "`lstm_retrieval`",
    "lstm_retrieval",
    "interactions",
    {"embedding_dim": 64, "lstm_units": 64, "hidden_units": [], "negatives": 1000},
    steps_per_execution=10,
)
SASREC_ROWS = Case("`sasrec`, a row per interaction", "sasrec", "interactions", _ATTENTION, steps_per_execution=10)
SASREC = Case(
    "`sasrec`, a row per user",
    "sasrec",
    "users",
    {**_ATTENTION, "every_position": True},
    batch=128,
    steps_per_execution=5,
    learnt=HISTORY + 1,
    peer="sasrec",
)
MODELS = (
    DCN,
    Case("`multi_field`, `members` 8", "multi_field", "table", {"members": 8}),
    Case("`multi_field`, `numeric_embedding` piecewise", "multi_field", "table", {"numeric_embedding": "piecewise"}),
    Case(f"`multi_label`, {CLASSES} labels", "multi_label", "labels"),
    Case("`two_tower`, negatives of the batch", "two_tower", "interactions"),
    Case("`youtube_dnn`, 1,000 negatives", "youtube_dnn", "interactions"),
    LSTM,
    SASREC,
)


def table_case(optimizer: Optimizer, rows: int) -> Case:
    """Return the training of an embedding table of ``rows`` rows, one of :data:`TABLES`."""
    data: Data = "small" if rows == TABLES[0] else "large"
    return Case(f"{optimizer}, {rows:,} rows", "multi_field", data, {"embedding_dim": 32}, optimizer=optimizer)


def write_rows(data: Data, rows: int, folder: Path) -> None:
    """Write about ``rows`` rows as a dataset directory with a training split and nothing else.

    ``table`` has numbers, categories and a binary label, ``labels`` several labels per row. ``interactions`` has a row
    for every item of a user, with the items before it; ``users`` has the last of these rows of each user alone.
    ``small`` and ``large`` have lists of hashed tokens, of the buckets in :data:`TABLES`.
    """
    rng = np.random.default_rng(1)
    if data in ("table", "labels"):
        fitted, table = _table(rows, rng, is_multi_label=data == "labels")
    elif data in ("interactions", "users"):
        fitted, table = _sequences(max(1, rows // (HISTORY + 1)), rng, only_last=data == "users")
    else:
        fitted, table = _tokens(rows, TABLES[data == "large"], rng)
    _write(folder, fitted, table.take(rng.permutation(table.num_rows)))


def _table(rows: int, rng: np.random.Generator, *, is_multi_label: bool) -> tuple[FittedFeatures, pa.Table]:
    numbers = {f"number_{number}": rng.standard_normal(rows) for number in range(NUMBERS)}
    tokens = {f"token_{number}": _skewed(count, rows, rng) for number, count in enumerate(TOKENS)}
    total = np.sum([*numbers.values()], axis=0)
    if is_multi_label:
        label = Label("topics", "multi_label", classes=CLASSES)
        first = (total * 5).astype(np.int64) % CLASSES
        values = (first[:, np.newaxis] + np.arange(CLASSES_PER_ROW) * 7) % CLASSES
        target = _lists(values.ravel(), np.full(rows, CLASSES_PER_ROW))
    else:
        label, target = Label("again"), pa.array((total > 0).astype(np.int32))
    spec = FeatureSpec((*map(Numeric, numbers), *map(Categorical, tokens)), label, ("row",))
    shares = np.linspace(0, 1, QUANTILES + 1)[1:-1]
    fitted = FittedFeatures(
        spec,
        {name: _vocabulary(values, count) for (name, values), count in zip(tokens.items(), TOKENS, strict=True)},
        {name: NumericStatistics(0.0, 1.0, of.min(), of.max(), rows) for name, of in numbers.items()},
        {name: tuple(np.quantile(of, shares).tolist()) for name, of in numbers.items()},
    )
    return fitted, pa.table({**numbers, **tokens, label.name: target, "row": np.arange(rows)})


def _sequences(users: int, rng: np.random.Generator, *, only_last: bool) -> tuple[FittedFeatures, pa.Table]:
    items = _skewed(ITEMS, users * (HISTORY + 1), rng).reshape(users, HISTORY + 1)
    lengths = np.array([HISTORY]) if only_last else np.arange(HISTORY + 1)
    before = np.concatenate([items[:, :length] for length in lengths], axis=1)  # of a user, row after row
    table = pa.table(
        {
            "history": _lists(before.ravel(), np.tile(lengths, users)),
            "item": items[:, lengths].ravel(),
            "row": np.arange(users * len(lengths)),
        }
    )
    features = (MultiValued("history", max_length=HISTORY, vocabulary_of="item"), Categorical("item"))
    spec = FeatureSpec(features, Label("item", "candidate"), ("row",))
    return FittedFeatures(spec, {"item": _vocabulary(items.ravel(), ITEMS)}, {}), table


def _tokens(rows: int, buckets: int, rng: np.random.Generator) -> tuple[FittedFeatures, pa.Table]:
    tokens = rng.integers(0, buckets, rows * IDS_PER_ROW)
    feature = MultiValued("tokens", max_length=IDS_PER_ROW, hash_buckets=buckets)
    table = {"tokens": _lists(tokens, np.full(rows, IDS_PER_ROW)), "again": tokens[:rows] % 2, "row": np.arange(rows)}
    return FittedFeatures(FeatureSpec((feature,), Label("again"), ("row",)), {}, {}), pa.table(table)


def _skewed(count: int, size: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return tokens from 0, small ones more often, as tokens ordered by frequency are."""
    return (count * rng.random(size) ** 2).astype(np.int64)


def _lists(values: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> pa.ListArray:
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), values)


def _vocabulary(tokens: npt.NDArray[np.int64], count: int) -> Vocabulary:
    counts = np.bincount(tokens, minlength=count)
    return Vocabulary(pa.array([str(token) for token in range(count)]), pa.array(counts, pa.int64()))


def _write(folder: Path, fitted: FittedFeatures, table: pa.Table) -> None:
    fitted.save(folder / FEATURES_FOLDER)
    (folder / TRAIN_SPLIT).mkdir()
    encoder, shards = Encoder(fitted), []
    size = -(-table.num_rows // SHARDS)
    for number, start in enumerate(range(0, table.num_rows, size)):
        part = table.slice(start, size)
        payloads, _ = encode_blocks(part, encoder, fitted.spec)
        name = f"{TRAIN_SPLIT}/part-{number:05d}.tfrecord"
        with (folder / name).open("wb") as file:
            records = RecordWriter(file)
            offsets = tuple(records.write(payload) for payload in payloads)
        rows = tuple(min(ROWS_PER_BLOCK, part.num_rows - first) for first in range(0, part.num_rows, ROWS_PER_BLOCK))
        shards.append(Shard(name, part.num_rows, records.bytes_written, records.file_crc32c, offsets, rows))
    Manifest(fitted.hash, {TRAIN_SPLIT: tuple(shards)}, {}, {}, {}, (), (), {}).save(folder)
