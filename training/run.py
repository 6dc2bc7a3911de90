"""``mirrorspark train``: trains on Spark and scores with the result. In a clone also ``python -m training.run``."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models import ModelSettingsError
from mirrorspark.storage import one_line, terminal_text
from mirrorspark.training import commands
from mirrorspark.training.commands import EXIT_FAILED, EXIT_FINISHED, EXIT_USAGE
from mirrorspark.training.configuration import ConfigError, RunConfig, parse, summary_file
from mirrorspark.training.driver import TrainingStoppedError
from mirrorspark.training.results.report import Summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 finished, 1 failed, 2 bad usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        config = parse(arguments)
    except (ConfigError, kinds.FeatureSpecError, ModelSettingsError) as error:
        return _refuse(error, summary_file(arguments))
    return execute(config)


def execute(config: RunConfig) -> int:
    """Carry out ``config`` and return the exit status."""
    status = commands.begin(config, config.summary)
    return _run(config) if status is None else status


def _run(config: RunConfig) -> int:
    began = time.monotonic()
    try:
        commands.require_data(config)
    except ConfigError as error:
        return _refuse(error, config.summary)
    from mirrorspark.training import pipeline  # Imports take seconds, which would delay --help and usage errors.

    known = Summary(status="running")

    def keep(summary: Summary) -> None:
        nonlocal known
        known = summary

    try:
        summary = pipeline.run(config, keep, began=began)
    except ConfigError as error:
        return _refuse(error, config.summary)
    except TrainingStoppedError as error:
        status = terminal_text.EXIT_INTERRUPTED if error.is_interrupted else EXIT_FAILED
        return commands.end(
            replace(known, status="stopped", error=str(error)), config.summary, status, known.run_folder
        )
    except (Exception, KeyboardInterrupt) as error:
        if terminal_text.is_interrupt(error):
            message = "interrupted; the same command goes on from the last checkpoint"
            stopped = replace(known, status="stopped", error=message)
            return commands.end(stopped, config.summary, terminal_text.EXIT_INTERRUPTED, known.run_folder)
        commands.explain(error, config)
        failed = replace(known, status="failed", error=one_line(error))
        return commands.end(failed, config.summary, EXIT_FAILED, known.run_folder)
    # A run that had finished before keeps its own summary.
    folder = None if known.status == "finished" else summary.run_folder
    # The summary is written before it is shown: the reader of a pipe may have gone.
    status = commands.end(summary, config.summary, EXIT_FINISHED, folder)
    commands.show(summary.as_text(sys.stdout))
    return status


def _refuse(error: Exception, summary: str | None) -> int:
    return commands.end(Summary(status="failed", error=one_line(error)), summary, EXIT_USAGE)


if __name__ == "__main__":
    sys.exit(main())
