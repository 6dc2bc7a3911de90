"""Validation of a dataset before training: findings in words, from its profile.

It is a pure function of the profile; ``convert`` acts on the findings.
"""

from collections.abc import Iterator

from mirrorspark.data_pipelines.dataset import SPLITS, TRAIN_SPLIT
from mirrorspark.data_pipelines.features import FeatureSpec, kinds
from mirrorspark.data_pipelines.quality.column_checks import column_findings, unseen_findings
from mirrorspark.data_pipelines.quality.drift import Drift, measure_drift
from mirrorspark.data_pipelines.quality.findings import Finding, Limits, Report, Severity, percent
from mirrorspark.data_pipelines.quality.profile import ColumnProfile, DatasetProfile
from mirrorspark.data_pipelines.quality.raw_value_columns import ColumnKind, Role

_EFFECT_OF_FEW = {"validation": "the choice of the best epoch", "test": "the comparison with a baseline"}
_HELD_BACK = tuple(split for split in SPLITS if split != TRAIN_SPLIT)


def validate(
    profile: DatasetProfile,
    spec: FeatureSpec,
    reference: DatasetProfile | None = None,
    limits: Limits | None = None,
) -> Report:
    """Return the findings about a dataset, from its profile.

    Args:
        profile: The dataset's profile, taken with the same ``reference`` if there is one.
        spec: The feature specification.
        reference: Profile of a former dataset that this one should resemble.
        limits: Thresholds of findings.
    """
    limits = limits or Limits()
    drift = tuple(sorted(measure_drift(profile, reference), key=lambda entry: -entry.index))
    found = [*_dataset_findings(profile, spec, limits)]
    hashed = _hashed_columns(spec)
    for column in profile.columns:
        found += column_findings(column, profile, limits)
        if column.role is Role.FEATURE and column.name not in hashed:
            found += unseen_findings(column, limits)
        former = reference.column(column.name) if reference else None
        if former is not None:
            found += _change_findings(column, former, limits)
    if reference is not None:
        found += _schema_findings(profile, reference)
    found += _drift_findings(drift, profile, limits)
    found += _redundancy_findings(profile)
    order = {column: position for position, column in enumerate(("", *spec.columns))}
    rank = list(Severity)
    found.sort(key=lambda finding: (rank.index(finding.severity), order.get(finding.column, len(order))))
    return Report(tuple(found), drift, limits)


def _dataset_findings(profile: DatasetProfile, spec: FeatureSpec, limits: Limits) -> Iterator[Finding]:
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
                f"split '{split}' has no rows, so the model cannot be evaluated on it; check the rule that "
                f"makes the split column",
            )
        elif split in _HELD_BACK and (rows := profile.splits[split].rows) < limits.held_back_rows:
            yield Finding(
                Severity.WARNING,
                "",
                "rows",
                f"split '{split}' has {rows} {'row' if rows == 1 else 'rows'}, so few that {_EFFECT_OF_FEW[split]} is "
                f"mostly chance; give a larger table, or more of its rows to this split",
            )


def _schema_findings(profile: DatasetProfile, reference: DatasetProfile) -> Iterator[Finding]:
    for former in reference.columns:
        column = profile.column(former.name)
        if column is None:
            yield Finding(
                Severity.WARNING,
                former.name,
                "schema",
                f"column '{former.name}' ({former.type}) of the former dataset is missing; if a model in use needs it, "
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
            f"'{column.name}' is missing in {percent(now)} of the training rows, in the former dataset it was "
            f"{percent(before)}; find out what changed in its source",
        )


def _redundancy_findings(profile: DatasetProfile) -> Iterator[Finding]:
    for each in profile.redundant:
        how = (
            f"each value of '{each.column}' goes with one value of '{each.same_as}', and the other way round"
            if each.correlation is None
            else f"'{each.column}' and '{each.same_as}' have a correlation of {each.correlation:.4f}"
        )
        yield Finding(
            Severity.NOTE,
            each.column,
            "redundant",
            f"{how} in the sampled training rows, so the two say the same: one of them may be enough",
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
                    f"index {entry.index:.2f}); compare its shares then and now: if the change is real, retrain, "
                    f"or else fix the source",
                )
        others = " and ".join(f"'{entry.split}' ({entry.index:.2f})" for entry in mine if entry.against == TRAIN_SPLIT)
        if others and column.kind is not ColumnKind.TIME:
            # A split by time is expected to differ, so this is only a note.
            yield Finding(
                Severity.NOTE,
                column.name,
                "drift",
                f"'{column.name}' differs from the training rows in split {others}, by the stability index; "
                f"expect the model to do worse there than on rows like those it has learnt from",
            )


def _hashed_columns(spec: FeatureSpec) -> frozenset[str]:
    """Return the columns whose tokens are hashed, which have no unknown tokens."""
    return frozenset(
        feature.name
        for feature in spec.features
        if isinstance(feature, kinds.TokenFeature) and spec.hash_buckets(feature) is not None
    )
