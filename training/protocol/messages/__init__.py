"""Messages between ranks and driver: events, commands, the server and its clients.

Every connection is authenticated by the run's token, and limited before it is.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.protocol.messages import handshake
    from mirrorspark.training.protocol.messages.admissions import Admissions
    from mirrorspark.training.protocol.messages.event_client import EventClient
    from mirrorspark.training.protocol.messages.event_server import EventServer
    from mirrorspark.training.protocol.messages.events import Command, Event, EventAddress
    from mirrorspark.training.protocol.messages.folder_server import FolderEventServer
    from mirrorspark.training.protocol.messages.handshake import TokenMismatchError, keep_alive, split_address
    from mirrorspark.training.protocol.messages.stop import StopSignal
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Admissions",
    "Command",
    "Event",
    "EventAddress",
    "EventClient",
    "EventServer",
    "FolderEventServer",
    "StopSignal",
    "TokenMismatchError",
    "handshake",
    "keep_alive",
    "split_address",
]
