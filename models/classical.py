"""The classical recommenders by name, with their settings, as baselines and as architectures of their own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mirrorspark.data_pipelines.features import FeatureSpec
from mirrorspark.models.settings import ModelSettingsError, check_positive, checked_settings, labelled
from mirrorspark.storage import meant

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import numpy as np
    import tensorflow as tf

    from mirrorspark.data_pipelines.features import FittedFeatures
    from mirrorspark.models.retrieval import FittedRecommender

Arrays = Mapping[str, "np.ndarray"]
"""Arrays that a recommender has learnt, by name; see :func:`training.programs.recommenders.fitting.fit`."""

# EASE^R and SLIT invert a dense matrix: at this size it has 1.5 GB, and takes minutes.
MOST_DENSE_ITEMS = 20_000


def _check_number(name: str, value: float, *, above_0: bool = False) -> None:
    if not 0 <= value < float("inf") or (above_0 and value == 0):
        bound = "above 0" if above_0 else "from 0 on"
        raise ModelSettingsError(f"model setting {name} is {value}; use a finite number {bound}")


@dataclass(frozen=True)
class Popularity:
    """The candidates with the most training rows, for everybody."""


@dataclass(frozen=True)
class HistorySettings:
    """Settings of a recommender that scores candidates from the items of a row's history.

    Attributes:
        last_items: Score from this number of the history's last items; 0 takes all that the row has.
    """

    last_items: int = 0

    def __post_init__(self) -> None:
        _check_number("last_items", self.last_items)


@dataclass(frozen=True)
class ItemKNN(HistorySettings):
    """Settings of item-based nearest neighbours.

    Attributes:
        neighbours: Most similar items that an item of the history votes for.
        shrinkage: Added to the product of the norms, so that a few users in common count less.
    """

    neighbours: int = 100
    shrinkage: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("neighbours", self.neighbours)
        _check_number("shrinkage", self.shrinkage)


@dataclass(frozen=True)
class BSPM(HistorySettings):
    """Settings of the blurring and sharpening of histories over the graph of users and items.

    Attributes:
        neighbours: Weights that are kept per item of the history, the largest ones in size.
        dimensions: Singular vectors of the ideal low-pass filter.
        low_pass_weight: Its weight relative to the blur.
        sharpening: How long the blurred scores are sharpened; 0 leaves them.
    """

    neighbours: int = 1000
    dimensions: int = 256
    low_pass_weight: float = 0.2
    sharpening: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("neighbours", self.neighbours)
        check_positive("dimensions", self.dimensions)
        _check_number("low_pass_weight", self.low_pass_weight)
        _check_number("sharpening", self.sharpening)


@dataclass(frozen=True)
class Slit(HistorySettings):
    """Settings of SLIT, which learns from the same number of last items that it scores from.

    Attributes:
        l2: Weight of the squared weights in the least squares.
        new_item_weight: Multiplies the weights that an item without training rows has by its features; 0 gives it none.
    """

    l2: float = 50.0
    new_item_weight: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        # Without it the matrix that is inverted may be singular.
        _check_number("l2", self.l2, above_0=True)
        _check_number("new_item_weight", self.new_item_weight)


@dataclass(frozen=True)
class Ease(Slit):
    """Settings of EASE^R: those of SLIT, and the weight of the items' features.

    Attributes:
        content_weight: Number of users that the features of items count as much as; 0 leaves them out.
    """

    l2: float = 500.0
    new_item_weight: float = 1.25
    content_weight: float = 15.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number("content_weight", self.content_weight)


@dataclass(frozen=True)
class ALS(HistorySettings):
    """Settings of alternating least squares for implicit feedback, by their meaning in Spark.

    Attributes:
        rank: Numbers per item.
        l2: Spark's ``regParam``, which Spark multiplies by a user's number of items.
        alpha: Weight of an observed pair, added to the 1 that every pair has.
        iterations: Passes over users and items.
    """

    rank: int = 64
    l2: float = 0.05
    alpha: float = 10.0
    iterations: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("rank", self.rank)
        check_positive("iterations", self.iterations)
        _check_number("l2", self.l2, above_0=True)
        _check_number("alpha", self.alpha)


RECOMMENDERS: Mapping[str, type[Any]] = {
    "popularity": Popularity,
    "item_knn": ItemKNN,
    "bspm": BSPM,
    "ease": Ease,
    "slit": Slit,
    "als": ALS,
}

SUMS_OVER_HISTORY = ("popularity", "item_knn", "bspm", "ease", "slit")
"""Recommenders whose scores are sums over the items of a history, and no products of vectors."""

DENSE = ("ease", "slit")
"""Recommenders that learn a dense matrix of all pairs of items, new ones by the features of items."""


@dataclass(frozen=True)
class Recommender:
    """A classical recommender with the settings that a run gives it.

    Attributes:
        name: A name of :data:`RECOMMENDERS`.
        options: Settings that differ from their defaults.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: Any) -> "Recommender":
        """Return the recommender of a name, or of a mapping with ``name`` and settings.

        Raises:
            ModelSettingsError: An unknown name or setting, or an invalid value.
        """
        options = dict(given) if isinstance(given, Mapping) else {"name": given}
        name = options.pop("name", None)
        if not isinstance(name, str) or name not in RECOMMENDERS:
            raise ModelSettingsError(
                f"baseline {given!r} is unknown{meant(str(name), RECOMMENDERS)}; use one of {list(RECOMMENDERS)}, or a "
                f"mapping with such a name and settings"
            )
        found = cls(name, options)
        _ = found.settings  # Checks them.
        return found

    @property
    def settings(self) -> Any:
        """The checked settings."""
        return checked_settings(self.name, RECOMMENDERS[self.name], self.options)

    @property
    def label(self) -> str:
        """Its name in tables and metrics: ``ease``, or with its settings ``ease_last_items_15``."""
        return labelled(self.name, self.options)

    @property
    def is_registrable(self) -> bool:
        """True if it can take the place of a trained model: the export has no Spark for ALS."""
        return self.name != "als"


@dataclass(frozen=True)
class FittedArchitecture:
    """An architecture of :mod:`models.catalog` that is fitted on the driver or by Spark, without workers and epochs.

    Attributes:
        name: A name of :data:`models.classical.RECOMMENDERS`.
    """

    name: str
    TASK = "retrieval"

    @property
    def Settings(self) -> type[Any]:  # noqa: N802 - as the modules of other architectures have it
        """The class of its settings."""
        return RECOMMENDERS[self.name]

    @property
    def READS_ITEMS(self) -> bool:  # noqa: N802 - as the constant of an architecture
        """True for those that read the features of items."""
        return self.name in DENSE

    def check_features(self, settings: Any, spec: FeatureSpec) -> None:
        """Raise ``ModelSettingsError`` unless rows have the inputs of the scores."""
        if hasattr(settings, "last_items") and history_of(spec) is None:
            raise ModelSettingsError(
                f"model '{self.name}' scores from a row's history, and no feature is a list with vocabulary_of: "
                f"{spec.candidate.name}; add one, or compare with it by --baseline, which takes a user's training rows"
            )

    def build(self, settings: Any, fitted: "FittedFeatures", arrays: Any) -> "FittedRecommender":
        """Return the recommender with the :data:`Arrays` that it has learnt, in the place of others' seed."""
        from mirrorspark.models.retrieval import FittedRecommender

        return FittedRecommender(self.name, settings, fitted, arrays)

    def predict(self, model: "FittedRecommender", inputs: "Mapping[str, tf.Tensor]") -> "tf.Tensor":
        """Return the ids that rows are scored from, int64 ``[batch, any]``, each once, with 0 for nothing."""
        return model.queries(inputs)


def check_recommenders(asked: Iterable[Recommender], fitted: "FittedFeatures") -> None:
    """Check whether recommenders can be fitted on a dataset with these features.

    Raises:
        ModelSettingsError: EASE^R or SLIT would have too many items, or a row has no history that they need.
    """
    for each in asked:
        last_items = getattr(each.settings, "last_items", 0)
        if last_items and history_of(fitted.spec) is None:
            raise ModelSettingsError(
                f"baseline '{each.name}': last_items {last_items} takes the last items of a row's history, and no "
                f"feature is a list with vocabulary_of: {fitted.spec.candidate.name}; leave it out, or add one"
            )
        if each.name == "slit" and history_of(fitted.spec) is None:
            raise ModelSettingsError(
                f"baseline 'slit' learns which item follows those of a row's history, and no feature is a list with "
                f"vocabulary_of: {fitted.spec.candidate.name}; leave it out, or add one"
            )
        if each.name in DENSE:
            check_dense_items(each.name, len(fitted.vocabulary(fitted.spec.candidate)))


def items_apart(asked: Iterable[Recommender], fitted: "FittedFeatures") -> str | None:
    """Return a warning, with the remedy, if recommenders cannot see which items a list of the label had together."""
    # SLIT learns steps from a history to an item, of which each has its own row; popularity counts items.
    apart = [one.label for one in asked if one.name not in ("popularity", "slit")]
    if not apart or not fitted.spec.label.lists or fitted.user is not None:
        return None
    return (
        f"the training rows have an item each of the lists of '{fitted.spec.label.name}', and no feature says which "
        f"user they are of, so {', '.join(apart)} learn little; add the user as a feature"
    )


def history_of(spec: FeatureSpec) -> str | None:
    """Return the first list of candidates among the features of the query; None without any."""
    return next(iter(spec.histories), None)


def check_dense_items(name: str, items: int) -> None:
    """Raise ``ModelSettingsError`` if a recommender cannot hold a matrix of all pairs of this number of items."""
    if items > MOST_DENSE_ITEMS:
        raise ModelSettingsError(
            f"{name} inverts a dense matrix of {items:,} x {items:,} items, which takes "
            f"{items**2 * 4 / 2**30:.1f} GB and more, and is made for at most {MOST_DENSE_ITEMS:,}; use bspm, "
            f"item_knn or als, or leave rare items out by the candidate's min_count"
        )
