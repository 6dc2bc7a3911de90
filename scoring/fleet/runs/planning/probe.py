"""Measures the rates of a fleet on a sample of its table, and plans its run with them."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.reading.parquet_rows import ParquetFiles, ParquetRows, RowGroups
from mirrorspark.data_pipelines.spark.tasks import Shares, is_local, numbers_of, portable, write_files
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.files import find_source
from mirrorspark.scoring.fleet.fleet import Fleet
from mirrorspark.scoring.fleet.kernels import STRIP
from mirrorspark.scoring.fleet.layout import Layout
from mirrorspark.scoring.fleet.runs.failures import CheckedFleet
from mirrorspark.scoring.fleet.runs.plan import DEFAULT_MODELS, Step, plan_steps
from mirrorspark.scoring.fleet.runs.planning.capacity import FleetPlan, Rates, Work, plan_for_cores, plan_for_hours
from mirrorspark.scoring.fleet.runs.task import MicrobatchWriter, Selection
from mirrorspark.scoring.fleet.score import check_result, ship_fleet
from mirrorspark.scoring.fleet.scorer import ASSUMED_INFERENCES_PER_SECOND
from mirrorspark.scoring.fleet.task import FleetTally, Read
from mirrorspark.scoring.input.spark_tables import SparkSource
from mirrorspark.storage.paths import Location, StoragePath
from mirrorspark.storage.publish import SaveMode, WriteJob, WrittenFile

DEFAULT_PROBE_SECONDS = 5.0

# Arrow asks for columns that lie beside each other at once, up to so many bytes.
_RANGE_BYTES = 32 * 2**20
# The speed that a trial of a quarter of the time shows may be wrong by so much.
_MOST_TIMES_LONGER = 16


def plan_fleet(
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
) -> FleetPlan:
    """Plan a run of :func:`run_fleet`: the cores for some hours, or the hours on some cores.

    Tasks score a sample, a part of a row group on each core, and the rates that they have are taken for those of the
    whole run. The result plans further hours and cores by ``with_hours`` and ``with_cores`` without another sample.

    Args:
        spark: The session whose cores are measured.
        fleet: As for :func:`run_fleet`, as are the next two.
        paths: The input, or a part of it.
        keys: Columns that identify a row.
        hours: The time that the run may take.
        cores: Tasks that run at the same time; give this or ``hours``.
        layout: As for :func:`run_fleet`, as are the next two.
        outputs: The outputs.
        groups: The groups of models.
        models_per_microbatch: By default what the plan says.
        rows: Rows to plan for; by default those of the input.
        models: Models to plan for, in the proportions of the groups; by default those of the fleet.
        prefixes: As for :func:`run_fleet`.
        scratch: A folder that all executors can write to; by default a temporary one, which a local session can.
        seconds: Duration of the sample, about; two shorter ones come first.

    Raises:
        ScoringError: Neither or both of ``hours`` and ``cores`` are given, a number is not above 0, there are no rows,
            a model raises an error, no number of cores is enough, or for a reason of :func:`run_fleet`.
        FleetError: As for :func:`run_fleet`.
        FileNotFoundError: There are no Parquet files.
    """
    plan = _planner(hours, cores)
    _check_sizes(rows=rows, models=models, models_per_microbatch=models_per_microbatch, prefixes=prefixes)
    if not seconds > 0:
        raise ScoringError(f"seconds {seconds} is not above 0; give some seconds for the sample")
    if scratch is None and not is_local(spark):
        raise ScoringError(
            "the executors need a folder to write the sample to; give scratch= a path that all can reach"
        )
    source = find_source(paths, None)
    if isinstance(source, SparkSource):
        raise ScoringError("a table with a log may change during a run; write it as Parquet, and give its path")
    files = ParquetFiles.of(source)
    checked = CheckedFleet.of(fleet).against(files.schema)
    keys = (keys,) if isinstance(keys, str) else tuple(keys)
    table = Layout.of(checked.fleet, layout, (outputs,) if isinstance(outputs, str) else outputs)
    check_result(table, files.schema, keys)
    steps = plan_steps(checked, groups, DEFAULT_MODELS if models_per_microbatch is None else models_per_microbatch)
    largest = tuple(max(steps, key=lambda step: len(step.digests)).digests)
    columns = list(dict.fromkeys([*keys, *checked.fleet.select(largest).columns]))
    sample = _Sample(files.rows(columns), keys, table, largest)
    if not sample.table.rows:
        raise ScoringError(f"{paths} has no rows, with which nothing can be measured; name the table")
    with tempfile.TemporaryDirectory(prefix="mirrorspark-plan-") as local:
        folder = StoragePath.of(local if scratch is None else scratch) / f"probe-{uuid4().hex[:12]}"
        try:
            measured = sample.measure(spark, checked.fleet, folder, seconds)
        finally:
            folder.delete()
    many = sample.table.rows if rows is None else rows
    work = Work(
        rows=many,
        models=_of_groups(steps, models),
        read_bytes_per_row=measured.read_bytes / measured.rows,
        write_bytes_per_inference=measured.write_bytes / (measured.rows * len(largest)),
        row_groups=max(1, round(len(sample.table.groups) * many / sample.table.rows)),
        gets_per_row_group=_runs(files.footers[0].schema.names, columns) + measured.group_bytes / _RANGE_BYTES,
        is_wide=table.name == "wide",
        input_prefixes=len({str(file.path.parent) for file in files.files}),
        prefixes=prefixes,
    )
    return plan(work, measured.rates(len(largest)), models_per_microbatch)


def _check_sizes(**sizes: int | None) -> None:
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ScoringError(f"{name} {value} is not above 0; give a number such as 100, or leave it out")


def _planner(hours: float | None, cores: int | None) -> Callable[[Work, Rates, int | None], FleetPlan]:
    # Before the sample is measured, which takes a while.
    _check_sizes(cores=cores)
    if hours is not None and not hours > 0:
        raise ScoringError(f"hours {hours} is not above 0; give a number such as 15")
    if hours is not None and cores is None:
        return lambda work, rates, models: plan_for_hours(work, rates, hours, models)
    if cores is not None and hours is None:
        return lambda work, rates, models: plan_for_cores(work, rates, cores, models)
    raise ScoringError("give either hours or cores: the other one is planned")


def _of_groups(steps: Sequence[Step], models: int | None) -> dict[str, int]:
    """Return the number of models by group, of ``models`` if that is given."""
    counts = Counter[str]()
    for step in steps:
        counts[step.group] += len(step.digests)
    total = counts.total()
    return {group: ceil(count * (total if models is None else models) / total) for group, count in counts.items()}


@dataclass(frozen=True)
class _Measured:
    """What tasks took for a sample; seconds of all of them together, but for ``longest`` and ``wall``."""

    rows: int
    read_bytes: float
    write_bytes: int
    group_bytes: float
    read_seconds: float
    score_seconds: float
    write_seconds: float
    longest: float
    wall: float
    worker_bytes: int

    def rates(self, models: int) -> Rates:
        return Rates(
            read_bytes_per_second=self.read_bytes / max(1e-9, self.read_seconds),
            inferences_per_second=self.rows * models / max(1e-9, self.score_seconds),
            write_bytes_per_second=self.write_bytes / max(1e-9, self.write_seconds),
            microbatch_seconds=max(0.0, self.wall - self.longest),
            worker_bytes=self.worker_bytes,
        )


@dataclass(frozen=True)
class _Sample:
    """The first rows of some row groups, with the models of a microbatch."""

    table: ParquetRows
    keys: tuple[str, ...]
    layout: Layout
    models: tuple[str, ...]

    def measure(self, spark: SparkSession, fleet: Fleet, folder: StoragePath, seconds: float) -> _Measured:
        """Score as many rows as take about so many seconds."""
        filled = [place for place, rows in enumerate(self.table.group_rows) if rows]
        count = min(len(filled), spark.sparkContext.defaultParallelism)
        # From the whole table: its beginning may be unlike the rest.
        groups = [self.table.part(filled[number * len(filled) // count], 1) for number in range(count)]
        part = ParquetRows(
            self.table.schema,
            tuple(one.groups[0] for one in groups),
            tuple(one.group_bytes[0] for one in groups),
            tuple(one.rows for one in groups),
        )
        shipped = ship_fleet(spark, fleet)
        schema = pa.schema([part.schema.field(name) for name in self.keys])
        sizes = [_stored_bytes(group, part.schema.names) for group in part.groups]

        def scored(rows: int, name: str) -> _Measured:
            job = WriteJob.begin(folder / name, SaveMode.ERROR)
            writer = _SampleWriter(job, schema, shipped, self.layout.name, self.layout.outputs, Selection(self.models))
            shares = Shares.of(part, (1,) * count)
            own = [min(rows, group_rows) for group_rows in part.group_rows]
            begin = time.perf_counter()
            body = portable(_SampleTask(shares, writer, rows))
            done = write_files(
                shares.partitions(spark), job, body, lambda: sum(own), refusal=ColumnError, seal=_refuse_failures
            )
            wall = time.perf_counter() - begin
            kinds, reports = ("read_seconds", "score_seconds", "write_seconds"), done.reports
            read = sum(size * some / total for size, some, total in zip(sizes, own, part.group_rows, strict=True))
            return _Measured(
                **{kind: sum(report[kind] for report in reports) for kind in kinds},
                rows=sum(own),
                read_bytes=read,
                write_bytes=done.bytes,
                group_bytes=sum(sizes) / count,
                longest=max(sum(report[kind] for kind in kinds) for report in reports),
                wall=wall,
                worker_bytes=max(report["peak_memory_bytes"] for report in reports),
            )

        # Loads the fleet and compiles the kernels.
        scored(STRIP, "warm-up")
        few = max(STRIP, int(seconds / 4 * ASSUMED_INFERENCES_PER_SECOND / len(self.models)))
        trial = scored(few, "trial")
        times = min(_MOST_TIMES_LONGER, max(1.0, seconds / max(1e-9, trial.longest)))
        return scored(int(few * times), "sample")


@dataclass(frozen=True)
class _SampleWriter(MicrobatchWriter):
    """Writes as microbatches do, and counts all that is neither reading nor scoring as writing."""

    def _written(self, number: int, read: Read, tally: FleetTally) -> list[WrittenFile]:
        begin = time.perf_counter()
        files = super()._written(number, read, tally)
        tally.write_seconds = time.perf_counter() - begin - tally.read_seconds - tally.score_seconds
        return files


@dataclass(frozen=True)
class _SampleTask:
    """Body of a task that scores the first rows of its row group."""

    shares: Shares
    writer: _SampleWriter
    rows: int

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in numbers_of(batches):
            yield self.writer.write(number, partial(self._first, self.shares.groups[number]))

    def _first(self, groups: Sequence[RowGroups], multiple: int) -> Iterator[pa.RecordBatch]:
        left = self.rows
        for batch in self.shares.source.batches(groups, multiple):
            yield batch.slice(0, left)
            left -= batch.num_rows
            if left <= 0:
                return


def _refuse_failures(_: Sequence[WrittenFile], reports: Sequence[Mapping[str, Any]]) -> list[WrittenFile]:
    for failure in (failure for report in reports for failure in report["failures"]):
        raise ScoringError(
            f"model '{failure['model']}' raises {failure['error']} for the sample ({failure['message']}); mend it, or "
            f"plan without it"
        )
    return []


def _stored_bytes(group: RowGroups, columns: Sequence[str]) -> int:
    """Return the bytes in the file of some columns of a row group."""
    with group.file.path.open_read() as source:
        found = pq.ParquetFile(source).metadata.row_group(group.first)
        every = [found.column(place) for place in range(found.num_columns)]
    wanted = set(columns)
    return sum(one.total_compressed_size for one in every if one.path_in_schema.split(".")[0] in wanted)


def _runs(stored: Sequence[str], columns: Sequence[str]) -> int:
    """Return how many runs of columns that lie beside each other in a file ``columns`` are."""
    wanted = set(columns)
    is_read = [name in wanted for name in stored]
    return sum(now and not before for now, before in zip(is_read, [False, *is_read], strict=False))
