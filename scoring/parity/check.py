"""The parity check for users, which scores a sample in two ways and compares the tables by key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.scoring.parity.differences import check_shapes
from mirrorspark.scoring.parity.key_join import join_on_keys
from mirrorspark.scoring.parity.order import label_changes, rank_changes
from mirrorspark.scoring.parity.rankings import ranking_parity
from mirrorspark.scoring.parity.report import TOLERANCE, ParityReport
from mirrorspark.scoring.parity.scores import parity

Sample = TypeVar("Sample")

_SIDES = ("reference", "candidate")


def parity_check(
    reference: Callable[[Sample], pa.Table],
    scorer: Callable[[Sample], pa.Table],
    sample: Sample,
    *,
    keys: str | Sequence[str],
    output: str = "score",
    ids: str | None = None,
    tolerance: float = TOLERANCE,
    threshold: float | None = None,
    top_k: int = 1,
) -> ParityReport:
    """Score a sample in two ways, and compare the scores row by row.

    Both functions take the sample (an Arrow table, a DataFrame, a path or anything else) and return an Arrow table of
    keys and scores, with rows in any order::

        parity_check(
            lambda table: pa.table({"id": table["id"], "score": keras_model.predict(inputs(table))[:, 0]}),
            lambda table: score(spark.createDataFrame(table), "models:/churn@champion", keys="id").toArrow(),
            pq.read_table("sample.parquet"),
            keys="id",
        )

    The check passes if no score differs by more than ``tolerance``, no score crosses ``threshold``, and no order
    changes (``order_changes`` of the report). The order depends on the kind of scores:

    - One number per row: the order of the rows, see :func:`scoring.parity.order.rank_changes`.
    - A list of numbers per row, one for each label: the ``top_k`` best labels of each row, see
      :func:`scoring.parity.order.label_changes`. In the worst rows ``output`` is the index of the label, from 0.
    - Ranked lists with their ids in the column ``ids``: the order of each list, see :func:`ranking_parity`.

    A null score counts as NaN.

    Args:
        reference: Computes the correct scores.
        scorer: Computes the scores to check, called the candidate in the report and in messages.
        sample: The rows to score.
        keys: Columns that identify a row, in both tables.
        output: Column of the scores, in both tables.
        ids: Column with the ids of ranked lists, best first; for a retrieval model ``candidates``, with the ``output``
            ``scores``.
        tolerance: Largest absolute difference that passes; scores within it tie when orders are compared.
        threshold: Score from which a row or a label counts as positive; None if no decision uses a threshold.
        top_k: Number of best labels that are compared.

    Raises:
        ValueError: The tables differ in their keys, repeat a key or lack a column; there are no rows; scores are not
            numbers; lists differ in length; or ``top_k`` is below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k {top_k} is below 1; give how many labels are decided for")
    names = [keys] if isinstance(keys, str) else list(keys)
    tables = join_on_keys(reference(sample), scorer(sample), names)
    key_table = tables[0].select(names)
    expected, actual = (_scores(side, table, output) for side, table in zip(_SIDES, tables, strict=True))
    if ids is not None:
        expected_ids, actual_ids = (_lists(side, table, ids, None) for side, table in zip(_SIDES, tables, strict=True))
        return ranking_parity(expected_ids, actual_ids, expected, actual, keys=key_table, tolerance=tolerance)
    check_shapes(expected, actual)
    if expected.ndim > 1:
        report = parity(
            _by_label(expected), _by_label(actual), keys=key_table, tolerance=tolerance, threshold=threshold
        )
        changes = label_changes(expected, actual, top_k, tolerance)
    else:
        report = parity(expected, actual, keys=key_table, tolerance=tolerance, threshold=threshold)
        changes = rank_changes(expected, actual, tolerance)
    return replace(report, order_changes=changes.rows, identical_order_share=changes.identical_share)


def _scores(side: str, table: pa.Table, name: str) -> NDArray[np.float64]:
    """Return scores as ``[rows]``, or for lists as ``[rows, k]``, with NaN for null."""
    column = _column(side, table, name)
    is_list = _is_list(column.type)
    if not raw_columns.is_number(column.type.value_type if is_list else column.type):
        raise ValueError(f"{side} {name!r} has type {column.type}; name a column of numbers, or of lists of numbers")
    values = _lists(side, table, name, np.nan) if is_list else column.to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float64)


def _lists(side: str, table: pa.Table, name: str, null: float | None) -> NDArray[Any]:
    """Return lists of one length as ``[rows, k]``; a null list becomes k times ``null``."""
    column = _column(side, table, name)
    if not _is_list(column.type):
        raise ValueError(f"{side} {name!r} has type {column.type}; name a column of lists")
    lengths = pc.list_value_length(column).drop_null().unique().to_pylist()
    if len(lengths) != 1:
        raise ValueError(f"{side} {name!r} has lists of the lengths {sorted(lengths)}; compare lists of one length")
    is_valid = column.is_valid().to_numpy(zero_copy_only=False)
    matrix = np.full((len(column), lengths[0]), null)
    matrix[is_valid] = column.flatten().to_numpy(zero_copy_only=False).reshape(is_valid.sum(), lengths[0])
    return matrix


def _column(side: str, table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        raise ValueError(f"{side} has no column {name!r}; it has {table.column_names}")
    return table[name].combine_chunks()


def _is_list(type_: pa.DataType) -> bool:
    return any(check(type_) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _by_label(scores: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    return {str(label): scores[:, label] for label in range(scores.shape[1])}
