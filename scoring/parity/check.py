"""The parity check for users: a sample goes through two scorings, and their tables are compared by key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_pipelines.raw_columns import is_number
from scoring.parity.differences import check_shapes
from scoring.parity.key_join import join_on_keys
from scoring.parity.order import label_changes, rank_changes
from scoring.parity.rankings import ranking_parity
from scoring.parity.report import TOLERANCE, ParityReport
from scoring.parity.scores import parity

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

    Both functions take the sample, whatever that is to them (an Arrow table, a DataFrame, a path), and return an Arrow
    table of keys and scores, in any order of the rows::

        parity_check(
            lambda table: pa.table({"id": table["id"], "score": keras_model.predict(inputs(table))[:, 0]}),
            lambda table: score(spark.createDataFrame(table), "models:/churn@champion", keys="id").toArrow(),
            pq.read_table("sample.parquet"),
            keys="id",
        )

    The check passes where no score differs by more than ``tolerance``, none crosses ``threshold``, and the order does
    not change (``order_changes`` of the report). What the order is depends on the scores:

    - One number per row: the order of the rows, see :func:`scoring.parity.order.rank_changes`.
    - A list of numbers per row, one for each label: the ``top_k`` best labels of each row, see
      :func:`scoring.parity.order.label_changes`. The worst rows tell the label, as ``output``, by its place
      in the list, from 0.
    - Ranked lists, whose ids are in the column ``ids``: each list's order, see :func:`ranking_parity`.

    A null score counts as NaN.

    Args:
        reference: What is right.
        scorer: What is checked; the report and messages call it the candidate.
        sample: The rows.
        keys: Columns that name a row, in both tables.
        output: Column of the scores, in both tables.
        ids: Column with the ids of ranked lists, best first, such as ``candidates`` of a retrieval model, whose
            ``output`` is ``scores``.
        tolerance: The largest absolute difference that passes, and what ties where an order is compared.
        threshold: Score from which a row, or a label, counts as positive; None where nothing is decided so.
        top_k: How many labels of a list of scores are decided for.

    Raises:
        ValueError: The tables do not have the same keys, each once, or lack the columns; there are no rows; scores are
            no numbers; lists differ in length; or ``top_k`` is below 1.
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
    """Return scores as ``[rows]``, or ``[rows, k]`` of lists; NaN for null."""
    column = _column(side, table, name)
    is_list = _is_list(column.type)
    if not is_number(column.type.value_type if is_list else column.type):
        raise ValueError(f"{side} {name!r} has type {column.type}; name a column of numbers, or of lists of numbers")
    values = _lists(side, table, name, np.nan) if is_list else column.to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float64)


def _lists(side: str, table: pa.Table, name: str, null: float | None) -> NDArray[Any]:
    """Return lists of one length as ``[rows, k]``, with ``null`` in all places of a null."""
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
