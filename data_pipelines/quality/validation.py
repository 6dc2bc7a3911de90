"""What is wrong, or may be, with a dataset before anybody trains on it: findings in words, from its profile.

Pure: a profile goes in, findings come out. ``convert`` decides what to do about them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from data_pipelines.feature_kinds import TokenFeature
from data_pipelines.features import FeatureSpec
from data_pipelines.manifest import SPLITS, TRAIN_SPLIT
from data_pipelines.quality.profile import ColumnProfile, DatasetProfile, SplitColumn
from data_pipelines.quality.raw_values import ColumnKind, Role

_HELD_BACK = tuple(split for split in SPLITS if split != TRAIN_SPLIT)

# A standard normal variable stays below this with a probability of 99.9%.
_NOISE_DEVIATIONS = 3.09
_SHOWN_VALUES = 3


class Severity(StrEnum):
    """How bad a finding is: a model trained on an error is worthless, on a warning it may be."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Limits:
    """From where on something is worth a finding. Shares are between 0 and 1.

    Attributes:
        missing: Share of training rows without a value.
        missing_change: Difference of that share between training rows and another split, or the reference.
        unseen: Share of tokens of another split that the training rows lack, above the training rows' own share.
        outside: Share of numbers of another split that lie outside the range of the training rows.
        wild: A largest value this many times as far from the median as the 99% quantile is (or the smallest and 1%).
        constant: Share of the most frequent value.
        agreement: How well a column alone tells the label, 0.5 or less by chance with two classes.
        rare_class: Share of the rarest class of a label.
        label_change: Difference of a class's share between training rows and another split.
        drift: Population stability index that is worth a note.
        strong_drift: Population stability index that is worth a warning.
    """

    missing: float = 0.5
    missing_change: float = 0.1
    unseen: float = 0.05
    outside: float = 0.01
    wild: float = 100.0
    constant: float = 0.995
    agreement: float = 0.999
    rare_class: float = 0.001
    label_change: float = 0.1
    # The customary limits: Siddiqi, "Credit Risk Scorecards" (2006), chapter 8.
    drift: float = 0.1
    strong_drift: float = 0.25


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know.

    Attributes:
        severity: How bad it is.
        column: The column that it is about; empty if it is about the dataset.
        check: Name of the check, for those who count or filter.
        sentence: What it is, which value, what to do.
    """

    severity: Severity
    column: str
    check: str
    sentence: str


@dataclass(frozen=True)
class Drift:
    """How far a column's values have moved.

    Attributes:
        column: The column.
        split: The split that is compared.
        against: What with: ``reference`` (the training rows of the former dataset) or ``train`` (this one's).
        index: Population stability index: the sum of (p - q) ln(p / q) over bins.
        noise: What the index stays below in 999 of 1,000 samples of this size when nothing has moved.
    """

    column: str
    split: str
    against: str
    index: float
    noise: float

    @property
    def excess(self) -> float:
        """The index, as far as chance does not explain it."""
        return max(0.0, self.index - self.noise)


@dataclass(frozen=True)
class Report:
    """What validation found.

    Attributes:
        findings: Errors first, then warnings, then notes; in each the columns in the order of the spec.
        drift: Per column and split, the largest first.
        limits: From where on something was worth a finding.
    """

    findings: tuple[Finding, ...]
    drift: tuple[Drift, ...]
    limits: Limits

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity is severity)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that forbid training."""
        return self.of(Severity.ERROR)

    def refusal(self) -> str:
        """Return why the data must not be trained on, every error and what to do about it; empty where nothing is."""
        if not self.errors:
            return ""
        lines = "".join(f"\n- {finding.sentence}" for finding in self.errors)
        return f"validation found {len(self.errors)} error(s) in the data:{lines}"

    def summary(self) -> str:
        """Return one line: how many findings of each severity."""
        counts = {severity: len(self.of(severity)) for severity in Severity}
        parts = [f"{count} {severity}{'s' * (count != 1)}" for severity, count in counts.items() if count]
        return ", ".join(parts) or "nothing found"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON holds it."""
        return asdict(self)


def validate(
    profile: DatasetProfile,
    spec: FeatureSpec,
    reference: DatasetProfile | None = None,
    limits: Limits = Limits(),
) -> Report:
    """Judge a dataset by its profile.

    Args:
        profile: Of the dataset; taken with the same ``reference``, if there is one.
        spec: What the columns mean.
        reference: Profile of a former dataset that this one should resemble.
        limits: From where on something is worth a finding.
    """
    drift = tuple(sorted(measure_drift(profile, reference), key=lambda entry: -entry.index))
    found = [*_dataset_findings(profile, spec)]
    hashed = _hashed_columns(spec)
    for column in profile.columns:
        found += _column_findings(column, profile, limits)
        if column.role is Role.FEATURE and column.name not in hashed:
            found += _unseen_findings(column, limits)
        former = reference.column(column.name) if reference else None
        if former is not None:
            found += _change_findings(column, former, limits)
    if reference is not None:
        found += _schema_findings(profile, reference)
    found += _drift_findings(drift, profile, limits)
    order = {column: position for position, column in enumerate(("", *spec.columns))}
    rank = list(Severity)
    found.sort(key=lambda finding: (rank.index(finding.severity), order.get(finding.column, len(order))))
    return Report(tuple(found), drift, limits)


def measure_drift(profile: DatasetProfile, reference: DatasetProfile | None = None) -> Iterator[Drift]:
    """Yield the stability index of every column: training rows against the reference's, other splits against them."""
    for column in profile.columns:
        train = column.splits[TRAIN_SPLIT]
        former = reference.column(column.name) if reference else None
        if former is not None and train.reference_bins:
            yield _drift(column.name, TRAIN_SPLIT, "reference", train.reference_bins, former.splits[TRAIN_SPLIT].bins)
        for split, part in column.splits.items():
            if split != TRAIN_SPLIT and part.bins:
                yield _drift(column.name, split, TRAIN_SPLIT, part.bins, train.bins)


def stability_index(counts: tuple[int, ...], expected: tuple[int, ...]) -> tuple[float, float]:
    """Return the population stability index of two counts of the same bins, and what chance alone keeps it below.

    Half a row is added to every bin, so that an empty one does not make the index infinite. Without drift the index
    is distributed as chi-squared with (bins - 1) degrees of freedom times (1 / n + 1 / m): Yurdakul and Naranjo,
    "Statistical properties of the population stability index" (2020). Its 99.9% quantile is Wilson and Hilferty's.
    """
    rows, expected_rows = sum(counts), sum(expected)
    bins = [(count, other) for count, other in zip(counts, expected, strict=True) if count or other]
    if not rows or not expected_rows or len(bins) < 2:
        return 0.0, 0.0
    smoothed, smoothed_expected = rows + len(bins) / 2, expected_rows + len(bins) / 2
    index = 0.0
    for count, other in bins:
        share, expected_share = (count + 0.5) / smoothed, (other + 0.5) / smoothed_expected
        index += (share - expected_share) * math.log(share / expected_share)
    freedom = len(bins) - 1
    spread = 2 / (9 * freedom)
    chi_squared = freedom * (1 - spread + _NOISE_DEVIATIONS * math.sqrt(spread)) ** 3
    return index, chi_squared * (1 / rows + 1 / expected_rows)


def _drift(column: str, split: str, against: str, counts: tuple[int, ...], expected: tuple[int, ...]) -> Drift:
    return Drift(column, split, against, *stability_index(counts, expected))


def _dataset_findings(profile: DatasetProfile, spec: FeatureSpec) -> Iterator[Finding]:
    for name in spec.columns:
        if profile.column(name) is None:
            yield Finding(
                Severity.ERROR,
                name,
                "schema",
                f"column '{name}' of the spec is not in the table; add it to the query, or take it out of the spec",
            )
    for split in SPLITS:
        if split not in profile.splits or not profile.splits[split].rows:
            yield Finding(
                Severity.WARNING if split in _HELD_BACK else Severity.ERROR,
                "",
                "rows",
                f"split '{split}' has no rows, so nothing tells how good the model is on it; check the rule that "
                f"makes the split column",
            )


def _column_findings(column: ColumnProfile, profile: DatasetProfile, limits: Limits) -> Iterator[Finding]:
    if column.role is Role.KEY:
        yield from _key_findings(column)
        return
    yield from _infinite_findings(column)
    if column.role is Role.EXCLUDE:
        # Training rows need none: what to leave out matters when rows are scored.
        return
    if column.role is Role.LABEL:
        yield from _label_findings(column, profile, limits)
        return
    yield from _missing_findings(column, profile, limits)
    if column.role is Role.WEIGHT:
        yield from _weight_findings(column)
        return
    yield from _constant_findings(column, limits)
    yield from _range_findings(column, limits)
    yield from _label_identity_findings(column, limits)


def _key_findings(column: ColumnProfile) -> Iterator[Finding]:
    for split, part in column.splits.items():
        if part.missing_share:
            yield Finding(
                Severity.ERROR,
                column.name,
                "missing",
                f"key '{column.name}' is missing in {_percent(part.missing_share)} of the rows of split '{split}'; a "
                f"key names its row: fill it, or filter those rows out",
            )


def _infinite_findings(column: ColumnProfile) -> Iterator[Finding]:
    for split, part in column.splits.items():
        if part.infinite:
            yield Finding(
                Severity.ERROR,
                column.name,
                "infinite",
                f"'{column.name}' is infinite in {part.infinite:,} of the sampled rows of split '{split}'; replace it "
                f"by null or a finite number (a division by zero is the usual cause)",
            )


def _missing_findings(column: ColumnProfile, profile: DatasetProfile, limits: Limits) -> Iterator[Finding]:
    train = column.splits[TRAIN_SPLIT].missing_share
    if train == 1:
        yield Finding(
            Severity.ERROR,
            column.name,
            "missing",
            f"'{column.name}' has no value in any of the {profile.splits[TRAIN_SPLIT].rows:,} training rows; mend the "
            f"query or the join that brings it, or take it out of the spec",
        )
        return
    # An empty list is a value for many: no earlier flight, no purchase yet.
    is_list = any(part.lengths is not None for part in column.splits.values())
    missing = "empty" if is_list else "missing"
    if train >= limits.missing:
        yield Finding(
            Severity.NOTE if is_list else Severity.WARNING,
            column.name,
            "missing",
            f"'{column.name}' is {missing} in {_percent(train)} of the training rows; if that is not its nature, mend "
            f"the join that brings it",
        )
    for split, part in _others(column):
        if part.missing_share == 1:
            yield Finding(
                Severity.ERROR,
                column.name,
                "missing",
                f"'{column.name}' has no value in any row of split '{split}', but in {_percent(1 - train)} of the "
                f"training rows; the model would be judged on data it will not see: mend what brings the column",
            )
        elif abs(part.missing_share - train) >= limits.missing_change:
            yield Finding(
                Severity.WARNING,
                column.name,
                "missing",
                f"'{column.name}' is {missing} in {_percent(part.missing_share)} of split '{split}', but in "
                f"{_percent(train)} of the training rows; find out what changed between the two",
            )


def _weight_findings(column: ColumnProfile) -> Iterator[Finding]:
    spread = column.splits[TRAIN_SPLIT].spread
    if spread is not None and spread.minimum < 0:
        yield Finding(
            Severity.ERROR,
            column.name,
            "range",
            f"weight '{column.name}' is as low as {spread.minimum:g}; a weight must be zero or more: mend its column",
        )
    if spread is not None and spread.maximum == 0:
        yield Finding(
            Severity.ERROR,
            column.name,
            "range",
            f"weight '{column.name}' is zero in all training rows, so nothing would be learnt; mend its column",
        )


def _constant_findings(column: ColumnProfile, limits: Limits) -> Iterator[Finding]:
    train = column.splits[TRAIN_SPLIT]
    if not train.values or not train.commonest or train.lengths is not None:
        return
    value = _shown(column, train.commonest[0].value)
    if train.distinct == 1 and not train.missing_share:
        yield Finding(
            Severity.WARNING,
            column.name,
            "constant",
            f"'{column.name}' is {value} in every training row, so it tells nothing; take it out of the spec",
        )
    elif train.commonest_share >= limits.constant and train.distinct > 1:
        yield Finding(
            Severity.NOTE,
            column.name,
            "constant",
            f"'{column.name}' is {value} in {_percent(train.commonest_share)} of the training rows that have it; it "
            f"can tell little: take it out, unless the rare values matter",
        )


def _range_findings(column: ColumnProfile, limits: Limits) -> Iterator[Finding]:
    spread = column.splits[TRAIN_SPLIT].spread
    if spread is None:
        return
    for split, part in _others(column):
        if part.outside_share >= limits.outside and part.spread is not None and column.kind is ColumnKind.NUMBER:
            yield Finding(
                Severity.WARNING,
                column.name,
                "range",
                f"'{column.name}' lies outside the range of the training rows ({spread.minimum:g} to "
                f"{spread.maximum:g}) in {_percent(part.outside_share)} of split '{split}', which reaches from "
                f"{part.spread.minimum:g} to {part.spread.maximum:g}; the model has seen no such values: check the "
                f"unit, or clip",
            )
    low, median, high = spread.quantiles[0], spread.median, spread.quantiles[-1]
    for extreme, usual, name in ((spread.maximum, high, "largest"), (spread.minimum, low, "smallest")):
        usual_distance = abs(usual - median)
        if column.kind is ColumnKind.NUMBER and usual_distance and abs(extreme - median) > limits.wild * usual_distance:
            quantile = "99%" if name == "largest" else "1%"
            yield Finding(
                Severity.NOTE,
                column.name,
                "range",
                f"'{column.name}' has a {name} value of {extreme:g} where its {quantile} quantile is {usual:g}; if "
                f"that is a placeholder make it null, else clip it or take its logarithm",
            )


def _unseen_findings(column: ColumnProfile, limits: Limits) -> Iterator[Finding]:
    train = column.splits[TRAIN_SPLIT]
    for split, part in _others(column):
        if train.out_of_vocabulary_share is None or part.out_of_vocabulary_share is None:
            # Good and Turing: what occurs once in a sample has the share of what the sample lacks.
            usual, share, where = train.once_share, part.unseen_share, "do not occur in the sampled training rows"
        else:
            usual, share = train.out_of_vocabulary_share, part.out_of_vocabulary_share
            where = "are not in its vocabulary"
        if share - usual < limits.unseen:
            continue
        examples = ", ".join(f"'{entry.value}'" for entry in part.unseen[:_SHOWN_VALUES])
        yield Finding(
            Severity.WARNING,
            column.name,
            "unseen",
            f"{_percent(share)} of the values of '{column.name}' in split '{split}' {where}"
            + (f"; {_percent(usual)} would be usual" if usual else "")
            + (f" (most frequent: {examples})" if examples else "")
            + "; the model knows nothing of them: train on newer rows, or use a coarser column or hashing",
        )


def _label_findings(column: ColumnProfile, profile: DatasetProfile, limits: Limits) -> Iterator[Finding]:
    train = column.splits[TRAIN_SPLIT]
    for split, part in column.splits.items():
        # A row of a multi-label problem may have no label at all.
        if part.missing_share and column.feature_kind != "multi_label":
            yield Finding(
                Severity.ERROR,
                column.name,
                "missing",
                f"label '{column.name}' is missing in {_percent(part.missing_share)} of split '{split}'; filter those "
                f"rows out",
            )
        if column.kind is ColumnKind.TOKEN and part.distinct == 1:
            which = "training rows" if split == TRAIN_SPLIT else f"rows of split '{split}'"
            yield Finding(
                Severity.ERROR,
                column.name,
                "label balance",
                f"label '{column.name}' is {part.commonest[0].value} in all {part.values:,} sampled {which}; check how "
                f"the label is made, or choose splits that hold every class",
            )
    if column.feature_kind == "candidate":
        yield from _unseen_findings(column, limits)
    if column.feature_kind not in ("binary", "multi_class"):
        return
    classes = _class_shares(train)
    is_complete = train.distinct == len(train.commonest)
    if classes and is_complete and len(classes) > 1:
        rarest = min(classes, key=lambda name: classes[name])
        if classes[rarest] < limits.rare_class:
            rows = round(classes[rarest] * profile.splits[TRAIN_SPLIT].rows)
            yield Finding(
                Severity.WARNING,
                column.name,
                "label balance",
                f"label '{column.name}' is {rarest} in {_percent(classes[rarest])} of the training rows (about "
                f"{rows:,}); add rows of it, weigh them, or judge the model by precision and recall",
            )
    for split, part in _others(column):
        shares = _class_shares(part)
        for name, share in classes.items():
            if abs(shares.get(name, 0.0) - share) >= limits.label_change:
                yield Finding(
                    Severity.WARNING,
                    column.name,
                    "label balance",
                    f"label '{column.name}' is {name} in {_percent(share)} of the training rows, but in "
                    f"{_percent(shares.get(name, 0.0))} of split '{split}'; probabilities learnt from the one will be "
                    f"off on the other: compare how the two were chosen",
                )
                break  # with two classes the other one says the same again


def _label_identity_findings(column: ColumnProfile, limits: Limits) -> Iterator[Finding]:
    relation = column.label
    if relation is None:
        return
    what_to_do = (
        "it is most likely made from the label, or known only after it: take it out of the spec, or use its value "
        "from before the label's window"
    )
    area = relation.area
    if area is not None and max(area, 1 - area) >= limits.agreement:
        yield Finding(
            Severity.ERROR,
            column.name,
            "label leak",
            f"'{column.name}' alone separates the classes of the label (area under the curve {area:.4f} in the "
            f"training rows); {what_to_do}",
        )
    elif relation.agreement >= limits.agreement and relation.coverage >= limits.missing:
        yield Finding(
            Severity.ERROR,
            column.name,
            "label leak",
            f"'{column.name}' determines the label: each of its values goes with one class only (in "
            f"{_percent(relation.agreement)} of the training rows whose value occurs more than once); {what_to_do}",
        )


def _schema_findings(profile: DatasetProfile, reference: DatasetProfile) -> Iterator[Finding]:
    for former in reference.columns:
        column = profile.column(former.name)
        if column is None:
            yield Finding(
                Severity.WARNING,
                former.name,
                "schema",
                f"column '{former.name}' ({former.type}) of the former dataset is gone; if a model in use needs it, "
                f"add it to the query",
            )
        elif column.type != former.type:
            yield Finding(
                Severity.ERROR if column.kind != former.kind else Severity.WARNING,
                column.name,
                "schema",
                f"'{column.name}' was {former.type} in the former dataset and is {column.type} now; cast it back, or "
                f"validate without this reference if the change is meant",
            )
    for column in profile.columns:
        if reference.column(column.name) is None:
            yield Finding(
                Severity.NOTE, column.name, "schema", f"'{column.name}' is new: the former dataset has no such column"
            )


def _change_findings(column: ColumnProfile, former: ColumnProfile, limits: Limits) -> Iterator[Finding]:
    now, before = column.splits[TRAIN_SPLIT].missing_share, former.splits[TRAIN_SPLIT].missing_share
    if abs(now - before) >= limits.missing_change:
        yield Finding(
            Severity.WARNING,
            column.name,
            "missing",
            f"'{column.name}' is missing in {_percent(now)} of the training rows, in the former dataset it was "
            f"{_percent(before)}; find out what changed in its source",
        )


def _drift_findings(drift: tuple[Drift, ...], profile: DatasetProfile, limits: Limits) -> Iterator[Finding]:
    moved = [entry for entry in drift if entry.excess >= limits.drift]
    for column in profile.columns:
        if column.role in (Role.KEY, Role.WEIGHT, Role.EXCLUDE):
            continue
        mine = [entry for entry in moved if entry.column == column.name]
        for entry in mine:
            if entry.against == "reference":
                strong = entry.excess >= limits.strong_drift
                yield Finding(
                    Severity.WARNING if strong else Severity.NOTE,
                    column.name,
                    "drift",
                    f"'{column.name}' has {'moved far' if strong else 'moved'} since the former dataset (stability "
                    f"index {entry.index:.2f}); compare its shares then and now: if the change is real, train anew, "
                    f"else mend the source",
                )
        told = " and ".join(f"'{entry.split}' ({entry.index:.2f})" for entry in mine if entry.against == TRAIN_SPLIT)
        if told and column.kind is not ColumnKind.TIME:
            # A split by time is meant to differ, so this is worth a look and no more.
            yield Finding(
                Severity.NOTE,
                column.name,
                "drift",
                f"'{column.name}' differs from the training rows in split {told}, as the stability index has it; "
                f"expect the model to do worse there than on rows like those it has learnt from",
            )


def _hashed_columns(spec: FeatureSpec) -> frozenset[str]:
    """Return the columns whose tokens are hashed: to those no token is new."""
    return frozenset(
        feature.name
        for feature in spec.features
        if isinstance(feature, TokenFeature) and spec.hash_buckets(feature) is not None
    )


def _others(column: ColumnProfile) -> Iterator[tuple[str, SplitColumn]]:
    return ((split, part) for split, part in column.splits.items() if split != TRAIN_SPLIT)


def _class_shares(part: SplitColumn) -> Mapping[str, float]:
    return {entry.value: entry.count / part.values for entry in part.commonest} if part.values else {}


def _shown(column: ColumnProfile, value: str) -> str:
    return value if column.kind is ColumnKind.NUMBER else f"'{value}'"


def _percent(share: float) -> str:
    """Return a share as a person reads it: never 0% or 100% where it is not."""
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.001:
        return "less than 0.1%"
    if share > 0.999:
        return "more than 99.9%"
    return f"{share:.1%}"
