"""The kinds of features, as plain data; those of labels are in :mod:`data_pipelines.features.label_kinds`.

Conventions that every part shares:

* ids: 0 is missing or padding, 1 is out of vocabulary; vocabularies, hash buckets and quantile buckets start at 2;
* an empty string is missing, exactly like null; a NaN is missing, exactly like a null number.

A new kind of feature is a dataclass here with its ``form`` and its ``raw`` columns, and a line in each of the tables of
:mod:`data_pipelines.features.raw_columns` (read it), :mod:`data_pipelines.features.transform` (encode it) and
:mod:`models.serving.preprocessing` (encode it in a graph). Blocks, readers and models depend only on the form and need
no change, unless the form is new, too.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mirrorspark.data_pipelines.features.checks import FeatureSpecError as FeatureSpecError
from mirrorspark.data_pipelines.features.checks import (
    Truncate,
    check_boolean,
    check_bounds,
    check_count,
    check_encoder,
    check_ids,
    check_ngrams,
    check_order,
    check_target_encoding,
    check_truncate,
    is_finite,
)
from mirrorspark.data_pipelines.features.date_formats import DATE_ORDERS, DateOrder
from mirrorspark.data_pipelines.features.label_kinds import Label as Label
from mirrorspark.data_pipelines.features.label_kinds import LabelForm as LabelForm
from mirrorspark.data_pipelines.features.label_kinds import LabelKind as LabelKind
from mirrorspark.data_pipelines.features.text_rules import DEFAULT_SEPARATORS, SeparatorPatternError, spelled_out

MISSING_ID = 0
OUT_OF_VOCABULARY_ID = 1
FIRST_VOCABULARY_ID = 2
UNBOUNDED = 2**31 - 1

RANGE: Literal["range"] = "range"
"""The bounds of a number that are learnt from the training rows."""

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
class _Column:
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


@dataclass(frozen=True)
class Numeric(_Column):
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
class Bucketed(_Column):
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


@dataclass(frozen=True)
class Categorical(_Column):
    """One token per row; becomes int64 ids ``[batch]``.

    Attributes:
        name: Column of the table, and name of the model's input. Integers are read as
            their decimal text, booleans as ``true`` and ``false``.
        min_count: Rarer tokens of the training rows are out of vocabulary.
        max_size: Keep at most this many tokens, the most frequent first.
        hash_buckets: Learn no vocabulary; a token's id is 2 plus its hash modulo this number. The hash is FarmHash's
            Fingerprint64, as in ``tf.strings.to_hash_bucket_fast``; tokens in the same bucket share its id.
    """

    kind: ClassVar[Literal["categorical"]] = "categorical"
    form: ClassVar[Literal["id"]] = "id"
    raw_form: ClassVar[RawForm] = "token"
    min_count: int = 1
    max_size: int | None = None
    hash_buckets: int | None = None

    def __post_init__(self) -> None:
        check_ids(self)


@dataclass(frozen=True)
class MultiValued(_Column):
    """A list of tokens per row, cut to a length; becomes int64 ids ``[batch, max_length]``, padded with 0 on the right.

    Attributes:
        name: Column of the table (an array), and name of the model's input.
        max_length: Tokens kept per row.
        truncate: The end of a longer list that is cut away: ``head`` keeps the last tokens, ``tail`` the first.
        vocabulary_of: Use the ids of this categorical feature.
        min_count: See :class:`Categorical`; counted over tokens.
        max_size: See :class:`Categorical`.
        hash_buckets: See :class:`Categorical`.
    """

    kind: ClassVar[Literal["multi_valued"]] = "multi_valued"
    form: ClassVar[Literal["ids"]] = "ids"
    raw_form: ClassVar[RawForm] = "tokens"
    max_length: int
    truncate: Truncate = "head"
    vocabulary_of: str | None = None
    min_count: int = 1
    max_size: int | None = None
    hash_buckets: int | None = None

    def __post_init__(self) -> None:
        check_ids(self)
        check_count(self.name, "max_length", self.max_length)
        check_truncate(self.name, self.truncate)


@dataclass(frozen=True)
class Sequence(_Column):
    """Tokens with the times they happened at; becomes int64 ids ``[batch, max_length]``, oldest first, 0 on the right.

    The most recent tokens are kept, whatever the order of the lists; tokens of equal time keep their order. A token
    without a time counts as the oldest.

    Attributes:
        name: Column of the tokens (an array), and name of the model's input.
        time: Column of their times, an array of the same length: timestamps, dates or whole numbers.
        max_length: Tokens kept per row.
        vocabulary_of: Use the ids of this categorical feature.
        min_count: See :class:`Categorical`; counted over tokens.
        max_size: See :class:`Categorical`.
        hash_buckets: See :class:`Categorical`.
    """

    kind: ClassVar[Literal["sequence"]] = "sequence"
    form: ClassVar[Literal["ids"]] = "ids"
    # In time order the head is the oldest part.
    truncate: ClassVar[Truncate] = "head"
    time: str
    max_length: int
    vocabulary_of: str | None = None
    min_count: int = 1
    max_size: int | None = None
    hash_buckets: int | None = None

    def __post_init__(self) -> None:
        check_ids(self)
        check_count(self.name, "max_length", self.max_length)
        if self.time == self.name:
            raise FeatureSpecError(f"feature '{self.name}': time is its own column; name the column of the times")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table that the feature is read from."""
        return (self.name, self.time)

    @property
    def raw(self) -> Mapping[str, RawForm]:
        """The raw columns of the exported model."""
        return {self.name: "tokens", self.time: "times"}


@dataclass(frozen=True)
class Text(_Column):
    """A text, normalised (Unicode NFKC, case folded) and split into tokens; becomes int64 ids ``[batch, max_length]``.

    Attributes:
        name: Column of the table, and name of the model's input.
        max_length: Tokens kept per row.
        pattern: Regular expression (RE2) of separators; see :func:`data_pipelines.features.text_rules.spelled_out`.
        truncate: The end of a longer text that is cut away: ``tail`` keeps the first tokens, ``head`` the last.
        min_count: See :class:`Categorical`; counted over tokens.
        max_size: See :class:`Categorical`.
        hash_buckets: See :class:`Categorical`.
        ngrams: Fewest and most characters of the parts of words that become tokens in addition to the words, such as
            ``(3, 5)``, so that a word that training has not seen shares tokens with words that it has; needs
            ``hash_buckets``. Words and parts count for ``max_length``. See
            :func:`data_pipelines.features.text_rules.subwords`.
    """

    kind: ClassVar[Literal["text"]] = "text"
    form: ClassVar[Literal["ids"]] = "ids"
    raw_form: ClassVar[RawForm] = "token"
    max_length: int
    pattern: str = DEFAULT_SEPARATORS
    truncate: Truncate = "tail"
    min_count: int = 1
    max_size: int | None = None
    hash_buckets: int | None = None
    ngrams: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_ids(self)
        check_count(self.name, "max_length", self.max_length)
        check_truncate(self.name, self.truncate)
        if self.ngrams is not None:
            check_ngrams(self.name, self.ngrams, self.hash_buckets)
        try:
            spelled_out(self.pattern)
        except SeparatorPatternError as error:
            raise FeatureSpecError(f"feature '{self.name}': {error}") from error


@dataclass(frozen=True)
class Sparse(_Column):
    """A long, mostly zero vector; becomes a sparse float32 ``[batch, size]`` and is never densified.

    It is stored as compressed sparse rows, by rising index; repeated indices are kept, and add up in a product. A null
    or NaN value is missing: its entry is left out.

    Attributes:
        name: Column of the table, and name of the model's input: a Spark ML vector, or a map from whole numbers to
            numbers. With ``indices`` and ``values`` there is no such column.
        size: Length of the vector; an index outside it is an error.
        indices: Column of the indices, an array of whole numbers.
        values: Column of the values, an array of numbers of the same length.
    """

    kind: ClassVar[Literal["sparse"]] = "sparse"
    form: ClassVar[Literal["sparse"]] = "sparse"
    size: int
    indices: str | None = None
    values: str | None = None

    def __post_init__(self) -> None:
        check_count(self.name, "size", self.size)
        if (self.indices is None) != (self.values is None):
            raise FeatureSpecError(f"feature '{self.name}': give both indices and values, or neither for one column")
        if self.indices is not None and self.indices == self.values:
            raise FeatureSpecError(
                f"feature '{self.name}': indices and values are both column '{self.indices}'; name one column for each"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table that the feature is read from."""
        return (self.name,) if self.indices is None or self.values is None else (self.indices, self.values)

    @property
    def raw(self) -> Mapping[str, RawForm]:
        """The raw columns of the exported model: the columns of the table, or the two parts of one column."""
        if self.indices is None or self.values is None:
            return {f"{self.name}_indices": "indices", f"{self.name}_values": "values"}
        return {self.indices: "indices", self.values: "values"}

    @property
    def parts(self) -> tuple[str, str, str]:
        """Names of the dense tensors that replace a sparse one: indices, values, row lengths."""
        return (f"{self.name}_indices", f"{self.name}_values", f"{self.name}_row_lengths")


@dataclass(frozen=True)
class Vector(_Column):
    """A list of numbers of fixed length, such as the embedding of a text; becomes float32 ``[batch, size]``.

    The numbers are used as they are. A missing vector (null, or an empty list) becomes zeros, and so does a missing
    number (null or NaN) in a vector.

    Attributes:
        name: Column of the table (an array of numbers), and name of the model's input.
        size: Length of the vectors; a list of another length is an error.
    """

    kind: ClassVar[Literal["vector"]] = "vector"
    form: ClassVar[Literal["vector"]] = "vector"
    raw_form: ClassVar[RawForm] = "values"
    size: int

    def __post_init__(self) -> None:
        check_count(self.name, "size", self.size)


@dataclass(frozen=True)
class TextEmbedding(_Column):
    """A text as the vector that an encoder gives it; becomes float32 ``[batch, size]``, zeros for a missing text.

    The encoder is frozen: a conversion computes the vectors once, and the exported model brings the encoder along.
    White space between words counts as one space; at the ends of a text it is ignored.

    Attributes:
        name: Column of the table (strings), and name of the model's input.
        encoder: Folder, file or URI of the encoder; see :func:`scoring.embedding.embed_text`.
        signature: Signature of a SavedModel, where it is not the usual one.
        model_output: The encoder's output that is the vector, if it has several.
        max_length: Most tokens of a text, for an encoder that takes token ids.
        size: Length of the vectors; 0 until a conversion records it.
        digest: Digest of the encoder's files; empty until a conversion records it. An encoder that differs from either
            is an error.
    """

    kind: ClassVar[Literal["text_embedding"]] = "text_embedding"
    form: ClassVar[Literal["vector"]] = "vector"
    raw_form: ClassVar[RawForm] = "token"
    encoder: str
    signature: str | None = None
    model_output: str | None = None
    max_length: int = 128
    size: int = 0
    digest: str = ""

    def __post_init__(self) -> None:
        check_encoder(self.name, self.encoder)
        # The tokens that begin and end a text count.
        check_count(self.name, "max_length", self.max_length, least=3)
        check_count(self.name, "size", self.size, least=0)


@dataclass(frozen=True)
class ImageEmbedding(_Column):
    """An image as the vector that an encoder gives it; becomes float32 ``[batch, size]``, zeros for a missing image.

    An image is the bytes of a JPEG or PNG, decoded and resized to the encoder's input (bilinear, pixels from 0 to 255)
    where the encoder runs. Its limits are checked by its header. Other attributes are as those of a text.

    Attributes:
        name: Column of the table (bytes), and name of the model's input.
        encoder: Folder, file or URI of an encoder that takes one array of images, ``[batch, height, width, channels]``
            or ``[batch, channels, height, width]``, and gives vectors ``[batch, size]``.
        max_bytes: Most bytes of an image.
        max_pixels: Most pixels of an image, its height times its width.
    """

    kind: ClassVar[Literal["image_embedding"]] = "image_embedding"
    form: ClassVar[Literal["vector"]] = "vector"
    raw_form: ClassVar[RawForm] = "bytes"
    encoder: str
    signature: str | None = None
    model_output: str | None = None
    max_bytes: int = 16 * 2**20
    max_pixels: int = 25_000_000
    size: int = 0
    digest: str = ""

    def __post_init__(self) -> None:
        check_encoder(self.name, self.encoder)
        for option, least in (("max_bytes", 1), ("max_pixels", 1), ("size", 0)):
            check_count(self.name, option, getattr(self, option), least=least)


EmbeddedFeature = TextEmbedding | ImageEmbedding
Feature = (
    Numeric
    | Ordinal
    | Date
    | TokenNumber
    | TargetEncoding
    | Bucketed
    | Categorical
    | MultiValued
    | Sequence
    | Text
    | Sparse
    | Vector
    | EmbeddedFeature
)
MeasuredFeature = Numeric | Bucketed
TokenFeature = Categorical | MultiValued | Sequence | Text
VocabularyOwner = TokenFeature | TargetEncoding
DerivedFeature = TokenNumber | TargetEncoding
"""Features that are named freely, of columns that other features usually read, too."""
ListFeature = MultiValued | Sequence | Text
VectorFeature = Vector | EmbeddedFeature


def repeated_names(names: Iterable[str]) -> list[str]:
    """Return the names, of columns, features or classes, that come more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)
