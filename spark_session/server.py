"""Servers of Spark Connect: which one a session is asked of, whether it answers, and a session of it."""

import os
import re
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import pyspark
from pyspark.sql import SparkSession

from mirrorspark.clear_error import ClearError
from mirrorspark.spark_session import versions
from mirrorspark.spark_session.errors import SESSION_ERRORS, SparkStartError, first_line
from mirrorspark.storage import without_credentials

CONNECT = "sc://"
CONNECT_PORT = 15002
_REACH_SECONDS = 3.0
_WITH_CONNECT = f"pip install 'pyspark[connect]=={pyspark.__version__}'"
# Of gRPC, which then reaches servers that a socket of ours does not.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
# Replaces a URL's parameters in the records of a run.
_HIDDEN_PARAMETERS = ";***"

# The URLs of the sessions that were started here, with their parameters, by the names of the sessions.
_started_here: dict[str, str] = {}


class AnotherSessionError(ClearError, ValueError):
    """A cluster was asked for while a session on another one is active."""


def server_of(master: str | None) -> str | None:
    """Return the URL of the Spark Connect server that a session is asked of, by ``master`` or by ``SPARK_REMOTE``.

    Raises:
        AnotherSessionError: They are not the same.
    """
    remote = os.environ.get("SPARK_REMOTE")
    if remote and master not in (None, remote):
        given, variable = shown(master or ""), shown(remote)
        raise AnotherSessionError(f"master is {given}, but SPARK_REMOTE is {variable}; unset one of them")
    # SPARK_REMOTE may be local[N], for a server that PySpark starts.
    return remote or (master if (master or "").startswith(CONNECT) else None)


def is_of(master: str, active: SparkSession, address: str) -> bool:
    """Return True if an active session is the one that ``master`` names; parameters choose users and clusters, too.

    Args:
        master: URL of a cluster or server.
        active: The session.
        address: URL of its cluster or server, without parameters.
    """
    if shown(master) != address:
        return False
    return ";" not in master or _started_here.get(getattr(active, "session_id", "")) == master


def shown(master: str) -> str:
    """Return the URL of a cluster; of a Spark Connect server with its port and without parameters, such as a token."""
    if not master.startswith(CONNECT):
        return master
    address = urlsplit(master.partition(";")[0]).netloc.rpartition("@")[2]
    return f"{CONNECT}{address}" if re.search(r":\d+$", address) else f"{CONNECT}{address}:{CONNECT_PORT}"


def why_unreachable(address: str, default_port: int) -> str | None:
    """Return why nothing answers at ``host:port`` or ``host``; None if something does."""
    host, _, port = address.rpartition(":") if ":" in address else (address, "", "")
    try:
        socket.create_connection((host.strip("[]"), int(port or default_port)), _REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    return None


def reached(server: str) -> str:
    """Return the URL of a Spark Connect server as it may be shown, once the server answers.

    Raises:
        SparkStartError: It does not answer. The client itself would try again for minutes.
    """
    address = shown(server)
    if not address.startswith(CONNECT) or any(map(os.environ.get, _PROXIES)):
        return address
    if (problem := why_unreachable(address.removeprefix(CONNECT), CONNECT_PORT)) is not None:
        raise SparkStartError(f"{address} cannot be reached ({problem}); start it or correct the URL")
    return address


def connected(server: str, app_name: str, settings: Mapping[str, str]) -> SparkSession:
    """Return a session of a Spark Connect server.

    Raises:
        SparkStartError: The server does not answer or gives no session, or packages are missing.
        MissingCapabilityError: PySpark is older than 4.0.
    """
    versions.require_connect()
    address = reached(server)
    if server.endswith(_HIDDEN_PARAMETERS):
        raise SparkStartError(f"the parameters of {address} were not saved with the run; give --remote with them again")
    builder: Any = SparkSession.builder.remote(server).appName(app_name)
    for name, value in settings.items():
        builder = builder.config(name, value)
    try:
        session: SparkSession = builder.getOrCreate()
    except ImportError as error:
        raise SparkStartError(f"{address} needs more packages ({first_line(error)}); run: {_WITH_CONNECT}") from error
    except SESSION_ERRORS as error:
        text = first_line(error)
        # PySpark's message quotes the parameter, which may be a token.
        problem = "its parameters are not of the form /;name=value;…" if "INVALID_CONNECT_URL" in text else text
        raise SparkStartError(f"{address} gives no session: {without_credentials(problem)}") from None
    if ";" in server:
        _started_here[getattr(session, "session_id", "")] = server
    return session
