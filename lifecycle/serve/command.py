"""``mirrorspark serve``: models online, over HTTP. In a clone also ``python -m lifecycle.serve``."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from mirrorspark.lifecycle.serve.application import application
from mirrorspark.lifecycle.serve.batching import BatchLimits
from mirrorspark.lifecycle.serve.model import ServedModel
from mirrorspark.lifecycle.serve.service import RequestLimits, Service
from mirrorspark.lifecycle.serve.sources import Source, Sources
from mirrorspark.scoring.http_server import listening, server
from mirrorspark.scoring.model.cache import freeze_gc
from mirrorspark.scoring.model.directory import PinnedModel
from mirrorspark.scoring.model.uri import resolve

TOKEN_VARIABLE = "MIRRORSPARK_SERVE_TOKEN"  # noqa: S105 - the name of a variable
# A thread that computes must not keep the event loop from the interpreter for the usual 5 ms.
_SWITCH_SECONDS = 0.0005


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the first line of standard output has the address.

    Returns:
        0 after a signal; 1 when the address cannot be listened on; 2 when a model cannot be served or an option is
        wrong.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        service = _service(options)
        tokens = _tokens(options.token_file)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"mirrorspark: {error}", file=sys.stderr)
        return 2
    try:
        listener = listening(options.host, options.port)
    except OSError as error:
        print(f"mirrorspark: {options.host}:{options.port} cannot be listened on: {error}", file=sys.stderr)
        return 1
    freeze_gc(has_dropped=False)
    sys.setswitchinterval(_SWITCH_SECONDS)
    hosts = [options.host, *options.allow_host]
    app = application(service, poll_seconds=options.poll_seconds, tokens=tokens, allowed_hosts=hosts)
    with listener:
        labels = ", ".join(one.model.pinned.label for one in service.sources.all)
        print(f"listening on http://{options.host}:{listener.getsockname()[1]} with {labels}", flush=True)
        http = server(app, has_lifespan=True, last_seconds=int(options.timeout_seconds) + 1)
        service.is_draining = lambda: http.should_exit
        http.run(sockets=[listener])
    return 0


def _service(options: argparse.Namespace) -> Service:
    """Load the models.

    Raises:
        ValueError: An option is wrong, or there is no such model; other errors are those of loading.
    """
    limits = RequestLimits(options.max_body_bytes, options.max_rows, options.timeout_seconds)
    batch_limits = BatchLimits(options.batch_rows, options.batch_wait_seconds, options.queue_rows)
    if options.poll_seconds < 0:
        raise ValueError(f"--poll-seconds {options.poll_seconds} is no time; give 0 or more")
    find = partial(resolve, tracking_uri=options.tracking_uri)

    def load(pinned: PinnedModel) -> ServedModel:
        return ServedModel(pinned, pinned.name, threads=options.threads, trust=options.trust)

    return Service(Sources([Source.open(uri, find, load) for uri in options.model]), limits, batch_limits)


def _tokens(file: Path | None) -> list[str]:
    """Return the tokens: the lines of a file, or what the environment has.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has no token.
    """
    if file is None:
        return [token] if (token := os.environ.get(TOKEN_VARIABLE, "").strip()) else []
    tokens = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not tokens:
        raise ValueError(f"{file} holds no token; write one into each line")
    return tokens


def _end(*_: object) -> NoReturn:
    """Exit. While it serves, uvicorn delays this until open requests are answered."""
    raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mirrorspark serve", description="Serve models online over HTTP.")
    add = parser.add_argument_group("most used").add_argument
    add(
        "--model",
        required=True,
        action="append",
        help="models:/NAME@ALIAS, models:/NAME/VERSION or a folder; repeatable",
    )
    add("--host", default="127.0.0.1", help="address to listen on; by default local only")
    add("--port", type=int, default=0, help="port to listen on; by default one that is free")
    add("--tracking-uri", help="MLflow store of the models; by default the one that MLflow is configured with")
    add(
        "--token-file",
        type=Path,
        help=f"file with a token per line; by default {TOKEN_VARIABLE} has one, or none is asked",
    )
    add("--allow-host", action="append", default=[], metavar="NAME", help="accept this Host name, too; repeatable")
    add("--poll-seconds", type=float, default=15.0, help="look aliases up so often; 0 never does")
    add("--trust", action="store_true", help="let Python code run that a model brings")
    add = parser.add_argument_group("requests").add_argument
    add("--timeout-seconds", type=float, default=RequestLimits.seconds, help="longest time of a request")
    add("--max-body-bytes", type=int, default=RequestLimits.body_bytes, help="largest body of a request")
    add("--max-rows", type=int, default=RequestLimits.rows, help="most rows of a request")
    add = parser.add_argument_group("batches").add_argument
    add("--batch-rows", type=int, default=BatchLimits.most_rows, help="most rows that are computed together")
    add(
        "--batch-wait-seconds", type=float, default=BatchLimits.wait_seconds, help="how long a request waits for others"
    )
    add("--queue-rows", type=int, default=BatchLimits.most_waiting_rows, help="rows that may wait; more are refused")
    add("--threads", type=int, default=1, help="threads of the model's library")
    return parser
