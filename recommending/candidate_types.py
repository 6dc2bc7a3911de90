"""Candidates as the table of the training has them: the tokens of models are texts, and may be whole numbers there."""

import re
from collections.abc import Iterable, Mapping

import pyarrow as pa

from mirrorspark.data_pipelines.features import FittedFeatures
from mirrorspark.scoring.input import FeatureInputs, token_family

_WHOLE = re.compile(r"u?int\d+")
# Spark's types by Arrow's. A whole number of 64 bits without a sign may be too large for Spark.
_SPARK_TYPES: Mapping[str, str] = {
    "int8": "tinyint",
    "uint8": "smallint",
    "int16": "smallint",
    "uint16": "int",
    "int32": "int",
    "uint32": "bigint",
    "int64": "bigint",
}
_TEXT, _LARGEST = "string", "bigint"


def candidate_type(features: FittedFeatures) -> str:
    """Return Spark's type of the candidates in the table of the training; ``string`` if it is not recorded."""
    found = _WHOLE.search(_trained_type(features))
    type_ = _SPARK_TYPES.get(found[0]) if found else None
    if type_ is None:
        return _TEXT
    # A table of items, whose keys are candidates, too, may have them as texts.
    tokens = features.vocabulary(features.spec.candidate).tokens
    try:
        is_whole = tokens.cast(pa.int64()).cast(pa.string()).equals(tokens)
    except pa.ArrowInvalid:
        return _TEXT
    return type_ if is_whole else _TEXT


def common_type(types: Iterable[str]) -> str:
    """Return one of Spark's types for the candidates of several models: whole numbers if they are that in all."""
    found = set(types)
    return found.pop() if len(found) == 1 else _TEXT if _TEXT in found else _LARGEST


def as_tokens(features: FittedFeatures, table: pa.Table) -> pa.Table:
    """Return a table of candidates, its only column, in the model's texts or whole numbers.

    Raises:
        ColumnError: They are neither texts nor whole numbers, where the training had these.
    """
    candidate = features.spec.candidate
    families = {token_family(str(table.schema.field(0).type)), token_family(_trained_type(features))}
    if families == {"integer", "string"}:
        return table.cast(pa.schema([(candidate.name, pa.string())]))
    FeatureInputs((candidate,), features.column_types).check(table.schema)
    return table


def _trained_type(features: FittedFeatures) -> str:
    """Return the candidates' type in Arrow's notation; empty if it is not recorded."""
    return features.column_types.get(features.spec.candidate.name, "")
