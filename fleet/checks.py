"""Checks of a fleet's models, over all of their terms at once."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.fleet.columns import (
    ACTIVATIONS,
    FLEET_SCHEMA,
    LEAF,
    LINKS,
    TERM_FIELDS,
    TREE_FIELDS,
    FleetError,
    array,
    lengths_of,
    numbers_of,
    some,
)

_LARGEST = float(np.finfo(np.float32).max)
_MOST_CUT_POINTS = np.iinfo(np.int16).max - 1


class BadModelsError(FleetError):
    """Raised for models that cannot be computed.

    Attributes:
        models: Their names.
        problem: The problem, without the names.
    """

    def __init__(self, message: str, models: tuple[str, ...], problem: str) -> None:
        super().__init__(message)
        self.models, self.problem = models, problem

    def __reduce__(self) -> tuple[type["BadModelsError"], tuple[str, tuple[str, ...], str]]:
        """Pickle all arguments: the message alone does not rebuild the error."""
        return BadModelsError, (str(self), self.models, self.problem)


def check_models(table: pa.Table) -> None:
    """Check the rows of a fleet's table.

    Raises:
        FleetError: The table has other columns, no model, or two models of one name.
        BadModelsError: Models cannot be computed; the message gives one reason, how many models it concerns, and some
            of their names.
    """
    if table.schema != FLEET_SCHEMA:
        raise FleetError(f"a fleet's table has the columns {FLEET_SCHEMA}, not {table.schema}")
    if not table.num_rows:
        raise FleetError("a fleet needs at least one model")
    names = NamedModels(table["model"].to_pylist())
    check_names(names.names)
    check_results(table, names)
    _check_terms(table, names)
    _check_networks(table, names)
    _check_trees(table, names)
    _check_packages(table, names)


@dataclass(frozen=True)
class NamedModels:
    """The names of the models, to be named in messages."""

    names: list[str]

    def refuse(self, is_bad: np.ndarray, problem: str, advice: str) -> None:
        """Raise an error for the models that ``is_bad`` marks, if any."""
        bad = np.flatnonzero(is_bad)
        if len(bad):
            names = tuple(self.names[place] for place in bad)
            models = "1 model" if len(bad) == 1 else f"{len(bad):,} models"
            raise BadModelsError(f"{problem} in {models} ({some(names)}); {advice}", names, f"{problem}; {advice}")


def check_names(names: list[str]) -> None:
    """Raise :class:`FleetError` unless all models have names, each one of its own."""
    if nameless := sum(not name for name in names):
        raise FleetError(f"{nameless:,} models have no name; give each one of its own")
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
        raise FleetError(f"several models have the name {some(twice)}; give each one of its own")


def check_results(table: pa.Table, models: NamedModels) -> None:
    """Check the fields of the models: link, group, intercept, threshold and cut-points.

    Raises:
        FleetError: A value is out of range.
    """
    links = array(table, "link")
    known = pc.is_in(links, value_set=pa.array(LINKS)).to_numpy(zero_copy_only=False)
    if not known.all():
        unknown = some(map(str, links.filter(pa.array(~known)).to_pylist()))
        aliases = "; logistic regression has the link logit, Poisson regression the link log"
        models.refuse(~known, f"unknown link {unknown}", f"use one of {', '.join(LINKS)}{aliases}")
    groupless = array(table, "group").is_null().to_numpy(zero_copy_only=False)
    models.refuse(groupless, "group is null", "give its name, or an empty text for none")
    intercepts = numbers_of(array(table, "intercept"))
    models.refuse(~(np.abs(intercepts) <= _LARGEST), "an intercept is not a finite number", "look at how it was fitted")
    thresholds, given = numbers_of(array(table, "threshold")), array(table, "threshold").is_valid()
    kinds = np.array([LINKS.index(link) for link in links.to_pylist()])
    is_given = given.to_numpy(zero_copy_only=False)
    out = is_given & _is_out_of_range(thresholds, kinds)
    models.refuse(out, "the threshold is not a value that the score can have", "give it in the units of the score")
    cuts, lengths = array(table, "cut_points"), lengths_of(array(table, "cut_points"))
    models.refuse(lengths > _MOST_CUT_POINTS, f"more than {_MOST_CUT_POINTS:,} cut-points", "ranks are 16-bit integers")
    values, owners = numbers_of(cuts.flatten()), np.repeat(np.arange(len(lengths)), lengths)
    wrong = _is_out_of_range(values, kinds[owners])
    wrong[1:] |= (owners[1:] == owners[:-1]) & ~(values[1:] > values[:-1])
    problem = "cut-points do not ascend, or are not values that the score can have"
    models.refuse(_any(owners, wrong, len(lengths)), problem, "give ascending scores")


def _is_out_of_range(values: np.ndarray, links: np.ndarray) -> np.ndarray:
    least = np.array([-_LARGEST, 0.0, 0.0])[links]
    most = np.array([_LARGEST, 1.0, _LARGEST])[links]
    return ~((values >= least) & (values <= most))


def _check_terms(table: pa.Table, models: NamedModels) -> None:
    lists = {name: array(table, name) for name in TERM_FIELDS.names}
    lengths = lengths_of(lists["column"])
    differing = np.zeros(len(lengths), bool)
    for values in lists.values():
        differing |= lengths_of(values) != lengths
    models.refuse(differing, "lists of terms of different lengths", "give each term a value of every field, or null")
    owners = np.repeat(np.arange(len(lengths)), lengths)
    flat = {name: values.flatten() for name, values in lists.items()}

    def refuse(is_bad: np.ndarray, problem: str, advice: str) -> None:
        models.refuse(_any(owners, is_bad, len(lengths)), problem, advice)

    nameless = pc.fill_null(pc.equal(flat["column"], ""), True).to_numpy(zero_copy_only=False)
    refuse(nameless, "a term without a column", "name the column that it reads")
    coefficients = numbers_of(flat["coefficient"])
    refuse(~(np.abs(coefficients) <= _LARGEST), "a coefficient that is NaN, infinite or missing", "fit the model again")
    given = {name: values.is_valid().to_numpy(zero_copy_only=False) for name, values in flat.items()}
    numbers = {name: numbers_of(flat[name]) for name in ("clip_low", "clip_high", "at_least", "below", "missing")}
    for name, values in numbers.items():
        refuse(given[name] & ~(np.abs(values) <= _LARGEST), f"{name} is not a finite number", "leave it empty for none")
    refuse(numbers["clip_low"] > numbers["clip_high"], "clip_low above clip_high", "exchange them")
    refuse(numbers["at_least"] >= numbers["below"], "a bin whose at_least is not below its below", "exchange them")
    is_binned, is_clipped = given["at_least"] | given["below"], given["clip_low"] | given["clip_high"]
    is_clipped |= pc.fill_null(flat["log"], False).to_numpy(zero_copy_only=False)
    several = is_binned.astype(int) + is_clipped + given["category"]
    refuse(several > 1, "a term with more than one of a bin, a category, and a clip or log", "make it several terms")
    refuse(_is_repeated(owners, flat), "the same term twice", "add their coefficients, or leave one out")


def _is_repeated(owners: np.ndarray, flat: dict[str, pa.Array]) -> np.ndarray:
    """Return a mask of the terms whose column and transform occur in another term of their model."""
    repeated = np.zeros(len(owners), bool)
    columns = flat["column"].dictionary_encode()
    pairs = owners * len(columns.dictionary) + columns.indices.to_numpy(zero_copy_only=False)
    if len(np.unique(pairs)) == len(pairs):
        return repeated
    keys = [name for name in TERM_FIELDS.names if name not in ("coefficient", "missing")]
    terms = pa.table({"owner": owners, **{name: flat[name] for name in keys}, "place": np.arange(len(owners))})
    groups = terms.group_by(["owner", *keys], use_threads=False).aggregate([("place", "max"), ("place", "count")])
    repeated[groups.filter(pc.greater(groups["place_count"], 1))["place_max"].to_numpy()] = True
    return repeated


def _check_networks(table: pa.Table, models: NamedModels) -> None:
    """Check layers; linear models, which are nearly all, have none."""
    sizes, activations = array(table, "layer_sizes"), array(table, "activations")
    weights, terms = array(table, "weights"), lengths_of(array(table, "column"))
    flat = weights.flatten().to_numpy(zero_copy_only=False)
    owners = np.repeat(np.arange(table.num_rows), lengths_of(weights))
    models.refuse(_any(owners, ~np.isfinite(flat), table.num_rows), "weights with NaN or infinity", "train them again")
    is_wrong, is_unknown = np.zeros(table.num_rows, bool), np.zeros(table.num_rows, bool)
    counts = lengths_of(weights)
    for place in np.flatnonzero((lengths_of(sizes) > 0) | (counts > 0)).tolist():
        own = sizes[place].as_py() or []
        names = activations[place].as_py() or []
        needed = sum(one * (before + 1) for before, one in pairwise(own))
        is_wrong[place] = len(own) < 2 or own[0] != terms[place] or own[-1] != 1 or needed != counts[place]
        is_wrong[place] |= len(names) != len(own) - 2
        is_unknown[place] = not set(names) <= set(ACTIVATIONS)
    models.refuse(is_wrong, "layers, weights and terms that do not fit", "give layer_sizes from the terms to 1")
    models.refuse(is_unknown, "an unknown activation", f"use {', '.join(ACTIVATIONS)}")


def _check_trees(table: pa.Table, models: NamedModels) -> None:
    """Check nodes, of which most fleets have none."""
    lists = {field.name: array(table, field.name) for field in TREE_FIELDS}
    lengths, terms = lengths_of(lists["node_features"]), lengths_of(array(table, "column"))
    count = table.num_rows
    is_odd = (lengths > 0) != (lengths_of(lists["tree_roots"]) > 0)
    for name, values in lists.items():
        is_odd |= (name != "tree_roots") & (lengths_of(values) != lengths)
    is_odd |= (lengths > 0) & (lengths_of(array(table, "layer_sizes")) > 0)
    models.refuse(is_odd, "trees whose lists do not fit", "give each node a value of every field, and name the roots")
    owners = np.repeat(np.arange(count), lengths)
    flat = {name: lists[name].flatten() for name in ("node_features", "node_lefts", "node_rights")}
    features, lefts, rights = (pc.fill_null(values, LEAF - 1).to_numpy() for values in flat.values())
    is_leaf = features == LEAF
    values, is_null = numbers_of(lists["node_values"].flatten()), lists["node_values"].flatten().is_null()
    is_bad = np.where(is_leaf, ~(np.abs(values) <= _LARGEST) & ~is_null.to_numpy(False), np.isnan(values))
    models.refuse(_any(owners, is_bad, count), "a node whose value is NaN or infinite", "train it again")
    places = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    is_out = ~is_leaf & ((features < 0) | (features >= terms[owners]))
    for name in ("node_lefts", "node_rights", "node_missing_left"):
        is_out |= lists[name].flatten().is_null().to_numpy(False)
    # Children come before their parents, so every way ends at a leaf.
    for children in (lefts, rights):
        is_out |= ~is_leaf & ((children < 0) | (children >= places))
    models.refuse(_any(owners, is_out, count), "a split without its children or its term", "import the model again")
    roots, of_roots = lists["tree_roots"].flatten(), np.repeat(np.arange(count), lengths_of(lists["tree_roots"]))
    numbers = pc.fill_null(roots, -1).to_numpy()
    is_out = (numbers < 0) | (numbers >= lengths[of_roots])
    models.refuse(_any(of_roots, is_out, count), "a root that is not a node", "import the model again")
    coefficients = array(table, "coefficient")
    of_terms = np.repeat(np.arange(count), lengths_of(coefficients))
    is_scaled = (lengths[of_terms] > 0) & (numbers_of(coefficients.flatten()) != 1)
    models.refuse(_any(of_terms, is_scaled, count), "a coefficient that trees do not use", "give their terms 1")


def _check_packages(table: pa.Table, models: NamedModels) -> None:
    """Check that packages compute their models alone; their content is checked when they are opened."""
    is_packaged = array(table, "package").is_valid().to_numpy(False)
    has_output = array(table, "package_output").is_valid().to_numpy(False)
    is_computed = (lengths_of(array(table, "layer_sizes")) > 0) | (lengths_of(array(table, "tree_roots")) > 0)
    coefficients, intercepts = array(table, "coefficient"), numbers_of(array(table, "intercept"))
    owners = np.repeat(np.arange(table.num_rows), lengths_of(coefficients))
    is_computed |= _any(owners, numbers_of(coefficients.flatten()) != 1, table.num_rows) | (intercepts != 0)
    is_computed |= pc.not_equal(array(table, "link"), "identity").to_numpy(False)
    is_odd = (is_packaged & is_computed) | (is_packaged != has_output)
    models.refuse(
        is_odd, "a package next to the model's own computation, or without an output", "import the model again"
    )


def _any(owners: np.ndarray, is_bad: np.ndarray, models: int) -> np.ndarray:
    """Return a mask of the models that have a marked value."""
    found = np.zeros(models, bool)
    found[owners[is_bad]] = True
    return found
