"""S1: a process loads a model once, keeps as there is room for, and refuses files that were changed."""

import shutil
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from mirrorspark.scoring.model.loading.cache import ModelCache, ModelChangedError, load_once
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.stored.digest import folder_digest


def fake_model() -> LoadedModel:
    return cast(LoadedModel, object())


def test_the_cache_loads_a_digest_once() -> None:
    """S1."""
    cache = ModelCache()
    first = cache.get("a", 1, fake_model)
    assert cache.get("a", 1, fake_model) is first
    assert cache.get("b", 1, fake_model) is not first
    assert cache.loads == 2


def test_the_cache_drops_the_least_recently_used_beyond_its_size() -> None:
    """S1: bounded LRU."""
    cache = ModelCache(capacity_bytes=10)
    for digest in ("a", "b", "a", "c"):
        cache.get(digest, 5, fake_model)
    assert [digest in cache for digest in "abc"] == [True, False, True]
    cache.get("larger than all", 50, fake_model)
    assert [digest in cache for digest in ("a", "c", "larger than all")] == [False, False, True]


def test_evicted_entries_take_no_space() -> None:
    """S1, S18: however many models come and go."""
    cache = ModelCache(capacity_bytes=10)
    for digest in "abcdef":
        cache.get(digest, 5, fake_model)
    assert [digest for digest in "abcdef" if digest in cache] == ["e", "f"]
    assert (cache.loads, cache.drops) == (6, 4)


def test_threads_that_ask_at_once_get_one_load() -> None:
    """S1: the second thread waits for the model that the first one loads."""
    cache = ModelCache()
    barrier = threading.Barrier(4, timeout=60)
    models: list[Any] = []

    def ask() -> None:
        barrier.wait()
        models.append(cache.get("a", 1, fake_model))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(models) == 4
    assert len(set(map(id, models))) == 1
    assert cache.loads == 1


def test_a_load_that_fails_leaves_nothing_behind() -> None:
    cache = ModelCache()

    def fail() -> LoadedModel:
        raise ModelChangedError("no")

    with pytest.raises(ModelChangedError):
        cache.get("a", 1, fail)
    assert cache.loads == 0
    assert cache.get("a", 1, fake_model)


def test_load_once_reports_its_load_and_refuses_changed_files(flights_model: Path, tmp_path: Path) -> None:
    cache = ModelCache()
    loads: list[LoadedModel] = []
    copy = Path(shutil.copytree(flights_model, tmp_path / "copy"))
    digest = folder_digest(copy)
    models = [load_once(copy, digest, on_load=loads.append, cache=cache) for _ in range(2)]
    assert models[0] is models[1]
    assert loads == models[:1]
    (copy / "added").touch()
    with pytest.raises(ModelChangedError, match="resolve the model's URI again"):
        load_once(copy, digest, cache=ModelCache())
