"""What a model is fed with: arrays made of a table's columns, call by call, and the rows of which none can be made."""

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

import numpy as np
import pyarrow as pa

from data_pipelines.feature_kinds import Feature
from data_pipelines.raw_columns import ColumnError
from data_pipelines.transform import Encoder
from scoring.backends.protocol import DTYPES, ArrayType, Signature
from scoring.bad_rows import faulty_rows
from scoring.decoding import Decoder
from scoring.inputs import Column, ColumnInputs, Faults

# What is decoded or padded takes many times the bytes that it has in the table, and the model as much again: a call has
# so much.
CALL_BYTES = 64 * 2**20


class Feed(Protocol):
    """Makes the model's arrays of a table's columns."""

    def rows_per_call(self, batch_size: int) -> int:
        """Return how many rows a call may have: ``batch_size``, or fewer where their arrays take too much memory."""

    def parts(self, table: pa.Table | pa.RecordBatch, rows: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield the model's arrays for so many rows after the other, or fewer, and how many they are.

        Of a table without rows there is one part.

        Raises:
            ColumnError: A row is at fault; or all are, for a column is missing or of a type that the model cannot take.
        """

    def faults(self, batch: pa.RecordBatch, *, first: bool) -> Faults:
        """Return the rows that are at fault, or some with the first among them where only that one is asked for.

        Raises:
            ColumnError: No row can be scored, whatever it holds.
        """


class FeatureFeed:
    """Encodes columns as the features that a model was trained with here."""

    def __init__(self, encoder: Encoder, features: tuple[Feature, ...], any_length: Collection[str]) -> None:
        """Take what is needed of the model.

        Args:
            encoder: Makes features of columns.
            features: Those that the model takes.
            any_length: Names of lists that it takes padded to any length: each call's are as long as its rows need.
        """
        self._encoder, self._features, self._any_length = encoder, features, any_length

    def rows_per_call(self, batch_size: int) -> int:
        """Return ``batch_size``."""
        return batch_size

    def parts(self, table: pa.Table | pa.RecordBatch, rows: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield ids and numbers; of lists that are as long as the longest, 64 MB at most or a row."""
        return self._encoder.padded_parts(table, self._features, rows, self._any_length, CALL_BYTES)

    def faults(self, batch: pa.RecordBatch, *, first: bool) -> Faults:
        """Return the rows that no encoding takes, which are looked for: an error does not say whose it is."""
        self._check(batch.slice(0, 0))
        return faulty_rows(batch, self._check, first=first)

    def _check(self, batch: pa.RecordBatch) -> None:
        next(self.parts(batch, max(1, batch.num_rows)))


class ColumnFeed:
    """Reads the columns of a model of another library as they are, decodes what is to be, and casts to its types."""

    def __init__(self, inputs: ColumnInputs, takes: Signature | None, decoders: Mapping[str, Decoder]) -> None:
        """Take what is needed of the model.

        Args:
            inputs: The columns.
            takes: What the model takes; None where a hook makes that of the columns.
            decoders: By the names of the columns that they decode.
        """
        self._inputs, self._decoders = inputs, decoders
        arrays = takes.inputs if takes is not None else ()
        self._arrays = {array.name: array for array in arrays} if inputs.matrix is None else {}
        self._matrix = arrays[0] if inputs.matrix is not None and arrays else None
        self._lengths = {name: array.width for name, array in self._arrays.items()}
        if self._matrix is not None:
            self._lengths = _length_of_the_list(inputs.given, self._matrix)

    def rows_per_call(self, batch_size: int) -> int:
        """Return how many rows are decoded to 64 MB, if that is fewer than ``batch_size``."""
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

    def faults(self, batch: pa.RecordBatch, *, first: bool) -> Faults:
        """Return the rows that are at fault in some column, which says it itself: all of them."""
        found: Faults = {}
        for column in self._inputs.given:
            for row, message in self._faults(column, batch).items():
                found.setdefault(row, message)
        return dict(sorted(found.items()))

    def _faults(self, column: Column, batch: pa.RecordBatch) -> Faults:
        if column.name not in self._decoders:
            return column.examined(batch, self._lengths.get(column.name))[1]
        rows = self.rows_per_call(max(1, batch.num_rows))
        return {
            start + row: message
            for start in range(0, batch.num_rows, rows)
            for row, message in self._examined(column, batch.slice(start, rows))[1].items()
        }

    def _decoded(self, column: Column, table: pa.Table | pa.RecordBatch) -> np.ndarray:
        arrays, faults = self._examined(column, table)
        if faults:
            raise ColumnError(next(iter(faults.values())))
        return arrays

    def _examined(self, column: Column, table: pa.Table | pa.RecordBatch) -> tuple[np.ndarray, Faults]:
        values, of_values = column.examined(table)
        arrays, faults = self._decoders[column.name].arrays(column, values)
        return arrays, dict(sorted({**of_values, **faults}.items()))

    def _taken(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the columns as the model takes them: each as an array of its own, or all as one."""
        if self._matrix is None:
            return {name: _cast(values, self._arrays.get(name)) for name, values in arrays.items()}
        if self._decoders:
            (values,) = arrays.values()
            return {self._matrix.name: values}
        gathered = np.column_stack(list(arrays.values()))
        if self._matrix.width not in (None, gathered.shape[1]) and len(gathered):
            raise ColumnError(
                f"the columns {list(arrays)} have {gathered.shape[1]} values per row together, the model takes "
                f"{self._matrix.width}; make their lists of the length that is left"
            )
        return {self._matrix.name: _cast(gathered, self._matrix)}


def _length_of_the_list(columns: tuple[Column, ...], matrix: ArrayType) -> dict[str, int | None]:
    """Return how long the lists of the only column of lists are: as long as the others leave of the model's array."""
    lists = [column.name for column in columns if column.is_array]
    return {lists[0]: matrix.width - len(columns) + 1} if len(lists) == 1 and matrix.width is not None else {}


def _cast(values: np.ndarray, array: ArrayType | None) -> np.ndarray:
    """Return numbers in the type that the model takes; packaging has seen to it that no value is lost."""
    if array is None or array.element is None:
        return values
    return values.astype(DTYPES[array.element], copy=False)
