"""A session that starts while its user does work that needs none."""

import signal
import threading
from concurrent.futures import Future
from types import FrameType
from typing import NoReturn

import pyspark
from pyspark.sql import SparkSession

from mirrorspark.spark_session import versions
from mirrorspark.spark_session.kinds import session_of
from mirrorspark.spark_session.server import server_of
from mirrorspark.spark_session.start import open_session


class SessionAhead:
    """The session of a call: a given or the active one, or a local one that starts in a thread of its own."""

    def __init__(self, given: SparkSession | None, workers: int, *, verbose: bool = False) -> None:
        """Start nothing yet.

        Args:
            given: The session, if there is one.
            workers: Slots of a local session.
            verbose: See :func:`spark_session.open_session`.
        """
        self.known = given or SparkSession.getActiveSession()
        self._workers = workers
        self._verbose = verbose
        self._starting: Future[SparkSession] | None = None

    @property
    def slots(self) -> int:
        """The slots of the session; of one that has not started, those that are asked for."""
        return self._workers if self.known is None else session_of(self.known).task_slots()

    @property
    def is_needless(self) -> bool:
        """True if there is no session yet, in any thread, and only a local one would start."""
        # A client of Spark Connect alone has no contexts.
        context = getattr(getattr(pyspark, "SparkContext", None), "_active_spark_context", None)
        is_there = self.known is not None or context is not None or self._starting is not None
        return not is_there and server_of(None) is None

    @property
    def is_starting(self) -> bool:
        """True from the call of :meth:`begin` until :meth:`get` has returned a session that it started."""
        return self.known is None and self._starting is not None

    def begin(self) -> None:
        """Start the session, unless that was done before."""
        if self.known is None and server_of(None) is not None:
            self.get()  # a session of a server is there at once
        if self.known is None and self._starting is None:
            self._starting = Future()
            # It ends with the process: an error of the other work must not wait for it.
            threading.Thread(target=self._start, args=(self._starting,), name="spark-start", daemon=True).start()

    def get(self) -> SparkSession:
        """Return the session, once it has started.

        Raises:
            SparkStartError: See :func:`spark_session.open_session`.
        """
        if self.known is None:
            if self._starting is None:
                self.known = open_session(None, self._workers, verbose=self._verbose)
            else:
                self.known = self._starting.result()
                versions.make_active(self.known)
                _cancel_jobs_on_interrupt()
        return self.known

    def _start(self, starting: "Future[SparkSession]") -> None:
        try:
            starting.set_result(open_session(None, self._workers, verbose=self._verbose))
        except BaseException as error:
            starting.set_exception(error)


def _cancel_jobs_on_interrupt() -> None:
    """Let Ctrl-C cancel Spark's jobs, as PySpark does where a session starts in the main thread."""
    from pyspark import SparkContext

    def cancel(number: int, frame: FrameType | None) -> NoReturn:
        try:
            if (context := SparkContext._active_spark_context) is not None:
                context.cancelAllJobs()
        finally:
            raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, cancel)
