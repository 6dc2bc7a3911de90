"""T3: the ring and TensorFlow's own strategy make the same steps, and show the same losses, on 1, 2 and 4 workers."""

import json
from collections.abc import Callable

import pytest

from tests.processes.training.programs import strategies_rank as program
from tests.processes.training.ranks import run_together
from tests.unit.training.conftest import free_addresses

pytestmark = pytest.mark.timeout(600)

Histories = dict[str, dict[str, dict[str, list[float]]]]


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[Histories]]:
    """Return a function that gives the histories of every rank, trained once for all tests."""
    folder = tmp_path_factory.mktemp("strategies")
    known: dict[int, list[Histories]] = {}

    def of(workers: int) -> list[Histories]:
        if workers not in known:
            addresses = list(free_addresses(2 * workers))
            servers, ring = ",".join(addresses[:workers]), ",".join(addresses[workers:])
            files = [folder / f"{workers}-{rank}.json" for rank in range(workers)]
            run_together([program.__file__, rank, servers, ring, file] for rank, file in enumerate(files))
            known[workers] = [json.loads(file.read_text()) for file in files]
        return known[workers]

    return of


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.full)])
@pytest.mark.parametrize("case", program.CASES)
def test_both_strategies_show_what_one_process_does(
    histories: Callable[[int], list[Histories]], workers: int, case: str
) -> None:
    (alone,) = histories(1)
    assert set(alone["ring"][case]) == {"loss", "mae", "val_loss", "val_mae"}
    for rank in histories(workers):
        for strategy in ("multi_worker_mirrored", "ring"):
            for name, values in alone["ring"][case].items():
                assert alone[strategy][case][name] == pytest.approx(values, rel=1e-5), (strategy, name)
                assert rank[strategy][case][name] == pytest.approx(values, rel=1e-5), (strategy, name)
