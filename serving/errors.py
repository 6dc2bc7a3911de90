"""The error that a request is answered with."""

from mirrorspark.clear_error import ClearError, one_visible_line


class RequestError(ClearError, ValueError):
    """Raised for a request that gets no prediction; the message is the answer.

    Attributes:
        status: The HTTP status.
        retry_after_seconds: When the client may ask again; None where that would not help.
    """

    def __init__(self, status: int, message: str, retry_after_seconds: int | None = None) -> None:
        """Keep the parts of the answer."""
        super().__init__(status, message, retry_after_seconds)
        self.status, self.message, self.retry_after_seconds = status, message, retry_after_seconds

    def __str__(self) -> str:
        return one_visible_line(self.message)
