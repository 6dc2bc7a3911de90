"""F13: a model brings the encoder of its images, which go in as bytes on every way, by the road of texts."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from mirrorspark.data_pipelines.features.embedded_columns import as_contents
from mirrorspark.data_pipelines.features.kinds import ImageEmbedding, Label
from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.scoring.embedding.embed import CachedEncoder
from mirrorspark.scoring.embedding.encoder import encoder_folder, load_encoder
from mirrorspark.scoring.embedding.model_encoders import ModelEncoders, settings_of, taken_as_vectors
from mirrorspark.scoring.embedding.vectors import UnreadableError
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input.inputs import Column
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.mirrorspark_pyfunc import RawColumnsModel
from mirrorspark.scoring.model.mlflow_model import mlflow_signature
from mirrorspark.scoring.model.stored.digest import folder_digest
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.predictor import Predictor
from mirrorspark.scoring.registration import register_model
from tests.unit.mlflow_stores import new_store
from tests.unit.scoring.encoders import (
    embedded,
    recorded,
    save_image_encoder,
    save_onnx_encoder,
    save_onnx_image_encoder,
    save_word_encoder,
)
from tests.unit.scoring.exported_models import export_photos
from tests.unit.scoring.other_models import pictures, png
from tests.unit.scoring.test_images import saved, with_size

ENCODERS: dict[str, Callable[[Path], Path]] = {
    "saved model": save_image_encoder,
    "onnx file": lambda folder: save_onnx_image_encoder(folder / "encoder.onnx"),
}
PIXELS = pictures(3, 12, 9)
PHOTOS = pa.table(
    {
        "id": pa.array(range(6)),
        "photo": pa.array(
            [png(PIXELS[0]), saved("JPEG", PIXELS[1]), None, b"", png(PIXELS[0]), png(PIXELS[2][..., 0])]
        ),
        "stars": pa.array([5.0, 1.0, None, 2.0, 4.0, 3.0]),
    }
)


@pytest.fixture(scope="module", params=ENCODERS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ImageEmbedding, Path]:
    """Return the case, the feature, and the folder of a model whose encoder was moved."""
    scratch = tmp_path_factory.mktemp("photos")
    encoder = ENCODERS[request.param](scratch / "encoder")
    photo = recorded(ImageEmbedding("photo", str(encoder), max_bytes=2_000, max_pixels=12 * 9), 3)
    model = export_photos(scratch / "model", photo)
    (scratch / "encoder").rename(scratch / "moved")
    moved = scratch / "moved" / encoder.relative_to(scratch / "encoder")
    return request.param, dataclasses.replace(photo, encoder=str(moved)), model


def test_images_get_the_scores_of_their_vectors(exported: tuple[str, ImageEmbedding, Path]) -> None:
    """S7, S15: by tables, by rows, and by the exported graph, which takes vectors where it cannot hold the encoder."""
    case, photo, folder = exported
    in_graph = case == "saved model"
    vectors = embedded(PHOTOS, photo)
    loaded, predictor = LoadedModel(folder), Predictor(folder)
    expected = loaded.score(vectors)["score"]
    assert len(np.unique(expected)) == PHOTOS.num_rows
    assert taken_as_vectors(folder) == (frozenset() if in_graph else {"photo"})
    raw = PHOTOS if in_graph else as_contents(vectors, vectors_of=["photo"])
    ways = {
        "table": loaded.score(PHOTOS)["score"],
        "calls of two rows": loaded.score(PHOTOS, batch_size=2)["score"],
        "rows": [predictor.predict(row)["score"] for row in PHOTOS.to_pylist()],
        "large bytes": loaded.score(PHOTOS.set_column(1, "photo", PHOTOS["photo"].cast(pa.large_binary())))["score"],
        "pyfunc": RawColumnsModel(folder).predict(raw.to_pandas())["score"],
    }
    for way, found in ways.items():
        np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-6, err_msg=way)
    assert loaded.row_errors(PHOTOS.to_batches()[0]) == {}
    signature = mlflow_signature(folder, FeatureSpec((photo,), Label("good"), ("id",)), {"score": "float"})
    assert signature.inputs.to_dict()[0]["type"] == ("binary" if in_graph else "array")


def test_equal_and_missing_images_have_equal_vectors(exported: tuple[str, ImageEmbedding, Path]) -> None:
    _, _, folder = exported
    scores = LoadedModel(folder).score(PHOTOS.set_column(2, "stars", pa.array([2.0] * PHOTOS.num_rows)))["score"]
    assert (scores[0], scores[2]) == (scores[4], scores[3])


def test_the_rows_of_images_that_cannot_be_read_are_bad_rows(exported: tuple[str, ImageEmbedding, Path]) -> None:
    """A null has zeros; a broken, too large or other file is not taken for one."""
    _, _, folder = exported
    whole = png(PIXELS[0])
    photos = [whole, whole[:-40], None, b"a text", with_size(60_000, 60_000), whole[:-40], bytes(3_000), whole]
    rows = pa.record_batch({"photo": pa.array(photos, pa.binary()), "stars": [3.0] * len(photos)})
    model = LoadedModel(folder)
    errors = model.row_errors(rows)
    assert list(errors) == [1, 3, 4, 5, 6]
    start = "column 'photo' has an image that cannot be read: "
    assert errors[1].startswith(f"{start}InvalidArgumentError: ")
    assert {row: message.removeprefix(start) for row, message in errors.items() if row not in (1, 5)} == {
        3: "it is neither a JPEG nor a PNG",
        4: "it has 60,000 x 60,000 pixels (height x width), more than max_pixels 108",
        6: "it has 3,000 bytes, more than max_bytes 2,000",
    }
    assert min(model.row_errors(rows, first=True)) == 1
    with pytest.raises(ColumnError, match="column 'photo' has an image that cannot be read: InvalidArgumentError"):
        model.score(rows)
    good = model.score(rows.take(pa.array([0, 2, 7])))["score"]
    assert good[0] == good[2] != good[1]
    with pytest.raises(ColumnError, match="it is neither a JPEG nor a PNG"):
        Predictor(folder).predict({"photo": b"a text", "stars": 3.0})


def test_a_column_of_no_bytes_is_refused(exported: tuple[str, ImageEmbedding, Path]) -> None:
    _, _, folder = exported
    with pytest.raises(
        ColumnError, match="column 'photo' has type string, which an image_embedding feature cannot take"
    ):
        LoadedModel(folder).score(PHOTOS.set_column(1, "photo", pa.array(["a.png"] * PHOTOS.num_rows)))


def test_a_graph_refuses_an_image_beyond_the_limits(exported: tuple[str, ImageEmbedding, Path]) -> None:
    case, _, folder = exported
    if case != "saved model":
        return
    rows = pa.table({"photo": [with_size(60_000, 60_000)], "stars": [1.0]})
    with pytest.raises(tf.errors.InvalidArgumentError, match="an image has more pixels than max_pixels"):
        RawColumnsModel(folder).predict(rows.to_pandas())


def test_images_that_are_known_are_not_encoded(
    exported: tuple[str, ImageEmbedding, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R4: a new table of items has the vectors of the last one for equal images, whose bytes it no longer has."""
    _, photo, folder = exported
    encoders = ModelEncoders(folder, ModelDirectory.open(folder).scored_features)
    known = encoders.embedded(PHOTOS.slice(1))
    asked: list[bytes] = []
    (encoder,) = encoders._encoders.values()
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda images: asked.extend(images) or encode(images))
    more = pa.concat_tables([PHOTOS, pa.table({"id": [6], "photo": [png(PIXELS[1])], "stars": [1.0]})])
    found = encoders.embedded(more, known)
    assert asked == [png(PIXELS[1])]
    assert found.slice(1, 5).equals(known)
    assert photo.name in found.column_names


def test_an_encoder_of_something_else_is_refused(tmp_path: Path) -> None:
    for encoder, message in (
        (save_word_encoder(tmp_path / "words"), "decoding gives numbers"),
        (save_onnx_encoder(tmp_path / "tokens" / "model.onnx"), "has to take one array of images"),
    ):
        with (
            encoder_folder(encoder) as folder,
            pytest.raises((ScoringError, ValueError), match=message),
        ):
            load_encoder(folder, settings_of(ImageEmbedding("photo", str(encoder))))


def test_a_packaged_model_is_an_encoder_unless_it_has_hooks(tmp_path: Path) -> None:
    """F13: as a training function returns it; as a scorer it gives pictures the same vectors."""
    plain = save_image_encoder(tmp_path / "plain")
    columns = [Column("photo", "binary", decode="resized_image")]
    packaged = package_model(plain, tmp_path / "packaged", columns=columns)
    vectors = [
        embedded(PHOTOS, recorded(ImageEmbedding("photo", str(folder)), 3))["photo"].drop_null()
        for folder in (plain, packaged)
    ]
    assert vectors[0] == vectors[1]
    rows = PHOTOS.filter(pa.array([True, True, False, False, True, True]))
    settings = settings_of(ImageEmbedding("photo", str(packaged)))
    (scores,) = LoadedModel(packaged).score(rows).values()
    expected = [row["vector"] for row in vectors[0].to_pylist()]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    store = new_store(tmp_path)
    register_model(packaged, "colours", alias="champion", tracking_uri=store)
    found = CachedEncoder.of("models:/colours@champion", settings, tmp_path / "cache", tracking_uri=store)
    assert (found.digest, found.location) == (folder_digest(packaged), str(resolve("models:/colours/1", store).path))
    with encoder_folder(found.location) as folder:
        assert load_encoder(folder, settings).encode([png(PIXELS[0])]).shape == (1, 3)
    (tmp_path / "hooks.py").write_text("def postprocess(outputs): return outputs")
    hooked = package_model(plain, tmp_path / "hooked", columns=columns, hooks=tmp_path / "hooks.py")
    with (
        pytest.raises(ScoringError, match=r"a packaged model with the hooks \['postprocess'\]"),
        encoder_folder(hooked),
    ):
        pass


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_encoder_reads_every_image_before_it_refuses(tmp_path: Path, dtype: str) -> None:
    photo = ImageEmbedding("photo", str(save_image_encoder(tmp_path / "encoder", dtype)), max_bytes=2_000)
    encoder = load_encoder(tmp_path / "encoder", settings_of(photo, batch_size=2))
    images = [png(PIXELS[0]), b"x", png(PIXELS[1]), png(PIXELS[2]), bytes(2_001)]
    with pytest.raises(UnreadableError) as refused:
        encoder.encode(images)
    assert list(refused.value.reasons) == [1, 4]
    found = encoder.encode([images[0], *images[2:4]])
    expected = [tf.image.resize(pixels, (2, 3)).numpy().mean((0, 1)) / 255 for pixels in PIXELS]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
