"""T3, T9: two workers train a Keras 3 model as one process does, in Keras' loop and in ours, and resume bit-equal."""

import numpy as np
import pytest

from mirrorspark.training.protocol.ring.ring import Ring
from tests.processes.training.programs import keras3_rank as program
from tests.processes.training.ranks import run_together
from tests.unit.training.conftest import free_addresses

USUAL = ("keras/plain", "keras/eagerly", "ours/plain", "ours/own losses", "ours/weighted", "ours/resumed")
TRAINED = (
    *(f"keras/{case}" for case in program.CASES),
    "ours/plain",
    "ours/summed",
    "ours/by weights",
    "ours/of rows",
    "ours/own losses",
    "ours/own step",
    "ours/weighted",
    "ours/two optimizers",
)
RESUMED = ("ours/resumed", "keras/resumed")

# Keras warns that it does not shuffle a dataset, which is its default for arrays.
pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore:.*shuffle=True. was passed:UserWarning")]

Results = list[dict[str, np.ndarray]]


def each(cases: tuple[str, ...]) -> list[object]:
    """Return the cases as parameters."""
    return [case if case in USUAL else pytest.param(case, marks=pytest.mark.full) for case in cases]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Results:
    """Return the weights and logs of both ranks."""
    folder = tmp_path_factory.mktemp("keras3")
    cases = ",".join((*TRAINED, *RESUMED) if request.config.getoption("--full") else USUAL)
    addresses = ",".join(free_addresses(2))
    run_together([program.__file__, rank, addresses, folder, cases] for rank in range(2))
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


def of(results: Results, prefix: str) -> Results:
    return [{name.removeprefix(prefix): v for name, v in one.items() if name.startswith(prefix)} for one in results]


@pytest.mark.parametrize("name", each(TRAINED))
def test_two_workers_train_as_one_process_whatever_the_loss_and_the_optimizer(results: Results, name: str) -> None:
    """T3: in Keras' loop no batch divides among the workers. The last one has one row; in ours it is padded."""
    loop, case = name.split("/")
    model, history = program.by_keras(case) if loop == "keras" else program.by_us(case, Ring(0, 1))
    for found in of(results, f"{name}/"):
        for place, expected in enumerate(model.get_weights()):
            np.testing.assert_allclose(found[f"weights/{place}"], expected, atol=1e-5)
        assert {f"logs/{metric}" for metric in history} == {one for one in found if one.startswith("logs/")}
        for metric, values in history.items():
            np.testing.assert_allclose(found[f"logs/{metric}"], values, rtol=1e-4, err_msg=metric)


def test_each_rank_predicts_all_rows(results: Results) -> None:
    expected = program.compiled("plain").predict(program.rows()[0][:5], verbose=0)
    for found in results:
        np.testing.assert_allclose(found["predictions"], expected, atol=1e-6)


@pytest.mark.parametrize("name", each(RESUMED))
def test_a_training_that_is_lost_within_an_epoch_resumes_bit_equal(results: Results, name: str) -> None:
    """T6: with dropout, noise and moving averages; metrics, too, cover the whole epoch."""
    for unbroken, broken in zip(of(results, f"{name}/None/"), of(results, f"{name}/7/"), strict=True):
        assert len(broken["logs/loss"]) == program.EPOCHS - 1
        for key, expected in unbroken.items():
            last = expected[1 - program.EPOCHS :] if key.startswith("logs") else expected
            np.testing.assert_array_equal(broken[key], last, err_msg=key)
    first, second = of(results, f"{name}/7/")
    for key, values in first.items():
        np.testing.assert_array_equal(values, second[key], err_msg=key)
