"""Collectives over TCP between workers, and the ``tf.distribute`` strategy on top of them.

Sums are equal bit for bit on every rank. Damaged bytes and lost peers raise errors instead of giving wrong sums.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.protocol.ring.connection import open_listener
    from mirrorspark.training.protocol.ring.errors import RingChecksumError, RingConnectError, RingError
    from mirrorspark.training.protocol.ring.losses import mean_losses
    from mirrorspark.training.protocol.ring.predictions import whole_predictions
    from mirrorspark.training.protocol.ring.rendezvous import AddressBook, Rendezvous
    from mirrorspark.training.protocol.ring.ring import Ring
    from mirrorspark.training.protocol.ring.strategy import RingStrategy, all_reduce, local_variable
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "AddressBook",
    "Rendezvous",
    "Ring",
    "RingChecksumError",
    "RingConnectError",
    "RingError",
    "RingStrategy",
    "all_reduce",
    "local_variable",
    "mean_losses",
    "open_listener",
    "whole_predictions",
]
