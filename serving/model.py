"""One version of a model that answers requests: its columns, and its outputs for several requests in one call."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.scoring import Predictor
from mirrorspark.scoring.input import column_types
from mirrorspark.scoring.model import Catalogue, catalogues_of
from mirrorspark.scoring.model.folder import ModelDescription, ModelDirectory
from mirrorspark.scoring.model.loading import ModelCache
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.serving.errors import RequestError
from mirrorspark.serving.fields import SPARSE_VECTOR, input_fields, output_fields
from mirrorspark.serving.rows import MOST_PROBLEMS, Rows, problems_text, shown
from mirrorspark.serving.servable import Outputs

_LOGGER = logging.getLogger(__name__)
_ROWS_LISTED = 32


class ServedModel:
    """A loaded version of a model. Thread-safe, as its predictor is."""

    def __init__(
        self, pinned: PinnedModel, name: str, *, threads: int | None, trust: bool, cache: ModelCache | None = None
    ) -> None:
        """Load the model.

        Args:
            pinned: The version.
            name: Name of the model in requests.
            threads: As in :class:`scoring.Predictor`.
            trust: As in :class:`scoring.Predictor`.
            cache: Holds it as nothing newer is loaded; by default nothing else does.

        Raises:
            ModelDirectoryError: As in :class:`scoring.Predictor`, as are other errors.
        """
        # Versions that no longer answer must not stay in memory, as they would in the cache of the process.
        self._predictor = Predictor(pinned, threads=threads, trust=trust, cache=cache or ModelCache(0))
        directory = ModelDirectory.open(pinned.path)
        self.pinned, self.name = pinned, name
        self.inputs, self.outputs = input_fields(directory), output_fields(directory)
        self.columns: tuple[str, ...] = self._predictor.columns
        self.labels: Mapping[str, Sequence[str]] = directory.labels
        # By what it is called: the model itself, or a model of a router.
        self.catalogues: Mapping[str, Catalogue] = catalogues_of(directory, name)
        self.task: str | None = (
            directory.description.task if isinstance(directory.description, ModelDescription) else None
        )

    @property
    def version(self) -> str:
        """The registered version, or the start of the digest of an unregistered model."""
        return self.pinned.version

    @property
    def digest(self) -> str:
        """SHA-256 over the files of the model."""
        return self.pinned.digest

    def compute(self, requests: Sequence[Rows]) -> list[Outputs | Exception]:
        """Return the outputs of each request, from one call of the model, or why a request has none.

        A row with a value that the model does not accept costs its own request alone: the others are computed without
        it.
        """
        try:
            return self._together(requests)
        except Exception as error:
            # The model's code may raise anything. The client gets an error, and the server continues.
            if len(requests) == 1:
                refusal = self._refusal(requests[0]) if isinstance(error, raw_columns.ColumnError) else None
                return [refusal or error]
        refusals = [self._refusal(one) for one in requests]
        good = [one for one, refusal in zip(requests, refusals, strict=True) if refusal is None]
        if len(good) == len(requests):
            # Such as booleans and integers in one column, of which either alone is accepted.
            return [answer for one in requests for answer in self.compute([one])]
        answers = iter(self.compute(good) if good else [])
        return [refusal or next(answers) for refusal in refusals]

    def warm_up(self, rows: Mapping[str, Sequence[Any]] | None = None) -> bool:
        """Compute a row, so that the first request finds all in place, and return whether the model takes the row.

        Args:
            rows: Values by column that another version has computed; by default the made-up row.

        Raises:
            Exception: The model's error for ``rows``, unless it is about their columns or types.
        """
        return self.example is not None if rows is None else self._takes(rows)

    @cached_property
    def example(self) -> Mapping[str, Sequence[Any]] | None:
        """A made-up row that the model computes, of zeros and empty values, or else of nulls; None if there is none."""
        empty: Mapping[str, object] = {"boolean": False, "string": "", "binary": b"", SPARSE_VECTOR: {}}
        zeros: dict[str, Sequence[Any]] = {
            one.name: [[] if column_types.is_array(one.type) else empty.get(one.type, 0)] for one in self.inputs
        }
        nulls: dict[str, Sequence[Any]] = {name: [None] for name in self.columns}
        try:
            return next((rows for rows in (zeros, nulls) if self._takes(rows)), None)
        except Exception:
            # A row that nobody has asked for must not keep a model from its work, whatever its code makes of it.
            _LOGGER.info("model %s cannot compute a made-up row", self.pinned.label, exc_info=True)
            return None

    def _takes(self, rows: Mapping[str, Sequence[Any]]) -> bool:
        try:
            self._predictor.outputs(self._predictor.batch(rows))
        except raw_columns.ColumnError:
            return False
        return True

    def _together(self, requests: Sequence[Rows]) -> list[Outputs | Exception]:
        # One array per column of all requests: arrays of each request cost more than the model's work.
        columns = {
            name: list(itertools.chain.from_iterable(one.columns[name] for one in requests)) for name in self.columns
        }
        outputs = self._predictor.outputs(self._predictor.batch(columns))
        values = {name: _listed(column) for name, column in outputs.items()}
        if len(requests) == 1:
            return [values]
        ends = list(itertools.accumulate(one.count for one in requests))
        return [
            {name: column[start:end] for name, column in values.items()}
            for start, end in itertools.pairwise([0, *ends])
        ]

    def _refusal(self, rows: Rows) -> RequestError | None:
        """Return the answer to a request with values that the model does not accept; None if it accepts all."""
        try:
            errors = self._predictor.row_errors(self._predictor.batch(rows.columns))
        except raw_columns.ColumnError as error:
            return RequestError(400, self._problems(rows) or str(error))
        except Exception:
            return None  # computing it raises the error that the log gets
        if not errors:
            return None
        return RequestError(400, problems_text([f"{rows.name(row)}: {text}" for row, text in errors.items()]))

    def _problems(self, rows: Rows) -> str:
        """Return a text of the values whose type the model does not read; "" if each alone is valid."""
        found = list(itertools.islice(self._wrong_values(rows), MOST_PROBLEMS + 1))
        return problems_text(found[:MOST_PROBLEMS]) + ("; and more" if len(found) > MOST_PROBLEMS else "")

    def _wrong_values(self, rows: Rows) -> Iterator[str]:
        # Values of one type have one verdict; a null in the other columns fits every input.
        known: dict[tuple[str, pa.DataType], str | None] = {}
        for row in range(rows.count):
            for name in self.columns:
                value = rows.columns[name][row]
                try:
                    type_ = pa.array([value], from_pandas=True).type
                except (pa.ArrowException, TypeError, ValueError, OverflowError):
                    type_ = None
                if type_ is None or isinstance(value, Mapping):
                    verdict = self._verdict(name, value)
                else:
                    if (name, type_) not in known:
                        known[name, type_] = self._verdict(name, value)
                    verdict = known[name, type_]
                if verdict is not None:
                    yield f"{rows.name(row)}: {verdict} (given: {shown(value)})"

    def _verdict(self, name: str, value: Any) -> str | None:
        try:
            self._predictor.batch({one: [value if one == name else None] for one in self.columns})
        except raw_columns.ColumnError as error:
            return str(error)
        return None


def _listed(column: pa.Array) -> list[Any]:
    """Return values as Python's; one call for long lists of lists would keep other threads from the interpreter."""
    parts = (column.slice(start, _ROWS_LISTED).to_pylist() for start in range(0, len(column), _ROWS_LISTED))
    return list(itertools.chain.from_iterable(parts))
