"""Plans as Spark explains them; all but clear selections of columns of plain Parquet files are refused."""

import pytest

from mirrorspark.spark_session.connect_plan import plan_of
from mirrorspark.spark_session.session import NotPlainParquetError

FILES = ("file:///t/0.parquet", "file:///t/1.parquet")
RELATION = "Relation [id#32L,x#33,a b#34] parquet"


def explained(optimized: str, location: str = "InMemoryFileIndex [file:/t]") -> tuple[str, str]:
    """Return the texts of a plan in the modes extended and formatted."""
    extended = (
        "== Parsed Logical Plan ==\n'Project ['id]\n\n== Analyzed Logical Plan ==\nid: bigint\nProject [id#32L]\n\n"
        f"== Optimized Logical Plan ==\n{optimized}\n\n== Physical Plan ==\n*(1) ColumnarToRow\n"
    )
    return (
        extended,
        f"== Physical Plan ==\n\n(1) Scan parquet \nBatched: true\nLocation: {location}\nReadSchema: struct<>",
    )


@pytest.mark.parametrize("optimized", [RELATION, f"Project [a b#34, id#32L]\n+- {RELATION}"])
def test_a_selection_of_columns_has_its_files_and_folder(optimized: str) -> None:
    plan = plan_of(*explained(optimized), FILES)
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
        plan_of(*explained(optimized), FILES)


@pytest.mark.parametrize("location", ["TahoeLogFileIndex [file:/t]", "CatalogFileIndex [file:/t]"])
def test_files_that_a_log_or_a_catalog_lists_are_not_plain(location: str) -> None:
    with pytest.raises(NotPlainParquetError, match="not plain Parquet files"):
        plan_of(*explained(RELATION, location), FILES)


def test_of_several_folders_the_files_count_unless_they_may_have_partitions() -> None:
    several = "InMemoryFileIndex [file:/t/0.parquet, ... 1 entries]"
    assert plan_of(*explained(RELATION, several), FILES).roots == FILES
    with pytest.raises(NotPlainParquetError, match="several folders"):
        plan_of(*explained(RELATION, several), ("file:///t/day=1/0.parquet",))
