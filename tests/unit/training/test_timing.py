"""The periods and limits of supervision fit together: none cuts off what another one has to wait for."""

from mirrorspark.training.executor.task import WorkerTask
from mirrorspark.training.protocol.limits import PhaseLimits
from mirrorspark.training.protocol.outcomes import timing


def test_words_may_be_missed_before_anybody_counts_as_silent() -> None:
    assert 3 * max(timing.ALIVE_SECONDS, timing.SYSTEM_SECONDS) <= timing.SILENT_SECONDS
    assert timing.LEASE_SECONDS >= 3 * timing.LEASE_RENEWAL_SECONDS
    assert timing.STALL_SECONDS >= 3 * timing.TICK_SECONDS


def test_a_job_is_cancelled_only_when_every_lease_is_over() -> None:
    assert timing.ABORT_SECONDS > timing.LEASE_SECONDS + timing.TICK_SECONDS


def test_a_pause_of_the_driver_that_costs_no_lease_makes_no_rank_silent_for_good() -> None:
    limits = PhaseLimits()
    assert min(limits.start_seconds, limits.step_seconds, limits.checkpoint_seconds) > timing.LEASE_SECONDS


def test_tasks_have_the_lease_that_the_driver_counts_on() -> None:
    assert WorkerTask.__dataclass_fields__["lease_seconds"].default == timing.LEASE_SECONDS
