"""The command line of a sweep: ``mirrorspark sweep --search FIELD=SPEC ...``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models import ModelSettingsError
from mirrorspark.storage import one_line, read_text, terminal_text
from mirrorspark.training.commands import EXIT_FAILED, EXIT_FINISHED, EXIT_USAGE, begin, end, explain, show
from mirrorspark.training.configuration import ConfigError, RunConfig, parse, summary_file
from mirrorspark.training.sweep.options import Pruner, Sampler, SweepOptions
from mirrorspark.training.sweep.report import SweepSummary
from mirrorspark.training.sweep.run import SweepStoppedError, run
from mirrorspark.training.sweep.space import read_space

if TYPE_CHECKING:
    from mirrorspark.training.sweep.engine import SparkEngine

_DESCRIPTION = """\
Train with different settings, and keep the best model. Every flag of `mirrorspark train` works here, too, and applies
to all trials. The dataset is converted once, trials run in parallel as there are slots, and the same command
resumes a sweep that was stopped or killed."""
_EPILOG = """\
FIELD is a field of a recipe (learning_rate) or a setting of its model (model.dropout). SPEC is one of
  log:LOW:HIGH             numbers, uniform in the logarithm
  uniform:LOW:HIGH[:STEP]  numbers; whole ones for a field of whole numbers
  choice:A,B,...           values, which may be lists: choice:[64],[128,64]

example:
  mirrorspark sweep --recipe flights --workers 2 --trials 30 \\
      --search learning_rate=log:1e-4:1e-2 --search 'model.hidden_units=choice:[64],[128,64]'
"""


def main(arguments: Sequence[str] | None = None, *, engine: "Callable[[RunConfig], SparkEngine] | None" = None) -> int:
    """Run the command line and return its exit status: 0 finished, 1 failed or stopped, 2 bad usage.

    Args:
        arguments: The flags; by default those of the process.
        engine: Makes the engine that trains the trials; by default it uses Spark.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = read_options(arguments)
    except (ConfigError, kinds.FeatureSpecError, ModelSettingsError) as error:
        return end(SweepSummary("failed", error=one_line(error)), summary_file(arguments), EXIT_USAGE)
    if options.config.dry_run:
        for name, spec in options.space.specs.items():
            show(f"search {name:<{max(map(len, options.space.specs))}}  {spec}")
    status = begin(options.config, options.summary)
    return _run(options, engine or _spark) if status is None else status


def _run(options: SweepOptions, engine: "Callable[[RunConfig], SparkEngine]") -> int:
    latest = SweepSummary("failed")

    def store(summary: SweepSummary) -> None:
        nonlocal latest
        latest = summary

    try:
        summary = run(options, engine(options.config), on_summary=store)
    except SweepStoppedError as stop:
        status = terminal_text.EXIT_INTERRUPTED if stop.is_interrupted else EXIT_FAILED
        return end(replace(latest, status="stopped", error=one_line(stop)), options.summary, status)
    except (Exception, KeyboardInterrupt) as error:
        if terminal_text.is_interrupt(error):
            stopped = replace(latest, status="stopped", error="interrupted; the same command goes on")
            return end(stopped, options.summary, terminal_text.EXIT_INTERRUPTED)
        if not isinstance(error, ConfigError):
            explain(error, options.config)
        failed = replace(latest, status="failed", error=one_line(error))
        return end(failed, options.summary, EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED)
    # The summary is written before it is shown: the reader of a pipe may have gone.
    status = end(summary, options.summary, EXIT_FINISHED)
    show(summary.as_text())
    return status


def read_options(arguments: Sequence[str]) -> SweepOptions:
    """Return the checked options.

    Raises:
        ConfigError: A flag is unknown or wrong, or the space cannot be searched.
        SystemExit: For ``--help``.
    """
    flags, others = _build_parser().parse_known_args(list(arguments))
    config = parse(others)
    try:
        text = read_text(Path(flags.search_space)) if flags.search_space else None
    except OSError as error:
        raise ConfigError(f"search-space {flags.search_space} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"search-space: {error.reason}") from error
    space = read_space(flags.search, text, config)
    own = {name: value for name, value in vars(flags).items() if name not in ("search", "search_space")}
    return SweepOptions(config, space, tuple(others), **own)


def _spark(config: RunConfig) -> "SparkEngine":
    from mirrorspark.training.run_records.live import LiveView  # Seconds of imports, which --help does not need.
    from mirrorspark.training.sweep.engine import SparkEngine

    return SparkEngine(config, LiveView(epochs=config.epochs))


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line, as the flags of a run do."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")


def _build_parser() -> _Parser:
    parser = _Parser(
        prog="mirrorspark sweep",
        allow_abbrev=False,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # SweepOptions has the defaults.
    )
    add, known = parser.add_argument_group("most used").add_argument, SweepOptions
    add("--search", action="append", default=[], metavar="FIELD=SPEC", help="a field and its values; may be repeated")
    add("--search-space", default=None, metavar="FILE", help="YAML file of lines FIELD: SPEC; --search overrides it")
    add("--trials", type=int, metavar="N", help=f"trials in all (default: {known.trials})")
    add("--parallel", type=int, metavar="N", help="maximum of parallel trials (default: as many as the slots allow)")
    add("--study", metavar="NAME", help="name of the sweep (default: the newest equal one, or a new one)")
    add("--summary", metavar="FILE", help="file for the sweep's JSON summary")
    add = parser.add_argument_group("search").add_argument
    add("--sampler", choices=get_args(Sampler), help=f"chooses the values (default: {known.sampler})")
    add("--pruner", choices=get_args(Pruner), help=f"ends poor trials early (default: {known.pruner})")
    add("--timeout", type=float, dest="timeout_seconds", metavar="SECONDS", help="start no trial after this time")
    add(
        "--max-failures",
        type=int,
        metavar="N",
        help=f"consecutive failures that end it (default: {known.max_failures})",
    )
    return parser
