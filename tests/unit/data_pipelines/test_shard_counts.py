"""Conclusions from the counts of written shards: a split whose label has one class (T3)."""

import pytest

from mirrorspark.data_pipelines.dataset.manifest import SPLITS, DatasetError, Shard
from mirrorspark.data_pipelines.dataset.shards import ShardResult
from mirrorspark.data_pipelines.features.kinds import Label
from mirrorspark.data_pipelines.shard_counts import check_classes


def _result(split: str, rows: int, positive: int) -> ShardResult:
    return ShardResult(split, 0, "0", Shard("s", rows, 1, 0, (0,), (rows,)), {"label/positive": positive})


@pytest.mark.parametrize(
    ("positives", "label", "message"),
    [
        (
            (0, 0, 0),
            Label("paid", positive="ys"),
            "none of the 8 training rows has the positive value 'ys' of label 'paid'",
        ),
        ((0, 1, 1), Label("paid"), r"the label has one class only \(0\) in all 8 rows of split 'train'"),
        ((3, 0, 1), Label("paid", positive="yes"), r"one class only \(0\) in all 4 rows of split 'validation'"),
        ((3, 1, 4), Label("paid", positive="yes"), r"one class only \(1\) in all 4 rows of split 'test'"),
    ],
)
def test_a_split_of_one_class_is_refused_and_a_positive_value_that_no_training_row_has_is_named(
    positives: tuple[int, int, int], label: Label, message: str
) -> None:
    """T3."""
    results = [_result(split, rows, count) for split, rows, count in zip(SPLITS, (8, 4, 4), positives, strict=True)]
    with pytest.raises(DatasetError, match=message):
        check_classes(results, label)
