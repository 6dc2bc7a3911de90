"""T11: who does what in a training with parameter servers, and what is cut over the servers."""

import pytest

from mirrorspark.training.programs.parameter_servers.worker_input import worker_read_plan
from mirrorspark.training.protocol.roles import SHARD_BYTES, RankRole, Roles, shards

TWO_AND_TWO = Roles(workers=2, servers=2)


def test_one_rank_coordinates_then_come_workers_then_servers() -> None:
    assert TWO_AND_TWO.ranks == 5
    assert [TWO_AND_TWO.of(rank) for rank in range(5)] == [
        RankRole("chief", 0),
        RankRole("worker", 0),
        RankRole("worker", 1),
        RankRole("ps", 0),
        RankRole("ps", 1),
    ]
    assert Roles.among(5, workers=2) == TWO_AND_TWO
    with pytest.raises(ValueError, match="rank 5 is not one of 5"):
        TWO_AND_TWO.of(5)


@pytest.mark.parametrize("ranks", [0, 2])
def test_too_few_ranks_are_refused(ranks: int) -> None:
    with pytest.raises(ValueError, match="use at least 1 of each"):
        Roles.among(ranks, workers=1)


def test_cluster_has_every_rank_under_its_job() -> None:
    cluster = TWO_AND_TWO.cluster(["a:1", "b:1", "b:2", "c:1", "c:2"])
    assert cluster == {"chief": ["a:1"], "worker": ["b:1", "b:2"], "ps": ["c:1", "c:2"]}
    with pytest.raises(ValueError, match="1 addresses for 5 ranks"):
        TWO_AND_TWO.cluster(["a:1"])


def test_a_worker_may_be_missed_but_not_all_of_them_and_no_server() -> None:
    gone = "it closed the connection"
    assert TWO_AND_TWO.missed({}) is None
    assert TWO_AND_TWO.missed({2: gone}) is None
    assert TWO_AND_TWO.missed({2: gone, 1: gone}) == 1
    assert TWO_AND_TWO.missed({2: gone, 4: gone}) == 4
    assert not TWO_AND_TWO.is_dispensable(0)


def test_roles_have_names() -> None:
    names = [str(TWO_AND_TWO.of(rank)) for rank in (0, 2, 3)]
    assert names == ["the coordinator", "worker 1", "parameter server 0"]


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ([SHARD_BYTES, 8], [3, 1]),
        ([SHARD_BYTES // 4, 2], [2, 1]),  # a third part would be smaller than one may be
        ([SHARD_BYTES // 4 + 1], [1]),
        ([128, 64], [1, 1]),
        ([2, SHARD_BYTES], [2, 1]),  # no part without a row
    ],
)
def test_large_variables_are_cut_by_their_rows(shape: list[int], parts: list[int]) -> None:
    assert shards(shape, 4, servers=3) == parts


def test_an_epoch_is_shared_by_all_workers() -> None:
    plan = worker_read_plan(rows=1000, batch_size=100, role=RankRole("worker", 1), roles=TWO_AND_TWO, seed=7)
    assert (plan.global_batch_size, plan.batch_size_per_worker) == (200, 100)
    assert (plan.rank, plan.workers, plan.seed, plan.remainder) == (1, 2, 7, "drop")


def test_rows_that_are_fewer_than_a_batch_for_each_are_padded() -> None:
    assert worker_read_plan(199, 100, RankRole("worker", 0), TWO_AND_TWO, 1).remainder == "pad"


@pytest.mark.parametrize(("step_in_epoch", "step"), [(0, 0), (1, 0), (7, 3), (11, 4)])
def test_streams_go_on_from_the_mean_of_all_workers(step_in_epoch: int, step: int) -> None:
    # 5 steps of 2 workers; the 11th update of an epoch of 11 is the padded one.
    plan = worker_read_plan(1050, 100, RankRole("worker", 0), TWO_AND_TWO, 1, epoch=3, step_in_epoch=step_in_epoch)
    assert (plan.epoch, plan.step) == (3, step)
