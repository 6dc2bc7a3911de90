"""A fleet in the form in which its kernels take it: arrays of features, terms and matrices."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.fleet.columns import LINKS, TERM_FIELDS, array, lengths_of, lists_from, numbers_of
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.forests import Forest, forest_of
from mirrorspark.fleet.kernels import ABSENCE, EQUAL, KINDS, PRODUCT, STEP

# Features of a tile: together their strips take 1 MB.
_MOST_FEATURES = 4096
# Models of a tile. The memory for compiling it is freed before the next one.
_MOST_MODELS = 512


@dataclass(frozen=True)
class Terms:
    """The terms of some models, one entry per term.

    Attributes:
        owners: int64: the model of each.
        inputs: int64: the row of the block that each reads.
        coefficients: float64.
        lows: float64, -inf for none; the others are as in :data:`fleet.columns.TERM_FIELDS`.
        highs: float64, inf for none.
        logs: bool.
        kinds: int64: ``PRODUCT``, ``STEP`` (a bin) or ``EQUAL`` (a category).
        keys: float64: where a bin begins, -inf for a bin without a beginning; the code of a category.
        belows: float64: where a bin ends, inf for none.
        missing: float64, NaN if a missing value makes the outputs null.
    """

    owners: np.ndarray
    inputs: np.ndarray
    coefficients: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    logs: np.ndarray
    kinds: np.ndarray
    keys: np.ndarray
    belows: np.ndarray
    missing: np.ndarray

    def where(self, chosen: np.ndarray | slice) -> "Terms":
        """Return the terms that a mask or a slice chooses."""
        return Terms(**{name: values[chosen] for name, values in vars(self).items()})


@dataclass(frozen=True)
class OutputRules:
    """Links, thresholds and cut-points of some models, which turn linear predictors into outputs.

    Attributes:
        models: int64 ``[models]``: their positions in the fleet.
        links: int64 ``[models]``: positions in :data:`fleet.columns.LINKS`.
        thresholds: float32 ``[models]``, of the linear predictor; NaN for none.
        cut_starts: int64 ``[models + 1]``.
        cuts: float32, of the linear predictor.
    """

    models: np.ndarray
    links: np.ndarray
    thresholds: np.ndarray
    cut_starts: np.ndarray
    cuts: np.ndarray


@dataclass(frozen=True)
class LinearTile:
    """Linear models that are computed together, with the features that they read; arrays as the kernel takes them.

    Attributes:
        inputs: uint32 ``[features]``.
        lows: float32 ``[features]``.
        highs: float32 ``[features]``.
        logs: bool ``[features]``.
        starts: int64 ``[kinds, models + 1]``.
        features: uint32 ``[terms]``.
        coefficients: float32 ``[terms]``.
        keys: float32 ``[terms]``.
        intercepts: float32 ``[models]``.
    """

    decisions: OutputRules
    inputs: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    logs: np.ndarray
    starts: np.ndarray
    features: np.ndarray
    coefficients: np.ndarray
    keys: np.ndarray
    intercepts: np.ndarray


@dataclass(frozen=True)
class NetworkStack:
    """Networks of one shape.

    Attributes:
        terms: Terms of all models, in the order of the models.
        matrices: Per layer float32 ``[models, outputs, inputs]``.
        biases: Per layer float32 ``[models, outputs, 1]``.
        activations: Activations of the hidden layers.
    """

    decisions: OutputRules
    terms: Terms
    matrices: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    activations: tuple[str, ...]


@dataclass(frozen=True)
class CompiledInput:
    """A row of the block: a column's numbers, or the codes of its categories.

    Attributes:
        categories: float32 code by category; None for a column of numbers. No two of them can be the same value of the
            column: further spellings of one value have a row of their own.
    """

    column: str
    categories: Mapping[str, float] | None


class CompiledFleet:
    """The arrays of a fleet.

    Attributes:
        inputs: The rows of a block.
        tiles: The linear models.
        stacks: The networks.
        forests: The models of trees.
        packaged: The decisions of each model that a backend of the scorer computes.
    """

    def __init__(self, fleet: Fleet) -> None:
        networks, trees, packages = fleet.is_network, fleet.has_trees, fleet.is_packaged
        terms = _FleetTerms(_without_terms(fleet.table, packages))
        self._fleet, self.inputs = fleet, terms.rows
        self.tiles = tuple(self._tiles(np.flatnonzero(~networks & ~trees & ~packages), terms))
        self.stacks = tuple(self._stacks(np.flatnonzero(networks), terms))
        self.forests = tuple(self._forests(np.flatnonzero(trees), terms))
        self.packaged = tuple(self._decisions(np.array([model])) for model in np.flatnonzero(packages).tolist())
        # Arrow keeps the memory in which the terms were taken apart, but the rows need it.
        pa.default_memory_pool().release_unused()

    def _tiles(self, models: np.ndarray, terms: "_FleetTerms") -> Iterator[LinearTile]:
        """Yield tiles of linear models."""
        for some, own in terms.portions(models):
            features, _ = _distinct(own.inputs, own.lows, own.highs, own.logs)
            for part, chosen in _parts(some, own.owners, features):
                yield self._tile(some[part], own.where(chosen), features[chosen])

    def _tile(self, models: np.ndarray, terms: Terms, features: np.ndarray) -> LinearTile:
        used, numbers = np.unique(features, return_inverse=True)
        # All terms of a feature have the same column, clip and logarithm: any one is an example.
        examples = np.empty(len(used), np.int64)
        examples[numbers] = np.arange(len(numbers))
        owners = np.searchsorted(models, terms.owners)
        entries, bases = _entries(terms, owners, numbers, len(models))
        order = np.lexsort((entries.features, entries.owners, entries.kinds))
        bounds = entries.kinds[order] * (len(models) + 1) + entries.owners[order]
        corners = np.arange(KINDS)[:, None] * (len(models) + 1) + np.arange(len(models) + 1)
        return LinearTile(
            self._decisions(models),
            terms.inputs[examples].astype(np.uint32),
            _float32(terms.lows[examples]),
            _float32(terms.highs[examples]),
            terms.logs[examples],
            np.searchsorted(bounds, corners),
            entries.features[order].astype(np.uint32),
            _float32(entries.coefficients[order]),
            _float32(entries.keys[order]),
            _float32(self._intercepts[models] + bases),
        )

    def _stacks(self, models: np.ndarray, terms: "_FleetTerms") -> Iterator[NetworkStack]:
        shapes: dict[tuple[tuple[int, ...], tuple[str, ...]], list[int]] = {}
        sizes, activations = array(self._fleet.table, "layer_sizes"), array(self._fleet.table, "activations")
        for model in models.tolist():
            shapes.setdefault((tuple(sizes[model].as_py()), tuple(activations[model].as_py())), []).append(model)
        weights = array(self._fleet.table, "weights")
        flat, lengths = weights.flatten().to_numpy(zero_copy_only=False), lengths_of(weights)
        ends = np.cumsum(lengths)
        for (shape, names), members in shapes.items():
            every = np.stack([flat[ends[model] - lengths[model] : ends[model]] for model in members])
            own = np.array(members)
            matrices, biases, at = [], [], 0
            for before, after in pairwise(shape):
                matrices.append(every[:, at : at + before * after].reshape(len(own), after, before))
                at += before * after
                biases.append(every[:, at : at + after, None])
                at += after
            of_members = terms.of(own)
            matrices[0] = matrices[0] * _float32(of_members.coefficients).reshape(len(own), 1, shape[0])
            biases[-1] = biases[-1] + _float32(self._intercepts[own])[:, None, None]
            contiguous = tuple(np.ascontiguousarray(matrix) for matrix in matrices)
            yield NetworkStack(self._decisions(own), of_members, contiguous, tuple(biases), names)

    def _forests(self, models: np.ndarray, terms: "_FleetTerms") -> Iterator[Forest]:
        """Yield groups of models of trees that read a limited number of features together."""
        for some, own in terms.portions(models):
            features, _ = _distinct(
                own.inputs, own.lows, own.highs, own.logs, own.kinds, own.keys, own.belows, own.missing
            )
            for part, chosen in _parts(some, own.owners, features):
                members = some[part]
                table = self._fleet.table.take(pa.array(members))
                starts = np.searchsorted(own.owners[chosen], members)
                yield forest_of(table, self._decisions(members), own.where(chosen), features[chosen], starts)

    @cached_property
    def _intercepts(self) -> np.ndarray:
        return numbers_of(array(self._fleet.table, "intercept"))

    def _decisions(self, models: np.ndarray) -> OutputRules:
        chosen = self._fleet.table.select(["link", "threshold", "cut_points"]).take(pa.array(models))
        links = np.array([LINKS.index(link) for link in chosen["link"].to_pylist()], np.int64)
        cuts = array(chosen, "cut_points")
        lengths = lengths_of(cuts)
        return OutputRules(
            models,
            links,
            _of_linear_predictor(numbers_of(array(chosen, "threshold")), links),
            np.concatenate([[0], np.cumsum(lengths)]),
            _of_linear_predictor(numbers_of(cuts.flatten()), np.repeat(links, lengths)),
        )


def _without_terms(table: pa.Table, models: np.ndarray) -> pa.Table:
    """Return a fleet's table in which the models of a mask read no column."""
    if not models.any():
        return table
    for name in TERM_FIELDS.names:
        lists = array(table, name)
        lengths = lengths_of(lists)
        kept = lists.flatten().filter(pa.array(np.repeat(~models, lengths)))
        table = table.set_column(table.column_names.index(name), name, lists_from(np.where(models, 0, lengths), kept))
    return table


def _parts(models: np.ndarray, owners: np.ndarray, features: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Yield consecutive models, limited in the features that they read together, and their terms.

    Args:
        models: int64 ``[models]``, ascending.
        owners: int64 ``[terms]``, ascending.
        features: int64 ``[terms]``.
    """
    starts, ends = np.searchsorted(owners, models), np.searchsorted(owners, models, side="right")
    seen = np.full(features.max(initial=-1) + 1, -1)
    bounds, count = [0], 0
    for place, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        mine = np.unique(features[start:end])
        new = int(np.count_nonzero(seen[mine] < bounds[-1]))
        if count + new > _MOST_FEATURES and place > bounds[-1]:
            bounds.append(place)
            new, count = len(mine), 0
        seen[mine] = place
        count += new
    bounds.append(len(models))
    for begin, stop in pairwise(bounds):
        if begin < stop:
            yield slice(begin, stop), slice(starts[begin], ends[stop - 1])


def _of_linear_predictor(scores: np.ndarray, links: np.ndarray) -> np.ndarray:
    """Return the linear predictors of scores, float32."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.log(scores) - np.log1p(-scores)
        return _float32(np.choose(links, [scores, logits, np.log(scores)]))


def _float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)


@dataclass(frozen=True)
class _Entries:
    """Addends of the kernel for models, one entry each; fields as in :class:`LinearTile`."""

    owners: np.ndarray
    kinds: np.ndarray
    features: np.ndarray
    coefficients: np.ndarray
    keys: np.ndarray

    @classmethod
    def together(cls, parts: "Sequence[_Entries]") -> "_Entries":
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__annotations__))


def _entries(terms: Terms, owners: np.ndarray, features: np.ndarray, models: int) -> tuple[_Entries, np.ndarray]:
    """Return the kernel's entries for the terms, and each model's constant.

    A bin is the step at its beginning, and a step back at its end. Steps of a model at the same edge become one. A
    feature that misses a value has the value 0 in the kernel, so an entry of kind ``ABSENCE`` adds, per model and
    feature, the addend for the missing value, less what the 0 has added.
    """
    is_product, is_bin, is_equal = (terms.kinds == kind for kind in (PRODUCT, STEP, EQUAL))
    plain = [
        _Entries(owners[own], terms.kinds[own], features[own], terms.coefficients[own], terms.keys[own])
        for own in (is_product, is_equal)
    ]
    is_open = is_bin & np.isneginf(terms.keys)
    bases = np.bincount(owners[is_open], terms.coefficients[is_open], models)
    steps = _merged_steps(
        owners,
        features,
        terms.coefficients,
        terms.keys,
        terms.belows,
        is_bin & ~is_open,
        is_bin & (terms.belows < np.inf),
    )
    # The addends of a model's terms for a missing value of a feature, less those of its steps for the 0 in its place.
    of_zero = _float32(steps.keys) <= 0
    values = np.concatenate(
        [terms.coefficients * terms.missing, -terms.coefficients[is_open], -steps.coefficients[of_zero]]
    )
    of_owner = np.concatenate([owners, owners[is_open], steps.owners[of_zero]])
    of_feature = np.concatenate([features, features[is_open], steps.features[of_zero]])
    pairs, first = _distinct(of_owner, of_feature)
    sums = np.bincount(pairs, values, len(first))
    count = len(first)
    absences = _Entries(of_owner[first], np.full(count, ABSENCE), of_feature[first], sums, np.zeros(count))
    # An addend of 0 needs no entry; most missing values count as 0.
    kept = np.flatnonzero(sums != 0)
    absences = _Entries(*(getattr(absences, name)[kept] for name in _Entries.__annotations__))
    return _Entries.together([*plain, steps, absences]), bases


def _merged_steps(
    owners: np.ndarray,
    features: np.ndarray,
    coefficients: np.ndarray,
    begins: np.ndarray,
    ends: np.ndarray,
    has_begin: np.ndarray,
    has_end: np.ndarray,
) -> _Entries:
    """Return the steps of bins, one per model, feature and edge."""
    every_owner = np.concatenate([owners[has_begin], owners[has_end]])
    every_feature = np.concatenate([features[has_begin], features[has_end]])
    edges = np.concatenate([begins[has_begin], ends[has_end]])
    heights = np.concatenate([coefficients[has_begin], -coefficients[has_end]])
    groups, first = _distinct(every_owner, every_feature, edges)
    sums = np.bincount(groups, heights, len(first))
    return _Entries(every_owner[first], np.full(len(first), STEP), every_feature[first], sums, edges[first])


def _distinct(*keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the group of each entry, where equal keys make a group, and the first entry of each group."""
    groups = np.zeros(len(keys[0]), np.int64)
    first = np.zeros(min(1, len(groups)), np.int64)
    for key in keys:
        values, numbers = np.unique(key, return_inverse=True)
        if len(values) > 1:
            _, first, groups = np.unique(groups * len(values) + numbers, return_index=True, return_inverse=True)
    return groups, first


class _FleetTerms:
    """The terms of a fleet, as arrays of some models at a time: those of all would take 10 kB per model.

    Attributes:
        rows: The rows of a block that the models read.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table, column = table, array(table, "column")
        self._owners = np.repeat(np.arange(table.num_rows), lengths_of(column))
        columns = column.flatten().dictionary_encode()
        categories = array(table, "category").flatten().dictionary_encode()
        self._is_category = categories.is_valid().to_numpy(zero_copy_only=False)
        # A code is above 0, which stands for a missing value, and a float32 holds it exactly.
        self._codes = pc.fill_null(categories.indices, 0).to_numpy(zero_copy_only=False) + 1.0
        spellings = _spellings(columns, categories, self._is_category)
        self._inputs, first = _distinct(columns.indices.to_numpy(zero_copy_only=False), spellings)
        self.rows = tuple(_inputs(columns, categories, self._is_category, self._inputs, first))

    def portions(self, models: np.ndarray) -> Iterator[tuple[np.ndarray, Terms]]:
        """Yield a limited number of models at a time, with their terms."""
        for start in range(0, len(models), _MOST_MODELS):
            some = models[start : start + _MOST_MODELS]
            yield some, self.of(some)

    def of(self, models: np.ndarray) -> Terms:
        """Return the terms of some models, given by their positions in ascending order."""
        chosen = np.flatnonzero(np.isin(self._owners, models))
        table = self._table.take(pa.array(models))
        flat = {name: array(table, name).flatten() for name in TERM_FIELDS.names}
        numbers = {name: numbers_of(flat[name]) for name in ("clip_low", "clip_high", "at_least", "below")}
        is_bin = ~(np.isnan(numbers["at_least"]) & np.isnan(numbers["below"]))
        begins = np.where(np.isnan(numbers["at_least"]), -np.inf, numbers["at_least"])
        is_category = self._is_category[chosen]
        return Terms(
            self._owners[chosen],
            self._inputs[chosen],
            numbers_of(flat["coefficient"]),
            np.where(np.isnan(numbers["clip_low"]), -np.inf, numbers["clip_low"]),
            np.where(np.isnan(numbers["clip_high"]), np.inf, numbers["clip_high"]),
            pc.fill_null(flat["log"], False).to_numpy(zero_copy_only=False),
            np.where(is_category, EQUAL, np.where(is_bin, STEP, PRODUCT)),
            np.where(is_category, self._codes[chosen], np.where(is_bin, begins, 0.0)),
            np.where(np.isnan(numbers["below"]), np.inf, numbers["below"]),
            numbers_of(flat["missing"]),
        )


def _spellings(columns: pa.DictionaryArray, categories: pa.DictionaryArray, is_category: np.ndarray) -> np.ndarray:
    """Return int64 ``[terms]``: 0 for numbers; for categories from 1, different ones for the spellings of one value."""
    numbers = np.zeros(len(is_category), np.int64)
    found = np.flatnonzero(is_category)
    owners = columns.indices.to_numpy(zero_copy_only=False)[found]
    codes = categories.indices.to_numpy(zero_copy_only=False)[found].astype(np.int64)
    pairs, first = _distinct(owners, codes)
    texts, seen = categories.dictionary.to_pylist(), Counter[tuple[int, str]]()
    of_pairs = np.empty(len(first), np.int64)
    for pair, (owner, code) in enumerate(zip(owners[first].tolist(), codes[first].tolist(), strict=True)):
        value = (owner, _value(texts[code]))
        seen[value] += 1
        of_pairs[pair] = seen[value]
    numbers[found] = of_pairs[pairs]
    return numbers


def _value(category: str) -> str:
    """Return one text for all spellings that Arrow may read as the same whole number or boolean: 07 and 7, TRUE and 1.

    The type of the column is not known yet; in a column of texts, all spellings are different.
    """
    lower = category.lower()
    if lower in ("true", "false"):
        return str(int(lower == "true"))
    try:
        return str(int(lower, 16 if lower.startswith("0x") else 10))
    except ValueError:
        return category


def _inputs(
    columns: pa.DictionaryArray,
    categories: pa.DictionaryArray,
    is_category: np.ndarray,
    inputs: np.ndarray,
    first: np.ndarray,
) -> Iterator[CompiledInput]:
    names = columns.take(pa.array(first)).to_pylist()
    found = np.flatnonzero(is_category)
    codes = categories.indices.to_numpy(zero_copy_only=False)
    of_inputs: dict[int, dict[str, float]] = {}
    texts = categories.dictionary.to_pylist()
    _, examples = _distinct(inputs[found], codes[found].astype(np.int64))
    for place in found[examples].tolist():
        code = int(codes[place])
        of_inputs.setdefault(int(inputs[place]), {})[texts[code]] = code + 1.0
    for number, name in enumerate(names):
        yield CompiledInput(name, of_inputs.get(number))
