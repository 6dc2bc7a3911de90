"""Command of a fleet's runs: ``mirrorspark fleet plan``, ``run``, ``resume``, ``status`` and ``report``."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from pyspark.sql import SparkSession

from mirrorspark.fleet.runs import tables
from mirrorspark.fleet.runs.ledger import LedgerError
from mirrorspark.fleet.runs.plan import DEFAULT_AT_ONCE, DEFAULT_MODELS, RUN_FOLDER
from mirrorspark.fleet.runs.planning import FAIR
from mirrorspark.fleet.runs.planning import command as planning
from mirrorspark.fleet.runs.progress import DEFAULT_WATCH_SECONDS, fleet_status, watch_fleet
from mirrorspark.fleet.runs.report import PAGE_FILE, fleet_report
from mirrorspark.fleet.runs.run import (
    DEFAULT_BUDGET,
    DEFAULT_LEASE_SECONDS,
    FleetRun,
    FleetRunError,
    resume_fleet,
    run_fleet,
)
from mirrorspark.scoring import error_text, fail
from mirrorspark.spark_session import SESSION_ERRORS, add_master, open_command_session, task_message
from mirrorspark.storage import clean, terminal_text

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_LEFT = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command-line arguments; by default those of the process.

    Returns:
        0 when the microbatches that were to be scored are published; 1 when the run has ended before, and can be
        resumed; 2 when arguments, fleet and input do not fit; 3 when ``status`` finds microbatches left. Standard error
        has the message.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (FleetRunError, LedgerError) as error:
        return fail(str(error), EXIT_FAILED)
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        return fail(error_text(error), EXIT_USAGE)
    except OSError as error:
        return fail(error_text(error), EXIT_FAILED)
    except SESSION_ERRORS as error:
        return fail(task_message(error), EXIT_FAILED)


def _run(options: argparse.Namespace) -> int:
    def work(spark: SparkSession) -> FleetRun:
        return run_fleet(
            spark,
            options.fleet,
            options.input,
            options.output,
            keys=options.keys.split(","),
            layout=options.layout,
            outputs=planning.names(options.outputs),
            groups=planning.names(options.groups),
            models_per_microbatch=options.models_per_microbatch,
            rows_per_microbatch=options.rows_per_microbatch,
            prefixes=options.prefixes,
            model_seconds=options.model_seconds,
            model_bytes=options.model_bytes,
            failure_budget=DEFAULT_BUDGET if options.failure_budget is None else options.failure_budget,
            begin_only=options.begin_only,
            **_shared(options),
        )

    return _in_session(options, work)


def _resume(options: argparse.Namespace) -> int:
    shared = _shared(options) | {"failure_budget": options.failure_budget, "microbatches": options.microbatches}
    return _in_session(options, lambda spark: resume_fleet(spark, options.output, fleet=options.fleet, **shared))


def _status(options: argparse.Namespace) -> int:
    if options.watch:
        with suppress(KeyboardInterrupt):
            _watch(options)
    found = fleet_status(options.output, options.ledger)
    if options.json:
        print(json.dumps(clean(found)))
    else:
        states = ", ".join(f"{count:,} {state}" for state, count in found["states"].items())
        lines = [
            f"{found['run']}: {found['published']:,} of {found['microbatches']:,} microbatches published "
            f"(in the ledger: {states or 'none'})",
            f"{found['failed_models']:,} of {found['models']:,} models failed; see {tables.ERRORS.name} in "
            f"{found['ledger']}",
        ]
        print(terminal_text.for_stream("\n".join(lines), sys.stdout))
    return EXIT_DONE if found["published"] == found["microbatches"] else EXIT_LEFT


def _report(options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in ("former", "price_per_core_hour", "experiment", "tracking_uri")}
    found = fleet_report(options.output, ledger=options.ledger, **given)
    if options.json:
        print(json.dumps(clean(dict(found.totals))))
    else:
        rate, cost = found.totals.get("inferences_per_core_second", 0.0), found.totals.get("cost_per_million")
        text = f"{found.run}: {rate:,.0f} inferences/s/core"
        text += "" if cost is None else f", {cost:.2g} per million"
        text += f", {found.totals['models_failed']:,} models failed, {found.totals['models_drifted']:,} have drifted"
        print(terminal_text.for_stream(f"{text} -> {options.output}/{RUN_FOLDER}/{PAGE_FILE}", sys.stdout))
    return EXIT_DONE


def _watch(options: argparse.Namespace) -> None:
    """Show the progress on standard error: a line that is written again in a terminal, else a line for each change."""
    is_terminal, last = sys.stderr.isatty(), None
    for found in watch_fleet(options.output, options.ledger, options.every_seconds):
        if is_terminal:
            print(f"\r\x1b[K{found}", end="", file=sys.stderr, flush=True)
        elif (counts := (found.done, found.running, found.failed)) != last:
            print(found, file=sys.stderr, flush=True)
            last = counts
    if is_terminal:
        print(file=sys.stderr)


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    names = ("ledger", "fail_fast", "at_once", "lease_seconds", "trust")
    return {name: getattr(options, name) for name in names}


def _in_session(options: argparse.Namespace, work: Callable[[SparkSession], FleetRun]) -> int:
    spark = open_command_session(options.master, verbose=options.verbose, settings=FAIR)
    try:
        found = work(spark)
    finally:
        spark.stop()
    if options.json:
        print(json.dumps(clean(dataclasses.asdict(found))))
    else:
        text = (
            f"{found.run}: {found.scored:,} of {found.microbatches:,} microbatches scored in {found.seconds:.1f} s; "
            f"{found.rows:,} rows, {found.models:,} models, {len(found.failed_models):,} of which failed -> "
            f"{found.output}"
        )
        print(terminal_text.for_stream(text, sys.stdout))
    return EXIT_DONE


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mirrorspark fleet", description="Score a fleet in runs that can be resumed.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    planning.add_parser(commands)
    run = commands.add_parser("run", help="score Parquet files with a fleet")
    run.set_defaults(command=_run)
    planning.add_work(run).add_argument("--output", required=True, help="new folder of the outputs")
    add = run.add_argument_group("microbatches").add_argument
    add("--models-per-microbatch", type=int, default=DEFAULT_MODELS, help="the most models of a microbatch")
    add("--rows-per-microbatch", type=int, help="rows; by default as many as all slots score in two minutes")
    add("--prefixes", type=int, default=1, help="folders with hashed names, for stores that limit requests per prefix")
    add("--model-seconds", type=float, help="the most seconds of a task that one model may take; no limit by default")
    add("--model-bytes", type=int, help="the most memory of a task that one model may take; no limit by default")
    add("--begin-only", action="store_true", help="score nothing: leave all microbatches to resume")
    resume = commands.add_parser("resume", help="score the microbatches that a run lacks")
    resume.set_defaults(command=_resume)
    resume.add_argument("output", help="folder of the run")
    resume.add_argument("--fleet", help="the fleet, to be compared with that of the run")
    resume.add_argument("--microbatches", type=_numbers, help="numbers of those to score, separated by commas")
    status = commands.add_parser("status", help="show how far a run is")
    status.set_defaults(command=_status)
    status.add_argument("output", help="folder of the run")
    status.add_argument("--watch", action="store_true", help="show the progress as a driver works on the run")
    status.add_argument(
        "--every-seconds", type=float, default=DEFAULT_WATCH_SECONDS, help="time between two looks of --watch"
    )
    report = commands.add_parser("report", help="write a page on a run: speed, cost, failures and drift")
    report.set_defaults(command=_report)
    report.add_argument("output", help="folder of the run")
    report.add_argument("--former", help="folder of the run whose scores these are compared with")
    report.add_argument("--price-per-core-hour", type=float, help="in any currency")
    report.add_argument("--experiment", help="MLflow experiment that gets the report, too")
    report.add_argument("--tracking-uri", help="MLflow server or store; by default the one that MLflow is set to")
    for command in (run, resume, status, report):
        command.add_argument("--ledger", help="file of SQLite or postgresql:// address; by default in the output")
        command.add_argument("--json", action="store_true", help="print the result as JSON")
    for command in (run, resume):
        group = command.add_argument_group("failures and drivers")
        add = group.add_argument
        add(
            "--failure-budget",
            type=float,
            help=f"largest share of models that may fail; {DEFAULT_BUDGET} for a new run",
        )
        add("--fail-fast", action="store_true", help="end at the first model or microbatch that fails")
        add("--at-once", type=int, default=DEFAULT_AT_ONCE, help="microbatches that are scored at a time")
        add("--lease-seconds", type=float, default=DEFAULT_LEASE_SECONDS, help="when a silent driver is taken for gone")
        add_master(group)
        add("--verbose", action="store_true", help="show the log of Spark")
        add("--trust", action="store_true", help="Python code that models bring may run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
