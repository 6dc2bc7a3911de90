"""Searches for the best settings on the cluster: ``python -m training.sweep --search KNOB=SPEC ...``."""

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, get_args

from callbacks.credentials import one_line, without_credentials
from data_pipelines.feature_kinds import FeatureSpecError
from models.settings import ModelSettingsError
from training.command_line import parse, summary_file
from training.config import ConfigError, RunConfig
from training.results.summary import make_way
from training.run import EXIT_FAILED, EXIT_FINISHED, EXIT_USAGE
from training.sweeping.options import SweepOptions
from training.sweeping.report import SweepSummary
from training.sweeping.run import Engine, SweepStoppedError, run
from training.sweeping.schedule import SweepLimits
from training.sweeping.specs import read_space
from training.sweeping.study import Pruner, Sampler

_DESCRIPTION = """\
Train with other settings again and again, keep the best model. Every flag of `python -m training.run` works here, too:
it holds for all trials. The dataset is converted once, trials run side by side where there are slots for them, and the
same command goes on with a sweep that was stopped or killed."""
_EPILOG = """\
KNOB is a field of a recipe (learning_rate) or a setting of its model (model.dropout). SPEC is one of
  log:LOW:HIGH             numbers whose orders of magnitude are equally likely
  uniform:LOW:HIGH[:STEP]  numbers; whole ones where the knob takes no others
  choice:A,B,...           values, lists among them: choice:[64],[128,64]

example:
  python -m training.sweep --recipe flights --workers 2 --trials 30 \\
      --search learning_rate=log:1e-4:1e-2 --search 'model.hidden_units=choice:[64],[128,64]'
"""


def main(arguments: Sequence[str] | None = None, *, engine: Callable[[RunConfig], Engine] | None = None) -> int:
    """Run the command line and return its exit status: 0 finished, 1 failed or stopped, 2 bad usage.

    Args:
        arguments: The flags; by default those of the process.
        engine: Makes what trains the trials; by default it is Spark.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = read_options(arguments)
    except (ConfigError, FeatureSpecError, ModelSettingsError) as error:
        return _end(SweepSummary("failed", error=one_line(error)), summary_file(arguments), EXIT_USAGE)
    config = options.config
    if not config.verbose:
        warnings.filterwarnings("ignore")
    if config.dry_run:  # no sweep, so no summary of one
        return _dry_run(options)
    if config.summary:
        try:
            make_way(Path(config.summary))
        except OSError as error:
            return _say(f"summary {config.summary} cannot be written ({_reason(error)}); give another file", EXIT_USAGE)
    return _run(options, engine or _spark)


def _run(options: SweepOptions, engine: Callable[[RunConfig], Engine]) -> int:
    config, known = options.config, SweepSummary("failed")

    def keep(summary: SweepSummary) -> None:
        nonlocal known
        known = summary

    try:
        summary = run(options, engine(config), tell=keep)
    except ConfigError as error:
        return _end(replace(known, status="failed", error=one_line(error)), config.summary, EXIT_USAGE)
    except SweepStoppedError as error:
        return _end(replace(known, status="stopped", error=one_line(error)), config.summary, EXIT_FAILED)
    except KeyboardInterrupt:
        message = "interrupted; the same command goes on"
        return _end(replace(known, status="stopped", error=message), config.summary, EXIT_FAILED)
    except Exception as error:
        if config.verbose:
            print(without_credentials("".join(traceback.format_exception(error))), file=sys.stderr, end="")
        return _end(replace(known, status="failed", error=one_line(error)), config.summary, EXIT_FAILED)
    print(summary.as_text())
    return _end(summary, config.summary, EXIT_FINISHED)


def read_options(arguments: Sequence[str]) -> SweepOptions:
    """Return the checked options.

    Raises:
        ConfigError: A flag is unknown or wrong, the space cannot be searched, or the configuration refuses its values.
        SystemExit: ``--help`` was asked for.
    """
    flags, others = _build_parser().parse_known_args(list(arguments))
    config = parse(others)
    try:
        text = Path(flags.search_space).read_text(encoding="utf-8") if flags.search_space else None
    except OSError as error:
        raise ConfigError(f"search-space {flags.search_space} cannot be read ({error.strerror})") from error
    space = read_space(flags.search, text, config)
    try:
        limits = SweepLimits(flags.trials, flags.timeout, flags.parallel, flags.max_failures)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return SweepOptions(config, space, tuple(others), limits, flags.sampler, flags.pruner, flags.study)


def _spark(config: RunConfig) -> Engine:
    from training.live.view import LiveView  # seconds of imports, for which --help and a wrong flag need not wait
    from training.sweeping.engine import SparkEngine

    return SparkEngine(config, LiveView(epochs=config.epochs))


def _dry_run(options: SweepOptions) -> int:
    from training.run import _dry_run as dry_run

    width = max(map(len, options.space.to_dict()))
    for knob, spec in options.space.to_dict().items():
        print(f"search {knob:<{width}}  {spec}")
    return dry_run(options.config)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as the flags of a run do."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")


def _build_parser() -> _Parser:
    parser = _Parser(
        prog="python -m training.sweep",
        allow_abbrev=False,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = SweepLimits()
    add = parser.add_argument
    add("--search", action="append", default=[], metavar="KNOB=SPEC", help="a knob and its values; may be repeated")
    add("--search-space", metavar="FILE", help="YAML file with a line KNOB: SPEC each; --search stands over it")
    add("--trials", type=int, default=defaults.trials, metavar="N", help="trials in all (default: %(default)s)")
    add("--timeout", type=float, metavar="SECONDS", help="start no trial after so long; those under way end as usual")
    add("--parallel", type=int, metavar="N", help="trials side by side at the most (default: as many as have slots)")
    add("--sampler", choices=get_args(Sampler), default="tpe", help="chooses the values (default: %(default)s)")
    add("--pruner", choices=get_args(Pruner), default="median", help="ends poor trials early (default: %(default)s)")
    add(
        "--max-failures",
        type=int,
        default=defaults.failures,
        metavar="N",
        help="so many failed trials one after the other end the sweep (default: %(default)s)",
    )
    add("--study", metavar="NAME", help="name of the sweep (default: the newest that searches the same, or a new one)")
    return parser


def _end(summary: SweepSummary, file: str | None, status: int) -> int:
    """Write the summary to ``file``, say what went wrong, and return the exit status."""
    if file:
        try:
            make_way(Path(file))
            summary.save(Path(file))
        except OSError as error:
            # Who waits for the file would wait for ever if the status told of success.
            status = status or EXIT_FAILED
            _say(f"summary {file} cannot be written ({_reason(error)}); the sweep {summary.status}", status)
    return _say(summary.error, status) if summary.error else status


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _say(message: str, status: int) -> int:
    print(f"mirrorspark: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
