"""A model in this process, for single rows: no Spark, no server, no call over a network (requirement S15)."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipelines.feature_kinds import Sparse
from data_pipelines.raw_columns import ColumnError
from scoring.checks import ScoringError
from scoring.loaded_model import DEFAULT_BATCH_SIZE, LoadedModel
from scoring.model_cache import load_once
from scoring.model_directory import ModelDirectory, exported_with
from scoring.model_uri import PinnedModel, pinned_model
from scoring.scorer import VERSION_COLUMN, OtherVersions
from scoring.versions import check_versions


class Predictor:
    """Scores rows given as mappings, by the same encoder and graph as tables are scored; safe from several threads."""

    def __init__(
        self,
        model: str | Path | PinnedModel,
        *,
        tracking_uri: str | None = None,
        threads: int | None = 1,
        other_versions: OtherVersions = "refuse",
    ) -> None:
        """Load the model, unless this process has it already; imports the library that computes it.

        TensorFlow is imported with ``TF_USE_LEGACY_KERAS=1`` in the environment of this process, which makes tf-keras
        its ``tf.keras``, and with ``TF_CPP_MIN_LOG_LEVEL=3`` where that is not set. To have it otherwise, import it
        before.

        Args:
            model: URI of the model, or what :func:`scoring.model_uri.resolve` made of it.
            tracking_uri: MLflow store of the URI.
            threads: Threads for the library, as far as it can be told without changing those of the whole process: for
                one row, one is quickest. TensorFlow's belong to the process, and so do NumPy's and those of an MLflow
                model; with 1, a model that was trained here does all but large operations in the thread that calls.
                None leaves the library its own choice.
            other_versions: ``refuse`` a model that other libraries (up to patches) have exported, or ``allow`` it.

        Raises:
            ModelNotFoundError: The URI leads to no model.
            ModelDirectoryError: A part of the model is missing or damaged.
            ModelVersionsError: The libraries of this Python are not the model's.
            ScoringError: An output of the model is called ``model_version``.
        """
        pinned = pinned_model(model, tracking_uri)
        directory = ModelDirectory.open(pinned.path)
        if VERSION_COLUMN in directory.description.outputs:
            raise ScoringError(
                f"{pinned.label} has an output '{VERSION_COLUMN}', where its version stands in every row; package or "
                f"log the model with another name for it"
            )
        if other_versions == "refuse":
            check_versions(exported_with(pinned.path), pinned.label)
        self.label = pinned.label
        self._columns = directory.inputs.columns
        # What is None in a row has no type, so rows come with some schemas more than one.
        self._check = lru_cache(maxsize=_SCHEMAS)(directory.inputs.check)
        features = directory.fitted.spec.features if directory.fitted is not None else ()
        self._types = {one.name: _VECTOR for one in features if isinstance(one, Sparse) and one.columns == (one.name,)}
        self._model: LoadedModel = load_once(pinned.path, pinned.digest, threads=threads)

    def predict(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model's outputs for one row, and ``model_version``.

        Args:
            row: Raw columns by name, as they stand in a table; a sparse vector is a mapping of indices to values, None
                is missing, and more columns than the model's do no harm.

        Raises:
            ColumnError: A column is missing, or has a value that its feature cannot take.
        """
        return self.predict_rows([row])[0]

    def predict_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return what :meth:`predict` does for each row, with one call of a model that takes any number of rows.

        Raises:
            ColumnError: As there.
        """
        batch = pa.RecordBatch.from_arrays(
            [_column(name, [row.get(name, _ABSENT) for row in rows], self._types.get(name)) for name in self._columns],
            names=self._columns,
        )
        self._check(batch.schema)
        # Where calls are padded, so many rows are not to cost what 8,192 do.
        batch_size = min(max(len(rows), 1), DEFAULT_BATCH_SIZE)
        outputs = self._model.score_arrow(batch, batch_size=batch_size)
        columns = {name: column.to_pylist() for name, column in outputs.items()}
        return [
            {name: values[number] for name, values in columns.items()} | {VERSION_COLUMN: self.label}
            for number in range(len(rows))
        ]


_ABSENT = object()
_VECTOR = pa.map_(pa.int64(), pa.float64())
_SCHEMAS = 128


def _column(name: str, values: Sequence[Any], type_: pa.DataType | None) -> pa.Array:
    if any(value is _ABSENT for value in values):
        raise ColumnError(f"column '{name}' is missing in a row; give it, with None where its value is not known")
    try:
        return pa.array([list(value.items()) if isinstance(value, Mapping) else value for value in values], type_)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise ColumnError(f"column '{name}' has values that are of no one type: {error}") from error
