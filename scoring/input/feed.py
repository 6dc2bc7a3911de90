"""Conversion of a table's columns to a model's input arrays, call by call, and detection of bad rows."""

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features import Encoder, kinds, raw_columns
from mirrorspark.scoring.backends import protocol
from mirrorspark.scoring.embedding import ModelEncoders
from mirrorspark.scoring.input.decoding import Decoder
from mirrorspark.scoring.input.inputs import Column, ColumnInputs, RowErrors, as_trained, trained_types, without_nothing
from mirrorspark.scoring.output import bad_row_errors

# Limit for the decoded or padded arrays of a call. They take many times the bytes of the table, and the model needs as
# much again.
CALL_BYTES = 64 * 2**20


class Feed(Protocol):
    """Converts a table's columns to the model's arrays."""

    def rows_per_call(self, batch_size: int) -> int:
        """Return the rows of a call: ``batch_size``, or fewer if their arrays would take too much memory."""

    def parts(self, table: pa.Table | pa.RecordBatch, rows: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield the number of rows and the model's arrays of one part after the other, each of at most ``rows`` rows.

        A table without rows has one part.

        Raises:
            ColumnError: A row is bad, or a column is missing or has a type that the model does not accept.
        """

    def row_errors(self, batch: pa.RecordBatch, *, first: bool) -> RowErrors:
        """Return the bad rows with the reasons; with ``first`` at least the first of them.

        Raises:
            ColumnError: No row can be scored, whatever its values.
        """


class FeatureFeed:
    """Feed of a model that was trained here: encodes columns as its features."""

    def __init__(
        self,
        encoder: Encoder,
        features: tuple[kinds.Feature, ...],
        any_length: Collection[str],
        encoders: ModelEncoders,
    ) -> None:
        """Create the feed of a model.

        Args:
            encoder: Encodes columns as features.
            features: The features that the model takes.
            any_length: Names of the lists that the model takes at any length; they are padded to the longest list of a
                call.
            encoders: The encoders of the texts and images among the features.
        """
        self._encoder, self._features, self._any_length, self._encoders = encoder, features, any_length, encoders
        self._types = trained_types(features, encoder.fitted.column_types)

    def rows_per_call(self, batch_size: int) -> int:
        """Return ``batch_size``."""
        return batch_size

    def parts(self, table: pa.Table | pa.RecordBatch, rows: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield ids and numbers. Lists are padded to the longest one; a part has one row or at most 64 MB of them."""
        table = as_trained(without_nothing(table, self._features), self._types)
        embedded = self._encoders.embedded(table)
        return self._encoder.padded_parts(embedded, self._features, rows, self._any_length, CALL_BYTES)

    def row_errors(self, batch: pa.RecordBatch, *, first: bool) -> RowErrors:
        """Return the rows that cannot be encoded, found by bisection because an error does not name its row."""
        # Each text and image once, however often its row is examined.
        batch, errors = self._encoders.examined(without_nothing(batch, self._features))
        self._check(batch.slice(0, 0))
        return dict(sorted({**bad_row_errors(batch, self._check, first=first), **errors}.items()))

    def _check(self, batch: pa.RecordBatch) -> None:
        next(self.parts(batch, max(1, batch.num_rows)))


class ColumnFeed:
    """Feed of a model of another library: reads or decodes columns, and casts them to the model's types."""

    def __init__(self, inputs: ColumnInputs, takes: protocol.Signature | None, decoders: Mapping[str, Decoder]) -> None:
        """Create the feed of a model.

        Args:
            inputs: The columns.
            takes: Signature of the model; None if the hook ``preprocess`` makes its inputs.
            decoders: Decoders by column.
        """
        self._inputs, self._decoders = inputs, decoders
        arrays = takes.inputs if takes is not None else ()
        self._arrays = {array.name: array for array in arrays} if inputs.matrix is None else {}
        self._matrix = arrays[0] if inputs.matrix is not None and arrays else None
        self._lengths = {name: array.width for name, array in self._arrays.items()}
        if self._matrix is not None:
            self._lengths = _length_of_the_list(inputs.given, self._matrix)

    def rows_per_call(self, batch_size: int) -> int:
        """Return the number of rows that are decoded to 64 MB, at most ``batch_size``."""
        row_bytes = sum(decoder.row_bytes for decoder in self._decoders.values())
        return max(1, min(batch_size, CALL_BYTES // row_bytes)) if row_bytes else batch_size

    def parts(self, table: pa.Table | pa.RecordBatch, rows: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield arrays of the types that the model takes."""
        plain = {
            column.name: column.read(table, self._lengths.get(column.name))
            for column in self._inputs.given
            if column.name not in self._decoders
        }
        for start in range(0, max(1, table.num_rows), rows):
            piece = table.slice(start, rows)
            arrays = {
                column.name: plain[column.name][start : start + rows]
                if column.name in plain
                else self._decoded(column, piece)
                for column in self._inputs.given
            }
            yield piece.num_rows, self._taken(arrays)

    def row_errors(self, batch: pa.RecordBatch, *, first: bool) -> RowErrors:
        """Return all rows with an error in some column."""
        found: RowErrors = {}
        for column in self._inputs.given:
            for row, message in self._row_errors(column, batch).items():
                found.setdefault(row, message)
        return dict(sorted(found.items()))

    def _row_errors(self, column: Column, batch: pa.RecordBatch) -> RowErrors:
        if column.name not in self._decoders:
            return column.examined(batch, self._lengths.get(column.name))[1]
        rows = self.rows_per_call(max(1, batch.num_rows))
        return {
            start + row: message
            for start in range(0, batch.num_rows, rows)
            for row, message in self._examined(column, batch.slice(start, rows))[1].items()
        }

    def _decoded(self, column: Column, table: pa.Table | pa.RecordBatch) -> np.ndarray:
        arrays, row_errors = self._examined(column, table)
        if row_errors:
            raise raw_columns.ColumnError(next(iter(row_errors.values())))
        return arrays

    def _examined(self, column: Column, table: pa.Table | pa.RecordBatch) -> tuple[np.ndarray, RowErrors]:
        values, of_values = column.examined(table)
        arrays, row_errors = self._decoders[column.name].arrays(column, values)
        return arrays, dict(sorted({**of_values, **row_errors}.items()))

    def _taken(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the model's inputs: one array per column, or one array of all columns."""
        if self._matrix is None:
            return {name: _cast(values, self._arrays.get(name)) for name, values in arrays.items()}
        if self._decoders:
            (values,) = arrays.values()
            return {self._matrix.name: values}
        gathered = np.column_stack(list(arrays.values()))
        if self._matrix.width not in (None, gathered.shape[1]) and len(gathered):
            raise raw_columns.ColumnError(
                f"the columns {list(arrays)} have {gathered.shape[1]} values per row together, the model takes "
                f"{self._matrix.width}; make their lists of the length that is left"
            )
        return {self._matrix.name: _cast(gathered, self._matrix)}


def _length_of_the_list(columns: tuple[Column, ...], matrix: protocol.ArrayType) -> dict[str, int | None]:
    """Return the length of lists if exactly one column has lists: the rest of the model's array."""
    lists = [column.name for column in columns if column.is_array]
    return {lists[0]: matrix.width - len(columns) + 1} if len(lists) == 1 and matrix.width is not None else {}


def _cast(values: np.ndarray, array: protocol.ArrayType | None) -> np.ndarray:
    """Return values in the type that the model takes; packaging has checked that no value is lost."""
    if array is None or array.element is None:
        return values
    return values.astype(protocol.DTYPES[array.element], copy=False)
