"""M3: rows are chosen by SQL over the outputs of some models, and ranked among all rows, from packed lists."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.fleet.coefficients import fleet_from_coefficients
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.runs.run import run_fleet
from mirrorspark.fleet.runs.select import rank_scores, select_scores
from mirrorspark.fleet.score import score_fleet
from mirrorspark.scoring.errors import ScoringError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(300)

ROWS, MODELS = 4_000, 6
CONDITION = "m1_Rank <= 2 and `M4_binary` = 1 and key < 3000"


@pytest.fixture(scope="module")
def table() -> pa.Table:
    random = np.random.default_rng(3)
    columns = {f"c{number}": random.normal(size=ROWS) for number in range(MODELS)}
    columns["c2"][:100] = np.nan
    columns["c3"] = np.round(columns["c3"])  # many equal scores
    return pa.table({"key": np.arange(ROWS), **columns})


@pytest.fixture(scope="module")
def file(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("wide") / "rows.parquet"
    pq.write_table(table, file, row_group_size=500)
    return file


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    names = [f"m{number}" for number in range(MODELS)]
    terms = pd.DataFrame({"model": names, "column": [f"c{number}" for number in range(MODELS)], "coefficient": 1.0})
    models = pd.DataFrame({"model": names, "threshold": 0.0, "cut_points": [[-1.0, 0.0, 1.0]] * MODELS})
    models["group"] = ["spring", "spring", "spring", "autumn", "autumn", "autumn"]
    return fleet_from_coefficients(terms, models)


@pytest.fixture(scope="module")
def packed(spark: "SparkSession", fleet: Fleet, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "scores"
    score_fleet(file, fleet, folder, keys="key", layout="packed", outputs=("score", "binary", "Rank"), spark=spark)
    return folder


@pytest.fixture(scope="module")
def expected(table: pa.Table) -> list[int]:
    is_chosen = (table["c1"].to_numpy() >= 0) & (table["c4"].to_numpy() >= 0)
    return [key for key in np.flatnonzero(is_chosen).tolist() if key < 3000]


def test_an_audience_is_read_from_two_elements_of_packed_lists(
    spark: "SparkSession", packed: Path, expected: list[int]
) -> None:
    found = select_scores(packed, CONDITION, spark=spark)
    assert found.columns == ["key", "m1_Rank", "m4_binary"]
    rows = found.orderBy("key").collect()
    assert [row["key"] for row in rows] == expected
    assert {row["m1_Rank"] for row in rows} == {1, 2}
    plan = found._jdf.queryExecution().toString()
    physical = plan[plan.index("== Physical Plan ==") :]
    # Scores are not read, and no list becomes rows.
    (schema,) = [line for line in physical.splitlines() if "ReadSchema" in line]
    assert "score" not in schema.partition("ReadSchema")[2]
    assert "Generate" not in physical
    assert "explode" not in physical
    assert sorted(row["key"] for row in select_scores(spark.read.parquet(str(packed)), CONDITION).collect()) == expected


@pytest.mark.parametrize("layout", [pytest.param("wide", marks=pytest.mark.full), "packed"])
def test_an_audience_of_a_run_joins_the_steps_of_its_models(
    spark: "SparkSession", fleet: Fleet, file: Path, expected: list[int], layout: str, tmp_path: Path
) -> None:
    output = tmp_path / "scores"
    run_fleet(spark, fleet, file, output, keys="key", layout=layout, models_per_microbatch=2, rows_per_microbatch=2_000)
    found = select_scores(output, CONDITION, spark=spark)
    assert sorted(row["key"] for row in found.collect()) == expected
    of_one = select_scores(output, "m1_Rank = 1", spark=spark)
    assert "Join" not in of_one._jdf.queryExecution().toString()
    (output / "group=spring/step=00000/rows=00001/_manifest.json").unlink()
    with pytest.raises(ScoringError, match=r"1 of the 2 microbatches of step 0 of the group 'spring' of .*resume"):
        select_scores(output, CONDITION, spark=spark)
    assert select_scores(output, "m4_binary = 1", spark=spark).count() > 0


def test_rows_without_a_key_are_joined_like_others(spark: "SparkSession", fleet: Fleet, tmp_path: Path) -> None:
    keys = {"key": pa.array([1, 2, None, 4]), "place": pa.array(["a", None, "c", "d"])}
    rows = pa.table(keys | {f"c{number}": [2.0, 2.0, 2.0, -2.0] for number in range(MODELS)})
    pq.write_table(rows, tmp_path / "rows.parquet")
    output = tmp_path / "scores"
    run_fleet(spark, fleet, tmp_path / "rows.parquet", output, keys=["key", "place"], layout="packed")
    found = select_scores(output, "m1_Rank = 1 and m4_Rank = 1", spark=spark)
    assert found.columns == ["key", "place", "m1_Rank", "m4_Rank"]
    assert {(row["key"], row["place"]) for row in found.collect()} == {(1, "a"), (2, None), (None, "c")}


def test_models_that_differ_only_in_case_are_named_exactly(spark: "SparkSession") -> None:
    scores = spark.createDataFrame([(1, [0.5, -0.5]), (2, [-0.5, 0.5])], "key int, score array<float>")
    for condition, key in (("a_score > 0", 1), ("A_score > 0", 2)):
        found = select_scores(scores, condition, models=["a", "A"])
        assert [row["key"] for row in found.collect()] == [key]
    for condition in ("a_SCORE > 0", "a_score > 0 and A_score < 0", "A_score > 0 or a_SCORE > 0"):
        with pytest.raises(ScoringError, match="may mean 'A_score' and 'a_score', which differ only in case"):
            select_scores(scores, condition, models=["a", "A"])


@pytest.mark.full
def test_ranks_of_a_run_are_among_the_rows_of_all_its_prefixes(
    spark: "SparkSession", fleet: Fleet, file: Path, packed: Path, tmp_path: Path
) -> None:
    spring = fleet.group("spring")
    given: dict[str, Any] = {"keys": "key", "layout": "packed", "outputs": "score", "rows_per_microbatch": 1_000}
    run_fleet(spark, spring, file, tmp_path / "spring", prefixes=2, **given)
    ranked = rank_scores(tmp_path / "spring", error=0, spark=spark)
    assert ranked.columns == ["key", "Rank"]
    both = [ranked, rank_scores(packed, error=0, spark=spark)]
    found, whole = (np.array(one.orderBy("key").toPandas()["Rank"].tolist(), dtype=float) for one in both)
    np.testing.assert_array_equal(found, whole[:, :3])
    run_fleet(spark, fleet, file, tmp_path / "both", **given)
    with pytest.raises(ScoringError, match="has 2 steps, which are tables of their own"):
        rank_scores(tmp_path / "both", spark=spark)


@pytest.mark.full
def test_a_key_may_have_the_name_of_an_output_in_wide_scores(
    spark: "SparkSession", fleet: Fleet, table: pa.Table, tmp_path: Path
) -> None:
    pq.write_table(table.rename_columns(["score", *table.column_names[1:]]), tmp_path / "rows.parquet")
    score_fleet(tmp_path / "rows.parquet", fleet, tmp_path / "scores", keys="score", spark=spark)
    found = select_scores(tmp_path / "scores", "m1_Rank = 1 and score < 3000", spark=spark)
    assert found.columns == ["score", "m1_Rank"]
    assert found.count() == int(np.sum(table["c1"].to_numpy()[:3_000] >= 1))


def test_what_does_not_fit_the_scores_is_one_clear_error(
    spark: "SparkSession", fleet: Fleet, file: Path, packed: Path, tmp_path: Path
) -> None:
    for condition, message in {
        "key < 3": "names no output of a model",
        "m1_Rank = 1 and m1_binry = 1": r"does not fit the scores: .*m1_binry.* \(did you mean 'm1_binary'",
        "m1_Rank = = 1": "is not valid SQL",
    }.items():
        with pytest.raises(ScoringError, match=message):
            select_scores(packed, condition, spark=spark)
    score_fleet(file, fleet, tmp_path / "long", keys="key", layout="long", spark=spark)
    with pytest.raises(ScoringError, match="are in the layout long"):
        select_scores(tmp_path / "long", "m1_Rank = 1", spark=spark)
    with pytest.raises(ScoringError, match="have no lists of scores"):
        rank_scores(spark.read.parquet(str(packed)).drop("score"), models=fleet.names)
    for others, message in (({"ranks": 1}, "ranks 1 is below 2"), ({"error": 0.5}, "error 0.5 is not a small share")):
        with pytest.raises(ScoringError, match=message):
            rank_scores(packed, spark=spark, **others)  # type: ignore[arg-type]


def test_ranks_among_all_rows_are_those_of_a_full_sort(spark: "SparkSession", table: pa.Table, packed: Path) -> None:
    ranked = rank_scores(packed, error=0, spark=spark)
    exact = ranked.orderBy("key").toPandas()
    rough = rank_scores(packed, error=0.01, spark=spark).orderBy("key").toPandas()
    found, close = (np.array(frame["Rank"].tolist(), dtype=float) for frame in (exact, rough))
    assert exact["key"].tolist() == [*range(ROWS)]
    for model in range(MODELS):
        scores = table[f"c{model}"].to_numpy().astype(np.float32)
        has_score = ~np.isnan(scores)
        assert np.isnan(found[:, model]).tolist() == (~has_score).tolist()
        own, count = scores[has_score], int(has_score.sum())
        # The place from the best, of equal scores the last one.
        places = count - np.searchsorted(np.sort(own), own, side="left")
        expected = np.ceil(places * 10 / count)
        if model != 3:
            assert found[has_score, model].tolist() == expected.tolist()
            shares = [np.mean(close[has_score, model] <= rank) for rank in range(1, 10)]
            assert shares == pytest.approx(np.arange(1, 10) / 10, abs=0.0101)
    tied = pd.DataFrame({"score": table["c3"].to_numpy(), "rank": found[:, 3]}).groupby("score")["rank"]
    assert tied.nunique().eq(1).all()
    assert tied.first().is_monotonic_decreasing
    audience = select_scores(ranked, "m0_Rank <= 3", models=[f"m{number}" for number in range(MODELS)])
    assert audience.count() == ROWS * 3 // 10
