"""S13: models of other libraries score on every way in, like those that were trained here."""

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyspark.errors import PySparkException

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.tfrecords import read_tfrecords, write_tfrecords
from mirrorspark.scoring.batch import score
from mirrorspark.scoring.embedding.embed import embed_text
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.files import score_files
from mirrorspark.scoring.input.inputs import Column
from mirrorspark.scoring.input.tfrecords import score_tfrecords
from mirrorspark.scoring.model.folder.directory import DESCRIPTION_FILE
from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.output.forms import TopK
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.parity import parity_check
from mirrorspark.scoring.sql import register_sql
from mirrorspark.scoring.udf import scorer_udf
from mirrorspark.spark_session.errors import task_message
from tests.unit.scoring.encoders import save_onnx_encoder
from tests.unit.scoring.other_models import (
    LINEAR,
    NAMES,
    boxes,
    logistic,
    matrix,
    people,
    pictures,
    png,
    save_logistic_onnx,
    save_parsing_saved_model,
    save_picture_keras,
    save_sklearn,
    save_xgboost,
    serialized_examples,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.timeout(300)

BOXES = boxes(2_000)


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    columns = [Column(name, "float", nulls="fail") for name in NAMES]
    return package_model(save_logistic_onnx(folder / "boxes.onnx"), folder / "boxes", columns=columns)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("boxes") / "boxes.parquet"
    pq.write_table(BOXES, file)
    return file


@pytest.fixture(scope="module")
def table(spark: "SparkSession", parquet: Path) -> "DataFrame":
    frame = spark.read.parquet(str(parquet))
    frame.createOrReplaceTempView("boxes")
    return frame


def test_a_table_its_files_and_sql_get_the_same_scores(
    spark: "SparkSession", table: "DataFrame", parquet: Path, onnx_model: Path, tmp_path: Path
) -> None:
    scored = score_files(spark, parquet, onnx_model, tmp_path / "scores", keys="id")
    of_files = pq.read_table(tmp_path / "scores")
    np.testing.assert_allclose(of_files["score"], logistic(BOXES), rtol=0, atol=1e-6)
    assert (scored.counters.threads, scored.counters.rows) == (1, 2_000)

    expected = dict(zip(of_files["id"].to_pylist(), of_files["score"].to_pylist(), strict=True))
    rows = score(table, onnx_model, keys="id").collect()
    assert {row.id: row.score for row in rows} == expected
    assert {row.model_version for row in rows} == {scored.model}

    register_sql(spark, "box_score", onnx_model)
    of_sql = spark.sql("SELECT id, box_score(struct(*)).score AS score FROM boxes").collect()
    assert {row.id: row.score for row in of_sql} == expected


def test_xgboost_scores_a_table_with_null_values(spark: "SparkSession", tmp_path: Path) -> None:
    import xgboost

    booster = save_xgboost(tmp_path / "boxes.ubj")
    model = package_model(tmp_path / "boxes.ubj", tmp_path / "model")
    missing = boxes(500, missing=0.3)
    pq.write_table(missing, tmp_path / "boxes.parquet")
    rows = score(spark.read.parquet(str(tmp_path / "boxes.parquet")), model, keys="id").orderBy("id").collect()
    expected = booster.predict(xgboost.DMatrix(matrix(missing), feature_names=list(NAMES)))
    assert [row.score for row in rows] == expected.tolist()


@pytest.mark.full
def test_the_best_class_of_a_booster_has_its_name(table: "DataFrame", tmp_path: Path) -> None:
    """S7: labels travel in the package."""
    import xgboost

    kinds = ("flat", "tall", "cube")
    booster = save_xgboost(tmp_path / "boxes.ubj", classes=3)
    model = package_model(tmp_path / "boxes.ubj", tmp_path / "model", labels={"score": kinds})
    rows = score(table, model, keys="id", outputs=TopK(1)).orderBy("id").collect()
    best = booster.predict(xgboost.DMatrix(matrix(BOXES), feature_names=list(NAMES))).argmax(axis=1)
    assert [row.predictions[0].label for row in rows] == [kinds[place] for place in best]


def test_an_mlflow_model_of_other_people_scores_a_table(spark: "SparkSession", tmp_path: Path) -> None:
    pipeline = save_sklearn(tmp_path / "model", outputs="probabilities")
    frame = people()
    rows = [(key, *values) for key, values in enumerate(frame.astype(object).where(frame.notna(), None).to_numpy())]
    people_table = spark.createDataFrame(rows, "id bigint, age double, city string, visits bigint")
    scored = score(people_table, tmp_path / "model", keys="id", trust=True).orderBy("id").collect()
    np.testing.assert_allclose([row.prediction for row in scored], pipeline.predict_proba(frame), rtol=1e-12)


@pytest.mark.full
def test_serialized_examples_go_to_a_signature_that_parses_them(spark: "SparkSession", tmp_path: Path) -> None:
    """S16: a column of tf.train.Example, and the payloads of TFRecord files, score like the columns inside."""
    source = save_parsing_saved_model(tmp_path / "source")
    parsing = package_model(source, tmp_path / "parsing", columns=[Column("examples", "binary")])
    of_columns = package_model(source, tmp_path / "columns", signature="columns")

    def parsed(rows: pa.Table) -> pa.Table:
        examples = pa.table({"id": rows["id"], "examples": serialized_examples(rows)})
        return score(spark.createDataFrame(examples), parsing, keys="id").toArrow()

    def by_columns(rows: pa.Table) -> pa.Table:
        return score(spark.createDataFrame(rows), of_columns, keys="id").toArrow()

    report = parity_check(by_columns, parsed, BOXES, keys="id", tolerance=1e-6, threshold=0.5)
    assert report.passed, report.as_table()

    write_tfrecords(spark.createDataFrame(BOXES), tmp_path / "records")
    payloads = read_tfrecords(spark, tmp_path / "records", record_type="ByteArray")
    of_records = payloads.select(scorer_udf(spark, parsing)("byteArray").score.alias("score")).toArrow()
    np.testing.assert_allclose(np.sort(of_records["score"]), np.sort(logistic(BOXES)), rtol=0, atol=1e-6)


HOOKS = """
import io
import numpy as np

def turned(value):
    from PIL import Image
    return np.asarray(Image.open(io.BytesIO(value)).convert("RGB"))[::-1]

def postprocess(outputs):
    return {"doubt": 1 - outputs["score"]}
"""


def test_images_are_decoded_by_code_that_travels_with_the_model(
    spark: "SparkSession", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F13, S4: its file no longer exists where it was packaged, and a broken image takes no other row along."""
    keras_model = save_picture_keras(tmp_path / "m.keras", 6, 5)
    hooks = tmp_path / "code.py"
    hooks.write_text(HOOKS)
    columns = [Column("photo", "binary", decode="turned")]
    model = package_model(tmp_path / "m.keras", tmp_path / "model", columns=columns, hooks=hooks)
    hooks.unlink()
    images = pictures(20, 6, 5)
    values = [png(image) for image in images]
    values[7] = values[7][:40]
    pq.write_table(pa.table({"id": range(20), "photo": values}), tmp_path / "photos.parquet")

    photos = spark.read.parquet(str(tmp_path / "photos.parquet")).repartition(3)
    with caplog.at_level("INFO", "mirrorspark.scoring.plan"):
        rows = score(photos, model, keys="id", bad_rows="mark").orderBy("id").collect()
    assert "brings code that runs in the executors: turned, postprocess of its hooks.py" in caplog.text
    assert [row.id for row in rows if row.error is not None] == [7]
    assert "is not decoded by turned of hooks.py" in rows[7].error
    expected = 1 - keras_model(images[:, ::-1].astype(np.float32)).numpy()[:, 0]
    others = np.delete(np.arange(20), 7)
    np.testing.assert_allclose([rows[row].doubt for row in others], expected[others], rtol=0, atol=1e-6)

    with pytest.raises(ColumnError, match=r"the row id=7 cannot be scored: .* is not decoded by turned of hooks.py"):
        score_files(spark, tmp_path / "photos.parquet", model, tmp_path / "scores", keys="id")
    assert not (tmp_path / "scores").exists()


def test_columns_are_refused_before_a_task_starts_and_null_in_the_task(table: "DataFrame", onnx_model: Path) -> None:
    with pytest.raises(ColumnError, match="column 'width' is missing"):
        score(table.drop("width"), onnx_model, keys="id")
    with pytest.raises(ColumnError, match="column 'width' has type string, the model takes float; cast it"):
        score(table.selectExpr("id", "height", "depth", "'1' AS width"), onnx_model, keys="id")
    with_null = score(table.selectExpr("id", "height", "depth", "float(NULL) AS width"), onnx_model, keys="id")
    with pytest.raises(PySparkException) as failure:
        with_null.collect()
    assert "column 'width' (float) has null or NaN, which" in task_message(failure.value)


@pytest.mark.full
def test_a_model_of_two_thousand_columns_scores_a_table_and_its_files(spark: "SparkSession", tmp_path: Path) -> None:
    """S11: with missing values here and there, which the call fills in every column."""
    random, rows = np.random.default_rng(3), 500
    weights = {f"x{number}": float(weight) for number, weight in enumerate(random.standard_normal(2_000))}
    values = random.standard_normal((len(weights), rows))
    values[random.random(values.shape) < 0.01] = np.nan
    expected = np.array(list(weights.values())) @ np.nan_to_num(values)
    columns = {name: pa.array(column, from_pandas=True) for name, column in zip(weights, values, strict=True)}
    pq.write_table(pa.table({"id": range(rows), **columns}), tmp_path / "wide.parquet", row_group_size=200)
    model = package_model({"coefficients": weights}, tmp_path / "model")
    nulls = dict.fromkeys(weights, 0.0)

    score_files(spark, tmp_path / "wide.parquet", model, tmp_path / "scores", keys="id", nulls=nulls)
    found = pq.read_table(tmp_path / "scores")
    assert found["id"].to_pylist() == list(range(rows))
    np.testing.assert_allclose(found["score"], expected, rtol=0, atol=1e-9)
    wide = spark.read.parquet(str(tmp_path / "wide.parquet"))
    for reader in ("tasks", "spark"):
        scored = score(wide, model, keys="id", nulls=nulls, reader=reader).orderBy("id").collect()
        assert [row.id for row in scored] == list(range(rows))
        np.testing.assert_allclose([row.score for row in scored], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rows", [50_000, pytest.param(1_000_000, marks=pytest.mark.full)])
def test_one_bad_row_in_a_million_is_named_or_marked_and_all_others_are_scored(
    spark: "SparkSession", tmp_path: Path, rows: int
) -> None:
    """S4, pain 18: whichever task it is in."""
    bad = rows * 3 // 4 + 321
    table = boxes(rows)
    width = pa.array(table["width"].to_numpy(), mask=np.arange(rows) == bad)
    table = table.set_column(table.column_names.index("width"), "width", width)
    pq.write_table(table, tmp_path / "boxes.parquet", row_group_size=rows // 10)
    columns = [Column(name, "double", nulls="fail") for name in NAMES]
    model = package_model(LINEAR, tmp_path / "model", columns=columns)

    scored = score_files(spark, tmp_path / "boxes.parquet", model, tmp_path / "scores", keys="id", bad_rows="mark")
    assert (scored.rows, scored.counters.rows, scored.counters.bad_rows) == (rows, rows, 1)
    found = pq.read_table(tmp_path / "scores")
    assert found["id"].equals(table["id"])
    [marked] = found.filter(pc.is_valid(found["error"])).to_pylist()
    assert (marked["id"], marked["score"]) == (bad, None)
    assert marked["error"].startswith("column 'width' (double) has null or NaN, which the model does not take")
    np.testing.assert_allclose(found["score"].drop_null(), np.delete(logistic(table), bad), rtol=0, atol=1e-9)

    with pytest.raises(ColumnError, match=rf"the row id={bad} cannot be scored: column 'width' \(double\) has null"):
        score_files(spark, tmp_path / "boxes.parquet", model, tmp_path / "none", keys="id")
    assert not (tmp_path / "none").exists()


def test_records_of_a_model_of_another_library_cannot_be_told(
    spark: "SparkSession", table: "DataFrame", onnx_model: Path, tmp_path: Path
) -> None:
    write_tfrecords(table, tmp_path / "records")
    with pytest.raises(ModelDirectoryError, match="is of another library and has no fitted features"):
        score_tfrecords(spark, tmp_path / "records", onnx_model, keys="id")


def test_executors_of_another_library_refuse_a_package_before_the_first_row(
    table: "DataFrame", onnx_model: Path, tmp_path: Path
) -> None:
    """L10: the message has both versions; by option they score all the same."""
    model = Path(shutil.copytree(onnx_model, tmp_path / "model"))
    description = json.loads((model / DESCRIPTION_FILE).read_text())
    old = {"versions": description["versions"] | {"onnxruntime": "0.1.2"}}
    (model / DESCRIPTION_FILE).write_text(json.dumps(description | old))
    allowed = score(table, model, keys="id", other_versions="allow").orderBy("id").collect()
    np.testing.assert_allclose([row.score for row in allowed], logistic(BOXES), rtol=0, atol=1e-6)
    with pytest.raises(PySparkException) as failure:
        score(table, model, keys="id").collect()
    told = task_message(failure.value)
    assert "it has onnxruntime " in told
    assert "instead of 0.1.2, which the model was exported with" in told


def test_a_second_run_embeds_only_the_texts_that_are_new(
    spark: "SparkSession", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F12: equal texts are encoded once, per encoder; leftovers of killed and concurrent runs do no harm."""
    caplog.set_level(logging.INFO, "mirrorspark.scoring.embedding.embed")
    encoder, cache = save_onnx_encoder(tmp_path / "encoder" / "model.onnx").parent, tmp_path / "cache"

    def embedded(texts: "list[str | None]", by: Path = encoder) -> tuple[dict[int, list[float] | None], str]:
        movies = spark.createDataFrame(list(enumerate(texts)), "id int, `a title` string")
        table = embed_text(movies, "a title", by, cache=cache, output="vector")
        assert table.dtypes == [("id", "int"), ("a title", "string"), ("vector", "array<float>")]
        return {row.id: row.vector for row in table.collect()}, caplog.messages[-1]

    first, told = embedded(["toy", " toy\n", "toy story  2", "toy story\u00a02", "", None, " \t"])
    assert first == {0: [3.0, 1.0], 1: [3.0, 1.0], 2: [4.0, 1.0], 3: [4.0, 1.0], 4: None, 5: None, 6: None}
    assert told == "embedded 2 new texts, 0 from the cache"

    # A run in parallel has encoded the same, and another one was killed while it wrote.
    for file in list(cache.rglob("*.parquet")):
        shutil.copyfile(file, file.with_name("part-0.parquet"))
        file.with_name(f".part-1.parquet.{'0' * 32}").write_bytes(file.read_bytes()[:50])
    second, told = embedded(["story", "toy", "toy story 2"])
    assert second == {0: pytest.approx([10 / 3, 1.0]), 1: [3.0, 1.0], 2: [4.0, 1.0]}
    assert told == "embedded 1 new texts, 2 from the cache"

    other = save_onnx_encoder(tmp_path / "other" / "model.onnx", factor=2.0).parent
    assert embedded(["toy"], other) == ({0: [6.0, 2.0]}, "embedded 1 new texts, 0 from the cache")


@pytest.mark.full
def test_texts_that_cannot_be_embedded_are_refused(spark: "SparkSession", tmp_path: Path) -> None:
    encoder = save_onnx_encoder(tmp_path / "encoder" / "model.onnx").parent
    movies = spark.sql("SELECT 1 AS id, 'toy' AS title")
    for column, message in (
        ("titel", "'titel' 0 times .*did you mean 'title'"),
        ("id", "column 'id' is int, and texts are strings"),
    ):
        with pytest.raises(ColumnError, match=message):
            embed_text(movies, column, encoder, cache=tmp_path)
    with pytest.raises(ScoringError, match="has a column 'title' already"):
        embed_text(movies, "title", encoder, cache=tmp_path, output="title")
    with pytest.raises(ScoringError, match=r"^the encoder .*encoder cannot be used: of its outputs no 'pooled'"):
        embed_text(movies, "title", encoder, cache=tmp_path, model_output="pooled")
    moments = spark.sql("SELECT CAST(current_timestamp() AS STRING) AS title")
    changing = embed_text(moments, "title", encoder, cache=tmp_path)
    with pytest.raises(PySparkException) as failure:
        changing.collect()
    assert "the table gives other texts than before" in task_message(failure.value)
