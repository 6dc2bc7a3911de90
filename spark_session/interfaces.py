"""The interface of this machine on which others reach it."""

import contextlib
import ipaddress
import socket

from mirrorspark.clear_error import ClearError

# An address reserved for documentation, which no machine has: the route to it is the route out of this network.
_ANYWHERE = "192.0.2.1"


class DriverAddressError(ClearError, ValueError):
    """There is no single interface to listen on."""


def is_every_interface(address: str) -> bool:
    """Return True for 0.0.0.0 and its like."""
    try:
        return ipaddress.ip_address(address.strip("[]")).is_unspecified
    except ValueError:
        return False


def interface_towards(host: str) -> str:
    """Return the address of this machine's interface that others reach as ``host``.

    Raises:
        DriverAddressError: There is none.
    """
    try:
        addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_DGRAM)]
    except OSError:
        addresses = []
    # The hosts file may map a machine's own name to loopback, which other machines cannot reach.
    others = [each for each in addresses if each == host or not ipaddress.ip_address(each).is_loopback]
    # Behind a service or a load balancer the name is not ours. Nothing is sent: the system only picks the route.
    for address in [*others, _ANYWHERE]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way, contextlib.suppress(OSError):
            way.connect((address, 9))
            return str(way.getsockname()[0])
    raise DriverAddressError(
        f"spark.driver.bindAddress names all interfaces, and none of them leads to spark.driver.host {host}; set "
        f"spark.driver.bindAddress to the address at which executors reach this machine"
    )
