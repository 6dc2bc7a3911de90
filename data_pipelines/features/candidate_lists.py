"""Labels that are lists of candidates: a training row per candidate, and one row with all that it holds back."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features.labels import LabelError
from mirrorspark.data_pipelines.features.raw_columns import is_list
from mirrorspark.data_pipelines.features.spec import HELD_BACK, FeatureSpec

_ROWS_AT_ONCE = 10_000


def with_lists(spec: FeatureSpec, label_type: pa.DataType) -> FeatureSpec:
    """Return ``spec`` with the option ``lists`` of its label if the label's column has lists of candidates.

    Raises:
        LabelError: The label has lists and a rating, or the spec has the option and the column no lists.
    """
    label = spec.label
    if label.kind != "candidate" or label.lists == is_list(label_type):
        return spec
    if label.lists:
        raise LabelError(
            f"label '{label.name}' has type {label_type}, but the spec says lists: true; leave that out, or make the "
            f"column an array of candidates"
        )
    if label.rating is not None:
        raise LabelError(
            f"label '{label.name}' has lists of candidates (type {label_type}), but the rating '{label.rating}' is "
            f"one of a row; leave the rating out, or give the table a row per candidate"
        )
    return replace(spec, label=replace(label, lists=True))


def staged_schema(schema: pa.Schema, spec: FeatureSpec) -> pa.Schema:
    """Return the schema of rows after :func:`one_candidate_per_row`, without the added column."""
    if not spec.label.lists:
        return schema
    place = schema.get_field_index(spec.label.name)
    return schema.set(place, schema.field(place).with_type(schema.field(place).type.value_type))


def one_candidate_per_row(rows: pa.RecordBatch, spec: FeatureSpec, *, is_training: bool) -> Iterator[pa.RecordBatch]:
    """Yield rows with one candidate in the label's column, and the list of those held back in :data:`HELD_BACK`.

    A training row becomes a row per candidate of its list, of which it holds back that one. Of other rows, the column
    has the first candidate, and a candidate that a list repeats counts once. Missing candidates (null, an empty text)
    are left out. Rows of a label without lists are yielded as they are.

    Raises:
        LabelError: A row that is not for training has no candidate.
    """
    if not spec.label.lists:
        yield rows
        return
    lists = rows.column(spec.label.name)
    candidates, row = candidates_of(lists)
    if is_training:
        # Histories that are repeated for each candidate may take many times the memory of the batch.
        for start in range(0, len(row), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            yield _with_candidates(rows.take(row[part]), spec, candidates[part], np.ones(len(row[part]), np.int64))
        return
    kept = _firsts(candidates, row.to_numpy())
    counts = np.bincount(row.take(kept).to_numpy(), minlength=len(lists))
    if not counts.all():
        raise LabelError(
            f"label '{spec.label.name}' has the value {lists[int(counts.argmin())].as_py()!r} in a row of validation "
            f"or test, which holds no candidate back; leave such rows out, or set null_labels to drop "
            f"(--null-labels drop)"
        )
    yield _with_candidates(rows, spec, candidates.take(kept), counts)


def _with_candidates(
    rows: pa.RecordBatch, spec: FeatureSpec, candidates: pa.Array, counts: np.ndarray
) -> pa.RecordBatch:
    """Return rows with the first of their candidates, of which each has ``counts``, and the lists of them."""
    ends = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
    place, first = rows.schema.get_field_index(spec.label.name), candidates.take(pa.array(ends[:-1]))
    held_back = pa.ListArray.from_arrays(pa.array(ends), candidates)
    return rows.set_column(place, spec.label.name, first).append_column(HELD_BACK, held_back)


def candidate_counts(lists: pa.Array) -> np.ndarray:
    """Return the number of candidates in each list that are not missing, int64 ``[rows]``."""
    return np.bincount(candidates_of(lists)[1].to_numpy(), minlength=len(lists)).astype(np.int64)


def candidates_of(lists: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return the candidates of all lists that are not missing, and the list of each, from 0."""
    if lists.null_count:
        # A null may lie over values (Polars makes such), which only one of the two functions leaves out.
        lists = lists.take(pa.array(np.arange(len(lists))))
    candidates, row = pc.list_flatten(lists), pc.list_parent_indices(lists)
    is_there = pc.is_valid(candidates)
    if pa.types.is_string(candidates.type) or pa.types.is_large_string(candidates.type):
        is_there = pc.not_equal(candidates, "").fill_null(False)
    return candidates.filter(is_there), row.filter(is_there)


def _firsts(candidates: pa.Array, row: np.ndarray) -> pa.Array:
    """Return the places of candidates that their list does not have before, in order."""
    tokens = candidates.dictionary_encode()
    pairs = row * max(len(tokens.dictionary), 1) + tokens.indices.to_numpy()
    return pa.array(np.sort(np.unique(pairs, return_index=True)[1]))
