"""The tables that are measured on, drawn from a seed: numbers alone, with strings, with lists of varying length."""

import os
import shutil
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SEED = 20_240_601
FILE_ROWS = 250_000
ROW_GROUP_ROWS = 125_000
# A longer table repeats its files: the cost of a row does not depend on equal rows.
DISTINCT_ROWS = 2_000_000

_WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett", "kilo", "lima")

Draw = Callable[[np.random.Generator, int], pa.Array]
"""Draws that many values."""


class Kind(StrEnum):
    """Columns of a table."""

    NUMBERS = "numbers"
    """42 columns: key, label, 20 float32, 20 int64 (ids out of 2 to 100,000, small ones more often)."""
    CLICKS = "clicks"
    """41 columns: key, label, 13 float32, 26 int64, as logs of clicks on advertisements have them."""
    STRINGS = "strings"
    """26 columns: key, label, 8 float32, 8 int64, 8 strings of 4 to 60 bytes."""
    LISTS = "lists"
    """26 columns: key, label, 8 float32, 8 int64, 4 lists of int64, 2 of float32 and 2 of strings, 0 to 16 long."""


# Numbers of columns of float32 and of int64.
_PLAIN_COLUMNS = {Kind.NUMBERS: (20, 20), Kind.CLICKS: (13, 26), Kind.STRINGS: (8, 8), Kind.LISTS: (8, 8)}


# The shapes of tables that reading and writing are measured on.
DATA_PATH_KINDS = (Kind.NUMBERS, Kind.STRINGS, Kind.LISTS)


def make_table(kind: Kind, rows: int, *, first_key: int = 0, seed: int = SEED) -> pa.Table:
    """Return ``rows`` rows, the same for the same arguments."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, first_key])))
    floats, ints = _PLAIN_COLUMNS[kind]
    columns: dict[str, pa.Array] = {
        "key": pa.array(np.arange(first_key, first_key + rows)),
        "label": pa.array(generator.integers(0, 2, rows)),
    }
    for number in range(floats):
        columns[f"float_{number:02d}"] = pa.array(generator.standard_normal(rows, np.float32))
    for number, size in enumerate(np.geomspace(2, 100_000, ints).astype(np.int64)):
        columns[f"int_{number:02d}"] = pa.array(_ids(generator, rows, int(size)))
    if kind is Kind.STRINGS:
        columns |= {f"string_{number:02d}": _strings(generator, rows, words=1 + number) for number in range(8)}
    if kind is Kind.LISTS:
        columns |= {f"ids_{number:02d}": _lists(generator, rows, _int_values) for number in range(4)}
        columns |= {f"floats_{number:02d}": _lists(generator, rows, _float_values) for number in range(2)}
        columns |= {f"strings_{number:02d}": _lists(generator, rows, _words) for number in range(2)}
    return pa.table(columns)


def parquet_files(folder: Path, kind: Kind, rows: int, *, file_rows: int = FILE_ROWS) -> list[Path]:
    """Return Parquet files below ``folder`` that hold ``rows`` rows in all, written unless they are there.

    There are at least four, so that two cores share them evenly. From ``DISTINCT_ROWS`` on, rows repeat.
    """
    file_rows = min(file_rows, -(-rows // 4))
    target = folder / f"{kind}-{rows}-by-{file_rows}"
    starts = range(0, rows, file_rows)
    files = [target / f"part-{number:05d}.parquet" for number in range(len(starts))]
    if target.is_dir():
        return files
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    by_content: dict[tuple[int, int], Path] = {}
    for start, file in zip(starts, files, strict=True):
        content = start % DISTINCT_ROWS, min(file_rows, rows - start)
        path = unfinished / file.name
        if content in by_content:
            os.link(by_content[content], path)
        else:
            pq.write_table(make_table(kind, content[1], first_key=content[0]), path, row_group_size=ROW_GROUP_ROWS)
            by_content[content] = path
    unfinished.rename(target)
    return files


def _ids(generator: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Draw ids below ``size``; the square makes small ones frequent, as tokens ordered by frequency are."""
    return (size * generator.random(count) ** 2).astype(np.int64)


def _int_values(generator: np.random.Generator, count: int) -> pa.Array:
    return pa.array(_ids(generator, count, 50_000))


def _float_values(generator: np.random.Generator, count: int) -> pa.Array:
    return pa.array(generator.standard_normal(count, np.float32))


def _words(generator: np.random.Generator, count: int) -> pa.Array:
    return pa.array(_WORDS).take(pa.array(_ids(generator, count, len(_WORDS))))


def _strings(generator: np.random.Generator, rows: int, words: int) -> pa.Array:
    """Return strings of ``words`` words each, some of them with a number."""
    parts = [_words(generator, rows) for _ in range(words)]
    if words % 2 == 0:
        parts[-1] = pa.array(_ids(generator, rows, 1_000_000)).cast(pa.string())
    return pc.binary_join_element_wise(*parts, "-")


def _lists(generator: np.random.Generator, rows: int, values: Draw) -> pa.Array:
    """Return lists of 0 to 16 values."""
    offsets = np.concatenate([[0], np.cumsum(generator.integers(0, 17, rows))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values(generator, int(offsets[-1])))
