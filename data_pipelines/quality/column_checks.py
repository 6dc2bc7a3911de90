"""Checks of single columns: missing, infinite, constant, extreme and new values, labels, and label leaks."""

import re
from collections.abc import Iterator, Mapping

from mirrorspark.data_pipelines.dataset import TRAIN_SPLIT
from mirrorspark.data_pipelines.features import date_formats
from mirrorspark.data_pipelines.quality.findings import Finding, Limits, Severity, percent
from mirrorspark.data_pipelines.quality.profile import ColumnProfile, DatasetProfile, SplitColumn
from mirrorspark.data_pipelines.quality.raw_value_columns import ColumnKind, Role

_SHOWN_VALUES = 3
_LEAST_DATES = 3  # fewer different values may look like dates by chance


def column_findings(column: ColumnProfile, profile: DatasetProfile, limits: Limits) -> Iterator[Finding]:
    """Yield the findings about a column's own values, by its role."""
    if column.role is Role.KEY:
        yield from _key_findings(column)
        return
    yield from _infinite_findings(column)
    if column.role is Role.EXCLUDE:
        # Training rows need no exclusions: they matter for scoring.
        return
    if column.role is Role.LABEL:
        yield from _label_findings(column, profile, limits)
        return
    yield from _missing_findings(column, profile, limits)
    if column.role is Role.WEIGHT:
        yield from _weight_findings(column)
        return
    yield from _constant_findings(column, limits)
    yield from _date_findings(column)
    yield from _range_findings(column, limits)
    yield from _label_identity_findings(column, limits)


def unseen_findings(column: ColumnProfile, limits: Limits) -> Iterator[Finding]:
    """Yield findings about tokens of another split that the training rows lack."""
    train = column.splits[TRAIN_SPLIT]
    for split, part in _others(column):
        if train.out_of_vocabulary_share is None or part.out_of_vocabulary_share is None:
            # Good and Turing: the share of values that occur once in a sample estimates the share of those it lacks.
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
            f"{percent(share)} of the values of '{column.name}' in split '{split}' {where}"
            + (f"; {percent(usual)} would be usual" if usual else "")
            + (f" (most frequent: {examples})" if examples else "")
            + "; the model knows nothing of them: train on newer rows, or use a coarser column or hashing",
        )


def _key_findings(column: ColumnProfile) -> Iterator[Finding]:
    for split, part in column.splits.items():
        if part.missing_share:
            yield Finding(
                Severity.ERROR,
                column.name,
                "missing",
                f"key '{column.name}' is missing in {percent(part.missing_share)} of the rows of split '{split}'; a "
                f"key identifies its row: fill it, or filter those rows out",
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
            f"'{column.name}' has no value in any of the {profile.splits[TRAIN_SPLIT].rows:,} training rows; fix the "
            f"query or the join that provides it, or take it out of the spec",
        )
        return
    # An empty list is often a value: no earlier flight, no purchase yet.
    is_list = any(part.lengths is not None for part in column.splits.values())
    missing = "empty" if is_list else "missing"
    if train >= limits.missing:
        yield Finding(
            Severity.NOTE if is_list else Severity.WARNING,
            column.name,
            "missing",
            f"'{column.name}' is {missing} in {percent(train)} of the training rows; if that is not intended, fix "
            f"the join that provides it",
        )
    for split, part in _others(column):
        if part.missing_share == 1:
            yield Finding(
                Severity.ERROR,
                column.name,
                "missing",
                f"'{column.name}' has no value in any row of split '{split}', but in {percent(1 - train)} of the "
                f"training rows; the model would be judged on data it will not see: fix the source of the column",
            )
        elif abs(part.missing_share - train) >= limits.missing_change:
            yield Finding(
                Severity.WARNING,
                column.name,
                "missing",
                f"'{column.name}' is {missing} in {percent(part.missing_share)} of split '{split}', but in "
                f"{percent(train)} of the training rows; find out what changed between the two",
            )


def _weight_findings(column: ColumnProfile) -> Iterator[Finding]:
    spread = column.splits[TRAIN_SPLIT].spread
    if spread is not None and spread.minimum < 0:
        yield Finding(
            Severity.ERROR,
            column.name,
            "range",
            f"weight '{column.name}' is as low as {spread.minimum:g}; a weight must be zero or more: fix its column",
        )
    if spread is not None and spread.maximum == 0:
        yield Finding(
            Severity.ERROR,
            column.name,
            "range",
            f"weight '{column.name}' is zero in all training rows, so nothing would be learnt; fix its column",
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
            f"'{column.name}' is {value} in every training row, so it carries no information; take it out of the spec",
        )
    elif train.commonest_share >= limits.constant and train.distinct > 1:
        yield Finding(
            Severity.NOTE,
            column.name,
            "constant",
            f"'{column.name}' is {value} in {percent(train.commonest_share)} of the training rows that have it; it "
            f"carries little information: take it out, unless the rare values matter",
        )


def _date_findings(column: ColumnProfile) -> Iterator[Finding]:
    """Yield a finding about dates that are categories: a later day is unknown to the model."""
    train = column.splits[TRAIN_SPLIT]
    if column.feature_kind != "categorical" or train.distinct < _LEAST_DATES:
        return
    values = [entry.value for entry in train.commonest]
    orders = [
        order
        for order, found in date_formats.DATE_PATTERNS.items()
        if all(re.fullmatch(found.expression, value) for value in values)
    ]
    if orders:
        yield Finding(
            Severity.WARNING,
            column.name,
            "dates",
            f"'{column.name}' holds dates as text (such as '{values[0]}'), each of which is a category of its own, so "
            f"that the model knows nothing of other days; give the feature the kind date and the order "
            f"{' or '.join(orders)}, or take it out of the spec",
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
                f"{spread.maximum:g}) in {percent(part.outside_share)} of split '{split}', which reaches from "
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


def _label_findings(column: ColumnProfile, profile: DatasetProfile, limits: Limits) -> Iterator[Finding]:
    train = column.splits[TRAIN_SPLIT]
    for split, part in column.splits.items():
        # A row of a multi-label problem may have no label at all.
        if part.missing_share and column.feature_kind != "multi_label":
            yield Finding(
                Severity.ERROR,
                column.name,
                "missing",
                f"label '{column.name}' is missing in {percent(part.missing_share)} of split '{split}'; filter those "
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
        yield from unseen_findings(column, limits)
    if column.feature_kind not in ("binary", "multi_class", "ordinal"):
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
                f"label '{column.name}' is {rarest} in {percent(classes[rarest])} of the training rows (about "
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
                    f"label '{column.name}' is {name} in {percent(share)} of the training rows, but in "
                    f"{percent(shares.get(name, 0.0))} of split '{split}'; probabilities learnt from the one will be "
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
            f"{percent(relation.agreement)} of the training rows whose value occurs more than once); {what_to_do}",
        )


def _others(column: ColumnProfile) -> Iterator[tuple[str, SplitColumn]]:
    return ((split, part) for split, part in column.splits.items() if split != TRAIN_SPLIT)


def _class_shares(part: SplitColumn) -> Mapping[str, float]:
    return {entry.value: entry.count / part.values for entry in part.commonest} if part.values else {}


def _shown(column: ColumnProfile, value: str) -> str:
    return value if column.kind is ColumnKind.NUMBER else f"'{value}'"
