"""A process that renews a lease for another one: Spark's JVM owns a write, and its Python processes end in between."""

import contextlib
import os
import select
import signal
import sys

import psutil

from mirrorspark.storage.lease import Heartbeat, Holder, Lease
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish.staging import LEASE_FILE

_KEEPER_FILE = "keeper"
_PROGRAM = f"from {__name__} import main; main()"
_END_SECONDS = 10.0


def start_keeper(staging: StoragePath, owner: Holder) -> None:
    """Start a process that renews the lease until the owner, a process of this host, ends, unless one is running."""
    if _keeper(staging) is not None:
        return
    Heartbeat(owner.host, owner.pid).save(staging / LEASE_FILE)
    command = [sys.executable, "-c", _PROGRAM, staging.uri, staging.query, str(owner.pid)]
    # Popen would warn that the process outlives it.
    number = os.posix_spawn(
        sys.executable,
        command,
        # The keeper can import everything that this process can.
        os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        file_actions=[(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_RDWR, 0) for stream in (0, 1, 2)],
        setsid=True,
    )
    (staging / _KEEPER_FILE).write_bytes(str(number).encode())


def end_keeper(staging: StoragePath) -> None:
    """End the process on this host that renews the lease, if there is one; it writes nothing afterwards."""
    keeper = _keeper(staging)
    if keeper is None:
        return
    with contextlib.suppress(ProcessLookupError):
        ended = os.pidfd_open(keeper)
        try:
            signal.pidfd_send_signal(ended, signal.SIGTERM)
            select.select([ended], [], [], _END_SECONDS)
        finally:
            os.close(ended)


def _keeper(staging: StoragePath) -> int | None:
    """Return the id of the process on this host that renews the lease, or None."""
    try:
        number = int((staging / _KEEPER_FILE).read_bytes())
        # The id may belong to another program by now.
        return number if {_PROGRAM, staging.uri} <= {*psutil.Process(number).cmdline()} else None
    except (FileNotFoundError, ValueError, psutil.Error):
        return None


def main() -> None:
    """Renew the lease; the arguments are the folder's URI, its query, and the owner's process id."""
    uri, query, pid = sys.argv[1:]
    owner = Holder.here(int(pid))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        ended = os.pidfd_open(owner.pid)
        lease = Lease.take(StoragePath(uri, query) / LEASE_FILE, owner)
    except (FileNotFoundError, ProcessLookupError):
        return  # the write is over already
    try:
        while lease.is_kept:
            if select.select([ended], [], [], lease.timing.heartbeat_seconds)[0]:
                lease.release()
    finally:
        lease.end()
