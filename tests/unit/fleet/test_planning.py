"""M5, M10, M11, M12, M14, M18, S20: hours and cores agree, groups are dealt, requests and settings are checked."""

import argparse
import json
import re
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.reading.parquet_rows import ParquetFiles, parquet_files
from mirrorspark.fleet.coefficients import fleet_from_coefficients
from mirrorspark.fleet.runs.failures import CheckedFleet
from mirrorspark.fleet.runs.ledger import LedgerError
from mirrorspark.fleet.runs.plan import plan_steps
from mirrorspark.fleet.runs.planning import command
from mirrorspark.fleet.runs.planning.capacity import (
    GETS_PER_SECOND,
    PUTS_PER_SECOND,
    CoreThroughput,
    Workload,
    plan_for_cores,
    plan_for_hours,
    size_steps,
)
from mirrorspark.fleet.runs.planning.read_costs import ReadCosts
from mirrorspark.fleet.runs.planning.rehearsal import Starts
from mirrorspark.fleet.runs.planning.settings import check_settings, recommended_settings
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.task.planner import DEFAULT_TASK_SECONDS

THROUGHPUT = CoreThroughput(100e6, 2e6, 50e6, microbatch_seconds=2.0, worker_bytes=2**30)
WORKLOAD = Workload(1_000_000, {"spring": 1_000, "autumn": 500}, 1_000.0, 1.0, row_groups=100, gets_per_row_group=10)

throughputs = st.builds(
    CoreThroughput,
    *[st.floats(1e4, 1e9)] * 3,
    microbatch_seconds=st.floats(0, 60),
    worker_bytes=st.just(2**28),
    start_seconds=st.floats(0, 60),
)
workloads = st.builds(
    Workload,
    rows=st.integers(1, 10**9),
    models=st.dictionaries(st.text(max_size=3), st.integers(1, 3_000), min_size=1, max_size=6),
    read_bytes_per_row=st.floats(1, 1e5),
    write_bytes_per_inference=st.floats(0.01, 100),
    row_groups=st.integers(1, 5_000),
    gets_per_row_group=st.floats(1, 500),
    is_wide=st.booleans(),
    input_prefixes=st.integers(1, 9),
    prefixes=st.integers(1, 9),
)


def test_a_plan_adds_up_what_each_core_does() -> None:
    plan = plan_for_cores(WORKLOAD, THROUGHPUT, 9)
    # Three steps of 500 models: 3 x 10^9 bytes read, 1.5 x 10^9 inferences of a byte each; 810 core-seconds.
    assert (plan.models_per_microbatch, plan.steps, plan.microbatches, plan.tasks) == (500, 3, 3, 27)
    assert [plan.read_core_hours * 3600, plan.compute_core_hours * 3600, plan.write_core_hours * 3600] == pytest.approx(
        [30, 750, 30]
    )
    # 300 row groups of 2.7 s are 34 for the busiest core; two of three microbatches are begun at once.
    assert plan.hours * 3600 == pytest.approx(34 * 2.7 + 3 / 2 * 2)
    assert plan.task_seconds == pytest.approx(12 * 2.7)
    later = plan_for_cores(WORKLOAD, replace(THROUGHPUT, start_seconds=7.0), 9)
    assert [later.hours * 3600, later.start_hours * 3600] == pytest.approx([94.8 + 7, 7])
    assert plan.core_hours == pytest.approx(9 * 94.8 / 3600)
    assert plan.cost(0.05) == pytest.approx(plan.core_hours / 20)
    assert plan.gets_per_second == pytest.approx((3_000 + 2 * 27) / 91.8)
    assert plan.puts_per_second == pytest.approx((4 * 27 + 1.5e9 / (10 * 2**20) + 12 * 3) / 91.8)
    assert (plan.bottleneck, plan.warnings, plan.at_once) == ("compute", (), 2)


@pytest.mark.parametrize(
    ("others", "bottleneck"),
    [
        ({"read_bytes_per_second": 1e6}, "read"),
        ({"write_bytes_per_second": 1e6}, "write"),
        ({"microbatch_seconds": 500.0}, "microbatches"),
        ({"start_seconds": 500.0}, "start"),
    ],
)
def test_the_bottleneck_is_what_takes_longest(others: dict[str, float], bottleneck: str) -> None:
    assert plan_for_cores(WORKLOAD, replace(THROUGHPUT, **others), 9).bottleneck == bottleneck


def test_layouts_without_columns_of_models_take_so_many_models_that_reading_is_a_tenth() -> None:
    # A row is read in 1 ms; an inference takes 0.52 us. Nine times the former is 17,308 of the latter.
    workload = replace(WORKLOAD, models={"spring": 100_000}, read_bytes_per_row=100_000.0, is_wide=False)
    plan = plan_for_cores(workload, THROUGHPUT, 9)
    assert plan.models_per_microbatch == 17_308
    assert plan_for_cores(replace(workload, is_wide=True), THROUGHPUT, 9).models_per_microbatch == 500
    assert plan_for_cores(replace(workload, models={"spring": 700}), THROUGHPUT, 9).models_per_microbatch == 700


def test_larger_steps_are_planned_with_the_columns_that_they_read() -> None:
    workload = replace(WORKLOAD, models={"spring": 100_000}, is_wide=False)
    # A row of 10,000 bytes and 5 for each model is read in 100 us and 0.05 us for each; nine times that is
    # 1,731 inferences of 0.52 us and 0.865 for each model: 1,731 / (1 - 0.865) models read a tenth.
    sized, models = size_steps(workload, THROUGHPUT, lambda models: (10_000.0 + 5 * models, 10.0))
    assert models == pytest.approx(12_857, abs=10)
    assert sized.read_bytes_per_row == 10_000 + 5 * models
    plan = plan_for_cores(sized, THROUGHPUT, 9, models)
    assert plan.read_core_hours == pytest.approx(plan.steps * 1e6 * sized.read_bytes_per_row / 100e6 / 3600)
    assert plan.with_hours(plan.hours).hours <= plan.hours
    assert size_steps(replace(workload, is_wide=True), THROUGHPUT, lambda _: (1e6, 10.0))[1] == 500


def test_steps_read_the_bytes_of_their_own_columns(tmp_path: Path) -> None:
    rows = 10_000
    columns = {name: np.random.default_rng(1).normal(size=rows) for name in ("key", "a", "unread", "b", "c")}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=rows // 2, use_dictionary=False)
    terms = [("m0", "a", 1.0), ("m1", "b", 1.0), ("m2", "c", 1.0), ("m2", "b", 1.0)]
    checked = CheckedFleet.of(fleet_from_coefficients(pd.DataFrame(terms, columns=["model", "column", "coefficient"])))
    files = ParquetFiles.of(parquet_files([tmp_path]))
    read_costs = ReadCosts.of(files.rows(["key"]), files.schema.names, ["key"])
    # Of 64 bits each: the key and one, one and two more columns; the key and two, three more.
    for models, count in ((1, (2 + 2 + 3) / 3), (2, (3 + 3) / 2), (3, 4)):
        read_bytes, gets = read_costs.of_steps(checked.fleet, plan_steps(checked, None, models))
        assert read_bytes == pytest.approx(8 * count, rel=0.02)
    assert 2 < gets < 2.1  # what is not read lies between


@given(workloads, throughputs, st.integers(1, 100_000))
def test_the_cores_for_the_hours_of_some_cores_are_no_more_and_take_no_longer(
    workload: Workload, throughput: CoreThroughput, cores: int
) -> None:
    plan = plan_for_cores(workload, throughput, cores)
    back = plan.with_hours(plan.hours)
    assert back.hours <= plan.hours
    assert back.cores <= cores
    assert back.with_cores(back.cores) == back
    assert back.cores == 1 or back.with_cores(back.cores - 1).hours > plan.hours


@given(workloads, throughputs, st.floats(1e-3, 1e4))
def test_the_hours_of_the_cores_for_some_hours_are_enough_and_one_core_less_is_not(
    workload: Workload, throughput: CoreThroughput, hours: float
) -> None:
    most = plan_for_cores(workload, throughput, 10**9)
    if most.hours > hours:
        with pytest.raises(ScoringError, match="no number of cores takes"):
            plan_for_hours(workload, throughput, hours)
        return
    plan = plan_for_hours(workload, throughput, hours)
    assert plan.hours <= hours
    assert plan.cores == 1 or plan.with_cores(plan.cores - 1).hours > hours


@given(workloads, throughputs, st.integers(1, 2_000))
def test_tasks_are_short_unless_row_groups_are_large(
    workload: Workload, throughput: CoreThroughput, cores: int
) -> None:
    plan = plan_for_cores(workload, throughput, cores)
    total = plan.read_core_hours + plan.compute_core_hours + plan.write_core_hours
    of_a_group = 3600 * total / (plan.steps * workload.row_groups)
    assert plan.task_seconds <= DEFAULT_TASK_SECONDS + of_a_group
    assert plan.microbatches * plan.models_per_microbatch >= sum(workload.models.values())
    assert plan.rows_per_microbatch * plan.microbatches >= workload.rows * plan.steps


@given(workloads, st.integers(1, 6))
def test_clusters_get_all_groups_and_none_twice(workload: Workload, clusters: int) -> None:
    assume(clusters <= len(workload.models))
    parts = plan_for_cores(workload, THROUGHPUT, 100).submissions(clusters)
    groups = [group for part in parts for group in part.workload.models]
    assert sorted(groups) == sorted(workload.models)
    assert {group: count for part in parts for group, count in part.workload.models.items()} == workload.models
    loads = [sum(part.workload.models.values()) for part in parts]
    assert min(loads) > 0
    assert max(loads) - min(loads) <= max(workload.models.values())


@given(workloads, st.integers(1, 6))
def test_clusters_that_have_some_hours_get_the_fewest_cores_and_are_together_the_whole(
    workload: Workload, clusters: int
) -> None:
    assume(clusters <= len(workload.models))
    whole = plan_for_cores(workload, THROUGHPUT, 100)
    hours = max(part.hours for part in whole.submissions(clusters))
    parts = whole.submissions(clusters, hours)
    for part in parts:
        assert part.hours <= hours
        assert part.cores <= 100
        assert part.cores == 1 or part.with_cores(part.cores - 1).hours > hours
    assert sum(part.steps for part in parts) == whole.steps
    assert sum(part.workload.inferences for part in parts) == workload.inferences
    for kind in ("read_core_hours", "compute_core_hours", "write_core_hours"):
        assert sum(getattr(part, kind) for part in parts) == pytest.approx(getattr(whole, kind))


def test_two_clusters_share_the_cores_that_one_would_need_for_the_same_hours() -> None:
    # For 94.8 s, one cluster needs 9 cores. Of 200 and 100 row groups of 2.7 s each, 6 and 3 cores take 34 each.
    whole = plan_for_cores(WORKLOAD, THROUGHPUT, 9)
    spring, autumn = whole.submissions(2, whole.hours)
    assert (dict(spring.workload.models), spring.cores) == ({"spring": 1_000}, 6)
    assert (dict(autumn.workload.models), autumn.cores) == ({"autumn": 500}, 3)
    assert [part.hours * 3600 for part in (spring, autumn)] == pytest.approx([34 * 2.7 + 2] * 2)
    # With 9 cores each, they are done sooner: 23 and 12 row groups one after the other.
    assert [part.hours * 3600 for part in whole.submissions(2)] == pytest.approx([23 * 2.7 + 2, 12 * 2.7 + 2])


def test_hours_that_no_cores_can_keep_are_refused_with_the_group_that_takes_longest() -> None:
    # A step of spring has 500 models, one of autumn 100. The average row group of three steps takes
    # (3 x 10 + 1,100 / 2 + 1,100 / 50) / 300 = 2.007 s, one of spring alone (20 + 500 + 20) / 200 = 2.7 s.
    workload = replace(WORKLOAD, models={"spring": 1_000, "autumn": 100})
    with pytest.raises(ScoringError) as found:
        plan_for_hours(workload, THROUGHPUT, 3 / 3600)
    assert str(found.value) == (
        "no number of cores takes 0.000833333 hours or less: with 300 cores it is 0.00111, as a row group is never "
        "divided; the group 'spring' of 1,000 models alone takes 0.00131; allow more hours, or write the input with "
        "smaller row groups"
    )
    with pytest.raises(
        ScoringError, match=r"0.00189, 0.00133 of which are the starts.*takes 0.00208; allow more hours$"
    ):
        plan_for_hours(workload, replace(THROUGHPUT, start_seconds=2.8), 4 / 3600)


def test_a_cluster_that_cannot_keep_the_hours_is_named() -> None:
    workload = replace(WORKLOAD, models={"spring": 1_000, "autumn": 100})
    whole = plan_for_cores(workload, THROUGHPUT, 300)
    # 2 s and a row group: of both clusters together 2.007 s, of spring 2.7 s.
    message = (
        r"cluster-1 with the group 'spring' of 1,000 models cannot be done in time: .* 200 cores it is 0.00131, as"
    )
    with pytest.raises(ScoringError, match=message):
        whole.submissions(2, whole.hours)
    assert [part.cores for part in whole.submissions(2, 5 / 3600)] == [200, 25]


def test_the_start_of_a_run_is_what_its_microbatches_do_not_take() -> None:
    # They begin 0.5 s after each other; tasks take 0.1 s, and the first ones 0.8 s, as they load the models.
    begins, tasks = (1.0, 2.2, 2.7, 3.2), (0.8, 0.1, 0.1, 0.1)
    attempts = [{"began": at, "slowest_seconds": of} for at, of in zip(begins, tasks, strict=True)]
    starts = Starts.of(5.0, attempts[::-1])
    assert [starts.microbatch, starts.run] == pytest.approx([0.4, 5 - 4 * 0.5])


def test_more_clusters_than_groups_are_refused() -> None:
    with pytest.raises(ScoringError, match="3 clusters cannot share 2 groups of models; use 1 to 2"):
        plan_for_cores(WORKLOAD, THROUGHPUT, 9).submissions(3)


def test_requests_beyond_what_a_store_serves_are_told_with_the_prefixes_that_help() -> None:
    workload = Workload(10**9, {"spring": 500}, 10.0, 1.0, row_groups=500_000, gets_per_row_group=200)
    plan = plan_for_cores(workload, THROUGHPUT, 100_000)
    assert plan.bottleneck == "store requests"
    more, _ = plan.warnings
    (prefixes,) = map(int, re.findall(r"that S3 serves; divide the output with prefixes=(\d+)$", more))
    inputs = 2 * ceil(plan.gets_per_second / GETS_PER_SECOND)
    enough, fewer = (
        plan_for_cores(replace(workload, prefixes=count, input_prefixes=inputs), THROUGHPUT, 100_000)
        for count in (prefixes, prefixes - 1)
    )
    assert (enough.warnings, enough.bottleneck) == ((), "compute")
    assert enough.puts_per_second <= PUTS_PER_SECOND < fewer.puts_per_second
    # A microbatch writes to one prefix: fewer at a time would leave prefixes idle.
    assert enough.at_once == enough.microbatches == prefixes
    short = plan_for_cores(replace(workload, rows=10, row_groups=3), THROUGHPUT, 100_000)
    assert short.warnings[0].endswith("that S3 serves; allow more hours")


def test_cores_without_work_and_long_tasks_are_told() -> None:
    plan = plan_for_cores(replace(WORKLOAD, row_groups=2), THROUGHPUT, 9)
    (idle,) = plan.warnings
    assert idle.startswith("3 of the 9 cores have nothing to do: 3 steps over 2 row groups")
    (long,) = plan_for_cores(replace(WORKLOAD, row_groups=1), THROUGHPUT, 3).warnings
    assert long.startswith("a task takes 270 s, which a lost machine costs")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_for_cores(WORKLOAD, THROUGHPUT, 0), "cores 0 is not above 0"),
        (lambda: plan_for_cores(WORKLOAD, THROUGHPUT, 1, 0), "models_per_microbatch 0 is not above 0"),
        (lambda: plan_for_hours(WORKLOAD, THROUGHPUT, 0.0), "hours 0.0 is not above 0"),
        (lambda: plan_for_hours(WORKLOAD, THROUGHPUT, float("nan")), "hours nan is not above 0"),
        (lambda: replace(WORKLOAD, rows=0), "rows 0 is not above 0"),
        (lambda: replace(WORKLOAD, models={}), "there are no models"),
        (lambda: replace(THROUGHPUT, read_bytes_per_second=0.0), "read_bytes_per_second 0.0 is not a rate"),
    ],
)
def test_numbers_that_cannot_be_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ScoringError, match=message):
        call()


def test_a_plan_is_shown_with_its_cost_and_as_json() -> None:
    plan = plan_for_cores(WORKLOAD, THROUGHPUT, 9)
    text = command.text_of(plan, 10.0)
    assert text.splitlines()[:2] == [
        "1,000,000 rows x 1,500 models = 1,500,000,000 inferences",
        "9 cores, 0.0263 hours: 0.237 core-hours, cost 2.37",
    ]
    found = json.loads(json.dumps(plan.as_json()))
    assert (found["bottleneck"], found["inferences"], found["workload"]["models"]["spring"]) == (
        "compute",
        1.5e9,
        1_000,
    )


def options_of(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["plan", "--fleet", "fleet", "--input", "a.parquet", "--keys", "id", *given])


SEVERAL = ("--clusters", "2", "--output", "/weekly/", "--submissions", "runs.json")


def test_submissions_say_what_each_cluster_needs_and_all_together() -> None:
    plan = plan_for_cores(WORKLOAD, replace(THROUGHPUT, microbatch_seconds=3.0), 9)
    options = options_of(*SEVERAL, "--hours", str(plan.hours), "--price-per-core-hour", "10")
    found = json.loads(json.dumps(command.submissions_of(options, plan, {"spark.a": "b"})))
    runs, total = found["runs"], found["total"]
    assert found["settings"] == {"spark.a": "b"}
    assert [(one["groups"], one["models"], one["cores"]) for one in runs] == [
        ({"spring": 1_000}, 1_000, 6),
        ({"autumn": 500}, 500, 3),
    ]
    for name in ("models", "inferences", "cores", "core_hours", "cost"):
        assert total[name] == pytest.approx(sum(one[name] for one in runs))
    assert (total["models"], total["inferences"], total["cores"]) == (1_500, WORKLOAD.inferences, 9)
    # Nine cores for 34 row groups of 2.7 s and 3 s more.
    assert [total["hours"], total["cost"]] == pytest.approx([94.8 / 3600, 10 * 9 * 94.8 / 3600])
    assert command.text_of_submissions(found).splitlines() == [
        "divided among 2 clusters: 1,500 models, 9 cores, 0.0263 hours: 0.237 core-hours, cost 2.37",
        "  cluster-1: 1,000 models, 6 cores, 0.0263 hours: 0.158 core-hours, cost 1.58",
        "  cluster-2: 500 models, 3 cores, 0.0263 hours: 0.079 core-hours, cost 0.79",
    ]
    by_cores = command.submissions_of(options_of(*SEVERAL, "--cores", "9"), plan, {})
    assert [one["cores"] for one in by_cores["runs"]] == [9, 9]
    assert by_cores["total"]["cost"] is None
    assert "cost" not in command.text_of_submissions(by_cores)


@pytest.mark.parametrize("ledger", ["ledger.db", "postgresql://user@host/database"])
def test_the_runs_of_clusters_have_the_ledger_that_was_given(ledger: str) -> None:
    plan = plan_for_cores(WORKLOAD, THROUGHPUT, 9)
    options = options_of(*SEVERAL, "--cores", "9", "--ledger", ledger)
    command.check_submissions(options)
    for number, run in enumerate(command.submissions_of(options, plan, {})["runs"], 1):
        assert run["command"][:3] == ["mirrorspark", "fleet", "run"]
        assert {f"--ledger={ledger}", f"--output=/weekly/cluster-{number}"} < {*run["command"]}
    without = command.submissions_of(options_of(*SEVERAL, "--cores", "9"), plan, {})["runs"]
    assert not any("ledger" in flag for run in without for flag in run["command"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--clusters", "2"], "give all three"),
        (["--ledger", "ledger.db"], "--ledger is that of the runs of --clusters"),
        ([*SEVERAL, "--output", "s3://bucket/weekly"], "SQLite cannot be on s3://bucket/weekly; give a --ledger"),
        ([*SEVERAL, "--ledger", "postgresql://u:hidden@host/d"], "postgresql://host/d has a password.*PGPASSWORD"),
        ([*SEVERAL, "--ledger", "postgresql://host/d?password=hidden"], "has a password"),
        ([*SEVERAL, "--ledger", "postgresql://u:hidden@host:port/d"], "cannot be opened"),
    ],
)
def test_options_for_clusters_that_do_not_fit_are_refused_without_the_password(given: list[str], message: str) -> None:
    with pytest.raises((ScoringError, LedgerError), match=message) as found:
        command.check_submissions(options_of("--cores", "9", *given))
    assert "hidden" not in str(found.value)


# Settings of Spark.


def test_the_recommended_settings_pass_their_own_check() -> None:
    settings = recommended_settings(2**30, 4) | {"spark.executor.cores": "4"}
    # A quarter more than four GiB, and 384 MiB or a tenth of the heap for the JVM.
    assert settings["spark.executor.memoryOverhead"] == "5505m"
    assert recommended_settings(2**30, 4, "10g")["spark.executor.memoryOverhead"] == "6145m"
    assert check_settings(settings, at_once=2, worker_bytes=2**30) == []


@pytest.mark.parametrize(
    ("others", "problem"),
    [
        ({"spark.scheduler.mode": "FIFO"}, "spark.scheduler.mode is not FAIR"),
        ({"spark.task.maxFailures": "1"}, "spark.task.maxFailures 1 is below 4"),
        ({"spark.excludeOnFailure.enabled": "false"}, "spark.excludeOnFailure.enabled is not true"),
        ({"spark.executor.memoryOverhead": "1g"}, "has 1,024 MiB for the Python processes of 4 cores.*to 5505m"),
        ({"spark.executor.memoryOverhead": "1g", "spark.executor.memory": "10g"}, "memoryOverhead to 6145m"),
        ({"spark.executor.memoryOverhead": "2048"}, "has 2,048 MiB"),
        ({"spark.executor.pyspark.memory": "3g"}, "has 3,072 MiB.*set spark.executor.pyspark.memory to 5121m"),
    ],
)
def test_a_setting_that_is_missing_is_named(others: dict[str, str], problem: str) -> None:
    settings = recommended_settings(2**30, 4) | {"spark.executor.cores": "4"} | others
    (found,) = check_settings(settings, at_once=2, worker_bytes=2**30)
    assert re.search(problem, found)


def test_sparks_defaults_lack_what_a_fleet_wants() -> None:
    assert len(check_settings({}, at_once=2, worker_bytes=2**30)) == 3
    assert check_settings({"spark.excludeOnFailure.enabled": "true"}, at_once=1, worker_bytes=2**28) == []
