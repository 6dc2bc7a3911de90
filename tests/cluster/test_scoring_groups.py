"""S18: one call scores a table whose regions have models of their own, with labels and columns of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from py4j.protocol import CALL_COMMAND_NAME
from pyspark.errors import PySparkException
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.scoring import groups
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.groups import score_by_group
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.stored.pinned import ModelNotFoundError, PinnedModel
from mirrorspark.scoring.model.stored.uri import pinned_model, resolve
from mirrorspark.scoring.output.forms import Long, TopK, Wide
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.task.counts import Counters
from mirrorspark.spark_session.errors import task_message
from tests.unit.scoring.exported_models import BASKETS, export_baskets

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.timeout(300)

LABELS = {"north": ("tea", "milk", "ü"), "south": ("coffee", "milk"), "east": ("rice", "tea", "salt", "ü")}
REGIONS = list(LABELS)
ROWS = 120

# 120 rows, in which each of the three regions meets each of the four baskets.
TABLE = (
    pa.concat_tables([BASKETS] * (ROWS // BASKETS.num_rows))
    .set_column(0, "id", pa.array(range(ROWS)))
    .append_column("region", pa.array([REGIONS[row % 3] for row in range(ROWS)]))
    .combine_chunks()
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("regions")
    return {region: export_baskets(folder / region, tags=labels) for region, labels in LABELS.items()}


@pytest.fixture(scope="module")
def baskets(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> "DataFrame":
    file = tmp_path_factory.mktemp("baskets") / "baskets.parquet"
    pq.write_table(TABLE, file)
    return spark.read.parquet(str(file))


@pytest.fixture(scope="module")
def direct(models: dict[str, Path]) -> dict[int, dict[str, float]]:
    """Return per row the scores of its region's model by label, computed in this process."""
    scores = {region: LoadedModel(model).score(TABLE)["scores"].tolist() for region, model in models.items()}
    regions = TABLE["region"].to_pylist()
    return {row: dict(zip(LABELS[region], scores[region][row], strict=True)) for row, region in enumerate(regions)}


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return models that read different columns: 2 x, -y and 3 x + y."""
    folder = tmp_path_factory.mktemp("linear")
    coefficients = {"north": {"x": 2.0}, "south": {"y": -1.0}, "east": {"x": 3.0, "y": 1.0}}
    return {region: package_model({"coefficients": of}, folder / region) for region, of in coefficients.items()}


@pytest.fixture
def numbers(spark: "SparkSession") -> "DataFrame":
    """Return 100 rows in four partitions, with what each of the linear models says of them."""
    return (
        spark.range(0, 100, 1, 4)
        .selectExpr(
            "id",
            "element_at(array('north', 'south', 'east'), CAST(id % 3 AS INT) + 1) AS region",
            "CAST(id AS DOUBLE) AS x",
            "CAST(id + 1000 AS DOUBLE) AS y",
            "'none' AS unused",
        )
        .withColumn("expected", F.expr("CASE region WHEN 'north' THEN 2 * x WHEN 'south' THEN -y ELSE 3 * x + y END"))
    )


def test_three_regions_with_labels_of_their_own_are_scored_in_one_table(
    spark: "SparkSession", baskets: "DataFrame", models: dict[str, Path], direct: dict[int, dict[str, float]]
) -> None:
    """S18: every row has the best of its own region's labels, and the version of its own region's model."""
    counters = Counters(spark)
    scored = score_by_group(baskets, models, group="region", keys="id", outputs=TopK(2), counters=counters)
    assert scored.columns == ["region", "id", "predictions", "model_version"]
    rows = scored.collect()
    assert sorted(row.id for row in rows) == list(range(ROWS))
    for row in rows:
        assert row.region == REGIONS[row.id % 3]
        assert row.model_version == resolve(models[row.region]).label
        best = sorted(direct[row.id].items(), key=lambda of_label: -of_label[1])[:2]
        assert [entry.label for entry in row.predictions] == [label for label, _ in best]
        assert [entry.score for entry in row.predictions] == pytest.approx([score for _, score in best], abs=1e-6)
    told = counters.value
    assert (told.rows, told.bad_rows, told.traces) == (ROWS, 0, 0)
    assert told.loads <= 3 * told.processes


@pytest.mark.parametrize("colocate", [pytest.param(True, marks=pytest.mark.full), False])
def test_every_label_of_a_row_s_own_region_has_a_row(
    baskets: "DataFrame", models: dict[str, Path], direct: dict[int, dict[str, float]], colocate: bool
) -> None:
    scored = score_by_group(baskets, models, group="region", keys="id", outputs=Long(), colocate=colocate)
    rows = scored.collect()
    assert len(rows) == (3 + 2 + 4) * ROWS // 3
    found = {(row.id, row.label): row.score for row in rows}
    flat = {(row, label): score for row, scores in direct.items() for label, score in scores.items()}
    assert found == pytest.approx(flat, rel=0, abs=1e-6)


def test_models_read_columns_of_their_own_and_rows_stay_where_they_are(
    numbers: "DataFrame", linear: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Without co-location; columns that no model reads stay in the JVM."""
    with caplog.at_level("INFO", "mirrorspark.scoring.groups"):
        scored = score_by_group(numbers, linear, group="region", keys=["id", "expected"], colocate=False)
    assert "read the columns ['region', 'id', 'expected', 'x', 'y']" in caplog.text
    rows = scored.withColumn("partition", F.spark_partition_id()).collect()
    assert [row.id for row in rows] == list(range(100))
    assert [row.partition for row in rows] == [row // 25 for row in range(100)]
    assert [row.score for row in rows] == [row.expected for row in rows]


@pytest.fixture
def partitions_as_they_are(spark: "SparkSession") -> Iterator[None]:
    """Keep Spark from putting partitions of few rows together."""
    before = spark.conf.get("spark.sql.adaptive.enabled")
    spark.conf.set("spark.sql.adaptive.enabled", "false")
    yield
    spark.conf.set("spark.sql.adaptive.enabled", str(before))


@pytest.mark.usefixtures("partitions_as_they_are")
def test_a_large_group_is_split_and_the_rows_of_a_small_one_are_together(
    spark: "SparkSession", linear: dict[str, Path]
) -> None:
    """Nine tenths of the rows have most of eight partitions."""
    table = spark.range(0, 10_000, 1, 4).selectExpr(
        "id",
        "CASE WHEN id % 20 = 0 THEN 'south' WHEN id % 20 = 1 THEN 'east' ELSE 'north' END AS region",
        "CAST(id AS DOUBLE) AS x",
        "CAST(id AS DOUBLE) AS y",
    )
    assert spark.conf.get("spark.sql.shuffle.partitions") == "8"
    counters = Counters(spark)
    scored = score_by_group(table, linear, group="region", keys="id", counters=counters)
    rows = scored.withColumn("partition", F.spark_partition_id()).collect()
    assert sorted(row.id for row in rows) == list(range(10_000))
    partitions = {region: {row.partition for row in rows if row.region == region} for region in linear}
    assert len(partitions["north"]) >= 6
    assert max(len(partitions["south"]), len(partitions["east"])) <= 2
    assert counters.value.rows == 10_000


def test_a_uri_is_resolved_once_and_a_group_may_be_a_key(
    spark: "SparkSession", numbers: "DataFrame", linear: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved: list[Any] = []

    def counted(model: str | Path | PinnedModel, tracking_uri: str | None) -> PinnedModel:
        resolved.append(model)
        return pinned_model(model, tracking_uri)

    monkeypatch.setattr(groups, "pinned_model", counted)
    table = numbers.selectExpr("id", "CAST(id % 3 AS SMALLINT) AS zone", "x", "y")
    by_zone = {0: str(linear["north"]), 1: str(linear["south"]), 2: str(linear["north"])}
    scored = score_by_group(table, by_zone, group="zone", keys=["id", "zone"], with_columns=())
    assert resolved == [by_zone[0], by_zone[1]]
    assert scored.dtypes == [("id", "bigint"), ("zone", "smallint"), ("score", "double")]
    for row in scored.collect():
        assert row.score == (-1000.0 - row.id if row.zone == 1 else 2.0 * row.id)


@pytest.fixture
def questions(spark: "SparkSession", monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the calls by which this process asks Spark for something, one by one, as they come."""
    client: Any = spark.sparkContext._gateway._gateway_client
    send, asked = client.send_command, []

    def kept(command: str, *arguments: Any, **options: Any) -> Any:
        # All other commands are about objects that come and go.
        if command.startswith(CALL_COMMAND_NAME):
            asked.append(command)
        return send(command, *arguments, **options)

    monkeypatch.setattr(client, "send_command", kept)
    return asked


def test_spark_is_asked_as_often_for_fifty_models_as_for_two(
    spark: "SparkSession", questions: list[str], tmp_path: Path
) -> None:
    """They are checked in this process against one schema: of thousands, each would else be a plan to analyse."""
    coefficients = [{"x": 1.0 + zone, "y": 1.0} for zone in range(50)]
    models = {zone: package_model({"coefficients": of}, tmp_path / str(zone)) for zone, of in enumerate(coefficients)}
    doubles = [f"CAST(id AS DOUBLE) AS {name}" for name in ("x", "y")]
    table, asked = spark.range(100).selectExpr("id", "id % 50 AS zone", *doubles), []
    # The first call has the schema to ask for, and whatever a session asks for once.
    for zones in (2, 2, 50):
        chosen = {zone: models[zone] for zone in range(zones)}
        questions.clear()
        scored = score_by_group(table, chosen, group="zone", keys="id", unknown="null")
        asked.append(len(questions))
    assert asked[2] == asked[1] > 0
    rows = scored.collect()
    assert len(rows) == 100
    for row in rows:
        assert row.score == (2.0 + row.zone) * row.id
        assert row.model_version == resolve(models[row.zone]).label


def test_rows_of_unknown_groups_have_nulls_and_the_reason(
    spark: "SparkSession", numbers: "DataFrame", linear: dict[str, Path]
) -> None:
    counters = Counters(spark)
    table = numbers.withColumn("region", F.expr("IF(id = 7, NULL, region)"))
    known = {region: linear[region] for region in ("north", "south")}
    options: dict[str, Any] = {"group": "region", "keys": ["id", "expected"], "unknown": "null", "counters": counters}
    rows = score_by_group(table, known, **options, bad_rows="mark").collect()
    assert len(rows) == 100
    for row in rows:
        is_known = row.region in known
        assert row.score == (row.expected if is_known else None)
        assert row.error == (None if is_known else f"no model is given for region={row.region!r}")
        assert (row.model_version is None) != is_known
    assert counters.value.bad_rows == sum(row.region not in known for row in rows) == 34
    unmarked = score_by_group(table, known, **options)
    assert unmarked.columns == ["region", "id", "expected", "score", "model_version"]
    assert unmarked.where("score IS NULL").count() == 34


def test_a_null_policy_applies_to_the_models_that_read_the_column(
    numbers: "DataFrame", linear: dict[str, Path]
) -> None:
    """South and east read y, of which all are null; north does not."""
    table = numbers.withColumn("y", F.expr("CAST(NULL AS DOUBLE)"))
    scored = score_by_group(table, linear, group="region", keys="id", nulls={"y": "fail"}, bad_rows="mark").collect()
    for row in scored:
        reason = None if row.region == "north" else "column 'y' is null, which the null policy does not allow"
        assert row.error == reason
        assert row.score == (2.0 * row.id if row.region == "north" else None)
    filled = score_by_group(table, linear, group="region", keys="id", nulls={"y": 5.0}).collect()
    expected = {"north": lambda x: 2 * x, "south": lambda x: -5.0, "east": lambda x: 3 * x + 5}
    assert [row.score for row in filled] == [expected[row.region](row.id) for row in filled]


@pytest.mark.full
def test_a_stream_is_scored_by_group(
    spark: "SparkSession", numbers: "DataFrame", linear: dict[str, Path], tmp_path: Path
) -> None:
    """R10: with the same call; its partitions stay as they are."""
    numbers.write.parquet(str(tmp_path / "numbers"))
    stream = spark.readStream.schema(numbers.schema).option("maxFilesPerTrigger", 2).parquet(str(tmp_path / "numbers"))
    query = (
        score_by_group(stream, linear, group="region", keys=["id", "expected"])
        .writeStream.option("checkpointLocation", str(tmp_path / "checkpoint"))
        .trigger(availableNow=True)
        .start(str(tmp_path / "scores"))
    )
    assert query.awaitTermination(120)
    rows = spark.read.parquet(str(tmp_path / "scores")).collect()
    assert sorted(row.id for row in rows) == list(range(100))
    assert [row.score for row in rows] == [row.expected for row in rows]


def test_labels_that_differ_are_refused_in_a_form_of_a_column_for_each(
    baskets: "DataFrame", models: dict[str, Path]
) -> None:
    message = (
        r"in the form Wide\(\) the models of region='north' \(north/\w+\) and region='south' \(south/\w+\) give "
        r"different columns: only the former tea \(float\), ü \(float\), only the latter coffee \(float\); use TopK"
    )
    with pytest.raises(ScoringError, match=message):
        score_by_group(baskets, models, group="region", keys="id", outputs=Wide())


def test_unsuitable_input_is_refused_before_a_task_starts(
    numbers: "DataFrame", linear: dict[str, Path], tmp_path: Path
) -> None:
    """The message says which group's model it is about."""
    north = linear["north"]
    refused: list[tuple[dict[str, Any], type[ValueError], str]] = [
        ({"models": {}}, ScoringError, "models is empty; give a model for each value of the column 'region'"),
        ({"group": "zone"}, ScoringError, "the group column 'zone' is missing; the table has"),
        ({"group": "regin"}, ScoringError, r"the group column 'regin' is missing.* \(did you mean 'region'\?\)"),
        ({"group": "x"}, ScoringError, "the group column 'x' has type double, which cannot select a model; cast it to"),
        ({"models": {7: north}}, ScoringError, "models has one for 7, which the column 'region' of type string cannot"),
        ({"models": {b"n": north}}, ScoringError, "models has one for b'n', which the column 'region' of type string"),
        ({"group": "id"}, ScoringError, "models has one for 'north', which the column 'id' of type int64 cannot hold"),
        ({"models": {None: north}}, ScoringError, "models has one for a null in 'region', which is not a group"),
        ({"keys": []}, ScoringError, "keys is empty; name the columns that identify a row"),
        ({"keys": "day"}, ScoringError, r"key columns \['day'\] are missing"),
        ({"unknown": "skip"}, ScoringError, "unknown 'skip' is not a rule for groups without a model"),
        ({"nulls": {"z": 0.0}}, ScoringError, r"names \['z'\], which no model reads; they read \['x', 'y'\]"),
        ({"outputs": TopK(2)}, ScoringError, "the model of region='north': the form 'top:2' is for a model with"),
        (
            {"models": {"north": north, "south": tmp_path / "none"}},
            ModelNotFoundError,
            r"the model of region='south': model '.*none' does not exist",
        ),
        ({"table": numbers.drop("y")}, ColumnError, "the model of region='south': column 'y' is missing"),
        (
            {"table": numbers.withColumn("y", F.lit("1"))},
            ColumnError,
            "the model of region='south': column 'y' has type string, the model takes double; cast it",
        ),
    ]
    for wrong, error, message in refused:
        arguments: dict[str, Any] = {"table": numbers, "models": linear, "group": "region", "keys": "id"}
        with pytest.raises(error, match=message):
            score_by_group(**arguments | wrong)


@pytest.mark.parametrize("form", ["pandas", "polars", "arrow", "path"])
def test_tables_of_every_form_are_scored_in_their_form_and_order(
    numbers: "DataFrame", linear: dict[str, Path], form: str, tmp_path: Path
) -> None:
    given = numbers.orderBy(F.expr("id % 7"), "id").toArrow()
    frame = given.to_pandas().set_index("id")
    tables: dict[str, Any] = {"pandas": frame, "polars": polars.DataFrame(given), "arrow": given}
    if form == "path":
        pq.write_table(given, tmp_path / "numbers.parquet")
    table = tables.get(form, str(tmp_path))
    scored = score_by_group(table, linear, group="region", keys=["id", "expected"])
    in_pandas = {"pandas": lambda: scored.reset_index(), "arrow": lambda: scored.to_pandas()}
    found = in_pandas.get(form, lambda: scored.toPandas() if form == "path" else scored.to_pandas())()
    if form == "path":
        found = found.set_index("id").loc[frame.index].reset_index()
    assert list(found["id"]) == list(frame.index)
    assert list(found["score"]) == pytest.approx(list(frame["expected"]))
    if form != "path":
        assert type(scored) is type(table)
        with pytest.raises(ScoringError, match="the group column 'zone' is missing; the table has"):
            score_by_group(table, linear, group="zone")


def test_a_table_in_memory_needs_no_keys_and_may_get_several_rows_for_one(models: dict[str, Path]) -> None:
    found = score_by_group(TABLE, models, group="region", outputs=Long())
    assert found.column_names[0] == "region"
    assert found.num_rows == sum(len(LABELS[region]) for region in TABLE["region"].to_pylist())


# A task that fails takes its Python worker along, and the next one imports TensorFlow anew: this test comes last.


def test_a_row_of_an_unknown_group_is_named_by_its_keys(numbers: "DataFrame", linear: dict[str, Path]) -> None:
    table = numbers.withColumn("region", F.expr("IF(id = 41, 'moon', region)"))
    with pytest.raises(PySparkException) as caught:
        score_by_group(table, linear, group="region", keys="id").collect()
    expected = "the row region='moon', id=41 cannot be scored: no model is given for region='moon'; give a model for it"
    assert expected in task_message(caught.value)
