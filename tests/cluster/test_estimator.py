"""T2, T8, S7: training as a stage of a Spark ML pipeline: fitted, applied, saved and loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import SQLTransformer
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.converted_once import content_hash, hashed_on_the_way
from mirrorspark.data_pipelines.features.kinds import FeatureSpecError
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.training.entry_points.estimator import TrainedModel, TrainingEstimator

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.timeout(300)


def rides(spark: "SparkSession") -> "DataFrame":
    """Return two towns, in one of which most rides are late; the distance has no influence."""
    return spark.range(0, 1200, 1, 2).select(
        F.col("id").alias("ride_id"),
        F.when(F.col("id") % 2 == 0, "here").otherwise("there").alias("town"),
        (F.col("id") % 7).cast("double").alias("kilometres"),
        F.when(F.col("id") % 10 == 9, F.col("id") % 2 == 0).otherwise(F.col("id") % 2 == 1).cast("int").alias("late"),
        F.lit("kept").alias("note"),
    )


SETTINGS: Mapping[str, Any] = {"epochs": 3, "global_batch_size": 64, "learning_rate": 0.02, "shards": 1}


@pytest.fixture(scope="module")
def fitted(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> PipelineModel:
    """A pipeline whose first stage makes a column, and whose second one is given neither features nor keys."""
    stage = TrainingEstimator(
        label="late",
        output=str(tmp_path_factory.mktemp("estimator")),
        model={"name": "multi_field"},
        baseline="none",
        **SETTINGS,
    )
    miles = SQLTransformer(statement="SELECT *, kilometres * 0.62 AS distance FROM __THIS__")
    return Pipeline(stages=[miles, stage]).fit(rides(spark))


@pytest.mark.full
def test_the_scores_stand_beside_every_column_that_was_there(spark: "SparkSession", fitted: PipelineModel) -> None:
    scored = fitted.transform(rides(spark))
    assert scored.columns == [*rides(spark).columns, "distance", "score", "model_version"]
    assert scored._jdf.queryExecution().executedPlan().toString().count("ArrowEvalPython") == 1
    found = {row.town: row for row in scored.groupBy("town").agg(F.avg("score"), F.count("note")).collect()}
    assert found["here"][1] < 0.3 < 0.7 < found["there"][1]
    assert [found[town][2] for town in ("here", "there")] == [600, 600]
    assert scored.first().model_version == "late/1"


@pytest.mark.full
def test_what_is_not_given_is_inferred_and_spark_mls_evaluators_take_the_scores(
    spark: "SparkSession", fitted: PipelineModel, tmp_path: Path
) -> None:
    model = fitted.stages[-1]
    assert isinstance(model, TrainedModel)
    # Of the column "note" all values are the same.
    check_learnt(model, ["distance", "kilometres", "town"], fitted.transform(rides(spark)))
    with pytest.raises(FeatureSpecError, match="the estimator has no label"):
        TrainingEstimator(output=str(tmp_path)).fit(rides(spark))


@pytest.mark.full
@pytest.mark.parametrize(
    ("given", "features"),
    [
        ({}, ["kilometres", "town"]),
        ({"features": {"town": {"kind": "categorical"}}, "keys": "ride_id", "workers": 1}, ["town"]),
    ],
    ids=["nothing", "features"],
)
def test_an_estimator_chooses_features_and_model_or_takes_the_features_given(
    spark: "SparkSession", tmp_path: Path, given: dict[str, Any], features: list[str]
) -> None:
    table = rides(spark).drop("note")
    model = TrainingEstimator(label="late", output=str(tmp_path), **given, **SETTINGS).fit(table)
    check_learnt(model, features, model.transform(table))


def check_learnt(model: TrainedModel, features: list[str], scored: "DataFrame") -> None:
    """Check what the model has learnt from, and its scores by an evaluator of Spark ML."""
    assert model.trained is not None
    assert model.getOrDefault(model.keys) == ["ride_id"]
    learnt = ModelDirectory.open(model.pinned().path).scored_features
    assert sorted(feature.name for feature in learnt) == features
    assert scored.schema["score"].dataType.simpleString() == "double"
    assert BinaryClassificationEvaluator(labelCol="late", rawPredictionCol="score").evaluate(scored) > 0.7


@pytest.mark.full
def test_a_saved_pipeline_scores_the_same(spark: "SparkSession", fitted: PipelineModel, tmp_path: Path) -> None:
    path = str(tmp_path / "pipeline")
    fitted.save(path)
    loaded = PipelineModel.load(path)
    (stage,) = (stage for stage in loaded.stages if isinstance(stage, TrainedModel))
    assert stage.trained is None
    some = rides(spark).where("ride_id < 20")
    assert loaded.transform(some).collect() == fitted.transform(some).collect()


@pytest.mark.full
def test_a_table_that_has_the_outputs_names_already_is_refused(spark: "SparkSession", fitted: PipelineModel) -> None:
    with pytest.raises(ScoringError, match=r"\['score'\] already"):
        fitted.transform(rides(spark).withColumn("score", F.lit(0.0)))


def test_the_same_rows_have_the_same_hash_whatever_their_order(spark: "SparkSession") -> None:
    table = rides(spark)
    assert content_hash(table.repartition(3).orderBy(F.desc("ride_id"))) == content_hash(table)
    assert content_hash(table.where("ride_id > 0")) != content_hash(table)
    maps = table.select(F.create_map("town", "kilometres").alias("m"))
    assert content_hash(maps) != content_hash(maps.where("m['here'] IS NOT NULL"))
    for one in (table, maps):
        read, found = hashed_on_the_way(one)
        read.select(F.lit(1)).collect()
        assert found() == content_hash(one)


@pytest.mark.parametrize(
    ("schema", "one", "other"),
    [
        pytest.param("a int, b int", (None, 1), (1, None), marks=pytest.mark.full),
        ("a array<int>, b array<int>", ([1], [2, 3]), ([1, 2], [3])),
        pytest.param("a array<int>", ([1, None],), ([None, 1],), marks=pytest.mark.full),
        pytest.param("a array<array<int>>", ([[1], [2]],), ([[1, 2]],), marks=pytest.mark.full),
        pytest.param("a struct<x:int>", ((None,),), (None,), marks=pytest.mark.full),
        ("a map<string, int>, b map<string, int>", ({"x": 1}, {"y": 2}), ({"x": 1, "y": 2}, {})),
    ],
)
def test_rows_that_differ_have_another_hash(
    spark: "SparkSession", schema: str, one: tuple[object, ...], other: tuple[object, ...]
) -> None:
    hashes = [content_hash(spark.createDataFrame([row], schema)) for row in (one, one, other)]
    assert hashes[0] == hashes[1] != hashes[2]
