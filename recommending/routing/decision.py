"""The decision which route takes which row, for a batch at a time."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.recommending.routing.router import Route, Router
from mirrorspark.scoring.input import RowErrors


@dataclass(frozen=True)
class RoutingDecision:
    """The route of each row of a batch.

    Attributes:
        models: Name of the model or blend of each row, as objects.
        reasons: Why, as objects.
        errors: Message by row, for rows that no model may answer.
    """

    models: np.ndarray
    reasons: np.ndarray
    errors: RowErrors


def utc_now() -> datetime.datetime:
    """Return the time."""
    return datetime.datetime.now(datetime.UTC)


def decide(router: Router, batch: pa.RecordBatch, now: Callable[[], datetime.datetime] = utc_now) -> RoutingDecision:
    """Return the route of each row.

    Raises:
        ColumnError: A column is missing, or has a type that its rule cannot read.
    """
    rows = batch.num_rows
    models, reasons = np.full(rows, "", object), np.full(rows, "", object)
    errors: RowErrors = {}
    is_open = np.ones(rows, np.bool_)
    for route in router.routes:
        takes, nulls = _taken(route, router, batch, now)
        is_null = np.any(list(nulls.values()), axis=0)
        if route.nulls == "fail":
            for column, of_column in nulls.items():
                for row in np.flatnonzero(is_open & of_column):
                    errors[int(row)] = f"column '{column}' is null, and the route to '{route.model}' needs a value"
            is_open &= ~is_null
        by_null = is_open & is_null if route.nulls == "match" else np.zeros(rows, np.bool_)
        chosen = is_open & takes & ~is_null
        models[chosen | by_null] = route.model
        reasons[chosen] = route.reason
        for column, of_column in nulls.items():
            reasons[by_null & of_column] = f"{column}: null"
        is_open &= ~(chosen | by_null)
    return RoutingDecision(models, reasons, dict(sorted(errors.items())))


def check_columns(router: Router, schema: pa.Schema) -> None:
    """Check the columns that decide.

    Raises:
        ColumnError: One is missing, or has a type that its rule cannot read.
    """
    for name in router.columns:
        if schema.get_field_index(name) < 0:
            raise raw_columns.ColumnError(f"column '{name}' is missing, by which the router chooses a model; add it")
    for column in [route.column for route in router.routes if route.younger_than_days is not None] + [router.as_of]:
        if column is not None:
            type_ = schema.field(column).type
            if not (pa.types.is_date(type_) or pa.types.is_timestamp(type_) or pa.types.is_null(type_)):
                raise raw_columns.ColumnError(
                    f"column '{column}' has type {type_}, and ages need a date or a timestamp; cast it"
                )
    for route in router.routes:
        if route.column is not None and route.has_range:
            type_ = schema.field(route.column).type
            is_number = pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)
            if not is_number and not pa.types.is_null(type_):
                raise raw_columns.ColumnError(
                    f"column '{route.column}' has type {type_}, and a range needs numbers; cast it"
                )
        if route.column is not None and route.values:
            type_ = schema.field(route.column).type
            if not pa.types.is_null(type_) and not _fits(route.values[0], type_):
                raise raw_columns.ColumnError(
                    f"column '{route.column}' has type {type_}, and the router compares it with {list(route.values)}; "
                    f"cast it"
                )


def _fits(value: str | int | bool, type_: pa.DataType) -> bool:
    if isinstance(value, bool):
        return bool(pa.types.is_boolean(type_))
    if isinstance(value, int):
        return bool(pa.types.is_integer(type_))
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _taken(
    route: Route, router: Router, batch: pa.RecordBatch, now: Callable[[], datetime.datetime]
) -> tuple[np.ndarray, dict[str | None, np.ndarray]]:
    """Return a mask of the rows that fit the rule, and a mask of the nulls of each column read; its own is the last."""
    if route.column is None:
        return np.ones(batch.num_rows, np.bool_), {None: np.zeros(batch.num_rows, np.bool_)}
    column = batch.column(route.column)
    if route.has_range:
        numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        lowest, end = (-np.inf if route.at_least is None else route.at_least), route.below
        takes = (numbers >= lowest) & (numbers < end if end is not None else True)
        return takes, {route.column: np.isnan(numbers)}
    if route.younger_than_days is None:
        is_null = column.is_null().to_numpy(zero_copy_only=False)
        if pa.types.is_null(column.type):
            return ~is_null, {route.column: is_null}
        values = pa.array(route.values).cast(column.type)
        return pc.is_in(column, value_set=values).to_numpy(zero_copy_only=False), {route.column: is_null}
    born = _days(column, router.time_zone)
    if router.as_of is None:
        today = np.full(batch.num_rows, np.datetime64(now().astimezone(ZoneInfo(router.time_zone)).date(), "D"))
    else:
        today = _days(batch.column(router.as_of), router.time_zone)
    ages = (today - born).astype(np.int64)
    limit = route.younger_than_days
    takes = ages < limit if route.boundary == "exclusive" else ages <= limit
    return takes, {router.as_of: np.isnat(today), route.column: np.isnat(born)}


def _days(column: pa.Array, time_zone: str) -> np.ndarray:
    """Return the calendar day of each value in the zone: datetime64[D], with NaT for null."""
    if pa.types.is_timestamp(column.type) and column.type.tz is not None:
        # A moment has a day only in a zone; without one it is the wall clock of the zone already.
        column = pc.local_timestamp(column.cast(pa.timestamp("us", tz=time_zone)))
    moments = column.cast(pa.timestamp("us"), safe=False)
    return moments.to_numpy(zero_copy_only=False).astype("datetime64[D]")
