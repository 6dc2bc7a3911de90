"""A router with its models loaded: it decides for each row, calls the models, and puts their outputs together."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.scoring.backends.protocol import ArrayType, ModelOutputError, Signature
from mirrorspark.scoring.input.column_types import element_name, is_array
from mirrorspark.scoring.input.inputs import Inputs, RowErrors
from mirrorspark.scoring.routing.blend import blended, of_length
from mirrorspark.scoring.routing.decision import Decision, check_columns, decide
from mirrorspark.scoring.routing.router import Router

MODEL, REASON = "model", "reason"
"""Outputs that a router adds: the model or blend that answers for a row, and why."""


@dataclass(frozen=True)
class RoutedInputs:
    """The columns of all models of a router, and those that decide."""

    router: Router
    models: tuple[Inputs, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, each once."""
        return tuple(dict.fromkeys([name for one in self.models for name in one.columns] + [*self.router.columns]))

    def check(self, schema: pa.Schema) -> None:
        """Check the columns; see :class:`scoring.input.inputs.Inputs`."""
        for one in self.models:
            one.check(schema)
        check_columns(self.router, schema)


class Member(Protocol):
    """A loaded model of a router."""

    def score(self, batch: pa.Table | pa.RecordBatch) -> dict[str, np.ndarray]:
        """Return the outputs for raw columns."""

    def row_errors(self, batch: pa.RecordBatch, *, first: bool = False) -> RowErrors:
        """Return the rows that cannot be scored."""

    def with_search(self, search: Any) -> "Member":
        """Return a retrieval model that outputs the results of ``search``."""


class RoutedModel:
    """Feed and backend in one: what it hands on is the rows themselves, since each model has a feed of its own."""

    def __init__(
        self,
        router: Router,
        members: Mapping[str, Member],
        outputs: Mapping[str, str],
        labels: Mapping[str, Sequence[str]],
        threads: int | None,
    ) -> None:
        """Create the model.

        Args:
            router: The rules.
            members: The models by name.
            outputs: Type by output, of all models, with ``model`` and ``reason``.
            labels: Names of the elements by output.
            threads: Threads of the models, as they were asked for.
        """
        self._router, self._members = router, members
        self._most: int | None = None
        self.threads = threads or 1
        arrays = tuple(
            ArrayType(name, element_name(type_), (None, *_width(name, type_, labels)))
            for name, type_ in outputs.items()
        )
        self.signature = Signature((), arrays)

    def with_search(self, searches: Mapping[str, Any], most_candidates: int) -> "RoutedModel":
        """Return a router whose models search, and whose lists have at most so many candidates."""
        model = copy.copy(self)
        model._members = {name: member.with_search(searches[name]) for name, member in self._members.items()}
        model._most = most_candidates
        return model

    def rows_per_call(self, batch_size: int) -> int:
        """Return ``batch_size``; each model cuts its rows as it needs them."""
        return batch_size

    def parts(self, table: pa.Table | pa.RecordBatch, rows: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield rows and what was decided for them.

        Raises:
            ColumnError: No model may or can answer for a row, or a column cannot be read.
        """
        for start in range(0, max(1, table.num_rows), rows):
            piece = _batch(table.slice(start, rows))
            decision = self._decided(piece)
            if decision.errors:
                raise ColumnError(decision.errors[min(decision.errors)])
            yield piece.num_rows, {"rows": piece, "decision": decision}

    def row_errors(self, batch: pa.RecordBatch, *, first: bool) -> RowErrors:
        """Return the rows that no model may or can answer for."""
        decision = self._decided(batch)
        errors = dict(decision.errors)
        # With a fallback the decision has found them already.
        for name in dict.fromkeys(decision.models) if not self._router.fallback else ():
            if name:
                errors |= self._errors_of(name, batch, np.flatnonzero(decision.models == name))
        return dict(sorted(errors.items()))

    def __call__(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the outputs of the models that were chosen."""
        batch, decision = inputs["rows"], inputs["decision"]
        made: dict[str, np.ndarray] = {MODEL: decision.models, REASON: decision.reasons}
        for name in dict.fromkeys(decision.models):
            places = np.flatnonzero(decision.models == name)
            own = batch if len(places) == batch.num_rows else batch.take(pa.array(places))
            for output, values in self._answer(name, own).items():
                if output not in made:
                    made[output] = np.zeros((batch.num_rows, *values.shape[1:]), values.dtype)
                if made[output].shape[1:] != values.shape[1:]:
                    raise ModelOutputError(
                        f"'{output}' of '{name}' has {values.shape[1:]} elements per row, and that of another model of "
                        f"the router {made[output].shape[1:]}; export them with the same number (top_k)"
                    )
                made[output][places] = values
        return {output: made[output] for output in outputs}

    def _answer(self, name: str, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        """Return the outputs of a model or a blend; of a search, as many candidates as it asks for."""
        weights = self._router.weights(name)
        parts = {part: self._members[part].score(batch) for part in weights}
        answer = parts[name] if len(parts) == 1 and name in parts else blended(parts, weights)
        return answer if self._most is None else of_length(answer, self._most)

    def _decided(self, batch: pa.RecordBatch) -> Decision:
        """Return the models of the rows after those that cannot be scored have fallen back."""
        decision = decide(self._router, batch)
        for name in dict.fromkeys(decision.models) if self._router.fallback else ():
            if not name:
                continue
            failed = self._errors_of(name, batch, np.flatnonzero(decision.models == name))
            for other in (one for one in self._router.fallback if one != name):
                if not failed:
                    break
                still = self._errors_of(other, batch, np.array(list(failed)))
                for row in [row for row in failed if row not in still]:
                    decision.models[row] = other
                    decision.reasons[row] = f"{decision.reasons[row]}; {name} cannot score it: {failed.pop(row)}"
            decision.errors.update(failed)
        return decision

    def _errors_of(self, name: str, batch: pa.RecordBatch, places: np.ndarray) -> RowErrors:
        """Return the rows among ``places`` that a model cannot score, by their place in ``batch``."""
        errors: RowErrors = {}
        own = batch.take(pa.array(places, pa.int64()))
        for part in self._router.weights(name):
            found = self._members[part].row_errors(own)
            errors |= {int(places[row]): message for row, message in found.items()}
        return errors


def _width(name: str, type_: str, labels: Mapping[str, Sequence[str]]) -> tuple[int | None, ...]:
    if not is_array(type_):
        return ()
    return (len(labels[name]) if name in labels else None,)


def _batch(table: pa.Table | pa.RecordBatch) -> pa.RecordBatch:
    if isinstance(table, pa.RecordBatch):
        return table
    whole = table.combine_chunks().to_batches()
    return whole[0] if whole else pa.RecordBatch.from_pylist([], schema=table.schema)
