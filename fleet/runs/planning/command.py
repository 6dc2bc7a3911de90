"""The command ``mirrorspark fleet plan``: cores from hours, hours from cores, and a run for each cluster."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mirrorspark.fleet.runs.ledger import has_password
from mirrorspark.fleet.runs.planning.capacity import FleetPlan
from mirrorspark.fleet.runs.planning.probe import DEFAULT_PROBE_SECONDS, plan_fleet
from mirrorspark.fleet.runs.planning.settings import DEFAULT_HEAP, FAIR, problems_of, recommended_settings
from mirrorspark.scoring import ScoringError
from mirrorspark.spark_session import add_master, open_command_session
from mirrorspark.storage import StoragePath, clean, terminal_text, without_credentials


def add_parser(commands: Any) -> None:
    """Add the command to those of ``mirrorspark fleet``."""
    parser = commands.add_parser("plan", help="plan cores or hours by a measurement on a sample")
    parser.set_defaults(command=_plan)
    add = add_work(parser).add_argument
    add("--hours", type=float, help="the time that the run may take; cores are planned")
    add("--cores", type=int, help="tasks that run at the same time; hours are planned")
    add = parser.add_argument_group("the whole work, where fleet and input are a part of it").add_argument
    add("--rows", type=int, help="rows of the table; by default those of the input")
    add("--models", type=int, help="models of the fleet; by default those of --fleet")
    add = parser.add_argument_group("the run").add_argument
    add("--models-per-microbatch", type=int, help="by default the number of the plan")
    add("--prefixes", type=int, default=1, help="folders with hashed names in the output")
    add("--price-per-core-hour", type=float, help="in any currency")
    add("--executor-cores", type=int, default=4, help="cores of an executor, for its memory")
    add(
        "--clusters",
        type=int,
        help="number of clusters to divide the groups among, each for --hours or of --cores cores",
    )
    add("--output", help="folder of the outputs, in which each cluster has one")
    add("--ledger", help="ledger of the runs of --clusters; needed where --output is on a store")
    add("--submissions", help="file for the runs of --clusters, as JSON")
    group = parser.add_argument_group("measurement")
    add = group.add_argument
    add("--scratch", help="folder that all executors can write to; by default a temporary one of this machine")
    add("--seconds", type=float, default=DEFAULT_PROBE_SECONDS, help="duration of the sample")
    add_master(group)
    add("--verbose", action="store_true", help="show the log of Spark")
    add("--trust", action="store_true", help="Python code that models bring may run")
    add("--json", action="store_true", help="print the plan as JSON")


def add_work(parser: argparse.ArgumentParser) -> Any:
    """Add the flags for the scored rows, and return their group."""
    group = parser.add_argument_group("most used")
    add = group.add_argument
    add("--fleet", required=True, help="folder of a saved fleet, models:/name/version, or a file of coefficients")
    add("--input", required=True, nargs="+", help="Parquet files, folders or globs")
    add("--keys", required=True, help="columns that identify a row, separated by commas")
    add("--layout", default="wide", help="wide, packed or long")
    add("--outputs", help="some of score, binary and Rank, separated by commas")
    add("--groups", help="groups of models, separated by commas; all by default")
    return group


def names(given: str | None) -> list[str] | None:
    """Return names that are separated by commas; None for none."""
    return given.split(",") if given else None


def text_of(plan: FleetPlan, price_per_core_hour: float | None = None) -> str:
    """Return a plan for people."""
    throughput, workload = plan.throughput, plan.workload
    cost = "" if price_per_core_hour is None else f", cost {plan.cost(price_per_core_hour):,.2f}"
    of_time = ", ".join(f"{name} {getattr(plan, f'{name}_core_hours'):,.3g}" for name in ("read", "compute", "write"))
    lines = [
        f"{workload.rows:,} rows x {sum(workload.models.values()):,} models = {workload.inferences:,} inferences",
        f"{plan.cores:,} cores, {plan.hours:,.3g} hours: {plan.core_hours:,.3g} core-hours{cost}",
        f"core-hours: {of_time}; hours between microbatches: {plan.waiting_hours:,.3g}, of the start: "
        f"{plan.start_hours:,.3g}; bottleneck: {plan.bottleneck}",
        f"{plan.microbatches:,} microbatches of {plan.models_per_microbatch:,} models and {plan.rows_per_microbatch:,} "
        f"rows, {plan.at_once} at once; {plan.tasks:,} tasks of {plan.task_seconds:,.3g} s at most",
        f"requests per second and prefix: {plan.puts_per_second:,.3g} PUT, {plan.gets_per_second:,.3g} GET",
        f"measured, per core and second: {throughput.read_bytes_per_second / 1e6:,.3g} MB read, "
        f"{throughput.inferences_per_second:,.3g} inferences, "
        f"{throughput.write_bytes_per_second / 1e6:,.3g} MB written; "
        f"{throughput.microbatch_seconds:,.3g} s per microbatch, "
        f"{throughput.start_seconds:,.3g} s per run; {throughput.worker_bytes / 2**20:,.0f} MiB per process",
    ]
    return "\n".join([*lines, *(f"warning: {one}" for one in plan.warnings)])


def submissions_of(options: argparse.Namespace, plan: FleetPlan, settings: Mapping[str, str]) -> dict[str, Any]:
    """Return the runs of several clusters, as ``--submissions`` keeps them: each one's needs, and those of them all.

    Args:
        options: Options of the command, with ``clusters`` and ``output``.
        plan: The plan of the whole work on one cluster.
        settings: Settings of Spark, for each cluster.

    Raises:
        ScoringError: See :meth:`FleetPlan.submissions`; or the name of a group has a comma.
    """
    plans, price = plan.submissions(options.clusters, options.hours), options.price_per_core_hour
    runs = [
        {"groups": dict(part.workload.models)}
        | _needs([part], price)
        | {"warnings": list(part.warnings), "command": _command_of(options, number, part)}
        for number, part in enumerate(plans, 1)
    ]
    return {"format": 1, "settings": dict(settings), "total": _needs(plans, price), "runs": runs}


def text_of_submissions(submissions: Mapping[str, Any]) -> str:
    """Return the runs of :func:`submissions_of` for people."""
    runs = submissions["runs"]
    lines = [f"divided among {len(runs):,} clusters: {_text_of_needs(submissions['total'])}"]
    for number, run in enumerate(runs, 1):
        lines.append(f"  cluster-{number}: {_text_of_needs(run)}")
        lines += [f"  warning for cluster-{number}: {one}" for one in run["warnings"]]
    return "\n".join(lines)


def check_submissions(options: argparse.Namespace) -> None:
    """Check the options for several clusters, before anything is measured.

    Raises:
        ScoringError: One is missing, or the ledger's password would be written into the file of the runs.
        LedgerError: The ledger's address is malformed.
    """
    if (options.clusters is None) != (options.submissions is None) or (options.submissions and not options.output):
        raise ScoringError("the runs of --clusters are written to --submissions, and need an --output; give all three")
    if options.ledger is None:
        if options.submissions and not StoragePath.of(options.output).is_local:
            raise ScoringError(
                f"SQLite cannot be on {without_credentials(options.output)}; give a --ledger: a local file, or "
                f"postgresql://host/database"
            )
    elif not options.submissions:
        raise ScoringError("--ledger is that of the runs of --clusters; give --clusters, too, or leave --ledger out")
    elif has_password(options.ledger):
        raise ScoringError(
            f"the --ledger {without_credentials(options.ledger)} has a password, which would be written into "
            f"--submissions; leave it out, and set PGPASSWORD or ~/.pgpass where the runs are started"
        )


def _plan(options: argparse.Namespace) -> int:
    check_submissions(options)
    spark = open_command_session(options.master, verbose=options.verbose, settings=FAIR)
    try:
        plan = plan_fleet(
            spark,
            options.fleet,
            options.input,
            keys=options.keys.split(","),
            outputs=names(options.outputs),
            groups=names(options.groups),
            **{name: getattr(options, name) for name in ("hours", "cores", "layout", "rows", "models", "prefixes")},
            **{name: getattr(options, name) for name in ("models_per_microbatch", "scratch", "seconds", "trust")},
        )
        problems = problems_of(spark, plan.at_once, plan.throughput.worker_bytes)
        heap = spark.conf.get("spark.executor.memory", None) or DEFAULT_HEAP
    finally:
        spark.stop()
    settings = recommended_settings(plan.throughput.worker_bytes, options.executor_cores, heap)
    submissions = submissions_of(options, plan, settings) if options.submissions else None
    if submissions:
        StoragePath.of(options.submissions).write_bytes(json.dumps(submissions, indent=1).encode())
    if options.json:
        cost = None if options.price_per_core_hour is None else plan.cost(options.price_per_core_hour)
        others = {"cost": cost, "settings": settings, "problems": problems, "submissions": submissions}
        print(json.dumps(clean(plan.as_json() | others)))
        return 0
    lines = [text_of(plan, options.price_per_core_hour)]
    lines += [text_of_submissions(submissions)] if submissions else []
    lines += [f"settings for executors of {options.executor_cores} cores:"]
    lines += [f"  --conf {name}={value}" for name, value in sorted(settings.items())]
    lines += [f"this session: {one}" for one in problems]
    print(terminal_text.for_stream("\n".join(lines), sys.stdout))
    return 0


def _needs(plans: Sequence[FleetPlan], price_per_core_hour: float | None) -> dict[str, Any]:
    """Return the total needs of runs that go on at the same time, each on a cluster of its own."""
    found = {
        "models": sum(sum(plan.workload.models.values()) for plan in plans),
        "inferences": sum(plan.workload.inferences for plan in plans),
        "cores": sum(plan.cores for plan in plans),
        "hours": max(plan.hours for plan in plans),
        "core_hours": sum(plan.core_hours for plan in plans),
    }
    return found | {"cost": None if price_per_core_hour is None else found["core_hours"] * price_per_core_hour}


def _text_of_needs(needs: Mapping[str, Any]) -> str:
    cost = "" if needs["cost"] is None else f", cost {needs['cost']:,.2f}"
    return (
        f"{needs['models']:,} models, {needs['cores']:,} cores, {needs['hours']:,.3g} hours: "
        f"{needs['core_hours']:,.3g} core-hours{cost}"
    )


def _command_of(options: argparse.Namespace, number: int, plan: FleetPlan) -> list[str]:
    """Return the command that begins the run of a cluster."""
    if bad := [group for group in plan.workload.models if "," in group]:
        raise ScoringError(
            f"the names of the groups {bad} have a comma, which separates names in --groups; rename them"
        )
    output = f"{options.output.rstrip('/')}/cluster-{number}"
    flags = {"fleet": options.fleet, "keys": options.keys, "layout": options.layout, "outputs": options.outputs}
    flags |= {"output": output, "groups": ",".join(plan.workload.models), "prefixes": plan.workload.prefixes}
    flags |= {"models-per-microbatch": plan.models_per_microbatch, "rows-per-microbatch": plan.rows_per_microbatch}
    flags |= {"at-once": plan.at_once, "ledger": options.ledger}
    given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    return ["mirrorspark", "fleet", "run", *given, "--input", *options.input]
