"""T3, T8, H2, H9: one call trains on a table, and its result shows, scores, compares and explains."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tf_keras
from mlflow import MlflowClient
from pyspark.ml.evaluation import MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import StringIndexerModel
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

import mirrorspark as ms
from benchmarks.quality_tables import adult_tables
from mirrorspark.callbacks.checkpoints.commit import best_committed
from mirrorspark.data_pipelines.conversion import ConversionOptions
from mirrorspark.data_pipelines.converted_once import convert_once
from mirrorspark.data_pipelines.features.infer import NoKeyError
from mirrorspark.models.calibration import CALIBRATION_FILE
from mirrorspark.models.decisions import Decisions
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.training.configuration.config import ConfigError
from mirrorspark.training.configuration.tasks import RowBaseline
from mirrorspark.training.results.evaluation.model_choice import Choice
from mirrorspark.training.results.evaluation.row_baselines import baseline_scores, fit_baseline, read_baseline_data
from mirrorspark.training.results.export import export
from mirrorspark.training.results.export_plan import ExportPlan

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.timeout(600)

ROWS = 1200


def rides() -> pd.DataFrame:
    """Return two towns, in one of which most rides are late; the distance has no influence. No column is a key."""
    number = pd.Series(range(ROWS))
    late = (number % 2 == 1) ^ (number % 10 == 9)
    towns = number.map(lambda n: "here" if n % 2 == 0 else "there")
    return pd.DataFrame({"town": towns, "kilometres": (number % 7).astype(float), "late": late.astype(int)})


@pytest.fixture(scope="module")
def fitted(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> ms.FitResult:
    output = str(tmp_path_factory.mktemp("fit"))
    settings = {"epochs": 3, "learning_rate": 0.02, "calibration": "isotonic", "register": "model"}
    settings |= {"baseline": ["hist_gradient_boosting", "logistic_regression"]}
    return ms.fit(rides(), label="late", output=output, spark=spark, **settings)


def test_a_pandas_table_becomes_a_registered_model_that_is_compared_and_reported(fitted: ms.FitResult) -> None:
    assert fitted.spec.keys == ("row_number",)
    assert {feature.name: feature.kind for feature in fitted.spec} == {"town": "categorical", "kilometres": "numeric"}
    assert fitted.metrics["test"]["auc"] > 0.8
    assert list(fitted.table.columns) == ["validation", "test", "hist_gradient_boosting", "logistic_regression"]
    page = fitted.report.read_text(encoding="utf-8")
    client = MlflowClient(fitted.trained.tracking_uri)
    run = client.get_run(fitted.trained.run_id)
    assert run.info.status == "FINISHED"
    assert "late 1" in page
    assert "logistic regression" in page
    assert {"baseline_auc", "logistic_regression_auc", "difference_logistic_regression_auc"} <= set(run.data.metrics)
    # Of the export's own process, by the model that it has just restored.
    assert "What the predictions depend on" in page
    explanation = fitted.trained.explanation
    assert explanation is not None
    assert list(explanation.importance["feature"]) == ["town", "kilometres"]
    assert explanation.rows == fitted.dataset.manifest.rows("test")
    assert "95% interval" in page
    cost = fitted.trained.cost
    assert cost is not None
    assert set(cost.core_seconds) >= {"start", "infer", "convert", "train", "export", "evaluate", "between stages"}
    assert run.data.metrics["system/core_seconds"] >= cost.total_core_seconds > 0
    assert {entry.path for entry in client.list_artifacts(fitted.trained.run_id)} >= {"report.html", "plots"}
    shown = fitted._repr_html_()
    assert shown.count("<svg") == len(fitted.plots) == 6
    assert "models:/late/1" in repr(fitted)


def test_it_scores_a_table_in_the_form_in_which_it_comes(fitted: ms.FitResult) -> None:
    scores = fitted.score(rides().drop(columns="late"))
    assert list(scores.columns) == ["row_number", "score", "model_version"]
    assert list(scores["row_number"]) == list(range(ROWS))
    by_town = scores["score"].groupby(rides()["town"]).mean()
    assert by_town["here"] < 0.3 < 0.7 < by_town["there"]


def test_what_is_evaluated_and_scored_is_the_calibrated_model(fitted: ms.FitResult) -> None:
    """#23, L4: the calibration is part of the model, so its scores in Spark are still the training framework's."""
    assert fitted.trained.calibration is not None
    assert fitted.trained.calibration in fitted.report.read_text(encoding="utf-8")
    known = json.loads((Path(fitted.model.path) / CALIBRATION_FILE).read_text(encoding="utf-8"))
    validation = fitted.metrics["validation"]["log_loss"]
    assert validation == pytest.approx(known["measured"]["after"]["log_loss"], rel=1e-4)
    assert validation < known["measured"]["before"]["log_loss"]
    framework = fitted.trained.predictions["test"].select(["row_number", "score"]).to_pandas()
    both = framework.merge(fitted.score(rides()), on="row_number")
    assert len(both) == fitted.dataset.manifest.rows("test")
    np.testing.assert_allclose(both["score_y"], both["score_x"], atol=1e-6)


@pytest.mark.full
def test_the_better_of_network_and_gradient_boosting_is_registered_and_scores_as_scikit_learn_does(
    fitted: ms.FitResult, tmp_path: Path
) -> None:
    """F15, T8, S1: a network that has learnt the opposite of its rows' labels is exported with the choice."""
    trained, config = fitted.trained, fitted.config
    opposite = fitted.rows.withColumn("late", 1 - F.col("late"))
    dataset = convert_once(opposite, fitted.spec, tmp_path, "opposite", options=ConversionOptions())
    best = best_committed(str(trained.run_folder / "checkpoints"), config.monitor, config.mode)
    assert best is not None
    plan = ExportPlan(
        dataset=str(dataset.path),
        checkpoint=str(best.path),
        model=config.model["name"],
        model_options=config.model_options,
        seed=config.seed,
        top_k=config.top_k,
        folder=str(tmp_path / "model"),
        predictions=str(tmp_path / "predictions"),
        tracking_uri=trained.tracking_uri,
        registry_uri=trained.tracking_uri,
        mlflow_run_id=trained.run_id,
        model_name="late-better",
        model_tags={},
        registered_model="late-better",
        threads=2,
        monitor=config.monitor,
        register="better",
        candidates=[{"name": "hist_gradient_boosting"}],
    )
    exported = export(plan)
    assert Choice.load(tmp_path / "predictions").registered == "hist_gradient_boosting"
    version = MlflowClient(trained.tracking_uri).get_model_version("late-better", exported.model_version)
    assert version.tags["architecture"] == "hist_gradient_boosting"

    baseline = baseline_scores(
        fit_baseline(RowBaseline("hist_gradient_boosting"), read_baseline_data(dataset, "binary"), config.seed),
        dataset,
        "test",
    )
    kept = pq.read_table(tmp_path / "predictions" / "test.parquet")
    np.testing.assert_allclose(kept["score"].to_numpy(), baseline, rtol=1e-6)
    table = fitted.rows.sparkSession.createDataFrame(rides().assign(row_number=range(ROWS)))
    model = ms.resolve("models:/late-better/1", tracking_uri=trained.tracking_uri)
    scores = ms.score(table, model, keys="row_number")
    both = kept.select(["row_number", "score"]).to_pandas().merge(scores.toPandas(), on="row_number")
    assert len(both) == kept.num_rows
    np.testing.assert_allclose(both["score_y"], both["score_x"], rtol=1e-6)
    assert set(both["model_version"]) == {"late-better/1"}
    alone = ms.Predictor(model).predict_rows(rides().head(8).to_dict("records"))
    np.testing.assert_allclose([row["score"] for row in alone], scores.orderBy("row_number").toPandas()["score"][:8])


def test_an_explanation_names_what_counts_and_stands_in_the_report(fitted: ms.FitResult) -> None:
    explanation = fitted.explain(rows=100, repeats=2)
    assert list(explanation.importance["feature"]) == ["town", "kilometres"]
    assert explanation.importance["importance"][0] > 5 * abs(explanation.importance["importance"][1])
    assert "What the predictions depend on" in fitted.report.read_text(encoding="utf-8")


@pytest.mark.full
def test_an_edited_spec_and_other_settings_make_a_run_that_is_compared(
    spark: "SparkSession", fitted: ms.FitResult, tmp_path: Path
) -> None:
    path = tmp_path / "spec.yaml"
    fitted.spec.save(path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("  town:\n    kind: categorical\n", ""), encoding="utf-8")
    assert list(ms.FeatureSpec.load(path)) != list(fitted.spec)
    blind = ms.fit(
        rides(),
        label="late",
        spec=path,
        output=fitted.config.output,
        name="blind",
        epochs=1,
        baseline="none",
        spark=spark,
    )
    compared = fitted.compare(blind)
    assert list(compared.columns)[:2] == ["models:/late/1", "models:/blind/1"]
    assert compared.loc["auc", "better"] == compared.loc["log_loss", "better"] == "models:/late/1"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"label": "lat"}, ms.FeatureSpecError, r"label: the table has no column 'lat'; .* \(did you mean 'late'\?\)"),
        ({"epoch": 3}, ConfigError, r"settings \['epoch'\] are unknown"),
        (
            {"keys": "town"},
            ms.FeatureSpecError,
            r"keys \['town'\] do not identify the rows: 1,200 rows have 2 different ones",
        ),
        ({"time": "when"}, ms.FeatureSpecError, "time: the table has no column 'when'"),
        ({"model": "multi_class"}, ConfigError, "model 'multi_class' needs a label of kind multi_class"),
        ({"epochs": 0}, ConfigError, "epochs is 0; use 1 or more"),
        (
            {"exclude": "towm"},
            ms.FeatureSpecError,
            r"exclude: the table has no column 'towm'; it has .*did you mean 'town'",
        ),
    ],
)
def test_mistakes_are_named(
    spark: "SparkSession", tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ms.fit(rides(), **{"label": "late", "output": str(tmp_path), "spark": spark} | change)
    assert list(tmp_path.iterdir()) == []  # nothing is converted before


def test_a_spark_table_without_a_key_is_refused(spark: "SparkSession") -> None:
    with pytest.raises(NoKeyError, match="give the columns that do as keys"):
        ms.fit(spark.createDataFrame(rides()), label="late", spark=spark)


@pytest.mark.full
def test_a_model_of_the_users_own_trains_on_both_workers_with_its_loss_metric_and_callback(
    spark: "SparkSession", fitted: ms.FitResult, tmp_path: Path
) -> None:
    told = str(tmp_path)

    class Tells(tf_keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            (Path(told) / f"{os.getpid()}-{epoch}").write_text(",".join(sorted(logs)))

    def off(label: Any, score: Any) -> Any:
        return tf_keras.backend.mean(tf_keras.backend.abs(label - score))

    def build(features: Any) -> Any:
        inputs = ms.feature_inputs(features)
        hidden = tf_keras.layers.Dense(8, activation="relu")(ms.feature_vector(features, inputs, 4))
        model = tf_keras.Model(inputs, tf_keras.layers.Dense(1, activation="sigmoid")(hidden))
        model.compile(tf_keras.optimizers.Adam(0.03), loss=tf_keras.losses.BinaryFocalCrossentropy(), metrics=[off])
        return model

    own = ms.fit(
        rides(),
        label="late",
        output=fitted.config.output,
        name="own",
        workers=2,
        epochs=2,
        baseline="none",
        monitor="val_off",
        mode="min",
        model=build,
        callbacks=[Tells()],
        spark=spark,
    )
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert len({name.split("-")[0] for name in files}) == 2
    assert {name.split("-")[1] for name in files} == {"0", "1"}
    assert all("off" in logs and "val_off" in logs for logs in files.values())
    assert own.metrics["test"]["auc"] > 0.8
    assert own.score(rides())["score"].between(0, 1).all()
    run = MlflowClient(own.trained.tracking_uri).get_run(own.trained.run_id)
    assert run.data.params["model.digest"] == own.config.model["digest"]
    assert "model.code" not in run.data.params
    with pytest.raises(ConfigError, match="callbacks go with a model of your own"):
        ms.train(own.dataset, own.config, spark, callbacks=[Tells()])


SIZES = ["small", "usual", "large"]


def parcels() -> pd.DataFrame:
    """Return parcels whose price, way and size follow from weight and region, and whether they are dear, in words."""
    number = pd.Series(range(ROWS))
    region, weight = number % 3, (number % 11).astype(float)
    price = 10 * region + 2 * weight
    return pd.DataFrame(
        {
            "parcel": number,
            "region": region.map({0: "north", 1: "south", 2: "island"}),
            "weight": weight,
            "price": price,
            "way": region.mask(weight > 5, 0).map({0: "road", 1: "rail", 2: "sea"}),
            "dear": (price > 20).map({True: "yes", False: "no"}),
            # Neither in the order of the alphabet nor in that of how many there are.
            "size": pd.Categorical(np.array(SIZES)[(price / 15).astype(int).clip(0, 2)], SIZES, ordered=True),
        }
    )


def evaluated(spark: "SparkSession", result: ms.FitResult, rows: pd.DataFrame, **params: Any) -> "DataFrame":
    """Return the table as a stage of Spark ML scores it, for Spark's evaluators."""
    stage = ms.TrainedModel(model_uri=result.trained.version_uri, tracking_uri=result.trained.tracking_uri, **params)
    return stage.transform(spark.createDataFrame(rows))


@pytest.mark.full
@pytest.mark.parametrize(
    ("label", "kind", "metric", "at_least", "at_most"),
    [
        ("price", "numeric", "rmse", 0, 3),
        ("way", "multi_class", "accuracy", 0.95, 1),
        ("dear", "binary", "auc", 0.99, 1),
        ("size", "ordinal", "quadratic_kappa", 0.9, 1),
    ],
)
def test_every_kind_of_label_is_learnt_and_scored_alike_in_every_way(
    spark: "SparkSession", tmp_path: Path, label: str, kind: str, metric: str, at_least: float, at_most: float
) -> None:
    """T3, T8, S1: inferred from the column, trained, exported, and scored by Spark, SQL, files and rows alike."""
    others = [name for name in ("price", "way", "dear", "size") if name != label]
    table = parcels().drop(columns=others)
    settings: dict[str, Any] = {"output": str(tmp_path), "epochs": 12, "learning_rate": 0.02}
    if kind == "binary":  # gradient boosting beats a network that has hardly learnt, and takes its place everywhere
        settings |= {"register": "better", "epochs": 1, "learning_rate": 1e-6, "workers": 2}
        settings |= {"class_weights": "balanced", "costs": {"false_negative": 5}}
    if kind == "multi_class":
        settings |= {"class_weights": "balanced"}
    if kind == "ordinal":
        settings |= {"costs": {SIZES[0]: {SIZES[-1]: 100}}}
    if kind == "numeric":
        settings |= {"model": {"name": "regression", "loss": "quantile"}, "optimizer": "adamw", "workers": 2}
    result = ms.fit(table, label=label, keys="parcel", spark=spark, **settings)
    assert result.spec.label.kind == kind
    if kind == "binary":
        # Nothing is better than gradient boosting with something else.
        assert str(result.trained.chosen).startswith("gradient boosting, better than the network")
        assert list(result.table.columns[-1:]) == ["network"]
        assert str(result.trained.chosen) in result.report.read_text(encoding="utf-8")
        assert result.leaderboard.loc["hist_gradient_boosting", "registered"]
    assert at_least <= result.metrics["test"][metric] <= at_most
    assert result.trained.explanation is not None
    assert metric in result.trained.verdict.baseline["intervals"]
    with_costs = {name for name in result.table.index if name.startswith("cost")}
    of_baseline = result.table.iloc[:, -1].drop(["interval_coverage", "interval_width", *with_costs], errors="ignore")
    assert of_baseline.notna().all()
    column = "scores" if kind in ("multi_class", "ordinal") else "score"
    rows = table.drop(columns=label).head(64)

    def of(frame: pd.DataFrame) -> np.ndarray:
        return np.stack(frame.sort_values("parcel")[column].to_numpy())

    lists: dict[str, Any] = {"outputs": "labelled"} if column == "scores" else {}
    scores = of(result.score(rows, **lists))
    actual = np.stack(result.trained.predictions["test"].to_pandas().sort_values("parcel")[column].to_numpy())
    test = table.merge(result.trained.predictions["test"].select(["parcel"]).to_pandas(), on="parcel")
    np.testing.assert_allclose(of(result.score(test, **lists)), actual, rtol=1e-5, atol=1e-6)
    predictor = ms.Predictor(result.model)
    alone = np.stack([row[column] for row in predictor.predict_rows(rows.to_dict("records"))])
    np.testing.assert_allclose(alone, scores, rtol=1e-5, atol=1e-6)
    rows.to_parquet(tmp_path / "rows.parquet")
    ms.score_files(spark, str(tmp_path / "rows.parquet"), result.model, str(tmp_path / "scored"), keys="parcel")
    np.testing.assert_allclose(
        of(spark.read.parquet(str(tmp_path / "scored")).toPandas()), scores, rtol=1e-5, atol=1e-6
    )
    ms.register_sql(spark, "from_sql", result.model)
    spark.createDataFrame(rows).createOrReplaceTempView("parcels")
    in_sql = spark.sql("SELECT parcel, from_sql(struct(*)) AS scored FROM parcels").select("parcel", f"scored.{column}")
    np.testing.assert_allclose(of(in_sql.toPandas()), scores, rtol=1e-5, atol=1e-6)
    assert bool(with_costs) == ("costs" in settings)
    if with_costs:
        rule, test_costs = Decisions.load(Path(result.model.path)), result.metrics["test"]
        assert rule is not None
        decided = rule.applied(scores)
        wanted = decided.tolist() if kind == "binary" else [SIZES[number] for number in decided]
        assert list(result.score(rows).sort_values("parcel")["decision"]) == wanted
        assert [row["decision"] for row in predictor.predict_rows(rows.to_dict("records"))] == wanted
        assert list(spark.read.parquet(str(tmp_path / "scored")).toPandas().sort_values("parcel")["decision"]) == wanted
        sql = spark.sql("SELECT parcel, from_sql(struct(*)).decision AS decision FROM parcels ORDER BY parcel")
        assert list(sql.toPandas()["decision"]) == wanted
        assert test_costs["cost"] <= min(test_costs[name] for name in with_costs) + 0.1
        assert str(result.trained.decisions) in result.report.read_text(encoding="utf-8")
    assert result.explain(rows=60, repeats=1).importance["feature"][0] in ("region", "weight")
    if kind == "numeric":
        assert 0.6 < result.metrics["test"]["interval_coverage"] < 0.95  # of 0.8
        quantiles = np.stack(result.score(rows).sort_values("parcel")["quantiles"].to_numpy())
        np.testing.assert_array_equal(quantiles[:, 1], scores)
        scored = evaluated(spark, result, table.head(64))
        errors = scored.toPandas().eval("price - score")
        rmse = RegressionEvaluator(labelCol="price", predictionCol="score").evaluate(scored)
        np.testing.assert_allclose(rmse, np.sqrt((errors**2).mean()))
    if kind == "ordinal":
        assert result.config.model["name"] == "ordinal"
        assert list(result.dataset.features.class_names) == SIZES
        ranks = result.trained.predictions["test"]["label"].to_numpy()
        of_a_constant = min(np.abs(ranks - rank).mean() for rank in range(3))
        assert result.metrics["test"]["rank_mae"] < of_a_constant / 3
        likeliest = np.array(SIZES)[scores.argmax(axis=1)]
        assert list(result.score(rows).sort_values("parcel")["predicted_label"]) == list(likeliest)
    if kind == "multi_class":
        scored = evaluated(spark, result, table.head(64))
        as_vectors = scored.orderBy("parcel").toPandas()["scores"]
        np.testing.assert_allclose(np.stack([vector.toArray() for vector in as_vectors]), scores, rtol=1e-5, atol=1e-6)
        taken = table.head(64).assign(prediction=9.0)
        with pytest.raises(ScoringError, match=r"a column 'prediction' already.*set predictionCol"):
            evaluated(spark, result, taken)
        renamed = evaluated(spark, result, taken, predictionCol="likeliest")
        assert renamed.columns[-1] == "likeliest"
        assert renamed.select("parcel", "likeliest").subtract(scored.select("parcel", "prediction")).isEmpty()
        classes = ms.TrainedModel(model_uri=str(result.model.path)).classes
        likeliest = [classes[best] for best in scores.argmax(axis=1)]
        evaluator = MulticlassClassificationEvaluator(labelCol="class", metricName="accuracy", probabilityCol="scores")
        indexed = StringIndexerModel.from_labels(list(classes), "way", "class").transform(scored)
        assert evaluator.evaluate(indexed) == pytest.approx((table.head(64)["way"] == likeliest).mean())
        assert evaluator.setMetricName("f1").evaluate(indexed) > 0.9
        assert evaluator.setMetricName("logLoss").evaluate(indexed) < 1
        names = np.array(result.dataset.features.class_names)
        assert list(result.score(rows).sort_values("parcel")["predicted_label"]) == list(names[scores.argmax(axis=1)])
        wide = result.score(rows, outputs="wide")
        assert {"road", "rail", "sea"} < set(wide.columns)
        named = result.score(rows.set_index("parcel"))
        probabilities = [f"probability_{name}" for name in names]
        assert list(named.columns) == ["predicted_label", *probabilities, "model_version"]
        assert list(named.index) == list(rows["parcel"])
        np.testing.assert_array_equal(named.sort_index()[probabilities].to_numpy(), scores)


@pytest.mark.full
@pytest.mark.parametrize(
    ("label", "settings", "column"),
    [
        ("extras", {}, "scores"),
        ({"name": "stop", "kind": "candidate"}, {"top_k": 2}, "scores"),
        ({"name": "visits", "kind": "number"}, {"model": {"name": "regression", "loss": "poisson"}}, "score"),
    ],
)
def test_lists_candidates_and_counts_are_learnt_from_a_table_too(
    spark: "SparkSession", tmp_path: Path, label: Any, settings: dict[str, Any], column: str
) -> None:
    """T3: and Spark's scores are those of the training framework."""
    table = parcels()[["parcel", "region", "weight"]]
    name = label if isinstance(label, str) else label["name"]
    extras = {"north": ["ice"], "south": ["sun", "sea"], "island": ["sea"]}
    made = {"extras": table["region"].map(extras), "stop": "to " + table["region"], "visits": table["weight"] + 1}
    table[name] = made[name].astype("int64") if name == "visits" else made[name]
    settings = {"output": str(tmp_path), "epochs": 12, "learning_rate": 0.02, "workers": 1} | settings
    # The regions determine these labels, so that all of them can be learnt.
    settings |= {"accept_data_errors": True}
    result = ms.fit(table, label=label, keys="parcel", spark=spark, **settings)
    kept = result.trained.predictions["test"].to_pandas().sort_values("parcel")
    test = table[table["parcel"].isin(kept["parcel"])]
    lists: dict[str, Any] = {"outputs": "columns"} if name == "extras" else {}
    scored = result.score(test, **lists).sort_values("parcel")
    np.testing.assert_allclose(
        np.stack(scored[column].to_numpy()), np.stack(kept[column].to_numpy()), rtol=1e-4, atol=1e-5
    )
    if name == "extras":
        assert result.metrics["test"]["auc"] > 0.99
        assert set(result.score(test, outputs="top:1").iloc[0]["predictions"][0]) == {"label", "score"}
    elif name == "stop":
        assert (scored["candidates"].str[0].to_numpy() == test.sort_values("parcel")["stop"].to_numpy()).all()
    else:
        assert (scored["score"] > 0).all()
        assert result.metrics["test"]["r2"] > 0.8


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_first_fit_of_the_adult_table_reaches_its_mark_without_a_setting(
    spark: "SparkSession", shared_data: Path, tmp_path: Path
) -> None:
    """T8, F15: the official test rows, and a validation split that chooses the epoch."""
    tables = adult_tables(shared_data / "adult")
    table = pd.concat([rows.assign(split=split) for split, rows in tables.items()], ignore_index=True)
    result = ms.fit(table, label="income", output=str(tmp_path), spark=spark)
    assert result.metrics["test"]["auc"] >= 0.92
