"""Imported models in the form that a fleet stores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mirrorspark.fleet.columns import (
    FLEET_SCHEMA,
    LEAF,
    MODEL_FIELDS,
    PACKAGE_FIELDS,
    TERM_FIELDS,
    TREE_FIELDS,
    FleetError,
    array,
    lists_from,
)
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.trees import TreeNodes

PROBED_ROWS = 16

_TREE_TOLERANCE = 1e-5
_TINY = 1e-30  # LightGBM takes numbers up to 1e-35 for 0


@dataclass(frozen=True)
class ImportedModel:
    """One imported model: of a package, layers or trees if it has them, else a linear model.

    Attributes:
        coefficients: float64 ``[columns]``; 1 but for linear models.
        layers: Matrix ``[inputs, outputs]`` and bias of each layer.
        activations: Activations of the hidden layers.
        trees: The trees, whose features are the positions of the columns.
        package: The files of a model that a backend of the scorer computes, and the name of its output.
        transforms: By field of :data:`fleet.columns.TERM_FIELDS`, a value or None for each column.
    """

    link: str
    columns: Sequence[str]
    coefficients: np.ndarray
    intercept: float = 0.0
    layers: Sequence[tuple[np.ndarray, np.ndarray]] = ()
    activations: Sequence[str] = field(default_factory=tuple)
    trees: TreeNodes | None = None
    transforms: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    package: tuple[bytes | None, str | None] = (None, None)

    @classmethod
    def of_trees(cls, link: str, columns: Sequence[str], trees: TreeNodes, intercept: float = 0.0) -> "ImportedModel":
        """Return a model that is the sum of trees."""
        return cls(link, columns, np.ones(len(columns)), intercept, trees=trees)


def read_models(models: Mapping[str, Any], read: Callable[[str, Any], ImportedModel]) -> dict[str, ImportedModel]:
    """Return the results of ``read`` by name; it takes the name of a model and the model.

    Raises:
        FleetError: A model is refused, is not as its library writes it, or is an address instead of a file.
    """
    found = {}
    for name, model in models.items():
        require_local(name, model)
        try:
            found[name] = read(name, model)
        except FleetError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
            raise FleetError(
                f"model '{name}' is not as its library writes it ({type(error).__name__}: {error}); write it again"
            ) from error
    return found


def require_local(name: str, model: Any) -> None:
    """Check that a model is not an address: its library would read it, or a part of it, from wherever it likes.

    Raises:
        FleetError: It is one.
    """
    if isinstance(model, str) and "://" in model:
        raise FleetError(
            f"model '{name}' is at {model}, and models are read from local files; copy it here, with the files next to "
            f"it that belong to it, and give its path"
        )


def columns_of(name: str, columns: Sequence[str] | Mapping[str, Sequence[str]]) -> Sequence[str]:
    """Return the columns of a model, from those of all models or by model.

    Raises:
        FleetError: There are none for this model.
    """
    if not isinstance(columns, Mapping):
        return columns
    if name not in columns:
        raise FleetError(f"columns names none of model '{name}'; give the columns of each model")
    return columns[name]


def column_names(name: str, found: Sequence[str] | None, inputs: int) -> list[str]:
    """Return the names of a model's columns.

    Raises:
        FleetError: There are none, or not as the model has inputs.
    """
    if found is None or len(found) != inputs:
        raise FleetError(
            f"model '{name}' has {inputs} inputs and {0 if found is None else len(found)} names of columns; "
            f"fit it on a DataFrame, or give columns="
        )
    return [str(one) for one in found]


def fleet_of(
    models: Mapping[str, ImportedModel],
    group: str,
    thresholds: Mapping[str, float] | None,
    cut_points: Mapping[str, Sequence[float]] | None,
) -> Fleet:
    """Return the fleet of imported models.

    Raises:
        FleetError: ``thresholds`` or ``cut_points`` name other models, or one cannot be computed.
    """
    for given in (thresholds or {}, cut_points or {}):
        if strangers := [name for name in given if name not in models]:
            raise FleetError(f"thresholds or cut_points name {strangers}, and there are no such models")
    every = list(models.values())
    lengths = np.array([len(model.columns) for model in every], np.int64)
    networks = [_flat(model.layers) for model in every]
    values: dict[str, pa.Array] = {
        "model": pa.array(list(models), pa.string()),
        "group": pa.array([group] * len(every), pa.string()),
        "link": pa.array([model.link for model in every], pa.string()),
        "intercept": pa.array([model.intercept for model in every], pa.float64()),
        "threshold": pa.array([(thresholds or {}).get(name) for name in models], pa.float64()),
        "cut_points": pa.array(
            [(cut_points or {}).get(name, []) for name in models], MODEL_FIELDS.field("cut_points").type
        ),
        "column": lists_from(lengths, pa.array([name for model in every for name in model.columns], pa.string())),
        "coefficient": lists_from(
            lengths, pa.array(np.concatenate([model.coefficients for model in every] or [np.empty(0)]))
        ),
        "layer_sizes": pa.array([_sizes(model.layers) for model in every], FLEET_SCHEMA.field("layer_sizes").type),
        "activations": pa.array([list(model.activations) for model in every], pa.list_(pa.string())),
        "weights": lists_from(
            np.array([len(flat) for flat in networks], np.int64),
            pa.array(np.concatenate([*networks, np.empty(0, np.float32)]).astype(np.float32)),
        ),
    }
    for term in TERM_FIELDS:
        if term.name not in values:
            flat = [one for model in every for one in model.transforms.get(term.name, [None] * len(model.columns))]
            values[term.name] = lists_from(lengths, pa.array(flat, term.type))
    trees = [{} if model.trees is None else model.trees.lists() for model in every]
    for field_ in TREE_FIELDS:
        values[field_.name] = pa.array([lists.get(field_.name, []) for lists in trees], field_.type)
    for place, field_ in enumerate(PACKAGE_FIELDS):
        values[field_.name] = pa.array([model.package[place] for model in every], field_.type)
    return Fleet.of(pa.Table.from_arrays([values[name] for name in FLEET_SCHEMA.names], schema=FLEET_SCHEMA))


def _sizes(layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[int]:
    return [layers[0][0].shape[0], *(len(bias) for _, bias in layers)] if layers else []


def _flat(layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return matrices ``[outputs, inputs]`` and biases one after the other."""
    return np.concatenate([np.concatenate([matrix.T.ravel(), bias]) for matrix, bias in layers] or [np.empty(0)])


def check_trees(fleet: Fleet, predict: Mapping[str, Callable[[pd.DataFrame], Any]]) -> Fleet:
    """Return the fleet, after checking that its models of trees agree with ``predict`` for rows near their thresholds.

    Raises:
        FleetError: A model predicts something else: the import may have misunderstood it.
    """
    from mirrorspark.fleet.layout import Layout
    from mirrorspark.fleet.scorer import FleetScorer

    for place in np.flatnonzero(fleet.has_trees).tolist():
        name = fleet.names[place]
        if name not in predict:
            continue
        rows = _rows_beside(fleet.table.slice(place, 1))
        one = fleet.select([name])
        ours = FleetScorer(one, Layout.of(one, "packed", ["score"])).outputs(pa.RecordBatch.from_pandas(rows))
        theirs = np.ravel(predict[name](rows))
        if not np.allclose(ours.by_output["score"][:, 0], theirs, rtol=_TREE_TOLERANCE, atol=_TREE_TOLERANCE):
            raise FleetError(
                f"model '{name}' predicts something else than the sum of its trees with the link "
                f"{fleet.table['link'][place]}; package it with package_model, and give it to fleet_from_models"
            )
    return fleet


def _rows_beside(model: pa.Table) -> pd.DataFrame:
    """Return rows of which half the values are thresholds of a model or just below, the others around them."""
    features, values = (array(model, name).flatten().to_numpy(False) for name in ("node_features", "node_values"))
    random = np.random.default_rng(0)
    rows = {}
    for place, column in enumerate(array(model, "column").flatten().to_pylist()):
        near = values[(features == place) & (features != LEAF)]
        near = (near[np.isfinite(near)] if np.isfinite(near).any() else np.zeros(1)).astype(np.float32)
        exact = random.choice(np.concatenate([near, np.nextafter(near, np.float32(-np.inf))]), PROBED_ROWS)
        around = random.choice(near, PROBED_ROWS) + random.normal(0, np.ptp(near) or 1, PROBED_ROWS)
        probed = np.where(random.random(PROBED_ROWS) < 0.5, exact, around).astype(np.float32)
        rows[column] = np.where(np.abs(probed) < _TINY, np.float32(0), probed)
    return pd.DataFrame(rows)
