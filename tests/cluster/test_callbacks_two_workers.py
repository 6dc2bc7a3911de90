"""T5, L15, T10, F6, T6: the callbacks in a real fit of two processes under MultiWorkerMirroredStrategy."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from callbacks import commit

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).parent / "programs" / "callbacks_rank.py"
TIMEOUT_SECONDS = 120


def train(folder: Path, name: str, store: Path, epochs: int) -> list[dict[str, Any]]:
    """Run both ranks to their end and return their results; ``folder/scratch-<rank>`` is each one's scratch."""
    with reserved_port() as first, reserved_port() as second:
        return _train(folder, name, store, epochs, [f"127.0.0.1:{port}" for port in (first, second)])


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port that stays ours until the end: bound, not listened on, and open to who shares it on purpose."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Where TensorFlow binds, too: on every interface.
        holder.bind(("", 0))
        yield holder.getsockname()[1]


def _train(folder: Path, name: str, store: Path, epochs: int, addresses: list[str]) -> list[dict[str, Any]]:
    cluster = {"worker": addresses}
    results = [folder / f"{name}-{rank}.json" for rank in range(2)]
    logs = [folder / f"{name}-{rank}.log" for rank in range(2)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(2):
            tf_config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
            arguments = [store, folder / f"scratch-{rank}", epochs, results[rank]]
            with logs[rank].open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, str(PROGRAM), *map(str, arguments)],
                        env=os.environ
                        | {"TF_CONFIG": tf_config, "PYTHONPATH": str(REPOSITORY), "TF_GRPC_REUSE_PORT": "1"},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        statuses = [process.wait(TIMEOUT_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait(10)
    assert statuses == [0, 0], "\n".join(log.read_text(errors="replace")[-3000:] for log in logs)
    return [json.loads(result.read_text()) for result in results]


@pytest.mark.timeout(420)
def test_two_ranks_share_one_store_stop_together_and_resume_to_the_same_bits(tmp_path: Path) -> None:
    unbroken_store, resumed_store = tmp_path / "unbroken", tmp_path / "resumed"

    unbroken = train(tmp_path, "unbroken", unbroken_store, epochs=8)

    assert [(r["is_chief"], r["rank"], r["workers"]) for r in unbroken] == [(True, 0, 2), (False, 1, 2)]
    # Each rank logged other values; both stop after the epoch that the means ask for.
    assert [r["epochs"] for r in unbroken] == [[0, 1, 2, 3, 4]] * 2
    assert [r["stopping"] for r in unbroken] == [{"epoch": 5, "best": 0.5, "best_epoch": 3, "wait": 2}] * 2
    assert unbroken[0]["weights_sha256"] == unbroken[1]["weights_sha256"]
    assert unbroken[1]["last_event"] == {"event": "train_end", "epochs": 5}
    # One store, the chief's: the two newest (within and at the end of epoch 5), the best by the chief's own value.
    assert [(c.step, c.damage()) for c in commit.committed(unbroken_store)] == [(20, None), (18, None)]
    assert sorted(path.name for path in unbroken_store.iterdir()) == ["step-00000018", "step-00000020"]
    assert list((tmp_path / "scratch-1").iterdir()) == []

    # What a rank left that was killed while it saved is gone after the next attempt.
    train(tmp_path, "broken", resumed_store, epochs=2)
    (resumed_store / ".staging-killed").mkdir()
    resumed = train(tmp_path, "resumed", resumed_store, epochs=8)

    assert [r["epochs"] for r in resumed] == [[2, 3, 4]] * 2
    assert [r["stopping"] for r in resumed] == [r["stopping"] for r in unbroken]
    assert {r["weights_sha256"] for r in resumed} == {unbroken[0]["weights_sha256"]}
    # Each rank has its own moving averages; a checkpoint holds their mean, from which both go on: equal but for
    # rounding.
    for averages in (r["moving_averages"] for r in resumed):
        for ours, theirs in zip(averages, unbroken[0]["moving_averages"], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert sorted(path.name for path in resumed_store.iterdir()) == ["step-00000018", "step-00000020"]
    assert list((tmp_path / "scratch-1").iterdir()) == []
