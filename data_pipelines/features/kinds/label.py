"""The kinds of labels, as plain data."""

from dataclasses import dataclass
from typing import Literal, get_args

from mirrorspark.data_pipelines.features.kinds.checks import FeatureSpecError, check_count, check_order, known_kind

LabelKind = Literal["binary", "candidate", "multi_class", "multi_label", "numeric", "ordinal"]

LabelForm = Literal["binary", "candidate", "multi_class", "multi_label", "numeric"]
"""How a label is stored, scored and judged: its kind, and ``multi_class`` for an ordinal one."""


@dataclass(frozen=True)
class Label:
    """The target that the model learns.

    Attributes:
        name: Column of the table.
        kind: ``binary`` (0 or 1, becomes float32 ``[batch]``), ``candidate`` (the label is the categorical feature
            of that name, which the query tower retrieves), ``multi_class`` (one of several classes, becomes int64
            ``[batch]`` from 0), ``multi_label`` (a list of classes, becomes float32 ``[batch, classes]`` of zeros
            and ones), ``numeric`` (an amount or a rating, becomes float32 ``[batch]``) or ``ordinal`` (one of several
            classes that have an order, becomes its rank, int64 ``[batch]`` from 0).
        classes: Number of classes if the column holds class numbers from 0 on. Without it the column holds tokens,
            whose classes are learnt from the training rows, the most frequent first. Of kind ``ordinal`` all classes
            as text, the lowest first.
        positive: The value of a binary label that counts as 1, as text; every other value counts as 0. Without it the
            column holds 0 and 1, or false and true.
        rating: Column with the rating that the row gives its candidate, a number, which models of two tasks learn, too.
            It becomes float32 ``[batch]``.
        lists: True if the column of a label of kind ``candidate`` is an array of candidates: all that a row of
            validation or test holds back, and in training rows as many rows. A conversion sets it by the column's type.
        history_items: True if the items of the histories are candidates, too, and count as training interactions; by
            default only those of the label's column are. For a label of kind ``candidate``.
    """

    name: str
    kind: LabelKind = "binary"
    classes: int | tuple[str, ...] | None = None
    positive: str | None = None
    rating: str | None = None
    lists: bool = False
    history_items: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", known_kind(f"label '{self.name}'", self.kind, get_args(LabelKind)))
        if self.kind == "ordinal":
            check_order(self.name, self.classes, "classes")
        elif self.classes is not None:
            if self.kind not in ("multi_class", "multi_label"):
                raise FeatureSpecError(
                    f"label '{self.name}': classes is {self.classes!r}, but a label of kind {self.kind} has none; "
                    f"leave it out"
                )
            if isinstance(self.classes, tuple):
                raise FeatureSpecError(
                    f"label '{self.name}': classes {list(self.classes)} is a list, which is for the kind ordinal; give "
                    f"their number, or leave classes out to learn them from tokens"
                )
            check_count(self.name, "classes", self.classes, subject="label")
        if self.positive is not None and (self.kind != "binary" or not isinstance(self.positive, str)):
            raise FeatureSpecError(
                f"label '{self.name}': positive is {self.positive!r}; give the text of one of the two values of a "
                f"label of kind binary, or leave it out"
            )
        if self.rating is not None and self.kind != "candidate":
            raise FeatureSpecError(
                f"label '{self.name}': rating is {self.rating!r}, but a label of kind {self.kind} has none; leave it "
                f"out, or use kind candidate"
            )
        for option in ("lists", "history_items"):
            value = getattr(self, option)
            if not isinstance(value, bool) or (value and self.kind != "candidate"):
                raise FeatureSpecError(
                    f"label '{self.name}': {option} is {value!r}; give true or false, and true to the kind candidate "
                    f"alone"
                )
        if self.lists and self.rating is not None:
            raise FeatureSpecError(
                f"label '{self.name}' has lists of candidates and the rating '{self.rating}', which is one of a row; "
                f"leave the rating out, or give the table a row per candidate"
            )

    @property
    def form(self) -> LabelForm:
        """The form in which it is stored, scored and judged."""
        return "multi_class" if self.kind == "ordinal" else self.kind

    @property
    def order(self) -> tuple[str, ...] | None:
        """The classes of an ordinal label, the lowest first; None for other kinds."""
        return self.classes if isinstance(self.classes, tuple) else None

    @property
    def stored(self) -> str | None:
        """The column whose values are stored as the label: its own, or the rating; None if there is neither."""
        return self.rating if self.kind == "candidate" else self.name

    @property
    def number(self) -> str | None:
        """The column of numbers to predict: that of a label of kind ``numeric``, or the rating."""
        return self.name if self.kind == "numeric" else self.rating

    @property
    def prediction(self) -> str:
        """The prediction of a model of this label, in words."""
        if self.kind == "binary":
            return f"probability that {self.name} is {self.positive or 1}"
        kinds = {
            "candidate": f"candidates of {self.name}, best first",
            "multi_class": f"probability of each class of {self.name}",
            "multi_label": f"probability of each label in {self.name}",
            "numeric": f"{self.name}, in its own unit",
        }
        return kinds[self.form]
