"""Tables of items: the candidates' own features, encoded by the candidates' ids."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, ItemTable
from mirrorspark.data_pipelines.features.kinds import FIRST_VOCABULARY_ID, Feature, Sparse
from mirrorspark.data_pipelines.features.raw_columns import ColumnError, raw_column, raw_inputs
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import EncodedRows, Encoder, SparseRows
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary

# Rows that are encoded at a time to compare two tables.
_COMPARED_AT_ONCE = 1 << 16


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
        first = min(repeated.to_pylist())
        raise ColumnError(f"the item {first!r} has more than one row in the table of items; keep one row per '{name}'")
    return keys


def with_items(fitted: FittedFeatures, of_items: FittedFeatures, items: pa.Table) -> FittedFeatures:
    """Return ``fitted`` with a table of items, whose keys all become candidates.

    Args:
        fitted: The features that were fitted to the training rows.
        of_items: The features of the items, fitted to ``items``.
        items: The table of items.

    Raises:
        ColumnError: See :func:`item_keys`.
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


def with_catalogue(fitted: FittedFeatures, items: pa.Table, trained: int) -> FittedFeatures:
    """Return ``fitted`` with another table of items, which is encoded as the training fitted it.

    The candidates of the training keep their ids. Keys that are new since follow them, with the count 0; those of an
    earlier table of items that ``items`` lacks are forgotten.

    Args:
        fitted: Features with items.
        items: The table of items.
        trained: Number of candidates at training.

    Raises:
        ColumnError: See :func:`item_keys`.
    """
    assert fitted.items is not None  # noqa: S101 - the caller refuses models without items
    name = fitted.spec.vocabulary_name(fitted.spec.candidate)
    known = fitted.vocabularies[name]
    trained_alone = {**fitted.vocabularies, name: Vocabulary(known.tokens[:trained], known.counts[:trained])}
    return with_items(replace(fitted, vocabularies=trained_alone), fitted.items.features, items)


def with_changes(items: ItemTable, changes: pa.Table | None, removed: Collection[str]) -> pa.Table:
    """Return all rows of ``items``, with new and changed ones from ``changes`` and without those that are removed.

    Args:
        items: The table of items.
        changes: Rows whose keys are new or replace a row; None if there are none.
        removed: Keys of rows to leave out.

    Raises:
        ColumnError: See :func:`item_keys`; or ``removed`` names an item that does not exist, or that ``changes`` has.
    """
    spec = items.features.spec
    keys = raw_column(items.rows, spec.candidate)
    gone = pa.array(sorted(removed), pa.string())
    unknown = gone.filter(pc.invert(pc.is_in(gone, value_set=keys)))
    if len(unknown):
        raise ColumnError(f"the model has no items {unknown[:5].to_pylist()} to remove ({len(unknown)} in all)")
    if changes is None:
        return items.rows.filter(pc.invert(pc.is_in(keys, value_set=gone)))
    new = item_keys(spec, changes)
    both = gone.filter(pc.is_in(gone, value_set=new))
    if len(both):
        raise ColumnError(f"items to remove are in the table of changes, too: {both[:5].to_pylist()}")
    stays = pc.invert(pc.is_in(keys, value_set=pa.chunked_array([gone, new])))
    added = raw_inputs(changes, spec).append_column(spec.candidate.name, new)
    return pa.concat_tables([items.rows.filter(stays), added.select(items.rows.column_names).cast(items.rows.schema)])


def ids_without_item(fitted: FittedFeatures) -> np.ndarray:
    """Return the ids of the candidates that the table of items lacks: int64 ``[any]``, ascending."""
    assert fitted.items is not None  # noqa: S101 - the caller has a model with items
    return _ids_without_item(fitted.items)


def _ids_without_item(items: ItemTable) -> np.ndarray:
    count = items.features.id_count(items.features.spec.candidate)
    return np.setdiff1d(np.arange(FIRST_VOCABULARY_ID, count), _item_ids(items))


def known_values(items: ItemTable, feature: Feature) -> np.ndarray:
    """Return the ids whose item has a value of a feature: bool ``[ids]``."""
    column = raw_column(items.rows, feature)
    found = np.zeros(items.features.id_count(items.features.spec.candidate), bool)
    found[_item_ids(items)] = column.is_valid().to_numpy(zero_copy_only=False)
    return found


def _item_ids(items: ItemTable) -> np.ndarray:
    """Return the candidates' ids of the rows: int64 ``[items]``."""
    candidate = items.features.spec.candidate
    return items.features.vocabulary(candidate).ids(raw_column(items.rows, candidate))


@dataclass(frozen=True)
class ComparedItems:
    """Two tables of items for one model, compared by their encoded features.

    Attributes:
        changed: Number of items of both tables whose features differ.
        unknown: Number of items of the second table that are changed, or that the first one lacks.
        kept: int64 ``[2, any]``: the ids by each table of the other candidates. Their features are equal or neither
            table has them, so a tower gives them the same vectors.
    """

    changed: int
    unknown: int
    kept: np.ndarray


def compared_items(before: ItemTable, after: ItemTable, given: pa.StringArray | None = None) -> ComparedItems:
    """Compare a table of items with a later one of the same training.

    Args:
        before: The earlier table.
        after: The later one.
        given: Keys of the rows of ``after`` that may differ, the only ones that are encoded; None for all.
    """
    keys = [raw_column(table.rows, table.features.spec.candidate) for table in (before, after)]
    place = pc.index_in(keys[1], value_set=keys[0])
    both = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
    rows = place.drop_null().to_numpy()
    doubtful = np.arange(len(both))
    if given is not None:
        doubtful = np.flatnonzero(pc.is_in(keys[1].take(pa.array(both)), value_set=given))
    same = np.ones(len(both), bool)
    for start in range(0, len(doubtful), _COMPARED_AT_ONCE):
        some = doubtful[start : start + _COMPARED_AT_ONCE]
        # The keys' own ids depend on the table.
        old = _encoded(before.rows.take(pa.array(rows[some])), after.features)
        new = _encoded(after.rows.take(pa.array(both[some])), after.features)
        for name, values in new.items():
            same[some] &= ~_differ(values, old[name])
    # Only candidates of the training may lack an item, and their ids never change.
    nowhere = np.intersect1d(_ids_without_item(before), _ids_without_item(after))
    kept = [
        np.concatenate([np.arange(FIRST_VOCABULARY_ID), nowhere, _item_ids(table)[stayed[same]]])
        for table, stayed in ((before, rows), (after, both))
    ]
    return ComparedItems(len(both) - int(same.sum()), after.rows.num_rows - int(same.sum()), np.stack(kept))


def _differ(one: EncodedRows, other: EncodedRows) -> np.ndarray:
    """Return bool ``[rows]``, true where the rows of the same feature differ."""
    if isinstance(one, SparseRows) and isinstance(other, SparseRows):
        found = one.row_lengths != other.row_lengths
        alike = np.flatnonzero(~found)
        one, other = one.at(alike), other.at(alike)
        is_other_entry = (one.indices != other.indices) | (one.values != other.values)
        found[alike[np.repeat(np.arange(len(alike)), one.row_lengths)[is_other_entry]]] = True
        return found
    assert isinstance(one, np.ndarray)  # noqa: S101 - both are of one feature
    assert isinstance(other, np.ndarray)  # noqa: S101 - as above
    one, other = _of_equal_width(one, other)
    return np.asarray((one != other).reshape(len(one), -1).any(axis=1))


def _of_equal_width(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both arrays, the narrower padded with zeros: lists of any length are as the longest."""
    if one.ndim == 1:
        return one, other
    width = max(one.shape[1], other.shape[1])
    padded = [np.pad(values, [(0, 0), (0, width - values.shape[1])]) for values in (one, other)]
    return padded[0], padded[1]


def encoded_items(items: ItemTable, without: np.ndarray | None = None) -> dict[str, EncodedRows]:
    """Return the items' features by the candidates' ids, ``[ids, ...]``; sparse ones stay compressed.

    Ids without an item (missing, out of vocabulary, candidates that the table of items lacks) have zeros.

    Args:
        items: The table.
        without: int64 ``[any]``, ids whose items are not needed; they have zeros, too.
    """
    id_count, ids, rows = items.features.id_count(items.features.spec.candidate), _item_ids(items), items.rows
    if without is not None:
        is_needed = ~np.isin(ids, without)
        ids, rows = ids[is_needed], rows.filter(pa.array(is_needed))
    return {name: _placed(values, ids, id_count) for name, values in _encoded(rows, items.features).items()}


def _encoded(rows: pa.Table, fitted: FittedFeatures) -> dict[str, EncodedRows]:
    """Return the features of items but their key, for each row."""
    features = fitted.spec.query_features
    padded = Encoder(fitted).encode_padded(rows, features)
    return {
        one.name: SparseRows(*(padded[part] for part in one.parts)) if isinstance(one, Sparse) else padded[one.name]
        for one in features
    }


def _placed(values: EncodedRows, places: np.ndarray, count: int) -> EncodedRows:
    """Return ``count`` rows, with those of ``values`` at their ``places`` and zeros elsewhere."""
    if isinstance(values, SparseRows):
        row_lengths = np.zeros(count, np.int64)
        row_lengths[places] = values.row_lengths
        return replace(values.at(np.argsort(places)), row_lengths=row_lengths)
    placed = np.zeros((count, *values.shape[1:]), values.dtype)
    placed[places] = values
    return placed


def _extended(vocabulary: Vocabulary, keys: pa.StringArray) -> Vocabulary:
    """Return ``vocabulary`` followed by those of ``keys`` that it lacks, with the count 0."""
    new = keys.filter(pc.invert(pc.is_in(keys, value_set=pa.chunked_array(vocabulary.tokens).combine_chunks())))
    new = new.take(pc.sort_indices(new))
    tokens = pa.chunked_array([*vocabulary.pieces(), new], pa.string())
    counts = [*pa.chunked_array(vocabulary.counts).chunks, pa.array(np.zeros(len(new), np.int64))]
    return Vocabulary(tokens, pa.chunked_array(counts, pa.int64()))
