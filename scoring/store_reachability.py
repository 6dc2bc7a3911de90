"""Whether anybody listens where an MLflow store is: MLflow asks a server that is away for minutes, in silence."""

import socket
import time
import urllib.request
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}
_TRY_SECONDS, _PAUSE_SECONDS = 5.0, 2.0


def check_somebody_listens(address: str) -> None:
    """Return when somebody listens at the address of a store, or where a connection of ours would not tell.

    That is a store without a host that MLflow speaks HTTP to (a file, a database, ``databricks``), and one behind a
    proxy. How long who listens then takes to answer is MLflow's matter, with the limits that it is set to.

    Raises:
        OSError: Nobody listens. It is known within 12 s; of a name with several addresses that do not answer at all,
            10 s more for each further one.
    """
    found = _reached_directly(address)
    if found is None:
        return
    try:
        _connect(*found)
    except OSError:
        time.sleep(_PAUSE_SECONDS)
        _connect(*found)


def _reached_directly(address: str) -> tuple[str, int] | None:
    """Return the host and port that MLflow would connect to itself; None where there is none."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:  # no address: MLflow says so
        return None
    if parts.scheme not in _PORTS or not host:
        return None
    if {parts.scheme, "all"} & urllib.request.getproxies().keys() and not urllib.request.proxy_bypass(host):
        return None
    return host, _PORTS[parts.scheme] if port is None else port


def _connect(host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=_TRY_SECONDS).close()
    except UnicodeError:  # no name of a host: MLflow says so
        return
