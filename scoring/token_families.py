"""Tokens keep the family of types that the model was trained with: ``true`` is no ``1``, though files store it so."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import pyarrow as pa

from data_pipelines.feature_kinds import Feature, RawForm
from data_pipelines.raw_columns import ColumnError

TokenFamily = Literal["boolean", "integer", "string"]

_TOKEN_FORMS: frozenset[RawForm] = frozenset({"token", "tokens"})
_LIST = re.compile(r"(?:large_)?list<\w+: (?P<element>.+?)(?: not null)?>")
_FAMILIES: Mapping[str, TokenFamily] = {"bool": "boolean", "string": "string", "large_string": "string"}
_ONE: Mapping[TokenFamily, str] = {"boolean": "a boolean", "integer": "an integer", "string": "a string"}
_SQL_TYPES: Mapping[TokenFamily, str] = {"boolean": "BOOLEAN", "integer": "BIGINT", "string": "STRING"}


def token_family(type_text: str) -> TokenFamily | None:
    """Return the family of a token's Arrow type, given as Arrow writes it, or of the elements of a list of tokens.

    None is no token, or a column of nothing but null.
    """
    in_list = _LIST.fullmatch(type_text)
    element = in_list["element"] if in_list else type_text
    return "integer" if re.fullmatch(r"u?int\d+", element) else _FAMILIES.get(element)


def trained_families(inputs: Sequence[Feature], column_types: Mapping[str, str]) -> dict[str, TokenFamily]:
    """Return the family of each column of tokens, as far as ``column_types`` (that of the fitted features) tells."""
    names = [name for feature in inputs for name, form in feature.raw.items() if form in _TOKEN_FORMS]
    families = {name: token_family(column_types[name]) for name in names if name in column_types}
    return {name: family for name, family in families.items() if family is not None}


def check_token_families(schema: pa.Schema, inputs: Sequence[Feature], column_types: Mapping[str, str]) -> None:
    """Refuse a column whose tokens are written otherwise than those of the training rows were.

    Args:
        schema: Columns to score, those of ``inputs`` among them.
        inputs: The model's inputs.
        column_types: What the fitted features have recorded; nothing is checked of columns that are not there.

    Raises:
        ColumnError: Its tokens would all be out of vocabulary, or other ones, and nothing else would show it.
    """
    for name, trained in trained_families(inputs, column_types).items():
        index = schema.get_field_index(name)
        given_type = str(schema.field(index).type) if index >= 0 else ""
        given = token_family(given_type)
        if given not in (None, trained):
            raise ColumnError(
                f"column '{name}' has type {given_type}, the model was trained with "
                f"{column_types[name]}: as tokens {_ONE[given]} and {_ONE[trained]} differ (true is no 1, and 7 no "
                f"07); make it what it was, for example with CAST to {_SQL_TYPES[trained]}"
            )
