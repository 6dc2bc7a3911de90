"""Every architecture goes on with another number of ranks, to the result of the same rows on one (T6, #23)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirrorspark.callbacks.checkpoints.training_state import tensors
from tests.processes.training.programs.architectures_rank import ROWS
from tests.processes.training.ranks import run_together
from tests.unit.models import test_every_architecture as contract
from tests.unit.training.conftest import free_addresses

PROGRAM = Path(__file__).parent / "programs" / "architectures_rank.py"

pytestmark = pytest.mark.timeout(600)


def state(model: Any) -> list[np.ndarray]:
    return [variable.numpy() for variable in (*model.trainable_variables, *model.optimizer.variables)]


class Alone:
    """One rank that trains all rows of each case."""

    def __init__(self, case: str, comment: Any) -> None:
        self.task = contract.catalog.architecture(contract.name_of(case)).TASK
        self.fitted = contract.features(self.task, comment, items=contract.WITH_ITEMS in case)
        self.case, self.batch = case, contract.batch_of(self.fitted, self.task, ROWS)
        self.model = self.new(seed=1)

    def new(self, seed: int) -> Any:
        return contract.compiled(self.case, self.fitted, seed)

    def train(self, model: Any) -> list[np.ndarray]:
        for _ in range(contract.STEPS):
            model.train_step(self.batch)
        return state(model)


# A model of rows, and towers with items, are in every run of the tests.
FAMILIES = ["multi_class", "two_tower" + contract.WITH_ITEMS]
OTHERS = [case for given in contract.cases() if (case := getattr(given, "values", [given])[0]) not in FAMILIES]


@pytest.mark.parametrize("chosen", [FAMILIES, pytest.param(OTHERS, marks=pytest.mark.full)], ids=["families", "others"])
def test_two_ranks_and_then_one_again_end_where_one_does(chosen: list[str], tmp_path: Path) -> None:
    comment, cases = contract.comment_of(tmp_path), [case + contract.BY_RANKS for case in chosen]
    alone, expected = {case: Alone(case, comment) for case in cases}, {}
    for case, of in alone.items():
        of.train(of.model)
        tensors(of.model, of.model.optimizer).write(str(tmp_path / case))
        expected[case] = of.train(of.model), of.train(of.model)
    train_on_two_ranks(tmp_path, cases)
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    for case, of in alone.items():
        names = [name for name in first.files if name.startswith(f"{case}/")]
        for name in names:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        compare(case, [first[name] for name in names], expected[case][0])
        again = of.new(seed=7)
        status = tensors(again, again.optimizer).read(str(tmp_path / "two-0" / case))
        status.assert_existing_objects_matched()
        status.assert_consumed()
        compare(case, of.train(again), expected[case][1])


def train_on_two_ranks(folder: Path, cases: list[str]) -> None:
    addresses = ",".join(free_addresses(2))
    run_together([PROGRAM, rank, addresses, folder, *cases] for rank in range(2))


def compare(case: str, found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Compare what was summed in another order."""
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6, err_msg=case)
