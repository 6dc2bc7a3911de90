"""The profile of a dataset's raw columns, split by split: plain numbers for validation and the dataset page.

It is stored next to the manifest. To measure drift, a later dataset is counted in the bins of this one.
:mod:`data_pipelines.quality.profiling` makes profiles.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.quality.raw_value_columns import ColumnKind, Role

PROFILE_VERSION = 1
PROFILE_FILE = "profile.json"

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class ProfileError(ClearError, ValueError):
    """A profile that cannot be made or read; the message gives the problem and the remedy."""


@dataclass(frozen=True)
class SplitSize:
    """Size of a split: all rows, sampled rows, and its shards."""

    rows: int
    sampled: int
    bytes: int
    shards: int


@dataclass(frozen=True)
class Spread:
    """The distribution of finite numbers.

    Attributes:
        standard_deviation: That of these numbers, not an estimate for the population.
        quantiles: The quantiles at ``QUANTILES``.
    """

    minimum: float
    maximum: float
    mean: float
    standard_deviation: float
    quantiles: tuple[float, ...]

    @property
    def median(self) -> float:
        """The 50% quantile."""
        return self.quantiles[QUANTILES.index(0.5)]


@dataclass(frozen=True)
class ValueCount:
    """A value as text, and its count among the sampled values."""

    value: str
    count: int


@dataclass(frozen=True)
class Bins:
    """Bins for counting values: numbers between edges, or tokens by name.

    Numbers: bin ``i`` has the values above ``edges[i - 1]`` and up to ``edges[i]``; one more bin follows the last edge.
    Tokens: one bin each, then one for all others. Both end with a bin for missing values.
    """

    edges: tuple[float, ...] = ()
    tokens: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """The number of bins without that for missing values."""
        return max(len(self.edges), len(self.tokens)) + 1

    @property
    def is_empty(self) -> bool:
        """True if there are no bins."""
        return not self.edges and not self.tokens


@dataclass(frozen=True)
class SplitColumn:
    """One column in one split. Counts refer to the sample, shares to all rows if conversion counted them.

    Attributes:
        values: Sampled values: rows, or tokens if a row has several.
        missing_share: Share of rows that are null, NaN, an empty string or an empty list.
        nan: Rows that are NaN.
        infinite: Rows that are infinite.
        distinct: Distinct values in the sample.
        distinct_estimate: Distinct values in all rows, estimated.
        commonest_share: Share of the most frequent value among the present values.
        once_share: Share of values that occur once.
        spread: Distribution of the finite numbers.
        lengths: Distribution of the lists' lengths: tokens per row.
        histogram: Counts per bar of the column's ``edges``; the outer bars include values beyond them.
        commonest: The most frequent values.
        unseen: The most frequent values that the sample of the training rows lacks.
        unseen_share: Share of such values.
        out_of_vocabulary_share: Share of tokens that the fitted vocabulary lacks.
        outside_share: Share of numbers outside the range of the training rows.
        bins: Counts in the column's ``bins``.
        reference_bins: Counts in the bins of the reference's column of this name.
    """

    values: int
    missing_share: float
    nan: int = 0
    infinite: int = 0
    distinct: int = 0
    distinct_estimate: int = 0
    commonest_share: float = 0.0
    once_share: float = 0.0
    spread: Spread | None = None
    lengths: Spread | None = None
    histogram: tuple[int, ...] = ()
    commonest: tuple[ValueCount, ...] = ()
    unseen: tuple[ValueCount, ...] = ()
    unseen_share: float = 0.0
    out_of_vocabulary_share: float | None = None
    outside_share: float = 0.0
    bins: tuple[int, ...] = ()
    reference_bins: tuple[int, ...] = ()


@dataclass(frozen=True)
class LabelRelation:
    """The accuracy with which a single column predicts the label of a training row.

    Attributes:
        agreement: Accuracy of guessing, for each value that occurs more than once, its most frequent class: the share
            of correct rows per class, averaged over the classes.
        coverage: Share of rows whose value occurs more than once.
        area: Area under the ROC curve with the column as the score, for numbers and two classes.
    """

    agreement: float
    coverage: float
    area: float | None


@dataclass(frozen=True)
class ColumnProfile:
    """The profile of one raw column.

    Attributes:
        type: Its Arrow type, as text.
        role: Its role in the spec.
        feature_kind: Kind of the feature that reads it, or of the label.
        kind: The way its values are counted.
        edges: Ends of the histogram's bars, one more than there are bars.
        bins: The bins for drift, from the training rows.
        splits: The counts per split.
        label_rates: Mean label of the training rows in each of ``bins``, the last for missing values; None for a bin
            without rows. For a binary label this is the share of positive rows; it is empty for labels of several
            classes.
    """

    name: str
    type: str
    role: Role
    feature_kind: str
    kind: ColumnKind
    edges: tuple[float, ...]
    bins: Bins
    splits: Mapping[str, SplitColumn]
    label: LabelRelation | None = None
    label_rates: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Redundancy:
    """A column that says the same as another one in the sampled training rows.

    Attributes:
        same_as: The other column.
        correlation: Their correlation, of numbers; None where each value of the one has one value of the other.
    """

    column: str
    same_as: str
    correlation: float | None = None


@dataclass(frozen=True)
class DatasetProfile:
    """Every raw column of a dataset, split by split.

    Attributes:
        columns: The columns in the order of the spec: keys, features, label, weight, exclude.
        redundant: Features that say the same as an earlier one.
        version: Version of the file format.
    """

    splits: Mapping[str, SplitSize]
    columns: tuple[ColumnProfile, ...]
    redundant: tuple[Redundancy, ...] = ()
    version: int = PROFILE_VERSION

    def column(self, name: str) -> ColumnProfile | None:
        """Return the column of that name, or none."""
        return next((column for column in self.columns if column.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the profile in its JSON form; :meth:`from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "DatasetProfile":
        """Restore a profile from its :meth:`to_dict` form.

        Raises:
            ProfileError: The document is damaged, or another version wrote it.
        """
        try:
            if document["version"] != PROFILE_VERSION:
                raise ProfileError(
                    f"the profile has version {document['version']}, known is {PROFILE_VERSION}; convert again, or "
                    f"validate without this reference"
                )
            return cls(
                splits={name: SplitSize(**size) for name, size in document["splits"].items()},
                columns=tuple(_column_from_dict(column) for column in document["columns"]),
                redundant=tuple(Redundancy(**each) for each in document.get("redundant", ())),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ProfileError(
                f"the profile is damaged ({error}); convert again, or validate without this reference"
            ) from error


def _column_from_dict(document: Mapping[str, Any]) -> ColumnProfile:
    return ColumnProfile(
        **{
            **document,
            "role": Role(document["role"]),
            "kind": ColumnKind(document["kind"]),
            "edges": tuple(document["edges"]),
            "bins": Bins(tuple(document["bins"]["edges"]), tuple(document["bins"]["tokens"])),
            "splits": {split: _split_from_dict(part) for split, part in document["splits"].items()},
            "label": LabelRelation(**document["label"]) if document["label"] else None,
            "label_rates": tuple(document.get("label_rates", ())),
        }
    )


def _split_from_dict(document: Mapping[str, Any]) -> SplitColumn:
    lists: dict[str, Any] = {name: tuple(document[name]) for name in ("histogram", "bins", "reference_bins")}
    values = {name: tuple(ValueCount(**entry) for entry in document[name]) for name in ("commonest", "unseen")}
    spreads = {name: _spread_from_dict(document[name]) for name in ("spread", "lengths")}
    return SplitColumn(**{**document, **lists, **values, **spreads})


def _spread_from_dict(document: Mapping[str, Any] | None) -> Spread | None:
    return None if document is None else Spread(**{**document, "quantiles": tuple(document["quantiles"])})
