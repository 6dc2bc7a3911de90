"""The forms that scores can take in a table: what the model gives, a struct of it, or labels with their scores.

A *label* is the name of one element of a list of scores: a class of a multi-label model, or a candidate of a retrieval
model. Labels come from the model's artifact, so no index has to be joined with names afterwards. Scores of labels are
float, whatever the model gives, so that models of several libraries go into one table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa

from data_pipelines.repeated_names import repeated_names
from models.ranked_lists import CANDIDATES, SCORES, is_filled, is_ranked_list
from scoring.checks import ScoringError

Labels = Mapping[str, Sequence[str]]
"""Per output its labels, in the order of its elements; outputs without labels are left out."""

_SCORED_LABEL = pa.struct([("label", pa.string()), ("score", pa.float32())])
_PREDICTIONS = "predictions"


@dataclass(frozen=True)
class Shaped:
    """Columns that stand behind the keys.

    Attributes:
        columns: By name; all have one length.
        rows: int64 ``[length]``: the scored row that each belongs to, rising; None where there is one for each.
    """

    columns: Mapping[str, pa.Array]
    rows: np.ndarray | None = None


class Form(Protocol):
    """How a model's outputs become columns."""

    keeps_rows: ClassVar[bool]
    """Whether there is one row for each row that was scored."""

    def fields(self, outputs: pa.Schema, labels: Labels) -> pa.Schema:
        """Return the columns behind the keys.

        Raises:
            ScoringError: The model's outputs cannot take this form.
        """

    def shaped(self, outputs: Mapping[str, pa.Array], labels: Labels) -> Shaped:
        """Return the outputs of some rows in this form."""


@dataclass(frozen=True)
class Columns:
    """A column for each output."""

    keeps_rows: ClassVar[bool] = True

    def fields(self, outputs: pa.Schema, labels: Labels) -> pa.Schema:
        """Return the outputs as they are."""
        return outputs

    def shaped(self, outputs: Mapping[str, pa.Array], labels: Labels) -> Shaped:
        """Return the outputs as they are."""
        return Shaped(outputs)


AS_COLUMNS: Form = Columns()


@dataclass(frozen=True)
class Struct:
    """One column, a struct of the outputs.

    Attributes:
        name: The column.
    """

    name: str = "prediction"
    keeps_rows: ClassVar[bool] = True

    def fields(self, outputs: pa.Schema, labels: Labels) -> pa.Schema:
        """Return the struct."""
        return pa.schema([(self.name, pa.struct(list(outputs)))])

    def shaped(self, outputs: Mapping[str, pa.Array], labels: Labels) -> Shaped:
        """Return the struct."""
        return Shaped({self.name: pa.StructArray.from_arrays(list(outputs.values()), names=list(outputs))})


@dataclass(frozen=True)
class Wide:
    """A column of scores for each label of the model, by its name."""

    keeps_rows: ClassVar[bool] = True

    def fields(self, outputs: pa.Schema, labels: Labels) -> pa.Schema:
        """Return a column per label.

        Raises:
            ScoringError: There are no labels that hold for all rows, or two of one name.
        """
        names = labels[_labelled(outputs, labels, "wide")]
        repeated = repeated_names(names)
        if repeated:
            raise ScoringError(f"the model has the labels {repeated[:3]} twice; use the long form")
        return pa.schema([(name, pa.float32()) for name in names])

    def shaped(self, outputs: Mapping[str, pa.Array], labels: Labels) -> Shaped:
        """Return a column per label."""
        (output,) = labels
        names = labels[output]
        by_label = outputs[output].flatten().to_numpy().reshape(-1, len(names)).T
        return Shaped(
            {name: pa.array(np.ascontiguousarray(by_label[place], np.float32)) for place, name in enumerate(names)}
        )


@dataclass(frozen=True)
class Long:
    """A row for each row and label: columns ``label`` and ``score``."""

    keeps_rows: ClassVar[bool] = False

    def fields(self, outputs: pa.Schema, labels: Labels) -> pa.Schema:
        """Return both columns.

        Raises:
            ScoringError: The model's outputs have no labels.
        """
        _check_labelled(outputs, labels, "long")
        return pa.schema(list(_SCORED_LABEL))

    def shaped(self, outputs: Mapping[str, pa.Array], labels: Labels) -> Shaped:
        """Return every label with its score, row by row."""
        scored = _Scored.of(outputs, labels)
        return Shaped({"label": scored.labels_at(slice(None)), "score": pa.array(scored.scores)}, scored.rows())


@dataclass(frozen=True)
class TopK:
    """The best labels of each row, best first: a column ``predictions``, an array of structs of label and score.

    Of equal scores the earlier label comes first. A score that is NaN is left out.

    Attributes:
        k: How many, or all where the model has fewer.
    """

    k: int
    keeps_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ScoringError(f"the best {self.k} labels are none; use top:1 or more")

    def fields(self, outputs: pa.Schema, labels: Labels) -> pa.Schema:
        """Return the column.

        Raises:
            ScoringError: The model's outputs have no labels.
        """
        _check_labelled(outputs, labels, f"top:{self.k}")
        return pa.schema([(_PREDICTIONS, pa.list_(_SCORED_LABEL))])

    def shaped(self, outputs: Mapping[str, pa.Array], labels: Labels) -> Shaped:
        """Return the best labels."""
        scored = _Scored.of(outputs, labels)
        return _predictions(scored, *_best(scored.scores, scored.starts, self.k))


@dataclass(frozen=True)
class AtLeast:
    """The labels of each row whose score is at least a threshold, best first, as :class:`TopK` gives them.

    Attributes:
        threshold: The least score.
    """

    threshold: float
    keeps_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not np.isfinite(self.threshold):
            raise ScoringError(f"the threshold {self.threshold} is no number that a score can reach; use 0.5, say")

    def fields(self, outputs: pa.Schema, labels: Labels) -> pa.Schema:
        """Return the column.

        Raises:
            ScoringError: The model's outputs have no labels.
        """
        _check_labelled(outputs, labels, f"at_least:{self.threshold}")
        return pa.schema([(_PREDICTIONS, pa.list_(_SCORED_LABEL))])

    def shaped(self, outputs: Mapping[str, pa.Array], labels: Labels) -> Shaped:
        """Return the labels above the threshold."""
        scored = _Scored.of(outputs, labels)
        kept = np.flatnonzero(scored.scores >= np.float32(self.threshold))
        rows = scored.rows()[kept]
        order = np.lexsort((-scored.scores[kept], rows))
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(scored.starts) - 1))])
        return _predictions(scored, kept[order], starts)


# How each form is called on a command line, after which a colon and its argument may follow.
_BY_NAME: Mapping[str, tuple[Callable[..., Form], Callable[[str], Any] | None]] = {
    "columns": (Columns, None),
    "struct": (Struct, None),
    "wide": (Wide, None),
    "long": (Long, None),
    "top": (TopK, int),
    "at_least": (AtLeast, float),
}
_NAMES = "columns, struct, wide, long, top:10 or at_least:0.5"


def form_of(given: Form | str) -> Form:
    """Return a form as it is, and that of a name as `form_named` does.

    Raises:
        ScoringError: It is neither.
    """
    if isinstance(given, str):
        return form_named(given)
    if isinstance(given, type) or not callable(getattr(given, "fields", None)):
        raise ScoringError(f"outputs is {given!r}; give a form, such as Struct() or TopK(10), or its name: {_NAMES}")
    return given


def form_named(text: str) -> Form:
    """Return the form of that name: ``columns``, ``struct``, ``wide``, ``long``, ``top:K`` or ``at_least:THRESHOLD``.

    Raises:
        ScoringError: There is none.
    """
    name, _, argument = text.partition(":")
    form, parse = _BY_NAME.get(name, (None, None))
    if form is not None and parse is None and not argument:
        return form()
    if form is not None and parse is not None:
        try:
            return form(parse(argument))
        except ScoringError:
            raise
        except ValueError:
            pass  # the message below tells what an argument looks like
    raise ScoringError(f"there is no form '{text}'; use {_NAMES}")


def _labelled(outputs: pa.Schema, labels: Labels, form: str) -> str:
    """Return the one output that has labels.

    Raises:
        ScoringError: There is none, or more than one.
    """
    if len(labels) != 1:
        found = f"the outputs {sorted(labels)} have labels" if labels else "no output has labels that hold for all rows"
        types = {field.name: str(field.type) for field in outputs}
        raise ScoringError(
            f"the form '{form}' is for a model with one list of scores for labels; of {types} {found}: use columns"
        )
    return next(iter(labels))


def _check_labelled(outputs: pa.Schema, labels: Labels, form: str) -> None:
    if not is_ranked_list(outputs.names):
        _labelled(outputs, labels, form)


@dataclass(frozen=True)
class _Scored:
    """Scores of labels, those of all rows one after the other.

    Attributes:
        scores: float32 ``[scores]``.
        starts: int64 ``[rows + 1]``: where each row's begin.
        labels: The labels of one row where they hold for all, else of all scores.
    """

    scores: np.ndarray
    starts: np.ndarray
    labels: pa.Array

    @classmethod
    def of(cls, outputs: Mapping[str, pa.Array], labels: Labels) -> "_Scored":
        if is_ranked_list(outputs):
            return cls._of_candidates(outputs[CANDIDATES], outputs[SCORES])
        (output,) = labels
        scores = outputs[output].flatten().to_numpy().astype(np.float32, copy=False)
        return cls(scores, _starts(outputs[output]), pa.array(labels[output], pa.string()))

    @classmethod
    def _of_candidates(cls, candidates: pa.ListArray, scores: pa.ListArray) -> "_Scored":
        """Return the candidates that there are: where exclusions leave too few, the rest of a list is empty."""
        every = cls(scores.flatten().to_numpy(), _starts(scores), candidates.flatten())
        kept = np.flatnonzero(is_filled(every.labels).to_numpy(zero_copy_only=False))
        lengths = np.bincount(every.rows()[kept], minlength=len(scores))
        return cls(every.scores[kept], np.concatenate([[0], np.cumsum(lengths)]), every.labels.take(pa.array(kept)))

    def rows(self) -> np.ndarray:
        """Return int64 ``[scores]``: the row of each score."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def labels_at(self, places: Any) -> pa.Array:
        """Return the labels of the scores at some places."""
        if len(self.labels) == len(self.scores):
            return self.labels if isinstance(places, slice) else self.labels.take(pa.array(places))
        # Every row has all labels.
        return self.labels.take(pa.array(np.arange(len(self.scores))[places] % max(1, len(self.labels))))


def _predictions(scored: _Scored, places: np.ndarray, starts: np.ndarray) -> Shaped:
    entries = pa.StructArray.from_arrays(
        [scored.labels_at(places), pa.array(scored.scores[places])], fields=list(_SCORED_LABEL)
    )
    return Shaped({_PREDICTIONS: pa.ListArray.from_arrays(pa.array(starts.astype(np.int32)), entries)})


def _starts(lists: pa.ListArray) -> np.ndarray:
    starts = lists.offsets.to_numpy().astype(np.int64)
    return starts - starts[0]


def _best(scores: np.ndarray, starts: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the ``k`` best scores of each row, best first, and where each row's begin."""
    from scoring.best_kernel import keep_best  # for what Numba takes, see data_pipelines.kernels

    k = min(k, int(np.diff(starts).max(initial=0)))
    places = np.empty((len(starts) - 1, k), np.int64)
    counts = np.zeros(len(starts) - 1, np.int64)
    if k:
        keep_best(np.ascontiguousarray(scores, np.float32), starts, places, counts)
    kept = places[np.arange(k) < counts[:, None]]
    return kept, np.concatenate([[0], np.cumsum(counts)])
