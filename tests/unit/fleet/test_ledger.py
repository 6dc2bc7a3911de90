"""M7, M8: drivers share a ledger without taking the same microbatch twice; the same tests run with PostgreSQL."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mirrorspark.fleet.runs import tables
from mirrorspark.fleet.runs.decisions import Standing
from mirrorspark.fleet.runs.ledger import Change, Claim, Ledger, LedgerError, Rows, is_same_ledger

LEASE = 60.0
ERROR = {
    **{
        "run_id": "run",
        "microbatch": 0,
        "attempt": 1,
        "model": "a",
        "model_group": "spring",
        "step": 0,
        "stage": "score",
    },
    **{"error": "ValueError", "message": "50 %: it's 'bad'", "traceback": "…", "partition": 3, "at": 1.0},
}

Open = Callable[[], Ledger]


class Clock:
    """The clock of a ledger, moved by the tests."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self, _: sa.Connection) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "folder" / "ledger.db")


@pytest.fixture
def opened(address: str, clock: Clock) -> Iterator[Open]:
    """Open the ledger as one more driver does."""
    ledgers: list[Ledger] = []

    def open_ledger() -> Ledger:
        ledgers.append(Ledger.open(address, clock))
        return ledgers[-1]

    yield open_ledger
    for ledger in ledgers:
        ledger.close()


def run(name: str = "run", state: str = "running", output: str = "/output") -> dict[str, Any]:
    row = {"run_id": name, "output": output, "fleet": "f" * 64, "models": 2, "microbatches": 3, "state": state}
    return row | {"began": 1.0, "ended": None}


def begin(ledger: Ledger, count: int = 3, name: str = "run", **others: Any) -> None:
    models = [{"model": model, "model_group": "spring", "digest": "", "state": "sound"} for model in "ab"]
    microbatches = [{"number": n, "model_group": "spring", "step": 0, "models": 2, "rows": 2**33} for n in range(count)]
    ledger.begin(run(name), models, microbatches, **others)


def states(ledger: Ledger) -> list[str]:
    return [row["state"] for row in ledger.rows(tables.MICROBATCHES, "run")]


def test_two_drivers_never_hold_the_same_microbatch(opened: Open) -> None:
    one, other = opened(), opened()
    begin(one)
    assert one.take("run", "one", 2, LEASE, ()) == ([Claim(0, 1), Claim(1, 1)], 0)
    assert other.take("run", "other", 5, LEASE, ()) == ([Claim(2, 1)], 2)
    assert one.take("run", "one", 5, LEASE, (0, 1)) == ([], 1)


def test_what_another_driver_has_published_since_the_outputs_were_listed_stays_done(opened: Open) -> None:
    ledger = opened()
    begin(ledger)
    for claim in ledger.take("run", "other", 2, LEASE, ())[0]:
        where = {"run_id": "run", "number": claim.number, "fence": claim.fence}
        ledger.send([Change(tables.MICROBATCHES, where, {"state": "done"})])
    begin(ledger, published=(), were_done=(1,))
    assert states(ledger) == ["done", "waiting", "waiting"]
    begin(ledger, published=())
    assert states(ledger) == ["waiting"] * 3


def test_drivers_that_ask_at_the_same_time_get_different_microbatches(opened: Open) -> None:
    count, drivers = 24, 4
    begin(opened(), count)
    ledgers, start = [opened() for _ in range(drivers)], threading.Barrier(drivers)

    def take_all(ledger: Ledger) -> list[int]:
        start.wait(60)
        mine: list[int] = []
        while claims := ledger.take("run", "driver", 2, LEASE, mine)[0]:
            mine += [claim.number for claim in claims]
        return mine

    with ThreadPoolExecutor(drivers) as pool:
        taken = [number for mine in pool.map(take_all, ledgers) for number in mine]
    assert sorted(taken) == list(range(count))


def test_what_another_driver_takes_at_the_same_instant_counts_as_held(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = opened(), opened()
    begin(one, 2)
    other.take("run", "other", 2, LEASE, ())
    monkeypatch.setattr(one, "_standings", lambda *_: [Standing(number, "waiting", 0, 0.0) for number in range(2)])
    assert one.take("run", "one", 2, LEASE, ()) == ([], 2)


def test_drivers_that_open_a_new_ledger_at_the_same_time_find_its_tables(opened: Open) -> None:
    with ThreadPoolExecutor(4) as pool:
        ledgers = list(pool.map(lambda _: opened(), range(4)))
    assert [ledger.rows(tables.RUNS, "run") for ledger in ledgers] == [[]] * 4


def test_a_lease_that_is_renewed_is_kept_and_one_that_has_run_out_is_taken_over(opened: Open, clock: Clock) -> None:
    one, other = opened(), opened()
    begin(one, 1)
    (claim,), _ = one.take("run", "one", 1, LEASE, ())
    clock.now += LEASE - 1
    assert one.renew("run", [claim], LEASE) == {claim}
    clock.now += LEASE - 1
    assert other.take("run", "other", 1, LEASE, ()) == ([], 1)
    clock.now += 1
    assert other.take("run", "other", 1, LEASE, ()) == ([Claim(0, 2)], 0)
    assert one.renew("run", [claim], LEASE) == set()


def test_what_a_driver_enters_too_late_changes_nothing_of_the_next_owner(opened: Open, clock: Clock) -> None:
    one, other = opened(), opened()
    begin(one, 1)
    one.take("run", "one", 1, LEASE, ())
    clock.now += LEASE
    other.take("run", "other", 1, LEASE, ())
    one.send([Change(tables.MICROBATCHES, {"run_id": "run", "number": 0, "fence": 1}, {"state": "failed"})])
    (row,) = one.rows(tables.MICROBATCHES, "run")
    assert (row["state"], row["owner"], row["fence"], row["rows"]) == ("running", "other", 2, 2**33)


def test_entries_that_are_sent_twice_are_there_once(opened: Open) -> None:
    ledger = opened()
    begin(ledger)
    entries = [
        Rows(tables.ERRORS, [ERROR, ERROR | {"model": "b", "partition": None}]),
        Rows(tables.ERRORS, []),
        Change(tables.MODELS, {"run_id": "run", "model": "a"}, {"state": "failed"}),
    ]
    ledger.send(entries)
    ledger.send(entries)
    assert ledger.rows(tables.ERRORS, "run") == [ERROR, ERROR | {"model": "b", "partition": None}]
    assert [row["state"] for row in ledger.rows(tables.MODELS, "run")] == ["failed", "sound"]


def test_entries_are_all_there_or_none(opened: Open) -> None:
    ledger = opened()
    wrong = Rows(tables.ERRORS, [ERROR | {"message": None}])
    with pytest.raises(sa.exc.IntegrityError):
        ledger.send([Rows(tables.ERRORS, [ERROR]), wrong])
    assert ledger.rows(tables.ERRORS, "run") == []


def test_a_run_that_begins_again_follows_its_output(opened: Open) -> None:
    ledger = opened()
    begin(ledger)
    claims, _ = ledger.take("run", "one", 3, LEASE, ())
    done = [Change(tables.MICROBATCHES, {"number": claim.number}, {"state": "done"}) for claim in claims[:2]]
    ledger.send([*done, Change(tables.MODELS, {"model": "a"}, {"state": "failed"})])
    # The first one has gone from the output, and the third one was published by a driver that did not get to say so.
    begin(ledger, published={1, 2})
    assert states(ledger) == ["waiting", "done", "done"]
    assert ledger.rows(tables.MODELS, "run")[0]["state"] == "failed"
    assert ledger.take("run", "one", 3, LEASE, ()) == ([Claim(0, 2)], 0)


def test_another_run_waits_for_the_drivers_of_its_output(opened: Open, clock: Clock) -> None:
    ledger = opened()
    begin(ledger)
    ledger.take("run", "one", 1, LEASE, ())
    with pytest.raises(LedgerError, match="is being written by the run run"):
        begin(ledger, name="next")
    clock.now += LEASE
    begin(ledger, name="next")
    assert ledger.rows(tables.RUNS, "run")[0]["state"] == "abandoned"


def test_a_ledger_that_lacks_a_run_is_not_opened_for_it_and_stays_as_it_is(address: str, opened: Open) -> None:
    def has_tables() -> bool:
        if "://" not in address:
            return Path(address).parent.exists()
        engine = sa.create_engine(address)
        try:
            return bool(sa.inspect(engine).get_table_names())
        finally:
            engine.dispose()

    assert (Ledger.of_run(address, "run"), has_tables()) == (None, False)
    begin(opened())
    assert Ledger.of_run(address, "another") is None
    found = Ledger.of_run(address, "run")
    assert found is not None
    with found:
        assert (len(states(found)), found.rows(tables.ATTEMPTS, "run")) == (3, [])


@pytest.mark.parametrize(
    ("name", "other", "is_same"),
    [
        ("postgresql+psycopg2://host/db", "postgresql+psycopg://host:5432/db?sslmode=require", True),
        ("postgresql+psycopg2://host/db", "postgresql+psycopg2://host/other", False),
        ("postgresql+psycopg2://host/db", "postgresql+psycopg2://host:5433/db", False),
        ("postgresql+psycopg2://host/db", "sqlite:////db", False),
        ("sqlite:////folder/ledger.db", "sqlite:////folder/../folder/ledger.db", True),
        ("sqlite:////folder/ledger.db", "sqlite:////folder/leger.db", False),
    ],
)
def test_ledgers_are_the_same_if_their_addresses_lead_to_one_database(name: str, other: str, is_same: bool) -> None:
    assert is_same_ledger(name, other) == is_same


def test_a_ledger_of_a_newer_schema_is_refused(opened: Open) -> None:
    ledger = opened()
    with ledger._engine.begin() as connection:
        connection.execute(sa.text("UPDATE mirrorspark_fleet_version SET version_num = 'ledger_0099'"))
    with pytest.raises(LedgerError, match=r"has the schema ledger_0099, which is newer than ledger_0001, the last one"):
        opened()


def test_a_ledger_that_is_opened_again_keeps_its_rows(opened: Open) -> None:
    ledger = opened()
    numbers = {column.name: 1 for column in tables.ATTEMPTS.c}
    attempt = numbers | {"run_id": "run", "owner": "one", "outcome": "done", "model_seconds": "[0.5, 2.0]"}
    ledger.send([Rows(tables.ATTEMPTS, [attempt])])
    assert ledger.rows(tables.ATTEMPTS, "run") == [attempt]
    assert opened().rows(tables.ATTEMPTS, "run") == [attempt]
    assert opened().rows(tables.ATTEMPTS, "run", ("outcome", "rows")) == [{"outcome": "done", "rows": 1}]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("postgresql+psycopg2://me:secret-password@127.0.0.1:1/db", r"1/db cannot be used \(.*refused.*start its serv"),
        ("oracle://me:secret-password@host/db", r"oracle:// is the address of no ledger"),
        ("postgresql+unknown://me:secret-password@host/db", r"host/db cannot be opened \(Can't load plugin"),
        ("postgresql://me:secret-password@host:port/db", r"host:port/db cannot be opened \(invalid literal for int"),
        ("nonsense", r"cannot be used \(unable to open database file\); check the file and its folder, or"),
    ],
)
def test_a_ledger_that_cannot_be_used_is_one_clear_error(address: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "nonsense").mkdir()
    with pytest.raises(LedgerError, match=message) as caught:
        Ledger.open(tmp_path / address if "://" not in address else address)
    assert "secret-password" not in str(caught.value)
