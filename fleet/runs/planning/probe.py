"""Measures the rates of a fleet on a sample of its table, and plans its run with them."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, reduce
from itertools import accumulate
from math import ceil
from operator import add
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
from pyspark.sql import SparkSession

from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.data_pipelines.spark import Shares, portable, progress_bar
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.kernels import STRIP
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.packages import check_trust
from mirrorspark.fleet.runs.failures import CheckedFleet
from mirrorspark.fleet.runs.plan import DEFAULT_MODELS, Step, plan_steps
from mirrorspark.fleet.runs.planning.capacity import (
    CoreThroughput,
    FleetPlan,
    Workload,
    plan_for_cores,
    plan_for_hours,
    size_steps,
)
from mirrorspark.fleet.runs.planning.read_costs import ReadCosts, stored_bytes
from mirrorspark.fleet.runs.planning.rehearsal import Starts, rehearse
from mirrorspark.fleet.runs.task import MicrobatchWriter, Selection
from mirrorspark.fleet.score import check_result, ship_fleet
from mirrorspark.fleet.scorer import ASSUMED_INFERENCES_PER_SECOND
from mirrorspark.scoring import ScoringError, file_job
from mirrorspark.scoring.input import SparkSource
from mirrorspark.scoring.task import ShippedModel
from mirrorspark.spark_session import on_running_session, session_of
from mirrorspark.storage import Location, StoragePath
from mirrorspark.storage.publish import SaveMode, WrittenFile

DEFAULT_PROBE_SECONDS = 8.0

# The speed of a trial may be wrong by this factor.
_MOST_TIMES_LONGER = 16


@on_running_session
def plan_fleet(  # noqa: D417 - the others are those of run_fleet
    spark: SparkSession,
    fleet: Fleet | str | Path | Mapping[str, Fleet | str | Path],
    paths: Location | Sequence[Location],
    *,
    keys: str | Sequence[str],
    hours: float | None = None,
    cores: int | None = None,
    layout: str = "wide",
    outputs: str | Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    models_per_microbatch: int | None = None,
    rows: int | None = None,
    models: int | None = None,
    prefixes: int = 1,
    scratch: Location | None = None,
    seconds: float = DEFAULT_PROBE_SECONDS,
    trust: bool = False,
) -> FleetPlan:
    """Plan a run of :func:`fleet.runs.run_fleet`: the cores for some hours, or the hours on some cores.

    Tasks score a sample, some row groups on each core, and the rates that they have are taken for those of the whole
    run. A run over a few rows shows how long runs and microbatches take to start. The result plans further hours and
    cores by ``with_hours`` and ``with_cores`` without another sample.

    Args:
        spark: The session whose cores are measured.
        paths: The input, or a part of it.
        hours: The time that the run may take.
        cores: Tasks that run at the same time; give this or ``hours``.
        models_per_microbatch: By default the number that the plan chooses.
        rows: Rows to plan for; by default those of the input.
        models: Models to plan for, in the proportions of the groups; by default those of the fleet.
        scratch: A folder that all executors can write to; by default a temporary one, which a local session can.
        seconds: Duration of the sample, about; two shorter ones come first, and the run over a few rows last.

    The other arguments are those of :func:`fleet.runs.run_fleet`.

    Raises:
        UntrustedModelError: A model brings Python code, and ``trust`` is False.
        ScoringError: Neither or both of ``hours`` and ``cores`` are given, a number is not above 0, there are no rows,
            a model raises an error, no number of cores is enough, or for a reason of :func:`fleet.runs.run_fleet`.
        FleetError: See :func:`fleet.runs.run_fleet`.
        FileNotFoundError: There are no Parquet files.
        FleetRunError: The run over a few rows fails.
    """
    plan = _planner(hours, cores)
    _check_sizes(rows=rows, models=models, models_per_microbatch=models_per_microbatch, prefixes=prefixes)
    _check_sample(spark, seconds, scratch)
    begin = time.perf_counter()
    files = _files_of(paths)
    opened = time.perf_counter() - begin
    checked = CheckedFleet.of(fleet)
    check_trust(checked.fleet, trust=trust)
    checked = checked.against(files.schema)
    keys = (keys,) if isinstance(keys, str) else tuple(keys)
    table = Layout.of(checked.fleet, layout, (outputs,) if isinstance(outputs, str) else outputs)
    check_result(table, files.schema, keys)
    steps = plan_steps(checked, groups, DEFAULT_MODELS if models_per_microbatch is None else models_per_microbatch)
    largest = tuple(max(steps, key=lambda step: len(step.digests)).digests)
    columns = list(dict.fromkeys([*keys, *checked.fleet.select(largest).columns]))
    sample = _Sample(files.rows(columns), keys, table, largest)
    if not sample.table.rows:
        raise ScoringError(f"{paths} has no rows, with which nothing can be measured; name the table")
    measured, starts = _measured(spark, checked, sample, scratch, seconds)
    read_costs = ReadCosts.of(sample.table, files.footers[0].schema.names, keys)

    def read_costs_of(models: int) -> tuple[float, float]:
        return read_costs.of_steps(checked.fleet, plan_steps(checked, groups, models))

    many, row_groups = sample.table.rows if rows is None else rows, len(sample.table.groups)
    read_bytes, gets = read_costs_of(len(largest))
    workload = Workload(
        rows=many,
        models=_of_groups(steps, models),
        read_bytes_per_row=read_bytes,
        write_bytes_per_inference=measured.write_bytes / (measured.rows * len(largest)),
        row_groups=max(1, round(row_groups * many / sample.table.rows)),
        gets_per_row_group=gets,
        is_wide=table.name == "wide",
        input_prefixes=len({str(file.path.parent) for file in files.files}),
        prefixes=prefixes,
    )
    # A run opens the whole input, as this call has done; the run over a few rows did not.
    throughput = measured.throughput(len(largest), replace(starts, run=opened + starts.run))
    if models_per_microbatch is None:
        workload, models_per_microbatch = size_steps(workload, throughput, read_costs_of)
    return plan(workload, throughput, models_per_microbatch)


def _check_sample(spark: SparkSession, seconds: float, scratch: Location | None) -> None:
    if not seconds > 0:
        raise ScoringError(f"seconds {seconds} is not above 0; give some seconds for the sample")
    if scratch is None and not session_of(spark).is_local:
        raise ScoringError(
            "the executors need a folder to write the sample to; give scratch= a path that all can reach"
        )


def _files_of(paths: Location | Sequence[Location]) -> parquet_rows.ParquetFiles:
    source = file_job.find_source(paths, None)
    if isinstance(source, SparkSource):
        raise ScoringError(
            f"{', '.join(source.paths)} has the format '{source.format}', and a run takes plain Parquet files, which "
            f"do not change; write it as Parquet, and give its path"
        )
    return parquet_rows.ParquetFiles.of(source)


def _measured(
    spark: SparkSession, checked: CheckedFleet, sample: "_Sample", scratch: Location | None, seconds: float
) -> tuple["_SampleMeasurement", Starts]:
    """Score the sample, then run the fleet over a few of its rows, and remove the files of both."""
    with tempfile.TemporaryDirectory(prefix="mirrorspark-plan-") as local:
        folder = StoragePath.of(local if scratch is None else scratch) / f"probe-{uuid4().hex[:12]}"
        try:
            with progress_bar(spark, "plan"):
                measured = sample.measure(spark, checked.fleet, folder, seconds)
                starts = rehearse(
                    spark,
                    _sound(checked, sample.models),
                    sample.first_rows(),
                    folder / "run",
                    Path(local, "ledger.db"),
                    keys=sample.keys,
                    layout=sample.layout,
                )
        finally:
            folder.delete()
    return measured, starts


def _check_sizes(**sizes: int | None) -> None:
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ScoringError(f"{name} {value} is not above 0; give a number such as 100, or leave it out")


def _planner(hours: float | None, cores: int | None) -> Callable[[Workload, CoreThroughput, int | None], FleetPlan]:
    # Checked before the sample is measured, which takes a while.
    _check_sizes(cores=cores)
    if hours is not None and not hours > 0:
        raise ScoringError(f"hours {hours} is not above 0; give a number such as 15")
    if hours is not None and cores is None:
        return lambda workload, throughput, models: plan_for_hours(workload, throughput, hours, models)
    if cores is not None and hours is None:
        return lambda workload, throughput, models: plan_for_cores(workload, throughput, cores, models)
    raise ScoringError("give either hours or cores: the other one is planned")


def _sound(checked: CheckedFleet, models: Sequence[str]) -> Fleet:
    """Return the models without the failed ones, of which a run would warn; all models if none is left."""
    failed = {one.model for one in checked.failures}
    return checked.fleet.select([name for name in models if name not in failed] or models)


def _of_groups(steps: Sequence[Step], models: int | None) -> dict[str, int]:
    """Return the number of models by group, of ``models`` if that is given."""
    counts = Counter[str]()
    for step in steps:
        counts[step.group] += len(step.digests)
    total = counts.total()
    return {group: ceil(count * (total if models is None else models) / total) for group, count in counts.items()}


@dataclass(frozen=True)
class _SampleMeasurement:
    """Measurements of tasks on a sample; their seconds are summed, except in ``longest``."""

    rows: int
    read_bytes: float
    write_bytes: int
    read_seconds: float
    score_seconds: float
    write_seconds: float
    longest: float
    worker_bytes: int

    def __add__(self, other: "_SampleMeasurement") -> "_SampleMeasurement":
        added = {name: value + getattr(other, name) for name, value in asdict(self).items()}
        return _SampleMeasurement(**added | {"worker_bytes": max(self.worker_bytes, other.worker_bytes)})

    def throughput(self, models: int, starts: Starts) -> CoreThroughput:
        return CoreThroughput(
            read_bytes_per_second=self.read_bytes / max(1e-9, self.read_seconds),
            inferences_per_second=self.rows * models / max(1e-9, self.score_seconds),
            write_bytes_per_second=self.write_bytes / max(1e-9, self.write_seconds),
            microbatch_seconds=starts.microbatch,
            worker_bytes=self.worker_bytes,
            start_seconds=starts.run,
        )


@dataclass(frozen=True)
class _Sample:
    """The first rows of some row groups, with the models of a microbatch."""

    table: parquet_rows.ParquetRows
    keys: tuple[str, ...]
    layout: Layout
    models: tuple[str, ...]

    def measure(self, spark: SparkSession, fleet: Fleet, folder: StoragePath, seconds: float) -> _SampleMeasurement:
        """Score as many rows as take about ``seconds``."""
        passes = _Passes(self, spark, folder, ship_fleet(spark, fleet))
        # Loads the fleet and compiles the kernels.
        passes.score(STRIP, "warm-up")
        few = max(STRIP, int(seconds / 4 * ASSUMED_INFERENCES_PER_SECOND / len(self.models)))
        trial = passes.score(few, "trial")
        of_a_core = trial.rows / passes.tasks
        wanted = of_a_core * min(_MOST_TIMES_LONGER, max(1.0, seconds / max(1e-9, trial.longest)))
        begin = time.perf_counter()
        measured = passes.score(int(wanted), "sample-0")
        # A machine is not equally fast at all times, so that a small table is scored again.
        times = round(seconds / (time.perf_counter() - begin))
        return reduce(add, (passes.score(int(wanted), f"sample-{number}") for number in range(1, times)), measured)

    def first_rows(self) -> pa.RecordBatch:
        """Return some rows of the table."""
        place = next(place for place, rows in enumerate(self.table.group_rows) if rows)
        return next(self.table.batches((self.table.groups[place],), STRIP))

    def groups(self, tasks: int, rows: int) -> list[list[int]]:
        """Return the places of the row groups of each task, which have together ``rows`` rows, or are its share."""
        filled = [place for place, count in enumerate(self.table.group_rows) if count]
        # From the whole table: its beginning may be unlike the rest.
        shares = [filled[task * len(filled) // tasks : (task + 1) * len(filled) // tasks] for task in range(tasks)]
        found = []
        for share in shares:
            before = [0, *accumulate(self.table.group_rows[place] for place in share)]
            found.append([place for place, count in zip(share, before, strict=False) if count < rows])
        return found


class _Passes:
    """Passes over a sample in one session; each is a job.

    Attributes:
        tasks: Tasks of a pass, one for each core that has a row group.
    """

    def __init__(self, sample: _Sample, spark: SparkSession, folder: StoragePath, shipped: ShippedModel) -> None:
        self._sample, self._spark, self._folder, self._shipped = sample, spark, folder, shipped
        self.tasks = min(session_of(spark).default_parallelism, sum(rows > 0 for rows in sample.table.group_rows))
        self._bytes = lru_cache(maxsize=None)(self._bytes_of)

    def score(self, rows: int, name: str) -> _SampleMeasurement:
        """Score at most ``rows`` rows in each task."""
        table = self._sample.table
        groups = self._sample.groups(self.tasks, rows)
        chosen = [place for own in groups for place in own]
        part = parquet_rows.ParquetRows(
            table.schema,
            tuple(table.groups[place] for place in chosen),
            tuple(table.group_bytes[place] for place in chosen),
            tuple(table.group_rows[place] for place in chosen),
        )
        counts = [self._counts(own, rows) for own in groups]
        total = sum(sum(own.values()) for own in counts)
        layout, selection = self._sample.layout, Selection(self._sample.models)
        shares = Shares.of(part, [len(own) for own in groups])
        with file_job.begun_write(self._folder / name, SaveMode.ERROR) as job:
            keys = file_job.schema_of(table, self._sample.keys)
            writer = MicrobatchWriter(job, keys, self._shipped, layout.name, layout.outputs, selection)
            body = _SampleTask(shares, writer, rows)
            tasks = file_job.FileTasks(shares.partitions(self._spark), portable(body), lambda: total)
        done = tasks.run(job, _refuse_failures)
        kinds, reports = ("read_seconds", "score_seconds", "write_seconds"), done.reports
        return _SampleMeasurement(
            **{kind: sum(report[kind] for report in reports) for kind in kinds},
            rows=total,
            read_bytes=sum(
                self._bytes(place) * count / table.group_rows[place] for own in counts for place, count in own.items()
            ),
            write_bytes=done.bytes,
            longest=max(sum(report[kind] for kind in kinds) for report in reports),
            worker_bytes=max(report["peak_memory_bytes"] for report in reports),
        )

    def _counts(self, places: Sequence[int], rows: int) -> dict[int, int]:
        """Return the number of rows that a task scores of each of its row groups."""
        counts = {}
        for place in places:
            counts[place] = min(rows, self._sample.table.group_rows[place])
            rows -= counts[place]
        return counts

    def _bytes_of(self, place: int) -> int:
        table = self._sample.table
        found = stored_bytes(table.groups[place])
        return sum(found[name] for name in table.schema.names)


@dataclass(frozen=True)
class _SampleTask(file_job.FilesTask):
    """Body of a task that scores the first rows of its row groups.

    Attributes:
        rows: The most rows of a task.
    """

    rows: int

    def read(self, groups: Sequence[parquet_rows.RowGroups], multiple: int) -> Iterator[pa.RecordBatch]:
        """Yield the first rows of a share."""
        left = self.rows
        for batch in super().read(groups, multiple):
            yield batch.slice(0, left)
            left -= batch.num_rows
            if left <= 0:
                return


def _refuse_failures(_: Sequence[WrittenFile], reports: Sequence[Mapping[str, Any]]) -> list[WrittenFile]:
    for failure in (failure for report in reports for failure in report["failures"]):
        raise ScoringError(
            f"model '{failure['model']}' raises {failure['error']} for the sample ({failure['message']}); correct it, "
            f"or plan without it"
        )
    return []
