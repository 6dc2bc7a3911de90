"""A table with texts and images becomes a model that embeds them itself, on every way in (F12, F13)."""

import dataclasses
import hashlib
import io
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyspark.errors import PySparkException
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from benchmarks.score_parity import PREDICTOR, predicted, ways_in
from mirrorspark.data_pipelines.conversion import convert
from mirrorspark.data_pipelines.features.embedded_columns import as_contents
from mirrorspark.data_pipelines.features.kinds import ImageEmbedding, Label, TextEmbedding
from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.text_rules import single_spaced
from mirrorspark.scoring.batch import score
from mirrorspark.scoring.embedding.embed import embed_images
from mirrorspark.scoring.embedding.embedder import Embedder
from mirrorspark.scoring.embedding.encoder import encoder_digest
from mirrorspark.scoring.embedding.vector_cache import normalised_text
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.mirrorspark_pyfunc import RawColumnsModel
from mirrorspark.scoring.model.mlflow_model import input_example
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.parity import parity_check
from tests.cluster.test_main_job import run
from tests.unit.scoring.encoders import recorded, save_image_encoder, save_onnx_encoder, save_word_encoder
from tests.unit.scoring.exported_models import REVIEWS as ROWS
from tests.unit.scoring.exported_models import export_photos, export_reviews

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.timeout(300)


def photo(red: int) -> bytes:
    """Return a JPEG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (red, 100, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


PHOTOS = (photo(0), photo(90), None, photo(180), b"")
TITLES = ("Toy Story", " toy  story\n", "story", "story of the 2", "toy 2 toy 2 toy", "", None, "2")
# Every third review is good if it has a 2 in its title.
REVIEWS = [
    {
        "review_id": n,
        "title": TITLES[n % 8],
        "review": f"unseen toy {'2 ' * (n % 7)}",
        "photo": PHOTOS[n % 5],
        "stars": n % 5,
        "good": int("2" in (TITLES[n % 8] or "") or n % 3 == 0),
        "split": "train" if n < 160 else "validation" if n < 200 else "test",
    }
    for n in range(240)
]
COLUMNS = "review_id long, title string, review string, photo binary, stars long, good long, split string"


def recipe(folder: Path, encoders: Path) -> Path:
    """Write a recipe with its table; the graph of the model can hold all encoders but the second."""
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(REVIEWS), folder / "reviews.parquet")
    features = {
        "title": {"kind": "text_embedding", "encoder": str(save_word_encoder(encoders / "words"))},
        "review": {"kind": "text_embedding", "encoder": str(save_onnx_encoder(encoders / "tokens" / "model.onnx"))},
        "photo": {"kind": "image_embedding", "encoder": str(save_image_encoder(encoders / "colours"))},
        "stars": {"kind": "numeric"},
    }
    settings = {
        "tables": {"reviews": COLUMNS},
        "label": "good",
        "keys": "review_id",
        "features": features,
        "model": {"name": "multi_field", "embedding_dim": 4, "hidden_units": [8]},
        "baseline": "none",
        "epochs": 1,
        "global_batch_size": 16,
    }
    (folder / "recipe.yaml").write_text(json.dumps(settings))
    (folder / "table.sql").write_text("SELECT * FROM reviews")
    return folder


@pytest.mark.full
@pytest.mark.parametrize("kind", ["texts", "images"])
def test_the_tasks_that_score_embed_by_the_encoder_that_the_model_brings(
    spark: "SparkSession", tmp_path: Path, kind: str
) -> None:
    """S7: on the ways in of Spark; the encoder that the model was made with no longer exists."""
    encoder = tmp_path / "encoder"
    if kind == "texts":
        save_onnx_encoder(encoder / "model.onnx")
        rows = ROWS
        folder = export_reviews(tmp_path / "model", recorded(TextEmbedding("review", str(encoder)), size=2))
    else:
        save_image_encoder(encoder)
        rows = pa.table({"id": range(5), "photo": pa.array(PHOTOS), "stars": [3.0] * 5})
        folder = export_photos(tmp_path / "model", recorded(ImageEmbedding("photo", str(encoder)), size=3))
    encoder.rename(tmp_path / "gone")
    pq.write_table(rows, tmp_path / "rows.parquet")
    expected = dict(zip(rows["id"].to_pylist(), LoadedModel(folder).score(rows)["score"].tolist(), strict=True))
    assert len(set(expected.values())) > 3
    ways = ways_in(spark, resolve(str(folder)), tmp_path, "id")
    for way in ("score", "score_files", "register_sql", "score_tfrecords, rows"):
        found = ways[way](tmp_path / "rows.parquet")
        scores = dict(zip(found["id"].to_pylist(), found["score"].to_pylist(), strict=True))
        assert scores == pytest.approx(expected, rel=0, abs=1e-6), way


@pytest.mark.full
def test_texts_and_images_are_embedded_in_training_and_on_every_way_in(
    spark: "SparkSession", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """S7, S14: the model brings its encoders, and gives rows the scores that the training framework predicted."""
    caplog.set_level(logging.INFO, "mirrorspark.scoring.embedding.embed")
    folder = recipe(tmp_path / "reviews", tmp_path / "encoders")
    summary = run(tmp_path / "output", f"--recipe={folder}", f"--data={folder}", "--workers=1").summary
    # Two titles differ in white space and in case; seven reviews have the same words.
    assert [message for message in caplog.messages if message.startswith("embedded")] == [
        "embedded 6 new texts, 0 from the cache",
        "embedded 7 new texts, 0 from the cache",
        "embedded 3 new images, 0 from the cache",
    ]
    assert summary["parity"]["max"] <= 1e-6
    (tmp_path / "encoders").rename(tmp_path / "gone")

    spark.createDataFrame(REVIEWS, COLUMNS).where("split = 'test'").write.parquet(str(tmp_path / "rows"))
    model = resolve(f"models:/reviews/{summary['model_version']}", summary["tracking_uri"])
    reference = predicted(pq.read_table(Path(summary["run_folder"]) / "predictions" / "test.parquet"), "review_id")
    ways = ways_in(spark, model, tmp_path, "review_id")
    # All others embed by the same code as one of these.
    for name in ("score", "score_files", "register_sql", "score_tfrecords, rows", PREDICTOR):
        report = parity_check(reference, ways[name], tmp_path / "rows", keys="review_id", tolerance=1e-6)
        assert (report.rows, report.passed) == (40, True), f"{name}\n{report.as_table()}"

    # MLflow's model takes the second text as its vector. The example has no image, and nor has the dataset.
    example = Path(summary["dataset"]["path"]) / "features" / "example.parquet"
    given = input_example(example, model.path)
    assert (given["photo"] == b"").all()
    mlflow.set_tracking_uri(summary["tracking_uri"])
    read = mlflow.models.Model.load(summary["model_uri"]).load_input_example(summary["model_uri"])
    raw = RawColumnsModel(model.path).predict(read)["score"]
    texts = as_contents(pq.read_table(example))
    rows = texts.set_column(texts.column_names.index("photo"), "photo", pa.nulls(texts.num_rows))
    np.testing.assert_allclose(raw, LoadedModel(model.path).score(rows)["score"], atol=1e-6)

    # An image that cannot be read is a bad row.
    bad = table_of(spark, [(1, b"no image"), (2, photo(90)[:200]), (3, None)])
    marked = score(bad, model, keys="review_id", bad_rows="mark").orderBy("review_id").collect()
    assert [row.score is None for row in marked] == [True, True, False]
    assert marked[0].error == "column 'photo' has an image that cannot be read: it is neither a JPEG nor a PNG"
    with pytest.raises(PySparkException, match="the row review_id=1 cannot be scored: column 'photo' has an"):
        score(bad.where("review_id < 2"), model, keys="review_id").collect()


def table_of(spark: "SparkSession", photos: list[tuple[int, bytes | None]]) -> "DataFrame":
    """Return reviews with these numbers and photos."""
    rows = [REVIEWS[0] | {"review_id": number, "photo": image} for number, image in photos]
    return spark.createDataFrame(rows, COLUMNS)


def test_a_second_conversion_encodes_only_what_is_new(
    spark: "SparkSession", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mirrorspark.scoring.embedding.embed")
    encoder = save_onnx_encoder(tmp_path / "encoder" / "model.onnx").parent
    title = TextEmbedding("title", str(encoder))
    table = spark.createDataFrame(REVIEWS, COLUMNS)

    def converted(
        name: str, feature: TextEmbedding = title, where: str = "true", cache: Path | None = None
    ) -> FeatureSpec:
        spec = FeatureSpec((feature,), Label("good"), ("review_id",))
        return convert(table.where(where), spec, tmp_path / name, embedder=Embedder(cache)).spec

    first = converted("first", where="title NOT LIKE '%2%'")
    assert first.features == (TextEmbedding("title", str(encoder), size=2, digest=encoder_digest(encoder)),)
    again = converted("again", first.embedded[0])
    assert again == first
    told = [message for message in caplog.messages if "new texts" in message]
    assert told == ["embedded 3 new texts, 0 from the cache", "embedded 3 new texts, 3 from the cache"]

    with pytest.raises(ColumnError, match=r"the features \['title'\] are texts or images to embed; give embedder"):
        convert(table, first, tmp_path / "none")
    with pytest.raises(ColumnError, match="column 'title' has no text in any row"):
        converted("blank", where="title = ''", cache=tmp_path / "cache")
    with pytest.raises(ScoringError, match="gives vectors of 2 numbers, the spec says 3"):
        converted("longer", TextEmbedding("title", str(encoder), size=3))
    save_onnx_encoder(encoder / "model.onnx", factor=2.0)
    with pytest.raises(ScoringError, match=r"the files of the encoder .* have the digest .* at the conversion"):
        converted("other", first.embedded[0])


@pytest.mark.full
def test_a_conversion_refuses_images_that_cannot_be_read_and_keeps_the_vectors_of_all_others(
    spark: "SparkSession", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first ones by their SHA-256, whatever the partitions."""
    caplog.set_level(logging.INFO, "mirrorspark.scoring.embedding.embed")
    feature = ImageEmbedding("photo", str(save_image_encoder(tmp_path / "colours")))
    spec = FeatureSpec((feature,), Label("good"), ("review_id",))
    table, bad = spark.createDataFrame(REVIEWS, COLUMNS), [f"no image {number}".encode() for number in range(5)]
    first = sorted(hashlib.sha256(image).hexdigest() for image in bad)[0]
    expected = (
        rf"column 'photo' has 5 different images that cannot be read, such as those with these SHA-256: {first}: it is "
        r"neither a JPEG nor a PNG; .*; correct them, or make them null in the query"
    )
    for partitions in (1, 7):
        worse = table.union(table_of(spark, [(900 + number, image) for number, image in enumerate(bad)]))
        with pytest.raises(ColumnError, match=expected):
            convert(worse.repartition(partitions), spec, tmp_path / "bad", embedder=Embedder())
    found = convert(table, spec, tmp_path / "dataset", embedder=Embedder()).spec
    assert found.features == (dataclasses.replace(feature, size=3, digest=encoder_digest(feature.encoder)),)
    assert [message for message in caplog.messages if message.startswith("embedded")] == [
        "embedded 3 new images, 0 from the cache",
        "embedded 0 new images, 3 from the cache",
        "embedded 0 new images, 3 from the cache",
    ]
    # As a column of a table, by a cache of its own.
    caplog.clear()
    for message in ("embedded 3 new images, 0 from the cache", "embedded 0 new images, 3 from the cache"):
        vectors = embed_images(table, "photo", feature.encoder, cache=tmp_path / "vectors", output="colour").collect()
        assert caplog.messages.pop() == message
    for row in vectors:
        assert (row.colour is None) == (not row.photo)
    assert len({tuple(row.colour) for row in vectors if row.colour}) == 3
    with pytest.raises(ColumnError, match="5 different images that cannot be read"):
        embed_images(worse, "photo", feature.encoder, cache=tmp_path / "vectors")


def test_spark_normalises_texts_as_scoring_does(spark: "SparkSession") -> None:
    """Each character within a text and at its ends; a difference would change the text's vector."""
    characters = [chr(code) for code in range(1, 0x11000) if not 0xD800 <= code < 0xE000]
    texts = pa.table({"text": [f"{one}a{one} {one}b{one}" for one in characters]})
    found = spark.createDataFrame(texts).select(normalised_text(F.col("text")).alias("text")).toArrow()["text"]
    expected = single_spaced(texts["text"].combine_chunks())
    assert found.combine_chunks().equals(expected)
