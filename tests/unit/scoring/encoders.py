"""Small encoders of texts and images, whose vectors can be worked by hand."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features.embedded_columns import CONTENTS, embedded_column
from mirrorspark.data_pipelines.features.kinds import EmbeddedFeature, ImageEmbedding, TextEmbedding
from mirrorspark.data_pipelines.features.text_rules import single_spaced
from mirrorspark.scoring.embedding.encoder import encoder_digest, encoder_folder, load_encoder
from mirrorspark.scoring.embedding.image_encoder import key_of
from mirrorspark.scoring.embedding.model_encoders import settings_of

Embedded = TypeVar("Embedded", TextEmbedding, ImageEmbedding)

VOCABULARY = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "toy",
    "story",
    "2",
    "##s",
    "un",
    "##aff",
    "##able",
    ":",
    "cafe",
    "京",
)
"""The special tokens have the ids 0 to 3."""


def save_token_encoder(folder: Path) -> Path:
    """Save a SavedModel of token ids.

    Its output ``states`` has ``[id, tokens of the text]`` for each token, ``length`` the padded length of each text,
    ``mean_id`` no vector but a number, and ``broken`` a NaN.
    """
    import tensorflow as tf

    def call(input_ids: tf.Tensor, attention_mask: tf.Tensor) -> dict[str, tf.Tensor]:
        ids, mask = tf.cast(input_ids, tf.float32), tf.cast(attention_mask, tf.float32)
        counts = tf.reduce_sum(mask, axis=1, keepdims=True)
        # Padding has another state than any token.
        ids = ids * mask + 1_000 * (1 - mask)
        return {
            "states": tf.stack([ids, counts + 0 * ids], axis=2),
            "length": 0 * counts + tf.cast(tf.shape(input_ids)[1], tf.float32),
            "mean_id": tf.reduce_mean(ids, axis=1),
            "broken": counts / 0,
        }

    module = tf.Module()
    module.call = tf.function(call, autograph=False)
    specs = {name: tf.TensorSpec([None, None], tf.int32, name) for name in ("input_ids", "attention_mask")}
    tf.saved_model.save(module, str(folder), signatures=module.call.get_concrete_function(**specs))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return folder


def save_onnx_encoder(path: Path, *, rows: int | None = None, length: int | None = None, factor: float = 1.0) -> Path:
    """Save an ONNX file of token ids, whose states are ``factor * [id, 1]`` for each token, and its vocabulary.

    Args:
        path: The file.
        rows: The number of texts that it takes; None for any.
        length: The number of tokens that it takes; None for any.
        factor: Makes another encoder.
    """
    from onnx import TensorProto, helper, numpy_helper, save

    table = factor * np.stack([np.arange(len(VOCABULARY)), np.ones(len(VOCABULARY))], axis=1).astype(np.float32)
    shape = [rows or "rows", length or "length"]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["states"])],
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, [*shape, 2])],
        [numpy_helper.from_array(table.astype(np.float32), "table")],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    (path.parent / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


def save_word_encoder(folder: Path, *, size: int = 3) -> Path:
    """Save a SavedModel of texts, with a variable and a table of words, which gives the mean of the words' vectors.

    The vector of the word number n of :data:`VOCABULARY` has 0.1 * n + 0.01 * place at each place; other words have
    those of the number 1. A text without a word has no mean, but NaN.
    """
    import tensorflow as tf

    folder.mkdir(parents=True)
    (folder / "words.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    initializer = tf.lookup.TextFileInitializer(
        *(str(folder / "words.txt"), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
        *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
    )
    table = 0.1 * np.arange(len(VOCABULARY))[:, None] + 0.01 * np.arange(size)
    module = tf.Module()
    module.words = tf.lookup.StaticHashTable(initializer, 1)
    module.vectors = tf.Variable(table.astype(np.float32))

    def call(texts: tf.Tensor) -> tf.Tensor:
        words = tf.strings.split(tf.strings.lower(texts))
        return tf.reduce_mean(
            tf.gather(module.vectors, words.with_flat_values(module.words.lookup(words.flat_values))), 1
        )

    module.call = tf.function(call, input_signature=[tf.TensorSpec([None], tf.string, "texts")], autograph=False)
    tf.saved_model.save(module, str(folder), signatures=module.call)
    (folder / "words.txt").unlink()
    return folder


def save_hub_encoder(folder: Path, *, takes: str = "texts") -> Path:
    """Save a SavedModel without signatures, as TF-Hub has them, which gives ``[bytes of the text, 1]``.

    Args:
        folder: Becomes the SavedModel.
        takes: ``texts`` or ``numbers``.
    """
    import tensorflow as tf

    def call(values: tf.Tensor) -> tf.Tensor:
        sizes = values if takes == "numbers" else tf.cast(tf.strings.length(values), tf.float32)
        return tf.stack([sizes, tf.ones_like(sizes)], axis=1)

    module = tf.Module()
    kind = tf.float32 if takes == "numbers" else tf.string
    module.__call__ = tf.function(call, input_signature=[tf.TensorSpec([None], kind)], autograph=False)
    tf.saved_model.save(module, str(folder), signatures={})
    return folder


def save_image_encoder(folder: Path, dtype: str = "float32") -> Path:
    """Save a SavedModel of images of 2 x 3 pixels, which gives the mean of each colour, from 0 to 1."""
    import tensorflow as tf

    module = tf.Module()
    module.brightest = tf.Variable(255.0, dtype=dtype)

    def call(pixels: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(pixels, [1, 2]) / module.brightest

    takes = [tf.TensorSpec([None, 2, 3, 3], dtype, "pixels")]
    module.call = tf.function(call, input_signature=takes, autograph=False)
    tf.saved_model.save(module, str(folder), signatures=module.call)
    return folder


def save_onnx_image_encoder(path: Path) -> Path:
    """Save an ONNX file of images of 3 channels and 2 x 3 pixels, which gives the mean of each channel, from 0 to 1."""
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["means"]),
            helper.make_node("Div", ["means", "brightest"], ["colours"]),
        ],
        "encoder",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["rows", 3, 2, 3])],
        [helper.make_tensor_value_info("colours", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor("brightest", TensorProto.FLOAT, [], [255.0])],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def recorded(feature: Embedded, size: int) -> Embedded:
    """Return ``feature`` as a conversion records it."""
    return replace(feature, size=size, digest=encoder_digest(feature.encoder))


def embedded(table: pa.Table, *features: EmbeddedFeature) -> pa.Table:
    """Return ``table`` with the texts and images of ``features`` embedded one by one, as a conversion leaves them."""
    for feature in features:
        column = table[feature.name].combine_chunks()
        if isinstance(feature, ImageEmbedding):
            contents = pa.array([image or None for image in column.to_pylist()], pa.binary())
            names = pa.array([image and key_of(image) for image in contents.to_pylist()], pa.string())
        else:
            contents = names = single_spaced(column)
        with encoder_folder(feature.encoder) as folder:
            encoder = load_encoder(folder, settings_of(feature))
        vectors = np.stack([encoder.encode([one])[0] for one in contents.drop_null().to_pylist()])
        place = table.column_names.index(feature.name)
        table = table.set_column(place, feature.name, embedded_column(names, vectors, CONTENTS[type(feature)]))
    return table
