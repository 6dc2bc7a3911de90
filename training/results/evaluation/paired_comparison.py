"""The test metrics of two models on the same rows, with intervals of their differences: a paired bootstrap."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.evaluation import bootstrap
from mirrorspark.models.retrieval import RANKING_KS, ranking_values
from mirrorspark.training.results.evaluation.evaluate_run import (
    classed_columns,
    held_back_tokens,
    labelled_columns,
    list_matrix,
    ranking_intervals,
    weighed_columns,
)
from mirrorspark.training.results.evaluation.segments import held_back_items

_PLACE = "\0place"


@dataclass(frozen=True)
class Tested:
    """A model's predictions of its test rows.

    Attributes:
        name: The model.
        dataset: The dataset of its training.
        predictions: The predictions, in the dataset's stored order.
    """

    name: str
    dataset: Dataset
    predictions: pa.Table


def paired_differences(model: Tested, other: Tested) -> dict[str, dict[str, float]]:
    """Return by metric the ``difference``, model minus other, and the ``low`` and ``high`` end of its 95% interval.

    Rows are drawn, of a retrieval model users with all of their rows, the same ones for both.

    Raises:
        ValueError: The two have different test rows, labels or classes.
    """
    kind, order = model.dataset.spec.label.form, model.dataset.spec.label.order
    theirs = _in_order_of(model, other)
    if kind == "candidate":
        return _of_lists(model, theirs)
    if kind in ("binary", "numeric"):
        columns = [weighed_columns(table) for table in (model.predictions, theirs)]
    else:
        names = [list(of.dataset.features.class_names) for of in (model, other)]
        if sorted(names[0]) != sorted(names[1]) or (order is not None and names[0] != names[1]):
            remedy = "the same training rows" if order is None else "the label with the same classes in the same order"
            raise ValueError(
                f"{model.name} has the classes {_some(names[0])} and {other.name} {_some(names[1])}; give both fits "
                f"{remedy}"
            )
        read = classed_columns if kind == "multi_class" else labelled_columns
        columns = [read(table, len(names[0])) for table in (model.predictions, theirs)]
        columns[1] = _in_classes_of(kind, names, columns[1])
    (label, ours, weight), (their_label, score, their_weight) = columns
    if not (np.array_equal(label, their_label) and np.array_equal(weight, their_weight)):
        raise ValueError(f"the test rows of {model.name} and {other.name} have {_REMEDY}")
    statistics: Mapping[str, Callable[[np.ndarray, np.ndarray], bootstrap.Statistics]] = {
        "binary": bootstrap.binary_statistics,
        "numeric": bootstrap.regression_statistics,
        "multi_class": partial(bootstrap.multi_class_statistics, is_ordinal=order is not None),
        "multi_label": bootstrap.multi_label_statistics,
    }
    return bootstrap.paired_intervals(statistics[kind], label, ours, score, weight)


_REMEDY = (
    "different labels or weights for the same keys; to compare the two, give both fits the same table, keys, time and "
    "seed, so that they are tested on the same rows"
)


def _in_order_of(model: Tested, other: Tested) -> pa.Table:
    """Return the predictions of ``other`` in the order of those of ``model``."""
    keys = [list(of.dataset.spec.keys) for of in (model, other)]
    remedy = "give both fits the same table, keys, time and seed, so that they are tested on the same rows"
    if keys[0] != keys[1]:
        raise ValueError(f"the keys of {model.name} are {keys[0]}, those of {other.name} {keys[1]}; {remedy}")
    if model.dataset.manifest.content_hash == other.dataset.manifest.content_hash:
        return other.predictions
    ours, theirs = (of.predictions.select(keys[0]).to_pandas() for of in (model, other))
    theirs[_PLACE] = np.arange(len(theirs))
    if ours.duplicated().any() or theirs.duplicated(keys[0]).any():
        raise ValueError(f"several test rows have the same keys {keys[0]}, so that rows cannot be paired; {remedy}")
    places = ours.merge(theirs, on=keys[0], how="left")[_PLACE]
    common = int(places.notna().sum())
    if common < max(len(ours), len(theirs)):
        raise ValueError(
            f"{model.name} was tested on {len(ours):,} rows and {other.name} on {len(theirs):,}, of which {common:,} "
            f"are the same; {remedy}"
        )
    return other.predictions.take(places.to_numpy(np.int64))


def _in_classes_of(
    kind: str, names: Sequence[Sequence[str]], columns: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return label and scores of the second model in the order of the first one's classes."""
    place = {name: number for number, name in enumerate(names[1])}
    order = np.array([place[name] for name in names[0]])
    label, scores, weight = columns
    label = np.argsort(order)[label] if kind == "multi_class" else label[:, order]
    return label, scores[:, order], weight


def _of_lists(model: Tested, theirs: pa.Table) -> dict[str, dict[str, float]]:
    items = held_back_items(model.dataset, "test")
    wanted = [held_back_tokens(table["label"]) for table in (model.predictions, theirs)]
    if not np.array_equal(wanted[0], wanted[1]):
        raise ValueError(f"the held-back candidates differ: the rows have {_REMEDY}")
    lists = [list_matrix(table["candidates"]) for table in (model.predictions, theirs)]
    k = min(of.shape[1] for of in lists)
    ranks = tuple(sorted({rank for rank in RANKING_KS if rank < k} | {k}))
    values: list[Mapping[str, Any]] = [
        ranking_values(of[:, :k], own, ranks, queries=items.queries, rows=items.rows)
        for of, own in zip(lists, wanted, strict=True)
    ]
    users = items.users[np.unique(items.queries, return_index=True)[1]]
    return ranking_intervals(values[0], values[1], users)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5:,} more" if len(names) > 5 else shown
