"""What travels to an executor says so when the executor's Python cannot run it."""

import pickle
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cloudpickle
import pytest

from scoring.batch import BatchTask
from scoring.scorer import Scorer
from scoring.shipping import ShippedModel, portable


@dataclass(frozen=True)
class Doubling:
    def __call__(self, batches: Iterable[int]) -> Iterator[int]:
        return (2 * batch for batch in batches)


TASK = BatchTask(("id",), Scorer(ShippedModel("0" * 64, "flights/3", path="/model", archive=None)))


def test_a_portable_task_does_what_the_task_does() -> None:
    run = pickle.loads(cloudpickle.dumps(portable(Doubling())))  # noqa: S301
    assert list(run([1, 2])) == [2, 4]


def test_an_executor_without_our_packages_says_which_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    travelling = cloudpickle.dumps(portable(TASK))
    for name in [name for name in sys.modules if name.partition(".")[0] == "scoring"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scoring", None)
    run = pickle.loads(travelling)  # noqa: S301
    with pytest.raises(ModuleNotFoundError, match=r"on this executor cannot import 'scoring.*'; install mirrorspark"):
        run([])


def test_a_task_carries_no_model() -> None:
    assert len(cloudpickle.dumps(portable(TASK))) < 4_000


def test_a_task_without_rows_loads_no_model() -> None:
    assert list(TASK([])) == []
