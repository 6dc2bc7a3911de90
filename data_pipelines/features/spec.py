"""The feature specification: every column that the model sees, as plain data with a form in YAML.

One specification drives conversion, training, the exported model and scoring. It holds no data:
:mod:`data_pipelines.features.fitted` has the values that Spark learns from the rows (vocabularies, means, quantiles).
:mod:`data_pipelines.features.kinds` defines the kinds of features.
"""

import dataclasses
import hashlib
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mirrorspark.data_pipelines.features.kinds import (
    UNBOUNDED,
    Bucketed,
    Categorical,
    EmbeddedFeature,
    Feature,
    FeatureSpecError,
    Label,
    ListFeature,
    MultiValued,
    Numeric,
    TargetEncoding,
    TokenFeature,
    VocabularyOwner,
)
from mirrorspark.data_pipelines.features.names import USER_NAME
from mirrorspark.data_pipelines.features.plain_data import built, check_mapping, feature_from_dict, plain
from mirrorspark.data_pipelines.features.spec_checks import check_parts
from mirrorspark.pages import heading_html, panel_html, rows_html
from mirrorspark.storage import atomic_file, load_yaml, read_text

if TYPE_CHECKING:  # a spec needs no Spark
    from pyspark.sql import DataFrame

# The column that staging adds to rows whose label is a list of candidates.
HELD_BACK = "held-back candidates"

# Optional parts of a spec that are a column's name.
_OTHERS = ("weight", "exclude", "user")

# Options of a label that specs had from the beginning are in every spec's hash, others where they are used.
_LATER_LABEL_OPTIONS = ("positive", "rating", "lists", "history_items")


@dataclass(frozen=True)
class FeatureSpec:
    """Every column that the model sees, in the order of the model's inputs.

    Attributes:
        features: The model's inputs.
        label: The model's target.
        keys: Columns that name a row; they pass through to the scores unchanged and never reach the model.
        weight: Optional column of per-row training weights.
        exclude: Optional list column of candidates that must not be recommended for the row (items that a user has
            already seen); only for a label of kind ``candidate``. It is an input of its own, not a feature, key or
            weight.
        items: Optional features of the candidates themselves, from a table of items (:meth:`of_items`); only for a
            label of kind ``candidate``.
        user: Optional feature whose values are the users; only for a label of kind ``candidate``. Without it, see
            :attr:`user_feature`.
        reasons: Why features are as they are, by their names, where an inference says so. They are shown, and comments
            of the YAML file, but no part of what the model sees.
    """

    features: tuple[Feature, ...]
    label: Label
    keys: tuple[str, ...]
    weight: str | None = None
    exclude: str | None = None
    items: "FeatureSpec | None" = None
    user: str | None = None
    reasons: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    _by_name: Mapping[str, Feature] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {feature.name: feature for feature in self.features})
        check_parts(self)

    @classmethod
    def of_items(cls, key: str, features: Iterable[Feature]) -> "FeatureSpec":
        """Return the spec of a table of items, whose ``key`` is the candidate of another spec.

        Raises:
            FeatureSpecError: There are no features, or one is the key.
        """
        features = tuple(features)
        wrong = [feature.name for feature in features if feature.name == key]
        if wrong or not features:
            raise FeatureSpecError(f"items have the features {wrong}; give one or more in addition to the key '{key}'")
        return cls((Categorical(key), *features), Label(key, "candidate"), keys=(key,))

    def __getitem__(self, name: str) -> Feature:
        return self._by_name[name]

    def __iter__(self) -> Iterator[Feature]:
        return iter(self.features)

    @property
    def numeric(self) -> tuple[Numeric, ...]:
        """The features that are numbers of the table, in order."""
        return tuple(
            feature
            for feature in self.features
            if isinstance(feature, Numeric) and not isinstance(feature, TargetEncoding)
        )

    @property
    def target_encodings(self) -> tuple[TargetEncoding, ...]:
        """The features that are means of the label, in order."""
        return tuple(feature for feature in self.features if isinstance(feature, TargetEncoding))

    @property
    def bucketed(self) -> tuple[Bucketed, ...]:
        """The bucketed features, whose quantiles are learnt, in order."""
        return tuple(feature for feature in self.features if isinstance(feature, Bucketed))

    @property
    def categorical(self) -> tuple[Categorical, ...]:
        """The categorical features, in order."""
        return tuple(feature for feature in self.features if isinstance(feature, Categorical))

    @property
    def embedded(self) -> tuple[EmbeddedFeature, ...]:
        """The texts and images that encoders turn into vectors, those of the items last."""
        own = (feature for feature in self.features if isinstance(feature, EmbeddedFeature))
        return (*own, *(self.items.embedded if self.items else ()))

    @property
    def measured(self) -> tuple[Numeric | Bucketed, ...]:
        """The columns measured over the training rows: numeric and bucketed features, and the number to predict."""
        label = (Numeric(self.label.number),) if self.label.number else ()
        return (*self.numeric, *self.bucketed, *label)

    @property
    def token_features(self) -> tuple[TokenFeature, ...]:
        """The features whose tokens become ids: the categorical ones, then the lists of tokens."""
        lists = (feature for feature in self.features if isinstance(feature, ListFeature))
        return (*self.categorical, *lists)

    @property
    def vocabulary_owners(self) -> tuple[VocabularyOwner, ...]:
        """The token features that neither hash nor share a vocabulary, means of the label, and a label of tokens."""
        owners = (
            feature
            for feature in self.token_features
            if feature.hash_buckets is None and self.vocabulary_name(feature) == feature.name
        )
        return (*owners, *self.target_encodings, *((self.label_tokens,) if self.label_tokens else ()))

    @property
    def label_tokens(self) -> Categorical | MultiValued | None:
        """The label as a feature whose vocabulary numbers its classes; None if there is no vocabulary."""
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
    def input_features(self) -> tuple[Feature, ...]:
        """The features of a row that is scored, and the candidates that are not recommended to it."""
        return (*self.query_features, *((self.excluded,) if self.excluded else ()))

    @property
    def read_features(self) -> tuple[Feature, ...]:
        """All features that a conversion reads: those of scoring, and the label if something is learnt from it."""
        return tuple(dict.fromkeys((*self.features, *self.input_features, *self.measured, *self.vocabulary_owners)))

    @property
    def single_ids(self) -> tuple[Categorical | Bucketed, ...]:
        """The features of the query that have a single id per row, among which the users are."""
        return tuple(feature for feature in self.query_features if isinstance(feature, Categorical | Bucketed))

    @property
    def user_feature(self) -> str | None:
        """The feature whose values are a recommender's users; None without users.

        It is ``user`` or else the first feature of single ids with a user's name, such as ``user_id`` or
        ``customerId``. Only names count: a feature of hours, for example, may have more values than there are users.
        """
        if self.user is not None:
            return self.user
        return next((feature.name for feature in self.single_ids if USER_NAME.fullmatch(feature.name)), None)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that conversion reads, without repetition: keys, features, label, rating, weight, exclude."""
        read = (column for feature in self.features for column in feature.columns)
        names = [*self.keys, *read, self.label.name, self.label.rating, self.weight, self.exclude]
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

    @property
    def held_back(self) -> MultiValued | None:
        """The candidates that a row holds back as a feature of a staged column; None unless the label has lists."""
        if not self.label.lists:
            return None
        return MultiValued(HELD_BACK, max_length=UNBOUNDED, vocabulary_of=self.candidate.name)

    @property
    def histories(self) -> tuple[str, ...]:
        """The names of the query's lists that have the candidate's tokens."""
        candidate = self.candidate.name
        return tuple(
            feature.name
            for feature in self.query_features
            if isinstance(feature, ListFeature) and self.vocabulary_name(feature) == candidate
        )

    def counted_with(self, owner: VocabularyOwner) -> tuple[VocabularyOwner, ...]:
        """Return the features whose tokens count in the vocabulary of ``owner``, too: histories, where they do."""
        if not self.label.history_items or owner.name != self.label.name:
            return ()
        return tuple(feature for feature in self.token_features if feature.name in self.histories)

    def vocabulary_name(self, feature: VocabularyOwner) -> str:
        """Return the name of the vocabulary, or of the hash buckets, that ``feature`` takes its ids from."""
        return getattr(feature, "vocabulary_of", None) or feature.name

    def hash_buckets(self, feature: VocabularyOwner) -> int | None:
        """Return the number of hash buckets of ``feature``, or None if it has a vocabulary."""
        owner = self._by_name.get(self.vocabulary_name(feature))
        return owner.hash_buckets if isinstance(owner, TokenFeature) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the spec in its YAML and JSON form; :meth:`from_dict` is the inverse."""
        return {
            "features": {
                feature.name: {"kind": feature.kind}
                | {
                    key: plain(value)
                    for key, value in dataclasses.asdict(feature).items()
                    # Without `ngrams`, where there are none, specs from before there were any keep their hash.
                    if key != "name" and (key != "ngrams" or value is not None)
                }
                for feature in self.features
            },
            # Without options that are not used, specs from before there were any keep their hash.
            "label": {
                name: plain(value)
                for name, value in dataclasses.asdict(self.label).items()
                if name not in _LATER_LABEL_OPTIONS or value not in (None, False)
            },
            "keys": list(self.keys),
            "weight": self.weight,
            "exclude": self.exclude,
            # Specs from before there were items and users keep their hash, too.
            **({"items": self._items_dict(self.items.to_dict())} if self.items else {}),
            **({"user": self.user} if self.user else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "FeatureSpec":
        """Build a spec from its YAML form.

        Raises:
            FeatureSpecError: An unknown kind or option, a missing part, or parts that contradict each other.
        """
        parts = [option.name for option in dataclasses.fields(cls) if option.init and option.name != "reasons"]
        unknown = sorted(set(data) - set(parts))
        if unknown:
            raise FeatureSpecError(f"feature spec has unknown parts {unknown}; use {parts}")
        missing = [part for part in ("features", "label", "keys") if not data.get(part)]
        if missing:
            raise FeatureSpecError(f"feature spec lacks {missing}; add them")
        features, label, keys = data["features"], data["label"], data["keys"]
        check_mapping("features", features)
        return cls(
            features=tuple(feature_from_dict(name, options) for name, options in features.items()),
            label=Label(label) if isinstance(label, str) else built(Label, "label", label),
            keys=(keys,) if isinstance(keys, str) else tuple(keys),
            weight=data.get("weight"),
            exclude=data.get("exclude"),
            items=_items_from_dict(data["items"]) if data.get("items") else None,
            user=data.get("user"),
        )

    @classmethod
    def infer(
        cls, df: "DataFrame", *, label: str, keys: str | Iterable[str] = (), exclude: Iterable[str] = ("split",)
    ) -> "FeatureSpec":
        """Propose a spec for the table ``df``; see :func:`data_pipelines.features.infer_spec`."""
        from mirrorspark.data_pipelines.features.infer import infer_spec  # needs Spark, which a spec does not

        return infer_spec(df, label=label, keys=keys, exclude=exclude)

    def save(self, path: str | Path) -> None:
        """Write the spec as YAML, to be edited and given to :meth:`load`; options with their default are left out.

        The reasons of features are comments.
        """
        document = self._edited()
        features, items = document.pop("features"), {part: document.pop(part) for part in ("items",) if self.items}
        lines = [_yaml(document), "features:\n", *(self._feature_yaml(name, of) for name, of in features.items())]
        atomic_file.write_atomically(Path(path), "".join([*lines, *([_yaml(items)] if items else [])]))

    def _feature_yaml(self, name: str, options: Mapping[str, Any]) -> str:
        """Return a feature's lines, below a comment with its reason."""
        printable = "".join(character if character.isprintable() else " " for character in self.reasons.get(name, ""))
        comment = [f"# {printable}\n"] if printable else []
        return textwrap.indent("".join([*comment, _yaml({name: dict(options)})]), "  ")

    @classmethod
    def load(cls, path: str | Path) -> "FeatureSpec":
        """Read a spec that :meth:`save` wrote, or that was written by hand.

        Raises:
            FeatureSpecError: The file is missing or no YAML mapping, or as :meth:`from_dict` says.
        """
        try:
            document = load_yaml(read_text(Path(path)))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise FeatureSpecError(f"feature spec {path} cannot be read: {error}") from error
        check_mapping(f"feature spec {path}", document)
        return cls.from_dict(document)

    def _edited(self) -> dict[str, Any]:
        """Return :meth:`to_dict` without the options that have their default."""
        features = {
            feature.name: {"kind": feature.kind}
            | {
                each.name: plain(getattr(feature, each.name))
                for each in dataclasses.fields(feature)
                if each.name != "name" and getattr(feature, each.name) != each.default
            }
            for feature in self.features
        }
        label = {
            name: plain(value) for name, value in dataclasses.asdict(self.label).items() if value not in (None, False)
        }
        others = {name: getattr(self, name) for name in _OTHERS if getattr(self, name) is not None}
        items = {"items": self._items_dict(self.items._edited())} if self.items else {}
        return {"label": label, "keys": list(self.keys), **others, "features": features, **items}

    @staticmethod
    def _items_dict(spec: Mapping[str, Any]) -> dict[str, Any]:
        """Return the form of ``items``: the key, and the features without it."""
        (key,) = spec["keys"]
        return {"key": key, "features": {name: given for name, given in spec["features"].items() if name != key}}

    def __str__(self) -> str:
        return "\n".join([self._heading(), *self.features_text()])

    def _repr_html_(self) -> str:
        return panel_html(heading_html(self._heading()), self.features_html())

    def _heading(self) -> str:
        about = f"label {self.label.name} ({self.label.kind}), keys {', '.join(self.keys)}"
        others = [f"{name} {value}" for name in _OTHERS if (value := getattr(self, name)) is not None]
        return ", ".join([about, *others])

    def features_html(self) -> str:
        """Return the features with their kinds, the options that differ from the defaults, and reasons, as markup."""
        return rows_html(("feature", "kind", "options", *(["reason"] if self.reasons else [])), self._feature_rows())

    def features_text(self) -> list[str]:
        """Return the content of :meth:`features_html` as aligned lines, one per feature."""
        rows = self._feature_rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

    def _feature_rows(self) -> list[tuple[str, ...]]:
        return [
            (
                *(name, options.pop("kind"), ", ".join(f"{option} {value}" for option, value in options.items())),
                *([self.reasons.get(name, "")] if self.reasons else []),
            )
            for name, options in self._edited()["features"].items()
        ]

    @property
    def hash(self) -> str:
        """Sixteen hex digits that change with anything in the spec, including the order of the features."""
        document = self.to_dict()
        if self.label.kind == "numeric":  # Specs from before features and labels shared this word keep their hash.
            document["label"]["kind"] = "number"
        return hashlib.sha256(json.dumps(document).encode()).hexdigest()[:16]


def _yaml(document: Mapping[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _items_from_dict(items: Any) -> FeatureSpec:
    check_mapping("items", items)
    if sorted(items) != ["features", "key"]:
        raise FeatureSpecError(f"items have the parts {sorted(items)}; give key and features")
    check_mapping("items: features", items["features"])
    return FeatureSpec.of_items(
        items["key"], [feature_from_dict(name, options) for name, options in items["features"].items()]
    )
