"""``mirrorspark serve``: models online, over HTTP; :mod:`lifecycle.experiments.live.command` adds traffic splits."""

import argparse
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.scoring.model.loading import freeze_gc
from mirrorspark.scoring.model.stored import PinnedModel, resolve
from mirrorspark.serving.application import PROBES, application
from mirrorspark.serving.batching import BatchLimits
from mirrorspark.serving.draining import DrainingServer
from mirrorspark.serving.http_connections import ConnectionLimits
from mirrorspark.serving.http_server import listening
from mirrorspark.serving.model import ServedModel
from mirrorspark.serving.processes import LISTENER_FLAG, report_alive, serve_in_processes
from mirrorspark.serving.repeats import Repeats
from mirrorspark.serving.servable import label_of
from mirrorspark.serving.service import RequestLimits, Service
from mirrorspark.serving.sources import ModelSource, ServedSources, StoreSource
from mirrorspark.serving.traffic_split import DeclaredSplit
from mirrorspark.storage import read_text

_LOGGER = logging.getLogger(__name__)

ReadSplit = Callable[[Path], DeclaredSplit]

TOKEN_VARIABLE = "MIRRORSPARK_SERVE_TOKEN"  # noqa: S105 - the name of a variable
# A thread that computes must not keep the event loop from the interpreter for the usual 5 ms.
_SWITCH_SECONDS = 0.0005
# Beyond its last answers, a process that ends drops its models.
_END_SECONDS = 10.0
# Beyond the time of a request, a client takes its answer.
_ANSWER_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None, *, read_split: ReadSplit) -> int:
    """Serve until SIGTERM or SIGINT; the first line of standard output has the address.

    Args:
        arguments: The flags; by default those of the process.
        read_split: Returns the traffic split that a file of ``--traffic`` declares.

    Returns:
        0 after a signal; 1 when the address cannot be listened on, or what serves has failed; 2 when a model cannot be
        served or an option is wrong.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.processes < 1:
        parser.error(f"--processes {options.processes} is not a number of processes; give 1 or more")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    logging.getLogger("tensorflow").setLevel(logging.WARNING)  # it logs every file that it reads
    for handler in logging.getLogger().handlers:
        handler.addFilter(Repeats())
    tracking_store.limit_requests()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    if options.listener is not None:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        return _serve(options, read_split, lambda: socket.socket(fileno=options.listener))
    if options.processes == 1:
        return _serve(options, read_split, lambda: listening(options.host, options.port))
    try:
        listener = listening(options.host, options.port)
    except OSError as error:
        return _not_listening(options, error)
    with listener:
        seconds = options.drain_seconds + options.timeout_seconds + _END_SECONDS
        return serve_in_processes(arguments, options.processes, listener, seconds)


def _serve(options: argparse.Namespace, read_split: ReadSplit, listen: Callable[[], socket.socket]) -> int:
    """Load the models, serve on the result of ``listen`` until a signal, and return the command's status."""
    try:
        tokens = tokens_of(options.token_file)
        service = _service(options, read_split)
        service.has_tokens = bool(tokens)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"mirrorspark: {error}", file=sys.stderr)
        return 2
    for traffic in service.traffics.values():
        if not service.trusts(traffic):
            _LOGGER.warning(
                "any client of this server chooses the units of %s, so refused requests, times and scores stop no "
                "variant: sign units (unit_key_file), ask for tokens, or set trusts_callers in %s",
                traffic.name,
                traffic.path,
            )
    try:
        listener = listen()
    except OSError as error:
        return _not_listening(options, error)
    freeze_gc(has_dropped=False)
    sys.setswitchinterval(_SWITCH_SECONDS)
    hosts = [options.host, *options.allow_host]
    app = application(service, poll_seconds=options.poll_seconds, tokens=tokens, allowed_hosts=hosts)
    last_seconds = int(options.timeout_seconds) + 1
    http = DrainingServer(
        app,
        ConnectionLimits(options.timeout_seconds + _ANSWER_SECONDS, PROBES),
        drain_seconds=options.drain_seconds,
        last_seconds=last_seconds,
        on_second=report_alive if options.listener is not None else lambda: None,
    )
    service.is_draining = lambda: http.is_draining
    with listener:
        labels = ", ".join(label_of(one.model) for one in service.sources.all)
        print(f"listening on http://{options.host}:{listener.getsockname()[1]} with {labels}", flush=True)
        try:
            http.run(sockets=[listener])
        except SystemExit:
            # uvicorn raises the signal again that has ended it, and a server that has failed sends itself one.
            if not service.has_failed:
                raise
    return int(service.has_failed)


def _not_listening(options: argparse.Namespace, error: OSError) -> int:
    print(f"mirrorspark: {options.host}:{options.port} cannot be listened on: {error}", file=sys.stderr)
    return 1


def _service(options: argparse.Namespace, read_split: ReadSplit) -> Service:
    """Load the models.

    Raises:
        ValueError: An option is wrong, or there is no such model; other errors are those of loading.
    """
    limits = RequestLimits(options.max_body_bytes, options.max_rows, options.timeout_seconds, options.max_values)
    batch_limits = BatchLimits(options.batch_rows, options.batch_wait_seconds, options.queue_rows)
    if options.poll_seconds < 0:
        raise ValueError(f"--poll-seconds {options.poll_seconds} is not a time; give 0 or more")
    if not 0 <= options.drain_seconds < math.inf:
        raise ValueError(f"--drain-seconds {options.drain_seconds} is not a time; give 0 or more")
    find = partial(resolve, tracking_uri=options.tracking_uri)

    def load(pinned: PinnedModel) -> ServedModel:
        return ServedModel(pinned, pinned.name, threads=options.threads, trust=options.trust)

    splits = {split.name: split for split in map(read_split, options.traffic)}
    if len(splits) < len(options.traffic):
        raise ValueError(f"two files of traffic have one name; there are {list(splits)}")
    named = [*options.model, *(uri for split in splits.values() for uri in split.models.values())]
    shadows = [uri for split in splits.values() for uri in split.shadows.values()]
    opened = {uri: ModelSource.open(uri, find, load) for uri in dict.fromkeys([*named, *shadows])}
    stores = [StoreSource.open(name, file) for name, file in map(_named_store, options.store)]
    hidden = [source for uri, source in opened.items() if uri not in named]
    sources = ServedSources([*(opened[uri] for uri in dict.fromkeys(named)), *stores], hidden)
    traffics = {
        name: split.begin({one: opened[uri] for one, uri in {**split.models, **split.shadows}.items()})
        for name, split in splits.items()
    }
    return Service(sources, limits, batch_limits, traffics=traffics)


def _named_store(text: str) -> tuple[str, str]:
    """Return the name and the file of ``NAME=FILE``.

    Raises:
        ValueError: It has another form.
    """
    name, _, file = text.partition("=")
    if not name or not file:
        raise ValueError(f"--store {text} has no name; give NAME=FILE")
    return name, file


def tokens_of(file: Path | None) -> list[str]:
    """Return the tokens: the lines of a file, or those of the environment; none if neither is given.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file or variable holds no token. A server without tokens would be open, against the intent.
    """
    if file is None:
        given = os.environ.get(TOKEN_VARIABLE)
        if given is not None and not given.strip():
            raise ValueError(f"{TOKEN_VARIABLE} is set and blank; give a token, or unset it to serve without one")
        return [] if given is None else [given.strip()]
    try:
        text = read_text(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error.reason}); write one token into each line") from None
    tokens = [line.strip() for line in text.splitlines() if line.strip()]
    if not tokens:
        raise ValueError(f"{file} holds no token; write one into each line")
    return tokens


def _end_with_parent() -> None:
    """End as by a signal when standard input ends: then the process that started this one is dead."""
    # Without Python's buffer, whose lock a thread must not hold at the end of the interpreter.
    while os.read(sys.stdin.fileno(), 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _end(*_: object) -> NoReturn:
    """Exit. While it serves, uvicorn delays this until open requests are answered."""
    raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mirrorspark serve", description="Serve models online over HTTP.")
    add = parser.add_argument_group("most used").add_argument
    add(
        "--model",
        default=[],
        action="append",
        help="models:/NAME@ALIAS, models:/NAME/VERSION or a folder; repeatable",
    )
    add("--store", default=[], action="append", metavar="NAME=FILE", help="precomputed rows, by key; repeatable")
    add(
        "--traffic",
        default=[],
        action="append",
        type=Path,
        metavar="FILE",
        help="YAML that divides the requests for a name between versions; repeatable",
    )
    add("--host", default="127.0.0.1", help="address to listen on; by default local only")
    add("--port", type=int, default=0, help="port to listen on; by default one that is free")
    add("--tracking-uri", help=f"MLflow store of the models; {tracking_store.DEFAULT_STORE_IN_WORDS}")
    add(
        "--token-file",
        type=Path,
        help=f"file with a token per line; by default {TOKEN_VARIABLE} has one, or none is asked",
    )
    add("--allow-host", action="append", default=[], metavar="NAME", help="accept this Host name, too; repeatable")
    add("--poll-seconds", type=float, default=15.0, help="look aliases up so often; 0 never does (default %(default)s)")
    add("--trust", action="store_true", help="let Python code run that a model brings")
    add = parser.add_argument_group("requests").add_argument
    add(
        "--timeout-seconds",
        type=float,
        default=RequestLimits.seconds,
        help="longest time of a request (default %(default)s)",
    )
    add(
        "--max-body-bytes",
        type=int,
        default=RequestLimits.body_bytes,
        help="largest body of a request (default %(default)s)",
    )
    add("--max-rows", type=int, default=RequestLimits.rows, help="most rows of a request (default %(default)s)")
    add(
        "--max-values",
        type=int,
        default=RequestLimits.values,
        help="most values of a request: numbers, texts, lists, objects (default %(default)s)",
    )
    add = parser.add_argument_group("batches").add_argument
    add(
        "--batch-rows",
        type=int,
        default=BatchLimits.most_rows,
        help="most rows that are computed together (default %(default)s)",
    )
    add(
        "--batch-wait-seconds",
        type=float,
        default=BatchLimits.wait_seconds,
        help="how long a request waits for others (default %(default)s)",
    )
    add(
        "--queue-rows",
        type=int,
        default=BatchLimits.most_waiting_rows,
        help="rows that may wait; more are refused (default %(default)s)",
    )
    add("--threads", type=int, default=1, help="threads of the model's library (default %(default)s)")
    add = parser.add_argument_group("processes").add_argument
    add(
        "--processes",
        type=int,
        default=1,
        help="processes that serve, each with the models; a dead or hanging one is replaced (default %(default)s)",
    )
    add(
        "--drain-seconds",
        type=float,
        default=0.0,
        help="accept requests so long after SIGTERM, but be not ready (default %(default)s)",
    )
    add(LISTENER_FLAG, type=int, help=argparse.SUPPRESS)
    return parser
