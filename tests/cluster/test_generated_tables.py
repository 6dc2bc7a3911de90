"""T1, T3, H1: generated tables, in files and in memory, have the values that were written, or are refused in a line.

Each seed is a small table. The usual tests read some dozens of them, ``--full`` more than two thousand.
"""

import bz2
import gzip
import logging
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines import csv_tables
from mirrorspark.data_pipelines.any_table import read_table
from mirrorspark.data_pipelines.held_columns import held_type
from mirrorspark.data_pipelines.memory_tables import TableError, in_arrow
from tests.cluster.generated.arrow_files import write_json, write_parquet
from tests.cluster.generated.csv_files import CsvFile, write_csv
from tests.cluster.generated.frames import frame_of
from tests.cluster.generated.values import difference, plain

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}
# Spark waits for Python's workers most of the time.
_AT_A_TIME = 4


class _Warnings(logging.Handler):
    """The messages of each thread's tables."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._own = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    @property
    def messages(self) -> list[str]:
        if not hasattr(self._own, "messages"):
            self._own.messages = []
        found: list[str] = self._own.messages
        return found


@pytest.fixture
def warnings() -> Iterator[_Warnings]:
    handler, logger = _Warnings(), logging.getLogger("mirrorspark.data_pipelines")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def differences(check: Callable[[int], Sequence[str]], seeds: range) -> list[str]:
    """Return the faults of the tables of some seeds."""
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return [
            f"seed {seed}: {one}" for seed, found in zip(seeds, pool.map(check, seeds), strict=True) for one in found
        ]


def one_line(error: TableError, expected: str | None, path: Path) -> list[str]:
    """Return the faults of a refusal."""
    text = str(error)
    if expected is not None and re.search(expected, text) and "\n" not in text and path.name in text:
        return []
    return [f"refused: {text[:300]}"]


def of_columns(found: pa.Table, written: Mapping[str, Sequence[Any]], also: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return the differences of columns; values may be those that were written, or those that pandas reads."""
    if found.column_names != list(written):
        return [f"columns {found.column_names}, not {list(written)}"]
    wrong = []
    for name in written:
        values = found[name].to_pylist()
        why = difference(values, written[name])
        if why and (name not in also or difference(values, also[name])):
            wrong.append(f"column {name!r} ({found[name].type}): {why}")
    return wrong


def of_csv(spark: "SparkSession", folder: Path, seed: int, _: _Warnings) -> list[str]:
    file = write_csv(folder, seed)
    try:
        found = read_table(spark, file.path, **file.options).toArrow()
    except TableError as error:
        return one_line(error, file.refusal, file.path)
    if file.refusal:
        return [f"not refused, though it {file.refusal}"]
    return of_columns(found, file.columns, as_pandas(file))


def as_pandas(file: CsvFile) -> dict[str, list[Any]]:
    found = pd.read_csv(
        file.path, sep=file.dialect.separator, encoding=file.dialect.encoding, float_precision="round_trip"
    )
    return {name: found[name].tolist() for name in found}


def of_csv_parts(spark: "SparkSession", folder: Path, seed: int, _: _Warnings) -> list[str]:
    """Return the faults of a folder of files whose columns come in another order, or later, or are wider."""
    rng = random.Random(seed)
    first = pd.DataFrame({"id": range(5), "n": range(5), "c": list("abcde")})
    later = pd.DataFrame({"id": range(5, 9), "n": [0.5, 1.5, None, 2.0], "c": list("xyzx"), "new": [True, False] * 2})
    for number, part in enumerate((first, later)):
        part = part[rng.sample(list(part.columns), len(part.columns))]
        path = folder / f"parts{seed}" / f"day={number}"
        path.mkdir(parents=True)
        packed, encoding = rng.choice(("", ".gz", ".bz2")), rng.choice(("utf-8", "utf-8-sig", "utf-16"))
        # pandas writes packed UTF-16 without a byte order mark, and warns of it.
        content = part.to_csv(index=False, sep=rng.choice(",;")).encode(encoding)
        (path / f"p.csv{packed}").write_bytes(PACKERS[packed](content))
    found = read_table(spark, folder / f"parts{seed}").orderBy("id").toArrow()
    written = pd.concat([first.assign(day=0), later.assign(day=1)]).astype(object)
    return of_columns(found.select(list(written)), {name: written[name].tolist() for name in written}, {})


def of_parquet(spark: "SparkSession", folder: Path, seed: int, warnings: _Warnings) -> list[str]:
    path, written = write_parquet(folder, seed)
    warnings.messages.clear()
    try:
        found = read_table(spark, path).toArrow()
    except TableError as error:
        all_odd = "no column of .* can be used" if all(map(is_odd, written.schema.types)) else None
        return one_line(error, all_odd, path)
    unsaid = [
        f"column {field.name!r} ({field.type}) is left out, unsaid"
        for field in written.schema
        if field.name not in found.column_names
        and not (is_odd(field.type) and any(f"column {field.name}:" in one for one in warnings.messages))
    ]
    kept = written.select(found.column_names)
    return unsaid + of_columns(found, {name: kept[name].to_pylist() for name in kept.column_names}, {})


def is_odd(kind: pa.DataType) -> bool:
    """Return whether Spark has no type for one of Arrow, or does not read it from Parquet files."""
    in_struct = [field.type for field in kind] if pa.types.is_struct(kind) else []
    return held_type(kind) is None or pa.types.is_float16(kind) or pa.timestamp("ns") in in_struct


def of_json(spark: "SparkSession", folder: Path, seed: int, _: _Warnings) -> list[str]:
    path, written = write_json(folder, seed)
    try:
        found = read_table(spark, path).toArrow()
    except TableError as error:  # to pandas, an object of lists is a table of columns
        has_lists = all(
            len(values) == 1 and (values[0] is None or isinstance(values[0], list)) for values in written.values()
        )
        return one_line(error, "is a document of columns" if has_lists else None, path)
    present = [name for name, values in written.items() if name in found.column_names or any(map(plain, values))]
    return of_columns(found.select(present), {name: written[name] for name in present}, {})


def of_frame(_: "SparkSession", folder: Path, seed: int, warnings: _Warnings) -> list[str]:
    frame = frame_of(seed)
    warnings.messages.clear()
    try:
        found = in_arrow(frame)
    except TableError as error:
        return [] if "no column of the table can be used: " in str(error) else [f"refused: {error}"]
    gone = [name for name in frame if name not in found.column_names]
    unsaid = [
        f"column {name!r} is left out, unsaid"
        for name in gone
        if not any(f"column {name}:" in one for one in warnings.messages)
    ]
    return unsaid + of_columns(found, {name: frame[name].tolist() for name in frame if name not in gone}, {})


CHECKS = {"csv": of_csv, "csv parts": of_csv_parts, "parquet": of_parquet, "json": of_json, "frame": of_frame}


def tables(usual: int, most: int, kind: str, **settings: Any) -> list[Any]:
    """Return the parameters of a test: the usual seeds of a kind, and all others, which take minutes."""
    marks = (pytest.mark.full, pytest.mark.timeout(1800))
    ids = f"{kind}{' split' * bool(settings)}"
    return [
        pytest.param(kind, range(usual), settings, id=ids),
        pytest.param(kind, range(usual, most), settings, id=f"{ids} all", marks=marks),
    ]


@pytest.mark.parametrize(
    ("kind", "seeds", "settings"),
    [
        *tables(16, 1000, "csv"),
        *tables(6, 250, "csv", _ONE_TASK_BYTES=0),  # as several tasks read a file of more than 32 MB
        *tables(2, 60, "csv parts"),
        *tables(14, 500, "parquet"),
        *tables(8, 300, "json"),
        *tables(100, 1000, "frame"),
    ],
)
def test_a_table_has_the_values_that_were_written_or_is_refused(
    spark: "SparkSession",
    tmp_path: Path,
    warnings: _Warnings,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    seeds: range,
    settings: Mapping[str, Any],
) -> None:
    for name, value in settings.items():
        monkeypatch.setattr(csv_tables, name, value)
    check = CHECKS[kind]
    assert differences(lambda seed: check(spark, tmp_path, seed, warnings), seeds) == []
