"""Estimates of a run's hours from its cores, and the reverse, by arithmetic on measured rates.

A *step* is one pass of some models over all rows, which reads these once. The core-seconds of reading, scoring and
writing are amounts divided by rates; they are spread over the cores in whole row groups. The time in which no task
runs is added: once for the run, and for each microbatch.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

from mirrorspark.fleet.columns import some
from mirrorspark.fleet.runs.plan import DEFAULT_AT_ONCE, DEFAULT_MODELS
from mirrorspark.scoring import ScoringError
from mirrorspark.scoring.task import DEFAULT_TASK_SECONDS

# Source: Amazon S3, "Best practices design patterns: optimizing Amazon S3 performance"; per second and prefix.
PUTS_PER_SECOND = 3_500
GETS_PER_SECOND = 5_500

# Largest share of reading in the core-seconds. Steps get enough models for it where the layout allows that.
_READ_SHARE = 0.1
# Requests that change a store: a file is begun, completed, copied to its place and deleted where it was written; a
# microbatch has notes of its write, a journal and a manifest. Larger files are sent in parts.
_PUTS_PER_FILE = 4
_PUTS_PER_MICROBATCH = 12
_PART_BYTES = 10 * 2**20
# Size and footer of a file, which each task asks for.
_GETS_PER_TASK = 2


@dataclass(frozen=True)
class CoreThroughput:
    """Measured throughput of one core, while the other cores of its machine work, too.

    Attributes:
        read_bytes_per_second: Bytes of the columns that are read, as the files have them.
        inferences_per_second: Rows times models, without reading and writing.
        write_bytes_per_second: Bytes of the outputs' files.
        microbatch_seconds: Time of a microbatch in which none of its tasks runs: its job starts, its files are
            published.
        worker_bytes: Largest memory of a process that runs tasks.
        start_seconds: Time of a run before its first task and after its last microbatch: input, fleet and ledger are
            opened, and processes load the models.
    """

    read_bytes_per_second: float
    inferences_per_second: float
    write_bytes_per_second: float
    microbatch_seconds: float
    worker_bytes: int
    start_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check the rates."""
        for name, value in asdict(self).items():
            if not value >= 0 or (value == 0 and name.endswith("per_second")):
                raise ScoringError(
                    f"{name} {value} is not a rate; measure it with plan_fleet, or give a number above 0"
                )


@dataclass(frozen=True)
class Workload:
    """The workload of a run: rows, models, and the bytes that it reads and writes.

    Attributes:
        rows: Rows of the table.
        models: Number of models by group.
        read_bytes_per_row: Bytes in the files of all columns that a step reads, in the mean of the steps.
        write_bytes_per_inference: Bytes of the outputs' files per row and model.
        row_groups: Row groups of the table; a row group is never divided.
        gets_per_row_group: Requests that read the columns of a row group.
        is_wide: Whether each model has columns of its own in the outputs.
        input_prefixes: Folders that the input's files lie in.
        prefixes: Folders that the output is divided into.
    """

    rows: int
    models: Mapping[str, int]
    read_bytes_per_row: float
    write_bytes_per_inference: float
    row_groups: int
    gets_per_row_group: float
    is_wide: bool = True
    input_prefixes: int = 1
    prefixes: int = 1

    def __post_init__(self) -> None:
        """Check that there is work."""
        for name in ("rows", "row_groups", "input_prefixes", "prefixes"):
            if getattr(self, name) < 1:
                raise ScoringError(f"{name} {getattr(self, name)} is not above 0; there is nothing to plan")
        if not self.models or min(self.models.values()) < 1:
            raise ScoringError("there are no models to plan for; name groups that have some")

    @property
    def inferences(self) -> int:
        """Rows times models."""
        return self.rows * sum(self.models.values())


@dataclass(frozen=True)
class FleetPlan:
    """A fleet's run, as it is planned.

    Attributes:
        hours: From its beginning to its end.
        models_per_microbatch: For ``run_fleet``, as are the next two and ``prefixes`` of ``workload``.
        rows_per_microbatch: Rows of a microbatch, about.
        at_once: Microbatches at a time.
        steps: Passes over the table.
        tasks: Tasks of Spark, all together.
        task_seconds: Longest duration of a task.
        read_core_hours: Core-hours of reading.
        compute_core_hours: Core-hours of scoring.
        write_core_hours: Core-hours of writing.
        waiting_hours: In which microbatches start and are published.
        start_hours: In which the run starts.
        puts_per_second: Requests that change the store, per second and prefix, while all cores are busy.
        gets_per_second: Requests that read, the same way.
    """

    workload: Workload
    throughput: CoreThroughput
    cores: int
    hours: float
    models_per_microbatch: int
    rows_per_microbatch: int
    at_once: int
    steps: int
    microbatches: int
    tasks: int
    task_seconds: float
    read_core_hours: float
    compute_core_hours: float
    write_core_hours: float
    waiting_hours: float
    puts_per_second: float
    gets_per_second: float
    start_hours: float = 0.0

    @property
    def core_hours(self) -> float:
        """Cores times hours, including idle ones: the amount that is paid for."""
        return self.cores * self.hours

    @property
    def bottleneck(self) -> str:
        """The part that takes most of the time.

        It is ``read``, ``compute``, ``write``, ``microbatches``, ``start`` or ``store requests``.
        """
        if self.puts_per_second > PUTS_PER_SECOND or self.gets_per_second > GETS_PER_SECOND:
            return "store requests"
        hours = {name: getattr(self, f"{name}_core_hours") / self.cores for name in ("read", "compute", "write")}
        hours |= {"microbatches": self.waiting_hours, "start": self.start_hours}
        return max(hours, key=lambda name: hours[name])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Changes that are advisable before the run begins."""
        found = []
        if self.puts_per_second > PUTS_PER_SECOND:
            prefixes = self._enough_prefixes()
            remedy = "allow more hours" if prefixes is None else f"divide the output with prefixes={prefixes}"
            found.append(
                f"{self.puts_per_second:,.0f} PUT, COPY and DELETE requests per second and prefix are more than the "
                f"{PUTS_PER_SECOND:,} that S3 serves; {remedy}"
            )
        if self.gets_per_second > GETS_PER_SECOND:
            prefixes = ceil(self.workload.input_prefixes * self.gets_per_second / GETS_PER_SECOND)
            found.append(
                f"{self.gets_per_second:,.0f} GET requests per second and prefix are more than the {GETS_PER_SECOND:,} "
                f"that S3 serves; put the input's files into {prefixes:,} folders, or write larger row groups"
            )
        if self.cores > (useful := self.steps * self.workload.row_groups):
            found.append(
                f"{self.cores - useful:,} of the {self.cores:,} cores have nothing to do: {self.steps:,} steps over "
                f"{self.workload.row_groups:,} row groups; write the input with smaller row groups"
            )
        if self.task_seconds > DEFAULT_TASK_SECONDS * 1.5:
            found.append(
                f"a task takes {self.task_seconds:,.0f} s, which a lost machine costs; write the input with smaller "
                f"row groups, or take fewer models_per_microbatch"
            )
        return tuple(found)

    def _enough_prefixes(self) -> int | None:
        """Return a number of prefixes that keeps changing requests below the store's limit; None if there is none."""
        # More prefixes need more microbatches, and these have requests of their own.
        wanted = self.workload.prefixes
        while wanted < self.steps * self.workload.row_groups:
            workload = replace(self.workload, prefixes=wanted)
            plan = plan_for_cores(workload, self.throughput, self.cores, self.models_per_microbatch)
            if plan.puts_per_second <= PUTS_PER_SECOND:
                return wanted
            wanted = max(wanted + 1, ceil(min(wanted, plan.at_once) * plan.puts_per_second / PUTS_PER_SECOND))
        return None

    def cost(self, price_per_core_hour: float) -> float:
        """Return the price of all cores for all hours."""
        return self.core_hours * price_per_core_hour

    def with_cores(self, cores: int) -> "FleetPlan":
        """Return the plan for another number of cores."""
        return plan_for_cores(self.workload, self.throughput, cores, self.models_per_microbatch)

    def with_hours(self, hours: float) -> "FleetPlan":
        """Return the plan for the fewest cores that take at most ``hours``."""
        return plan_for_hours(self.workload, self.throughput, hours, self.models_per_microbatch)

    def submissions(self, clusters: int, hours: float | None = None) -> tuple["FleetPlan", ...]:
        """Deal the groups to clusters, each of which scores its own ones in a run of its own.

        Each group is in one plan. The largest ones are dealt first, each to the cluster with the fewest models so far.

        Args:
            clusters: No more than there are groups, since a group is one table.
            hours: The time that each run may take, for which each cluster has the fewest cores. By default each has
                this plan's number of cores, and as many hours as its own models take.

        Raises:
            ScoringError: ``clusters`` is less than 1, or more than there are groups; or no number of cores is enough
                for a cluster, which the message names.
        """
        groups = sorted(self.workload.models.items(), key=lambda one: (-one[1], one[0]))
        if not 1 <= clusters <= len(groups):
            raise ScoringError(
                f"{clusters} clusters cannot share {len(groups)} groups of models; use 1 to {len(groups)}, or give the "
                f"models more groups"
            )
        parts: list[dict[str, int]] = [{} for _ in range(clusters)]
        for name, count in groups:
            min(parts, key=lambda part: sum(part.values()))[name] = count
        plans = [
            plan_for_cores(replace(self.workload, models=part), self.throughput, self.cores, self.models_per_microbatch)
            for part in parts
        ]
        if hours is None:
            return tuple(plans)
        found = []
        for number, plan in enumerate(plans, 1):
            try:
                found.append(plan.with_hours(hours))
            except ScoringError as error:
                raise ScoringError(
                    f"cluster-{number} with {_named(plan.workload.models)} cannot be done in time: {error}"
                ) from error
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        """Return the plan, with derived values, as JSON values."""
        derived = {"core_hours": self.core_hours, "bottleneck": self.bottleneck, "warnings": list(self.warnings)}
        return asdict(self) | derived | {"inferences": self.workload.inferences}


def models_of_a_step(workload: Workload, throughput: CoreThroughput) -> int:
    """Return the number of models that a microbatch should have.

    It is at most 500, or, in a layout without separate columns for each model, the number that keeps reading below a
    tenth of the core-seconds, if that is more.
    """
    of_a_row = workload.read_bytes_per_row / throughput.read_bytes_per_second
    of_an_inference = (
        1 / throughput.inferences_per_second + workload.write_bytes_per_inference / throughput.write_bytes_per_second
    )
    wanted = 0 if workload.is_wide else ceil(of_a_row / of_an_inference * (1 - _READ_SHARE) / _READ_SHARE)
    return min(max(workload.models.values()), max(DEFAULT_MODELS, wanted))


def size_steps(
    workload: Workload, throughput: CoreThroughput, read_costs_of: Callable[[int], tuple[float, float]]
) -> tuple[Workload, int]:
    """Return the workload with the reads of its steps, and the number of models of a step.

    Larger steps read more columns, for which :func:`models_of_a_step` takes still larger ones.

    Args:
        workload: The workload.
        throughput: Throughput of a core.
        read_costs_of: Returns ``read_bytes_per_row`` and ``gets_per_row_group`` for steps of a given number of models.
    """
    models, wanted = 0, min(max(workload.models.values()), DEFAULT_MODELS)
    while wanted > models:
        models = wanted
        read_bytes, gets = read_costs_of(models)
        workload = replace(workload, read_bytes_per_row=read_bytes, gets_per_row_group=gets)
        wanted = models_of_a_step(workload, throughput)
    return workload, models


def plan_for_cores(
    workload: Workload, throughput: CoreThroughput, cores: int, models_per_microbatch: int | None = None
) -> FleetPlan:
    """Return the plan for a number of cores.

    Args:
        workload: The workload.
        throughput: Throughput of a core.
        cores: Tasks that run at the same time.
        models_per_microbatch: By default those of :func:`models_of_a_step`.

    Raises:
        ScoringError: A number is not above 0.
    """
    models = models_of_a_step(workload, throughput) if models_per_microbatch is None else models_per_microbatch
    for name, value in {"cores": cores, "models_per_microbatch": models}.items():
        if value < 1:
            raise ScoringError(f"{name} {value} is not above 0; give a number such as 100")
    steps = sum(ceil(count / models) for count in workload.models.values())
    read = steps * workload.rows * workload.read_bytes_per_row / throughput.read_bytes_per_second
    compute = workload.inferences / throughput.inferences_per_second
    written_bytes = workload.inferences * workload.write_bytes_per_inference
    write = written_bytes / throughput.write_bytes_per_second
    of_a_step, groups = (read + compute + write) / steps, workload.row_groups
    useful = min(cores, steps * groups)
    # A microbatch writes to one prefix, so that each prefix needs a microbatch at any time.
    shares = min(groups, max(ceil(of_a_step / (useful * DEFAULT_TASK_SECONDS)), ceil(workload.prefixes / steps), 1))
    tasks_of_a_step = min(groups, shares * useful)
    microbatches = steps * shares
    # A microbatch has at most a task per row group, so that many cores need several of them.
    at_once = min(microbatches, max(DEFAULT_AT_ONCE, ceil(useful / groups), workload.prefixes))
    busy = ceil(steps * groups / useful) * of_a_step / groups
    waiting = microbatches / at_once * throughput.microbatch_seconds
    tasks = steps * tasks_of_a_step
    puts = tasks * _PUTS_PER_FILE + written_bytes / _PART_BYTES + microbatches * _PUTS_PER_MICROBATCH
    gets = steps * groups * workload.gets_per_row_group + tasks * _GETS_PER_TASK
    return FleetPlan(
        workload=workload,
        throughput=throughput,
        cores=cores,
        hours=(throughput.start_seconds + busy + waiting) / 3600,
        models_per_microbatch=models,
        rows_per_microbatch=ceil(workload.rows / shares),
        at_once=at_once,
        steps=steps,
        microbatches=microbatches,
        tasks=tasks,
        task_seconds=ceil(groups / tasks_of_a_step) * of_a_step / groups,
        read_core_hours=read / 3600,
        compute_core_hours=compute / 3600,
        write_core_hours=write / 3600,
        waiting_hours=waiting / 3600,
        puts_per_second=puts / busy / min(workload.prefixes, at_once),
        gets_per_second=gets / busy / workload.input_prefixes,
        start_hours=throughput.start_seconds / 3600,
    )


def plan_for_hours(
    workload: Workload, throughput: CoreThroughput, hours: float, models_per_microbatch: int | None = None
) -> FleetPlan:
    """Return the plan for the fewest cores that take at most ``hours``.

    Raises:
        ScoringError: No number of cores is enough, or a number is not above 0.
    """
    if not hours > 0:
        raise ScoringError(f"hours {hours} is not above 0; give a number such as 15")

    def planned(cores: int) -> FleetPlan:
        return plan_for_cores(workload, throughput, cores, models_per_microbatch)

    # No core does harm, and from one per step and row group on none helps.
    most = planned(1).steps * workload.row_groups
    if (shortest := planned(most)).hours > hours:
        raise ScoringError(_why_too_long(shortest, hours, models_per_microbatch))
    cores = bisect_left(range(1, most + 1), True, key=lambda cores: planned(cores).hours <= hours) + 1
    return planned(cores)


def _why_too_long(shortest: FleetPlan, hours: float, models_per_microbatch: int | None) -> str:
    """Return the reason why no number of cores is enough, the group that takes longest, and advice."""
    workload, starts = shortest.workload, shortest.start_hours + shortest.waiting_hours
    text = f"no number of cores takes {hours:g} hours or less: with {shortest.cores:,} cores it is {shortest.hours:.3g}"
    remedy = "allow more hours, or write the input with smaller row groups"
    if starts >= hours:
        text += f", {starts:.3g} of which are the starts of the run and of its microbatches"
        remedy = "allow more hours"
    else:
        text += ", as a row group is never divided"
    if len(workload.models) > 1:
        alone = [
            plan_for_cores(
                replace(workload, models={name: count}), shortest.throughput, shortest.cores, models_per_microbatch
            )
            for name, count in workload.models.items()
        ]
        longest = max(alone, key=lambda plan: plan.hours)
        text += f"; {_named(longest.workload.models)} alone takes {longest.hours:.3g}"
        if longest.hours <= hours:
            remedy += ", or give the groups runs of their own with groups="
    return f"{text}; {remedy}"


def _named(models: Mapping[str, int]) -> str:
    """Return groups for a message, with the number of their models."""
    groups = "the group" if len(models) == 1 else f"{len(models):,} groups"
    return f"{groups} {some(list(models))} of {sum(models.values()):,} models"
