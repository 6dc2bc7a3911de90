"""Score files from the command line: ``python -m scoring.run --model URI --input IN --output OUT --keys KEY``.

The scores appear in the output folder all at once or not at all.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence

from py4j.protocol import Py4JError, Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from data_pipelines.spark_errors import task_message
from scoring.bad_rows import ERROR_COLUMN
from scoring.checks import ScoringError
from scoring.files import NAN_ADVICE, ScoredFiles, score_files
from scoring.forms import form_named
from scoring.loaded_model import DEFAULT_BATCH_SIZE
from scoring.model_uri import resolve
from scoring.null_policy import NullRule
from scoring.planner import DEFAULT_TASK_SECONDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Score what the arguments name.

    Args:
        arguments: Command-line arguments; by default those of the process.

    Returns:
        0 when the scores are there; 1 when a task, a store or the session failed; 2 when arguments, table and model do
        not fit. Standard error tells what happened.
    """
    options = _parser().parse_args(arguments)
    begin = time.monotonic()
    try:  # before Spark starts
        form, nulls = form_named(options.outputs), dict(_null_rule(rule) for rule in options.null)
    except ScoringError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # Executors must run this interpreter: a bare `python3` on their PATH has none of our packages.
    for name in ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"):
        os.environ.setdefault(name, sys.executable)
    builder = SparkSession.builder.appName("mirrorspark scoring")
    try:
        spark = (builder.master(options.master) if options.master else builder).getOrCreate()
    except (PySparkException, Py4JError) as error:
        master = options.master or "the master that Spark is set to"
        print(f"error: no session at {master}: {task_message(error)}; see --master and JAVA_HOME", file=sys.stderr)
        return 1
    try:
        scored = score_files(
            spark,
            options.input,
            resolve(options.model, options.tracking_uri, offline=options.offline),
            options.output,
            keys=options.keys.split(","),
            input_format=options.input_format,
            mode=options.mode,
            outputs=form,
            batch_size=options.batch_size,
            nulls=nulls,
            bad_rows=options.bad_rows,
            other_versions=options.other_versions,
            task_seconds=options.task_seconds,
        )
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        print(f"error: {_in_words(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {_in_words(error)}", file=sys.stderr)
        return 1
    except (PySparkException, Py4JJavaError) as error:
        print(f"error: {task_message(error)}", file=sys.stderr)
        return 1
    finally:
        spark.stop()
    _show(scored, time.monotonic() - begin, as_json=options.json)
    return 0


def _in_words(error: Exception) -> str:
    """Return what an error says, without the number that Python puts before the words of the system."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    files = " -> ".join(str(file) for file in (error.filename, error.filename2) if file is not None)
    return f"{files}: {error.strerror}" if files else error.strerror


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scoring.run", description="Score Parquet files with an exported model."
    )
    parser.add_argument(
        "--model", required=True, help="models:/NAME/VERSION, models:/NAME@ALIAS, runs:/ID/PATH or a folder"
    )
    parser.add_argument("--input", required=True, nargs="+", help="Parquet files, folders or globs")
    parser.add_argument(
        "--input-format", help="what the input is where it is not Parquet: csv, tfrecord, table and so on"
    )
    parser.add_argument("--output", required=True, help="folder of the scores")
    parser.add_argument("--keys", required=True, help="columns that name a row, with commas between them")
    parser.add_argument(
        "--mode", default="error", help="what becomes of data in the output: error, overwrite or append"
    )
    parser.add_argument(
        "--outputs",
        default="columns",
        help="form of the scores: columns, struct, wide, long, top:10 (the best labels) or at_least:0.5",
    )
    parser.add_argument(
        "--null",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="what stands in for a null of a column, or COLUMN=fail where none may be; may be given several times",
    )
    parser.add_argument(
        "--bad-rows",
        default="fail",
        help="what becomes of a row that cannot be scored: fail, or mark it with the reason in a column 'error'",
    )
    parser.add_argument(
        "--other-versions",
        default="refuse",
        help="where an executor's libraries are not the model's: refuse to score, or allow it",
    )
    parser.add_argument("--batch-size", type=int, default=DEFAULT_BATCH_SIZE, help="rows per call of the model")
    parser.add_argument(
        "--task-seconds",
        type=float,
        default=DEFAULT_TASK_SECONDS,
        help="what a task may take, in seconds: what is lost with a machine that is taken away",
    )
    parser.add_argument("--tracking-uri", help="MLflow store of the model; by default the one that MLflow is set to")
    parser.add_argument(
        "--offline",
        action="store_true",
        help="ask no store: use the copy of the model that was fetched before; an alias is what it was then",
    )
    parser.add_argument("--master", help="Spark master; by default what spark-submit or the environment says")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _null_rule(text: str) -> tuple[str, NullRule]:
    """Return column and value of ``COLUMN=VALUE``; the value becomes what the column holds where that is known.

    Raises:
        ScoringError: There is no such pair.
    """
    column, separator, value = text.partition("=")
    if not column or not separator:
        raise ScoringError(f"--null {text} is no COLUMN=VALUE; give --null amount=0, or --null amount=fail")
    return column, value


def _show(scored: ScoredFiles, seconds: float, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(scored) | {"seconds": round(seconds, 3)}))
        return
    counters = scored.counters
    print(f"{scored.rows:,} rows scored with {scored.model} in {seconds:.1f} s -> {scored.output}")
    print(
        f"{len(scored.files)} files of {scored.bytes / 1e6:,.1f} MB; {counters.tasks} tasks in {counters.processes} "
        f"Python workers of at most {counters.peak_memory_bytes / 1e6:,.0f} MB, which loaded the model "
        f"{counters.loads} times"
    )
    if scored.predicted_task_seconds is not None:
        print(f"the longest task was to take {scored.predicted_task_seconds:,.1f} s")
    if counters.bad_rows:
        print(f"{counters.bad_rows:,} rows could not be scored; the column '{ERROR_COLUMN}' says why")
    if counters.nans:
        print(f"{counters.nans:,} scores are NaN: {NAN_ADVICE}")


if __name__ == "__main__":
    sys.exit(main())
