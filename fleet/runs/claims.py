"""The driver's side of the ledger: the microbatches that it holds, and the entries that the ledger has still to get.

A thread renews the leases and sends the entries. While the ledger is away, work goes on with the microbatches that are
held, a few more than are scored at a time, and entries wait in memory.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import TracebackType

from sqlalchemy.exc import SQLAlchemyError

from mirrorspark.fleet.runs import tables
from mirrorspark.fleet.runs.ledger import Change, Claim, Entry, Ledger, LedgerError, reason
from mirrorspark.storage import LeaseLostError, running_seconds

_LOGGER = logging.getLogger(__name__)
_PER_TRANSACTION = 500


@dataclass(frozen=True)
class ClaimTimes:
    """Times of leases and waits.

    Attributes:
        lease_seconds: For how long a microbatch stays with a driver that gives no sign of life.
        patience_seconds: For how long a driver waits for a ledger that is away.
        poll_seconds: Between two questions to the ledger, while it is away or others work on the last microbatches.
        clock: Measures our own waits, never compared with another machine's.
    """

    lease_seconds: float = 300.0
    patience_seconds: float = 600.0
    poll_seconds: float = 2.0
    clock: Callable[[], float] = running_seconds


DEFAULT_TIMES = ClaimTimes()


class Claims:
    """The microbatches of a run that this driver holds; a context, at whose end all entries have been sent.

    Args:
        ledger: The ledger.
        run: Id of the run.
        owner: Name of this driver.
        at_once: Microbatches that are scored at a time.
        limits: Times of leases and waits.
        others: Microbatches that are left to other drivers.
    """

    def __init__(
        self,
        ledger: Ledger,
        run: str,
        owner: str,
        at_once: int,
        limits: ClaimTimes = DEFAULT_TIMES,
        others: Collection[int] = (),
    ) -> None:
        self._ledger, self._run, self._owner, self._at_once, self._limits = ledger, run, owner, at_once, limits
        self._lock = threading.Lock()  # of the fields below
        # Times by our own clock before which nobody else can have taken them.
        self._safe_until: dict[Claim, float] = {}
        self._queue: deque[Claim] = deque()
        self._tried = {*others}
        self._entries: list[Entry] = []
        self._is_away = False
        self._taking, self._sending = threading.Lock(), threading.Lock()
        self._over, self._wake = threading.Event(), threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="mirrorspark-fleet-leases", daemon=True)

    def __enter__(self) -> "Claims":
        self._keeper.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Send the remaining entries, and end.

        Raises:
            LedgerError: The ledger stays away, and no other error is on its way.
        """
        self.stop()
        self._keeper.join()
        deadline = self._limits.clock() + (self._limits.patience_seconds if error is None else 0)
        pause = threading.Event()
        while (problem := self._flush()) is not None:
            if self._limits.clock() >= deadline:
                if error is None:
                    raise self._gone(problem) from problem
                _LOGGER.warning("%s", self._gone(problem))
                return
            pause.wait(self._limits.poll_seconds)

    def stop(self) -> None:
        """Let :meth:`next` return None from now on, and give back the microbatches that have not begun."""
        self._over.set()
        with self._lock:
            unused = [*self._queue]
            self._queue.clear()
        for claim in unused:
            self.end(claim, "waiting")
        self._wake.set()

    def next(self) -> Claim | None:
        """Return a microbatch to score, or None if there is none left that this driver may take.

        While other drivers hold the last ones, wait until these are done or their leases run out.

        Raises:
            LedgerError: The ledger is away for longer than the patience.
        """
        deadline = self._limits.clock() + self._limits.patience_seconds
        while not self._over.is_set():
            with self._taking:
                held_by_others, problem = self._refill()
                with self._lock:
                    # Once it is over, stop() gives back what this has taken meanwhile.
                    if self._queue and not self._over.is_set():
                        return self._queue.popleft()
            if problem is None and not held_by_others:
                return None
            if problem is None:
                deadline = self._limits.clock() + self._limits.patience_seconds
            elif self._limits.clock() > deadline:
                raise self._gone(problem) from problem
            self._over.wait(self._limits.poll_seconds)
        return None

    def confirm(self, claim: Claim) -> None:
        """Make sure that nobody else can have taken a microbatch, before its outputs are published.

        Raises:
            LeaseLostError: Another driver has taken it.
            LedgerError: The lease has run out while the ledger does not answer, so the owner is unknown.
        """
        deadline = self._limits.clock() + self._limits.patience_seconds
        while True:
            problem = self._renew([claim])
            with self._lock:
                safe_until = self._safe_until.get(claim)
            if safe_until is None:
                raise LeaseLostError(
                    f"another driver has taken microbatch {claim.number} of {self._run}, as this one gave no sign of "
                    f"life for {self._limits.lease_seconds:.0f} s; its outputs are left to that driver"
                )
            # The rest of the lease is for what follows.
            if safe_until - self._limits.clock() > self._limits.lease_seconds / 4:
                return
            if problem is not None and (self._over.is_set() or self._limits.clock() > deadline):
                raise self._gone(problem) from problem
            self._over.wait(self._limits.poll_seconds)

    def end(self, claim: Claim, state: str, entries: Sequence[Entry] = (), seconds: float = 0.0) -> None:
        """Record the outcome of a microbatch, with further entries; a later owner's row stays as it is."""
        where = {"run_id": self._run, "number": claim.number, "fence": claim.fence}
        values = {"state": state, "lease_until": 0.0, "seconds": seconds}
        with self._lock:
            self._safe_until.pop(claim, None)
            self._entries += [*entries, Change(tables.MICROBATCHES, where, values)]
        self._wake.set()

    def note(self, entries: Sequence[Entry]) -> None:
        """Note entries, which are sent in their order."""
        with self._lock:
            self._entries += entries

    def _refill(self) -> tuple[bool, SQLAlchemyError | None]:
        """Take microbatches unless enough are waiting; return whether others hold some, and why that is unknown."""
        with self._lock:
            count = 2 * self._at_once - len(self._queue)
            if count <= self._at_once:
                return True, None
            tried = frozenset(self._tried)
        begin = self._limits.clock()
        try:
            taken, held = self._ledger.take(self._run, self._owner, count, self._limits.lease_seconds, tried)
        except SQLAlchemyError as error:
            self._answered(error)
            return True, error
        self._answered(None)
        with self._lock:
            self._queue += taken
            self._tried |= {claim.number for claim in taken}
            self._safe_until |= dict.fromkeys(taken, begin + self._limits.lease_seconds)
        return bool(held), None

    def _renew(self, claims: Sequence[Claim]) -> SQLAlchemyError | None:
        """Extend leases, and forget the lost ones; return why that failed."""
        if not claims:
            return None  # without a question there is no answer
        begin = self._limits.clock()
        try:
            held = self._ledger.renew(self._run, claims, self._limits.lease_seconds)
        except SQLAlchemyError as error:
            self._answered(error)
            return error
        self._answered(None)
        with self._lock:
            for claim in claims:
                if claim not in self._safe_until:
                    continue  # it has ended meanwhile
                if claim in held:
                    self._safe_until[claim] = begin + self._limits.lease_seconds
                    continue
                del self._safe_until[claim]
                # It may come back, should its new owner fail.
                self._tried.discard(claim.number)
                if claim in self._queue:
                    self._queue.remove(claim)
        return None

    def _flush(self) -> SQLAlchemyError | None:
        """Send the entries; return why that failed."""
        with self._sending:
            while True:
                with self._lock:
                    some = self._entries[:_PER_TRANSACTION]
                if not some:
                    return None
                try:
                    self._ledger.send(some)
                except SQLAlchemyError as error:
                    self._answered(error)
                    return error
                self._answered(None)
                with self._lock:
                    del self._entries[: len(some)]

    def _keep(self) -> None:
        while not self._over.is_set():
            self._wake.wait(self._limits.poll_seconds if self._is_away else self._limits.lease_seconds / 4)
            self._wake.clear()
            with self._lock:
                held = [*self._safe_until]
            if self._renew(held) is None:
                self._flush()

    def _answered(self, problem: SQLAlchemyError | None) -> None:
        """Log when the ledger goes away, and when it is back."""
        if problem is not None and not self._is_away:
            _LOGGER.warning(
                "the ledger %s does not answer (%s); work goes on, and entries are kept until it does",
                self._ledger.name,
                reason(problem),
            )
        elif problem is None and self._is_away:
            _LOGGER.warning("the ledger %s answers again", self._ledger.name)
        self._is_away = problem is not None

    def _gone(self, problem: SQLAlchemyError) -> LedgerError:
        return LedgerError(
            f"the ledger {self._ledger.name} has not answered for {self._limits.patience_seconds:.0f} s "
            f"({reason(problem)}), and lacks {len(self._entries):,} entries; published microbatches stay: resume the "
            f"run when it is back"
        )
