"""Scoring of batches with a fleet, in memory that does not grow with the number of models."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.fleet.columns import array, lengths_of, some
from mirrorspark.fleet.compiled import CompiledFleet, CompiledInput, LinearTile, NetworkStack, OutputRules, Terms
from mirrorspark.fleet.counting import add_counts
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.forests import Forest
from mirrorspark.fleet.kernels import STRIP, decide, score_linear, write_features
from mirrorspark.fleet.layout import Layout, OutputArrays
from mirrorspark.fleet.packages import packages_of
from mirrorspark.fleet.tree_kernels import sum_trees

ASSUMED_INFERENCES_PER_SECOND = 2_000_000
"""Assumed speed of a core with reading and writing."""

# Block and outputs of a batch. The rows of a fleet of 500 models over 2,000 columns are then 3,500.
_BATCH_BYTES = 32 * 2**20
_MOST_ROWS = 16 * 1024
# Features of networks for some rows: as many networks are computed together as fit.
_NETWORK_BYTES = 4 * 2**20
_NETWORK_ROWS = 2048
# Features of trees for some rows: each tree reads them again.
_TREE_BYTES = 2**19
_TREE_ROWS = 1024
# Of a term: its arrays, their copies while they are prepared, and its values in a strip of 64 rows. Of a weight: its
# copies. Of a node: the arrays of the two kernels, and their copies.
_TERM_BYTES, _WEIGHT_BYTES, _NODE_BYTES = 400, 8, 50
# Of a package: its unpacked files come in addition, and libraries hold weights and graphs.
_PACKAGE_TIMES = 4


class FleetScorer:
    """A fleet that is ready to score batches.

    Attributes:
        layout: The columns of the outputs.
        batch_rows: Rows that are scored at a time.
        seconds: float64 ``[models]``: seconds of each model so far. Those of models that are computed together are
            measured as one, and divided by :meth:`fleet.fleet.Fleet.shares`.
    """

    def __init__(self, fleet: Fleet, layout: Layout) -> None:
        """Prepare the arrays of the kernels: a tenth of a second for a thousand models."""
        self.layout = layout
        self._fleet = fleet
        self._compiled = CompiledFleet(fleet)
        row_bytes = 4 * len(self._compiled.inputs) + layout.row_bytes
        rows = min(_MOST_ROWS, max(STRIP, _BATCH_BYTES // max(1, row_bytes)))
        self.batch_rows = rows // STRIP * STRIP
        self.seconds = np.zeros(len(fleet))
        kinds = (self._compiled.tiles, self._compiled.stacks, self._compiled.forests)
        together: Sequence[Sequence[LinearTile | NetworkStack | Forest]] = kinds
        self._packaged = tuple(zip(self._compiled.packaged, packages_of(fleet), strict=True))
        self._shares = [[fleet.shares(part.decisions.models) for part in parts] for parts in together]

    def check(self, schema: pa.Schema) -> None:
        """Check the types of the columns that the fleet reads.

        Raises:
            ColumnError: A column is missing, or has a type that its models cannot read.
        """
        known = set(schema.names)
        missing = [name for name in self._fleet.columns if name not in known]
        if missing:
            readers = self._fleet.readers(missing[:1])
            raise raw_columns.ColumnError(
                f"the table lacks {len(missing):,} of the {len(self._fleet.columns):,} columns of the fleet: "
                f"{some(missing)}; model '{readers[missing[0]]}' reads '{missing[0]}'; add them, or leave such models "
                f"out"
            )
        for needed in self._compiled.inputs:
            reader = partial(self._reader, needed.column)
            check_type(needed.column, needed.categories, schema.field(needed.column).type, reader)

        for _, packaged in self._packaged:
            packaged.check(schema)

    def _reader(self, column: str) -> str:
        return f"model '{self._fleet.readers([column])[column]}'"

    def batches(
        self, rows: pa.RecordBatch, keys: Sequence[str], counts: np.ndarray | None = None
    ) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Yield keys and outputs of ``rows`` in batches of bounded size, each with its number of null outputs.

        Args:
            rows: The rows.
            keys: Columns that pass through.
            counts: int32 ``[models, BINS]``, to which the outputs are added; see :mod:`fleet.counting`.

        Raises:
            ColumnError: A column holds values that its models cannot read.
        """
        for start in range(0, rows.num_rows, self.batch_rows):
            part = rows.slice(start, self.batch_rows)
            found = self.outputs(part)
            if counts is not None:
                add_counts(self.layout, found, counts)
            yield self.layout.batch({key: raw_columns.plain_column(part, key) for key in keys}, found), found.nulls

    def outputs(self, rows: pa.RecordBatch) -> OutputArrays:
        """Return the outputs of all models for ``rows``, of which there should be ``batch_rows`` at most."""
        block = np.empty((len(self._compiled.inputs), rows.num_rows), np.float32)
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
            for out, needed in zip(block, self._compiled.inputs, strict=True):
                _read(raw_columns.plain_column(rows, needed.column), needed, out)
        found, nulls = self.layout.empty(rows.num_rows), 0
        where = (self.layout.name == "wide", *found.by_output.values())
        of_tiles, of_stacks, of_forests = self._shares
        begin = time.perf_counter()
        for tile, shares in zip(self._compiled.tiles, of_tiles, strict=True):
            nulls += _score_linear(tile, block, self.layout.places, where)
            begin, since = time.perf_counter(), begin
            self.seconds[tile.decisions.models] += (begin - since) * shares
        for stack, shares in zip(self._compiled.stacks, of_stacks, strict=True):
            for first, start, predictors in _predictors(stack, block):
                nulls += _decide(stack.decisions, first, start, predictors, self.layout.places, where)
            begin, since = time.perf_counter(), begin
            self.seconds[stack.decisions.models] += (begin - since) * shares
        for forest, shares in zip(self._compiled.forests, of_forests, strict=True):
            for start, predictors in _sums_of_trees(forest, block):
                nulls += _decide(forest.decisions, 0, start, predictors, self.layout.places, where)
            begin, since = time.perf_counter(), begin
            self.seconds[forest.decisions.models] += (begin - since) * shares
        for decisions, packaged in self._packaged:
            packaged.load()  # once in a process, and not in the time of the model
            begin = time.perf_counter()
            nulls += _decide(decisions, 0, 0, packaged.scores(rows), self.layout.places, where)
            self.seconds[decisions.models] += time.perf_counter() - begin
        return replace(found, nulls=nulls)


def bytes_of_models(fleet: Fleet) -> np.ndarray:
    """Return int64 ``[models]``: an estimate of the memory that a task takes for each model, were it alone.

    It counts the model's arrays, and for a network two layers for some rows at a time. It leaves out the memory that
    all models share: the columns of a batch and the outputs.
    """
    terms, weights, nodes = (lengths_of(array(fleet.table, of)) for of in ("column", "weights", "node_features"))
    layers = array(fleet.table, "layer_sizes").to_pylist()
    widest = [max((before + after for before, after in pairwise(sizes)), default=0) for sizes in layers]
    packages = pc.fill_null(pc.binary_length(fleet.table["package"]), 0).to_numpy()
    found = _TERM_BYTES * terms + _WEIGHT_BYTES * weights + _NODE_BYTES * nodes + _PACKAGE_TIMES * packages
    return np.asarray(found + 4 * _NETWORK_ROWS * np.array(widest, np.int64))


def check_type(column: str, categories: Iterable[str] | None, type_: pa.DataType, reader: Callable[[], str]) -> None:
    """Check that a model can read a column's numbers, or some categories of it.

    Args:
        column: Its name.
        categories: The categories that the model knows; None for numbers.
        type_: The type of the column.
        reader: Returns how to call the model.

    Raises:
        ColumnError: It cannot.
    """
    if pa.types.is_null(type_):
        return  # a column of nothing but nulls, whose type no writer knew
    if categories is None:
        fits, wanted = raw_columns.is_number(type_), "numbers"
    else:
        fits = any(check(type_) for check in (pa.types.is_integer, pa.types.is_boolean, _is_text))
        wanted = "categories: texts, whole numbers or booleans"
    if not fits:
        raise raw_columns.ColumnError(
            f"column '{column}' has type {type_}, and {reader()} reads {wanted}; cast the column"
        )
    if categories is not None:
        _values_of(column, categories, type_)


def _is_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _values_of(column: str, categories: Iterable[str], type_: pa.DataType) -> pa.Array:
    """Return categories in the type of their column."""
    names = pa.array(list(categories), pa.string())
    try:
        return names if _is_text(type_) else names.cast(type_)
    except pa.ArrowInvalid as error:
        raise raw_columns.ColumnError(
            f"column '{column}' has type {type_}, and models know categories that it cannot have ({error}); cast the "
            f"column to text"
        ) from error


def _read(column: pa.Array, needed: CompiledInput, out: np.ndarray) -> None:
    """Write a column as a row of the block: its numbers or codes, NaN for null."""
    type_ = column.type
    if needed.categories is None:
        # Nulls of floats become NaN; so do those of other numbers, as float64.
        is_plain = pa.types.is_floating(type_) or (pa.types.is_integer(type_) and not column.null_count)
        out[:] = column.to_numpy(zero_copy_only=False) if is_plain else raw_columns.numeric_values(column)
        return
    if _is_text(type_):
        column = column.cast(pa.string())
        column = pc.if_else(pc.equal(column, ""), None, column)  # an empty text is missing, as null is
    if pa.types.is_null(type_):
        out[:] = np.nan
        return
    places = pc.index_in(column, value_set=_values_of(needed.column, needed.categories, column.type))
    codes = np.array([*needed.categories.values(), -1.0], np.float32)
    out[:] = codes[pc.fill_null(places, len(codes) - 1).to_numpy(zero_copy_only=False)]
    if column.null_count:
        out[column.is_null().to_numpy(zero_copy_only=False)] = np.nan


def _score_linear(tile: LinearTile, block: np.ndarray, places: np.ndarray, where: tuple[Any, ...]) -> int:
    decisions = tile.decisions
    return int(
        score_linear(
            block,
            block.shape[1],
            tile.inputs,
            tile.lows,
            tile.highs,
            tile.logs,
            tile.starts,
            tile.features,
            tile.coefficients,
            tile.keys,
            tile.intercepts,
            decisions.links,
            decisions.thresholds,
            decisions.cut_starts,
            decisions.cuts,
            places[decisions.models],
            *where,
        )
    )


def _predictors(stack: NetworkStack, block: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield, for some networks and rows at a time, the first network, the first row, and the linear predictors.

    The predictors are float32 ``[networks, rows]``.
    """
    terms, width = stack.terms, stack.matrices[0].shape[2]
    widest = max([width, *(matrix.shape[1] for matrix in stack.matrices)])
    models = len(stack.decisions.models)
    for start in range(0, block.shape[1], _NETWORK_ROWS):
        rows = min(_NETWORK_ROWS, block.shape[1] - start)
        at_once = max(1, _NETWORK_BYTES // (4 * rows * widest))
        for first in range(0, models, at_once):
            some_models = slice(first, min(models, first + at_once))
            own = slice(first * width, some_models.stop * width)
            values = _features(terms.where(own), block, start, rows).reshape(-1, width, rows)
            for layer, (matrices, biases) in enumerate(zip(stack.matrices, stack.biases, strict=True)):
                values = np.matmul(matrices[some_models], values)
                values += biases[some_models]
                if layer < len(stack.activations):
                    _activate(stack.activations[layer], values)
            yield first, start, values[:, 0, :]


def _sums_of_trees(forest: Forest, block: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield, for some rows at a time, the first row, and float32 ``[models, rows]``: the linear predictors."""
    at_once = _TREE_BYTES // (4 * max(1, len(forest.terms.inputs))) // STRIP * STRIP
    at_once = min(_TREE_ROWS, max(STRIP, at_once))
    for start in range(0, block.shape[1], at_once):
        rows = min(at_once, block.shape[1] - start)
        sums = np.empty((len(forest.intercepts), rows), np.float32)
        sum_trees(
            _features(forest.terms, block, start, rows),
            forest.nodes,
            forest.nodes.view(np.float32),
            forest.values,
            forest.roots,
            forest.starts,
            forest.split_starts,
            forest.leaf_starts,
            forest.features,
            forest.edges.view(np.float32),
            forest.masks,
            forest.leaves,
            forest.intercepts,
            sums,
        )
        yield start, sums


def _features(terms: Terms, block: np.ndarray, start: int, rows: int) -> np.ndarray:
    """Return float32 ``[terms, rows]``: the transformed columns, for some rows from ``start`` on."""
    features = np.empty((len(terms.inputs), rows), np.float32)
    write_features(
        block,
        start,
        terms.inputs.astype(np.uint32),
        terms.lows.astype(np.float32),
        terms.highs.astype(np.float32),
        terms.logs,
        terms.kinds,
        terms.keys.astype(np.float32),
        terms.belows.astype(np.float32),
        terms.missing.astype(np.float32),
        features,
    )
    return features


def _decide(
    decisions: OutputRules,
    first: int,
    start: int,
    predictors: np.ndarray,
    places: np.ndarray,
    where: tuple[Any, ...],
) -> int:
    """Write the outputs of the models from ``first`` on for the rows from ``start`` on."""
    own = slice(first, first + len(predictors))
    return int(
        decide(
            predictors,
            start,
            decisions.links[own],
            decisions.thresholds[own],
            decisions.cut_starts[first : first + len(predictors) + 1],
            decisions.cuts,
            places[decisions.models[own]],
            *where,
        )
    )


def _activate(name: str, values: np.ndarray) -> None:
    """Apply an activation in place."""
    with np.errstate(over="ignore"):
        if name == "relu":
            np.maximum(values, 0, out=values)
        elif name == "tanh":
            np.tanh(values, out=values)
        elif name == "sigmoid":
            np.negative(values, out=values)
            np.exp(values, out=values)
            values += 1
            np.reciprocal(values, out=values)
        elif name == "elu":
            np.expm1(values, out=values, where=values <= 0)
        elif name == "softplus":
            np.logaddexp(values, 0, out=values)
