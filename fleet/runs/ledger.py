"""The ledger of fleets' runs: a database of microbatches, attempts and errors, SQLite or PostgreSQL.

A driver takes a microbatch by raising its *fence*, and holds it as its *lease* has not run out. Both are
columns of the table, so that of two drivers one changes the row and the other finds it changed.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from mirrorspark.clear_error import ClearError
from mirrorspark.fleet.runs import tables
from mirrorspark.fleet.runs.decisions import Standing, is_held, to_take
from mirrorspark.storage import is_secret_name, one_line, without_credentials

Clock: TypeAlias = Callable[[sa.Connection], float]
"""Returns the seconds that leases are compared with, from one clock for all drivers of a ledger."""

_INSERTS: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_VERSION_TABLE = "mirrorspark_fleet_version"
_BUSY_MILLISECONDS = 30_000
# A server that disappears without notice must not block a driver for the two hours of TCP's own limit.
_SOCKET_OPTIONS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
# Any number, the same in all drivers: they create the tables one after the other.
_MIGRATION_LOCK = 7_240_024
_PER_STATEMENT = 500


class LedgerError(ClearError, RuntimeError):
    """Raised for a ledger that cannot be used: it does not answer, is of a newer version, or has another run."""


@dataclass(frozen=True)
class Claim:
    """The right to score and publish a microbatch, as nobody has raised the fence."""

    number: int
    fence: int


@dataclass(frozen=True)
class Rows:
    """Rows that are inserted, or replace those of the same key: sending them twice changes nothing."""

    table: sa.Table
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Change:
    """New values of the rows that have the values of ``where``; there may be none."""

    table: sa.Table
    where: Mapping[str, Any]
    values: Mapping[str, Any]


Entry: TypeAlias = Rows | Change


class Ledger:
    """A ledger whose schema is the newest one.

    Methods raise ``SQLAlchemyError`` while the database does not answer.

    Attributes:
        name: Its address without credentials.
    """

    def __init__(self, engine: sa.Engine, clock: Clock | None = None) -> None:
        self.name = _name(engine.url)
        self._engine = engine
        self._clock = clock or _clock_of(engine.dialect.name)

    @classmethod
    def open(cls, location: str | Path, clock: Clock | None = None) -> Self:
        """Open a ledger, and create its tables if they are missing.

        Args:
            location: A file of SQLite, or an address: ``postgresql+psycopg2://host/database``.
            clock: By default the clock of the PostgreSQL server; for SQLite that of this machine.

        Raises:
            LedgerError: The address is malformed, the database does not answer, or its schema is newer than this
                version of mirrorspark.
        """
        url = _url(location)
        ledger = cls(_engine(url, location), clock)
        with ledger._closed_on_failure():
            ledger._migrate()
        return ledger

    @classmethod
    def of_run(cls, location: str | Path, run: str, clock: Clock | None = None) -> Self | None:
        """Open the ledger that has a run; without the run, create nothing and return None.

        Args:
            location: See :meth:`open`.
            run: Id of the run.
            clock: See :meth:`open`.

        Raises:
            LedgerError: See :meth:`open`.
        """
        url = _url(location)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
            return None  # a connection would create the file
        ledger = cls(_engine(url, location), clock)
        with ledger._closed_on_failure():
            if not ledger._has(run):
                ledger.close()
                return None
            ledger._migrate()
        return ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        """Close the connections.

        Raises:
            LedgerError: The block has ended because the database does not answer.
        """
        self.close()
        if isinstance(error, SQLAlchemyError):
            raise self._unusable(error) from error

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def begin(
        self,
        run: Mapping[str, Any],
        models: Sequence[Mapping[str, Any]],
        microbatches: Sequence[Mapping[str, Any]],
        published: Collection[int] = (),
        entries: Sequence[Rows] = (),
        were_done: Collection[int] | None = None,
    ) -> None:
        """Enter a run unless it is there, and bring its microbatches in line with the output.

        Args:
            run: Its row.
            models: Rows of its models.
            microbatches: Number, group, step, models and rows of each microbatch.
            published: The microbatches whose outputs are there.
            entries: Further rows, which are inserted where there are none of the same keys.
            were_done: Microbatches that had been entered as done when the outputs were listed. Only these are waiting
                again if they are not published: others may have been published since. By default all of them.

        Raises:
            LedgerError: A driver works on another run of the same output.
        """
        key, now_waiting = {"run_id": run["run_id"]}, {"state": "waiting", "lease_until": 0.0}
        new, row = now_waiting | {"owner": "", "fence": 0, "seconds": 0.0}, tables.MICROBATCHES.c
        entered = {one["number"] for one in microbatches} if were_done is None else {*were_done}
        missing = sorted(entered.difference(published))
        with self._transaction() as connection:
            self._abandon_others(connection, run)
            self._insert(connection, tables.RUNS, [run])
            self._insert(connection, tables.MODELS, [key | dict(model) for model in models])
            self._insert(connection, tables.MICROBATCHES, [key | new | dict(one) for one in microbatches])
            connection.execute(sa.update(tables.RUNS).filter_by(**key).values(state=run["state"], ended=run["ended"]))
            mine = sa.update(tables.MICROBATCHES).filter_by(**key)
            for numbers, is_wrong, values in (
                (missing, row.state == "done", now_waiting),
                (list(published), row.state != "done", {"state": "done"}),
            ):
                for first in range(0, len(numbers), _PER_STATEMENT):
                    some = row.number.in_(numbers[first : first + _PER_STATEMENT])
                    connection.execute(mine.where(some, is_wrong).values(values))
            for entry in entries:
                self._insert(connection, entry.table, entry.rows)

    def take(
        self, run: str, owner: str, count: int, lease_seconds: float, tried: Collection[int]
    ) -> tuple[list[Claim], int]:
        """Take up to ``count`` microbatches that nobody holds; return them, and how many others hold.

        Args:
            run: Id of the run.
            owner: Name of this driver.
            count: The most to take.
            lease_seconds: For how long.
            tried: Microbatches that this driver holds or has tried before.
        """
        row = tables.MICROBATCHES.c
        claims: list[Claim] = []
        with self._transaction() as connection:
            now = self._clock(connection)
            standings = self._standings(connection, run)
            wanted = to_take(standings, now, count, tried)
            for one in wanted:
                as_seen = sa.and_(row.run_id == run, row.number == one.number, row.fence == one.fence)
                is_free = sa.or_(row.state != "running", row.lease_until <= now)
                changed = sa.update(tables.MICROBATCHES).where(as_seen, is_free, row.state != "done")
                lease = {"owner": owner, "fence": one.fence + 1, "lease_until": now + lease_seconds}
                if connection.execute(changed.values(lease | {"state": "running"})).rowcount:
                    claims.append(Claim(one.number, one.fence + 1))
        # Another driver has taken the missing ones since they were read.
        taken_by_others = len(wanted) - len(claims)
        return claims, taken_by_others + sum(is_held(one, now) and one.number not in tried for one in standings)

    def renew(self, run: str, claims: Sequence[Claim], lease_seconds: float) -> set[Claim]:
        """Extend the leases of ``claims``, and return those that this driver still holds."""
        row = tables.MICROBATCHES.c
        held: set[Claim] = set()
        with self._transaction() as connection:
            until = self._clock(connection) + lease_seconds
            for claim in claims:
                mine = sa.and_(row.run_id == run, row.number == claim.number, row.fence == claim.fence)
                changed = sa.update(tables.MICROBATCHES).where(mine, row.state == "running").values(lease_until=until)
                if connection.execute(changed).rowcount:
                    held.add(claim)
        return held

    def send(self, entries: Sequence[Entry]) -> None:
        """Enter all of ``entries``, or none if that fails."""
        with self._transaction() as connection:
            for entry in entries:
                self._write(connection, entry)

    def now(self) -> float:
        """Return the seconds that leases are compared with."""
        with self._transaction() as connection:
            return self._clock(connection)

    def rows(self, table: sa.Table, run: str, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return the rows of a run, in the order of their keys, with all columns or only some."""
        wanted = sa.select(*(table.c[name] for name in columns or table.c.keys()))
        with self._transaction() as connection:
            found = connection.execute(wanted.where(table.c.run_id == run).order_by(*table.primary_key))
            return [dict(row) for row in found.mappings()]

    @contextmanager
    def _closed_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.close()
            if isinstance(error, SQLAlchemyError):
                raise self._unusable(error) from error
            raise

    def _has(self, run: str) -> bool:
        """Return whether the ledger, of any version, has a run."""
        with self._transaction() as connection:
            if not sa.inspect(connection).has_table(tables.RUNS.name):
                return False
            return connection.scalar(sa.select(tables.RUNS.c.run_id).filter_by(run_id=run)) is not None

    def _unusable(self, error: SQLAlchemyError) -> LedgerError:
        is_file = self._engine.dialect.name == "sqlite"
        remedy = "check the file and its folder" if is_file else "start its server"
        return LedgerError(f"the ledger {self.name} cannot be used ({reason(error)}); {remedy}, or give another ledger")

    def _standings(self, connection: sa.Connection, run: str) -> list[Standing]:
        row = tables.MICROBATCHES.c
        found = sa.select(row.number, row.state, row.fence, row.lease_until)
        wanted = found.where(row.run_id == run, row.state != "done").order_by(row.number)
        return [Standing(*one) for one in connection.execute(wanted)]

    def _abandon_others(self, connection: sa.Connection, run: Mapping[str, Any]) -> None:
        """Give up former runs of the same output, which is empty, or has been emptied since."""
        every, row = tables.RUNS.c, tables.MICROBATCHES.c
        other = sa.and_(every.output == run["output"], every.run_id != run["run_id"])
        is_held = sa.and_(row.state == "running", row.lease_until > self._clock(connection))
        held = sa.select(every.run_id).join(tables.MICROBATCHES, row.run_id == every.run_id).where(other, is_held)
        if found := connection.scalar(held.limit(1)):
            raise LedgerError(
                f"{run['output']} is being written by the run {found}, of another fleet, input or settings; wait for "
                f"it, or choose another output"
            )
        unfinished = every.state.in_(["running", "failed"])
        connection.execute(sa.update(tables.RUNS).where(other, unfinished).values(state="abandoned"))

    def _insert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows unless there are some of the same keys."""
        if rows:
            insert = _INSERTS[self._engine.dialect.name](table).on_conflict_do_nothing()
            connection.execute(insert, [dict(row) for row in rows])

    def _write(self, connection: sa.Connection, entry: Entry) -> None:
        if isinstance(entry, Change):
            connection.execute(sa.update(entry.table).filter_by(**entry.where).values(dict(entry.values)))
        elif entry.rows:
            insert = _INSERTS[self._engine.dialect.name](entry.table)
            keys = [column.name for column in entry.table.primary_key]
            others = {name: insert.excluded[name] for name in entry.rows[0] if name not in keys}
            connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=others), list(entry.rows))

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._engine.begin() as connection:
            yield connection

    def _migrate(self) -> None:
        config = Config()
        folder = resources.files("mirrorspark.fleet.runs") / "migrations"
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        options = {"version_table": _VERSION_TABLE}
        with self._transaction() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            found = MigrationContext.configure(connection, opts=options).get_current_revision()
            known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
            if found is not None and found not in known:
                raise LedgerError(
                    f"the ledger {self.name} has the schema {found}, which is newer than {known[0]}, the last one that "
                    f"this version of mirrorspark knows; install the version that wrote it, or give another ledger"
                )
            if found != known[0]:
                config.attributes["options"] = options | {"connection": connection}
                command.upgrade(config, "head")


def reason(error: SQLAlchemyError) -> str:
    """Return the database's own message in one line."""
    return one_line(getattr(error, "orig", None) or error)


def ledger_name(location: str | Path) -> str:
    """Return the address of a ledger without credentials, as :attr:`Ledger.name` has it.

    Raises:
        LedgerError: The address is malformed.
    """
    return _name(_url(location))


def is_same_ledger(name: str, other: str) -> bool:
    """Return whether two names of ledgers mean one database, by the names alone: a host may have several."""
    return name == other or _place(name) == _place(other)


def has_password(location: str) -> bool:
    """Return whether the address of a ledger contains a password; the name of a file does not.

    Raises:
        LedgerError: The address is malformed.
    """
    if not _is_address(location):
        return False
    try:
        url = sa.make_url(location)
    except (ArgumentError, ValueError) as error:
        raise _not_opened(location, error) from error
    return bool(url.password) or any(map(is_secret_name, url.query))


def _is_address(location: str | Path) -> bool:
    return isinstance(location, str) and "://" in location


def _not_opened(location: str | Path, error: Exception) -> LedgerError:
    return LedgerError(
        f"the ledger {without_credentials(str(location))} cannot be opened ({one_line(error)}); give a file, or an "
        f"address with an installed driver: postgresql://host/database (pip install psycopg2-binary)"
    )


def _name(url: sa.URL) -> str:
    return without_credentials(url.render_as_string(hide_password=True))


def _place(name: str) -> tuple[object, ...]:
    url = sa.make_url(name)
    if url.get_backend_name() == "sqlite":
        return Path(url.database or "").resolve(), url.query
    return url.host, url.port or 5432, url.database, url.query.get("host")


def _url(location: str | Path) -> sa.URL:
    is_address = _is_address(location)
    try:
        file = None if is_address else str(Path(location).absolute())
        url = sa.make_url(str(location)) if is_address else sa.URL.create("sqlite", database=file)
        if url.get_backend_name() not in _INSERTS:
            raise LedgerError(
                f"{url.get_backend_name()}:// is the address of no ledger; give a file, or postgresql://host/database"
            )
    except (ArgumentError, ValueError) as error:  # ValueError: the port is not a number
        raise _not_opened(location, error) from error
    if url.drivername == "postgresql":  # which means another driver since SQLAlchemy 2.1
        url = url.set(drivername=f"postgresql+{'psycopg' if find_spec('psycopg') else 'psycopg2'}")
    return url


def _engine(url: sa.URL, location: str | Path) -> sa.Engine:
    is_postgresql = url.get_backend_name() == "postgresql"
    try:
        if not is_postgresql and url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        options = _SOCKET_OPTIONS if url.get_driver_name().startswith("psycopg") else {}
        engine = sa.create_engine(url, pool_pre_ping=is_postgresql, connect_args=options)
    except (ArgumentError, ImportError, OSError, ValueError) as error:
        raise _not_opened(location, error) from error
    if not is_postgresql:
        event.listen(engine, "connect", _set_up_sqlite)
        # Transactions lock the file at once: two that have begun to read could not both go on to write.
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _set_up_sqlite(connection: Any, _: object) -> None:
    # Python's driver would begin transactions by itself, and not before DDL.
    connection.isolation_level = None
    # The journal stays a file next to the database: WAL needs memory that processes share, which network folders lack.
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")


def _clock_of(dialect: str) -> Clock:
    if dialect == "sqlite":
        return lambda connection: time.time()
    now = sa.text("SELECT extract(epoch FROM clock_timestamp())")
    return lambda connection: float(connection.scalar(now))
