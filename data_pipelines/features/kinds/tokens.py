"""The kinds of features that are ids of tokens, as plain data: one token, lists of them, and texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mirrorspark.data_pipelines.features.kinds.checks import (
    FeatureSpecError,
    Truncate,
    check_count,
    check_ids,
    check_ngrams,
    check_truncate,
)
from mirrorspark.data_pipelines.features.kinds.forms import Column, RawForm
from mirrorspark.data_pipelines.features.text_rules import DEFAULT_SEPARATORS, SeparatorPatternError, spelled_out


@dataclass(frozen=True)
class Categorical(Column):
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
class MultiValued(Column):
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
class Sequence(Column):
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
class Text(Column):
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
