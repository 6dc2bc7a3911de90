"""M1, M2, M4: a fleet scores files and DataFrames in one pass: the same outputs in every layout, all or none."""

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.fleet import score as fleet_score
from mirrorspark.fleet.coefficients import fleet_from_coefficients
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.score import score_fleet
from mirrorspark.fleet.scorer import FleetScorer
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import TargetExistsError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DOCS = Path(__file__).resolve().parents[2] / "docs"

pytestmark = pytest.mark.timeout(300)

ROWS, COLUMNS, MODELS = 5_000, 12, 30
OUTPUTS = ("score", "binary", "Rank")


@pytest.fixture(scope="module")
def table() -> pa.Table:
    random = np.random.default_rng(3)
    numbers = {f"c{number}": random.normal(size=ROWS) for number in range(COLUMNS)}
    nulls = pa.array(np.where(random.random(ROWS) < 0.1, np.nan, random.normal(size=ROWS)), from_pandas=True)
    states = pa.array(np.array(["CA", "NY", "TX"])[random.integers(0, 3, ROWS)])
    keys = pa.array([f"row {number}" for number in range(ROWS)])
    return pa.table({"key": keys, **numbers, "c0": nulls, "state": states, "unused": np.zeros(ROWS)})


@pytest.fixture(scope="module")
def files(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    for number, part in enumerate((table.slice(0, ROWS // 2), table.slice(ROWS // 2))):
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=700)
    return folder


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    random = np.random.default_rng(4)
    terms = [
        {"model": f"model{model}", "column": f"c{column}", "coefficient": random.normal()}
        for model in range(MODELS)
        for column in random.choice(COLUMNS, 5, replace=False)
    ]
    terms += [{"model": "model3", "column": "state", "coefficient": 1.0, "category": "CA", "missing": 0.0}]
    names = [f"model{model}" for model in range(MODELS)]
    described = {
        "model": names,
        "threshold": [0.5 if number % 3 else None for number in range(MODELS)],
        "cut_points": [[0.25, 0.5, 0.75] if number % 2 else None for number in range(MODELS)],
    }
    schema = pa.schema([(name, pa.string()) for name in ("model", "column", "category")])
    schema = schema.append(pa.field("coefficient", pa.float64())).append(pa.field("missing", pa.float64()))
    return fleet_from_coefficients(pa.Table.from_pylist(terms, schema=schema), pa.table(described), link="logit")


@pytest.fixture(scope="module")
def expected(fleet: Fleet, table: pa.Table) -> list[dict[str, Any]]:
    """The long rows, computed in this process."""
    scorer = FleetScorer(fleet, Layout.of(fleet, "long", OUTPUTS))
    return [
        row
        for rows in table.to_batches(max_chunksize=1_000)
        for batch, _ in scorer.batches(rows, ["key"])
        for row in batch.to_pylist()
    ]


def unpivoted(layout: str, rows: list[dict[str, Any]], models: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return rows of any layout as long ones."""
    if layout == "long":
        return rows
    return [
        {"key": row["key"], "model": model}
        | {name: row[name][place] if layout == "packed" else row.get(f"{model}_{name}") for name in OUTPUTS}
        for row in rows
        for place, model in enumerate(models)
    ]


@pytest.mark.parametrize("layout", ["wide", "packed", "long"])
def test_files_are_scored_in_their_order_in_every_layout(
    spark: "SparkSession", files: Path, fleet: Fleet, expected: list[dict[str, Any]], layout: str, tmp_path: Path
) -> None:
    fleet.save(tmp_path / "fleet")
    scored = score_fleet(
        files, tmp_path / "fleet", tmp_path / "scores", keys="key", layout=layout, outputs=OUTPUTS, spark=spark
    )
    found = pq.read_table(tmp_path / "scores").to_pylist()
    assert unpivoted(layout, found, scored.models) == expected
    assert (scored.rows, scored.inferences, scored.fleet) == (ROWS, ROWS * MODELS, fleet.digest)
    assert scored.bytes_per_inference == scored.bytes / scored.inferences > 0
    counters = scored.counters
    assert (counters.rows, counters.tasks) == (ROWS, len(scored.files))
    assert counters.nulls == sum(row["score"] is None for row in expected) > 0
    assert (
        min(counters.read_seconds, counters.score_seconds, counters.write_seconds, scored.inferences_per_core_second)
        > 0
    )
    read = spark.read.parquet(str(tmp_path / "scores"))
    assert read.count() == (ROWS * MODELS if layout == "long" else ROWS)
    types = {
        "wide": ("tinyint", "smallint"),
        "packed": ("array<tinyint>", "array<smallint>"),
        "long": ("tinyint", "smallint"),
    }
    prefix = "model1_" if layout == "wide" else ""
    assert (dict(read.dtypes)[f"{prefix}binary"], dict(read.dtypes)[f"{prefix}Rank"]) == types[layout]


def test_a_table_that_spark_computes_gets_the_same_outputs(
    spark: "SparkSession", files: Path, fleet: Fleet, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    table = spark.read.parquet(str(files)).where("unused = 0")
    score_fleet(table, fleet, tmp_path / "scores", keys=["key"], layout="long", outputs=OUTPUTS)
    found = pq.read_table(tmp_path / "scores").to_pylist()
    order = {row["key"]: place for place, row in enumerate(expected[::MODELS])}
    assert sorted(found, key=lambda row: order[row["key"]]) == expected


def test_only_the_union_of_columns_is_read(spark: "SparkSession", files: Path, fleet: Fleet, tmp_path: Path) -> None:
    few = fleet.select(["model3", "model4"])
    columns = ("key", *few.columns)
    target = StoragePath.of(tmp_path / "scores")
    of_files = fleet_score._rows(spark, files, columns, target, "auto")
    assert tuple(of_files.schema.names) == columns
    assert len(columns) < COLUMNS
    computed = spark.read.parquet(str(files)).where("key <> ''")
    of_table = fleet_score._rows(spark, computed, columns, target, "auto")
    scan = of_table._jdf.queryExecution().executedPlan().collectLeaves().head()  # type: ignore[union-attr,operator]
    assert set(scan.requiredSchema().fieldNames()) == {*columns}


def test_a_table_without_rows_has_the_columns(
    spark: "SparkSession", fleet: Fleet, table: pa.Table, tmp_path: Path
) -> None:
    empty = spark.createDataFrame(table.slice(0, 1)).where("key = ''")
    scored = score_fleet(empty, fleet.select(["model1"]), tmp_path / "scores", keys="key")
    assert (scored.rows, len(scored.files)) == (0, 1)
    assert pq.read_table(tmp_path / "scores").column_names == ["key", "model1_binary", "model1_Rank"]


def test_what_does_not_fit_is_refused_before_a_task_starts(
    spark: "SparkSession", files: Path, fleet: Fleet, tmp_path: Path
) -> None:
    target = tmp_path / "scores"
    stranger = fleet_from_coefficients(pa.table({"model": ["m"], "column": ["c99"], "coefficient": [1.0]}))
    with pytest.raises(ColumnError, match="lacks 1 of the 14 columns of the fleet: 'c99'; model 'm' reads 'c99'"):
        score_fleet(files, fleet.with_models(stranger), target, keys="key", spark=spark)
    with pytest.raises(ScoringError, match=r"key columns \['id'\] are missing"):
        score_fleet(files, fleet, target, keys="id", spark=spark)
    with pytest.raises(ScoringError, match=r"the output .* lies in the input"):
        score_fleet(files, fleet, files / "scores", keys="key", spark=spark)
    assert not target.exists()


def test_existing_outputs_are_kept_appended_to_or_replaced(
    spark: "SparkSession", files: Path, fleet: Fleet, tmp_path: Path
) -> None:
    target, few = tmp_path / "scores", fleet.select(["model1", "model5"])

    def write(mode: str, models: Fleet) -> pa.Table:
        score_fleet(files / "part-0.parquet", models, target, keys="key", layout="packed", mode=mode, spark=spark)
        return pq.read_table(target)

    assert write("error", few).num_rows == ROWS // 2
    with pytest.raises(TargetExistsError):
        write("error", few)
    assert write("append", few).num_rows == ROWS
    with pytest.raises(ScoringError, match="of other models, or in another order"):
        write("append", fleet.select(["model5", "model1"]))
    assert write("overwrite", fleet.select(["model5"])).num_rows == ROWS // 2


@pytest.mark.full
def test_the_examples_of_the_pages_run(spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pages = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("fleet.md", "fleet-runs.md"))
    blocks = re.findall(r"(?:^ {4}.*\n(?:\n+(?= {4}))?)+", pages, re.MULTILINE)
    made: dict[str, Any] = {}
    # The JVM was started in another folder.
    code = "\n".join(map(textwrap.dedent, blocks))
    for name in ("scores", "audience", "ranked"):
        code = code.replace(f'"{name}"', repr(str(tmp_path / name)))
    exec(code, made)  # noqa: S102 - a page of ours
    assert made["scored"].inferences == 2_000
    ranks = pq.read_table("scores")["response_Rank"].to_pylist()
    assert set(ranks) == {1, 2, 3, 4}
    assert set(pq.read_table("audience")["renewal_binary"].to_pylist()) == {1}
    assert (
        90 < made["tenth"].count() <= 100
    )  # of 1,000 rows; those that equal the first of the second tenth have its rank
    assert made["report"].totals["microbatches_done"] == made["run"].microbatches == 4
