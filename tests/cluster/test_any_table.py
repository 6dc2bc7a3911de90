"""T3, H2: tables in any form that users have become the same Spark table."""

import csv
import math
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.data_pipelines.any_table import TableError, read_table

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
        ("nowhere", "there is no table or view 'nowhere'"),
        ("catalog.schema.nowhere", "there is no table or view 'catalog.schema.nowhere'"),
        ("no/where.parquet", "there is no file or folder no/where.parquet"),
        (pd.DataFrame({"a": [1, "x"]}), "no column of the table can be used: a: its values have several types"),
        (pd.DataFrame({"a": [1 + 2j]}), "or one that no table has .*make them text or numbers"),
        (pd.DataFrame([[1]]), "column names .0. are not strings; rename them"),
        (pa.table([[1], [2]], names=["a", "a"]), r"several columns of one name: \['a'\]; rename or drop all but one"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "several columns of one name"),
        (pd.DataFrame({"age": [1], "Age": [2]}), r"the columns \['age', 'Age'\] differ in case alone"),
        (__file__, "has none of the suffixes"),
    ],
)
def test_what_is_no_table_is_refused(spark: "SparkSession", table: Any, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_table(spark, table)


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
    expected["c"] = expected["c"].astype(object).where(expected["c"].notna(), None)
    found = read_table(spark, path)
    assert dict(found.dtypes) == {"c": "string", "n": "int", "x": "double", "late": "int"}
    pd.testing.assert_frame_equal(found.toPandas(), expected, check_dtype=False, rtol=1e-15)


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
        (["2024-02-30", "2024-02-29", "2024-03-01"], "string", ["2024-02-30", "2024-02-29", "2024-03-01"]),
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


def test_csv_in_another_encoding_is_refused_or_read_as_told(spark: "SparkSession", tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("town,n\nZürich,1\n€,2\n", encoding="windows-1252")
    with pytest.raises(TableError, match=r"t\.csv has another encoding than UTF-8 .*'town'.*encoding='windows-1252'"):
        read_table(spark, path)
    assert [row.town for row in read_table(spark, path, encoding="windows-1252").collect()] == ["Zürich", "€"]
    path.write_text("town,n\n\ufffd,1\n", encoding="utf-8")
    assert read_table(spark, path).count() == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"t.csv": b"a,b\n1,2\n1,2,3\n"}, "more cells than its header"),
        ({"t.csv": b"a,a\n1,2\n"}, "several columns of one name"),
        ({"t.csv": b"sep=;\na;b\n"}, "Excel's line"),
        ({"t.csv": b"PK\x03\x04"}, "packed as zip"),
        ({"t.csv": b""}, "is empty"),
        ({"a.csv": b"x,y\n1,2\n", "b.csv": b"3,4\n"}, "no column of"),
        ({"a.csv": b"x\n1\n", "b.json": b'{"x": 1}'}, "several formats"),
        ({"t.json": b'{"a": 1}\nno\n'}, "not JSON objects"),
        ({"t.json": b'{"a":{"0":1,"1":2}}'}, "document of columns"),
        ({"t.parquet": b"PAR1 no"}, "not a Parquet file"),
        ({"t.xlsx": b"PK"}, "pandas.read_excel"),
    ],
)
def test_damaged_files_are_refused_in_a_line(
    spark: "SparkSession", tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    for name, content in files.items():
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


def test_json_may_be_lines_a_list_or_a_document(spark: "SparkSession", tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    frame.to_json(tmp_path / "list.json", orient="records", indent=1)
    frame.to_json(tmp_path / "lines.json.gz", orient="records", lines=True)
    (tmp_path / "one.json").write_text('\ufeff{\n "a": 1,\n "b": "x"\n}', encoding="utf-8")
    for name, count in (("list.json", 2), ("lines.json.gz", 2), ("one.json", 1)):
        found = read_table(spark, tmp_path / name)
        assert [tuple(row) for row in found.select("a", "b").collect()] == [(1, "x"), (2, "y")][:count], name


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
