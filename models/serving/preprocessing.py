"""The feature transform as graph operations, so that an exported model accepts raw columns.

It is bit-equal to :mod:`data_pipelines.features.transform`, which a test verifies: numbers use the same operations
(:mod:`data_pipelines.features.arithmetic`), tokens the same vocabulary or hash function, texts the same normalisation.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import pyarrow.compute as pc
import tensorflow as tf

from mirrorspark.data_pipelines.features import (
    FittedFeatures,
    SparseRows,
    Vocabulary,
    arithmetic,
    bucket_boundaries,
    date_formats,
    file_name,
    imputed_value,
    kinds,
    raw_columns,
    text_rules,
)
from mirrorspark.models.serving.saved_functions import state
from mirrorspark.models.serving.text_normalisation import GraphNormaliser, graph_split, graph_subwords

# A serialized graph is limited to 2 GiB, and a token takes some bytes more than its own there.
MOST_CONSTANT_BYTES = 1 << 30

# TensorFlow's line reader drops carriage returns anywhere in a line.
_LINE_BREAK = r"[\r\n]"

_RAW_SPECS: Mapping[kinds.RawForm, tuple[list[None], tf.DType]] = {
    "number": ([None], tf.float64),
    "token": ([None], tf.string),
    "tokens": ([None, None], tf.string),
    "date": ([None], tf.string),
    "times": ([None, None], tf.int64),
    "indices": ([None, None], tf.int64),
    "values": ([None, None], tf.float64),
    "bytes": ([None], tf.string),
}

_DTYPES: Mapping[kinds.Form, tf.DType] = {"value": tf.float32, "id": tf.int64, "ids": tf.int64, "sparse": tf.float32}


GraphEncoders: TypeAlias = Mapping[str, tuple[Any, Callable[[tf.Tensor], tf.Tensor]]]
"""Per feature an encoder of texts or images: the object with its variables and tables, and its function from strings
``[batch]``, texts or the bytes of images, to vectors ``[batch, size]``.
"""


class GraphEncoder(tf.Module):
    """Converts raw tensors (:data:`data_pipelines.features.kinds.RawForm`) to model inputs."""

    def __init__(
        self,
        fitted: FittedFeatures,
        features: Iterable[kinds.Feature],
        encoders: GraphEncoders = MappingProxyType({}),
    ) -> None:
        """Prepare the transform of ``features``; texts and images without an encoder are given as their vectors."""
        super().__init__(name="raw_columns")
        self.fitted = fitted
        self._features = tuple(features)
        self._embed = {name: function for name, (_, function) in encoders.items()}
        self._embed_state = [state(module) for module, _ in encoders.values()]
        self._numbers = arithmetic.tensorflow()
        looked_up = {
            fitted.spec.vocabulary_name(feature): feature
            for feature in self._features
            if isinstance(feature, kinds.VocabularyOwner) and fitted.spec.hash_buckets(feature) is None
        }
        # Exporting copies the vocabulary files into the SavedModel; until then this object owns them.
        folder = tempfile.mkdtemp(prefix="mirrorspark-vocabularies-")
        self._vocabulary_files = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._tables = {
            name: _lookup_table(fitted.vocabulary(feature), Path(folder) / f"{file_name(name)}.txt")
            for name, feature in looked_up.items()
        }
        self._means = {
            feature.name: tf.Variable(fitted.target_inputs[feature.name], trainable=False)
            for feature in self._features
            if isinstance(feature, kinds.TargetEncoding)
        }
        self._ranks = {
            feature.name: _rank_table(feature) for feature in self._features if isinstance(feature, kinds.Ordinal)
        }
        self._normalise = (
            GraphNormaliser() if any(isinstance(feature, kinds.Text) for feature in self._features) else None
        )

    def signature(self) -> dict[str, tf.TensorSpec]:
        """Return the specs of the raw tensors for :meth:`__call__`."""
        return {
            name: tf.TensorSpec(*_RAW_SPECS["values" if self._takes_vectors(feature) else form], name)
            for feature in self._features
            for name, form in feature.raw.items()
        }

    def _takes_vectors(self, feature: kinds.Feature) -> bool:
        return isinstance(feature, kinds.EmbeddedFeature) and feature.name not in self._embed

    def __call__(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor | tf.SparseTensor]:
        """Return the model's inputs, as :meth:`data_pipelines.features.transform.Encoder.encode` does.

        Raises:
            tf.errors.InvalidArgumentError: (When run.) A sparse index is not below the feature's size, corresponding
                tensors differ in shape, or a vector has another size than its feature.
        """
        return {
            feature.name: _ENCODERS[type(feature)](self, feature, *(raw[name] for name in feature.raw))
            for feature in self._features
        }

    def number(self, feature: kinds.Numeric, raw: tf.Tensor) -> tf.Tensor:
        """Return float32 ``[batch]``."""
        offset, divisor = self.fitted.scaling(feature)
        values = arithmetic.measured(raw, feature, self._numbers)
        missing, bounds = imputed_value(self.fitted, feature), self.fitted.bounds(feature)
        return arithmetic.standardised(values, missing, offset, divisor, self._numbers, bounds)

    def rank(self, feature: kinds.Ordinal, tokens: tf.Tensor) -> tf.Tensor:
        """Return float32 ``[batch]``."""
        return self.number(feature, self._ranks[feature.name].lookup(tokens))

    def token_number(self, feature: kinds.TokenNumber, tokens: tf.Tensor) -> tf.Tensor:
        """Return float32 ``[batch]``."""
        is_number = tf.strings.regex_full_match(tokens, raw_columns.WHOLE_NUMBER)
        numbers = tf.strings.to_number(tf.where(is_number, tokens, "0"), tf.float64)
        return self.number(feature, tf.where(is_number, numbers, tf.constant(np.nan, tf.float64)))

    def target_mean(self, feature: kinds.TargetEncoding, *columns: tf.Tensor) -> tf.Tensor:
        """Return float32 ``[batch]``."""
        tokens = [
            _whole_number_tokens(column) if name in feature.numbers else column
            for name, column in zip(feature.of, columns, strict=True)
        ]
        return tf.gather(
            self._means[feature.name], self.ids(feature, tf.strings.join(tokens, raw_columns.GROUP_SEPARATOR))
        )

    def date(self, feature: kinds.Date, texts: tf.Tensor) -> tf.Tensor:
        """Return float32 ``[batch]``."""
        days = tf.fill(tf.shape(texts), tf.constant(np.nan, tf.float64))
        for order in date_formats.orders_read(feature.order):
            days = tf.where(tf.math.is_nan(days), _days(order, texts), days)
        return self.number(feature, days)

    def bucket(self, feature: kinds.Bucketed, raw: tf.Tensor) -> tf.Tensor:
        """Return int64 ``[batch]``."""
        values = arithmetic.without_denormals(raw, self._numbers)
        boundaries = tf.constant(bucket_boundaries(self.fitted, feature), tf.float64)
        buckets = tf.searchsorted(boundaries, values, side="right", out_type=tf.int64)
        return tf.where(tf.math.is_nan(raw), _int64(kinds.MISSING_ID), buckets + kinds.FIRST_VOCABULARY_ID)

    def ids(self, feature: kinds.VocabularyOwner, tokens: tf.Tensor) -> tf.Tensor:
        """Return the id of each token: int64 in the shape of ``tokens``."""
        buckets = self.fitted.spec.hash_buckets(feature)
        if buckets is None:
            ids = self._tables[self.fitted.spec.vocabulary_name(feature)].lookup(tokens)
        else:
            ids = tf.strings.to_hash_bucket_fast(tokens, buckets) + kinds.FIRST_VOCABULARY_ID
        return tf.where(tf.equal(tokens, ""), _int64(kinds.MISSING_ID), ids)

    def id_list(self, feature: kinds.MultiValued, tokens: tf.Tensor) -> tf.Tensor:
        """Return int64 ``[batch, max_length]`` for tokens ``[batch, any]``."""
        ids = self.ids(feature, tokens)
        return _cut(feature, tf.ragged.boolean_mask(ids, tf.not_equal(ids, kinds.MISSING_ID)))

    def recent_ids(self, feature: kinds.Sequence, tokens: tf.Tensor, times: tf.Tensor) -> tf.Tensor:
        """Return int64 ``[batch, max_length]`` for tokens and times ``[batch, any]``."""
        message = f"feature '{feature.name}': every token needs its time"
        tf.debugging.assert_equal(tf.shape(tokens), tf.shape(times), message)
        ids = tf.gather(self.ids(feature, tokens), tf.argsort(times, axis=1, stable=True), batch_dims=1)
        return _cut(feature, tf.ragged.boolean_mask(ids, tf.not_equal(ids, kinds.MISSING_ID)))

    def text_ids(self, feature: kinds.Text, texts: tf.Tensor) -> tf.Tensor:
        """Return int64 ``[batch, max_length]`` for texts ``[batch]``."""
        assert self._normalise is not None  # noqa: S101 - there is a text
        tokens = graph_split(self._normalise(texts), feature.pattern)
        if feature.ngrams is not None:
            tokens = graph_subwords(tokens, feature.ngrams)
        return _cut(feature, tokens.with_flat_values(self.ids(feature, tokens.flat_values)))

    def sparse(self, feature: kinds.Sparse, indices: tf.Tensor, values: tf.Tensor) -> tf.SparseTensor:
        """Return a sparse float32 ``[batch, size]`` for indices and values ``[batch, any]``."""
        message = f"feature '{feature.name}': every index needs its value"
        tf.debugging.assert_equal(tf.shape(indices), tf.shape(values), message)
        is_entry = (indices >= 0) & ~tf.math.is_nan(values)
        last = tf.constant(tf.int64.max, tf.int64)
        columns = tf.where(is_entry, indices, last)
        order = tf.argsort(columns, axis=1, stable=True)
        columns, values = (tf.gather(tensor, order, batch_dims=1) for tensor in (columns, values))
        places = tf.where(columns < last)
        columns, values = tf.gather_nd(columns, places), tf.gather_nd(values, places)
        message = f"feature '{feature.name}' has an index that is not below its size {feature.size}"
        tf.debugging.assert_less(columns, _int64(feature.size), message)
        values = arithmetic.without_denormals(values, self._numbers, arithmetic.LEAST_FLOAT32)
        return tf.SparseTensor(
            tf.stack([places[:, 0], columns], axis=1),
            tf.cast(values, tf.float32),
            tf.stack([tf.shape(indices, tf.int64)[0], _int64(feature.size)]),
        )

    def embedding(self, feature: kinds.EmbeddedFeature, raw: tf.Tensor) -> tf.Tensor:
        """Return float32 ``[batch, size]`` for texts or images ``[batch]``, without an encoder for their vectors."""
        if self._takes_vectors(feature):
            return self.vector(feature, raw)
        contents = raw
        if isinstance(feature, kinds.TextEmbedding):
            contents = tf.strings.regex_replace(tf.strings.regex_replace(raw, text_rules.WHITE_SPACE, " "), "^ | $", "")
        vectors = self._embed[feature.name](contents)
        present = tf.where(tf.equal(contents, "")[:, tf.newaxis], tf.zeros_like(vectors), vectors)
        return self.vector(feature, tf.cast(present, tf.float64))

    def vector(self, feature: kinds.VectorFeature, values: tf.Tensor) -> tf.Tensor:
        """Return float32 ``[batch, size]`` for values ``[batch, size]``, or ``[batch, 0]`` if all are missing."""
        length = tf.shape(values)[1]
        message = f"feature '{feature.name}' has vectors of a length that is not its size {feature.size}"
        tf.debugging.assert_equal((length == 0) | (length == feature.size), True, message)
        filled = tf.pad(values, [[0, 0], [0, feature.size - length]])
        present = tf.where(tf.math.is_nan(filled), tf.zeros_like(filled), filled)
        wide = arithmetic.without_denormals(present, self._numbers, arithmetic.LEAST_FLOAT32)
        return tf.ensure_shape(tf.cast(wide, tf.float32), [None, feature.size])


_ENCODERS: Mapping[type[kinds.Feature], Callable[..., Any]] = {
    kinds.Numeric: GraphEncoder.number,
    kinds.Ordinal: GraphEncoder.rank,
    kinds.Date: GraphEncoder.date,
    kinds.TargetEncoding: GraphEncoder.target_mean,
    kinds.TokenNumber: GraphEncoder.token_number,
    kinds.Bucketed: GraphEncoder.bucket,
    kinds.Categorical: GraphEncoder.ids,
    kinds.MultiValued: GraphEncoder.id_list,
    kinds.Sequence: GraphEncoder.recent_ids,
    kinds.Text: GraphEncoder.text_ids,
    kinds.Sparse: GraphEncoder.sparse,
    kinds.Vector: GraphEncoder.vector,
    kinds.TextEmbedding: GraphEncoder.embedding,
    kinds.ImageEmbedding: GraphEncoder.embedding,
}


def encoded_signature(features: Iterable[kinds.Feature], any_length: Collection[str] = ()) -> dict[str, tf.TensorSpec]:
    """Return the specs of the tensors of ``Encoder.padded_parts`` for ``features``, for any batch size.

    Args:
        features: The features.
        any_length: Names of lists that may be padded to any length instead of their ``max_length``.
    """
    specs = {}
    for feature in features:
        if isinstance(feature, kinds.Sparse):
            for part, dtype in zip(feature.parts, (tf.int64, tf.float32, tf.int64), strict=True):
                specs[part] = tf.TensorSpec([None], dtype, part)
        elif isinstance(feature, kinds.ListFeature):
            is_open = feature.max_length == kinds.UNBOUNDED or feature.name in any_length
            specs[feature.name] = tf.TensorSpec([None, None if is_open else feature.max_length], tf.int64, feature.name)
        elif isinstance(feature, kinds.VectorFeature):
            specs[feature.name] = tf.TensorSpec([None, feature.size], tf.float32, feature.name)
        else:
            specs[feature.name] = tf.TensorSpec([None], _DTYPES[feature.form], feature.name)
    return specs


def model_inputs(
    features: Iterable[kinds.Feature], encoded: Mapping[str, tf.Tensor]
) -> dict[str, tf.Tensor | tf.SparseTensor]:
    """Return the model's inputs from the tensors of :func:`encoded_signature`, with assembled sparse tensors."""
    return {
        feature.name: sparse_tensor(feature.size, *(encoded[part] for part in feature.parts))
        if isinstance(feature, kinds.Sparse)
        else encoded[feature.name]
        for feature in features
    }


def encoded_tensors(
    features: Iterable[kinds.Feature], inputs: Mapping[str, tf.Tensor | tf.SparseTensor]
) -> dict[str, tf.Tensor]:
    """Return the tensors of :func:`encoded_signature` from the model's inputs: the inverse of :func:`model_inputs`."""
    tensors: dict[str, tf.Tensor] = {}
    for feature in features:
        value = inputs[feature.name]
        if isinstance(feature, kinds.Sparse):
            rows = tf.cast(value.dense_shape[0], tf.int32)
            lengths = tf.math.bincount(
                tf.cast(value.indices[:, 0], tf.int32), minlength=rows, maxlength=rows, dtype=tf.int64
            )
            tensors |= dict(zip(feature.parts, (value.indices[:, 1], value.values, lengths), strict=True))
        else:
            tensors[feature.name] = value
    return tensors


def input_tensors(
    features: Iterable[kinds.Feature], columns: Mapping[str, np.ndarray | SparseRows]
) -> dict[str, tf.Tensor | tf.SparseTensor]:
    """Return the model's inputs from decoded columns.

    The columns are those of :attr:`data_pipelines.dataset.block_format.Block.features`, for example.
    """
    tensors = {}
    for feature in features:
        column = columns[feature.name]
        if isinstance(column, SparseRows):
            assert isinstance(feature, kinds.Sparse)  # noqa: S101 - only sparse features are stored as SparseRows
            tensors[feature.name] = sparse_tensor(feature.size, column.indices, column.values, column.row_lengths)
        else:
            tensors[feature.name] = tf.constant(column)
    return tensors


def sparse_tensor(size: int, indices: tf.Tensor, values: tf.Tensor, row_lengths: tf.Tensor) -> tf.SparseTensor:
    """Return compressed sparse rows as a sparse float32 ``[batch, size]``.

    Args:
        size: Number of columns.
        indices: int64 ``[entries]``, the columns of all rows' entries.
        values: float32 ``[entries]``.
        row_lengths: int64 ``[batch]``, the number of entries of each row.
    """
    batch = tf.shape(row_lengths, tf.int64)[0]
    # tf.repeat would allocate the longest row's number of entries for every row.
    rows = tf.RaggedTensor.from_row_lengths(indices, row_lengths, validate=False).to_sparse().indices[:, 0]
    return tf.SparseTensor(tf.stack([rows, indices], axis=1), values, tf.stack([batch, _int64(size)]))


def _whole_number_tokens(numbers: tf.Tensor) -> tf.Tensor:
    limit = tf.constant(raw_columns.LARGEST_WHOLE_NUMBER, tf.float64)
    is_missing = tf.math.is_nan(numbers)
    whole = tf.clip_by_value(tf.where(is_missing, tf.zeros_like(numbers), numbers), -limit, limit)
    return tf.where(is_missing, "", tf.strings.as_string(tf.cast(whole, tf.int64)))


def _rank_table(feature: kinds.Ordinal) -> tf.lookup.StaticHashTable:
    ranks = tf.range(len(feature.order), dtype=tf.float64)
    initializer = tf.lookup.KeyValueTensorInitializer(tf.constant(feature.order, tf.string), ranks)
    return tf.lookup.StaticHashTable(initializer, default_value=tf.constant(np.nan, tf.float64))


def _days(order: date_formats.DateOrder, texts: tf.Tensor) -> tf.Tensor:
    """Return float64 ``[batch]``: days since the start of 1970, NaN for texts that are not dates in this order."""
    pattern = date_formats.DATE_PATTERNS[order]
    is_date = tf.strings.regex_full_match(texts, pattern.expression)
    dates = tf.where(is_date, texts, pattern.example)
    groups = {
        name: tf.strings.regex_replace(dates, pattern.expression, rf"\{place + 1}")
        for place, name in enumerate(pattern.groups)
    }
    parts = {"year": _int64(1970), "month": _int64(1), "day": _int64(1)}
    parts |= {name: _date_part(name, group) for name, group in groups.items()}
    instants, is_day = date_formats.microseconds(parts, tf.where)
    days = tf.cast(instants, tf.float64) / float(date_formats.MICROSECONDS_OF_A_DAY)
    return tf.where(is_date & is_day, days, tf.constant(np.nan, tf.float64))


def _date_part(name: str, texts: tf.Tensor) -> tf.Tensor:
    """Return the int64 number of one group of a date, as :mod:`data_pipelines.features.date_formats` reads it."""
    if name == "half":
        lower = tf.strings.lower(texts)
        return tf.cast(lower == "a", tf.int64) + 2 * tf.cast(lower == "p", tf.int64)
    if name == "zone":
        digits = tf.strings.regex_replace(texts, r":|^[^+-].*", "")
        hours, minutes = (
            _whole(tf.strings.regex_replace(digits, r"^[+-](..)(..)?$", rf"\{place}")) for place in (1, 2)
        )
        sign = tf.where(tf.strings.regex_full_match(digits, "-.*"), _int64(-1), _int64(1))
        return sign * (hours * 60 + minutes)
    if name == "fraction":
        return _whole(tf.strings.substr(tf.strings.join([texts, "000000"]), 0, 6))
    if name == "month":
        texts = tf.strings.lower(texts)
        for place, month in enumerate(date_formats.MONTHS):
            texts = tf.strings.regex_replace(texts, f"^{month}.*", str(place + 1))
    return _whole(texts)


def _whole(digits: tf.Tensor) -> tf.Tensor:
    return tf.strings.to_number(tf.where(tf.equal(digits, ""), "0", digits), tf.int64)


def _lookup_table(vocabulary: Vocabulary, file: Path) -> tf.lookup.StaticHashTable:
    """Return the lookup table of a vocabulary, whose tokens are written to ``file``, one per line.

    Tokens with line breaks are stored in the graph instead. A file may have any size, and is read line by line. A graph
    is limited to 2 GiB, and takes several times that in memory.

    Raises:
        ValueError: A token has a line break, and there are too many tokens for a graph.
    """
    if not len(vocabulary):  # TensorFlow reads no empty file; the missing token never gets to a table's value.
        initializer = tf.lookup.KeyValueTensorInitializer([""], [kinds.MISSING_ID], tf.string, tf.int64)
    elif any(pc.any(pc.match_substring_regex(piece, _LINE_BREAK)).as_py() for piece in vocabulary.pieces()):
        initializer = _constant_tokens(vocabulary, file.stem)
    else:
        _write_lines(vocabulary, file)
        initializer = tf.lookup.TextFileInitializer(
            str(file),
            key_dtype=tf.string,
            key_index=tf.lookup.TextFileIndex.WHOLE_LINE,
            value_dtype=tf.int64,
            value_index=tf.lookup.TextFileIndex.LINE_NUMBER,
            value_index_offset=kinds.FIRST_VOCABULARY_ID,
        )
    return tf.lookup.StaticHashTable(initializer, default_value=kinds.OUT_OF_VOCABULARY_ID)


def _constant_tokens(vocabulary: Vocabulary, name: str) -> tf.lookup.KeyValueTensorInitializer:
    size = sum(pc.sum(pc.binary_length(piece)).as_py() or 0 for piece in vocabulary.pieces())
    if size > MOST_CONSTANT_BYTES:
        raise ValueError(
            f"the vocabulary '{name}' has tokens with line breaks, so it must be in the model's graph, which cannot "
            f"hold its {size} bytes; replace line breaks in the query, or give the feature max_size or hash_buckets"
        )
    tokens = vocabulary.tokens.to_pylist()
    ids = tf.range(kinds.FIRST_VOCABULARY_ID, kinds.FIRST_VOCABULARY_ID + len(tokens), dtype=tf.int64)
    return tf.lookup.KeyValueTensorInitializer(tf.constant(tokens, tf.string), ids)


def _write_lines(vocabulary: Vocabulary, file: Path) -> None:
    with file.open("wb") as stream:
        for piece in vocabulary.pieces():
            lines = pc.binary_join_element_wise(piece, "", "\n")
            _, _, content = lines.buffers()
            stream.write(memoryview(content)[: pc.sum(pc.binary_length(lines)).as_py() or 0])


def _cut(feature: kinds.ListFeature, ids: tf.RaggedTensor) -> tf.Tensor:
    """Truncate rows of ids to ``max_length`` at the side set by the feature, and pad with 0 on the right."""
    if feature.max_length == kinds.UNBOUNDED:
        return ids.to_tensor(kinds.MISSING_ID)
    kept = ids[:, -feature.max_length :] if feature.truncate == "head" else ids[:, : feature.max_length]
    return kept.to_tensor(kinds.MISSING_ID, shape=[None, feature.max_length])


def _int64(value: int) -> tf.Tensor:
    return tf.constant(value, tf.int64)
