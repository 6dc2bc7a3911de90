"""``mirrorspark promotion``: validate a candidate, make it the champion, go back, and show the audit trail."""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.data_pipelines import read_table
from mirrorspark.lifecycle.gate import Gates, SingleRowsError, Slicing, log_validation, read_eval_config, validate
from mirrorspark.lifecycle.pipeline import PipelineSettings
from mirrorspark.lifecycle.promotion import (
    Evidence,
    FolderRegistry,
    MLflowRegistry,
    Promotion,
    PromotionConflictError,
    PromotionRefusedError,
    Registry,
    RegistryError,
    audit_trail,
    promote,
    rollback,
)
from mirrorspark.scoring import error_text, fail
from mirrorspark.scoring.model.stored import ModelNotFoundError, PinnedModel, resolve
from mirrorspark.spark_session import SESSION_ERRORS, add_master, open_command_session, task_message
from mirrorspark.storage import one_line

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BLOCKED = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command-line arguments; by default those of the process.

    Returns:
        0 when it is done, and for ``validate`` all gates have passed; 1 when a store or task failed; 2 when arguments,
        table and model do not fit; 3 when a gate has failed, or another champion has come in between. Standard error
        has the message.
    """
    options = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore")
    tracking_store.limit_requests()
    from mlflow.exceptions import MlflowException  # takes seconds
    from sqlalchemy.exc import SQLAlchemyError  # raised by a store that is a database

    try:
        return int(options.command(options))
    except (PromotionRefusedError, PromotionConflictError) as error:
        return fail(one_line(error), EXIT_BLOCKED)
    except (MlflowException, SQLAlchemyError) as error:
        return fail(f"the MLflow store cannot be used: {one_line(error)}", EXIT_FAILED)
    except (RegistryError, SingleRowsError) as error:
        return fail(one_line(error), EXIT_FAILED)
    except tracking_store.NoStoreError as error:
        return fail(f"{one_line(error)}; give --tracking-uri, or --folder", EXIT_USAGE)
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        return fail(error_text(error), EXIT_USAGE)
    except OSError as error:
        return fail(error_text(error), EXIT_FAILED)
    except SESSION_ERRORS as error:
        return fail(task_message(error), EXIT_FAILED)


def _validate(options: argparse.Namespace) -> int:
    slices, gates, label, weight = _asked(options)
    if label is None:
        raise ValueError("there is no label; give it as --label")
    # Before Spark starts, which takes seconds.
    champion = _champion(options.champion, options.tracking_uri)
    candidate = resolve(options.candidate, options.tracking_uri)
    spark = open_command_session(options.master, verbose=options.verbose)
    try:
        found = validate(
            candidate,
            champion,
            read_table(spark, options.input),
            slices,
            gates,
            label=label,
            keys=options.keys.split(","),
            weight=weight,
            task=options.task,
            tracking_uri=options.tracking_uri,
            trust=options.trust,
        )
    finally:
        spark.stop()
    evidence = found.save(options.output)
    if options.run_id is not None:
        log_validation(found, options.run_id, tracking_uri=options.tracking_uri)
    print(found.as_text())
    print(f"evidence: {evidence}", file=sys.stderr)
    return EXIT_DONE if found.passed else EXIT_BLOCKED


def _champion(uri: str | None, tracking_uri: str | None) -> PinnedModel | None:
    """Return the champion; the error for a missing one has the remedy before the first promotion."""
    try:
        return None if uri is None else resolve(uri, tracking_uri)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error}; leave out --champion while nothing is in production") from error


def _asked(options: argparse.Namespace) -> tuple[Sequence[str | Slicing], Gates, str | None, str | None]:
    """Return slices and gates, and the columns of label and weight."""
    if options.eval_config is not None:
        read = read_eval_config(options.eval_config)
        return read.slices, read.gates, options.label or read.label, options.weight or read.weight
    settings = PipelineSettings() if options.settings is None else PipelineSettings.load(options.settings)
    return settings.slices, settings.gates, options.label, options.weight


def _promote(options: argparse.Namespace) -> int:
    evidence = Evidence.load(options.evidence)
    given = {"why": options.why, "who": options.who, "name": options.name, "version": options.version}
    return _print_promotion(promote(evidence, _registry(options), **given))


def _rollback(options: argparse.Namespace) -> int:
    return _print_promotion(rollback(options.name, _registry(options), why=options.why, who=options.who))


def _audit(options: argparse.Namespace) -> int:
    for entry in audit_trail(options.name, options.version, _registry(options)):
        print(json.dumps(dict(entry)))
    return EXIT_DONE


def _unlock(options: argparse.Namespace) -> int:
    MLflowRegistry(options.tracking_uri).break_lock(options.name)
    return EXIT_DONE


def _print_promotion(done: Promotion) -> int:
    print(json.dumps(asdict(done)))
    return EXIT_DONE


def _registry(options: argparse.Namespace) -> Registry:
    if options.folder is not None:
        return FolderRegistry(options.folder)
    return MLflowRegistry(tracking_store.lookup_address(options.tracking_uri))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mirrorspark promotion",
        description="Decide which version of a model is in production.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("validate", help="measure a candidate and the champion, and judge it by gates")
    one.set_defaults(command=_validate)
    add = one.add_argument
    add("--candidate", required=True, help="models:/NAME@challenger, models:/NAME/VERSION, or a folder")
    add("--champion", help="the model in production; leave it out where there is none yet")
    add(
        "--input",
        required=True,
        nargs="+",
        help="Parquet files, folders or globs of labelled rows, or a Delta, Iceberg or Hudi table",
    )
    add("--keys", required=True, help="columns that identify a row, or a user, separated by commas")
    add("--output", required=True, help="folder of the evidence: validation.json and validation.html")
    add("--label", help="SQL expression of the label")
    add("--weight", help="SQL expression of the weights")
    add("--task", help="binary, multi_class, multi_label, regression or retrieval; by default that of the candidate")
    asked = one.add_mutually_exclusive_group()
    asked.add_argument("--settings", metavar="FILE", help="slices and gates as YAML, as in a recipe's pipeline.yaml")
    asked.add_argument("--eval-config", metavar="FILE", help="slices and thresholds of TensorFlow Model Analysis")
    add("--run-id", help="MLflow run that gets the evidence, too")
    add("--tracking-uri", help=f"MLflow store; {tracking_store.DEFAULT_STORE_IN_WORDS}")
    add_master(one)
    add("--trust", action="store_true", help="let Python code run that a model brings")
    add("--verbose", action="store_true", help="show the log of Spark")

    one = commands.add_parser("promote", help="make a validated version the champion")
    one.set_defaults(command=_promote)
    one.add_argument("evidence", help="validation.json of its validation")
    one.add_argument("--name", help="registered model, if the candidate was validated by its folder")
    one.add_argument("--version", help="its version, likewise")
    _add_registry(one)

    one = commands.add_parser("rollback", help="make the previous champion the champion again")
    one.set_defaults(command=_rollback)
    one.add_argument("name", help="registered model")
    _add_registry(one)

    one = commands.add_parser("audit", help="print the actions on a version, one line of JSON each")
    one.set_defaults(command=_audit)
    one.add_argument("name", help="registered model")
    one.add_argument("version", help="its version")
    _add_registry(one, is_change=False)

    one = commands.add_parser("unlock", help="remove the lock that a killed promotion has left on a server")
    one.set_defaults(command=_unlock)
    one.add_argument("name", help="registered model")
    one.add_argument("--tracking-uri", required=True, help="MLflow server")
    return parser


def _add_registry(parser: argparse.ArgumentParser, *, is_change: bool = True) -> None:
    if is_change:
        parser.add_argument("--why", required=True, help="the reason, for the audit trail")
        parser.add_argument("--who", help="who does it; by default the user of this process")
    where: Any = parser.add_mutually_exclusive_group()
    where.add_argument("--tracking-uri", help=f"MLflow store; {tracking_store.DEFAULT_STORE_IN_WORDS}")
    where.add_argument("--folder", help="folder of versions, without MLflow: NAME/1, NAME/2 …")
