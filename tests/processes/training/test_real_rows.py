"""One table in batches of four sizes, on one, two and four workers: its losses are equal, and padding has no part."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import Label, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan
from tests.processes.training.programs import real_rows_rank as program
from tests.processes.training.ranks import run_together
from tests.unit.training.conftest import free_addresses
from tests.unit.training.token_dataset import write_dataset

# The last batch of some sizes has one row, so that other workers have padding alone.
ROWS = 129
# Other cases differ from this one in their losses alone, which the unit tests have.
USUAL = ("binary", program.OWN_STEP)
CASES = [case if case in USUAL else pytest.param(case, marks=pytest.mark.full) for case in program.CASES]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def workers_of_rings(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Return the sizes of the rings; four workers have smaller shares of a batch than two, and nothing else."""
    return (4, 2, 1) if request.config.getoption("full") else (2, 1)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, workers_of_rings: tuple[int, ...]
) -> Path:
    """Return the folder with the table and what the ranks measured."""
    folder = tmp_path_factory.mktemp("rows")
    table(folder / "dataset")
    addresses = iter(free_addresses(sum(workers_of_rings)))
    rings = [",".join(next(addresses) for _ in range(workers)) for workers in workers_of_rings]
    cases = ",".join(program.CASES if request.config.getoption("full") else USUAL)
    run_together([program.__file__, rank, folder, cases, *rings] for rank in range(max(workers_of_rings)))
    return folder


def table(path: Path) -> Dataset:
    """Write three inputs, labels of every kind, and weights, some of which are 0."""
    rng = np.random.default_rng(9)
    inputs = rng.normal(size=(3, ROWS))
    labels = [rng.integers(0, 2, ROWS), rng.integers(0, 4, ROWS), *rng.integers(0, 2, (4, ROWS)), rng.poisson(2, ROWS)]
    columns = {f"n{place}": values.astype(np.float64) for place, values in enumerate([*inputs, *labels])}
    spec = FeatureSpec(
        features=tuple(Numeric(name) for name in columns), label=Label("label"), keys=("row",), weight="weight"
    )
    rows = {"label": rng.integers(0, 2, ROWS), "weight": rng.choice([0.0, 1.0, 2.5], ROWS), "row": np.arange(ROWS)}
    plain = {name: NumericStatistics(0.0, 1.0, -9.0, 9.0, ROWS) for name in columns}
    return write_dataset(path, FittedFeatures(spec, {}, plain), {"train": pa.table(columns | rows)})


def rows_of(folder: Path, case: str, step: int, batch: int) -> list[tf.Tensor]:
    """Return inputs, labels and weights of a step of one worker without padding."""
    plan = ReadPlan("train", batch, seed=1, step=step)
    features, label, weight, scale = program.of_case(program.read(Dataset.open(folder / "dataset"), plan)[0], case)
    # Padding is all zeros, and an input never is 0.
    is_row = features[:, 0] != 0
    assert np.count_nonzero(is_row) == round(batch / float(scale))
    return [part[is_row] for part in (features, label, weight)]


@pytest.mark.parametrize("case", [case for case in CASES if case != program.OWN_STEP])
def test_losses_depend_neither_on_the_size_of_batches_nor_on_the_number_of_workers(
    folder: Path, workers_of_rings: tuple[int, ...], case: str
) -> None:
    model = program.compiled(case, rate=0.0)
    model.test_step(tuple(rows_of(folder, case, 0, 512)))  # of all rows, without padding: the loss of Keras
    expected = float(model.get_metrics_result()["loss"])
    for rank in range(max(workers_of_rings)):
        with np.load(folder / f"{rank}.npz") as results:
            found = {name: value for name, value in results.items() if f"/{case}/" in name and name.endswith("loss")}
        rings = sum(rank < workers for workers in workers_of_rings)
        on_devices = 2 * (rank == max(workers_of_rings) - 1 and case == program.CASES[0])
        assert len(found) == rings * (len(program.BATCHES) + 1) + on_devices
        for name, value in found.items():
            assert value == pytest.approx(expected, rel=1e-5), name


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_the_last_batch_is_the_mean_over_its_rows(
    folder: Path, workers_of_rings: tuple[int, ...], case: str
) -> None:
    with np.load(folder / "0.npz") as file:
        results = dict(file)
    for batch in program.OF_ONE_ROW if case == program.OWN_STEP else program.BATCHES:
        model = program.compiled(case, rate=1.0)
        before = model.get_weights()
        model.train_step(tuple(rows_of(folder, case, (ROWS - 1) // batch, batch)))
        changes = [(old - new).ravel() for old, new in zip(before, model.get_weights(), strict=True)]
        for workers in workers_of_rings:
            name = f"{workers}/{batch}/{case}/gradient"
            np.testing.assert_allclose(results[name], np.concatenate(changes), rtol=1e-5, atol=1e-6, err_msg=name)
