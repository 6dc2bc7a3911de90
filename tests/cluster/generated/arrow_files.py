"""Parquet files with columns of all types of Arrow, and JSON files, by a seed."""

import gzip
import json
import math
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.cluster.generated.csv_files import NAMES, TEXTS, WIDE_NAMES, WIDE_TEXTS

Draw = Callable[[random.Random], Any]


def _bits(bits: int, *, signed: bool = True) -> Draw:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return lambda rng: rng.choice((low, high, 0, 1, 7, rng.randint(low, high)))


def _number(rng: random.Random) -> float:
    return rng.choice((0.5, -1.25, 3.0, math.inf, rng.uniform(-1, 1), math.nan))


def _moment(rng: random.Random) -> datetime:
    return datetime(2024, 2, 29) + timedelta(seconds=rng.randint(-(10**9), 10**8))


def _length(rng: random.Random) -> timedelta:
    return timedelta(seconds=rng.randint(-(10**6), 10**6))


def _text(rng: random.Random) -> str:
    return rng.choice(TEXTS + WIDE_TEXTS + ("",))


def _list_of(draw: Draw) -> Draw:
    return lambda rng: [draw(rng) for _ in range(rng.randint(0, 4))]


TYPES: Sequence[tuple[pa.DataType, Draw]] = (
    *((kind, _bits(kind.bit_width)) for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.int64())),
    *((kind, _bits(kind.bit_width, signed=False)) for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())),
    (pa.float16(), lambda rng: np.float16(rng.choice((0.5, -1.25, 3.0)))),
    (pa.float32(), lambda rng: rng.choice((0.5, -1.25, 3.0, math.nan))),
    (pa.float64(), _number),
    (pa.float64(), _number),
    (pa.bool_(), lambda rng: rng.random() < 0.5),
    (pa.string(), _text),
    (pa.string(), _text),
    (pa.large_string(), _text),
    (pa.string_view(), _text),
    (pa.dictionary(pa.int8(), pa.string()), lambda rng: rng.choice(TEXTS[:9])),
    (pa.dictionary(pa.int32(), pa.int64()), _bits(16)),
    (pa.binary(), lambda rng: rng.randbytes(3)),
    (pa.large_binary(), lambda rng: rng.randbytes(3)),
    (pa.binary(4), lambda rng: rng.randbytes(4)),
    (pa.null(), lambda _: None),
    (pa.date32(), lambda rng: _moment(rng).date()),
    (pa.date64(), lambda rng: _moment(rng).date()),
    *((pa.timestamp(unit, zone), _moment) for unit in ("s", "ms", "us", "ns", "ns") for zone in (None, "Asia/Tokyo")),
    (pa.time32("s"), lambda rng: time(rng.randint(0, 23), 5)),
    (pa.time32("ms"), lambda rng: time(rng.randint(0, 23), 5)),
    (pa.time64("us"), lambda rng: time(rng.randint(0, 23), 5)),
    (pa.time64("ns"), lambda rng: time(rng.randint(0, 23), 5)),
    *((pa.duration(unit), _length) for unit in ("s", "ms", "us", "ns")),
    (pa.decimal128(9, 2), lambda rng: Decimal(rng.randint(-(10**8), 10**8)) / 100),
    (pa.decimal128(38, 10), lambda rng: Decimal(rng.randint(-(10**8), 10**8)) / 100),
    (pa.decimal32(7, 2), lambda rng: Decimal(rng.randint(-(10**6), 10**6)) / 100),
    (pa.decimal256(30, 2), lambda rng: Decimal(rng.randint(-(10**8), 10**8)) / 100),
    (pa.decimal256(60, 2), lambda rng: Decimal(rng.randint(-(10**8), 10**8)) / 100),
    (pa.list_(pa.float32()), _list_of(lambda rng: rng.choice((0.5, -1.25)))),
    (pa.list_(pa.string()), _list_of(_text)),
    (pa.large_list(pa.int64()), _list_of(_bits(8))),
    (pa.list_(pa.float64(), 3), lambda rng: [rng.random() for _ in range(3)]),
    (pa.list_(pa.timestamp("ns")), _list_of(_moment)),
    (pa.list_(pa.time64("us")), _list_of(lambda rng: time(rng.randint(0, 23)))),
    (pa.list_(pa.list_(pa.int32())), _list_of(_list_of(_bits(8)))),
    (pa.struct([("a", pa.int32()), ("b", pa.string())]), lambda rng: {"a": 1, "b": _text(rng)}),
    (pa.struct([("a", pa.int32()), ("t", pa.timestamp("ns"))]), lambda rng: {"a": 1, "t": _moment(rng)}),
    (pa.map_(pa.string(), pa.float64()), lambda rng: [("a", 0.5), ("b", 1.5)]),
    (pa.map_(pa.int64(), pa.float64()), lambda rng: [(3, 0.5)]),
    (pa.uuid(), lambda rng: uuid.UUID(int=rng.getrandbits(128)).bytes),
    (pa.json_(), lambda rng: json.dumps({"a": _text(rng)})),
    (pa.bool8(), lambda rng: rng.randint(0, 1)),
)  # fmt: skip


def drawn_column(rng: random.Random, kind: pa.DataType, draw: Draw, rows: int) -> pa.Array:
    """Return a column of a type, with nulls or without."""
    share = rng.choice((0.0, 0.0, 0.3, 1.0 if rng.random() < 0.2 else 0.0))
    values = [None if rng.random() < share else draw(rng) for _ in range(rows)]
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)


def write_parquet(folder: Path, seed: int) -> tuple[Path, pa.Table]:
    """Write the file of a seed to a folder, as PyArrow, pandas and others do; return its path and its table."""
    rng = random.Random(seed)
    rows, count = rng.randint(1, 30), rng.randint(1, 8)
    names = rng.sample(NAMES + WIDE_NAMES, count)
    kinds = [rng.choice(TYPES) for _ in names]
    columns = [drawn_column(rng, kind, draw, rows) for kind, draw in kinds]
    table = pa.table(dict(zip(names, columns, strict=True)))
    has_schema = rng.random() < 0.8
    if not has_schema:  # Parquet has no type for a length of time, and none for booleans of eight bits
        kinds = [pa.int64() if pa.types.is_duration(kind) else pa.int8() if kind == pa.bool8() else kind
                 for kind in table.schema.types]  # fmt: skip
        table = table.cast(pa.schema(list(zip(names, kinds, strict=True))))
    path = folder / f"t{seed}.parquet"
    pq.write_table(
        table,
        path,
        version=rng.choice(("1.0", "2.4", "2.6", "2.6")),
        data_page_version=rng.choice(("1.0", "2.0")),
        compression=rng.choice(("snappy", "snappy", "zstd", "gzip", "none", "lz4")),
        use_dictionary=rng.random() < 0.7,
        store_schema=has_schema,
        row_group_size=rng.choice((None, 5)),
    )
    return path, table


JSON_VALUES: Sequence[Draw] = (
    _text, _text, _bits(31), _bits(60), lambda rng: rng.uniform(-1, 1), lambda rng: rng.random() < 0.5,
    lambda rng: rng.choice((1, 2.5, -3)), lambda rng: _moment(rng).isoformat(), lambda rng: str(_moment(rng).date()),
    _list_of(_text), _list_of(lambda rng: rng.random()), lambda rng: {"x": rng.random(), "y": _text(rng)},
    lambda rng: 2**63 + rng.randint(0, 9), lambda rng: "007", lambda rng: None,
)  # fmt: skip


def write_json(folder: Path, seed: int) -> tuple[Path, Mapping[str, Sequence[Any]]]:
    """Write the file of a seed to a folder: objects in lines, a list, or one object; return its values by column."""
    rng = random.Random(seed)
    names = rng.sample(NAMES + WIDE_NAMES, rng.randint(1, 8))
    draws = {name: rng.choice(JSON_VALUES) for name in names}
    form = rng.choice(("lines", "lines", "lines", "list", "indented", "one"))
    rows: list[dict[str, Any]] = []
    for _ in range(1 if form == "one" else rng.randint(1, 30)):
        row = {name: draw(rng) if rng.random() > 0.1 else rng.choice((None, math.nan)) for name, draw in draws.items()}
        # Programs leave a key out, or write null or NaN, where a value is missing.
        rows.append({name: value for name, value in row.items() if value is not None or rng.random() < 0.5})
    is_ascii = rng.random() < 0.5
    if form == "lines":
        text = "".join(json.dumps(row, ensure_ascii=is_ascii) + "\n" for row in rows)
    else:
        text = json.dumps(
            rows[0] if form == "one" else rows, ensure_ascii=is_ascii, indent=None if form == "list" else 1
        )
    content = text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig")))
    packed = rng.random() < 0.2
    suffix = (".jsonl" if form == "lines" and rng.random() < 0.5 else ".json") + ".gz" * packed
    path = folder / f"t{seed}{suffix}"
    path.write_bytes(gzip.compress(content) if packed else content)
    return path, {name: [row.get(name) for row in rows] for name in names}
