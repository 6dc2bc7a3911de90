"""M5, M6, M8: microbatches are planned, taken and given up by rules; a failing model is found and left out."""

import json
import os
import re
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.reading.parquet_rows import ParquetFiles, ParquetRows, parquet_files
from mirrorspark.fleet import scorer
from mirrorspark.fleet.coefficients import fleet_from_coefficients, table_of_coefficients
from mirrorspark.fleet.columns import FLEET_SCHEMA, FleetError, digests_of
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.runs import tables
from mirrorspark.fleet.runs.claims import Claims, ClaimTimes
from mirrorspark.fleet.runs.decisions import Standing, budget_reached, hopeless, microbatches_left, to_take
from mirrorspark.fleet.runs.failures import CheckedFleet, failing, without_outputs
from mirrorspark.fleet.runs.kept import ledger_of_run, opened_ledger
from mirrorspark.fleet.runs.ledger import Change, Claim, Ledger, LedgerError, Rows
from mirrorspark.fleet.runs.microbatch import read_manifest
from mirrorspark.fleet.runs.plan import RunPlan, input_files, plan_shares, plan_steps
from mirrorspark.fleet.runs.progress import Progress, follow
from mirrorspark.fleet.runs.task import MicrobatchWriter, Selection
from mirrorspark.fleet.scorer import FleetScorer
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.task import ShippedModel
from mirrorspark.storage.lease import LeaseLostError
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import SaveMode, WriteJob
from tests.unit.fleet.test_ledger import ERROR, Clock, begin, states
from tests.unit.storage.writes import without_sqlite

TERMS = pd.DataFrame(
    [
        ("sound", "x", 1.0, None),
        ("not a number", "x", float("nan"), None),
        ("no column", "absent", 2.0, None),
        ("no number", "state", 1.0, None),
        ("no category", "x", 1.0, "CA"),
        ("no such value", "count", 1.0, "many"),
        ("twice bad", "absent", float("inf"), None),
        ("also sound", "state", 1.0, "CA"),
    ],
    columns=["model", "column", "coefficient", "category"],
)
MODELS = pd.DataFrame({"model": TERMS["model"], "threshold": [0.5] * 7 + [None]})
COLUMNS = pa.schema([("x", pa.float64()), ("state", pa.string()), ("count", pa.int32())])


# Claims of microbatches, the work that is left, and the end of a run.


def test_free_failed_and_abandoned_microbatches_are_taken_the_failed_ones_last() -> None:
    standings = [
        Standing(0, "failed", 1, 0.0),
        Standing(1, "running", 1, 101.0),
        Standing(2, "running", 3, 100.0),
        Standing(3, "waiting", 0, 0.0),
        Standing(4, "waiting", 0, 0.0),
    ]
    assert [one.number for one in to_take(standings, 100.0, 9, {4})] == [2, 3, 0]
    assert [one.number for one in to_take(standings, 100.0, 2, ())] == [2, 3]


@given(st.sets(st.integers(0, 20)), st.integers(0, 20))
def test_what_is_left_and_what_is_published_are_all_microbatches(published: set[int], count: int) -> None:
    left = microbatches_left(count, published)
    assert sorted({*left, *(published & {*range(count)})}) == [*range(count)]
    assert not published & {*left}


def test_a_run_ends_when_more_than_the_budget_has_failed_or_nothing_works() -> None:
    assert budget_reached(10, 100, 0.1, fail_fast=False) is None
    assert budget_reached(11, 100, 0.1, fail_fast=False) == "failure_budget allows 10.0%"
    assert budget_reached(29, 100, 0.29, fail_fast=False) is None  # 0.29 * 100 is a little less than 29
    assert budget_reached(30, 100, 0.29, fail_fast=False) == "failure_budget allows 29.0%"
    assert budget_reached(0, 100, 0.0, fail_fast=True) is None
    assert budget_reached(1, 100, 1.0, fail_fast=True) == "fail_fast allows none"
    assert hopeless(["failed", "failed", "done", "failed", "failed"], fail_fast=False) is None
    assert hopeless(["done", *["failed"] * 3], fail_fast=False) == "3 have failed one after the other"
    assert hopeless(["done", "failed"], fail_fast=True) == "fail_fast ends the run at the first that fails"


# Leases and entries of a driver.


class Unsteady(Ledger):
    """A ledger whose database can go away."""

    is_away = False

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        if self.is_away:
            raise sa.exc.OperationalError("", {}, RuntimeError("the server is down"))
        with super()._transaction() as connection:
            yield connection


class Time:
    """Our own clock, by which a wait takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Unsteady]:
    with Unsteady.open(tmp_path / "ledger.db", clock) as opened:
        begin(opened, 6)
        yield opened


def limits(**others: Any) -> ClaimTimes:
    return ClaimTimes(
        **{"lease_seconds": 1_000.0, "patience_seconds": 50.0, "poll_seconds": 0.001, "clock": Time()} | others
    )


def test_a_driver_goes_through_the_microbatches_and_returns_the_rest(ledger: Unsteady) -> None:
    with Claims(ledger, "run", "one", 2, limits()) as claims:
        first, second = claims.next(), claims.next()
        assert first == Claim(0, 1)
        assert second == Claim(1, 1)
        claims.end(first, "done", [Rows(tables.ERRORS, [ERROR])], 2.5)
        claims.end(second, "failed")
        claims.stop()
        assert claims.next() is None
    assert states(ledger) == ["done", "failed", *["waiting"] * 4]
    assert ledger.rows(tables.MICROBATCHES, "run")[0]["seconds"] == 2.5
    assert ledger.rows(tables.ERRORS, "run") == [ERROR]


def test_what_is_taken_while_a_driver_stops_is_given_back(ledger: Unsteady, monkeypatch: pytest.MonkeyPatch) -> None:
    with Claims(ledger, "run", "one", 2, limits()) as claims:
        take = ledger.take

        def stopped_meanwhile(*arguments: Any) -> tuple[list[Claim], int]:
            claims.stop()
            return take(*arguments)

        monkeypatch.setattr(ledger, "take", stopped_meanwhile)
        assert claims.next() is None
    assert states(ledger) == ["waiting"] * 6


def test_a_driver_tries_each_microbatch_once(ledger: Unsteady) -> None:
    tried = []
    with Claims(ledger, "run", "one", 2, limits()) as claims:
        while (claim := claims.next()) is not None:
            claims.end(claim, "failed")
            tried.append(claim.number)
    assert tried == [0, 1, 2, 3, 4, 5]


def test_work_goes_on_while_the_ledger_is_away_and_its_entries_follow(ledger: Unsteady) -> None:
    with Claims(ledger, "run", "one", 2, limits(patience_seconds=10_000.0)) as claims:
        first = claims.next()
        ledger.is_away = True
        others = [claims.next() for _ in range(3)]
        for claim in (first, *others):
            assert claim is not None
            claims.confirm(claim)
            claims.end(claim, "done", [Rows(tables.ERRORS, [ERROR | {"microbatch": claim.number}])])
        ledger.is_away = False
        assert claims.next() == Claim(4, 1)
    assert states(ledger) == [*["done"] * 4, "running", "waiting"]
    assert [row["microbatch"] for row in ledger.rows(tables.ERRORS, "run")] == [0, 1, 2, 3]


def test_a_ledger_that_goes_away_and_comes_back_is_told_once(
    ledger: Unsteady, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent, is_refused_often, send = list[Any](), threading.Event(), ledger.send

    def counted(entries: Sequence[Any]) -> None:
        sent.append(entries)
        if len(sent) == 5:
            is_refused_often.set()
        send(entries)

    monkeypatch.setattr(ledger, "send", counted)
    with Claims(ledger, "run", "one", 1, limits()) as claims:
        held = [claims.next(), claims.next()]
        ledger.is_away = True
        for claim in held:
            assert claim is not None
            claims.end(claim, "done")
        assert is_refused_often.wait(60)
        ledger.is_away = False
    assert [("answers again" in one, "does not answer" in one) for one in caplog.messages] == [
        (False, True),
        (True, False),
    ]


def test_a_ledger_that_stays_away_is_one_clear_error(ledger: Unsteady) -> None:
    with Claims(ledger, "run", "one", 1, limits()) as claims:
        for _ in range(2):
            assert claims.next() is not None
        ledger.is_away = True
        with pytest.raises(
            LedgerError, match=r"ledger.db has not answered for 50 s \(the server is down\), and lacks 0"
        ):
            claims.next()
        ledger.is_away = False


def test_a_ledger_that_goes_away_after_it_was_opened_is_the_same_clear_error(tmp_path: Path) -> None:
    ledger = Unsteady.open(tmp_path / "ledger.db")
    ledger.is_away = True
    with pytest.raises(LedgerError, match=r"ledger.db cannot be used \(the server is down\); check the file"), ledger:
        begin(ledger)


def test_without_the_ledger_nothing_is_published_after_the_lease(ledger: Unsteady) -> None:
    time = Time()
    with Claims(ledger, "run", "one", 1, limits(clock=time)) as claims:
        claim = claims.next()
        assert claim is not None
        ledger.is_away = True
        claims.confirm(claim)
        time.now += 800
        with pytest.raises(LedgerError, match="has not answered"):
            claims.confirm(claim)
        ledger.is_away = False
        claims.confirm(claim)


def test_a_driver_that_was_away_too_long_is_fenced(ledger: Unsteady, clock: Clock) -> None:
    with Claims(ledger, "run", "one", 1, limits()) as claims:
        claim = claims.next()
        assert claim is not None
        clock.now += 1_000
        assert ledger.take("run", "other", 1, 1_000.0, ()) == ([Claim(0, 2)], 0)
        with pytest.raises(LeaseLostError, match="another driver has taken microbatch 0 of run"):
            claims.confirm(claim)
        claims.end(claim, "waiting")
    (row, *_) = ledger.rows(tables.MICROBATCHES, "run")
    assert (row["state"], row["owner"], row["fence"]) == ("running", "other", 2)


def test_a_driver_waits_for_the_others_and_takes_what_they_leave(tmp_path: Path) -> None:
    # Each question to this ledger takes a second.
    time = iter(range(100_000))
    with Ledger.open(tmp_path / "ledger.db", lambda _: float(next(time))) as ledger:
        begin(ledger, 1)
        ledger.take("run", "other", 1, 20.0, ())
        with Claims(ledger, "run", "one", 1, limits()) as claims:
            assert claims.next() == Claim(0, 2)
        assert next(time) > 20


# Progress.


def attempt(microbatch: int, began: float, seconds: float, outcome: str = "done", number: int = 1) -> dict[str, Any]:
    return {"microbatch": microbatch, "attempt": number, "outcome": outcome, "began": began, "seconds": seconds}


def test_progress_counts_leases_and_the_time_in_which_attempts_ran() -> None:
    row = {"rows": 100, "models": 5, "lease_until": 0.0}
    states = ["done", "done", "done", "running", "running", "failed", "waiting", "waiting"]
    microbatches = [row | {"number": number, "state": state} for number, state in enumerate(states)]
    microbatches[3]["lease_until"] = 51.0
    # Two at the same time, a pause of 30 s, and one more; the failed one publishes nothing.
    attempts = [attempt(0, 0.0, 6.0), attempt(1, 4.0, 6.0), attempt(2, 40.0, 5.0), attempt(5, 45.0, 3.0, "failed")]
    found = Progress.of(microbatches, attempts, 50.0)
    assert (found.done, found.running, found.failed, found.waiting, found.microbatches) == (3, 1, 1, 3, 8)
    assert (found.inferences, found.inferences_per_second, found.seconds_left) == (1_500, 100.0, 25.0)
    assert str(found) == "3 of 8 microbatches done, 1 running, 1 failed; 100 inferences/s, 0:00:25 left"


def test_progress_without_an_attempt_has_no_rate() -> None:
    row = {"number": 0, "rows": 0, "models": 5, "lease_until": 0.0, "state": "waiting"}
    assert str(Progress.of([row], [], 50.0)) == "0 of 1 microbatches done, 0 running, 0 failed"
    assert Progress.of([row | {"state": "done"}], [attempt(0, 1.0, 1.0)], 50.0).inferences_per_second is None


def test_a_run_is_followed_until_no_driver_works_on_it(ledger: Unsteady) -> None:
    claims, _ = ledger.take("run", "one", 2, 60.0, ())  # by the ledger's clock, which is not ours
    looks = follow(ledger, "run", 0.001)
    assert (next(looks).running, next(looks).running) == (2, 2)
    first, last = [Change(tables.MICROBATCHES, {"number": claim.number}, {"state": "done"}) for claim in claims]
    # One driver has failed, and another one still holds a microbatch.
    ledger.send([first, Change(tables.RUNS, {"run_id": "run"}, {"state": "failed"})])
    assert [(found.done, found.running) for found in (next(looks), next(looks))] == [(1, 1), (1, 1)]
    ledger.send([last])
    assert [found.done for found in looks] == [2]
    ledger.is_away = True
    with pytest.raises(LedgerError, match=r"ledger.db does not answer \(the server is down\)"):
        next(follow(ledger, "run", 1.0))
    ledger.is_away = False
    with pytest.raises(ScoringError, match="every_seconds 0 is not above 0"):
        next(follow(ledger, "run", 0))


def test_a_run_whose_driver_was_killed_is_not_followed_forever(ledger: Unsteady) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("threading.Event.wait", lambda *_: False)
        assert len([*follow(ledger, "run", 20.0)]) == 3  # after 0, 20 and 40 s
        assert len([*follow(ledger, "run", 3_600.0)]) == 2  # in the first one, a driver may just begin


# Models that fail.


def test_each_model_that_cannot_be_scored_is_named_with_its_reason(tmp_path: Path) -> None:
    table = table_of_coefficients(TERMS, MODELS, link="logit")
    checked = CheckedFleet.of(Fleet(table, digests_of(table))).against(COLUMNS)
    assert {one.model: (one.stage, one.message.split(";")[0]) for one in checked.failures} == {
        "not a number": ("check", "a coefficient that is NaN, infinite or missing"),
        "twice bad": ("check", "a coefficient that is NaN, infinite or missing"),
        "no column": ("columns", "the input has no column 'absent', which the model reads"),
        "no number": ("columns", "column 'state' has type string, and the model reads numbers"),
        "no category": (
            "columns",
            "column 'x' has type double, and the model reads categories: texts, whole numbers or booleans",
        ),
        "no such value": (
            "columns",
            "column 'count' has type int32, and models know categories that it cannot have (Failed to parse string: "
            "'many' as a scalar of type int32)",
        ),
    }
    assert checked.fleet.names == tuple(TERMS["model"])
    assert checked.fleet.columns == ("x", "state")
    assert checked.digests == dict(zip(TERMS["model"], digests_of(table), strict=True))


def test_a_failed_model_keeps_its_outputs_and_all_are_null() -> None:
    table = table_of_coefficients(TERMS, MODELS.assign(cut_points=[[0.2, 0.4]] + [None] * 7), link="logit")
    checked = CheckedFleet.of(Fleet(table, digests_of(table))).against(COLUMNS)
    fleet = Fleet(without_outputs(checked.fleet.table, ["sound"]), checked.fleet.digests)
    rows = pa.RecordBatch.from_pydict({"key": [7], "x": [1.0], "state": ["CA"]})
    scorer = FleetScorer(fleet, Layout.of(fleet, "wide", ["score", "binary", "Rank"]))
    (row,) = [row for batch, _ in scorer.batches(rows, ["key"]) for row in batch.to_pylist()]
    assert {name: value for name, value in row.items() if value is not None} == {
        "key": 7,
        "also sound_score": pytest.approx(1 / (1 + np.exp(-1))),
    }
    outputs = {name: ["score", "binary"] for name in TERMS["model"]} | {"also sound": ["score"]}
    outputs["sound"] = ["score", "binary", "Rank"]
    assert [*row] == ["key", *(f"{model}_{name}" for model in TERMS["model"] for name in outputs[model])]


def test_models_by_name_have_files_of_their_own_of_which_some_cannot_be_read(tmp_path: Path) -> None:
    TERMS.head(1).to_csv(tmp_path / "good.csv", index=False)
    TERMS.to_csv(tmp_path / "many.csv", index=False)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 no more")
    saved = fleet_from_coefficients(TERMS.tail(1))
    saved.save(tmp_path / "saved")
    files = {name: tmp_path / name for name in ("good.csv", "many.csv", "damaged.parquet", "gone.csv", "saved")}
    checked = CheckedFleet.of(files)
    assert checked.fleet.names == tuple(files)
    assert {one.model: (one.stage, one.error) for one in checked.failures} == {
        "many.csv": ("load", "FleetError"),
        "damaged.parquet": ("load", "FleetError"),
        "gone.csv": ("load", "FileNotFoundError"),
    }
    assert [bool(digest) for digest in checked.digests.values()] == [True, False, False, False, True]


def test_a_fleet_without_models_or_with_two_of_one_name_is_refused_as_a_whole() -> None:
    with pytest.raises(FleetError, match="at least one model"):
        CheckedFleet.of({})
    table = table_of_coefficients(TERMS)
    with pytest.raises(FleetError, match="several models have the name 'sound', 'not a number'"):
        CheckedFleet.of(Fleet(pa.concat_tables([table, table]), ()))


def test_a_model_that_would_take_too_much_memory_has_failed_before_it_is_scored() -> None:
    small = fleet_from_coefficients(pa.table({"model": ["a", "b"], "column": ["x", "x"], "coefficient": [1.0, 2.0]}))
    fleet = small.with_models(network("wide", 30_000))
    # The term, 90,001 weights, and 2,048 rows of two layers.
    needed = 400 + 8 * 90_001 + 4 * 2_048 * 30_001
    assert CheckedFleet.of(fleet).within(None).failures == CheckedFleet.of(fleet).within(needed).failures == ()
    checked = CheckedFleet.of(fleet).within(needed - 1)
    (failure,) = checked.failures
    assert (failure.model, failure.stage, failure.error) == ("wide", "check", "ModelMemoryError")
    assert failure.message.startswith(
        f"it takes about {needed:,} bytes of memory, and model_bytes allows {needed - 1:,};"
    )
    assert checked.within(needed - 1).failures == checked.failures
    layout = Layout.of(fleet, "wide", ("score",))
    rows = pa.RecordBatch.from_pydict({"x": np.ones(2_048)})
    FleetScorer(fleet, layout).outputs(rows.slice(0, 1))  # compiles the kernels
    tracemalloc.start()
    try:
        FleetScorer(fleet, layout).outputs(rows)
        assert 0.9 * needed < tracemalloc.get_traced_memory()[1] < 1.1 * needed
        tracemalloc.reset_peak()
        FleetScorer(checked.fleet, layout).outputs(rows)
        assert tracemalloc.get_traced_memory()[1] < 0.1 * needed
    finally:
        tracemalloc.stop()


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_failing_models_are_found_by_halving(is_bad: list[bool]) -> None:
    names = [str(number) for number in range(len(is_bad))]
    calls = 0

    def score(some: Sequence[str]) -> None:
        nonlocal calls
        calls += 1
        if bad := [name for name in some if is_bad[int(name)]]:
            raise ZeroDivisionError(bad[0])

    found = failing(names, score)
    assert {name: str(error) for name, error in found.items()} == {name: name for name in names if is_bad[int(name)]}
    assert calls <= 1 + 2 * max(1, sum(is_bad)) * len(is_bad).bit_length()


def test_a_failing_disk_is_no_models_fault() -> None:
    def score(_: Sequence[str]) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        failing(["a", "b"], score)


# Tasks: a model that raises an error is reported, and the others are scored without it.


def network(name: str, units: int) -> Fleet:
    """Return a network of one column with a wide hidden layer, which adds nothing."""
    (row,) = fleet_from_coefficients(
        pa.table({"model": [name], "column": ["x"], "coefficient": [1.0]})
    ).table.to_pylist()
    row |= {"layer_sizes": [1, units, 1], "weights": [0.0] * (3 * units + 1), "activations": ["relu"]}
    return Fleet.of(pa.Table.from_pylist([row], schema=FLEET_SCHEMA))


def broken_network(weights: list[float], sizes: list[int]) -> Fleet:
    """Return a fleet of two linear models and a network that no check has seen, which raises an error."""
    terms = {"model": ["a", "b"], "column": ["x", "x"], "coefficient": [1.0, -2.0]}
    sound = fleet_from_coefficients(pa.table(terms))
    row = sound.table.to_pylist()[0] | {"model": "broken", "layer_sizes": sizes, "weights": weights, "activations": []}
    table = pa.concat_tables([sound.table, pa.Table.from_pylist([row], schema=FLEET_SCHEMA)]).take([0, 2, 1])
    return Fleet(table, digests_of(table))


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[..., tuple[dict[str, Any], list[Path]]]]:
    """Write share 3 of a microbatch as a task does; return its report and the files."""
    jobs: list[WriteJob] = []

    def call(
        fleet: Fleet, failed: Sequence[str] = (), model_seconds: float | None = None
    ) -> tuple[dict[str, Any], list[Path]]:
        fleet.save(tmp_path / fleet.digest)
        jobs.append(WriteJob.begin(StoragePath.of(tmp_path / f"output-{len(jobs)}"), SaveMode.ERROR))
        keys = pa.schema([("key", pa.int64())])
        shipped = ShippedModel(fleet.digest, "fleet", path=str(tmp_path / fleet.digest), archive=None)
        selection = Selection(fleet.names, tuple(failed))
        writer = MicrobatchWriter(jobs[-1], keys, shipped, "wide", ("score",), selection, model_seconds)
        rows = pa.RecordBatch.from_pydict({"key": [1, 2], "x": [0.5, 1.5]})
        reports = [row["report"] for row in writer.write(3, lambda _: [rows]).to_pylist() if row["report"]]
        return json.loads(reports[0]), sorted(Path(jobs[-1].staging.uri).rglob("*.parquet"))

    yield call
    for job in jobs:
        job.abort()


@pytest.mark.parametrize(("weights", "sizes"), [([1.0], [2, 1]), ([1.0], [1, 1])], ids=["prepared", "scored"])
def test_a_model_that_raises_an_error_is_reported_and_left_out(
    write: Callable[..., tuple[dict[str, Any], list[Path]]], weights: list[float], sizes: list[int]
) -> None:
    fleet = broken_network(weights, sizes)
    report, files = write(fleet)
    (failure,) = report["failures"]
    assert (failure["model"], failure["stage"], failure["error"], failure["partition"]) == (
        "broken",
        "score",
        "ValueError",
        3,
    )
    assert "ValueError" in failure["traceback"]
    assert files == []
    report, (file,) = write(fleet, ["broken"])
    assert (file.name, report["failures"], [*report["digests"]]) == ("part-00003.parquet", [], ["part-00003.parquet"])
    expected = {"key": [1, 2], "a_score": [0.5, 1.5], "broken_score": [None, None], "b_score": [-1.0, -3.0]}
    assert pq.read_table(file).to_pydict() == expected
    _, (again,) = write(fleet, ["broken"])
    assert again.read_bytes() == file.read_bytes()


def test_a_model_that_takes_too_long_is_reported_with_a_message_that_is_always_the_same(
    write: Callable[..., tuple[dict[str, Any], list[Path]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each look at the clock takes a second: the linear models, which are computed together, take half of one each.
    monkeypatch.setattr(scorer, "time", SimpleNamespace(perf_counter=Time()))
    network = broken_network([1.0, 0.0], [1, 1])
    for _ in range(2):  # the seconds of a task are not those of the next one
        report, files = write(network, model_seconds=0.75)
        (failure,) = report["failures"]
        assert (failure["model"], failure["error"], failure["partition"]) == ("broken", "ModelTimeError", 3)
        assert failure["message"] == "it takes more than 0.75 s of a task; make it smaller, or raise model_seconds"
        assert files == []
    report, (file,) = write(network, ["broken"], model_seconds=0.75)
    assert report["failures"] == []
    assert pq.read_table(file)["broken_score"].to_pylist() == [None, None]
    report, _ = write(network, model_seconds=1.0)
    assert (report["failures"], report["model_seconds"]) == ([], [0.5, 1.0, 0.5])


def test_an_error_that_all_models_have_in_common_fails_the_task(
    write: Callable[..., tuple[dict[str, Any], list[Path]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(FleetScorer, "batches", fail)
    with pytest.raises(RuntimeError, match="no such kernel"):
        write(broken_network([1.0], [1, 1]))


# The plan.


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "input"
    folder.mkdir()
    for number, rows in enumerate((100, 60)):
        table = pa.table({"key": np.arange(rows) + 1_000 * number, "x": np.zeros(rows)})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=20)
    return folder


def many(groups: dict[str, int]) -> CheckedFleet:
    names = [(group, f"{group}{number}") for group, count in groups.items() for number in range(count)]
    terms = {"model": [name for _, name in names], "column": ["x"] * len(names), "coefficient": [1.0] * len(names)}
    models = {"model": terms["model"], "group": [group for group, _ in names]}
    return CheckedFleet.of(fleet_from_coefficients(pa.table(terms), pa.table(models)))


def planned(
    files: Path,
    fleet: CheckedFleet,
    most_models: int = 10,
    rows: int | None = None,
    model_seconds: float | None = None,
) -> RunPlan:
    found = ParquetFiles.of(parquet_files(files))
    steps = plan_steps(fleet, None, most_models)
    shares = plan_shares(found.rows(["key", "x"]), 2, most_models, rows)
    output, table = StoragePath.of("/output"), Layout.of(fleet.fleet, "wide", None)
    described = input_files(found)
    return RunPlan.of(
        output, fleet, [str(files)], ["key"], table, 0.1, steps, shares, described, model_seconds=model_seconds
    )


def test_37_models_are_4_microbatches_of_at_most_10(files: Path) -> None:
    plan = planned(files, many({"spring": 37}))
    assert [len(one.models) for one in plan.microbatches] == [10, 10, 10, 7]
    assert [one.folder for one in plan.microbatches][1] == "group=spring/step=00001/rows=00000"
    assert plan.rows == 160


def test_a_step_has_models_that_read_the_same_columns() -> None:
    """M2: two sets of models with columns of their own take turns in the fleet."""
    terms = [(f"m{model}", f"{'ab'[model % 2]}{column}", 1.0) for model in range(6) for column in range(2)]
    fleet = fleet_from_coefficients(pd.DataFrame(terms, columns=["model", "column", "coefficient"]))
    steps = plan_steps(CheckedFleet.of(fleet), None, 3)
    assert [list(step.digests) for step in steps] == [["m0", "m2", "m4"], ["m1", "m3", "m5"]]


def test_drivers_share_a_run_only_if_its_outputs_would_be_the_same(files: Path) -> None:
    fleet = many({"spring": 3})
    plan = planned(files, fleet, model_seconds=2.0)
    assert planned(files, fleet, model_seconds=2.0) == plan
    assert plan.model_seconds == 2
    # With another limit other models fail.
    others = [planned(files, fleet), planned(files, fleet, model_seconds=1.0), planned(files, fleet, 2)]
    assert len({plan.run, *(other.run for other in others)}) == 4


def test_every_model_meets_every_row_once(files: Path) -> None:
    plan = planned(files, many({"spring": 5, "a/b": 3}), most_models=2, rows=60)
    assert [share.first for share in plan.shares] == [0, 3, 6]
    assert [sum(share.groups_per_task) for share in plan.shares] == [3, 3, 2]
    assert [share.rows for share in plan.shares] == [60, 60, 40]
    models = [name for one in plan.microbatches for name in one.models if one.part == 0]
    assert models == [*(f"spring{n}" for n in range(5)), *(f"a/b{n}" for n in range(3))]
    assert len({one.folder for one in plan.microbatches}) == len(plan.microbatches) == 5 * 3
    assert plan.microbatches[-1].folder == "group=a%2Fb/step=00001/rows=00002"


def test_prefixes_are_above_the_groups_and_microbatches_are_dealt_to_them(files: Path, tmp_path: Path) -> None:
    plan = replace(planned(files, many({"spring": 5, "a/b": 3}), most_models=2, rows=60), prefixes=4)
    folders = [one.folder.split("/", 1) for one in plan.microbatches]
    first = [prefix for prefix, _ in folders[:4]]
    assert len({*first}) == 4
    assert [prefix for prefix, _ in folders] == (first * 4)[: len(folders)]
    assert all(len(prefix) == len("prefix=") + 8 for prefix in first)
    assert [rest for _, rest in folders] == [one.folder for one in replace(plan, prefixes=1).microbatches]
    plan.save(StoragePath.of(tmp_path / "output"))
    assert RunPlan.load(StoragePath.of(tmp_path / "output")).microbatches == plan.microbatches


def test_a_table_without_rows_is_one_microbatch(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": pa.array([], pa.int64()), "x": pa.array([], pa.float64())}), tmp_path / "0.parquet")
    (share,) = plan_shares(ParquetRows.of(tmp_path, None), 2, 10, None)
    assert share.rows == 0


def test_a_plan_is_read_as_it_was_written_and_equal_inputs_have_one_id(files: Path, tmp_path: Path) -> None:
    plan, output = planned(files, many({"spring": 5})), StoragePath.of(tmp_path / "output")
    plan.save(output)
    loaded = RunPlan.load(output)
    assert loaded == plan
    assert loaded.microbatches == plan.microbatches
    assert planned(files, many({"spring": 5})).run == plan.run
    assert planned(files, many({"spring": 6})).run != plan.run
    assert planned(files, many({"spring": 5}), rows=60).run != plan.run


def test_a_run_is_read_from_a_ledger_that_has_it_and_resumed_with_another_one_with_a_warning(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan, target = planned(files, many({"spring": 5})), StoragePath.of(tmp_path / "output")
    own, other = tmp_path / "output" / "_run" / "ledger.db", tmp_path / "leger.db"
    with pytest.raises(LedgerError, match=rf"ledger.db does not have {plan.run} any more; resume the run"):
        ledger_of_run(None, target, plan)
    with pytest.raises(LedgerError, match=rf"leger.db does not have {plan.run}, whose own is \S*/_run/ledger.db; give"):
        ledger_of_run(other, target, plan)
    elsewhere = replace(plan, ledger="postgresql+psycopg2://host/db")
    with pytest.raises(LedgerError, match=r"leger.db does not .* whose own is postgresql\+psycopg2://host/db; give"):
        ledger_of_run(other, target, elsewhere)
    assert not own.exists()
    assert not other.exists()
    for same in (None, own, f"sqlite:///{own}"):
        opened_ledger(same, target, plan).close()
    assert caplog.messages == []
    opened_ledger(other, target, plan).close()
    opened_ledger(own, target, elsewhere).close()
    names = [re.findall(r"with the ledger \S*/(.*), and not with its own, \S*/(.*);", one) for one in caplog.messages]
    assert names == [[("leger.db", "ledger.db")], [("ledger.db", "db")]]


def test_a_folder_without_sqlite_needs_a_ledger_elsewhere(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, target = planned(files, many({"spring": 5})), StoragePath.of(tmp_path / "output")
    without_sqlite(monkeypatch, tmp_path)
    with pytest.raises(LedgerError, match=r"SQLite cannot be on .*/output; give a ledger: a local file, or postgres"):
        opened_ledger(None, target, plan)
    assert not (tmp_path / "output").exists()


def test_plans_of_other_versions_are_read_with_defaults_or_refused_by_name(files: Path, tmp_path: Path) -> None:
    plan, output = planned(files, many({"spring": 5})), StoragePath.of(tmp_path / "output")
    plan.save(output)
    file = tmp_path / "output" / "_run" / "plan.json"
    written = json.loads(file.read_text())
    older = {name: value for name, value in written.items() if name not in {"prefixes", "model_seconds"}}
    older["files"] = [{name: one[name] for name in one if name != "version"} for one in written["files"]]
    file.write_text(json.dumps(older))
    loaded = RunPlan.load(output)
    assert replace(loaded, files=plan.files) == plan
    assert len(loaded.input_of(ParquetFiles.of(parquet_files(files))).files) == 2
    for content, why in (
        (json.dumps(written | {"tiles": 3}), "TypeError.*'tiles'"),
        (json.dumps(written | {"steps": [step | {"tiles": 3} for step in written["steps"]]}), "TypeError.*'tiles'"),
        (json.dumps({name: value for name, value in written.items() if name != "run"}), "TypeError.*'run'"),
        (json.dumps({name: value for name, value in written.items() if name != "shares"}), "KeyError: 'shares'"),
        (json.dumps(written | {"format": 2}), "its format is 2, not 1"),
        (file.read_text()[:-9], "JSONDecodeError"),
        ("[]", "TypeError"),
    ):
        file.write_text(content)
        with pytest.raises(ScoringError, match=rf"plan\.json was written by another version .*{why}"):
            RunPlan.load(output)


def test_models_and_files_that_have_changed_are_named(files: Path) -> None:
    plan = planned(files, many({"spring": 3}))
    other = many({"spring": 2})
    other = replace(other, digests={**other.digests, "spring0": "another"})
    with pytest.raises(ScoringError, match=r"models have changed since fleet-\w+ began: 'spring0', 'spring2';"):
        plan.check_fleet(other)
    plan.check_fleet(many({"spring": 3}))
    pq.write_table(pa.table({"key": [1], "x": [1.0]}), files / "9.parquet")
    assert len(plan.input_of(ParquetFiles.of(parquet_files(files))).files) == 2
    pq.write_table(pa.table({"key": [1], "x": [1.0]}), files / "1.parquet")
    (files / "0.parquet").unlink()
    with pytest.raises(ScoringError, match=r"files of the input were removed, or written again, .*0.parquet', '"):
        plan.input_of(ParquetFiles.of(parquet_files(files)))


def test_a_file_that_was_written_again_with_the_same_size_and_rows_is_named(files: Path) -> None:
    plan, file = planned(files, many({"spring": 3})), files / "1.parquet"
    written, content = file.stat(), pq.read_table(file)
    shuffled = content.set_column(0, "key", pc.add(content["key"], 1))
    pq.write_table(shuffled, file, row_group_size=20)
    assert file.stat().st_size == written.st_size
    with pytest.raises(ScoringError, match=r"since fleet-\w+ began: '\S*1.parquet'; put them back .* \(cp -p\)"):
        plan.input_of(ParquetFiles.of(parquet_files(files)))
    pq.write_table(content, file, row_group_size=20)
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert len(plan.input_of(ParquetFiles.of(parquet_files(files))).files) == 2


@pytest.mark.parametrize("manifest", [None, b"", b"{", b"{\xff}", b'{"files": [{"path": "part", "bytes": 9}]}'])
def test_a_microbatch_without_a_whole_manifest_is_not_published(tmp_path: Path, manifest: bytes | None) -> None:
    (tmp_path / "part").write_bytes(b"PAR1")
    if manifest is not None:
        (tmp_path / "_manifest.json").write_bytes(manifest)
    assert read_manifest(StoragePath.of(tmp_path)) is None
    (tmp_path / "_manifest.json").write_bytes(b'{"files": [{"path": "part", "bytes": 4}]}')
    assert read_manifest(StoragePath.of(tmp_path)) is not None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rows: plan_steps(many({"spring": 1}), [], 10), "groups is empty"),
        (lambda rows: plan_steps(many({"spring": 1}), ["sprign"], 10), "has no group 'sprign'.*did you mean 'spring'"),
        (lambda rows: plan_steps(many({"spring": 1}), None, 0), "models_per_microbatch 0 is not above 0"),
        (lambda rows: plan_shares(rows, 2, 10, 0), "rows_per_microbatch 0 is not above 0"),
    ],
)
def test_sizes_and_groups_that_cannot_be_are_refused(
    files: Path, call: Callable[[ParquetRows], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(ParquetRows.of(files, None))
