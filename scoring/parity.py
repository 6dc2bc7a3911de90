"""Parity: do two scorings of the same rows agree, row by row (requirement S14).

A mean or a 99th percentile hides one customer with a wrong score, so the verdict rests on the maximum and on the
decisions that would change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

TOLERANCE = 1e-5
THRESHOLD = 0.5
WORST_ROWS = 10

Keys: TypeAlias = "pa.Table | Mapping[str, ArrayLike]"

_KEYS_IN_MESSAGE = 3
_POSITION = "__position"


@dataclass(frozen=True)
class WorstRow:
    """One score that differs: where it stands (key columns by name) and what each side says."""

    keys: dict[str, Any]
    reference: float
    candidate: float
    difference: float


@dataclass(frozen=True)
class ParityReport:
    """How far two scorings of the same rows lie apart.

    ``mean`` to ``max`` describe the absolute difference of every score. A NaN on either side, or on both, is an
    infinite difference: it is counted in ``nans`` and never ignored. ``order_changes`` and ``identical_order_share``
    are set for ranked lists only, ``threshold_flips`` is zero for them.
    """

    rows: int
    mean: float
    std: float
    p25: float
    p50: float
    p75: float
    p99: float
    max: float
    max_relative: float
    tolerance: float
    above_tolerance: int
    nans: int
    threshold: float | None
    threshold_flips: int
    worst: tuple[WorstRow, ...]
    order_changes: int = 0
    identical_order_share: float | None = None

    @property
    def passed(self) -> bool:
        """True when no score differs by more than the tolerance and no decision or order changes."""
        return self.max <= self.tolerance and self.threshold_flips == 0 and self.order_changes == 0

    def as_table(self) -> str:
        """Return the report as text: count, mean, std, quartiles, P99 and max, then the checks and the worst rows."""
        lines = [("count", f"{self.rows:,}")]
        lines += [
            (title, f"{value:.3e}")
            for title, value in (
                ("mean", self.mean),
                ("std", self.std),
                ("P25", self.p25),
                ("P50", self.p50),
                ("P75", self.p75),
                ("P99", self.p99),
                ("max", self.max),
                ("max relative", self.max_relative),
            )
        ]
        lines.append((f"above {self.tolerance:g}", f"{self.above_tolerance:,}"))
        if self.nans:
            lines.append(("NaN", f"{self.nans:,}"))
        if self.threshold is not None:
            lines.append((f"flips at {self.threshold:g}", f"{self.threshold_flips:,}"))
        if self.identical_order_share is not None:
            lines.append(("identical order", f"{self.identical_order_share:.3%}"))
            lines.append(("order changes", f"{self.order_changes:,}"))
        lines.append(("parity", "passed" if self.passed else "FAILED"))
        width = max(len(title) for title, _ in lines)
        text = ["absolute difference"] + [f"  {title:<{width}}  {value:>12}" for title, value in lines]
        if not self.passed and self.worst:
            text.append("worst rows")
            for row in self.worst:
                where = ", ".join(f"{name}={value}" for name, value in row.keys.items())
                text.append(
                    f"  {where}: reference {row.reference:.9g}, candidate {row.candidate:.9g}, "
                    f"difference {row.difference:.3e}"
                )
        return "\n".join(text)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; infinite and NaN numbers become the strings inf and nan."""
        plain: dict[str, Any] = _json_ready({**asdict(self), "passed": self.passed})
        return plain


def parity(
    reference: ArrayLike | Mapping[str, ArrayLike],
    candidate: ArrayLike | Mapping[str, ArrayLike],
    *,
    keys: Keys | None = None,
    tolerance: float = TOLERANCE,
    threshold: float | None = THRESHOLD,
    worst: int = WORST_ROWS,
) -> ParityReport:
    """Compare two scorings of the same rows in the same order (see ``join_on_keys``).

    Args:
        reference: scores ``[rows]``, or output name -> scores ``[rows]``.
        candidate: scores of the same shape and names.
        keys: key columns, ``[rows]`` each, that name the worst rows; the row number does when absent.
        tolerance: the largest absolute difference that passes.
        threshold: score from which a row counts as positive; None where scores decide nothing by a threshold.
        worst: how many of the rows that differ most are kept.

    Returns:
        The report; its statistics cover every score of every output.

    Raises:
        ValueError: no rows, unequal shapes, or different outputs.
    """
    names, expected = _score_matrix("reference", reference)
    other_names, actual = _score_matrix("candidate", candidate)
    if names != other_names:
        raise ValueError(f"reference has outputs {list(names)} but candidate has {list(other_names)}; compare the same")
    _check_shapes(expected, actual)
    difference = _absolute_difference(expected, actual)
    key_columns = _key_columns(keys, len(expected))
    flips = 0 if threshold is None else int(((expected >= threshold) != (actual >= threshold)).sum())

    def where(row: int, column: int) -> dict[str, Any]:
        output = {"output": names[column]} if isinstance(reference, Mapping) else {}
        return {**_key_values(key_columns, row), **output}

    order = _largest_first(difference.ravel(), worst)
    cells = [divmod(int(cell), difference.shape[1]) for cell in order]
    return _report(
        expected,
        actual,
        difference,
        tolerance,
        threshold=threshold,
        threshold_flips=flips,
        worst=tuple(_worst_row(where(*cell), expected, actual, difference, cell) for cell in cells),
    )


def ranking_parity(
    reference_ids: ArrayLike,
    candidate_ids: ArrayLike,
    reference_scores: ArrayLike,
    candidate_scores: ArrayLike,
    *,
    keys: Keys | None = None,
    tolerance: float = TOLERANCE,
    worst: int = WORST_ROWS,
) -> ParityReport:
    """Compare two sets of ranked lists, rank by rank.

    Scores are compared at equal ranks. Items whose reference scores lie within the tolerance may trade places, and
    such an item may be another one at the end of the list, without counting as a change of order: rounding alone
    decides between them.

    Args:
        reference_ids: recommended ids, best first, ``[rows, k]``.
        candidate_ids: the other side's ids, ``[rows, k]``.
        reference_scores: their scores, ``[rows, k]``.
        candidate_scores: the other side's scores, ``[rows, k]``.
        keys: key columns, ``[rows]`` each, that name the worst rows.
        tolerance: the largest absolute difference of scores that passes.
        worst: how many rows are kept: changed order first, then by difference.

    Raises:
        ValueError: no rows or unequal shapes.
    """
    expected = np.asarray(reference_scores, dtype=np.float64)
    actual = np.asarray(candidate_scores, dtype=np.float64)
    expected_ids, actual_ids = np.asarray(reference_ids), np.asarray(candidate_ids)
    for name, value in (("reference_scores", expected), ("reference_ids", expected_ids)):
        if value.ndim != 2 or not value.size:
            raise ValueError(f"{name} has shape {value.shape}; pass [rows, k] with at least one row and one rank")
    _check_shapes(expected, actual)
    _check_shapes(expected_ids, actual_ids)
    _check_shapes(expected, expected_ids)
    key_columns = _key_columns(keys, len(expected))
    difference = _absolute_difference(expected, actual)
    moved = expected_ids != actual_ids
    changed = np.zeros(expected_ids.shape, dtype=bool)
    for row in np.flatnonzero(moved.any(axis=1)):
        changed[row] = moved[row] & ~_tied(expected_ids[row], actual_ids[row], expected[row], tolerance)

    # A changed order outranks any difference of scores in the list of worst rows.
    severity = np.where(changed, np.inf, difference)
    worst_rank = severity.argmax(axis=1)
    order = _largest_first(severity.max(axis=1), worst)
    cells = [(int(row), int(worst_rank[row])) for row in order]

    def where(row: int, rank: int) -> dict[str, Any]:
        ids = {"reference_id": _plain(expected_ids[row, rank]), "candidate_id": _plain(actual_ids[row, rank])}
        return {**_key_values(key_columns, row), "rank": rank + 1, **ids}

    return _report(
        expected,
        actual,
        difference,
        tolerance,
        threshold=None,
        threshold_flips=0,
        worst=tuple(_worst_row(where(*cell), expected, actual, difference, cell) for cell in cells),
        order_changes=int(changed.any(axis=1).sum()),
        identical_order_share=float((~moved.any(axis=1)).mean()),
    )


def join_on_keys(reference: pa.Table, candidate: pa.Table, keys: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """Return both tables with equal keys in equal rows, in the reference's order.

    Candidate keys of another width (int32 beside int64, say) are cast to the reference's type.

    Args:
        reference: key columns and any others.
        candidate: the same keys in any order.
        keys: names of the key columns.

    Raises:
        ValueError: a key column that is absent, null or of another type, a key that occurs twice, or a key that only
            one side has.
    """
    if not keys:
        raise ValueError("keys is empty; name at least one key column to join on")
    expected = _key_table("reference", reference, keys)
    actual = _cast_keys(_key_table("candidate", candidate, keys), expected.schema)
    for name, table in (("reference", expected), ("candidate", actual)):
        counts = table.group_by(list(keys)).aggregate([([], "count_all")])
        repeated = counts.filter(pc.greater(counts["count_all"], 1))
        if repeated.num_rows:
            raise ValueError(
                f"{name} has {repeated.num_rows} keys more than once, for example {_examples(repeated, keys)}; "
                "keys must name one row each"
            )
    for name, table, other_name, other in (
        ("candidate", actual, "reference", expected),
        ("reference", expected, "candidate", actual),
    ):
        missing = other.join(table, keys=list(keys), join_type="left anti")
        if missing.num_rows:
            raise ValueError(
                f"{name} lacks {missing.num_rows} keys that {other_name} has, for example {_examples(missing, keys)} "
                f"(reference {reference.num_rows} rows, candidate {candidate.num_rows} rows); score the same rows"
            )
    positions = pa.array(np.arange(candidate.num_rows))
    # Arrow's join gives rows in any order: carry both positions through it and sort by the reference's.
    joined = expected.append_column(_POSITION, pa.array(np.arange(reference.num_rows))).join(
        actual.append_column(f"{_POSITION}_candidate", positions), keys=list(keys), join_type="inner"
    )
    order = np.empty(reference.num_rows, dtype=np.int64)
    order[joined[_POSITION].to_numpy()] = joined[f"{_POSITION}_candidate"].to_numpy()
    return reference, candidate.take(pa.array(order))


def _report(
    expected: NDArray[np.float64],
    actual: NDArray[np.float64],
    difference: NDArray[np.float64],
    tolerance: float,
    *,
    threshold: float | None,
    threshold_flips: int,
    worst: tuple[WorstRow, ...],
    order_changes: int = 0,
    identical_order_share: float | None = None,
) -> ParityReport:
    flat = np.sort(difference, axis=None)
    largest = float(flat[-1])
    return ParityReport(
        rows=len(difference),
        mean=float(flat.mean()),
        # inf - inf would make it NaN; the sample form (n - 1), as pandas and Spark describe a column.
        std=math.inf if math.isinf(largest) else float(flat.std(ddof=1)) if flat.size > 1 else 0.0,
        p25=_percentile(flat, 0.25),
        p50=_percentile(flat, 0.50),
        p75=_percentile(flat, 0.75),
        p99=_percentile(flat, 0.99),
        max=largest,
        max_relative=_max_relative(expected, actual, difference),
        tolerance=tolerance,
        above_tolerance=int((flat > tolerance).sum()),
        nans=int((np.isnan(expected) | np.isnan(actual)).sum()),
        threshold=threshold,
        threshold_flips=threshold_flips,
        worst=worst,
        order_changes=order_changes,
        identical_order_share=identical_order_share,
    )


def _score_matrix(
    side: str, scores: ArrayLike | Mapping[str, ArrayLike]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return output names and scores as ``[rows, outputs]``; names are sorted, so mappings need no common order."""
    columns = scores if isinstance(scores, Mapping) else {"score": scores}
    names = tuple(sorted(columns))
    arrays = [np.asarray(columns[name], dtype=np.float64) for name in names]
    for name, array in zip(names, arrays, strict=True):
        if array.ndim != 1 or not array.size:
            raise ValueError(f"{side} {name!r} has shape {array.shape}; pass one score per row, at least one row")
        if array.size != arrays[0].size:
            raise ValueError(f"{side} {name!r} has {array.size} rows but {names[0]!r} has {arrays[0].size}")
    if not arrays:
        raise ValueError(f"{side} has no outputs; pass at least one")
    return names, np.stack(arrays, axis=1)


def _check_shapes(expected: NDArray[Any], actual: NDArray[Any]) -> None:
    if expected.shape != actual.shape:
        raise ValueError(
            f"reference has shape {expected.shape} but candidate has {actual.shape}; "
            "score the same rows, and align them with join_on_keys"
        )


def _key_columns(keys: Keys | None, rows: int) -> dict[str, Any]:
    """Return the key columns by name, or the row number where there are none."""
    if keys is None:
        return {"row": range(rows)}
    names = keys.column_names if isinstance(keys, pa.Table) else list(keys)
    columns: dict[str, Any] = {name: keys[name] for name in names}
    for name, column in columns.items():
        if len(column) != rows:
            raise ValueError(f"key column {name!r} has {len(column)} rows but there are {rows} scores")
    return columns


def _absolute_difference(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        difference = np.abs(expected - actual)
    # Equal infinities subtract to NaN but do not differ; every NaN score differs from anything, NaN included.
    difference[expected == actual] = 0.0
    return np.where(np.isnan(difference), np.inf, difference)


def _max_relative(expected: NDArray[np.float64], actual: NDArray[np.float64], difference: NDArray[np.float64]) -> float:
    """Return the largest difference relative to the larger magnitude of the two scores."""
    if np.isinf(difference).any():
        return math.inf
    magnitude = np.maximum(np.abs(expected), np.abs(actual))
    differs = difference > 0
    return float((difference[differs] / magnitude[differs]).max(initial=0.0))


def _percentile(ordered: NDArray[np.float64], share: float) -> float:
    """Return NumPy's linear percentile of sorted values, and stay right where some of them are infinite."""
    position = (ordered.size - 1) * share
    low, high = float(ordered[math.floor(position)]), float(ordered[math.ceil(position)])
    return low if low == high else low + (high - low) * (position - math.floor(position))


def _largest_first(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return positions of the ``count`` largest values above zero, largest first, ties by position."""
    positions = np.flatnonzero(values > 0)
    if positions.size > count > 0:
        # Keep only what can be among the largest before sorting: millions of rows may differ in the last bit.
        floor = np.partition(values[positions], -count)[-count]
        positions = positions[values[positions] >= floor]
    order = np.argsort(-values[positions], kind="stable")[:count]
    return np.asarray(positions[order], dtype=np.int64)


def _worst_row(
    keys: dict[str, Any],
    expected: NDArray[np.float64],
    actual: NDArray[np.float64],
    difference: NDArray[np.float64],
    cell: tuple[int, int],
) -> WorstRow:
    return WorstRow(keys, float(expected[cell]), float(actual[cell]), float(difference[cell]))


def _tied(
    expected_ids: NDArray[Any], actual_ids: NDArray[Any], scores: NDArray[np.float64], tolerance: float
) -> NDArray[np.bool_]:
    """Tell at which ranks the other side's item ties with the reference's, by the reference's own scores ``[k]``."""
    same = actual_ids[:, None] == expected_ids[None, :]
    # An item that the reference does not list scores at most what its last item does.
    own = np.where(same.any(axis=1), scores[same.argmax(axis=1)], scores[-1])
    return np.asarray(_absolute_difference(own, scores) <= tolerance)


def _key_values(columns: Mapping[str, Any], row: int) -> dict[str, Any]:
    return {name: _plain(column[row]) for name, column in columns.items()}


def _plain(value: Any) -> Any:
    """Return the Python value of a NumPy or Arrow scalar."""
    if isinstance(value, pa.Scalar):
        return value.as_py()
    return value.item() if isinstance(value, np.generic) else value


def _json_ready(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _json_ready(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _key_table(side: str, table: pa.Table, keys: Sequence[str]) -> pa.Table:
    for name in keys:
        if name not in table.column_names:
            raise ValueError(f"{side} has no key column {name!r}; it has {table.column_names}")
        nulls = table[name].null_count
        if nulls:
            raise ValueError(f"{side} key {name!r} is null in {nulls} rows; a row without its key cannot be compared")
    return table.select(list(keys))


def _cast_keys(table: pa.Table, schema: pa.Schema) -> pa.Table:
    for position, field in enumerate(schema):
        try:
            table = table.set_column(position, field.name, table[field.name].cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"key {field.name!r} is {field.type} in reference but {table[field.name].type} in candidate, "
                f"and cannot be converted: {error}"
            ) from error
    return table


def _examples(table: pa.Table, keys: Sequence[str]) -> str:
    rows = table.select(list(keys)).sort_by([(name, "ascending") for name in keys]).slice(0, _KEYS_IN_MESSAGE)
    return "; ".join(", ".join(f"{name}={value}" for name, value in row.items()) for row in rows.to_pylist())
