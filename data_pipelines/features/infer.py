"""Inference of a feature spec: the columns of a table are measured, then each gets a kind.

The proposal is a start: write it to YAML, read it, and correct it.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DateType,
    FractionalType,
    IntegralType,
    MapType,
    NumericType,
    StringType,
    TimestampNTZType,
    TimestampType,
)

from mirrorspark.data_pipelines.features.column_facts import ColumnFacts, arrow_facts, column_facts, quoted
from mirrorspark.data_pipelines.features.date_formats import DateOrder
from mirrorspark.data_pipelines.features.infer_encodings import SAMPLED_ROWS, Sample, candidates, with_encodings
from mirrorspark.data_pipelines.features.infer_ordinals import codes, with_ordinals
from mirrorspark.data_pipelines.features.kinds import (
    RANGE,
    Categorical,
    Date,
    Feature,
    FeatureSpecError,
    Label,
    MultiValued,
    Numeric,
    Ordinal,
    Sparse,
    Text,
    Vector,
)
from mirrorspark.data_pipelines.features.names import IDENTIFIER_NAME, refusal_of_name
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.sources import MemorySource
from mirrorspark.data_pipelines.spark import collected, counted
from mirrorspark.storage import meant

_LOGGER = logging.getLogger(__name__)


class NoKeyError(FeatureSpecError):
    """No single column identifies the rows of a table."""


# A whole number with at most this many different values is a code, not an amount.
MOST_CODES = 50
# A text has more words than a name or a title, and few repetitions.
LEAST_WORDS_OF_TEXT = 4
LEAST_SHARE_OF_DISTINCT_TEXTS = 0.5
# A few texts among dates or amounts, such as "unknown", are missing values.
LEAST_SHARE_OF_FORM = 0.95
# If nearly every row has a token of its own, later rows will have unknown ones.
MOST_SHARE_OF_DISTINCT_TOKENS = 0.9
# Beyond this many tokens, hashing is better than a vocabulary.
MOST_VOCABULARY = 1_000_000
# Amounts of money and counts of visits are more skewed than this, and nearly normal as logarithms.
LEAST_SKEWNESS_OF_LOGARITHM = 3.0
LONGEST_LIST = 200
# The column and the value of training rows, and the one by which a sample is drawn.
_SPLIT, _TRAIN = "split", "train"
_ORDER = "order of the sample"
_SHOWN_VALUES = 5
_YES = frozenset({"yes", "y", "true", "t", "1", "1.0", "positive", "pos", "on"})


def infer_spec(
    df: DataFrame | MemorySource,
    *,
    label: str,
    keys: str | Iterable[str] = (),
    exclude: Iterable[str] = ("split",),
    last_key: str | None = None,
    encodings: bool = True,
) -> FeatureSpec:
    """Propose a spec for the table ``df``; the log says why each column is used or left out.

    Args:
        df: The table; it is read once, and once more to find keys if none are given. This process measures a table in
            memory itself, since the first jobs of a Spark session take seconds.
        label: Column that the model is to learn.
        keys: Columns that identify a row; by default one with unique values that is named like an identifier, or else
            holds tokens that no model can learn from.
        exclude: Columns to ignore.
        last_key: The key if no other column identifies the rows; never a feature.
        encodings: Add those of :func:`encoded_spec`.

    Raises:
        NoKeyError: No column identifies the rows, and there is no ``last_key``.
        FeatureSpecError: There is no such label or key, the label cannot be learnt, or no column can be a feature.
    """
    given = (keys,) if isinstance(keys, str) else tuple(keys)
    found = [name for name in df.columns if name != last_key]
    for argument, name in (("label", label), *(("keys", key) for key in given)):
        if name not in df.columns:
            raise FeatureSpecError(f"{argument}: the table has no column '{name}'; it has {found}{meant(name, found)}")
    left_out = {*exclude, last_key} - {label, *given}
    used = [name for name in df.columns if name not in left_out]
    if isinstance(df, MemorySource):
        facts = arrow_facts(df.rows, df.select(*used).schema)
    else:
        facts = column_facts(df.select(*map(quoted, used)))
    if not any(fact.rows for fact in facts.values()):
        raise FeatureSpecError(f"the table has no rows, or no value in any of the columns {list(facts)}")
    proposed_keys = given
    if not given:
        key = _find_key(df, facts, label) or last_key
        if key is None:
            raise NoKeyError(_without_key(facts, label))
        proposed_keys = (key,)
    features, reasons = [], []
    for name, fact in facts.items():
        if name == label or name in proposed_keys:
            continue
        feature, reason = propose_feature(fact)
        # A column without a proposal is a warning: it may only have been read as the wrong type.
        is_doubtful = feature is None or (
            isinstance(fact.type, StringType) and (len(orders_of_dates(fact)) > 1 or are_amounts(fact))
        )
        _LOGGER.log(logging.WARNING if is_doubtful else logging.INFO, "column %s: %s", name, reason)
        if feature is not None:
            features.append(feature)
        else:
            reasons.append(f"{name} is {reason}")
    if not features:
        why = "; ".join(reasons[:5]) or "there is none except the label and the keys"
        raise FeatureSpecError(f"no column can be a feature of '{label}': {why}")
    proposed = propose_label(facts[label], _two_values(df, facts[label]))
    _LOGGER.info("label %s: %s", label, reason_of_label(proposed, facts[label]))
    spec = FeatureSpec(tuple(features), proposed, proposed_keys)
    return encoded_spec(df, spec) if encodings else spec


def encoded_spec(df: DataFrame | MemorySource, spec: FeatureSpec) -> FeatureSpec:
    """Return a spec with what a sample of the table shows about its label.

    Columns of few whole numbers become numbers where their order shows (:mod:`data_pipelines.features.infer_ordinals`),
    and encodings are added that help to predict the label (:mod:`data_pipelines.features.infer_encodings`). The spec
    has the reasons.

    Args:
        df: The table, from which a sample is read: of the training rows if it has a column ``split``.
        spec: The features of its columns, and the label.
    """
    form, schema = spec.label.form, df.schema
    has_encodings = form in ("binary", "numeric")
    ordinals = codes(spec.features, schema) if has_encodings or form == "multi_class" else []
    columns = candidates(spec.features, schema) if has_encodings else ordinals
    if not columns:
        return spec
    sample = _sample(df, spec, [feature.name for feature in columns])
    features, reasons = with_ordinals(sample, ordinals, spec.features, spec.label)
    if has_encodings:
        features, of_encodings = with_encodings(sample, candidates(features, schema), features, spec.label)
        reasons |= of_encodings
    return replace(spec, features=tuple(features), reasons=reasons)


def _sample(df: DataFrame | MemorySource, spec: FeatureSpec, columns: list[str]) -> Sample:
    """Return training rows with a label: those with the smallest hashes of their keys, in this order."""
    label, has_split = spec.label.name, _SPLIT in df.columns
    names = [*columns, label]
    if isinstance(df, MemorySource):
        rows = df.where(_SPLIT, _TRAIN) if has_split else df
        rows = rows.filter(pc.and_(pc.is_valid(rows.column(label)), pc.invert(_is_nan(rows.column(label)))))
        order = np.argsort(rows.hashes(*map(rows.column, spec.keys)), kind="stable")[:SAMPLED_ROWS]
        return Sample(rows.rows.select(names).take(pa.array(order)), rows.rows.num_rows / max(len(order), 1))
    value = quoted(label)
    present = (
        value.isNotNull() & ~F.isnan(value)
        if isinstance(df.schema[label].dataType, FractionalType)
        else value.isNotNull()
    )
    labelled = (df.where(quoted(_SPLIT) == _TRAIN) if has_split else df).where(present)
    seen, count = counted(labelled.select(F.xxhash64(*map(quoted, spec.keys)).alias(_ORDER), *map(quoted, names)))
    found = collected(seen.orderBy(_ORDER).limit(SAMPLED_ROWS)).drop_columns([_ORDER])
    return Sample(found, count() / max(found.num_rows, 1))


def _is_nan(column: pa.Array) -> pa.Array:
    return pc.is_nan(column) if pa.types.is_floating(column.type) else pa.array(np.zeros(len(column), bool))


def propose_feature(facts: ColumnFacts) -> tuple[Feature | None, str]:
    """Return the feature proposed for a column, or None, and the reason."""
    if (refusal := refusal_of_name(facts.name)) is not None:
        return None, f"left out: its name {refusal}"
    if not facts.rows:
        return None, "left out: it has no value"
    kind = facts.type
    has_distinct = (
        IntegralType | FractionalType | StringType | BooleanType | DateType | TimestampType | TimestampNTZType
    )
    if isinstance(kind, has_distinct) and facts.distinct <= 1:
        return None, "left out: it has the same value everywhere"
    if len(facts.order) > 1 and isinstance(kind, StringType | IntegralType):
        return Ordinal(facts.name, order=facts.order), f"ordinal, of {len(facts.order)} values in the table's order"
    if isinstance(kind, DateType | TimestampType | TimestampNTZType):
        return Date(facts.name, clip=RANGE), "date, as a number of days"
    if isinstance(kind, StringType):
        return _propose_string(facts)
    if isinstance(kind, BooleanType):
        return Categorical(facts.name), "categorical: it is true or false"
    if isinstance(kind, NumericType):
        return _propose_number(facts)
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, StringType | IntegralType | BooleanType):
        length = min(max(int(facts.elements or 1), 1), LONGEST_LIST)
        return MultiValued(facts.name, max_length=length), f"multi-valued, of the last {length} elements"
    if isinstance(kind, ArrayType) and facts.size:
        return Vector(facts.name, size=facts.size), f"vector, of {facts.size} numbers"
    return _propose_vector(facts)


def _propose_number(facts: ColumnFacts) -> tuple[Feature | None, str]:
    is_whole = isinstance(facts.type, IntegralType)
    if is_whole and facts.distinct <= MOST_CODES:
        return Categorical(facts.name), f"categorical: it has {facts.distinct} different whole numbers only"
    if is_whole and IDENTIFIER_NAME.search(facts.name):
        return _propose_token(facts)
    if (facts.minimum or 0) >= 0 and (facts.skewness or 0) >= LEAST_SKEWNESS_OF_LOGARITHM:
        return Numeric(facts.name, log=True, clip=RANGE), "numeric, as logarithms: it is skewed"
    return Numeric(facts.name, clip=RANGE), "numeric"


def _propose_vector(facts: ColumnFacts) -> tuple[Feature | None, str]:
    kind, size = facts.type, facts.size or 0
    # The greatest index was measured only for maps with whole numbers as keys.
    if isinstance(kind, MapType) and isinstance(kind.valueType, NumericType) and (facts.minimum or 0) >= 0:
        size = int(facts.maximum) + 1 if facts.maximum is not None else 0
    if size:
        return Sparse(facts.name, size=size), f"sparse, of {size} columns"
    return None, f"left out: no feature takes the type {kind.simpleString()}"


def _propose_string(facts: ColumnFacts) -> tuple[Feature | None, str]:
    orders = orders_of_dates(facts)
    if len(orders) == 1:
        others = facts.rows - facts.empty - facts.dates[orders[0]]
        missing = f"; {others} other values are missing ones" if others else ""
        return Date(
            facts.name, order=orders[0], clip=RANGE
        ), f"date, as a number of days, written in the order {orders[0]}{missing}"
    feature, reason = _propose_text(facts)
    if are_amounts(facts):
        return feature, f"{reason}; its texts are numbers with a currency, a unit or thousands: make numbers of them"
    return feature, reason + (ambiguous_dates(facts.name) if orders else "")


def are_amounts(facts: ColumnFacts) -> bool:
    """Return whether nearly all texts of a column are numbers with a currency, a unit, or separators of thousands."""
    present = facts.rows - facts.empty
    return present > 0 and facts.amounts >= LEAST_SHARE_OF_FORM * present


def orders_of_dates(facts: ColumnFacts) -> list[DateOrder]:
    """Return the orders in which nearly all texts of a column are dates: several if the days do not tell them apart."""
    least = LEAST_SHARE_OF_FORM * (facts.rows - facts.empty)
    found = {order: rows for order, rows in facts.dates.items() if rows >= least}
    return [order for order, rows in found.items() if rows == max(found.values())]


def ambiguous_dates(name: str) -> str:
    """Return the end of a finding's sentence on texts that are dates in two orders."""
    return (
        f"; its values are dates whose day and month cannot be told apart: give the feature '{name}' the kind date and "
        f"the order dmy or mdy"
    )


def _propose_text(facts: ColumnFacts) -> tuple[Feature | None, str]:
    words = int(facts.elements or 1)
    if words >= LEAST_WORDS_OF_TEXT and facts.distinct >= LEAST_SHARE_OF_DISTINCT_TEXTS * facts.rows:
        length = min(words, LONGEST_LIST)
        return Text(facts.name, max_length=length), f"text, of the first {length} words"
    return _propose_token(facts)


def _propose_token(facts: ColumnFacts) -> tuple[Feature | None, str]:
    if facts.distinct > MOST_CODES and facts.distinct > MOST_SHARE_OF_DISTINCT_TOKENS * facts.rows:
        return None, f"left out: its {facts.distinct} different values identify single rows"
    if facts.distinct > MOST_VOCABULARY:
        buckets = 1 << (facts.distinct - 1).bit_length()
        return Categorical(facts.name, hash_buckets=buckets), f"categorical, hashed: it has {facts.distinct} values"
    return Categorical(facts.name), f"categorical, of {facts.distinct} different values"


def propose_label(facts: ColumnFacts, values: Mapping[str, int] | None = None) -> Label:
    """Return the label proposed for a column.

    An ordered categorical of more than two values makes it ``ordinal``, two values ``binary``, arrays ``multi_label``;
    fractions, and more than 50 different whole numbers, ``numeric``; everything else ``multi_class``.

    Args:
        facts: Measurements of the column.
        values: Its values as text with their rows, if there are two. A value that says yes is the positive one
            (``yes``, ``true``, ``1`` and the like), else the higher one if they have an order, else the rarer one.

    Raises:
        FeatureSpecError: The column cannot be learnt.
    """
    kind = facts.type
    if not facts.rows:
        raise FeatureSpecError(f"label '{facts.name}' has no value in any row; choose another column")
    if isinstance(kind, BooleanType):
        return Label(facts.name)
    if len(facts.order) > 2 and isinstance(kind, StringType | IntegralType):
        return Label(facts.name, "ordinal", classes=facts.order)
    is_number = isinstance(kind, NumericType)
    if is_number and facts.distinct <= 2 and facts.minimum in (0, 1) and facts.maximum == 1:
        return Label(facts.name)
    if values is not None and len(values) == 2 and (is_number or isinstance(kind, StringType)):
        yes = [value for value in values if (float(value) == 1 if is_number else value.strip().lower() in _YES)]
        rarer = min(values, key=lambda value: (values[value], value))
        other = facts.order[-1] if set(facts.order) == set(values) else rarer
        return Label(facts.name, positive=yes[0] if len(yes) == 1 else other)
    if isinstance(kind, FractionalType) or (isinstance(kind, IntegralType) and facts.distinct > MOST_CODES):
        return Label(facts.name, "numeric")
    if isinstance(kind, StringType | IntegralType):
        # Whole numbers from 0 on are class numbers already; the number of distinct ones is approximate.
        classes = int(facts.maximum) + 1 if facts.minimum == 0 and facts.maximum is not None else 0
        is_numbered = classes > 0 and facts.distinct >= 0.9 * classes
        return Label(facts.name, "multi_class", classes=classes if is_numbered else None)
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, StringType | IntegralType):
        return Label(facts.name, "multi_label")
    raise FeatureSpecError(
        f"label '{facts.name}' has type {kind.simpleString()}; a label is a number, a class (text or whole number), "
        f"true or false, or an array of classes: convert the column to one of these"
    )


def reason_of_label(label: Label, facts: ColumnFacts) -> str:
    """Return the kind of a proposed label; of ratings, which might be numbers too, with the way to change it."""
    if label.order is not None:
        more = " < …" if len(label.order) > _SHOWN_VALUES else ""
        return f"ordinal, of classes in the table's order: {' < '.join(label.order[:_SHOWN_VALUES])}{more}"
    if label.kind != "multi_class" or not isinstance(facts.type, IntegralType):
        return label.kind
    return (
        f"multi_class: it has {facts.distinct} different whole numbers; if they are amounts or ratings, give "
        f"{{'name': '{label.name}', 'kind': 'numeric'}} as label, or kind ordinal to learn their order"
    )


def numbers_in_order(df: DataFrame | MemorySource, name: str) -> tuple[str, ...] | None:
    """Return the values of a column of whole numbers as text, the lowest first; None for other columns, and of many."""
    if not isinstance(df.schema[name].dataType, IntegralType):
        return None
    if isinstance(df, MemorySource):
        values = pc.unique(df.column(name).drop_null()).to_pylist()
    else:
        column = quoted(name)
        found = df.select(column.alias("value")).where(column.isNotNull()).distinct().limit(MOST_CODES + 1).collect()
        values = [row["value"] for row in found]
    return tuple(map(str, sorted(values))) if len(values) <= MOST_CODES else None


def _two_values(df: DataFrame | MemorySource, facts: ColumnFacts) -> Mapping[str, int] | None:
    """Return the two values of a column as text with their rows; None if it has not two."""
    # The number of distinct values is approximate.
    if facts.distinct > 4 or not isinstance(facts.type, StringType | NumericType):
        return None
    if isinstance(df, MemorySource):
        found = Counter(_texts(df.column(facts.name).drop_null()))
        return found if len(found) == 2 else None
    column = quoted(facts.name)
    counted = df.where(column.isNotNull()).groupBy(column.cast("string").alias("value")).count().limit(3).collect()
    return {row["value"]: row["count"] for row in counted} if len(counted) == 2 else None


def _texts(values: pa.Array) -> list[str]:
    """Return numbers and texts as the texts that Spark makes of them."""
    if not pa.types.is_floating(values.type):
        return [f"{value:f}" if isinstance(value, Decimal) else str(value) for value in values.to_pylist()]
    return [_text_of_fraction(str(value)) for value in values.to_numpy(zero_copy_only=False) + 0]  # -0.0 becomes 0.0


def _text_of_fraction(shortest: str) -> str:
    """Return the text of Java for a fraction, given the one of Python."""
    number = float(shortest)
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    if number == 0 or 1e-3 <= abs(number) < 1e7:
        return shortest
    digits, exponent = f"{Decimal(shortest).normalize():E}".split("E")
    return f"{digits if '.' in digits else digits + '.0'}E{int(exponent)}"


def _find_key(df: DataFrame | MemorySource, facts: Mapping[str, ColumnFacts], label: str) -> str | None:
    """Return a column whose values identify the rows, such as ``order_id``; None if there is none."""
    names = likely_keys(fact for fact in _nearly_unique(facts) if fact.name != label)
    if names:
        if isinstance(df, MemorySource):
            counts: Any = (df.rows.num_rows, *(pc.count_distinct(df.rows[name]).as_py() for name in names))
        else:
            counts = df.agg(F.count(F.lit(1)), *(F.count_distinct(quoted(name)) for name in names)).first()
        for name, distinct in zip(names, counts[1:], strict=True):
            if distinct == counts[0]:
                _LOGGER.info("column %s: the key: it has another value in every row", name)
                return name
    return None


def _without_key(facts: Mapping[str, ColumnFacts], label: str) -> str:
    likely = [fact for fact in _nearly_unique(facts) if fact.name != label]
    names = likely_keys(likely)
    features = [fact.name for fact in likely if fact.name not in names]
    return "no single column identifies the rows; give the columns that do as keys" + (
        f" (the values of {features} hardly repeat, but a model can learn from them)" if features else ""
    )


def _nearly_unique(facts: Mapping[str, ColumnFacts]) -> list[ColumnFacts]:
    # The approximate count is off by up to a tenth, so likely columns are counted exactly.
    least = 0.9 * max(fact.rows for fact in facts.values())
    return [
        fact for fact in facts.values() if isinstance(fact.type, StringType | IntegralType) and fact.distinct >= least
    ]


def likely_keys(unique: Iterable[ColumnFacts]) -> list[str]:
    """Return the columns of different values that are keys, not features, those named like identifiers first.

    A text or an amount may be different in every row, too, and is lost to the model as a key. Without the name of an
    identifier, only tokens that identify single rows are keys.
    """
    named = {fact.name: bool(IDENTIFIER_NAME.search(fact.name)) for fact in unique}
    tokens = {fact.name for fact in unique if isinstance(fact.type, StringType) and _propose_string(fact)[0] is None}
    return sorted((name for name in named if named[name] or name in tokens), key=lambda name: not named[name])
