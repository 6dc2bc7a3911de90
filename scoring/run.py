"""Score Parquet files from the command line: ``python -m scoring.run --model URI --input IN --output OUT --keys KEY``.

The scores appear in the output folder all at once or not at all.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence

from pyspark.sql import SparkSession

from scoring.files import ScoredFiles, score_files
from scoring.loaded_model import DEFAULT_BATCH_SIZE


def main(arguments: Sequence[str] | None = None) -> int:
    """Score what the arguments name.

    Args:
        arguments: Command-line arguments; by default those of the process.

    Returns:
        0 when the scores are there; 1 when a task or a store failed; 2 when arguments, table and model do not fit.
        Standard error tells what happened.
    """
    options = _parser().parse_args(arguments)
    begin = time.monotonic()
    # Executors must run this interpreter: a bare `python3` on their PATH has none of our packages.
    for name in ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"):
        os.environ.setdefault(name, sys.executable)
    builder = SparkSession.builder.appName("mirrorspark scoring")
    spark = (builder.master(options.master) if options.master else builder).getOrCreate()
    try:
        scored = score_files(
            spark,
            options.input,
            options.model,
            options.output,
            keys=options.keys.split(","),
            mode=options.mode,
            tracking_uri=options.tracking_uri,
            batch_size=options.batch_size,
        )
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        spark.stop()
    _show(scored, time.monotonic() - begin, as_json=options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scoring.run", description="Score Parquet files with an exported model."
    )
    parser.add_argument(
        "--model", required=True, help="models:/NAME/VERSION, models:/NAME@ALIAS, runs:/ID/PATH or a folder"
    )
    parser.add_argument("--input", required=True, nargs="+", help="Parquet files, folders or globs")
    parser.add_argument("--output", required=True, help="folder of the scores")
    parser.add_argument("--keys", required=True, help="columns that name a row, with commas between them")
    parser.add_argument(
        "--mode", default="error", help="what becomes of data in the output: error, overwrite or append"
    )
    parser.add_argument("--batch-size", type=int, default=DEFAULT_BATCH_SIZE, help="rows per call of the model")
    parser.add_argument("--tracking-uri", help="MLflow store of the model; by default the one that MLflow is set to")
    parser.add_argument("--master", help="Spark master; by default what spark-submit or the environment says")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


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


if __name__ == "__main__":
    sys.exit(main())
