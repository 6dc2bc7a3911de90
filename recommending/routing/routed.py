"""A router with its models loaded: it decides for each row, calls the models, and puts their outputs together."""

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.models.index import CANDIDATES, UNFILLED, is_ranked_list
from mirrorspark.models.serving import signatures
from mirrorspark.recommending.routing.blend import ListFusion, blended, of_length
from mirrorspark.recommending.routing.decision import RoutingDecision, check_columns, decide
from mirrorspark.recommending.routing.router import Router
from mirrorspark.recommending.routing.router_hooks import postprocessed, preprocessed
from mirrorspark.recommending.routing.stages import Stages
from mirrorspark.recommending.routing.vector_search import VectorSearch
from mirrorspark.scoring.backends import protocol
from mirrorspark.scoring.input import Inputs, RowErrors, column_types
from mirrorspark.scoring.model import POSTPROCESS, PREPROCESS, Hooks

MODEL, REASON = "model", "reason"
"""Outputs that a router adds: the model, blend or cascade that answers for a row, and why."""

# Candidates of a cascade that are found at a time, for as many rows as that makes.
_FOUND_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class RoutedInputs:
    """The columns of all models of a router, and those that decide.

    Attributes:
        made: The columns that the hook ``preprocess`` makes, each with those that it reads for it.
    """

    router: Router
    models: tuple[Inputs, ...]
    made: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def read(self) -> tuple[str, ...]:
        """The columns that the models and the router read, each once."""
        return tuple(dict.fromkeys([name for one in self.models for name in one.columns] + [*self.router.columns]))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table, each once."""
        sources = [source for given in self.made.values() for source in given]
        return tuple(dict.fromkeys([name for name in self.read if name not in self.made] + sources))

    def check(self, schema: pa.Schema) -> None:
        """Check the columns; see :class:`scoring.input.Inputs`."""
        if self.made:
            missing = [name for name in self.columns if name not in schema.names]
            if missing:
                raise raw_columns.ColumnError(
                    f"the columns {missing} are missing, which the router, its models or the hook {PREPROCESS} read; "
                    f"the table has {schema.names}: add them"
                )
            # Their types are known when the hook has made them: until then they are columns without a value.
            others = [one for one in schema if one.name not in self.made]
            schema = pa.schema([*others, *(pa.field(name, pa.null()) for name in self.made)])
        for one in self.models:
            one.check(schema)
        check_columns(self.router, schema)


class Member(Protocol):
    """A loaded model of a router."""

    def score(self, batch: pa.Table | pa.RecordBatch) -> dict[str, np.ndarray]:
        """Return the outputs for raw columns."""

    def row_errors(self, batch: pa.RecordBatch, *, first: bool = False) -> RowErrors:
        """Return the rows that cannot be scored."""

    def finding(self, most: int, search: Any, available: pa.Array | None) -> "Member":
        """Return a retrieval model that finds the best ``most``.

        :mod:`scoring.model.loading.loaded` describes the parameters.
        """


@dataclass
class RouterSearch:
    """A search of a router: which of its models find how many candidates in it, and how many of them are listed.

    Attributes:
        router: The rules.
        members: The models by name.
        stages: The stages of the cascades by name.
        of_models: The search of each retrieval model by name; others search all candidates exactly.
        most: Candidates in a list; None where nobody asks, and each model and cascade has a length of its own.
    """

    router: Router
    members: Mapping[str, Member]
    stages: Mapping[str, Stages]
    of_models: Mapping[str, Any] = field(default_factory=dict)
    most: int | None = None
    # By model, and by the model, blend or cascade that it takes part in: it searches differently deep in each.
    _finding: dict[tuple[str, str], Member] = field(default_factory=dict, init=False)

    def member(self, part: str, name: str) -> Member:
        """Return a model as it takes part in a model, blend or cascade: with the search that it needs there."""
        if self.most is None and name not in self.stages:
            return self.members[part]
        if (part, name) not in self._finding:
            available = self.stages[name].available if name in self.stages else None
            search = self.of_models.get(part)
            if search is not None and self.router.is_vector_blend(name):
                # The model only gives its vectors: an index of its own would be loaded for nothing.
                search = replace(search, index=signatures.EXACT)
            self._finding[part, name] = self.members[part].finding(self.depth(name), search, available)
        return self._finding[part, name]

    def depth(self, name: str) -> int:
        """Return the number of candidates that each model finds for a model, blend or cascade."""
        most = self.most or 1
        if name in self.stages:
            return max(most, self.router.cascades[name].depth)
        # A candidate that all models of a blend have a little further down comes up.
        return max(most, self.router.blend_depth) if name in self.router.blends else most


class RoutedModel:
    """Feed and backend in one: it hands on the rows themselves, since each model has a feed of its own."""

    def __init__(
        self,
        router: Router,
        members: Mapping[str, Member],
        outputs: Mapping[str, str],
        labels: Mapping[str, Sequence[str]],
        threads: int | None,
        stages: Mapping[str, Stages],
        hooks: Hooks | None = None,
        made: Sequence[str] = (),
    ) -> None:
        """Create the model.

        Args:
            router: The rules.
            members: The models by name.
            outputs: Type by output, of all models, with ``model`` and ``reason``.
            labels: Names of the elements by output.
            threads: Threads of the models, as they were asked for.
            stages: The stages of the cascades by name.
            hooks: Functions that run before the decision and after the answer.
            made: Columns that the first of them adds to the rows.
        """
        self._router, self._members, self._stages, self._hooks = router, members, stages, hooks
        self._made = tuple(made)
        self._search = RouterSearch(router, members, stages)
        self._vector_searches: dict[str, VectorSearch] = {}
        self._lock = threading.Lock()
        self.threads = threads or 1
        self._are_lists = is_ranked_list(set(outputs) - {MODEL, REASON})
        arrays = tuple(
            protocol.ArrayType(name, column_types.element_name(type_), (None, *_width(name, type_, labels)))
            for name, type_ in outputs.items()
        )
        self.signature = protocol.Signature((), arrays)

    def with_search(self, searches: Mapping[str, Any], most_candidates: int) -> "RoutedModel":
        """Return a router whose models search, and whose lists have at most this number of candidates."""
        model = copy.copy(self)
        model._search = replace(self._search, of_models=searches, most=most_candidates)
        return model

    def rows_per_call(self, batch_size: int) -> int:
        """Return ``batch_size``; each model cuts its rows as it needs them."""
        return batch_size

    def parts(self, table: pa.Table | pa.RecordBatch, rows: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield rows and the decisions on them.

        Raises:
            ColumnError: No model may or can answer for a row, or a column cannot be read.
        """
        for start in range(0, max(1, table.num_rows), rows):
            piece = self._prepared(_batch(table.slice(start, rows)))
            decision = self._decided(piece)
            if decision.errors:
                raise raw_columns.ColumnError(decision.errors[min(decision.errors)])
            yield piece.num_rows, {"rows": piece, "decision": decision}

    def row_errors(self, batch: pa.RecordBatch, *, first: bool) -> RowErrors:
        """Return the rows that no model may or can answer for."""
        batch = self._prepared(batch)
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
        made: dict[str, np.ndarray] = {MODEL: decision.models.copy(), REASON: decision.reasons.copy()}
        for name in dict.fromkeys(decision.models):
            places = np.flatnonzero(decision.models == name)
            own = batch if len(places) == batch.num_rows else batch.take(pa.array(places))
            self._put(made, name, places, self._answer(name, own))
        if self._router.fallback and self._are_lists:
            self._fill_empty_lists(made, batch)
        if self._hooks is not None and self._hooks.has(POSTPROCESS):
            made = postprocessed(self._hooks, made)
        return {output: made[output] for output in outputs}

    def _put(self, made: dict[str, np.ndarray], name: str, places: np.ndarray, answer: dict[str, np.ndarray]) -> None:
        """Write the outputs of a model, blend or cascade for the rows at ``places`` into those of all rows."""
        if name in self._stages:
            made[REASON][places] += f"; {self._stages[name].cascade.reason}"
        for output, values in answer.items():
            if output not in made:
                made[output] = np.zeros((len(made[MODEL]), *values.shape[1:]), values.dtype)
            if made[output].shape[1:] != values.shape[1:]:
                raise protocol.ModelOutputError(
                    f"'{output}' of '{name}' has {values.shape[1:]} elements per row, and that of another model of the "
                    f"router {made[output].shape[1:]}; export them with the same number (top_k; k of a cascade)"
                )
            made[output][places] = values

    def _fill_empty_lists(self, made: dict[str, np.ndarray], batch: pa.RecordBatch) -> None:
        """Have the fallback answer for rows whose list has no candidate."""
        for other in self._router.fallback:
            empty = np.flatnonzero((made[CANDIDATES][:, 0] == UNFILLED.encode()) & (made[MODEL] != other))
            failed = self._errors_of(other, batch, empty)
            places = np.array([place for place in empty if place not in failed], np.int64)
            if not len(places):
                continue
            answer = self._answer(other, batch.take(pa.array(places)))
            is_better = answer[CANDIDATES][:, 0] != UNFILLED.encode()
            places = places[is_better]
            made[REASON][places] += np.array([f"; {name} has no candidates" for name in made[MODEL][places]], object)
            made[MODEL][places] = other
            self._put(made, other, places, {output: values[is_better] for output, values in answer.items()})

    def _prepared(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self._hooks is None or not self._hooks.has(PREPROCESS):
            return batch
        return preprocessed(self._hooks, self._router, batch, self._made)

    def _answer(self, name: str, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        """Return the outputs of a model, blend or cascade; of a search, as many candidates as it asks for."""
        if name in self._stages:
            return self._listed(name, batch)
        found, most = self._found(name, batch), self._search.most
        return found if most is None else of_length(found, most)

    def _found(self, name: str, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        """Return the outputs of a model or blend, or the candidates of the first stage of a cascade."""
        first, weights = self._router.found_by(name), self._router.weights(name)
        if self._router.is_vector_blend(name):
            return self._found_by_vectors(name, batch)
        parts = {part: self._search.member(part, name).score(batch) for part in weights}
        only = len(parts) == 1 and first in parts
        found = parts[first] if only else blended(parts, weights, cast(ListFusion, self._router.fusion))
        if name not in self._stages:
            return found
        # A model of another library lists as it does.
        return {output: values[:, : self._search.depth(name)] for output, values in found.items()}

    def _found_by_vectors(self, name: str, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        """Return the candidates of one search with the vectors of a blend's models."""
        first = self._router.found_by(name)
        parts: dict[str, Any] = {part: self._search.member(part, name) for part in self._router.weights(name)}
        most = self._search.depth(name) if name in self._stages else self._search.most
        if most is None:
            most = max(part.list_length(batch) for part in parts.values())
        return self._vectors(first).found(parts, batch, most)

    def _vectors(self, blend: str) -> VectorSearch:
        """Return the search of a blend, which is made once for all copies of this model."""
        with self._lock:
            if blend not in self._vector_searches:
                weights = self._router.blends[blend]
                models: dict[str, Any] = {part: self._members[part] for part in weights}
                self._vector_searches[blend] = VectorSearch(models, weights, cosine=self._router.fusion == "cosine")
            return self._vector_searches[blend]

    def _listed(self, name: str, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        """Return the lists of a cascade, found and ranked some rows at a time."""
        stages, cascade = self._stages[name], self._router.cascades[name]
        parts = [
            stages.listed(
                rows,
                self._found(name, rows),
                self._search.most or cascade.k,
                lambda pairs: self._members[str(cascade.rank)].score(pairs)[cascade.output],
            )
            for rows in self._pieces(name, batch)
        ]
        return {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}

    def _pieces(self, name: str, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yield rows of a cascade whose candidates fit into memory together."""
        rows = max(1, _FOUND_AT_ONCE // self._search.depth(name))
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)

    def _decided(self, batch: pa.RecordBatch) -> RoutingDecision:
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
        if name in self._stages and self._router.cascades[name].rank is not None:
            good = np.array([place for place in places if place not in errors], np.int64)
            errors |= {int(good[row]): why for row, why in self._unranked(name, batch.take(pa.array(good))).items()}
        return dict(sorted(errors.items()))

    def _unranked(self, name: str, batch: pa.RecordBatch) -> RowErrors:
        """Return the rows of a cascade with a candidate that cannot be ranked."""
        stages, rank = self._stages[name], self._members[str(self._router.cascades[name].rank)]
        errors: RowErrors = {}
        before = 0
        for rows in self._pieces(name, batch):
            found = stages.row_errors(rows, self._found(name, rows), rank.row_errors)
            errors |= {before + row: message for row, message in found.items()}
            before += rows.num_rows
        return errors


def _width(name: str, type_: str, labels: Mapping[str, Sequence[str]]) -> tuple[int | None, ...]:
    if not column_types.is_array(type_):
        return ()
    return (len(labels[name]) if name in labels else None,)


def _batch(table: pa.Table | pa.RecordBatch) -> pa.RecordBatch:
    if isinstance(table, pa.RecordBatch):
        return table
    whole = table.combine_chunks().to_batches()
    return whole[0] if whole else pa.RecordBatch.from_pylist([], schema=table.schema)
