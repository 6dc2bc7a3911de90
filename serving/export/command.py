"""``mirrorspark export``: a model for TensorFlow Serving, or for servers of ONNX files."""

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.serving.export.export import Format, export_model
from mirrorspark.storage import without_credentials


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, and print the result as a line of JSON.

    Returns:
        0; 2 when there is no such model, it cannot be exported so, or an option is wrong; 1 when a file cannot be
        written, or a library is missing.
    """
    options = _parser().parse_args(arguments)
    try:
        exported = export_model(
            options.model,
            options.output,
            name=options.name,
            version=options.version,
            labels=options.label,
            warm_up=options.warm_up,
            warm_up_rows=options.warm_up_rows,
            served_from=options.served_from,
            format=options.format,
            tracking_uri=options.tracking_uri,
        )
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"mirrorspark: {without_credentials(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    print(exported.as_json())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mirrorspark export", description="Export a model for other servers.")
    add = parser.add_argument_group("most used").add_argument
    add("--model", required=True, help="models:/NAME@ALIAS, models:/NAME/VERSION or a folder")
    add("--output", required=True, help="folder of all exported models, with models.config")
    add("--version", type=int, help="its version there, of a model that is not registered")
    add(
        "--label",
        action="append",
        default=[],
        help="label of the version, as the alias of --model; repeatable",
    )
    add("--warm-up", metavar="FILES", help="Parquet files with rows to warm up with; by default a made-up row")
    add("--served-from", help="the folder's path on the server, such as /models in a container")
    add = parser.add_argument_group("others").add_argument
    add("--name", help="name of the model in requests; by default its registered name")
    add("--warm-up-rows", type=int, default=100, help="rows to warm up with, at most 1000 (default %(default)s)")
    add(
        "--format",
        choices=get_args(Format),
        default="tensorflow",
        help="onnx for a package of an ONNX file (default %(default)s)",
    )
    add("--tracking-uri", help=f"MLflow store of the model; {tracking_store.DEFAULT_STORE_IN_WORDS}")
    return parser
