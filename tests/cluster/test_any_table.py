"""T3, H2: tables in any form that users have become the same Spark table."""

import bz2
import csv
import gzip
import io
import json
import math
import random
import re
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
from pyspark.sql.types import DoubleType, IntegerType, StringType, StructField, StructType

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines import csv_tables
from mirrorspark.data_pipelines.any_table import in_memory, read_table
from mirrorspark.data_pipelines.memory_tables import CATEGORIES, TableError
from mirrorspark.data_pipelines.stored_tables import declared_csv
from mirrorspark.spark_session import versions
from mirrorspark.storage import StoragePath
from mirrorspark.storage.listing import DataFile

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS = {"town": ["here", None, "there"], "many": [1.5, None, 2.5], "at": [datetime(2024, 1, day) for day in (1, 2, 3)]}


def of_pandas() -> pd.DataFrame:
    frame = pd.DataFrame(ROWS)
    frame["town"] = frame["town"].astype("category")
    return frame.set_index(pd.Index([7, 8, 9]))


@pytest.mark.parametrize(
    "table",
    [of_pandas(), pl.DataFrame(ROWS), pl.DataFrame(ROWS).lazy(), pa.table(ROWS)],
    ids=["pandas", "polars", "lazy", "arrow"],
)
def test_a_table_in_memory_keeps_its_values(spark: "SparkSession", table: Any) -> None:
    df = read_table(spark, table)
    assert [tuple(row) for row in df.select("town", "many").collect()] == [("here", 1.5), (None, None), ("there", 2.5)]
    assert dict(df.dtypes)["at"].startswith("timestamp")


@pytest.mark.parametrize("name", ["plain", "a.b", "größe `x` 1"])
def test_the_order_of_categories_is_kept_whatever_the_name_of_the_column(spark: "SparkSession", name: str) -> None:
    sizes = pd.Categorical(["S", "L", None], ["S", "M", "L"], ordered=True)
    table = pd.DataFrame({"n": [1, 2, 3], name: sizes, "c.d": pd.Categorical(["x", "y", "x"])})
    for df in (read_table(spark, table), in_memory(table).to_spark(spark)):
        assert df.columns == ["n", name, "c.d"]
        assert [tuple(row) for row in df.collect()] == [(1, "S", "x"), (2, "L", "y"), (3, None, "x")]
        assert df.schema[name].metadata == {CATEGORIES: ["S", "M", "L"]}
        assert df.schema["c.d"].metadata == {CATEGORIES: []}


def test_stored_tables_are_found_by_name_and_path(spark: "SparkSession", tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    frame.to_csv(tmp_path / "some.csv", index=False)
    frame.to_json(tmp_path / "some.jsonl", orient="records", lines=True)
    spark.createDataFrame(frame).createOrReplaceTempView("some_view")
    spark.table("some_view").write.parquet(str(tmp_path / "folder"))
    for table in ("some_view", tmp_path / "some.csv", str(tmp_path / "some.jsonl"), tmp_path / "folder"):
        found = sorted(tuple(row) for row in read_table(spark, table).select("a", "b").collect())
        assert found == [(1, "x"), (2, "y")], table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (3, "a int is not a table; give a Spark, pandas"),
        ("", "the name of the table is empty"),
        (pl.Series("a", [1]), "a Series is not a table"),
        ("nothing://there/t.csv", "t.csv cannot be read: No FileSystem for scheme .*; give the path of a file system"),
        ("nowhere", "there is no table or view 'nowhere'"),
        ("catalog.schema.nowhere", "there is no table or view 'catalog.schema.nowhere'"),
        ("no/where.parquet", "there is no file or folder no/where.parquet"),
        (pd.DataFrame({"a": [1, "x"]}), "no column of the table can be used: a: its values have several types"),
        (pd.DataFrame({"a": [1 + 2j]}), "or one that no table has .*make them text or numbers"),
        (pd.DataFrame([[1]]), "column names .0. are not strings; rename them"),
        (pa.table([[1], [2]], names=["a", "a"]), r"several columns of one name: \['a'\]; rename or drop all but one"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "several columns of one name"),
        (
            pd.DataFrame({"age": pd.Categorical(["x"]), "Age": [2]}),
            r"the columns \['age', 'Age'\] differ in case alone",
        ),
        (__file__, "has none of the suffixes"),
    ],
)
def test_what_is_no_table_is_refused(spark: "SparkSession", table: Any, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_table(spark, table)


def test_wide_integers_of_polars_are_refused_in_a_line(spark: "SparkSession", tmp_path: Path) -> None:
    wide = pl.DataFrame({"id": pl.Series([1, 2**70], dtype=pl.Int128)})
    wide.write_parquet(tmp_path / "t.parquet")
    advice = "in Polars by df.with_columns(pl.col(pl.Int128).cast(pl.Decimal(38, 0)))"
    message = rf"t\.parquet has a column of a type that is not read: .*64 bits.*{re.escape(advice)}"
    with pytest.raises(TableError, match=message):
        read_table(spark, tmp_path / "t.parquet")
    wide.with_columns(pl.col(pl.Int128).cast(pl.Decimal(38, 0))).write_parquet(tmp_path / "t.parquet")
    assert read_table(spark, tmp_path / "t.parquet").dtypes == [("id", "decimal(38,0)")]


def test_a_folder_without_a_table_is_refused(spark: "SparkSession", tmp_path: Path) -> None:
    with pytest.raises(TableError, match=f"{tmp_path} holds no file of format parquet; give the folder or file"):
        read_table(spark, str(tmp_path))


HARD = ['say "hi", ok', "two\nlines", "C:\\dir\\", "a\\", '6" pipe', "Zürich", "", "x;y", "tab\there", "don't", "NA"]


@pytest.mark.parametrize(
    ("suffix", "written"),
    [
        (".csv", {}),
        (".csv", {"lineterminator": "\r\n"}),
        (".csv", {"encoding": "utf-8-sig"}),
        (".csv", {"encoding": "utf-16"}),
        (".csv", {"quoting": csv.QUOTE_ALL}),
        (".csv", {"sep": ";"}),
        (".tsv", {"sep": "\t"}),
        (".csv.gz", {}),
        (".CSV", {}),
        (".csv.bz2", {}),
    ],
    ids=str,
)
def test_a_csv_file_has_the_cells_that_pandas_finds(
    spark: "SparkSession", tmp_path: Path, suffix: str, written: dict[str, Any]
) -> None:
    rows = range(len(HARD) * 3)
    frame = pd.DataFrame({"c": HARD * 3, "n": rows, "x": [one / 7 for one in rows], "late": [one % 2 for one in rows]})
    path = tmp_path / "sales [2024]" / f"{{run}}{suffix}"
    path.parent.mkdir()
    frame.to_csv(path, index=False, **written)
    read = {name: written[name] for name in ("encoding", "sep") if name in written}
    expected = pd.read_csv(path, **read)
    found = read_table(spark, path)
    assert dict(found.dtypes) == {"c": "string", "n": "int", "x": "double", "late": "int"}
    cells = found.toPandas()
    for table in (cells, expected):  # which have None, or from pandas 3 on NaN, for a missing text
        table["c"] = table["c"].astype(object).where(table["c"].notna(), None)
    pd.testing.assert_frame_equal(cells, expected, check_dtype=False, rtol=1e-15)


@pytest.mark.parametrize(
    ("cells", "kind", "expected"),
    [
        (["1", "NA", " 3"], "int", [1, None, 3]),
        (["1", "?", "2.5"], "double", [1.0, None, 2.5]),
        (["1", "-", "-2"], "int", [1, None, -2]),
        (["1.5", "inf", "-Infinity"], "double", [1.5, math.inf, -math.inf]),
        (["1,5", "2", "1.000,25"], "double", [1.5, 2.0, 1000.25]),
        (["1e3", "nan", "null"], "double", [1000.0, None, None]),
        (["3000000000", "1", ""], "bigint", [3000000000, 1, None]),
        (["123456789012345678901", "1", "2"], "string", ["123456789012345678901", "1", "2"]),
        (["True", "false", "TRUE"], "boolean", [True, False, True]),
        (["2024-02-29", "N/A", "2024-03-01"], "date", [date(2024, 2, 29), None, date(2024, 3, 1)]),
        (
            ["2024-02-29", "2024-03-01 04:05", "?"],
            "timestamp_ntz",
            [datetime(2024, 2, 29), datetime(2024, 3, 1, 4, 5), None],
        ),
        (
            ["2024-02-29 03:04:05+00", "2024-02-29 03:04:05.5-01", "NULL"],
            "timestamp",
            [datetime(2024, 2, 29, 3, 4, 5), datetime(2024, 2, 29, 4, 4, 5, 500_000), None],
        ),
        (["2024-02-30", "2024-02-29", "2024-03-01"], "string", ["2024-02-30", "2024-02-29", "2024-03-01"]),
        (["2024-02-29", "0000-00-00", "0000-00-00 00:00:00"], "date", [date(2024, 2, 29), None, None]),
        (
            ["2024-02-29 01:02:03.123456789", "2024-03-01 04:05", ""],
            "timestamp_ntz",
            [datetime(2024, 2, 29, 1, 2, 3, 123456), datetime(2024, 3, 1, 4, 5), None],
        ),
        (["1", "\\N", "3"], "int", [1, None, 3]),
        (["-", "?", "a"], "string", ["-", "?", "a"]),
        (["1d", "2", "3"], "string", ["1d", "2", "3"]),
    ],
)
def test_a_column_of_csv_has_the_type_of_all_its_cells(
    spark: "SparkSession", tmp_path: Path, cells: list[str], kind: str, expected: list[Any]
) -> None:
    pd.DataFrame({"id": range(3), "v": cells}).to_csv(tmp_path / "t.csv", index=False)
    found = read_table(spark, tmp_path / "t.csv")
    assert dict(found.dtypes)["v"] == kind
    assert [row.v for row in found.collect()] == expected


@pytest.mark.parametrize(
    ("content", "names", "rows"),
    [
        ("a.b,`t`\n1,x\n", ["a.b", "`t`"], [(1, "x")]),
        (",v\n0,x\n1,y\n", ["Unnamed: 0", "v"], [(0, "x"), (1, "y")]),  # with the index of pandas
        ("a,b\r\n1,x\n2,y\r\n\r\n3,z\n", ["a", "b"], [(1, "x"), (2, "y"), (3, "z")]),  # two files as one
        ('"a\nb",c\r\n1,"x\r\ny"\r\n', ["a\nb", "c"], [(1, "x\r\ny")]),
        ("a,b\r1,x\r", ["a", "b"], [(1, "x")]),
        ('a|"b,c"\n1|"x,y"\n2|z\n', ["a", "b,c"], [(1, "x,y"), (2, "z")]),
        ('a;"b,c";"d,e"\n1;2;3\n', ["a", "b,c", "d,e"], [(1, 2, 3)]),
        ("a|b\n1\n2\n", ["a|b"], [(1,), (2,)]),
        ('a,b\n1,"x\n"\n2,"y ""q"""\n', ["a", "b"], [(1, "x\n"), (2, 'y "q"')]),
        (f"a,b\n1,{'x' * 200_000}\n", ["a", "b"], [(1, "x" * 200_000)]),
        ("a;b;c\n1;2\n3;4;5\n", ["a", "b", "c"], [(1, 2, None), (3, 4, 5)]),
    ],
)
def test_csv_of_many_writers_has_its_names_and_rows(
    spark: "SparkSession", tmp_path: Path, content: str, names: list[str], rows: list[tuple[Any, ...]]
) -> None:
    (tmp_path / "t.csv").write_text(content, newline="")
    found = read_table(spark, tmp_path / "t.csv")
    assert found.columns == names
    assert [tuple(row) for row in found.collect()] == rows


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    ("texts", "form"),
    [
        (["a", "bb", "ccc"], ""),
        (["a", "bb", "ccc"], "utf-8-sig"),
        (["a,b", "b", '"a"'], ""),
        (["a\nb", "b", "c"], ""),
        (["a\n\nb,1\n", '"\n"', ""], "utf-8-sig"),
        (["a\nb", "ü", "c"], "utf-16"),
        (["a", "bb", "ccc"], "bz2"),
        (["a\nb", "bb", "ccc"], "gz"),
    ],
)
def test_a_large_csv_file_is_cut_between_rows(
    spark: "SparkSession",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    texts: list[str],
    form: str,
    line_break: str,
    last: bool,
) -> None:
    """Parts of a few bytes begin at every place of a row."""
    monkeypatch.setattr(csv_tables, "_ONE_TASK_BYTES", 0)
    rows = [(number, texts[number % 3], number % 7 / 4) for number in range(40)]
    lines = io.StringIO(newline="")
    csv.writer(lines, lineterminator=line_break).writerows([("id", "text", "x"), *rows])
    text = lines.getvalue() if last else lines.getvalue().removesuffix(line_break)
    path = tmp_path / f"t.csv{'.' + form if form in ('gz', 'bz2') else ''}"
    content = text.encode("utf-8" if form in ("", "gz", "bz2") else form)
    path.write_bytes({"gz": gzip.compress, "bz2": bz2.compress}.get(form, bytes)(content))
    spark.conf.set("spark.sql.files.maxPartitionBytes", "61b")
    try:
        found = read_table(spark, path).orderBy("id").collect()
    finally:
        spark.conf.unset("spark.sql.files.maxPartitionBytes")
    assert [tuple(row) for row in found] == [(number, text or None, x) for number, text, x in rows]


def test_numbers_with_unknown_words_are_read_as_text_with_a_warning(
    spark: "SparkSession", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t.csv").write_text('age,price\n1,"1,200"\n2,"3,400"\nold,"5,600"\n')
    with caplog.at_level("WARNING"):
        assert dict(read_table(spark, tmp_path / "t.csv").dtypes) == {"age": "string", "price": "string"}
    assert "'age'" in caplog.text
    assert "'old'" in caplog.text
    assert "'price'" in caplog.text
    assert "thousands or decimals" in caplog.text


def test_cells_that_are_read_otherwise_than_meant_are_said(
    spark: "SparkSession", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t.csv").write_text(
        f'said,key,swiss,french,english\n"a \\"b\\" c",{"1" * 40},1\'100.5,1\u202f100,"1,100.50"\n'
        f'"d",2,5,5,"1,234,567"\n',
        encoding="utf-8",
    )
    with caplog.at_level("WARNING"):
        types = dict(read_table(spark, tmp_path / "t.csv").dtypes)
    assert types == dict.fromkeys(("said", "key", "swiss", "french", "english"), "string")
    assert caplog.text.count("marks may divide the thousands") == 3
    assert "'said' of" in caplog.text
    assert "quotes after backslashes" in caplog.text
    assert "more digits than a number keeps" in caplog.text


def test_csv_may_have_thousands_of_columns(spark: "SparkSession", tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(1500)]
    (tmp_path / "t.csv").write_text("\n".join([",".join(names), ",".join("1" for _ in names), ""]))
    plan = csv_tables.CsvTable.of(spark, [DataFile(StoragePath.of(tmp_path / "t.csv"), 1)])
    assert len(plan.cells(spark).columns) == len(names)


def test_damaged_files_are_refused_where_types_are_declared(
    spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_text('a,b\n1,"x\n2,y\n')
    declared = StructType([StructField("a", IntegerType())])
    with pytest.raises(TableError, match="the quote that begins a cell in line 2 does not end"):
        declared_csv(spark, [tmp_path / "t.csv"], declared)
    monkeypatch.setattr(csv_tables, "_ONE_TASK_BYTES", 0)  # as of larger files, of which Spark finds the damaged ones
    (tmp_path / "healthy %20.csv").write_text('a,b\n3,5 inches (5")\n4,5 inches (5")\n')
    with pytest.raises(TableError, match=r"/t\.csv: the quote that begins a cell in line 2 does not end"):
        declared_csv(spark, [tmp_path], declared)
    (tmp_path / "healthy %20.csv").write_bytes(b"a,b\n3,\xff\n")
    with pytest.raises(TableError, match=r"%20\.csv has another encoding than UTF-8 .byte 0xff"):
        declared_csv(spark, [tmp_path / "healthy %20.csv"], declared)
    monkeypatch.undo()
    text = random.Random(1).randbytes(1 << 20).hex().encode()
    lines = b"\n".join(text[place : place + 9] for place in range(0, len(text), 9))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a\n" + lines)[:-9])
    with pytest.raises(TableError, match=r"t\.csv\.gz cannot be unpacked .*; copy it again"):
        declared_csv(spark, [tmp_path / "t.csv.gz"], StructType([StructField("a", StringType())]))
    (tmp_path / "_t.csv").write_text("a\n1\n")
    with pytest.raises(TableError, match=r"_t\.csv is hidden from Spark"):
        declared_csv(spark, [tmp_path / "_t.csv"], declared)
    with pytest.raises(TableError, match=r"_t\.csv is hidden from Spark"):
        read_table(spark, [tmp_path / "healthy %20.csv", tmp_path / "_t.csv"])


def test_csv_in_another_encoding_is_refused_or_read_as_told(spark: "SparkSession", tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("town,n\nZürich,1\n€,2\n", encoding="windows-1252")
    with pytest.raises(TableError, match=r"t\.csv has another encoding than UTF-8 .*'town'.*encoding='windows-1252'"):
        read_table(spark, path)
    assert [row.town for row in read_table(spark, path, encoding="windows-1252").collect()] == ["Zürich", "€"]
    path.write_text("town,n\n\ufffd,1\n", encoding="utf-8")
    assert read_table(spark, path).count() == 1


def _packed(codec: str, **columns: list[int]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1], **columns}), sink, compression=codec)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"t.csv": b"a,b\n1,2\n1,2,3\n"}, "more cells than its header"),
        ({"t.csv": b"a,a\n1,2\n"}, "several columns of one name"),
        ({"t.csv": b'a,b\n1,"x\n2,y\n3,z\n'}, r"t\.csv: the quote that begins a cell in line 2 does not end"),
        ({"t.csv": b'a,b,c\n1,2,3\n1,"x\n2,y,4'}, r"t\.csv: the quote that begins a cell in line 3 does not end"),
        ({"t.csv": b'a,"b\n1,2\n'}, r"t\.csv: the quote that begins a cell in line 1 does not end"),
        ({"t.csv": b'a,"b\n' + b"1,2\n" * 60_000}, r"t\.csv: the quote that begins a cell in line 1 does not end"),
        ({"t.csv": b'a,b\r1,"x\r2,y\r3,z\r'}, r"t\.csv: the quote that begins a cell in line 2 does not end"),
        (
            {f"{name}.csv": b"a,b\n1,2\n" for name in "pqrstuvw"} | {"o.csv": b'a,b\n1,"x\n2,y\n3,z'},
            r"o\.csv: the quote that begins a cell in line 2 does not end",
        ),
        ({"t.csv": b"Sales of May\na,b\n1,2\n"}, "more cells than its header .*delete lines above the header"),
        ({"t.csv.gz": gzip.compress(b"a,b\n1,2\n")[:20]}, r"t\.csv\.gz cannot be unpacked"),
        ({"t.csv.gz": gzip.compress(random.Random(1).randbytes(1 << 20).hex().encode())[:-9]}, r"t\.csv\.gz"),
        ({"t.json.gz": gzip.compress(b'{"a": 1}')[:20]}, r"t\.json\.gz cannot be unpacked"),
        ({"t.json": gzip.compress(b'{"a": 1}')}, r"t\.json is packed with gzip, and its name does not say so"),
        ({"t.json.zst": pa.Codec("zstd").compress(b'{"a": 1}', asbytes=True)}, "packed as zstd"),
        ({"2024-01-01T10:00.csv": b"a,b\n1,2\n"}, "has a colon in its name, and Hadoop reads no such file; rename it"),
        ({"_t.csv": b"a,b\n1,2\n"}, r"_t\.csv is hidden from Spark, as its name begins with"),
        ({"t.json": b'{"a": 1}\n{"a": 2}{"a": 3}\n'}, "with something after their first document, such as '.*a.: 3}'"),
        ({"t.json": b'{"a": 1}\n{"a": 2},\n'}, "with something after their first document"),
        ({"t.json": b'{"a": 1}\n{"a": 2},{"a": 3}\n'}, "with something after their first document"),
        (
            {"s.json": b'{"a": 1}\n', "t u.json": b'{"a": 1}\n{"a": 2}{"a": 3}\n'},
            r"/t u\.json has lines with something",
        ),
        pytest.param(
            {"q[1].json": b'[{"a": 1}, {"A": 2}]'},
            r"q\[1\]\.json has several columns or keys 'a'",
            marks=pytest.mark.skipif(
                not versions.HAS_PYTHON_SOURCES, reason="PySpark 3.5 infers the columns of texts without regard to case"
            ),
        ),
        ({"t.csv": b"sep=;\na;b\n"}, "Excel's line"),
        ({"k=1/t.csv": b"a,k\n1,2\n", "k=2/t.csv": b"a,k\n1,2\n"}, r"t\.csv has the columns \['k'\], as its folders"),
        ({"t.csv": b"PK\x03\x04"}, "packed as zip"),
        ({"t.csv": b""}, "is empty"),
        ({"a.csv": b"x,y\n1,2\n", "b.csv": b"3,4\n"}, "no column of"),
        ({"a.csv": b"x\n1\n", "b.json": b'{"x": 1}'}, "several formats"),
        ({"t.json": b'{"a": 1}\nno\n'}, "not JSON objects"),
        ({"t.json": b'{"a":{"0":1,"1":2}}'}, "document of columns"),
        ({"t.json": b'{"columns":["a"],"index":[0],"data":[[1]]}'}, "document of columns"),
        ({"t.json": b'{\n "0":{"a":1},"1":{"a":2}}'}, "document of columns"),
        ({"t.json": b'{"a":[1,2],"b":["x","y"]}'}, "document of columns; write rows"),
        (
            {"t.json": b'{\n "a":[1,2]}'},
            "document of columns; write rows.*; if it is one row of lists, .* suffix .jsonl",
        ),
        ({"t.json": json.dumps({"a": [*range(20_000)]}).encode()}, "document of columns; write rows"),
        ({"t.json": b"[]"}, r"t\.json has no rows"),
        (
            {"t.jsonl": b"{}\n{}\n"},
            r"t\.jsonl has rows without columns: its objects are empty.*; write the values of each row",
        ),
        ({"t.json": b'[{}, {"a": {}}]'}, r"t\.json has rows without columns"),
        ({"a.jsonl": b"{}", "[b], c.json": b'[{"a": 1}]'}, r"a\.jsonl has rows without columns"),
        ({"t.jsonl": b'{"a":1,"A":2}\n'}, r"t\.jsonl has several columns or keys 'a', which may differ in case alone"),
        (
            {"t.jsonl": b'{"b":1,"a":1}\n{"A":2}\n'},
            r"several columns or keys 'a', which may differ in case alone.*rename",
        ),
        ({"t.json": b'[{"s":{"a":1}},{"s":{"A":2}}]'}, "several columns or keys 'a', which may differ in case alone"),
        ({"t.json": b'{"a":1,"a":2}\n'}, r"t\.json has several columns or keys 'a'"),
        ({"t.csv": b"a,A\n1,2\n"}, r"t\.csv has several columns or keys 'a'"),
        ({"t.parquet": _packed("snappy", A=[2])}, r"t\.parquet has several columns or keys 'a'"),
        ({"t.orc": b"ORC no"}, r"t\.orc is not an ORC file"),
        ({"t.avro": b"Obj"}, "read it with polars.read_avro"),
        ({"t.csv": "größe,n\n1,2\n".encode("latin-1")}, "another encoding than UTF-8"),
        ({"t.json": b'{"a": 1},\n{"a": 2}\n'}, "several documents, the second after 8 characters"),
        ({"t.json": b'{\n"a": 1\n}\n{\n"a": 2\n}'}, "several documents.*in a line of its own"),
        ({"t.json": b'[{"a": 1}, 2]'}, "values that are not JSON objects"),
        ({"t.json": "{'a': 'Zürich'}".encode("latin-1")}, "another encoding than UTF-8 .byte 0xfc.; save it as UTF-8"),
        ({"t.txt": b"a,b\n1,2\n"}, "if it is a CSV file, give its separator, else read it with Spark"),
        ({"t.parquet": b"PAR1 no"}, "not a Parquet file"),
        (
            {"t.parquet": _packed("brotli")},
            r"t\.parquet is written with BROTLI, .*to_parquet\(path, compression='zstd'",
        ),
        ({"t.xlsx": b"PK"}, "pandas.read_excel"),
    ],
)
def test_damaged_files_are_refused_in_a_line(
    spark: "SparkSession", tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TableError, match=message) as refused:
        read_table(spark, tmp_path / next(iter(files)) if len(files) == 1 else tmp_path)
    assert "\n" not in str(refused.value)


def test_the_file_that_python_sees_is_read(
    spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for number, name in enumerate(("q1", "q?", "a\\b", "{x,y}", "100%")):
        (tmp_path / name).mkdir()
        pd.DataFrame({"n": [number]}).to_csv(tmp_path / name / "t.csv", index=False)
    for path, expected in {"q?/t.csv": 1, "~/a\\b/t.csv": 2, "{x,y}/t.csv": 3, "100%": 4}.items():
        assert [row.n for row in read_table(spark, path).collect()] == [expected], path
    assert sorted(row.n for row in read_table(spark, ["q1/t.csv", "q?/t.csv"]).collect()) == [0, 1]
    assert read_table(spark, "*/t.csv").count() == 5


def test_csv_files_of_one_table_are_read_by_name_and_others_left_out(spark: "SparkSession", tmp_path: Path) -> None:
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=1" / "a.csv").write_text("x,y\n1,a\n")
    (tmp_path / "day=2").mkdir()
    (tmp_path / "day=2" / "b.csv").write_text("y,x,z\nb,2,3\n")
    (tmp_path / "README.md").write_text("# Data\n")
    found = read_table(spark, tmp_path).orderBy("x").select("x", "y", "z", "day").collect()
    assert [tuple(row) for row in found] == [(1, "a", None, 1), (2, "b", 3, 2)]


def test_folders_of_several_paths_are_columns(spark: "SparkSession", tmp_path: Path) -> None:
    for number, name in enumerate(("north/day=1", "north/day=x", "south/day=y", "south/place=b")):
        (tmp_path / name).mkdir(parents=True)
        frame = pd.DataFrame({"n": [number], "more": [0.5]} if number else {"n": [number]})
        frame.to_csv(tmp_path / name / "t.csv", index=False)
        frame.to_json(tmp_path / name / "t.json", orient="records", lines=True)
        frame.to_parquet(tmp_path / name / "t.parquet")
    for kind in ("csv", "json", "parquet"):
        both = [str(tmp_path / place / f"*/*.{kind}") for place in ("north", "south")]
        assert set(read_table(spark, both).columns) == {"n", "more"}  # a pattern names the files themselves
    for kind in ("csv", "json", "parquet"):
        for path in tmp_path.rglob("*t.*"):
            path.rename(path.with_name(f"{'_' * (path.suffix != '.' + kind)}{path.name.lstrip('_')}"))
        found = read_table(spark, [tmp_path / "north", tmp_path / "south"]).orderBy("n")
        assert [(row.n, row.day, row.place, row.more) for row in found.collect()] == [
            (0, "1", None, None), (1, "x", None, 0.5), (2, "y", None, 0.5), (3, None, "b", 0.5),
        ], kind  # fmt: skip


def test_folders_have_one_type_in_all_files(
    spark: "SparkSession", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also in those that Spark reads apart because their columns or their forms differ."""
    for name, x in (("day=3", 1), ("day=x", 2.5)):
        for kind in ("parquet", "orc", "csv", "json"):
            (tmp_path / kind / name).mkdir(parents=True)
        frame = pd.DataFrame({"x": [x]})
        frame.to_parquet(tmp_path / "parquet" / name / "t.parquet")
        pyarrow.orc.write_table(pa.Table.from_pandas(frame), tmp_path / "orc" / name / "t.orc")
        frame.to_csv(tmp_path / "csv" / name / "t.csv", index=False)
        frame.to_json(tmp_path / "json" / name / "t.json", orient="records", lines=name == "day=3")
    for kind in ("parquet", "orc", "csv", "json"):
        found = read_table(spark, tmp_path / kind).select("x", "day").collect()
        assert sorted(map(tuple, found)) == [(1.0, "3"), (2.5, "x")], kind
    assert "as their folders have" not in caplog.text
    frame.assign(day=7).to_parquet(tmp_path / "parquet" / name / "t.parquet")
    pyarrow.orc.write_table(pa.table({"x": [2.5], "day": [7]}), tmp_path / "orc" / name / "t.orc")
    frame.assign(day=7).to_json(tmp_path / "json" / name / "t.json", orient="records", lines=True)
    for kind in ("parquet", "orc", "json"):
        with caplog.at_level("WARNING"):
            found = read_table(spark, tmp_path / kind).select("x", "day").collect()
        assert sorted(map(tuple, found)) == [(1.0, "3"), (2.5, "x")], kind
        assert f"{kind} have the columns day, as their folders have: the values of the folders" in caplog.text
    declared = StructType([StructField("x", DoubleType()), StructField("day", IntegerType())])
    message = r"column 'day' of .*day=x/t\.csv: the partition value 'x' is not a valid int32; give its column another"
    with pytest.raises(TableError, match=message):
        declared_csv(spark, [tmp_path / "csv"], declared)


def test_json_may_be_lines_a_list_or_a_document(spark: "SparkSession", tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    frame.to_json(tmp_path / "list.json", orient="records", indent=1)
    frame.to_json(tmp_path / "lines.json.gz", orient="records", lines=True)
    (tmp_path / "one.json").write_text('\ufeff{\n "a": 1,\n "b": "x"\n}', encoding="utf-8")
    (tmp_path / "[q1], {q2}").mkdir()
    frame.to_json(tmp_path / "[q1], {q2}" / "list.json", orient="records", indent=1)
    (tmp_path / "value=3").mkdir()
    (tmp_path / "value=3" / "t.jsonl").write_text(
        '{"a": 1, "b": "x"}\n \n{"a": 2, "b": "y", "c": [{"d": "}, {"}, {}]}\n'
    )
    for name, count in (
        ("list.json", 2), ("lines.json.gz", 2), ("one.json", 1), ("[q1], {q2}/list.json", 2), ("value=3", 2),
    ):  # fmt: skip
        found = read_table(spark, tmp_path / name)
        assert [tuple(row) for row in found.select("a", "b").collect()] == [(1, "x"), (2, "y")][:count], name
    (tmp_path / "both").mkdir()
    for name in ("list.json", "lines.json.gz"):
        (tmp_path / name).rename(tmp_path / "both" / name)
    (tmp_path / "both" / "more.json").write_text('{"a": 1.5}\n{"a": 2}\n')
    assert sorted(row.a for row in read_table(spark, tmp_path / "both").collect()) == [1, 1, 1.5, 2, 2, 2]
    (tmp_path / "semicolons.txt").write_text("a;b\n1;2\n")
    assert [tuple(row) for row in read_table(spark, tmp_path / "semicolons.txt", separator=";").collect()] == [(1, 2)]


def test_a_row_of_lists_in_json_is_known_by_its_name_or_by_other_files(spark: "SparkSession", tmp_path: Path) -> None:
    """#52: lists of one length may be the columns of a table, too."""
    long, short = ({"seen": [*range(length)], "late": [0.5] * length} for length in (20_000, 2))
    for name, row in (("one/t.jsonl.gz", short), ("spark/part-00000-5f.json", long), ("two/a.json", short)):
        (tmp_path / name).parent.mkdir()
        line = f"{json.dumps(row)}\n".encode()
        (tmp_path / name).write_bytes(gzip.compress(line) if name.endswith(".gz") else line)
    (tmp_path / "two" / "b.json").write_text("".join(f"{json.dumps(long)}\n" for _ in range(2)))
    for folder, lengths in {"one": [2], "spark": [20_000], "two": [2, 20_000, 20_000]}.items():
        assert sorted(len(row.seen) for row in read_table(spark, tmp_path / folder).collect()) == lengths, folder
    (tmp_path / "two" / "b.json").write_text('{"seen": 1, "late": 0.5}\n{"seen": 2, "late": 1.5}\n')
    with pytest.raises(ClearError, match=r"a\.json is a document of columns"):
        read_table(spark, tmp_path / "two")


def test_nan_of_json_is_a_missing_value_in_every_column(spark: "SparkSession", tmp_path: Path) -> None:
    rows = [{"c": "a: NaN, b", "yes": True, "l": ["x"]}, {"c": math.nan, "yes": math.nan, "l": math.nan}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_table(spark, tmp_path / "t.jsonl")
    assert dict(found.dtypes) == {"c": "string", "yes": "boolean", "l": "array<string>"}
    assert [tuple(row) for row in found.select("c", "yes", "l").collect()] == [
        ("a: NaN, b", True, ["x"]),
        (None, None, None),
    ]


def test_parquet_columns_that_spark_does_not_read_are_converted_or_left_out_and_said(
    spark: "SparkSession", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A table that does not use them is read; times in nanoseconds are what pandas writes."""
    at = pd.to_datetime(["2024-02-29 03:04:05.000001", None])
    frame = pd.DataFrame({"at": at, "zoned": at.tz_localize("UTC"), "x": [1, 2], "took": at - at[0]})
    table = pa.Table.from_pandas(frame.set_axis([7, 9]))
    odd = {"hour": pa.array([1, 2], pa.time64("us")), "half": np.array([1.0, 2.0], np.float16)}
    for name, column in odd.items():
        table = table.append_column(name, pa.array(column))
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.slice(0, 0).append_column("later", pa.nulls(0, pa.int64())), tmp_path / "b.parquet")
    with caplog.at_level("WARNING"):
        for path in (tmp_path / "a.parquet", tmp_path):
            found = read_table(spark, path).drop("later")
            assert dict(found.dtypes) == {
                "at": "timestamp_ntz", "zoned": "timestamp", "x": "bigint", "took": "interval day to second",
            }  # fmt: skip
            moment = datetime(2024, 2, 29, 3, 4, 5, 1)
            first, second = versions.arrow_table(found).to_pylist()
            assert (first["at"], first["zoned"].replace(tzinfo=None), first["took"]) == (moment, moment, timedelta())
            assert (second["at"], second["x"], second["took"]) == (None, 2, None)
    said = [one for one in caplog.messages if "left out" in one]
    assert len(said) == 4
    assert all(any(one.startswith(f"column {name}: left out: Spark ") for one in said) for name in odd)
    pq.write_table(table.select(list(odd)), tmp_path / "c.parquet")
    with pytest.raises(TableError, match=r"no column of .*c\.parquet can be used: hour: Spark has no type"):
        read_table(spark, tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"z": pa.array([1])}, {"z": pa.array([2.5])}, [1.0, 2.5]),
        ({"z": pa.nulls(1)}, {"z": pa.array([2.5])}, [None, 2.5]),
        ({}, {"z": pa.array([2.5])}, [None, 2.5]),
        ({"z": pa.array([1], pa.int16())}, {"z": pa.array([2], pa.int64())}, [1, 2]),
        ({"z": pa.array([1], pa.float32())}, {"z": pa.array([2.5])}, [1.0, 2.5]),
    ],
)
def test_parquet_files_that_differ_are_one_table(
    spark: "SparkSession", tmp_path: Path, first: dict[str, Any], second: dict[str, Any], expected: list[Any]
) -> None:
    for number, columns in enumerate((first, second)):
        pq.write_table(pa.table({"id": [number], **columns}), tmp_path / f"{number}.parquet")
    assert [row.z for row in read_table(spark, tmp_path).orderBy("id").collect()] == expected


def test_parquet_files_whose_types_contradict_are_refused(spark: "SparkSession", tmp_path: Path) -> None:
    pq.write_table(pa.table({"z": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"z": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(TableError, match=r"column 'z' has types .*bigint in .*a\.parquet; string in .*b\.parquet"):
        read_table(spark, tmp_path)
