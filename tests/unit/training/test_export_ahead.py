"""T7: the export's process starts while the workers end, or with a short training."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.results import export_ahead
from mirrorspark.training.results.export_ahead import ExportAhead


class FakeProcess:
    """Counts what is started and ended."""

    def __init__(self, threads: int, *, verbose: bool = False) -> None:
        self.threads = threads
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_the_export_gets_ready_when_the_chief_has_trained(
    new_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_ahead, "ExportProcess", FakeProcess)
    end: Event = {"event": "train_end", "rank": 0}
    with ExportAhead(new_config(threads_per_worker=3)) as ahead:
        for event in ({"event": "epoch_end", "rank": 0, "epoch": 1}, {"event": "waiting"}, end | {"rank": 1}):
            ahead.on_event(event)
        assert ahead.process is None
        ahead.on_event(end)
        process = cast(Any, ahead.process)
        assert (process.threads, process.is_closed) == (3, False)
        # A training function that fits twice, or a restart, reports the same again.
        ahead.on_event(end)
        assert ahead.process is process
    assert process.is_closed


@pytest.mark.parametrize(
    ("rows", "cores", "is_ready"), [(1_000, 2, True), (1_000, 1, False), (1_000_000, 2, False), (None, 2, False)]
)
def test_the_export_of_few_rows_gets_ready_while_they_train_if_a_core_is_free(
    new_config: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    rows: int | None,
    cores: int,
    is_ready: bool,
) -> None:
    monkeypatch.setattr(export_ahead, "ExportProcess", FakeProcess)
    monkeypatch.setattr(export_ahead.os, "sched_getaffinity", lambda _: set(range(cores)))
    with ExportAhead(new_config(workers=1), rows) as ahead:
        ahead.on_event({"event": "attempt"})
        assert (ahead.process is not None) == is_ready
        ahead.on_event({"event": "train_end", "rank": 0})
        assert ahead.process is not None
