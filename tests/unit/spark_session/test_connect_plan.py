"""Plans as Spark explains them; all but clear selections of columns of plain Parquet files are refused."""

import os
from pathlib import Path

import pytest

from mirrorspark.spark_session.connect_plan import plan_of, require_same
from mirrorspark.spark_session.session import NotPlainParquetError

FILES = ("file:///t/0.parquet", "file:///t/1.parquet")
RELATION = "Relation [id#32L,x#33,a b#34] parquet"


def explained(optimized: str, location: str = "InMemoryFileIndex(1 paths)[file:/t]") -> str:
    """Return the text of a plan in the mode extended."""
    return (
        "== Parsed Logical Plan ==\n'Project ['id]\n\n== Analyzed Logical Plan ==\nid: bigint\nProject [id#32L]\n\n"
        f"== Optimized Logical Plan ==\n{optimized}\n\n== Physical Plan ==\n*(1) ColumnarToRow\n"
        f"+- FileScan parquet [id#32L] Batched: true, DataFilters: [], Format: Parquet, Location: {location}, "
        "PartitionFilters: [], PushedFilters: [], ReadSchema: struct<id:bigint>\n"
    )


@pytest.mark.parametrize("optimized", [RELATION, f"Project [a b#34, id#32L]\n+- {RELATION}"])
def test_a_selection_of_columns_has_its_files_and_folder(optimized: str) -> None:
    plan = plan_of(explained(optimized), FILES)
    assert (plan.files, plan.roots) == (FILES, ("file:/t",))


@pytest.mark.parametrize(
    ("optimized", "problem"),
    [
        (f"Project [(x#33 + 1) AS y#38]\n+- {RELATION}", "columns that Spark computes"),
        (f"Project [id#32L, x#33 AS id#39]\n+- {RELATION}", "columns that Spark computes"),
        # Spark cuts long lists by default.
        ("Project [id#32L, ... 3 more fields]\n+- Relation [id#32L,... 3 more fields] parquet", "columns that Spark"),
        (f"Project [id#32L]\n+- Filter (id#32L > 3)\n   +- {RELATION}", "more than a selection"),
        (f"GlobalLimit 3\n+- LocalLimit 3\n   +- {RELATION}", "more than a selection"),
        ("Relation spark_catalog.default.t[id#32L] parquet", "more than a selection"),
        ("Relation [id#32L] csv", "more than a selection"),
        ("LocalRelation <empty>, [id#32L]", "more than a selection"),
    ],
)
def test_every_other_plan_is_refused(optimized: str, problem: str) -> None:
    with pytest.raises(NotPlainParquetError, match=problem):
        plan_of(explained(optimized), FILES)


@pytest.mark.parametrize("location", ["TahoeLogFileIndex(1 paths)[file:/t]", "CatalogFileIndex(1 paths)[file:/t]"])
def test_files_that_a_log_or_a_catalog_lists_are_not_plain(location: str) -> None:
    with pytest.raises(NotPlainParquetError, match="not plain Parquet files"):
        plan_of(explained(RELATION, location), FILES)


def test_several_folders_are_told_apart_unless_a_name_has_their_separator() -> None:
    several = "InMemoryFileIndex(2 paths)[file:/t/0.parquet, file:/t/1.parquet]"
    assert plan_of(explained(RELATION, several), FILES).roots == ("file:/t/0.parquet", "file:/t/1.parquet")
    with pytest.raises(NotPlainParquetError, match="its folders clearly"):
        plan_of(explained(RELATION, "InMemoryFileIndex(1 paths)[file:/a, b]"), FILES)


def test_files_of_a_server_are_taken_from_this_disk_if_size_and_time_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "0.parquet"
    file.write_bytes(b"PAR1")
    os.utime(file, ns=(0, 1_700_000_000_123_456_789))
    require_same({str(file): (4, 1_700_000_000_123)})
    for seen in ({str(file): (5, 1_700_000_000_123)}, {str(file): (4, 1_700_000_000_124)}):
        with pytest.raises(NotPlainParquetError, match="others of their names are on this one"):
            require_same(seen)
    with pytest.raises(NotPlainParquetError, match=r"on a disk of the server \(No such file"):
        require_same({str(tmp_path / "1.parquet"): (4, 0)})
