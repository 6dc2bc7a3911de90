"""M7: the tests of the ledger, with a real PostgreSQL, and with one that goes away."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from mirrorspark.fleet.runs import tables
from mirrorspark.fleet.runs.claims import Claims, ClaimTimes
from mirrorspark.fleet.runs.ledger import Claim, Ledger, Rows
from mirrorspark.testing.proxy import Proxy
from tests.mlflow_server import postgresql
from tests.unit.fleet.test_ledger import *  # noqa: F403 - the same tests, with another address
from tests.unit.fleet.test_ledger import ERROR, begin, states

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def server() -> Iterator[sa.URL]:
    with postgresql() as address:
        yield sa.make_url(address)


@pytest.fixture
def address(server: sa.URL) -> Iterator[str]:
    """Yield the address of a new database."""
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("CREATE DATABASE ledger"))
        yield server.set(database="ledger").render_as_string(hide_password=False)
        connection.execute(sa.text("DROP DATABASE ledger WITH (FORCE)"))
    engine.dispose()


def test_leases_are_compared_by_the_clock_of_the_server(address: str) -> None:
    one, other = Ledger.open(address), Ledger.open(address)
    begin(one, 2)
    (claim,), _ = one.take("run", "one", 1, 3_600.0, ())
    assert one.take("run", "one", 1, -1.0, (0,))[0] == [Claim(1, 1)]
    assert other.take("run", "other", 2, 60.0, ())[0] == [Claim(1, 2)]
    assert other.renew("run", [claim], 60.0) == {claim}
    one.close()
    other.close()


def test_work_goes_on_while_the_server_is_away_and_entries_are_sent_when_it_is_back(address: str) -> None:
    url = sa.make_url(address)
    with Proxy(int(url.port or 0)) as proxy:
        ledger = Ledger.open(url.set(port=proxy.port).render_as_string(hide_password=False))
        begin(ledger)
        limits = ClaimTimes(lease_seconds=600.0, patience_seconds=120.0, poll_seconds=0.05)
        with Claims(ledger, "run", "one", 2, limits) as claims:
            first = claims.next()
            assert first is not None
            with proxy.cut():
                second = claims.next()
                assert second is not None
                for claim in (first, second):
                    claims.confirm(claim)
                    claims.end(claim, "done", [Rows(tables.ERRORS, [ERROR | {"microbatch": claim.number}])])
            third = claims.next()
            assert third is not None
            claims.end(third, "done")
        assert states(ledger) == ["done"] * 3
        assert [row["microbatch"] for row in ledger.rows(tables.ERRORS, "run")] == [first.number, second.number]
        ledger.close()
