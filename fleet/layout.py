"""Layouts of a fleet's outputs: wide, packed or long tables.

A new layout is a name in :data:`LayoutName`, and its columns in ``fields``, ``empty`` and ``batch`` of the class here.
"""

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features import repeated_names
from mirrorspark.fleet.columns import array, lengths_of, some
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.kernels import NULL_BINARY, NULL_RANK
from mirrorspark.scoring import ScoringError

LayoutName = Literal["wide", "packed", "long"]
"""``wide``: a column per model and output, such as ``modelX_Rank``. ``packed``: a column per output, whose lists have
an element per model. ``long``: a row per model and row, with the column ``model``."""

OutputName = Literal["score", "binary", "Rank"]
"""``score``: the inverse link of the linear predictor. ``binary``: 1 from the threshold on, else 0. ``Rank``: 1 for the
best, by the cut-points."""

OUTPUTS: tuple[str, ...] = get_args(OutputName)
MODEL_COLUMN = "model"

_LOGGER = logging.getLogger(__name__)

_MODEL_TYPE = pa.dictionary(pa.int32(), pa.string())
_TYPES = {"score": pa.float32(), "binary": pa.int8(), "Rank": pa.int16()}
# Bytes of a key and of the number of a model, which each row of the long layout has.
_LONG_BYTES = 24
_NULLS: Mapping[str, Any] = {"score": np.float32("nan"), "binary": np.int8(NULL_BINARY), "Rank": np.int16(NULL_RANK)}


@dataclass(frozen=True)
class OutputArrays:
    """Outputs of a fleet for some rows, as the kernels write them.

    Attributes:
        by_output: By output ``[places, rows]``, or ``[rows, places]`` unless the layout is wide.
        nulls: Number of models and rows without outputs.
    """

    by_output: Mapping[str, np.ndarray]
    nulls: int


@dataclass(frozen=True, eq=False)
class Layout:
    """The columns of a fleet's outputs.

    Attributes:
        name: Name of the layout.
        models: The names of the models.
        outputs: In the order of :data:`OUTPUTS`.
        places: int64 ``[models, 3]``: the row of each output's array that a model writes; -1 for none.
    """

    name: LayoutName
    models: tuple[str, ...]
    outputs: tuple[str, ...]
    places: np.ndarray

    @classmethod
    def of(cls, fleet: Fleet, name: str, outputs: Sequence[str] | None, *, is_part: bool = False) -> "Layout":
        """Return the layout of a fleet's outputs.

        Args:
            fleet: The fleet.
            name: ``wide``, ``packed`` or ``long``.
            outputs: Some of ``score``, ``binary`` and ``Rank``. By default ``binary`` and ``Rank`` if any model has
                what they need, a threshold or cut-points; else ``score``.
            is_part: Whether these are some models of a fleet, of which perhaps none has one of the outputs.

        Raises:
            ScoringError: The layout or an output is unknown, no model has an output, or two columns would have names
                that Spark does not tell apart.
        """
        if name not in get_args(LayoutName):
            raise ScoringError(f"layout '{name}' is unknown; use {', '.join(get_args(LayoutName))}")
        has = {
            "score": np.ones(len(fleet), bool),
            "binary": array(fleet.table, "threshold").is_valid().to_numpy(zero_copy_only=False),
            "Rank": lengths_of(array(fleet.table, "cut_points")) > 0,
        }
        if outputs is None:
            outputs = [output for output in ("binary", "Rank") if has[output].any()] or ["score"]
        if unknown := [output for output in outputs if output not in OUTPUTS]:
            raise ScoringError(f"output '{unknown[0]}' is unknown; use some of {', '.join(OUTPUTS)}")
        wanted = tuple(output for output in OUTPUTS if output in outputs)
        for output in wanted:
            if not is_part and not has[output].any():
                needed = {"binary": "a threshold", "Rank": "cut-points"}[output]
                raise ScoringError(f"no model has {needed}, so there is no '{output}'; leave it out of outputs")
        if not wanted:
            raise ScoringError(f"outputs is empty; use some of {', '.join(OUTPUTS)}")
        places = np.full((len(fleet), len(OUTPUTS)), -1, np.int64)
        for column, output in enumerate(OUTPUTS):
            if output in wanted:
                own = np.flatnonzero(has[output])
                # Lists have an element for each model, also for those without this output.
                places[own, column] = np.arange(len(own)) if name == "wide" else own
        layout = cls(name, fleet.names, wanted, places)  # type: ignore[arg-type]
        if twice := repeated_names([field.name.lower() for field in layout.fields]):
            raise ScoringError(
                f"the outputs would have the columns {twice[:5]} twice for Spark, which ignores upper and lower case; "
                f"rename the models, or use layout='packed'"
            )
        return layout

    def check_outputs(self, models: Set[str]) -> None:
        """Check that the models to score give outputs; warn of those that give none.

        Raises:
            ScoringError: None of them does.
        """
        without = np.flatnonzero((self.places < 0).all(axis=1)).tolist()
        silent = [name for name in (self.models[model] for model in without) if name in models]
        if not silent:
            return
        problem = f"{len(silent):,} of the {len(models):,} models have nothing for the outputs {list(self.outputs)}"
        mend = f"{some(silent)}; add 'score' to outputs, or give them a threshold or cut-points"
        if len(silent) == len(models):
            raise ScoringError(f"{problem}: {mend}")
        _LOGGER.warning("%s and are scored for nothing: %s", problem, mend)

    @cached_property
    def fields(self) -> tuple[pa.Field, ...]:
        """The columns that follow the keys."""
        if self.name == "wide":
            return tuple(pa.field(column, _TYPES[output]) for column, output, _ in self._wide)
        if self.name == "packed":
            models = len(self.models)
            return tuple(pa.field(output, pa.list_(_TYPES[output], models)) for output in self.outputs)
        return (pa.field(MODEL_COLUMN, _MODEL_TYPE), *(pa.field(output, _TYPES[output]) for output in self.outputs))

    @property
    def keeps_rows(self) -> bool:
        """True if every row of the input becomes one row; the long layout writes one for each model."""
        return self.name != "long"

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's outputs in memory."""
        values = sum(_TYPES[output].bit_width // 8 * self._count(output) for output in self.outputs)
        return values if self.keeps_rows else values + _LONG_BYTES * len(self.models)

    @property
    def dictionary_columns(self) -> list[str]:
        """The columns, as Parquet names them, that hold few different values."""
        small = [output for output in self.outputs if output != "score"]
        if self.name == "wide":
            return [column for column, output, _ in self._wide if output in small]
        return [f"{output}.list.element" for output in small] if self.name == "packed" else [MODEL_COLUMN, *small]

    def empty(self, rows: int) -> OutputArrays:
        """Return arrays for the kernels to write."""
        arrays = {}
        for output in OUTPUTS:
            count = self._count(output) if output in self.outputs else 0
            shape = (count, rows) if self.name == "wide" else (rows, count)
            found = np.empty(shape, _NULLS[output].dtype)
            if self.name != "wide" and self._count_without(output):
                found.fill(_NULLS[output])
            arrays[output] = found
        return OutputArrays(arrays, 0)

    def batch(self, keys: Mapping[str, pa.Array], found: OutputArrays) -> pa.RecordBatch:
        """Return keys and outputs as columns.

        Args:
            keys: Arrays ``[rows]`` by name.
            found: The outputs of these rows.
        """
        if self.name == "wide":
            columns = [_array(output, found.by_output[output][place], found.nulls) for _, output, place in self._wide]
            return self._batch(keys, columns)
        # Models without an output are null.
        flat = [
            _array(output, found.by_output[output].ravel(), found.nulls or self._count_without(output))
            for output in self.outputs
        ]
        models = len(self.models)
        if self.name == "packed":
            return self._batch(keys, [pa.FixedSizeListArray.from_arrays(values, models) for values in flat])
        rows = len(found.by_output[self.outputs[0]])
        numbers = pa.array(np.repeat(np.arange(rows), models))
        repeated = {name: column.take(numbers) for name, column in keys.items()}
        numbers = pa.array(np.tile(np.arange(models, dtype=np.int32), rows))
        names = pa.DictionaryArray.from_arrays(numbers, pa.array(self.models, pa.string()))
        return self._batch(repeated, [names, *flat])

    def _batch(self, keys: Mapping[str, pa.Array], columns: Sequence[pa.Array]) -> pa.RecordBatch:
        names = [*keys, *(field.name for field in self.fields)]
        return pa.RecordBatch.from_arrays([*keys.values(), *columns], names=names)

    @cached_property
    def _wide(self) -> list[tuple[str, str, int]]:
        """Return name, output and place of each wide column."""
        return [
            (f"{model}_{output}", output, int(self.places[number, OUTPUTS.index(output)]))
            for number, model in enumerate(self.models)
            for output in self.outputs
            if self.places[number, OUTPUTS.index(output)] >= 0
        ]

    def _count(self, output: str) -> int:
        places = self.places[:, OUTPUTS.index(output)]
        return int(places.max()) + 1 if self.name == "wide" else len(self.models)

    def _count_without(self, output: str) -> int:
        return int(np.count_nonzero(self.places[:, OUTPUTS.index(output)] < 0))


def _array(output: str, values: np.ndarray, nulls: int) -> pa.Array:
    """Return values as an Arrow array on the same memory, with nulls if there may be any."""
    if not nulls:
        return pa.array(values)
    is_null = np.isnan(values) if output == "score" else values == _NULLS[output]
    return pa.array(values, mask=is_null) if is_null.any() else pa.array(values)
