"""T5, L15, T10, F6, T6: the callbacks in a real fit of two processes, under every strategy of several processes."""

import hashlib
import importlib.util
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

from mirrorspark.callbacks.backup import restore
from mirrorspark.callbacks.checkpoints import commit

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"
PROGRAM = PROGRAMS / "callbacks_rank.py"
TIMEOUT_SECONDS = 120


def train(
    folder: Path, name: str, store: Path, *, strategy: str, epochs: int, stop_after: int = 10**9
) -> list[dict[str, Any]]:
    """Run both ranks to their end and return their results; ``folder/scratch-<rank>`` is each one's scratch."""
    commands = [[PROGRAM, strategy, store, folder / f"scratch-{rank}", epochs, stop_after] for rank in range(2)]
    return run_ranks(folder, name, strategy, commands)


def run_ranks(folder: Path, name: str, strategy: str, commands: list[list[Any]]) -> list[dict[str, Any]]:
    """Run each command with a result file as its last argument, and return the results; ``commands`` are two."""
    with reserved_port() as first, reserved_port() as second:
        addresses = [f"127.0.0.1:{port}" for port in (first, second)]
        if strategy != "ring":
            return _run_ranks(folder, name, commands, addresses)
    # A ring does not share its port.
    return _run_ranks(folder, name, commands, addresses)


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port that stays ours until the end: bound, not listened on, and open to who shares it on purpose."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Where TensorFlow binds, too: on every interface.
        holder.bind(("", 0))
        yield holder.getsockname()[1]


def _run_ranks(folder: Path, name: str, commands: list[list[Any]], addresses: list[str]) -> list[dict[str, Any]]:
    cluster = {"worker": addresses}
    results = [folder / f"{name}-{rank}.json" for rank in range(2)]
    logs = [folder / f"{name}-{rank}.log" for rank in range(2)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(2):
            tf_config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
            with logs[rank].open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *map(str, commands[rank]), str(results[rank])],
                        env=os.environ
                        | {"TF_CONFIG": tf_config, "PYTHONPATH": os.pathsep.join(sys.path), "TF_GRPC_REUSE_PORT": "1"},
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


@pytest.fixture(params=["mirrored", "ring"])
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.full
@pytest.mark.timeout(420)
def test_two_ranks_share_one_store_stop_together_and_resume_to_the_same_bits(tmp_path: Path, strategy: str) -> None:
    unbroken_store, resumed_store = tmp_path / "unbroken", tmp_path / "resumed"

    unbroken = train(tmp_path, "unbroken", unbroken_store, strategy=strategy, epochs=8)

    assert [(r["is_chief"], r["rank"], r["workers"]) for r in unbroken] == [(True, 0, 2), (False, 1, 2)]
    # Each rank logged other values; both stop after the epoch that the means ask for.
    assert [r["epochs"] for r in unbroken] == [[0, 1, 2, 3, 4]] * 2
    assert [r["stopping"] for r in unbroken] == [{"epoch": 5, "best": 0.5, "best_epoch": 3, "wait": 2}] * 2
    assert unbroken[0]["weights_sha256"] == unbroken[1]["weights_sha256"]
    assert unbroken[1]["last_event"] == {"event": "train_end", "epochs": 5}
    # One store, the chief's: the newest, which is the best by the chief's own value, and one before.
    kept = commit.committed(unbroken_store)
    assert [c.damage() for c in kept] == [None, None]
    assert kept[0].step == 20
    assert sorted(path.name for path in unbroken_store.iterdir()) == sorted(c.path.name for c in kept)
    assert not (tmp_path / "scratch-1").exists()

    # Rank 1 alone is asked to stop, in the middle of epoch 3: both do, after the same step.
    broken = train(tmp_path, "broken", resumed_store, strategy=strategy, epochs=8, stop_after=10)
    assert [r["stopped"] for r in broken] == [[10, str(resumed_store / "step-00000010")]] * 2
    assert commit.read_committed(resumed_store / "step-00000010").step_in_epoch == 2
    # The next attempt removes the files of a rank that was killed during a save.
    (resumed_store / ".staging-killed").mkdir()
    resumed = train(tmp_path, "resumed", resumed_store, strategy=strategy, epochs=8)

    assert [r["epochs"] for r in resumed] == [[2, 3, 4]] * 2
    assert [r["stopping"] for r in resumed] == [r["stopping"] for r in unbroken]
    assert {r["weights_sha256"] for r in resumed} == {unbroken[0]["weights_sha256"]}
    # The epoch that was resumed in its middle logs what the unbroken one did.
    assert [r["mae"] for r in resumed] == [r["mae"][2:] for r in unbroken]
    # Each rank has its own moving averages; a checkpoint holds their mean, from which both go on: equal but for
    # rounding.
    for averages in (r["moving_averages"] for r in resumed):
        for ours, theirs in zip(averages, unbroken[0]["moving_averages"], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert not [path.name for path in resumed_store.iterdir() if not path.name.startswith("step-")]

    restores_alone(resumed_store, resumed[0])


def restores_alone(store: Path, trained: dict[str, Any]) -> None:
    """Two ranks wrote the checkpoint; a process of its own reads it, as the export does."""
    program = REPOSITORY / "tests" / "cluster" / "programs" / "callbacks_rank.py"
    specification = importlib.util.spec_from_file_location("callbacks_rank", program)
    assert specification is not None
    assert specification.loader is not None
    rank = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(rank)
    model = rank.build_model()
    newest = commit.latest_committed(store)
    assert newest is not None
    restore(model, model.optimizer, newest)
    values = b"".join(v.numpy().tobytes() for v in [*model.trainable_variables, *model.optimizer.variables])
    assert hashlib.sha256(values).hexdigest() == trained["weights_sha256"]
    assert model.evaluate(rank.epoch_data(0), steps=4, verbose=0, return_dict=True)["mae"] >= 0
