"""Forms of scores in a table: the model's outputs, a struct of them, or labels with their scores.

A *label* is the name of one element of a list of scores: a class of a multi-label model, or a candidate of a retrieval
model. Labels are part of the model's artifact, so indexes need no join with names. Scores of labels are always float,
so that models of several libraries fit into one table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features import repeated_names
from mirrorspark.models.index import CANDIDATES, SCORES, is_filled, is_ranked_list
from mirrorspark.scoring.errors import ScoringError

Labels = Mapping[str, Sequence[str]]
"""Labels by output, in the order of its elements; outputs without labels are left out."""

_SCORED_LABEL = pa.struct([("label", pa.string()), ("score", pa.float32())])
_PREDICTIONS = "predictions"
PREDICTED_LABEL = "predicted_label"
_PROBABILITY = "probability_"
MOST_NAMED = 200
"""Labels that become columns by default; more of them stay one list."""


@dataclass(frozen=True)
class Shaped:
    """The columns of scores that follow the keys.

    Attributes:
        columns: Arrays of equal length by name.
        rows: int64 ``[length]``: number of the scored row of each entry, ascending; None if there is one entry per row.
    """

    columns: Mapping[str, pa.Array]
    rows: np.ndarray | None = None


class Form(Protocol):
    """Conversion of a model's outputs to columns."""

    keeps_rows: ClassVar[bool]
    """Whether the result has one row for each scored row."""

    def fields(self, outputs: pa.Schema, labels: Labels) -> pa.Schema:
        """Return the columns that follow the keys.

        Raises:
            ScoringError: The model's outputs do not fit this form.
        """

    def shaped(self, outputs: Mapping[str, pa.Array], labels: Labels) -> Shaped:
        """Return the outputs of some rows in this form."""


@dataclass(frozen=True)
class Columns:
    """A column for each output."""

    keeps_rows: ClassVar[bool] = True

    def fields(self, outputs: pa.Schema, labels: Labels) -> pa.Schema:
        """Return the outputs unchanged."""
        return outputs

    def shaped(self, outputs: Mapping[str, pa.Array], labels: Labels) -> Shaped:
        """Return the outputs unchanged."""
        return Shaped(outputs)


AS_COLUMNS: Form = Columns()


@dataclass(frozen=True)
class Struct:
    """One column, a struct of the outputs.

    Attributes:
        name: Name of the column.
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
    """One column of scores per label, with the label's name."""

    keeps_rows: ClassVar[bool] = True

    def fields(self, outputs: pa.Schema, labels: Labels) -> pa.Schema:
        """Return a column per label.

        Raises:
            ScoringError: The model has no labels that hold for all rows, or two of the same name.
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
class Labelled:
    """The outputs, and before them the label with the best score of each row, in the column ``predicted_label``.

    Of equal scores the earlier label counts. A row without scores, or with NaN alone, has none.
    """

    keeps_rows: ClassVar[bool] = True

    def fields(self, outputs: pa.Schema, labels: Labels) -> pa.Schema:
        """Return the column of the label and the outputs.

        Raises:
            ScoringError: The model's outputs have no labels, or one of them has the name of the column.
        """
        _check_labelled(outputs, labels, "labelled")
        if PREDICTED_LABEL in outputs.names:
            raise ScoringError(f"the model has an output '{PREDICTED_LABEL}', which the form adds; use top:1")
        return pa.schema([(PREDICTED_LABEL, pa.string()), *outputs])

    def shaped(self, outputs: Mapping[str, pa.Array], labels: Labels) -> Shaped:
        """Return the best label and the outputs."""
        scored = _Scored.of(outputs, labels)
        places, starts = _best(scored.scores, scored.starts, 1)
        has_label = np.diff(starts) > 0
        of_rows = pa.array(starts[:-1], mask=~has_label)
        return Shaped({PREDICTED_LABEL: scored.labels_at(places).take(of_rows), **outputs})


@dataclass(frozen=True)
class Named:
    """The label with the best score of each row, as in :class:`Labelled`, and a column of scores for each label.

    The columns are called ``probability_`` and the label: scores of labels are probabilities in all models that are
    trained here. Other outputs follow.
    """

    keeps_rows: ClassVar[bool] = True

    def fields(self, outputs: pa.Schema, labels: Labels) -> pa.Schema:
        """Return the columns of the label, the scores and the other outputs.

        Raises:
            ScoringError: The model has no labels that hold for all rows, or two of the same name.
        """
        named = _labelled(outputs, labels, "named")
        scores = [pa.field(_PROBABILITY + field.name, field.type) for field in Wide().fields(outputs, labels)]
        best = Labelled().fields(outputs, labels).field(PREDICTED_LABEL)
        return pa.schema([best, *scores, *(field for field in outputs if field.name != named)])

    def shaped(self, outputs: Mapping[str, pa.Array], labels: Labels) -> Shaped:
        """Return the best label, the scores and the other outputs."""
        (named,) = labels
        best = Labelled().shaped(outputs, labels).columns[PREDICTED_LABEL]
        scores = {_PROBABILITY + label: of for label, of in Wide().shaped(outputs, labels).columns.items()}
        return Shaped({PREDICTED_LABEL: best, **scores} | {name: of for name, of in outputs.items() if name != named})


def form_of_labels(labels: Sequence[str]) -> Form:
    """Return :class:`Named` where each label can be a column, in Spark too, else :class:`Labelled`."""
    can_be_columns = len(labels) <= MOST_NAMED and len({label.lower() for label in labels}) == len(labels)
    return Named() if can_be_columns else Labelled()


@dataclass(frozen=True)
class Long:
    """One row for each scored row and label, in the columns ``label`` and ``score``."""

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

    Of equal scores the earlier label comes first. NaN scores are left out.

    Attributes:
        k: Number of labels; models with fewer return all.
    """

    k: int
    keeps_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ScoringError(f"top:{self.k} keeps no label; use top:1 or more")

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
    """The labels of each row with a score of at least ``threshold``, best first, in the column of :class:`TopK`."""

    threshold: float
    keeps_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not np.isfinite(self.threshold):
            raise ScoringError(f"the threshold {self.threshold} is not a possible score; use a number such as 0.5")

    def fields(self, outputs: pa.Schema, labels: Labels) -> pa.Schema:
        """Return the column.

        Raises:
            ScoringError: The model's outputs have no labels.
        """
        _check_labelled(outputs, labels, f"at_least:{self.threshold}")
        return pa.schema([(_PREDICTIONS, pa.list_(_SCORED_LABEL))])

    def shaped(self, outputs: Mapping[str, pa.Array], labels: Labels) -> Shaped:
        """Return the labels that reach the threshold."""
        scored = _Scored.of(outputs, labels)
        selected = np.flatnonzero(scored.scores >= np.float32(self.threshold))
        rows = scored.rows()[selected]
        order = np.lexsort((-scored.scores[selected], rows))
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(scored.starts) - 1))])
        return _predictions(scored, selected[order], starts)


# Forms by their name on the command line, with the parser of the argument after a colon.
_BY_NAME: Mapping[str, tuple[Callable[..., Form], Callable[[str], Any] | None]] = {
    "columns": (Columns, None),
    "struct": (Struct, None),
    "labelled": (Labelled, None),
    "named": (Named, None),
    "wide": (Wide, None),
    "long": (Long, None),
    "top": (TopK, int),
    "at_least": (AtLeast, float),
}
_NAMES = "columns, struct, labelled, named, wide, long, top:10 or at_least:0.5"


def form_of(given: Form | str) -> Form:
    """Return a form unchanged, or the form of a name by :func:`form_named`.

    Raises:
        ScoringError: The argument is neither.
    """
    if isinstance(given, str):
        return form_named(given)
    if isinstance(given, type) or not callable(getattr(given, "fields", None)):
        raise ScoringError(f"outputs is {given!r}; give a form, such as Struct() or TopK(10), or its name: {_NAMES}")
    return given


def form_named(text: str) -> Form:
    """Return the form of a name: a plain one such as ``struct``, ``top:K``, or ``at_least:THRESHOLD``.

    Raises:
        ScoringError: The name is unknown.
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
            pass  # the message below shows valid arguments
    raise ScoringError(f"there is no form '{text}'; use {_NAMES}")


def _labelled(outputs: pa.Schema, labels: Labels, form: str) -> str:
    """Return the only output that has labels.

    Raises:
        ScoringError: No output has labels, or several have.
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
    """Scores of labels, concatenated over all rows.

    Attributes:
        scores: float32 ``[scores]``.
        starts: int64 ``[rows + 1]``: start of each row's scores.
        labels: The labels of one row if all rows have the same, else one per score.
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
        """Return the existing candidates: exclusions may leave the end of a list empty."""
        every = cls(scores.flatten().to_numpy(), _starts(scores), candidates.flatten())
        selected = np.flatnonzero(is_filled(every.labels).to_numpy(zero_copy_only=False))
        lengths = np.bincount(every.rows()[selected], minlength=len(scores))
        return cls(
            every.scores[selected], np.concatenate([[0], np.cumsum(lengths)]), every.labels.take(pa.array(selected))
        )

    def rows(self) -> np.ndarray:
        """Return int64 ``[scores]``: the row of each score."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def labels_at(self, places: Any) -> pa.Array:
        """Return the labels of the scores at ``places``."""
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
    """Return the places of the ``k`` best scores of each row, best first, and the start of each row."""
    from mirrorspark.scoring.output.best_kernel import (
        keep_best,  # imported late because of Numba, see data_pipelines.kernels
    )

    k = min(k, int(np.diff(starts).max(initial=0)))
    places = np.empty((len(starts) - 1, k), np.int64)
    counts = np.zeros(len(starts) - 1, np.int64)
    if k:
        keep_best(np.ascontiguousarray(scores, np.float32), starts, places, counts)
    selected = places[np.arange(k) < counts[:, None]]
    return selected, np.concatenate([[0], np.cumsum(counts)])
