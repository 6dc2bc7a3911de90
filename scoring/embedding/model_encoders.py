"""The encoders of a model's features of the kind ``text_embedding``: their copies in its folder, and their use."""

import json
import shutil
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Feature, TextEmbedding
from mirrorspark.data_pipelines.features.raw_columns import TEXT, VECTOR, embedded_texts, is_embedded, raw_column
from mirrorspark.data_pipelines.features.text import single_spaced
from mirrorspark.scoring.embedding.encoder import (
    EncoderSettings,
    TextEncoder,
    encoder_folder,
    encoder_libraries,
    load_encoder,
)
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.directory import FEATURES_FOLDER, exported_with, folder_digest
from mirrorspark.scoring.model.versions import tell_encoder_versions, versions_here

# Beside the features, whose digest is computed whenever a model is opened.
ENCODERS_FOLDER = "encoders"
_DIGITS_OF_FOLDER = 16
_VECTORS_FILE = "vectors.json"

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


def save_features(fitted: FittedFeatures, folder: Path) -> None:
    """Write the features of a model into its folder, and copies of their encoders, so that it is whole by itself.

    Raises:
        ScoringError: An encoder is missing, or is no longer that of the conversion.
    """
    fitted.save(folder / FEATURES_FOLDER)
    copies = {_copy_of(feature, folder): feature for feature in fitted.spec.text_embeddings}
    for copy, feature in copies.items():
        with encoder_folder(feature.encoder) as found:
            # An export that was interrupted may have left a part.
            shutil.copytree(found, copy, dirs_exist_ok=True)
        check_digest(feature, folder_digest(copy))


def settings_of(feature: TextEmbedding, batch_size: int = EncoderSettings.batch_size) -> EncoderSettings:
    """Return the settings of the encoder of ``feature``."""
    return EncoderSettings(feature.signature, feature.model_output, feature.max_length, batch_size)


def check_digest(feature: TextEmbedding, digest: str) -> None:
    """Compare the digest of an encoder's files with the recorded one, if there is one.

    Raises:
        ScoringError: They differ.
    """
    if feature.digest not in ("", digest):
        raise ScoringError(
            f"feature '{feature.name}': the files of the encoder {feature.encoder} have the digest {digest[:12]}, and "
            f"had {feature.digest[:12]} at the conversion; restore them, or convert the data again (with a spec that "
            f"has no digest)"
        )


def check_size(feature: TextEmbedding, size: int) -> None:
    """Compare the length of an encoder's vectors with the recorded one, if there is one.

    Raises:
        ScoringError: They differ.
    """
    if feature.size not in (0, size):
        raise ScoringError(
            f"feature '{feature.name}': the encoder {feature.encoder} gives vectors of {size} numbers, the spec says "
            f"{feature.size}; correct size, or leave it out"
        )


def graph_encoders(folder: Path, features: Iterable[Feature]) -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """Return by feature the encoders in a model's folder that its graph can call, see :meth:`TextEncoder.in_graph`.

    The folder keeps a list of the others, for :func:`taken_as_vectors`. Imports the encoders' libraries.
    """
    texts = [feature for feature in features if isinstance(feature, TextEmbedding)]
    parts = {one.name: load_encoder(_copy_of(one, folder), settings_of(one)).in_graph() for one in texts}
    if texts:
        others = [name for name, part in parts.items() if part is None]
        (folder / ENCODERS_FOLDER / _VECTORS_FILE).write_text(json.dumps(others), encoding="utf-8")
    return {name: part for name, part in parts.items() if part is not None}


def taken_as_vectors(folder: Path) -> frozenset[str]:
    """Return the embedded texts that the raw signature of the model in ``folder`` takes as vectors."""
    file = folder / ENCODERS_FOLDER / _VECTORS_FILE
    return frozenset(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else frozenset()


def encoder_versions(folder: Path, features: Iterable[TextEmbedding]) -> dict[str, str]:
    """Return the versions here of the libraries that run the encoders of ``features`` in a model's folder."""
    libraries = {name for feature in features for name in encoder_libraries(_copy_of(feature, folder))}
    return versions_here(sorted(libraries), has_hooks=False)


class ModelEncoders:
    """The loaded encoders of a model. Thread-safe as far as their libraries are."""

    def __init__(self, folder: Path, features: Iterable[Feature], *, threads: int | None = None) -> None:
        """Load them, each once, and warn if other versions of their libraries ran them at the export.

        Args:
            folder: Folder of the model.
            features: The features, of which others than embedded texts are ignored.
            threads: As for :class:`scoring.model.loaded.LoadedModel`.

        Raises:
            ScoringError: An encoder cannot be used.
            UnsupportedModelError: An encoder cannot be loaded.
            ModuleNotFoundError: A library is not installed here.
        """
        load = cache(partial(load_encoder, threads=threads))
        self._encoders = {
            feature: load(_copy_of(feature, folder), settings_of(feature))
            for feature in features
            if isinstance(feature, TextEmbedding)
        }
        if self._encoders:
            tell_encoder_versions(exported_with(folder))

    def embedded(self, rows: Rows, known: pa.Table | None = None) -> Rows:
        """Return ``rows`` with embedded texts; columns of texts that are embedded already stay as they are.

        The vectors are those of the conversion but for the last bits, which the number of texts in a call may change.

        Args:
            rows: The rows.
            known: Rows with embedded texts, whose vectors are taken for equal texts.

        Raises:
            ColumnError: A column is missing or holds no strings.
            ScoringError: An encoder gives a vector of another length, or one that is not finite.
        """
        for feature, encoder in self._encoders.items():
            place = rows.schema.get_field_index(feature.name)
            if place < 0 or not is_embedded(rows.schema.field(place).type):
                texts = single_spaced(raw_column(rows, feature))
                # Equal texts are encoded once.
                coded = texts.dictionary_encode()
                found = None if known is None else known[feature.name].combine_chunks().drop_null()
                vectors = _vectors(feature, encoder, coded.dictionary, found)
                column = embedded_texts(texts, vectors[coded.indices.drop_null().to_numpy()])
                rows = rows.set_column(place, feature.name, column)
        return rows


def _vectors(
    feature: TextEmbedding, encoder: TextEncoder, texts: pa.StringArray, known: pa.StructArray | None
) -> np.ndarray:
    """Return the vectors of texts, float32 ``[texts, size]``, of which those that are not known are encoded."""
    vectors = np.zeros((len(texts), feature.size), np.float32)
    is_new = np.ones(len(texts), bool)
    if known is not None:
        places = pc.index_in(texts, value_set=pc.struct_field(known, TEXT))
        is_new = places.is_null().to_numpy(zero_copy_only=False)
        of_known = pc.struct_field(known, VECTOR).flatten().to_numpy().reshape(-1, feature.size)
        vectors[~is_new] = of_known[places.drop_null().to_numpy()]
    if is_new.any():
        encoded = encoder.encode(texts.filter(pa.array(is_new)).to_pylist())
        check_size(feature, encoded.shape[1])
        vectors[is_new] = encoded
    return vectors


def _copy_of(feature: TextEmbedding, folder: Path) -> Path:
    return folder / ENCODERS_FOLDER / feature.digest[:_DIGITS_OF_FOLDER]
