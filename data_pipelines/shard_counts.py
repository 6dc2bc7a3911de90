"""Conclusions from the counts of written shards: labels of one class, exact findings, the numbers of a manifest."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from mirrorspark.data_pipelines.dataset import SPLITS, TRAIN_SPLIT, DatasetError, ShardResult, Staged
from mirrorspark.data_pipelines.features import FittedFeatures, kinds
from mirrorspark.data_pipelines.quality import Finding, Report, Severity, profiling


def check_classes(results: Sequence[ShardResult], label: kinds.Label) -> None:
    """Refuse a split in which a binary label has only one class.

    Raises:
        DatasetError: There is one; if no training row has the positive value, the message names it.
    """
    for split in SPLITS:
        mine = [result for result in results if result.split == split]
        rows = sum(result.shard.rows for result in mine)
        positives = [result.counts["label/positive"] for result in mine if "label/positive" in result.counts]
        if positives and not sum(positives) and split == TRAIN_SPLIT and label.positive is not None:
            raise DatasetError(
                f"none of the {rows} training rows has the positive value '{label.positive}' of label '{label.name}'; "
                f"correct positive, or the rule that makes the split column"
            )
        if positives and sum(positives) in (0, rows):
            raise DatasetError(
                f"the label has one class only ({int(sum(positives) > 0)}) in all {rows} rows of split '{split}'; "
                f"a model needs rows of both classes"
            )


def with_exact_findings(report: Report, staged: Staged, results: Sequence[ShardResult]) -> Report:
    """Add findings that a sample cannot show: single infinite numbers, and rows repeated in another split."""
    known = {finding.column for finding in report.findings if finding.check == "infinite"}
    infinite: Counter[tuple[str, str]] = Counter()
    for result in results:
        for key, count in result.counts.items():
            column, _, what = key.rpartition("/")
            if what == "infinite" and count and column not in known:
                infinite[column, result.split] += count
    found = [
        Finding(
            Severity.ERROR,
            column,
            "infinite",
            f"'{column}' is infinite, or beyond what a 32-bit float holds, {count:,} times in split '{split}'; turn "
            f"such values into null or a finite number",
        )
        for (column, split), count in sorted(infinite.items())
    ]
    if staged.repeated_rows:
        sentence = (
            f"at least {staged.repeated_rows:,} rows are equal, in every column, to a row of another split; the model "
            f"is judged on rows that it has learnt: check the rule that makes the split column, or drop repeated rows"
        )
        found.append(Finding(Severity.WARNING, "", "repeated rows", sentence))
    rank = list(Severity)
    findings = sorted((*found, *report.findings), key=lambda finding: rank.index(finding.severity))
    return replace(report, findings=tuple(findings))


def split_counts(results: Sequence[ShardResult]) -> dict[str, profiling.SplitCounts]:
    """Return the rows and bytes of every split, with the missing values and tokens of its columns."""
    counts = {}
    for split in SPLITS:
        mine = [result for result in results if result.split == split]
        by_kind: dict[str, dict[str, int]] = {"missing": {}, "tokens": {}, "out_of_vocabulary": {}}
        for result in mine:
            for key, count in result.counts.items():
                column, _, what = key.rpartition("/")
                if what in by_kind:
                    by_kind[what][column] = by_kind[what].get(column, 0) + count
        counts[split] = profiling.SplitCounts(
            rows=sum(result.shard.rows for result in mine),
            bytes=sum(result.shard.bytes for result in mine),
            shards=len(mine),
            **by_kind,
        )
    return counts


def statistics(results: Sequence[ShardResult], fitted: FittedFeatures) -> dict[str, dict[str, float]]:
    """Return the numbers of every feature for the manifest: those fitted, and the counts of each split."""
    statistics: dict[str, dict[str, float]] = {feature.name: {} for feature in fitted.spec}
    for name, numbers in fitted.statistics.items():
        statistics.setdefault(name, {}).update(vars(numbers))
    for owner in fitted.spec.vocabulary_owners:
        statistics.setdefault(owner.name, {})["vocabulary"] = len(fitted.vocabulary(owner))
    for result in results:
        for key, count in result.counts.items():
            name, _, what = key.rpartition("/")
            entry = statistics.setdefault(name, {})
            column = f"{result.split}_{what}"
            entry[column] = entry.get(column, 0) + count
    return statistics
