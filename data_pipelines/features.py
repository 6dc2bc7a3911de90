"""The feature specification: what each column means to the model, as plain data.

One specification drives conversion, training, the exported model and scoring. It holds no data of its own: what
Spark learns from the rows (vocabularies, means, quantiles) lives in :mod:`data_pipelines.fitted`.

Conventions that every part shares:

* ids: 0 is missing or padding, 1 is out of vocabulary; vocabularies, hash buckets and quantile buckets start at 2;
* an empty string is missing, exactly like null; a NaN is missing, exactly like a null number.

A new kind of feature is a dataclass here that says its ``form`` and its ``raw`` columns, a line in each of the tables
of :mod:`data_pipelines.transform` (read it, encode it) and one in that of :mod:`models.preprocessing`. Blocks, readers
and models go by the form and need no change.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from data_pipelines.text import DEFAULT_SEPARATORS, SeparatorPatternError, spelled_out

if TYPE_CHECKING:  # a spec needs no Spark
    from pyspark.sql import DataFrame

MISSING_ID = 0
OUT_OF_VOCABULARY_ID = 1
FIRST_VOCABULARY_ID = 2
UNBOUNDED = 2**31 - 1

# Names become file names (vocabularies), inputs of a SavedModel and parts of SQL; this is what all of them take.
COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Truncate = Literal["head", "tail"]
LabelKind = Literal["binary", "candidate", "multi_class", "multi_label"]

Form = Literal["value", "id", "ids", "sparse"]
"""What a feature is to the model: ``value`` float32 ``[batch]``, ``id`` int64 ``[batch]``, ``ids`` int64 ``[batch,
max_length]`` padded with 0 on the right, ``sparse`` a sparse float32 ``[batch, size]``."""

RawForm = Literal["number", "token", "tokens", "times", "indices", "values"]
"""What a raw column is to the exported model: ``number`` float64 ``[batch]``, NaN for missing; ``token`` string
``[batch]`` and ``tokens`` string ``[batch, any]``, ``""`` for missing; ``times`` int64 ``[batch, any]`` beside
tokens; ``indices`` int64 ``[batch, any]``, negative for padding, and ``values`` float64 ``[batch, any]`` beside it."""


class FeatureSpecError(ValueError):
    """A feature specification that cannot mean anything; the message names the feature and the mend."""


@dataclass(frozen=True)
class _Column:
    """What all features share: a name, which is that of a column and of the model's input."""

    name: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table that the feature is read from."""
        return (self.name,)


@dataclass(frozen=True)
class Numeric(_Column):
    """A number; becomes float32 ``[batch]``: clipped, then its logarithm taken, then imputed, then standardised.

    Attributes:
        name: Column of the table, and name of the model's input.
        impute: What stands in for a missing value: the mean of the training rows (after clip and log), or a number
            in the column's own units.
        standardise: Subtract the mean and divide by the standard deviation of the training rows.
        clip: Lowest and highest value; what lies outside becomes the bound. None is no bound on that side.
        log: Take the logarithm ``sign(x) * log(1 + |x|)``, which negative numbers and 0 have too.
    """

    kind: ClassVar[Literal["numeric"]] = "numeric"
    form: ClassVar[Literal["value"]] = "value"
    impute: float | Literal["mean"] = "mean"
    standardise: bool = True
    clip: tuple[float | None, float | None] | None = None
    log: bool = False

    def __post_init__(self) -> None:
        if self.impute != "mean" and not _is_finite(self.impute):
            raise FeatureSpecError(f"feature '{self.name}': impute {self.impute!r} is unknown; use mean or a number")
        for option in ("standardise", "log"):
            _check_switch(self.name, option, getattr(self, option))
        if self.clip is not None:
            _check_bounds(self.name, self.clip)

    @property
    def raw(self) -> Mapping[str, RawForm]:
        """The raw columns of the exported model."""
        return {self.name: "number"}


@dataclass(frozen=True)
class Bucketed(_Column):
    """A number by its rank; becomes int64 ids ``[batch]``: 2 for the lowest of ``buckets`` equal shares of the rows.

    A value on a boundary belongs to the upper bucket. Where many rows have the same value there are fewer buckets.

    Attributes:
        name: Column of the table, and name of the model's input.
        buckets: How many equal shares of the training rows to make.
    """

    kind: ClassVar[Literal["bucketed"]] = "bucketed"
    form: ClassVar[Literal["id"]] = "id"
    buckets: int = 10

    def __post_init__(self) -> None:
        _check_count(self.name, "buckets", self.buckets, least=2)

    @property
    def raw(self) -> Mapping[str, RawForm]:
        """The raw columns of the exported model."""
        return {self.name: "number"}


@dataclass(frozen=True)
class Categorical(_Column):
    """One token per row; becomes int64 ids ``[batch]``.

    Attributes:
        name: Column of the table, and name of the model's input. Integers are read as
            their decimal text, booleans as ``true`` and ``false``.
        min_count: Rarer tokens of the training rows are out of vocabulary.
        max_size: Keep at most this many tokens, the most frequent first.
        hash_buckets: Learn no vocabulary; a token's id is 2 plus its hash modulo this number. The hash is FarmHash's
            Fingerprint64, as in ``tf.strings.to_hash_bucket_fast``; tokens that meet in a bucket share its id.
    """

    kind: ClassVar[Literal["categorical"]] = "categorical"
    form: ClassVar[Literal["id"]] = "id"
    min_count: int = 1
    max_size: int | None = None
    hash_buckets: int | None = None

    def __post_init__(self) -> None:
        _check_ids(self)

    @property
    def raw(self) -> Mapping[str, RawForm]:
        """The raw columns of the exported model."""
        return {self.name: "token"}


@dataclass(frozen=True)
class MultiValued(_Column):
    """A list of tokens per row, cut to a length; becomes int64 ids ``[batch, max_length]``, padded with 0 on the right.

    Attributes:
        name: Column of the table (an array), and name of the model's input.
        max_length: Tokens kept per row.
        truncate: Which end of a longer list is cut away: ``head`` keeps the last tokens, ``tail`` the first.
        vocabulary_of: Use the ids of this categorical feature instead of one's own.
        min_count: As for a categorical feature, counted over tokens.
        max_size: As for a categorical feature.
        hash_buckets: As for a categorical feature.
    """

    kind: ClassVar[Literal["multi_valued"]] = "multi_valued"
    form: ClassVar[Literal["ids"]] = "ids"
    max_length: int
    truncate: Truncate = "head"
    vocabulary_of: str | None = None
    min_count: int = 1
    max_size: int | None = None
    hash_buckets: int | None = None

    def __post_init__(self) -> None:
        _check_ids(self)
        _check_count(self.name, "max_length", self.max_length)
        _check_truncate(self.name, self.truncate)

    @property
    def raw(self) -> Mapping[str, RawForm]:
        """The raw columns of the exported model."""
        return {self.name: "tokens"}


@dataclass(frozen=True)
class Sequence(_Column):
    """Tokens with the times they happened at; becomes int64 ids ``[batch, max_length]``, oldest first, 0 on the right.

    The most recent ones are kept, whatever order the lists come in; tokens of equal time keep the order they have. A
    token without a time counts as the oldest.

    Attributes:
        name: Column of the tokens (an array), and name of the model's input.
        time: Column of their times, an array of the same length: timestamps, dates or whole numbers.
        max_length: Tokens kept per row.
        vocabulary_of: Use the ids of this categorical feature instead of one's own.
        min_count: As for a categorical feature, counted over tokens.
        max_size: As for a categorical feature.
        hash_buckets: As for a categorical feature.
    """

    kind: ClassVar[Literal["sequence"]] = "sequence"
    form: ClassVar[Literal["ids"]] = "ids"
    # In time order the head is what is oldest.
    truncate: ClassVar[Truncate] = "head"
    time: str
    max_length: int
    vocabulary_of: str | None = None
    min_count: int = 1
    max_size: int | None = None
    hash_buckets: int | None = None

    def __post_init__(self) -> None:
        _check_ids(self)
        _check_count(self.name, "max_length", self.max_length)

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
        pattern: Regular expression (RE2) of what stands between tokens; see :func:`data_pipelines.text.spelled_out`.
        truncate: Which end of a longer text is cut away: ``tail`` keeps the first tokens, ``head`` the last.
        min_count: As for a categorical feature, counted over tokens.
        max_size: As for a categorical feature.
        hash_buckets: As for a categorical feature.
    """

    kind: ClassVar[Literal["text"]] = "text"
    form: ClassVar[Literal["ids"]] = "ids"
    max_length: int
    pattern: str = DEFAULT_SEPARATORS
    truncate: Truncate = "tail"
    min_count: int = 1
    max_size: int | None = None
    hash_buckets: int | None = None

    def __post_init__(self) -> None:
        _check_ids(self)
        _check_count(self.name, "max_length", self.max_length)
        _check_truncate(self.name, self.truncate)
        try:
            spelled_out(self.pattern)
        except SeparatorPatternError as error:
            raise FeatureSpecError(f"feature '{self.name}': {error}") from error

    @property
    def raw(self) -> Mapping[str, RawForm]:
        """The raw columns of the exported model."""
        return {self.name: "token"}


@dataclass(frozen=True)
class Sparse(_Column):
    """A long vector that is zero nearly everywhere; becomes a sparse float32 ``[batch, size]`` and is never densified.

    Stored as compressed sparse rows, by rising index; repeated indices stay, and add up in a product. A null or NaN
    value is missing: its entry is left out.

    Attributes:
        name: Column of the table, and name of the model's input: a Spark ML vector, or a map from whole numbers to
            numbers. With ``indices`` and ``values`` it is no column.
        size: Length of the vector; an index outside of it is refused.
        indices: Column of the indices, an array of whole numbers.
        values: Column of the values, an array of numbers of the same length.
    """

    kind: ClassVar[Literal["sparse"]] = "sparse"
    form: ClassVar[Literal["sparse"]] = "sparse"
    size: int
    indices: str | None = None
    values: str | None = None

    def __post_init__(self) -> None:
        _check_count(self.name, "size", self.size)
        if (self.indices is None) != (self.values is None):
            raise FeatureSpecError(f"feature '{self.name}': give both indices and values, or neither for one column")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table that the feature is read from."""
        return (self.name,) if self.indices is None or self.values is None else (self.indices, self.values)

    @property
    def raw(self) -> Mapping[str, RawForm]:
        """The raw columns of the exported model: the columns of the table, or one column taken apart."""
        if self.indices is None or self.values is None:
            return {f"{self.name}_indices": "indices", f"{self.name}_values": "values"}
        return {self.indices: "indices", self.values: "values"}

    @property
    def parts(self) -> tuple[str, str, str]:
        """Names of the tensors that stand for the feature where none can be sparse: indices, values, row lengths."""
        return (f"{self.name}_indices", f"{self.name}_values", f"{self.name}_row_lengths")


Feature = Numeric | Bucketed | Categorical | MultiValued | Sequence | Text | Sparse
MeasuredFeature = Numeric | Bucketed
TokenFeature = Categorical | MultiValued | Sequence | Text
ListFeature = MultiValued | Sequence | Text
_KINDS: Mapping[str, type[Feature]] = {kind.kind: kind for kind in get_args(Feature)}


@dataclass(frozen=True)
class Label:
    """What the model learns.

    Attributes:
        name: Column of the table.
        kind: ``binary`` (0 or 1, becomes float32 ``[batch]``), ``candidate`` (the label is the categorical feature
            of that name, which the query tower retrieves), ``multi_class`` (one of several classes, becomes int64
            ``[batch]`` from 0) or ``multi_label`` (a list of classes, becomes float32 ``[batch, classes]`` of zeros
            and ones).
        classes: Number of classes where the column holds class numbers from 0 on. Without it the column holds tokens,
            and their classes are learnt from the training rows, the most frequent first.
    """

    name: str
    kind: LabelKind = "binary"
    classes: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(LabelKind):
            raise FeatureSpecError(
                f"label '{self.name}': kind '{self.kind}' is unknown; use {' or '.join(get_args(LabelKind))}"
            )
        if self.classes is not None:
            if self.kind not in ("multi_class", "multi_label"):
                raise FeatureSpecError(
                    f"label '{self.name}': classes is {self.classes!r}, but a label of kind {self.kind} has none; "
                    f"leave it out"
                )
            _check_count(self.name, "classes", self.classes, subject="label")


@dataclass(frozen=True)
class FeatureSpec:
    """Every column that the model sees, in the order of the model's inputs.

    Attributes:
        features: The model's inputs.
        label: What it learns.
        keys: Columns that name a row; they pass through to the scores unchanged and never reach the model.
        weight: Optional column of per-row training weights.
        exclude: Optional list column of candidates that must not be recommended for the row (what a user has seen
            already); for a label of kind ``candidate`` only. It is an input of its own: no feature, key or weight.
    """

    features: tuple[Feature, ...]
    label: Label
    keys: tuple[str, ...]
    weight: str | None = None
    exclude: str | None = None
    _by_name: Mapping[str, Feature] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name = {feature.name: feature for feature in self.features}
        object.__setattr__(self, "_by_name", by_name)
        if not self.features:
            raise FeatureSpecError("a feature spec needs at least one feature")
        if len(by_name) < len(self.features):
            names = [feature.name for feature in self.features]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise FeatureSpecError(f"feature {twice} is listed twice; keep one of each")
        if not self.keys:
            raise FeatureSpecError("a feature spec needs at least one key column, to name the scored rows")
        for name in (*by_name, *self.columns):
            if not (isinstance(name, str) and COLUMN_NAME.fullmatch(name)):
                raise FeatureSpecError(
                    f"column name {name!r} cannot be used; rename it to letters (A-Z), digits and underscores"
                )
        self._check_raw_columns()
        self._check_label()
        if self.exclude is not None and self.label.kind != "candidate":
            raise FeatureSpecError(
                f"exclude '{self.exclude}' needs a label of kind candidate; '{self.label.name}' is not"
            )
        # The exported model takes features and exclusions side by side, by name.
        taken = {name for feature in self.features for name in (*feature.columns, *feature.raw)}
        if self.exclude is not None and self.exclude in (*by_name, *taken, *self.keys, self.weight):
            raise FeatureSpecError(
                f"exclude '{self.exclude}' is also a feature, key or weight; give the table a column of its own for "
                f"it, for example {self.exclude} AS excluded"
            )
        for feature in self.token_features:
            owner = self.vocabulary_name(feature)
            if owner != feature.name and not isinstance(by_name.get(owner), Categorical):
                raise FeatureSpecError(
                    f"feature '{feature.name}': vocabulary_of '{owner}' is no categorical feature of this spec; "
                    f"use one of {[other.name for other in self.categorical]}"
                )

    def _check_raw_columns(self) -> None:
        """Two features may read one column (the times of two sequences), but not as two different things."""
        owners: dict[str, tuple[Feature, str]] = {}
        for feature in self.features:
            for name, form in feature.raw.items():
                owner, other = owners.setdefault(name, (feature, form))
                if other != form:
                    raise FeatureSpecError(
                        f"feature '{feature.name}' takes column '{name}' as {form}, '{owner.name}' as {other}; "
                        f"give the table a column of its own for one of them"
                    )
            for part in feature.parts if isinstance(feature, Sparse) else ():
                if part in (*self._by_name, self.exclude):
                    raise FeatureSpecError(
                        f"feature '{part}' has the name of a part of sparse feature '{feature.name}'; rename one"
                    )

    def _check_label(self) -> None:
        is_feature = self.label.name in self._by_name or any(self.label.name in f.columns for f in self.features)
        if self.label.kind != "candidate" and (is_feature or self.label.name in self.keys):
            raise FeatureSpecError(
                f"label '{self.label.name}' is also a feature or key; a model must not see its label"
            )
        if self.label.kind == "candidate" and not isinstance(self._by_name.get(self.label.name), Categorical):
            raise FeatureSpecError(
                f"label '{self.label.name}' of kind candidate must be a categorical feature of this spec; "
                f"use one of {[other.name for other in self.categorical]}"
            )
        if self.label.kind == "candidate" and self.candidate.hash_buckets is not None:
            raise FeatureSpecError(
                f"label '{self.label.name}' is hashed; a hash does not lead back to the token to recommend: leave out "
                f"hash_buckets"
            )

    def __getitem__(self, name: str) -> Feature:
        return self._by_name[name]

    def __iter__(self) -> Iterator[Feature]:
        return iter(self.features)

    @property
    def numeric(self) -> tuple[Numeric, ...]:
        """The numeric features, in order."""
        return tuple(feature for feature in self.features if isinstance(feature, Numeric))

    @property
    def bucketed(self) -> tuple[Bucketed, ...]:
        """The features that quantiles are learnt for, in order."""
        return tuple(feature for feature in self.features if isinstance(feature, Bucketed))

    @property
    def categorical(self) -> tuple[Categorical, ...]:
        """The categorical features, in order."""
        return tuple(feature for feature in self.features if isinstance(feature, Categorical))

    @property
    def token_features(self) -> tuple[TokenFeature, ...]:
        """The features whose tokens become ids: the categorical ones, then those of many tokens."""
        lists = (feature for feature in self.features if isinstance(feature, ListFeature))
        return (*self.categorical, *lists)

    @property
    def vocabulary_owners(self) -> tuple[TokenFeature, ...]:
        """What a vocabulary is learnt for: token features that neither hash nor share, and a label of tokens."""
        owners = (
            feature
            for feature in self.token_features
            if feature.hash_buckets is None and self.vocabulary_name(feature) == feature.name
        )
        return (*owners, *((self.label_tokens,) if self.label_tokens else ()))

    @property
    def label_tokens(self) -> Categorical | MultiValued | None:
        """The label as a feature whose vocabulary numbers its classes; None where the classes need no vocabulary."""
        if self.label.kind not in ("multi_class", "multi_label") or self.label.classes is not None:
            return None
        if self.label.kind == "multi_class":
            return Categorical(self.label.name)
        return MultiValued(self.label.name, max_length=UNBOUNDED)

    @property
    def query_features(self) -> tuple[Feature, ...]:
        """The features that are known when a row is scored: all but a label of kind ``candidate``."""
        return tuple(feature for feature in self.features if feature.name != self.label.name)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that conversion reads, each once: keys, features, label, weight, exclude."""
        read = (column for feature in self.features for column in feature.columns)
        names = [*self.keys, *read, self.label.name, self.weight, self.exclude]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @property
    def candidate(self) -> Categorical:
        """The categorical feature that is retrieved.

        Raises:
            FeatureSpecError: The label is not of kind ``candidate``.
        """
        feature = self._by_name.get(self.label.name)
        if self.label.kind != "candidate" or not isinstance(feature, Categorical):
            raise FeatureSpecError(
                f"label '{self.label.name}' is of kind {self.label.kind}: there is nothing to retrieve"
            )
        return feature

    @property
    def excluded(self) -> MultiValued | None:
        """The ``exclude`` column as a feature in the candidate's vocabulary, of any length."""
        if self.exclude is None:
            return None
        return MultiValued(self.exclude, max_length=UNBOUNDED, vocabulary_of=self.candidate.name)

    def vocabulary_name(self, feature: TokenFeature) -> str:
        """Return the name of the vocabulary, or of the hash buckets, that ``feature`` takes its ids from."""
        return getattr(feature, "vocabulary_of", None) or feature.name

    def hash_buckets(self, feature: TokenFeature) -> int | None:
        """Return how many buckets the tokens of ``feature`` are hashed into; None where it has a vocabulary."""
        owner = self._by_name.get(self.vocabulary_name(feature))
        return owner.hash_buckets if isinstance(owner, TokenFeature) else None

    def columns_not_allowed(self, columns: Iterable[str]) -> tuple[str, ...]:
        """Return those of ``columns`` that are no column of this spec: what a regulated model must not be given."""
        allowed = set(self.columns)
        return tuple(column for column in columns if column not in allowed)

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as YAML and JSON hold it; :meth:`from_dict` is the way back."""
        return {
            "features": {
                feature.name: {"kind": feature.kind}
                | {
                    key: list(value) if isinstance(value, tuple) else value
                    for key, value in dataclasses.asdict(feature).items()
                    if key != "name"
                }
                for feature in self.features
            },
            "label": dataclasses.asdict(self.label),
            "keys": list(self.keys),
            "weight": self.weight,
            "exclude": self.exclude,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "FeatureSpec":
        """Build a spec from its YAML form.

        Raises:
            FeatureSpecError: An unknown kind or option, a missing part, or parts that contradict each other.
        """
        parts = [knob.name for knob in dataclasses.fields(cls) if knob.init]
        unknown = sorted(set(data) - set(parts))
        if unknown:
            raise FeatureSpecError(f"feature spec has unknown parts {unknown}; use {parts}")
        missing = [part for part in ("features", "label", "keys") if not data.get(part)]
        if missing:
            raise FeatureSpecError(f"feature spec lacks {missing}; say what they are")
        features, label, keys = data["features"], data["label"], data["keys"]
        _check_mapping("features", features)
        return cls(
            features=tuple(_feature_from_dict(name, options) for name, options in features.items()),
            label=Label(label) if isinstance(label, str) else _build(Label, "label", label),
            keys=(keys,) if isinstance(keys, str) else tuple(keys),
            weight=data.get("weight"),
            exclude=data.get("exclude"),
        )

    @classmethod
    def infer(
        cls, df: "DataFrame", *, label: str, keys: str | Iterable[str] = (), exclude: Iterable[str] = ("split",)
    ) -> "FeatureSpec":
        """Propose a spec for the table ``df``; see :func:`data_pipelines.infer.infer_spec`."""
        from data_pipelines.infer import infer_spec  # needs Spark, which a spec does not

        return infer_spec(df, label=label, keys=keys, exclude=exclude)

    @property
    def hash(self) -> str:
        """Sixteen hex digits that change when anything in the spec does, the order of the features included."""
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()[:16]


def _feature_from_dict(name: str, options: Any) -> Feature:
    subject = f"feature '{name}'"
    _check_mapping(subject, options)
    kind = options.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise FeatureSpecError(f"{subject}: kind '{kind}' is unknown; use one of {sorted(_KINDS)}")
    # YAML has lists only.
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items() if key != "kind"}
    feature: Feature = _build(_KINDS[kind], subject, {"name": name} | given)
    return feature


def _build(kind: Any, subject: str, options: Any) -> Any:
    _check_mapping(subject, options)
    known = [knob.name for knob in dataclasses.fields(kind)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise FeatureSpecError(f"{subject}: option {unknown} is unknown; use {known}")
    try:
        return kind(**options)
    except TypeError as error:
        raise FeatureSpecError(f"{subject}: {error}") from error


def _check_mapping(subject: str, options: Any) -> None:
    if not isinstance(options, Mapping):
        raise FeatureSpecError(f"{subject} is {options!r}; give a mapping, for example {{kind: categorical}}")


def _check_ids(feature: TokenFeature) -> None:
    """Check how the tokens of ``feature`` get their ids: by a vocabulary of its own, one it shares, or a hash."""
    _check_count(feature.name, "min_count", feature.min_count)
    if feature.max_size is not None:
        _check_count(feature.name, "max_size", feature.max_size)
    if feature.hash_buckets is None:
        return
    _check_count(feature.name, "hash_buckets", feature.hash_buckets)
    if feature.min_count != 1 or feature.max_size is not None:
        raise FeatureSpecError(
            f"feature '{feature.name}': hash_buckets learns no vocabulary; leave out min_count and max_size"
        )
    if getattr(feature, "vocabulary_of", None) is not None:
        raise FeatureSpecError(
            f"feature '{feature.name}' has vocabulary_of and hash_buckets; leave one of them out (where the other "
            f"feature is hashed, so is this one)"
        )


def _check_truncate(name: str, truncate: str) -> None:
    if truncate not in get_args(Truncate):
        raise FeatureSpecError(
            f"feature '{name}': truncate '{truncate}' is unknown; use {' or '.join(get_args(Truncate))}"
        )


def _check_bounds(name: str, clip: Any) -> None:
    bounds = [bound for bound in clip if bound is not None] if isinstance(clip, tuple) and len(clip) == 2 else []
    if not bounds or not all(map(_is_finite, bounds)) or bounds != sorted(bounds):
        raise FeatureSpecError(
            f"feature '{name}': clip {clip!r} is no range; give the lowest and the highest value, for example [0, 100] "
            f"(null for no bound on one side)"
        )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_switch(name: str, option: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise FeatureSpecError(f"feature '{name}': {option} is {value!r}; use true or false")


def _check_count(name: str, option: str, value: Any, *, least: int = 1, subject: str = "feature") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise FeatureSpecError(f"{subject} '{name}': {option} is {value!r}; use a whole number from {least} on")
