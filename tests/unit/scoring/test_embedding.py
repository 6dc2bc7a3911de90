"""Texts get the vectors of their encoder, whatever they are padded to, and the cache has whole vectors only (F12)."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.scoring.backends.protocol import UnsupportedModelError
from mirrorspark.scoring.embedding.buckets import bucket_length, calls
from mirrorspark.scoring.embedding.embed import EmbedTask
from mirrorspark.scoring.embedding.encoder import encoder_folder, load_encoder
from mirrorspark.scoring.embedding.image_encoder import key_of
from mirrorspark.scoring.embedding.settings import EncoderSettings, ImageSettings, Settings
from mirrorspark.scoring.embedding.text_encoder import pooled
from mirrorspark.scoring.embedding.vector_cache import VectorCache, VectorWriter
from mirrorspark.scoring.embedding.wordpiece import WordPiece
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.stored.digest import folder_digest
from mirrorspark.scoring.task import ShippedModel
from mirrorspark.storage.paths import StoragePath
from tests.unit.scoring.encoders import (
    VOCABULARY,
    save_hub_encoder,
    save_image_encoder,
    save_onnx_encoder,
    save_token_encoder,
)
from tests.unit.scoring.other_models import png

DEFAULTS = EncoderSettings()
STATES = EncoderSettings(model_output="states")


@pytest.fixture(scope="module")
def token_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_token_encoder(tmp_path_factory.mktemp("encoder") / "tokens")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Toy Story 2", ["toy", "story", "2"]),
        ("unaffable toys: 2", ["un", "##aff", "##able", "toy", "##s", ":", "2"]),
        ("CAFÉ\u200b toy\tstory", ["cafe", "toy", "story"]),
        ("toy-京京", ["toy", "[UNK]", "京", "京"]),  # the hyphen is a word, and in no vocabulary
        ("toystory " + "toy" * 40, ["[UNK]", "[UNK]"]),
        (" \x00 ", []),
    ],
)
def test_words_become_the_longest_pieces_of_the_vocabulary(text: str, pieces: list[str]) -> None:
    ids = WordPiece(VOCABULARY).ids(text, 20)
    assert [VOCABULARY[number] for number in ids] == ["[CLS]", *pieces, "[SEP]"]
    assert WordPiece(VOCABULARY).ids(text, 4) == [2, *ids[1:-1][:2], 3]


@pytest.mark.parametrize(
    ("settings", "text", "pieces"),
    [
        ({"do_lower_case": False}, "toy Toy", ["toy", "[UNK]"]),
        ({"do_lower_case": False, "strip_accents": True}, "tóy Tóy", ["toy", "[UNK]"]),
        ({"do_lower_case": True, "strip_accents": False}, "TOY tóy", ["toy", "[UNK]"]),
        ({"tokenize_chinese_chars": False}, "京 京京", ["京", "[UNK]"]),
        ({"strip_accents": None}, "Tóy", ["toy"]),
    ],
)
def test_a_tokenizer_follows_the_settings_in_its_folder(
    tmp_path: Path, settings: dict[str, Any], text: str, pieces: list[str]
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = WordPiece.load(tmp_path)
    assert tokenizer is not None
    assert [VOCABULARY[number] for number in tokenizer.ids(text, 8)] == ["[CLS]", *pieces, "[SEP]"]


def test_buckets_are_four_for_each_doubling_of_the_length() -> None:
    tokens = [1, 2, 3, 8, 9, 16, 17, 20, 21, 33, 64, 65, 127, 128]
    assert [bucket_length(count, 120) for count in tokens] == [2, 2, 4, 8, 10, 16, 20, 20, 24, 40, 64, 80, 120, 120]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 200))
def test_each_text_is_in_one_call_with_those_of_its_length(lengths: list[int], call_tokens: int) -> None:
    found = list(calls(lengths, lambda length: max(1, call_tokens // length)))
    assert sorted(row for call in found for row in call.rows.tolist()) == list(range(len(lengths)))
    assert all({lengths[row] for row in call.rows} == {call.length} for call in found)
    assert all(
        len(call.rows) <= call.size and call.size * call.length <= max(call_tokens, call.length) for call in found
    )


def test_a_mean_over_tokens_leaves_padding_out() -> None:
    states = np.array([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]], [[4.0, 4.0], [7.0, 7.0], [8.0, 8.0]]], np.float32)
    np.testing.assert_array_equal(pooled(states, np.array([[1, 1, 0], [1, 0, 0]])), [[2.0, 4.0], [4.0, 4.0]])


def test_a_text_is_padded_to_its_bucket_and_its_vector_is_the_mean_of_its_own_tokens(token_encoder: Path) -> None:
    texts = ["toy", "toy story 2 " * 5, "story", "toy story 2"]
    vectors = load_encoder(token_encoder, STATES).encode(texts)
    # [CLS] and [SEP] are 2 and 3; toy, story and 2 are 4, 5 and 6.
    np.testing.assert_allclose(vectors, [[3.0, 3.0], [80 / 17, 17.0], [10 / 3, 3.0], [4.0, 5.0]], rtol=1e-6)
    assert vectors.dtype == np.float32
    lengths = load_encoder(token_encoder, EncoderSettings(model_output="length")).encode(texts)
    assert lengths.ravel().tolist() == [4.0, 20.0, 4.0, 6.0]


@pytest.mark.parametrize("shape", [{}, {"rows": 2}, {"length": 16}, {"rows": 3, "length": 16}], ids=str)
def test_an_onnx_encoder_of_any_shape_gives_the_same(shape: dict[str, int], tmp_path: Path) -> None:
    with encoder_folder(save_onnx_encoder(tmp_path / "encoder.onnx", **shape)) as folder:
        encoder = load_encoder(folder, EncoderSettings(max_length=16, batch_size=1))
    vectors = encoder.encode(["toy", "toy story 2", "story", "toy story 2 " * 9])
    # The last one is cut after 14 of its tokens.
    np.testing.assert_allclose(vectors, [[3.0, 1.0], [4.0, 1.0], [10 / 3, 1.0], [74 / 16, 1.0]], rtol=1e-6)


def test_a_module_of_tf_hub_is_called_with_texts(tmp_path: Path) -> None:
    encoder = load_encoder(save_hub_encoder(tmp_path / "hub"), EncoderSettings(batch_size=2))
    np.testing.assert_array_equal(encoder.encode(["toy story", "é", "toy"]), [[9.0, 1.0], [2.0, 1.0], [3.0, 1.0]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"signature": "embed"}, "the signatures ['serving_default'] but not 'embed'"),
        ({}, "several can be the vector; they have the shapes"),
        ({"model_output": "state"}, "no 'state' can be the vector"),
        ({"model_output": "mean_id"}, "'mean_id' has the shape [1] for 1 texts"),
        ({"model_output": "broken"}, "'broken' is not finite for the text 'toy'"),
    ],
)
def test_an_encoder_that_gives_no_vectors_is_refused(
    settings: dict[str, Any], message: str, token_encoder: Path
) -> None:
    with pytest.raises((ScoringError, UnsupportedModelError), match=re.escape(message)):
        load_encoder(token_encoder, EncoderSettings(**settings)).encode(["toy"])


def _no_model(folder: Path) -> None:
    (folder / "readme.md").touch()


def _two_models(folder: Path) -> None:
    save_onnx_encoder(folder / "a.onnx")
    save_onnx_encoder(folder / "b.onnx")


def _no_vocabulary(folder: Path) -> None:
    save_onnx_encoder(folder / "model.onnx")
    (folder / "vocab.txt").unlink()


def _other_vocabulary(folder: Path) -> None:
    save_onnx_encoder(folder / "model.onnx")
    (folder / "vocab.txt").write_text("<s>\n</s>\n")


def _of_numbers(folder: Path) -> None:
    save_hub_encoder(folder, takes="numbers")


def _of_another_package(folder: Path) -> None:
    save_hub_encoder(folder)
    graph = folder / "saved_model.pb"
    graph.write_bytes(graph.read_bytes().replace(b"StringLength", b"StringSplits"))


@pytest.mark.parametrize(
    ("made", "settings", "message"),
    [
        (Path.rmdir, {}, "there is nothing at"),
        (_no_model, {}, "has no model; give a folder with a SavedModel"),
        (_two_models, {}, "has the models ['a.onnx', 'b.onnx']"),
        (_no_vocabulary, {}, "takes token ids and has no vocab.txt"),
        (_other_vocabulary, {}, "lacks ['[CLS]', '[SEP]', '[UNK]', '[PAD]']"),
        (_other_vocabulary, {"signature": "embed"}, "has no signatures; leave signature 'embed' out"),
        (_of_another_package, {}, "has the operation StringSplits, which a package such as tensorflow-text adds"),
        (_of_numbers, {}, "its call takes no tensor of texts"),
    ],
)
def test_a_folder_that_is_no_encoder_of_texts_is_refused(
    made: Callable[[Path], None], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    place = tmp_path / "encoder"
    place.mkdir()
    made(place)
    with (
        pytest.raises((ScoringError, UnsupportedModelError), match=re.escape(message)),
        encoder_folder(place) as folder,
    ):
        load_encoder(folder, EncoderSettings(**settings))


def test_the_key_of_the_cache_changes_with_all_that_decides_a_vector() -> None:
    others = [{"signature": "embed"}, {"model_output": "states"}, {"max_length": 64}]
    digests = {EncoderSettings(**settings).digest("files") for settings in [{}, *others]} | {
        EncoderSettings().digest("other files")
    }
    assert len(digests) == 5
    assert EncoderSettings(batch_size=2).digest("files") == EncoderSettings().digest("files")
    images = ImageSettings(None, None, max_bytes=10, max_pixels=10)
    assert images.digest("files") not in digests
    # Limits decide whether there is a vector, and not which.
    assert ImageSettings(None, None, max_bytes=99, max_pixels=9, batch_size=2).digest("files") == images.digest("files")
    assert ImageSettings("embed", None, max_bytes=10, max_pixels=10).digest("files") != images.digest("files")


def test_vectors_that_are_cached_are_found_by_later_versions() -> None:
    """The digest of the settings of texts is part of the name of a folder of vectors."""
    assert EncoderSettings().digest("files").startswith("11541e7a26b7")


def _task(model: Path, cache: Path, settings: Settings = DEFAULTS) -> EmbedTask:
    shipped = ShippedModel(folder_digest(model), "encoder/1", str(model), None)
    return EmbedTask(shipped, settings, VectorCache(StoragePath.of(cache), str(cache)))


def _batch(rows: dict[str, str | None]) -> pa.RecordBatch:
    return pa.record_batch({"key": list(rows), "content": pa.array(rows.values(), pa.string())})


def test_a_task_encodes_what_is_not_cached_and_writes_it_by_the_first_digit_of_the_key(tmp_path: Path) -> None:
    folder = save_onnx_encoder(tmp_path / "encoder" / "model.onnx").parent
    task = _task(folder, tmp_path / "cache")
    batches = [_batch({"a1": "toy", "b1": None}), _batch({"b2": "story", "a2": "toy story 2"})]
    (report,) = [json.loads(batch.column(0)[0].as_py()) for batch in task(batches)]
    assert report | {"files": []} == {
        "embedded": 3,
        "cached": 1,
        "unreadable": 0,
        "refused": None,
        "examples": {},
        "files": [],
    }
    assert [name.partition("/")[0] for name in report["files"]] == ["shard=a", "shard=b"]
    of_a, of_b = (pq.ParquetFile(tmp_path / "cache" / name).read().to_pydict() for name in report["files"])
    assert of_a == {"key": ["a1", "a2"], "vector": [[3.0, 1.0], [4.0, 1.0]]}
    assert of_b["key"] == ["b2"]


def test_a_task_whose_encoder_is_refused_reports_it(tmp_path: Path) -> None:
    folder = save_onnx_encoder(tmp_path / "encoder" / "model.onnx").parent
    (report,) = _task(folder, tmp_path / "cache", EncoderSettings(model_output="pooled"))([_batch({"a1": "toy"})])
    assert "no 'pooled' can be the vector" in json.loads(report.column(0)[0].as_py())["refused"]


def test_a_task_embeds_images_but_those_that_cannot_be_read_which_it_reports(tmp_path: Path) -> None:
    """F13: the first of them by key, whatever the order in which they come."""
    folder, random = save_image_encoder(tmp_path / "encoder"), np.random.default_rng(3)
    bad = sorted((random.bytes(20) for _ in range(5)), key=key_of)
    grey = png(np.full((4, 4), 51, np.uint8))
    images = [bad[4], bad[1], grey, *bad[2:4], bad[0]]
    batch = pa.record_batch({"key": [key_of(image) for image in images], "content": pa.array(images, pa.binary())})
    task = _task(folder, tmp_path / "cache", ImageSettings(None, None, 1000, 100))
    (report,) = [json.loads(one.column(0)[0].as_py()) for one in task([batch])]
    assert (report["embedded"], report["unreadable"], report["refused"]) == (1, 5, None)
    assert report["examples"] == {key_of(image): "it is neither a JPEG nor a PNG" for image in bad[:3]}
    (file,) = report["files"]
    (row,) = pq.ParquetFile(tmp_path / "cache" / file).read().to_pylist()
    assert row == {"key": key_of(grey), "vector": pytest.approx([0.2, 0.2, 0.2])}


def test_a_write_that_fails_leaves_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = VectorWriter(VectorCache(StoragePath.of(tmp_path), str(tmp_path)))
    writer.add(pa.array(["a1", "b1"]), np.ones((2, 3), np.float32))
    replace = Path.replace

    def full_disk(path: Path, target: Path) -> Path:
        if "shard=b" in str(target):
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    (file,) = tmp_path.rglob("*.parquet*")
    assert pq.ParquetFile(file).read().to_pydict() == {"key": ["a1"], "vector": [[1.0, 1.0, 1.0]]}


def test_vectors_are_written_before_they_fill_the_memory(tmp_path: Path) -> None:
    writer = VectorWriter(VectorCache(StoragePath.of(tmp_path), str(tmp_path)), flush_bytes=100)
    for digit in "123":
        writer.add(pa.array([f"{digit}a", f"{digit}b"]), np.ones((2, 8), np.float32))
    assert len(writer.files) >= 2
