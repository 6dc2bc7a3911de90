"""Totals in shared files: a task that runs again counts once, as do the terms of one attempt together."""

import operator
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyspark import TaskContext

from mirrorspark.spark_session.connect_totals import SharedTotal
from mirrorspark.storage import StoragePath


def in_task(patch: pytest.MonkeyPatch, stage: int, partition: int, attempt: int) -> None:
    context = SimpleNamespace(stageId=lambda: stage, partitionId=lambda: partition, taskAttemptId=lambda: attempt)
    patch.setattr(TaskContext, "_taskContext", context)


def test_terms_of_an_attempt_add_up_and_replace_those_of_a_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = SharedTotal.begin(StoragePath.of(tmp_path / "total"), 100, operator.add)
    sent: SharedTotal[int] = pickle.loads(pickle.dumps(total))  # noqa: S301 - our own
    for stage, partition, attempt, term in ((0, 0, 0, 1), (0, 1, 1, 2), (0, 1, 2, 10), (0, 1, 2, 20), (1, 1, 3, 5)):
        in_task(monkeypatch, stage, partition, attempt)
        sent.add(term)
    monkeypatch.setattr(TaskContext, "_taskContext", None)
    total.add(1_000)
    total.add(1_000)
    assert total.value == 100 + 1 + (10 + 20) + 5 + 2_000


def test_the_files_go_with_the_total_and_a_later_task_adds_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = SharedTotal.begin(StoragePath.of(tmp_path / "total"), 0, operator.add)
    sent: SharedTotal[int] = pickle.loads(pickle.dumps(total))  # noqa: S301 - our own
    del total
    in_task(monkeypatch, 0, 0, 0)
    sent.add(1)
    assert not (tmp_path / "total").exists()
