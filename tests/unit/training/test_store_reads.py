"""T5: the driver's reads of a store that fails; a store that hangs is among the tests of the supervisor."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.callbacks.checkpoints.commit import CheckpointDamagedError
from mirrorspark.storage.paths import StorageError
from mirrorspark.training.driver import store_reads
from mirrorspark.training.driver.store_reads import StoreReader
from mirrorspark.training.protocol.messages.stop import StopSignal


def reader() -> StoreReader:
    return StoreReader(60.0, StopSignal(), lambda event: None)


def test_a_store_that_fails_behind_a_training_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training is done; its run must not fail for some seconds without a store."""
    monkeypatch.setattr(store_reads, "_RETRY_PAUSE_SECONDS", 0.001)
    answers: Iterator[Any] = iter(
        [OSError("SLOW_DOWN"), CheckpointDamagedError(Path("c"), "there is none"), StorageError("no"), "best"]
    )

    def read(beat: Callable[[], None]) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert reader().read_with_retries("s3://store", read) == "best"


def test_a_store_that_stays_away_behind_a_training_is_told_in_the_end() -> None:
    def read(beat: Callable[[], None]) -> None:
        raise OSError("SLOW_DOWN")

    with pytest.raises(OSError, match="SLOW_DOWN"):
        reader().read_with_retries("s3://store", read, retry_seconds=0)
