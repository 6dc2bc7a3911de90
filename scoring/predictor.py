"""Scoring of single rows in this process, without Spark, a server or the network."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines import memory_tables, table_forms
from mirrorspark.data_pipelines.features import kinds, raw_columns
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input import RowErrors
from mirrorspark.scoring.model.folder import ModelDescription, exported_with
from mirrorspark.scoring.model.loading import (
    DEFAULT_BATCH_SIZE,
    PROCESS_CACHE,
    LoadedModel,
    ModelCache,
    check_versions,
    load_once,
)
from mirrorspark.scoring.model.stored import PinnedModel, opened_model
from mirrorspark.scoring.output import Entries
from mirrorspark.scoring.task import OtherVersions, ScoringOptions
from mirrorspark.storage import each_meant


class Predictor:
    """Scores rows given as mappings, with the encoder and graph that also score tables. Thread-safe."""

    def __init__(
        self,
        model: str | Path | PinnedModel,
        *,
        tracking_uri: str | None = None,
        threads: int | None = 1,
        other_versions: OtherVersions = "refuse",
        trust: bool = False,
        cache: ModelCache = PROCESS_CACHE,
    ) -> None:
        """Load the model and its library, unless this process has loaded it already.

        TensorFlow is imported with ``TF_USE_LEGACY_KERAS=1`` in the environment of this process, which makes tf-keras
        its ``tf.keras``, and with ``TF_CPP_MIN_LOG_LEVEL=3`` unless that is set. Import TensorFlow first to avoid this.

        Args:
            model: URI of the model, or the result of :func:`scoring.model.stored.resolve`.
            tracking_uri: Address of the MLflow store.
            threads: Threads of the library, if they can be limited per model; one thread is fastest for one row.
                TensorFlow, NumPy and MLflow models share the threads of the process, which stay as they are; with 1, a
                model that was trained here runs all but large operations in the calling thread. None keeps the
                library's default.
            other_versions: ``refuse`` or ``allow`` a model that was exported with other library versions (beyond patch
                versions).
            trust: See :func:`scoring.score`.
            cache: Holds the loaded models; by default the one of the process.

        Raises:
            ModelNotFoundError: The URI does not lead to a model.
            UntrustedModelError: The model brings Python code, and ``trust`` is False.
            ModelDirectoryError: A part of the model is missing or damaged.
            ModelVersionsError: The library versions of this Python differ from the model's.
            ScoringError: The model has an output with the name of an added column, such as ``model_version``.
        """
        options = ScoringOptions(with_columns=(), other_versions=other_versions)
        pinned, directory = opened_model(model, tracking_uri, trust=trust)
        options.schema(directory)  # raises
        self._added = ScoringOptions().added
        if taken := [column.name for column in self._added if column.name in directory.description.outputs]:
            raise ScoringError(
                f"{pinned.label} has the outputs {taken}, the names of columns that scoring adds; package or log the "
                f"model with other names for them"
            )
        if other_versions == "refuse":
            check_versions(exported_with(pinned.path), pinned.label)
        self.label = pinned.label
        self.columns: tuple[str, ...] = directory.inputs.columns
        # A None has no type, so rows have several schemas.
        self._check = lru_cache(maxsize=_SCHEMAS)(directory.inputs.check)
        is_trained = isinstance(directory.description, ModelDescription)
        features = directory.features.spec.features if is_trained else ()
        self._types = {
            one.name: _VECTOR for one in features if isinstance(one, kinds.Sparse) and one.columns == (one.name,)
        }
        self._model: LoadedModel = load_once(pinned.path, pinned.digest, threads=threads, cache=cache)

    def predict(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model's outputs for one row, and ``model_version``.

        Args:
            row: Raw columns by name, as in a table; a row of pandas is one, too. A sparse vector is a mapping of
                indices to values (in JSON they are texts), and None, NaN, NA and NaT are missing values. Columns that
                the model does not read are ignored.

        Raises:
            ColumnError: Columns are missing, or one has a value that its feature does not accept.
            ScoringError: It is not a row.
        """
        return self.predict_rows([row])[0]

    def predict_rows(self, rows: Sequence[Mapping[str, Any]] | Any) -> list[dict[str, Any]]:
        """Return the result of :meth:`predict` for each row, from one call of the model if it takes any number of rows.

        Args:
            rows: Rows, or a table in memory: pandas, Polars or PyArrow.

        Raises:
            ColumnError: See :meth:`predict`.
            ScoringError: One is not a row.
        """
        if table_forms.is_table(rows):
            rows = memory_tables.in_arrow(rows, needed=self.columns).to_pylist()
        for row in rows:
            self._check_row(row)
        batch = self.batch({name: [row[name] for row in rows] for name in self.columns})
        entries = Entries(len(rows), None, self.label, {})
        added = {column.name: column.values(entries) for column in self._added}
        columns = {name: column.to_pylist() for name, column in (self.outputs(batch) | added).items()}
        return [{name: values[number] for name, values in columns.items()} for number in range(len(rows))]

    def batch(self, columns: Mapping[str, Sequence[Any]]) -> pa.RecordBatch:
        """Return rows for :meth:`outputs`, after a check of their types; their values are read when they are scored.

        Args:
            columns: The values of each row by column, all equally many, and of each column that the model reads.

        Raises:
            ColumnError: A column has values that its feature does not accept.
        """
        arrays = [_column(name, columns[name], self._types.get(name)) for name in self.columns]
        batch = pa.RecordBatch.from_arrays(arrays, names=self.columns)
        self._check(batch.schema)
        return batch

    def _check_row(self, row: Any) -> None:
        if not hasattr(row, "keys") or table_forms.is_table(row):
            raise ScoringError(
                f"a row is a mapping of columns to values, not a {type(row).__name__}; give predict one, and "
                f"predict_rows a list of them or a table"
            )
        if missing := [name for name in self.columns if name not in row]:
            others = [name for name in map(str, row.keys()) if name not in self.columns]
            raise raw_columns.ColumnError(
                f"a row lacks the columns {each_meant(missing, others)}; give None for unknown values"
            )

    def outputs(self, batch: pa.RecordBatch | pa.Table) -> dict[str, pa.Array]:
        """Return the model's outputs by name, ``[rows]`` each, for one or several results of :meth:`batch`.

        Raises:
            ColumnError: A row has a value that its feature does not accept.
        """
        # Calls may be padded to the batch size, so a few rows must not be padded to 8,192.
        return self._model.score_arrow(batch, batch_size=min(max(batch.num_rows, 1), DEFAULT_BATCH_SIZE))

    def row_errors(self, batch: pa.RecordBatch) -> RowErrors:
        """Return the rows that cannot be scored, with the reasons, without scoring.

        Raises:
            ColumnError: No row can be scored.
        """
        return self._model.row_errors(batch)


_VECTOR = pa.map_(pa.int64(), pa.float64())
_SCHEMAS = 128
# Types of values that Arrow takes as they are.
_PLAIN = frozenset((float, int, str, bool, bytes, list, type(None)))


def _column(name: str, values: Sequence[Any], type_: pa.DataType | None) -> pa.Array:
    if not _PLAIN.issuperset(map(type, values)):
        values = [_plain_value(name, value) for value in values]
    try:
        # As of pandas: NaN, NA and NaT, also in lists, and the NaN of decimals are missing values.
        return pa.array(values, type_, from_pandas=True)
    except UnicodeEncodeError as error:
        raise raw_columns.ColumnError(
            f"column '{name}' has a text with {error.object[error.start]!r}, half of a character, which UTF-8 cannot "
            f"hold: cut texts between characters"
        ) from error
    except OverflowError as error:
        raise raw_columns.ColumnError(
            f"column '{name}' has a whole number beyond 64 bits; give it as a fraction, such as 1e30"
        ) from error
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise raw_columns.ColumnError(f"column '{name}' has values that are of no one type: {error}") from error


def _plain_value(name: str, value: Any) -> Any:
    """Return a value that Arrow takes, of one that NumPy or pandas has in a row."""
    if isinstance(value, Mapping):
        return _pairs(name, value)
    return value.item() if isinstance(value, np.generic) and not isinstance(value, np.datetime64) else value


def _pairs(name: str, vector: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Return indices and values; in JSON an index is a text."""
    pairs = []
    for key, value in vector.items():
        if isinstance(key, str) and not re.fullmatch(r"0|[1-9]\d{0,18}", key, re.ASCII):
            raise raw_columns.ColumnError(
                f"column '{name}' has the index {key!r}, which is not a whole number from 0 on"
            )
        pairs.append((int(key) if isinstance(key, str) else key, value))
    return pairs
