"""The forms of features: the raw columns that a kind is read from, and the input that it becomes.

Conventions that every part shares:

* ids: 0 is missing or padding, 1 is out of vocabulary; vocabularies, hash buckets and quantile buckets start at 2;
* an empty string is missing, exactly like null; a NaN is missing, exactly like a null number.

A new kind of feature is a dataclass in a file of this folder with its ``form`` and its ``raw`` columns, a line in
:data:`data_pipelines.features.kinds.groups.Feature`, and one in each of the tables of
:mod:`data_pipelines.features.raw_columns` (read it), :mod:`data_pipelines.features.transform` (encode it) and
:mod:`models.serving.preprocessing` (encode it in a graph).
Blocks, readers and models depend only on the form and need no change, unless the form is new, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

MISSING_ID = 0
OUT_OF_VOCABULARY_ID = 1
FIRST_VOCABULARY_ID = 2
UNBOUNDED = 2**31 - 1

Form = Literal["value", "id", "ids", "sparse", "vector"]
"""The model's input for a feature: ``value`` float32 ``[batch]``, ``id`` int64 ``[batch]``, ``ids`` int64 ``[batch,
max_length]`` padded with 0 on the right, ``sparse`` a sparse float32 ``[batch, size]``, ``vector`` float32 ``[batch,
size]``.
"""

WIDE_FORMS: frozenset[Form] = frozenset({"sparse", "vector"})
"""The forms of many numbers per row, which the baseline of boosted trees does not take."""

RawForm = Literal["number", "token", "tokens", "date", "times", "indices", "values", "bytes"]
"""The exported model's input for a raw column: ``number`` float64 ``[batch]``, NaN for missing; ``token`` string
``[batch]`` and ``tokens`` string ``[batch, any]``, ``""`` for missing; ``date`` string ``[batch]``, the text of a date,
``""`` for missing; ``times`` int64 ``[batch, any]``, together with tokens;
``indices`` int64 ``[batch, any]``, negative for padding, together with ``values`` float64 ``[batch, any]``, which come
alone for a vector, NaN for missing; ``bytes`` string ``[batch]`` of any bytes, ``""`` for missing.
"""


@dataclass(frozen=True)
class Column:
    """The name that all features have: of the column and of the model's input. Most are read from that column alone."""

    raw_form: ClassVar[RawForm]
    name: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table that the feature is read from."""
        return (self.name,)

    @property
    def raw(self) -> Mapping[str, RawForm]:
        """The raw columns of the exported model, of a text or image to embed those of a graph with the encoder."""
        return {self.name: self.raw_form}
