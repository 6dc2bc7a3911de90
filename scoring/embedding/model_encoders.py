"""The encoders of a model's texts and images: their copies in its folder, and their use."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features import FittedFeatures, embedded_columns, kinds, raw_columns, text_rules
from mirrorspark.scoring.embedding.encoder import encoder_folder, encoder_libraries, load_encoder
from mirrorspark.scoring.embedding.image_encoder import key_of
from mirrorspark.scoring.embedding.settings import EncoderSettings, ImageSettings, Settings
from mirrorspark.scoring.embedding.vectors import Encoder, readable_vectors
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input import RowErrors
from mirrorspark.scoring.model.folder import FEATURES_FOLDER, exported_with
from mirrorspark.scoring.model.loading import versions_here, warn_of_encoder_versions
from mirrorspark.scoring.model.stored import folder_digest

# Next to the features' folder, not in it: the digest of that folder is computed whenever a model is opened.
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
    copies = {_copy_of(feature, folder): feature for feature in fitted.spec.embedded}
    for copy, feature in copies.items():
        with encoder_folder(feature.encoder) as found:
            # An export that was interrupted may have left a part.
            shutil.copytree(found, copy, dirs_exist_ok=True)
        check_digest(feature, folder_digest(copy))


def settings_of(feature: kinds.EmbeddedFeature, batch_size: int = EncoderSettings.batch_size) -> Settings:
    """Return the settings of the encoder of ``feature``."""
    if isinstance(feature, kinds.ImageEmbedding):
        limits = (feature.max_bytes, feature.max_pixels)
        return ImageSettings(feature.signature, feature.model_output, *limits, batch_size)
    return EncoderSettings(feature.signature, feature.model_output, feature.max_length, batch_size)


def check_digest(feature: kinds.EmbeddedFeature, digest: str) -> None:
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


def check_size(feature: kinds.EmbeddedFeature, size: int) -> None:
    """Compare the length of an encoder's vectors with the recorded one, if there is one.

    Raises:
        ScoringError: They differ.
    """
    if feature.size not in (0, size):
        raise ScoringError(
            f"feature '{feature.name}': the encoder {feature.encoder} gives vectors of {size} numbers, the spec says "
            f"{feature.size}; correct size, or leave it out"
        )


def graph_encoders(folder: Path, features: Iterable[kinds.Feature]) -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """Return by feature the encoders in a model's folder that its graph can call, see :meth:`Encoder.in_graph`.

    The folder keeps a list of the others, for :func:`taken_as_vectors`. Imports the encoders' libraries.
    """
    embedded = [feature for feature in features if isinstance(feature, kinds.EmbeddedFeature)]
    parts = {one.name: load_encoder(_copy_of(one, folder), settings_of(one)).in_graph() for one in embedded}
    if embedded:
        others = [name for name, part in parts.items() if part is None]
        (folder / ENCODERS_FOLDER / _VECTORS_FILE).write_text(json.dumps(others), encoding="utf-8")
    return {name: part for name, part in parts.items() if part is not None}


def taken_as_vectors(folder: Path) -> frozenset[str]:
    """Return the texts and images that the raw signature of the model in ``folder`` takes as their vectors."""
    file = folder / ENCODERS_FOLDER / _VECTORS_FILE
    return frozenset(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else frozenset()


def encoder_versions(folder: Path, features: Iterable[kinds.EmbeddedFeature]) -> dict[str, str]:
    """Return the versions here of the libraries that run the encoders of ``features`` in a model's folder."""
    libraries = {name for feature in features for name in encoder_libraries(_copy_of(feature, folder))}
    return versions_here(sorted(libraries), has_hooks=False)


class ModelEncoders:
    """The loaded encoders of a model. Thread-safe as their libraries are."""

    def __init__(self, folder: Path, features: Iterable[kinds.Feature], *, threads: int | None = None) -> None:
        """Load them, each once, and warn if other versions of their libraries ran them at the export.

        Args:
            folder: Folder of the model.
            features: The features, of which others than texts and images to embed are ignored.
            threads: See :class:`scoring.model.loading.LoadedModel`.

        Raises:
            ScoringError: An encoder cannot be used.
            UnsupportedModelError: An encoder cannot be loaded.
            ModuleNotFoundError: A library is not installed here.
        """
        load = cache(partial(load_encoder, threads=threads))
        self._encoders = {
            feature: load(_copy_of(feature, folder), settings_of(feature))
            for feature in features
            if isinstance(feature, kinds.EmbeddedFeature)
        }
        if self._encoders:
            warn_of_encoder_versions(exported_with(folder))

    def embedded(self, rows: Rows, known: pa.Table | None = None) -> Rows:
        """Return ``rows`` with embedded texts and images; columns that are embedded already stay as they are.

        The vectors are those of the conversion but for the last bits, which the number of texts in a call may change.

        Args:
            rows: The rows.
            known: Rows with embedded columns, whose vectors are taken for equal texts and images.

        Raises:
            ColumnError: A column is missing or has another type, or an image cannot be read.
            ScoringError: An encoder gives a vector of another length, or one that is not finite.
        """
        found, errors = self.examined(rows, known)
        for message in errors.values():
            raise raw_columns.ColumnError(message)
        return found

    def examined(self, rows: Rows, known: pa.Table | None = None) -> tuple[Rows, RowErrors]:
        """Return the result of :meth:`embedded` with nulls for images that cannot be read, and their rows.

        Raises:
            ColumnError: A column is missing or has another type.
            ScoringError: See :meth:`embedded`.
        """
        errors: RowErrors = {}
        for feature, encoder in self._encoders.items():
            place = rows.schema.get_field_index(feature.name)
            if place < 0 or embedded_columns.embedded_content(rows.schema.field(place).type) is None:
                # Equal ones are encoded once.
                coded = _present(feature, raw_columns.raw_column(rows, feature)).dictionary_encode()
                names = _names(feature, coded.dictionary)
                of_known = None if known is None else known[feature.name].combine_chunks().drop_null()
                vectors, reasons = _vectors(feature, encoder, coded.dictionary, names, of_known)
                errors = _messages(feature, coded.indices, reasons) | errors
                codes = _without(coded.indices, reasons)
                column = embedded_columns.embedded_column(
                    names.take(codes), vectors[codes.drop_null().to_numpy()], embedded_columns.CONTENTS[type(feature)]
                )
                rows = rows.set_column(place, feature.name, column)
        return rows, dict(sorted(errors.items()))


def _present(feature: kinds.EmbeddedFeature, column: pa.Array) -> pa.Array:
    """Return texts with single spaces, or images; null for those that are missing."""
    if isinstance(feature, kinds.ImageEmbedding):
        return pc.if_else(pc.equal(pc.binary_length(column), 0), pa.scalar(None, column.type), column)
    return text_rules.single_spaced(column)


def _names(feature: kinds.EmbeddedFeature, contents: pa.Array) -> pa.StringArray:
    """Return the contents as an embedded column stores them: the texts, or the SHA-256 of images."""
    if not isinstance(feature, kinds.ImageEmbedding):
        return contents
    return pa.array([key_of(image) for image in contents.to_pylist()], pa.string())


def _vectors(
    feature: kinds.EmbeddedFeature,
    encoder: Encoder,
    contents: pa.Array,
    names: pa.StringArray,
    known: pa.StructArray | None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Return the vectors of texts or images, float32 ``[contents, size]``, and the reasons by place of unreadable ones.

    Those that are not known are encoded.
    """
    vectors = np.zeros((len(contents), feature.size), np.float32)
    is_new = np.ones(len(contents), bool)
    if known is not None:
        places = pc.index_in(names, value_set=pc.struct_field(known, embedded_columns.CONTENTS[type(feature)]))
        is_new = places.is_null().to_numpy(zero_copy_only=False)
        of_known = pc.struct_field(known, embedded_columns.VECTOR).flatten().to_numpy().reshape(-1, feature.size)
        vectors[~is_new] = of_known[places.drop_null().to_numpy()]
    new = np.flatnonzero(is_new)
    if not len(new):
        return vectors, {}
    encoded, reasons = readable_vectors(encoder, contents.take(pa.array(new)).to_pylist())
    if len(encoded):
        check_size(feature, encoded.shape[1])
        vectors[np.delete(new, list(reasons))] = encoded
    return vectors, {int(new[place]): reason for place, reason in reasons.items()}


def _messages(feature: kinds.EmbeddedFeature, codes: pa.Array, reasons: Mapping[int, str]) -> RowErrors:
    """Return the rows with one of the contents that cannot be read."""
    if not reasons:
        return {}
    return {
        row: f"column '{feature.name}' has an image that cannot be read: {reasons[code]}"
        for row, code in enumerate(codes.to_pylist())
        if code in reasons
    }


def _without(codes: pa.Array, reasons: Mapping[int, str]) -> pa.Array:
    """Return ``codes`` with nulls for contents that cannot be read."""
    if not reasons:
        return codes
    is_bad = pc.is_in(codes, value_set=pa.array(list(reasons), codes.type))
    return pc.if_else(is_bad, pa.scalar(None, codes.type), codes)


def _copy_of(feature: kinds.EmbeddedFeature, folder: Path) -> Path:
    return folder / ENCODERS_FOLDER / feature.digest[:_DIGITS_OF_FOLDER]
