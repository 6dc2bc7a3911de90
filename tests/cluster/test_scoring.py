"""Scoring on Spark: one load per Python worker, equal scores on every way, and the pinned version on every row."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.errors import PySparkException
from pyspark.ml.functions import array_to_vector
from pyspark.sql.functions import current_date, expr, lit

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.tfrecords import write_tfrecords
from mirrorspark.scoring import memory
from mirrorspark.scoring.batch import score
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input.tfrecords import score_tfrecords
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.stored.pinned import ModelNotFoundError
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.output.forms import Struct
from mirrorspark.scoring.sql import register_sql
from mirrorspark.scoring.task.counts import Counters
from mirrorspark.scoring.udf import scorer_udf
from mirrorspark.spark_session import versions
from mirrorspark.spark_session.errors import task_message
from tests.conftest import PATIENCE
from tests.unit.scoring.exported_models import (
    FLIGHTS,
    FLIGHTS_DDL,
    MEMBERS,
    MEMBERS_DDL,
    ORDERS,
    ORDERS_DDL,
    TYPES,
    export_flights,
    export_members,
    export_movies,
    export_orders,
    export_types,
    export_vectors,
    log_flights,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

in_sql = pytest.mark.skipif(not versions.HAS_ARROW_UDFS, reason="PySpark 4.0 has no UDFs on Arrow arrays")


PROGRAMS = Path(__file__).parent / "programs"

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Models:
    """An MLflow store with ``flights`` 1 and 2, which score differently, and the exported folders."""

    store_uri: str
    first: Path
    second: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("scoring")
    store_uri = f"sqlite:///{folder / 'mlflow.db'}"
    exported = [export_flights(folder / f"flights-{seed}", seed) for seed in (1, 2)]
    for model in exported:
        log_flights(store_uri, folder / "artifacts", model)
    return Models(store_uri, *exported)


@pytest.fixture(scope="module")
def flights(spark: "SparkSession") -> "DataFrame":
    # Row by row: pandas, on the way, would turn the integers of a column with a null into floats.
    frame = spark.createDataFrame([tuple(row.values()) for row in FLIGHTS.to_pylist()], FLIGHTS_DDL)
    frame.createOrReplaceTempView("flights")
    return frame


def direct_scores(folder: Path, table: pa.Table = FLIGHTS) -> dict[str, float]:
    """Return the scores of the SavedModel itself, called in this process."""
    scores = LoadedModel(folder).score(table)["score"]
    return dict(zip(table["flight_id"].to_pylist(), scores.tolist(), strict=True))


def scores_by_key(frame: "DataFrame") -> dict[str, float]:
    rows = frame.select("flight_id", "score").collect()
    scores = {row.flight_id: row.score for row in rows}
    assert len(scores) == len(rows)
    return scores


@pytest.mark.full
@pytest.mark.usefixtures("own_python_workers")
def test_fifty_partitions_load_the_model_once_per_python_worker(spark: "SparkSession", models: Models) -> None:
    """S1: local[2], 50 partitions, at most 2 loads; a second action adds none."""
    counters = Counters(spark)
    table = spark.range(10_000, numPartitions=50).selectExpr(
        "id",
        "'UA' AS carrier",
        "CAST(id % 24 AS INT) AS hour",
        "array('EWR') AS stops",
        "CAST(id AS DOUBLE) AS distance",
    )
    scored = score(table, models.first, keys="id", counters=counters)

    assert scored.agg({"score": "count"}).first()[0] == 10_000  # type: ignore[index]
    first = counters.value
    assert 1 <= first.loads <= 2, first
    assert scored.where("score > 0").count() == 10_000
    assert counters.value.loads == first.loads, (first, counters.value)


@pytest.mark.full
@pytest.mark.parametrize("layout", ["row", "block"])
def test_tfrecord_files_are_scored_like_the_table_they_were_written_from(
    spark: "SparkSession", flights: "DataFrame", models: Models, tmp_path: Path, layout: str
) -> None:
    """S16: rows of one value per list too, whose records do not say that it is a list."""
    # A record's list holds no null; "" is missing as well.
    storable = flights.withColumn("stops", expr("transform(stops, stop -> coalesce(stop, ''))"))
    for name, table in {"all": storable, "short lists": storable.where("size(stops) <= 1")}.items():
        write_tfrecords(table, tmp_path / name, layout=layout)
        scored = score_tfrecords(spark, tmp_path / name, models.first, keys="flight_id")
        assert scores_by_key(scored) == scores_by_key(score(table, models.first, keys="flight_id"))


def test_tfrecord_files_are_scored_with_the_options_of_tables(
    spark: "SparkSession", flights: "DataFrame", models: Models, tmp_path: Path
) -> None:
    """S16."""
    write_tfrecords(flights.withColumn("stops", expr("array('EWR')")), tmp_path / "records")
    counters = Counters(spark)
    scored = score_tfrecords(
        spark,
        tmp_path / "records",
        models.first,
        keys="flight_id",
        outputs=Struct("of_model"),
        batch_size=1,
        with_columns=(),
        bad_rows="mark",
        counters=counters,
    )
    assert scored.columns == ["flight_id", "of_model", "error"]
    assert len(scored.collect()) == FLIGHTS.num_rows
    assert counters.value.rows == counters.value.calls == FLIGHTS.num_rows


def test_the_shards_of_a_dataset_are_refused_for_their_features_are_encoded(
    spark: "SparkSession", flights: "DataFrame", models: Models, tmp_path: Path
) -> None:
    """S16: their numbers have the types of raw ones, and would be scaled a second time."""
    label = ModelDirectory.open(models.first).features.spec.label.name
    write_tfrecords(flights.selectExpr("flight_id", f"1.0F AS `label/{label}`"), tmp_path / "shards", layout="block")

    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "manifest.json").touch()
    with pytest.raises(ScoringError, match="dataset is a dataset, whose features are encoded for training"):
        score_tfrecords(spark, tmp_path / "dataset", models.first, keys="flight_id")
    with pytest.raises(ScoringError, match=rf"the records have \['label/{label}'\]: they are the shards of a dataset"):
        score_tfrecords(spark, tmp_path / "shards", models.first, keys="flight_id")


@pytest.mark.parametrize("layout", [pytest.param("row", marks=pytest.mark.full), "block"])
def test_boolean_tokens_are_scored_from_files_as_they_are_from_the_table(
    spark: "SparkSession", tmp_path: Path, layout: str
) -> None:
    """S16: records hold 1 and 0, which no vocabulary of true and false knows; lists that are all empty hold nothing."""
    model = export_members(tmp_path / "model")
    members = spark.createDataFrame([tuple(row.values()) for row in MEMBERS.to_pylist()], MEMBERS_DDL)
    expected = dict(zip(MEMBERS["id"].to_pylist(), LoadedModel(model).score(MEMBERS)["score"].tolist(), strict=True))
    for name, table in {"all": members, "empty lists": members.where("size(flags) = 0")}.items():
        write_tfrecords(table, tmp_path / name, layout=layout)
        scored = {row.id: row.score for row in score_tfrecords(spark, tmp_path / name, model, keys="id").collect()}
        assert scored == pytest.approx({key: expected[key] for key in scored}, rel=0, abs=1e-6)
        assert len(scored) == table.count()


def test_a_column_whose_tokens_are_written_otherwise_than_in_training_is_refused(
    spark: "SparkSession", tmp_path: Path
) -> None:
    model = export_members(tmp_path)
    members = spark.createDataFrame([tuple(row.values()) for row in MEMBERS.to_pylist()], MEMBERS_DDL)
    for changed in ("CAST(member AS INT) AS member", "CAST(member AS STRING) AS member"):
        with pytest.raises(ColumnError, match=r"column 'member' has type .*, the model was trained with bool.*BOOLEAN"):
            score(members.selectExpr("id", changed, "flags"), model, keys="id")
    with pytest.raises(ColumnError, match=r"column 'flags' has type .*, the model was trained with list"):
        score(members.selectExpr("id", "member", "CAST(flags AS array<int>) AS flags"), model, keys="id")


@in_sql
def test_a_vector_that_is_the_only_input_is_that_input(spark: "SparkSession", tmp_path: Path) -> None:
    """S2, F9: Spark's vectors are structs, as is what struct(*) makes of a table."""
    model = export_vectors(tmp_path)
    table = spark.range(3).withColumn("vector", array_to_vector(expr("array(1.0D, CAST(id AS DOUBLE), 0.0D)")))
    table.createOrReplaceTempView("vectors")
    register_sql(spark, "score_vector", model)
    expected = {row.id: row.score for row in score(table, model, keys="id").collect()}
    assert len(set(expected.values())) == 3
    for call in ("score_vector(vector)", "score_vector(struct(*))", "score_vector(struct(vector))"):
        rows = spark.sql(f"SELECT id, {call}.score AS score FROM vectors").collect()  # noqa: S608
        assert {row.id: row.score for row in rows} == pytest.approx(expected, rel=0, abs=1e-6), call


def test_a_model_that_must_not_see_more_than_its_spec_refuses_other_columns(
    flights: "DataFrame", models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    """F16: refused by name; the read files are on record."""
    allowed = flights.select("flight_id", "carrier", "hour", "stops", "distance")
    with caplog.at_level("INFO", "mirrorspark.scoring.batch"):
        scored = score(allowed, models.first, keys="flight_id", extra_columns="refuse")
    assert "reads the columns ['flight_id', 'carrier', 'hour', 'stops', 'distance']" in caplog.text
    assert scored.count() == allowed.count()
    with pytest.raises(ScoringError, match=r"has the columns \['age'\], which the model's spec does not allow it"):
        score(allowed.selectExpr("*", "44 AS age"), models.first, keys="flight_id", extra_columns="refuse")


@in_sql
def test_sql_udf_and_dataframe_give_the_scores_of_the_model_itself(
    spark: "SparkSession", flights: "DataFrame", models: Models
) -> None:
    """S2, S7: equal on every way, with null, "", NaN and empty lists among the values."""
    model = resolve("models:/flights/1", models.store_uri)
    register_sql(spark, "score", model)
    expected = direct_scores(models.first)
    udf = scorer_udf(spark, model)
    ways = {
        "DataFrame": score(flights, model, keys=("flight_id",)),
        "small batches": score(flights, model, keys=("flight_id",), batch_size=2),
        "UDF": flights.select("flight_id", udf("carrier", "hour", "stops", "distance").score.alias("score")),
        "SQL, columns": spark.sql(
            "SELECT flight_id, score(carrier, hour, stops, distance).score AS score FROM flights"
        ),
        "SQL, struct": spark.sql("SELECT flight_id, s.* FROM (SELECT *, score(struct(*)) AS s FROM flights)"),
    }
    for way, frame in ways.items():
        assert scores_by_key(frame) == pytest.approx(expected, rel=0, abs=1e-6), way
    version = spark.sql("SELECT DISTINCT score(struct(*)).model_version AS model_version FROM flights").collect()
    assert [row.model_version for row in version] == ["flights/1"]


def test_the_result_has_keys_outputs_and_version_and_every_row(flights: "DataFrame", models: Models) -> None:
    """S7: keys keep their types, rows their number."""
    scored = score(flights, models.first, keys=["unused", "flight_id"])
    assert scored.columns == ["unused", "flight_id", "score", "model_version"]
    assert scored.dtypes == [
        ("unused", "bigint"),
        ("flight_id", "string"),
        ("score", "float"),
        ("model_version", "string"),
    ]
    rows = scored.collect()
    assert sorted((row.unused, row.flight_id) for row in rows) == [(number, f"f{number}") for number in range(6)]
    assert {row.model_version for row in rows} == {resolve(models.first).label}
    assert score(flights, models.first, keys="flight_id", with_columns=()).columns == ["flight_id", "score"]
    assert score(flights.where("false"), models.first, keys="flight_id").collect() == []


def test_a_key_that_is_also_an_input_passes_through(flights: "DataFrame", models: Models) -> None:
    rows = score(flights, models.first, keys=["flight_id", "hour"]).collect()
    assert {row.flight_id: row.hour for row in rows} == {"f0": 5, "f1": 6, "f2": None, "f3": 23, "f4": 7, "f5": 5}


def test_scores_stay_with_their_keys_through_a_shuffle(spark: "SparkSession", models: Models) -> None:
    """S7: 2,000 rows in shuffled order, scored across batches and partitions, match the model's own by key."""
    generator = np.random.default_rng(5)
    table = pa.table(
        {
            "flight_id": [f"k{number}" for number in range(2_000)],
            "carrier": generator.choice(["UA", "AA", "DL", "", "??"], 2_000).tolist(),
            "hour": pa.array(generator.integers(4, 9, 2_000), pa.int32()),
            "stops": [["EWR", "JFK", "LGA"][: number % 4] for number in range(2_000)],
            "distance": generator.normal(900, 400, 2_000),
        }
    )
    frame = versions.table_of(spark, table).repartition(7, "distance").orderBy("distance")
    scored = score(frame, models.first, keys="flight_id", batch_size=64).repartition(5, "score")
    assert scores_by_key(scored) == pytest.approx(direct_scores(models.first, table), rel=0, abs=1e-6)


@in_sql
def test_an_alias_that_moves_changes_no_row_of_a_scoring_that_has_begun(
    spark: "SparkSession", flights: "DataFrame", models: Models
) -> None:
    """L4: every row carries the version that was pinned."""
    from mlflow import MlflowClient

    client = MlflowClient(models.store_uri)
    client.set_registered_model_alias("flights", "champion", "1")
    scored = score(flights, "models:/flights@champion", keys="flight_id", tracking_uri=models.store_uri)
    register_sql(spark, "champion", "models:/flights@champion", tracking_uri=models.store_uri)
    client.set_registered_model_alias("flights", "champion", "2")

    assert {row.model_version for row in scored.collect()} == {"flights/1"}
    assert scores_by_key(scored) == pytest.approx(direct_scores(models.first), rel=0, abs=1e-6)
    assert spark.sql("SELECT champion(struct(*)).model_version AS v FROM flights").distinct().collect() == [
        ("flights/1",)
    ]
    later = score(flights, "models:/flights@champion", keys="flight_id", tracking_uri=models.store_uri)
    assert {row.model_version for row in later.collect()} == {"flights/2"}
    assert scores_by_key(later) == pytest.approx(direct_scores(models.second), rel=0, abs=1e-6)


@in_sql
def test_sql_takes_a_subset_of_the_inputs_in_the_callers_order(
    spark: "SparkSession", flights: "DataFrame", models: Models
) -> None:
    """S2: omitted columns are missing in every row."""
    register_sql(spark, "score_two", models.first, inputs=["distance", "hour"])
    absent = FLIGHTS.set_column(1, "carrier", pa.nulls(6, pa.string()))
    absent = absent.set_column(3, "stops", pa.nulls(6, pa.list_(pa.string())))
    expected = direct_scores(models.first, absent)
    for call in ("score_two(distance, hour)", "score_two(struct(hour, distance))"):
        frame = spark.sql(f"SELECT flight_id, {call}.score AS score FROM flights")  # noqa: S608
        assert scores_by_key(frame) == pytest.approx(expected, rel=0, abs=1e-6), call


def test_invalid_arguments_of_score_are_refused_before_a_task_starts(
    spark: "SparkSession", flights: "DataFrame", models: Models
) -> None:
    """Issue 2, section 5: one clear line, nothing started."""
    group = "no task"
    spark.sparkContext.setJobGroup(group, group)
    wrong = {
        r"column 'hour' \(categorical\) is missing; the table has \['flight_id', 'carrier'": flights.drop("hour"),
        r"column 'distance' has type string, which a numeric": flights.withColumn("distance", flights.carrier),
        r"column 'distance' has type date32\[day\], which a numeric": flights.withColumn("distance", current_date()),
        r"column 'stops' has type string, which a multi_valued": flights.withColumn("stops", flights.carrier),
        r"key columns \['flight_id'\] are missing": flights.drop("flight_id"),
        r"the columns \['carrier'\] twice; drop or rename": flights.select("*", "carrier"),
    }
    for message, frame in wrong.items():
        with pytest.raises((ColumnError, ScoringError), match=message):
            score(frame, models.first, keys="flight_id")
    renamed = flights.withColumnRenamed("flight_id", "score")
    for message, key in {"columns \\['score'\\] twice": "score", "keys is empty": ()}.items():
        with pytest.raises(ScoringError, match=message):
            score(renamed, models.first, keys=key)
    with pytest.raises(ScoringError, match="batch_size 0 is below 1"):
        score(flights, models.first, keys="flight_id", batch_size=0)
    with pytest.raises(ScoringError, match="function name 'my score' is not an SQL name"):
        register_sql(spark, "my score", models.first)
    with pytest.raises(ScoringError, match=r"inputs \['late'\] must name some of the model's inputs"):
        scorer_udf(spark, models.first, inputs=["late"])
    with pytest.raises(ModelNotFoundError, match=r"no model 'nobody': use one of \['flights'\]"):
        score(flights, "models:/nobody/1", keys="flight_id", tracking_uri=models.store_uri)
    with pytest.raises(ModelNotFoundError, match="there is no such folder"):
        register_sql(spark, "score", "/no/such/folder")
    spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)  # type: ignore[arg-type]
    assert spark.sparkContext.statusTracker().getJobIdsForGroup(group) == []


@pytest.mark.full
def test_a_retrieval_model_with_a_scann_index_loads_in_a_worker_and_gives_lists(
    spark: "SparkSession", tmp_path: Path
) -> None:
    """S7: the vocabulary travels with the model; candidates come back as tokens, without what was seen."""
    pytest.importorskip("scann")
    model = export_movies(tmp_path / "movies", scann=True)
    rows = [("u0", ["m1", "m2"], []), ("u1", [], ["m1", "m2", "m3"]), ("new", None, None)]
    users = spark.createDataFrame(rows, "user string, history array<string>, seen array<string>")
    scored = {row.user: row for row in score(users, model, keys="user").collect()}
    table = pa.table(dict(zip(("user", "history", "seen"), map(list, zip(*rows, strict=True)), strict=True)))
    expected = LoadedModel(model).score_arrow(table)
    for position, user in enumerate(("u0", "u1", "new")):
        assert scored[user].candidates == expected["candidates"][position].as_py()
        assert scored[user].scores == pytest.approx(expected["scores"][position].as_py(), rel=0, abs=1e-6)
        assert scored[user].scores == sorted(scored[user].scores, reverse=True)
    assert not set(scored["u1"].candidates) & {"m1", "m2", "m3"}


# A task that fails takes its Python worker along, and the next one imports TensorFlow anew: these tests come last.


@in_sql
def test_a_sql_call_that_does_not_fit_says_how_to_call(
    spark: "SparkSession", flights: "DataFrame", models: Models
) -> None:
    register_sql(spark, "score", models.first)
    for call, message in {
        "score(carrier, hour)": "got 2 arguments; give the 4 columns ['carrier', 'hour', 'stops', 'distance'] in this",
        "score(struct(carrier, hour))": "the columns 'stops', 'distance' are missing",
        "score(carrier, distance, stops, distance)": "column 'hour' has type double and the value ",
    }.items():
        with pytest.raises(PySparkException) as caught:
            spark.sql(f"SELECT {call} FROM flights").collect()  # noqa: S608
        assert message in task_message(caught.value)


def test_files_that_change_after_the_model_was_pinned_are_refused(
    flights: "DataFrame", models: Models, tmp_path: Path
) -> None:
    """L4: the version on the row is the version that scored it."""
    copy = Path(shutil.copytree(models.first, tmp_path / "copy"))
    (copy / "one more").touch()
    scored = score(flights, resolve(copy), keys="flight_id")
    (copy / "one more").write_text("changed")
    with pytest.raises(PySparkException) as caught:
        scored.collect()
    assert "its files were changed or damaged since" in task_message(caught.value)


def said_on_a_cluster(program: str, folder: Path, *arguments: Path | str) -> list[str]:
    """Return the lines that a program prints that scores on a cluster, in ``folder``."""
    result = subprocess.run(
        [sys.executable, str(PROGRAMS / program), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 240,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip().splitlines()


@pytest.mark.full
def test_a_model_that_an_executor_cannot_load_is_told_in_one_line(tmp_path: Path) -> None:
    """S1, L4: the message names damaged and missing files, with advice; nothing is written."""
    of_table, of_files, hooks = said_on_a_cluster("scoring_fails.py", tmp_path, tmp_path)[-3:]
    scores = tmp_path / "scores"
    for line in (of_table, of_files.removeprefix(f"{scores} cannot be written: ")):
        assert re.fullmatch(
            r"the model in /\S+ on \S+ has the digest \w{12}, pinned was \w{12}: its files were changed or damaged "
            r"since; resolve the model's URI again \(if this is an executor's copy, in a new session\)",
            line,
        ), line
    assert hooks == (
        f"{scores} cannot be written: hooks.py imports the module 'only_beside_the_driver', which {sys.executable} "
        f"does not have; install it in the Python of every executor (spark.pyspark.python, or an environment sent with "
        f"--archives)"
    )
    assert not scores.exists()


@pytest.mark.full
def test_features_of_every_kind_are_scored_on_spark(spark: "SparkSession", tmp_path: Path) -> None:
    """Times, maps, pairs of arrays and texts reach the model as they do in this process (S3, F9).

    A row's last bit depends on its place in its batch, which differs between the two.
    """
    folder = export_orders(tmp_path)
    rows = [
        tuple(dict(v) if name == "basket" and v is not None else v for name, v in row.items())
        for row in ORDERS.to_pylist()
    ]
    frame = spark.createDataFrame(rows, ORDERS_DDL)
    frame.createOrReplaceTempView("orders")
    expected = dict(
        zip(ORDERS["order_id"].to_pylist(), LoadedModel(folder).score(ORDERS)["score"].tolist(), strict=True)
    )
    register_sql(spark, "again", folder)
    by_sql = spark.sql("SELECT order_id, again(struct(*)).score AS score FROM orders")
    for scored in (score(frame, folder, keys="order_id"), by_sql):
        scores = {row.order_id: row.score for row in scored.collect()}
        assert scores == pytest.approx(expected, rel=0, abs=1e-6)
    as_vector = frame.withColumn("basket", array_to_vector(lit([0.0] * 10)))
    zeros = pa.array([[]] * 3, ORDERS["basket"].type)
    without = ORDERS.set_column(ORDERS.column_names.index("basket"), "basket", zeros)
    scored = score(as_vector, folder, keys="order_id").orderBy("order_id").collect()
    expected_without = LoadedModel(folder).score(without)["score"].tolist()
    assert [row.score for row in scored] == pytest.approx(expected_without, rel=0, abs=1e-6)


def test_a_table_in_memory_or_in_files_is_scored_as_its_dataframe_is(
    spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """#52: with the same calls of the model bit for bit; vectorised loops round the last rows of a call differently."""
    model = export_types(tmp_path / "model")
    rows = pa.concat_tables([TYPES] * 500).set_column(0, "id", pa.array(range(500 * TYPES.num_rows)))
    rows = rows.combine_chunks().take(pa.array(np.random.default_rng(1).permutation(rows.num_rows)))

    def of(scored: "DataFrame") -> np.ndarray:
        return versions.arrow_table(scored).sort_by("id")["score"].to_numpy()

    frame = versions.table_of(spark, rows)
    here = score(rows, model, keys="id")
    assert here["id"].equals(rows["id"])
    in_order = here.sort_by("id")["score"].to_numpy()
    np.testing.assert_array_equal(of(score(frame.coalesce(1), model, keys="id")), in_order)
    assert versions.arrow_table(score(frame, model, keys="id")).schema.equals(here.schema)
    of_pandas = score(rows.to_pandas().set_index("joined", drop=False), model, keys="id")
    np.testing.assert_array_equal(of_pandas["score"].to_numpy(), here["score"].to_numpy())
    pq.write_table(rows, tmp_path / "rows.parquet")
    np.testing.assert_allclose(of(score(tmp_path / "rows.parquet", model, keys="id")), in_order, atol=1e-7)
    monkeypatch.setattr(memory, "MOST_ROWS", 10)
    by_tasks = score(rows.select(TYPES.column_names[1:]), model)
    np.testing.assert_allclose(by_tasks["score"].to_numpy(), here["score"].to_numpy(), atol=1e-7)
    monkeypatch.undo()
    # Times without a zone are those of the session's.
    zoneless = rows.set_column(rows.column_names.index("when"), "when", rows["when"].cast(pa.timestamp("us")))
    wanted = of(score(versions.table_of(spark, zoneless), model, keys="id"))
    np.testing.assert_allclose(score(zoneless, model, keys="id").sort_by("id")["score"].to_numpy(), wanted, atol=1e-7)
