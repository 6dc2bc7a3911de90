"""What can go wrong between the ranks of a ring."""


class RingError(ConnectionError):
    """Another rank cannot be reached, is gone, or has moved nothing for too long.

    Attributes:
        rank: That rank.
    """

    def __init__(self, rank: int, what: str) -> None:
        """Keep the rank, and say what is the matter with it."""
        super().__init__(f"rank {rank} {what}")
        self.rank = rank
        self._what = what

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        """Pickle by the constructor's own arguments."""
        return type(self), (self.rank, self._what)


class RingConnectError(RingError):
    """The ring could not be closed when the attempt began."""


class RingMismatchError(RuntimeError):
    """Ranks take part in different collectives: their programs or their batches differ."""
