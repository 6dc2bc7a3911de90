"""The kinds of features that are numbers, as plain data: amounts, ranks, dates, identifiers and means of the label."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mirrorspark.data_pipelines.features.date_formats import DATE_ORDERS, DateOrder
from mirrorspark.data_pipelines.features.kinds.checks import (
    FeatureSpecError,
    check_boolean,
    check_bounds,
    check_count,
    check_order,
    check_target_encoding,
    is_finite,
)
from mirrorspark.data_pipelines.features.kinds.forms import Column, RawForm

RANGE: Literal["range"] = "range"
"""The bounds of a number that are learnt from the training rows."""


@dataclass(frozen=True)
class Numeric(Column):
    """A number; becomes float32 ``[batch]``: clipped, then its logarithm taken, then imputed, then standardised.

    Attributes:
        name: Column of the table, and name of the model's input.
        impute: The replacement for a missing value: the mean of the training rows (after clip and log), or a number in
            the column's own units.
        standardise: Subtract the mean and divide by the standard deviation of the training rows.
        clip: Lowest and highest value; values outside become the bound. None means no bound on that side. ``"range"``
            is that of the training rows, after the logarithm, widened by their standard deviation on either side, so
            that a typing error gives no absurd score.
        log: Take the logarithm ``sign(x) * log(1 + |x|)``, which is defined for negative numbers and 0 too.
    """

    kind: ClassVar[Literal["numeric", "ordinal", "date", "token_number", "target_encoding"]] = "numeric"
    form: ClassVar[Literal["value"]] = "value"
    raw_form: ClassVar[RawForm] = "number"
    impute: float | Literal["mean"] = "mean"
    standardise: bool = True
    clip: tuple[float | None, float | None] | Literal["range"] | None = None
    log: bool = False

    def __post_init__(self) -> None:
        if self.impute != "mean" and not is_finite(self.impute):
            raise FeatureSpecError(f"feature '{self.name}': impute {self.impute!r} is unknown; use mean or a number")
        for option in ("standardise", "log"):
            check_boolean(self.name, option, getattr(self, option))
        if self.clip is not None and self.clip != RANGE:
            check_bounds(self.name, self.clip)


@dataclass(frozen=True)
class Ordinal(Numeric):
    """One token per row, of values that have an order; becomes float32 ``[batch]``: its rank, as a number is encoded.

    Attributes:
        name: Column of the table, and name of the model's input; texts, whole numbers or booleans.
        order: The values as text, the lowest first, whose ranks are 0, 1, 2, …. Any other value is missing.
    """

    kind: ClassVar[Literal["ordinal"]] = "ordinal"
    raw_form: ClassVar[RawForm] = "token"
    order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.name, self.order)


@dataclass(frozen=True)
class Date(Numeric):
    """A date, a date with a time of day, or a time of day; becomes float32 ``[batch]``, encoded like a number.

    The number is that of days since the start of 1970 in UTC. A text without a time zone counts as UTC. Examples:
    ``2024-01-31``, ``2024-01-31T18:30:00+01:00``, ``31.1.2024``, ``31 Jan 2024``, ``1/31/2024 6:30 PM``. A text that is
    not a date in that order, such as ``unknown`` or ``2024-02-30``, is missing.

    Attributes:
        name: Column of the table, and name of the model's input: texts, dates or timestamps.
        order: The order of year, month and day in texts: ``ymd``, ``dmy`` or ``mdy``, or ``time`` for times of day.
    """

    kind: ClassVar[Literal["date"]] = "date"
    raw_form: ClassVar[RawForm] = "date"
    order: DateOrder = "ymd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in DATE_ORDERS:
            raise FeatureSpecError(
                f"feature '{self.name}': order {self.order!r} is unknown; use {' or '.join(DATE_ORDERS)}"
            )


@dataclass(frozen=True)
class TokenNumber(Numeric):
    """The whole number that a token is; becomes float32 ``[batch]``, encoded like a number.

    The label may depend on the order of identifiers, such as that of their creation, which embeddings do not learn. A
    token that is not a whole number of at most 15 digits is missing.

    Attributes:
        name: Name of the model's input.
        of: Column of the table: whole numbers, or texts.
    """

    kind: ClassVar[Literal["token_number"]] = "token_number"
    raw_form: ClassVar[RawForm] = "token"
    of: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.of or not isinstance(self.of, str):
            raise FeatureSpecError(f"feature '{self.name}': of is {self.of!r}; give the column of the tokens")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table that the feature is read from."""
        return (self.of,)

    @property
    def raw(self) -> Mapping[str, RawForm]:
        """The raw columns of the exported model."""
        return {self.of: self.raw_form}


@dataclass(frozen=True)
class TargetEncoding(Numeric):
    """The mean of the label over the training rows with the same tokens; becomes float32 ``[batch]``, as a number does.

    A training row is in one of eight folds, and gets the mean of the other seven, so that its own label is not in it.
    All other rows get the mean of all training rows. Means of few rows are drawn towards that of all rows. For a binary
    label they are log-odds. Source: Micci-Barreca 2001, "A Preprocessing Scheme for High-Cardinality Categorical
    Attributes".

    Attributes:
        name: Name of the model's input; no column of the table has to have it.
        of: The columns whose tokens, together, group the rows; a missing value is a token, too.
        numbers: Those of ``of`` that another feature takes as numbers; their tokens are whole numbers.
        smoothing: Rows with the mean of all rows that are added to every group.
        min_count: Groups of fewer training rows get the mean of them all.
        max_size: The number of groups, the largest first; the rest get the mean of them all.
    """

    kind: ClassVar[Literal["target_encoding"]] = "target_encoding"
    raw_form: ClassVar[RawForm] = "token"
    of: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    smoothing: float = 5.0
    min_count: int = 1
    max_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("of", "numbers"):  # YAML has single names and lists.
            given = getattr(self, option)
            object.__setattr__(self, option, (given,) if isinstance(given, str) else tuple(given))
        check_target_encoding(self)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table that the feature is read from."""
        return self.of

    @property
    def raw(self) -> Mapping[str, RawForm]:
        """The raw columns of the exported model."""
        return {name: "number" if name in self.numbers else "token" for name in self.of}


@dataclass(frozen=True)
class Bucketed(Column):
    """A number by its rank; becomes int64 ids ``[batch]``: 2 for the lowest of ``buckets`` equal shares of the rows.

    A value on a boundary belongs to the upper bucket. If many rows have the same value there are fewer buckets.

    Attributes:
        name: Column of the table, and name of the model's input.
        buckets: The number of equal shares of the training rows.
    """

    kind: ClassVar[Literal["bucketed"]] = "bucketed"
    form: ClassVar[Literal["id"]] = "id"
    raw_form: ClassVar[RawForm] = "number"
    buckets: int = 10

    def __post_init__(self) -> None:
        check_count(self.name, "buckets", self.buckets, least=2)
