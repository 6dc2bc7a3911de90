"""The feature specification: what each column means to the model, as plain data.

One specification drives conversion, training, the exported model and scoring. It holds no data of its own: what
Spark learns from the rows (vocabularies, means) lives in :mod:`data_pipelines.fitted`.

Conventions that every part shares:

* ids: 0 is missing or padding, 1 is out of vocabulary, the vocabulary starts at 2;
* an empty string is missing, exactly like null; a NaN is missing, exactly like a null number.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

MISSING_ID = 0
OUT_OF_VOCABULARY_ID = 1
FIRST_VOCABULARY_ID = 2
UNBOUNDED = 2**31 - 1

# Names become file names (vocabularies), inputs of a SavedModel and parts of SQL; this is what all of them take.
_COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Truncate = Literal["head", "tail"]
LabelKind = Literal["binary", "candidate"]


class FeatureSpecError(ValueError):
    """A feature specification that cannot mean anything; the message names the feature and the mend."""


@dataclass(frozen=True)
class Numeric:
    """A number; becomes float32 ``[batch]``.

    Attributes:
        name: Column of the table, and name of the model's input.
        impute: What stands in for a missing value: the mean of the training rows, or a number.
        standardise: Subtract the mean and divide by the standard deviation of the training rows.
    """

    kind: ClassVar[Literal["numeric"]] = "numeric"
    name: str
    impute: float | Literal["mean"] = "mean"
    standardise: bool = True

    def __post_init__(self) -> None:
        is_number = isinstance(self.impute, int | float) and math.isfinite(self.impute)
        if self.impute != "mean" and not is_number:
            raise FeatureSpecError(f"feature '{self.name}': impute {self.impute!r} is unknown; use mean or a number")


@dataclass(frozen=True)
class Categorical:
    """One token per row; becomes int64 ids ``[batch]``.

    Attributes:
        name: Column of the table, and name of the model's input. Integers are read as
            their decimal text, booleans as ``true`` and ``false``.
        min_count: Rarer tokens of the training rows are out of vocabulary.
        max_size: Keep at most this many tokens, the most frequent first.
    """

    kind: ClassVar[Literal["categorical"]] = "categorical"
    name: str
    min_count: int = 1
    max_size: int | None = None

    def __post_init__(self) -> None:
        _check_vocabulary_limits(self.name, self.min_count, self.max_size)


@dataclass(frozen=True)
class MultiValued:
    """A list of tokens per row, cut to a length; becomes int64 ids ``[batch, max_length]``, padded with 0 on the right.

    Attributes:
        name: Column of the table (an array), and name of the model's input.
        max_length: Tokens kept per row.
        truncate: Which end of a longer list is cut away: ``head`` keeps the last tokens, ``tail`` the first.
        vocabulary_of: Use the vocabulary of this categorical feature instead of one's own.
        min_count: As for a categorical feature, counted over tokens.
        max_size: As for a categorical feature.
    """

    kind: ClassVar[Literal["multi_valued"]] = "multi_valued"
    name: str
    max_length: int
    truncate: Truncate = "head"
    vocabulary_of: str | None = None
    min_count: int = 1
    max_size: int | None = None

    def __post_init__(self) -> None:
        _check_vocabulary_limits(self.name, self.min_count, self.max_size)
        _check_count(self.name, "max_length", self.max_length)
        if self.truncate not in get_args(Truncate):
            raise FeatureSpecError(
                f"feature '{self.name}': truncate '{self.truncate}' is unknown; use {' or '.join(get_args(Truncate))}"
            )


Feature = Numeric | Categorical | MultiValued
_KINDS: Mapping[str, type[Feature]] = {kind.kind: kind for kind in get_args(Feature)}


@dataclass(frozen=True)
class Label:
    """What the model learns.

    Attributes:
        name: Column of the table.
        kind: ``binary`` (0 or 1, becomes float32 ``[batch]``) or ``candidate`` (the label is the categorical feature
            of that name, which the query tower retrieves).
    """

    name: str
    kind: LabelKind = "binary"

    def __post_init__(self) -> None:
        if self.kind not in get_args(LabelKind):
            raise FeatureSpecError(
                f"label '{self.name}': kind '{self.kind}' is unknown; use {' or '.join(get_args(LabelKind))}"
            )


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
        if not self.features:
            raise FeatureSpecError("a feature spec needs at least one feature")
        if len(by_name) < len(self.features):
            names = [feature.name for feature in self.features]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise FeatureSpecError(f"feature {twice} is listed twice; keep one of each")
        if not self.keys:
            raise FeatureSpecError("a feature spec needs at least one key column, to name the scored rows")
        for name in self.columns:
            if not (isinstance(name, str) and _COLUMN_NAME.fullmatch(name)):
                raise FeatureSpecError(
                    f"column name {name!r} cannot be used; rename it to letters (A-Z), digits and underscores"
                )
        object.__setattr__(self, "_by_name", by_name)
        self._check_label()
        if self.exclude is not None and self.label.kind != "candidate":
            raise FeatureSpecError(
                f"exclude '{self.exclude}' needs a label of kind candidate; '{self.label.name}' is not"
            )
        # The exported model takes features and exclusions side by side, by name.
        if self.exclude is not None and self.exclude in (*by_name, *self.keys, self.weight):
            raise FeatureSpecError(
                f"exclude '{self.exclude}' is also a feature, key or weight; give the table a column of its own for "
                f"it, for example {self.exclude} AS excluded"
            )
        for feature in self.multi_valued:
            owner = feature.vocabulary_of
            if owner is not None and not isinstance(by_name.get(owner), Categorical):
                raise FeatureSpecError(
                    f"feature '{feature.name}': vocabulary_of '{owner}' is no categorical feature of this spec; "
                    f"use one of {[other.name for other in self.categorical]}"
                )

    def _check_label(self) -> None:
        is_feature = self.label.name in self._by_name
        if self.label.kind == "binary" and (is_feature or self.label.name in self.keys):
            raise FeatureSpecError(
                f"label '{self.label.name}' is also a feature or key; a model must not see its label"
            )
        if self.label.kind == "candidate" and not isinstance(self._by_name.get(self.label.name), Categorical):
            raise FeatureSpecError(
                f"label '{self.label.name}' of kind candidate must be a categorical feature of this spec; "
                f"use one of {[other.name for other in self.categorical]}"
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
    def categorical(self) -> tuple[Categorical, ...]:
        """The categorical features, in order."""
        return tuple(feature for feature in self.features if isinstance(feature, Categorical))

    @property
    def multi_valued(self) -> tuple[MultiValued, ...]:
        """The multi-valued features, in order."""
        return tuple(feature for feature in self.features if isinstance(feature, MultiValued))

    @property
    def token_features(self) -> tuple[Categorical | MultiValued, ...]:
        """The features that are looked up in a vocabulary: the categorical ones, then the multi-valued ones."""
        return (*self.categorical, *self.multi_valued)

    @property
    def query_features(self) -> tuple[Feature, ...]:
        """The features that are known when a row is scored: all but a label of kind ``candidate``."""
        return tuple(feature for feature in self.features if feature.name != self.label.name)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that conversion reads, each once: keys, features, label, weight, exclude."""
        names = [*self.keys, *(feature.name for feature in self.features), self.label.name, self.weight, self.exclude]
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

    def vocabulary_name(self, feature: Categorical | MultiValued) -> str:
        """Return the name of the vocabulary that ``feature`` is looked up in."""
        return getattr(feature, "vocabulary_of", None) or feature.name

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as YAML and JSON hold it; :meth:`from_dict` is the way back."""
        return {
            "features": {
                feature.name: {"kind": feature.kind}
                | {key: value for key, value in dataclasses.asdict(feature).items() if key != "name"}
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
    feature: Feature = _build(
        _KINDS[kind], subject, {"name": name} | {key: value for key, value in options.items() if key != "kind"}
    )
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


def _check_vocabulary_limits(name: str, min_count: int, max_size: int | None) -> None:
    _check_count(name, "min_count", min_count)
    if max_size is not None:
        _check_count(name, "max_size", max_size)


def _check_count(name: str, option: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise FeatureSpecError(f"feature '{name}': {option} is {value!r}; use a whole number from 1 on")
