"""The attributes of items as arrays, in the form that the kernel reads."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features import Vocabulary, kinds, raw_columns
from mirrorspark.recommending.reranking.lists import is_list, lists_of
from mirrorspark.recommending.reranking.rules import Rules
from mirrorspark.scoring import ScoringError

_NAMED_IN_MESSAGE = 5


@dataclass(frozen=True)
class ItemAttributes:
    """Attributes of items by their number; the last number is that of items that the table does not have.

    Attributes:
        known: The items' tokens.
        category_starts: int64 ``[items + 2]``, where the categories of an item start in ``categories``.
        categories: int32, numbers of categories.
        at_most: int64 ``[categories]``, the largest number of candidates of a list.
        at_least: int64 ``[categories]``, the smallest.
        vectors: float32 ``[items + 1, dim]`` of length 1, or 0 where an item has none.
        boosts: float64 ``[items + 1]``.
        is_available: bool ``[items + 1]``.
    """

    known: Vocabulary
    category_starts: np.ndarray
    categories: np.ndarray
    at_most: np.ndarray
    at_least: np.ndarray
    vectors: np.ndarray
    boosts: np.ndarray
    is_available: np.ndarray

    @classmethod
    def of(cls, items: pa.Table, key: str, rules: Rules) -> "ItemAttributes":
        """Read the columns that the rules name.

        Raises:
            ColumnError: A column is missing, or has a type or a value that cannot be used.
            ScoringError: A rule names a category that no item has.
        """
        check_item_columns(items, rules.item_columns(key))
        starts, categories, category_names = _categories(items, rules)
        return cls(
            known_items(items, key),
            starts,
            categories,
            np.array([rules.most(name) for name in category_names], np.int64),
            np.array([rules.at_least.get(name, 0) for name in category_names], np.int64),
            _vectors(items, rules.vector),
            _boosts(items, rules.boost),
            _available(items, rules.available),
        )

    def numbers(self, tokens: pa.Array) -> np.ndarray:
        """Return the numbers of items: int64 ``[tokens]``."""
        return item_numbers(self.known, tokens)


def check_item_columns(items: pa.Table, wanted: Iterable[str]) -> None:
    """Raise ``ColumnError`` unless the table of items has each of these columns once."""
    names = items.column_names
    for name in wanted:
        if names.count(name) != 1:
            raise raw_columns.ColumnError(
                f"items has the column '{name}' {names.count(name)} times{raw_columns.meant(name, names)}"
            )


def known_items(items: pa.Table, key: str) -> Vocabulary:
    """Return the tokens of the items, item ``i`` at place ``i``.

    Raises:
        ColumnError: One is null or there twice, or they have a type that is none of tokens.
    """
    tokens = _as_text(item_column(items, key), key)
    if tokens.null_count:
        raise raw_columns.ColumnError(f"'{key}' of items is null in {tokens.null_count} rows; leave those out")
    counts = pc.value_counts(tokens)
    repeated = counts.field(0).filter(pc.greater(counts.field(1), 1))
    if len(repeated):
        # Spark gives rows in the order of their partitions.
        some = repeated.take(pc.sort_indices(repeated)).slice(0, _NAMED_IN_MESSAGE).to_pylist()
        raise raw_columns.ColumnError(
            f"'{key}' of items has {len(repeated)} tokens more than once, {some}; give a row per item"
        )
    # A vocabulary finds tokens among a million in microseconds; Arrow would hash all of them for each batch.
    return Vocabulary(tokens, pa.nulls(len(tokens), pa.int64()))


def item_numbers(known: Vocabulary, tokens: pa.Array) -> np.ndarray:
    """Return the places of tokens among the items, int64 ``[tokens]``; the number of items where it is unknown."""
    ids = known.ids(tokens.cast(pa.string()))
    return np.where(ids < kinds.FIRST_VOCABULARY_ID, len(known), ids - kinds.FIRST_VOCABULARY_ID)


def item_column(items: pa.Table, name: str) -> pa.Array:
    """Return a column of the items in one piece."""
    column = items.column(name).combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _as_text(column: pa.Array, name: str) -> pa.Array:
    try:
        return column.cast(pa.string())
    except pa.ArrowException as error:
        raise raw_columns.ColumnError(
            f"'{name}' is {column.type}, and has to be strings, integers or booleans"
        ) from error


def _categories(items: pa.Table, rules: Rules) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return starts and numbers of the items' categories, and the names of all categories."""
    if rules.category is None:
        return np.zeros(items.num_rows + 2, np.int64), np.zeros(0, np.int32), []
    column = item_column(items, rules.category)
    if is_list(column.type):
        lengths, values = lists_of(column)
    else:
        lengths, values = np.ones(len(column), np.int64), column
    texts = _as_text(values, rules.category).dictionary_encode()
    is_named = texts.indices.is_valid().to_numpy(zero_copy_only=False)
    of_item = np.repeat(np.arange(len(column)), lengths)[is_named]
    numbers = texts.indices.drop_null().to_numpy().astype(np.int32)
    # A category that an item names twice counts once.
    pairs = np.unique(np.stack([of_item, numbers], axis=1), axis=0)
    counts = np.bincount(pairs[:, 0], minlength=len(column))
    names: list[str] = texts.dictionary.to_pylist()
    limited = [*(rules.at_most if isinstance(rules.at_most, dict) else ()), *rules.at_least]
    unknown = [name for name in limited if name not in names]
    if unknown:
        raise ScoringError(
            f"no item has the categories {unknown} in '{rules.category}'"
            f"{raw_columns.meant(unknown[0], names)}; drop them"
        )
    return np.cumsum([0, *counts, 0], dtype=np.int64), np.ascontiguousarray(pairs[:, 1].astype(np.int32)), names


def _vectors(items: pa.Table, name: str | None) -> np.ndarray:
    if name is None:
        return np.zeros((items.num_rows + 1, 0), np.float32)
    column = item_column(items, name)
    if not is_list(column.type):
        raise raw_columns.ColumnError(f"'{name}' is {column.type}, and has to be lists of numbers")
    lengths, values = lists_of(column)
    is_given = column.is_valid().to_numpy(zero_copy_only=False)
    widths = np.unique(lengths[is_given])
    if len(widths) > 1:
        raise raw_columns.ColumnError(
            f"the vectors '{name}' have {widths.tolist()} numbers; give all of them one length"
        )
    vectors = np.zeros((len(column) + 1, int(widths[0]) if len(widths) else 0), np.float64)
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    if not np.isfinite(numbers).all():
        raise raw_columns.ColumnError(
            f"the vectors '{name}' hold nulls, NaN or infinite numbers; give null for a missing vector"
        )
    vectors[:-1][is_given] = numbers.reshape(-1, vectors.shape[1])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)


def _boosts(items: pa.Table, name: str | None) -> np.ndarray:
    if name is None:
        return np.zeros(items.num_rows + 1)
    boosts = item_column(items, name).cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
    if not np.isfinite(boosts).all():
        raise raw_columns.ColumnError(
            f"the boosts '{name}' hold NaN or infinite numbers; use available to leave items out"
        )
    return np.append(boosts, 0.0)


def _available(items: pa.Table, name: str | None) -> np.ndarray:
    if name is None:
        return np.ones(items.num_rows + 1, np.bool_)
    column = item_column(items, name)
    if not pa.types.is_boolean(column.type):
        raise raw_columns.ColumnError(
            f"'{name}' is {column.type}, and has to be booleans: true for items that are available"
        )
    return np.append(column.fill_null(False).to_numpy(zero_copy_only=False), False)
