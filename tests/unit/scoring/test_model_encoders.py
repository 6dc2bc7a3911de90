"""A model brings the encoders of its texts, and gives texts the scores of their vectors, whatever way they come in."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.embedded_columns import as_contents
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Label, TextEmbedding
from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.scoring.embedding.model_encoders import ENCODERS_FOLDER, save_features, taken_as_vectors
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.folder.directory import ModelDescription
from mirrorspark.scoring.model.loading import versions
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.loading.versions import installed_version
from mirrorspark.scoring.model.mirrorspark_pyfunc import RawColumnsModel
from mirrorspark.scoring.model.mlflow_model import mlflow_signature
from mirrorspark.scoring.predictor import Predictor
from tests.unit.scoring.encoders import (
    embedded,
    recorded,
    save_onnx_encoder,
    save_token_encoder,
    save_word_encoder,
)
from tests.unit.scoring.exported_models import REVIEWS, export_reviews

ENCODERS: dict[str, tuple[Callable[[Path], Path], dict[str, Any], int]] = {
    "texts": (save_word_encoder, {}, 3),
    "token ids": (save_token_encoder, {"model_output": "states", "max_length": 16}, 2),
    "onnx": (lambda folder: save_onnx_encoder(folder / "model.onnx").parent, {}, 2),
    "onnx file": (lambda folder: save_onnx_encoder(folder / "model.onnx"), {}, 2),
}


@pytest.fixture(
    scope="module", params=[pytest.param(case, marks=[pytest.mark.full] * (case == "onnx file")) for case in ENCODERS]
)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, TextEmbedding, Path]:
    """Return the case, the feature, and the folder of a model whose encoder was moved."""
    scratch = tmp_path_factory.mktemp("reviews")
    save, settings, size = ENCODERS[request.param]
    encoder = save(scratch / "encoder")
    review = recorded(TextEmbedding("review", str(encoder), **settings), size)
    model = export_reviews(scratch / "model", review)
    (scratch / "encoder").rename(scratch / "moved")
    moved = scratch / "moved" / encoder.relative_to(scratch / "encoder")
    return request.param, dataclasses.replace(review, encoder=str(moved)), model


@pytest.fixture(scope="module")
def loaded(exported: tuple[str, TextEmbedding, Path]) -> LoadedModel:
    return LoadedModel(exported[2])


def test_texts_get_the_scores_of_their_vectors(exported: tuple[str, TextEmbedding, Path], loaded: LoadedModel) -> None:
    """S7, S15: by tables, by rows, and by the exported graph, which takes vectors where it cannot hold the encoder."""
    case, review, folder = exported
    vectors = embedded(REVIEWS, review)
    predictor = Predictor(folder)
    expected = loaded.score(vectors)["score"]
    assert len(np.unique(expected)) == REVIEWS.num_rows
    assert (taken_as_vectors(folder) == {"review"}) == (case != "texts")
    raw = as_contents(vectors if case != "texts" else REVIEWS, vectors_of=taken_as_vectors(folder)).to_pandas()
    ways = {
        "table": loaded.score(REVIEWS)["score"],
        "calls of two rows": loaded.score(REVIEWS, batch_size=2)["score"],
        "rows": [predictor.predict(row)["score"] for row in REVIEWS.to_pylist()],
        "pyfunc": RawColumnsModel(folder).predict(raw)["score"],
    }
    for way, found in ways.items():
        np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-6, err_msg=way)
    assert loaded.row_errors(REVIEWS.to_batches()[0]) == {}
    signature = mlflow_signature(folder, FeatureSpec((review,), Label("good"), ("id",)), {"score": "float"})
    assert signature.inputs.to_dict()[0]["type"] == ("any" if case == "texts" else "array")


def test_another_version_of_an_encoders_library_is_told_in_one_line(
    exported: tuple[str, TextEmbedding, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """L10: it is allowed, and TensorFlow is compared for the model itself."""
    case, _, folder = exported
    recorded_versions = ModelDescription.load(folder).versions
    # A warning comes once per process and difference.
    present = {"onnxruntime": f"99.{list(ENCODERS).index(case)}.1"}
    monkeypatch.setattr(versions, "installed_version", lambda name: present.get(name, installed_version(name)))
    expected = Predictor(folder).predict(REVIEWS.to_pylist()[0])["score"]
    assert LoadedModel(folder).score(REVIEWS)["score"][0] == pytest.approx(expected, abs=1e-6)
    told = [message for message in caplog.messages if message.startswith("This Python has")]
    if not case.startswith("onnx"):
        assert (set(recorded_versions), told) == ({"tensorflow"}, [])
        return
    assert told == [
        f"This Python has onnxruntime {present['onnxruntime']} instead of {recorded_versions['onnxruntime']}, which "
        f"ran the encoders of a model when it was exported; their vectors may differ: check that the scores are equal"
    ]


def test_equal_texts_have_equal_vectors_however_they_are_spaced(loaded: LoadedModel) -> None:
    alike = REVIEWS.set_column(2, "stars", pa.array([2.0] * REVIEWS.num_rows))
    scores = loaded.score(alike)["score"]
    assert scores[0] == scores[1]
    # Null and blank.
    assert scores[2] == scores[4]


def test_a_column_of_no_strings_is_refused(exported: tuple[str, TextEmbedding, Path], loaded: LoadedModel) -> None:
    with pytest.raises(ColumnError, match="column 'review' has type int64, which a text_embedding feature cannot take"):
        loaded.score(REVIEWS.set_column(1, "review", REVIEWS["id"]))
    with pytest.raises(ColumnError, match=r"column 'review' has type .*int64"):
        Predictor(exported[2]).predict({"review": 7, "stars": 1.0})


def test_a_model_is_not_exported_with_another_encoder_than_its_vectors_come_from(tmp_path: Path) -> None:
    encoder = save_onnx_encoder(tmp_path / "encoder" / "model.onnx").parent
    review = recorded(TextEmbedding("review", str(encoder)), size=2)
    fitted = FittedFeatures(FeatureSpec((review,), Label("good"), ("id",)), {}, {})
    save_features(fitted, tmp_path / "model")
    (copy,) = (tmp_path / "model" / ENCODERS_FOLDER).iterdir()
    assert sorted(path.name for path in copy.iterdir()) == ["model.onnx", "vocab.txt"]
    assert FittedFeatures.load(tmp_path / "model" / "features").hash == fitted.hash
    save_onnx_encoder(encoder / "model.onnx", factor=2.0)
    with pytest.raises(ScoringError, match=r"feature 'review': the files of the encoder .* at the conversion; restore"):
        save_features(fitted, tmp_path / "other")
    shutil.rmtree(encoder)
    with pytest.raises(ScoringError, match=re.escape(f"there is nothing at {encoder}")):
        save_features(fitted, tmp_path / "none")


def test_an_encoder_that_gives_vectors_of_another_length_is_refused(tmp_path: Path) -> None:
    encoder = save_word_encoder(tmp_path / "encoder")
    folder = export_reviews(tmp_path / "model", recorded(TextEmbedding("review", str(encoder)), size=3))
    (copy,) = (path for path in (folder / ENCODERS_FOLDER).iterdir() if path.is_dir())
    shutil.rmtree(copy)
    save_word_encoder(copy, size=5)
    with pytest.raises(
        ScoringError, match=r"feature 'review': the encoder .* gives vectors of 5 numbers, the spec says 3"
    ):
        LoadedModel(folder).score(REVIEWS)
