"""A small table in memory is converted by this process to the dataset that Spark makes of it, to the byte (T1, H16)."""

import datetime
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.any_table import in_memory, read_table
from mirrorspark.data_pipelines.conversion import ConversionOptions
from mirrorspark.data_pipelines.converted_once import content_hash, convert_once
from mirrorspark.data_pipelines.dataset import block_format
from mirrorspark.data_pipelines.dataset.staging import stage
from mirrorspark.data_pipelines.features.kinds import Label, MultiValued, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.memory_tables import in_arrow
from mirrorspark.data_pipelines.quality.splits import default_split
from mirrorspark.data_pipelines.sources import SparkSource
from mirrorspark.storage.paths import StoragePath
from mirrorspark.training.entry_points.fit_rows import default_spec

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS = 2_400


def every_kind() -> pa.Table:
    """Return a table with a column of every type, most of them with nulls."""
    random = np.random.default_rng(1)

    def one_of(*values: Any) -> list[Any]:
        return [values[place] for place in random.integers(0, len(values), ROWS)]

    moments = np.datetime64("2020-01-01T00:00:00", "us") + random.integers(0, 10**12, ROWS).astype("timedelta64[us]")
    map_type, struct_type = pa.map_(pa.int64(), pa.float64()), pa.struct([("a", pa.int64()), ("b", pa.string())])
    return in_arrow(
        pa.table(
            {
                "id": random.permutation(ROWS),
                "key": [f"k{row // 3}é" for row in range(ROWS)],
                "flag": one_of(True, False, None),
                "byte": pa.array(one_of(1, 2, -3, None), pa.int8()),
                "int": pa.array(random.integers(-90, 90, ROWS), pa.int32()),
                "long": random.integers(-(2**62), 2**62, ROWS),
                "unsigned": random.integers(0, 2**63, ROWS).astype(np.uint64),
                "float": random.normal(size=ROWS).astype(np.float32),
                "double": random.normal(size=ROWS),
                "zeros": one_of(0.0, -0.0, 1.5, float("nan"), None),
                "price": pa.array(one_of(Decimal("1.10"), Decimal("-2.25"), None), pa.decimal128(10, 2)),
                "wide": pa.array(one_of(Decimal(10) ** 25, -(Decimal(10) ** 25), Decimal(-128), None)),
                "word": one_of("a", "b", "", "café", None, "x" * 50, "\U0001f600"),
                "bytes": one_of(b"1", b"\xff\x00", None),
                "day": pa.array(random.integers(0, 900, ROWS).astype(np.int32)).cast(pa.date32()),
                "moment": moments.astype("datetime64[ns]"),
                "zoned": pa.array(moments).cast(pa.timestamp("us", "Europe/Berlin")),
                "tokens": one_of(["a", "b"], [], None, ["c", None, "a"], ["b"]),
                "vector": one_of([1.0, 2.0], [0.5, -1.5], None),
                "sparse": pa.array(one_of({5: 1.0, 2: 2.0}, {0: 1.0}, None, {}), map_type),
                "words": [f"some words number {row % 700} and more of them {row % 11}" for row in range(ROWS)],
                "struct": pa.array(one_of({"a": 1, "b": "x"}, {"a": None, "b": "y"}, None), struct_type),
                "size": pa.array(one_of("S", "M", "L")).dictionary_encode(),
                "wait": pa.array(random.integers(0, 10**9, ROWS), pa.duration("us")),
                "iso": one_of("2020-01-31", "2021-12-24", ""),
                "nothing": pa.nulls(ROWS),
                "label": one_of("A", "B", "C", "D"),
                "amount": random.normal(size=ROWS),
            }
        )
    )


def contents(dataset: Path) -> dict[str, bytes]:
    """Return the files of a dataset; the page without the time when it was written."""
    found = {str(path.relative_to(dataset)): path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    return {name: re.sub(rb"written [-0-9: +]+", b"", content) for name, content in found.items()}


@pytest.mark.parametrize(("label", "keys", "time"), [("label", ("key", "id"), None), ("amount", ("id",), "day")])
def test_this_process_and_spark_make_the_same_dataset(
    spark: "SparkSession", tmp_path: Path, label: str, keys: tuple[str, ...], time: str | None
) -> None:
    arrow = every_kind()
    here, there = in_memory(arrow), read_table(spark, arrow)
    assert here.schema == there.schema
    assert content_hash(here) == content_hash(there)
    specs = [default_spec(of, label, keys=keys, exclude=() if time is None else (time,)) for of in (here, there)]
    assert specs[0] == specs[1]
    assert specs[0].reasons == specs[1].reasons
    # Whole numbers with gaps of which the label shows nothing.
    assert specs[0]["byte as a number"].kind == "token_number"
    assert bool(specs[0].target_encodings) == (label == "amount")
    stratified = label if specs[0].label.form == "multi_class" else None
    options = ConversionOptions(shards=3, rows_per_block=100, accept_errors=True)
    made = []
    for folder, rows in (("here", here), ("there", there)):
        split = default_split(rows, keys, time=time, label=stratified)
        made.append(convert_once(split, specs[0], tmp_path / folder, "data", options=options).path)
    assert made[0].name == made[1].name
    found, expected = map(contents, map(Path, map(str, made)))
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []


def test_rows_of_equal_keys_are_in_the_order_of_spark(spark: "SparkSession", tmp_path: Path) -> None:
    """Null comes first, NaN last, texts by their bytes, lists by their elements."""
    some = [None, float("nan"), -1.5, 0.0, 2.0]
    rows = pa.table(
        {
            "key": [place % 3 for place in range(120)],
            "number": [some[place * 7 % 5] for place in range(120)],
            "tokens": [[None, [], ["b"], ["a", None], ["a", "é"], ["a", "z"]][place * 5 % 6] for place in range(120)],
            "at": [datetime.datetime(2020, 1, 1 + place % 2) for place in range(120)],
            "label": [place % 2 for place in range(120)],
            "split": ["train"] * 120,
        }
    )
    spec = FeatureSpec((Numeric("number"), MultiValued("tokens", max_length=2)), Label("label"), ("key",))
    found = []
    for name, source in (("here", in_memory(rows)), ("there", SparkSource(read_table(spark, rows)))):
        plans = block_format.check_columns(source.without_rows(spec.columns), spec)
        staged = stage(source, spec, plans, "split", 2, StoragePath.of(tmp_path / name))
        assert staged.repeated_rows == 0
        found.append([pa.Table.from_batches(file.batches()).to_pylist() for file in staged.files])
    assert repr(found[0]) == repr(found[1])
