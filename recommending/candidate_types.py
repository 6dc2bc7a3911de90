"""Candidates as the table of the training has them: the tokens of models are texts, and may be whole numbers there."""

import re
from collections.abc import Iterable

import pyarrow as pa

from mirrorspark.data_pipelines.features import FittedFeatures
from mirrorspark.scoring.input import FeatureInputs, token_family

_WHOLE = re.compile(r"u?int\d+")
_TEXT, _WHOLE_NUMBER = "string", "bigint"


def candidate_type(features: FittedFeatures) -> str:
    """Return Spark's type of the candidates of a training: ``bigint`` if they were whole numbers, else ``string``."""
    if not _WHOLE.search(_trained_type(features)):
        return _TEXT
    # A table of items, whose keys are candidates, too, may have them as texts, and numbers may have too many digits.
    tokens = features.vocabulary(features.spec.candidate).tokens
    try:
        is_whole = tokens.cast(pa.int64()).cast(pa.string()).equals(tokens)
    except pa.ArrowInvalid:
        return _TEXT
    return _WHOLE_NUMBER if is_whole else _TEXT


def common_type(types: Iterable[str]) -> str:
    """Return Spark's type for the candidates of several models: whole numbers if they are that in all."""
    return _TEXT if _TEXT in set(types) else _WHOLE_NUMBER


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
