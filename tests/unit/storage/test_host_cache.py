"""One cache for all processes of a machine: filled once, kept while in use, evicted to make room, whoever dies."""

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorspark.storage import host_cache
from mirrorspark.storage.host_cache import Entry, HostCache, HostCacheError, HostCacheFullError, Lease

REPOSITORY = Path(__file__).resolve().parents[3]
BYTES = 1000

# Fills the given entries and lives until its input ends. One called "never" is never whole.
PROGRAM = """
import sys
from pathlib import Path

from mirrorspark.storage.host_cache import HostCache
from tests.unit.storage.test_host_cache import fill, key

folder, *names = sys.argv[1:]
cache = HostCache(Path(folder), 10**9)
leases = [fill(cache, name) for name in names if name != "never"]
if "never" in names:
    with cache.filling(key("never"), "never") as arriving:
        (arriving / "content").write_text("n")
        print("ready", flush=True)
        sys.stdin.read()
print("ready", flush=True)
sys.stdin.read()
"""


def key(name: str) -> str:
    return f"{name}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def fill(cache: HostCache, name: str, content: str | None = None) -> Lease:
    """Have an entry of `BYTES` bytes, as users do."""
    lease = cache.lease(key(name))
    if lease is None:
        with cache.filling(key(name), name) as arriving:
            lease = cache.lease(key(name))
            if lease is None:
                (arriving / "content").write_text((content or name)[0] * BYTES)
                lease = cache.publish(key(name), arriving)
    return lease


@pytest.fixture
def cache(tmp_path: Path) -> HostCache:
    return HostCache(tmp_path / "cache", 3 * BYTES)


def names(cache: HostCache) -> str:
    """Return the entries, the longest unused first, half-filled ones in capitals."""
    return "".join(entry.key[0] if entry.is_whole else entry.key[0].upper() for entry in cache.entries())


def used_at(cache: HostCache, name: str, seconds: int) -> None:
    os.utime(cache.path(key(name)), (seconds, seconds))


@contextmanager
def other_process(cache: HostCache, *filled: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", PROGRAM, str(cache.folder), *filled]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def test_an_entry_is_whole_where_its_key_says_and_its_owner_alone_may_read_it(cache: HostCache) -> None:
    lease = fill(cache, "a")
    assert lease.path == cache.path(key("a"))
    assert (lease.path / "content").read_text() == "a" * BYTES
    (entry,) = cache.entries()
    assert (entry.path, entry.key, entry.bytes, entry.is_whole) == (lease.path, key("a"), BYTES, True)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert list((cache.folder / "arriving").iterdir()) == []


@pytest.mark.parametrize(
    "bad", ["../a-0123456789ab", "a/b-0123456789ab", "..", ".a-0123456789ab", "notes", "", "a" * 300]
)
def test_a_key_that_could_leave_the_folder_or_has_no_digest_is_refused(cache: HostCache, bad: str) -> None:
    with pytest.raises(ValueError, match="cannot name an entry"):
        cache.lease(bad)
    with pytest.raises(ValueError, match="cannot name an entry"), cache.filling(bad, "bad"):
        pass
    assert not cache.folder.exists()


def test_concurrent_requests_fill_an_entry_once(cache: HostCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are held by open files, so threads stand for processes."""
    published: list[str] = []
    publish = HostCache.publish

    def counted(self: HostCache, key: str, folder: Path) -> Lease:
        published.append(key)
        return publish(self, key, folder)

    monkeypatch.setattr(HostCache, "publish", counted)
    with ThreadPoolExecutor(8) as threads:
        leases = list(threads.map(lambda _: fill(cache, "a"), range(8)))
    assert len({lease.path for lease in leases}) == len(published) == 1


def test_the_longest_unused_makes_room_and_what_is_in_use_stays(cache: HostCache) -> None:
    held = fill(cache, "a")
    for name in "bc":
        fill(cache, name).release()
    for seconds, name in enumerate("abc"):
        used_at(cache, name, seconds)
    del_ = fill(cache, "d")
    assert names(cache) == "acd", "a is the longest unused, but in use"
    held.release()
    del del_
    fill(cache, "e")
    assert names(cache) == "cde"


def test_a_lease_ends_with_its_last_holder(cache: HostCache) -> None:
    first, second = fill(cache, "a"), fill(cache, "a")
    (entry,) = cache.entries()
    first.release()
    first.release()
    assert not cache.evict(entry)
    del second
    assert cache.evict(entry)
    assert not cache.evict(entry), "it was removed already"
    assert cache.lease(key("a")) is None


def test_an_entry_larger_than_all_room_is_kept_while_it_is_used(cache: HostCache) -> None:
    none = replace(cache, max_bytes=0)
    lease = fill(none, "a")
    fill(none, "b").release()
    assert names(none) == "ab"
    lease.release()
    fill(none, "c")
    assert names(none) == "c"


def test_without_a_limit_a_share_of_the_disk_is_the_limit(cache: HostCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(20 * BYTES, 0, 20 * BYTES))  # type: ignore[attr-defined]
    share = replace(cache, max_bytes=None, disk_parts=10)
    for name in "abc":
        fill(share, name).release()
    assert len(names(share)) == 2


def test_an_entry_too_large_beside_those_in_use_is_refused_with_the_space_left(cache: HostCache) -> None:
    _held = fill(cache, "a")
    fill(cache, "b").release()
    with cache.filling(key("c"), "c") as arriving:
        with pytest.raises(
            HostCacheFullError, match=rf"c has {3 * BYTES} bytes; .* may take {3 * BYTES}, of which {BYTES} are in use"
        ):
            cache.reserve(arriving, "c", 3 * BYTES)
        cache.reserve(arriving, "c", 2 * BYTES)
    assert names(cache) == "a"


def test_an_entry_larger_than_the_free_disk_is_refused(cache: HostCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 5))  # type: ignore[attr-defined]
    with (
        cache.filling(key("c"), "c") as arriving,
        pytest.raises(HostCacheFullError, match=r"c has 6 bytes, the disk .* 5 free"),
    ):
        cache.reserve(arriving, "c", 6)


def test_reserved_space_counts_before_the_file_arrives(cache: HostCache) -> None:
    with cache.filling(key("a"), "a") as first, cache.filling(key("b"), "b") as second:
        cache.reserve(first, "a", 2 * BYTES)
        with pytest.raises(HostCacheFullError, match=f"of which {2 * BYTES} are in use"):
            cache.reserve(second, "b", 2 * BYTES)


def break_off(cache: HostCache, name: str) -> None:
    with cache.filling(key(name), name) as arriving:
        cache.reserve(arriving, name, BYTES)
        (arriving / "content").write_text(name * BYTES)
        raise ConnectionResetError


def test_a_fill_that_fails_leaves_nothing_unless_the_cache_continues(cache: HostCache) -> None:
    for continues in (False, True):
        with pytest.raises(ConnectionResetError):
            break_off(replace(cache, continues=continues), "a")
        assert names(cache) == ("A" if continues else "")
    with replace(cache, continues=True).filling(key("a"), "a") as arriving:
        assert (arriving / "content").exists()
    fill(cache, "b")
    assert names(cache) == "b", "a cache that does not continue has no use for it"


def test_half_filled_entries_that_can_be_continued_make_room_like_others(cache: HostCache) -> None:
    cache = replace(cache, continues=True)
    with pytest.raises(ConnectionResetError):
        break_off(cache, "a")
    for name in "bc":
        fill(cache, name).release()
    assert names(cache) == "Abc"
    fill(cache, "d").release()
    assert names(cache) == "bcd"


def test_a_damaged_entry_is_replaced_and_another_is_kept(cache: HostCache) -> None:
    held = fill(cache, "a")
    for content, is_damaged in (("x", False), ("y", True)):
        with cache.filling(key("a"), "a") as arriving:
            (arriving / "content").write_text(content)
            cache.publish(key("a"), arriving, replace=is_damaged)
        assert (held.path / "content").read_text()[0] == ("y" if is_damaged else "a")
    assert sum(entry.bytes for entry in cache.entries()) == 1


def test_strangers_in_the_folder_are_left_alone(cache: HostCache) -> None:
    fill(cache, "a").release()
    strangers = [cache.folder / "entries" / name for name in (".nfs0000", "lost+found", "notes-12")]
    strangers.append(cache.folder / "processes" / "file")
    for stranger in strangers:
        stranger.mkdir() if stranger.name != "file" else stranger.touch()
    fill(replace(cache, max_bytes=0), "b")
    assert names(cache) == "b"
    assert all(stranger.exists() for stranger in strangers)


@pytest.mark.parametrize("content", [b"\0" * 4096, b"\xff{", b""])
def test_damaged_files_of_the_cache_block_nothing(cache: HostCache, content: bytes) -> None:
    """A power cut leaves zeros, or the beginning of a file."""
    fill(cache, "a").release()
    with pytest.raises(ConnectionResetError):
        break_off(replace(cache, continues=True), "b")
    (cache.folder / "arriving" / f"{key('b')}.bytes").touch()
    damaged = [path for path in cache.folder.rglob("*") if path.is_file() and path.parent.name in ("locks", "arriving")]
    damaged += (cache.folder / "processes").glob("*/*")
    assert len(damaged) >= 4
    for path in damaged:
        path.write_bytes(content)
    assert names(cache) == "aB"
    for name in "bcd":
        fill(cache, name).release()
    assert len(names(cache)) == 3


def test_a_folder_that_was_emptied_is_filled_again(cache: HostCache) -> None:
    first = fill(cache, "a")
    shutil.rmtree(cache.folder)
    second = fill(cache, "a")
    first.release()
    fill(replace(cache, max_bytes=0), "b")
    assert names(cache) == "ab", "the second lease holds"
    second.release()


def test_a_folder_that_cannot_be_made_is_named_with_the_number_of_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostCacheError, match=r"Not a directory: '.*/file/cache/") as failure:
        HostCache(tmp_path / "file" / "cache").check()
    assert failure.value.errno is not None


def test_a_waiting_process_logs_once_and_follows_the_others_progress(
    cache: HostCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host_cache, "_LOOK_SECONDS", 0.001)
    caplog.set_level(logging.INFO)
    heard: list[int] = []
    hears = threading.Condition()

    def hear(size: int) -> None:
        with hears:
            heard.append(size)
            hears.notify()

    def wait() -> None:
        with cache.filling(key("a"), "model a", hear):
            assert cache.lease(key("a")) is not None

    with ThreadPoolExecutor(1) as threads:
        with cache.filling(key("a"), "model a") as arriving:
            waiting = threads.submit(wait)
            for size in (10, 20):
                (arriving / "content").write_text("a" * size)
                with hears:
                    assert hears.wait_for(lambda size=size: heard[-1:] == [size], 60)
            cache.publish(key("a"), arriving)
        waiting.result()
    assert heard == sorted(set(heard))
    assert caplog.text.count("waiting for another process to download model a") == 1


@pytest.mark.process
def test_an_entry_in_use_stays_until_its_process_ends(cache: HostCache) -> None:
    none = replace(cache, max_bytes=0)
    with other_process(cache, "a", "b") as process:
        fill(none, "c").release()
        assert sorted(names(cache)) == ["a", "b", "c"]
        process.kill()
        process.wait()
    fill(none, "d")
    assert names(cache) == "d"
    assert len(list((cache.folder / "processes").iterdir())) == 1, "the dead one's marks were removed"


@pytest.mark.process
def test_an_entry_half_filled_by_a_killed_process_is_removed_and_blocks_nobody(cache: HostCache) -> None:
    with other_process(cache, "never") as process:
        fill(cache, "a")
        assert sorted(names(cache)) == ["N", "a"], "it lives"
        process.kill()
        process.wait()
    fill(cache, "b")
    assert names(cache) == "ab"
    fill(cache, "never")
    assert names(cache) == "abn"


@pytest.mark.process
def test_a_process_of_another_host_counts_as_living(cache: HostCache) -> None:
    """Its locks may not be seen here, on a network disk."""
    with other_process(cache, "a"):
        (folder,) = (cache.folder / "processes").iterdir()
    # A container's host name is its own, and locks of the same kernel are seen.
    container = folder.with_name(f"container+{host_cache._kernel()}-0")
    for other in (container, folder.with_name("elsewhere-0"), folder.with_name("elsewhere+0-0")):
        shutil.copytree(folder, other)
    fill(replace(cache, max_bytes=0), "b")
    assert names(cache) == "ab"
    assert len(list(folder.parent.glob("elsewhere*"))) == 2
    assert not folder.exists()
    assert not container.exists()


@pytest.mark.process
def test_a_forked_child_keeps_what_it_inherits(cache: HostCache) -> None:
    """Spark's Python daemon forks its workers in this way."""
    program = """
import os, sys
from pathlib import Path
from mirrorspark.storage.host_cache import HostCache
from tests.unit.storage.test_host_cache import fill
lease = fill(HostCache(Path(sys.argv[1]), 10**9), "a")
if os.fork():
    os._exit(0)
print("ready", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, str(cache.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.wait()
        fill(replace(cache, max_bytes=0), "b")
        assert names(cache) == "ab"


def test_a_lock_is_free_though_a_child_has_the_same_open_file(
    cache: HostCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[int] = []
    opened = os.open

    def open_and_copy(*arguments: object, **options: object) -> int:
        descriptor = opened(*arguments, **options)  # type: ignore[arg-type]
        copies.append(os.dup(descriptor))  # as a fork leaves it
        return descriptor

    with monkeypatch.context() as forking:
        forking.setattr(os, "open", open_and_copy)
        cache.check()
    with (cache.folder / "locks" / "moment").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for copy in copies:
        os.close(copy)


def test_entries_vanish_while_they_are_listed(cache: HostCache, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(cache, "a").release()
    listed = host_cache._entry

    def vanishing(item: "os.DirEntry[str]", *, is_whole: bool) -> Entry:
        shutil.rmtree(item.path)
        return listed(item, is_whole=is_whole)

    monkeypatch.setattr(host_cache, "_entry", vanishing)
    assert cache.entries() == []
