"""An ASGI server that goes on for a while after a signal, so that those who send requests learn that it ends."""

import signal
import time
from types import FrameType

from starlette.types import ASGIApp
from uvicorn import Server

from mirrorspark.scoring.http_server import server_config


class DrainingServer(Server):
    """Answers for some seconds after the first signal, and says that it is not ready."""

    def __init__(self, application: ASGIApp, *, drain_seconds: float, last_seconds: int) -> None:
        """Create the server.

        Args:
            application: What it serves.
            drain_seconds: How long it accepts requests after a signal.
            last_seconds: How long open requests may take after that.
        """
        super().__init__(server_config(application, has_lifespan=True, last_seconds=last_seconds))
        self._drain_seconds, self._drained_at = drain_seconds, 0.0

    @property
    def is_draining(self) -> bool:
        """Whether there was a signal."""
        return self._drained_at > 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second SIGINT ends at once. uvicorn calls this."""
        if self.is_draining and sig != signal.SIGINT:
            return
        super().handle_exit(sig, frame)
        if not self.is_draining:
            self._drained_at = time.monotonic() + self._drain_seconds
            self.should_exit = self._drain_seconds == 0

    async def on_tick(self, counter: int) -> bool:
        """Return whether the server ends now; uvicorn asks ten times a second."""
        if self.is_draining and time.monotonic() >= self._drained_at:
            self.should_exit = True
        return await super().on_tick(counter)
