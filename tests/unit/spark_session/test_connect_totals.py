"""Totals in shared files: one attempt of a task counts, with all its terms, and only files of our own tasks."""

import operator
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyspark import TaskContext

from mirrorspark.spark_session.connect_totals import ForeignTermsError, SharedTotal
from mirrorspark.storage import StoragePath


def in_task(patch: pytest.MonkeyPatch, stage: int, partition: int, attempt: int) -> None:
    context = SimpleNamespace(stageId=lambda: stage, partitionId=lambda: partition, taskAttemptId=lambda: attempt)
    patch.setattr(TaskContext, "_taskContext", context)


# Stage, partition, attempt, term; the sum that they make.
TERMS: list[tuple[list[tuple[int, int, int, int]], int]] = [
    ([(0, 0, 0, 1), (0, 1, 1, 2), (1, 1, 3, 5)], 1 + 2 + 5),
    ([(0, 1, 1, 2), (0, 1, 2, 10), (0, 1, 2, 20)], 10 + 20),  # the first attempt has failed
    ([(0, 0, 1, 1), (0, 0, 2, 1), (0, 0, 1, 1)], 1 + 1),  # a speculative twin was ended
    ([(0, 0, 1, 1), (0, 0, 2, 1), (0, 0, 2, 1), (0, 0, 1, 1)], 1 + 1),  # both have finished
    ([(0, 0, 7, 3), (0, 0, 11, 4)], 4),  # none has finished, or both: the newer one
]


@pytest.mark.parametrize(("terms", "expected"), TERMS)
def test_of_the_attempts_of_a_task_one_counts_with_all_its_terms(
    terms: list[tuple[int, int, int, int]], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = SharedTotal.begin(StoragePath.of(tmp_path / "total"), 100, operator.add)
    sent: dict[int, SharedTotal[int]] = {}
    for stage, partition, attempt, term in terms:
        in_task(monkeypatch, stage, partition, attempt)
        sent.setdefault(attempt, pickle.loads(pickle.dumps(total))).add(term)  # noqa: S301 - our own
    monkeypatch.setattr(TaskContext, "_taskContext", None)
    total.add(1_000)
    total.add(1_000)
    assert total.value == 100 + expected + 2_000


def test_processes_of_an_attempt_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = SharedTotal.begin(StoragePath.of(tmp_path / "total"), 0, operator.add)
    in_task(monkeypatch, 0, 0, 0)
    for term in (1, 2):
        sent: SharedTotal[int] = pickle.loads(pickle.dumps(total))  # noqa: S301 - our own
        sent.add(term)
    assert total.value == 1 + 2


class Planted:
    """A value that creates a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self._mark,)


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_file_that_no_task_has_signed_is_refused_and_not_unpickled(is_copy: bool, tmp_path: Path) -> None:
    total = SharedTotal.begin(StoragePath.of(tmp_path / "total"), 0, operator.add)
    total.add(1)
    (own,) = (tmp_path / "total").glob("*.terms")
    content = own.read_bytes() if is_copy else bytes(32) + pickle.dumps(Planted(tmp_path / "mark"))
    (own.parent / "0-0-0.terms").write_bytes(content)
    with pytest.raises(ForeignTermsError, match=r"0-0-0\.terms does not have the signature of a task"):
        _ = total.value
    assert not (tmp_path / "mark").exists()
    assert repr(total.key) not in repr(total)


def test_the_files_go_with_the_total_and_a_later_task_adds_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = SharedTotal.begin(StoragePath.of(tmp_path / "total"), 0, operator.add)
    sent: SharedTotal[int] = pickle.loads(pickle.dumps(total))  # noqa: S301 - our own
    del total
    in_task(monkeypatch, 0, 0, 0)
    sent.add(1)
    assert not (tmp_path / "total").exists()
