"""An ASGI server that continues for a while after a signal, so that clients notice its end."""

import signal
import time
from collections.abc import Callable
from types import FrameType

from starlette.types import ASGIApp
from uvicorn import Server

from mirrorspark.serving.http_connections import ConnectionLimits
from mirrorspark.serving.http_server import server_config

_TICKS_OF_A_SECOND = 10


class DrainingServer(Server):
    """Answers for some seconds after the first signal, and says that it is not ready."""

    def __init__(
        self,
        application: ASGIApp,
        limits: ConnectionLimits,
        *,
        drain_seconds: float,
        last_seconds: int,
        on_second: Callable[[], None] = lambda: None,
    ) -> None:
        """Create the server.

        Args:
            application: The application that it serves.
            limits: Limits of its connections.
            drain_seconds: How long it accepts requests after a signal.
            last_seconds: How long open requests may take after that.
            on_second: Called every second as the event loop runs.
        """
        super().__init__(server_config(application, limits, has_lifespan=True, last_seconds=last_seconds))
        self._drain_seconds, self._drained_at, self._on_second = drain_seconds, 0.0, on_second

    @property
    def is_draining(self) -> bool:
        """True after a signal."""
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
        if counter % _TICKS_OF_A_SECOND == 0:
            self._on_second()
        if self.is_draining and time.monotonic() >= self._drained_at:
            self.should_exit = True
        return await super().on_tick(counter)
