"""Warm start: initialising a new model with an earlier one's weights, tables by token and all other weights by name.

Retraining uses new data and therefore other vocabularies: a token may have another id, and some tokens are new. Weights
that the earlier model does not have keep their initial values.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features import FittedFeatures, kinds
from mirrorspark.models.layers.input import Field, FieldEmbeddings, lay_out_fields
from mirrorspark.models.multi_field import LINEAR
from mirrorspark.models.multi_label import HEADS
from mirrorspark.models.retrieval import GraphEmbeddings
from mirrorspark.models.serving import saved_variables

Ids = npt.NDArray[np.int64]

NOT_THERE = -1

# The prefix of the variables of a model that models.serving.export saved.
_STATE = "_state/"

_NAMES_IN_MESSAGE = 8
# Rows that are copied at a time, which limits memory and sets the interval of beats.
_ROWS_AT_ONCE = 1 << 16
# Without --no-resume the next command would use the same model, even if its alias has moved.
_NO_RESUME_ADVICE = "a run that has begun keeps its model: --no-resume looks it up anew"


class WarmStartError(ClearError, ValueError):
    """An earlier model from which no weight can be taken; the message names the remedy."""


@dataclass(frozen=True)
class WarmStartResult:
    """The weights that a model took from an earlier one.

    Attributes:
        weights: Number of weights that were taken, completely or in part.
        tokens: Number of tokens that the earlier model knows, in tables that were taken.
        of_tokens: Number of all tokens of the model's vocabularies.
        left_out: Weights that were not taken, each with the reason.
        redefined: Features with another definition or position in the earlier model, whose weights were nevertheless
            taken if their shapes agree.
    """

    weights: int
    of_weights: int
    tokens: int
    of_tokens: int
    left_out: tuple[str, ...]
    redefined: tuple[str, ...]

    def in_words(self) -> str:
        """Return the result as one line."""
        words = f"{self.weights:,} of {self.of_weights:,} weights"
        if self.of_tokens:
            words += f", {self.tokens:,} of {self.of_tokens:,} tokens"
        if self.left_out:
            words += f"; not taken: {_some(self.left_out)}"
        if self.redefined:
            words += f"; defined otherwise there: {_some(self.redefined)}"
        return words


class EarlierModel:
    """The weights of an exported model, read one by one, and the features that define its ids."""

    def __init__(self, saved_model: Path, features: FittedFeatures) -> None:
        """Read the names and shapes of the weights.

        Args:
            saved_model: Folder of the SavedModel, of which only the variables are needed.
            features: The fitted features that it was trained with.

        Raises:
            WarmStartError: The variables cannot be read.
        """
        self.features = features
        self._variables = str(saved_model / tf.saved_model.VARIABLES_DIRECTORY / tf.saved_model.VARIABLES_FILENAME)
        try:
            self._reader, variables = saved_variables(saved_model)
        except (ValueError, tf.errors.OpError) as error:
            raise self._unreadable(error) from error
        found = [(name, key) for name, key in variables if key.startswith(_STATE)]
        names = [name for name, _ in found]
        # Weights that share a name are ambiguous.
        self._keys = {name: key for name, key in found if names.count(name) == 1}
        self._shapes = self._reader.get_variable_to_shape_map()

    def shape(self, name: str) -> list[int] | None:
        """Return the shape of a weight, or None unless there is exactly one weight of that name."""
        key = self._keys.get(name)
        return None if key is None else list(self._shapes[key])

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return the values of a weight.

        Raises:
            WarmStartError: The values are damaged.
        """
        try:
            return np.asarray(self._reader.get_tensor(self._keys[name]))
        except tf.errors.OpError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> WarmStartError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return WarmStartError(
            f"warm start: the weights {self._variables} cannot be read ({reason}); give another model; "
            f"{_NO_RESUME_ADVICE}"
        )


def begin_from(
    model: tf_keras.Model, fitted: FittedFeatures, earlier: EarlierModel, beat: Callable[[], None] = lambda: None
) -> WarmStartResult:
    """Assign to ``model`` the weights of ``earlier`` that fit.

    The result depends only on the files and the model's initial values, so workers that agree on these agree on the
    result. Counters (dropout's), metrics and the optimizer start afresh.

    Args:
        model: A built model of :mod:`models.catalog`.
        fitted: The features that it was built for.
        earlier: Source of the weights.
        beat: Called to report progress: after each read, and every few thousand rows of a table.

    Raises:
        WarmStartError: No weight fits.
    """
    tables = {}
    for key, numbered in _tables(model, fitted, earlier.features):
        tables[key] = numbered
        beat()
    weights = _trained_weights(model)
    names = [_name(weight) for weight in weights]
    known: dict[str, int] = {}
    left_out = []
    for name, weight in zip(names, weights, strict=True):
        table = tables.get(id(weight))
        reason = "several have that name" if names.count(name) > 1 else _misfit(weight, name, table, earlier)
        if reason is not None:
            left_out.append(f"{name} ({reason})")
            continue
        values = earlier.read(name)
        beat()
        if table is not None:
            before, now = (np.moveaxis(one, table.axis, 0) for one in (values, weight.numpy()))
            values = np.moveaxis(merged(now, before, table.rows, beat), 0, table.axis)
            known |= table.known
        weight.assign(values.astype(weight.dtype.as_numpy_dtype, copy=False))
        beat()
    tokens = {owner: of for table in tables.values() for owner, of in table.tokens.items()}
    if len(left_out) == len(weights):
        raise WarmStartError(
            f"warm start: none of the {len(weights)} weights can be taken: {_some(left_out)}; give a model of the same "
            f"architecture and settings, or leave warm_start out; {_NO_RESUME_ADVICE}"
        )
    return WarmStartResult(
        len(weights) - len(left_out),
        len(weights),
        sum(known.values()),
        sum(tokens.values()),
        tuple(left_out),
        redefined(fitted, earlier.features),
    )


def merged(
    initial: npt.NDArray[Any], earlier: npt.NDArray[Any], rows: Ids, beat: Callable[[], None] = lambda: None
) -> npt.NDArray[Any]:
    """Return ``initial`` with row ``i`` replaced by row ``rows[i]`` of ``earlier``, unless that is ``NOT_THERE``.

    Args:
        initial: ``[rows, dim]``.
        earlier: ``[any, dim]``.
        rows: int64 ``[rows]``.
        beat: Called after every ``_ROWS_AT_ONCE`` rows.
    """
    found = np.array(initial)
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[first : first + _ROWS_AT_ONCE]
        is_there = part != NOT_THERE
        found[first : first + _ROWS_AT_ONCE][is_there] = earlier[part[is_there]]
        beat()
    return found


def earlier_ids(fitted: FittedFeatures, feature: kinds.Feature, earlier: FittedFeatures, before: kinds.Feature) -> Ids:
    """Return int64 ``[ids]``: for each id of ``feature`` the id of ``before`` with the same meaning, or ``NOT_THERE``.

    Tokens of a vocabulary are looked up. Hash and quantile buckets have the same meaning if their numbers agree, and
    both or neither are of parts of words.

    Args:
        fitted: The features that ``feature`` belongs to.
        feature: A feature whose values are ids.
        earlier: The features that ``before`` belongs to.
        before: The corresponding feature of the earlier model.
    """
    assert isinstance(feature, kinds.TokenFeature | kinds.Bucketed)  # noqa: S101 - the caller's to see to
    ids = np.full(fitted.id_count(feature), NOT_THERE, np.int64)
    if not isinstance(before, kinds.TokenFeature | kinds.Bucketed) or isinstance(before, kinds.Bucketed) != isinstance(
        feature, kinds.Bucketed
    ):
        return ids
    if _has_vocabulary(fitted, feature) != _has_vocabulary(earlier, before):
        return ids
    if not _has_vocabulary(fitted, feature):
        if (getattr(feature, "ngrams", None) is None) != (getattr(before, "ngrams", None) is None):
            return ids
        return np.arange(len(ids)) if earlier.id_count(before) == len(ids) else ids
    assert isinstance(feature, kinds.TokenFeature)  # noqa: S101 - it has a vocabulary
    assert isinstance(before, kinds.TokenFeature)  # noqa: S101
    table = earlier.vocabulary(before)
    pieces = [table.ids(piece) for piece in fitted.vocabulary(feature).pieces()]
    known = np.concatenate([np.empty(0, np.int64), *pieces])
    if (known > kinds.OUT_OF_VOCABULARY_ID).any():  # else the two have nothing in common, not even the reserved ids
        ids[: kinds.FIRST_VOCABULARY_ID] = np.arange(kinds.FIRST_VOCABULARY_ID)
        ids[kinds.FIRST_VOCABULARY_ID :] = np.where(known > kinds.OUT_OF_VOCABULARY_ID, known, NOT_THERE)
    return ids


def redefined(fitted: FittedFeatures, earlier: FittedFeatures) -> tuple[str, ...]:
    """Return the names of features that are missing in one of the two, or differ in definition or order."""
    here = {feature.name: feature for feature in fitted.spec.query_features}
    there = {feature.name: feature for feature in earlier.spec.query_features}
    differing = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    both = ([name for name in one if name in other] for one, other in ((here, there), (there, here)))
    moved = [name for name, other in zip(*both, strict=True) if name != other]
    return tuple(dict.fromkeys([*differing, *moved]))


@dataclass(frozen=True)
class _Table:
    """The mapping from the rows of a table to those of the earlier table.

    Attributes:
        rows: For each row the earlier row with the same meaning, or ``NOT_THERE``.
        of_rows: Number of rows that the earlier table must have for the mapping to be valid.
        known: For each vocabulary the number of its tokens that the earlier one has.
        tokens: For each vocabulary the number of its tokens.
        axis: Axis of the rows in the weight: the first, or the last if they are columns.
    """

    rows: Ids
    of_rows: int
    known: dict[str, int]
    tokens: dict[str, int]
    axis: Literal[0, -1] = 0


def _tables(model: tf_keras.Model, fitted: FittedFeatures, earlier: FittedFeatures) -> Iterator[tuple[int, _Table]]:
    """Yield the identity and mapping of every weight of ``model`` whose rows are ids or whose columns are labels."""
    candidates = getattr(model, "candidate_tower", None)
    of_items = {id(part) for part in getattr(candidates, "submodules", ())} if fitted.items else set()
    candidates = getattr(candidates, "id_embedding", candidates)
    for layer in model.submodules:
        if (layer.name == HEADS or layer.name.startswith(LINEAR)) and fitted.spec.label.kind == "multi_label":
            yield from ((id(weight), _label_columns(fitted, earlier)) for weight in layer.weights)
            continue
        if isinstance(layer, GraphEmbeddings):
            here, _ = _graph_owners(fitted)
            there, of_rows = _graph_owners(earlier)
            for weight in layer.weights:
                yield id(weight), _matched(int(weight.shape[0]), fitted, here, earlier, there, of_rows)
            continue
        if isinstance(layer, FieldEmbeddings) and id(layer) in of_items:
            yield from _item_tables(layer, fitted, earlier)
            continue
        if isinstance(layer, FieldEmbeddings):
            apart = getattr(model, "embedded_apart", ())
            features = [feature for feature in earlier.spec.query_features if feature.name not in apart]
            fields, of_rows = lay_out_fields(earlier, features)
            here, there = _owners(fitted, layer.fields), _owners(earlier, fields)
        elif layer is candidates and isinstance(layer, tf_keras.layers.Embedding):
            here, of_rows = _owners(fitted, [Field(fitted.spec.candidate.name, 0, 1)]), 0
            there = {}
            if earlier.spec.label.kind == "candidate":
                there = _owners(earlier, [Field(earlier.spec.candidate.name, 0, 1)])
                of_rows = earlier.id_count(earlier.spec.candidate)
        elif isinstance(layer, tf_keras.layers.Embedding) and not _ids_agree(fitted, earlier):
            # The ids are derived from others, such as a hash of two, and cannot be traced back to tokens.
            here, there, of_rows = {}, {}, 0
        else:
            continue
        if not layer.weights:  # never called
            continue
        (weight,) = layer.weights
        yield id(weight), _matched(int(weight.shape[0]), fitted, here, earlier, there, of_rows)


def _item_tables(
    layer: FieldEmbeddings, fitted: FittedFeatures, earlier: FittedFeatures
) -> Iterator[tuple[int, _Table]]:
    """Yield the mapping of the table of the items' tokens; it has no row in common with a model without items."""
    assert fitted.items is not None  # noqa: S101 - the layer is of items
    (weight,) = layer.weights
    rows = int(weight.shape[0])
    if earlier.items is None:
        yield id(weight), _Table(np.full(rows, NOT_THERE, np.int64), 0, {}, {})
        return
    own, before = fitted.items.features, earlier.items.features
    fields, of_rows = lay_out_fields(before, before.spec.query_features)
    yield id(weight), _matched(rows, own, _owners(own, layer.fields), before, _owners(before, fields), of_rows)


def _label_columns(fitted: FittedFeatures, earlier: FittedFeatures) -> _Table:
    """Return the mapping for the columns of a weight with one column per label."""
    label = fitted.spec.label
    names = earlier.class_names if earlier.spec.label.kind == label.kind else ()
    places = {name: place for place, name in enumerate(names)}
    columns = np.array([places.get(name, NOT_THERE) for name in fitted.class_names], np.int64)
    known = {label.name: int((columns != NOT_THERE).sum())} if label.classes is None else {}
    return _Table(columns, len(names), known, dict.fromkeys(known, len(columns)), axis=-1)


def _owners(fitted: FittedFeatures, fields: Sequence[Field]) -> dict[str, tuple[kinds.Feature, int]]:
    """Return for each vocabulary, hash or bucketed feature one feature that uses it, and its first row in the table."""
    found: dict[str, tuple[kinds.Feature, int]] = {}
    for field in fields:
        feature = fitted.spec[field.name]
        assert isinstance(feature, kinds.TokenFeature | kinds.Bucketed)  # noqa: S101 - it is a field
        owner = feature.name if isinstance(feature, kinds.Bucketed) else fitted.spec.vocabulary_name(feature)
        found.setdefault(owner, (feature, field.offset))
    return found


def _graph_owners(fitted: FittedFeatures) -> tuple[dict[str, tuple[kinds.Feature, int]], int]:
    """Return the owners of the rows of a graph's table, and the number of its rows; none without users or candidates.

    Where users and candidates have one vocabulary, the candidates begin afresh.
    """
    if fitted.user is None or fitted.spec.label.kind != "candidate":
        return {}, 0
    user: Any = fitted.spec[fitted.user]
    candidate, users = fitted.spec.candidate, fitted.id_count(user)
    fields = [Field(user.name, 0, 1), Field(candidate.name, users, 1)]
    return _owners(fitted, fields), users + fitted.id_count(candidate)


def _matched(
    count: int,
    fitted: FittedFeatures,
    here: dict[str, tuple[kinds.Feature, int]],
    earlier: FittedFeatures,
    there: dict[str, tuple[kinds.Feature, int]],
    of_rows: int,
) -> _Table:
    rows = np.full(count, NOT_THERE, np.int64)
    known, tokens = {}, {}
    for owner, (feature, first) in here.items():
        if _has_vocabulary(fitted, feature):
            known[owner], tokens[owner] = 0, len(fitted.vocabularies[owner])
        if owner not in there:
            continue
        before, first_before = there[owner]
        ids = earlier_ids(fitted, feature, earlier, before)
        rows[first : first + len(ids)] = np.where(ids == NOT_THERE, NOT_THERE, ids + first_before)
        if owner in known:
            known[owner] = int((ids[kinds.FIRST_VOCABULARY_ID :] != NOT_THERE).sum())
    return _Table(rows, of_rows, known, tokens)


def _ids_agree(fitted: FittedFeatures, earlier: FittedFeatures) -> bool:
    """Return whether every id of every feature has the same meaning as before."""
    there = {feature.name: feature for feature in earlier.spec}
    for feature in fitted.spec:
        if isinstance(feature, kinds.TokenFeature | kinds.Bucketed):
            before = there.get(feature.name)
            ids = None if before is None else earlier_ids(fitted, feature, earlier, before)
            if ids is None or not np.array_equal(ids, np.arange(len(ids))):
                return False
    return True


def _has_vocabulary(fitted: FittedFeatures, feature: kinds.Feature) -> bool:
    return isinstance(feature, kinds.TokenFeature) and fitted.spec.hash_buckets(feature) is None


def _trained_weights(model: tf_keras.Model) -> list[Any]:
    """Return the floating-point weights, without those of metrics; counters are integers."""
    metrics = {
        id(weight)
        for part in model.submodules
        if isinstance(part, tf_keras.metrics.Metric)
        for weight in part.variables
    }
    return [weight for weight in model.weights if weight.dtype.is_floating and id(weight) not in metrics]


def _name(weight: Any) -> str:
    return str(weight.name).partition(":")[0]


def _misfit(weight: Any, name: str, table: _Table | None, earlier: EarlierModel) -> str | None:
    """Return the reason why a weight cannot be taken, or None if it can."""
    shape = earlier.shape(name)
    if shape is None:
        return "not there"
    here = weight.shape.as_list()
    if table is None:
        return None if shape == here else f"{here} here, {shape} there"
    of_rows, _ = shape.pop(table.axis), here.pop(table.axis)
    if shape != here:
        return f"rows of {here} here, of {shape} there"
    if (table.rows == NOT_THERE).all() or of_rows != table.of_rows:
        return "no row is known to mean the same"
    return None


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_IN_MESSAGE
    return ", ".join(names[:_NAMES_IN_MESSAGE]) + (f" and {more:,} more" if more > 0 else "")
