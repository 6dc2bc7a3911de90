"""The command line of a sweep: ``mirrorspark sweep --search FIELD=SPEC ...``."""

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models import ModelSettingsError
from mirrorspark.storage import one_line, terminal_text, without_credentials
from mirrorspark.training.configuration import ConfigError, RunConfig, parse, summary_file
from mirrorspark.training.results.report import make_way
from mirrorspark.training.run import EXIT_FAILED, EXIT_FINISHED, EXIT_USAGE, dry_run
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
        return _end(SweepSummary("failed", error=one_line(error)), summary_file(arguments), EXIT_USAGE)
    config = options.config
    if not config.verbose:
        warnings.filterwarnings("ignore")
    if config.dry_run:  # No sweep, so no summary.
        for name, spec in options.space.specs.items():
            print(f"search {name:<{max(map(len, options.space.specs))}}  {spec}")
        return dry_run(config)
    if config.summary:
        try:
            make_way(Path(config.summary))
        except OSError as error:
            return _say(f"summary {config.summary} cannot be written ({_reason(error)}); give another file", EXIT_USAGE)
    return _run(options, engine or _spark)


def _run(options: SweepOptions, engine: "Callable[[RunConfig], SparkEngine]") -> int:
    config, latest = options.config, SweepSummary("failed")

    def store(summary: SweepSummary) -> None:
        nonlocal latest
        latest = summary

    try:
        summary = run(options, engine(config), on_summary=store)
    except (Exception, KeyboardInterrupt) as error:
        is_stopped = isinstance(error, SweepStoppedError | KeyboardInterrupt)
        if config.verbose and not is_stopped and not isinstance(error, ConfigError):
            print(without_credentials("".join(traceback.format_exception(error))), file=sys.stderr, end="")
        message = one_line(error) if isinstance(error, Exception) else "interrupted; the same command goes on"
        latest = replace(latest, status="stopped" if is_stopped else "failed", error=message)
        return _end(latest, config.summary, EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED)
    print(summary.as_text())
    return _end(summary, config.summary, EXIT_FINISHED)


def read_options(arguments: Sequence[str]) -> SweepOptions:
    """Return the checked options.

    Raises:
        ConfigError: A flag is unknown or wrong, or the space cannot be searched.
        SystemExit: For ``--help``.
    """
    flags, others = _build_parser().parse_known_args(list(arguments))
    config = parse(others)
    try:
        text = Path(flags.search_space).read_text(encoding="utf-8") if flags.search_space else None
    except OSError as error:
        raise ConfigError(f"search-space {flags.search_space} cannot be read ({error.strerror})") from error
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
    add = parser.add_argument_group("most used").add_argument
    add("--search", action="append", default=[], metavar="FIELD=SPEC", help="a field and its values; may be repeated")
    add("--trials", type=int, metavar="N", help=f"trials in all (default: {SweepOptions.trials})")
    add("--parallel", type=int, metavar="N", help="maximum of parallel trials (default: as have slots)")
    add("--study", metavar="NAME", help="name of the sweep (default: the newest equal one, or a new one)")
    add = parser.add_argument_group("search").add_argument
    add("--search-space", default=None, metavar="FILE", help="YAML file of lines FIELD: SPEC; --search overrides it")
    add("--sampler", choices=get_args(Sampler), help=f"chooses the values (default: {SweepOptions.sampler})")
    add("--pruner", choices=get_args(Pruner), help=f"ends poor trials early (default: {SweepOptions.pruner})")
    add = parser.add_argument_group("end of the sweep").add_argument
    add(
        "--timeout",
        type=float,
        dest="timeout_seconds",
        metavar="SECONDS",
        help="start no trial after this time; running trials end as usual",
    )
    add(
        "--max-failures",
        type=int,
        metavar="N",
        help=f"consecutive failed trials that end the sweep (default: {SweepOptions.max_failures})",
    )
    return parser


def _end(summary: SweepSummary, file: str | None, status: int) -> int:
    """Write the summary to ``file``, print its error, and return the exit status."""
    if file:
        try:
            make_way(Path(file))
            summary.save(Path(file))
        except OSError as error:
            # A scheduler that waits for the file must see a failure.
            status = status or EXIT_FAILED
            _say(f"summary {file} cannot be written ({_reason(error)}); the sweep {summary.status}", status)
    return _say(summary.error, status) if summary.error else status


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _say(message: str, status: int) -> int:
    print(terminal_text.for_stream(f"mirrorspark: {message}", sys.stderr), file=sys.stderr)
    return status
