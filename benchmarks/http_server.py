"""A server under load has one core of its own, its clients another one."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from benchmarks.daemon import Daemon
from benchmarks.http_load import Load, longest_gap, on_core
from benchmarks.report import Table
from benchmarks.train_work import in_new_process

SERVER_CORE, CLIENT_CORE = 0, 1
START_SECONDS = 180.0
ENVIRONMENT = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TF_USE_LEGACY_KERAS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@contextlib.contextmanager
def served(scratch: Path, *flags: str) -> Iterator[int]:
    """Start ``mirrorspark serve`` with these flags, and give its port."""
    command = (sys.executable, "-m", "mirrorspark", "serve", *flags)
    with on_server_core(scratch, "serve", *command) as daemon:
        yield int(daemon.wait_for(r"listening on http://127\.0\.0\.1:(\d+)", START_SECONDS)[1])


@contextlib.contextmanager
def on_server_core(folder: Path, name: str, *command: str) -> Iterator[Daemon]:
    """Start a program on the core that servers have."""
    daemon = Daemon.start(("taskset", "--cpu-list", str(SERVER_CORE), *command), folder / f"{name}.log", ENVIRONMENT)
    try:
        yield daemon
    finally:
        daemon.end()


def load_of(ask: "partial[Load]") -> Load:
    """Send requests from the core of the clients, in a process of its own."""
    return in_new_process(_from_client_core, ask)


def loads_table(title: str, loads: Mapping[str, Load], note: str) -> Table:
    """Return a row per load."""
    rows = tuple(
        (
            name,
            f"{load.statuses.total() / load.wall_seconds:,.0f}",
            f"{load.per_second:,.0f}",
            *(f"{load.milliseconds(quantile):.1f}" for quantile in (50, 99, 99.9)),
            ", ".join(f"{count:,} of {status or 'no answer'}" for status, count in sorted(load.statuses.items())),
            f"{longest_gap(load.done):.2f}",
        )
        for name, load in loads.items()
    )
    columns = ("load", "asked/s", "answered/s", "p50 ms", "p99 ms", "p99.9 ms", "statuses", "longest silence, s")
    return Table(title, columns, rows, note)


def _from_client_core(ask: "partial[Load]") -> Load:
    on_core(CLIENT_CORE)
    return ask()
