"""Mutates everything that is read from files that others may have written, and reads it with bounds checks.

``python -m tests.faults.mutations --count 1000000 --seed 1`` (with ``NUMBA_BOUNDSCHECK=1``): each reader gets bytes
with some of them changed, cut out, doubled or swapped, or numbers and texts of JSON replaced. It either reads them or
raises an error of its own; anything else is a find. A find is written to ``tests/faults/corpus``, whose files are read
first each time; so the corpus grows by every mistake.
"""

import argparse
import io
import json
import random
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints import fencing as fence
from mirrorspark.data_pipelines.dataset.manifest import MANIFEST_FILE, DatasetError, Manifest
from mirrorspark.data_pipelines.reading.decode_blocks import BlockSlots, DamagedBlockError
from mirrorspark.data_pipelines.tfrecord.arrow_schema import FeatureTypeError
from mirrorspark.data_pipelines.tfrecord.examples import MalformedExampleError, encode_example
from mirrorspark.data_pipelines.tfrecord.records import DamagedRecordError, RecordWriter
from mirrorspark.data_pipelines.tfrecord.row_decoder import RowDecoder
from mirrorspark.scoring.model.folder.directory import DESCRIPTION_FILE, ModelDirectory
from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.model.stored.digest import model_files
from mirrorspark.scoring.package import package_model
from mirrorspark.serving.precomputed.precomputation import precompute
from mirrorspark.serving.precomputed.store import PrecomputedScores
from mirrorspark.serving.precomputed.store_file import DamagedStoreError, StoreError
from mirrorspark.storage.lease import Heartbeat
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish.journal import JOURNAL_FILE, Journal
from mirrorspark.storage.publish.staging import UnsafeJournalError
from mirrorspark.training.protocol.names import STATE_FILE
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.run_history import read_curves, read_run
from mirrorspark.training.run_records.run_state import RunState, driver_of, read_state
from tests.unit.callbacks.committed_files import publish_files
from tests.unit.data_pipelines.test_decode_blocks import LAYOUT, block
from tests.unit.data_pipelines.tfrecord.test_row_codec import SCHEMA, chunk_of, payloads_of

CORPUS = Path(__file__).parent / "corpus"
NUMBERS = (0, 1, -1, 127, 128, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(10**12), 10**12, 10**400)
TEXTS = (
    "../x",
    "/etc/passwd",
    "",
    ".",
    "..",
    "a/../../b",
    "\ud800",
    "NaN",
    "x" * 70_000,
    "null",
    "__pycache__/x",
    "__pycache__/x.cpython-311.pyc",
)
VALUES = (b"null", b"true", b'"1"', b"[]", b"{}", b"[[1]]", b"1", b"-0.5", b"1e999", b"NaN", b"1" + b"0" * 400)
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


@dataclass(frozen=True)
class Reader:
    """One reader of bytes.

    Attributes:
        seeds: Content that it reads without an error.
        read: Reads bytes.
        refuses: The errors that it may raise.
        cost: Its time relative to the quickest reader; divides the number of its mutations.
    """

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...]
    cost: int = 1


def readers(folder: Path) -> list[Reader]:
    """Return all readers; those of files write them below ``folder``."""
    return [
        _blocks(),
        _rows(),
        *_documents(folder),
        _model(folder),
        _store(folder),
        _fences(folder),
        _run_states(folder),
        _events(folder),
    ]


def _blocks() -> Reader:
    slots = BlockSlots(LAYOUT, 1, 5, constants=())
    positions = np.arange(5, dtype=np.uint32)

    def read(payload: bytes) -> None:
        # With checksums that fit, the code behind them is tried.
        file = io.BytesIO()
        RecordWriter(file).write(payload)
        slots.decode(0, np.frombuffer(file.getvalue(), np.uint8), 0, positions)

    seeds = tuple(encode_example(block(5, seed)) for seed in range(3))
    return Reader("blocks", seeds, read, (DamagedBlockError, DamagedRecordError, MalformedExampleError), cost=2)


def _rows() -> Reader:
    row = {
        "key": 1,
        "price": 0.5,
        "name": "ü",
        "größe": 300,
        "photo": b"x",
        "ids": [1, 2],
        "scores": [0.5],
        "tags": ["a"],
    }
    batch = pa.RecordBatch.from_pylist([row, row | {"ids": [], "name": None, "tags": None}], SCHEMA)
    payloads = payloads_of(batch)
    decoder = RowDecoder(SCHEMA)

    def read(payload: bytes) -> None:
        decoder.decode(chunk_of([payload])).validate(full=True)

    return Reader("rows", tuple(payloads), read, (MalformedExampleError, FeatureTypeError, ValueError), cost=6)


def _documents(folder: Path) -> Iterator[Reader]:
    staging = StoragePath.of(folder / "staging")
    (folder / "staging").mkdir()

    def journal(content: bytes) -> None:
        (folder / "staging" / JOURNAL_FILE).write_bytes(content)
        found = Journal.find(staging)
        for name in (*found.files, *found.deletes, *found.replaced) if found else ():
            path = (folder / "target" / name).resolve() if "\0" not in name else folder / "target"
            assert path.is_relative_to((folder / "target").resolve()), name

    entries = {"files": ["a", "day=1/b"], "deletes": ["c"], "replaced": [], "had_success": True, "is_moved": False}
    yield Reader("journals", (json.dumps(entries).encode(),), journal, (UnsafeJournalError,), cost=4)
    beat = b'{"host": "h", "pid": 7, "lock": "0123456789abcdef0123456789abcdef", "count": 3, "is_released": false}'
    yield Reader("heartbeats", (beat,), Heartbeat.parse, ())

    store = folder / "checkpoints"
    checkpoint = publish_files(store, {"ckpt.index": "i", commit.STATE: "{}"}, step=10, epoch=1, metrics={"auc": 0.5})
    marker = Path(str(checkpoint.path)) / commit.MARKER

    def read_marker(content: bytes) -> None:
        marker.write_bytes(content)
        found = commit.read_committed(checkpoint.path)
        for file in found.files:
            path = (marker.parent / file.name).resolve() if "\0" not in file.name else marker
            assert path.is_relative_to(marker.parent.resolve()), file.name

    yield Reader("markers", (marker.read_bytes(),), read_marker, (commit.CheckpointDamagedError,), cost=4)

    shard = {"path": "train/a.tfrecord", "rows": 2, "bytes": 90, "crc32c": 1, "block_offsets": [0], "block_rows": [2]}
    manifest = {
        "features_hash": "0" * 12,
        "splits": {"train": [shard]},
        "statistics": {},
        "source": {},
        "options": {},
        "columns": ["a"],
        "findings": [],
        "versions": {},
        "format_version": 2,
        "layout": "block",
        "compression": "none",
    }
    (folder / "dataset").mkdir()

    def read_manifest(content: bytes) -> None:
        (folder / "dataset" / MANIFEST_FILE).write_bytes(content)
        found = Manifest.load(folder / "dataset")
        for shards in found.splits.values():
            for shard in shards:
                assert 0 <= shard.rows <= shard.bytes
                assert ".." not in shard.path.split("/")

    yield Reader("manifests", (json.dumps(manifest).encode(),), read_manifest, (DatasetError,), cost=4)


def _model(folder: Path) -> Reader:
    model = package_model({"coefficients": {"x": 1.0, "y": 2.0}}, folder / "model", labels=None)
    description = model / DESCRIPTION_FILE
    (model / "__pycache__").mkdir()
    # The caches of Python are the only files that a digest leaves out.
    for name in ("__pycache__/x", "__pycache__/x.cpython-311.pyc"):
        shutil.copyfile(model / "linear.json", model / name)

    def read(content: bytes) -> None:
        description.write_bytes(content)
        found = ModelDirectory.open(model)
        path = (model / getattr(found.description, "file", "")).resolve()
        assert path.is_relative_to(model.resolve())
        assert path == model.resolve() or path in {file.resolve() for _, file in model_files(model)}

    return Reader("models", (description.read_bytes(),), read, (ModelDirectoryError, ValueError), cost=6)


def _store(folder: Path) -> Reader:
    pq.write_table(pa.table({"id": list(range(20)), "score": [0.5] * 20}), folder / "rows.parquet")
    precompute(folder / "rows.parquet", folder / "rows.db", key="id")
    sound = (folder / "rows.db").read_bytes()
    path = folder / "mutated.db"

    def read(content: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        with PrecomputedScores.open(path) as scores:
            assert content == sound, "a store that was changed is read"
            scores.check()

    return Reader("stores of rows", (sound,), read, (StoreError, DamagedStoreError), cost=30)


def _fences(folder: Path) -> Reader:
    store = folder / "fenced"
    earlier = fence.fence(store, 1)
    mine = fence.adopt(store, fence.fence(store, 2), ["step-00000010-0fa1b2c3"])
    path = store / mine.file

    def read(content: bytes) -> None:
        path.write_bytes(content)
        found = fence.read_fence(store)
        assert found is not None
        # A damaged fence lets no other attempt publish than the one that its file's name has.
        assert found.id == mine.id
        found.counts("step-00000010-0fa1b2c3", "0fa1b2c3")
        fence.read_fence(store, earlier.id)

    return Reader("fences", (path.read_bytes(),), read, (OSError,), cost=4)


def _run_states(folder: Path) -> Reader:
    run = folder / "run"
    run.mkdir()
    # Of a host of our own, so that its process is looked for.
    state = RunState("0123456789ab-fedcba", "running", "1", socket.gethostname(), 1 << 22, 0.5, "", "1", 1.5)

    def read(content: bytes) -> None:
        (run / STATE_FILE).write_bytes(content)
        found = read_state(run)
        if found is not None:
            hash(found)
            driver_of(run, found)
        read_run(run)

    (run / "config.yaml").write_text("name: x")
    return Reader("run states", (json.dumps(asdict(state)).encode(),), read, (), cost=4)


def _events(folder: Path) -> Reader:
    run = RunFolder(folder / "events", "", None)
    run.path.mkdir()
    lines = b""
    for number in range(4):
        event = {"event": "epoch_end", "epoch": number, "rank": 0, "logs": {"auc": 0.5}, "time": 1.5 + number}
        lines += json.dumps({"event": "attempt", "time": 1.0}).encode() + b"\n" + json.dumps(event).encode() + b"\n"

    def read(content: bytes) -> None:
        run.events.write_bytes(content)
        for event in run.past_events():
            assert "event" in event
        read_curves(run.events)

    return Reader("event files", (lines,), read, (), cost=8)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return ``content`` with one to four changes."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        content = _change(content, chance)
    return content


def _change(content: bytes, chance: random.Random) -> bytes:
    if not content:
        return bytes([chance.randrange(256)])
    place = chance.randrange(len(content))
    end = min(len(content), place + chance.choice((1, 2, 4, 8, 64)))
    match chance.randrange(10):
        case 0:
            return content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]
        case 1:
            return content[:place] + bytes([chance.choice(INTERESTING)]) + content[place + 1 :]
        case 2:
            return content[:place] + chance.randbytes(end - place) + content[end:]
        case 3:
            return content[:place] + content[end:]
        case 4:
            return content[:place]
        case 5:
            return content[:end] + content[place:]
        case 6:
            other = chance.randrange(len(content))
            return content[:place] + content[other : other + end - place] + content[end:]
        case 7:
            return _replaced(rb"-?\d+", str(chance.choice(NUMBERS)).encode(), content, chance)
        case 8:
            return _replaced(rb'-?\d[\d.]*|"[^"]*"|null|true|false', chance.choice(VALUES), content, chance)
    return _replaced(rb'"[^"]*"', json.dumps(chance.choice(TEXTS)).encode(), content, chance)


def _replaced(pattern: bytes, new: bytes, content: bytes, chance: random.Random) -> bytes:
    found = list(re.finditer(pattern, content))
    if not found:
        return content[::-1]
    start, end = chance.choice(found).span()
    return content[:start] + new + content[end:]


def tried(reader: Reader, content: bytes) -> Exception | None:
    """Return the error that ``reader`` must not raise, or None."""
    try:
        reader.read(content)
    except reader.refuses:
        return None
    except Exception as error:
        return error
    return None


def main() -> int:
    """Try all readers, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    finds = 0
    with tempfile.TemporaryDirectory(prefix="mirrorspark-mutations-") as folder:
        all_readers = readers(Path(folder))
        for reader in all_readers:
            for seed in reader.seeds:
                reader.read(seed)
        unit = asked.count / sum(1 / reader.cost for reader in all_readers)
        total = 0
        for reader in all_readers:
            begin = time.perf_counter()
            kept = [path.read_bytes() for path in sorted(CORPUS.glob(f"{reader.name.replace(' ', '-')}-*"))]
            chance, count = random.Random(f"{asked.seed} {reader.name}"), round(unit / reader.cost) + 1
            found: dict[str, bytes] = {}
            for number in range(len(kept) + count):
                content = kept[number] if number < len(kept) else mutated(chance.choice(reader.seeds), chance)
                error = tried(reader, content)
                if error is not None:
                    found.setdefault(f"{type(error).__name__}: {str(error)[:100]}", content)
            for error_text, content in found.items():
                place = CORPUS / f"{reader.name.replace(' ', '-')}-{sha256(content).hexdigest()[:12]}"
                place.write_bytes(content)
                print(f"FOUND {reader.name}: {error_text} ({place.name})")
            finds += len(found)
            total += count
            print(f"{reader.name}: {count:,} mutations in {time.perf_counter() - begin:.0f} s", flush=True)
    print(f"{total:,} mutations, {finds} finds")
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
