"""Tables of items: the candidates' own features, encoded by the candidates' ids."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, ItemTable
from mirrorspark.data_pipelines.features.raw_columns import ColumnError, raw_column, raw_inputs
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import Encoder
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary


def item_keys(spec: FeatureSpec, items: pa.Table) -> pa.StringArray:
    """Return the keys of a table of items as tokens.

    Args:
        spec: The spec of the items.
        items: The table.

    Raises:
        ColumnError: The key is missing, of a wrong type, null or empty in a row, or the same in two rows.
    """
    keys = raw_column(items, spec.candidate)
    name = spec.candidate.name
    if pc.any(pc.equal(pc.fill_null(keys, ""), "")).as_py():
        raise ColumnError(f"the key '{name}' of the items is null or empty in a row; leave such rows out")
    counts = pc.value_counts(keys)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        raise ColumnError(
            f"the item {repeated[0].as_py()!r} has more than one row in the table of items; keep one row per '{name}'"
        )
    return keys


def with_items(fitted: FittedFeatures, of_items: FittedFeatures, items: pa.Table) -> FittedFeatures:
    """Return ``fitted`` with a table of items, whose keys all become candidates.

    Args:
        fitted: The features that were fitted to the training rows.
        of_items: The features of the items, fitted to ``items``.
        items: The table of items.

    Raises:
        ColumnError: As :func:`item_keys` says.
    """
    keys = item_keys(of_items.spec, items)
    candidate, key = fitted.spec.candidate, of_items.spec.candidate.name
    vocabulary = _extended(fitted.vocabulary(candidate), keys)
    ids = vocabulary.ids(keys)
    # In the order of the ids, so that the same table gives the same file whatever the order of its rows.
    order = pa.array(np.argsort(ids))
    raw = raw_inputs(items, of_items.spec).append_column(key, keys).take(order).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, raw.schema) as writer:
        writer.write_table(raw)
    own = replace(of_items, vocabularies={**of_items.vocabularies, key: vocabulary})
    return replace(
        fitted,
        vocabularies={**fitted.vocabularies, fitted.spec.vocabulary_name(candidate): vocabulary},
        items=ItemTable(own, sink.getvalue()),
    )


def encoded_items(items: ItemTable) -> dict[str, np.ndarray]:
    """Return the model's inputs of the items' features by the candidates' ids, ``[ids, ...]``.

    Ids without an item (missing, out of vocabulary, candidates that the table of items lacks) have zeros.
    """
    spec = items.features.spec
    ids = items.features.vocabulary(spec.candidate).ids(raw_column(items.rows, spec.candidate))
    found = {}
    for name, values in Encoder(items.features).encode_padded(items.rows, spec.query_features).items():
        found[name] = np.zeros((items.features.id_count(spec.candidate), *values.shape[1:]), values.dtype)
        found[name][ids] = values
    return found


def _extended(vocabulary: Vocabulary, keys: pa.StringArray) -> Vocabulary:
    """Return ``vocabulary`` followed by those of ``keys`` that it lacks, with the count 0."""
    new = keys.filter(pc.invert(pc.is_in(keys, value_set=pa.chunked_array(vocabulary.tokens).combine_chunks())))
    new = new.take(pc.sort_indices(new))
    tokens = pa.chunked_array([*vocabulary.pieces(), new], pa.string())
    counts = [*pa.chunked_array(vocabulary.counts).chunks, pa.array(np.zeros(len(new), np.int64))]
    return Vocabulary(tokens, pa.chunked_array(counts, pa.int64()))
