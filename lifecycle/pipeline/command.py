"""``mirrorspark pipeline``: from a recipe's tables to a champion, for one date."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.lifecycle.pipeline.alerts import AlertError, check_targets
from mirrorspark.lifecycle.pipeline.record import ChangedSettingsError, PipelineError, PipelineRecord
from mirrorspark.lifecycle.pipeline.settings import PipelineSettings
from mirrorspark.lifecycle.pipeline.stages import FIRST_STAGE, StageFailedError, advice
from mirrorspark.models import ModelSettingsError
from mirrorspark.scoring import fail
from mirrorspark.storage import one_line, terminal_text
from mirrorspark.training import commands as training_commands
from mirrorspark.training.configuration import ConfigError, RunConfig, parse

EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command-line arguments; by default those of the process.

    Returns:
        0 when the date is finished, now or before; 1 when a stage has failed or another command has the date; 2 when
        arguments or settings make no sense, or are not those that the date was begun with. Standard error has the
        message.
    """
    try:
        options, config, settings = read_arguments(arguments)
    except (ConfigError, kinds.FeatureSpecError, ModelSettingsError, AlertError) as error:
        return fail(one_line(error), EXIT_USAGE)
    from mirrorspark.lifecycle.pipeline.run import folder_of_date, run_pipeline, sandbox  # imports Spark and MLflow

    again_from = options.again_from
    try:
        if options.sample is not None:
            config, settings = sandbox(config, settings, options.sample)
            again_from = again_from or FIRST_STAGE
        if config.dry_run:
            return _dry_run(config, settings, again_from)
        record = run_pipeline(config, settings, again_from=again_from, say=_note)
    except (ConfigError, ChangedSettingsError) as error:
        return fail(one_line(error), EXIT_USAGE)
    except KeyboardInterrupt:
        return fail(f"interrupted. {_advice(options)}", terminal_text.EXIT_INTERRUPTED)
    except StageFailedError as error:
        return fail(f"{one_line(error)}. {_advice(options, error.again_from)}", EXIT_FAILED)
    except (PipelineError, OSError) as error:
        return fail(one_line(error), EXIT_FAILED)
    _print_end(record, folder_of_date(config))
    return EXIT_FINISHED


def read_arguments(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, RunConfig, PipelineSettings]:
    """Return the command's own options, the run, and the settings of the pipeline.

    Raises:
        ConfigError: A flag, a recipe or its settings make no sense.
        FeatureSpecError: The recipe's features make no sense.
        ModelSettingsError: The recipe's model makes no sense.
        AlertError: A target of alerts makes no sense.
    """
    options, of_run = _parser().parse_known_args(arguments)
    config = parse(of_run)
    given = options.settings
    settings = PipelineSettings.of_recipe(config.recipe) if given is None else PipelineSettings.load(given)
    settings = replace(settings, alerts=(*settings.alerts, *options.alert))
    check_targets(settings.alerts)
    return options, config, settings


def _advice(options: argparse.Namespace, needed: str | None = None) -> str:
    if options.sample is not None:
        return "The same command begins anew; --from goes on from a stage."
    return advice(needed, options.again_from)


def _dry_run(config: RunConfig, settings: PipelineSettings, again_from: str | None) -> int:
    """Show the configuration, the preflight's checks and the stages; start nothing but a Spark session."""
    from mirrorspark.lifecycle.pipeline.run import planned

    status = training_commands.dry_run(config)
    print("\n".join(planned(config, settings, again_from)))
    return status


def _note(line: str) -> None:
    print(terminal_text.for_stream(line, sys.stderr), file=sys.stderr, flush=True)


def _print_end(record: PipelineRecord, folder: Path) -> None:
    from mirrorspark.lifecycle.pipeline.page import PAGE_FILE
    from mirrorspark.lifecycle.pipeline.weekly import warnings_of

    promoted, metrics = record.stages["promote"].facts, record.stages["evaluate"].facts["metrics"]
    lines = [
        f"champion   models:/{record.stages['train'].facts['model']}/{promoted['version']}",
        f"before     {promoted['previous'] or 'none'}",
        f"metrics    {', '.join(f'{name} {value:.4f}' for name, value in metrics.items())}",
        *(f"warning    {warning}" for warning in warnings_of({name: one.facts for name, one in record.stages.items()})),
        f"page       {folder / PAGE_FILE}",
    ]
    print("\n".join(lines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mirrorspark pipeline",
        description="Run a recipe's pipeline for one date: ingest, check, convert, train, evaluate, gate, deploy, try, "
        "promote. A date that is finished is not run again; a failed date goes on where it failed.",
        epilog="All flags of mirrorspark train are flags of this command, too: --recipe, --data, --workers, --epochs …",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run", help="run the remaining stages of a date", allow_abbrev=False, epilog=parser.epilog
    )
    run.add_argument(
        "--settings", metavar="FILE", help="gates, slices and limits; by default the recipe's pipeline.yaml"
    )
    run.add_argument(
        "--alert", action="append", default=[], metavar="TARGET", help="log, https://… or mailto:…; may be repeated"
    )
    run.add_argument(
        "--sample", type=float, metavar="SHARE", help="try it on a share of the rows, in a sandbox on local[1]"
    )
    run.add_argument(
        "--from",
        dest="again_from",
        metavar="STAGE",
        help="run this stage and those behind it again; ingest begins anew",
    )
    return parser
