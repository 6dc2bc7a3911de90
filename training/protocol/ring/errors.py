"""Errors of a ring of ranks."""

from mirrorspark.clear_error import ClearError


class RingError(ClearError, ConnectionError):
    """Another rank, ``rank``, cannot be reached, is lost, or has sent nothing for too long."""

    def __init__(self, rank: int, what: str) -> None:
        """Complete ``rank {rank}`` with ``what``."""
        super().__init__(f"rank {rank} {what}")
        self.rank = rank
        self._what = what

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        """Pickle by the constructor's own arguments."""
        return type(self), (self.rank, self._what)


class RingConnectError(RingError):
    """The ring could not be built when the attempt began."""


class RingChecksumError(RingError):
    """Bytes from another rank changed on the way."""


class RingMismatchError(ClearError, RuntimeError):
    """Ranks are in different collectives: their programs or their batches differ."""
