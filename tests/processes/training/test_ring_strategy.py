"""`RingStrategy` on one, two and three workers: T3, T9; two workers equal one at the same global batch."""

import socket
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from mirrorspark.training.protocol.ring.errors import RingError
from mirrorspark.training.protocol.ring.ring import Ring
from mirrorspark.training.protocol.ring.strategy import RingStrategy
from tests.processes.training.programs import ring_rank
from tests.processes.training.ranks import run_together
from tests.unit.training.conftest import free_addresses

SYNCHRONOUS = ("adam", "own_steps", "sgd_clipped", "adagrad_cosine", "accumulated", "xla", "scaled")
LOCAL = ("local", "accumulated_local", "diloco")
IN_ROUNDS = {f"{case}_in_rounds": case for case in LOCAL}
MEANS = ("mean_of_local_steps", "mean_of_accumulated_local_steps")
OUTER = ("outer_steps", "outer_steps_of_losses")
CASES = (
    *(*SYNCHRONOUS, "float16", "skipped_steps", *LOCAL, *IN_ROUNDS),
    *(*MEANS, "custom_loop", "finite_dataset", "variables", "diverged"),
)

# Each of these is traced and trained for seconds, so only `--full` has them.
ONLY_FULL = {"sgd_clipped", "accumulated", "adagrad_cosine", "xla", "scaled", "float16", "accumulated_local", "diloco"}
ONLY_FULL |= {*IN_ROUNDS, "mean_of_accumulated_local_steps", "outer_steps_of_losses"}

# Rings of three and more are tested in test_ring.py, without TensorFlow; one alone sums nothing.
WORKERS = [pytest.param(1, marks=pytest.mark.full), 2, pytest.param(3, marks=pytest.mark.full)]
# In every run of the tests one worker does only what two are compared with.
ALONE = ("adam", "own_steps", "variables", "diverged")

Results = list[dict[str, np.ndarray]]


def each(cases: Iterable[str]) -> list[Any]:
    """Return the cases as parameters."""
    return [pytest.param(case, marks=pytest.mark.full) if case in ONLY_FULL else case for case in cases]


# The first test trains every case on one worker and on two: half a minute where nothing else runs.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[int], Results]:
    """Return a function that gives the results of every rank of a ring, trained once for all tests."""
    is_full = request.config.getoption("--full")
    folder = tmp_path_factory.mktemp("ring")
    known: dict[int, Results] = {}

    def cases_of(workers: int) -> list[str]:
        of_three = ("adam", *MEANS, *OUTER, "custom_loop", "finite_dataset")
        cases = (*CASES, *OUTER) if workers < 3 else of_three
        return [case for case in cases if is_full or (case not in ONLY_FULL and (workers > 1 or case in ALONE))]

    def of(workers: int) -> Results:
        if workers not in known:
            files = [folder / f"{workers}-{rank}.npz" for rank in range(workers)]
            cases = cases_of(workers)
            if workers == 1:
                ring_rank.save(Ring(0, 1), files[0], cases)
            else:
                addresses = ",".join(free_addresses(workers))
                program = ring_rank.__file__
                run_together([program, rank, addresses, file, ",".join(cases)] for rank, file in enumerate(files))
            known[workers] = [dict(np.load(file)) for file in files]
        return known[workers]

    return of


@pytest.mark.parametrize("case", each(SYNCHRONOUS))
def test_two_workers_equal_one_at_the_same_global_batch(results: Callable[[int], Results], case: str) -> None:
    one, two = results(1)[0], results(2)[0]
    for name in ("weights", "loss", "auc", "val_loss", "val_auc"):
        np.testing.assert_allclose(two[f"{case}/{name}"], one[f"{case}/{name}"], atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.full
def test_three_workers_equal_one_at_the_same_global_batch(results: Callable[[int], Results]) -> None:
    np.testing.assert_allclose(results(3)[0]["adam/weights"], results(1)[0]["adam/weights"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", each(CASES))
def test_all_workers_end_with_the_same_bits(results: Callable[[int], Results], case: str) -> None:
    first, second = results(2)
    for name in first:
        if name.startswith(f"{case}/"):
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_weights_that_differ_by_the_least_are_noticed_by_all_workers(results: Callable[[int], Results]) -> None:
    """T6: before a checkpoint is taken."""
    assert results(1)[0]["diverged/message"] == ""
    for rank in results(2):
        assert "1 weights, the first of them dense" in str(rank["diverged/message"])
        assert "differ between rank 0 and rank 1" in str(rank["diverged/message"])


@pytest.mark.parametrize("case", each(["float16", "local", "diloco"]))
def test_inexact_options_learn_as_well(results: Callable[[int], Results], case: str) -> None:
    exact, other = results(2)[0]["adam/val_auc"], results(2)[0][f"{case}/val_auc"]
    assert other[-1] > exact[-1] - 0.05


def test_a_step_takes_one_sum_and_one_gather_and_metrics_travel_when_they_are_read(
    results: Callable[[int], Results],
) -> None:
    """A hundred steps with a table of sparse gradients, two epochs and two validations with four metric variables."""
    two = results(2)[0]
    assert 200 < two["adam/operations"] < 280
    assert two["local/operations"] < 160


@pytest.mark.parametrize("case", each(MEANS))
@pytest.mark.parametrize("workers", WORKERS)
def test_after_their_local_steps_the_workers_go_on_from_their_mean(
    results: Callable[[int], Results], workers: int, case: str
) -> None:
    for rank in results(workers):
        np.testing.assert_allclose(rank[f"{case}/found"], rank[f"{case}/expected"], atol=1e-6)


@pytest.mark.parametrize("case", each(OUTER))
@pytest.mark.parametrize("workers", WORKERS)
def test_outer_steps_are_those_of_nesterovs_momentum(
    results: Callable[[int], Results], workers: int, case: str
) -> None:
    """DiLoCo, algorithm 1: the mean of the workers' moves is the gradient, here with momentum 0.9 and rate 0.7."""
    anchor, velocity = np.array([4.0, -2.0, 0.5]), np.zeros(3)
    targets = [np.array([1.0, 2.0, 4.0 * rank]) for rank in range(workers)]
    for outer in range(2):
        ends = []
        for rank, target in zip(results(workers), targets, strict=True):
            after_one = anchor - 0.25 * (anchor - target)
            ends.append(after_one - 0.25 * (after_one - target))
            np.testing.assert_allclose(rank[f"{case}/own"][outer], after_one, atol=1e-6)
        move = anchor - np.mean(ends, axis=0)
        velocity = 0.9 * velocity + move
        anchor = anchor - 0.7 * (move + 0.9 * velocity)
        for rank in results(workers):
            np.testing.assert_allclose(rank[f"{case}/met"][outer], anchor, atol=1e-6)


@pytest.mark.parametrize("workers", WORKERS[:2])
def test_all_workers_skip_a_step_in_which_one_has_an_infinite_gradient(
    results: Callable[[int], Results], workers: int
) -> None:
    """T3: dense or of a table; loss scaling is halved for it."""
    gradient = sum(range(1, workers + 1))  # over the ranks, each of which has its number plus one
    dense = np.repeat(-0.5 * gradient * np.array([[1], [1], [2], [2]]), 2, axis=1)
    table = np.repeat(-0.5 * gradient * np.array([[1], [0], [1], [0]]), 2, axis=1)
    for rank in results(workers):
        np.testing.assert_array_equal(rank["skipped_steps/dense"], dense)
        np.testing.assert_array_equal(rank["skipped_steps/table"], table)
        assert rank["skipped_steps/loss_scale"] == 64 / 2 / 2
        assert rank["skipped_steps/steps"] == 4


@pytest.mark.parametrize("case", each(IN_ROUNDS))
@pytest.mark.parametrize("workers", WORKERS[:2])
def test_rounds_of_the_step_loop_are_those_that_local_updates_count_themselves(
    results: Callable[[int], Results], workers: int, case: str
) -> None:
    found = results(workers)[0]  # of executions of 10 steps, and rounds of 4
    for name in ("weights", "operations", "loss", "auc", "val_loss", "val_auc"):
        np.testing.assert_array_equal(found[f"{case}/{name}"], found[f"{IN_ROUNDS[case]}/{name}"], err_msg=name)


@pytest.mark.full
def test_local_updates_differ_from_synchronous_ones(results: Callable[[int], Results]) -> None:
    two = results(2)[0]
    assert not np.allclose(two["local/weights"], two["adam/weights"], atol=1e-4)
    assert not np.allclose(two["diloco/weights"], two["local/weights"], atol=1e-4)


@pytest.mark.parametrize("workers", WORKERS)
def test_loops_written_for_any_strategy_see_all_workers(results: Callable[[int], Results], workers: int) -> None:
    for rank in results(workers):
        assert rank["custom_loop/replicas"] == workers
        assert rank["custom_loop/all_reduce"] == sum(range(1, workers + 1))
        assert rank["custom_loop/on_read"] == sum(range(1, workers + 1))
        assert rank["custom_loop/reduce"] == sum(range(workers)) / workers
        np.testing.assert_array_equal(rank["custom_loop/gather"], np.arange(workers))


@pytest.mark.parametrize("workers", WORKERS)
def test_a_plain_dataset_that_ends_gives_every_worker_as_many_steps(
    results: Callable[[int], Results], workers: int
) -> None:
    for name in ("steps", "steps_of_a_file"):  # one file, which two workers divide by its rows
        found = [int(rank[f"finite_dataset/{name}"]) for rank in results(workers)]
        assert found == [4] * workers  # 40 rows in batches of 12


def test_variables_that_a_function_creates_begin_as_the_chiefs(results: Callable[[int], Results]) -> None:
    """The ranks draw different numbers: :func:`test_all_workers_end_with_the_same_bits` has seen the same ones."""
    alone, (chief, other) = results(1)[0], results(2)
    for name in ("drawn", "constant", "number"):
        np.testing.assert_array_equal(chief[f"variables/{name}"], alone[f"variables/{name}"])
    assert other["variables/number"] == 7.0


def test_a_value_that_is_computed_in_a_graph_is_refused_as_an_initial_one(results: Callable[[int], Results]) -> None:
    for rank in results(2):
        assert "give tf.Variable a function that returns it" in str(rank["variables/refused"])
    assert str(results(1)[0]["variables/refused"]) == ""  # alone there is nobody to agree with


def test_rows_of_a_table_and_of_its_optimizer_are_read_without_all_others() -> None:
    strategy = RingStrategy(Ring(0, 1))
    with strategy.scope():
        table = tf.Variable(tf.zeros([100, 4]))
        slot = tf.Variable(tf.zeros([100, 4]), trainable=False)

    @tf.function
    def read() -> object:
        return strategy.run(
            lambda: (tf.nn.embedding_lookup(table, [1]), tf.gather(slot, [1]), tf.gather_nd(slot, [[1]]))
        )

    operations = {operation.type for operation in read.get_concrete_function().graph.get_operations()}
    assert operations >= {"ResourceGather", "ResourceGatherNd"}
    assert "ReadVariableOp" not in operations


def test_a_rank_lost_while_a_graph_is_traced_is_reported_as_lost() -> None:
    """T6: TensorFlow would have it that the user's code has failed."""
    (following, their_following), (preceding, their_preceding) = socket.socketpair(), socket.socketpair()
    their_following.close()
    their_preceding.close()
    made: list[tf.Variable] = []

    @tf.function
    def step() -> tf.Tensor:
        if not made:
            made.append(tf.Variable(1.0))
        return made[0].value()

    with following, preceding:
        strategy = RingStrategy(Ring(1, 2, following, preceding))
        with pytest.raises(RingError, match="rank 0 disconnected"), strategy.ring_errors(), strategy.scope():
            step()
