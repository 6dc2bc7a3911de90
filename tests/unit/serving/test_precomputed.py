"""S19: rows that were written by key come back as they were, from one file that is replaced while others read it."""

import contextlib
import itertools
import logging
import os
import re
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.serving.precomputed.precomputation import encoded_batches, precompute
from mirrorspark.serving.precomputed.store import PrecomputedScores
from mirrorspark.serving.precomputed.store_file import DamagedStoreError, StoreError
from mirrorspark.storage.paths import StorageError
from tests.unit.storage.writes import without_renames, without_sqlite

LISTS = pa.table(
    {
        "user": pa.array([7, -1, 2**62]),
        "candidates": pa.array([["m1", "m2"], [], None]),
        "scores": pa.array([[0.1, float("nan")], [], [float("-inf"), None]], pa.list_(pa.float32())),
        "best": pa.array([{"label": "a", "ids": [1]}, {"label": None, "ids": None}, None]),
        "visits": pa.array([2**53 + 1, None, -3]),
        "rating": pa.array([1e-9, 5.0, None]),
        "is_new": pa.array([True, False, None]),
        "name": pa.array(['Ünï "q"\n', "", None]),
        "nothing": pa.nulls(3),
        "model_version": pa.array(["movies/4", "movies/3", "movies/3"]),
    }
)
FALLBACK = {"items": ["m1"], "score": 0.5}
MAPS = pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int32()))


def written(folder: Path, table: pa.Table, **knobs: Any) -> Path:
    """Write a store of ``table``, by default keyed by its first column, and return its path."""
    pq.write_table(table, folder / "rows.parquet")
    precompute(folder / "rows.parquet", folder / "rows.db", **{"key": table.column_names[0]} | knobs)
    return folder / "rows.db"


def small(value: float = 0.5, keys: tuple[Any, ...] = (1, 2)) -> pa.Table:
    return pa.table({"id": list(keys), "items": [["a"]] * len(keys), "score": [value] * len(keys)})


def await_score(scores: PrecomputedScores, expected: float) -> None:
    """Return once key 1 has the expected score: a replacement is opened in the background."""
    deadline = time.monotonic() + 30
    while (row := scores.get(1)) is None or row["score"] != expected:
        assert time.monotonic() < deadline, f"the store with the score {expected} is not in use: {scores.refused}"


def test_every_value_comes_back_as_it_was_and_of_its_python_type(tmp_path: Path) -> None:
    with PrecomputedScores.open(written(tmp_path, LISTS)) as scores:
        for expected in LISTS.to_pylist():
            found = scores.get(expected["user"])
            # Unlike ==, it distinguishes 5 from 5.0, and finds NaN equal to itself.
            assert repr(found) == repr(expected)
            assert found is not None
            assert not found.is_fallback


@pytest.mark.parametrize("has_renames", [True, False])
def test_where_sqlite_cannot_write_a_store_is_copied_from_a_local_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_renames: bool
) -> None:
    (tmp_path / "volume").mkdir()
    with monkeypatch.context() as patched:
        without_sqlite(patched, tmp_path / "volume")
        if not has_renames:
            without_renames(patched)
        for mode, score in (("error", 0.5), ("overwrite", 0.25)):
            store = written(tmp_path / "volume", small(score), mode=mode)
    with PrecomputedScores.open(store) as scores:
        assert scores.get(1) == {"id": 1, "items": ["a"], "score": 0.25}
    assert {file.name for file in store.parent.iterdir()} == {"rows.db", "rows.parquet"}


def test_a_store_says_what_it_holds(tmp_path: Path) -> None:
    with PrecomputedScores.open(written(tmp_path, LISTS)) as scores:
        told = scores.metadata
    assert (told.rows, told.key, told.key_type) == (3, "user", "int64")
    assert told.model_versions == ("movies/3", "movies/4")
    assert list(told.columns) == LISTS.column_names
    assert told.columns["is_new"] == "bool"
    assert datetime.fromisoformat(told.created).tzinfo is not None
    with PrecomputedScores.open(written(tmp_path, small(), mode="overwrite")) as scores:
        assert scores.metadata.model_versions == ()


def test_texts_are_keys_wherever_their_column_stands(tmp_path: Path) -> None:
    keys = ["ü/7", "", "it's", "7"]
    table = pa.table({"n": range(4), "key": keys})
    with PrecomputedScores.open(written(tmp_path, table, key="key")) as scores:
        assert [scores.get(key) for key in keys] == [{"key": key, "n": number} for number, key in enumerate(keys)]
        assert scores.get("It's") is None
        assert scores.metadata.key_type == "string"


def test_small_integers_and_partition_folders_are_keys(tmp_path: Path) -> None:
    for day in (1, 2):
        (tmp_path / f"in/day={day}").mkdir(parents=True)
        pq.write_table(pa.table({"n": pa.array([day * 10], pa.int16())}), tmp_path / f"in/day={day}/part.parquet")
    told = precompute([tmp_path / "in"], tmp_path / "rows.db", key="day")
    with PrecomputedScores.open(tmp_path / "rows.db") as scores:
        assert scores.get_many([2, 1]) == [{"day": 2, "n": 20}, {"day": 1, "n": 10}]
        assert scores.metadata == told
    precompute(tmp_path / "in", tmp_path / "rows.db", key="n", mode="overwrite")
    with PrecomputedScores.open(tmp_path / "rows.db") as scores:
        assert scores.get(20) == {"n": 20, "day": 2}


def test_an_unknown_key_has_the_fallback_which_says_that_it_is_one(tmp_path: Path) -> None:
    with PrecomputedScores.open(written(tmp_path, small(), fallback=FALLBACK)) as scores:
        known, unknown, huge = scores.get_many([1, 99, 2**80])
        assert known is not None
        assert unknown is not None
        assert (known.is_fallback, unknown.is_fallback) == (False, True)
        assert unknown == {"id": 99, **FALLBACK}
        assert huge == {"id": 2**80, **FALLBACK}
        # A caller that changes its row does not affect others.
        unknown["items"].append("mine")
        assert scores.get(99) == {"id": 99, **FALLBACK}


def test_without_a_fallback_an_unknown_key_has_no_row(tmp_path: Path) -> None:
    with PrecomputedScores.open(written(tmp_path, small())) as scores:
        assert scores.get(99) is None
        assert scores.get_many([2, 99]) == [{"id": 2, "items": ["a"], "score": 0.5}, None]
        assert scores.get(np.int64(2)) == scores.get(2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("keys", "asked"), [((1, 2), "1"), ((1, 2), 1.0), (("1", "2"), 1)])
def test_a_key_of_another_type_is_refused(tmp_path: Path, keys: tuple[Any, ...], asked: Any) -> None:
    with (
        PrecomputedScores.open(written(tmp_path, small(keys=keys))) as scores,
        pytest.raises(TypeError, match="and column 'id' of the store is"),
    ):
        scores.get(asked)


@pytest.mark.parametrize(
    ("table", "knobs", "message"),
    [
        (small(keys=(1, 2, 1)), {}, r"the key 1 of column 'id' is there twice"),
        (small(keys=("a", "b", "b")), {}, r"the key 'b' of column 'id' is there twice"),
        (small(keys=(1, None)), {}, r"the key 'id' is null in a row with \[\[\"a\"\],0.5\]"),
        (small(), {"key": "user"}, r"no column 'user' to find rows by; it has \['id', 'items', 'score'\]"),
        (small().select(["id"]), {}, "no column but the key 'id'"),
        (small().slice(0, 0), {}, "the table has no rows"),
        (small(), {"key": "score"}, "the key 'score' has type double"),
        (small().set_column(0, "id", pa.array([1, 2], pa.uint64())), {}, "the key 'id' has type uint64"),
        (small().append_column("at", pa.array([0, 1], pa.timestamp("us"))), {}, "column 'at' has type timestamp"),
        (small().append_column("raw", pa.array([[b"x"], []])), {}, "column 'raw' has type list"),
        (small().append_column("map", MAPS), {}, "column 'map' has type map"),
        (small(), {"fallback": {"items": []}}, r"the fallback has the columns \['items'\], and rows have"),
        (small(), {"fallback": {"items": ["a"], "score": "high"}}, "the fallback is none of the table's rows"),
        (small(), {"mode": "append"}, "mode 'append' is none of a store"),
    ],
)
def test_an_invalid_store_is_refused_and_leaves_no_files(
    tmp_path: Path, table: pa.Table, knobs: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        written(tmp_path, table, **knobs)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_a_store_that_is_there_is_left_alone_unless_told_otherwise(tmp_path: Path) -> None:
    store = written(tmp_path, small(1.0))
    content = store.read_bytes()
    with pytest.raises(FileExistsError, match="exists already; use mode 'overwrite'"):
        written(tmp_path, small(2.0))
    with pytest.raises(StoreError, match="there twice"):
        written(tmp_path, small(keys=(1, 1)), mode="overwrite")
    assert store.read_bytes() == content
    (tmp_path / "link.db").symlink_to(store)
    pq.write_table(small(3.0), tmp_path / "rows.parquet")
    precompute(tmp_path / "rows.parquet", tmp_path / "link.db", key="id", mode="overwrite")
    assert (tmp_path / "link.db").is_symlink()
    with PrecomputedScores.open(store) as scores:
        assert scores.get(1) == {"id": 1, "items": ["a"], "score": 3.0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.db", "rows.db", "rows.parquet"]


def test_a_store_is_a_file_on_a_local_disk(tmp_path: Path) -> None:
    pq.write_table(small(), tmp_path / "rows.parquet")
    with pytest.raises(StorageError, match="not on a local disk"):
        precompute(tmp_path / "rows.parquet", "s3://bucket/rows.db", key="id")
    with pytest.raises(StoreError, match="is a folder"):
        precompute(tmp_path / "rows.parquet", tmp_path, key="id", mode="overwrite")
    told = precompute(tmp_path / "rows.parquet", tmp_path / "new" / "rows.db", key="id")
    assert told.rows == 2


def test_a_new_store_is_seen_a_second_after_the_last_look_or_when_told(tmp_path: Path) -> None:
    store, now = written(tmp_path, small(1.0)), [0.0]
    with PrecomputedScores(store, clock=lambda: now[0]) as scores:
        written(tmp_path, small(2.0), mode="overwrite")
        now[0] = 0.9
        assert scores.get(1) == {"id": 1, "items": ["a"], "score": 1.0}
        now[0] = 1.0
        await_score(scores, 2.0)
        written(tmp_path, small(3.0, keys=("a",)), mode="overwrite")
        scores.reload()
        assert scores.get("a") == {"id": "a", "items": ["a"], "score": 3.0}


def test_a_store_stays_open_where_no_new_one_can_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, now = written(tmp_path, small(1.0)), [0.0]
    with PrecomputedScores(store, clock=lambda: now[0]) as scores:
        for spoil, error in (
            (lambda: (tmp_path / "text").write_text("no store") and (tmp_path / "text").rename(store), StoreError),
            (store.unlink, FileNotFoundError),
        ):
            spoil()
            now[0] += 1.0
            caplog.clear()
            deadline = time.monotonic() + 30
            with caplog.at_level(logging.WARNING, "mirrorspark.serving.precomputed.store"):
                while "the open store stays in use" not in caplog.text:
                    assert scores.get(1) == {"id": 1, "items": ["a"], "score": 1.0}
                    assert time.monotonic() < deadline
            with pytest.raises(error, match=re.escape(scores.refused or "nothing was refused")):
                scores.reload()
        assert scores.get(2) is not None
        written(tmp_path, small(2.0), mode="overwrite")
        now[0] += 1.0
        await_score(scores, 2.0)
        assert scores.refused is None


def test_a_store_with_any_changed_byte_is_refused_and_the_open_one_answers(tmp_path: Path) -> None:
    """S19, T6: every byte counts, the unused ones of SQLite's pages too."""
    store, now = written(tmp_path, small(1.0)), [0.0]
    sound = store.read_bytes()
    with PrecomputedScores(store, clock=lambda: now[0]) as scores:
        damaged = tmp_path / "damaged.db"
        for place in np.random.default_rng(1).choice(len(sound), 200, replace=False):
            damaged.write_bytes(sound[:place] + bytes([sound[place] ^ 0x40]) + sound[place + 1 :])
            with pytest.raises(StoreError):
                PrecomputedScores.open(damaged)
        damaged.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        damaged.rename(store)
        with pytest.raises(DamagedStoreError, match=r"rows\.db is damaged: its checksum does not match"):
            scores.reload()
        assert scores.get(1) == {"id": 1, "items": ["a"], "score": 1.0}
        scores.check()


@pytest.mark.parametrize("keys", [(1, 2), ("1", "2")])
def test_a_row_that_changes_while_its_store_is_open_is_never_answered(tmp_path: Path, keys: tuple[Any, ...]) -> None:
    """S19, T6."""
    store = written(tmp_path, small(0.125, keys=keys))
    with PrecomputedScores.open(store) as scores:
        content = store.read_bytes()
        assert content.count(b"0.125") == 2
        with store.open("r+b") as file:
            file.seek(content.index(b"0.125"))
            file.write(b"0.625")
        found = []
        for key in keys:
            with contextlib.suppress(DamagedStoreError):
                found.append(scores.get(key))
        assert [row["score"] for row in found if row] == [0.125]
        with pytest.raises(DamagedStoreError, match="the checksum of the row of key"):
            scores.check()
        with pytest.raises(FileExistsError):
            written(tmp_path, small(0.125, keys=keys))
        written(tmp_path, small(0.25, keys=keys), mode="overwrite")
        scores.reload()
        scores.check()


@pytest.mark.parametrize("fallback", [None, FALLBACK])
def test_a_row_that_damage_hides_is_an_error_once_the_file_is_verified(
    tmp_path: Path, fallback: dict[str, Any] | None
) -> None:
    """S19, T6: a changed key is not found, so that its row would be unknown for ever."""
    keys = tuple(f"user-{number:04d}" for number in range(500))
    store, now = written(tmp_path, small(0.125, keys=keys), fallback=fallback), [0.0]
    with PrecomputedScores(store, clock=lambda: now[0]) as scores:
        now[0] = 60.0
        await_verification(scores)
        damage(store, b"user-0123", b"user-012.")
        assert scores.get("user-0123") == (None if fallback is None else {"id": "user-0123", **fallback})
        now[0] = 119.0
        assert scores.get("user-0124") == {"id": "user-0124", "items": ["a"], "score": 0.125}
        await_verification(scores)
        scores.check()  # a minute has not gone by
        now[0] = 120.0
        await_verification(scores)
        with pytest.raises(DamagedStoreError, match="its checksum does not match"):
            scores.get("nobody")
        with pytest.raises(DamagedStoreError, match="its checksum does not match"):
            scores.check()
        assert scores.get("user-0124") == {"id": "user-0124", "items": ["a"], "score": 0.125}
        written(tmp_path, small(0.25, keys=keys), mode="overwrite", fallback=fallback)
        scores.reload()
        scores.check()
        assert scores.get("user-0123") == {"id": "user-0123", "items": ["a"], "score": 0.25}


def damage(store: Path, old: bytes, new: bytes) -> None:
    """Change bytes as a disk does: without a new time of writing."""
    before = store.stat()
    content = store.read_bytes()
    assert content.count(old) == 1
    with store.open("r+b") as file:
        file.seek(content.index(old))
        file.write(new)
    os.utime(store, ns=(before.st_atime_ns, before.st_mtime_ns))


def await_verification(scores: PrecomputedScores) -> None:
    """Look up an unknown key, and return once a verification that this began has ended."""
    before = set(threading.enumerate())
    scores.get("nobody")
    for thread in set(threading.enumerate()) - before:
        thread.join(30)


def test_an_invalid_store_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no store of rows at .*nothing\.db"):
        PrecomputedScores.open(tmp_path / "nothing.db")
    (tmp_path / "text.db").write_text("no store")
    with pytest.raises(StoreError, match=r"text\.db is not a store of rows: file is not a database"):
        PrecomputedScores.open(tmp_path / "text.db")
    store = written(tmp_path, small())
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("UPDATE metadata SET value = '1' WHERE name = 'format'")
        connection.commit()
    with pytest.raises(StoreError, match="it has format 1, and this version reads 2"):
        PrecomputedScores.open(store)


def test_threads_find_whole_stores_while_these_take_each_others_place(tmp_path: Path) -> None:
    store, is_over = written(tmp_path, small(0.0)), threading.Event()
    # Each time that somebody asks, the next look is due.
    clock = itertools.count(0, 10).__next__

    def read(scores: PrecomputedScores) -> int:
        asked = 0
        while not is_over.is_set():
            first, second = scores.get_many([1, 2])
            assert first is not None
            assert second is not None
            assert first["score"] == second["score"]
            asked += 1
        return asked

    with PrecomputedScores(store, clock=clock) as scores, ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read, scores) for _ in range(4)]
        try:
            for value in range(1, 6):
                written(tmp_path, small(float(value)), mode="overwrite")
        finally:
            is_over.set()
        assert all(reader.result() > 0 for reader in readers)
        await_score(scores, 5.0)


def test_a_thousand_rows_are_objects_at_a_time() -> None:
    taken: list[int] = []

    def batches() -> Any:
        for number in range(2):
            taken.append(number)
            yield pa.record_batch({"id": pa.array(range(1500)), "n": pa.array(range(1500))})

    found = encoded_batches(batches(), "id")
    sizes = [next(found).num_rows, next(found).num_rows]
    assert (sizes, taken) == ([1024, 476], [0])
    assert sum(batch.num_rows for batch in found) == 1500


def test_rows_of_several_batches_are_all_there(tmp_path: Path) -> None:
    rows = 70_000
    keys = np.random.default_rng(1).permutation(rows)
    store = written(tmp_path, pa.table({"id": keys, "double": keys * 2}))
    with PrecomputedScores.open(store) as scores:
        assert scores.metadata.rows == rows
        found = scores.get_many(range(rows))
        assert [row["double"] for row in found if row is not None] == list(range(0, 2 * rows, 2))
