"""Command that scores files: ``mirrorspark score --model URI --input IN --output OUT --keys KEY``.

It is also ``python -m scoring.run``. The scores appear in the output folder all at once or not at all.
"""

import argparse
import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Sequence

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.file_job import check_task_seconds, save_mode_of
from mirrorspark.scoring.files import NAN_ADVICE, ScoredFiles, score_files
from mirrorspark.scoring.input import NullRule
from mirrorspark.scoring.model.loading import DEFAULT_BATCH_SIZE
from mirrorspark.scoring.model.stored import resolve
from mirrorspark.scoring.output import ERROR_COLUMN, form_named
from mirrorspark.scoring.task import DEFAULT_TASK_SECONDS
from mirrorspark.spark_session import SPARK_ERRORS, SparkStartError, add_master, open_command_session, task_message
from mirrorspark.storage import clean, terminal_text, without_credentials

# Arguments, table and model that do not fit, rather than a store or task that failed.
_WRONG_INPUT = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command-line arguments; by default those of the process.

    Returns:
        0 for success; 1 when a task, a store or the session failed; 2 when arguments, table and model do not fit.
        Standard error has the message.
    """
    options = _parser().parse_args(arguments)
    begin = time.monotonic()
    if not options.verbose:
        warnings.filterwarnings("ignore")
    try:  # before Spark starts, which takes seconds
        form, nulls = form_named(options.outputs), dict(_null_rule(rule) for rule in options.null)
        save_mode_of(options.mode)
        check_task_seconds(options.task_seconds)
        model = resolve(options.model, options.tracking_uri, offline=options.offline)
    except _WRONG_INPUT as error:
        return fail(error_text(error), 2)
    except OSError as error:
        return fail(error_text(error), 1)
    try:
        spark = open_command_session(options.master, verbose=options.verbose)
    except SparkStartError as error:
        return fail(error_text(error), 1)
    try:
        scored = score_files(
            spark,
            options.input,
            model,
            options.output,
            keys=options.keys.split(","),
            input_format=options.input_format,
            mode=options.mode,
            outputs=form,
            batch_size=options.batch_size,
            nulls=nulls,
            bad_rows=options.bad_rows,
            other_versions=options.other_versions,
            trust=options.trust,
            task_seconds=options.task_seconds,
        )
    except _WRONG_INPUT as error:
        return fail(error_text(error), 2)
    except OSError as error:
        return fail(error_text(error), 1)
    except SPARK_ERRORS as error:
        return fail(task_message(error), 1)
    finally:
        spark.stop()
    _show(scored, time.monotonic() - begin, as_json=options.json)
    return 0


def fail(message: str, status: int) -> int:
    """Print a message without secrets to standard error, and return ``status``."""
    print(terminal_text.for_stream(f"mirrorspark: {without_credentials(message)}", sys.stderr), file=sys.stderr)
    return status


def error_text(error: Exception) -> str:
    """Return the message of an error, without the number that Python puts before a message of the system."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    files = " -> ".join(str(file) for file in (error.filename, error.filename2) if file is not None)
    return f"{files}: {error.strerror}" if files else error.strerror


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mirrorspark score", description="Score files with a model.")
    group = parser.add_argument_group("most used")
    add = group.add_argument
    add("--model", required=True, help="models:/NAME/VERSION, models:/NAME@ALIAS, runs:/ID or a folder")
    add("--input", required=True, nargs="+", help="files, folders or globs, or the name of a table")
    add("--output", required=True, help="folder of the scores")
    add("--keys", required=True, help="columns that identify a row, separated by commas")
    add("--mode", default="error", help="what to do with scores that are there: error (default), overwrite or append")
    add(
        "--outputs",
        default="columns",
        help="form of scores: columns (default), struct, labelled, named, wide, long, top:10 (best) or at_least:0.5",
    )
    add_master(group)
    add("--tracking-uri", help=f"MLflow store of the model; {tracking_store.DEFAULT_STORE_IN_WORDS}")
    add = parser.add_argument_group("rows").add_argument
    add("--input-format", help="format of the input if its name does not give it: csv, tfrecord, table and so on")
    add(
        "--null",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="value that replaces nulls of a column, or COLUMN=fail to reject them; can be repeated",
    )
    add(
        "--bad-rows",
        default="fail",
        help="treatment of a row that cannot be scored: fail (default), or mark it with the reason in a column 'error'",
    )
    add = parser.add_argument_group("tasks").add_argument
    add("--batch-size", type=int, default=DEFAULT_BATCH_SIZE, help="rows per call of the model (default %(default)s)")
    add(
        "--task-seconds",
        type=float,
        default=DEFAULT_TASK_SECONDS,
        help="longest duration of a task, which is the work that a lost machine costs (default %(default)g)",
    )
    add(
        "--other-versions",
        default="refuse",
        help="refuse (default) or allow executors whose library versions differ from the model's",
    )
    add(
        "--trust",
        action="store_true",
        help="let Python code run that the model brings: hooks, code in a Keras file, MLflow models of other libraries",
    )
    add(
        "--offline",
        action="store_true",
        help="contact no store: use the copy of the model that was fetched before, and an alias as it was then",
    )
    add = parser.add_argument_group("the output").add_argument
    add("--json", action="store_true", help="print the result as JSON")
    add("--verbose", action="store_true", help="show the logs of Spark and TensorFlow")
    return parser


def _null_rule(text: str) -> tuple[str, NullRule]:
    """Return column and value of ``COLUMN=VALUE``; the value is cast to the type of the column later.

    Raises:
        ScoringError: The text is not such a pair.
    """
    column, separator, value = text.partition("=")
    if not column or not separator:
        raise ScoringError(f"--null {text} is not COLUMN=VALUE; give --null amount=0, or --null amount=fail")
    return column, value


def _show(scored: ScoredFiles, seconds: float, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(clean(dataclasses.asdict(scored)) | {"seconds": round(seconds, 3)}))
        return
    counters = scored.counters
    place = without_credentials(scored.output)
    lines = [
        f"{scored.rows:,} rows scored with {scored.model} in {seconds:.1f} s -> {place}",
        f"{_count(len(scored.files), 'file')} of {scored.bytes / 1e6:,.1f} MB; {_count(counters.tasks, 'task')} in "
        f"{_count(counters.processes, 'Python worker')} of at most {counters.peak_memory_bytes / 1e6:,.0f} MB, which "
        f"loaded the model {_count(counters.loads, 'time')}",
    ]
    if scored.predicted_task_seconds is not None:
        lines.append(f"the longest task was predicted to take {scored.predicted_task_seconds:,.1f} s")
    if counters.bad_rows:
        lines.append(f"{counters.bad_rows:,} rows could not be scored; the column '{ERROR_COLUMN}' says why")
    if counters.nans:
        lines.append(f"{counters.nans:,} scores are NaN: {NAN_ADVICE}")
    print(terminal_text.for_stream("\n".join(lines), sys.stdout))


def _count(number: int, word: str) -> str:
    """Return ``1 file`` or ``2 files``."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    sys.exit(main())
